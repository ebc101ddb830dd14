"""Read plans from files, recognised by content."""

from __future__ import annotations

from craftopt.errors import FormatError
from craftopt.formats._source import Source, errors_named, name_of, opened
from craftopt.plan import Plan


def read_plan(source: Source) -> Plan:
    """Read a plan from the file that `Plan.save` wrote.

    Parameters
    ----------
    source : str, os.PathLike or binary stream

    Raises
    ------
    InputError
        A file that cannot be opened.
    FormatError
        A file that holds no plan, or a damaged one; the message names the file.

    Examples
    --------
    >>> import io
    >>> import craftopt as co
    >>> plan = co.Plan.from_phy2log([[0, 1, 0, 2]], gpus=2)
    >>> co.read_plan(io.BytesIO(plan.to_json().encode())) == plan
    True
    """
    with (
        errors_named(name_of(source, "read_plan", "co.Plan takes arrays")),
        opened(source, "a plan in JSON") as stream,
    ):
        data = stream.read()
        try:
            return Plan.from_json(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise FormatError("this is no text; plans are JSON") from None
