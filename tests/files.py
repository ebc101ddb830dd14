"""Test data: in the repository, measured loads that only some checkouts have, or made at once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
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


def npy(array) -> io.BytesIO:
    stream = io.BytesIO()
    np.save(stream, array)
    stream.seek(0)
    return stream


def npz(**arrays) -> io.BytesIO:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    stream.seek(0)
    return stream


def text(content: str) -> io.BytesIO:
    return io.BytesIO(content.encode())


def routed(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k].copy()
