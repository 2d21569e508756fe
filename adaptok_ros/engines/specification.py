"""What an engine is built for and with, as data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Specification:
    """All that decides whether an engine can be used; its hash is the key.

    :ivar model: of which tokenizer, as packets name it
    :ivar part: encoder, decoder or lit
    :ivar onnx_sha256: hexadecimal, of the graph and what it keeps in other files
    :ivar backend: ``tensorrt`` or ``tensorrt_rtx``
    :ivar backend_version: an engine runs with this version alone
    :ivar gpu: name of the only GPU it runs on; empty: any of the compute capability
    :ivar compute_capability: ``8.7``
    :ivar precision: ``float16`` or ``float32``
    :ivar profile: smallest, usual and largest shape of each input
    :ivar flags: what else it is built with
    """

    model: str
    part: str
    onnx_sha256: str
    backend: str
    backend_version: str
    gpu: str
    compute_capability: str
    precision: str
    profile: Mapping[str, tuple[tuple[int, ...], ...]]
    flags: tuple[str, ...]

    @functools.cached_property
    def key(self) -> str:
        """Hexadecimal SHA-256."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(',', ':'))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, fields: Any) -> Specification:
        """What :func:`dataclasses.asdict` gives, after JSON.

        :raises ValueError: fields are missing, unknown or of another type
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(f'not the fields {", ".join(sorted(names))}')
        try:
            profile = {
                str(name): tuple(tuple(int(side) for side in shape) for shape in limits)
                for name, limits in fields['profile'].items()
            }
            flags = tuple(fields['flags'])
        except (AttributeError, TypeError, OverflowError) as error:
            raise ValueError(f'profile or flags: {error}') from error
        specification = cls(**{**fields, 'profile': profile, 'flags': flags})
        for name in names - {'profile', 'flags'}:
            if not isinstance(fields[name], str):
                raise ValueError(f'{name} is {fields[name]!r}; allowed: text')
        return specification

    def difference(self, wanted: Specification) -> str:
        """Each field in which this is not what is wanted, with both values; '' if equal."""
        return ', '.join(
            f'{name} is {_text(found)}, needed is {_text(needed)}'
            for name, found, needed in (
                (field.name, getattr(self, field.name), getattr(wanted, field.name))
                for field in dataclasses.fields(self)
            )
            if found != needed
        )


def _text(value: Any) -> str:
    return value or 'any' if isinstance(value, str) else str(value)
