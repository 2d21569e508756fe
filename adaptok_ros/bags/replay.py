"""Latents of any frames of a recording, through the receiver and LIT that policies have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adaptok_ros.bags.side_files import SUFFIX, DatasetError
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.errors import quote
from adaptok_ros.models.description import LITDescription, TokenizerDescription
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import PacketError
from adaptok_ros.receiving.latents import DenseLatents, LatentStream
from adaptok_ros.receiving.receiver import Receiver
from adaptok_ros.receiving.restoration import RestorationScope


class Replay:
    """Replays an index from the nearest entry point, so a frame has the same latents each time.

    They are bit for bit those of a :class:`LatentStream` that was fed from the begin of the
    segment on: held grids, ages, status, and what LIT makes of them.
    """

    def __init__(
        self,
        index: TokenIndex,
        tokenizer: str,
        mode: str,
        backend: str = 'auto',
        threads: int = 0,
        scope: RestorationScope = RestorationScope.ALL,
    ) -> None:
        """Open a stream; parameters as for :class:`LatentStream`.

        :raises SettingError: likewise ModelError and EngineError, as :class:`LatentStream`
        """
        self._index = index
        self._stream = LatentStream(tokenizer, mode, backend, threads, scope=scope)
        self._window = window(tokenizer, mode)
        self._inner = self._stream.receiver.observer
        self._stream.receiver.observer = self._observe
        self._segment = -1
        self._pushed = self._applied = 0
        self._wanted = -1
        self._captured: DenseLatents | None = None

    def latents(self, numbers: Iterable[int]) -> Iterator[DenseLatents]:
        """Latents after each of some packets; in ascending order nothing is replayed twice.

        :raises DatasetError: the index is damaged
        :raises EngineError: LIT fails
        """
        for number in numbers:
            yield self._at(number)

    def _at(self, number: int) -> DenseLatents:
        start = self._index.start(number, self._window)
        segment = int(self._index.segment_of[number])
        if segment != self._segment or not start <= self._applied <= number:
            self._stream.receiver.reset()
            self._pushed = self._applied = start
        self._segment = -1  # until it has worked
        self._wanted, self._captured = number, None
        try:
            for packet in self._index.packets(self._pushed):
                self._pushed += 1
                self._stream.push(packet)
                if self._captured is not None:
                    self._segment = segment
                    return self._captured
        except PacketError as error:
            raise self._index.damaged(str(error)) from error
        raise self._index.damaged(f'packet {number} cannot be applied')

    def _observe(self, receiver: Receiver) -> None:
        # After a gap one packet waits for the next, so one push may apply two.
        if self._inner is not None:
            self._inner(receiver)
        if self._applied == self._wanted:
            self._captured = self._stream.latents()
        self._applied += 1

    def close(self) -> None:
        """Free the engine."""
        self._stream.close()


def window(tokenizer: str, mode: str) -> int:
    """Last grids that latents depend on."""
    return LITDescription.load(find_model(tokenizer)).frames if mode == 'lit' else 1


def check_tokenizer(index: TokenIndex, tokenizer: str) -> None:
    """Whether packets are those of a tokenizer, normalised as it does today.

    :param tokenizer: shipped name or folder; empty = any, if it is one
    :raises DatasetError: they are of another, or the bag says that it normalised otherwise
    """
    what = f'{index.topic} of {index.folder.parent.name.removesuffix(SUFFIX)}'
    if not tokenizer:
        if len(set(index.tokenizers)) > 1:
            raise DatasetError(f'{what}: several tokenizers: {", ".join(set(index.tokenizers))}')
        return
    expected = TokenizerDescription.load(find_model(tokenizer))
    for found in index.tokenizers:
        if found != expected.id:
            raise DatasetError(f'{what}: tokenizer is {quote(found)}; allowed: {expected.id!r}')
    normalisation = expected.normalisation
    for facts in index.facts:
        if facts.tokenizer != expected.id:
            continue
        for name in ('mean', 'whitening'):
            values = getattr(normalisation, name)
            if not _close(getattr(facts, name), values):
                raise DatasetError(
                    f'{what}: its TokenizerInfo has another {name} than {tokenizer}: its latents '
                    'were normalised otherwise; use the model folder that recorded it'
                )


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Equal as float32."""
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)) for a, b in zip(one, other)
    )
