"""One engine for all who want the same graph in one process."""

from __future__ import annotations

import collections
import dataclasses
import threading

from adaptok_ros.engines import Builder, Engine, GraphRequest, create_engine

POLL_SECONDS = 0.2
"""How soon somebody who waits for another to make an engine can give up."""

_Key = tuple[object, ...]
_engines: dict[_Key, Engine] = {}
_users: collections.Counter[_Key] = collections.Counter()
_lock = threading.Lock()
_making: collections.defaultdict[_Key, threading.Lock] = collections.defaultdict(threading.Lock)


def acquire_engine(request: GraphRequest, build: Builder | None = None) -> Engine:
    """The engine of a request, made if nobody else has it; to be given back.

    :raises EngineError: see :func:`~adaptok_ros.engines.create_engine`
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


def _key(request: GraphRequest) -> _Key:
    fields = dataclasses.asdict(request)
    fields['rejected'] = tuple(sorted(request.rejected.items()))
    return tuple(fields.values())
