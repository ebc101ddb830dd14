"""Where test data are: in the repository, or measured loads that only some checkouts have."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
GOLDEN, SAMPLES = DATA / "golden", DATA / "formats"
# Recordings whose licences do not let them be passed on.
MEASURED = Path(__file__).parents[2] / "shared" / "data"


def measured(name: str) -> Path:
    """Return a measured recording, or skip the test where it is not beside the checkout."""
    file = MEASURED / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"the measured recording {name} is not part of the repository")
    return file
