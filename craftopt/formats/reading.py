"""Read loads, traces, pair counts and plans from files, recognised by content."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from craftopt.coactivation import Coactivation, few_tokens
from craftopt.errors import CraftoptWarning, FormatError, InputError, whole
from craftopt.formats._contents import Contents, Kind, odd_loads
from craftopt.formats._source import Source, name_of
from craftopt.formats._text import shorten
from craftopt.formats.recognition import recognised
from craftopt.loads import Loads, layer_text
from craftopt.plan import Plan
from craftopt.traces import MOST_EXPERTS, Trace

Held = TypeVar("Held", Loads, Trace, Plan, Coactivation)


def read_loads(
    source: Source,
    layers: int | Sequence[int] | None = None,
    *,
    experts: int | None = None,
    kind: Kind | None = None,
    keep_idle: bool = False,
) -> Loads:
    r"""Read expert loads from a file or folder, whichever of the supported formats it is in.

    - ``.npz``: array ``counts``, else ``tokens``, ``logical_count``, ``weight`` or
      ``physical_count``, [windows, layers, experts] or [layers, experts]; optional ``layer_ids``
      [layers] and ``step_names`` (or ``window_names``) [windows]. Counts of slots are mapped back
      by the ``physical_to_logical_map`` (or ``phy2log``) beside them.
    - ``.npy``, PyTorch's ``.pt`` of a tensor: the array alone. One that looks like expert ids per
      token or per slot, or may be, is refused unless ``kind="loads"`` says what it is.
    - JSON: nested lists alone, or an object with the keys of ``.npz``.
    - CSV: a row per cell, columns ``window`` (may be left out), ``layer``, ``expert``, ``tokens``
      (or ``layer_id``, ``expert_id``, ``count``) in any order. Cells without a row are 0; experts
      are numbered from 0 to the greatest id, unless ``experts`` says how many there are.
    - SGLang's recorder, modes ``stat``, ``stat_approx``, ``per_pass`` and ``per_token``: a
      ``.pt`` file, or the folder with the files of all ranks. A window per step or forward
      pass; counts of physical slots are mapped back, and refused where the map changed. Ranks
      that recorded the same tokens are counted once.
    - TensorRT-LLM's expert statistics: the folder with ``meta_info.json`` and
      ``rank*.safetensors``. A window per iteration.
    - lmdeploy's recorder: a ``.pt`` file, or the folder with those of a recording.
    - MindIE's hotspots: the folder with ``{prefill|decode}_{rank}.csv``, and the expert map
      that the run used. A window per block.
    - The JSONL of vLLM's open pull request 41141, with a warning: it is experimental.

    Layers without a token in any window (dense layers, in many recorders) are dropped with
    a `CraftoptWarning`, unless ``keep_idle``; windows without tokens are kept. Others warn of
    counts that no router makes, such as a shared expert among the routed ones. Nothing is ever
    unpickled: ``.pt`` files are decoded without running what they hold.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file or folder, or a stream open for reading bytes, such as
        ``sys.stdin.buffer``; a stream is read to its end and left open.
    layers : int or sequence of int, optional
        How many layers the file has, which MindIE's hotspots without an expert map and SGLang's
        responses do not say; or the model's own numbers of the layers, in rising order: they
        number the layers of a file that does not, and select layers of one that does (or that
        holds them by position).
    experts : int, optional
        Logical experts per layer, where the file does not say it (CSV).
    kind : {"loads", "trace", "plan"}, optional
        What a bare array is; by its values by default. All but ``"loads"`` are refused.
    keep_idle : bool
        Keep layers without tokens, such as to rebalance a plan that has them.

    Raises
    ------
    InputError
        A source that cannot be opened or read.
    FormatError
        A file that is damaged, unsafe or in another format, or whose values are not loads;
        the message names the file.

    Examples
    --------
    >>> import io
    >>> import craftopt as co
    >>> table = b"window,layer,expert,tokens\nchat,3,0,6\nchat,3,1,2\n"
    >>> loads = co.read_loads(io.BytesIO(table))
    >>> loads
    Loads(windows=1, layers=1, experts=2, tokens=8)
    >>> loads.layer_ids
    array([3])
    """
    with recognised(source, "read_loads", "co.Loads takes arrays", layers) as contents:
        contents.take_as(kind)
        loads = _active_loads(contents, experts, keep_idle)
    _warn_of(source, contents.notes)
    return loads


def read_trace(
    source: Source, experts: int | None = None, layers: int | Sequence[int] | None = None
) -> Trace:
    """Read a token trace from a file or folder, recognised by content.

    - ``.npz``: ``topk_ids`` (or ``routed_experts``) [tokens, layers, k], and if they are there
      ``layer_ids`` [layers], the domain of every token (``domain``, ``step`` or ``task``) with
      the ``domain_names`` (or ``step_names``), and the ``sequence`` (or ``seq``) of every token.
    - ``.npy``, JSON and a PyTorch tensor: the ids alone, such as ``routed_experts`` of vLLM's
      outputs. JSON may also have the keys of ``.npz``.
    - SGLang's recorder, mode ``per_token``: a ``.pt`` file, or the folder of all ranks' files.
      Slots are mapped back to experts, and refused where the map changed.
    - Responses of vLLM's and SGLang's APIs with routed experts, as JSON or JSONL; SGLang's need
      ``layers``, since they have no shape.
    - Megatron-LM's routing traces: a ``.jsonl`` file, or the folder of all ranks' files.

    Layers in which no token has an expert, as dense layers, and tokens that have none in any
    layer are dropped with a `CraftoptWarning`; they are -1 or, where k > 1, 0 in all k places.
    Nothing is ever unpickled.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file or folder, or a stream open for reading bytes.
    experts : int, optional
        Logical experts per layer; the highest id in the trace plus 1 by default.
    layers : int or sequence of int, optional
        As for `read_loads`.

    Raises
    ------
    InputError
        A source that cannot be opened or read.
    FormatError
        A file that is damaged, unsafe or in another format, or whose values are no trace;
        the message names the file.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> import craftopt as co
    >>> file = io.BytesIO()
    >>> np.savez(file, topk_ids=[[[0, 2]], [[1, 2]]], seq=[0, 1])
    >>> _ = file.seek(0)
    >>> co.read_trace(file).by_sequence().tokens[:, 0]
    array([[1., 0., 1.],
           [0., 1., 1.]])
    """
    with recognised(source, "read_trace", "co.Trace takes arrays", layers) as contents:
        trace = _trace(contents, experts)
    _warn_of(source, contents.notes)
    return trace


def read_plan(
    source: Source, gpus: int | None = None, layers: int | Sequence[int] | None = None
) -> Plan:
    """Read a plan from the file that `Plan.save` wrote, or from the map of a serving engine.

    Read are SGLang's expert location (JSON or ``.pt``), TensorRT-LLM's load balancer
    configuration (YAML), the expert map of vllm-ascend and MindIE (JSON), and tables of experts
    per slot [layers, slots] (``.npy``, ``.npz`` with ``phy2log``, JSON), or [slots] for all layers
    alike, as vLLM has. Of these, the maps of vllm-ascend alone say how many GPUs share the slots.

    Layers are numbered as the file numbers them: by the model's own numbers in SGLang's and
    TensorRT-LLM's files, else 0, 1, ...

    Parameters
    ----------
    source : str, os.PathLike or binary stream
    gpus : int, optional
        GPUs that share the slots, where the file does not say it.
    layers : int or sequence of int, optional
        As for `read_loads`; one map for all layers is repeated for each of them.

    Raises
    ------
    InputError
        A file that cannot be opened.
    FormatError
        A file that holds no plan, or a damaged one, or that does not say the GPUs; the message
        names the file.

    Examples
    --------
    >>> import io
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.read_plan(io.BytesIO(plan.to_json().encode())) == plan
    True
    >>> location = b'{"physical_to_logical_map": [[0, 1, 0, 2]]}'
    >>> co.read_plan(io.BytesIO(location), gpus=2) == plan
    True
    """
    with recognised(source, "read_plan", "co.Plan takes arrays", layers) as contents:
        plan = _plan(contents, gpus)
    _warn_of(source, contents.notes)
    return plan


def read_coactivation(
    source: Source, experts: int | None = None, layers: int | Sequence[int] | None = None
) -> Coactivation:
    """Read pair counts from the ``.npz`` of a recorder, or count them in a token trace.

    - ``.npz``: ``pairs`` [layers, experts, experts], tokens that chose both experts, and
      ``top_k``; ``assignments`` [layers, experts], tokens that chose each, unless they are on the
      diagonal of ``pairs``; ``tokens`` [layers] or one number, unless every token chose ``top_k``
      experts; optional ``layer_ids`` [layers]. Any other array is refused.
    - Token traces in every format of `read_trace`.

    Layers without tokens (dense layers, in many recorders) are dropped with a `CraftoptWarning`.
    Another warns where the tokens are too few to plan traffic from.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
        Path of a file or folder, or a stream open for reading bytes.
    experts : int, optional
        For a trace, logical experts per layer; its highest id plus 1 by default.
    layers : int or sequence of int, optional
        As for `read_loads`.

    Raises
    ------
    InputError
        A source that cannot be opened or read.
    FormatError
        A file that is damaged, unsafe or in another format, or whose values are no pair counts;
        the message names the file.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> import craftopt as co
    >>> file = io.BytesIO()
    >>> np.savez(file, pairs=[[[2000, 2000, 0], [2000, 3000, 1000], [0, 1000, 1000]]], top_k=2)
    >>> _ = file.seek(0)
    >>> co.read_coactivation(file)
    Coactivation(layers=1, experts=3, top_k=2, tokens=3000)
    """
    instead = "co.Coactivation takes arrays"
    with recognised(source, "read_coactivation", instead, layers) as contents:
        if contents.kind == "trace":
            pairs = _trace(contents, experts).coactivation()
        else:
            pairs = contents.coactivation()
            if text := few_tokens(int(pairs.tokens.min())):
                contents.notes.append(text)
            pairs = place_layers(pairs, layers)
    _warn_of(source, contents.notes)
    return pairs


def read_any(
    source: Source,
    gpus: int | None = None,
    layers: int | Sequence[int] | None = None,
    experts: int | None = None,
    kind: Kind | None = None,
) -> tuple[str, Loads | Trace | Plan | Coactivation]:
    """Read whatever a file holds, and say in words what it is.

    Parameters
    ----------
    source : str, os.PathLike or binary stream
    gpus : int, optional
        As for `craftopt.read_plan`.
    layers, experts, kind
        As for `read_loads`.

    Raises
    ------
    InputError, FormatError
        As `read_loads`.
    """
    held: Loads | Trace | Plan | Coactivation
    with recognised(source, "read_any", "it takes files alone", layers) as contents:
        contents.take_as(kind)
        if contents.kind == "plan":
            held = _plan(contents, gpus)
        elif contents.kind == "coactivation":
            held = place_layers(contents.coactivation(), layers)
        elif contents.kind == "loads":
            held = _active_loads(contents, experts)
        else:
            held = _trace(contents, experts)
    _warn_of(source, contents.notes)
    return contents.name, held


def place_layers(held: Held, layers: int | Sequence[int] | None) -> Held:
    """Give layers the numbers that their file does not say, or select some by their numbers.

    Raises
    ------
    InputError
        Numbers that do not fit the layers of the file.
    """
    if layers is None:
        return held
    if not isinstance(layers, Sequence):
        if whole("layers", layers, 1) != held.layers:
            raise InputError(
                f"has {held.layers} layers ({layer_text(held.layer_ids)}), not layers={layers}; "
                "pass the model's own numbers of them, such as --layers 3-60 (layers=range(3, 61))"
            )
        return held
    numbers = [whole("layers", number, 0) for number in layers]
    if not numbers or sorted(set(numbers)) != numbers:
        raise InputError(f"layers={shorten(numbers)}; list the numbers of layers in rising order")
    own = {number: position for position, number in enumerate(held.layer_ids.tolist())}
    if all(number in own for number in numbers):
        positions = [own[number] for number in numbers]
    elif list(own) == list(range(held.layers)) and len(numbers) == held.layers:
        positions = list(range(held.layers))
    else:
        raise InputError(
            f"has layers {layer_text(held.layer_ids)}, not {layer_text(numbers)}; pass numbers of "
            f"its layers, or, where it does not number them, {held.layers} numbers"
        )
    return held.with_layers(positions, numbers)


def _trace(contents: Contents, experts: int | None) -> Trace:
    held = contents.trace(experts)  # which may use up what the caller says of the layers
    trace = place_layers(held, contents.layers)
    _note_inferred(contents, trace, experts)
    return trace


def _plan(contents: Contents, gpus: int | None) -> Plan:
    plan, layers = contents.plan(gpus), contents.layers
    if layers is not None and contents.repeated:
        numbers = layers if isinstance(layers, Sequence) else range(whole("layers", layers, 1))
        contents.notes.clear()
        return plan.with_layers([0] * len(numbers), list(numbers))
    return place_layers(plan, layers)


def _note_inferred(contents: Contents, held: Loads | Trace, experts: int | None) -> None:
    if contents.inferred and experts is None:
        contents.notes.append(
            f"the number of experts, {held.experts}, is inferred from the {contents.inferred}; "
            "pass --experts (experts=) if there are more"
        )


def _active_loads(contents: Contents, experts: int | None, keep_idle: bool = False) -> Loads:
    """Read the loads without layers that have no tokens, which are noted."""
    loads = place_layers(contents.loads(), contents.layers)
    _note_inferred(contents, loads, experts)
    if experts is not None and whole("experts", experts, 1, MOST_EXPERTS) != loads.experts:
        if experts < loads.experts or not contents.inferred:
            raise InputError(f"has {loads.experts} experts, not experts={experts}; leave it out")
        idle = ((0, 0), (0, 0), (0, experts - loads.experts))
        loads = Loads(np.pad(loads.tokens, idle), loads.layer_ids, loads.window_names)
    active = loads.tokens.any(axis=(0, 2))
    if not active.any():
        raise FormatError("holds no tokens: every cell of every window is 0")
    contents.notes += odd_loads(loads)
    if active.all() or keep_idle:
        return loads
    idle = loads.layer_ids[~active].tolist()
    contents.notes.append(
        f"dropped {len(idle)} layer(s) without tokens, such as dense layers: {shorten(idle)}"
    )
    return Loads(loads.tokens[:, active], loads.layer_ids[active], loads.window_names)


def _warn_of(source: Source, notes: list[str]) -> None:
    """Warn of what a reader noted, at the line that called the reader."""
    for note in notes:
        warnings.warn(f"{name_of(source, '', '')}: {note}", CraftoptWarning, stacklevel=3)
