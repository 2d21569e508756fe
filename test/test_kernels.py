# ruff: noqa: E402  (what needs torch is imported after the check for it)
"""numpy, torch and Triton select the same bytes.

Triton runs interpreted on the CPU, which must be decided before it is imported: one test runs
the others of this file again in a process where it is.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from streams import FLOAT16_LIMIT, KINDS, latent_frames, spoil

from adaptok_ros.coding import decode_symbols
from adaptok_ros.packet import Payload
from adaptok_ros.sending.kernels.selector import REMEMBERED_FRAMES, DeviceSelector
from adaptok_ros.sending.selection import (
    WAITING_GAIN,
    Reference,
    SelectionConfig,
    Selector,
    TauMode,
)
from adaptok_ros.sending.tau_control import TauControl

CUDA = torch.cuda.is_available()
TRITON = importlib.util.find_spec('triton') is not None
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

needs_cuda = pytest.mark.skipif(not CUDA, reason='no CUDA device')
needs_triton = pytest.mark.skipif(not TRITON, reason='triton is not installed')

ON_CUDA = [('cuda', 'torch'), *([('cuda', 'triton')] if TRITON else [])]
if INTERPRETED:
    HERE = [('cpu', 'triton')]
else:
    HERE = [('cpu', 'torch'), *(ON_CUDA if CUDA else [])]
backends = pytest.mark.parametrize('backend', HERE, ids='-'.join)
cuda_backends = pytest.mark.parametrize('backend', ON_CUDA, ids='-'.join)


class Pair:
    """A selector in numpy and one on a device that get the same frames."""

    def __init__(self, positions, channels, config, backend):
        self.numpy = Selector(positions, channels, config)
        self.device = DeviceSelector(positions, channels, config, *backend)
        assert self.device.backend == backend[1]

    def change(self, **changes):
        self.numpy.config = dataclasses.replace(self.numpy.config, **changes)
        self.device.config = self.numpy.config

    def request_keyframe(self):
        self.numpy.request_keyframe()
        self.device.request_keyframe()

    def step(self, latents):
        with np.errstate(all='ignore'):
            expected = self.numpy.step(latents)
        found = self.device.step(torch.from_numpy(latents).to(self.device.device))
        assert_same(found, expected)
        assert self.device.delta.cpu().numpy().tobytes() == self.numpy.delta.tobytes()
        assert self.device.reference.cpu().numpy().tobytes() == self.numpy.reference.tobytes()
        return expected


def assert_same(found, expected):
    np.testing.assert_array_equal(found.keep, expected.keep)
    assert found.kept == expected.kept
    assert found.deferred == expected.deferred
    assert found.invalid == expected.invalid
    assert found.payload is expected.payload
    assert found.scale.tobytes() == expected.scale.tobytes()
    assert found.data.tobytes() == expected.data.tobytes()


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes Triton work on so few positions at a time that small grids take several chunks."""

    def set_values(count):
        if TRITON:
            from adaptok_ros.sending.kernels import triton_step

            monkeypatch.setattr(triton_step, 'CHUNK_VALUES', count)

    return set_values


@backends
@pytest.mark.parametrize('seed', range(24 if INTERPRETED else 200))
def test_every_byte_is_the_same(seed, backend, small_chunks):
    generator = np.random.default_rng(seed)
    payload, reference = list(Payload)[seed // 3 % 4], list(Reference)[seed // 12 % 2]
    positions = int(generator.integers(1, 40 if INTERPRETED else 300))
    channels = int(generator.integers(1, 49))
    small_chunks(int(generator.choice([64, 512, 1024])))
    config = SelectionConfig(
        tau=generator.choice([0.0, 0.05, 0.3, 0.75, 2.0]),
        max_tokens=int(generator.choice([0, 1, 5, positions // 2, positions])),
        keyframe_interval=int(generator.choice([0, 3])),
        refresh_period=int(generator.choice([0, 1, 4, 150])),
        refresh_parts=int(generator.choice([0, 1, 1, 3, 200])),
        payload=payload,
        reference=reference,
    )
    pair = Pair(positions, channels, config, backend)
    frames = latent_frames(seed, 5, (1, positions, channels), generator.choice(KINDS))
    if seed % 4 == 0:
        frames = np.round(frames * 4) / 4  # equal priorities, deltas of exactly tau
    if seed % 5 == 0:
        frames = spoil(frames, seed, generator.choice([0.001, 0.3]))
    if seed % 7 == 0:
        frames = (frames * np.float32(1e-6)).astype(np.float32)  # subnormal as float16
    for latents in frames:
        pair.step(latents.reshape(positions, channels))
        if generator.random() < 0.2:
            pair.request_keyframe()
        if generator.random() < 0.3:
            pair.change(
                tau=generator.choice([0.0, 0.1, 0.5]),
                max_tokens=int(generator.choice([0, 3])),
                refresh_period=int(generator.choice([0, 2, 3])),
                refresh_parts=int(generator.choice([1, 2])),
                payload=list(Payload)[generator.integers(4)],
                reference=list(Reference)[generator.integers(2)],
            )


@backends
@pytest.mark.parametrize('payload', [Payload.CODED, Payload.INT8])
def test_every_byte_is_the_same_while_tau_follows_a_rate(payload, backend):
    positions, channels = 30, 16
    config = SelectionConfig(
        0.2, payload=payload, tau_mode=TauMode.TARGET_RATE, target_rate=2.0, refresh_period=9
    )
    pair, control = Pair(positions, channels, config, backend), TauControl()
    taus = set()
    for frame, latents in enumerate(latent_frames(1, 12, (1, positions, channels))):
        now = control.begin(config, frame * 33_000_000)
        pair.change(tau=now.tau)
        selection = pair.step(latents.reshape(positions, channels))
        control.observe(now, selection, selection.data.nbytes, lambda: pair.numpy.delta)
        taus.add(now.tau)
    assert len(taus) > 8


@backends
@pytest.mark.parametrize('positions', [1, 7, 8, 9])
@pytest.mark.parametrize('channels', [1, 3])
def test_smallest_grids(positions, channels, backend, small_chunks):
    small_chunks(8)
    config = SelectionConfig(0.3, (positions + 1) // 2, 0, 3, Payload.INT8)
    pair = Pair(positions, channels, config, backend)
    for latents in latent_frames(positions, 4, (1, positions, channels)):
        pair.step(latents[0])


@backends
@pytest.mark.parametrize('payload', list(Payload))
def test_long_streams_stay_the_same(payload, backend, small_chunks):
    """What a ceiling makes wait is carried from frame to frame."""
    small_chunks(64)
    count = 25 if INTERPRETED else 400
    pair = Pair(13, 3, SelectionConfig(0.1, 4, 60, 9, payload), backend)
    deferred = 0
    for latents in latent_frames(8, count, (1, 13, 3)):
        deferred += pair.step(latents[0]).deferred
    assert deferred > 0


@backends
def test_equal_priorities_go_by_position(backend, small_chunks):
    """Across the border of a chunk; and a NaN, an infinity and a zero tie as what they mean."""
    small_chunks(8)
    pair = Pair(20, 1, SelectionConfig(0.5, 3, 0, 0), backend)
    for _ in range(8):
        pair.step(np.zeros((20, 1), np.float32))
    latents = np.ones((20, 1), np.float32)
    latents[[2, 11]] = np.nan
    latents[[5, 17]] = np.inf
    latents[9] = FLOAT16_LIMIT
    order = [np.flatnonzero(pair.step(latents).keep).tolist() for _ in range(6)]
    assert order == [[5, 9, 17], [0, 1, 3], [4, 6, 7], [8, 10, 12], [13, 14, 15], [16, 18, 19]]
    assert pair.step(latents).kept == 0


@backends
def test_halves_round_to_even(backend):
    """int8 halfway between two steps, float16 between two neighbours, and zeros' signs."""
    for payload in (Payload.INT8, Payload.FLOAT16):
        pair = Pair(8, 2, SelectionConfig(0.0, payload=payload), backend)
        latents = np.zeros((8, 2), np.float32)
        latents[:, 0] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -0.0, 1e-30]
        latents[:, 1] = [2049, 2051, -2049, 2**-25, 3 * 2**-25, 2**-24, -0.0, 65519]
        data = pair.step(latents).data
        if payload is Payload.INT8:
            assert data.view(np.int8).reshape(8, 2)[:, 0].tolist() == [127, 0, 2, 2, 0, -2, 0, 0]
        else:
            assert data.view(np.float16).reshape(8, 2)[:, 1].tolist() == [
                2048,
                2052,
                -2048,
                0,
                2**-23,
                2**-24,
                0,
                FLOAT16_LIMIT,
            ]


@backends
def test_coded_halves_round_to_even_and_what_is_too_large_is_invalid(backend):
    pair = Pair(8, 1, SelectionConfig(1.0, payload=Payload.CODED), backend)
    latents = np.array([[16383.5], [0.25], [0.75], [1.25], [-0.25], [-0.75], [-0.0], [-2e4]], 'f4')
    selected = pair.step(latents)
    assert selected.invalid == 1
    assert decode_symbols(selected.data, 8, 1)[:, 0].tolist() == [
        32767, 0, 2, 2, 0, -2, 0, -32767
    ]  # fmt: skip


@backends
def test_int8_error_of_exactly_tau_is_too_coarse(backend):
    latents = np.array([[127], [0.5]], np.float32)
    for tau, used in ((0.5, Payload.FLOAT16), (np.nextafter(0.5, 1, dtype='f4'), Payload.INT8)):
        pair = Pair(2, 1, SelectionConfig(float(tau), payload=Payload.INT8), backend)
        assert pair.step(latents).payload is used


@backends
def test_int8_falls_back_packet_by_packet(backend):
    pair = Pair(3, 1, SelectionConfig(0.1, refresh_period=0, payload=Payload.INT8), backend)
    used = []
    for large in (1.0, 100.0, 2.0):
        pair.request_keyframe()
        used.append(pair.step(np.array([[large], [0.3], [0.0]], np.float32)).payload)
    assert used == [Payload.INT8, Payload.FLOAT16, Payload.INT8]


@backends
def test_what_is_returned_outlives_the_next_frame(backend):
    selector = DeviceSelector(9, 2, SelectionConfig(0.0, payload=Payload.INT8), *backend)
    first = selector.step(torch.ones(9, 2, device=selector.device))
    before = first.data.tobytes(), first.scale.tobytes()
    selector.step(torch.full((9, 2), -7.0, device=selector.device))
    assert (first.data.tobytes(), first.scale.tobytes()) == before


@backends
def test_one_copy_a_frame_unless_a_frame_grows(backend, monkeypatch):
    config = SelectionConfig(0.5, refresh_period=0, payload=Payload.FLOAT16)
    selector = DeviceSelector(3000, 4, config, *backend)
    copies = []
    fetch = selector._fetch
    monkeypatch.setattr(
        selector, '_fetch', lambda *ends: copies.append(ends[1] - ends[0]) or fetch(*ends)
    )
    latents = torch.zeros(3000, 4, device=selector.device)
    for _ in range(REMEMBERED_FRAMES + 2):
        selector.step(latents)
    assert len(copies) == REMEMBERED_FRAMES + 2
    assert copies[-1] < copies[0] / 10, 'the first keyframe is forgotten'
    latents[:2000] = 1.0
    grown = selector.step(latents)
    assert len(copies) == REMEMBERED_FRAMES + 4
    assert (grown.data.view(np.float16) == 1).all() and grown.data.size == 2000 * 4 * 2
    latents[:2000] = 2.0
    assert (selector.step(latents).data.view(np.float16) == 2).all()
    assert len(copies) == REMEMBERED_FRAMES + 5


@backends
def test_wrong_latents_are_refused_and_begin_no_frame(backend):
    selector = DeviceSelector(4, 2, SelectionConfig(), *backend)
    device = selector.device
    for wrong in (
        torch.zeros(4, 3, device=device),
        torch.zeros(4, 2, device=device, dtype=torch.float16),
        torch.zeros(2, 4, device=device).T,
        torch.zeros(4, 2, device='meta'),
    ):
        with pytest.raises(ValueError, match='allowed: contiguous float32'):
            selector.step(wrong)
    assert selector.step(torch.zeros(4, 2, device=device)).keyframe


@pytest.mark.skipif(INTERPRETED, reason='Triton is interpreted')
def test_torch_serves_where_triton_does_not_and_says_why():
    selector = DeviceSelector(4, 2, SelectionConfig(), 'cpu')
    assert selector.backend == 'torch'
    assert 'Triton needs CUDA' in selector.note
    with pytest.raises(RuntimeError, match=r"needs CUDA.*'torch' does without"):
        DeviceSelector(4, 2, SelectionConfig(), 'cpu', 'triton')
    with pytest.raises(ValueError, match='allowed: auto, triton, torch'):
        DeviceSelector(4, 2, SelectionConfig(), 'cpu', 'cupy')


@backends
def test_a_backend_that_gives_other_bytes_is_not_used(backend, monkeypatch):
    if backend[1] != 'triton':
        pytest.skip('neither TRITON_INTERPRET=1 nor a CUDA device with triton')
    from adaptok_ros.sending.kernels import triton_step

    right = triton_step.step

    def wrong(state, *arguments):
        right(state, *arguments)
        state.waiting[0] += 1

    monkeypatch.setattr(triton_step, 'step', wrong)
    selector = DeviceSelector(4, 2, SelectionConfig(), backend[0])
    assert selector.backend == 'torch'
    assert 'bytes' in selector.note
    with pytest.raises(RuntimeError, match='bytes are not those of torch'):
        DeviceSelector(4, 2, SelectionConfig(), *backend)


def add_up(latents, reference):
    """Delta as stated, one number after the other."""
    row = [abs(np.float32(z) - np.float32(r)) for z, r in zip(latents, reference)]
    while len(row) & (len(row) - 1):
        row.append(np.float32(0))
    while len(row) > 1:
        row = [row[i] + row[i + 1] for i in range(0, len(row), 2)]
    return row[0] * np.float32(1 / len(latents))


@pytest.mark.skipif(INTERPRETED, reason='runs where Triton is not interpreted')
@pytest.mark.parametrize('channels', [*range(1, 20), 33, 48])
def test_delta_is_added_up_as_stated(channels):
    first, second = np.random.default_rng(channels).normal(size=(2, 30, channels))
    selector = Selector(30, channels, SelectionConfig(payload=Payload.FLOAT32))
    selector.step(first.astype(np.float32))
    selector.step(second.astype(np.float32))
    expected = [add_up(z, r) for z, r in zip(second, first)]
    assert selector.delta.tolist() == [float(delta) for delta in expected]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='this is the process that it starts')
@pytest.mark.timeout(300)
def test_interpreted_triton():
    """The tests above, in a process where Triton is interpreted."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-p',
        'no:cacheprovider',
        __file__,
        '-k',
        'cpu-triton',
    ]
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    assert 'skipped' not in done.stdout.splitlines()[-1], done.stdout


POINTERS = {
    '*fp32': ('latents', 'reference', 'delta', 'scale', 'float32'),
    '*fp16': ('float16',),
    '*i16': ('int16',),
    '*i8': ('int8',),
    '*u8': ('known', 'due', 'wanted', 'keep', 'mask'),
    '*i32': ('waiting', 'control', 'header'),
}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='an interpreted kernel cannot be compiled')
@pytest.mark.parametrize('capability', [87, 90, 110, 120])
@pytest.mark.parametrize('payload', list(Payload))
def test_compiles_for(payload, capability, tmp_path, monkeypatch):
    """No GPU is needed for it; and nothing in the code rounds but as stated."""
    import triton
    from triton.backends.compiler import GPUTarget

    from adaptok_ros.sending.kernels import triton_step

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernel = triton_step.fused_step
    types = {name: kind for kind, names in POINTERS.items() for name in names}
    channels, previous = (16, False) if capability != 90 else (48, True)
    source = triton.compiler.ASTSource(
        kernel,
        signature={name: types.get(name, 'constexpr') for name in kernel.arg_names}
        | {'positions': 'i32'},
        constexprs=triton_step.constants(channels, 1 / 16, payload, previous),
    )
    code = triton.compile(
        source, target=GPUTarget('cuda', capability, 32), options=triton_step.OPTIONS
    ).asm
    assert len(code['cubin']) > 1000
    assert f'.target sm_{capability}' in code['ptx']
    # Some versions flush what a division leaves below the normal numbers: as a step that is
    # less than the least allowed, as a value a rounded zero.
    ptx = code['ptx'].replace('div.rn.ftz.f32', 'div.rn.f32')
    for inexact in ('fma.', '.ftz', '.approx', 'div.full'):
        assert inexact not in ptx


def gpu_frames(count, shape=(60, 80, 16)):
    """Frames on which between nothing and everything changes."""
    generator = np.random.default_rng(3)
    latents = generator.normal(size=(shape[0] * shape[1], shape[2])).astype(np.float32)
    for frame in range(count):
        moved = generator.random(len(latents)) < generator.choice([0, 0.01, 0.1, 0.5, 1])
        latents = latents.copy()
        latents[moved] += generator.normal(size=(moved.sum(), shape[2])).astype(np.float32)
        if frame % 10 == 0:
            latents[frame % len(latents)] = np.nan
        yield latents


@needs_cuda
@needs_triton
@pytest.mark.timeout(600)
@pytest.mark.parametrize('reference', list(Reference))
@pytest.mark.parametrize('payload', list(Payload))
@pytest.mark.parametrize('ceiling', [0, 500])
def test_no_race_shows_in_a_thousand_launches(payload, reference, ceiling):
    config = SelectionConfig(0.1, ceiling, 100, 150, payload, reference)
    pair = Pair(60 * 80, 16, config, ('cuda', 'triton'))
    for latents in gpu_frames(1000):
        pair.step(latents)


@needs_cuda
@cuda_backends
@pytest.mark.parametrize('payload', list(Payload))
def test_captured_in_a_graph_with_what_comes_before(payload, backend):
    config = SelectionConfig(0.1, 700, 20, 150, payload)
    selector, expected = (DeviceSelector(4800, 16, config, *backend), Selector(4800, 16, config))
    source, latents = torch.zeros(2, 4800, 16, device='cuda')
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
        torch.mul(source, 0.5, out=latents)
        selector.enqueue(latents)
    for frame, values in enumerate(gpu_frames(60)):
        if frame == 30:
            selector.config = expected.config = dataclasses.replace(config, tau=0.4, max_tokens=0)
        with torch.cuda.stream(stream):
            source.copy_(torch.from_numpy(values))
            selector.prepare()
            graph.replay()
            found = selector.collect()
        assert_same(found, expected.step(values * np.float32(0.5)))


@needs_cuda
@cuda_backends
def test_one_copy_from_the_device_in_the_steady_state(backend):
    selector = DeviceSelector(4800, 16, SelectionConfig(0.1), *backend)
    latents = torch.zeros(4800, 16, device='cuda')
    selector.step(latents)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(10):
            selector.step(latents)
    copies = [event.name for event in profile.events() if 'DtoH' in event.name]
    assert len(copies) == 10


def test_waiting_gain_is_a_power_of_two():
    assert np.frexp(WAITING_GAIN)[0] == 0.5
