"""What an evaluation is asked to measure."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaptok_ros.errors import SettingError
from adaptok_ros.footage.preparation import Preparation
from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import DEFAULT_TAU, SelectionConfig

DEFAULT_TAUS = (0.02, 0.05, 0.1, 0.2, 0.3)
COMPARISONS = ('previous', 'codecs', 'payloads', 'allocation')


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked on construction.

    :ivar tokenizer: shipped name or folder
    :ivar taus: thresholds of the sweep
    :ivar refresh_period: of the streams, 0 = no refresh
    :ivar payload: of the streams
    :ivar static_frames: length of the test on a scene that stands still, 0 = left out
    :ivar compare: some of :data:`COMPARISONS`
    :raises SettingError: a value out of range
    """

    tokenizer: str
    preparation: Preparation = dataclasses.field(default_factory=Preparation)
    taus: tuple[float, ...] = DEFAULT_TAUS
    refresh_period: int = 0
    payload: Payload = SelectionConfig.payload
    static_frames: int = 0
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.taus:
            raise SettingError('--tau names no threshold; allowed: one and more')
        for name in self.compare:
            if name not in COMPARISONS:
                raise SettingError(f'--compare is {name!r}; allowed: {", ".join(COMPARISONS)}')
        for option, values in (('--tau', self.taus), ('--compare', self.compare)):
            if len(set(values)) < len(values):
                raise SettingError(f'{option} is {values}; allowed: every value once')
        if self.static_frames < 0 or self.static_frames == 1:
            raise SettingError(
                f'--static-frames is {self.static_frames}; allowed: 0 (leave out) or 2 and more'
            )
        for tau in self.taus:
            self.selection(tau)

    def selection(self, tau: float, **changes: Any) -> SelectionConfig:
        """Configuration of the sender at one tau.

        :param changes: other fields of it
        """
        configuration = SelectionConfig(
            tau=tau, refresh_period=self.refresh_period, payload=self.payload
        )
        return dataclasses.replace(configuration, **changes)

    @property
    def comparison_tau(self) -> float:
        """Tau of the sweep nearest to the default: of comparisons and pictures."""
        return min(self.taus, key=lambda tau: abs(tau - DEFAULT_TAU))
