"""Rolling refresh in seconds: how much of the grid is due with an image of some stamp."""

from __future__ import annotations

import dataclasses

from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.sending.selection import SelectionConfig

PARTS = SelectionConfig.refresh_period
"""Parts into which the grid is divided for the refresh, whatever the period."""


class RefreshClock:
    """Makes ``refresh_seconds`` of a configuration the parts that are due with each image.

    Every ``1 / PARTS`` of the period a part becomes due, and it goes out with the first image
    from then on: several at a time where images are rare, none where they come faster than
    parts. So in every span of stamps as long as the period, each position becomes due once.
    An image with the stamp of the one before renews a part as well, so that a camera whose
    stamps stand still is refreshed too.
    """

    def __init__(self) -> None:
        self._period = 0
        self._start = self._last = 0
        self._due = self._waiting = 0

    def reset(self) -> None:
        """Begin anew with the next image."""
        self._period = self._waiting = 0

    def begin(self, config: SelectionConfig, stamp: int) -> SelectionConfig:
        """The configuration for the next image.

        :param stamp: in nanoseconds, not less than the one before
        """
        seconds = config.refresh_seconds
        period = round((seconds or 0.0) * NANOSECONDS)
        if not period:
            self.reset()
            if seconds is None:
                return config
            return dataclasses.replace(config, refresh_period=0)
        if period != self._period:
            self._period, self._start, self._due = period, stamp, 0
        elif stamp == self._last:
            self._waiting += 1
        self._last = stamp
        due = (stamp - self._start) * PARTS // period
        self._waiting += due - self._due
        self._due = due
        parts = min(self._waiting, PARTS)
        return dataclasses.replace(config, refresh_period=PARTS, refresh_parts=parts)

    def served(self) -> None:
        """What was due with the last image has been selected."""
        self._waiting = 0
