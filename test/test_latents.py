"""Dense latents: the projection, LIT as a graph, its window on a stream, and both modes."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Stream, latent_frames, record, sent_mask

from adaptok_ros.engines import fallback
from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import ModelError, find_model, read_description
from adaptok_ros.packet import PacketError, Payload, check, seal
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import AGE_LIMIT, PAST_CONFIRMATIONS, Receiver, Status
from adaptok_ros.receiving.restorer import Restorer
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = 'adaptok-tiny'
DESCRIPTION = read_description(find_model(MODEL), 'lit.json')
TOKENIZER = DESCRIPTION['tokenizer']
FRAMES = DESCRIPTION['frames']
CHANNELS = DESCRIPTION['channels']
REACH = DESCRIPTION['reach']
SIDE = 16
MISSING = [
    name for name in ('torch', 'onnx', 'safetensors') if importlib.util.find_spec(name) is None
]
needs_torch = pytest.mark.skipif(
    bool(MISSING), reason=f'not importable: {", ".join(MISSING)} (the training extra)'
)


def lit_packets(recorded):
    """A recording as the tokenizer of the shipped LIT would have sent it."""
    return [seal(dataclasses.replace(sent.packet, tokenizer=TOKENIZER)) for sent in recorded]


def distance(latents, held):
    difference = latents.astype(np.float64) - held.astype(np.float64)
    return np.abs(difference).mean(axis=-1)


# The projection


def brute_force_projection(residual, radius):
    """Nearest point of ``mean |r| <= radius``, its soft threshold found by bisection."""
    magnitude = np.abs(residual)
    if magnitude.mean() <= radius:
        return residual
    low, high = 0.0, magnitude.max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(magnitude - middle, 0).mean() > radius:
            low = middle
        else:
            high = middle
    return np.sign(residual) * np.maximum(magnitude - high, 0)


def project(residual, radius, dtype='float64'):
    import torch

    from adaptok_ros.networks.lit import project_to_ball

    residual = torch.tensor(np.asarray(residual), dtype=getattr(torch, dtype))
    radius = torch.tensor(np.asarray(radius), dtype=getattr(torch, dtype))
    return project_to_ball(residual, radius).numpy()


VECTORS = st.lists(st.floats(-50, 50), min_size=1, max_size=17).map(np.array)


@needs_torch
@settings(deadline=None, max_examples=200)
@given(VECTORS, st.floats(0, 20))
def test_projection_is_the_one_found_by_bisection(residual, radius):
    found = project(residual, [radius])
    np.testing.assert_allclose(found, brute_force_projection(residual, radius), atol=1e-9)


@needs_torch
@settings(deadline=None, max_examples=100)
@given(VECTORS, st.floats(0, 20), st.integers(0, 2**32 - 1))
def test_projection_is_never_further_from_any_point_of_the_ball(residual, radius, seed):
    generator = np.random.default_rng(seed)
    points = generator.laplace(size=(50, residual.size))
    points *= radius * generator.random((50, 1)) / np.abs(points).mean(axis=1, keepdims=True)
    corners = radius * residual.size * np.concatenate([np.eye(residual.size)] * 2)
    corners[residual.size :] *= -1
    points = np.concatenate([points, corners, np.zeros((1, residual.size))])
    found = project(residual, [radius])
    before = np.linalg.norm(residual - points, axis=1)
    assert np.all(np.linalg.norm(found - points, axis=1) <= before + 1e-9)


@needs_torch
@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 0.2, 100.0]))
def test_projection_in_float32_stays_in_the_ball_and_leaves_its_points_alone(seed, radius):
    generator = np.random.default_rng(seed)
    sizes = radius * np.array([0.1, 0.9, 1.5, 30.0])[:, None, None]
    residual = (generator.normal(size=(4, 6, CHANNELS)) * sizes).astype(np.float32)
    found = project(residual, np.full((4, 6, 1), radius), 'float32')
    assert found.dtype == np.float32
    assert np.abs(found).mean(axis=-1, dtype=np.float64).max() <= radius * (1 + 1e-5)
    inside = np.abs(residual).mean(axis=-1) < radius * (1 - 1e-6)
    np.testing.assert_array_equal(found[inside], residual[inside])


@needs_torch
@pytest.mark.parametrize('size', range(1, 13))
def test_network_sorts_zeros_and_ones(size):
    """And so all numbers: Knuth, The Art of Computer Programming, 5.3.4, theorem Z."""
    from adaptok_ros.networks.lit import sorting_network

    values = np.arange(2**size)[:, None] >> np.arange(size) & 1
    for first, second in sorting_network(size):
        pair = values[:, [first, second]]
        values[:, first], values[:, second] = pair.max(axis=1), pair.min(axis=1)
    assert np.all(np.diff(values, axis=1) <= 0)


@needs_torch
def test_projection_takes_one_radius_for_each_vector():
    residual = np.array([[3.0, -1.0], [3.0, -1.0], [3.0, -1.0]])
    found = project(residual, [[5.0], [1.0], [0.0]])
    np.testing.assert_allclose(found, [[3, -1], [2, 0], [0, 0]], atol=1e-12)


# LIT


@needs_torch
def test_attention_over_frames_is_softmax_attention():
    import torch

    from adaptok_ros.networks.lit import HEADS, TemporalAttention

    torch.manual_seed(0)
    attention = TemporalAttention(6, 10, frames=3, inner=8).double()
    torch.nn.init.normal_(attention.when)
    x = torch.randn(2, 10, 4, 5, dtype=torch.float64)
    frames = torch.randn(3, 2, 6, 4, 5, dtype=torch.float64)
    seen = [
        attention.key_value(torch.relu(attention.embed(frame) + when)).chunk(2, dim=1)
        for frame, when in zip(frames, attention.when)
    ]
    query, key, value = (
        torch.stack(grids).permute(1, 3, 4, 0, 2).unflatten(-1, (HEADS, 2)).transpose(-2, -3)
        for grids in ([attention.query(x)], *zip(*seen))
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    mixed = mixed.squeeze(-2).flatten(-2).movedim(-1, 1)
    torch.testing.assert_close(attention(x, list(frames)), x + attention.out(mixed))


def wild_lit():
    """A LIT of random weights that always wants to leave the ball."""
    import torch

    from adaptok_ros.networks.lit import LatentInpaintingTransformer

    torch.manual_seed(0)
    model = LatentInpaintingTransformer(CHANNELS, frames=3, width=16, inner=8, blocks=1)
    torch.nn.init.normal_(model.head.weight, std=10.0)
    return model.eval()


@pytest.fixture(scope='session')
def wild_model(tmp_path_factory):
    from adaptok_ros.networks.model_folder import export_lit

    folder = tmp_path_factory.mktemp('wild')
    for file in find_model(MODEL).iterdir():
        if not file.name.startswith('lit.'):
            shutil.copy(file, folder)
    export_lit(wild_lit(), TOKENIZER, folder)
    return str(folder)


@pytest.fixture(
    scope='session', params=[pytest.param('shipped'), pytest.param('wild', marks=needs_torch)]
)
def model(request):
    return MODEL if request.param == 'shipped' else request.getfixturevalue('wild_model')


@pytest.fixture(scope='session')
def restorer(model):
    restorer = Restorer(model, threads=1)
    yield restorer
    restorer.close()


@pytest.fixture(scope='session')
def graph(model):
    engine = create_engine(GraphRequest(find_model(model), 'lit', threads=1))
    yield Runner(engine), read_description(find_model(model), 'lit.json')['frames']
    engine.close()


def assert_restored(values, held, kept, tau):
    """Sent latents bit for bit; the rest no further than tau from what is held."""
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert values[kept].tobytes() == held[kept].tobytes()
    rounding = 1e-5 * tau + 2e-7 * np.abs(held).mean(axis=-1)
    assert np.all(distance(values, held) <= tau + rounding)


@pytest.mark.parametrize('rows', [1, SIDE, 3 * SIDE])
@pytest.mark.parametrize('tau', [0.0, 0.01, 0.2, 3.0, 100.0])
def test_graph_keeps_what_was_sent_and_stays_in_the_ball(graph, rows, tau):
    engine, frames = graph
    generator = np.random.default_rng(rows)
    shape = (1, frames, rows, 2 * SIDE)
    for share in (0.0, 0.1, 1.0):
        held = generator.normal(scale=2, size=(*shape, CHANNELS)).astype(np.float32)
        kept = (generator.random(shape) < share).astype(np.float32)
        age = generator.integers(0, AGE_LIMIT + 1, shape).astype(np.float32) * (1 - kept)
        inputs = {'held': held, 'kept': kept, 'age': age, 'tau': np.array([tau], np.float32)}
        values = engine.run(inputs)['latents'][0]
        assert_restored(values, held[0, -1], kept[0, -1] > 0, tau)


def windows_with_changes(frames, changes, noise=0.0, side=3 * SIDE):
    """A still window, but for what changed at some positions in its last frame."""
    generator = np.random.default_rng(0)
    still = generator.normal(size=(side, side, CHANNELS))
    held = np.repeat(still[None, None], frames, axis=1)
    held += generator.normal(scale=noise, size=held.shape)
    for row, column in changes:
        held[0, -1, row, column] += 1.0
    kept = (generator.random(held.shape[:-1]) < 0.1).astype(np.float32)
    for row, column in changes:
        kept[0, -1, row, column] = 1.0
    age = generator.integers(0, AGE_LIMIT + 1, kept.shape).astype(np.float32) * (1 - kept)
    tau = np.array([0.2], np.float32)
    return {'held': held.astype(np.float32), 'kept': kept, 'age': age, 'tau': tau}


def test_nothing_is_corrected_where_nothing_changes(graph):
    """Whatever is refreshed: by less than what counts as a change."""
    engine, frames = graph
    inputs = windows_with_changes(frames, [], noise=0.04)
    values = engine.run(inputs)['latents'][0]
    np.testing.assert_array_equal(values, inputs['held'][0, -1])


def test_only_what_lies_around_a_change_is_corrected(graph):
    engine, frames = graph
    inputs = windows_with_changes(frames, [(20, 24)])
    values = engine.run(inputs)['latents'][0]
    corrected = np.argwhere((values != inputs['held'][0, -1]).any(axis=-1))
    assert len(corrected) and np.abs(corrected - (20, 24)).max() <= REACH


@pytest.mark.parametrize('reach', [REACH])
def test_nothing_beyond_the_reach_changes_what_is_restored(graph, reach):
    engine, frames = graph
    changes = [(row, column) for row in range(0, 48, 2) for column in range(0, 48, 3)]
    inputs = windows_with_changes(frames, changes)
    first, last = 20, 28
    expected = engine.run(inputs)['latents'][0, first:last, first:last].copy()
    part = {
        name: value[:, :, first - reach : last + reach, first - reach : last + reach].copy()
        for name, value in inputs.items()
        if name != 'tau'
    }
    found = engine.run({**part, 'tau': inputs['tau']})['latents'][0, reach:-reach, reach:-reach]
    assert (found != inputs['held'][0, -1, first:last, first:last]).any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


HUGE = pytest.mark.parametrize('huge', [100.0, 65504.0, 1e20, 3e38])


def huge_window(frames, huge):
    """One latent among ordinary ones that no encoder would make; nothing was sent."""
    held = np.random.default_rng(0).normal(size=(1, frames, SIDE, SIDE, CHANNELS))
    held[0, :, 2, 3, ::2] = huge
    silence = np.zeros(held.shape[:-1], np.float32)
    tau = np.array([0.2], np.float32)
    return {'held': held.astype(np.float32), 'kept': silence, 'age': silence, 'tau': tau}


def assert_not_spread(values, inputs):
    held = inputs['held'][0, -1]
    assert np.isfinite(values).all()
    ordinary = np.abs(held).max(axis=-1) < 10
    assert ordinary.sum() == SIDE**2 - 1
    assert_restored(values[ordinary], held[ordinary], np.zeros(len(held[ordinary]), bool), 0.2)


@HUGE
def test_one_huge_latent_does_not_spread(graph, huge):
    engine, frames = graph
    inputs = huge_window(frames, huge)
    assert_not_spread(engine.run(inputs)['latents'][0], inputs)


@needs_torch
@HUGE
def test_no_packet_carries_a_latent_that_spreads(huge):
    """In torch, which unlike ONNX Runtime lets a NaN through clamp and comparison."""
    import torch

    packet = record(0, 1, (1, 1, 1), payload=Payload.FLOAT32)[0].packet
    data = np.array([huge], '<f4').view(np.uint8)
    try:
        check(dataclasses.replace(packet, data=data))
    except PacketError:
        return
    model = wild_lit()
    inputs = huge_window(model.frames, huge)
    with torch.no_grad():
        values = model(**{name: torch.tensor(value) for name, value in inputs.items()})[0]
    assert_not_spread(values.numpy(), inputs)


SHAPES = [(1, 1), (1, 9), (7, 5), (8, 8), (9, 17), (16, 8)]


@pytest.mark.parametrize('shape', SHAPES)
def test_restored_grids_of_every_size(restorer, shape):
    receiver = Receiver()
    recorded = record(3, 8, (*shape, CHANNELS), tau=0.5, refresh_period=5)
    for packet in lit_packets(recorded):
        receiver.apply(packet)
        restorer.observe(receiver)
        values = restorer.restore()
        assert values.shape == (*shape, CHANNELS)
        assert_restored(values, receiver.held, receiver.kept, packet.tau)


@needs_torch
def test_wild_model_restores_something(wild_model):
    """Else the tests of the ball would prove nothing."""
    stream = LatentStream(wild_model, threads=1)
    for packet in lit_packets(record(3, 4, (7, 5, CHANNELS), tau=0.5, refresh_period=0)):
        stream.push(packet)
    latents = stream.latents()
    moved = distance(latents.values, stream.receiver.held)[~stream.receiver.kept]
    assert (moved > 0.5 * (1 - 1e-4)).mean() > 0.9
    stream.close()


# The window of a restorer, as its engine gets to see it


class RecordingEngine:
    """Stands in for LIT: remembers its inputs and returns the held grid."""

    backend = 'recording'
    device = 'cpu'

    def __init__(self):
        self.inputs = []

    def bind(self, shapes):
        return RecordingBinding(self)

    def close(self):
        pass


class RecordingBinding:
    def __init__(self, engine):
        self.engine = engine
        self.inputs = {}
        self.outputs = {}

    def bind_input(self, name, buffer):
        self.inputs[name] = buffer

    def run(self):
        self.engine.inputs.append({name: value.copy() for name, value in self.inputs.items()})
        self.outputs['latents'] = self.inputs['held'][:, -1].copy()


@pytest.fixture
def engine(monkeypatch):
    engine = RecordingEngine()
    monkeypatch.setattr(fallback, 'acquire_engine', lambda *_: engine)
    return engine


@pytest.fixture
def windows(engine):
    """Takes receivers' states, one after the other, and returns what LIT saw after the last."""
    restorer = Restorer(MODEL)

    def observe(receiver, packets):
        receiver.observer = restorer.observe
        for packet in packets:
            receiver.apply(packet)
        restorer.restore()
        return engine.inputs[-1]

    return observe


SHAPE = (3, 5, CHANNELS)


def test_window_holds_the_last_frames(windows):
    recorded = record(1, FRAMES + 3, SHAPE, tau=0.4, refresh_period=4)
    receiver = Receiver()
    states = []
    for packet in lit_packets(recorded):
        seen = windows(receiver, [packet])
        states.append((receiver.held.copy(), receiver.kept.copy(), receiver.age.copy()))
    for name, column in (('held', 0), ('kept', 1), ('age', 2)):
        expected = np.stack([state[column] for state in states[-FRAMES:]])
        np.testing.assert_array_equal(seen[name][0], expected)
    assert seen['tau'].tolist() == [np.float32(0.4)]


def test_first_frame_fills_the_window(windows):
    receiver = Receiver()
    seen = windows(receiver, lit_packets(record(1, 1, SHAPE)))
    for frame in range(FRAMES):
        np.testing.assert_array_equal(seen['held'][0, frame], receiver.held)
        np.testing.assert_array_equal(seen['age'][0, frame], receiver.age)
    assert seen['kept'][0, :-1].sum() == 0
    assert seen['kept'][0, -1].all()


@pytest.mark.parametrize('shape', [(3, 5), (2, 5), (2, 2), (8, 7), (9, 5)])
def test_new_epoch_sees_nothing_of_the_old_one(windows, shape):
    receiver = Receiver()
    windows(receiver, lit_packets(record(1, FRAMES + 2, SHAPE, tau=0.3)))
    second = lit_packets(record(2, 2, (*shape, CHANNELS), epoch=2, tau=0.3))
    seen = windows(receiver, second)
    fresh = Receiver()
    fresh.apply(second[0])
    first = fresh.held.copy()
    fresh.apply(second[1])
    assert seen['kept'].shape == (1, FRAMES, *shape)
    for frame in range(FRAMES - 1):
        np.testing.assert_array_equal(seen['held'][0, frame], first)
    np.testing.assert_array_equal(seen['held'][0, -1], fresh.held)


def test_rewound_recording_sees_nothing_of_its_end(windows):
    """A bag that loops must not mix its end into its beginning."""
    count = PAST_CONFIRMATIONS + FRAMES
    packets = lit_packets(record(1, count, SHAPE, tau=0.4, refresh_period=3))
    receiver, states = Receiver(), []
    for packet in packets:
        windows(receiver, [packet])
        states.append((receiver.held.tobytes(), receiver.age.tobytes()))
    assert len(set(states)) == len(states)
    windows(receiver, packets)
    again = windows(receiver, packets[:2])
    assert receiver.counters.rewinds == 2
    for held, age in zip(again['held'][0], again['age'][0]):
        assert (held.tobytes(), age.astype(np.uint8).tobytes()) in states[:2]
    assert not again['kept'][0, :-2].any()


def test_late_packets_are_not_in_the_window(engine):
    stream = LatentStream(MODEL)
    packets = lit_packets(record(2, 4, SHAPE, tau=0.4, refresh_period=9))
    for packet in packets[:3]:
        stream.push(packet)
    stream.latents()
    for packet in (packets[2], packets[1]):
        assert not stream.push(packet)
    stream.latents()
    before, after = engine.inputs
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


# Latent streams


@pytest.fixture
def stream(model):
    stream = LatentStream(model, threads=1)
    yield stream
    stream.close()


def test_mode_hold_gives_what_was_last_sent():
    stream = LatentStream(mode='hold')
    recorded = record(2, 9, tau=0.3, refresh_period=4)
    for sent in recorded:
        assert stream.push(sent.packet)
        latents = stream.latents()
        assert latents.values.tobytes() == sent.reference
        assert latents.status is Status.OK
        np.testing.assert_array_equal((latents.age == 0).reshape(-1), sent_mask(sent.packet))
        packet = sent.packet
        assert (latents.stamp, latents.frame_id) == (packet.stamp, packet.frame_id)
        assert (latents.tokenizer, latents.epoch) == (packet.tokenizer, packet.epoch)
        assert latents.sequence == packet.sequence
    stream.close()


def test_mode_lit_restores_around_what_was_sent(stream):
    shape = (7, 9, CHANNELS)
    for packet in lit_packets(record(2, 6, shape, tau=0.6, refresh_period=4)):
        assert stream.push(packet)
        latents = stream.latents()
        assert latents.values.shape == shape and latents.age.shape == shape[:2]
        assert latents.status is Status.OK
        kept = sent_mask(packet).reshape(shape[:2])
        assert_restored(latents.values, stream.receiver.held, kept, packet.tau)


def test_lit_is_never_further_than_2_tau_from_the_truth(stream):
    shape = (8, 8, CHANNELS)
    sender = Stream(shape, SelectionConfig(tau=0.3, payload=Payload.FLOAT32))
    for truth in latent_frames(4, 6, shape, step=0.5):
        packet = seal(dataclasses.replace(sender.send(truth), tokenizer=TOKENIZER))
        stream.push(packet)
        error = distance(stream.latents().values, truth)
        assert error.max() <= 2 * packet.tau * (1 + 1e-5)
        assert error[sent_mask(packet).reshape(8, 8)].max(initial=0) == 0


def test_lit_does_not_hide_what_waits_for_the_ceiling():
    """After a change of scene the truth is outside the ball that limits LIT's correction."""
    tau, scene, tokenizer = 0.1, Scene(160, 120), Tokenizer(MODEL)
    sender = Sender(tokenizer, SelectionConfig(tau=tau))
    stream = LatentStream(MODEL)
    hold = lit = 0.0
    for frame in range(16):
        image = scene.frame(20 + frame)
        if frame >= 4:
            image = np.ascontiguousarray(image[::-1])
        stream.push(sender.send(image, frame, 'camera'))
        sender.config = SelectionConfig(tau=tau, max_tokens=15)
        latents, receiver = stream.latents(), stream.receiver
        if frame < 4:
            continue
        assert latents.status is Status.UNBOUNDED and latents.deferred > 100
        truth, kept = tokenizer.encode(image).copy(), receiver.kept
        assert distance(truth, receiver.held)[~kept].max() > 3 * tau
        assert distance(truth, latents.values)[~kept].max() > 2 * tau
        assert_restored(latents.values, receiver.held, kept, tau)
        hold += float(np.square(receiver.held - truth).sum())
        lit += float(np.square(latents.values - truth).sum())
    stream.close()
    tokenizer.close()
    assert lit < hold


def test_lit_after_a_pause_of_the_policy_is_what_it_would_have_been(model):
    """Asking for latents changes nothing: only packets do."""
    packets = lit_packets(record(2, 6, (5, 6, CHANNELS), tau=0.4))
    often, once = LatentStream(model, threads=1), LatentStream(model, threads=1)
    for packet in packets:
        often.push(packet)
        expected = often.latents()
        once.push(packet)
    found = once.latents()
    assert found.values.tobytes() == expected.values.tobytes()
    assert once.latents().values.tobytes() == expected.values.tobytes()
    often.close()
    once.close()


@pytest.mark.parametrize('mode', ['lit', 'hold'])
def test_latents_belong_to_the_caller(mode):
    stream = LatentStream(MODEL, mode, threads=1)
    packets = lit_packets(record(2, 3, (5, 6, CHANNELS), tau=0.4))
    stream.push(packets[0])
    first = stream.latents()
    values, age = first.values.tobytes(), first.age.tobytes()
    stream.push(packets[1])
    second = stream.latents()
    assert (first.values.tobytes(), first.age.tobytes()) == (values, age)
    expected = second.values.tobytes()
    second.values[:], second.age[:] = 7, 7
    assert stream.latents().values.tobytes() == expected
    assert second.values.flags.c_contiguous and second.values.flags.writeable
    stream.close()


@pytest.mark.parametrize('mode', ['lit', 'hold'])
def test_no_latents_before_the_first_packet(mode):
    stream = LatentStream(MODEL, mode, threads=1)
    with pytest.raises(LookupError):
        stream.latents()
    stream.close()


@pytest.mark.parametrize('mode', ['lit', 'hold'])
def test_refused_and_late_packets_change_no_latents(mode):
    stream = LatentStream(MODEL, mode, threads=1)
    packets = lit_packets(record(2, 4, (5, 6, CHANNELS), tau=0.4, refresh_period=9))
    for packet in packets[:3]:
        stream.push(packet)
    before = stream.latents()
    assert not stream.push(packets[2])
    assert not stream.push(packets[1])
    with pytest.raises(PacketError):
        stream.push(dataclasses.replace(packets[3], kept=10**6))
    after = stream.latents()
    assert after.values.tobytes() == before.values.tobytes()
    assert after.age.tobytes() == before.age.tobytes()
    stream.close()


def test_status_goes_with_the_latents():
    stream = LatentStream(mode='hold')
    packets = [sent.packet for sent in record(2, 14, tau=100.0, refresh_period=3)]
    statuses = []
    for packet in (*packets[1:4], *packets[6:10]):
        stream.push(packet)
        statuses.append(stream.latents().status.name)
    assert statuses == [*['INCOMPLETE'] * 2, 'OK', *['STALE'] * 2, 'OK', 'OK']


def test_lit_takes_only_the_latents_it_was_made_for(stream):
    with pytest.raises(PacketError) as raised:
        stream.push(record(0, 1, (4, 4, CHANNELS))[0].packet)
    assert raised.value.field == 'tokenizer'
    with pytest.raises(PacketError) as raised:
        stream.push(lit_packets(record(0, 1, (4, 4, CHANNELS - 1)))[0])
    assert raised.value.field == 'channels'


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode is 'guess'; allowed: lit, hold"):
        LatentStream(MODEL, 'guess')


def test_mode_lit_needs_a_tokenizer():
    with pytest.raises(ModelError, match='no model named'):
        LatentStream()


def describe(folder, name, **changes):
    """Write a description of a model whose files are not models, with the right hashes."""
    fields = json.loads((find_model(MODEL) / name).read_text())
    for file in fields['files']:
        (folder / file).write_text(f'not a model: {file}')
        fields['files'][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    if name == 'lit.json':
        weights = hashlib.sha256((folder / 'tokenizer.safetensors').read_bytes()).hexdigest()
        fields['tokenizer'] = f'{MODEL}@{weights[:12]}'
    fields.update(changes)
    kept = {key: value for key, value in fields.items() if value is not ...}
    (folder / name).write_text(json.dumps(kept))


@pytest.fixture
def folder(tmp_path):
    describe(tmp_path, 'tokenizer.json')
    describe(tmp_path, 'lit.json')
    return tmp_path


def test_description_is_all_that_is_checked_before_loading(folder):
    """Else the tests below could fail for another reason than the one they name."""
    with pytest.raises(EngineError, match=r'lit\.onnx'):
        Restorer(str(folder))


def test_tokenizer_without_lit(folder):
    (folder / 'lit.json').unlink()
    with pytest.raises(ModelError, match=r'no lit\.json'):
        LatentStream(str(folder))


@pytest.mark.parametrize('field', ['tokenizer', 'frames', 'reach', 'channels', 'files'])
@pytest.mark.parametrize('value', [..., None, [], 'x'], ids=['missing', 'null', 'list', 'text'])
def test_bad_description_of_a_lit(folder, field, value):
    describe(folder, 'lit.json', **{field: value})
    with pytest.raises(ModelError, match=r'lit\.json'):
        Restorer(str(folder))


@pytest.mark.parametrize('field', ['frames', 'reach', 'channels'])
@pytest.mark.parametrize('value', [0, -1])
def test_description_of_a_lit_with_impossible_numbers(folder, field, value):
    describe(folder, 'lit.json', **{field: value})
    with pytest.raises(ModelError, match=r'lit\.json'):
        Restorer(str(folder))


def test_lit_of_another_tokenizer(folder):
    describe(folder, 'lit.json', tokenizer='other@0123456789ab')
    with pytest.raises(ModelError, match='other@0123456789ab'):
        Restorer(str(folder))


def test_exchanged_lit_is_not_run(folder):
    (folder / 'lit.onnx').write_bytes((folder / 'encoder.onnx').read_bytes())
    with pytest.raises(ModelError, match=r'lit\.onnx.*SHA-256'):
        Restorer(str(folder))


def test_lit_that_its_description_does_not_list_is_not_run(folder):
    describe(folder, 'lit.json', files={})
    with pytest.raises(ModelError, match=r'lit\.onnx'):
        Restorer(str(folder))
