"""Executors: where the layers of a plan are searched, and what is kept of them for a later run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import pickle
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from craftopt.documents import read_sealed, write_sealed
from craftopt.errors import InputError

# What plans are computed with, beside the package's own sources.
_LIBRARIES = ("numpy", "scipy", "numba", "ortools", "pulp")
_PACKAGES = ("craftopt", "craftopt_formulations")
# What kept results may be made of, beside the package's own classes; see `_Reader`.
_NUMPY = ("ndarray", "dtype", "scalar", "_reconstruct", "_frombuffer")


class Executor(Protocol):
    """Calls a function for many items: in threads, on a cluster, or in whatever has this method."""

    def run(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Call ``function(*item)`` for all items; yield positions and results as they finish.

        Parameters
        ----------
        function : callable
            Of the package, and what it is bound to; the same for all items, and so sent once.
        items : sequence of tuple
            Arguments; small.
        """


def run_in_order(
    executor: Executor,
    function: Callable[..., Any],
    *columns: Iterable[Any],
    progress: Callable[[float], None] | None = None,
) -> list[Any]:
    """Call a function as `map` does, in an executor; list the results in the items' order.

    ``progress`` is called with the share of the items that is done, as they finish.
    """
    items = list(zip(*columns, strict=True))
    results: dict[int, Any] = {}
    for index, found in executor.run(function, items):
        results[index] = found
        if progress is not None:
            progress(len(results) / len(items))
    return [results[index] for index in range(len(items))]


class Threads:
    """Run in threads of this process.

    Parameters
    ----------
    count : int, optional
        All processors by default.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or os.cpu_count() or 1

    def run(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Executor`; an interruption leaves calls that are running to themselves."""
        pool = concurrent.futures.ThreadPoolExecutor(self.count)
        try:
            waiting = {pool.submit(function, *item): index for index, item in enumerate(items)}
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


class Dask:
    """Run on the workers of a Dask cluster that is up; what a lost worker did is done again.

    Every worker needs the same craftopt, and best one thread per process. While there is no worker,
    the run waits for one.

    Parameters
    ----------
    scheduler : str
        Address, such as ``"tcp://10.0.0.1:8786"``.
    timeout : float
        Seconds to wait for the scheduler.

    Raises
    ------
    InputError
        Dask is not installed, or no scheduler answers.

    Examples
    --------
    >>> import craftopt as co
    >>> co.Dask("tcp://127.0.0.1:1", timeout=0.2)  # doctest: +SKIP
    Traceback (most recent call last):
    craftopt.errors.InputError: no Dask scheduler answers at tcp://127.0.0.1:1; ...
    """

    def __init__(self, scheduler: str, *, timeout: float = 10.0) -> None:
        try:
            dask = importlib.import_module("dask")
            self._distributed: Any = importlib.import_module("distributed")
        except ImportError:
            raise InputError("a Dask cluster needs dask: pip install 'craftopt[cluster]'") from None
        self.scheduler, self._config = scheduler, dask.config
        try:
            self._client = self._distributed.Client(
                scheduler, timeout=timeout, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler` and "
                f"pass the address that it prints, such as tcp://10.0.0.1:8786 ({error})"
            ) from None

    def run(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Executor`."""
        client, name = self._client, f"craftopt-{uuid.uuid4()}"
        # What is sent to all workers may be large: it is sent once to each.
        with self._config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            held = client.submit(_unpack, sources(), _pack(function), key=name)
            waiting = {
                client.submit(_call, held, _pack(item), key=f"{name}-{index}"): index
                for index, item in enumerate(items)
            }
        try:
            for future in self._distributed.as_completed(waiting, loop=client.loop):
                yield waiting[future], future.result()
        except (self._distributed.KilledWorker, concurrent.futures.CancelledError) as error:
            raise InputError(f"the Dask cluster at {self.scheduler} gave up: {error}") from None
        finally:
            client.cancel([held, *waiting])


class Resumable:
    """Keep what is finished in a folder, and take it from there when the same run starts again.

    A result belongs to everything that it was computed from: function, arguments, the problem, the
    package's sources and the versions of its libraries. What belongs to anything else, or is
    damaged, is left alone, so no file changes a plan.

    Parameters
    ----------
    folder : path
        Made if it is missing; several runs may share it.
    executor : Executor, optional
        Runs what is not finished; `Threads` on all processors by default.

    Raises
    ------
    InputError
        The folder cannot be made or written.

    Examples
    --------
    >>> import craftopt as co
    >>> import tempfile
    >>> loads = co.Loads([[[8, 4, 2, 2]], [[2, 2, 4, 8]]])
    >>> problem = co.Problem(loads, gpus=2, replicas=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = co.solve(problem, workers=co.Resumable(folder))
    ...     again = co.solve(problem, workers=co.Resumable(folder))
    >>> first.plan.to_json() == again.plan.to_json()
    True
    """

    def __init__(self, folder: str | os.PathLike[str], executor: Executor | None = None) -> None:
        self.folder, self.executor = Path(folder), executor or Threads()
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            name = os.fspath(folder)
            name = name if len(name) < 200 else f"{name[:40]}..."
            raise InputError(
                f"cannot keep results in {name}: {why}; pass a folder, or a new one in a folder "
                "that exists"
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"cannot keep results in {folder}: it may not be written")

    def run(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Executor`."""
        whole = hashlib.sha256(sources().encode() + _pack(function)).digest()
        keys = [hashlib.sha256(whole + _pack(item)).digest() for item in items]
        missing = []
        for index, key in enumerate(keys):
            found = self._read(key)
            if found is None:
                missing.append(index)
            else:
                yield index, found[0]
        for place, result in self.executor.run(function, [items[index] for index in missing]):
            self._write(keys[missing[place]], result)
            yield missing[place], result

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()[:40]}.layer"

    def _write(self, key: bytes, result: Any) -> None:
        write_sealed(self._path(key), key, zlib.compress(_pack((result,)), 1))

    def _read(self, key: bytes) -> tuple[Any] | None:
        held = read_sealed(self._path(key), key)
        if held is None:
            return None
        try:
            found: tuple[Any] = _Reader(io.BytesIO(zlib.decompress(held))).load()
        except pickle.UnpicklingError:
            return None
        return found


@functools.cache
def sources() -> str:
    """Digest the package's sources and name its libraries: the same text, the same results."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
                digest.update(file.read_bytes())
    versions = [f"craftopt sources {digest.hexdigest()[:16]}"]
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


def _call(function: Callable[..., Any], item: bytes) -> Any:
    return function(*pickle.loads(item))


def _unpack(wanted: str, packed: bytes) -> Any:
    """Unpack a function on a worker, which must compute as the process that sends it would.

    Raises
    ------
    InputError
        Other sources or libraries.
    """
    if sources() != wanted:
        raise InputError(
            f"a Dask worker has {sources()}, and this process {wanted}; "
            "install the same on all machines"
        )
    return pickle.loads(packed)


def _pack(held: object) -> bytes:
    """Pickle a function or values; the same bytes for what was made in the same way."""
    stream = io.BytesIO()
    _Packer(stream, protocol=5).dump(held)
    return stream.getvalue()


class _Packer(pickle.Pickler):
    """Leaves out what properties have computed; arrays stay read-only, as kernels know them."""

    def reducer_override(self, held: Any) -> Any:
        if isinstance(held, np.ndarray) and not held.flags.writeable:
            return _read_only, (held.copy(order="K"),)
        kind: Any = type(held)
        computed = _computed(kind)
        if not computed:
            return NotImplemented
        make, arguments, *state = held.__reduce_ex__(5)
        if not state:
            return make, arguments
        return make, arguments, {k: v for k, v in state[0].items() if k not in computed}


class _Reader(pickle.Unpickler):
    """Reads results: arrays, plain values and the package's own classes, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        if package in _PACKAGES or (package == "numpy" and name in _NUMPY):
            found = super().find_class(module, name)
            if package == "numpy" or found is _read_only or dataclasses.is_dataclass(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a result")


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


@functools.cache
def _computed(kind: Any) -> frozenset[str]:
    """Name the properties of a class that are computed once."""
    return frozenset(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    )
