"""Bags in stores of real fsspec: copied, made and uploaded, and nothing half there looks whole."""

import functools
import json
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from image_bags import images, word, write_bag

from adaptok_ros.bags.bag import BagError, read_packets
from adaptok_ros.bags.parallel import prepare, run_jobs
from adaptok_ros.bags.recording import METADATA
from adaptok_ros.bags.source import find_bags, open_bag
from adaptok_ros.bags.store import (
    MARKER,
    MOST_METADATA,
    StoreError,
    Url,
    is_there,
    local_copy,
    local_target,
    look,
    place,
    read_file,
)
from adaptok_ros.bags.tokenize import Job, Request, tokenize_bag
from adaptok_ros.cli import main
from adaptok_ros.errors import AdaptokError, MissingPackageError

fsspec = pytest.importorskip(
    'fsspec', reason="fsspec is missing: pip install 'adaptok_ros[store]'"
)
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

TOPIC, TOKENS = '/front/image_raw', '/front/tokenizer/tokens'
PUTS = 4
"""Of a bag: the marker, its one file, the metadata, and then the marker is removed."""


class Faulty(MemoryFileSystem):
    """A store whose k-th write fails half way; it may refuse to delete from then on."""

    protocol = 'faulty'
    store = {}  # noqa: RUF012  # as in the class above
    pseudo_dirs = ['']  # noqa: RUF012
    left, deletes, down = -1, True, False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace('faulty://', 'memory://'))

    @classmethod
    def count(cls):
        cls.left -= 1
        if cls.left == 0:
            cls.down = True
            raise ConnectionError('the line is cut')

    def put_file(self, lpath, rpath, callback=None, **kwargs):
        try:
            self.count()
        except ConnectionError:
            data = Path(lpath).read_bytes()
            self.pipe_file(rpath, data[: len(data) // 2])
            raise
        super().put_file(lpath, rpath, callback=callback, **kwargs)

    def rm_file(self, path):
        if path.endswith(MARKER):
            self.count()
        if self.down and not self.deletes:
            raise ConnectionError('the line is cut')
        super().rm_file(path)


@pytest.fixture(scope='module')
def tokens(tmp_path_factory):
    """A bag of tokens on the local disk."""
    folder = tmp_path_factory.mktemp('local')
    write_bag(folder / 'run7', {TOPIC: images(4)})
    request = Request()
    target = folder / 'tokens/run7'
    tokenize_bag(Job(folder / 'run7', target, request, json.dumps(request.record())))
    return target


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    """Empty stores, and a folder for what is temporary, in which nothing must be left."""
    fsspec.register_implementation('faulty', Faulty, clobber=True)
    for kind in (MemoryFileSystem, Faulty):
        kind.store.clear()
        kind.pseudo_dirs[:] = ['']
    Faulty.left, Faulty.deletes, Faulty.down = -1, True, False
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setenv('TMPDIR', str(temporary))
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    yield
    assert not list(temporary.iterdir())


def put(path, url):
    """A folder into a store, as other programs do it."""
    fs, root = fsspec.core.url_to_fs(url)
    for file in path.rglob('*'):
        if file.is_file():
            fs.pipe_file(f'{root}/{file.relative_to(path)}', file.read_bytes())


def names(url):
    return sorted(look(Url(url)).files)


def upload(url, text, replace=False):
    """A small bag, into a store."""
    with local_target(Url(url), replace) as path:
        write_bag(path, {'/word': [word(text)]})


def test_urls_and_paths_are_told_apart():
    for text in ('s3://b/run', 'zip://run::s3://b/x.zip', 'simplecache::gs://b/run', 'file:///r'):
        assert isinstance(place(text), Url)
    for text in ('run7', '/data/run7', 'a:b', 'C:/x', './s3:/b'):
        assert isinstance(place(text), Path)
    assert Url('s3://b/runs/') / 'a/b' == 's3://b/runs/a/b'
    assert Url('zip://::file:///x.zip') / 'run' == 'zip://run::file:///x.zip'
    assert Url('simplecache::s3://b') / 'run' == 'simplecache::s3://b/run'
    assert Url('file:///') / 'run' == 'file:///run'
    assert [Url(text).name for text in ('s3://b/runs/7/', 'zip://::file:///d/x.zip')] == [
        '7',
        'x.zip',
    ]


def test_queries_and_passwords_are_no_part_of_names_and_are_not_shown():
    signed = Url('https://me:PASSWORD@h/b/run7.mcap?X-Amz-Credential=a/b&sig=SECRET#part')
    assert signed.name == 'run7.mcap'
    below = signed / 'metadata.yaml'
    assert below[:] == (
        'https://me:PASSWORD@h/b/run7.mcap/metadata.yaml?X-Amz-Credential=a/b&sig=SECRET#part'
    )
    assert type(pickle.loads(pickle.dumps(below))) is Url
    assert pickle.loads(pickle.dumps(below)) == below
    shown = 'https://…@h/b/run7.mcap?…'
    assert [str(signed), f'{signed}', '%s' % signed] == [shown] * 3  # noqa: UP031
    assert repr(signed) == repr(shown)
    assert str(Url('zip://run::https://h/x.zip?sig=SECRET')) == 'zip://run::https://h/x.zip?…'
    assert str(Url('ftp://me:P@SS@h/run')) == 'ftp://…@h/run'
    for plain in ('s3://b/run?1#2', 'file:///a@b/run', 'zip://run::s3://b/x.zip'):
        assert str(Url(plain)) == plain  # keys may have such characters
    assert Url('s3://b/run?1#2').name == 'run?1#2'


def test_passwords_are_neither_in_pages_nor_in_messages(tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put(tokens, 'faulty://me:SECRET@host/run7')
    assert main(['report', 'faulty://me:SECRET@host/run7']) == 0
    assert 'SECRET' not in Path('run7.html').read_text() + capsys.readouterr().out
    assert main(['bag', 'inspect', 'faulty://me:SECRET@host/run7', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['bag'] == 'faulty://…@host/run7'

    def refuse(*_, **__):
        raise PermissionError('no entry: https://me:SECRET@host/run7?sig=SECRET')

    command = [
        'bag',
        'tokenize',
        'faulty://me:SECRET@host/run7',
        '-o',
        'faulty://me:SECRET@host/o',
    ]
    assert main([*command, '--json']) == 1  # nothing in it is an image
    (bag,) = json.loads(capsys.readouterr().out)['bags']
    assert (bag['source'], bag['target']) == ('faulty://…@host/run7', 'faulty://…@host/o/run7')
    assert 'SECRET' not in json.dumps(bag)
    monkeypatch.setattr(Faulty, 'ls', refuse)
    assert main(['bag', 'inspect', 'faulty://me:SECRET@host/run7']) == 1
    said = capsys.readouterr().err
    assert 'no entry: https://…@host/run7?…' in said and 'SECRET' not in said


def test_a_signed_url_of_a_file_is_read(tokens):
    pytest.importorskip('aiohttp', reason="aiohttp is missing: pip install 'fsspec[http]'")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(tokens))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = Url(f'http://127.0.0.1:{server.server_port}/run7.mcap?credential=a/b&sig=SECRET')
        assert [source.name for source in find_bags([url], Path('out'))] == ['run7']
        with local_copy(url) as path:
            assert path.name == 'run7.mcap'
            assert len(list(read_packets(path, TOKENS))) == 4
        server.shutdown()


def test_metadata_are_read_up_to_a_limit(tmp_path):
    fs = fsspec.filesystem('memory')
    for size in (MOST_METADATA, MOST_METADATA + 1):
        fs.pipe_file('/run/metadata.yaml', bytes(size))
        (tmp_path / METADATA).write_bytes(bytes(size))
        for run in (Url('memory://run'), tmp_path):
            if size == MOST_METADATA:
                assert len(read_file(run / METADATA)) == size
            else:
                with pytest.raises(BagError, match=r'metadata.yaml: more than 16777216 bytes'):
                    read_file(run / METADATA)


def test_bags_are_tokenized_from_a_store_into_one_and_resumed(tmp_path, tokens, capsys):
    shutil.copytree(tokens.parents[1] / 'run7', tmp_path / 'in/day/run7')
    put(tmp_path / 'in', 'memory://in')
    command = ['bag', 'tokenize', 'memory://in', '-o', 'memory://in/out']
    assert main(command) == 0
    assert '1 done' in capsys.readouterr().out
    assert names('memory://in/out/day/run7') == [METADATA, 'run7.mcap']
    with local_copy(Url('memory://in/out/day/run7')) as path:
        sent = [packet.data.tobytes() for packet in read_packets(path, TOKENS)]
    here = read_packets(tokens, TOKENS)
    assert sent == [packet.data.tobytes() for packet in here] and len(sent) == 4
    # A recording and its copy are the same, so what was made of either counts.
    assert main(command) == 0
    assert main(['bag', 'tokenize', str(tmp_path / 'in'), '-o', 'memory://in/out']) == 0
    assert capsys.readouterr().out.count('1 kept') == 2
    assert main([*command, '--tau', '0.3']) == 1
    assert '(tau: 0.05 there, 0.3 here); --redo' in ' '.join(capsys.readouterr().out.split())
    assert main([*command, '--tau', '0.3', '--redo', '--json']) == 0
    (bag,) = json.loads(capsys.readouterr().out)['bags']
    assert (bag['state'], bag['target']) == ('done', 'memory://in/out/day/run7')


def test_a_bag_that_cannot_be_uploaded_is_told_and_the_others_are_made(tokens):
    request = Request()
    settings = json.dumps(request.record())
    source = tokens.parents[1] / 'run7'
    jobs = [
        pickle.loads(pickle.dumps(Job(source, Url(f'faulty://out/{name}'), request, settings)))
        for name in ('a', 'b')
    ]
    Faulty.left = 2
    outcomes = list(run_jobs(jobs, 1, processes=False, report=lambda _: None))
    assert [(outcome.target, outcome.state) for outcome in outcomes] == [
        ('faulty://out/a', 'failed'),
        ('faulty://out/b', 'done'),
    ]
    assert outcomes[0].error == 'faulty://out/a: ConnectionError: the line is cut'
    todo, kept = prepare(jobs, redo=False)
    assert (todo, [outcome.state for outcome in kept]) == (jobs[:1], ['kept'])


def test_folders_are_made_where_a_store_has_them(tmp_path):
    upload(f'file://{tmp_path}/new/deep/run', 'a')
    assert [path.name for path in (tmp_path / 'new/deep').iterdir()] == ['run']
    (tmp_path / 'file').write_text('of somebody else')
    with pytest.raises(BagError, match='exists already'):
        upload(f'file://{tmp_path}/file', 'a', replace=True)
    assert (tmp_path / 'file').read_text() == 'of somebody else'


@pytest.mark.parametrize('deletes', [True, False])
@pytest.mark.parametrize('replace', [True, False])
@pytest.mark.parametrize('at', range(1, PUTS + 1))
def test_an_upload_that_fails_never_looks_finished(at, replace, deletes):
    if replace:
        upload('faulty://out/run', 'old')
    Faulty.left, Faulty.deletes = at, deletes
    with pytest.raises(StoreError, match='faulty://out/run: ConnectionError: the line is cut'):
        upload('faulty://out/run', 'new', replace)
    Faulty.left, Faulty.down = -1, False
    if replace and deletes and at == 1:
        assert names('faulty://out/run') == [METADATA, 'run.mcap']  # it had not begun
    else:
        assert not is_there(Url('faulty://out/run'))
        with pytest.raises(AdaptokError), local_copy(Url('faulty://out/run')):
            pass
    upload('faulty://out/run', 'newer', replace)
    assert names('faulty://out/run') == [METADATA, 'run.mcap']
    with local_copy(Url('faulty://out/run')) as path, open_bag(path) as reader:
        ((_, _, data),) = reader.messages()
    assert b'newer' in data


def test_an_upload_leaves_what_another_one_has_finished_or_begun():
    """Two workers make the same bag, as when a task is started again whose worker is slow."""
    fs = fsspec.filesystem('memory')
    for replace in (False, True):
        fs.store.clear()

        def finish(replace=replace):
            if fs.exists(f'/run/{MARKER}') and not fs.exists('/run/metadata.yaml'):
                upload('memory://run', 'first', replace)

        with pytest.raises(BagError, match='exists already') if not replace else nullcontext():
            with local_target(Url('memory://run'), replace, finish) as path:
                write_bag(path, {'/word': [word('second')]})
        assert names('memory://run') == [METADATA, 'run.mcap']
        with local_copy(Url('memory://run')) as path, open_bag(path) as reader:
            ((_, _, data),) = reader.messages()
        assert (b'second' if replace else b'first') in data
    fs.store.clear()

    def begin():
        if fs.exists('/run/run.mcap'):
            fs.pipe_file(f'/run/{MARKER}', b'of another upload')

    with pytest.raises(StoreError, match='memory://run: another upload of it has begun'):
        with local_target(Url('memory://run'), tick=begin) as path:
            write_bag(path, {'/word': [word('first')]})
    assert names('memory://run') == [MARKER, 'run.mcap']
    assert not is_there(Url('memory://run'))


def test_a_target_is_not_locked_where_a_store_fails_after_it_has_deleted(monkeypatch):
    upload('faulty://out/run', 'old')
    delete = Faulty.rm_file

    def fail(self, path):
        delete(self, path)
        if path.endswith(METADATA):
            raise TimeoutError('no answer')

    monkeypatch.setattr(Faulty, 'rm_file', fail)
    with pytest.raises(StoreError, match='TimeoutError: no answer'):
        upload('faulty://out/run', 'new', replace=True)
    assert not is_there(Url('faulty://out/run'))
    monkeypatch.undo()
    upload('faulty://out/run', 'newer', replace=True)
    assert names('faulty://out/run') == [METADATA, 'run.mcap']


def test_what_others_have_put_there_is_not_replaced():
    fsspec.filesystem('memory').pipe_file('/out/run/run.mcap', b'of somebody else')
    for replace in (False, True):
        with pytest.raises(BagError, match='memory://out/run: exists already'):
            upload('memory://out/run', 'new', replace)
    assert names('memory://out/run') == ['run.mcap']
    upload('memory://out/other', 'old')
    with pytest.raises(BagError, match='exists already'):
        upload('memory://out/other', 'new')


def test_what_is_replaced_leaves_no_file_behind():
    upload('memory://run', 'old')
    fsspec.filesystem('memory').pipe_file('/run/run_1.mcap', b'the second part')
    upload('memory://run', 'new', replace=True)
    assert names('memory://run') == [METADATA, 'run.mcap']


def test_bags_are_found_as_in_folders(tmp_path):
    for name in ('a/one', 'a/two', 'b', '.hidden/three', 'out/four'):
        write_bag(tmp_path / 'in' / name, {'/word': [word(name)]})
    shutil.move(tmp_path / 'in/b/b.mcap', tmp_path / 'in/a/three.mcap')
    put(tmp_path / 'in', 'memory://in')
    found = {
        kind: [source.name for source in find_bags([root], root / 'out')]
        for kind, root in (('store', Url('memory://in')), ('disk', tmp_path / 'in'))
    }
    assert found['store'] == found['disk'] == ['a', 'b']
    fsspec.filesystem('memory').rm_file('/in/a/three.mcap')
    found = find_bags([Url('memory://in/'), Url('memory://in/a/one')], Url('memory://in/out/'))
    assert [(str(source.path), source.name) for source in found] == [
        ('memory://in/a/one', 'a/one'),
        ('memory://in/a/two', 'a/two'),
        ('memory://in/b', 'b'),
    ]
    with pytest.raises(BagError, match='memory://nothing: no bag'):
        find_bags([Url('memory://nothing')], tmp_path)


def test_bags_in_stores_are_inspected_reported_and_restored(tmp_path, tokens, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tokens.parent, 'memory://tokens')
    shutil.make_archive(tmp_path / 'archive', 'zip', tokens.parent)
    for url in ('memory://tokens/run7', f'zip://run7::file://{tmp_path}/archive.zip'):
        assert main(['bag', 'inspect', url, '--json']) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record['bag'], record['topics'][0]['packets']) == (url, 4)
    url = 'memory://tokens/run7/run7.mcap'
    assert main(['bag', 'restore', url, '-o', 'out.npz', '--mode', 'hold']) == 0
    assert main(['report', 'memory://tokens/run7']) == 0
    assert Path('run7.html').exists() and Path('out.npz').exists()
    assert main(['bag', 'inspect', 'memory://tokens/run8']) == 1
    assert 'memory://tokens/run8: no bag' in capsys.readouterr().err


def test_a_damaged_bag_is_named_by_its_url(tmp_path, capsys):
    fs = fsspec.filesystem('memory')
    fs.pipe_file('/run/run.mcap', b'no mcap')
    assert main(['bag', 'inspect', 'memory://run']) == 1
    said = capsys.readouterr().err
    assert 'memory://run' in said and str(tmp_path) not in said
    assert main(['bag', 'tokenize', 'memory://run', '-o', str(tmp_path / 'out')]) == 1
    said = capsys.readouterr().out
    assert 'memory://run: the recording was not finished' in said and 'temporary' not in said


def test_a_file_that_comes_short_is_refused(tmp_path, monkeypatch):
    upload('faulty://run', 'word')
    monkeypatch.setattr(Faulty, 'get_file', lambda self, path, to, **_: Path(to).write_bytes(b'x'))
    with pytest.raises(StoreError, match=r'faulty://run: 1 of \d+ bytes of metadata.yaml came'):
        with local_copy(Url('faulty://run')):
            pass


def test_a_stop_leaves_nothing():
    ticks = iter([None] * 2)

    class StopError(AdaptokError):
        pass

    def tick():
        if next(ticks, 'stop') == 'stop':
            raise StopError

    with pytest.raises(StopError), local_target(Url('memory://run'), tick=tick) as path:
        write_bag(path, {'/word': [word('a')]})
    assert not names('memory://run')
    with pytest.raises(StopError):
        upload('memory://run', 'word')
        with local_copy(Url('memory://run'), tick):
            pass


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_leaves_no_copy(tmp_path, number):
    """After a kill the next one removes it."""
    write_bag(tmp_path / 'run', {'/word': [word('a')]})
    code = (
        'import sys, time; from adaptok_ros.bags.store import Url, local_copy\n'
        'with local_copy(Url(sys.argv[1])) as path: print(path, flush=True); time.sleep(600)'
    )
    url = f'file://{tmp_path}/run'
    with subprocess.Popen(
        [sys.executable, '-c', code, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        path = Path(process.stdout.readline().decode().strip())
        assert (path / METADATA).exists()
        with local_copy(Url(url)):
            assert path.exists()  # as long as it runs
        process.send_signal(number)
    assert path.exists() == (number == signal.SIGKILL)
    with local_copy(Url(url)):
        assert not path.exists()


def test_what_is_missing_is_named(monkeypatch, capsys):
    assert main(['bag', 'inspect', 'nowhere://run']) == 1
    assert 'nowhere://run: ' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 's3fs', None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 's3', raising=False)
    with pytest.raises(MissingPackageError, match=r's3://bucket/run: .*s3fs'):
        look(Url('s3://bucket/run'))
    monkeypatch.setitem(sys.modules, 'fsspec.core', None)
    assert main(['bag', 'inspect', 'memory://run']) == 1
    assert "pip install 'adaptok_ros[store]'" in capsys.readouterr().err
