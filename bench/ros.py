"""Nodes and their peers as processes, and what each of them costs.

Peers (``camera.py``, ``policy.py``, ``listener.py``, ``echo.py``) answer one line of JSON with
another; the nodes are those of the package. Nothing here imports rclpy before it is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS = os.sysconf('SC_CLK_TCK')
PATIENCE = 60.0
"""Seconds within which anything answers."""
HUMBLE_RCLPY = 3
LARGEST_IMAGE = 3 * 1920 * 1080
"""Bytes; no benchmark sends a larger one between processes."""


def missing() -> str:
    """What lacks for measurements over DDS; empty if nothing does."""
    if importlib.util.find_spec('rclpy') is None:
        return 'no rclpy: source ROS 2, or use make bench'
    if importlib.util.find_spec('adaptok_ros.msg') is None:
        return 'no adaptok_ros.msg: build the package, or use make bench'
    return ''


def isolate() -> None:
    """Keep other robots on this machine and network out, and give images room; before init."""
    from adaptok_ros.nodes.transport import profile_environment

    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    if int(version('rclpy').split('.')[0]) <= HUMBLE_RCLPY:
        os.environ.setdefault('ROS_LOCALHOST_ONLY', '1')
    else:
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.update(profile_environment(LARGEST_IMAGE))


@contextlib.contextmanager
def node(name: str) -> Iterator[Any]:
    """A node of this process, spun in a thread until the end."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    found = rclpy.create_node(name)
    executor = SingleThreadedExecutor()
    executor.add_node(found)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        executor.shutdown()
        thread.join(5.0)
        found.destroy_node()
        rclpy.shutdown()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Of a peer: answer every line until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


class Process:
    """A node or a peer.

    :ivar name: under which it stands in results
    """

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self._log = folder / f'{name.replace(" ", "_")}-{time.monotonic_ns()}.log'
        # In a folder without sources: Python puts the current one in front of all others.
        with self._log.open('w') as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                text=True,
            )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Answer of a peer.

        :raises RuntimeError: it ended, or does not answer
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ''
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + '\n')
            self._process.stdin.flush()
            if select.select([self._process.stdout], [], [], PATIENCE)[0]:
                line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.name} does not answer {question}:\n{self.output}')
        return dict(json.loads(line))

    @property
    def output(self) -> str:
        """The end of what it has said."""
        return self._log.read_text()[-2000:]

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far.

        :raises RuntimeError: it ended
        """
        try:
            stat = Path(f'/proc/{self._process.pid}/stat').read_text()
        except OSError:
            raise RuntimeError(f'{self.name} ended:\n{self.output}') from None
        fields = stat.rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> dict[str, float]:
        """Megabytes: resident, and with shared pages divided among those that share them."""
        found = {'rss_mb': 0.0, 'pss_mb': 0.0}
        folder = Path(f'/proc/{self._process.pid}')
        for file, field, name in (
            ('status', 'VmRSS', 'rss_mb'),
            ('smaps_rollup', 'Pss', 'pss_mb'),
        ):
            for line in (folder / file).read_text().splitlines():
                if line.startswith(f'{field}:'):
                    found[name] = int(line.split()[1]) * 1024 / 1e6
        return found

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self._process.send_signal(number)

    def ask_to_end(self) -> None:
        """Do not wait for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Until it has ended, or end it at once."""
        try:
            self._process.communicate(timeout=20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Processes:
    """Everything started for one measurement; ends with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.ask_to_end()
        for process in self.all:
            process.wait()

    def peer(self, file: str, *arguments: str) -> Process:
        """Start one of the files beside this one."""
        return self._start(file, [str(HERE / f'{file}.py'), *arguments])

    def script(self, path: Path, *arguments: str) -> Process:
        """Start a script from elsewhere."""
        return self._start(path.stem, [str(path), *arguments])

    def node(self, executable: str, namespaces: list[str], *arguments: str) -> Process:
        """Start a node of the package, or one for each namespace in one process.

        :param arguments: ROS arguments
        """
        command = ['-m', f'adaptok_ros.nodes.{executable}']
        if len(namespaces) > 1:
            command += ['--cameras', ','.join(namespaces), '--ros-args', *arguments]
        else:
            command += ['--ros-args', '-r', f'__ns:={namespaces[0]}', *arguments]
        return self._start(executable, command)

    def _start(self, name: str, command: list[str]) -> Process:
        process = Process(name, command, self._folder)
        self.all.append(process)
        return process


class Costs:
    """CPU time of processes over a span, and their memory at its end."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._before = [process.cpu_seconds() for process in processes]

    def read(self) -> dict[str, dict[str, float]]:
        """By the name of the processes; of those with one name, the sum."""
        found: dict[str, dict[str, float]] = {}
        for process, before in zip(self._processes, self._before):
            spent = process.cpu_seconds() - before
            figures = {'cpu_seconds': spent, **process.memory()}
            total = found.setdefault(process.name, dict.fromkeys(figures, 0.0))
            for key, value in figures.items():
                total[key] += value
        return found


def loopback_ms(folder: Path, repeats: int = 300) -> float:
    """Median time of an almost empty message to another process, half of there and back."""
    from adaptok_ros.msg import SparseTokens

    back = threading.Event()
    with Processes(folder) as processes, node('bench_loopback') as here:
        echo = processes.peer('echo')
        publisher = here.create_publisher(SparseTokens, 'echo/ping', 1)
        here.create_subscription(SparseTokens, 'echo/pong', lambda _: back.set(), 1)
        echo.ask()
        message = SparseTokens()
        times: list[float] = []
        deadline = time.monotonic() + PATIENCE
        while len(times) < repeats:
            if time.monotonic() > deadline:
                raise RuntimeError(f'no echo over DDS within {PATIENCE:.0f} s:\n{echo.output}')
            back.clear()
            started = time.perf_counter()
            publisher.publish(message)
            if back.wait(0.5):
                times.append((time.perf_counter() - started) / 2 * 1e3)
    return sorted(times)[len(times) // 2]
