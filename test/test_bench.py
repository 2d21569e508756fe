"""The benchmarks measure something real: every part once, as small as it gets."""
# ruff: noqa: E402 (the folder of the benchmarks must be on the path first)

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaptok_ros import LatentStream, TokenCache
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.restoration import RestorationScope
from adaptok_ros.tokenizers.gating.changes import Gating

BENCH = Path(__file__).resolve().parent.parent / 'bench'
sys.path.insert(0, str(BENCH))

import bench_alternatives
import bench_bags
import bench_ceiling
import bench_conversion
import bench_dataset
import bench_faults
import bench_gating
import bench_growth
import bench_half
import bench_healing
import bench_lit
import bench_payloads
import bench_selection
import bench_stages
import bench_tau
import bench_thin_link
import bench_token_cache
import bench_what_to_send
import measuring
import ros
import run
import ways
from clips import scene_images
from streams import record

TINY = measuring.Effort(
    frames=3,
    sizes=((160, 120),),
    cameras=(2,),
    seconds=1.0,
    tries=2,
    clips=1,
    wire_clips=1,
    grids=((6, 8),),
    kept_shares=(0.5,),
    scene=(160, 120),
    growth_sizes=((160, 120), (320, 240)),
    camera_sizes=((160, 120),),
    growth_cameras=2,
    changed_rows=(0.1, 0.5),
    windows=(2, 3),
    fault_images=200,
    healing_frames=55,
    training_steps=2,
    training_views=2,
    dataset_frames=16,
)

LONGER = dataclasses.replace(TINY, frames=2 * bench_half.STEP)

needs_ros = pytest.mark.skipif(bool(ros.missing()), reason=ros.missing())


@pytest.fixture(scope='module')
def ceilings():
    return measuring.Ceilings(1.0)


@pytest.fixture
def settings(ceilings, tmp_path):
    return measuring.Settings(TINY, ceilings, None, tmp_path)


@pytest.fixture
def dds(monkeypatch):
    """Whatever `isolate` sets goes with the test."""
    for name in ('ROS_DOMAIN_ID', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    ros.isolate()


def numbers(value):
    """All that a result holds; whatever is no JSON fails."""
    value = json.loads(json.dumps(value))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, (int, float)) else []


def check_table(text, *words):
    """It is Markdown in which every line of a table has as many cells."""
    for word in words:
        assert word in text
    widths = [line.count('|') for line in text.splitlines()]
    for before, after in itertools.pairwise(widths):
        assert not before or not after or before == after, text


def test_ceilings_are_those_of_a_machine(ceilings):
    found = ceilings.record()
    assert min(found['copy_bytes_per_second'].values()) > 1e8
    assert found['sgemm_flops'] >= found['sgemm_one_thread_flops'] > 1e8
    assert ceilings.floor_ms(1e9) > 100 * ceilings.floor_ms(1e6) > 0
    assert ceilings.floor_ms(0, found['sgemm_flops']) == pytest.approx(1e3)


def test_operations_of_the_models():
    folder = find_model('adaptok-tiny')
    # 192 x 96, four blocks of 9 x 96 x 64 + 64 x 96, and 96 x 16 multiply-adds.
    assert measuring.encoder_flops(folder, 10) == 20 * (192 * 96 + 4 * 10 * 96 * 64 + 96 * 16)
    small, large = (measuring.lit_flops(folder, 16 * n, 16) for n in (1, 3))
    assert large == 3 * small
    assert measuring.lit_flops(folder, 17, 3) == pytest.approx(small * 17 * 3 / 16**2)


@pytest.mark.parametrize('name', ['raw', 'jpeg', 'h264'])
@pytest.mark.parametrize('size', [(96, 64), (75, 49)])
def test_image_ways_restore_every_image_at_once(name, size):
    if name == 'h264':
        pytest.importorskip('av')
    way = ways.IMAGE_WAYS[name]()
    scene = Scene(*size, noise=0)
    for index in range(0, 40, 4):
        image = scene.frame(index)
        found = way.restore(way.compress(image), size[1], size[0])
        assert found.shape == image.shape and found.flags.c_contiguous
        error = abs(found.astype(float) - image).mean()
        assert error == 0 if name == 'raw' else error < 6


def test_stages_without_ros(settings):
    found = bench_stages.measure_stages(160, 120, settings, None)
    assert {'encode', 'select and pack', 'LIT'} < set(found['stages'])
    assert all(map(math.isfinite, numbers(found)))
    for stage in ('encode', 'LIT'):
        row = found['stages'][stage]
        assert 0 < row['floor']['ms'] < 3 * row['ms']['median']
    check_table(bench_stages.tables({'sizes': {'160x120': found}, 'skipped': 'none'}), 'encode')


def test_alternatives_in_one_process(settings, monkeypatch):
    monkeypatch.setattr(ros, 'missing', lambda: 'not asked for')
    result = bench_alternatives.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    still, shaky = (result['clips'][name] for name in ('still', 'shaky, noise'))
    assert still['kept_share'] < shaky['kept_share']
    assert still['ways']['raw']['latent_error'] == 0
    assert still['ways']['raw']['bytes'] == 160 * 120 * 3
    assert still['ways']['tokens, hold']['bytes'] < still['ways']['JPEG']['bytes']
    check_table(bench_alternatives.tables(result), 'shaky, noise', 'not asked for')


def test_selection(settings):
    result = bench_selection.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    assert result['cases'][0]['kept_share'] == 0.5
    check_table(bench_selection.tables(result), '6x8x16', 'numpy, unfused')


def test_payloads(settings):
    result = bench_payloads.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    payloads = result['cases'][1]['payloads']
    assert set(payloads) == {payload.name.lower() for payload in Payload}
    assert payloads['coded']['bytes_per_position'] < payloads['int8']['bytes_per_position']
    check_table(bench_payloads.tables(result), '6x8x16', 'coded')


def test_gating(settings):
    result = bench_gating.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    assert set(result['clips']['still']['ways']) == {gating.value for gating in Gating}
    assert result['clips']['still']['ways']['exact']['share'] == 0
    assert result['clips']['shaky, noise']['ways']['exact']['share'] == 1
    check_table(bench_gating.tables(result), 'shaky, noise')


def test_conversion(settings):
    pytest.importorskip('sensor_msgs', reason='no sensor_msgs (source a ROS 2 workspace)')
    result = bench_conversion.measure(settings)
    assert list(result['encodings']) == list(bench_conversion.ENCODINGS)
    for cells in result['encodings'].values():
        assert min(numbers(cells[bench_conversion.BUILTIN])) > 0
    check_table(bench_conversion.tables(result), result['bridge'], 'mono16')


def test_half(settings):
    pytest.importorskip('torch', reason='torch, which runs the float16 form, is not installed')
    result = bench_half.measure(dataclasses.replace(settings, effort=LONGER))
    assert min(numbers(result)) >= 0
    for clip in result['clips'].values():
        assert 0 < clip['mean'] < clip['largest'] < 0.01  # what the export allows
        assert clip['decisions'] > 0
    check_table(bench_half.tables(result), 'shaky, noise', 'all')


def test_lit(settings):
    result = bench_lit.measure(settings)
    assert min(numbers(result)) >= 0
    assert set(result['clips']['still']['ways']) == {kind.value for kind in RestorationScope}
    assert result['clips']['still']['share'] < result['clips']['shaky, noise']['share'] == 1.0
    check_table(bench_lit.tables(result), 'shaky, noise')


def test_dataset(settings):
    pytest.importorskip('torch', reason='torch, which loads the batches, is not installed')
    result = bench_dataset.measure(settings)
    assert min(numbers(result)) >= 0
    assert result['epochs'][bench_dataset.CACHED]['cpu_to_video']['median'] > 1
    assert 1 <= result['access']['lit']['packets'] <= 16
    assert result['bytes']['tokens'] < result['bytes']['beside the bag: latents float16']
    check_table(bench_dataset.tables(result), 'random access', 'cached as float32', 'mp4, LIT')


def test_token_cache(settings):
    pytest.importorskip('torch', reason='torch, which runs the transformer, is not installed')
    found = bench_token_cache.measure(settings)
    assert all(map(math.isfinite, numbers(found)))
    for stream in found['streams']:
        for name, way in stream['ways'].items():
            assert 0 < way['work'] <= 1 and 0 <= way['error']['median'] <= 1
            assert 0 < way['floor_ms'] < 3 * way['kept_ms']['median']
            if name == 'projector':
                assert way['error']['median'] < 1e-6 and way['work'] == way['share']
    (by_rule,) = found['rules'].values()
    assert by_rule['tolerance 0']['share'] > by_rule['tolerance tau / 2']['share'] > 0
    text = bench_token_cache.tables(found)
    check_table(text, 'moving, noise', 'projector: work', 'tolerance tau / 2')


def test_thin_link(settings, monkeypatch):
    pytest.importorskip('zenoh', reason='eclipse-zenoh, which carries the streams, is missing')
    pytest.importorskip('av', reason='PyAV, which makes H.264, is missing')
    monkeypatch.setattr(bench_thin_link, 'LINKS', (2e6,))
    result = bench_thin_link.measure(settings)
    rows = {row['way']: row for row in result['rows']}
    assert rows['raw']['wanted_bits_per_second'] == 3 * 30 * 8 * 160 * 120 * 3
    assert rows['tokens']['wanted_bits_per_second'] < rows['JPEG']['wanted_bits_per_second']
    assert rows['tokens']['latency_ms']['median'] > 0
    assert max(rows['raw']['images_per_second']) < 15, 'a twentieth fits'
    check_table(bench_thin_link.tables(result), 'H.264', '| 2 | raw | 41.5 |')


def test_multiply_adds_of_the_transformer_are_those_that_torch_counts():
    torch = pytest.importorskip('torch', reason='torch, which counts them, is not installed')
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from transformer import Size, Transformer

    size = Size(tokens=24, numbers=16, width=32, layers=2, own=4)
    network = Transformer(size)
    cache = TokenCache()
    stream = LatentStream(mode='hold')
    stream.push(record(0, 1, (4, 6, 16))[0].packet)
    latents = stream.latents()
    for count in (24, 3):
        changed = np.arange(24).reshape(4, 6) < count
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            update = cache.update(latents, changed=changed)
            network(network.project(update.tokens), update.positions, cache)
        assert counter.get_total_flops() == 2 * (size.projector(count) + size.trunk(count))


def test_faults(settings, monkeypatch):
    monkeypatch.setattr(ros, 'missing', lambda: 'not asked for')
    mixes = [mix for mix in bench_faults.MIXES if mix.name in ('nothing', 'drops 20%')]
    monkeypatch.setattr(bench_faults, 'MIXES', mixes)
    result = bench_faults.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    plain, _, lossy, _ = result['rows']
    assert plain['states'] == plain['packets'] == plain['arrived'] > 200
    assert lossy['states'] < plain['states'] and lossy['asked'] > 0 and lossy['wrong'] == 0
    check_table(bench_faults.tables(result), 'drops 20%', 'not asked for')


def test_ceiling(settings):
    result = bench_ceiling.measure(settings)
    cases = result['clips']['shaky, noise']['cases']
    for case in cases.values():
        assert case['frames'] > 0 and case['bound_holds']
        assert 1 < case['worst'] <= case['bound'] and 0 < case['largest_correction'] <= 1.001
    assert cases['2 %']['waiting_share'] > cases['10 %']['waiting_share'] > 0
    check_table(bench_ceiling.tables(result), 'shaky, noise', 'new scene')


def test_what_to_send(settings):
    result = bench_what_to_send.measure(settings)
    clip = result['clips']['scene']
    shares = [point['share'] for point in clip['curve']]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    assert all(map(math.isfinite, numbers(result)))
    check_table(bench_what_to_send.tables(result), 'dB gained', 'Global motion', '0.03125')


def test_tau(settings):
    result = bench_tau.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    assert set(result['clips']['scene']) == set(bench_tau.MODES)
    check_table(bench_tau.tables(result), 'scene', '10 kB/s', 'target_rate')


def test_healing(settings):
    result = bench_healing.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    for case in result['clips']['moving']['cases']:
        refresh, *others = (case['ways'][way.value] for way in bench_healing.Way)
        assert refresh['rate'] == 1  # nobody asks for anything
        assert all(way['rate'] > 1 and way['healthy'] > refresh['healthy'] for way in others)
    check_table(bench_healing.tables(result), 'shaky, noise')


def test_growth(settings):
    result = bench_growth.measure(settings)
    assert all(map(math.isfinite, numbers(result)))
    assert result['pixels']['exponents']['encode'] > 0.3
    assert [row['cameras'] for row in result['cameras'][0]['rows']] == [1, 2]
    less, more = (row['kept_share'] for row in result['kept']['rows'])
    assert 0.05 < less < 0.25 < 0.4 < more < 0.7
    assert (settings.output / bench_growth.PICTURE).stat().st_size > 10_000
    check_table(bench_growth.tables(result), 'exponent', 'ms per camera')
    if 'skipped' in result['window']:
        pytest.skip(f"LIT's window: {result['window']['skipped']}")
    short, long = result['window']['rows']
    assert (short['frames'], long['frames']) == (2, 3) and short['flops'] < long['flops']


def test_ablation(settings, tmp_path, monkeypatch):
    pytest.importorskip('torch', reason='torch is missing: the ablation trains')
    import bench_ablation

    chosen = ('filter', 'both')
    variants = {name: bench_ablation.VARIANTS[name] for name in chosen}
    monkeypatch.setattr(bench_ablation, 'VARIANTS', variants)
    monkeypatch.setattr(bench_ablation, 'RUNS', 3)
    data = tmp_path / 'data'
    data.mkdir()
    images = scene_images(160, 120, 8)
    video = cv2.VideoWriter(
        str(data / 'scene.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (160, 120)
    )
    for image in images:
        video.write(np.ascontiguousarray(image[..., ::-1]))
    video.release()
    result = bench_ablation.measure(dataclasses.replace(settings, data=data))
    assert all(map(math.isfinite, numbers(result)))
    alone, both, shipped = result['variants'].values()
    assert alone['parameters'] < both['parameters'] == shipped['parameters']
    assert alone['errors'] != both['errors'] != shipped['errors']
    check_table(bench_ablation.tables(result), bench_ablation.SHIPPED)


@needs_ros
def test_loopback(dds, tmp_path):
    assert 0.01 < ros.loopback_ms(tmp_path, repeats=20) < 100


@needs_ros
def test_stages_over_dds(dds, settings):
    result = bench_stages.measure(settings)
    stages = result['sizes']['160x120']['stages']
    assert {'fill and publish tokens', 'receive latents'} < set(stages)
    nodes = result['sizes']['160x120']['nodes']['2']
    for kind in ('tokens', 'latents'):
        assert nodes['chain'][kind]['arrived'] > 0
        assert 0 < nodes['chain'][kind]['age_ms']['median'] < 10_000
    assert nodes['chain']['processes']['tokenizer_node']['cpu_seconds'] > 0
    assert nodes['chain']['processes']['lit_node']['pss_mb'] > 10
    shared = result['sizes']['160x120']['nodes']['2, one process']
    assert shared['tokenizer']['tokens']['arrived'] > 0
    for found in (nodes, shared):
        assert 1 <= len(found['highest_rate']['tokens']['tried']) <= TINY.tries + 1
    check_table(bench_stages.tables(result), 'highest rate', 'listener')


@needs_ros
def test_faults_over_dds(dds):
    import faulty_nodes

    campaign = bench_faults.Campaign()
    cases = ('nothing', 'bad link', 'storm of requests')
    found = faulty_nodes.measure(campaign.footage, 0.5, cases)
    campaign.close()
    for case in found:
        assert case['packets'] > 0 and case['states'] > 0
        assert case['wrong'] == case['over'] == 0
    _, lossy, storm = found
    assert lossy['stale'] > 0
    assert storm['asked'] > 0 and storm['keyframes'] < storm['packets']
    check_table(bench_faults.case_table(found), *cases)


@needs_ros
def test_alternatives_over_dds(dds, settings, tmp_path, monkeypatch):
    chosen = ('raw', 'H.264', 'tokens, hold')
    monkeypatch.setattr(
        bench_alternatives, 'WIRE', {name: bench_alternatives.WIRE[name] for name in chosen}
    )
    images = scene_images(160, 120, 5)
    found = bench_alternatives.measure_wire(images, settings, tmp_path)
    for name, run_ in found.items():
        assert run_['latents']['arrived'] > 0, name
    assert found['raw']['bytes_per_image']['policy'] == 160 * 120 * 3
    assert found['tokens, hold']['bytes_per_image']['policy'] < 160 * 120
    assert found['raw']['cpu_to_raw'] == 1


def test_one_command_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, 'QUICK', TINY)
    monkeypatch.setattr(ros, 'missing', lambda: 'not asked for')
    assert run.main(['selection', '--quick', '--output', str(tmp_path / 'results')]) == 0
    record = json.loads((tmp_path / 'results' / 'bench.json').read_text())
    assert record['quick'] and list(record['parts']) == ['selection']
    assert record['machine']['cores'] >= 1 and record['ceilings']['sgemm_flops'] > 0
    text = (tmp_path / 'results' / 'bench.md').read_text()
    check_table(text, '## Machine', run.PARTS['selection'])
    assert '6x8x16' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('args', 'said'),
    [(['speed'], 'stages, alternatives'), (['--data', 'nowhere'], 'an existing folder')],
)
def test_bad_arguments_say_what_is_allowed(args, said, capsys):
    with pytest.raises(SystemExit):
        run.arguments(args)
    assert said in capsys.readouterr().err


def test_bags(settings):
    found = bench_bags.measure(settings)
    assert all(map(math.isfinite, numbers(found)))
    assert set(found['several']['ways']) == {'off', 'noise'}
    check_table(bench_bags.tables(found), 'moving, noise', 'of the floor', 'cores idle')
