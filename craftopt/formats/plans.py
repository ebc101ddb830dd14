"""Read plans from files, recognised by content."""

from __future__ import annotations

from craftopt.formats import recognised, warn_of
from craftopt.formats._source import Source
from craftopt.plan import Plan


def read_plan(source: Source, gpus: int | None = None) -> Plan:
    """Read a plan from the file that `Plan.save` wrote, or from the map of a serving engine.

    Read are SGLang's expert location (JSON or ``.pt``), TensorRT-LLM's load balancer
    configuration (YAML), the expert map of vllm-ascend and MindIE (JSON), and tables of experts
    per slot [layers, slots] (``.npy``, ``.npz`` with ``phy2log``, JSON). Of these, the maps of
    vllm-ascend alone say how many GPUs share the slots.

    Layers are numbered as the file numbers them: by the model's own numbers in SGLang's and
    TensorRT-LLM's files, else 0, 1, ...

    Parameters
    ----------
    source : str, os.PathLike or binary stream
    gpus : int, optional
        GPUs that share the slots, where the file does not say it.

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
    with recognised(source, "read_plan", "co.Plan takes arrays") as contents:
        plan, notes = contents.plan(gpus), contents.notes
    warn_of(source, notes)
    return plan
