"""A camera that sends tokens over Zenoh on this machine, for tests."""

import contextlib
import socket
import threading

from adaptok_ros import SelectionConfig, Sender, Tokenizer
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.zenoh import PacketPublisher, open_session

FRAME = 33_000_000
"""Nanoseconds from one image to the next."""
START = 1_000_000_000_000


def free_endpoint():
    """On the loopback interface, at a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return f'tcp/127.0.0.1:{probe.getsockname()[1]}'


class Robot:
    """Sends a rendered scene from a thread until it is closed; a context manager.

    ``lost`` says by its number whether a packet is lost on the way. Keyframes and refreshes come
    so often that a receiver soon has everything, whenever it joins and whatever it lost.
    """

    def __init__(self, key, lost=lambda number: False, keyframes=10, refresh=6):
        self.endpoint = free_endpoint()
        self.scene = Scene(96, 64, noise=0)
        self._key, self._lost = key, lost
        self._sender = Sender(
            Tokenizer('adaptok-tiny', threads=1),
            SelectionConfig(tau=0.05, keyframe_interval=keyframes, refresh_period=refresh),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def image_at(self, stamp):
        """What was sent with a stamp."""
        return self.scene.frame((stamp - START) // FRAME)

    def packets(self):
        """One after the other."""
        number = 0
        while True:
            yield self._sender.send(self.scene.frame(number), START + number * FRAME, 'front')
            number += 1

    def _run(self):
        with contextlib.closing(open_session(listen=self.endpoint)) as session:
            publisher = PacketPublisher(session, self._key)
            for number, packet in enumerate(self.packets()):
                if self._stopping.wait(FRAME / 1e9):
                    break
                if not self._lost(number):
                    publisher.send(packet)
            publisher.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()
        self._sender.tokenizer.close()
