"""Choosing a backend, sharing an engine, and falling back when one fails."""

import collections
import importlib.util
import subprocess
import sys
import threading

import numpy as np
import pytest

import adaptok_ros.receiving.restorer as restorer_module
from adaptok_ros.engines import shared
from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.cuda import missing_driver
from adaptok_ros.engines.errors import BuildCancelledError, EngineError
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.shared import acquire_engine, release_engine
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import find_model
from adaptok_ros.nodes.loading import Loading
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
def test_sender_goes_on_with_another_backend_in_a_new_epoch():
    tokenizer = Tokenizer(MODEL, threads=1)
    sender = Sender(tokenizer, SelectionConfig())
    first, second = images(2)
    before = sender.send(first, 0, 'camera')
    assert tokenizer.load().backend == 'onnxruntime'
    sender.fall_back(FAILURE)
    assert tokenizer.load().backend == 'torch'
    assert f'onnxruntime on cpu: {FAILURE}' in tokenizer.load().notes
    assert tokenizer.rejected == {'onnxruntime on cpu': str(FAILURE)}
    after = sender.send(second, 1, 'camera')
    assert after.keyframe and after.sequence == 0 and after.epoch != before.epoch
    with pytest.raises(EngineError, match='cannot be run'):
        sender.fall_back(FAILURE)
    tokenizer.close()


def test_a_named_backend_that_fails_is_not_left():
    tokenizer = Tokenizer(MODEL, 'onnxruntime', threads=1)
    sender = Sender(tokenizer, SelectionConfig())
    sender.send(images(1)[0], 0, 'camera')
    with pytest.raises(EngineError, match='of this test'):
        sender.fall_back(FAILURE)
    # Whether the frame that failed has reached the reference is not known.
    assert sender.send(images(1)[0], 1, 'camera').keyframe
    stream = LatentStream(MODEL, backend='onnxruntime', threads=1)
    with pytest.raises(EngineError, match='of this test'):
        stream.restorer.fall_back(FAILURE)


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
            streams[1].restorer.fall_back(FAILURE)
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
    first, second = (LatentStream(MODEL, threads=1).restorer for _ in range(2))
    engine = first.engine
    assert engine is second.engine

    def nothing_else(request):
        raise EngineError('nothing else works')

    monkeypatch.setattr(restorer_module, 'acquire_engine', nothing_else)
    with pytest.raises(EngineError, match='nothing else'):
        first.fall_back(FAILURE)
    for _ in range(2):
        with pytest.raises(EngineError, match='of this test'):
            first.fall_back(FAILURE)
        with pytest.raises(EngineError, match='nothing runs LIT any more'):
            first.restore()
        first.close()
    assert second.engine is engine and engine.session is not None
    second.close()
    assert engine.session is None


def test_who_waits_for_an_engine_of_another_can_give_up():
    request = GraphRequest(find_model(MODEL), 'encoder', 'onnxruntime', threads=1)
    with shared._lock:
        making = shared._making[shared._key(request)]
    making.acquire()  # as whoever makes it first does
    loading = Loading(lambda build: acquire_engine(request, build), print)
    loading.settle()
    assert not loading.done and loading.progress.startswith('waiting for another node')
    loading.cancel()
    assert isinstance(loading.error, BuildCancelledError)
    patient = Loading(lambda build: release_engine(acquire_engine(request, build)), print)
    patient.settle()
    making.release()
    patient._thread.join(30)
    assert patient.done and patient.error is None
