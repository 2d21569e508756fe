"""Bags of images on a Ray cluster: one of this machine, with real tasks and processes."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from image_bags import images, write_bag
from test_bag_tokenize import TOPIC, job_for, packets_of, tokenize

from adaptok_ros.bags.fleet import run_jobs_on_ray
from adaptok_ros.bags.tokenize import tokenize_bag

pytest.importorskip('ray', reason="Ray is missing: pip install 'adaptok_ros[fleet]'")

pytestmark = pytest.mark.timeout(600)  # Ray takes long to start beside other work

FRAMES = 120


def task_processes():
    """Ray names the processes of its workers after the task that they do."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            command = (folder / 'cmdline').read_bytes()
        except OSError:
            continue
        if command.startswith(b'ray::adaptok'):
            found.append(int(folder.name))
    return found


def test_a_worker_that_is_killed_costs_no_bag(tmp_path):
    names = [f'bag{number}' for number in range(3)]
    for name in names:
        write_bag(tmp_path / 'in' / name, {TOPIC: images(FRAMES)})
    out, killed = tmp_path / 'out', []

    def kill_one(_):
        if not killed and any(out.glob('.*.partial')):
            killed.extend(task_processes()[:1])
            os.kill(killed[0], signal.SIGKILL)

    jobs = [job_for(tmp_path / 'in' / name, out / name) for name in names]
    outcomes = list(run_jobs_on_ray(jobs, 'local', kill_one))
    assert killed
    became = {outcome.source.name: (outcome.state, outcome.error) for outcome in outcomes}
    assert became == dict.fromkeys(names, ('done', ''))
    assert sorted(path.name for path in out.iterdir()) == names
    tokenize_bag(job_for(tmp_path / 'in' / 'bag0', tmp_path / 'here'))
    here = packets_of(tmp_path / 'here')
    for name in names:
        assert packets_of(out / name) == here


def test_the_command_tells_what_became_of_each(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bag(Path('in/good').absolute(), {TOPIC: images(4)})
    Path('in/bad').mkdir()
    Path('in/bad/metadata.yaml').write_text('no metadata')
    assert tokenize('in', '-o', 'out', '--ray', 'local', '--json') == 1
    record = json.loads(capsys.readouterr().out)
    assert (record['done'], record['failed']) == (1, 1)
    assert tokenize('in/good', '-o', 'out', '--ray', 'local') == 0
    assert '0 done, 1 kept' in capsys.readouterr().out


@pytest.mark.parametrize('address', ['127.0.0.1:1', 'nowhere.invalid:6379', 'localhost:port'])
def test_a_cluster_that_is_not_there(tmp_path, capsys, address):
    write_bag(tmp_path / 'in', {TOPIC: images(2)})
    assert tokenize(tmp_path / 'in', '-o', tmp_path / 'out', '--ray', address) == 1
    assert re.fullmatch(f'adaptok: --ray is {re.escape(address)}: .+\n', capsys.readouterr().err)
