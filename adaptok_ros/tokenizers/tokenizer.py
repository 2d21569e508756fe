"""A frozen tokenizer as it runs: its engines, and the streams it encodes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.engines.shared import acquire_engine, leave_engine, release_engine
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model
from adaptok_ros.tokenizers.gating.gated import DEFAULT_NOISE, ActiveEncoder, Gating
from adaptok_ros.tokenizers.stream import ImageEncoder, TokenizerStream

if TYPE_CHECKING:
    from adaptok_ros.networks.causal import CausalState
    from adaptok_ros.tokenizers.causal_runtime import CausalEngine


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
                self._folder,
                part,
                backend,
                self._image_size,
                threads=self._threads,
                on_cpu=self._on_cpu,
                rejected=dict(self.rejected),
            ),
            self._build,
        )

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

    def stream(self, gating: Gating = Gating.OFF, noise: float = DEFAULT_NOISE) -> TokenizerStream:
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
            description.stride,
            description.mean,
            description.std,
            self._threads,
        )

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

    def decode(self, latents: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
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
