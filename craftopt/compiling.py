"""Compiling is not planning: kernels are compiled before a method's clock starts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numba.core import event

from craftopt.coactivation import Coactivation
from craftopt.heap import sift_down
from craftopt.jit import cache_folder
from craftopt.loads import Loads
from craftopt.plan import Plan
from craftopt.problem import Problem
from craftopt.traces import Trace

# A miniature has this many experts, GPUs, and replicas per layer, and at most these windows and
# layers: no plan of theirs is as good as its bound, so that methods go on to improve it, and heavy
# copies have companions, which that bound counts.
EXPERTS, GPUS, REPLICAS = 8, 4, 4
FEW = 2048  # tokens that are not warned of
TOKENS = (
    ((70, 25, 12, 12, 8, 6, 6, 6), (0, 33, 3, 41, 5, 5, 17, 9)),
    ((2, 0, 19, 44, 1, 7, 13, 57), (36, 6, 62, 0, 3, 1, 5, 12)),
)

_ready: set[tuple[object, ...]] = set()
_lock = threading.RLock()
_running = _announced = False


def first_use(name: str, problem: Problem, run: Callable[[Problem], object]) -> float:
    """Compile what a method needs, once for every kind of problem: run it on a `miniature`.

    Returns
    -------
    float
        Seconds that compiling, or loading what is cached, took; 0 if done before.
    """
    start = time.perf_counter()
    with first_call(name, *kind_of(problem)) as first:
        if not first:
            return 0.0
        with event.install_listener("numba:compile", _Announcement()):
            run(miniature(problem))
    return time.perf_counter() - start


@contextmanager
def first_call(*kind: object) -> Iterator[bool]:
    """Say whether this is the process's first call of a kind; then it has the machine's lock."""
    global _running  # noqa: PLW0603
    if kind in _ready:
        yield False
        return
    with _lock:
        if _running or kind in _ready:  # what is called within a first call comes here, too
            yield False
            return
        _running = True
        try:
            with _machine_lock():
                yield True
        finally:
            _running = False
        _ready.add(kind)


@contextmanager
def _machine_lock() -> Iterator[None]:
    """Let one process of a machine compile while others wait, to load then what it compiled.

    Those that waited go on side by side. Where numba caches nothing, or files cannot be locked,
    nobody waits.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError, TypeError):  # Windows; not writable; no cache
            import fcntl  # noqa: PLC0415

            folder = cache_folder(sift_down)
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / "compiling.lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


def miniature(problem: Problem) -> Problem:
    """Make a tiny problem of the same kind: planning it runs through the same kernels.

    Examples
    --------
    >>> import craftopt as co
    >>> large = co.Problem(co.load_example("deepseek-r1"), gpus=64, nodes=8, replicas=512)
    >>> small = miniature(large)
    >>> small.loads, small.gpus, small.nodes, small.replicas
    (Loads(windows=2, layers=2, experts=8, tokens=526), 4, 2, 8)
    """
    windows, layers = (min(count, 2) for count in problem.loads.tokens.shape[:2])
    nodes, extra = min(problem.nodes, 2), REPLICAS if problem.replicas else 0
    # Improving a previous plan takes the kernels that rare repairs of a new one take.
    own, slots = EXPERTS // nodes, (EXPERTS + extra) // nodes  # of every node
    row = [node * own + slot % own for node in range(nodes) for slot in range(slots)]
    return problem.variant(
        loads=Loads([window[:layers] for window in TOKENS[:windows]]),
        gpus=GPUS,
        nodes=nodes,
        replicas=extra * layers,
        expert_groups=None if problem.expert_groups is None else 2,
        max_copies=None,
        previous=Plan.from_phy2log([row] * layers, GPUS, EXPERTS, nodes=nodes),
        link_cost=None,
        coactivation=_sampled(problem.coactivation, layers),
        traffic=1.0 if problem.traffic_price > 0 else None,
    )


def _sampled(source: Coactivation | Trace | None, layers: int) -> Coactivation | Trace | None:
    """Make what tokens of a miniature chose together, of the same type."""
    if source is None:
        return None
    pairs = [[[expert, (expert + 1) % EXPERTS]] * layers for expert in range(EXPERTS)]
    trace = Trace(np.tile(pairs, (FEW // EXPERTS, 1, 1)), EXPERTS)
    return trace if isinstance(source, Trace) else trace.coactivation()


def kind_of(problem: Problem) -> tuple[object, ...]:
    """Name what decides which kernels a method runs, and on which types.

    A new field of `Problem` that does belongs here, and into `miniature` if it has a shape.
    """
    return (
        problem.loads.windows > 1,
        problem.loads.layers > 1,
        problem.nodes > 1,
        problem.replicas > 0,
        problem.slots,
        problem.objective,
        problem.expert_groups is None,
        problem.max_moves is None,
        problem.dispatch,
        problem.traffic_price > 0,
        problem.max_slowdown is None,
        type(problem.coactivation),
    )


class _Announcement(event.Listener):
    """Says once, on a terminal only, that kernels are being compiled."""

    def on_start(self, _: Any) -> None:
        global _announced  # noqa: PLW0603
        if not _announced and sys.stderr.isatty():
            print(
                "craftopt: compiling, once on this machine; later runs load what is cached",
                file=sys.stderr,
            )
        _announced = True

    def on_end(self, _: Any) -> None:
        pass
