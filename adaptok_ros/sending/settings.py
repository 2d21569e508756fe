"""A tokenizer and a sender as the parameters of the tokenizer node describe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptok_ros.engines.interface import Builder
from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import Reference, SelectionConfig, TauMode
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

SELECTION = (
    *('tau', 'tau_mode', 'target_rate', 'tau_min', 'tau_max'),
    *('max_tokens', 'keyframe_interval', 'refresh_seconds', 'payload', 'reference'),
)
"""Parameters that make the selection."""
KINDS: dict[str, Callable[[str], object]] = {
    'payload': lambda name: Payload[name.upper()],
    'reference': Reference,
    'tau_mode': TauMode,
}
"""What the words among them stand for."""

Values = Mapping[str, Any]
"""Values of the node's parameters by name, checked."""


def selection_of(values: Values) -> SelectionConfig:
    """What is sent.

    :raises SettingError: values that do not go together
    """
    return SelectionConfig(**selection_values({name: values[name] for name in SELECTION}))


def selection_values(values: Values) -> dict[str, Any]:
    """Values of some parameters as :class:`SelectionConfig` takes them."""
    return {name: KINDS[name](value) if name in KINDS else value for name, value in values.items()}


def tokenizer_of(values: Values, build: Builder | None = None, threads: int = 0) -> Tokenizer:
    """What encodes; nothing is loaded yet.

    :param build: see :class:`Tokenizer`; likewise ``threads``
    :raises ModelError: not a tokenizer
    """
    size = (values['input_height'], values['input_width'])
    return Tokenizer(
        values['tokenizer'],
        values['backend'],
        threads,
        image_size=size if all(size) else None,
        build=build,
        on_cpu=values['gating'] != Gating.OFF.value,
    )


def sender_of(values: Values, tokenizer: Tokenizer, config: SelectionConfig) -> Sender:
    """What sends the images of one camera; see :class:`Sender` for what it raises."""
    return Sender(
        tokenizer,
        config,
        values['input_height'],
        values['input_width'],
        Gating(values['gating']),
        values['gating_noise'],
    )
