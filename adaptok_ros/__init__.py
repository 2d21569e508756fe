"""A robot's cameras as a stream of only the visual tokens that changed.

What this module offers is the public face of the package; nothing else is promised. Names are
imported when they are first used: ``import adaptok_ros`` alone loads neither numpy nor ROS.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptok_ros.bags.bag import read_packets as read_packets
    from adaptok_ros.bags.dataset import TokenDataset as TokenDataset
    from adaptok_ros.errors import AdaptokError as AdaptokError
    from adaptok_ros.messages import latents_from_message as latents_from_message
    from adaptok_ros.messages import packet_from_message as packet_from_message
    from adaptok_ros.packet import Packet as Packet
    from adaptok_ros.policy.observation import Absence as Absence
    from adaptok_ros.policy.observation import Observation as Observation
    from adaptok_ros.policy.observation import Observer as Observer
    from adaptok_ros.policy.timing import LagMeter as LagMeter
    from adaptok_ros.policy.timing import RateMeter as RateMeter
    from adaptok_ros.policy.token_cache import TokenCache as TokenCache
    from adaptok_ros.receiving.latents import DenseLatents as DenseLatents
    from adaptok_ros.receiving.latents import LatentStream as LatentStream
    from adaptok_ros.receiving.receiver import Status as Status
    from adaptok_ros.sending.selection import SelectionConfig as SelectionConfig
    from adaptok_ros.sending.sender import Sender as Sender
    from adaptok_ros.tokenizers.tokenizer import Tokenizer as Tokenizer

_HOMES = {
    'Absence': 'policy.observation',
    'AdaptokError': 'errors',
    'DenseLatents': 'receiving.latents',
    'LagMeter': 'policy.timing',
    'LatentStream': 'receiving.latents',
    'Observation': 'policy.observation',
    'Observer': 'policy.observation',
    'Packet': 'packet',
    'RateMeter': 'policy.timing',
    'SelectionConfig': 'sending.selection',
    'Sender': 'sending.sender',
    'Status': 'receiving.receiver',
    'TokenCache': 'policy.token_cache',
    'TokenDataset': 'bags.dataset',
    'Tokenizer': 'tokenizers.tokenizer',
    'latents_from_message': 'messages',
    'packet_from_message': 'messages',
    'read_packets': 'bags.bag',
}

# From 1.29 on, ONNX Runtime tells its maker of every process that runs a model, unless this is
# set before it is loaded.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')

__version__ = '0.1.0'

__all__ = [
    'Absence',
    'AdaptokError',
    'DenseLatents',
    'LagMeter',
    'LatentStream',
    'Observation',
    'Observer',
    'Packet',
    'RateMeter',
    'SelectionConfig',
    'Sender',
    'Status',
    'TokenCache',
    'TokenDataset',
    'Tokenizer',
    '__version__',
    'latents_from_message',
    'packet_from_message',
    'read_packets',
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
