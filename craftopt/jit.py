"""Kernels: compiled by numba once on a machine, and again when anything that they use changes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.registry import CPUDispatcher
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from craftopt.documents import read_sealed, write_sealed
from craftopt.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

_VERSIONS = [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
_njit: Any = numba.njit  # its types know no option about wrappers
_PLAIN = (int, float, complex, str, bytes, type(None))


def njit(**options: Any) -> Callable[[Function], Function]:
    """Compile as `numba.njit` does, with a cache that an edit anywhere cannot make stale.

    numba's own cache looks at the file of a kernel, not at those of the kernels and constants that
    it uses; and its files are numbered, so that two processes may write one over the other's. Here
    a file is named by all that its code was made of. All kernels release the GIL: what they use of
    numpy is then compiled once for all, and not once for every set of options.
    """

    def decorate(function: Function) -> Function:
        kernel = _njit(nogil=True, no_cfunc_wrapper=True, **options)(function)
        if hasattr(kernel, "enable_caching"):
            # Where no folder may be written, each process compiles anew.
            with contextlib.suppress(RuntimeError):
                kernel._cache = _Cache(kernel)
        compiled: Function = kernel
        return compiled

    return decorate


def inner(**options: Any) -> Callable[[Function], Function]:
    """Compile what kernels alone call, as a part of theirs: no file, no way in from Python.

    To unpack arguments from Python takes as long to compile as many a kernel.
    """

    def decorate(function: Function) -> Function:
        kernel = _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function)
        if isinstance(kernel, CPUDispatcher):
            kernel.__class__ = _Inner
        compiled: Function = kernel
        return compiled

    return decorate


class _Inner(CPUDispatcher):
    def __call__(self, *_: Any) -> Any:
        raise TypeError(f"{self.py_func.__name__} has no way in from Python; call it in a kernel")


def cache_folder(kernel: Any) -> Path:
    """Return the folder that a kernel's machine code is kept in.

    Raises
    ------
    TypeError
        It is kept in none.
    """
    return Path(kernel.stats.cache_path)


class _Cache(FunctionCache):
    """A file per kernel, signature and processor."""

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel.py_func)  # type: ignore[no-untyped-call]
        self._kernel = kernel

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None."""
        # Enough to run what is compiled; `refresh`, which compiling needs, takes longer than this.
        rtsys.initialize(target_context)
        path, name = self._file(sig, target_context.codegen())
        held = read_sealed(path, name)
        return None if held is None else self._impl.rebuild(target_context, pickle.loads(held))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write what was compiled; where it cannot be written, it is compiled again."""
        if not self._impl.check_cachable(data):
            return
        path, name = self._file(sig, data.codegen)
        *parts, environments = self._impl.reduce(data)
        # Those of numba's own functions hold nothing, and to load one imports its module.
        environments = [one for one in environments if one.consts or _is_own(one.globals)]
        with contextlib.suppress(InputError, OSError):
            self._impl.locator.ensure_cache_path()
            write_sealed(path, name, dumps((*parts, environments)))  # type: ignore[no-untyped-call]
            kernel, digest, _ = path.name.rsplit("-", 2)
            for other in path.parent.glob(f"{kernel}-*.nbc"):
                if other.name.rsplit("-", 2)[1] != digest:  # what an edit has left behind
                    other.unlink()

    def _file(self, sig: Any, codegen: Any) -> tuple[Path, bytes]:
        digest, function = kernel_digest(self._kernel), self._py_func
        name = hashlib.sha256(repr((digest, sig, codegen.magic_tuple())).encode()).digest()
        kernel = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        file = f"{kernel}.{sys.implementation.cache_tag}-{digest[:12]}-{name.hex()[:20]}.nbc"
        return Path(self.cache_path) / file, name


@functools.cache
def kernel_digest(kernel: Any) -> str:
    """Digest what a kernel is compiled from: its code, and that of all that it uses.

    Parameters
    ----------
    kernel : numba dispatcher
    """
    digest = hashlib.sha256(repr((_VERSIONS, sys.version_info[:2])).encode())
    found = [kernel]  # in the order in which they are met, each once
    for one in found:
        code, options = one.py_func.__code__, sorted(one.targetoptions.items())
        digest.update(repr((options, one.py_func.__defaults__, list(_code(code)))).encode())
        for name, value in _globals(one.py_func):
            if hasattr(value, "py_func"):
                digest.update(f"{name} calls {value.py_func.__qualname__}\n".encode())
                if value not in found:
                    found.append(value)
            else:
                digest.update(f"{name} = {_text(value)}\n".encode())
    return digest.hexdigest()


def _code(code: CodeType) -> Iterator[Any]:
    """List what a function does, without the lines and file that it is in."""
    yield code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield constant


def _globals(function: Any) -> list[tuple[str, Any]]:
    """List the variables from outside that a function names, also those of own modules."""
    names, codes = set[str](), [function.__code__]
    for code in codes:
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    scope = function.__globals__
    found = {name: scope[name] for name in names if name in scope}
    cells = function.__closure__ or ()
    found |= {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    }
    for module in [value for value in found.values() if _is_own_module(value)]:
        found |= {
            f"{module.__name__}.{name}": vars(module)[name] for name in names & {*vars(module)}
        }
    return sorted(found.items())


def _is_own(scope: Mapping[str, Any]) -> bool:
    return str(scope["__name__"]).startswith("craftopt")


def _is_own_module(value: Any) -> bool:
    return isinstance(value, ModuleType) and _is_own(vars(value))


def _text(value: Any) -> str:
    """Write a global that is no kernel: a constant, a module or a class."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if hasattr(value, "tobytes"):
        return f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__} {getattr(value, '__annotations__', '')}"
    name = getattr(value, "__name__", "")
    if name and (
        isinstance(value, ModuleType) or not _is_own_module(sys.modules.get(value.__module__))
    ):
        return f"{getattr(value, '__module__', '')} {name}"
    raise TypeError(f"what a kernel is compiled from would depend on {value!r}, of unknown content")
