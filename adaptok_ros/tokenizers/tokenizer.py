"""A frozen tokenizer as it runs: its description and its engines."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines import Builder, Engine, EngineError, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.engines.shared import acquire_engine, leave_engine, release_engine
from adaptok_ros.models.folders import ModelError, find_model, read_description
from adaptok_ros.tokenizers.gating.gated import DEFAULT_NOISE, ActiveEncoder, GatedEncoder, Gating

if TYPE_CHECKING:
    from adaptok_ros.networks.causal import CausalState
    from adaptok_ros.tokenizers.causal_runtime import CausalEngine

FAMILIES = {
    'adaptok': 'encoder.onnx',
    'taesd': 'encoder.onnx',
    'autoencoder-tiny': 'encoder.onnx',
    'dinov2': 'encoder.onnx',
    'siglip': 'encoder.onnx',
    'cosmos': 'config.json',
    'wan': 'config.json',
    'cosmos-torchscript': 'encoder.jit',
}
"""Families of tokenizers, and the file of a model folder that runs one of each."""

CAUSAL_FAMILIES = ('cosmos', 'wan')
"""Families whose latents depend on earlier images; they run in torch."""


@dataclasses.dataclass(frozen=True)
class TokenizerDescription:
    """What is known of a tokenizer without running it; read from ``tokenizer.json``.

    :ivar id: ``<name>@<first 12 hex digits of the SHA-256 of its weights>``
    :ivar stride: pixels per position along each axis
    :ivar channels: numbers per token
    :ivar mean: per channel, of raw latents; normalised = (raw - mean) / std
    :ivar std: per channel, likewise
    :ivar receptive_field: side in pixels of what a latent depends on; 0 = the whole image
    :ivar family: one of :data:`FAMILIES`
    :ivar temporal_stride: images per latent grid, after the first of a stream
    :ivar image_size: the only height and width it takes; None = any
    """

    id: str
    stride: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    receptive_field: int
    can_decode: bool
    family: str = 'adaptok'
    temporal_stride: int = 1
    image_size: tuple[int, int] | None = None

    @classmethod
    def load(cls, folder: Path) -> TokenizerDescription:
        """Read ``folder/tokenizer.json`` and verify the files it lists.

        :raises ModelError: a file or field is missing or does not fit
        """
        fields: dict[str, Any] = read_description(folder, 'tokenizer.json')
        try:
            description = cls(
                id=f"{fields['name']}@{fields['files']['tokenizer.safetensors'][:12]}",
                stride=int(fields['stride']),
                channels=int(fields['channels']),
                mean=tuple(float(v) for v in fields['mean']),
                std=tuple(float(v) for v in fields['std']),
                receptive_field=int(fields['receptive_field']),
                can_decode=not {'decoder.onnx', 'decoder.jit'}.isdisjoint(fields['files']),
                family=str(fields.get('family', 'adaptok')),
                temporal_stride=int(fields.get('temporal_stride', 1)),
                image_size=_image_size(fields.get('image_size')),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f'{folder}/tokenizer.json: bad or missing field: {error}') from error
        if description.family not in FAMILIES:
            raise ModelError(
                f'{folder}/tokenizer.json: family is {description.family!r}; allowed: '
                f"{', '.join(FAMILIES)}"
            )
        if FAMILIES[description.family] not in fields['files']:
            raise ModelError(
                f'{folder}/tokenizer.json: files does not list {FAMILIES[description.family]}'
            )
        sizes = (description.stride, description.channels, description.temporal_stride)
        if min(sizes) < 1 or description.receptive_field < 0:
            raise ModelError(
                f'{folder}/tokenizer.json: stride, channels and temporal_stride must be at least '
                '1, receptive_field at least 0'
            )
        if description.image_size and (
            min(description.image_size) < 1
            or any(side % description.stride for side in description.image_size)
        ):
            raise ModelError(
                f'{folder}/tokenizer.json: image_size is {list(description.image_size)}; '
                f'allowed: multiples of the stride {description.stride}'
            )
        counts = (len(description.mean), len(description.std))
        if counts != (description.channels, description.channels):
            raise ModelError(
                f'{folder}/tokenizer.json: {counts} values of mean and std for '
                f'{description.channels} channels'
            )
        if not all(map(math.isfinite, description.mean)) or not all(
            math.isfinite(s) and s > 0 for s in description.std
        ):
            raise ModelError(
                f'{folder}/tokenizer.json: mean must be finite, std finite and above 0'
            )
        return description

    @property
    def is_causal(self) -> bool:
        """Latents depend on earlier images, so images must be encoded by a stream."""
        return self.family in CAUSAL_FAMILIES

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latent grid that covers an image of that size."""
        return -(-height // self.stride), -(-width // self.stride)

    def padded(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of an image of that size once it is padded to whole positions.

        :raises ModelError: not the one size that this tokenizer takes
        """
        if self.image_size and (height, width) != self.image_size:
            raise ModelError(
                f'image is {width}x{height} pixels; allowed by {self.id}: '
                f'{self.image_size[1]}x{self.image_size[0]}'
            )
        rows, columns = self.grid(height, width)
        return rows * self.stride, columns * self.stride, 3


def _image_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = value
    return int(height), int(width)


class Tokenizer:
    """Encodes images to normalised latents on one engine; decodes on another.

    The engines hold everything between a uint8 image and normalised latents. The decoder is
    loaded when it is first needed.

    :ivar rejected: what failed and is no longer used, such as ``torch on cuda``, and why
    """

    def __init__(
        self,
        name: str,
        backend: str = 'auto',
        threads: int = 0,
        image_size: tuple[int, int] | None = None,
        build: Builder | None = None,
        on_cpu: bool = False,
    ) -> None:
        """Load a shipped tokenizer or a folder.

        :param on_cpu: whatever GPUs there are, as gating needs it
        :param image_size: height and width of every image, where they are known beforehand
        :param build: see :func:`~adaptok_ros.engines.create_engine`
        :raises ModelError: not a tokenizer
        :raises EngineError: the backend cannot run it
        """
        self._folder = find_model(name)
        self._backend = backend
        self._threads = threads
        self._build = build
        self._on_cpu = on_cpu
        self._failure: EngineError | None = None
        self.rejected: dict[str, str] = {}
        self.description = TokenizerDescription.load(self._folder)
        self._image_size = self.description.image_size or image_size
        self._encoder: Engine | None = None
        self._causal: CausalEngine | None = None
        self._decoder: Runner | None = None
        self._images = ImageEncoder(self)

    def load_encoder(self) -> Engine:
        """The encoder's engine, created at the first call.

        :raises ModelError: latents depend on earlier images
        """
        if self.description.is_causal:
            raise ModelError(
                f'{self.description.id}: latents depend on earlier images; encode with stream()'
            )
        if self._failure is not None:
            raise self._failure
        if self._encoder is None:
            self._encoder = self._create('encoder')
        return self._encoder

    @property
    def encoder(self) -> Engine | CausalEngine | None:
        """What encodes, if it has been loaded."""
        return self._encoder or self._causal

    def load(self) -> Engine | CausalEngine:
        """What encodes, created at the first call: an engine, or a causal encoder."""
        return self._load_causal() if self.description.is_causal else self.load_encoder()

    def load_decoder(self) -> Engine:
        """The decoder's engine, created at the first call.

        :raises ModelError: this tokenizer cannot decode
        """
        if not self.description.can_decode:
            raise ModelError(f'{self.description.id} has no decoder')
        if self._decoder is None:
            self._decoder = Runner(self._create('decoder'))
        return self._decoder.engine

    def _create(self, part: str) -> Engine:
        backend = self._backend
        if self.description.family == 'cosmos-torchscript':
            self._need_torch()
            backend = 'torch'
        return acquire_engine(
            GraphRequest(
                self._folder, part, backend, self._image_size, threads=self._threads,
                on_cpu=self._on_cpu, rejected=dict(self.rejected),
            ),
            self._build,
        )  # fmt: skip

    def fall_back(self, error: EngineError) -> None:
        """Leave the encoder's engine, which failed, for the next that works.

        Streams that were begun before must be begun anew. Nothing is built for it.

        :raises EngineError: ``error``, where the backend was named; or no other works, now and
            at every later attempt to encode
        """
        if self._backend != 'auto' or self._encoder is None:
            raise error
        self._images = ImageEncoder(self)
        engine, self._encoder = self._encoder, None
        self._leave(engine, error)
        try:
            self._encoder = self._create('encoder')
        except EngineError as last:
            self._failure = last
            raise

    def _leave(self, engine: Engine, error: EngineError) -> None:
        self.rejected[leave_engine(engine, error)] = str(error)
        self._build = None

    def _load_causal(self) -> CausalEngine:
        if self._causal is None:
            self._need_torch()
            from adaptok_ros.tokenizers.causal_runtime import CausalEngine

            self._causal = CausalEngine(self._folder, self.description, self._threads)
        return self._causal

    def _need_torch(self) -> None:
        family = self.description.family
        if self._backend not in ('auto', 'torch'):
            raise EngineError(
                f'backend is {self._backend!r}; allowed: auto, torch (family {family} runs in '
                'torch)'
            )
        if importlib.util.find_spec('torch') is None:
            raise ModelError(
                f"family {family} runs in torch: pip install 'adaptok_ros[tokenizers]'"
            )

    def stream(
        self, gating: Gating = Gating.OFF, noise: float = DEFAULT_NOISE
    ) -> TokenizerStream:
        """Begin the stream of one camera.

        :param noise: standard deviation of its noise in steps of 8 bits, for ``Gating.NOISE``
        :raises EngineError: this tokenizer or its backend cannot be gated
        """
        return TokenizerStream(self, gating, noise)

    def active_encoder(self, gating: Gating) -> ActiveEncoder:
        """What computes latents at chosen positions, for one stream.

        :raises EngineError: this tokenizer or its backend cannot be gated
        """
        description = self.description
        if description.family != 'adaptok':
            raise EngineError(
                f'gating is {gating.value}; allowed by {description.id}: off (only the family '
                f'adaptok can be computed in part, not {description.family})'
            )
        device = self.load_encoder().device
        if device != 'cpu':
            raise EngineError(
                f'gating is {gating.value}; allowed on {device}: off (or hide the GPU, '
                'CUDA_VISIBLE_DEVICES=, to encode on the CPU)'
            )
        return ActiveEncoder(
            self._folder / 'tokenizer.safetensors',
            description.stride, description.mean, description.std, self._threads,
        )  # fmt: skip

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents, overwritten by the next call.

        An image whose sides the stride does not divide is padded by repeating its last row
        and column.

        :raises ModelError: latents depend on earlier images (use :meth:`stream`), or the
            image has not the one size that this tokenizer takes
        """
        return self._images.encode(image)

    def encode_group(
        self, images: NDArray[np.uint8], state: CausalState | None
    ) -> tuple[NDArray[np.float32], CausalState]:
        """Images of one grid of a causal family -> its latents and the stream's new state.

        :param images: ``[T, h, w, 3]`` RGB of whole positions; T is 1 where ``state`` is None,
            else ``temporal_stride``
        :return: ``[H, W, C]`` normalised latents, and the state for the next group
        """
        return self._load_causal().step(images, state)

    def decode(
        self, latents: NDArray[np.float32], height: int, width: int
    ) -> NDArray[np.uint8]:
        """``[H, W, C]`` normalised latents -> ``[height, width, 3]`` RGB, a view.

        :raises ModelError: this tokenizer cannot decode
        :raises EngineError: its engine fails; under ``auto``: as do all others
        """
        grid = np.ascontiguousarray(latents[None])
        while True:
            self.load_decoder()
            assert self._decoder is not None
            try:
                image: NDArray[np.uint8] = self._decoder.run({'latents': grid})['image'][0]
            except EngineError as error:
                if self._backend != 'auto':
                    raise
                engine, self._decoder = self._decoder.engine, None
                self._leave(engine, error)
            else:
                return image[:height, :width]

    def close(self) -> None:
        """Free the engines."""
        if self._encoder is not None:
            release_engine(self._encoder)
        if self._decoder is not None:
            release_engine(self._decoder.engine)
        if self._causal is not None:
            self._causal.close()
        self._encoder = self._causal = self._decoder = None
        self._images = ImageEncoder(self)


class ImageEncoder:
    """The encoder of a tokenizer for one caller: buffers of its own, for any image size."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._runner: Runner | None = None
        self._padded = np.empty((0, 0, 3), np.uint8)

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`Tokenizer.encode`."""
        if self._runner is None:
            self._runner = Runner(self._tokenizer.load_encoder())
        latents: NDArray[np.float32] = self._runner.run({'image': self.pad(image)[None]})[
            'latents'
        ][0]
        return latents

    def pad(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Whole positions of ``[h, w, 3]``, contiguous; overwritten by the next call.

        :raises ModelError: not the one size that this tokenizer takes
        """
        shape = self._tokenizer.description.padded(*image.shape[:2])
        if image.shape == shape:
            return np.ascontiguousarray(image)
        if self._padded.shape != shape:
            self._padded = np.empty(shape, np.uint8)
        pad_into(self._padded, image)
        return self._padded


def pad_into(target: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Fill ``[H, W, 3]`` with a smaller image, repeating its last row and column."""
    height, width = image.shape[:2]
    target[:height, :width] = image
    target[height:, :width] = image[-1:]
    target[:, width:] = target[:, width - 1:width]


class TokenizerStream:
    """One camera's images in order, with whatever the tokenizer remembers of earlier ones.

    Streams of one tokenizer do not disturb each other.
    """

    def __init__(self, tokenizer: Tokenizer, gating: Gating, noise: float) -> None:
        self._tokenizer = tokenizer
        self._images = ImageEncoder(tokenizer)
        self._gated: GatedEncoder | None = None
        if gating is not Gating.OFF:
            self._gated = GatedEncoder(
                tokenizer.active_encoder(gating), self._images.encode,
                tokenizer.description.stride, gating, noise,
            )  # fmt: skip
        self.reset()

    @property
    def encoded_share(self) -> float:
        """Work that the last image took, as a share of the dense pass's; 1 without gating."""
        return 1.0 if self._gated is None else self._gated.share

    @property
    def device_engine(self) -> Engine | None:
        """The encoder where it runs on a GPU, and on each image for itself."""
        if self._tokenizer.description.is_causal:
            return None
        engine = self._tokenizer.load_encoder()
        return engine if engine.device != 'cpu' else None

    def reset(self) -> None:
        """Forget earlier images: the next one begins a clip."""
        self._state: CausalState | None = None
        self._pending: list[NDArray[np.uint8]] = []
        self._size: tuple[int, int] = (0, 0)
        if self._gated is not None:
            self._gated.reset()

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents, overwritten by the next call.

        None where the image completes no grid: a causal tokenizer gives one for the first
        image, then one for every ``temporal_stride`` images. A new size begins a new clip.

        :raises ModelError: not the one size that this tokenizer takes
        """
        description = self._tokenizer.description
        if self._gated is not None:
            return self._gated.encode(self._images.pad(image))
        if not description.is_causal:
            return self._images.encode(image)
        size = (image.shape[0], image.shape[1])
        if size != self._size:
            self.reset()
            self._size = size
        self._pending.append(self._images.pad(image).copy())
        if self._state is not None and len(self._pending) < description.temporal_stride:
            return None
        group, self._pending = np.stack(self._pending), []
        latents, self._state = self._tokenizer.encode_group(group, self._state)
        return latents
