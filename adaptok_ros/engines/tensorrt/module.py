"""The Python module of either, and the one logger that it takes."""

from __future__ import annotations

import collections
import functools
import importlib
from types import ModuleType
from typing import Any

from adaptok_ros.engines.errors import EngineError

INSTALL = {
    'tensorrt': 'pip install tensorrt (x86-64), or sudo apt install python3-libnvinfer (JetPack)',
    'tensorrt_rtx': 'pip install tensorrt-rtx (x86-64 with an RTX GPU)',
}
"""What to do where the module of a backend is missing."""


def load_module(backend: str) -> ModuleType:
    """The module of a backend.

    :raises EngineError: it is missing or does not load, and what to install
    """
    try:
        return importlib.import_module(backend)
    except ImportError as error:
        reason = f'{backend} is missing ({error}): {INSTALL[backend]}'
    except Exception as error:  # libraries that do not fit each other show it in many ways
        reason = f'{backend} does not load: {error}; install it anew: {INSTALL[backend]}'
    raise EngineError(reason)


def compute_capabilities(module: ModuleType) -> tuple[str, ...]:
    """Those for which engines can be built without a GPU; empty for TensorRT itself."""
    names = getattr(getattr(module, 'ComputeCapability', None), '__members__', ())
    numbers = [name[2:] for name in names if name.startswith('SM')]
    return tuple(f'{number[:-1]}.{number[-1]}' for number in numbers)


@functools.cache
def logger(module: ModuleType) -> Any:
    """The one logger of a process: TensorRT keeps the first that it is given."""

    class Log(module.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the last errors for the exception that follows them."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: collections.deque[str] = collections.deque(maxlen=5)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.Logger.ERROR):
                self.errors.append(message.strip())

        def take(self) -> str:
            errors = []
            while self.errors:
                errors.append(self.errors.popleft())
            return '; '.join(errors) or 'no reason given'

    return Log()
