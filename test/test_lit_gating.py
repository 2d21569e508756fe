"""Gated LIT: what is restored when, and that the contract holds."""

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Stream, latent_frames
from test_latents import (
    CHANNELS,
    FRAMES,
    MODEL,
    REACH,
    SIDE,
    TOKENIZER,
    assert_restored,
    distance,
    needs_torch,
    wild_lit,
)

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import Payload, seal
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.restoration import (
    LARGEST_BOX,
    NOTICED,
    SIDES,
    RestorationGate,
    RestorationScope,
)
from adaptok_ros.receiving.restorer import Restorer
from adaptok_ros.sending.selection import SelectionConfig

SHAPE = (4 * SIDE, 5 * SIDE)
TAU = 0.1

# What is restored


@pytest.fixture
def gate():
    return RestorationGate(SHAPE, FRAMES, REACH)


def observe(gate, positions=(), change=TAU):
    sent = np.array(positions, np.intp)
    gate.observe(sent, np.full(len(sent), change, np.float32))


def test_nothing_is_restored_where_nothing_changes(gate):
    for change in (0.0, 0.9 * NOTICED * TAU):
        observe(gate, [3, 700], change)
        assert gate.box(TAU) is None


def test_what_counts_as_a_change_follows_tau(gate):
    observe(gate, [700], NOTICED * TAU)
    assert gate.box(1.1 * TAU) is None
    assert gate.box(TAU) is not None


def test_change_is_restored_as_long_as_lit_sees_it(gate):
    observe(gate, [20 * SHAPE[1] + 30])
    boxes = [gate.box(TAU)]
    for _ in range(FRAMES - 2):
        observe(gate)
        boxes.append(gate.box(TAU))
    assert boxes == [boxes[0]] * (FRAMES - 1)
    rows, columns = boxes[0].taken
    assert (rows.start, rows.stop) == (20 - REACH, 21 + REACH)
    assert (columns.start, columns.stop) == (30 - REACH, 31 + REACH)
    observe(gate)
    assert gate.box(TAU) is None


def test_everything_is_restored_where_the_box_is_hardly_smaller(gate):
    rows, columns = SHAPE
    observe(gate, [0, (rows - 1) * columns + columns - 1])
    assert gate.box(TAU).size == SHAPE
    narrower = RestorationGate(SHAPE, FRAMES, REACH)
    observe(narrower, [0, (rows - 1) * columns + columns // 2])
    assert narrower.box(TAU).size[1] <= LARGEST_BOX * columns


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_box_holds_every_change_and_its_surroundings(data):
    shape = tuple(data.draw(st.integers(1, 100)) for _ in range(2))
    gate = RestorationGate(shape, FRAMES, REACH)
    position = st.integers(0, shape[0] * shape[1] - 1)
    changed = np.array(data.draw(st.lists(position, min_size=1, max_size=4)))
    observe(gate, changed)
    box = gate.box(TAU)
    assert box.size == shape or box.size[0] * box.size[1] <= LARGEST_BOX * shape[0] * shape[1]
    for axis, at in enumerate(np.divmod(changed, shape[1])):
        seen, taken, side = box.seen[axis], box.taken[axis], shape[axis]
        assert box.size[axis] == side or box.size[axis] % SIDES == 0
        assert 0 <= seen.start <= taken.start < taken.stop <= seen.stop <= side
        assert taken.start == max(at.min() - REACH, 0)
        assert taken.stop == min(at.max() + 1 + REACH, side)
        # Only the grid's own border may be nearer than what LIT sees.
        assert seen.start == 0 or taken.start - seen.start >= REACH
        assert seen.stop == side or seen.stop - taken.stop >= REACH
        assert box.inner[axis] == slice(taken.start - seen.start, taken.stop - seen.start)


# Streams


@pytest.fixture(scope='module', params=['shipped', pytest.param('wild', marks=needs_torch)])
def model(request, tmp_path_factory):
    """The shipped one, and one that always wants to leave the ball."""
    if request.param == 'shipped':
        return MODEL
    from adaptok_ros.networks.model_folder import export_lit

    folder = tmp_path_factory.mktemp('wild')
    for file in find_model(MODEL).iterdir():
        if not file.name.startswith('lit.'):
            shutil.copy(file, folder)
    export_lit(wild_lit(), TOKENIZER, folder)
    return str(folder)


@pytest.fixture
def opened():
    """Opens streams, and closes them afterwards."""
    streams = []

    def open_stream(model=MODEL, scope=RestorationScope.CHANGED):
        streams.append(LatentStream(model, threads=1, scope=scope))
        return streams[-1]

    yield open_stream
    for stream in streams:
        stream.close()


def scene(count, shape=(3 * SIDE, 4 * SIDE), seed=0, where=(slice(8, 16), slice(20, 30))):
    """Latents that stand still, but in one place from the sixth frame on."""
    generator = np.random.default_rng(seed)
    still = generator.normal(size=(*shape, CHANNELS))
    frames = np.repeat(still[None], count, axis=0)
    frames += generator.normal(scale=0.02, size=frames.shape)
    moving = frames[6:, where[0], where[1]]
    moving += np.cumsum(generator.normal(scale=0.15, size=moving.shape), axis=0)
    return frames.astype(np.float32)


def packets(frames, **config):
    sender = Stream(frames.shape[1:], SelectionConfig(**config))
    return [seal(dataclasses.replace(sender.send(frame), tokenizer=TOKENIZER)) for frame in frames]


def test_contract_holds_in_every_frame(model, opened):
    stream = opened(model)
    shares = []
    for packet in packets(scene(50), tau=0.1, refresh_period=9):
        stream.push(packet)
        receiver = stream.receiver
        assert_restored(stream.latents().values, receiver.held, receiver.kept, packet.tau)
        shares.append(stream.restorer.share)
    assert 0.0 in shares and any(0 < share < 1 for share in shares)


def test_contract_holds_when_everything_changes_at_once(model, opened):
    stream = opened(model)
    recorded = packets(latent_frames(3, 20, (9, 17, CHANNELS)), tau=0.5, refresh_period=5)
    for packet in recorded:
        stream.push(packet)
        receiver = stream.receiver
        assert_restored(stream.latents().values, receiver.held, receiver.kept, packet.tau)


def test_contract_holds_for_a_smaller_tau(model, opened):
    stream = opened(model)
    sender = Stream((SIDE, 2 * SIDE, CHANNELS), SelectionConfig(tau=1.0, refresh_period=7))
    generator = np.random.default_rng(0)
    still = generator.normal(size=sender.shape)
    for index in range(16):
        if index in (6, 12):
            sender.change(tau=1.0 / index)
        frame = (still + generator.normal(scale=0.05, size=sender.shape)).astype(np.float32)
        packet = seal(dataclasses.replace(sender.send(frame), tokenizer=TOKENIZER))
        stream.push(packet)
        receiver = stream.receiver
        assert_restored(stream.latents().values, receiver.held, receiver.kept, packet.tau)


def test_negative_zeros_pass_through(opened):
    stream = opened()
    frames = np.full((4, SIDE, SIDE, CHANNELS), -0.0, np.float32)
    for packet in packets(frames, tau=0.1, refresh_period=2, payload=Payload.FLOAT32):
        stream.push(packet)
        values, receiver = stream.latents().values, stream.receiver
        assert np.signbit(receiver.held).all()
        assert values[receiver.kept].tobytes() == receiver.held[receiver.kept].tobytes()


def test_gated_latents_are_those_that_are_restored_densely(model, opened):
    gated, dense = opened(model), opened(model, scope=RestorationScope.ALL)
    shares = []
    for packet in packets(scene(50), tau=TAU, refresh_period=40):
        for stream in (gated, dense):
            stream.push(packet)
        difference = distance(gated.latents().values, dense.latents().values)
        assert difference.max() < 1e-3 * TAU
        shares.append(gated.restorer.share)
        assert dense.restorer.share == 1.0
    assert np.mean(shares) < 0.5


def test_all_that_was_missed_during_a_pause_is_restored(opened):
    gated, dense = opened(), opened(scope=RestorationScope.ALL)
    recorded = packets(scene(14), tau=TAU, refresh_period=0)
    for packet in recorded:
        for stream in (gated, dense):
            stream.push(packet)
    difference = distance(gated.latents().values, dense.latents().values)
    assert gated.restorer.share > 0
    assert difference.max() < 1e-3 * TAU


def test_asking_twice_gives_the_same(opened):
    stream = opened()
    for packet in packets(scene(12), tau=0.1):
        stream.push(packet)
        first = stream.latents().values.tobytes()
        assert stream.latents().values.tobytes() == first


def test_new_epoch_begins_anew(opened):
    """What changed in the old one does not count, nor what the first packet brings."""
    stream = opened()
    recorded = packets(scene(12), tau=TAU)
    for packet in recorded:
        stream.push(packet)
    stream.latents()
    assert stream.restorer.share > 0.0
    stream.push(seal(dataclasses.replace(recorded[0], epoch=2)))
    values = stream.latents().values
    assert stream.restorer.share == 0.0
    np.testing.assert_array_equal(values, stream.receiver.held)


def test_restoring_in_part_runs_on_the_cpu_whatever_gpus_there_are():
    restorer = Restorer(MODEL, scope=RestorationScope.CHANGED)
    assert restorer.engine.device == 'cpu'
    restorer.close()


@needs_torch
def test_another_engine_goes_on_where_the_first_failed(opened):
    changed, unchanged = opened(), opened()
    for index, packet in enumerate(packets(scene(10), tau=0.1)):
        if index == 7:
            restorer = changed.restorer
            restorer._lit.fall_back(restorer.engine, EngineError('as if it had failed'))
            assert restorer.engine.backend == 'torch'
        for stream in (changed, unchanged):
            stream.push(packet)
        np.testing.assert_allclose(
            changed.latents().values, unchanged.latents().values, atol=1e-3, rtol=0
        )
