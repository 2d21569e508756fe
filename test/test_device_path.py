"""The path of a frame on a device: the same packets as on the host, from one captured graph."""

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

import torch._inductor.config as inductor

from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.torch import TorchEngine, load_module
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.receiver import Receiver
from adaptok_ros.sending.device_path import AreaResize, DevicePath
from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.selection import Reference, SelectionConfig, Selector, TauMode
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = find_model('adaptok-tiny')
DEVICES = [
    'cpu',
    pytest.param(
        'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
    ),
]


def make_engine(device):
    """In float32 on both, so that latents may be compared closely."""
    module = load_module(GraphRequest(MODEL, 'encoder'), half=False)
    return TorchEngine(module, 'encoder', device, compiled=False)


def images(count, size=(96, 128)):
    scene = Scene(size[1], size[0])
    return [scene.frame(20 + index) for index in range(count)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [(96, 128), (93, 121)])
@pytest.mark.parametrize('payload', list(Payload))
@pytest.mark.parametrize('reference', list(Reference))
def test_path_selects_what_the_selector_selects(device, size, payload, reference):
    config = SelectionConfig(
        tau=0.05, max_tokens=60, refresh_period=9, payload=payload, reference=reference
    )
    engine = make_engine(device)
    description = TokenizerDescription.load(MODEL)
    path = DevicePath(engine, description, size, size, config)
    assert path.captured == (device == 'cuda')
    rows, columns = description.grid(*size)
    selector = Selector(rows * columns, description.channels, config)
    for index, image in enumerate(images(12, size)):
        if index == 6:
            path.request_keyframe()
            selector.request_keyframe()
        found = path.take(image)
        latents = path.latents.cpu().numpy().reshape(-1, description.channels)
        expected = selector.step(latents)
        np.testing.assert_array_equal(found.keep, expected.keep)
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(found.scale, expected.scale)
        assert (found.kept, found.deferred, found.payload) == (
            expected.kept,
            expected.deferred,
            expected.payload,
        )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('mode', [TauMode.TARGET_RATE, TauMode.NOISE])
def test_senders_on_both_paths_find_the_same_tau(device, mode):
    engine, tokenizer = make_engine(device), Tokenizer('adaptok-tiny', threads=1)
    paths = []

    def on_device(size, config):
        paths.append(DevicePath(engine, tokenizer.description, size, size, config))
        return paths[-1]

    def on_host(size, config):
        return HostPath(
            lambda image: paths[-1].latents.cpu().numpy(), lambda: None, config, size, False
        )

    config = SelectionConfig(tau_mode=mode, target_rate=1.0)
    senders = [Sender(tokenizer, config, open_path=path) for path in (on_device, on_host)]
    taus = set()
    for index, image in enumerate(images(25)):
        first, second = (sender.send(image, index * 33_000_000, 'camera') for sender in senders)
        assert (first.tau, first.kept) == (second.tau, second.kept)
        assert first.mask.tobytes() == second.mask.tobytes()
        assert first.data.tobytes() == second.data.tobytes()
        taus.add(first.tau)
    assert len(taus) > 3
    tokenizer.close()


@pytest.mark.parametrize('device', DEVICES)
def test_path_encodes_what_the_tokenizer_encodes(device):
    tokenizer = Tokenizer('adaptok-tiny', 'onnxruntime', threads=1)
    path = DevicePath(
        make_engine(device), tokenizer.description, (93, 121), (93, 121), SelectionConfig()
    )
    for image in images(3, (93, 121)):
        path.take(image)
        np.testing.assert_allclose(
            path.latents.cpu().numpy(), tokenizer.encode(image), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('configuration', [{'tau': 0.3}, {'payload': Payload.INT8}])
def test_configuration_may_change_between_frames(device, configuration):
    description = TokenizerDescription.load(MODEL)
    path = DevicePath(make_engine(device), description, (96, 128), (96, 128), SelectionConfig())
    selector = Selector(12 * 16, description.channels, SelectionConfig())
    for index, image in enumerate(images(6)):
        if index == 3:
            path.config = selector.config = SelectionConfig(**configuration)
        found = path.take(image)
        expected = selector.step(path.latents.cpu().numpy().reshape(-1, description.channels))
        np.testing.assert_array_equal(found.data, expected.data)


@pytest.mark.parametrize('device', DEVICES)
def test_reset_begins_as_at_first(device):
    description = TokenizerDescription.load(MODEL)
    config = SelectionConfig(tau=0.05, max_tokens=60, refresh_period=9)
    used, fresh = (
        DevicePath(make_engine(device), description, (96, 128), (96, 128), config)
        for _ in range(2)
    )
    for image in images(7):
        used.take(image)
    used.reset()
    for image in images(7):
        found = []
        for path in (used, fresh):
            selection = path.take(image)
            found.append((selection.data.tobytes(), selection.keep.tobytes(), selection.deferred))
        assert found[0] == found[1]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('before', 'after'), [((96, 128), (48, 64)), ((90, 100), (61, 33)), ((64, 64), (64, 40))]
)
def test_resize_averages_areas_as_opencv_does(device, before, after):
    image = np.random.default_rng(0).integers(0, 256, (*before, 3)).astype(np.uint8)
    padded = torch.zeros(after[0] + 3, after[1] + 5, 3, dtype=torch.uint8, device=device)
    AreaResize(before, after, device)(torch.from_numpy(image), padded)
    found = padded.cpu().numpy()
    expected = cv2.resize(image, after[::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(found[: after[0], : after[1]].astype(int) - expected)
    # Halves may go either way: one in four quarters is one.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.15
    last = found[[after[0] - 1] * 3, : after[1]]
    np.testing.assert_array_equal(found[after[0] :, : after[1]], last)
    np.testing.assert_array_equal(found[:, after[1] :], found[:, [after[1] - 1] * 5])


@pytest.mark.parametrize('device', DEVICES)
def test_resized_images_make_the_grid_of_the_size_encoded(device):
    description = TokenizerDescription.load(MODEL)
    path = DevicePath(make_engine(device), description, (192, 256), (90, 128), SelectionConfig())
    tokenizer = Tokenizer('adaptok-tiny', 'onnxruntime', threads=1)
    (image,) = images(1, (192, 256))
    selection = path.take(image)
    assert selection.keyframe and path.latents.shape == (12, 16, description.channels)
    small = cv2.resize(image, (128, 90), interpolation=cv2.INTER_AREA)
    difference = np.abs(path.latents.cpu().numpy() - tokenizer.encode(small)).mean(axis=2)
    assert difference.max() < 0.05  # pixels may differ by one


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('backend', ['auto', 'onnxruntime', 'torch'])
def test_sender_on_a_gpu_sends_what_the_cpu_sends(backend):
    try:
        tokenizer = Tokenizer('adaptok-tiny', backend)
        if tokenizer.load().device == 'cpu':
            pytest.skip(f'backend {backend} runs on the CPU here: {tokenizer.load().notes}')
    except EngineError as error:
        pytest.skip(f'backend {backend}: {error}')
    on_gpu = Sender(tokenizer, SelectionConfig(), 96, 128)
    on_cpu = Sender(Tokenizer('adaptok-tiny', 'onnxruntime'), SelectionConfig(), 96, 128)
    for index, image in enumerate(images(30, (192, 256))):
        found = on_gpu.send(image, index, 'camera')
        expected = on_cpu.send(image, index, 'camera')
        assert (found.sequence, found.image_height, found.image_width) == (index, 96, 128)
        # Half precision moves latents by less than a hundredth of what tau is.
        assert abs(found.kept - expected.kept) <= 0.05 * expected.positions


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_sender_without_a_gpu_keeps_to_the_host():
    sender = Sender(Tokenizer('adaptok-tiny'), SelectionConfig())
    assert sender.note == ''
    sender.send(images(1)[0], 0, 'camera')
    assert sender.note == 'numpy'


def test_sender_takes_the_next_engine_when_a_device_fails():
    """A closed engine fails as a device that is lost does: in the middle of a stream."""
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    engines = []

    def open_path(size, config):
        if engines:
            stream = tokenizer.stream()
            return HostPath(stream.encode, stream.reset, config, size, resize=False)
        tokenizer.load()
        engines.append(make_engine('cpu'))
        return DevicePath(engines[0], tokenizer.description, size, size, config)

    sender = Sender(tokenizer, SelectionConfig(), open_path=open_path)
    receiver = Receiver()
    first, second, third = images(3)
    before = sender.send(first, 0, 'camera')
    engines[0].close()
    after = sender.send(second, 1, 'camera')
    assert after.keyframe and after.sequence == 0 and after.epoch != before.epoch
    assert sender.counters.fallbacks == 1 and sender.note == 'numpy'
    (reason,) = tokenizer.rejected.values()
    assert 'closed' in reason
    for packet in (before, after, sender.send(third, 2, 'camera')):
        assert receiver.apply(packet)
    delta = np.abs(tokenizer.encode(third) - receiver.held).mean(axis=2)
    assert delta.max() < SelectionConfig().tau + 1e-3


@pytest.mark.parametrize('part', ['encoder', 'decoder', 'lit'])
def test_torch_runs_what_onnx_runtime_runs(part):
    random = np.random.default_rng(1)
    window = (1, 4, 16, 32)
    inputs = {
        'encoder': {'image': random.integers(0, 256, (1, 64, 96, 3)).astype(np.uint8)},
        'decoder': {'latents': random.normal(size=(1, 6, 9, 16)).astype(np.float32)},
        'lit': {
            'held': random.normal(size=(*window, 16)).astype(np.float32),
            'kept': (random.random(window) < 0.3).astype(np.float32),
            'age': random.integers(0, 256, window).astype(np.float32),
            'tau': np.array([0.1], np.float32),
        },
    }[part]
    found = []
    for backend in ('onnxruntime', 'torch'):
        engine = create_engine(GraphRequest(MODEL, part, backend, threads=1))
        binding = engine.bind({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            torch.as_tensor(binding.inputs[name]).copy_(torch.from_numpy(array))
        binding.run()
        (output,) = binding.outputs.values()
        found.append(np.asarray(torch.as_tensor(output).cpu()).astype(np.float64))
        engine.close()
    assert np.abs(found[0] - found[1]).max() <= (1 if part == 'decoder' else 1e-3)


def test_torch_does_without_a_compiler(tmp_path):
    module = load_module(GraphRequest(MODEL, 'encoder'), half=False)
    eager = TorchEngine(module, 'encoder', 'cpu', compiled=False)
    torch._dynamo.reset()
    engine = TorchEngine(module, 'encoder', 'cpu', compiled=True)
    found = []
    missing = {'cpp.cxx': (str(tmp_path / 'no-such-compiler'),), 'force_disable_caches': True}
    with inductor.patch(missing):
        for each in (eager, engine):
            binding = each.bind({'image': (1, 64, 64, 3)})
            binding.inputs['image'][...] = images(1, (64, 64))[0]
            binding.run()
            found.append(binding.outputs['latents'].copy())
    assert 'torch.compile' in ' '.join(engine.notes) and not eager.notes
    np.testing.assert_array_equal(*found)
