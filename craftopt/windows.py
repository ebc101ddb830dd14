"""Windows of traffic: hold some out, blend them, shrink them to similar ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from craftopt.coactivation import Coactivation
from craftopt.errors import InputError, number, whole
from craftopt.loads import FloatArray, Loads
from craftopt.portable import exp_array
from craftopt.traces import Trace

# Domain of the windows that a trace was cut into across its domains.
MIXED = "mixed"
# Beyond this range a Gamma variable underflows, or all blends are the average.
LEAST_ALPHA, MOST_ALPHA = 0.01, 1000.0
# Correlation of a window's share from one blend to the next.
DRIFT = 0.9
# Share of the way that a window is shrunk at most, and the most windows that are.
SHRINKAGE, MOST_SHRUNK = 0.3, 512
# Kernel bandwidths to choose from, as quantiles of the distances between windows, and how many
# columns (layers x experts) are enough to choose by.
BANDWIDTHS, COLUMNS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4), 4096


def holdout(loads: Loads, rule: str) -> tuple[Loads, Loads]:
    """Split windows into those to plan on and those to serve.

    Parameters
    ----------
    loads : Loads
    rule : str
        ``"odd-even"``: plan on odd 0-based positions, serve the even ones. ``"first-half"``:
        plan on the first half, serve the rest; ``"second-half"`` the other way round.
        ``"domain:NAME"``: serve the windows of one domain, plan on all others; a window's
        domain is its name up to the first ``/``, the whole name where there is none. Else a
        text file that names the windows to serve, one a line.

    Raises
    ------
    InputError
        An unknown rule, domain or window, or a split that leaves a side empty.

    Examples
    --------
    >>> import craftopt as co
    >>> train, test = co.holdout(co.Loads([[[1, 2]], [[3, 4]], [[5, 6]]]), "odd-even")
    >>> train.window_names, test.window_names
    (('1',), ('0', '2'))
    """
    if loads.windows < 2:
        raise InputError(
            "these loads have 1 window, and a holdout needs at least 2; record several, or cut a "
            "token trace into windows (--batch N, Trace.batches)"
        )
    position = np.arange(loads.windows)
    if rule == "odd-even":
        return loads.split(position % 2 == 1)
    if rule == "first-half":
        return loads.split(position < loads.windows // 2)
    if rule == "second-half":
        return loads.split(position >= loads.windows // 2)
    if rule.startswith("domain:"):
        return _hold_out_domain(loads, rule.removeprefix("domain:"))
    return _hold_out_listed(loads, rule)


def without_idle(loads: Loads) -> Loads:
    """Leave out windows without tokens.

    Raises
    ------
    InputError
        Loads without any token.
    """
    busy = loads.tokens.any(axis=(1, 2))
    if not busy.any():
        raise InputError("these loads have no tokens; nothing can be said of them")
    return loads if busy.all() else loads.split(busy)[0]


def without_domain(loads: Loads, domain: str) -> tuple[Loads, Loads]:
    """Take one domain out of the windows altogether.

    Windows named ``mixed/...`` were cut from a trace across domains and may hold its tokens; they
    go to neither side.

    Returns
    -------
    others, foreign : Loads

    Raises
    ------
    InputError
        An unknown domain, or no window of others.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.windows import without_domain
    >>> loads = co.Loads([[[1, 2]]] * 3, window_names=["chat/0", "mixed/1", "code/2"])
    >>> [side.window_names for side in without_domain(loads, "code")]
    [('chat/0',), ('code/2',)]
    """
    others, foreign = _hold_out_domain(loads, domain)
    pure = [i for i, name in enumerate(others.window_names) if domain_of(name) != MIXED]
    if domain == MIXED or not pure:
        raise InputError(f"without domain {domain!r} no window is of one other domain")
    return others.select(pure), foreign


def domain_of(window_name: str) -> str:
    """Return the domain of a window: its name up to the first ``/``, or all of it."""
    return window_name.split("/", 1)[0]


def domains(loads: Loads) -> list[str]:
    """List the domains of the windows (see `holdout`), in the order of the windows.

    Raises
    ------
    InputError
        A single domain, which leaves nothing to plan on when it is held out.
    """
    found = list(dict.fromkeys(map(domain_of, loads.window_names)))
    if len(found) < 2:
        raise InputError(
            f"all windows are of the domain {found[0]!r}; leaving one out needs two or more"
        )
    return found


def blend(loads: Loads, alpha: float, windows: int = 100, seed: int = 0) -> Loads:
    """Make windows that mix the given ones in shares that drift.

    The shares of every window are Dirichlet(alpha) distributed over the given windows, and
    change little from one to the next: they are Gamma(alpha) variables over their sum, each
    carried on by a beta-gamma autoregression (Lewis, McKenzie and Hugus, 1989), which keeps
    the distribution, with a correlation of 0.9. Given windows count alike, whatever their
    tokens; every blend has as many tokens as they have on average.

    Parameters
    ----------
    loads : Loads
    alpha : float
        At most 1000, at least 0.01: small values serve nearly one window at a time, great ones
        the average of all.
    windows : int
        Windows to make.
    seed : int

    Raises
    ------
    InputError
        A value outside its range.

    Examples
    --------
    >>> import craftopt as co
    >>> blended = co.blend(co.Loads([[[8, 2]], [[2, 8]]]), alpha=0.5, windows=3)
    >>> blended.window_names
    ('blend/00000', 'blend/00001', 'blend/00002')
    >>> blended.tokens.sum(axis=2).ravel()
    array([10., 10., 10.])
    """
    number("alpha", alpha, least=LEAST_ALPHA, most=MOST_ALPHA)
    whole("windows", windows, 1)
    shares = _drifting_shares(loads.windows, alpha, windows, np.random.default_rng(seed))
    flat = loads.tokens.reshape(loads.windows, -1)
    total = flat.sum(axis=1, keepdims=True)
    if not total.all():
        name = loads.window_names[int(np.argmin(total))]
        raise InputError(f"window {name!r} has no tokens to blend; leave it out (Loads.select)")
    tokens = shares @ (flat / total) * total.mean()
    names = [f"blend/{window:05d}" for window in range(windows)]
    return Loads(tokens.reshape(windows, *loads.tokens.shape[1:]), loads.layer_ids, names)


def in_mean_loads(tokens: FloatArray, gpus: int) -> tuple[FloatArray, FloatArray]:
    """Express tokens in mean GPU loads of their window and layer.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
    gpus : int

    Returns
    -------
    scaled : float64 [windows, layers, experts]
        Sums to ``gpus`` over the experts, or to 0 where there are no tokens.
    mean : float64 [windows, layers]
    """
    mean = tokens.sum(axis=2) / gpus
    scale = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0)
    return tokens * scale[:, :, np.newaxis], mean


def shrink(tokens: FloatArray) -> FloatArray:
    """Shrink every window a little toward what similar windows predict of it.

    The prediction is a kernel regression over the other windows: their mean, weighted by
    ``exp(-d/bandwidth)``, d the squared Hellinger distance between the experts' shares over all
    layers, with the leave-one-out bandwidth. A window is shrunk by `SHRINKAGE` times the share of
    the error that the prediction takes off that of the plain mean: not at all where no other
    window is similar. So windows of one kind of traffic lend each other strength, and the noise
    of short windows evens out, without a label for the kinds. More than `MOST_SHRUNK` windows
    are left as they are.

    Parameters
    ----------
    tokens : float64 [windows, layers, experts]
        Each window and layer scaled to the same sum, or 0, as by `in_mean_loads`.

    Returns
    -------
    float64 [windows, layers, experts]
    """
    windows, layers = tokens.shape[:2]
    flat = tokens.reshape(windows, -1)
    if not 1 < windows <= MOST_SHRUNK or not flat.any():
        return tokens
    root = np.sqrt(flat / tokens.sum(axis=2).max() / layers)
    # einsum, not @: sums in one order, whatever the threads of numpy's libraries.
    distance = np.maximum(0.0, 1.0 - np.einsum("wc,vc->wv", root, root))
    bandwidths = np.unique(np.quantile(distance[~np.eye(windows, dtype=bool)], BANDWIDTHS))
    np.fill_diagonal(distance, np.inf)
    # Distances count from the nearest, so that no window is left without neighbours.
    distance -= distance.min(axis=1, keepdims=True)
    sample = flat[:, :: -(-flat.shape[1] // COLUMNS)]
    # What a prediction has to beat: the mean of all other windows.
    others = (sample.sum(axis=0) - sample) / (windows - 1)
    plain = _prediction_error(others, sample)
    best, errors = np.zeros_like(distance), plain
    for bandwidth in np.maximum(bandwidths, 1e-12):
        kernel = exp_array(-distance / bandwidth)
        kernel /= kernel.sum(axis=1, keepdims=True)
        error = _prediction_error(np.einsum("wv,vc->wc", kernel, sample), sample)
        if error.sum() < errors.sum():
            best, errors = kernel, error
    part = SHRINKAGE * np.clip(1.0 - errors / np.maximum(plain, 1e-300), 0.0, 1.0)[:, np.newaxis]
    shrunk = ((1.0 - part) * flat + part * np.einsum("wv,vc->wc", best, flat)).reshape(tokens.shape)
    # Neighbours without tokens in a layer must not thin it out, nor fill one that has none.
    before, after = tokens.sum(axis=2, keepdims=True), shrunk.sum(axis=2, keepdims=True)
    rescaled: FloatArray = shrunk * np.divide(
        before, after, out=np.zeros_like(before), where=after > 0
    )
    return rescaled


def _hold_out_domain(loads: Loads, domain: str) -> tuple[Loads, Loads]:
    known = domains(loads)
    if domain not in known:
        raise InputError(f"{domain!r} is no domain of these windows; they are {', '.join(known)}")
    return loads.split(np.array([domain_of(name) != domain for name in loads.window_names]))


def _hold_out_listed(loads: Loads, file: str) -> tuple[Loads, Loads]:
    """Serve the windows that a file names."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"holdout {file!r} is neither odd-even, first-half, second-half nor domain:NAME "
            "nor a text file of window names"
        ) from None
    names = {line.strip() for line in lines if line.strip()}
    missing = sorted(names - set(loads.window_names))
    if missing:
        raise InputError(
            f"{file} names {missing[0]!r}, which is no window; the loads have "
            f"{', '.join(loads.window_names[:4])}{', ...' if loads.windows > 4 else ''}"
        )
    return loads.split(np.array([name not in names for name in loads.window_names]))


def _drifting_shares(
    parts: int, alpha: float, steps: int, generator: np.random.Generator
) -> FloatArray:
    """Draw Dirichlet(alpha) shares that drift, float64 [steps, parts]; rows sum to 1."""
    weights = np.empty((steps, parts))
    weights[0] = generator.gamma(alpha, size=parts)
    fresh = generator.gamma(alpha * (1 - DRIFT), size=(steps, parts))
    # Beta(alpha d, alpha (1 - d)) of a Gamma(alpha) is Gamma(alpha d); fresh makes it whole.
    kept = generator.beta(alpha * DRIFT, alpha * (1 - DRIFT), size=(steps, parts))
    for step in range(1, steps):
        weights[step] = kept[step] * weights[step - 1] + fresh[step]
    # At the least alpha, all weights of a step can be too small for a number.
    weights += np.finfo(float).tiny
    shares: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _prediction_error(predicted: FloatArray, actual: FloatArray) -> FloatArray:
    """Compute the squared Hellinger distance of rows, up to a factor."""
    squared: FloatArray = ((np.sqrt(predicted) - np.sqrt(actual)) ** 2).sum(axis=1)
    return squared


def planned_tokens(
    given: Coactivation | Trace | None, planned: Loads
) -> Coactivation | Trace | None:
    """Keep of a trace the tokens of some windows, so that plans do not see any other.

    Pair counts cannot be taken apart, and stay as they are.

    Raises
    ------
    InputError
        Windows that were not cut from the trace.

    Examples
    --------
    >>> import craftopt as co
    >>> from craftopt.windows import planned_tokens
    >>> trace = co.Trace([[[0]], [[1]], [[1]], [[2]]])
    >>> planned_tokens(trace, trace.batches(2).select([1])).topk_ids.ravel().tolist()
    [1, 2]
    """
    if not isinstance(given, Trace):
        return given
    window = given.windows_of(planned)
    if window is None:
        raise InputError(
            "the loads are not windows of the trace, so that its tokens cannot be held out; pass "
            "loads such as trace.batches(1024), or coactivation=trace.coactivation()"
        )
    order = np.argsort(window, kind="stable")
    tokens = given.topk_ids[order[np.count_nonzero(window < 0) :]]
    return Trace(tokens, given.experts, given.layer_ids)
