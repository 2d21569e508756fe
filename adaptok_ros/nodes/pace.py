"""When a camera node shows the frames of its source."""

from __future__ import annotations

from adaptok_ros.footage.video import TimedFrame


class Pace:
    """Keeps the time stamps of a source, or a rate.

    :param rate: frames per second; 0 = the time stamps of the source
    :param native: frames per second where the source has no time stamps
    """

    def __init__(self, rate: float, native: float) -> None:
        self._rate = rate
        self._period = 1.0 / (rate or native)
        self._due: float | None = None
        self._last: float | None = None

    def wait(self, frame: TimedFrame, now: float) -> float | None:
        """Seconds from now until the frame is due, 0 if it is late; None: it is not to be shown.

        What is live cannot wait: it would fall behind more and more.

        :param now: monotonic, in seconds
        """
        if frame.live and not self._rate:
            return 0.0
        step = self._period
        # A loop that begins anew has 0 seconds again.
        if not self._rate and frame.seconds and self._last is not None:
            step = frame.seconds - self._last
        self._last = frame.seconds
        due = now if self._due is None else self._due + step
        if not frame.live:
            self._due = max(due, now)
            return self._due - now
        if due > now:
            return None
        # A little late is no reason to begin to count anew, or the rate would never be met.
        self._due = due if now - due < self._period else now
        return 0.0
