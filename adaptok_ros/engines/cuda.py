"""CUDA as all backends see it: whether there is a driver, and what to do without memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

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


class Gpu(NamedTuple):
    """A device of CUDA's.

    :ivar name: as the driver has it
    :ivar compute_capability: ``8.7``
    """

    name: str
    compute_capability: str


MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@functools.cache
def first_gpu() -> Gpu:
    """What torch calls ``cuda:0``, asked of the driver itself: torch is slow to load.

    :raises EngineError: there is none
    """
    reason = missing_driver()
    if reason:
        raise EngineError(reason)
    driver = ctypes.CDLL('libcuda.so.1')
    device, value = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls = [
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
    ]
    capability = []
    for attribute in (MAJOR, MINOR):
        calls.append(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        capability.append(str(value.value))
    if any(calls):
        raise EngineError(f'the NVIDIA driver does not describe its device (gave {calls})')
    return Gpu(name.value.decode(), '.'.join(capability))


def need_torch() -> None:
    """Buffers on a device are torch's.

    :raises EngineError: torch is missing, or built without CUDA
    """
    try:
        import torch
    except ImportError as error:
        raise EngineError('CUDA needs torch for its buffers: pip install torch') from error
    if not torch.cuda.is_available():
        raise EngineError(
            f'torch {torch.__version__} finds no CUDA device, and its buffers are needed: install '
            "a torch for CUDA (https://pytorch.org; JetPack: NVIDIA's wheels)"
        )


@contextlib.contextmanager
def device_errors(device: str) -> Iterator[None]:
    """Turn whatever torch raises into an error of engines, so that ``auto`` can go on.

    :raises EngineError: no memory is left on ``device``, or something else went wrong there
    """
    import torch

    try:
        yield
    except EngineError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise EngineError(
            f'out of memory on {device}: stop what else uses it (nvidia-smi), lower input_height '
            'and input_width, or hide the GPU (CUDA_VISIBLE_DEVICES=) to run on the CPU'
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().partition('\n')[0]
        raise EngineError(f'{device}: {reason}') from error


def empty_cache() -> None:
    """Give memory that torch keeps for later back to the device."""
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


exclusive = threading.RLock()
"""Held while a CUDA graph is captured, and while engines are loaded, bound and closed.

What waits for the whole device would invalidate a capture of another thread.
"""
