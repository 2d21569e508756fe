"""For policies: packets in, the current dense latents out; no ROS, no torch needed.

Push every packet in order; ask for latents whenever the policy wants them::

    stream = LatentStream('adaptok-tiny')
    stream.push(packet)
    latents = stream.latents()
    latents.values, latents.age, latents.status
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines.interface import Builder
from adaptok_ros.errors import SettingError
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.receiving.restoration import RestorationScope
from adaptok_ros.receiving.restorer import Restorer

MODES = ('lit', 'hold')


@dataclasses.dataclass(frozen=True, eq=False)
class DenseLatents:
    """The whole grid of one frame; the fields are those of ``msg/DenseLatents.msg``.

    The arrays belong to the caller. ``torch.from_numpy`` takes them without a copy.

    :ivar tau: threshold of the stream, likewise ``deferred`` and ``invalid`` (positions): why the
        status may be UNBOUNDED
    :ivar values: ``[H, W, C]`` float32 normalised latents
    :ivar age: ``[H, W]`` uint8 frames since sent, 0 = in this frame, saturating at 255; 255
        also where nothing has arrived
    :ivar stamp: time of the image in nanoseconds
    """

    stamp: int
    frame_id: str
    tokenizer: str
    epoch: int
    sequence: int
    status: Status
    tau: float
    deferred: int
    invalid: int
    values: NDArray[np.float32]
    age: NDArray[np.uint8]


class LatentStream:
    """A receiver and, in mode ``lit``, the LIT that fills in what was not sent.

    Every packet must be pushed; LIT runs only when latents are asked for, so a policy slower
    than the camera pays for the frames it looks at.
    """

    def __init__(
        self,
        tokenizer: str = '',
        mode: str = 'lit',
        backend: str = 'auto',
        threads: int = 0,
        build: Builder | None = None,
        scope: RestorationScope = RestorationScope.ALL,
        max_positions: int = 0,
    ) -> None:
        """Open a stream.

        :param tokenizer: shipped name or folder of the tokenizer whose packets to accept; mode
            ``lit`` needs it, mode ``hold`` takes those of any without it
        :param mode: ``lit``, or ``hold`` to repeat what was last sent
        :param build: see :func:`~adaptok_ros.engines.choice.create_engine`
        :param scope: which part of the grid LIT restores in a frame
        :param max_positions: largest grid to accept, H * W; 0 = what fits a packet
        :raises SettingError: unknown mode
        :raises ModelError: no such tokenizer, or mode ``lit`` without a LIT for it
        :raises EngineError: the backend cannot run it
        """
        if mode not in MODES:
            raise SettingError(f'mode is {mode!r}; allowed: {", ".join(MODES)}')
        self.mode = mode
        self.restorer: Restorer | None = None
        if mode == 'lit':
            self.restorer = Restorer(tokenizer, backend, threads, build, scope)
        observer = self.restorer.observe if self.restorer else None
        if tokenizer:
            expected = TokenizerDescription.load(find_model(tokenizer))
            self.receiver = Receiver(
                expected.id, expected.channels, expected.stride, max_positions, observer
            )
        else:
            self.receiver = Receiver(max_positions=max_positions)

    def push(self, packet: Packet) -> int:
        """Take one packet; how many were applied, see :meth:`Receiver.apply`.

        :raises PacketError: it does not fit; nothing is changed
        """
        return self.receiver.apply(packet)

    def latents(self) -> DenseLatents:
        """Latents after the last packet.

        An engine of LIT's that fails under ``backend='auto'`` gives way to the next that works.

        :raises LookupError: no packet has been taken yet
        :raises EngineError: the engine that was named fails; under ``auto``: all do
        """
        packet = self.receiver.last
        if packet is None:
            raise LookupError('no packet has been taken yet')
        if self.restorer is not None:
            values = self.restorer.restore()
        else:
            values = self.receiver.held
        return DenseLatents(
            stamp=packet.stamp,
            frame_id=packet.frame_id,
            tokenizer=packet.tokenizer,
            epoch=packet.epoch,
            sequence=packet.sequence,
            status=self.receiver.status,
            tau=packet.tau,
            deferred=packet.deferred,
            invalid=packet.invalid,
            values=values.copy(),
            age=self.receiver.age.copy(),
        )

    def close(self) -> None:
        """Free the engine."""
        if self.restorer is not None:
            self.restorer.close()
