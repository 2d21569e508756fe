"""A frozen tokenizer as it runs: its engines, and the streams it encodes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.fallback import FallbackEngine
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model
from adaptok_ros.tokenizers.gating.active import ActiveEncoder
from adaptok_ros.tokenizers.gating.changes import DEFAULT_NOISE, Gating
from adaptok_ros.tokenizers.gating.gated import GatedEncoder
from adaptok_ros.tokenizers.stream import ImageEncoder, TokenizerStream

if TYPE_CHECKING:
    from adaptok_ros.networks.causal import CausalState
    from adaptok_ros.tokenizers.causal_runtime import CausalRuntime


class Tokenizer:
    """Encodes images to normalised latents on one engine; decodes on another.

    The engines hold everything between a uint8 image and normalised latents. Each is loaded
    when it is first needed, and under ``backend='auto'`` gives way to the next that works when
    it fails.
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
        """Find a shipped tokenizer or a folder.

        :param on_cpu: whatever GPUs there are, as gating needs it
        :param image_size: height and width of every image, where they are known beforehand
        :param build: see :func:`~adaptok_ros.engines.choice.create_engine`
        :raises ModelError: not a tokenizer
        """
        self._folder = find_model(name)
        self._backend = backend
        self._threads = threads
        self.description = TokenizerDescription.load(self._folder)
        self._encoder, self._decoder = (
            FallbackEngine(
                GraphRequest(
                    self._folder,
                    part,
                    'torch' if self._is_torchscript else backend,
                    self.description.image_size or image_size,
                    threads=threads,
                    on_cpu=on_cpu,
                ),
                build,
            )
            for part in ('encoder', 'decoder')
        )
        self._images = ImageEncoder(self.description, self._encoder.runner())
        self._decoding = self._decoder.runner()
        self._causal: CausalRuntime | None = None

    @property
    def encoder(self) -> Engine | CausalRuntime | None:
        """What encodes, if it has been loaded."""
        return self._encoder.current or self._causal

    @property
    def device_engine(self) -> Engine | None:
        """The encoder where it runs on a GPU, and on each image for itself.

        :raises EngineError: the backend cannot run it
        """
        if self.description.is_causal:
            return None
        engine = self.load_encoder()
        return engine if engine.device != 'cpu' else None

    @property
    def rejected(self) -> Mapping[str, str]:
        """What failed and is no longer used, such as ``torch on cuda``, and why."""
        return {**self._decoder.rejected, **self._encoder.rejected}

    def load(self) -> Engine | CausalRuntime:
        """What encodes, created at the first call: an engine, or a causal encoder.

        :raises EngineError: the backend cannot run it
        """
        return self._load_causal() if self.description.is_causal else self.load_encoder()

    def load_encoder(self) -> Engine:
        """The encoder's engine, created at the first call.

        :raises ModelError: latents depend on earlier images
        :raises EngineError: the backend cannot run it
        """
        if self.description.is_causal:
            raise ModelError(
                f'{self.description.id}: latents depend on earlier images; encode with stream()'
            )
        self._check_torch()
        return self._encoder.load()

    def load_decoder(self) -> Engine:
        """The decoder's engine, created at the first call.

        :raises ModelError: this tokenizer cannot decode
        :raises EngineError: the backend cannot run it
        """
        if not self.description.can_decode:
            raise ModelError(f'{self.description.id} has no decoder')
        self._check_torch()
        return self._decoder.load()

    def fall_back(self, error: EngineError) -> None:
        """Leave the encoder's engine, which failed, for the next that works.

        :raises EngineError: ``error``, where the backend was named; or no other works, now and
            at every later attempt to encode
        """
        self._encoder.fall_back(self._encoder.current, error)

    def _load_causal(self) -> CausalRuntime:
        if self._causal is None:
            self._check_torch()
            from adaptok_ros.tokenizers.causal_runtime import CausalRuntime

            self._causal = CausalRuntime(self._folder, self.description, self._threads)
        return self._causal

    @property
    def _is_torchscript(self) -> bool:
        return self.description.family == 'cosmos-torchscript'

    def _check_torch(self) -> None:
        """Verify that torch is there and may be used, where the family needs it."""
        family = self.description.family
        if not (self.description.is_causal or self._is_torchscript):
            return
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
        self, gating: Gating = Gating.OFF, gating_noise: float = DEFAULT_NOISE
    ) -> TokenizerStream:
        """Begin the stream of one camera.

        :param gating_noise: standard deviation of its noise in steps of 8 bits, for
            ``Gating.NOISE``
        :raises EngineError: this tokenizer or its backend cannot be gated
        :raises ModelError: its family needs torch, which is missing
        """
        self._check_torch()
        images = ImageEncoder(self.description, self._encoder.runner())
        gated = None
        if gating is not Gating.OFF:
            gated = GatedEncoder(
                self.active_encoder(gating),
                images.encode,
                self.description.stride,
                gating,
                gating_noise,
            )
        return TokenizerStream(self.description, images, self.encode_group, gated)

    def active_encoder(self, gating: Gating) -> ActiveEncoder:
        """What computes latents at chosen positions, for one stream.

        :raises EngineError: this tokenizer or its backend cannot be gated
        :raises ModelError: its weights are not those of an encoder
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
        from safetensors import SafetensorError

        weights = self._folder / 'tokenizer.safetensors'
        try:
            return ActiveEncoder(
                weights, description.stride, description.normalisation, self._threads
            )
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise ModelError(f'{weights}: not the weights of an encoder: {error}') from error

    def encode(self, image: Image) -> Latents:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents, overwritten by the next call.

        An image whose sides the stride does not divide is padded by repeating its last row
        and column.

        :raises ModelError: latents depend on earlier images (use :meth:`stream`), or the
            image has not the one size that this tokenizer takes
        :raises EngineError: the backend cannot run it; under ``auto``: none can
        """
        self.load_encoder()
        return self._images.encode(image)

    def encode_group(
        self, images: NDArray[np.uint8], state: CausalState | None
    ) -> tuple[Latents, CausalState]:
        """Images of one grid of a causal family -> its latents and the stream's new state.

        :param images: ``[T, h, w, 3]`` RGB of whole positions; T is 1 where ``state`` is None,
            else ``temporal_stride``
        :return: ``[H, W, C]`` normalised latents, and the state for the next group
        """
        return self._load_causal().step(images, state)

    def decode(self, latents: Latents, height: int, width: int) -> Image:
        """``[H, W, C]`` normalised latents -> ``[height, width, 3]`` RGB.

        A view, which the next call overwrites.

        :raises ModelError: this tokenizer cannot decode
        :raises EngineError: its engine fails; under ``auto``: as do all others
        """
        self.load_decoder()
        image: Image = self._decoding.run({'latents': np.ascontiguousarray(latents[None])})[
            'image'
        ][0]
        return image[:height, :width]

    def close(self) -> None:
        """Free the engines."""
        self._encoder.close()
        self._decoder.close()
        if self._causal is not None:
            self._causal.close()
            self._causal = None
