"""Rolling refresh in seconds: whatever the rate of the images, every position is renewed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import latent_frames

from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.refresh import PARTS, RefreshClock
from adaptok_ros.sending.selection import LONGEST_REFRESH, SelectionConfig, Selector
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

SECOND = 1_000_000_000
NEVER = {'tau': 100.0}


def masks_at(stamps, seconds, positions):
    """Which positions a still scene sends with each image, of which the first sends all."""
    selector = Selector(positions, 1, SelectionConfig(**NEVER))
    clock = RefreshClock()
    latents = np.zeros((positions, 1), np.float32)
    masks = []
    for stamp in stamps:
        selector.config = clock.begin(SelectionConfig(**NEVER, refresh_seconds=seconds), stamp)
        masks.append(selector.step(latents).keep.copy())
        clock.served()
    return np.array(masks)


@pytest.mark.parametrize('rate', [1, 4, 10, 29.97, 30, 60, 144])
def test_every_position_is_renewed_once_in_a_period_at_any_rate(rate):
    positions, seconds = 333, 2.0
    stamps = [7 * SECOND + round(index * SECOND / rate) for index in range(round(5 * rate) + 2)]
    masks = masks_at(stamps, seconds, positions)[1:]
    frames = round(seconds * rate)
    sent = np.cumsum(masks, axis=0)
    window = sent[frames:] - sent[:-frames]
    # One frame more or less where the period is no whole number of frames.
    assert window.min() >= (1 if rate * seconds == frames else 0) and window.max() <= 2
    assert (sent[frames + 1 :] - sent[: -frames - 1]).min() >= 1
    spike = -(-PARTS // frames) + 1
    assert masks.sum(axis=1).max() <= spike * -(-positions // PARTS)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3 * SECOND), min_size=2, max_size=60),
    st.floats(0.05, 5.0),
    st.integers(1, 400),
)
def test_whoever_joins_is_whole_with_the_first_image_a_period_later(gaps, seconds, positions):
    stamps = np.cumsum(gaps).tolist()
    masks = masks_at(stamps, seconds, positions)
    for join in range(1, len(stamps)):
        later = [
            i for i in range(join, len(stamps)) if stamps[i] >= stamps[join - 1] + seconds * 1e9
        ]
        if later:
            assert masks[join : later[0] + 1].any(axis=0).all()


def test_at_30_hz_five_seconds_are_150_frames():
    stamps = [-(-index * SECOND // 30) for index in range(400)]
    by_time = masks_at(stamps, 5.0, 500)
    selector = Selector(500, 1, SelectionConfig(**NEVER))
    latents = np.zeros((500, 1), np.float32)
    by_frame = [selector.step(latents).keep.copy() for _ in stamps]
    # Both count on by one part a frame; by frames, the keyframe was the first.
    np.testing.assert_array_equal(by_time[2:], by_frame[1:-1])


def test_stamps_that_stand_still_renew_a_part_with_every_image():
    masks = masks_at([5] * (PARTS + 1), 5.0, 300)
    assert masks[1:].sum(axis=0).tolist() == [1] * 300


def test_a_new_period_holds_from_the_next_image():
    clock, selector = RefreshClock(), Selector(300, 1, SelectionConfig(**NEVER))
    latents = np.zeros((300, 1), np.float32)
    sent = np.zeros(300, int)
    for index in range(31):
        seconds = 1000.0 if index < 10 else 2.0
        config = SelectionConfig(**NEVER, refresh_seconds=seconds)
        selector.config = clock.begin(config, index * SECOND // 10)
        keep = selector.step(latents).keep
        clock.served()
        sent += keep if index > 10 else 0
    assert sent.tolist() == [1] * 300


def test_a_pause_of_the_refresh_is_not_made_up_for():
    clock = RefreshClock()
    parts = []
    for index in range(60):
        seconds = 0.0 if 10 <= index < 50 else 5.0
        asked = SelectionConfig(**NEVER, refresh_seconds=seconds)
        begun = clock.begin(asked, index * SECOND)
        clock.served()
        parts.append(begun.refresh_parts if begun.refresh_period else 0)
    assert parts[1:10] == parts[51:] == 9 * [PARTS // 5]
    assert parts[10:51] == 41 * [0]


def test_zero_seconds_never_renew():
    assert masks_at(range(0, 100 * SECOND, SECOND), 0.0, 50)[1:].sum() == 0


@pytest.mark.parametrize('value', [-1.0, LONGEST_REFRESH + 1, float('nan')])
def test_seconds_out_of_range(value):
    with pytest.raises(ValueError, match=r'refresh_seconds is .*; allowed: None, or 0 to 3600'):
        SelectionConfig(refresh_seconds=value)


def test_sender_takes_seconds_from_stamps_and_grids_from_the_path():
    """Images that complete no grid, as those of a video tokenizer, renew nothing themselves."""
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    frames = latent_frames(1, 30, (8, 8, tokenizer.description.channels), 'constant')
    shown = iter(range(1000))

    def encode(_):
        index = next(shown)
        return None if index % 4 in (1, 2) else frames[0]

    def open_path(size, config):
        return HostPath(encode, lambda: None, config, size, resize=False)

    config = SelectionConfig(**NEVER, refresh_seconds=3.0)
    sender = Sender(tokenizer, config, open_path=open_path)
    image = np.zeros((64, 64, 3), np.uint8)
    packets = [sender.send(image, index * SECOND // 4, 'camera') for index in range(14)]
    sent = [packet.kept for packet in packets if packet is not None]
    assert sent[0] == 64 and sum(sent[1:]) >= 64
    assert sender.config is config
    # A stamp that jumps back begins anew, with everything.
    again = [sender.send(image, 0, 'camera') for _ in range(2)]
    assert [packet is not None and packet.keyframe for packet in again] == [False, True]
    tokenizer.close()
