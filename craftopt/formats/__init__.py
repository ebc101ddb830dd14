"""Read what engines and people write, and write what engines load: one module per format."""

from craftopt.formats.reading import read_loads, read_plan, read_trace
from craftopt.formats.writing import export

__all__ = ["export", "read_loads", "read_plan", "read_trace"]
