"""Which device torch runs a model on."""

from __future__ import annotations

import torch

from adaptok_ros.errors import SettingError

DEVICES = ('auto', 'cpu', 'cuda')


def choose_device(device: str = 'auto') -> str:
    """``cpu`` or ``cuda``; ``auto`` is CUDA where there is some.

    :raises SettingError: unknown, or CUDA where there is none
    """
    if device not in DEVICES:
        raise SettingError(f'device is {device!r}; allowed: {", ".join(DEVICES)}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise SettingError(
            "device is 'cuda'; allowed here: auto, cpu (torch finds no CUDA device)"
        )
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    return device
