"""The interface of every backend, and what an engine is asked for.

An :class:`Engine` is a graph compiled for one device, and may serve several callers at once; a
:class:`Binding` is what one caller runs: buffers on the engine's device, at addresses that never
change. :class:`~adaptok_ros.engines.runner.Runner` runs arrays of the host on any engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from adaptok_ros.engines.specification import Specification
from adaptok_ros.models.folders import read_description

BACKENDS = ('auto', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch')
"""Values of the ``backend`` parameters."""

PARTS = ('encoder', 'decoder', 'lit')
"""Graphs that a model folder may hold."""

Shape = tuple[int, ...]
Buffer = Any
"""A C-contiguous numpy array where the engine is on the CPU, else a torch tensor on its device."""


class Binding(Protocol):
    """Buffers of one caller for one set of shapes.

    :ivar inputs: by name; written by the caller before a run
    :ivar outputs: by name; what the last run gave, at addresses that stay
    """

    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]

    def bind_input(self, name: str, buffer: Buffer) -> None:
        """Read this input from ``buffer``, of the same shape, type and device, from now on."""

    def run(self) -> None:
        """Run once. On CUDA: enqueue on torch's current stream, wait for nothing.

        :raises EngineError: it fails, for example for want of memory
        """


class Engine(Protocol):
    """A graph compiled for one device.

    :ivar backend: one of :data:`BACKENDS` other than ``auto``
    :ivar device: ``cpu``, or ``cuda:0`` as torch writes it
    :ivar capturable: its runs can be captured in a CUDA graph
    :ivar notes: why what would have been preferred is not used
    """

    backend: str
    device: str
    capturable: bool
    notes: tuple[str, ...]

    def bind(self, shapes: Mapping[str, Shape]) -> Binding:
        """Allocate buffers for these shapes of the inputs.

        :raises EngineError: a shape that the engine does not take, or no memory
        """

    def close(self) -> None:
        """Free everything; neither the engine nor its bindings can run afterwards."""


@dataclasses.dataclass(frozen=True)
class GraphRequest:
    """Which graph of a model folder to run, and on what.

    :ivar folder: the model's
    :ivar part: one of :data:`PARTS`
    :ivar backend: one of :data:`BACKENDS`
    :ivar image_size: height and width of every image, where they are known: an encoder that is
        built is then built for these alone; None = a range of sizes
    :ivar batch: images at once, at most
    :ivar threads: CPU threads, 0 = one per core
    :ivar on_cpu: only on the CPU
    :ivar rejected: what must not be chosen, such as ``torch on cuda``, and why
    """

    folder: Path
    part: str
    backend: str = 'auto'
    image_size: tuple[int, int] | None = None
    batch: int = 1
    threads: int = 0
    on_cpu: bool = False
    rejected: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def graph(self, half: bool = False) -> Path:
        """The ONNX file to run: the float16 form where it is wanted and the folder lists it."""
        name = f'{self.part}.float16.onnx'
        if half:
            description = 'lit.json' if self.part == 'lit' else 'tokenizer.json'
            # Not merely where it exists: one that is not listed may be of other weights.
            if name in read_description(self.folder, description)['files']:
                return self.folder / name
        return self.folder / f'{self.part}.onnx'


class Builder(Protocol):
    """Builds engines that are missing, for one who may give up."""

    def build(self, specification: Specification, onnx: Path) -> None:
        """Build and store an engine.

        :raises EngineError: it cannot be built
        :raises BuildCancelledError: it was given up
        """

    def wait(self) -> None:
        """Called again and again while somebody else of this process makes the same engine.

        :raises BuildCancelledError: it was given up
        """
