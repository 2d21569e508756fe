"""The real nodes over DDS, and what goes wrong with them: a bad link, kills, stops, storms.

This process is the camera, the link between ``tokenizer_node`` and ``lit_node``, and whoever looks
at the latents: as in :mod:`bench_faults` they must be those of the packet that they name.
"""

from __future__ import annotations

import dataclasses
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ros
from measuring import progress
from relay import NONE, Faults, Relay
from ros import PATIENCE, Processes
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from witness import Footage, Witness, digest, distances

from adaptok_ros.messages import (
    byte_array,
    fill_tokens,
    latents_from_message,
    packet_from_message,
    set_header,
)
from adaptok_ros.msg import DenseLatents, SparseTokens
from adaptok_ros.nodes import qos
from adaptok_ros.receiving.receiver import Status

NAMESPACE = '/faults'
RATE = 20.0
"""Images a second."""
STORM = 200.0
"""Requests a second."""
FEWEST_PACKETS = 40
"""That a bad link or a storm has to reach, however slow the machine is."""
ROUNDING = 1e-3
"""Of the bound, relative: the node may encode with another number of threads."""
LINK = Faults(0.1, 0.1, 0.1, 0.05, 0.1, 0.01, longest=20)


CASES = (
    'nothing',
    'bad link',
    'tokenizer stopped',
    'LIT stopped',
    'tokenizer killed',
    'LIT killed',
    'storm of requests',
)
"""What happens; stopped is by SIGSTOP, killed by SIGKILL, and then started again."""


@dataclasses.dataclass
class Seen:
    """From one look to the next; see :class:`bench_faults.Findings`.

    :ivar stale: latents with status STALE or INCOMPLETE
    """

    packets: int = 0
    keyframes: int = 0
    bytes: int = 0
    states: int = 0
    stale: int = 0
    wrong: int = 0
    over: int = 0
    worst: float = 0.0


class Link:
    """Camera, relay and observer in one node.

    :ivar relay: between the nodes
    :ivar seen: since it was last replaced
    :ivar witness: knows all packets
    :ivar whole: number of the last packet of which OK latents came, -1 before
    """

    def __init__(self, node: Any, footage: Footage) -> None:
        self.relay = Relay(NONE, 0)
        self.seen = Seen()
        self.witness = Witness()
        self.whole = -1
        self._lock = threading.Lock()
        self._footage = footage
        self._shown: dict[int, int] = {}
        self._count = 0
        self._due = time.monotonic()
        self._image = node.create_publisher(Image, f'{NAMESPACE}/image', qos.image_output())
        self._out = node.create_publisher(SparseTokens, f'{NAMESPACE}/relayed', qos.tokens(0))
        node.create_subscription(
            SparseTokens, f'{NAMESPACE}/tokenizer/tokens', self._on_tokens, qos.tokens(0)
        )
        node.create_subscription(
            DenseLatents, f'{NAMESPACE}/lit/latents', self._on_latents, qos.tokens(0)
        )

    def show(self) -> None:
        """The next image, when it is due."""
        self._due = max(self._due + 1 / RATE, time.monotonic())
        time.sleep(max(0.0, self._due - time.monotonic()))
        last = len(self._footage.images) - 1
        at = last - abs(self._count % (2 * last) - last)
        self._count += 1
        pixels = self._footage.images[at]
        height, width = pixels.shape[:2]
        message = Image(
            height=height, width=width, encoding='rgb8', step=3 * width, data=byte_array(pixels)
        )
        stamp = time.time_ns()
        self._shown[stamp] = at
        set_header(message.header, stamp, 'camera')
        self._image.publish(message)

    def _on_tokens(self, message: SparseTokens) -> None:
        packet = packet_from_message(message)
        latents = self._footage.latents[self._shown[packet.stamp]]
        with self._lock:
            self.witness.note(packet, latents)
            self.seen.packets += 1
            self.seen.keyframes += packet.keyframe
            self.seen.bytes += packet.nbytes
            arrived = self.relay.take(packet)
        for each in arrived:
            relayed = SparseTokens()
            fill_tokens(relayed, each)
            self._out.publish(relayed)

    def _on_latents(self, message: DenseLatents) -> None:
        latents = latents_from_message(message)
        with self._lock:
            sent, seen = self.witness.recall(latents.epoch, latents.sequence), self.seen
            if latents.status in (Status.INCOMPLETE, Status.STALE):
                seen.stale += 1
                return
            seen.states += 1
            self.whole = sent.number
            seen.wrong += digest(latents.values) != sent.held
            errors = distances(latents.values, sent.latents)
            seen.worst = max(seen.worst, float(errors.max()) / latents.tau)
            seen.over += int(np.count_nonzero(errors >= latents.tau * (1 + ROUNDING)))

    def set_faults(self, faults: Faults) -> None:
        """From the next packet on."""
        with self._lock:
            self.relay.mend()
            self.relay.faults = faults

    def look(self) -> Seen:
        """What was seen since the last look."""
        with self._lock:
            seen, self.seen = self.seen, Seen()
        return seen


class Bench:
    """Both nodes at work on a link."""

    def __init__(self, node: Any, processes: Processes, footage: Footage) -> None:
        self._processes = processes
        self._link = Link(node, footage)
        self._request = node.create_client(Trigger, f'{NAMESPACE}/tokenizer/request_keyframe')
        self._start_tokenizer()
        self._start_lit()
        self._until_whole()

    def _start_tokenizer(self) -> None:
        self._tokenizer = self._processes.node('tokenizer_node', [NAMESPACE])

    def _start_lit(self) -> None:
        arguments = ('-r', 'tokens:=relayed', '-p', 'mode:=hold')
        self._lit = self._processes.node('lit_node', [NAMESPACE], *arguments)

    def _until(self, condition: Callable[[], bool], what: str) -> float:
        """Show images meanwhile; seconds that it took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > 2 * PATIENCE:
                said = '\n'.join(f'{p.name}: {p.output}' for p in self._processes.all)
                raise RuntimeError(f'no {what}:\n{said}')
            self._link.show()
        return time.monotonic() - started

    def _until_whole(self) -> tuple[int, float]:
        """Packets and seconds until OK latents come of a packet that is sent from now on."""
        before = self._link.witness.newest
        seconds = self._until(lambda: self._link.whole > before, 'whole latents')
        return self._link.whole - before, seconds

    def _show_for(self, seconds: float, packets: int) -> None:
        """So long, and until so many packets have come: what happens to them must show."""
        end = time.monotonic() + seconds
        self._until(
            lambda: time.monotonic() > end and self._link.seen.packets >= packets, 'packets'
        )

    def _case(
        self,
        name: str,
        seconds: float,
        begin: Callable[[], object],
        end: Callable[[], object],
        packets: int = 0,
    ) -> dict[str, Any]:
        """Let something go wrong for a while; what is seen until all is well again."""
        progress(f'faults: {name}')
        self._until_whole()
        self._link.look()
        begin()
        self._show_for(seconds, packets)
        end()
        packets, until = self._until_whole()
        seen = dataclasses.asdict(self._link.look())
        return {'case': name, **seen, 'until_packets': packets, 'until_seconds': until}

    def run(self, name: str, seconds: float) -> dict[str, Any]:
        """One of :data:`CASES`."""
        tokenizer, lit, link = self._tokenizer, self._lit, self._link
        if name == 'nothing':
            return self._case(name, seconds, lambda: None, lambda: None)
        if name == 'bad link':
            return self._case(
                name,
                3 * seconds,
                lambda: link.set_faults(LINK),
                lambda: link.set_faults(NONE),
                FEWEST_PACKETS,
            )
        if name == 'storm of requests':
            return self._storm(name, 2 * seconds)
        which, what = name.split()
        process = tokenizer if which == 'tokenizer' else lit
        if what == 'stopped':
            return self._case(
                name,
                seconds,
                lambda: process.send(signal.SIGSTOP),
                lambda: process.send(signal.SIGCONT),
            )
        again = self._start_tokenizer if which == 'tokenizer' else self._start_lit
        return self._case(name, seconds, lambda: process.send(signal.SIGKILL), again)

    def _storm(self, name: str, seconds: float) -> dict[str, Any]:
        """Somebody asks for keyframes and does not stop."""
        over = threading.Event()
        asked = 0

        def ask() -> None:
            nonlocal asked
            while not over.wait(1 / STORM):
                self._request.call_async(Trigger.Request())
                asked += 1

        thread = threading.Thread(target=ask)

        def end() -> None:
            over.set()
            thread.join()

        try:
            found = self._case(name, seconds, thread.start, end, FEWEST_PACKETS)
        finally:
            over.set()
        return {**found, 'asked': asked, 'seconds': seconds}

    def release(self) -> None:
        """Let what is stopped go on, so that it can end."""
        for process in (self._tokenizer, self._lit):
            process.send(signal.SIGCONT)


def measure(
    footage: Footage, seconds: float, cases: Sequence[str] = CASES
) -> list[dict[str, Any]]:
    """Cases one after the other, each for so many seconds or a few times that."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ros.node('bench_faults') as node,
        Processes(Path(folder)) as processes,
    ):
        bench = Bench(node, processes, footage)
        try:
            return [bench.run(name, seconds) for name in cases]
        finally:
            bench.release()
