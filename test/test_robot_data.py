"""The example on episodes of a real robot: on two that are drawn, and on real ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from adaptok_ros.footage.scene.scene import Scene

torch = pytest.importorskip('torch')
pytest.importorskip('scipy')

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / 'shared' / 'data' / 'robot'
TAUS = (0.2,)
RATE = 4
CAMERAS = ('ext1', 'ext2', 'wrist')
COLUMNS = ['x_m', 'y_m', 'z_m', 'roll_rad', 'pitch_rad', 'yaw_rad', 'gripper']


def drawn_states(count, seed):
    """A hand that points down, so that its roll passes from 180 to -180 degrees."""
    moved = 0.01 * np.random.default_rng(seed).standard_normal((count, 7))
    states = np.cumsum(moved, 0) + np.array([0.5, 0.0, 0.3, 3.14, 0.0, 0.0, 0.5])
    states[:, 3] = (states[:, 3] + np.pi) % (2 * np.pi) - np.pi
    return states


def write_states(folder, count=2, seed=0, **changes):
    """``states.json`` of an episode, and videos that nobody opens."""
    folder.mkdir(parents=True)
    fields = {'fps': RATE, 'columns': COLUMNS, 'states': drawn_states(count, seed).tolist()}
    (folder / 'states.json').write_text(json.dumps({**fields, **changes}))
    for camera in CAMERAS:
        (folder / f'{camera}.mp4').touch()
    return folder


def write_episode(folder, count, frames, seed=0):
    """An episode in the layout of real ones."""
    from adaptok_ros.footage.video_writing import VideoWriter

    write_states(folder, count, seed)
    for number, camera in enumerate(CAMERAS):
        scene = Scene(width=96, height=64, noise=2.0, seed=10 * seed + number)
        with VideoWriter(folder / f'{camera}.mp4') as video:
            for frame in range(frames):
                video.write(scene.frame(5 * frame), frame * 1_000_000_000 // RATE)
    return folder


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Episodes and their bags."""
    from robot_data import record_all
    from robot_episodes import find_episodes

    folder = tmp_path_factory.mktemp('drawn')
    for seed in range(2):
        write_episode(folder / 'data' / f'{seed}', 7 + seed, 9, seed)
    episodes = find_episodes(folder / 'data')
    return episodes, record_all(episodes, folder / 'bags', TAUS)


@pytest.fixture(scope='module')
def corpus(drawn):
    from robot_data import load

    return load(drawn[1], RATE, TAUS)


def test_motion_is_small_where_angles_jump(tmp_path):
    from robot_episodes import Episode

    states = np.zeros((2, 7))
    states[:, 3] = np.radians([179, -179])
    states[1, [0, 6]] = 0.005, 0.25
    episode = Episode(tmp_path, RATE, states)
    expected = [[0.005, 0, 0, np.radians(2), 0, 0, 0.25]]
    np.testing.assert_allclose(episode.actions, expected, atol=1e-6)
    assert np.abs(np.diff(episode.proprioception[:, :9], axis=0)).max() < 0.04


def test_errors_are_millimetres_degrees_and_percent():
    from robot_data import errors

    true = np.zeros((2, 7), np.float32)
    true[0, :3] = 0.003, 0.004, 0.0
    true[:, 5] = np.radians(80)
    predicted = np.zeros((2, 7), np.float32)
    predicted[:, 5] = np.radians([60, -80])
    predicted[1, 6] = 0.1
    np.testing.assert_allclose(errors(predicted, true), [2.5, 90, 5], rtol=1e-5)


def test_rotations_about_two_axes_are_compared_as_rotations():
    from robot_data import errors

    true, predicted = np.zeros((2, 1, 7), np.float32)
    true[0, 3], predicted[0, 4] = np.radians(90), np.radians(90)
    assert errors(predicted, true)[1] == pytest.approx(120), 'not 127, the vectors apart'


def test_intervals_are_of_students_t():
    from robot_data import interval

    # 2.306 is the two-sided 5 % point at 8 degrees of freedom in every table.
    half = 2.306 * np.sqrt(7.5 / 9)
    mean, low, high = interval(np.arange(9.0))
    assert (mean, low, high) == (4, pytest.approx(4 - half, 1e-4), pytest.approx(4 + half, 1e-4))


def test_a_bag_holds_what_the_robot_saw_and_did(drawn, corpus):
    from robot_episodes import traffic

    episodes, bags = drawn
    assert len(corpus.data['action']) == 3 * (7 + 8)
    for number, episode in enumerate(episodes):
        rows = corpus.rows('LIT, tau 0.2', number)
        assert len(rows) == len(episode.states) - 1, 'nothing follows the last frame'
        np.testing.assert_array_equal(corpus.data['action'][rows, 0], episode.actions)
        body = corpus.data['proprioception'][rows]
        np.testing.assert_array_equal(body[:, :10], episode.proprioception[:-1])
        np.testing.assert_array_equal(body[1:, 10:], episode.actions[:-1])
        assert not body[0, 10:].any(), 'nothing was before the first'
    dense, sparse = traffic(bags, 'dense'), traffic(bags, 'tau_0_2')
    assert dense.kept == (1, 1, 1)
    assert max(sparse.kept) < 0.9
    assert sparse.bytes < 0.9 * dense.bytes


@pytest.mark.parametrize('camera', CAMERAS)
def test_views_are_of_the_same_frames(corpus, camera):
    views = ('dense', 'hold, tau 0.2', 'LIT, tau 0.2')
    dense, hold, lit = (corpus.data[camera][corpus.rows(view, 1)].float() for view in views)
    sent = corpus.data[f'{camera}_age'][corpus.rows('hold, tau 0.2', 1)] == 0
    assert 0 < sent[1:].float().mean() < 1
    assert (corpus.data[f'{camera}_age'][corpus.rows('dense', 1)] == 0).all()
    np.testing.assert_allclose(hold[sent], dense[sent], atol=0.07)
    difference = (hold - dense).abs().mean(-1)
    assert 0 < difference[~sent].max() < 0.21, 'below tau, rounded'
    assert not torch.equal(lit[~sent], hold[~sent])


@pytest.mark.parametrize('eyes', ['grid', 'blind'])
def test_nothing_is_learned_from_the_episode_that_is_left_out(corpus, eyes):
    from robot_data import train_without

    data = {name: part.clone() for name, part in corpus.data.items()}
    for view, number in corpus.spans:
        if number == 1:
            for name in ('ext1', 'action', 'proprioception'):
                data[name][corpus.rows(view, number)] = float('nan')
    spoiled = dataclasses.replace(corpus, data=data)
    trained = [train_without(each, 1, eyes, 0, 3).state_dict() for each in (corpus, spoiled)]
    for name, weights in trained[0].items():
        assert torch.equal(weights, trained[1][name]), name
    other = train_without(corpus, 0, eyes, 0, 3).state_dict()
    assert not torch.equal(other['head.0.weight'], trained[0]['head.0.weight'])


def test_from_bags_to_a_table(drawn, corpus):
    from robot_data import HEADER, leave_out, rows_of
    from robot_episodes import traffic

    found = leave_out(corpus, 0, 0, 3)
    again = leave_out(corpus, 0, 0, 3)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    actions = drawn[0][0].actions
    still = 1e3 * np.linalg.norm(actions[:, :3], axis=1).mean()
    assert found['no motion'][0] == pytest.approx(still, rel=1e-5)
    results = {name: [each, each + 1] for name, each in found.items()}
    costs = {'dense': traffic(drawn[1], 'dense')}
    rows = {row[0]: row[1:] for row in rows_of(results, costs, RATE)}
    assert {len(row) for row in rows.values()} == {len(HEADER) - 1}
    assert rows['dense'][:3] == ['100.0'] * 3
    assert rows['dense'][5] == ''
    assert rows['no motion'][:4] == ['-'] * 4
    difference = found['no motion'][0] - found['dense'][0]
    assert found['dense'][3] == 0
    assert found['view frozen'][3] > 0
    assert found['hold, tau 0.2'][3] > 0
    assert rows['no motion'][-1] == '-'
    assert rows['no motion'][5] == f'{difference:+.2f} ({difference:+.2f} to {difference:+.2f})'


def test_a_video_that_is_too_short_leaves_no_bag(tmp_path):
    from robot_data import record_all
    from robot_episodes import EpisodeError, read_episode

    episode = read_episode(write_episode(tmp_path / 'data' / 'short', 5, 4))
    with pytest.raises(EpisodeError, match=r'ext1\.mp4: 4 frames; allowed: 5 or more'):
        record_all([episode], tmp_path / 'bags', TAUS)
    assert not (tmp_path / 'bags' / 'short').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'columns': COLUMNS[:-1]}, 'columns are'),
        ({'fps': 0}, 'fps is 0.0; allowed: more than 0'),
        ({'fps': 'four'}, 'cannot be read'),
        ({'states': [[0.0] * 7]}, r'states are \(1, 7\); allowed'),
        ({'states': [[0.0] * 6, [0.0]]}, 'cannot be read'),
        ({'states': [[*[0.0] * 6, float('nan')]] * 2}, 'states are not all finite'),
        ({'states': None}, 'cannot be read|states are'),
    ],
)
def test_damaged_states_are_one_error(changes, message, tmp_path):
    from robot_episodes import EpisodeError, read_episode

    with pytest.raises(EpisodeError, match=message):
        read_episode(write_states(tmp_path / 'damaged', **changes))


def test_a_missing_camera_and_other_rates_are_named(tmp_path):
    from robot_episodes import EpisodeError, find_episodes

    write_states(tmp_path / '1')
    with pytest.raises(EpisodeError, match=r'1 folders with a states.json; allowed: 2 or more'):
        find_episodes(tmp_path)
    write_states(tmp_path / '2', fps=5)
    with pytest.raises(EpisodeError, match=r'fps are \[4.0, 5.0\]'):
        find_episodes(tmp_path)
    (tmp_path / '2' / 'wrist.mp4').unlink()
    with pytest.raises(EpisodeError, match=r'wrist\.mp4: no such file'):
        find_episodes(tmp_path)


def test_on_real_episodes(tmp_path):
    from robot_data import DENSE, leave_out, load, record_all
    from robot_episodes import find_episodes

    if not REAL.is_dir():
        pytest.skip(f'{REAL} is not there: episodes of a robot')
    episodes = [
        dataclasses.replace(episode, states=episode.states[20:28])
        for episode in find_episodes(REAL)[:2]
    ]
    found = leave_out(load(record_all(episodes, tmp_path, TAUS), RATE, TAUS), 0, 0, 5)
    assert 1 < found['no motion'][0] < 100, 'millimetres in a quarter of a second'
    assert 0.1 < found['no motion'][1] < 10, 'degrees'
    assert found[DENSE][0] != found['hold, tau 0.2'][0]
    assert np.isfinite(list(found.values())).all()
