"""Read what engines and people write, and write what engines load: one module per format."""

from craftopt.formats.reading import read_coactivation, read_loads, read_plan, read_trace
from craftopt.formats.writing import EngineName, Exported, export

__all__ = [
    "EngineName",
    "Exported",
    "export",
    "read_coactivation",
    "read_loads",
    "read_plan",
    "read_trace",
]
