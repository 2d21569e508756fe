"""Other people's frozen tokenizers: calibrated, run, streamed, and refused where they must be."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

MISSING = [
    name
    for name in ('torch', 'diffusers', 'transformers', 'safetensors', 'onnx')
    if importlib.util.find_spec(name) is None
]
if MISSING:
    pytest.skip(
        f'not importable: {", ".join(MISSING)} (the tokenizers extra)', allow_module_level=True
    )

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

from adaptok_ros.calibration.calibrate import calibrate
from adaptok_ros.calibration.statistics import ChannelStatistics, find_paths, sample_images
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.models.folders import ModelError, find_model
from adaptok_ros.networks.device import choose_device
from adaptok_ros.networks.errors import ExportError
from adaptok_ros.networks.families import (
    AutoencoderTinyModel,
    TaesdModel,
    load_family,
    measure_receptive_field,
)
from adaptok_ros.networks.sources import find_source
from adaptok_ros.networks.taesd import Taesd
from adaptok_ros.policy.token_cache import TokenCache
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer
from adaptok_ros.training.lit import encode_all

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'
TAEF2 = SHARED / 'weights'
SIZE = (56, 84)
VIT = {
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'image_size': 28,
    'patch_size': 14,
}
SIGLIP = {**VIT, 'intermediate_size': 32}
TEXT = {**VIT, 'intermediate_size': 32, 'vocab_size': 50, 'bos_token_id': 1, 'eos_token_id': 2}
WAN = {
    'base_dim': 8,
    'z_dim': 4,
    'dim_mult': [1, 1, 2, 2],
    'num_res_blocks': 1,
    'temperal_downsample': [False, True, True],
}
COSMOS = {
    'latent_channels': 4,
    'encoder_block_out_channels': (8, 8, 16, 16),
    'decode_block_out_channels': (8, 8, 16, 16),
    'attention_resolutions': (8,),
    'resolution': 32,
    'num_layers': 1,
    'patch_size': 2,
    'spatial_compression_ratio': 8,
    'temporal_compression_ratio': 4,
}
CAUSAL = {
    'wan': (diffusers.AutoencoderKLWan, WAN),
    'wan-2.2': (
        diffusers.AutoencoderKLWan,
        {**WAN, 'is_residual': True, 'patch_size': 2, 'in_channels': 12, 'out_channels': 12},
    ),
    'cosmos': (diffusers.AutoencoderKLCosmos, COSMOS),
    'cosmos-8': (
        diffusers.AutoencoderKLCosmos,
        {**COSMOS, 'patch_size': 4, 'temporal_compression_ratio': 8},
    ),
    'cosmos-rearrange': (diffusers.AutoencoderKLCosmos, {**COSMOS, 'patch_type': 'rearrange'}),
}


def moving_pictures(count, height=64, width=96, seed=0):
    """A textured background and a bright square that moves over it."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    ground = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    images = []
    for number in range(count):
        image = ground.copy()
        left = 5 * number % (width - 16)
        image[20:36, left : left + 16] = (255, 30 * number % 256, 0)
        images.append(image)
    return images


def to_pixels(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def normalised(raw, description):
    """``[C, H, W]`` raw latents of a library -> what the tokenizer should give."""
    values = raw.permute(1, 2, 0).double().numpy()
    return description.normalisation.normalise(values)


def save_randomised(model, folder):
    """Weights that libraries begin as zero or one would hide what they do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Thirty-odd frames in order, as a folder of images."""
    folder = tmp_path_factory.mktemp('data') / 'clip'
    folder.mkdir()
    for number, image in enumerate(moving_pictures(33, 48, 64, seed=7)):
        cv2.imwrite(str(folder / f'{number:03}.png'), image[:, :, ::-1])
    return folder


class Library:
    """The models as their libraries make them, saved once, and calibrated once."""

    def __init__(self, root, data):
        self.root, self.data = root, data
        self.models = {}

    def source(self, name):
        folder = self.root / 'sources' / name
        if name not in self.models:
            torch.manual_seed(0)
            self.models[name] = save_randomised(self.make(name), folder)
            if name == 'dinov2':
                fields = {
                    'image_mean': [0.4, 0.5, 0.6],
                    'image_std': [0.2, 0.3, 0.4],
                    'crop_size': {'height': 42, 'width': 42},
                }
                (folder / 'preprocessor_config.json').write_text(json.dumps(fields))
        return folder

    def make(self, name):
        if name in CAUSAL:
            kind, config = CAUSAL[name]
            return kind(**config)
        if name == 'autoencoder-tiny':
            return diffusers.AutoencoderTiny(
                encoder_block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                num_encoder_blocks=(1, 1, 1, 1),
                num_decoder_blocks=(1, 1, 1, 1),
            )
        if name == 'dinov2':
            return transformers.Dinov2Model(transformers.Dinov2Config(**VIT))
        if name == 'dinov2-registers':
            return transformers.Dinov2WithRegistersModel(
                transformers.Dinov2WithRegistersConfig(**VIT, num_register_tokens=4)
            )
        if name == 'siglip':
            return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP))
        assert name == 'siglip-with-text'
        return transformers.SiglipModel(
            transformers.SiglipConfig(vision_config=SIGLIP, text_config=TEXT)
        )

    def model(self, name):
        self.source(name)
        return self.models[name]

    def calibrated(self, name):
        folder = self.root / name
        if not folder.exists():
            size = SIZE if name in VITS else None
            calibrate(str(self.source(name)), [self.data], folder, frames=29, image_size=size)
        return folder


VITS = ('dinov2', 'dinov2-registers', 'siglip', 'siglip-with-text')


@pytest.fixture(scope='module')
def library(tmp_path_factory, data):
    return Library(tmp_path_factory.mktemp('library'), data)


# Families whose images stand alone


def test_autoencoder_tiny_equals_the_library(library):
    model = library.model('autoencoder-tiny')
    tokenizer = Tokenizer(str(library.calibrated('autoencoder-tiny')), threads=1)
    description = tokenizer.description
    assert (description.family, description.stride, description.channels) == (
        'autoencoder-tiny',
        8,
        4,
    )
    assert description.can_decode and description.image_size is None
    image = moving_pictures(1)[0]
    with torch.no_grad():
        raw = model.encode(to_pixels([image])).latents
        decoded = model.decode(raw).sample[0].clamp(-1, 1)
    latents = tokenizer.encode(image).copy()
    np.testing.assert_allclose(latents, normalised(raw[0], description), atol=2e-3)
    expected = ((decoded + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(tokenizer.decode(latents, 64, 96).astype(int) - expected).max() <= 1
    assert tokenizer.encode(image[:61, :90]).shape == (8, 12, 4)
    tokenizer.close()


@pytest.mark.parametrize('name', VITS)
def test_patch_features_equal_the_library(library, name):
    model = library.model(name)
    tokenizer = Tokenizer(str(library.calibrated(name)), threads=1)
    description = tokenizer.description
    assert description.image_size == SIZE and description.receptive_field == 0
    assert not description.can_decode and description.stride == 14
    image = moving_pictures(1, *SIZE)[0]
    mean, std = {
        'dinov2': ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        'dinov2-registers': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }.get(name, ((0.5,) * 3, (0.5,) * 3))
    pixels = (torch.from_numpy(image).double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    pixels = pixels.float().permute(2, 0, 1)[None]
    vision = model.vision_model if name == 'siglip-with-text' else model
    options = {'interpolate_pos_encoding': True} if name.startswith('siglip') else {}
    with torch.no_grad():
        tokens = vision(pixel_values=pixels, **options).last_hidden_state[0]
    grid = tokens[-4 * 6 :].reshape(4, 6, 16).permute(2, 0, 1)
    np.testing.assert_allclose(tokenizer.encode(image), normalised(grid, description), atol=2e-3)
    with pytest.raises(ModelError, match=r'64x56 pixels; allowed by .*84x56'):
        tokenizer.encode(image[:, :64])
    tokenizer.close()


def test_sender_resizes_to_the_one_size_that_a_vit_takes(library):
    tokenizer = Tokenizer(str(library.calibrated('siglip')), threads=1)
    sender = Sender(tokenizer, SelectionConfig(tau=0.1, refresh_period=0))
    receiver = Receiver(tokenizer.description.id, 16)
    for number, image in enumerate(moving_pictures(3, 120, 160)):
        resized = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
        truth = tokenizer.encode(resized).copy()
        packet = sender.send(image, number, '')
        receiver.apply(packet)
        assert (packet.image_height, packet.image_width) == SIZE
        assert np.abs(receiver.held - truth).mean(axis=2).max() < 0.1
    with pytest.raises(ValueError, match=r'input_height is 64 .*allowed by .*56 and 84'):
        Sender(tokenizer, SelectionConfig(), 64, 64)
    Sender(tokenizer, SelectionConfig(), *SIZE)
    tokenizer.close()


def test_vit_size_is_that_of_its_preprocessor_unless_given(library):
    frozen = load_family(library.source('dinov2'), 'dinov2')
    assert frozen.image_size == (42, 42)
    assert load_family(library.source('siglip'), 'siglip').image_size == (28, 28)
    again = load_family(library.calibrated('dinov2'), 'dinov2')
    assert again.image_size == SIZE
    with pytest.raises(ModelError, match=r'image size is 50x56; allowed: .*patch size 14'):
        load_family(library.source('dinov2'), 'dinov2', (50, 56))


@pytest.mark.parametrize('name', ['dinov2', 'siglip'])
def test_policy_reuses_what_it_computed_of_patch_features(library, name):
    """Attention takes a change everywhere; the threshold leaves what it hardly changed."""
    tokenizer = Tokenizer(str(library.calibrated(name)), threads=1)
    sender = Sender(tokenizer, SelectionConfig(tau=0.3, refresh_period=0))
    stream = LatentStream(mode='hold')
    cache, compared = TokenCache((2, 2)), TokenCache((2, 2), tolerance=0.3)
    shares = []
    for number, image in enumerate(moving_pictures(8, *SIZE)):
        stream.push(sender.send(image, number, ''))
        latents = stream.latents()
        blocks = latents.values.reshape(2, 2, 3, 2, 16).swapaxes(1, 2).reshape(6, 4, 16)
        update = cache.update(latents)
        kept = cache.write('features', update.tokens)
        np.testing.assert_array_equal(kept, blocks.reshape(6, -1))
        shares.append(update.share)
        near = compared.write('features', compared.update(latents).tokens)
        assert np.abs(near.reshape(6, 4, 16) - blocks).mean(axis=2).max() <= 0.3 * (1 + 1e-5)
    assert shares[0] == 1 and 0 < np.mean(shares[1:]) < 1
    tokenizer.close()


# Families with a memory


def library_latents(library, name, images):
    """Whole clip through the library's own encoder, ``[T', C, H, W]``."""
    with torch.no_grad():
        clip = to_pixels(images).transpose(0, 1)[None]
        return library.model(name).encode(clip).latent_dist.mode()[0].transpose(0, 1)


@pytest.mark.parametrize('name', list(CAUSAL))
def test_stream_equals_the_whole_clip(library, name):
    tokenizer = Tokenizer(str(library.calibrated(name)), threads=1)
    description = tokenizer.description
    stride = description.temporal_stride
    assert stride == (8 if name == 'cosmos-8' else 4)
    assert not description.can_decode and description.receptive_field == 0
    assert description.stride == (16 if name == 'wan-2.2' else 8)
    images = moving_pictures(2 + 3 * stride)
    stream = tokenizer.stream()
    for start in (0, 1):
        clip = images[start : start + 1 + (3 - start) * stride]
        whole = library_latents(library, name, clip)
        buffer, found = np.empty_like(clip[0]), []
        for image in clip:
            buffer[:] = image
            found.append(stream.encode(buffer))
        complete = [number for number, grid in enumerate(found) if grid is not None]
        assert complete == list(range(0, len(clip), stride))
        for number, raw in zip(complete, whole, strict=True):
            np.testing.assert_allclose(
                found[number], normalised(raw, description), atol=2e-4, rtol=1e-4
            )
        stream.reset()
    assert np.abs(found[0] - found[complete[1]]).max() > 0.01
    tokenizer.close()


@pytest.mark.parametrize('name', ['wan', 'cosmos'])
def test_streams_do_not_disturb_each_other(library, name):
    tokenizer = Tokenizer(str(library.calibrated(name)), threads=1)
    clips = [moving_pictures(9, seed=seed) for seed in (0, 1)]
    alone = []
    for clip in clips:
        stream = tokenizer.stream()
        alone.append([stream.encode(image) for image in clip])
    streams = [tokenizer.stream(), tokenizer.stream()]
    for number in range(9):
        for stream, clip, expected in zip(streams, clips, alone):
            found = stream.encode(clip[number])
            assert (found is None) == (expected[number] is None)
            if found is not None:
                np.testing.assert_array_equal(found, expected[number])
    before = streams[0].encode(clips[0][0][:40])
    assert before is not None, 'another size begins a new clip'
    with pytest.raises(ModelError, match=r'stream\(\)'):
        tokenizer.encode(clips[0][0])
    tokenizer.close()


@pytest.mark.parametrize('name', ['wan', 'cosmos'])
def test_step_leaves_the_old_state_as_it_was(library, name):
    frozen = load_family(library.calibrated(name), name)
    pixels = to_pixels(moving_pictures(9)).transpose(0, 1)[None]
    with torch.no_grad():
        _, state = frozen.model.step(pixels[:, :, :1], None)
        first, _ = frozen.model.step(pixels[:, :, 1:5], state)
        frozen.model.step(pixels[:, :, 5:9], state)
        again, _ = frozen.model.step(pixels[:, :, 1:5], state)
    assert torch.equal(first, again)


def test_attention_of_a_long_cosmos_stream_looks_back_a_bounded_way(library, monkeypatch):
    monkeypatch.setattr('adaptok_ros.networks.causal.ATTENTION_CONTEXT', 3)
    frozen = load_family(library.calibrated('cosmos'), 'cosmos')
    images = moving_pictures(33, 32, 32)
    pixels = to_pixels(images).transpose(0, 1)[None]
    sizes, found, state = [], [], None
    with torch.no_grad():
        for end in range(1, 34, 4):
            group = pixels[:, :, max(0, end - 4) : end]
            latents, state = frozen.model.step(group, state)
            found.append(latents[0])
            sizes.append(sum(tensor.numel() for tensor in state.cache.values()))
    assert sizes[-1] == sizes[-2] == sizes[4] > sizes[1]
    whole = library_latents(library, 'cosmos', images)
    errors = [float((a - b).abs().max()) for a, b in zip(found, whole)]
    assert max(errors[:3]) < 1e-4 and max(errors[5:]) > 1e-4


@pytest.mark.parametrize('name', ['wan', 'cosmos'])
def test_sender_over_a_causal_tokenizer(library, name):
    tokenizer = Tokenizer(str(library.calibrated(name)), threads=1)
    sender = Sender(tokenizer, SelectionConfig(tau=0.4, refresh_period=0))
    receiver = Receiver(tokenizer.description.id, 4)
    images = moving_pictures(9)
    truth = library_latents(library, name, images)
    packets = [sender.send(image, number, 'left') for number, image in enumerate(images)]
    sent = [packet for packet in packets if packet is not None]
    assert [packet.stamp for packet in sent] == [0, 4, 8]
    assert [packet.sequence for packet in sent] == [0, 1, 2] and sent[0].keyframe
    for packet, raw in zip(sent, truth, strict=True):
        receiver.apply(packet)
        error = np.abs(receiver.held - normalised(raw, tokenizer.description)).mean(axis=2)
        assert error.max() < 0.4 * (1 + 1e-3)
    assert receiver.status is Status.OK and not all(packet.keyframe for packet in sent)
    sender.send(images[0], 9, 'left')
    sender.reset()
    after = sender.send(images[0], 10, 'left')
    assert after is not None and after.keyframe and after.epoch != sent[0].epoch
    assert after.data.tobytes() == sent[0].data.tobytes(), 'reset forgets earlier images'
    sender.send(images[0], 11, 'left')
    other = sender.send(images[0][:40], 12, 'left')
    assert other is not None and other.epoch != after.epoch and other.grid_height == 5
    tokenizer.close()


def test_lit_is_trained_on_the_grids_of_a_causal_tokenizer(library):
    tokenizer = Tokenizer(str(library.calibrated('wan')), threads=1)
    frames = list(moving_pictures(9))
    stream = tokenizer.stream()
    grids, again = (encode_all(frames, stream) for _ in range(2))
    assert grids.shape == (3, 8, 12, 4)
    np.testing.assert_array_equal(grids, again)
    tokenizer.close()


def test_causal_tokenizer_refuses_an_engine_of_graphs(library):
    folder = str(library.calibrated('wan'))
    with pytest.raises(EngineError, match=r"'onnxruntime'; allowed: auto"):
        Tokenizer(folder, 'onnxruntime').load()


# TorchScript


class Encoder(torch.nn.Module):
    """As Cosmos' image encoders are: a tuple whose first is the latent."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, pixels):
        return (self.layer(pixels), torch.zeros(1))


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.ConvTranspose2d(6, 3, 8, stride=8)

    def forward(self, latents):
        return self.layer(latents)


class IntegerEncoder(torch.nn.Module):
    def forward(self, pixels):
        return (pixels[:, :1] > 0).int()


class VideoEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv3d(3, 4, (1, 8, 8), stride=(1, 8, 8))

    def forward(self, pixels):
        return self.layer(pixels.reshape(1, 3, -1, 16, 16))


@pytest.fixture
def torchscript(tmp_path):
    folder = tmp_path / 'CI8x8'
    folder.mkdir()
    pixels, latents = torch.zeros(1, 3, 16, 16), torch.zeros(1, 6, 2, 2)
    torch.jit.trace(Encoder().eval(), pixels).save(str(folder / 'encoder.jit'))
    torch.jit.trace(Decoder().eval(), latents).save(str(folder / 'decoder.jit'))
    return folder


def test_torchscript(torchscript, data, tmp_path):
    output = tmp_path / 'out'
    description = calibrate(str(torchscript / 'encoder.jit'), [data], output, frames=4)
    assert (description.family, description.stride, description.channels) == (
        'cosmos-torchscript',
        8,
        6,
    )
    tokenizer = Tokenizer(str(output), threads=1)
    image = moving_pictures(1)[0]
    with torch.no_grad():
        raw = Encoder()(to_pixels([image]))[0]
        rgb = Decoder()(raw)[0].clamp(-1, 1)
    latents = tokenizer.encode(image).copy()
    np.testing.assert_allclose(latents, normalised(raw[0], description), atol=1e-4)
    expected = ((rgb + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(tokenizer.decode(latents, 64, 96) - expected).max() <= 0.51
    assert tokenizer.load_encoder().backend == 'torch'
    (output / 'encoder.jit').write_bytes(b'other')
    with pytest.raises(ModelError, match=r'encoder\.jit.*SHA-256'):
        Tokenizer(str(output))


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (IntegerEncoder, r'torch\.int32.*continuous'),
        (VideoEncoder, r'shape \(1, 4, 64, 2, 2\); allowed'),
    ],
)
def test_torchscript_of_another_kind(kind, message, data, tmp_path):
    path = tmp_path / 'encoder.jit'
    torch.jit.trace(kind().eval(), torch.zeros(1, 3, 16, 16)).save(str(path))
    with pytest.raises(ModelError, match=message):
        calibrate(str(path), [data], tmp_path / 'out', frames=4)
    path.write_bytes(b'nothing of the kind')
    with pytest.raises(ModelError, match='not a TorchScript file'):
        calibrate(str(path), [data], tmp_path / 'out', frames=4)


# Our own, and the TAESD family with real weights


def raw_latents(name, image):
    tokenizer = Tokenizer(str(name), threads=1)
    description = tokenizer.description
    raw = description.normalisation.restore(tokenizer.encode(image))
    tokenizer.close()
    return raw


def test_own_tokenizer_is_measured_again(data, tmp_path):
    first = calibrate('adaptok-tiny', [data], tmp_path / 'a', frames=8, name='ours')
    second = calibrate(str(tmp_path / 'a'), [data], tmp_path / 'b', frames=8, name='ours')
    shipped = Tokenizer('adaptok-tiny').description
    assert first == second, 'the same data give the same tokenizer'
    assert first.id != shipped.id and first.id.startswith('ours@')
    other = calibrate('adaptok-tiny', [data / '000.png'], tmp_path / 'c', name='ours')
    assert other.id != first.id, 'latents normalised otherwise are not the same tokens'
    assert (first.stride, first.channels, first.receptive_field) == (8, 16, 72)
    image = moving_pictures(1)[0]
    np.testing.assert_allclose(
        raw_latents(tmp_path / 'a', image), raw_latents('adaptok-tiny', image), atol=1e-2
    )
    tokenizer = Tokenizer(str(tmp_path / 'a'), threads=1)
    values = np.stack(
        [tokenizer.encode(frame[0]).copy() for frame in sample_images([data], 8, 1)]
    ).reshape(-1, 16)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
    assert np.square(values).mean() == pytest.approx(1, abs=1e-3)
    assert not (tmp_path / 'a' / 'lit.json').exists()


@pytest.mark.skipif(not list(TAEF2.glob('*.safetensors')), reason=f'no TAEF2 weights in {TAEF2}')
def test_real_taef2_reconstructs_a_photograph(tmp_path):
    photos = sorted(SHARED.glob('images/*/*.jpg'))[:2]
    output = tmp_path / 'taef2'
    description = calibrate(str(TAEF2), photos, output, frames=2, image_size=(96, 128))
    assert (description.family, description.channels, description.stride) == ('taesd', 32, 8)
    assert description.receptive_field == 0, 'its group normalisation sees the whole image'
    assert not description.normalisation.diagonal
    tokenizer = Tokenizer(str(output), threads=1)
    errors = []
    for path in photos:
        photo = cv2.imread(str(path))[:, :, ::-1]
        image = cv2.resize(photo, (128, 96), interpolation=cv2.INTER_AREA)
        decoded = tokenizer.decode(tokenizer.encode(image), 96, 128)
        errors.append(np.mean((decoded.astype(float) - image) ** 2))
    # 27.6 dB; with the normalisation in 8 groups 25.7 dB, in 2 groups 24.1 dB.
    assert -10 * np.log10(np.mean(errors) / 255**2) > 26.5
    tokenizer.close()


@pytest.mark.parametrize('pool', [False, True])
def test_taesd_layout(data, tmp_path, pool):
    torch.manual_seed(0)
    model = Taesd(4, 8, pool)
    source = tmp_path / 'source'
    source.mkdir()
    for half in ('encoder', 'decoder'):
        weights = {k: v.half() for k, v in getattr(model, half).state_dict().items()}
        save_file(weights, source / f'tiny_{half}.safetensors')
    description = calibrate(str(source), [data], tmp_path / 'out', frames=2)
    assert (description.family, description.channels) == ('taesd', 4)
    assert (description.receptive_field == 0) == pool
    again = calibrate(str(tmp_path / 'out'), [data], tmp_path / 'again', frames=2)
    assert again.normalisation == description.normalisation
    (source / 'tiny_decoder.safetensors').unlink()
    with pytest.raises(ModelError, match=r'0 files match \*decoder'):
        calibrate(str(source), [data], tmp_path / 'none', frames=2)


@pytest.mark.parametrize(
    'make',
    [
        lambda: TaesdModel(Taesd(4, 8, False)),
        lambda: AutoencoderTinyModel(
            diffusers.AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 2),
                decoder_block_out_channels=(8, 8),
                num_decoder_blocks=(1, 1),
            )
        ),
    ],
)
def test_receptive_field_holds_what_a_latent_depends_on(make):
    torch.manual_seed(0)
    model = make().double()
    field = measure_receptive_field(model)
    with torch.no_grad():
        side = 2 * field + 64 - 2 * field % 64
        pixels = torch.rand(1, 3, 16, side, dtype=torch.float64) * 2 - 1
        before = model.encode(pixels)
        stride = side // before.shape[3]
        column = before.shape[3] // 2
        left = column * stride - (field - stride) // 2
        reaching = []
        for at in range(0, side, 11):
            changed = pixels.clone()
            changed[..., at] += 0.5
            if not torch.equal(model.encode(changed)[..., column], before[..., column]):
                reaching.append(at)
    assert left <= min(reaching) and max(reaching) < left + field
    assert max(reaching) - min(reaching) > field // 3


# The measurement


def test_statistics_are_those_of_all_values_at_once():
    generator = np.random.default_rng(0)
    parts = [1e4 + generator.normal(size=(n, 3, 2)).astype(np.float32) for n in (1, 7, 40)]
    statistics = ChannelStatistics()
    for part in parts:
        statistics.add(part)
    values = np.concatenate([part.reshape(-1, 2) for part in parts]).astype(np.float64)
    mean, std = statistics.result()
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-9)


@pytest.mark.parametrize(('value', 'name'), [(0.5, 'std'), (np.nan, 'mean'), (np.inf, 'mean')])
def test_channel_that_cannot_be_normalised(value, name):
    statistics = ChannelStatistics()
    with np.errstate(invalid='ignore'):
        statistics.add(np.stack([np.arange(4.0), np.full(4, value)], axis=1))
        with pytest.raises(ModelError, match=f'{name} of channel 1 is .*allowed'):
            statistics.result()


def test_sample_is_spread_and_repeatable(data, tmp_path):
    for name in ('a', 'b/c', 'b/.hidden'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('a/1.png', 'b/c/2.JPG', 'b/c/notes.txt'):
        cv2.imwrite(str(tmp_path / name), moving_pictures(1)[0]) if 'txt' not in name else (
            tmp_path / name
        ).write_text('')
    (tmp_path / 'b' / '3.mp4').write_bytes(b'')
    names = [path.relative_to(tmp_path).as_posix() for path in find_paths([tmp_path])]
    assert names == ['a', 'b/3.mp4', 'b/c']
    first = [group[0].tobytes() for group in sample_images([data], 5, 1)]
    assert first == [group[0].tobytes() for group in sample_images([data], 5, 1)]
    everything = [group[0].tobytes() for group in sample_images([data], 99, 1)]
    assert len(first) == 5 and len(everything) == 33
    assert [everything.index(image) for image in first] == [0, 6, 12, 18, 24]
    (group,) = sample_images([data / '004.png'], 9, 9)
    assert [image.tobytes() for image in group] == [everything[4]], 'one image is no sequence'
    (clip,) = sample_images([data], 9, 9)
    assert [image.tobytes() for image in clip] == everything[:9]


@pytest.mark.parametrize('name', ['autoencoder-tiny', 'dinov2', 'siglip-with-text', 'wan'])
def test_calibrated_folder_can_be_calibrated_again(library, data, tmp_path, name):
    folder = library.calibrated(name)
    before = Tokenizer(str(folder)).description
    after = calibrate(str(folder), [data], tmp_path / 'again', frames=29, name=folder.name)
    assert (after.image_size, after.family) == (before.image_size, before.family)
    found, expected = after.normalisation, before.normalisation
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.whitening, expected.whitening, rtol=1e-4, atol=1e-6)


# The command


def test_command_from_source_to_latents(data, tmp_path):
    output = tmp_path / 'tiny-decoder'
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'adaptok_ros',
            'calibrate',
            'adaptok-tiny',
            '--data',
            str(data),
            '--output',
            str(output),
            '--frames',
            '4',
            '--image-size',
            '48x64',
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer(str(output), threads=1)
    assert tokenizer.description.id in done.stdout
    assert tokenizer.encode(moving_pictures(1)[0]).shape == (8, 12, 16)
    assert sorted(os.listdir(tmp_path)) == ['tiny-decoder']
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1
    with pytest.raises(ModelError, match='output exists; allowed: a folder that does not'):
        calibrate('adaptok-tiny', [data], output)


@pytest.mark.parametrize(
    ('module', 'name'),
    [('diffusers', 'wan'), ('diffusers', 'autoencoder-tiny'), ('transformers', 'dinov2')],
)
def test_missing_library_is_one_clear_error(library, data, tmp_path, monkeypatch, module, name):
    source = str(library.source(name))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"needs {module}: pip install 'adaptok_ros\[tokeniz"):
        calibrate(source, [data], tmp_path / 'out')


def test_command_without_torch_is_one_line(tmp_path):
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        'from adaptok_ros.cli import main\nsys.exit(main(sys.argv[1:]))'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            'calibrate',
            'x',
            '--data',
            'y',
            '--output',
            str(tmp_path / 'out'),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "needs torch: pip install 'adaptok_ros[tokenizers]'" in line
    assert not os.listdir(tmp_path)


def test_core_needs_no_torch():
    code = (
        'import sys\nsys.modules.update(torch=None, diffusers=None, transformers=None)\n'
        'import adaptok_ros.cli, adaptok_ros.sending.sender\n'
        "adaptok_ros.Tokenizer('adaptok-tiny').load_encoder()"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=100)


def test_graphs_of_a_foreign_tokenizer_need_no_torch(library):
    folder = library.calibrated('dinov2')
    code = (
        'import sys\nsys.modules.update(torch=None, diffusers=None, transformers=None)\n'
        'import numpy, adaptok_ros\n'
        f'image = numpy.zeros(({SIZE[0]}, {SIZE[1]}, 3), "uint8")\n'
        f'print(adaptok_ros.Tokenizer({str(folder)!r}).encode(image).shape)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], check=True, timeout=100, capture_output=True, text=True
    )
    assert done.stdout.strip() == '(4, 6, 16)'


# What is refused


def edit_config(**fields):
    def edit(folder):
        path = folder / 'config.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def edit_weights(change):
    def edit(folder):
        path = next(folder.glob('*.safetensors'))
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return edit


def truncate(folder):
    path = next(folder.glob('*.safetensors'))
    path.write_bytes(path.read_bytes()[:-100])


def pickle_weights(suffix):
    def edit(folder):
        path = next(folder.glob('*.safetensors'))
        path.rename(folder / f'pytorch_model{suffix}')

    return edit


BAD_SOURCES = {
    'a weight missing': (
        'autoencoder-tiny',
        edit_weights(lambda w: w.pop('encoder.layers.0.weight')),
        r'1 missing \(encoder\.layers\.0\.weight',
    ),
    'a weight too many': (
        'wan',
        edit_weights(lambda w: w.update(more=torch.zeros(1))),
        r'1 unexpected \(more',
    ),
    'a weight of another shape': (
        'cosmos',
        edit_weights(lambda w: w.update({'quant_conv.bias': torch.zeros(7)})),
        r'quant_conv\.bias is \(7,\)',
    ),
    'a feature missing': (
        'dinov2',
        edit_weights(lambda w: w.pop('layernorm.weight')),
        'another architecture: 1 missing',
    ),
    'a feature of another shape': (
        'siglip',
        edit_weights(
            lambda w: w.update(
                {next(k for k in w if k.endswith('post_layernorm.bias')): torch.zeros(3)}
            )
        ),
        'another shape',
    ),
    'truncated weights': ('autoencoder-tiny', truncate, 'not a whole safetensors file'),
    'truncated features': ('siglip', truncate, 'not a whole safetensors file'),
    'no weights': (
        'wan',
        lambda folder: next(folder.glob('*.safetensors')).unlink(),
        'no weights; looked for',
    ),
    'pickled weights': ('wan', pickle_weights('.bin'), r'weights are \.bin.*allowed: \.safeten'),
    'pickled features': ('dinov2', pickle_weights('.pt'), r'weights are \.pt'),
    'a checkpoint': ('cosmos', pickle_weights('.ckpt'), r'weights are \.ckpt'),
    'a config of nothing known': (
        'wan',
        edit_config(_class_name='AutoencoderKLMochi'),
        "_class_name is 'AutoencoderKLMochi'.*AutoencoderKLWan",
    ),
    'a config of no model': ('wan', edit_config(temperal_downsample=7), 'not a configuration'),
    'another temporal stride': (
        'wan',
        edit_config(temperal_downsample=[True, True, True]),
        'architecture|two true',
    ),
    'a config that is no JSON': (
        'wan',
        lambda folder: (folder / 'config.json').write_text('{'),
        'not a JSON file',
    ),
    'a bad preprocessor': (
        'dinov2',
        lambda folder: (folder / 'preprocessor_config.json').write_text(
            '{"image_std": [1, 1, 0]}'
        ),
        'image_std',
    ),
}


@pytest.mark.parametrize('case', BAD_SOURCES)
def test_bad_source_is_one_clear_error(library, data, tmp_path, case):
    name, damage, message = BAD_SOURCES[case]
    folder = tmp_path / 'source'
    folder.mkdir()
    for path in library.source(name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(ModelError, match=message):
        calibrate(str(folder), [data], tmp_path / 'out', frames=2)
    assert os.listdir(tmp_path) == ['source']


def test_source_that_is_nothing(library, data, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'model.ckpt').write_bytes(b'')
    cases = {
        str(tmp_path / 'empty'): 'tells the family; give --family',
        str(tmp_path / 'model.ckpt'): r'weights are \.ckpt',
        str(tmp_path / 'no-such'): 'allowed: a local path, or a hub id',
        '': 'allowed: a local path, or a hub id',
    }
    for source, message in cases.items():
        with pytest.raises(ModelError, match=message):
            calibrate(source, [data], tmp_path / 'out')
    with pytest.raises(ModelError, match=r"family is 'vqgan'; allowed: adaptok, taesd"):
        calibrate(str(library.source('wan')), [data], tmp_path / 'out', family='vqgan')
    with pytest.raises(ModelError, match=r"_class_name is 'AutoencoderKLWan'; family cosmos"):
        calibrate(str(library.source('wan')), [data], tmp_path / 'out', family='cosmos')
    with pytest.raises(ModelError, match=r'another architecture'):
        calibrate(str(library.source('wan')), [data], tmp_path / 'out', family='adaptok')


def test_values_that_do_not_fit(library, data, tmp_path):
    source, output = str(library.source('autoencoder-tiny')), tmp_path / 'out'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / '1.png').write_bytes(b'no image')
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    cases = [
        (FootageError, 'neither a video nor a', {'data': [tmp_path / 'empty']}),
        (FootageError, 'no-such: no such folder', {'data': [tmp_path / 'no-such']}),
        (FootageError, r'1\.png', {'data': [tmp_path / 'broken']}),
        (FootageError, r'broken\.mp4', {'data': [tmp_path / 'broken.mp4']}),
        (
            SettingError,
            'image size is 60x64; allowed: multiples of the stride 8',
            {'image_size': (60, 64)},
        ),
        (SettingError, 'frames is 0; allowed', {'frames': 0}),
        (SettingError, "device is 'tpu'; allowed: auto, cpu, cuda", {'device': 'tpu'}),
        (SettingError, "name is 'a@b'; allowed", {'name': 'a@b'}),
        (ModelError, 'folder that does not exist', {'output': tmp_path / 'no' / 'out'}),
    ]
    for kind, message, change in cases:
        with pytest.raises(kind, match=message):
            calibrate(**{'source': source, 'data': [data], 'output': output, **change})
    assert sorted(os.listdir(tmp_path)) == ['broken', 'broken.mp4', 'empty']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_cuda_where_there_is_none():
    with pytest.raises(SettingError, match="device is 'cuda'; allowed here: auto, cpu"):
        choose_device('cuda')
    assert choose_device() == 'cpu'


@pytest.mark.parametrize('error', [ExportError('differs'), OSError('disk full')])
def test_nothing_half_written_stays(library, data, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr('adaptok_ros.calibration.calibrate.write_description', fail)
    with pytest.raises(ModelError, match=f'cannot be written: {error}'):
        calibrate(str(library.source('autoencoder-tiny')), [data], tmp_path / 'out', frames=2)
    assert os.listdir(tmp_path) == []


BAD_FIELDS = {
    'unknown family': ({'family': 'vqgan'}, 'family is .*allowed'),
    'a graph family without its graph': ({'family': 'wan'}, r'does not list config\.json'),
    'no temporal stride': ({'temporal_stride': 0}, 'temporal_stride'),
    'one side': ({'image_size': 7}, 'bad or missing field'),
    'a size that the stride does not divide': ({'image_size': [60, 64]}, 'multiples'),
}


@pytest.mark.parametrize('case', BAD_FIELDS)
def test_bad_description(tmp_path, case):
    fields, message = BAD_FIELDS[case]
    for path in find_model('adaptok-tiny').iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edited = {**json.loads((tmp_path / 'tokenizer.json').read_text()), **fields}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(edited))
    with pytest.raises(ModelError, match=message):
        Tokenizer(str(tmp_path))


# The hub


def test_hub_downloads_the_files_of_one_folder_only(library, data, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    root = tmp_path / 'cache'
    (root / 'vae').mkdir(parents=True)
    for path in library.source('autoencoder-tiny').iterdir():
        (root / 'vae' / path.name).write_bytes(path.read_bytes())

    def list_files(self, repo):
        asked['repo'] = repo
        names = ['config.json', 'diffusion_pytorch_model.safetensors', 'model.bin']
        return ['model.safetensors', *(f'vae/{name}' for name in names), 'vae/x/config.json']

    def download(repo, allow_patterns):
        asked['files'] = allow_patterns
        return str(root)

    monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', list_files)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    description = calibrate('owner/name/vae', [data], tmp_path / 'out', frames=2)
    assert description.family == 'autoencoder-tiny' and asked['repo'] == 'owner/name'
    assert asked['files'] == ['vae/config.json', 'vae/diffusion_pytorch_model.safetensors']
    with pytest.raises(ModelError, match='no file on the hub'):
        calibrate('owner/name/none', [data], tmp_path / 'none')


class TransportError(Exception):
    """As the HTTP libraries behind the hub raise: none of Python's own."""


@pytest.mark.parametrize(
    'error',
    [TransportError('no route'), ValueError('bad id'), RuntimeError('gated'), OSError('404')],
)
def test_hub_that_cannot_provide(data, tmp_path, monkeypatch, error):
    import huggingface_hub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', fail)
    with pytest.raises(ModelError, match=f'owner/name: no such local path.*{error}'):
        find_source('owner/name', ('.json',))
