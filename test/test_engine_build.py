"""Engines as they are built: really, with TensorRT-RTX, which needs no GPU for it."""

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

from adaptok_ros.cli import engine as command_line
from adaptok_ros.cli import main
from adaptok_ros.engines.build import NICENESS, build_engine
from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cache.folder import location
from adaptok_ros.engines.cache.lock import remove_leftovers
from adaptok_ros.engines.cache.timings import write_timings
from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.cuda import missing_driver
from adaptok_ros.engines.errors import BuildCancelledError, EngineError
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.profiles import profile
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import SHIPPED, ModelError, sha256

TINY = SHIPPED / 'adaptok-tiny'
CAPABILITY = '8.6'
SOON = 10.0
"""Seconds within which something must happen on a busy machine."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache's folder, absent so far."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'adaptok_ros' / 'engines'


@pytest.fixture
def specify():
    """What gives the specification and the graph for a request, ahead of time."""
    pytest.importorskip(
        'tensorrt_rtx', reason='tensorrt_rtx is missing: pip install tensorrt-rtx (x86-64 Linux)'
    )
    from adaptok_ros.engines.tensorrt.request import specify

    def ahead(part='encoder', model=TINY, capability=CAPABILITY, **fields):
        return specify(GraphRequest(model, part, 'tensorrt_rtx', **fields), capability)

    return ahead


def children(parent='self'):
    """Process ids of what a process has started and that lives, but for Python's own helper."""
    found = []
    for task in Path(f'/proc/{parent}/task').iterdir():
        found += map(int, (task / 'children').read_text().split())
    return [pid for pid in found if not is_tracker(pid)]


def is_tracker(pid):
    """Python starts it with the first process that is spawned, and keeps it."""
    try:
        return b'multiprocessing.resource_tracker' in Path(f'/proc/{pid}/cmdline').read_bytes()
    except OSError:
        return False


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def wait_until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(0.01)


# Profiles.


def test_profile_of_a_known_size_is_static():
    request = GraphRequest(TINY, 'encoder', image_size=(241, 320))
    assert profile(request) == {'image': ((1, 248, 320, 3),) * 3}


@pytest.mark.parametrize('part', ['decoder', 'lit'])
def test_profile_of_who_runs_what_was_sent_is_a_range(part):
    request = GraphRequest(TINY, part)
    assert profile(dataclasses.replace(request, image_size=(241, 320))) == profile(request)


def test_profile_of_any_size_is_a_range():
    request = GraphRequest(TINY, 'encoder', batch=4)
    assert profile(request) == {'image': ((1, 64, 64, 3), (4, 480, 640, 3), (4, 1088, 1920, 3))}
    held = profile(dataclasses.replace(request, part='lit'))['held']
    assert held == ((1, 4, 8, 8, 16), (4, 4, 60, 80, 16), (4, 4, 136, 240, 16))


def test_profile_of_a_tokenizer_of_one_size(tmp_path):
    model = shutil.copytree(TINY, tmp_path / 'model')
    description = json.loads((model / 'tokenizer.json').read_text())
    description['image_size'] = [224, 224]
    (model / 'tokenizer.json').write_text(json.dumps(description))
    assert profile(GraphRequest(model, 'encoder')) == {'image': ((1, 224, 224, 3),) * 3}
    assert profile(GraphRequest(model, 'decoder')) == {'latents': ((1, 28, 28, 16),) * 3}
    assert profile(GraphRequest(model, 'lit')) == {
        'held': ((1, 4, 28, 28, 16),) * 3,
        'kept': ((1, 4, 28, 28),) * 3,
        'age': ((1, 4, 28, 28),) * 3,
        'tau': ((1,),) * 3,
    }


@pytest.mark.parametrize('fields', [{'batch': 0}, {'image_size': (0, 640)}])
def test_profile_of_nothing_is_refused(fields):
    with pytest.raises(EngineError, match='allowed: 1 or more'):
        profile(GraphRequest(TINY, 'encoder', **fields))


def test_profile_of_a_damaged_model_is_refused(tmp_path):
    model = shutil.copytree(TINY, tmp_path / 'model')
    description = json.loads((model / 'lit.json').read_text())
    del description['frames']
    (model / 'lit.json').write_text(json.dumps(description))
    with pytest.raises(ModelError, match='frames'):
        profile(GraphRequest(model, 'lit'))


# Specifications.


def test_engines_of_rtx_belong_to_a_compute_capability(specify):
    specification, graph = specify('lit')
    assert graph == GraphRequest(TINY, 'lit').graph(half=True)
    assert (specification.gpu, specification.compute_capability) == ('', CAPABILITY)
    assert specification.model == TokenizerDescription.load(TINY).id
    assert specification.key == specify('lit')[0].key
    assert specification.key != specify('lit', capability='8.9')[0].key
    assert specify()[0].key != specify(image_size=(480, 640))[0].key


def listed(model, files):
    """List just these graphs in the tokenizer's description."""
    description = json.loads((model / 'tokenizer.json').read_text())
    description['files'] = {
        'tokenizer.safetensors': description['files']['tokenizer.safetensors'],
        **{name: sha256(model / name) for name in files},
    }
    (model / 'tokenizer.json').write_text(json.dumps(description))


def test_half_graph_is_preferred(specify, tmp_path):
    model = shutil.copytree(TINY, tmp_path / 'model')
    half = model / 'encoder.float16.onnx'
    listed(model, ['encoder.onnx'])
    assert specify(model=model)[0].precision == 'float32'
    assert 'no TF32' in specify(model=model)[0].flags
    listed(model, ['encoder.onnx', half.name])
    specification, graph = specify(model=model)
    assert (specification.precision, graph) == ('float16', half)
    assert 'no TF32' not in specification.flags


def test_unknown_compute_capability_is_refused(specify):
    with pytest.raises(EngineError, match=r'capability is 8.7; allowed by tensorrt_rtx .*8\.6'):
        specify(capability='8.7')


def test_missing_graph_is_refused(specify, tmp_path):
    model = shutil.copytree(TINY, tmp_path / 'model')
    listed(model, ['encoder.onnx'])
    (model / 'decoder.onnx').unlink()
    with pytest.raises(EngineError, match='no such graph'):
        specify('decoder', model=model)


SHARING = 'PROFILE_SHARING_0806'
FLAGS = {
    # Network flags, builder flags and preview features in NVIDIA/TensorRT,
    # python/src/infer/pyCore.cpp, by tag.
    'v8.6.1': (
        ['EXPLICIT_BATCH', 'EXPLICIT_PRECISION'],
        ['FP16', 'TF32'],
        ['FASTER_DYNAMIC_SHAPES_0805', 'PROFILE_SHARING_0806'],
    ),
    'v10.3.0': (
        ['EXPLICIT_BATCH', 'STRONGLY_TYPED'],
        ['FP16', 'TF32'],
        ['PROFILE_SHARING_0806', 'ALIASED_PLUGIN_IO_10_03'],
    ),
    'v11.1': (['STRONGLY_TYPED'], ['TF32'], ['ALIASED_PLUGIN_IO_10_03']),
}


@pytest.mark.parametrize(
    ('tag', 'half', 'expected'),
    [
        ('v8.6.1', True, ['EXPLICIT_BATCH', 'FP16', SHARING]),
        ('v8.6.1', False, ['EXPLICIT_BATCH', SHARING, 'no TF32']),
        ('v10.3.0', True, ['EXPLICIT_BATCH', 'STRONGLY_TYPED', SHARING]),
        ('v10.3.0', False, ['EXPLICIT_BATCH', 'STRONGLY_TYPED', SHARING, 'no TF32']),
        ('v11.1', True, ['STRONGLY_TYPED']),
        ('v11.1', False, ['STRONGLY_TYPED', 'no TF32']),
    ],
)
def test_flags_of_versions_that_are_not_here(tag, half, expected):
    """Only their names: that these versions build with them is proven where they are."""
    from adaptok_ros.engines.tensorrt.module import compute_capabilities
    from adaptok_ros.engines.tensorrt.request import flags

    network, builder, preview = (
        types.SimpleNamespace(**dict.fromkeys(names)) for names in FLAGS[tag]
    )
    module = types.SimpleNamespace(
        NetworkDefinitionCreationFlag=network, BuilderFlag=builder, PreviewFeature=preview
    )
    assert [flag for flag in flags(module, half) if 'WORKSPACE' not in flag] == expected
    assert compute_capabilities(module) == ()


@pytest.mark.parametrize('known', [None, b'damaged'])
def test_timings_are_kept_and_damaged_ones_replaced(known, specify):
    """With the timing cache of RTX, which is empty, but a timing cache."""
    import tensorrt_rtx

    from adaptok_ros.engines.tensorrt.compile import load_timings
    from adaptok_ros.engines.tensorrt.module import logger

    specification, _ = specify()
    where = ('tensorrt_rtx', specification.backend_version, CAPABILITY)
    if known:
        write_timings(*where, known)
    config = tensorrt_rtx.Builder(logger(tensorrt_rtx)).create_builder_config()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        timings = bytes(load_timings(config, specification).serialize())
        assert timings
        write_timings(*where, timings)
        assert bytes(load_timings(config, specification).serialize()) == timings


def test_timings_that_cannot_be_kept_are_no_error(specify, folder):
    import tensorrt_rtx

    from adaptok_ros.engines.tensorrt.compile import keep_timings, load_timings
    from adaptok_ros.engines.tensorrt.module import logger

    specification, _ = specify()
    config = tensorrt_rtx.Builder(logger(tensorrt_rtx)).create_builder_config()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        timings = load_timings(config, specification)
        where = ('tensorrt_rtx', specification.backend_version, CAPABILITY)
        (folder / f'{"-".join(where)}.timing').mkdir()
        with pytest.raises(EngineError, match='cannot keep engines here'):
            write_timings(*where, b'timings')
        keep_timings(timings, specification)


@pytest.fixture
def engine():
    """An engine without a plan, which cannot be loaded without a GPU."""
    tensorrt_rtx = pytest.importorskip('tensorrt_rtx', reason='tensorrt_rtx is missing')
    pytest.importorskip('torch', reason='torch is missing')
    from adaptok_ros.engines.tensorrt.engine import TensorRTEngine
    from adaptok_ros.engines.tensorrt.module import logger

    engine = TensorRTEngine.__new__(TensorRTEngine)
    engine.backend = 'tensorrt_rtx'
    engine._log = logger(tensorrt_rtx)
    engine._bindings = weakref.WeakSet()
    engine._config = engine._engine = engine._runtime = object()
    return engine


def test_cure_is_for_the_error_at_hand(engine):
    import tensorrt_rtx

    def fail(*messages):
        for message in messages:
            engine._log.log(tensorrt_rtx.ILogger.ERROR, message)
        return False

    fail('out of memory, said another engine')
    with pytest.raises(EngineError, match=r'cannot run on cuda:0: no reason given: .*clean --all'):
        engine.attempt('cannot run', fail)
    with pytest.raises(EngineError, match=r'OutOfMemory: stop what .*CUDA_VISIBLE_DEVICES='):
        engine.attempt('cannot run', fail, 'OutOfMemory')
    assert engine.attempt('cannot run', lambda: True)


def test_closing_after_an_error_of_the_device(engine, monkeypatch):
    """Such an error is told by every call that follows."""
    import torch

    def synchronize(device):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(torch.cuda, 'synchronize', synchronize)
    freed = []
    binding = types.SimpleNamespace(free=lambda: freed.append(True))
    engine._bindings = [binding]
    engine.close()
    assert freed == [True]
    assert (engine._config, engine._engine, engine._runtime) == (None, None, None)
    with pytest.raises(EngineError, match='closed'):
        engine.bind({'image': (1, 480, 640, 3)})


@pytest.mark.parametrize(
    ('name', 'cure'),
    [
        ('image', r'input_height .*: adaptok engine build TOKENIZER --image-size HxW$'),
        ('latents', r'images of 64x64 to 1920x1088 pixels: set input_height .* in between$'),
        ('held', r'images of 64x64 to 1920x1088 pixels: set input_height .* in between$'),
    ],
)
def test_cure_of_a_size_that_does_not_fit(name, cure, engine):
    def limits(name, index):
        return ((1, 8, 8, 16), (1, 60, 80, 16), (1, 136, 240, 16))

    engine._engine = types.SimpleNamespace(get_tensor_profile_shape=limits)
    engine.inputs = (name,)
    with pytest.raises(EngineError, match=f'built for .* to .*{cure}'):
        engine.bind({name: (1, 200, 240, 16)})


@pytest.mark.skipif(
    importlib.util.find_spec('tensorrt') is not None, reason='tensorrt is installed'
)
def test_missing_module_names_what_to_install():
    request = GraphRequest(TINY, 'encoder', 'tensorrt')
    from adaptok_ros.engines.tensorrt.open import open_engine

    with pytest.raises(EngineError, match=r'tensorrt is missing.*pip install tensorrt.*JetPack'):
        open_engine(request, None)


@pytest.mark.skipif(not missing_driver(), reason='there is a driver')
def test_missing_driver_names_what_to_do(specify, capsys):
    from adaptok_ros.engines.tensorrt.open import open_engine

    with pytest.raises(EngineError, match='NVIDIA driver'):
        open_engine(GraphRequest(TINY, 'encoder', 'tensorrt_rtx'), None)
    assert main(['engine', 'build', 'adaptok-tiny', '--backend', 'tensorrt_rtx']) == 1
    assert '--compute-capability' in capsys.readouterr().err


def test_command_builds_what_was_asked_for(specify, tmp_path):
    from adaptok_ros.engines.tensorrt.request import command

    for part, image_size in (('encoder', (480, 640)), ('encoder', None), ('lit', (480, 640))):
        request = GraphRequest(tmp_path / 'a b', part, 'tensorrt_rtx', image_size)
        program, name, *words = shlex.split(command(request))
        assert (program, name) == ('adaptok', 'engine')
        parser = argparse.ArgumentParser()
        command_line.add_arguments(parser)
        found = parser.parse_args(words)
        assert found.tokenizer == str(request.folder)
        assert (found.part, found.backend) == (part, request.backend)
        assert found.image_size == (image_size if part == 'encoder' else None)


# Building.


@pytest.mark.parametrize('part', ['encoder', 'decoder', 'lit'])
def test_builds_in_a_child_and_tells_how_far_it_is(part, specify, folder):
    specification, graph = specify(part, batch=2)
    found = []
    build_engine(specification, graph, found.append, threading.Event())
    assert len(store.load(specification)) > 100_000
    assert {path.suffix for path in folder.iterdir()} == {'.plan', '.json'}
    times = [0.0, *(progress.elapsed for progress in found)]
    assert max(np.diff(times)) < 3.0
    fractions = [progress.fraction for progress in found if progress.fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert str(found[-1]).startswith('storing, 100%, ')
    assert not children()
    found.clear()
    build_engine(specification, graph, found.append, threading.Event())
    assert [progress.phase for progress in found] == ['starting']


def test_damaged_engine_is_built_anew(specify):
    specification, graph = specify()
    store.save(specification, b'damaged', 0.0)
    plan, _ = (location() / f'{specification.key}{suffix}' for suffix in ('.plan', '.json'))
    os.truncate(plan, 1)
    build_engine(specification, graph, lambda progress: None, threading.Event())
    assert len(store.load(specification)) > 100_000


def test_cancelling_leaves_nothing(specify, folder):
    specification, graph = specify('lit')
    cancelled = threading.Event()
    at = []

    def report(progress):
        if progress.fraction and not cancelled.is_set():
            at.append(time.monotonic())
            cancelled.set()

    with pytest.raises(BuildCancelledError, match=r'lit.*onnx was cancelled'):
        build_engine(specification, graph, report, cancelled)
    assert time.monotonic() - at[0] < 1.0
    assert not list(folder.iterdir())
    assert not children()


def test_cancelled_before_it_began(specify, folder):
    specification, graph = specify()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(BuildCancelledError):
        build_engine(specification, graph, lambda progress: None, cancelled)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ('number', 'message'),
    [
        (signal.SIGSEGV, 'SIGSEGV: TensorRT or the driver crashed'),
        (signal.SIGKILL, 'SIGKILL, mostly for want of memory'),
    ],
)
def test_crash_is_an_error(number, message, specify, folder):
    specification, graph = specify('lit')
    sent, niceness = [], []

    def report(progress):
        if progress.fraction and not sent:
            sent.extend(children())
            niceness.append(os.getpriority(os.PRIO_PROCESS, sent[0]))
            os.kill(sent[0], number)

    with pytest.raises(EngineError, match=message):
        build_engine(specification, graph, report, threading.Event())
    assert len(sent) == 1
    assert niceness[0] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    assert not list(folder.iterdir())


def test_child_that_ends_before_it_reads_is_an_error(specify, tmp_path, monkeypatch, folder):
    (tmp_path / 'sitecustomize.py').write_text('raise SystemExit(3)')
    monkeypatch.syspath_prepend(tmp_path)
    specification, graph = specify()
    # More than a pipe takes, so that writing it fails.
    specification = dataclasses.replace(specification, flags=('X' * 1_000_000,))
    with pytest.raises(EngineError, match='process that builds its engine failed'):
        build_engine(specification, graph, lambda progress: None, threading.Event())
    assert not list(folder.iterdir())
    assert not children()


def test_what_else_the_child_prints_does_no_harm(specify, tmp_path, monkeypatch):
    (tmp_path / 'sitecustomize.py').write_text('print("hello", flush=True)')
    monkeypatch.syspath_prepend(tmp_path)
    specification, graph = specify()
    build_engine(specification, graph, lambda progress: None, threading.Event())
    assert len(store.load(specification)) > 100_000


PARENT = """
import sys, threading
from pathlib import Path
from adaptok_ros.engines.build import build_engine
from adaptok_ros.engines.specification import Specification
import json
order = json.load(sys.stdin)
specification = Specification.from_json(order['specification'])
def report(progress):
    print(progress.phase, flush=True)
build_engine(specification, Path(order['onnx']), report, threading.Event())
"""


def start(specification, graph):
    """A process that builds, and prints the phases."""
    order = {'specification': dataclasses.asdict(specification), 'onnx': str(graph)}
    process = subprocess.Popen(
        [sys.executable, '-c', PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    return process


def test_child_dies_with_its_parent(specify, folder):
    with start(*specify('lit')) as process:
        wait_until(lambda: process.stdout.readline() == 'reading the graph\n')
        (child,) = map(
            int, Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        )
        process.kill()
        wait_until(lambda: not alive(child))
    assert store.entries() == []
    remove_leftovers()
    assert not list(folder.iterdir())


def test_two_processes_build_once(specify):
    specification, graph = specify('lit')
    with start(specification, graph) as first:
        wait_until(lambda: first.stdout.readline() == 'reading the graph\n')
        with start(specification, graph) as second:
            phases = second.stdout.read().splitlines()
    assert (first.returncode, second.returncode) == (0, 0)
    assert 'waiting for another process that builds it' in phases
    assert 'reading the graph' not in phases
    store.load(specification)


def test_graph_with_tensors_in_another_file(specify, tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is missing: it moves tensors into a file')
    model = shutil.copytree(TINY, tmp_path / 'model')
    graph, data = model / 'encoder.onnx', model / 'encoder.onnx.data'
    onnx.save_model(
        onnx.load(graph), graph, save_as_external_data=True, location=data.name, size_threshold=0
    )
    listed(model, [graph.name, data.name])
    specification, _ = specify(model=model)
    build_engine(specification, graph, lambda progress: None, threading.Event())
    assert len(store.load(specification)) > 100_000

    data.write_bytes(data.read_bytes()[:-4] + bytes(4))
    with pytest.raises(EngineError, match='changed since its engine was asked for'):
        build_engine(
            dataclasses.replace(specification, model='another'),
            graph,
            lambda progress: None,
            threading.Event(),
        )
    listed(model, [graph.name, data.name])
    assert specify(model=model)[0].key != specification.key


def test_file_that_is_no_graph_is_refused(specify, tmp_path, folder):
    model = shutil.copytree(TINY, tmp_path / 'model')
    (model / 'decoder.onnx').write_bytes(b'not a graph')
    listed(model, ['encoder.onnx', 'decoder.onnx'])
    specification, graph = specify('decoder', model=model)
    with pytest.raises(EngineError, match=r'decoder.*onnx: tensorrt_rtx cannot read it'):
        build_engine(specification, graph, lambda progress: None, threading.Event())
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'onnx_sha256': '0' * 64}, 'changed since'),
        ({'backend_version': '10.3.0'}, r'tensorrt_rtx is .*; needed is 10\.3\.0'),
        ({'profile': {'image': ((1, 64, 64, 7),) * 3}}, 'cannot build it: .*Dimension mismatch'),
        ({'profile': {'picture': ((1, 64, 64, 3),) * 3}}, 'cannot build it: .*missing dimensions'),
        ({'profile': {'image': ((2, 64, 64, 3), *((1, 64, 64, 3),) * 2)}}, 'do not fit'),
    ],
)
def test_what_cannot_be_built_is_an_error(fields, message, specify, folder):
    specification, graph = specify()
    specification = dataclasses.replace(specification, **fields)
    with pytest.raises(EngineError, match=message):
        build_engine(specification, graph, lambda progress: None, threading.Event())
    assert not list(folder.iterdir())


# The command.


def build(*arguments):
    return main(
        [
            'engine',
            'build',
            'adaptok-tiny',
            '--part',
            'encoder',
            '--backend',
            'tensorrt_rtx',
            '--compute-capability',
            CAPABILITY,
            *arguments,
        ]
    )


def test_command_line(specify, folder, capsys):
    assert build('--image-size', '480x640') == 0
    assert f'keyed by compute capability {CAPABILITY}' in capsys.readouterr().out
    assert build('--image-size', '480x640') == 0
    assert 'there already' in capsys.readouterr().out
    (plan,) = folder.glob('*.plan')
    assert plan.stem == specify(image_size=(480, 640))[0].key
    assert main(['engine', 'list']) == 0
    out = capsys.readouterr().out
    assert '1x480x640x3' in out
    if missing_driver():
        assert 'not known: no GPU here; built for any GPU of compute capability 8.6' in out
    assert main(['engine', 'inspect', plan.stem[:6]]) == 0
    assert 'whole' in capsys.readouterr().out
    os.truncate(plan, 1000)
    assert build('--image-size', '480x640') == 0
    out = capsys.readouterr().out
    assert 'to be built anew' in out and 'truncated' in out
    assert main(['engine', 'clean']) == 0
    out = capsys.readouterr().out
    if missing_driver():
        assert 'engines left: 1' in out, 'an engine for a GPU that is not here was removed'


def test_command_line_takes_a_size_for_the_encoder_alone(specify, capsys):
    assert (
        main(
            [
                'engine',
                'build',
                'adaptok-tiny',
                '--part',
                'lit',
                '--backend',
                'tensorrt_rtx',
                '--compute-capability',
                CAPABILITY,
                '--image-size',
                '480x640',
            ]
        )
        == 1
    )
    assert 'allowed: with the encoder' in capsys.readouterr().err


def test_command_line_of_another_version(specify, capsys):
    specification, _ = specify()
    old = dataclasses.replace(specification, backend_version='1.0.0')
    store.save(old, b'old', 0.0)
    assert main(['engine', 'list']) == 0
    assert 'no: tensorrt_rtx is ' in capsys.readouterr().out
    assert main(['engine', 'clean']) == 0
    assert f'removed {old.key[:12]}: no: tensorrt_rtx is ' in capsys.readouterr().out


def compilers_of(parent):
    """Its processes that compile; before one has begun, its parent waits for it."""
    return [
        child
        for child in children(parent)
        if b'adaptok_ros.engines.build' in Path(f'/proc/{child}/cmdline').read_bytes()
    ]


def test_interrupted_command_leaves_nothing(specify, folder):
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'adaptok_ros',
            'engine',
            'build',
            'adaptok-tiny',
            '--part',
            'decoder',
            '--backend',
            'tensorrt_rtx',
            '--compute-capability',
            CAPABILITY,
        ],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
    )
    with process:
        wait_until(lambda: compilers_of(process.pid))
        # However fast it compiles, it is not done yet.
        os.kill(compilers_of(process.pid)[0], signal.SIGSTOP)
        assert list(folder.glob('*.lock'))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert not list(folder.iterdir())


# On a GPU.


@pytest.fixture(params=['tensorrt', 'tensorrt_rtx'])
def backend(request):
    """A backend that can run here."""
    torch = pytest.importorskip('torch')
    if missing_driver() or not torch.cuda.is_available():
        pytest.skip(f'needs a CUDA device: {missing_driver() or "torch is built without CUDA"}')
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f'{request.param} is not installed')
    return request.param


def build_here(specification, graph):
    build_engine(specification, graph, lambda progress: None, threading.Event())


def images(batch=1, size=(480, 640)):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)


def on_cpu(image):
    """Latents by ONNX Runtime, float32."""
    from adaptok_ros.engines.runner import Runner

    engine = create_engine(GraphRequest(TINY, 'encoder', 'onnxruntime'))
    if engine.device != 'cpu':
        pytest.skip('ONNX Runtime runs on CUDA itself here')
    return Runner(engine).run({'image': image})['latents'].copy()


def test_engine_agrees_with_onnx_runtime(backend):
    import torch

    from adaptok_ros.networks.half import HALF_TOLERANCE

    engine = create_engine(GraphRequest(TINY, 'encoder', backend), build_here)
    assert (engine.backend, engine.device) == (backend, 'cuda:0')
    binding = engine.bind({'image': (1, 480, 640, 3)})
    binding.inputs['image'].copy_(torch.from_numpy(images()))
    binding.run()
    torch.cuda.synchronize()
    found = binding.outputs['latents'].float().cpu().numpy()
    # What the export of the half graph may differ by, and that of TensorRT's kernels besides.
    assert np.abs(found - on_cpu(images())).mean(-1).max() < 2 * HALF_TOLERANCE
    engine.close()
    with pytest.raises(EngineError, match='closed'):
        binding.run()
    with pytest.raises(EngineError, match='closed'):
        engine.bind({'image': (1, 480, 640, 3)})


def test_engine_in_a_cuda_graph(backend):
    import torch

    engine = create_engine(GraphRequest(TINY, 'encoder', backend), build_here)
    binding = engine.bind({'image': (1, 240, 320, 3)})
    assert engine.capturable
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
        binding.run()
    for seed in range(3):
        image = torch.from_numpy(np.roll(images(size=(240, 320)), seed, axis=1))
        with torch.cuda.stream(stream):
            binding.inputs['image'].copy_(image)
            binding.run()
            expected = binding.outputs['latents'].clone()
            binding.outputs['latents'].zero_()
            before = torch.cuda.memory_stats()['allocation.all.allocated']
            graph.replay()
            assert torch.cuda.memory_stats()['allocation.all.allocated'] == before
        stream.synchronize()
        assert torch.equal(binding.outputs['latents'], expected)
    del graph
    engine.close()


def test_bindings_do_not_disturb_each_other(backend):
    import torch

    engine = create_engine(GraphRequest(TINY, 'encoder', backend), build_here)
    small, large = (engine.bind({'image': (1, *size, 3)}) for size in ((240, 320), (480, 640)))
    large.inputs['image'].copy_(torch.from_numpy(images()))
    large.run()
    torch.cuda.synchronize()
    expected = large.outputs['latents'].clone()
    other = torch.from_numpy(images(size=(240, 320))).cuda()
    small.bind_input('image', other)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, binding in zip(streams, (small, large)):
            with torch.cuda.stream(stream):
                binding.run()
    torch.cuda.synchronize()
    assert torch.equal(large.outputs['latents'], expected)
    engine.close()


def test_what_does_not_fit_is_refused(backend):
    import torch

    request = GraphRequest(TINY, 'encoder', backend, image_size=(480, 640))
    engine = create_engine(request, build_here)
    with pytest.raises(EngineError, match=r'image has shape .*input_height.*--image-size'):
        engine.bind({'image': (1, 240, 320, 3)})
    with pytest.raises(EngineError, match=r"inputs are \['picture'\]"):
        engine.bind({'picture': (1, 480, 640, 3)})
    binding = engine.bind({'image': (1, 480, 640, 3)})
    shape, kind = (1, 480, 640, 3), torch.uint8
    storage = torch.zeros(480 * 640 * 3 + 64, dtype=kind, device='cuda:0')
    for name, buffer, message in (
        ('image', torch.zeros(shape, dtype=kind), 'on cpu'),
        ('image', torch.zeros(shape, device='cuda:0'), 'float32'),
        ('image', storage[16 : 16 - 64].view(shape), 'multiples of 256'),
        ('picture', torch.zeros(shape, dtype=kind, device='cuda:0'), 'allowed'),
    ):
        with pytest.raises(EngineError, match=message):
            binding.bind_input(name, buffer)
    engine.close()


def test_missing_engine_names_the_command(backend):
    request = GraphRequest(TINY, 'encoder', backend, image_size=(480, 640))
    with pytest.raises(EngineError, match=r'adaptok engine build .*--image-size 480x640'):
        create_engine(request)


def test_no_memory_left_is_an_error(backend):
    import torch

    request = GraphRequest(TINY, 'encoder', backend, image_size=(1088, 1920), batch=8)
    engine = create_engine(request, build_here)
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(max(free - (64 << 20), 0), dtype=torch.uint8, device='cuda:0')
    with pytest.raises(EngineError, match='memory'):
        engine.bind({'image': (8, 1088, 1920, 3)})
    del filler
    torch.cuda.empty_cache()
    engine.bind({'image': (8, 1088, 1920, 3)})
    engine.close()
