"""One engine for all who want the same graph in one process."""

from __future__ import annotations

import collections
import dataclasses
import threading

from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.cuda import empty_cache
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest

POLL_SECONDS = 0.2
"""How soon somebody who waits for another to make an engine can give up."""

_Key = tuple[object, ...]
_engines: dict[_Key, Engine] = {}
_users: collections.Counter[_Key] = collections.Counter()
_lock = threading.Lock()
_making: collections.defaultdict[_Key, threading.Lock] = collections.defaultdict(threading.Lock)


def acquire_engine(request: GraphRequest, build: Builder | None = None) -> Engine:
    """The engine of a request, made if nobody else has it; to be given back.

    :raises EngineError: see :func:`~adaptok_ros.engines.choice.create_engine`
    """
    key = _key(request)
    with _lock:
        making = _making[key]
    while not making.acquire(timeout=POLL_SECONDS):  # others may make other engines meanwhile
        if build is not None:
            build.wait()
    try:
        with _lock:
            if key in _engines:
                _users[key] += 1
                return _engines[key]
        engine = create_engine(request, build)
        with _lock:
            _engines[key] = engine
            _users[key] = 1
        return engine
    finally:
        making.release()


def release_engine(engine: Engine) -> None:
    """Give an engine back; its last user's call frees it."""
    with _lock:
        key = next((key for key, known in _engines.items() if known is engine), None)
        if key is None:
            return
        _users[key] -= 1
        if _users[key]:
            return
        del _engines[key], _users[key]
    engine.close()


def leave_engine(engine: Engine, error: EngineError) -> str:
    """Give back an engine that failed, with all that the failure holds on its device.

    :returns: what is not to be chosen again, as ``GraphRequest.rejected`` has it
    """
    name = f'{engine.backend} on {engine.device.partition(":")[0]}'
    # The frames that the error went through hold memory of the device.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    release_engine(engine)
    empty_cache()
    return name


def _key(request: GraphRequest) -> _Key:
    fields = dataclasses.asdict(request)
    fields['rejected'] = tuple(sorted(request.rejected.items()))
    return tuple(fields.values())
