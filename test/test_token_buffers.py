"""What is kept of a policy's tokens: arrays and tensors, whole or not at all, and the examples."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streams import Stream, latent_frames, record
from test_token_cache import SHAPE, blocks, due, grid, latents_of, needs_torch, project

from adaptok_ros import LatentStream, SelectionConfig, TokenCache
from adaptok_ros.errors import SettingError
from adaptok_ros.policy import token_cache

ROOT = Path(__file__).parent.parent


# What is kept


def test_what_was_due_stays_due_until_all_of_it_was_written():
    cache = TokenCache()
    ages = np.full(SHAPE[:2], 255)
    update = cache.update(grid())
    cache.write('k', update.tokens)
    cache.write('v', update.tokens)
    ages[0, 0] = 0
    cache.write('k', cache.update(grid(sequence=1, age=ages)).tokens)
    with pytest.raises(LookupError, match="'v' was not written since the last update"):
        cache.read('v')
    ages[0, :2] = 1, 0
    update = cache.update(grid(sequence=2, age=ages))
    assert update.positions.tolist() == [0, 1]
    update = cache.update(grid(sequence=3))
    assert update.positions.tolist() == [0, 1]
    for name in ('k', 'v'):
        cache.write(name, update.tokens)
    assert cache.update(grid(sequence=4)).positions.tolist() == []
    assert (cache.read('v') == blocks(grid().values)).all()


def test_after_a_reset_everything_is_due_and_buffers_stay():
    cache = TokenCache()
    kept = cache.write('tokens', cache.update(grid()).tokens)
    cache.reset()
    update = cache.update(grid())
    assert update.share == 1
    cache.write('another', update.tokens)  # now that there is a whole one
    assert cache.write('tokens', update.tokens) is kept


def written(values):
    """Into a cache of 2 x 3 groups of which one is due, beside a buffer of float32 [6, 12]."""
    cache = TokenCache((2, 2))
    due(cache, grid())
    ages = np.full(SHAPE[:2], 255)
    ages[0, 0] = 0
    cache.update(grid(sequence=1, age=ages))
    return cache.write('tokens', values)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (np.zeros((2, 12), np.float32), r"'tokens' is of shape \(2, 12\); allowed: 1 rows"),
        (np.zeros((), np.float32), r'is of shape \(\); allowed: 1 rows'),
        (np.zeros((1, 5), np.float32), r'float32 of shape \[n, 5\] in numpy; allowed, as before'),
        (np.zeros((1, 12)), r'float64 of shape \[n, 12\] in numpy; allowed, as before: float32'),
        ([[0.0] * 12], "'tokens' is list; allowed: a numpy array or a torch tensor"),
    ],
)
def test_values_that_do_not_fit(values, message):
    with pytest.raises(SettingError, match=message):
        written(values)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'group': (0, 2)}, r'group is \(0, 2\); allowed: two numbers of at least 1'),
        ({'max_age': -1}, 'max_age is -1; allowed: at least 0'),
        ({'tolerance': -0.1}, 'tolerance is -0.1; allowed: None or at least 0'),
        ({'tolerance': np.nan}, 'tolerance is nan'),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SettingError, match=message):
        TokenCache(**options)


@pytest.mark.parametrize(
    ('options', 'masks', 'message'),
    [
        ({'group': (3, 2)}, {}, r'group is \(3, 2\); allowed: divisors of the grid, 4 and 6'),
        ({'tolerance': 0.1}, {'changed': True}, 'changed is given and tolerance is 0.1'),
        ({}, {'always': np.zeros((4, 6))}, r'always is float64 of shape \(4, 6\); allowed: bool'),
        ({'group': (2, 2)}, {'changed': np.zeros(6, bool)}, r'allowed: .* \(4, 6\) or \(2, 3\)'),
    ],
)
def test_looks_that_do_not_fit_change_nothing(options, masks, message):
    cache = TokenCache(**options)
    with pytest.raises(SettingError, match=message):
        cache.update(grid(), **masks)
    with pytest.raises(LookupError, match='before the first update'):
        cache.write('tokens', np.zeros((0, 3), np.float32))


def test_buffers_that_nobody_filled():
    cache = TokenCache()
    due(cache, grid())
    cache.update(grid(sequence=1))
    with pytest.raises(LookupError, match=r"'k' was never written; there are: \['tokens'\]"):
        cache.read('k')
    with pytest.raises(LookupError, match=r"'k' is new, but only 0 of 24 .*: call reset\(\)"):
        cache.write('k', np.zeros((0, 3), np.float32))


# As an author uses it


def test_example_of_the_module():
    frames = latent_frames(0, 9, (10, 10, 16), 'constant')
    frames[8, 4, 4] += 1
    stream = Stream((10, 10, 16), SelectionConfig(refresh_period=0))
    attended = np.zeros((5, 5), bool)
    attended[0], attended[1, 0] = True, True
    found = doctest.testmod(
        token_cache,
        extraglobs={
            'packets': [sent.packet for sent in stream.record(frames)],
            'stream': LatentStream(mode='hold'),
            'attended': attended,
            'project': project,
            'act': lambda tokens: (tokens.mean(axis=0), attended),
        },
    )
    assert found.attempted >= 4 and not found.failed


class Layer:
    """Attention without weights, over whatever keys it is given."""

    def split(self, x):
        return x, 2 * x, 3 * x

    def attend(self, x, query, key, value):
        scores = 2 + np.tanh(query @ key.T)
        return x + scores / scores.sum(axis=1, keepdims=True) @ value


def test_examples_of_the_page():
    text = (ROOT / 'docs' / 'token_cache.md').read_text()
    code = re.findall(r'^```python\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    seen = []
    names = {
        'packets': [sent.packet for sent in record(0, 30, (4, 6, 16), 'constant')],
        'project': project,
        'act': lambda tokens: (seen.append(tokens.copy()), np.eye(2, 3, dtype=bool)),
    }
    # Of random latents there is no LIT.
    exec(
        '\n'.join(code).replace("LatentStream('adaptok-tiny')", "LatentStream('', 'hold')"), names
    )
    latents = names['stream'].latents()
    whole = project(blocks(latents.values, (2, 2)))
    assert len(seen) == 10 and seen[0].shape == (6, 8)
    cache = names['cache']
    assert 0 < len(names['update'].positions) < 6

    layers = [Layer(), Layer()]
    cache.reset()
    cache.write('tokens', project(cache.update(latents).tokens))
    first = names['through'](layers, whole, cache)
    due = np.zeros((2, 3), bool)
    due[0, 1] = True
    cache.update(latents, changed=due)
    again = names['through'](layers, whole[1:2], cache)
    np.testing.assert_allclose(again, first[1:2], rtol=1e-5)


def test_it_is_there_without_torch():
    code = "import adaptok_ros, sys; adaptok_ros.TokenCache(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'


@needs_torch
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_tensors_are_kept_like_arrays(device):
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    here, there = TokenCache((2, 2)), TokenCache((2, 2))
    for latents in latents_of([sent.packet for sent in record(5, 12, SHAPE, tau=1.0)]):
        update = here.update(latents)
        expected = here.write('x', update.tokens)
        values = torch.from_numpy(there.update(latents).tokens).to(device, torch.bfloat16)
        found = there.write('x', values.requires_grad_())
        assert found.dtype is torch.bfloat16 and not found.requires_grad
        assert found.device == values.device
        assert torch.equal(found.cpu(), torch.from_numpy(expected).bfloat16())
    assert update.share < 1
    with pytest.raises(SettingError, match=r'torch.float32 of shape \[n, 12\] on \w+'):
        there.write('x', values.detach().float())
    with pytest.raises(SettingError, match=r'in numpy; allowed, as before: torch.bfloat16'):
        there.write('x', update.tokens)
