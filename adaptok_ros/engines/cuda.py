"""CUDA as all backends see it: whether there is a driver, and what to do without memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

from adaptok_ros.engines.errors import EngineError


@functools.cache
def missing_driver() -> str:
    """Why nothing can run on CUDA here; '' where a driver finds a device.

    Asked first: some builds of TensorRT crash without a driver.
    """
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return 'there is no NVIDIA driver (libcuda.so.1): install it and restart'
    status = int(driver.cuInit(0))
    if status:
        return (
            f'the NVIDIA driver finds no device it can use (cuInit gave {status}): see nvidia-smi'
        )
    return ''


@contextlib.contextmanager
def out_of_memory(device: str) -> Iterator[None]:
    """Turn torch's error into one that names the cure.

    :raises EngineError: no memory is left on ``device``
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise EngineError(
            f'out of memory on {device}: stop what else uses it (nvidia-smi), lower input_height '
            'and input_width, or choose backend onnxruntime on the CPU'
        ) from error
