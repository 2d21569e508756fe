"""Training on a small folder of the project's own scene, through the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is missing: the training code needs it')

from adaptok_ros.cli import main
from adaptok_ros.cli.train import read_config
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.catalog import Footage, Use, find_footage
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import find_model
from adaptok_ros.networks.lit import LatentInpaintingTransformer
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.restorer import Restorer
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.tokenizers.tokenizer import Tokenizer
from adaptok_ros.training import lit
from adaptok_ros.training.loop import LoopConfig, Processes, autocast_type, fit

TOKENIZER_16 = """
steps: 6
batch: 2
crop: 32
precision: float32
checkpoint_every: 2
workers: 0
stride: 16
channels: 4
encoder_width: 8
encoder_hidden: 8
encoder_blocks: 1
decoder_width: 8
decoder_blocks: 1
"""
LIT = """
steps: 4
batch: 2
crop: 16
checkpoint_every: 2
workers: 0
frames_per_clip: 6
pans: 1
stills: 2
fitted: 1
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two clips as folders of frames, one of them photos, and a video."""
    folder = tmp_path_factory.mktemp('data')
    scene = Scene(width=160, height=128)
    frames = [scene.frame(index) for index in range(8)]
    (folder / 'photos').mkdir()
    for index, frame in enumerate(frames[:3]):
        cv2.imwrite(str(folder / 'photos' / f'{index}.png'), frame[..., ::-1])
    video = cv2.VideoWriter(
        str(folder / 'scene.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (160, 128)
    )
    for frame in frames:
        video.write(np.ascontiguousarray(frame[..., ::-1]))
    video.release()
    return folder


def train(what, data, model, tmp_path, text, *more):
    config = tmp_path / 'config.yaml'
    config.write_text(text)
    return main(
        [
            'train',
            what,
            '--data',
            str(data),
            '--model',
            str(model),
            '--config',
            str(config),
            '--device',
            'cpu',
            *more,
        ]
    )


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    model = folder / 'model'
    assert train('tokenizer', data, model, folder, TOKENIZER_16, '--name', 'small') == 0
    assert train('lit', data, model, folder, LIT) == 0
    return model


def test_a_trained_folder_runs(trained):
    tokenizer = Tokenizer(str(trained), threads=1)
    assert tokenizer.description.id.startswith('small@')
    assert (tokenizer.description.stride, tokenizer.description.channels) == (16, 4)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert tokenizer.decode(tokenizer.encode(image), 48, 64).shape == image.shape
    assert Restorer(str(trained), threads=1).tokenizer == tokenizer.description.id
    tokenizer.close()


def test_the_card_says_what_it_was_trained_on_and_how(trained):
    card = (trained / 'README.md').read_text()
    assert '6 steps' in card and '4 steps' in card
    assert 'scene.avi (video)' in card and 'photos (photos)' in card and 'not stated' in card
    training = json.loads((trained / 'lit.json').read_text())['training']
    assert training['config']['crop'] == 16
    assert 0 < training['figures']['relative_error'] < 10


def test_nothing_is_left_beside_the_model(trained):
    assert {path.name for path in trained.iterdir()} == {
        'README.md',
        'decoder.float16.onnx',
        'decoder.onnx',
        'encoder.float16.onnx',
        'encoder.onnx',
        'lit.checkpoint',
        'lit.float16.onnx',
        'lit.json',
        'lit.onnx',
        'lit.safetensors',
        'tokenizer.checkpoint',
        'tokenizer.json',
        'tokenizer.safetensors',
    }


class Fit(torch.nn.Module):
    """Least squares to what is drawn; stops the training at a given step."""

    figures = ('error',)

    def __init__(self, stop=None):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(3))
        self.stop = stop
        self.calls = 0

    def forward(self, x, y):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        error = (x @ self.weights - y).square().mean()
        return error, error.reshape(1)


def draw(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    return {'x': torch.from_numpy(x), 'y': torch.from_numpy(x @ np.float32([1, 2, 3]))}


@pytest.mark.parametrize('workers', [0, 1])
def test_resuming_gives_the_weights_of_an_uncut_run(tmp_path, workers):
    config = LoopConfig(
        steps=40, learning_rate=0.1, warmup=4, checkpoint_every=10, workers=workers
    )
    processes = Processes('cpu')
    whole = Fit()
    progress = fit(whole, draw, config, processes, tmp_path / 'whole', False)
    assert progress.step == 40 and progress.figures['error'] < 10
    with pytest.raises(KeyboardInterrupt):
        fit(Fit(stop=27), draw, config, processes, tmp_path / 'cut', False)
    rest = Fit()
    resumed = fit(rest, draw, config, processes, tmp_path / 'cut', True)
    assert rest.calls == 20
    assert resumed.step == 40 and resumed.seconds > 0
    torch.testing.assert_close(rest.weights, whole.weights, rtol=0, atol=0)


def test_bfloat16_trains(tmp_path):
    config = LoopConfig(steps=60, learning_rate=0.1, warmup=1, precision='bfloat16', workers=0)
    objective = Fit()
    fit(objective, draw, config, Processes('cpu'), tmp_path / 'c', False)
    assert (objective.weights - torch.tensor([1.0, 2.0, 3.0])).abs().max() < 0.5


def test_precision_fits_the_device(monkeypatch):
    device = torch.device('cpu')
    assert autocast_type('float16', device) is torch.float16
    assert autocast_type('float32', device) is None
    for capability, chosen in (('AVX512', torch.bfloat16), ('AVX2', None), ('DEFAULT', None)):
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda c=capability: c)
        assert autocast_type('auto', device) is chosen


def test_two_processes_train_one_model(data, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text(TOKENIZER_16)
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        '-m',
        'adaptok_ros',
        'train',
        'tokenizer',
        '--data',
        str(data),
        '--device',
        'cpu',
        '--model',
        str(tmp_path / 'model'),
        '--config',
        str(config),
        '--name',
        'double',
    ]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONSAFEPATH': '1'}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr[-2000:]
    training = json.loads((tmp_path / 'model' / 'tokenizer.json').read_text())['training']
    assert training['hardware'].startswith('2 x')
    assert Tokenizer(str(tmp_path / 'model')).description.id.startswith('double@')


SIDE = 16


def samples(seed=0, **changes):
    config = lit.LITTraining(crop=SIDE, batch=1, **changes)
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(40, SIDE + 3, SIDE + 5, 4)).cumsum(0).astype(np.float16)
    return lit.simulate(latents, 4, config, rng)


@pytest.mark.parametrize('seed', range(12))
def test_samples_keep_the_stream_contract(seed):
    sample = samples(seed, tau_low=0.5, tau_high=1.5, coded_share=0.0)
    assert sample['held'].shape == (4, SIDE, SIDE, 4)
    sent = sample['kept'][-1] > 0
    assert (sample['age'][-1][sent] == 0).all() and (sample['age'][-1][~sent] > 0).all()
    error = np.abs(sample['truth'] - sample['held'][-1]).mean(axis=-1)
    assert error[sent].max(initial=0) < 0.01  # float16


@pytest.mark.parametrize('seed', range(6))
def test_coded_samples_hold_multiples_of_a_step(seed):
    sample = samples(seed, tau_low=0.5, tau_high=1.5, coded_share=1.0)
    step = SelectionConfig(tau=float(sample['tau']), payload=Payload.CODED).step
    multiples = sample['held'] / step
    np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-3)
    sent = sample['kept'][-1] > 0
    assert sent.any()
    error = np.abs(sample['truth'] - sample['held'][-1])[sent]
    assert error.max(initial=0) <= step / 2 * (1 + 1e-3)


@pytest.mark.parametrize('seed', range(3))
def test_something_passes_by_and_leaves_the_rest_as_it_was(seed):
    photo = Scene(width=63, height=47).frame(0)
    other = np.full((40, 90, 3), 200, np.uint8)
    frames = lit.pass_by(photo, other, np.random.default_rng(seed))
    assert len(frames) == lit.VIEW_FRAMES
    assert {(frame.shape, frame.dtype) for frame in frames} == {(photo.shape, photo.dtype)}
    covered = np.array([(frame != photo).any(axis=2) for frame in frames])
    middle = covered[lit.VIEW_FRAMES // 2]
    assert 0 < middle.sum() < middle.size
    assert (covered[0] != middle).any()


def test_watched_footage_is_noisy_passed_by_and_compressed_by_its_kind():
    photo = Scene(width=63, height=47).frame(0)
    other = np.full((40, 90, 3), 200, np.uint8)
    repeated, farthest = [], []
    for kind in range(4):
        frames = lit.watch(photo, other, kind, np.random.default_rng(4))
        assert len(frames) == lit.VIEW_FRAMES
        assert {frame.shape for frame in frames} == {photo.shape}
        video = np.array(frames).astype(float)
        repeated.append((video[1:] == video[:-1]).all(axis=3).mean())
        farthest.append(abs(np.median(video, axis=0) - photo).mean(axis=2).max())
    # Fresh noise changes nearly every pixel; a codec repeats what hardly changes.
    assert max(repeated[:2]) < 0.1 and min(repeated[2:]) > 0.5
    assert farthest[1] > 3 * farthest[0] and farthest[3] > 3 * farthest[2]


class Pixels:
    """A stream of one camera whose latents are every eighth pixel."""

    def reset(self):
        pass

    def encode(self, image):
        return image[::8, ::8].astype(np.float32)


def test_samples_are_not_mirrored_latents():
    """A latent says on which side of its patch an edge lies: only images may be mirrored."""
    frames = [np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)] * 2
    plain, mirrored = lit.encode_clip(frames, Pixels(), 4, 8)
    assert plain.shape == (2, 6, 8, 3)
    np.testing.assert_array_equal(mirrored[0], frames[0][4:, :60][:, ::-1][::8, ::8])


def test_clips_are_spread_over_the_data_and_photos_stay():
    data = Path('data')
    footage = [Footage(str(i), 'any', data / str(i), photos=i == 3) for i in range(8)]
    assert [f.name for f in lit.choose_clips(footage, 2)] == ['0', '3', '4']
    assert lit.choose_clips(footage, 0) == lit.choose_clips(footage, 20) == footage
    assert lit.choose_clips(footage[3:4], 2) == footage[3:4]


def test_small_clips_are_scaled_up_to_a_crop():
    image = np.zeros((30, 50, 3), np.uint8)
    assert lit.enlarge(image, 64).shape == (64, 107, 3)
    assert lit.enlarge(image, 20) is image


def test_an_untrained_lit_holds():
    model = LatentInpaintingTransformer(4, frames=4, width=16, inner=8, blocks=2).eval()
    sample = samples(3, tau_low=8.0, tau_high=9.0)
    truth = torch.from_numpy(sample.pop('truth'))[None]
    batch = {name: torch.as_tensor(value)[None] for name, value in sample.items()}
    loss, figures = lit.RelativeError(model, 1.0)(**batch, truth=truth)
    assert 0.9 < float(loss.detach()) <= 1.0 and figures[1] == 0


def test_the_fitted_filter_restores_what_is_linear():
    """Where unsent positions move with the mean of their sent neighbours, it is found."""
    rng = np.random.default_rng(0)
    common = rng.normal(scale=0.4, size=(40, 1, 1, 4)).cumsum(0)
    latents = (common + rng.normal(scale=0.3, size=(40, SIDE, SIDE, 4))).astype(np.float16)
    config = lit.LITTraining(
        crop=SIDE, batch=4, fitted=14, tau_low=0.5, tau_high=1.5, coded_share=0.0
    )
    streams = lit.Streams([latents], [latents], [latents])
    model = LatentInpaintingTransformer(4, width=16, inner=8, blocks=1)
    objective = lit.RelativeError(model, 1.0)
    batch = lit.draw_batch(streams, 4, config, np.random.default_rng(7))
    with torch.no_grad():
        held = objective(**batch)[1][0]
        lit.fit_filter(model, streams, config)
        fitted = objective(**batch)[1][0]
    assert 0.9 < held <= 1.0 and fitted < 0.8 * held


# Errors


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('stepz: 3', 'unknown stepz'),
        ('steps: many', "steps is 'many'; allowed: int"),
        ('steps: 0', 'steps is 0; allowed: 1 or more'),
        ('precision: int4', 'precision'),
        ('learning_rate: 3.0', 'learning_rate'),
        ('crop: 0', 'crop is 0; allowed: 1 or more'),
        ('clips: -1', 'clips is -1; allowed: 0 or more'),
        ('[1, 2]', 'unknown'),
        ('a: [', 'not a YAML file'),
    ],
)
def test_bad_hyperparameters(tmp_path, text, message):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(SettingError, match=message.replace('[', r'\[')):
        read_config(path, lit.LITTraining)


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SettingError, match="device is 'cuda'"):
        Processes('cuda')
    with pytest.raises(SettingError, match="device is 'tpu'"):
        Processes('tpu')


def test_folders_that_cannot_be_trained_on(tmp_path, data, capsys):
    model = tmp_path / 'model'
    with pytest.raises(FootageError, match='no such folder'):
        find_footage(tmp_path / 'missing', Use.TRAIN)
    (tmp_path / 'empty').mkdir()
    assert train('tokenizer', tmp_path / 'empty', model, tmp_path, TOKENIZER_16) == 1
    assert 'neither a video nor a folder of images' in capsys.readouterr().err
    broken = tmp_path / 'broken'
    shutil.copytree(data, broken)
    (broken / 'scene.avi').write_bytes(b'RIFF, but no video')
    assert train('tokenizer', broken, model, tmp_path, TOKENIZER_16) == 1
    assert 'scene.avi' in capsys.readouterr().err
    assert not model.exists()
    assert train('lit', data, model, tmp_path, LIT) == 1
    assert 'tokenizer.json' in capsys.readouterr().err


def test_latents_of_too_many_channels(trained, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lit, 'CHANNEL_LIMIT', 3)
    before = (trained / 'lit.json').read_bytes()
    assert train('lit', data, trained, tmp_path, LIT) == 1
    assert '4 channels; allowed by LIT: at most 3' in capsys.readouterr().err
    assert (trained / 'lit.json').read_bytes() == before


def test_a_checkpoint_of_something_else(trained, data, tmp_path, capsys):
    model = tmp_path / 'model'
    shutil.copytree(trained, model)
    before = (model / 'lit.json').read_bytes()
    shutil.copy(model / 'tokenizer.checkpoint', model / 'lit.checkpoint')
    assert train('lit', data, model, tmp_path, LIT, '--resume') == 1
    assert 'not a checkpoint of this training' in capsys.readouterr().err
    (model / 'lit.checkpoint').write_bytes(b'PK')
    assert train('lit', data, model, tmp_path, LIT, '--resume') == 1
    assert 'not a checkpoint of this training' in capsys.readouterr().err
    assert (model / 'lit.json').read_bytes() == before


def test_the_shipped_model_was_made_by_these_classes():
    from safetensors.torch import load_file

    folder = find_model('adaptok-tiny')
    description = json.loads((folder / 'lit.json').read_text())
    model = LatentInpaintingTransformer(description['channels'], description['frames'])
    model.load_state_dict(load_file(folder / 'lit.safetensors'))
    assert model.reach == description['reach']
