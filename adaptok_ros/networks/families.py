"""Frozen tokenizers of every family, loaded in torch behind one interface.

Each takes pixels in [-1, 1] and gives raw latents. What a library calls its latent scaling is
not applied: the calibration measures exactly these latents.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adaptok_ros.models.description import FAMILIES
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.causal import CausalEncoder, CosmosEncoder, WanEncoder
from adaptok_ros.networks.sources import (
    INSTALL,
    load_weights,
    read_json,
    read_safetensors,
    read_weights,
    refuse_unsafe,
)
from adaptok_ros.networks.taesd import Taesd
from adaptok_ros.networks.tiny import TinyAutoencoder

CONFIG_CLASSES = {
    'AutoencoderTiny': 'autoencoder-tiny',
    'AutoencoderKLCosmos': 'cosmos',
    'AutoencoderKLWan': 'wan',
}
MODEL_TYPES = {
    'dinov2': 'dinov2',
    'dinov2_with_registers': 'dinov2',
    'siglip': 'siglip',
    'siglip_vision_model': 'siglip',
}
PROBE_SIDE = 128
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class FrozenImageModel(nn.Module):
    """An image tokenizer; :meth:`encode` and :meth:`decode` as in ``TinyAutoencoder``."""

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, h, w]`` RGB in [-1, 1] -> ``[B, C, H, W]`` raw latents."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """``[B, C, H, W]`` raw latents -> ``[B, 3, h, w]`` RGB, about [-1, 1]."""
        raise NotImplementedError


class AutoencoderTinyModel(FrozenImageModel):
    """diffusers' ``AutoencoderTiny``, which itself takes [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.encode`."""
        return cast(Tensor, self.model.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.decode`."""
        return cast(Tensor, self.model.decoder(latents))


class TaesdModel(FrozenImageModel):
    """:class:`Taesd`, which takes [0, 1]."""

    def __init__(self, model: Taesd) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.encode`."""
        return self.model.encode((images + 1.0) / 2.0)

    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.decode`."""
        return 2.0 * self.model.decode(latents) - 1.0


class PatchFeatures(FrozenImageModel):
    """Patch tokens of a ViT after its last normalisation; CLS and register tokens dropped."""

    def __init__(
        self, model: Any, extra: int, options: dict[str, Any], mean: list[float], std: list[float]
    ) -> None:
        """Wrap the library's model.

        :param extra: tokens before the patches
        :param options: arguments of its forward
        """
        super().__init__()
        self.model = model
        self._patch, self._extra, self._options = int(model.config.patch_size), extra, options
        for module in model.modules():
            if hasattr(module, 'interpolate_pos_encoding'):
                module.interpolate_pos_encoding = _computed_once(module.interpolate_pos_encoding)
        self.register_buffer('mean', torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.encode`."""
        pixels = ((images + 1.0) / 2.0 - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        tokens = self.model(pixel_values=pixels, **self._options).last_hidden_state
        tokens = tokens[:, self._extra :]
        rows, columns = images.shape[2] // self._patch, images.shape[3] // self._patch
        return cast(Tensor, tokens.transpose(1, 2).unflatten(2, (rows, columns)))


def _computed_once(interpolate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Interpolate position embeddings at the first call, for the one size of the graph.

    Its antialiased resampling exists in torch but not in ONNX.
    """
    found: list[Tensor] = []

    def positions(embeddings: Tensor, height: int, width: int) -> Tensor:
        if not found:
            found.append(interpolate(embeddings, height, width))
        return found[0].to(embeddings)  # its device and type

    return positions


class TorchScriptModel(FrozenImageModel):
    """A Cosmos image tokenizer (CI) compiled by its authors; takes [-1, 1]."""

    def __init__(self, encoder: Path, decoder: Path | None) -> None:
        super().__init__()
        self.encoder = self._load(encoder)
        self.decoder = self._load(decoder) if decoder else None

    @staticmethod
    def _load(path: Path) -> Any:
        try:
            load: Any = torch.jit.load
            return load(str(path), map_location='cpu').float().eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f'{path}: not a TorchScript file: {reason}') from error

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.encode`."""
        found = self.encoder(images)
        latents = found if isinstance(found, Tensor) else found[0]
        if latents.ndim != 4 or not latents.is_floating_point():
            raise ModelError(
                f'encoder.jit gives {latents.dtype} of shape {tuple(latents.shape)}; allowed: '
                'floats [B, C, H, W] (a continuous image tokenizer, CI)'
            )
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`FrozenImageModel.decode`."""
        assert self.decoder is not None
        found = self.decoder(latents)
        return cast(Tensor, (found if isinstance(found, Tensor) else found[0]).float())


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenModel:
    """A tokenizer of some family, in torch, without statistics.

    :ivar model: a :class:`FrozenImageModel` (or ``TinyAutoencoder``) or a
        :class:`CausalEncoder`
    :ivar weights: tensors to keep beside the calibration; empty for TorchScript
    :ivar config: the library's own configuration, or None where the weights say it all
    :ivar image_size: the only height and width that the graph takes; None = any
    :ivar receptive_field: as in ``TokenizerDescription``
    """

    family: str
    model: Any
    weights: dict[str, Tensor]
    config: dict[str, Any] | None
    stride: int
    channels: int
    can_decode: bool
    receptive_field: int = 0
    image_size: tuple[int, int] | None = None
    torchscript: dict[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def temporal_stride(self) -> int:
        """Frames per grid after the first; 1 = every image stands alone."""
        return self.model.temporal_stride if isinstance(self.model, CausalEncoder) else 1


def detect_family(source: Path) -> str:
    """Family of a local file or folder.

    :raises ModelError: unknown
    """
    if source.is_file():
        if source.suffix == '.jit':
            return 'cosmos-torchscript'
        refuse_unsafe(source)
        raise ModelError(f'{source}: a file; allowed: a folder, or the .jit of an encoder')
    if (source / 'tokenizer.json').is_file():
        family = read_json(source / 'tokenizer.json').get('family', 'adaptok')
        if family not in FAMILIES:
            raise ModelError(
                f'{source}/tokenizer.json: family is {family!r}; allowed: {", ".join(FAMILIES)}'
            )
        return cast(str, family)
    if (source / 'config.json').is_file():
        config = read_json(source / 'config.json')
        name, kind = config.get('_class_name'), config.get('model_type')
        if name in CONFIG_CLASSES:
            return CONFIG_CLASSES[name]
        if kind in MODEL_TYPES:
            return MODEL_TYPES[kind]
        known = ', '.join((*CONFIG_CLASSES, *MODEL_TYPES))
        raise ModelError(
            f'{source}/config.json: _class_name is {name!r} and model_type {kind!r}; allowed: '
            f'one of {known}'
        )
    if list(source.glob('*encoder.safetensors')):
        return 'taesd'
    refuse_unsafe(source)
    raise ModelError(
        f'{source}: neither config.json nor tokenizer.json nor *encoder.safetensors tells the '
        f'family; give --family, one of {", ".join(FAMILIES)}'
    )


def load_family(
    source: Path, family: str, image_size: tuple[int, int] | None = None
) -> FrozenModel:
    """Load a model of a family from a local path, on the CPU, ready for inference.

    :param image_size: height and width that a ViT is to take; None = its own
    :raises ModelError: not such a model, or a library is missing
    """
    if family not in FAMILIES:
        raise ModelError(f'family is {family!r}; allowed: {", ".join(FAMILIES)}')
    load: dict[str, Any] = {
        'adaptok': _load_adaptok,
        'taesd': _load_taesd,
        'cosmos-torchscript': _load_torchscript,
    }
    try:
        if family in ('dinov2', 'siglip'):
            frozen = _load_vit(source, family, image_size)
        elif family in load:
            frozen = load[family](source)
        else:
            frozen = _load_diffusers(source, family)
    except ImportError as error:
        raise ModelError(f'family {family} needs {error.name or error}: {INSTALL}') from error
    frozen.model.eval().requires_grad_(False)
    return frozen


def _probe(family: str, model: Any, weights: dict[str, Tensor], **fields: Any) -> FrozenModel:
    """Find stride and channels by running the model once."""
    height, width = fields.get('image_size') or (PROBE_SIDE, PROBE_SIDE)
    with torch.no_grad():
        pixels = torch.zeros(1, 3, height, width)
        latents = (
            model.step(pixels[:, :, None], None)[0]
            if isinstance(model, CausalEncoder)
            else model.encode(pixels)
        )
    return FrozenModel(
        family,
        model,
        weights,
        stride=height // latents.shape[2],
        channels=latents.shape[1],
        **fields,
    )


def _load_adaptok(source: Path) -> FrozenModel:
    weights = read_weights(source)
    try:
        sizes = {
            'stride': round((weights['encoder.1.weight'].shape[1] / 3) ** 0.5),
            'channels': weights['decoder.0.weight'].shape[1],
            'encoder_width': weights['encoder.1.weight'].shape[0],
            'encoder_hidden': weights['encoder.2.spatial.weight'].shape[0],
            'encoder_blocks': sum(
                name.startswith('encoder.') and name.endswith('.spatial.weight')
                for name in weights
            ),
            'decoder_width': weights['decoder.0.weight'].shape[0],
            'decoder_blocks': sum(
                name.startswith('decoder.') and name.endswith('.spatial.weight')
                for name in weights
            ),
        }
    except KeyError as error:
        raise ModelError(
            f'{source}: weights of another architecture: {error} is missing'
        ) from error
    model = TinyAutoencoder(**sizes)
    load_weights(model, weights, source)
    return FrozenModel(
        'adaptok',
        model,
        model.state_dict(),
        None,
        model.stride,
        model.channels,
        can_decode=True,
        receptive_field=model.receptive_field,
    )


def _load_taesd(source: Path) -> FrozenModel:
    weights: dict[str, Tensor] = {}
    if (source / 'tokenizer.safetensors').is_file():
        weights = read_weights(source)
    else:
        for half in ('encoder', 'decoder'):
            files = sorted(source.glob(f'*{half}.safetensors'))
            if len(files) != 1:
                refuse_unsafe(source)
                raise ModelError(
                    f'{source}: {len(files)} files match *{half}.safetensors; allowed: one'
                )
            weights.update(
                (f'{half}.{name}', tensor) for name, tensor in read_safetensors(files[0]).items()
            )
    try:
        model = Taesd.of_weights(weights)
    except KeyError as error:
        raise ModelError(
            f'{source}: weights of another architecture: {error} is missing'
        ) from error
    load_weights(model, weights, source)
    frozen = TaesdModel(model)
    return _probe(
        'taesd',
        frozen,
        model.state_dict(),
        config=None,
        can_decode=True,
        receptive_field=measure_receptive_field(frozen),
    )


def _load_diffusers(source: Path, family: str) -> FrozenModel:
    import diffusers

    name = next(key for key, value in CONFIG_CLASSES.items() if value == family)
    config = read_json(source / 'config.json')
    if config.get('_class_name') != name:
        raise ModelError(
            f'{source}/config.json: _class_name is {config.get("_class_name")!r}; family {family} '
            f'allows: {name}'
        )
    weights = read_weights(source)
    try:
        library: Any = getattr(diffusers, name).from_config(config)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        raise ModelError(
            f'{source}/config.json: not a configuration of {name}: {error}'
        ) from error
    load_weights(library, weights, source)
    library.eval()
    state = library.state_dict()
    if family == 'autoencoder-tiny':
        model = AutoencoderTinyModel(library)
        return _probe(
            family,
            model,
            state,
            config=config,
            can_decode=True,
            receptive_field=measure_receptive_field(model),
        )
    try:
        encoder = WanEncoder(library) if family == 'wan' else CosmosEncoder(library)
    except ValueError as error:
        raise ModelError(f'{source}/config.json: {error}') from error
    return _probe(family, encoder, state, config=config, can_decode=False)


def _load_vit(source: Path, family: str, image_size: tuple[int, int] | None) -> FrozenModel:
    import transformers

    config = read_json(source / 'config.json')
    kind = config.get('model_type')
    if MODEL_TYPES.get(str(kind)) != family:
        allowed = ', '.join(key for key, value in MODEL_TYPES.items() if value == family)
        raise ModelError(
            f'{source}/config.json: model_type is {kind!r}; family {family} allows: {allowed}'
        )
    cls: Any = {
        'dinov2': transformers.Dinov2Model,
        'dinov2_with_registers': transformers.Dinov2WithRegistersModel,
    }.get(str(kind), transformers.SiglipVisionModel)
    calibrated = (source / 'tokenizer.safetensors').is_file()
    weights = read_weights(source)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what was not loaded is checked below
    try:
        settings = cls.config_class.from_pretrained(str(source))
        if calibrated:
            model = cls(settings)
        else:
            model, report = cls.from_pretrained(
                str(source),
                config=settings,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f'{source}: not a {family} model: {error}') from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if calibrated:
        load_weights(model, weights, source)
    else:
        _check_report(report, source)
    patch = int(model.config.patch_size)
    if family == 'dinov2':
        extra, options = 1 + int(getattr(model.config, 'num_register_tokens', 0)), {}
    else:
        extra, options = 0, {'interpolate_pos_encoding': True}
    mean, std, native = _preprocessing(source, family, int(model.config.image_size))
    size = image_size or native
    for name, side in zip(('height', 'width'), size):
        if side < patch or side % patch:
            raise ModelError(
                f'image size is {size[0]}x{size[1]}; allowed: a {name} that is a multiple of '
                f'the patch size {patch}'
            )
    return _probe(
        family,
        PatchFeatures(model, extra, options, mean, std),
        model.state_dict(),
        config={**model.config.to_dict(), 'image_mean': mean, 'image_std': std},
        can_decode=False,
        image_size=size,
    )


def _check_report(report: Any, source: Path) -> None:
    """What transformers could not load.

    :raises ModelError: weights that the features depend on are missing or do not fit
    """
    optional = ('text_model.', 'logit_', 'classifier.', 'lm_head.')
    unexpected = [name for name in report['unexpected_keys'] if not name.startswith(optional)]
    groups = {
        'missing': sorted(report['missing_keys']),
        'unexpected': sorted(unexpected),
        'of another shape': sorted(str(entry) for entry in report['mismatched_keys']),
    }
    problems = [f'{len(names)} {what} ({names[0]})' for what, names in groups.items() if names]
    if problems:
        raise ModelError(f'{source}: weights of another architecture: {"; ".join(problems)}')


def _preprocessing(
    source: Path, family: str, side: int
) -> tuple[list[float], list[float], tuple[int, int]]:
    """Mean and std of pixels in [0, 1], and the height and width that the model is used at."""
    path = source / 'preprocessor_config.json'
    if not path.is_file():
        path = source / 'config.json'
    fields = read_json(path)
    default = (IMAGENET_MEAN, IMAGENET_STD) if family == 'dinov2' else (HALF, HALF)
    size = fields.get('crop_size') or fields.get('size') or {}
    try:
        mean = [float(v) for v in fields.get('image_mean', default[0])]
        std = [float(v) for v in fields.get('image_std', default[1])]
        native = (int(size.get('height', side)), int(size.get('width', side)))
        if (source / 'tokenizer.json').is_file():
            height, width = read_json(source / 'tokenizer.json')['image_size']
            native = (int(height), int(width))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f'{path}: bad image_mean, image_std or size: {error}') from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(f'{path}: image_mean is {mean}, image_std {std}; allowed: three, std > 0')
    return mean, std, native


def _load_torchscript(source: Path) -> FrozenModel:
    encoder = source if source.is_file() else source / 'encoder.jit'
    if not encoder.is_file():
        refuse_unsafe(source)
        raise ModelError(f'{encoder}: missing; allowed: the TorchScript of an encoder')
    decoder = encoder.with_name('decoder.jit')
    files = {'encoder.jit': encoder}
    if encoder.name == 'encoder.jit' and decoder.is_file():
        files['decoder.jit'] = decoder
    model = TorchScriptModel(encoder, files.get('decoder.jit'))
    try:
        return _probe(
            'cosmos-torchscript',
            model,
            {},
            config=None,
            can_decode='decoder.jit' in files,
            torchscript=files,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(
            f'{encoder}: does not encode [1, 3, h, w] (videos have their own family, cosmos): '
            f'{reason}'
        ) from error


def measure_receptive_field(model: FrozenImageModel) -> int:
    """Side in pixels of the square around a position that its latent can depend on.

    Found by the gradient through a copy whose weights are all positive, so that no path is
    cut by a ReLU or by weights that happen to cancel. 0 where a normalisation over positions
    ties every latent to the whole image.
    """
    if any(isinstance(module, nn.GroupNorm) for module in model.modules()):
        return 0
    positive = copy.deepcopy(model).double().requires_grad_(False)
    for parameter in positive.parameters():
        parameter.fill_(1.0 / max(parameter[0].numel(), 1) if parameter.ndim > 1 else 0.0)
    width = 256
    while True:
        pixels = torch.ones(1, 3, PROBE_SIDE // 4, width, dtype=torch.float64)
        pixels.requires_grad_(True)
        latents = positive.encode(pixels)
        stride, column = width // latents.shape[3], latents.shape[3] // 2
        (gradient,) = torch.autograd.grad(latents[..., column].sum(), pixels)
        touched = gradient.abs().sum((0, 1, 2)).nonzero()
        first, last = int(touched[0]), int(touched[-1])
        if first > 0 and last < width - 1:
            left, right = column * stride - first, last + 1 - (column + 1) * stride
            return stride + 2 * max(left, right, 0)
        width *= 2
