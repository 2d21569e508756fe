"""TensorRT's timings of kernels, which shorten later builds."""

from __future__ import annotations

from adaptok_ros.engines.cache.folder import open_folder

TIMING = '.timing'
"""Suffix of the files; each is of one backend, one version of it and one compute capability."""


def read_timings(backend: str, version: str, compute_capability: str) -> bytes:
    """TensorRT's timings of kernels from earlier builds; empty where there are none.

    :raises EngineError: the file or the folder is not ours alone to write
    """
    with open_folder() as folder:
        try:
            return folder.read(_timings(backend, version, compute_capability))
        except FileNotFoundError:
            return b''


def write_timings(backend: str, version: str, compute_capability: str, data: bytes) -> None:
    """Keep TensorRT's timings of kernels for later builds.

    :raises EngineError: they cannot be written
    """
    with open_folder() as folder:
        folder.write(_timings(backend, version, compute_capability), data)


def remove_timings() -> int:
    """Remove all timings of kernels; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    with open_folder() as folder:
        return sum(folder.remove(name + TIMING) for name in folder.names(TIMING))


def _timings(backend: str, version: str, compute_capability: str) -> str:
    return f'{backend}-{version}-{compute_capability}{TIMING}'
