"""What ``import adaptok_ros`` offers, and that users are shown nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adaptok_ros
from adaptok_ros.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
SHOWN = [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('examples/**/*.py')]
PROMISED = {
    'adaptok_ros': tuple(adaptok_ros.__all__),
    'adaptok_ros.zenoh': (
        'PacketPublisher',
        'PacketSubscription',
        'open_session',
        'plain_key',
        'rmw_zenoh_key',
    ),
}
"""Names that users are shown, by module; one beside the package itself has needs of its own."""
FROM = re.compile(r'^\s*from (adaptok_ros[\w.]*) import (\([^)]*\)|[^\n#]*)', re.MULTILINE)
IMPORT = re.compile(r'^\s*import (adaptok_ros[\w.]*)', re.MULTILINE)


@pytest.mark.parametrize('name', adaptok_ros.__all__)
def test_every_name_is_there(name):
    assert getattr(adaptok_ros, name) is not None
    assert name in dir(adaptok_ros)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match='no attribute'):
        adaptok_ros.Restorer  # noqa: B018


def test_nothing_is_loaded_before_it_is_used():
    code = 'import adaptok_ros, sys; print(sorted({"numpy", "cv2", "rclpy"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_onnx_runtime_sends_no_telemetry():
    code = 'import adaptok_ros, os; print(os.environ["ORT_DISABLE_TELEMETRY"])'
    environment = {k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'}
    command = [sys.executable, '-c', code]
    for set_before, expected in (({}, '1'), ({'ORT_DISABLE_TELEMETRY': '0'}, '0')):
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**environment, **set_before}
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize('path', SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_users_are_shown_the_public_face_only(path):
    text = path.read_text()
    for module, names in FROM.findall(text):
        if module == 'adaptok_ros.msg':  # the messages are what other nodes subscribe to
            continue
        promised = PROMISED.get(module, ())
        assert promised, f'{path.name}: {module}'
        for name in re.findall(r'\w+', names):
            assert name in promised, f'{path.name}: {name}'
    for module in IMPORT.findall(text):
        assert module == 'adaptok_ros', f'{path.name}: {module}'


def test_the_version_is_that_of_the_package():
    manifest = (ROOT / 'package.xml').read_text()
    assert f'<version>{adaptok_ros.__version__}</version>' in manifest


def test_adaptok_tells_its_version_and_lists_its_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--version'])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f'adaptok {adaptok_ros.__version__}\n'
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf'^ +{command}\b', listed, re.M) for command in COMMANDS)
