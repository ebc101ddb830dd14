"""Tensors of PyTorch, which is not imported before one comes in, and arrays."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from craftopt.loads import IntArray


def as_numpy(tensor: Any) -> Any:
    """Make a numpy array of a tensor on any device, or of what numpy takes."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().numpy()
    return np.asarray(tensor)


def like(array: IntArray, tensor: Any) -> Any:
    """Return the array as a tensor on the CPU if PyTorch's is what came in."""
    if hasattr(tensor, "detach"):
        return importlib.import_module("torch").from_numpy(array)
    return array
