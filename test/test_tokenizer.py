"""The tokenizer as it runs: sizes, padding, its description, engines; and the sender on it."""

import dataclasses
import hashlib
import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import latent_frames, sent_mask

from adaptok_ros.arrays import LARGEST_SIDE, SMALLEST_SIDE
from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import BACKENDS, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, ModelError, find_model, shipped_models
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.packet import Payload, check
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.path import Resizer
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = DEFAULT_TOKENIZER
STRIDE = 8
MISSING = [name for name in ('torch', 'safetensors') if importlib.util.find_spec(name) is None]
needs_torch = pytest.mark.skipif(
    bool(MISSING), reason=f'not importable: {", ".join(MISSING)} (the training extra)'
)


def picture(height, width, seed=0):
    """Low and high frequencies in every channel, nothing symmetric."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    blocks = np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width]
    noise = generator.integers(-30, 31, (height, width, 3))
    return np.clip(blocks + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def tokenizer():
    tokenizer = Tokenizer(MODEL, threads=1)
    yield tokenizer
    tokenizer.close()


# Sizes and padding


SIZES = [(32, 32), (33, 32), (32, 39), (41, 47), (64, 33), (97, 65), (8, 8), (9, 71)]


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_grid_covers_the_image(tokenizer, height, width):
    latents = tokenizer.encode(picture(height, width))
    grid = (-(-height // STRIDE), -(-width // STRIDE))
    assert tokenizer.description.stride == STRIDE
    assert tokenizer.description.grid(height, width) == grid
    assert latents.shape == (*grid, tokenizer.description.channels)
    assert latents.dtype == np.float32 and np.isfinite(latents).all()


@settings(deadline=None, max_examples=25)
@given(height=st.integers(32, 90), width=st.integers(32, 90), seed=st.integers(0, 99))
def test_odd_sizes_are_padded_by_repeating_the_edge(tokenizer, height, width, seed):
    image = picture(height, width, seed)
    rows, columns = tokenizer.description.grid(height, width)
    padding = ((0, STRIDE * rows - height), (0, STRIDE * columns - width), (0, 0))
    whole = tokenizer.encode(np.pad(image, padding, mode='edge')).copy()
    assert tokenizer.encode(image).tobytes() == whole.tobytes()


def test_one_image_leaves_nothing_behind_for_the_next(tokenizer):
    sizes = [(41, 47), (33, 90), (41, 47), (48, 48), (42, 46), (41, 47)]
    fresh = {}
    for height, width in set(sizes):
        alone = Tokenizer(MODEL, threads=1)
        fresh[height, width] = alone.encode(picture(height, width, height)).tobytes()
        alone.close()
    for height, width in sizes:
        tokenizer.encode(255 - picture(height, width, height))
        assert tokenizer.encode(picture(height, width, height)).tobytes() == fresh[height, width]


def views_of(image):
    flipped = np.ascontiguousarray(image[:, :, ::-1])
    wide = np.zeros((image.shape[0], image.shape[1] + 5, 3), np.uint8)
    wide[:, 2:-3] = image
    readonly = image.copy()
    readonly.flags.writeable = False
    return {
        'channels reversed': flipped[:, :, ::-1],
        'rows with a step': wide[:, 2:-3],
        'read only': readonly,
        'Fortran order': np.asfortranarray(image),
    }


@pytest.mark.parametrize('size', [(40, 48), (41, 47)])
@pytest.mark.parametrize('view', list(views_of(np.zeros((8, 8, 3), np.uint8))))
def test_layout_of_the_image_does_not_matter(tokenizer, size, view):
    image = picture(*size)
    expected = tokenizer.encode(image).tobytes()
    before = image.tobytes()
    assert tokenizer.encode(views_of(image)[view]).tobytes() == expected
    assert image.tobytes() == before


def test_latents_depend_only_on_the_pixels_near_them(tokenizer):
    field = tokenizer.description.receptive_field
    size = 2 * field + 5 * STRIDE
    reach = (field - STRIDE) // 2
    assert field % STRIDE == 0 and reach >= 0
    image = picture(size, size)
    row, column = size // STRIDE // 2 - 1, size // STRIDE // 2 + 2
    before = tokenizer.encode(image)[row, column].copy()
    top, left = row * STRIDE - reach, column * STRIDE - reach
    outside = 255 - image
    outside[top : top + field, left : left + field] = image[top : top + field, left : left + field]
    assert (outside != image).mean() > 0.5
    np.testing.assert_allclose(tokenizer.encode(outside)[row, column], before, atol=1e-5)
    inside = image.copy()
    patch = np.s_[row * STRIDE : (row + 1) * STRIDE, column * STRIDE : (column + 1) * STRIDE]
    inside[patch] = 255 - inside[patch]
    assert np.abs(tokenizer.encode(inside)[row, column] - before).max() > 1e-3


def test_change_reaches_no_position_beyond_the_field(tokenizer):
    """The other way round: what a patch of pixels can make the sender send."""
    image = picture(200, 200)
    before = tokenizer.encode(image).copy()
    image[96:104, 104:112] = 255 - image[96:104, 104:112]
    moved = np.argwhere(np.abs(tokenizer.encode(image) - before).max(axis=2) > 1e-5)
    reach = (tokenizer.description.receptive_field // STRIDE - 1) // 2
    assert len(moved) and np.abs(moved - (12, 13)).max() <= reach


@needs_torch
@pytest.mark.parametrize('size', [(64, 96), (41, 47)])
def test_encoder_is_the_torch_model_of_its_weights(tokenizer, size):
    import torch
    from safetensors.torch import load_file

    from adaptok_ros.networks.tiny import TinyAutoencoder

    model = TinyAutoencoder().eval()
    model.load_state_dict(load_file(find_model(MODEL) / 'tokenizer.safetensors'))
    image = picture(*size)
    padding = [(0, -side % STRIDE) for side in size]
    pixels = torch.from_numpy(np.pad(image, (*padding, (0, 0)), mode='edge'))
    with torch.no_grad():
        raw = model.encode(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1)
    description = tokenizer.description
    expected = description.normalisation.normalise(raw[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(tokenizer.encode(image), expected, atol=2e-3)


@needs_torch
def test_decoder_is_the_torch_model_of_its_weights(tokenizer):
    import torch
    from safetensors.torch import load_file

    from adaptok_ros.networks.tiny import TinyAutoencoder

    model = TinyAutoencoder().eval()
    model.load_state_dict(load_file(find_model(MODEL) / 'tokenizer.safetensors'))
    description = tokenizer.description
    latents = latent_frames(0, 1, (5, 6, description.channels))[0]
    raw = description.normalisation.restore(latents)
    with torch.no_grad():
        rgb = model.decode(torch.from_numpy(raw).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    expected = ((rgb.clamp(-1, 1) + 1) * 127.5).round().numpy()
    found = tokenizer.decode(latents, 37, 43)
    assert found.shape == (37, 43, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected[:37, :43]).max() <= 1


def test_closed_tokenizer_opens_again():
    tokenizer = Tokenizer(MODEL, threads=1)
    expected = tokenizer.encode(picture(32, 40)).tobytes()
    tokenizer.close()
    tokenizer.close()
    assert tokenizer.encode(picture(32, 40)).tobytes() == expected
    tokenizer.close()


# Descriptions


FILES = {'tokenizer.safetensors': b'weights', 'encoder.onnx': b'graph', 'decoder.onnx': b'other'}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    describe(tmp_path)
    return tmp_path


def describe(folder, **changes):
    fields = {
        'name': 'three',
        'stride': 4,
        'channels': 3,
        'mean': [0.5, -1, 0],
        'whitening': [1, 0.5, 4],
        'receptive_field': 12,
        'files': {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        **changes,
    }
    kept = {key: value for key, value in fields.items() if value is not ...}
    (folder / 'tokenizer.json').write_text(json.dumps(kept))


def test_description_as_written(folder):
    description = TokenizerDescription.load(folder)
    assert description == TokenizerDescription(
        id=f'three@{hashlib.sha256(b"weights").hexdigest()[:12]}',
        stride=4,
        channels=3,
        normalisation=Normalisation((0.5, -1.0, 0.0), (1.0, 0.5, 4.0)),
        receptive_field=12,
        can_decode=True,
    )
    assert description.grid(8, 9) == (2, 3)


def hashes(**changes):
    """The files of a description, some of them left out (None) or changed."""
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    listed.update({name.replace('_', '.'): value for name, value in changes.items()})
    return {name: value for name, value in listed.items() if value is not None}


BAD_DESCRIPTIONS = {
    'no name': {'name': ...},
    'no stride': {'stride': ...},
    'stride 0': {'stride': 0},
    'negative stride': {'stride': -8},
    'stride in words': {'stride': 'eight'},
    'infinite stride': {'stride': float('inf')},
    'no number of channels': {'channels': ...},
    'no channels': {'channels': 0, 'mean': [], 'whitening': []},
    'too many channels': {'channels': 4},
    'no mean': {'mean': ...},
    'a mean too few': {'mean': [0, 0]},
    'one mean': {'mean': 0},
    'null among the means': {'mean': [0, 0, None]},
    'NaN among the means': {'mean': [0, 0, float('nan')]},
    'no whitening': {'whitening': ...},
    'a factor too many': {'whitening': [1, 1, 1, 1]},
    'factor 0': {'whitening': [1, 1, 0]},
    'negative factor': {'whitening': [1, 1, -1]},
    'NaN as factor': {'whitening': [1, 1, float('nan')]},
    'infinite factor': {'whitening': [1, 1, float('inf')]},
    'a matrix that does not lead back': {'whitening': [1, 0, 0, 0, 1, 0, 1, 1, 0]},
    'no receptive field': {'receptive_field': ...},
    'negative receptive field': {'receptive_field': -1},
    'no files': {'files': ...},
    'a list of files': {'files': []},
    'no file': {'files': {}},
    'weights not listed': {'files': hashes(tokenizer_safetensors=None)},
    'encoder not listed': {'files': hashes(encoder_onnx=None)},
    'encoder with a number as hash': {'files': hashes(encoder_onnx=7)},
    'encoder with another hash': {'files': hashes(encoder_onnx=64 * '0')},
    'a file that is missing': {'files': hashes(other_onnx=64 * '0')},
    'a file without name': {'files': {**hashes(), '': 64 * '0'}},
}


@pytest.mark.parametrize('case', BAD_DESCRIPTIONS)
def test_bad_description_is_one_clear_error(folder, case):
    describe(folder, **BAD_DESCRIPTIONS[case])
    with pytest.raises(ModelError, match=str(folder)):
        TokenizerDescription.load(folder)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'null', b'"files"', b'\xff\xfe\x00', b'3'])
def test_file_that_is_no_description(folder, content):
    (folder / 'tokenizer.json').write_bytes(content)
    with pytest.raises(ModelError, match=r'tokenizer\.json'):
        TokenizerDescription.load(folder)


@pytest.mark.parametrize('name', list(FILES))
def test_damaged_or_missing_file_is_named(folder, name):
    (folder / name).write_bytes(FILES[name] + b'!')
    with pytest.raises(ModelError, match=f'{name}.*SHA-256'):
        Tokenizer(str(folder))
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f'{name}.*missing'):
        Tokenizer(str(folder))


def test_tokenizer_without_decoder(folder):
    (folder / 'decoder.onnx').unlink()
    describe(folder, files=hashes(decoder_onnx=None))
    tokenizer = Tokenizer(str(folder))
    assert not tokenizer.description.can_decode
    with pytest.raises(ModelError, match='no decoder'):
        tokenizer.decode(np.zeros((1, 1, 3), np.float32), 4, 4)


@pytest.mark.parametrize('name', ['', 'no-such-model', '/no/such/folder'])
def test_unknown_model_names_the_shipped_ones(name):
    with pytest.raises(ModelError, match=MODEL):
        Tokenizer(name)


def test_shipped_models_are_whole():
    assert MODEL in shipped_models()
    for name in shipped_models():
        description = TokenizerDescription.load(find_model(name))
        assert description.id.startswith(f'{name}@')


# Engines


def test_unknown_backend_names_the_known_ones():
    for name in BACKENDS:
        with pytest.raises(EngineError, match=f"'abacus'.*{name}"):
            Tokenizer(MODEL, backend='abacus').load_encoder()


@pytest.mark.parametrize('content', [b'', b'not a graph', b'\x08' * 4096, None])
def test_file_that_is_no_model(tmp_path, content):
    path = tmp_path / 'encoder.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=str(path)):
        create_engine(GraphRequest(tmp_path, 'encoder', 'onnxruntime'))


def test_half_a_model_is_no_model(tmp_path):
    whole = (find_model(MODEL) / 'encoder.onnx').read_bytes()
    path = tmp_path / 'encoder.onnx'
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=str(path)):
        create_engine(GraphRequest(tmp_path, 'encoder', 'onnxruntime'))


def test_engine_gives_the_same_whatever_ran_before():
    """The first run of a shape, the next ones, and a return to it take different ways."""
    engine = create_engine(GraphRequest(find_model(MODEL), 'encoder', threads=1))
    assert engine.backend in BACKENDS and engine.device
    runner = Runner(engine)
    small, large = picture(32, 40)[None], picture(64, 48)[None]
    first = {}
    for image in (small, large):
        first[image.shape] = runner.run({'image': image})['latents'].tobytes()
    for image in (small, small, large, 255 - large, large, small):
        found = runner.run({'image': image})['latents'].tobytes()
        same = image is small or image is large
        assert (found == first[image.shape]) == same
    engine.close()


# The sender


def send_all(sender, images):
    first = sender.counters.sent
    return [sender.send(image, first + number, 'camera') for number, image in enumerate(images)]


@pytest.fixture
def sender(tokenizer):
    return Sender(tokenizer, SelectionConfig(tau=0.2, refresh_period=0))


def moving_pictures(count, height=64, width=80):
    """A square that moves over a background."""
    images = []
    for number in range(count):
        image = picture(height, width)
        image[20:36, 8 * number : 8 * number + 16] = (255, 0, 40)
        images.append(image)
    return images


@pytest.mark.parametrize('payload', list(Payload))
@pytest.mark.parametrize('ceiling', [0, 7])
def test_sender_keeps_the_contract(tokenizer, payload, ceiling):
    config = SelectionConfig(tau=0.2, payload=payload, max_tokens=ceiling, refresh_period=20)
    sender, receiver = Sender(tokenizer, config), Receiver(tokenizer.description.id)
    arrived = np.zeros((8, 10), bool)
    for number, image in enumerate(moving_pictures(8)):
        truth = tokenizer.encode(image).astype(np.float64)
        packet = sender.send(image, 1000 + number, 'left')
        check(packet)
        receiver.apply(packet)
        assert (packet.stamp, packet.frame_id) == (1000 + number, 'left')
        assert (packet.image_height, packet.image_width) == (64, 80)
        assert (packet.grid_height, packet.grid_width) == (8, 10)
        assert packet.sequence == number
        arrived |= receiver.kept
        error = np.abs(truth - receiver.held).mean(axis=2)
        within = (error < 0.2 * (1 + 1e-5)) & arrived
        assert (~(within | receiver.kept)).sum() <= packet.deferred
        assert packet.deferred == 0 or packet.kept == ceiling


def test_sender_sends_the_square_and_not_the_background(sender):
    packets = send_all(sender, [*moving_pictures(2), moving_pictures(2)[1]])
    assert packets[0].keyframe
    assert 0 < packets[1].kept < packets[0].kept
    assert packets[2].kept == 0


def test_packets_do_not_change_when_more_images_are_sent(tokenizer):
    for payload in Payload:
        sender = Sender(tokenizer, SelectionConfig(tau=0.0, payload=payload))
        images = moving_pictures(3)
        packets, before = [], []
        for image in images:
            packets.append(sender.send(image, 0, ''))
            packet = packets[-1]
            before.append((packet.data.tobytes(), packet.mask.tobytes(), packet.scale.tobytes()))
        assert len({data for data, _, _ in before}) == 3
        for packet, (data, mask, scale) in zip(packets, before, strict=True):
            assert (packet.data.tobytes(), packet.mask.tobytes()) == (data, mask)
            assert packet.scale.tobytes() == scale


def test_mask_of_a_packet_is_of_its_own_frame(tokenizer):
    sender = Sender(tokenizer, SelectionConfig(tau=0.2, refresh_period=0))
    packets = send_all(sender, moving_pictures(4))
    masks = [sent_mask(packet) for packet in packets]
    for packet, mask in zip(packets, masks, strict=True):
        assert mask.sum() == packet.kept
    assert not (masks[1] == masks[3]).all()


def test_change_of_size_begins_an_epoch(sender):
    sizes = [(64, 80), (64, 80), (80, 64), (80, 64), (79, 64), (64, 80)]
    packets = send_all(sender, [picture(*size) for size in sizes])
    assert [packet.keyframe for packet in packets] == [True, False, True, False, True, True]
    assert [packet.sequence for packet in packets] == [0, 1, 0, 1, 0, 0]
    epochs = [packet.epoch for packet in packets]
    assert epochs[0] == epochs[1] and epochs[2] == epochs[3]
    assert len(set(epochs)) == 4
    for packet, size in zip(packets, sizes, strict=True):
        assert (packet.image_height, packet.image_width) == size
    # Grids of 79 and 80 rows are alike; the receiver must still follow.
    receiver = Receiver()
    for packet in packets:
        receiver.apply(packet)
        assert receiver.status is Status.OK
    assert receiver.counters.restarts == 3


def test_reset_begins_an_epoch(sender):
    image = picture(64, 80)
    first, second = send_all(sender, [image, image])
    sender.reset()
    third, fourth = send_all(sender, [image, image])
    assert third.keyframe and not fourth.keyframe
    assert (third.sequence, fourth.sequence) == (0, 1)
    assert second.epoch == first.epoch != third.epoch == fourth.epoch
    assert third.data.tobytes() == first.data.tobytes()


def test_keyframe_on_request(sender):
    sender.request_keyframe()
    image = picture(64, 80)
    packets = send_all(sender, [image, image])
    sender.request_keyframe()
    sender.request_keyframe()
    packets += send_all(sender, [image, image])
    assert [packet.keyframe for packet in packets] == [True, False, True, False]
    assert [packet.sequence for packet in packets] == [0, 1, 2, 3]
    assert len({packet.epoch for packet in packets}) == 1


def test_new_config_holds_from_the_next_image(sender):
    images = moving_pictures(6)
    sender.send(images[0], 0, '')
    before = sender.send(images[1], 1, '')
    sender.config = dataclasses.replace(sender.config, tau=0.01, max_tokens=3)
    cut = sender.send(images[2], 2, '')
    assert (before.tau, cut.tau) == (np.float32(0.2), np.float32(0.01))
    assert before.kept > 3 == cut.kept and cut.deferred > 0
    sender.config = SelectionConfig(tau=100.0, refresh_period=0, payload=Payload.INT8)
    assert sender.send(images[3], 3, '').kept == 0
    sender.config = dataclasses.replace(sender.config, keyframe_interval=1)
    last = sender.send(images[4], 4, '')
    assert last.keyframe and last.payload == Payload.INT8
    assert last.epoch == before.epoch and last.sequence == 4


def test_config_set_before_the_first_image_counts(tokenizer):
    sender = Sender(tokenizer, SelectionConfig())
    sender.config = SelectionConfig(tau=0.0, payload=Payload.FLOAT32)
    packets = send_all(sender, [picture(32, 32)] * 2)
    assert [packet.payload for packet in packets] == [Payload.FLOAT32] * 2
    assert packets[1].keyframe
    sender.reset()
    assert sender.send(picture(32, 32), 0, '').payload == Payload.FLOAT32


def test_images_are_resized_to_the_input(tokenizer):
    sender = Sender(tokenizer, SelectionConfig(refresh_period=0), 32, 56)
    sizes = [(64, 112), (32, 56), (300, 17), (64, 112)]
    packets = send_all(sender, [np.full((*size, 3), 90, np.uint8) for size in sizes])
    assert len({packet.epoch for packet in packets}) == 1
    assert [packet.sequence for packet in packets] == [0, 1, 2, 3]
    assert [packet.kept for packet in packets] == [28, 0, 0, 0]
    for packet in packets:
        assert (packet.image_height, packet.image_width) == (32, 56)
        assert (packet.grid_height, packet.grid_width) == (4, 7)
    assert sender.image_size == (32, 56)


def test_resizing_averages_over_pixels():
    image = picture(64, 96)
    expected = image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    found = Resizer((32, 48))(image)
    assert np.abs(found - expected).max() <= 0.5
    assert np.abs(image[::2, ::2] - expected).max() > 10


@pytest.mark.parametrize('view', list(views_of(np.zeros((8, 8, 3), np.uint8))))
def test_resizing_takes_any_layout(tokenizer, view):
    image = picture(64, 90)
    expected = Sender(tokenizer, SelectionConfig(), 40, 48).send(image, 0, '')
    found = Sender(tokenizer, SelectionConfig(), 40, 48).send(views_of(image)[view], 0, '')
    assert found.data.tobytes() == expected.data.tobytes()


@pytest.mark.parametrize('sides', [(32, 0), (0, 32), (7, 32), (32, 8193), (-32, 32), (-8, -8)])
def test_input_sizes_that_cannot_be(tokenizer, sides):
    with pytest.raises(ValueError, match=r'input_(height|width).*allowed'):
        Sender(tokenizer, SelectionConfig(), *sides)


BAD_IMAGES = {
    'float': np.zeros((32, 32, 3), np.float32),
    'int8': np.zeros((32, 32, 3), np.int8),
    'uint16': np.zeros((32, 32, 3), np.uint16),
    'grey': np.zeros((32, 32), np.uint8),
    'one channel': np.zeros((32, 32, 1), np.uint8),
    'with alpha': np.zeros((32, 32, 4), np.uint8),
    'channels first': np.zeros((3, 32, 32), np.uint8),
    'a batch': np.zeros((1, 32, 32, 3), np.uint8),
    'empty': np.zeros((0, 0, 3), np.uint8),
    'low': np.zeros((SMALLEST_SIDE - 1, 32, 3), np.uint8),
    'narrow': np.zeros((32, SMALLEST_SIDE - 1, 3), np.uint8),
    'high': np.zeros((LARGEST_SIDE + 1, 8, 3), np.uint8),
    'wide': np.zeros((8, LARGEST_SIDE + 1, 3), np.uint8),
}


@pytest.mark.parametrize('sides', [(0, 0), (32, 40)], ids=['as it comes', 'resized'])
@pytest.mark.parametrize('case', BAD_IMAGES)
def test_bad_image_is_refused_and_the_stream_goes_on(tokenizer, case, sides):
    sender = Sender(tokenizer, SelectionConfig(refresh_period=0), *sides)
    first = sender.send(picture(32, 40), 0, '')
    with pytest.raises(ValueError, match=r'image field (array|size) is .*allowed'):
        sender.send(BAD_IMAGES[case], 1, '')
    second = sender.send(picture(32, 40), 2, '')
    assert second.epoch == first.epoch
    assert (second.sequence, second.kept) == (1, 0)


def test_first_image_may_be_bad(tokenizer):
    sender = Sender(tokenizer, SelectionConfig())
    with pytest.raises(ValueError, match='image field array is'):
        sender.send(BAD_IMAGES['grey'], 0, '')
    assert sender.image_size == (0, 0)
    assert sender.send(picture(32, 40), 1, '').keyframe


# From the image to the latents of a policy, with what is shipped


@pytest.mark.parametrize('mode', ['lit', 'hold'])
def test_from_images_to_dense_latents(tokenizer, mode):
    config = SelectionConfig(tau=0.3, refresh_period=10)
    sender, stream = Sender(tokenizer, config), LatentStream(MODEL, mode, threads=1)
    for number, image in enumerate(moving_pictures(5, 61, 79)):
        truth = tokenizer.encode(image).copy()
        assert stream.push(sender.send(image, number, 'camera'))
        latents = stream.latents()
        assert latents.status is Status.OK and latents.stamp == number
        error = np.abs(truth - latents.values).mean(axis=2)
        assert error.max() <= (0.6 if mode == 'lit' else 0.3) * (1 + 1e-5)
        sent = latents.age == 0
        assert np.all(np.abs(truth - latents.values)[sent] <= config.step / 2 * (1 + 1e-2))
    assert not sent.all() and sent.any()
    stream.close()


def test_a_stamp_that_steps_back_begins_a_new_epoch(tokenizer):
    sender = Sender(tokenizer, SelectionConfig(refresh_period=0))
    image = picture(32, 40)
    first = [sender.send(image, stamp, '') for stamp in (5, 5, 6)]
    again = [sender.send(image, stamp, '') for stamp in (2, 3)]
    assert [packet.keyframe for packet in first] == [True, False, False]
    assert [packet.keyframe for packet in again] == [True, False]
    assert again[0].epoch != first[0].epoch and again[0].sequence == 0
    assert sender.counters.time_jumps == 1 and sender.counters.keyframes == 2
