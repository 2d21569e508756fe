"""One bag of images to one bag of tokens, without ROS: no image is lost.

Every image takes the way that it takes in a tokenizer node, so the packets are those of a node
that got all of them, byte for byte (but for the random epoch, and so for the checksum).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection

import adaptok_ros
from adaptok_ros.bags.bag import SPARSE_TOKENS, TOKENIZER_INFO, BagError
from adaptok_ros.bags.camera_stream import CameraCounts, CameraStream, Output
from adaptok_ros.bags.cameras import Camera, choose_cameras, message_reader
from adaptok_ros.bags.parameter_file import Section, values_for
from adaptok_ros.bags.source import identity, messages_of, open_bag
from adaptok_ros.bags.store import Place, local_copy, local_target
from adaptok_ros.bags.writing import BagWriter, offered_qos
from adaptok_ros.messages import NANOSECONDS, token_queue
from adaptok_ros.models.description import LITDescription, TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model
from adaptok_ros.packet import VERSION
from adaptok_ros.sending.settings import selection_of, sender_of, tokenizer_of
from adaptok_ros.tokenizers.tokenizer import Tokenizer

OTHERS = ('copy', 'drop')
"""What becomes of topics that are not tokenized."""

AHEAD = 8
"""Images of each camera that are read before the first of them is encoded."""
MOST_WAITING = 1 << 27
"""Bytes of messages that wait for images before them, at most."""

SOURCE, SETTINGS, RESULT = 'adaptok_ros.source', 'adaptok_ros.settings', 'adaptok_ros.result'
"""Keys of the bag's ``custom_data``; their values are JSON."""


@dataclasses.dataclass(frozen=True)
class Request:
    """How to tokenize bags.

    :ivar topics: topics to tokenize, with the full name of a node or ''; empty = all with images
    :ivar sections: of a parameter file, only with what counts here, see :func:`sections_for`
    :ivar overrides: values of the node's parameters that count more than the file's
    :ivar others: one of :data:`OTHERS`
    :ivar storage: of the new bag; '' = that of the old one
    """

    topics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sections: Sequence[Section] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    others: str = 'copy'
    storage: str = ''

    @property
    def nodes(self) -> set[str]:
        """Names of the nodes that cameras may have, without namespaces."""
        return {'tokenizer', *(node.rpartition('/')[2] for node in self.topics.values() if node)}

    def record(self) -> dict[str, Any]:
        """All that decides what becomes of a bag, for JSON.

        :raises SettingError: values that do not go together, as far as no bag has to be known
        :raises ModelError: a tokenizer that is not there
        """
        defaults = values_for('', (), self.overrides)
        # Which sections count for the other cameras shows when their streams open.
        for node in filter(None, self.topics.values()) if self.sections else ('',):
            selection_of(values_for(node, self.sections, self.overrides))
        every = [values for _, values in self.sections if 'tokenizer' not in self.overrides]
        names = sorted({v['tokenizer'] for v in (defaults, *every) if 'tokenizer' in v})
        return {
            'wire': VERSION,
            'topics': dict(sorted(self.topics.items())),
            'defaults': defaults,
            'sections': [list(section) for section in self.sections],
            'tokenizers': {n: TokenizerDescription.load(find_model(n)).id for n in names},
            'others': self.others,
            'storage': self.storage,
        }


@dataclasses.dataclass(frozen=True)
class Job:
    """One bag to tokenize; can be pickled.

    :ivar source: the bag with images
    :ivar target: the bag to be made
    :ivar settings: JSON of :meth:`Request.record`
    :ivar threads: CPU threads to use
    :ivar replace: put it in the place of a bag that was made otherwise
    """

    source: Place
    target: Place
    request: Request
    settings: str
    threads: int = 1
    replace: bool = False

    def marks(self) -> dict[str, str]:
        """What a finished bag says of what it was made of and how.

        :raises BagError: the source cannot be read
        """
        return {SOURCE: json.dumps(identity(self.source)), SETTINGS: self.settings}


@dataclasses.dataclass
class CameraResult:
    """One camera of a bag.

    :ivar topic: of its images
    :ivar tokens: topic of its tokens
    :ivar tokenizer: its id
    :ivar lit: id of the LIT that belongs to it; '' if there is none
    :ivar engine: that ran the encoder, and on what
    :ivar parameters: the node's
    """

    topic: str
    tokens: str
    tokenizer: str
    lit: str
    engine: str
    parameters: dict[str, Any]
    counts: CameraCounts


@dataclasses.dataclass
class BagResult:
    """What became of a bag.

    :ivar seconds: that the bag lasts
    :ivar took: seconds of work
    :ivar copied: messages of other topics
    :ivar left_out: topics that are not in the new bag
    """

    seconds: float
    took: float
    cameras: list[CameraResult]
    copied: int
    left_out: list[str]

    @property
    def images(self) -> int:
        """Recorded images of all cameras."""
        return sum(camera.counts.images for camera in self.cameras)


Progress = Callable[[int, int], None]
"""Is told after each image how many are done, and how many there are; may raise to stop."""


def tokenize_bag(job: Job, progress: Progress = lambda done, total: None) -> BagResult:
    """Make the bag of tokens of a bag of images; it appears when it is whole, or not at all.

    What is in a store is copied from there first, and what belongs there is uploaded at the end.

    :raises AdaptokError: the bag, its images, a setting or a store are not as they should be
    :raises OSError: the target cannot be written
    """
    started = time.monotonic()
    last = 0, 0

    def tell(done: int, total: int) -> None:
        nonlocal last
        last = done, total
        progress(done, total)

    def tick() -> None:
        progress(*last)

    with (
        local_copy(job.source, tick) as source,
        local_target(job.target, job.replace, tick) as target,
    ):
        result = _tokenize(job, source, target, tell)
    result.took = time.monotonic() - started
    return result


def _tokenize(job: Job, source: Path, target: Path, progress: Progress) -> BagResult:
    """The same on the local disk, without the time that it took."""
    marks = dataclasses.replace(job, source=source).marks()
    with open_bag(source) as reader, contextlib.ExitStack() as stack:
        copying = job.request.others == 'copy'
        cameras, doubles = choose_cameras(reader.connections, job.request.topics, copying)
        apart = {c.id for c in (*(camera.connection for camera in cameras), *doubles)}
        others = [c for c in reader.connections if c.id not in apart]
        copied = others if copying else []
        groups = min(job.threads, len(cameras))
        threads = max(1, job.threads // groups)
        streams = [
            stack.enter_context(_open_stream(camera, job.request, threads)) for camera in cameras
        ]
        # Last, for they have to be through with the streams before these close.
        workers = [stack.enter_context(_worker()) for _ in range(groups)]
        storage = job.request.storage or _storage_of(source)
        with BagWriter(target, storage, marks, replace=job.replace) as writer:
            line = _Line(writer, copied)
            for number, stream in enumerate(streams):
                line.add_camera(stream, workers[number % groups])
            wanted = [*(camera.connection for camera in cameras), *copied]
            total = sum(camera.connection.msgcount for camera in cameras)
            for connection, received, data in messages_of(reader, wanted):
                line.put(connection, received, data)
                progress(line.done, total)
            line.finish()
            results = [stream.result() for stream in streams]
            writer.set_data(RESULT, json.dumps(_record(results)))
        here = {c.topic for c in copied} | {camera.connection.topic for camera in cameras}
        return BagResult(
            max(0, reader.duration) / NANOSECONDS,
            0.0,
            results,
            line.copied,
            sorted({c.topic for c in reader.connections} - here),
        )


@contextlib.contextmanager
def _worker() -> Iterator[ThreadPoolExecutor]:
    worker = ThreadPoolExecutor(1, 'camera')
    try:
        yield worker
    finally:
        worker.shutdown(cancel_futures=True)


@dataclasses.dataclass
class _OpenStream:
    """A camera with what encodes it."""

    camera: Camera
    tokenizer: Tokenizer
    values: dict[str, Any]
    stream: CameraStream

    def result(self) -> CameraResult:
        """After the last image.

        :raises BagError: not one of many could be used
        """
        counts, topic = self.stream.counts, self.camera.connection.topic
        if counts.images and not (counts.packets or counts.without_grid):
            reason = next(iter(counts.reasons), 'its video has no keyframe')
            raise BagError(
                f'{topic}: none of its {counts.images} images can be used: {reason}; to leave it '
                'out, name the others with --topic'
            )
        engine = self.tokenizer.encoder
        return CameraResult(
            topic,
            self.camera.tokens,
            self.tokenizer.description.id,
            _lit_of(self.values['tokenizer']),
            f'{engine.backend} on {engine.device}' if engine is not None else '',
            self.values,
            counts,
        )


@contextlib.contextmanager
def _open_stream(camera: Camera, request: Request, threads: int) -> Iterator[_OpenStream]:
    values = values_for(camera.node, request.sections, request.overrides)
    config = selection_of(values)
    tokenizer = tokenizer_of(values, threads=threads)
    try:
        tokenizer.load()
        sender = sender_of(values, tokenizer, config)
        stream = CameraStream(message_reader(camera.connection), sender, values)
        yield _OpenStream(camera, tokenizer, values, stream)
    finally:
        tokenizer.close()


def _lit_of(tokenizer: str) -> str:
    try:
        return LITDescription.load(find_model(tokenizer)).id
    except ModelError:
        return ''


@dataclasses.dataclass
class _Lane:
    """One camera's way through the line."""

    stream: CameraStream
    worker: ThreadPoolExecutor
    topics: dict[str, Connection]
    last: int = 0


_Waiting = tuple[int, '_Lane | Connection', 'Future[list[Output]] | bytes']
"""Time; a camera and what becomes of its message, or a topic and its message."""


class _Line:
    """Messages on their way into the new bag: cameras side by side, all in the bag's order.

    :ivar done: images that have been written
    :ivar copied: messages of other topics that have been written
    """

    def __init__(self, writer: BagWriter, copied: Sequence[Connection]) -> None:
        self.done = self.copied = 0
        self._writer = writer
        self._lanes: dict[int, _Lane] = {}
        self._copies = {connection.id: writer.copy_topic(connection) for connection in copied}
        self._waiting: deque[_Waiting] = deque()
        self._images = self._bytes = 0

    def add_camera(self, opened: _OpenStream, worker: ThreadPoolExecutor) -> None:
        """Begin a camera's topics."""
        camera = opened.camera
        queue = token_queue(opened.values['keyframe_interval'])
        topics = {
            TOKENIZER_INFO: self._writer.add_topic(
                camera.info, TOKENIZER_INFO, [offered_qos(1, latched=True)]
            ),
            SPARSE_TOKENS: self._writer.add_topic(
                camera.tokens, SPARSE_TOKENS, [offered_qos(queue)]
            ),
        }
        self._lanes[camera.connection.id] = _Lane(opened.stream, worker, topics)

    def put(self, connection: Connection, received: int, data: bytes) -> None:
        """Take the next message, and write what is done of those before it."""
        lane = self._lanes.get(connection.id)
        if lane is None:
            self._waiting.append((received, self._copies[connection.id], data))
            self._bytes += len(data)
        else:
            lane.last = received
            future = lane.worker.submit(lane.stream.take, data)
            self._waiting.append((received, lane, future))
            self._images += 1
        while self._waiting and (self._is_full() or self._is_ready()):
            self._write_first()

    def finish(self) -> None:
        """Write the rest, and what video has delayed."""
        for lane in self._lanes.values():
            self._waiting.append((lane.last, lane, lane.worker.submit(lane.stream.finish)))
        self._images += len(self._lanes)
        while self._waiting:
            self._write_first()
        self.done -= len(self._lanes)

    def _is_full(self) -> bool:
        return self._images > AHEAD * len(self._lanes) or self._bytes > MOST_WAITING

    def _is_ready(self) -> bool:
        first = self._waiting[0][2]
        return not isinstance(first, Future) or first.done()

    def _write_first(self) -> None:
        received, target, what = self._waiting.popleft()
        if isinstance(target, _Lane):
            assert isinstance(what, Future)
            for kind, message in what.result():
                self._writer.write(target.topics[kind], received, message)
            self._images -= 1
            self.done += 1
        else:
            assert isinstance(what, bytes)
            self._writer.write(target, received, what)
            self._bytes -= len(what)
            self.copied += 1


def _storage_of(path: Path) -> str:
    files = [path] if path.is_file() else list(path.iterdir())
    return 'mcap' if any('.mcap' in file.suffixes for file in files) else 'sqlite3'


def _record(results: Sequence[CameraResult]) -> dict[str, Any]:
    """What made the bag, for its metadata."""
    return {
        'adaptok_ros': adaptok_ros.__version__,
        'cameras': [dataclasses.asdict(result) for result in results],
    }
