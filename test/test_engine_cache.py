"""The private cache of engines: what it keeps, and whom it does not trust."""

import dataclasses
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time

import pytest

from adaptok_ros.cli import main
from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cache.folder import location
from adaptok_ros.engines.cache.lock import give_up, lock, remove_leftovers
from adaptok_ros.engines.cache.timings import read_timings, remove_timings, write_timings
from adaptok_ros.engines.errors import EngineError, EngineMissingError
from adaptok_ros.engines.specification import Specification

PLAN = bytes(range(256)) * 40
SPECIFICATION = Specification(
    model='adaptok-tiny@bf09711dde91',
    part='encoder',
    onnx_sha256='a6' * 32,
    backend='tensorrt',
    backend_version='10.3.0',
    gpu='Orin',
    compute_capability='8.7',
    precision='float16',
    profile={'image': ((1, 64, 64, 3), (1, 480, 640, 3), (2, 1088, 1920, 3))},
    flags=('STRONGLY_TYPED',),
)
OTHERS = {
    'model': 'other@000000000000',
    'part': 'lit',
    'onnx_sha256': 'b7' * 32,
    'backend': 'tensorrt_rtx',
    'backend_version': '10.13.3',
    'gpu': 'NVIDIA Thor',
    'compute_capability': '11.0',
    'precision': 'float32',
    'profile': {'image': ((1, 64, 64, 3),) * 3},
    'flags': ('EXPLICIT_BATCH', 'FP16'),
}
"""Another value of every field."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache's folder, absent so far."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'adaptok_ros' / 'engines'


@pytest.fixture
def stored(folder):
    """Paths of the plan and the manifest of an engine in the cache."""
    store.save(SPECIFICATION, PLAN, 12.3456)
    key = SPECIFICATION.key
    return folder / f'{key}.plan', folder / f'{key}.json'


def edit(manifest, **fields):
    text = json.loads(manifest.read_text())
    for name, value in fields.items():
        (text if name in text else text['specification'])[name] = value
    manifest.write_text(json.dumps(text))


def test_gives_back_what_was_stored(stored, folder):
    assert store.load(SPECIFICATION) == PLAN
    manifest = store.verify(SPECIFICATION.key)
    assert manifest.specification == SPECIFICATION
    assert (manifest.plan_bytes, manifest.build_seconds) == (len(PLAN), 12.35)
    assert [entry.key for entry in store.entries()] == [SPECIFICATION.key]
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in stored)


def test_is_private(stored, folder):
    for path in (folder, folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in stored:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', 'somewhere')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert location() == tmp_path / '.cache' / 'adaptok_ros' / 'engines'


def test_needs_neither_torch_nor_tensorrt():
    code = (
        'import sys, adaptok_ros.engines.build\n'
        'from adaptok_ros.engines.cache import folder, lock, store, timings\n'
        "print({'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert found.stdout.strip() == 'set()', found.stderr


@pytest.mark.parametrize('field', OTHERS)
def test_every_field_decides(field, stored):
    assert set(OTHERS) == {f.name for f in dataclasses.fields(Specification)}
    other = dataclasses.replace(SPECIFICATION, **{field: OTHERS[field]})
    assert other.key != SPECIFICATION.key
    with pytest.raises(EngineMissingError):
        store.load(other)


@pytest.mark.parametrize('field', OTHERS)
def test_engine_built_elsewhere_is_refused(field, stored, folder):
    """Under the name of one that would fit."""
    here = dataclasses.replace(SPECIFICATION, **{field: OTHERS[field]})
    for path in stored:
        path.rename(folder / f'{here.key}{path.suffix}')
    with pytest.raises(EngineError, match=rf'built for something else: {field} is .*engine clean'):
        store.load(here)


@pytest.mark.parametrize('field', OTHERS)
def test_edited_manifest_is_refused(field, stored):
    edit(stored[1], **{field: OTHERS[field]})
    with pytest.raises(EngineError, match=rf'{field} is .*engine clean'):
        store.load(SPECIFICATION)
    assert store.entries()[0].problem == 'its manifest is that of another engine'


def test_truncated_plan_is_refused(stored):
    os.truncate(stored[0], 100)
    with pytest.raises(EngineError, match=r'100 bytes, its manifest says 10240.*engine clean'):
        store.load(SPECIFICATION)
    assert store.entries()[0].problem == 'truncated'


def test_exchanged_plan_is_refused(stored):
    stored[0].write_bytes(bytes(len(PLAN)))
    with pytest.raises(EngineError, match=r'SHA-256 .*exchanged.*engine clean'):
        store.load(SPECIFICATION)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{}',
        'null',
        '{"specification": {}}',
        '\xff',
        '{"specification": 1}',
        '[' * 100_000,
    ],
)
def test_damaged_manifest_is_refused(text, stored):
    stored[1].write_text(text, encoding='latin-1')
    with pytest.raises(EngineError, match=r'not the manifest of an engine.*engine clean'):
        store.load(SPECIFICATION)
    assert store.entries()[0].problem == 'not a manifest'


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('built', 'yesterday'),
        ('build_seconds', None),
        ('build_seconds', 10**400),
        ('profile', [1]),
        ('flags', 1),
        ('gpu', 1),
    ],
)
def test_manifest_of_other_types_is_refused(field, value, stored):
    edit(stored[1], **{field: value})
    with pytest.raises(EngineError, match='not the manifest of an engine'):
        store.load(SPECIFICATION)


def test_plan_without_manifest_does_not_count(stored):
    stored[1].unlink()
    with pytest.raises(EngineMissingError):
        store.load(SPECIFICATION)
    assert store.entries()[0].problem == 'no manifest'


def test_manifest_without_plan_is_refused(stored):
    stored[0].unlink()
    with pytest.raises(EngineError, match='missing, though its manifest is there'):
        store.load(SPECIFICATION)


@pytest.mark.parametrize('mode', [0o777, 0o770, 0o702])
@pytest.mark.parametrize('level', ['engines', 'adaptok_ros'])
def test_folder_that_others_can_write_is_refused(mode, level, stored, folder):
    path = folder if level == 'engines' else folder.parent
    path.chmod(mode)
    for call in (
        lambda: store.load(SPECIFICATION),
        store.entries,
        lambda: store.save(SPECIFICATION, PLAN, 1.0),
        lambda: read_timings('tensorrt', '10.3.0', '8.7'),
    ):
        with pytest.raises(EngineError, match=f'others may write.*{mode:o}.*chmod 700 {path}'):
            call()
    path.chmod(0o700)
    assert store.load(SPECIFICATION) == PLAN


def test_link_to_a_folder_that_others_can_write_is_refused(folder, tmp_path):
    target = tmp_path / 'shared'
    target.mkdir()
    target.chmod(0o777)
    folder.parent.mkdir(parents=True, mode=0o700)
    folder.symlink_to(target)
    with pytest.raises(EngineError, match=f'{target}: others may write.*chmod 700 {target}'):
        store.save(SPECIFICATION, PLAN, 1.0)
    assert not list(target.iterdir())


def test_link_to_a_private_folder_is_followed(folder, tmp_path):
    target = tmp_path / 'large_disk'
    target.mkdir(mode=0o700)
    folder.parent.mkdir(parents=True, mode=0o700)
    folder.symlink_to(target)
    store.save(SPECIFICATION, PLAN, 1.0)
    assert store.load(SPECIFICATION) == PLAN
    assert len(list(target.iterdir())) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a folder to another user')
@pytest.mark.parametrize('what', ['folder', 'plan', 'manifest'])
def test_what_is_not_ours_is_refused(what, stored, folder):
    path = {'folder': folder, 'plan': stored[0], 'manifest': stored[1]}[what]
    os.chown(path, 12345, -1)
    with pytest.raises(EngineError, match=f'{path}: belongs to user 12345.*chown -R 0 {path}'):
        store.load(SPECIFICATION)


@pytest.mark.parametrize('which', [0, 1])
def test_file_that_others_can_write_is_refused(which, stored):
    stored[which].chmod(0o666)
    with pytest.raises(EngineError, match='others may write'):
        store.load(SPECIFICATION)


@pytest.mark.parametrize('which', [0, 1])
def test_link_in_place_of_a_file_is_refused(which, stored, tmp_path):
    stored[which].rename(tmp_path / 'elsewhere')
    stored[which].symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(EngineError, match=r'not a file of this cache.*engine clean'):
        store.load(SPECIFICATION)


@pytest.mark.timeout(10)
def test_pipe_in_place_of_a_file_is_refused(stored):
    stored[0].unlink()
    os.mkfifo(stored[0])
    with pytest.raises(EngineError, match='not a file'):
        store.load(SPECIFICATION)


def test_file_in_place_of_the_folder_is_refused(folder):
    folder.parent.mkdir(parents=True, mode=0o700)
    folder.write_text('')
    with pytest.raises(EngineError, match='XDG_CACHE_HOME'):
        store.entries()


def test_full_disk_leaves_nothing(folder):
    store.entries()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(EngineError, match='make room or rights, or set XDG_CACHE_HOME'):
            store.save(SPECIFICATION, PLAN, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(folder.iterdir())


def test_storing_again_replaces(stored):
    stored[0].write_bytes(b'damaged')
    store.save(SPECIFICATION, PLAN[::-1], 1.0)
    assert store.load(SPECIFICATION) == PLAN[::-1]


def test_one_builds_while_the_other_waits(folder):
    """Many threads, each with a file of its own, as processes have."""
    inside, most, waits = [], [], []

    def work(index):
        def wait():
            waits.append(index)
            time.sleep(0.002)

        for _ in range(20):
            with lock('0' * 64, wait):
                inside.append(index)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and set(most) == {1}
    assert waits
    assert not list(folder.iterdir())


def test_waiting_can_be_given_up(folder):
    def leave():
        raise TimeoutError

    with lock('0' * 64, leave), pytest.raises(TimeoutError), lock('0' * 64, leave):
        pass
    assert not list(folder.iterdir())


def test_lock_that_cannot_tidy_up_is_given_back(folder):
    store.entries()
    stuck = folder / f'{"0" * 64}.abcd.partial'
    stuck.mkdir()
    with pytest.raises(EngineError, match='cannot keep engines'), lock('0' * 64, give_up):
        pass
    stuck.rmdir()
    with lock('0' * 64, give_up):
        pass
    assert not list(folder.iterdir())


@pytest.mark.parametrize('options', [[], ['--all']])
def test_clean_leaves_what_is_being_built(options, stored, capsys):
    """At the moment when its plan is there and its manifest is not."""
    stored[1].unlink()
    with lock(SPECIFICATION.key, give_up):
        assert main(['engine', 'clean', *options]) == 0
        assert f'left {SPECIFICATION.key[:12]}: it is being built' in capsys.readouterr().out
        store.save(SPECIFICATION, PLAN, 1.0)
    assert store.load(SPECIFICATION) == PLAN
    stored[1].unlink()
    assert main(['engine', 'clean', *options]) == 0
    assert 'engines left: 0' in capsys.readouterr().out


def test_leftovers_are_removed_unless_somebody_builds(folder):
    store.entries()
    busy, dead = '1' * 64, '2' * 64
    with lock(busy, lambda: None):
        for key in (busy, dead):
            (folder / f'{key}.abcd.partial').write_bytes(bytes(1000))
        assert remove_leftovers() == 1000
        assert (folder / f'{busy}.abcd.partial').is_file()
    assert not list(folder.iterdir())


def test_timings(folder):
    assert read_timings('tensorrt', '10.3.0', '8.7') == b''
    write_timings('tensorrt', '10.3.0', '8.7', b'timings')
    assert read_timings('tensorrt', '10.3.0', '8.7') == b'timings'
    assert read_timings('tensorrt', '10.3.0', '8.9') == b''
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    with pytest.raises(EngineError, match='others may write'):
        read_timings('tensorrt', '10.3.0', '8.7')
    assert remove_timings() == 7


def test_list_and_inspect(stored, capsys):
    assert main(['engine', 'list']) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ['key', 'model', 'part']
    for text in ('adaptok-tiny@bf09711dde91', 'tensorrt 10.3.0', '2x1088x1920x3', 'float16'):
        assert text in row
    assert main(['engine', 'inspect', SPECIFICATION.key[:8]]) == 0
    out = capsys.readouterr().out
    assert str(stored[0]) in out and 'gpu: Orin' in out and 'whole' in out
    os.truncate(stored[0], 1)
    assert main(['engine', 'inspect', SPECIFICATION.key]) == 1
    assert 'truncated' in capsys.readouterr().err
    assert main(['engine', 'inspect', 'x']) == 1
    assert '0 engines' in capsys.readouterr().err


def test_clean_removes_what_is_damaged(stored, folder, capsys):
    store.save(dataclasses.replace(SPECIFICATION, part='decoder'), PLAN, 1.0)
    write_timings('tensorrt', '10.3.0', '8.7', b'timings')
    os.truncate(stored[0], 1)
    exchanged = dataclasses.replace(SPECIFICATION, part='decoder').key
    (folder / f'{exchanged}.plan').write_bytes(bytes(len(PLAN)))
    assert main(['engine', 'clean']) == 0
    out = capsys.readouterr().out
    assert f'removed {SPECIFICATION.key[:12]}: no: truncated' in out
    assert f'removed {exchanged[:12]}' in out
    assert not {path.suffix for path in folder.iterdir()} & {'.plan', '.json'}
    assert main(['engine', 'clean', '--all']) == 0
    assert 'engines left: 0' in capsys.readouterr().out
    assert not list(folder.iterdir())
    assert main(['engine', 'list']) == 0
    assert 'no engines' in capsys.readouterr().out


def test_command_names_the_cure(stored, folder, capsys):
    folder.chmod(0o777)
    assert main(['engine', 'list']) == 1
    assert f'chmod 700 {folder}' in capsys.readouterr().err
