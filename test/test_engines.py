"""Choosing a backend, sharing an engine, and falling back when one fails."""

import collections
import importlib.util
import subprocess
import sys
import threading

import numpy as np
import pytest

from adaptok_ros.engines import fallback, shared
from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.cuda import missing_driver
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.fallback import FallbackEngine
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.shared import acquire_engine, release_engine
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import find_model
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = 'adaptok-tiny'
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec('torch') is None, reason='torch, the other backend, is not installed'
)
without_gpu = pytest.mark.skipif(not missing_driver(), reason='there is an NVIDIA driver')
FAILURE = EngineError('out of memory on a device of this test')


@pytest.fixture
def alone(monkeypatch):
    """Engines that other tests have left open are not shared with this one."""
    monkeypatch.setattr(shared, '_engines', {})
    monkeypatch.setattr(shared, '_users', collections.Counter())


def images(count, size=(96, 128)):
    scene = Scene(size[1], size[0])
    return [scene.frame(20 + index) for index in range(count)]


@without_gpu
def test_auto_takes_onnx_runtime_without_a_gpu_and_says_why():
    engine = create_engine(GraphRequest(find_model(MODEL), 'encoder'))
    assert (engine.backend, engine.device) == ('onnxruntime', 'cpu')
    assert any('NVIDIA driver' in note for note in engine.notes)
    engine.close()


@without_gpu
@pytest.mark.parametrize('backend', ['tensorrt', 'tensorrt_rtx'])
def test_a_backend_that_is_named_does_not_fall_back(backend):
    with pytest.raises(EngineError, match='NVIDIA driver'):
        create_engine(GraphRequest(find_model(MODEL), 'encoder', backend))


def test_rejected_backends_are_not_chosen():
    names = ('tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch')
    rejected = {f'{name} on {device}': 'tried' for name in names for device in ('cpu', 'cuda')}
    with pytest.raises(EngineError, match='onnxruntime on cpu: tried'):
        create_engine(GraphRequest(find_model(MODEL), 'encoder', rejected=rejected))


def test_equal_requests_share_an_engine_until_the_last_gives_it_back(alone):
    request = GraphRequest(find_model(MODEL), 'encoder', 'onnxruntime', threads=1)
    first, second = acquire_engine(request), acquire_engine(request)
    other = acquire_engine(GraphRequest(find_model(MODEL), 'decoder', 'onnxruntime', threads=1))
    assert first is second and other is not first
    release_engine(first)
    binding = second.bind({'image': (1, 16, 16, 3)})
    binding.run()
    release_engine(second)
    assert second.session is None and other.session is not None
    release_engine(other)
    third = acquire_engine(request)
    assert third is not first
    release_engine(third)


def test_streams_of_one_engine_do_not_disturb_each_other():
    """As the cameras of one process, each on a thread of its own and with its own image size."""
    sizes = [(96, 128), (64, 200), (93, 121)]
    tokenizers = [Tokenizer(MODEL, 'onnxruntime', threads=1) for _ in sizes]
    expected = [
        [tokenizer.encode(image).copy() for image in images(20, size)]
        for tokenizer, size in zip(tokenizers, sizes)
    ]
    engines = {id(tokenizer.load_encoder()) for tokenizer in tokenizers}
    assert len(engines) == 1
    found = [[] for _ in sizes]

    def encode(tokenizer, size, results):
        stream = tokenizer.stream()
        results.extend(stream.encode(image).copy() for image in images(20, size))

    threads = [
        threading.Thread(target=encode, args=arguments)
        for arguments in zip(tokenizers, sizes, found)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, reference in zip(found, expected):
        np.testing.assert_array_equal(mine, reference)
    for tokenizer in tokenizers:
        tokenizer.close()


@needs_torch
@without_gpu
def test_sender_goes_on_with_another_backend():
    tokenizer = Tokenizer(MODEL, threads=1)
    sender = Sender(tokenizer, SelectionConfig())
    first, second = images(2)
    before = sender.send(first, 0, 'camera')
    assert tokenizer.load().backend == 'onnxruntime'
    tokenizer.fall_back(FAILURE)
    assert tokenizer.load().backend == 'torch'
    assert f'onnxruntime on cpu: {FAILURE}' in tokenizer.load().notes
    assert tokenizer.rejected == {'onnxruntime on cpu': str(FAILURE)}
    # The reference is on the host and whole: the loop goes on.
    after = sender.send(second, 1, 'camera')
    assert after.sequence == 1 and after.epoch == before.epoch
    with pytest.raises(EngineError, match='cannot be run'):
        tokenizer.fall_back(FAILURE)
    with pytest.raises(EngineError, match='cannot be run'):
        sender.send(second, 2, 'camera')
    tokenizer.close()


def test_a_named_backend_that_fails_is_not_left():
    tokenizer = Tokenizer(MODEL, 'onnxruntime', threads=1)
    sender = Sender(tokenizer, SelectionConfig())
    sender.send(images(1)[0], 0, 'camera')
    with pytest.raises(EngineError, match='of this test'):
        tokenizer.fall_back(FAILURE)
    assert tokenizer.load().backend == 'onnxruntime' and not tokenizer.rejected
    assert sender.send(images(1)[0], 1, 'camera').sequence == 1


@needs_torch
@without_gpu
def test_every_caller_of_an_engine_goes_on_with_the_next():
    engine = FallbackEngine(GraphRequest(find_model(MODEL), 'encoder', threads=1))
    runners = [engine.runner() for _ in range(2)]
    image = images(1, (64, 64))[0][None]
    before = [runner.run({'image': image})['latents'].copy() for runner in runners]
    left = engine.current
    engine.fall_back(left, FAILURE)
    engine.fall_back(left, FAILURE)  # told by the second caller
    assert engine.current.backend == 'torch'
    assert list(engine.rejected) == ['onnxruntime on cpu']
    for runner, expected in zip(runners, before):
        np.testing.assert_allclose(
            runner.run({'image': image})['latents'], expected, atol=1e-3, rtol=0
        )
    engine.close()


@needs_torch
@without_gpu
def test_lit_keeps_its_window_when_it_falls_back():
    sender = Sender(Tokenizer(MODEL, threads=1), SelectionConfig())
    streams = [LatentStream(MODEL, threads=1) for _ in range(2)]
    for index, image in enumerate(images(8, (128, 128))):
        packet = sender.send(image, index, 'camera')
        for stream in streams:
            stream.push(packet)
        if index == 5:
            restorer = streams[1].restorer
            restorer._lit.fall_back(restorer.engine, FAILURE)
    assert streams[1].restorer.engine.backend == 'torch'
    assert 'onnxruntime on cpu' in streams[1].restorer.rejected
    np.testing.assert_allclose(
        streams[1].latents().values, streams[0].latents().values, atol=1e-4, rtol=0
    )
    for stream in streams:
        stream.close()


def test_auto_reaches_the_cpu_on_a_machine_with_a_driver_and_nothing_else():
    code = (
        'import sys\n'
        'sys.modules.update(dict.fromkeys(("torch", "tensorrt", "tensorrt_rtx", "triton")))\n'
        'from adaptok_ros.engines import choice\n'
        'from adaptok_ros.engines.interface import GraphRequest\n'
        'choice.missing_driver = lambda: ""\n'
        'from adaptok_ros.models.folders import find_model\n'
        'request = GraphRequest(find_model("adaptok-tiny"), "encoder")\n'
        'engine = choice.create_engine(request)\n'
        'print(engine.backend, engine.device, *engine.notes, sep="\\n")'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=100
    )
    backend, device, *notes = done.stdout.splitlines()
    assert (backend, device) == ('onnxruntime', 'cpu')
    assert [note.partition(':')[0] for note in notes] == [
        'tensorrt on cuda',
        'tensorrt_rtx on cuda',
        'onnxruntime on cuda',
        'torch on cuda',
    ]


def test_an_engine_that_failed_for_good_is_given_back_once(alone, monkeypatch):
    request = GraphRequest(find_model(MODEL), 'lit', threads=1)
    first, second = FallbackEngine(request), FallbackEngine(request)
    engine = first.load()
    assert engine is second.load()

    def nothing_else(request):
        raise EngineError('nothing else works')

    monkeypatch.setattr(fallback, 'acquire_engine', nothing_else)
    with pytest.raises(EngineError, match='nothing else'):
        first.fall_back(engine, FAILURE)
    for _ in range(2):
        with pytest.raises(EngineError, match='of this test'):
            first.fall_back(None, FAILURE)
        with pytest.raises(EngineError, match='nothing else works'):
            first.load()
        first.close()
    assert second.current is engine and engine.session is not None
    second.close()
    assert engine.session is None
