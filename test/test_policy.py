"""Observations: pairing by stamp, the rule on status, what is refused. And chunks of actions."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from chunks import ChunkRunner
from hypothesis import given
from hypothesis import strategies as st

from adaptok_ros import (
    AdaptokError,
    DenseLatents,
    LagMeter,
    Observation,
    Observer,
    RateMeter,
    Status,
)
from adaptok_ros.policy.observation import (
    KEPT_FRAMES,
    KEPT_STATES,
    STATUS_RULE,
    ObservationError,
    Reason,
)

MS = 1_000_000
"""Nanoseconds."""
TOKENIZER = 'tiny@0123456789ab'
BASE = DenseLatents(
    stamp=0,
    frame_id='camera',
    tokenizer=TOKENIZER,
    epoch=1,
    sequence=0,
    status=Status.OK,
    tau=0.1,
    deferred=0,
    invalid=0,
    values=np.zeros((2, 3, 4), np.float32),
    age=np.zeros((2, 3), np.uint8),
)


def latents(milliseconds, status=Status.OK, **changes):
    return dataclasses.replace(BASE, stamp=milliseconds * MS, status=status, **changes)


def stamps(observation):
    """Milliseconds by camera."""
    return {name: grid.stamp // MS for name, grid in observation.cameras.items()}


def test_cameras_and_state_of_one_instant():
    observer = Observer(('front', 'wrist'), tolerance_s=0.02, proprioception=2)
    for time in (100, 133):
        observer.push('wrist', latents(time + 9))
    for time in (90, 101, 112, 123, 134, 145):
        observer.push_proprioception(time * MS, [time, -time])
    for time in (100, 133, 166):
        observer.push('front', latents(time))
    found = observer.observe()
    assert found.stamp == 133 * MS
    assert list(found.cameras) == ['front', 'wrist']
    assert stamps(found) == {'front': 133, 'wrist': 142}
    assert found.proprioception.dtype == np.float32
    assert found.proprioception.tolist() == [134, -134]
    assert observer.observe().stamp == found.stamp  # the same as before


def test_a_policy_without_proprioception():
    observer = Observer(['front'], 0.0)
    observer.push('front', latents(5))
    assert observer.observe().proprioception.shape == (0,)
    with pytest.raises(ObservationError, match=r'proprioception is .*\(1,\); allowed: \(0,\)'):
        observer.push_proprioception(0, [1.0])


def observations(tolerance_s, first, second):
    """Stamps of every new observation of two cameras of the given periods, for a second."""
    observer, seen = Observer(('first', 'second'), tolerance_s), []
    arrivals = [(t, name) for name, p in (('second', second), ('first', first))
                for t in range(0, 1000, p)]  # fmt: skip
    for time, name in sorted(arrivals, key=lambda each: each[0]):
        observer.push(name, latents(time))
        found = observer.observe()
        if isinstance(found, Observation) and found.stamp // MS not in seen:
            seen.append(found.stamp // MS)
    return seen


def test_the_tolerance_decides_between_rates():
    slow, fast = list(range(0, 1000, 100)), list(range(0, 1000, 33))
    assert len(observations(0.02, 33, 100)) == len(slow)
    assert observations(0.02, 100, 33) == slow
    assert observations(0.1, 33, 100) == fast


def test_what_is_missing_is_named():
    observer = Observer(('front', 'wrist'), 0.02, proprioception=1)
    for push, reason, source in (
        (lambda: None, Reason.MISSING, 'front'),
        (lambda: observer.push('front', latents(100)), Reason.MISSING, 'wrist'),
        (lambda: observer.push('wrist', latents(0)), Reason.MISSING, 'proprioception'),
        (lambda: observer.push_proprioception(100 * MS, [0]), Reason.UNPAIRED, 'wrist'),
    ):
        push()
        absence = observer.observe()
        assert (absence.reason, absence.source, absence.must_stop) == (reason, source, False)
        assert source in absence.text
    assert '0.1 s away; allowed: 0.02 s' in absence.text
    observer.push('wrist', latents(120))
    assert isinstance(observer.observe(), Observation)


def test_every_status_has_a_rule():
    assert set(STATUS_RULE) == set(Status)


@pytest.mark.parametrize('status', [Status.OK, Status.UNBOUNDED])
def test_trusted_latents_are_used(status):
    observer = Observer(['front'], 0.02)
    observer.push('front', latents(0, status))
    assert observer.observe().cameras['front'].status is status


def test_incomplete_latents_wait_even_where_whole_ones_came_before():
    observer = Observer(['front'], 0.02)
    for before in ((), (latents(0),)):
        for each in (*before, latents(33, Status.INCOMPLETE)):
            observer.push('front', each)
        absence = observer.observe()
        assert absence.reason is Reason.INCOMPLETE and not absence.must_stop
        observer.reset()


def test_stale_latents_stop_at_once_or_after_a_limit():
    at_once = Observer(['front'], 0.02)
    limited = Observer(['front'], 0.02, stale_limit_s=0.1)
    for observer in (at_once, limited):
        observer.push('front', latents(0))
        observer.push('front', latents(0, Status.STALE))  # said once more, in the silence
    assert at_once.observe().must_stop
    assert limited.observe().cameras['front'].status is Status.STALE
    for time, stops in ((60, False), (99, False), (100, True), (130, True)):
        limited.push('front', latents(time, Status.STALE))
        found = limited.observe()
        assert isinstance(found, Observation) != stops
    assert found.must_stop and found.reason is Reason.STALE
    assert '0.13 s older; allowed: less than 0.1 s' in found.text
    limited.push('front', latents(160))
    assert limited.observe().stamp == 160 * MS


def test_stale_latents_that_follow_none_to_trust_stop():
    observer = Observer(['front'], 0.02, stale_limit_s=10.0)
    observer.push('front', latents(0, Status.INCOMPLETE))
    observer.push('front', latents(33, Status.STALE))
    assert observer.observe().must_stop


def test_a_camera_that_must_stop_is_told_before_one_that_is_missing():
    observer = Observer(('front', 'wrist'), 0.02)
    observer.push('wrist', latents(0, Status.STALE))
    assert observer.observe().source == 'wrist'


def test_stamps_that_go_back_empty_it():
    observer = Observer(('front', 'wrist'), 0.02, proprioception=1)

    def push_all(time):
        for camera in observer.cameras:
            observer.push(camera, latents(time))
        observer.push_proprioception(time * MS, [time])

    push_all(5000)
    push_all(1000)
    assert observer.resets == 1
    assert observer.observe().stamp == 1000 * MS
    observer.push_proprioception(0, [0])
    assert observer.resets == 2
    assert observer.observe().reason is Reason.MISSING


@pytest.mark.parametrize(
    ('camera', 'changes', 'said'),
    [
        ('rear', {}, "camera is 'rear'; allowed: front"),
        ('front', {'tokenizer': 'other@0'}, f"tokenizer of front is 'other@0'; .*'{TOKENIZER}'"),
        (
            'front',
            {'values': np.zeros((3, 3, 4), np.float32)},
            r'shape of front is \(3, 3, 4\); allowed: \(2, 3, 4\)',
        ),
    ],
)
def test_what_the_policy_does_not_take_is_refused(camera, changes, said):
    observer = Observer(['front'], 0.02, tokenizer=TOKENIZER, shape=(2, 3, 4))
    observer.push('front', latents(100))
    with pytest.raises(ObservationError, match=said):
        observer.push(camera, latents(200, **changes))
    assert observer.observe().stamp == 100 * MS


@pytest.mark.parametrize('values', [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_states_that_do_not_fit_are_refused(values):
    observer = Observer(['front'], 0.02, proprioception=2)
    with pytest.raises(ObservationError, match='proprioception is'):
        observer.push_proprioception(0, values)


@pytest.mark.parametrize(
    'arguments',
    [
        {'cameras': ()},
        {'cameras': ('a', 'a')},
        {'cameras': ('proprioception',)},
        {'tolerance_s': -1.0},
        {'tolerance_s': float('inf')},
        {'stale_limit_s': float('nan')},
        {'proprioception': -1},
    ],
)
def test_settings_out_of_range(arguments):
    with pytest.raises(AdaptokError, match=f'{next(iter(arguments))} is .*; allowed: '):
        Observer(**({'cameras': ('a',), 'tolerance_s': 0.02} | arguments))


steps = st.lists(st.integers(0, 50), max_size=40)


@given(steps, steps, steps, st.integers(0, 60))
def test_pairs_are_the_newest_that_are_near_enough(front, wrist, states, tolerance):
    """Against a search through everything that is still kept."""
    observer = Observer(('front', 'wrist'), tolerance / 1000, proprioception=1)
    front, wrist, states = (np.cumsum(s).tolist() for s in (front, wrist, states))
    for camera, times in (('front', front), ('wrist', wrist)):
        for time in times:
            observer.push(camera, latents(time))
    for time in states:
        observer.push_proprioception(time * MS, [time])
    found = observer.observe()
    kept = [sorted(set(times))[-KEPT_FRAMES:] for times in (front, wrist)]
    partners = (kept[1], states)
    whole = [
        time
        for time in kept[0]
        if all(any(abs(time - other) <= tolerance for other in others) for others in partners)
    ]
    assert isinstance(found, Observation) == bool(whole)
    if whole:
        assert stamps(found)['front'] == found.stamp // MS == whole[-1]
        nearest = [min(abs(whole[-1] - other) for other in others) for others in partners]
        assert abs(stamps(found)['wrist'] - whole[-1]) == nearest[0]
        assert abs(found.proprioception[0] - whole[-1]) == nearest[1]
    else:
        assert found.reason is (Reason.UNPAIRED if all((front, wrist, states)) else Reason.MISSING)


def test_lag_is_counted_from_the_quickest():
    meter = LagMeter()
    lags = []
    # Stamp and arrival in seconds, on clocks that are half a century apart.
    for stamp, arrival in (
        *((0.0, 5.0), (1.0, 5.5), (2.0, 8.5), (5.0, 9.5)),
        *((4.0, 9.7), (10_004.0, 10_010.2)),  # the clock was set back; clocks run apart
    ):
        meter.push(round((1.5e9 + stamp) * 1e9), arrival)
        lags.append(round(meter.lag_s, 3))
    assert lags == [0, 0, 2, 0, 0, 0]
    meter.push(round((1.5e9 + 10_005.0) * 1e9), 10_012.2)
    assert meter.lag_s == pytest.approx(1, abs=0.01)


def test_the_rate_is_that_of_the_packets_that_were_sent():
    meter = RateMeter()
    numbers = [number for number in range(12) if number not in (3, 4, 9)]  # others were lost
    for number in numbers[:-1]:
        meter.push(number * 50_000_000, 7, number)
        meter.push(number * 50_000_000, 7, number)
        assert meter.rate is None
    meter.push(numbers[-1] * 50_000_000, 7, numbers[-1])
    assert meter.rate == pytest.approx(20)
    meter.push(100 * 50_000_000, 8, 0)  # a new epoch: not known what was sent in between
    assert meter.rate == pytest.approx(20)
    for number in range(1, 9):
        meter.push(100 * 50_000_000 + number * 200_000_000, 8, number)
    assert meter.rate == pytest.approx(5)
    meter.push(0, 9, 0)
    assert meter.rate is None


def test_memory_is_bounded():
    observer = Observer(('front', 'wrist'), 0.02, proprioception=1)
    for time in range(2 * KEPT_STATES):
        observer.push('front', latents(time))
        observer.push_proprioception(time * MS, [time])
    assert len(observer._tracks['front'].frames) == KEPT_FRAMES
    assert len(observer._states) == KEPT_STATES


# Chunks: action [n, i] is that of the n-th chunk for its i-th step.

PATIENCE = 30.0
"""Seconds; no policy here takes them."""


class Counting:
    """A policy whose actions say which chunk and step they are of."""

    def __init__(self, horizon=4, every=2):
        self.description = SimpleNamespace(horizon=horizon, every=every, actions=2)
        self.seen = []
        self.resets = 0
        self.may_act = threading.Event()
        self.may_act.set()

    def reset(self):
        self.resets += 1

    def act(self, observation):
        number = len(self.seen)
        self.seen.append(observation.stamp)
        self.may_act.wait()
        return np.array([(number, i) for i in range(self.description.horizon)], np.float32)


class Steps:
    """Control steps of a policy, and what each gave: chunk and step of the action, or None."""

    def __init__(self, policy):
        self._policy = policy
        self._done = threading.Semaphore(0)
        self.runner = ChunkRunner(policy, self._done.release)

    def settle(self):
        """Wait until the policy has acted on all that it was given, if it may."""
        is_free = self._policy.may_act.is_set()
        while is_free and self.runner._is_busy and self.runner._results.empty():
            assert self._done.acquire(timeout=PATIENCE)

    def prepare(self, stamp):
        """An observation between two steps."""
        self.runner.prepare(observation(stamp))
        self.settle()

    def run(self, stamps):
        given = []
        for stamp in stamps:
            action = self.runner.step(None if stamp is None else observation(stamp))
            self.settle()
            if action is None:
                action = self.runner.take()
            given.append(None if action is None else tuple(action.astype(int)))
        return given


def observation(stamp):
    return Observation(stamp, {}, np.zeros(0, np.float32))


def test_a_new_chunk_replaces_the_rest_of_the_one_before():
    policy = Counting()
    given = Steps(policy).run(range(7))
    # A step that still has an action does not wait for the newer one.
    assert given == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert policy.seen == [0, 2, 4, 6] and policy.resets == 1


def test_what_comes_between_two_steps_is_acted_on_before_the_next():
    policy = Counting()
    steps, given = Steps(policy), []
    for stamp in range(5):
        steps.prepare(stamp)
        given += steps.run([stamp])
    assert given == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert policy.seen == [0, 2, 4]


def test_without_a_newer_observation_a_chunk_is_used_up_and_then_made_anew():
    steps = Steps(Counting())
    given = steps.run([7] * 4)
    steps.prepare(7)
    assert [*given, *steps.run([7])] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_without_any_observation_a_chunk_is_used_up():
    given = Steps(Counting(horizon=2)).run([None, 0, None, None, 1])
    assert given == [None, (0, 0), (0, 1), None, (1, 0)]


def test_a_policy_that_reacts():
    assert Steps(Counting(1, 1)).run([0, 0, 1]) == [(0, 0), (1, 0), (2, 0)]


def test_a_step_that_waits_is_open_until_its_action_is_there():
    policy = Counting(1, 1)
    policy.may_act.clear()
    steps = Steps(policy)
    assert steps.run([0]) == [None] and steps.runner.is_open
    policy.may_act.set()
    steps.settle()
    assert steps.runner.take().tolist() == [0, 0]
    assert not steps.runner.is_open and steps.runner.take() is None


def test_a_slow_policy_is_joined_where_time_stands():
    policy = Counting()
    steps = Steps(policy)
    assert steps.run([0, 1]) == [(0, 0), (0, 1)]
    policy.may_act.clear()
    assert steps.run([2, 3, 4]) == [(0, 2), (0, 3), None]
    assert not steps.runner.is_open  # what is computed is of an earlier step
    policy.may_act.set()
    steps.settle()
    assert steps.run([5]) == [(1, 3)]  # of an observation three steps ago


def test_a_stuck_policy_gives_nothing_and_blocks_nothing():
    policy = Counting(horizon=2, every=1)
    policy.may_act.clear()
    steps = Steps(policy)
    assert steps.run(range(4)) == [None] * 4
    policy.may_act.set()
    steps.settle()
    assert steps.run([4, 5]) == [(1, 0), (1, 1)]  # the first came too late


def test_its_thread_ends_unless_the_policy_hangs():
    policy = Counting()
    steps = Steps(policy)
    policy.may_act.clear()
    steps.run([0])
    assert not steps.runner.close(0.01)
    policy.may_act.set()
    assert steps.runner.close(PATIENCE)


def test_after_a_halt_nothing_of_before_is_carried_out():
    policy = Counting()
    steps = Steps(policy)
    steps.run([0])
    policy.may_act.clear()
    steps.run([1, 2])
    steps.runner.halt()
    assert steps.run([3]) == [None] and not steps.runner.is_open
    policy.may_act.set()
    steps.settle()
    assert steps.run([4]) == [(2, 0)] and policy.resets == 2


@pytest.mark.parametrize(
    ('actions', 'said'),
    [
        (np.zeros((4, 3)), r'shape \(4, 3\); allowed: \(4, 2\)'),
        (np.full((4, 2), np.nan), 'allowed: finite'),
    ],
)
def test_actions_that_are_none_are_refused(actions, said):
    policy = Counting()
    policy.act = lambda observation: actions
    with pytest.raises(ValueError, match=said):
        Steps(policy).run([0])


def test_what_a_policy_raises_is_raised():
    policy = Counting()
    policy.act = lambda observation: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Steps(policy).run([0])
