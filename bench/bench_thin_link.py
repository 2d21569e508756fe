"""Three cameras over a link that is thinner than their images.

A process in between passes on only so many bytes a second; it has no delay of its own, and all
sockets have buffers of 64 kB. On either side are sessions of Zenoh: the cameras publish what was
prepared before, 30 times a second each, and the policy's side notes when it arrives. All wait for
the link. Packets and H.264 build on each other, so none is left out; of JPEG and raw images the
newest is sent once the link is free.

Counted is what arrives in the second half of the time; the first is for the first grids, and for
tau to find its rate. Latency is that from an image's turn to its arrival, without encoding or
decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from measuring import Settings, progress, spread
from tables import number, table
from ways import H264, Jpeg

from adaptok_ros.bags.bag import serialize
from adaptok_ros.evaluation.streams import SharedEncoder, send
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet, seal
from adaptok_ros.receiving.receiver import Receiver
from adaptok_ros.sending.selection import SelectionConfig, TauMode
from adaptok_ros.zenoh import PacketPublisher, PacketSubscription, open_session, plain_key

RATE = 30
"""Images a second of each camera."""
LINKS = (5e6, 20e6, 100e6)
"""Bits a second."""
CAMERAS = ('fixed', 'other fixed', 'moving')
"""Arms at work before two cameras that stand still, and one whose picture shifts all the time."""
TARGET = 100.0
"""kB a second of each camera: three of them fit through the thinnest link."""
TOKENS = {
    'tokens': SelectionConfig(),
    # A larger tau at the start and the end than by default: in a second it doubles at most.
    f'tokens, {TARGET:g} kB/s': SelectionConfig(
        0.3, tau_mode=TauMode.TARGET_RATE, target_rate=TARGET, tau_max=1.0
    ),
}
WAYS = (*TOKENS, 'H.264', 'JPEG', 'raw')
CHUNK = 1 << 14
"""Bytes that the link passes on at once."""
BUFFER = 1 << 16
PATIENCE = 30.0
"""Seconds within which the link brings what is waited for."""
STAMP = np.dtype('<i8')
CONFIG = f"""{{
    scouting: {{gossip: {{enabled: false}}}},
    transport: {{
        shared_memory: {{enabled: false}},
        link: {{tcp: {{so_sndbuf: {BUFFER}, so_rcvbuf: {BUFFER}}}}},
    }},
}}"""
"""Else both sides would find ways around the link, as they are on one machine, or queue in it."""


class Link:
    """A process between two ports.

    :ivar port: of the near end
    """

    def __init__(self, far_port: int, bits_per_second: float) -> None:
        """Begin to pass on whatever connects, thin in the direction from the far end."""
        self._listener = socket.create_server(('127.0.0.1', 0))
        _shorten(self._listener)  # what it accepts has its buffers
        self.port = int(self._listener.getsockname()[1])
        context = multiprocessing.get_context('fork')
        self._rate = context.Value('d', bits_per_second)
        self._process = context.Process(target=self._run, args=(far_port,))
        self._process.start()

    def widen(self) -> None:
        """Let everything through that still waits."""
        self._rate.value = math.inf

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()
        self._listener.close()

    def _run(self, far_port: int) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.socket()
            _shorten(far)
            far.connect(('127.0.0.1', far_port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in ((far, near, self._rate), (near, far, None)):
                threading.Thread(target=_pump, args=ends, daemon=True).start()


def _shorten(end: socket.socket) -> None:
    """Keep the kernel from queueing more."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, option, BUFFER)


def _pump(source: socket.socket, sink: socket.socket, rate: Any) -> None:
    """Pass everything on, no faster than the rate."""
    due = 0.0
    with contextlib.suppress(ConnectionError):  # either side ends it
        while data := source.recv(CHUNK):
            sink.sendall(data)
            if rate is not None:
                due = max(due, time.monotonic()) + 8 * len(data) / rate.value
                time.sleep(max(0.0, due - time.monotonic()))
        sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


class Arrivals:
    """Turn and arrival of what came of one camera, in nanoseconds."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def note(self, turn: int) -> None:
        """Something came."""
        self.pairs.append((turn, time.time_ns()))

    def latencies_ms(self, begin: int, end: int) -> list[float]:
        """Of what came in between."""
        return [1e-6 * (came - turn) for turn, came in self.pairs if begin <= came < end]


class TokenCamera:
    """Packets through the package's own publisher and subscription, checked on arrival."""

    def __init__(self, robot: Any, policy: Any, name: str, packets: Sequence[Packet]) -> None:
        self._packets = packets
        self.arrivals = Arrivals()
        self.receiver = Receiver()
        self._subscription = PacketSubscription(policy, key(name), self._take)
        self._publisher = PacketPublisher(robot, key(name))

    def _take(self, packet: Packet) -> None:
        if self.receiver.apply(packet):
            self.arrivals.note(packet.stamp)

    def send(self, at: int, stamp: int) -> None:
        """Publish one, with the stamp of its turn."""
        self._publisher.send(seal(dataclasses.replace(self._packets[at], stamp=stamp)))

    def close(self) -> None:
        """End it."""
        self._publisher.close()
        self._subscription.close()


class ByteCamera:
    """Bytes behind a stamp."""

    def __init__(self, robot: Any, policy: Any, name: str, data: Sequence[bytes]) -> None:
        import zenoh

        self._data = data
        self.arrivals = Arrivals()
        self._subscriber = policy.declare_subscriber(key(name), self._take)
        self._publisher = robot.declare_publisher(
            key(name), congestion_control=zenoh.CongestionControl.BLOCK
        )

    def _take(self, sample: Any) -> None:
        self.arrivals.note(int(np.frombuffer(sample.payload.to_bytes(), STAMP, 1)[0]))

    def send(self, at: int, stamp: int) -> None:
        """See :class:`TokenCamera`."""
        self._publisher.put(b''.join((np.array(stamp, STAMP).tobytes(), self._data[at])))

    def close(self) -> None:
        """See :class:`TokenCamera`."""
        self._publisher.undeclare()
        self._subscriber.undeclare()


def key(name: str) -> str:
    """Of a camera in Zenoh."""
    return plain_key(f'/{name.replace(" ", "_")}/tokenizer/tokens')


def images_of(name: str, size: tuple[int, int], count: int) -> list[Any]:
    """What a camera sees."""
    scene = Scene(*size, seed=CAMERAS.index(name))
    frames = [scene.frame(20 + index) for index in range(count)]
    if name == 'moving':
        return [np.roll(each, (5 * at, 3 * at), (0, 1)) for at, each in enumerate(frames)]
    return frames


def prepare(name: str, size: tuple[int, int], count: int) -> dict[str, Any]:
    """What each way sends of a camera, by its name; H.264 where there is PyAV."""
    images = images_of(name, size, count)
    encoder = SharedEncoder(DEFAULT_TOKENIZER)
    senders = {way: encoder.sender(config) for way, config in TOKENS.items()}
    found: dict[str, Any] = {way: [] for way in TOKENS}
    for at, image in enumerate(images):
        for way, sender in senders.items():
            found[way].append(send(sender, image, at * NANOSECONDS // RATE))
    encoder.tokenizer.close()
    try:
        h264 = H264()
        found['H.264'] = [h264.compress(image).tobytes() for image in images]
    except ImportError:
        progress('PyAV is missing: no H.264')
    found['JPEG'] = [Jpeg().compress(image).tobytes() for image in images]
    found['raw'] = [memoryview(image).cast('B') for image in images]
    return found


def open_camera(way: str, robot: Any, policy: Any, name: str, data: Any) -> Any:
    """Both ends of one camera."""
    if way in TOKENS:
        return TokenCamera(robot, policy, name, data)
    return ByteCamera(robot, policy, name, data)


def drive(camera: Any, count: int, begin: int, skips: bool) -> None:
    """Send every image at its turn, or as soon as the link is free: all of them, or the newest."""
    at = 0
    while at < count:
        turn = begin + at * NANOSECONDS // RATE
        time.sleep(max(0.0, 1e-9 * (turn - time.time_ns())))
        camera.send(at, turn)
        at += 1
        if skips:
            at = max(at, (time.time_ns() - begin) * RATE // NANOSECONDS)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the link has to bring.

    :raises TimeoutError: it does not
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f'the link brought nothing within {PATIENCE:.0f} s')
        time.sleep(0.01)


def wait_for_link(robot: Any, policy: Any) -> None:
    """Until what the policy's side subscribed to before is known on the other."""
    heard = threading.Event()
    last = policy.declare_subscriber('last', lambda sample: heard.set())

    def call() -> bool:
        robot.put('last', b'')
        return heard.is_set()

    wait_until(call)
    last.undeclare()


def measure_way(way: str, prepared: dict[str, Any], bits_per_second: float) -> dict[str, Any]:
    """One way over one link."""
    port = free_port()
    with tempfile.NamedTemporaryFile('w', suffix='.json5') as config:
        config.write(CONFIG)
        config.flush()
        # Forked before there are sessions, whose sockets it would hold open.
        link = Link(port, bits_per_second)
        try:
            with (
                open_session(listen=f'tcp/127.0.0.1:{port}', file=config.name) as robot,
                open_session(connect=f'tcp/127.0.0.1:{link.port}', file=config.name) as policy,
            ):
                return exchange(way, prepared, robot, policy, link)
        finally:
            link.close()


def exchange(
    way: str, prepared: dict[str, Any], robot: Any, policy: Any, link: Link
) -> dict[str, Any]:
    """Send everything of all cameras, and count what arrives in the second half of the time."""
    cameras = {
        name: open_camera(way, robot, policy, name, found[way]) for name, found in prepared.items()
    }
    wait_for_link(robot, policy)
    count = len(next(iter(prepared.values()))[way])
    begin = time.time_ns()
    middle, end = (begin + part * count * NANOSECONDS // (2 * RATE) for part in (1, 2))
    skips = way in ('JPEG', 'raw')
    threads = [
        threading.Thread(target=drive, args=(camera, count, begin, skips))
        for camera in cameras.values()
    ]
    for thread in threads:
        thread.start()
    time.sleep(1e-9 * (end - time.time_ns()))
    arrived = [camera.arrivals.latencies_ms(middle, end) for camera in cameras.values()]
    link.widen()  # frees whoever waits for it
    for thread in threads:
        thread.join()
    if way in TOKENS:
        wait_until(lambda: all(len(each.arrivals.pairs) == count for each in cameras.values()))
    for camera in cameras.values():
        camera.close()
    sent = sum(_size(each) for data in prepared.values() for each in data[way][count // 2 :])
    latencies = [value for each in arrived for value in each]
    return {
        'wanted_bits_per_second': 8 * sent * RATE / (count - count // 2),
        'images_per_second': [2 * len(each) * RATE / count for each in arrived],
        'latency_ms': spread(latencies) if latencies else None,
    }


def _size(data: Any) -> int:
    return len(serialize(data) if isinstance(data, Packet) else data)


def measure(settings: Settings) -> dict[str, Any]:
    """Every way over every link; nothing where Zenoh is missing."""
    count = round(2 * RATE * settings.effort.seconds)
    if find_spec('zenoh') is None:
        return {'skipped': 'eclipse-zenoh is missing'}
    size = settings.effort.scene
    prepared = {}
    for name in CAMERAS:
        progress(f'thin link: preparing the {name} camera')
        prepared[name] = prepare(name, size, count)
    rows = []
    for bits_per_second in LINKS:
        for way in WAYS:
            if way in prepared[CAMERAS[0]]:
                progress(f'thin link: {way} at {bits_per_second / 1e6:g} Mbit/s')
                found = measure_way(way, prepared, bits_per_second)
                rows.append({'link': bits_per_second, 'way': way, **found})
    return {'size': size, 'count': count, 'rows': rows}


def tables(result: dict[str, Any]) -> str:
    """What arrives."""
    if 'skipped' in result:
        return f'Left out: {result["skipped"]}.'
    header = ['link, Mbit/s', 'way', 'wanted, Mbit/s']
    header += [f'{name}, images/s' for name in CAMERAS]
    rows = []
    for row in result['rows']:
        latency = row['latency_ms']
        rows.append(
            [
                f'{row["link"] / 1e6:g}',
                row['way'],
                number(row['wanted_bits_per_second'] / 1e6),
                *(f'{each:.1f}' for each in row['images_per_second']),
                *(number(latency[each]) if latency else '' for each in ('median', 'p95')),
            ]
        )
    width, height = result['size']
    return (
        f'Three cameras of {width}x{height}, {RATE} images per second each, '
        f'{result["count"]} images each, of which the second half counts.\n\n'
        + table([*header, 'latency p50, ms', 'p95'], rows)
    )
