"""The example policies: eyes, checkpoints, statistics; and the whole way where Meta-World is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptok_ros import LatentStream, Observation, SelectionConfig, Sender, Tokenizer
from adaptok_ros.bags.bag import SPARSE_TOKENS, serialize
from adaptok_ros.bags.writing import BagWriter
from adaptok_ros.footage.scene.scene import Scene

torch = pytest.importorskip('torch')

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / 'examples' / 'policy' / 'train.py'
CLOSED_LOOP = ROOT / 'bench' / 'policies'


@pytest.fixture(scope='module')
def latents():
    """Held latents of the rendered scene after every frame, with an epoch in the middle."""
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    sender = Sender(tokenizer, SelectionConfig(refresh_period=20))
    stream = LatentStream('adaptok-tiny', 'hold')
    scene = Scene(width=160, height=120, noise=2.0, seed=0)
    found = []
    for number in range(24):
        if number == 15:
            sender.reset()
        stream.push(sender.send(scene.frame(number), number * 50_000_000, 'camera'))
        found.append(stream.latents())
    tokenizer.close()
    return found


def make_policy(latents, eyes, **changes):
    """One with random weights."""
    from networks import Policy, PolicyDescription

    torch.manual_seed(0)
    fields = {
        'cameras': ('front',),
        'tokenizer': latents.tokenizer,
        'grid': latents.values.shape[:2],
        'channels': latents.values.shape[2],
        'proprioception': 3,
        'actions': 2,
        'horizon': 4,
        'every': 2,
        'rate': 20.0,
    }
    return Policy(PolicyDescription(**{**fields, 'eyes': eyes, **changes})).eval()


def observation(latents, **changes):
    """What a policy is given."""
    fields = {'stamp': latents.stamp, 'cameras': {'front': latents}}
    fields['proprioception'] = np.array([0.1, 0.2, 0.3], np.float32)
    return Observation(**{**fields, **changes})


@pytest.mark.parametrize('every', [1, 3])
def test_sparse_eyes_see_what_reading_everything_would_show(latents, every):
    policy = make_policy(latents[0], 'sparse')
    work = []
    for seen in latents[::every]:
        given = observation(seen)
        acted = policy.act(given)
        work.append(policy.multiply_adds)
        with torch.inference_mode():
            values = {'front': torch.from_numpy(seen.values)[None]}
            whole = policy(values, values, torch.from_numpy(given.proprioception)[None])[0]
        np.testing.assert_allclose(acted, whole.numpy(), atol=2e-5)
    assert work[0] == max(work)
    assert work.count(max(work)) == 2, 'the first, and the new epoch'
    assert min(work) < max(work) / 2


def test_work_of_sparse_eyes_follows_change():
    from networks import GridEyes, SparseEyes

    sparse, grid = SparseEyes((30, 40), 16), GridEyes((30, 40), 16)
    assert (sparse.block, sparse.blocks) == ((5, 5), 48)
    assert sparse.multiply_adds(0) < sparse.multiply_adds(1) < grid.multiply_adds(1)
    assert 3 * sparse.multiply_adds(0.3 * 48) < grid.multiply_adds(0.3 * 48)
    assert sparse.multiply_adds(48) < grid.multiply_adds(48)


@pytest.mark.parametrize(('side', 'part'), [(30, 5), (24, 4), (64, 4), (17, 1)])
def test_blocks_fill_the_grid(side, part):
    from networks import SparseEyes

    assert SparseEyes((side, side), 4).block == (part, part)


@pytest.mark.parametrize('eyes', ['grid', 'sparse', 'blind'])
def test_a_saved_policy_acts_as_before(latents, eyes, tmp_path):
    from networks import load_policy

    policy = make_policy(latents[0], eyes)
    policy.state_scale.mean[:] = 0.5
    policy.action_scale.std[:] = 3
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.description == policy.description
    given = observation(latents[-1])
    np.testing.assert_array_equal(loaded.act(given), policy.act(given))
    assert loaded.act(given).shape == (4, 2)


def test_numbers_in_other_units_are_learned_alike(latents):
    from train import fit

    policy = make_policy(latents[0], 'blind', horizon=1, every=1, actions=3, cameras=())
    states = torch.randn(500, 3) * torch.tensor([1e-2, 1.0, 1e2])
    actions = torch.stack([states[:, 0] * 1e-1, states[:, 2] * 10, torch.full((500,), 7.0)], -1)
    data = {'proprioception': states, 'action': actions[:, None]}
    data['action_is_pad'] = torch.zeros(500, 1, dtype=torch.bool)
    fit(policy, data, torch.arange(500), 300, 'test')
    with torch.inference_mode():
        errors = (policy({}, {}, states)[:, 0] - actions).abs().mean(0)
    assert errors[0] < 0.2 * actions[:, 0].std()
    assert errors[1] < 0.2 * actions[:, 1].std()
    assert errors[2] < 0.01


def test_what_stood_still_in_training_is_not_scaled_up(latents):
    from train import fit

    policy = make_policy(latents[0], 'blind', cameras=())
    states = torch.randn(50, 3) * torch.tensor([1.0, 1e-5, 0.0])
    data = {'proprioception': states, 'action': torch.randn(50, 4, 2)}
    data['action_is_pad'] = torch.zeros(50, 4, dtype=torch.bool)
    fit(policy, data, torch.arange(50), 1, 'test')
    scaled = policy.state_scale.scale(torch.tensor([1.0, 0.04, 0.04]))
    torch.testing.assert_close(scaled[1:], torch.tensor([0.04, 0.04]), atol=1e-4, rtol=0)


def test_the_rates_of_the_cameras_are_those_of_the_recording(tmp_path):
    from train import Recording, RecordingError

    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    with BagWriter(tmp_path / 'bag') as bag:
        for camera, period in (('front', 100), ('wrist', 30), ('side', 100)):
            topic = bag.add_topic(f'/{camera}/tokenizer/tokens', SPARSE_TOKENS)
            sender = Sender(tokenizer, SelectionConfig())
            for number in range(3 if camera == 'side' else 14):
                if number == 12:
                    sender.reset()
                image = np.full((16, 16, 3), 10 * number, np.uint8)
                stamp = number * period * 1_000_000
                packet = sender.send(image, stamp, 'camera')
                if number != 5:  # lost
                    bag.write(topic, stamp, serialize(packet))
    tokenizer.close()

    def rates(*cameras):
        recording = Recording(cameras, 10.0, 1, ('/state', 'position'), ('/action', 'data'))
        return recording.rates(tmp_path / 'bag', '/{camera}/tokenizer/tokens')

    assert rates('front', 'wrist') == (10.0, 33.333)
    with pytest.raises(RecordingError, match='/side/tokenizer/tokens: too few packets to tell'):
        rates('front', 'side')


@pytest.mark.parametrize('given', [(1.0, 2.0), (0.0,), (float('nan'),)])
def test_rates_of_cameras_that_are_none(latents, given):
    from networks import PolicyError

    with pytest.raises(PolicyError, match=r'camera_rates are \[.*\]; allowed: '):
        make_policy(latents[0], 'grid', camera_rates=given)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'cameras': {}}, 'cameras are none; allowed: with front'),
        ({'proprioception': np.zeros(2, np.float32)}, r'proprioception has shape \(2,\)'),
    ],
)
def test_other_observations_than_in_training_are_refused(latents, changes, message):
    from networks import PolicyError

    with pytest.raises(PolicyError, match=message):
        make_policy(latents[0], 'grid').act(observation(latents[0], **changes))


def test_another_tokenizer_or_grid_than_in_training_is_refused(latents):
    import dataclasses

    from networks import PolicyError

    policy = make_policy(latents[0], 'grid')
    other = dataclasses.replace(latents[0], tokenizer='other@000000000000')
    with pytest.raises(PolicyError, match='tokenizer of front is other@000000000000; allowed'):
        policy.act(observation(other))
    other = dataclasses.replace(latents[0], values=latents[0].values[:-1])
    with pytest.raises(PolicyError, match=r'latents of front are \(14, 20, 16\); allowed'):
        policy.act(observation(other))


@pytest.mark.parametrize(
    'spoil',
    [
        lambda folder: (folder / 'policy.json').unlink(),
        lambda folder: (folder / 'policy.json').write_text('{}'),
        lambda folder: (folder / 'policy.safetensors').write_bytes(b'nothing'),
    ],
)
def test_a_damaged_checkpoint_is_one_error(latents, spoil, tmp_path):
    from networks import PolicyError, load_policy

    make_policy(latents[0], 'blind').save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(PolicyError, match='not a policy'):
        load_policy(tmp_path)


def episodes(successes, task='reach', first=0):
    """Results of a setting."""
    return [
        {'task': task, 'training': 'policies', 'seed': first + seed, 'success': success}
        for seed, success in enumerate(successes)
    ]


def test_settings_are_compared_on_the_episodes_that_both_have():
    from report import paired, success_rate

    rate, low, high = success_rate(episodes([True] * 9 + [False]))
    assert rate == 0.9
    # Wilson's interval of 9 in 10, as published (Newcombe, Statistics in Medicine 1998, method 3).
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    found = paired(
        episodes([True, True, False, True, True]), episodes([True, False, False, False])
    )
    assert found.pairs == 4
    assert found.difference == 0.5
    assert found.p == 0.5, 'two of two discordant pairs'
    assert found.low < 0.5 < found.high
    assert paired(episodes([True], task='push'), episodes([True])) is None


def test_settings_that_never_differ_are_not_certainly_the_same():
    from report import paired

    found = paired(episodes([True] * 30), episodes([True] * 30))
    assert (found.difference, found.p) == (0, 1)
    # 1.96 / 32, by the formula of Agresti and Min for no discordant pair.
    assert (round(found.low, 4), round(found.high, 4)) == (-0.0612, 0.0612)


def test_settings_are_compared_with_dense_ones_of_the_same_cameras(tmp_path):
    import report
    from links import SETTINGS

    results = tmp_path / 'results.jsonl'
    lines = []
    for name, wins in (('dense', 3), ('hold', 2), ('fixed, dense', 1), ('fixed, raw images', 1)):
        cameras = SETTINGS[name].cameras
        costs = {
            'setting': name,
            'policy': 'one',
            **dict.fromkeys(('steps', 'looks', 'acts'), 10),
            'multiply_adds': 1e7,
            'bytes': dict.fromkeys(cameras, 1000),
            'kept': dict.fromkeys(cameras, None if 'raw' in name else 600),
            'cpu_ms': {'camera': 10.0, 'receiver': 20.0, 'policy': 30.0},
        }
        wins = [seed < wins for seed in range(3)]
        lines += [json.dumps({**each, **costs}) for each in episodes(wins)]
        if name == 'hold':  # before its policy was trained anew: no longer counts
            lines[:0] = [json.dumps({**each, **costs, 'policy': 'old'}) for each in episodes(wins)]
    lines.append(json.dumps({**episodes([True], 'push')[0], **costs, 'setting': 'pixels'}))
    results.write_text('\n'.join(lines))
    done = subprocess.run(
        [sys.executable, report.__file__, str(results), '--by-task'],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == 'pixels: left out, no episodes in common with dense\n'
    both, by_task, fixed, _ = done.stdout.strip().split('\n\n')
    assert '| reach | 3/3 (44 to 100) | 2/3 (21 to 94) |' in by_task
    assert '| hold | 1 | 3 | 66.7 (20.8 to 93.9) | -33.3 (' in both
    assert '| 5.0 | 5.0 | 4.0 | 1.0 | 2.0 | 3.0 | 6.0 | 1.00 |' in both
    assert '| fixed, raw images | 1 | 3 | 33.3 (6.1 to 79.2) | +0.0 (' in fixed
    assert '| - | - | 2.0 | 1.0 | 2.0 | 3.0 | 6.0 | 1.00 |' in fixed


def test_eyes_for_pixels():
    from pixels import PixelEyes, chunks, patches
    from record import Step

    image = np.arange(16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8)
    cut = patches(image)
    assert cut.shape == (2, 3, 192)
    np.testing.assert_array_equal(cut[1, 2], image[8:, 16:].reshape(-1))
    steps = [
        Step(number, np.zeros(4), {} if number % 4 == 0 else None, np.full(4, number), False)
        for number in range(10)
    ]
    actions, is_over = chunks(steps, [step for step in steps if step.images is not None])
    assert actions[:, :, 0].tolist()[1:] == [[4, 5, 6, 7, 8, 9, 9, 9], [8, *[9] * 7]]
    assert is_over.sum(1).tolist() == [0, 2, 6]
    eyes = PixelEyes((30, 40), 192)
    values = torch.zeros(2, 30, 40, 192)
    assert eyes(values, values[..., 0]).shape == (2, 128)
    assert eyes.multiply_adds(0) == pytest.approx(9e6, rel=0.02)


def test_a_line_that_was_cut_off_is_run_again(tmp_path):
    from closed_loop import read_results

    path = tmp_path / 'results.jsonl'
    whole = json.dumps(episodes([True])[0])
    path.write_text(f'{whole}\n{whole[:20]}')
    assert read_results(path) == episodes([True])


def test_from_an_expert_to_a_table(tmp_path):
    pytest.importorskip('metaworld', reason='Meta-World is not installed: pip install metaworld')
    results, bags, policies = tmp_path / 'results.jsonl', tmp_path / 'bags', tmp_path / 'policies'

    def run(script, *arguments):
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run(CLOSED_LOOP / 'record.py', 'button-press', '-o', bags, '--episodes', 2)
    for eyes in ('grid', 'sparse'):
        options = ['--cameras', 'scene', 'wrist', '--rate', 80, '--every', 4, '--eyes', eyes]
        options += ['--state', '/proprioception:position', '--action', '/action:position']
        options += ['--view', '/{camera}/dense/tokens:hold', '--steps', 3]
        run(TRAIN, bags / 'button-press', '-o', policies / f'button-press-{eyes}', *options)
    wanted = ('--tasks', 'button-press', '--settings', 'dense', 'sparse eyes', '--episodes', 1)
    run(CLOSED_LOOP / 'closed_loop.py', policies, '-o', results, *wanted)
    first = results.read_text()
    assert len([line for line in first.splitlines() if line]) == 2
    run(CLOSED_LOOP / 'closed_loop.py', policies, '-o', results, *wanted)
    assert results.read_text() == first, 'nothing is run twice'
    table = run(CLOSED_LOOP / 'report.py', results, '--plot', tmp_path / 'plot.png')
    assert '| sparse eyes | 1 | 1 |' in table
    assert (tmp_path / 'plot.png').stat().st_size > 10_000
