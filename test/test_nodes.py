"""The nodes as processes over real DDS, with a camera, a policy and an operator in this one."""

import array
import concurrent.futures
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest

from adaptok_ros.errors import SettingError
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, SHIPPED, sha256, shipped_models
from adaptok_ros.packet import Payload, seal, unpack_mask
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import PAST_CONFIRMATIONS, Status
from adaptok_ros.sending.images import to_rgb
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.sending.value_range import LEARNING_IMAGES
from adaptok_ros.tokenizers.tokenizer import Tokenizer

helpers = pytest.importorskip('ros_helpers')  # the reason names what is missing

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.node import NodeNameNonExistentError  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from ros_helpers import Robot, as_image, find, picture  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from adaptok_ros.messages import (  # noqa: E402
    byte_array,
    fill_tokens,
    latents_from_message,
    packet_from_message,
    stamp_of,
)
from adaptok_ros.msg import DenseLatents, SparseTokens, TokenizerInfo  # noqa: E402
from adaptok_ros.nodes import endpoints  # noqa: E402
from adaptok_ros.nodes.cameras import split_cameras  # noqa: E402
from adaptok_ros.nodes.keyframes import KeyframeRequests  # noqa: E402
from adaptok_ros.nodes.parameter import NodeParameter  # noqa: E402
from adaptok_ros.nodes.parameters import NODES  # noqa: E402
from adaptok_ros.nodes.wiring import EpochWatch, Silence  # noqa: E402

BUILD_DEADLINE = 200.0
"""Seconds within which engines are built, on a machine busy with other work."""
DEADLY_SIZE = (40, 72)
"""Of images that failing_node.py cannot bear."""
CONFIG = Path(__file__).parent.parent / 'config'
POSITIONS = 6 * 8
"""Of a :func:`picture` as it comes."""
ROUNDING = 1e-3
"""Of latents computed by different processes or at different instants of one engine."""

numbers = itertools.count()


@pytest.fixture(scope='module', autouse=True)
def ros():
    helpers.join_ros()
    yield
    rclpy.try_shutdown()


def new_robot(folder):
    return Robot(f'robot{next(numbers)}', folder)


@pytest.fixture
def robot(ros, tmp_path):
    with new_robot(tmp_path) as robot:
        yield robot


@pytest.fixture(scope='module')
def tokenizer():
    return Tokenizer(DEFAULT_TOKENIZER, threads=1)


# A tokenizer, a LIT, and a LIT that only holds and publishes float16.


@pytest.fixture(scope='module')
def module_system(ros, tmp_path_factory):
    with new_robot(tmp_path_factory.mktemp('system')) as robot:
        robot.process = robot.start('tokenizer_node', refresh_seconds=0.0)
        robot.start_lit()
        robot.start_lit('hold', mode='hold', payload='float16')
        robot.held = robot.collect(DenseLatents, 'hold/latents')
        robot.nodes = list(robot.processes)
        yield robot


@pytest.fixture
def system(module_system):
    """Settled, with the parameters it was started with."""
    robot = module_system
    assert robot.set(tau=0.2, max_tokens=0, keyframe_interval=0, refresh_seconds=0.0) == ''
    assert robot.set(tau_mode='fixed') == ''
    robot.settle()
    robot.settle(robot.held)
    yield robot
    assert all(process.is_running for process in robot.nodes)


def begin_epoch(robot):
    """Let the stamps jump back; the first packet after that."""
    robot.stamp -= 1000 * helpers.FRAME
    return robot.exchange(picture(0))


def test_latents_are_those_of_a_latent_stream(system):
    lit, hold = LatentStream(DEFAULT_TOKENIZER), LatentStream(mode='hold')
    tokens = begin_epoch(system)
    assert tokens.sequence == 0 and tokens.keyframe
    for seed in (0, 1, 1, 2, 2, 2, 0):
        packet = packet_from_message(tokens)
        assert lit.push(packet) and hold.push(packet)
        expected = lit.latents()
        received = latents_from_message(system.latents_of(tokens))
        kept = unpack_mask(packet).reshape(expected.age.shape)
        assert np.array_equal(received.values[kept], expected.values[kept])
        np.testing.assert_allclose(received.values, expected.values, atol=ROUNDING)
        assert np.array_equal(received.age, expected.age)
        assert received.status is Status.OK
        assert received.stamp == packet.stamp and received.frame_id == 'camera'
        assert received.tokenizer == packet.tokenizer
        message = system.latents_of(tokens, system.held)
        assert message.payload == DenseLatents.PAYLOAD_FLOAT16
        rounded = hold.latents().values.astype(np.float16)
        assert np.array_equal(latents_from_message(message).values, rounded)
        tokens = system.exchange(picture(seed))


def test_held_latents_stay_within_the_bound(system, tokenizer):
    generator = np.random.default_rng(1)
    image = picture(5).astype(np.float32)
    sent = 0
    for _ in range(6):
        # Small changes everywhere and a large one somewhere.
        image += generator.normal(scale=2.0, size=image.shape)
        row, column = generator.integers(0, 40, 2)
        image[row : row + 8, column : column + 8] = 255 * generator.random(3)
        shown = np.clip(image, 0, 255).astype(np.uint8)
        tokens = system.exchange(shown)
        assert tokens.deferred == 0
        held = latents_from_message(system.latents_of(tokens, system.held)).values
        delta = np.abs(tokenizer.encode(shown) - held).mean(axis=2)
        kept = unpack_mask(packet_from_message(tokens)).reshape(delta.shape)
        sent += tokens.kept
        assert (delta[~kept] < tokens.tau + ROUNDING).all()
    assert 0 < sent < 6 * POSITIONS


def test_stamp_and_frame_are_the_cameras(system):
    for stamp, frame_id in ((2_000_999_999_999, 'wrist optical/frame'), (2_001_000_000_001, '')):
        tokens = system.exchange(picture(1), frame_id, stamp=stamp)
        assert stamp_of(tokens.header) == stamp and tokens.header.frame_id == frame_id
        latents = system.latents_of(tokens)
        assert latents.header == tokens.header


def test_negative_stamps_are_stamps(system):
    before = system.diagnostics().errors
    tokens = system.exchange(picture(1), stamp=-1_500_000_000)
    assert stamp_of(tokens.header) == -1_500_000_000
    assert system.latents_of(tokens).status == DenseLatents.STATUS_OK
    tokens = system.exchange(picture(1), stamp=1_000_000_000_000)
    system.latents_of(tokens)
    assert system.diagnostics().errors == before


def test_info_is_latched_and_published_again(system, tokenizer):
    system.exchange(picture(0))
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    infos = system.collect(TokenizerInfo, 'tokenizer/info', latched)
    info = system.until(lambda: infos and infos[-1], 'the info of before')
    description = tokenizer.description
    assert info.tokenizer == description.id
    assert (info.stride, info.channels) == (description.stride, description.channels)
    normalisation = description.normalisation
    assert np.allclose(info.mean, normalisation.mean)
    assert np.allclose(info.whitening, normalisation.whitening)
    assert info.receptive_field == description.receptive_field
    assert info.can_decode and (info.backend, info.device) == ('onnxruntime', 'cpu')
    assert (info.image_height, info.image_width) == (48, 64)
    assert (info.grid_height, info.grid_width) == (6, 8)
    assert info.tau == np.float32(0.2)

    assert system.set(tau=0.7) == ''
    system.exchange(picture(0, 40, 72))
    info = system.until(
        lambda: find(infos, image_height=40, image_width=72), 'info of the new size'
    )
    assert (info.grid_height, info.grid_width, info.tau) == (5, 9, np.float32(0.7))
    count = len(infos)
    system.exchange(picture(1, 40, 72))
    system.spin(0.3)
    assert len(infos) == count


def test_tau_changes_while_running(system):
    assert system.set(tau=0.0) == ''
    tokens = system.exchange(picture(0))
    assert tokens.kept == POSITIONS and tokens.tau == 0.0
    assert system.set(tau=50.0) == ''
    for seed in range(3):
        tokens = system.exchange(picture(seed))
        assert tokens.kept == 0 and tokens.tau == 50.0
    assert system.get('tau').double_value == 50.0
    assert system.set(tau=0.1) == ''
    assert system.exchange(picture(7)).kept > 0.8 * POSITIONS


def test_tau_follows_a_rate_while_running(system):
    assert system.set(tau_mode='target_rate', target_rate=0.1) == ''
    taus = [system.exchange(picture(seed)).tau for seed in range(12)]
    assert taus == sorted(taus) and taus[-1] > taus[0] == np.float32(0.2)
    report = system.diagnostics(condition=lambda v: v.tau > 0.2)
    assert report.tau == pytest.approx(taus[-1], rel=1e-3) and report.data_out > 0
    assert 'tau_min is 0.7 and tau_max is 0.5' in system.set(tau_min=0.7)
    assert system.set(tau_mode='fixed') == ''
    assert system.exchange(picture(0)).tau == np.float32(0.2)


def test_ceiling_changes_while_running(system):
    before = system.diagnostics().ceiling_hits
    assert system.set(max_tokens=5) == ''
    first = system.exchange(picture(8))
    assert first.kept == 5 and first.deferred > 0.5 * POSITIONS
    arrived = unpack_mask(packet_from_message(first))
    for _ in range(POSITIONS // 5):
        arrived |= unpack_mask(packet_from_message(system.exchange(picture(8))))
    last = system.exchange(picture(8))
    assert last.deferred == 0 and arrived.sum() > 0.8 * POSITIONS
    report = system.diagnostics(condition=lambda v: v.ceiling_hits > before)
    assert report.max_tokens == 5


def test_periods_change_while_running(system):
    assert system.set(keyframe_interval=3) == ''
    kinds = [system.exchange(picture(0)).keyframe for _ in range(9)]
    assert sum(kinds) == 3
    assert system.set(keyframe_interval=0, refresh_seconds=4e-9 * helpers.FRAME) == ''
    masks = [unpack_mask(packet_from_message(system.exchange(picture(0)))) for _ in range(5)]
    # Where an image was lost, the next one renews its share too.
    assert np.sum(masks[1:], axis=0).min() == 1
    assert min(mask.sum() for mask in masks) < POSITIONS // 2


@pytest.mark.parametrize(
    'node, values, reason',
    [
        ('tokenizer', {'tau': -0.1}, 'range'),
        ('tokenizer', {'tau': 1000.0}, 'range'),
        ('tokenizer', {'tau': float('nan')}, 'tau'),
        ('tokenizer', {'tau': 'much'}, "tau is 'much'; allowed: a number, 0 to 100"),
        ('tokenizer', {'tau': 1000}, 'allowed: a number, 0 to 100'),
        ('tokenizer', {'tau_mode': 'fast'}, "'fast'; allowed: fixed, target_rate, noise"),
        ('tokenizer', {'max_tokens': 5.5}, 'allowed: a whole number'),
        ('tokenizer', {'max_tokens': True}, 'allowed: a whole number'),
        ('tokenizer', {'gating': True}, 'allowed: off, exact, noise'),
        ('tokenizer', {'max_tokens': -1}, 'range'),
        ('tokenizer', {'refresh_seconds': 10_000.0}, 'range'),
        ('tokenizer', {'payload': 'int9'}, "'int9'; allowed: float32, float16, int8"),
        ('tokenizer', {'payload': 'int8'}, 'configured'),
        ('tokenizer', {'input_width': 64}, 'configured'),
        ('tokenizer', {'tokenizer': '/tmp'}, 'configured'),
        ('lit', {'mode': 'guess'}, "'guess'; allowed: lit, hold"),
        ('lit', {'mode': 'hold'}, 'configured'),
        ('lit', {'no_such_parameter': 1}, 'undeclared'),
    ],
)
def test_parameters_are_refused_with_a_reason(system, node, values, reason):
    assert reason in system.set(node, **values)
    assert system.exchange(picture(0)).tau == np.float32(0.2)


def test_keyframe_on_request(system):
    assert not system.exchange(picture(0)).keyframe
    answer = system.request_keyframe()
    assert answer.success and 'a keyframe follows' in answer.message
    assert system.exchange(picture(0)).keyframe
    assert not system.exchange(picture(0)).keyframe


def test_who_joins_gets_a_keyframe(system):
    if not endpoints.matched_events(lambda: None):
        pytest.skip('this rclpy does not tell of new subscriptions')
    assert not system.exchange(picture(0)).keyframe
    subscription = system.node.create_subscription(
        SparseTokens, 'tokenizer/tokens', lambda message: None, 1
    )
    system.until(
        lambda: system.tokens[-1].keyframe, 'a keyframe', poke=lambda: system.exchange(picture(0))
    )
    system.node.destroy_subscription(subscription)


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_requests_within_an_interval_are_answered_by_one_keyframe():
    clock = Time()
    requests = KeyframeRequests(1.0, None, clock)
    sent = []
    for frame in range(100):  # 25 a second, with a request each
        clock.now = frame / 25
        requests.ask()
        sent.append(requests.due())
        requests.ask()  # too late for this frame
        requests.sent(sent[-1])
    assert [frame for frame, due in enumerate(sent) if due] == [0, 25, 50, 75]
    assert requests.asked == 200
    clock.now = 10.0
    assert requests.due()  # the last ones, at the end of the interval
    requests.sent(True)
    clock.now = 20.0
    assert not requests.due()
    requests.ask()
    requests.sent(True)  # for another reason; the request came after it had begun
    clock.now = 30.0
    assert requests.due()


def test_two_cameras_on_one_topic_are_named(system):
    other = system.node.create_publisher(Image, 'image', 1)
    system.cameras['other'] = other
    stamps = itertools.count(1)

    def show():
        stamp = system.stamp
        for topic, step in (('image', 2), ('other', 1)):  # the second camera lags a little
            image = picture(next(stamps))
            system.show(image, topic=topic, stamp=stamp + step * helpers.FRAME)
            system.spin(0.02)
        system.stamp = stamp + 2 * helpers.FRAME

    report = system.diagnostics(
        condition=lambda v: 'stamps step back' in v.message, poke=show, every=0.1
    )
    assert report.level == DiagnosticStatus.WARN
    assert f'2 publishers on {system.namespace}/image: ' in report.message
    system.node.destroy_publisher(system.cameras.pop('other'))
    system.stamp += 10 * helpers.FRAME
    system.diagnostics(condition=lambda v: 'publishers' not in v.message)


def test_image_size_changes(system, tokenizer):
    epoch = system.exchange(picture(0)).epoch
    for height, width in ((40, 72), (33, 45), (8, 9), (48, 64)):
        tokens = system.exchange(picture(0, height, width))
        assert tokens.epoch != epoch and tokens.sequence == 0 and tokens.keyframe
        epoch = tokens.epoch
        assert (tokens.image_height, tokens.image_width) == (height, width)
        grid = tokenizer.description.grid(height, width)
        assert (tokens.grid_height, tokens.grid_width) == grid == (-(-height // 8), -(-width // 8))
        latents = latents_from_message(system.latents_of(tokens))
        assert latents.values.shape[:2] == grid and latents.status is Status.OK
        assert latents.epoch == epoch


def test_a_stamp_that_jumps_back_begins_an_epoch(system):
    jumps = system.diagnostics().time_jumps
    bag = [(1_000 + 33 * i) * 1_000_000 for i in range(4)]
    epochs = []
    for _ in range(3):
        del system.tokens[:], system.latents[:]
        packets = [system.exchange(picture(i), stamp=stamp) for i, stamp in enumerate(bag)]
        assert [p.sequence for p in packets] == [0, 1, 2, 3]
        assert packets[0].keyframe and len({p.epoch for p in packets}) == 1
        assert system.latents_of(packets[-1]).status == DenseLatents.STATUS_OK
        epochs.append(packets[0].epoch)
    assert len(set(epochs)) == 3
    system.diagnostics(condition=lambda v: v.time_jumps >= jumps + 3)


def bad_images():
    """Name, message and what the error says of it."""
    depth = np.ones((48, 64), np.float32)
    depth[5, 5] = np.nan
    good = picture(0)
    too_short = as_image(good)
    too_short.data = too_short.data[:-1]
    empty = as_image(np.zeros((0, 0, 3), np.uint8), step=0)
    return [
        ('encoding', as_image(good, 'rgb48'), "encoding is 'rgb48'"),
        ('no encoding', as_image(good, ''), "encoding is ''"),
        ('step', as_image(good, step=64 * 3 - 1), 'step is 191'),
        ('data', too_short, 'data is'),
        ('no data', as_image(good, data=byte_array(np.zeros(0, np.uint8))), 'data is 0 bytes'),
        ('no size', empty, 'height is 0'),
        ('no width', as_image(good, width=0), 'width is 0'),
        ('absurd', as_image(good, height=4_000_000_000), 'height is 4000000000'),
        ('float', as_image(depth, '32FC1'), "encoding is '32FC1'"),
    ]


def test_bad_images_are_counted_and_said_but_harm_nothing(system):
    before = system.exchange(picture(3))
    errors = system.diagnostics().errors
    log = len(system.process.output)
    started = time.monotonic()
    for name, message, said in bad_images():
        report = system.diagnostics(
            condition=lambda v, least=errors: v.errors > least,
            poke=lambda m=message: system.show(m),
        )
        assert said in report.last_error, name
        assert f'image on {system.namespace}/image dropped' in report.last_error
        assert report.level > DiagnosticStatus.OK and said in report.message
        errors = report.errors
        tokens = system.exchange(picture(3))
        assert tokens.epoch == before.epoch and tokens.kept == 0, name
    lines = system.process.output[log:].count('dropped')
    assert 1 <= lines <= (time.monotonic() - started) / 5 + 1
    assert system.latents_of(tokens).status == DenseLatents.STATUS_OK


def test_bad_images_warn_while_good_ones_pass(system):
    bad = bad_images()[0][1]
    shown = itertools.cycle([bad, picture(3)])
    system.diagnostics(
        condition=lambda v: v.level == DiagnosticStatus.WARN and 'dropped' in v.message,
        poke=lambda: system.show(next(shown)),
        every=0.1,
    )
    report = system.diagnostics(
        condition=lambda v: v.level == DiagnosticStatus.ERROR, poke=lambda: system.show(bad)
    )
    assert 'dropped' in report.message and report.bugs == 0
    system.exchange(picture(3))
    system.diagnostics(condition=lambda v: v.level == DiagnosticStatus.OK)


@pytest.mark.parametrize(
    'encoding, shape',
    [
        ('bgr8', (48, 64, 3)),
        ('bgra8', (48, 64, 4)),
        ('mono8', (48, 64)),
        ('mono16', (48, 64)),
        ('yuv422_yuy2', (48, 64, 2)),
        ('bayer_grbg8', (48, 64)),
        ('nv12', (72, 64)),
    ],
)
def test_encodings_reach_the_tokenizer(system, tokenizer, encoding, shape):
    kind = np.uint16 if encoding == 'mono16' else np.uint8
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape).astype(kind)
    row = pixels.view(np.uint8).reshape(shape[0], -1)
    padded = np.pad(row, ((0, 0), (0, 6)))
    message = as_image(padded, encoding, height=48, width=64)
    rgb = to_rgb(encoding, 48, 64, padded.shape[1], False, padded.reshape(-1))
    assert system.set(tau=0.02) == ''  # of which tokens are off by a quarter at most
    assert system.request_keyframe().success
    tokens = system.exchange(message)
    held = latents_from_message(system.latents_of(tokens, system.held)).values
    np.testing.assert_allclose(held, tokenizer.encode(rgb), rtol=1e-3, atol=0.01)


def test_pictures_only_for_those_who_look(system, tokenizer):
    height, width = 35, 50
    image = picture(4, height, width)
    for topic in ('tokenizer/overlay', 'lit/reconstruction'):
        assert system.node.count_subscribers(f'{system.namespace}/{topic}') == 0
    overlays = system.collect(Image, 'tokenizer/overlay')
    decoded = system.collect(Image, 'lit/reconstruction')
    infos = [system.collect(CameraInfo, f'{node}/camera_info') for node in ('tokenizer', 'lit')]
    camera = system.node.create_publisher(CameraInfo, 'camera_info', 1)
    info = CameraInfo(height=2 * height, width=2 * width, distortion_model='plumb_bob')
    info.k[0], info.k[4], info.k[8], info.d = 90.0, 80.0, 1.0, array.array('d', [0.1, 0.2])
    info.roi.x_offset, info.roi.width, info.roi.height = 10, width, height

    def look():
        camera.publish(info)
        system.exchange(image)

    system.until(lambda: overlays and decoded and all(infos), 'pictures', poke=look)
    tokens = system.exchange(image)
    stamp = stamp_of(tokens.header)
    for messages in (overlays, decoded):
        message = system.until(lambda m=messages: find(m, stamp=stamp), 'both of one image')
        assert (message.height, message.width, message.encoding) == (height, width, 'rgb8')
        assert message.step == 3 * width and len(message.data) == height * 3 * width
        assert message.header == tokens.header
    for messages in infos:
        found = system.until(lambda m=messages: find(m, stamp=stamp), 'what fits the picture')
        assert (found.header, found.height, found.width) == (tokens.header, height, width)
        assert (found.k[0], found.k[2], found.k[4], found.k[5]) == (90.0, -10.0, 80.0, 0.0)
        assert (found.distortion_model, list(found.d)) == ('plumb_bob', [0.1, 0.2])
    latents = latents_from_message(system.latents_of(tokens))
    expected = tokenizer.decode(latents.values, height, width)
    received = np.frombuffer(message.data, np.uint8).reshape(height, width, 3)
    assert np.abs(received.astype(int) - expected).max() <= 1


def numbers_of(report):
    return [value for value in vars(report).values() if isinstance(value, int | float)]


def test_diagnostics_hold_the_figures(system):
    for seed in range(3):
        system.exchange(picture(seed))
    # The sizes that images had before may still be news.
    report = system.diagnostics(condition=lambda v: v.images_in > 0 and v.message == 'running')
    assert all(np.isfinite(value) for value in numbers_of(report))
    assert (report.backend, report.device) == ('onnxruntime', 'cpu')
    assert report.level == DiagnosticStatus.OK and report.message == 'running'

    report = system.diagnostics('lit', lambda v: v.latents_out > 0)
    assert all(np.isfinite(value) for value in numbers_of(report))
    assert (report.backend, report.device) == ('onnxruntime', 'cpu')
    assert report.status == 'OK' and report.level == DiagnosticStatus.OK


GRANTS = {
    ('topics', 'publish'): 'publisher',
    ('topics', 'subscribe'): 'subscriber',
    ('services', 'reply'): 'service',
    ('services', 'request'): 'client',
}
"""Kinds of a security policy, and what rclpy calls them."""
TRANSPORTS = ('/compressed', '/compressedDepth', '/ffmpeg', '/foxglove')
NOT_ALWAYS = ('/clock', '/get_type_description', *TRANSPORTS)
"""Only with simulated time; only since Jazzy; only with that transport."""


def granted(namespace, node):
    """What the security policy grants a node, by kind, in a namespace."""
    policy = ElementTree.parse(CONFIG / 'sros2_policy.xml')
    (profile,) = policy.findall(f".//profile[@node='{node}']")
    assert profile.get('ns') == '/'
    found = {kind: set() for kind in GRANTS.values()}
    for (tag, way), kind in GRANTS.items():
        for each in profile.findall(f"{tag}[@{way}='ALLOW']/*"):
            name = each.text.replace('~', f'{namespace}/{node}')
            found[kind].add(name if name.startswith('/') else f'{namespace}/{name}')
    return found


def test_the_security_policy_grants_what_nodes_use_and_no_more(system, robot):
    robot.start('camera_node')
    for where, node in ((system, 'tokenizer'), (system, 'lit'), (robot, 'camera')):
        for kind, allowed in granted(where.namespace, node).items():
            names = getattr(where.node, f'get_{kind}_names_and_types_by_node')

            def used(names=names, where=where, node=node):
                # Before it is discovered, rclpy does not know the node.
                with contextlib.suppress(NodeNameNonExistentError):
                    return {name for name, _ in names(node, where.namespace)}
                return set()

            needed = {name for name in allowed if not name.endswith(NOT_ALWAYS)}
            where.until(lambda used=used, needed=needed: needed <= used(), f'{kind} of {node}')
            assert used() <= allowed, f'{kind} of {node}'


def test_throttled_images_beside_a_fast_camera_info_are_no_fault(system):
    infos = system.node.create_publisher(CameraInfo, 'camera_info', 10)
    frames = itertools.count()

    def announce():
        infos.publish(CameraInfo())
        if next(frames) % 10 == 0:
            system.show(picture(0))

    report = system.diagnostics(
        condition=lambda v: v.camera_infos_in > 2 * v.images_in > 0, poke=announce, every=0.04
    )
    assert (report.level, report.images_lost) == (DiagnosticStatus.OK, 0)
    system.node.destroy_publisher(infos)
    # The rates are those of the last seconds: other tests begin without this one's.
    system.diagnostics(condition=lambda v: v.camera_infos_in == 0)


# A LIT alone: the packets are made here, and so is the keyframe service.


def patched(seed):
    """The first picture with a corner of another."""
    image = picture(0)
    image[:24, :24] = picture(seed)[:24, :24]
    return image


class Camera:
    """The packets of a tokenizer node, without the node."""

    def __init__(self, tokenizer, **config):
        self._sender = Sender(tokenizer, SelectionConfig(refresh_period=0, **config))
        self._stamp = 5_000_000_000
        self.reset = self._sender.reset
        self.request_keyframe = self._sender.request_keyframe

    def send(self, image):
        self._stamp += helpers.FRAME
        return self._sender.send(image, self._stamp, 'front')


class Receiver:
    """A LIT node in a robot whose tokens come from the test."""

    def __init__(self, robot, **parameters):
        self.robot = robot
        self.process = robot.start_lit(**parameters)
        self._tokens = robot.node.create_publisher(SparseTokens, 'tokenizer/tokens', 30)
        # The robot listens as well.
        robot.until(lambda: self._tokens.get_subscription_count() == 2, 'the LIT node')

    def publish(self, packet, **changes):
        """Publish a packet, or what becomes of it when fields of its message are changed."""
        message = SparseTokens()
        fill_tokens(message, packet)
        for name, value in changes.items():
            setattr(message, name, value)
        self._tokens.publish(message)
        return message

    def take(self, packet):
        """Publish a packet; the latents after it."""
        return latents_from_message(self.robot.latents_of(self.publish(packet)))

    def begin(self, camera):
        """Begin an epoch with keyframes, as many as it takes for the node to answer."""
        camera.reset()

        def show():
            camera.request_keyframe()
            self.publish(camera.send(picture(0)))

        count = len(self.robot.latents)
        self.robot.until(lambda: len(self.robot.latents) > count, 'latents', poke=show)
        camera.request_keyframe()
        assert self.take(camera.send(picture(0))).status is Status.OK


@pytest.fixture(scope='module')
def module_receiver(ros, tmp_path_factory):
    with new_robot(tmp_path_factory.mktemp('receiver')) as robot:
        requests = []

        def answer(_, response):
            requests.append(time.monotonic())
            response.success = True
            return response

        robot.node.create_service(Trigger, 'tokenizer/request_keyframe', answer)
        receiver = Receiver(robot)
        receiver.requests = requests
        yield receiver


@pytest.fixture
def receiver(module_receiver):
    del module_receiver.requests[:]
    yield module_receiver
    assert module_receiver.process.is_running


def test_a_gap_is_counted_and_healed_by_a_keyframe(receiver, tokenizer):
    robot, camera = receiver.robot, Camera(tokenizer)
    receiver.begin(camera)
    before = robot.diagnostics('lit')
    previous = receiver.take(camera.send(patched(1)))
    for seed in (2, 3):
        camera.send(patched(seed))  # these two are lost
    nothing = camera.send(patched(3))
    assert nothing.kept == 0
    latents = receiver.take(nothing)
    assert latents.status is Status.STALE
    assert np.array_equal(latents.age, previous.age + 3)
    # Both are no further than tau from the grid that is held.
    assert np.abs(latents.values - previous.values).mean(axis=2).max() < 2 * nothing.tau + ROUNDING

    def more():
        receiver.publish(camera.send(patched(3)))

    robot.until(lambda: receiver.requests, 'a request for a keyframe', poke=more)
    camera.request_keyframe()
    latents = receiver.take(camera.send(patched(3)))
    assert latents.status is Status.OK and latents.age.max() == 0
    report = robot.diagnostics('lit', lambda v: v.gaps == before.gaps + 1)
    assert report.packets_lost == before.packets_lost + 2
    assert report.keyframes_requested > before.keyframes_requested
    assert report.status == 'OK'


def test_requests_are_repeated_but_not_with_every_packet(receiver, tokenizer):
    camera = Camera(tokenizer)
    receiver.begin(camera)
    camera.send(patched(1))  # lost
    packets = itertools.count()

    def more():
        next(packets)
        receiver.publish(camera.send(patched(1)))

    robot = receiver.robot
    robot.until(lambda: len(receiver.requests) >= 3, 'three requests', poke=more, every=0.05)
    assert np.diff(receiver.requests).min() > 0.5
    assert next(packets) > 6
    camera.request_keyframe()
    assert receiver.take(camera.send(patched(1))).status is Status.OK


def test_a_late_receiver_is_incomplete_until_all_has_arrived(receiver, tokenizer):
    receiver.begin(Camera(tokenizer))
    camera = Camera(tokenizer, max_tokens=12)
    camera.send(picture(0, 40, 80))  # came too early
    camera.request_keyframe()
    arrived = np.zeros(5 * 10, bool)
    for _ in range(5):
        packet = camera.send(picture(0, 40, 80))
        arrived |= unpack_mask(packet)
        latents = receiver.take(packet)
        assert np.array_equal(latents.age.reshape(-1) == 255, ~arrived)
        assert latents.status is (Status.OK if arrived.all() else Status.INCOMPLETE)
    assert arrived.all()


def test_a_new_publisher_is_taken_over(receiver, tokenizer):
    receiver.begin(Camera(tokenizer))
    before = receiver.robot.diagnostics('lit')
    camera = Camera(tokenizer)
    camera.send(picture(0))  # lost
    packet = camera.send(patched(1))
    assert not packet.keyframe
    latents = receiver.take(packet)
    assert latents.epoch == packet.epoch and latents.status is Status.STALE
    camera.request_keyframe()
    assert receiver.take(camera.send(patched(1))).status is Status.OK
    restarts = before.restarts + 1
    receiver.robot.diagnostics('lit', lambda v: v.restarts == restarts)


def test_a_bag_that_loops_starts_over(receiver, tokenizer):
    robot, camera = receiver.robot, Camera(tokenizer)
    receiver.begin(camera)
    before = robot.diagnostics('lit')
    camera.request_keyframe()
    bag = [camera.send(patched(seed)) for seed in (0, 1, 2, 3)]
    first = [receiver.take(packet) for packet in bag]
    half = PAST_CONFIRMATIONS // 2  # less than a queue holds
    for packet in half // len(bag) * bag:  # they might be copies
        receiver.publish(packet)
    robot.diagnostics('lit', lambda v: v.packets_late == before.packets_late + half)
    for packet in half // len(bag) * bag:
        receiver.publish(packet)
    robot.diagnostics('lit', lambda v: v.rewinds == before.rewinds + 1)
    del robot.latents[:]
    receiver.publish(bag[0])  # believed when the next one follows
    second = [receiver.take(packet) for packet in bag[1:]]
    for one, other in zip(first[1:], second, strict=True):
        assert other.status is Status.OK
        assert np.array_equal(one.age, other.age)
    robot.diagnostics('lit', lambda v: v.rewinds == before.rewinds + 2)


def malformed(packet):
    """Fields to change in the message of a packet with some tokens; each set spoils it."""
    nan = np.full(packet.data.size // 2, np.nan, np.float16)
    return [
        {'mask': byte_array(np.zeros(7, np.uint8))},
        {'mask': byte_array(np.zeros(0, np.uint8))},
        {'mask': byte_array(np.full(6, 255, np.uint8))},
        {'tokenizer': 'other@0123456789ab'},
        {'tokenizer': ''},
        {'data': byte_array(nan)},
        {'data': byte_array(packet.data[:-2])},
        {'data': byte_array(packet.data[:0])},
        {'payload': 9},
        {'payload': Payload.INT8.value},
        {'payload': Payload.FLOAT32.value},
        {'scale': [1.0] * 16},
        {'kept': 0},
        {'kept': 4_000_000_000},
        {'deferred': 4_000_000_000},
        {'channels': 3},
        {'grid_height': 0},
        {'grid_height': 65535, 'grid_width': 65535},
        {'grid_height': packet.grid_width, 'grid_width': packet.grid_height},
        {'image_height': 0},
        {'image_width': 640},
        {'tau': float('nan')},
        {'keyframe': True},
    ]


def test_malformed_packets_change_nothing(receiver, tokenizer):
    robot, camera = receiver.robot, Camera(tokenizer, tau=0.4, payload=Payload.FLOAT16)
    receiver.begin(camera)
    packet = camera.send(patched(1))
    assert 0 < packet.kept < POSITIONS
    before = robot.diagnostics('lit')
    count = len(robot.latents)
    log = len(receiver.process.output)
    bad = malformed(packet)
    for changes in bad:
        receiver.publish(packet, **changes)
    rejected = before.packets_rejected + len(bad)
    report = robot.diagnostics('lit', lambda v: v.packets_rejected == rejected)
    assert report.errors == before.errors + len(bad)
    assert 'packet dropped: packet field kept is' in report.last_error
    assert 'packet dropped' in report.message and report.level == DiagnosticStatus.ERROR
    assert report.packets_applied == before.packets_applied
    assert report.status == 'OK' and len(robot.latents) == count
    assert 1 <= receiver.process.output[log:].count('packet dropped') <= 2

    latents = receiver.take(packet)
    kept = unpack_mask(packet).reshape(latents.age.shape)
    sent = packet.data.view(np.float16).reshape(-1, packet.channels)
    assert latents.status is Status.OK
    assert np.array_equal(latents.values[kept], sent.astype(np.float32))
    assert np.array_equal(latents.age, np.where(kept, 0, 1))
    assert robot.diagnostics('lit').gaps == before.gaps


def test_an_image_larger_than_its_grid_is_refused(receiver, tokenizer):
    """The size of the image is untrusted, too: it would be that of the reconstruction."""
    receiver.begin(Camera(tokenizer))
    packet = Camera(tokenizer).send(picture(0))
    huge = seal(replace(packet, image_height=60_000, image_width=50_000))
    receiver.robot.diagnostics(
        'lit',
        condition=lambda v: 'grid_width is (6, 8); allowed: (7500, 6250)' in v.last_error,
        poke=lambda: receiver.publish(huge),
    )


def test_two_tokenizers_of_one_name_are_named(receiver, tokenizer):
    robot, cameras = receiver.robot, itertools.cycle([Camera(tokenizer), Camera(tokenizer)])
    other = robot.node.create_publisher(SparseTokens, 'tokenizer/tokens', 30)
    report = robot.diagnostics(
        'lit',
        condition=lambda v: 'alternate' in v.message and '2 publishers' in v.message,
        poke=lambda: receiver.publish(next(cameras).send(picture(0))),
        every=0.05,
    )
    assert report.level == DiagnosticStatus.WARN
    robot.node.destroy_publisher(other)


def test_a_dead_stream_is_stale(robot, tokenizer):
    receiver, camera = Receiver(robot, timeout=0.5), Camera(tokenizer)
    camera.send(picture(0))  # lost
    report = robot.diagnostics(
        'lit',
        condition=lambda v: 'no service' in v.message,
        poke=lambda: receiver.publish(camera.send(picture(0))),
    )
    assert f'{robot.namespace}/tokenizer/request_keyframe' in report.message
    assert report.level == DiagnosticStatus.WARN and 'INCOMPLETE' in report.message
    for _ in range(2):
        camera.request_keyframe()
        packet = camera.send(picture(0))
        receiver.publish(packet)

        def statuses(sequence=packet.sequence):
            return [m.status for m in robot.latents if m.sequence == sequence]

        robot.until(lambda s=statuses: s()[-1:] == [Status.STALE], 'stale latents')
        report = robot.diagnostics('lit', lambda v: v.level == DiagnosticStatus.ERROR)
        assert report.message.startswith('no packet for ') and report.status == 'STALE'
        assert statuses() == [Status.OK, Status.STALE]


def test_silence_is_noticed_once():
    clock = Time()
    silence = Silence(1.0, clock)
    clock.now = 5.0
    assert not silence.begins() and not silence.length()  # nothing has ever come
    for start in (5.0, 20.0):
        clock.now = start
        silence.hear()
        clock.now = start + 1.0
        assert not silence.begins()
        clock.now = start + 1.5
        assert silence.length() == 1.5 and silence.begins() and not silence.begins()
    never = Silence(0.0, clock)
    never.hear()
    clock.now = 1e6
    assert not never.begins()


def test_epochs_are_told_from_returns():
    watch = EpochWatch()
    for epoch in (1, 1, 2, 2, 3):
        watch.see(epoch)
    assert watch.take_news() == (3, 0)
    for epoch in (4, 3, 4, 3, 3):
        watch.see(epoch)
    assert watch.take_news() == (1, 3)
    assert watch.take_news() == (0, 0)


# Restarts and losses between two real nodes.


def test_a_killed_tokenizer_is_replaced(robot):
    process = robot.start('tokenizer_node')
    lit = robot.start_lit()
    robot.settle()
    epoch = robot.tokens[-1].epoch
    process.kill()
    robot.spin(1.0)
    assert lit.is_running
    assert robot.latents[-1].epoch == epoch
    robot.start('tokenizer_node')
    robot.settle()
    tokens = robot.exchange(picture(1))
    assert tokens.epoch != epoch
    latents = robot.latents_of(tokens)
    assert latents.status == DenseLatents.STATUS_OK
    robot.diagnostics('lit', lambda v: v.restarts == 1 and v.status == 'OK')


def test_lost_packets_are_noticed_and_the_loop_heals_itself(robot):
    """Between tokenizer and LIT stands a link that loses packets."""
    robot.start('tokenizer_node', refresh_seconds=0.0)
    robot.start('lit_node', 'lit', {'tokens': 'relayed'})
    output = robot.node.create_publisher(SparseTokens, 'relayed', 30)
    lose = []

    def relay(message):
        if lose:
            lose.pop()
        else:
            output.publish(message)

    robot.node.create_subscription(SparseTokens, 'tokenizer/tokens', relay, 30)
    robot.settle()
    lose += [True] * 3
    for seed in (1, 2, 3):
        robot.exchange(picture(seed))
    robot.until(lambda: not lose, 'three losses')
    tokens = robot.exchange(picture(3))
    assert robot.latents_of(tokens).status == DenseLatents.STATUS_STALE
    keyframe = robot.until(
        lambda: robot.tokens[-1].keyframe and robot.tokens[-1],
        'a keyframe',
        poke=lambda: robot.exchange(picture(3)),
    )
    latents = robot.latents_of(keyframe)
    assert latents.status == DenseLatents.STATUS_OK
    report = robot.diagnostics('lit', lambda v: v.gaps == 1)
    assert report.packets_lost == 3 and report.keyframes_requested >= 1


# Lifecycle.


def test_lifecycle_of_the_tokenizer(robot):
    robot.start('tokenizer_node', autostart=False)
    topic = f'{robot.namespace}/tokenizer/tokens'
    image = f'{robot.namespace}/image'
    assert robot.state() == 'unconfigured'
    robot.change('activate', wait=False)  # impossible; before Kilted rclpy does not answer
    assert robot.state() == 'unconfigured'
    assert robot.node.count_publishers(topic) == 0

    for payload in ('coded', 'float32'):
        assert robot.set(payload=payload) == ''
        assert robot.change('configure') and robot.state() == 'inactive'
        robot.until(lambda: robot.node.count_publishers(topic) == 1, 'the publisher')
        robot.until(lambda: robot.node.count_subscribers(image) == 0, 'no subscription')
        assert not robot.request_keyframe().success
        assert 'configured' in robot.set(payload='float16')
        refused = robot.set(tau=0.0005)
        assert ('allowed with payload coded' in refused) == (payload == 'coded')
        for _ in range(2):
            assert robot.change('activate') and robot.state() == 'active'
            tokens = robot.exchange(picture(0))
            assert tokens.payload == Payload[payload.upper()]
            assert robot.request_keyframe().success
            assert robot.change('deactivate') and robot.state() == 'inactive'
        assert robot.change('cleanup') and robot.state() == 'unconfigured'
        robot.until(lambda: robot.node.count_publishers(topic) == 0, 'the publisher to go')
    assert robot.change('unconfigured_shutdown') and robot.state() == 'finalized'


def test_inactive_nodes_are_silent(robot):
    robot.start('tokenizer_node', autostart=False)
    robot.start_lit()
    assert robot.change('configure')

    def stay_silent(seconds):
        robot.spin(0.5)
        count = len(robot.tokens)
        end = time.monotonic() + seconds
        robot.until(
            lambda: time.monotonic() > end,
            'the time to pass',
            poke=lambda: robot.show(picture(1)),
            every=0.05,
        )
        report = robot.diagnostics()
        assert report.message == 'inactive' and report.level == DiagnosticStatus.OK
        assert len(robot.tokens) == count

    # Longer than it takes an active node to wonder where the images are.
    stay_silent(6.5)
    assert robot.change('activate')
    robot.settle()
    assert robot.change('deactivate')
    stay_silent(1.0)
    assert robot.change('activate')
    robot.settle()

    assert robot.change('deactivate', 'lit')
    robot.spin(0.5)
    tokens, latents = len(robot.tokens), len(robot.latents)
    for seed in range(5):
        robot.exchange(picture(seed))
    assert len(robot.tokens) == tokens + 5 and len(robot.latents) == latents
    assert robot.diagnostics('lit').message == 'inactive'
    assert robot.change('activate', 'lit')
    robot.settle()
    assert robot.change('active_shutdown', 'lit') and robot.state('lit') == 'finalized'
    assert robot.change('active_shutdown') and robot.state() == 'finalized'


def test_lifecycle_of_the_lit(robot):
    robot.start('tokenizer_node')
    robot.start_lit(autostart=False)
    topic = f'{robot.namespace}/lit/latents'
    for mode, payload in (('hold', 'float16'), ('lit', 'float32')):
        assert robot.set('lit', mode=mode, payload=payload) == ''
        assert robot.change('configure', 'lit') and robot.state('lit') == 'inactive'
        robot.until(lambda: robot.node.count_publishers(topic) == 1, 'the publisher')
        assert robot.diagnostics('lit').mode == mode
        assert robot.change('activate', 'lit')
        robot.settle()
        assert robot.latents[-1].payload == Payload[payload.upper()]
        assert robot.change('deactivate', 'lit')
        assert robot.change('cleanup', 'lit')
        robot.until(lambda: robot.node.count_publishers(topic) == 0, 'the publisher to go')
        del robot.latents[:]


def broken_models(folder):
    """Name of the folder of a broken model, and what the error says of it."""
    yield str(folder / 'missing'), 'neither a shipped model'
    (folder / 'text').mkdir()
    for file in ('tokenizer.json', 'lit.json'):
        (folder / 'text' / file).write_text('not a model')
    yield str(folder / 'text'), 'not a model description'
    shutil.copytree(SHIPPED / DEFAULT_TOKENIZER, folder / 'exchanged')
    (folder / 'exchanged/encoder.onnx').write_bytes(b'not a model')
    yield str(folder / 'exchanged'), 'SHA-256 differs'
    shutil.copytree(SHIPPED / DEFAULT_TOKENIZER, folder / 'corrupt')
    for model, file in (('encoder.onnx', 'tokenizer.json'), ('lit.onnx', 'lit.json')):
        (folder / 'corrupt' / model).write_bytes(b'not a model')
        description = json.loads((folder / 'corrupt' / file).read_text())
        description['files'][model] = sha256(folder / 'corrupt' / model)
        (folder / 'corrupt' / file).write_text(json.dumps(description))
    yield str(folder / 'corrupt'), 'not a model ONNX Runtime can load'


def test_a_node_survives_broken_models_and_can_be_mended(robot, tmp_path):
    models = list(broken_models(tmp_path))
    nodes = {
        'tokenizer': robot.start('tokenizer_node', tokenizer=models[0][0], backend='onnxruntime'),
        'lit': robot.start_lit(tokenizer=models[0][0], backend='onnxruntime'),
    }
    for node, process in nodes.items():
        text = f'not configured: {models[0][0]}: {models[0][1]}'
        robot.until(lambda p=process, t=text: t in p.output, text)
        for model, said in models[1:]:
            assert robot.set(node, tokenizer=model) == ''
            log = len(process.output)
            assert not robot.change('configure', node)
            assert robot.state(node) == 'unconfigured'
            robot.until(lambda p=process, n=log: p.output[n:].endswith('\n'), 'the reason')
            lines = [line for line in process.output[log:].splitlines() if '[ERROR]' in line]
            assert len(lines) == 1 and 'not configured' in lines[0] and said in lines[0]
        assert robot.set(node, tokenizer=DEFAULT_TOKENIZER) == ''
        assert robot.change('configure', node) and robot.change('activate', node)
    robot.settle()


# Bugs of this package.


def test_bugs_are_told_from_bad_images(robot):
    process = robot.start(Path(__file__).parent / 'failing_node.py')
    process.has_bug = True
    robot.settle_tokens()
    deadly = picture(0, *DEADLY_SIZE)
    for _ in range(2):
        report = robot.diagnostics(
            condition=lambda v: v.level == DiagnosticStatus.ERROR, poke=lambda: robot.show(deadly)
        )
    assert re.search(
        r'bug in adaptok_ros: ValueError: .* at adaptok_ros/nodes/tokenizer_node\.py:\d+, '
        'please report',
        report.message,
    )
    assert report.bugs >= 2 and report.errors == 0 and 'dropped' not in report.message
    shown = itertools.cycle([deadly, picture(0)])
    robot.diagnostics(
        condition=lambda v: v.level == DiagnosticStatus.WARN and 'bug' in v.message,
        poke=lambda: robot.show(next(shown)),
        every=0.1,
    )
    assert process.output.count('Traceback') == 1
    assert 'test/failing_node.py' in process.output
    robot.exchange(picture(1))


def test_a_bug_in_a_callback_does_not_end_the_process(robot):
    process = robot.start(Path(__file__).parent / 'failing_node.py')
    process.has_bug = True
    infos = robot.node.create_publisher(CameraInfo, 'camera_info', 10)
    report = robot.diagnostics(
        condition=lambda v: v.bugs > 0, poke=lambda: infos.publish(CameraInfo())
    )
    assert 'TypeError' in report.last_error
    robot.exchange(picture(1))


# Engines that have to be built first.


@pytest.fixture
def building(robot, tmp_path, monkeypatch):
    """A node whose configuration needs an engine, and where that will lie."""
    pytest.importorskip(
        'tensorrt_rtx', reason='tensorrt_rtx is missing: pip install tensorrt-rtx (x86-64 Linux)'
    )
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    process = robot.start(Path(__file__).parent / 'building_node.py', autostart=False)
    return process, tmp_path / 'adaptok_ros/engines'


def begin_to_build(robot):
    assert robot.change('configure') and robot.state() == 'inactive'
    report = robot.progress(lambda v: v.message.startswith('building an engine'))
    assert report.level == DiagnosticStatus.WARN and 'adaptok-tiny' in report.message


@pytest.mark.timeout(3 * BUILD_DEADLINE)
def test_a_node_answers_while_it_builds(building, robot):
    process, cache = building
    begin_to_build(robot)
    assert robot.set(tau=0.3) == '' and 'configured' in robot.set(payload='int8')
    assert robot.change('activate') and robot.state() == 'active'
    built = len(list(cache.glob('*.plan')))
    assert built < len(shipped_models()), 'it was built before this test had looked'
    robot.settle_tokens(BUILD_DEADLINE)
    assert len(list(cache.glob('*.plan'))) == len(shipped_models())
    assert robot.tokens[-1].tau == np.float32(0.3)
    dropped = robot.diagnostics().images_unready
    assert dropped >= 1
    assert process.output.count('building an engine for adaptok-tiny') >= 1


def test_cleaning_up_cancels_a_build(building, robot):
    process, cache = building

    def assert_cancelled():
        """What was finished before is whole; of the one at hand nothing is left."""
        plans, rest = set(cache.glob('*.plan')), set(cache.glob('*'))
        assert len(plans) < len(shipped_models())
        assert rest == plans | {plan.with_suffix('.json') for plan in plans}

    begin_to_build(robot)
    assert robot.change('cleanup') and robot.state() == 'unconfigured'
    assert_cancelled()
    begin_to_build(robot)
    process.stop()
    assert_cancelled()


@pytest.mark.timeout(3 * BUILD_DEADLINE)
def test_a_build_that_fails_leaves_the_node_unconfigured(building, robot):
    process, _ = building
    begin_to_build(robot)
    assert robot.change('activate')
    for child in Path(f'/proc/{process.pid}/task').glob('*/children'):
        for pid in child.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    robot.until(lambda: robot.state() == 'unconfigured', 'the end of it')
    assert 'no longer configured' in process.output and 'SIGKILL' in process.output
    assert robot.change('configure') and robot.change('activate')
    robot.settle_tokens(BUILD_DEADLINE)


# Ways of starting.


@pytest.mark.parametrize('together', [False, True], ids=['processes', 'one-process'])
def test_two_cameras_do_not_mix(ros, tmp_path, together):
    sizes = {'front': (48, 64), 'wrist': (40, 72)}
    with new_robot(tmp_path) as front, new_robot(tmp_path) as wrist:
        robots = {'front': front, 'wrist': wrist}
        if together:
            cameras = [robot.namespace for robot in robots.values()]
            front.start('tokenizer_node', cameras=cameras, refresh_seconds=0.0)
            front.start('lit_node', remaps={'tokens': 'tokenizer/tokens'}, cameras=cameras)
        for robot in robots.values() if not together else ():
            robot.start('tokenizer_node', refresh_seconds=0.0)
            robot.start_lit()
        for robot in robots.values():
            robot.settle()
        counts = {name: (len(r.tokens), len(r.latents)) for name, r in robots.items()}
        for seed in range(3):
            for name, robot in robots.items():
                tokens = robot.exchange(picture(seed, *sizes[name]), name)
                assert (tokens.image_height, tokens.image_width) == sizes[name]
                assert robot.latents_of(tokens).header.frame_id == name
        for name, robot in robots.items():
            new = robot.tokens[counts[name][0] :] + robot.latents[counts[name][1] :]
            assert {message.header.frame_id for message in new} == {name}
        assert front.request_keyframe().success
        assert not wrist.exchange(picture(2, *sizes['wrist'])).keyframe
        assert front.exchange(picture(2, *sizes['front'])).keyframe


def test_compressed_images(robot, tokenizer):
    robot.start('tokenizer_node', transport='compressed', payload='float32')
    topic = 'image/compressed'
    robot.cameras[topic] = robot.node.create_publisher(CompressedImage, topic, 1)
    image = picture(2, 45, 61)
    for suffix, format in (('.png', 'rgb8; png compressed bgr8'), ('.jpg', 'jpeg')):
        _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        message = CompressedImage(format=format, data=byte_array(data))
        tokens = robot.exchange(message, 'front', topic)
        assert (tokens.image_height, tokens.image_width) == (45, 61)
        assert tokens.header.frame_id == 'front'
        if suffix == '.png':
            values = np.frombuffer(tokens.data, np.float32).reshape(6, 8, -1)
            np.testing.assert_allclose(values, tokenizer.encode(image), atol=ROUNDING)
    assert robot.diagnostics().image_conversion == 'builtin'
    for damaged in (b'', b'not an image', data.tobytes()[:100]):
        bad = CompressedImage(format='jpeg', data=byte_array(np.frombuffer(damaged, np.uint8)))
        errors = robot.diagnostics().errors
        robot.diagnostics(
            condition=lambda v, least=errors: v.errors > least,
            poke=lambda m=bad: robot.show(m, topic=topic),
        )
        assert robot.exchange(message, 'front', topic).kept < POSITIONS


def test_video_in_compressed_images(robot, tokenizer):
    robot.start('tokenizer_node', transport='compressed', payload='float32', tau=0.0)
    topic = 'image/compressed'
    robot.cameras[topic] = robot.node.create_publisher(CompressedImage, topic, 60)
    images = [cv2.GaussianBlur(picture(seed, 96, 128), (0, 0), 5) for seed in range(4)]
    messages = [
        CompressedImage(format='h264', data=byte_array(np.frombuffer(packet, np.uint8)))
        for packet in h264_packets(images)
    ]
    report = robot.diagnostics(
        condition=lambda v: 'keyframe yet' in v.message,
        poke=lambda: robot.show(messages[1], topic=topic),
    )
    assert report.level == DiagnosticStatus.WARN and report.packets_out == 0
    # The newest picture wins, and every packet before it was decoded.
    robot.until(
        lambda: find(robot.tokens, stamp=robot.stamp),
        'tokens of the last packet',
        poke=lambda: [robot.show(message, 'front', topic) for message in messages],
        every=helpers.LOST,
    )
    tokens = robot.tokens[-1]
    assert tokens.header.frame_id == 'front'
    values = np.frombuffer(tokens.data, np.float32).reshape(12, 16, -1)
    errors = [np.abs(values - tokenizer.encode(image)).mean() for image in images]
    assert errors[3] < 0.25 * min(errors[:3]), errors
    bad = CompressedImage(format='h264', data=byte_array(np.frombuffer(b'no video', np.uint8)))
    robot.diagnostics(
        condition=lambda v: 'start codes' in v.last_error,
        poke=lambda: robot.show(bad, topic=topic),
    )


def h264_packets(images):
    """One for each image; a keyframe only for the first."""
    try:
        encoder = av.CodecContext.create('libx264', 'w')
    except av.codec.codec.UnknownCodecError:
        pytest.skip('this PyAV has no libx264')
    encoder.height, encoder.width = images[0].shape[:2]
    encoder.pix_fmt, encoder.time_base = 'yuv420p', Fraction(1, 30)
    encoder.options = {'tune': 'zerolatency', 'crf': '8', 'g': '250', 'sc_threshold': '0'}
    packets = []
    for image in images:
        packets += encoder.encode(av.VideoFrame.from_ndarray(image, format='rgb24'))
    return [bytes(packet) for packet in packets]


def thermal(warm):
    """A 14-bit image in which a warm column stands at ``warm``."""
    values = np.full((48, 64), 7000, np.uint16)
    values[:, warm : warm + 8] = 7800
    return values


def test_a_range_shows_what_16_bits_hide(robot):
    robot.start('tokenizer_node')
    image = Image(height=48, width=64, encoding='mono16', step=128)
    image.data = byte_array(thermal(8).view(np.uint8))
    robot.exchange(image)
    report = robot.diagnostics(condition=lambda v: 'range_min' in v.message)
    assert report.level == DiagnosticStatus.WARN
    assert 'values of about 6939 to 7710' in report.message


def test_a_range_is_learned_once(robot):
    robot.start('tokenizer_node', value_range='auto')
    image = Image(height=48, width=64, encoding='mono16', step=128)
    for index in range(LEARNING_IMAGES + 1):
        image.data = byte_array(thermal(8 * (index % 2)).view(np.uint8))
        tokens = robot.exchange(image)
    assert not tokens.keyframe and tokens.kept > 0
    report = robot.diagnostics(condition=lambda v: '6900 to 7900' in v.image_conversion)
    assert 'range' not in report.message


def test_depth_is_read_from_its_own_topic(robot):
    robot.start('tokenizer_node', transport='compressedDepth', range_min=6900.0, range_max=7900.0)
    topic = 'image/compressedDepth'
    robot.cameras[topic] = robot.node.create_publisher(CompressedImage, topic, 1)
    for warm in (8, 32):
        data = bytes(12) + cv2.imencode('.png', thermal(warm))[1].tobytes()
        message = CompressedImage(
            format='16UC1; compressedDepth png', data=byte_array(np.frombuffer(data, np.uint8))
        )
        tokens = robot.exchange(message, topic=topic)
    assert not tokens.keyframe and tokens.kept > 0
    report = robot.diagnostics(condition=lambda v: v.images_received >= 2)
    assert 'range' not in report.message


def test_topics_qos_and_size_are_the_users(robot):
    image = f'{robot.namespace}/front/color/raw'
    tokens = f'{robot.namespace}/tokenizer/tokens'
    robot.start(
        'tokenizer_node',
        remaps={'image': 'front/color/raw'},
        **{
            'input_height': 32,
            'input_width': 40,
            'payload': 'int8',
            'reference': 'previous',
            f'qos_overrides.{image}.subscription.reliability': 'reliable',
            f'qos_overrides.{image}.subscription.depth': 3,
            f'qos_overrides.{tokens}.publisher.durability': 'transient_local',
        },
    )
    robot.cameras['raw'] = robot.node.create_publisher(Image, image, 1)
    packet = robot.exchange(picture(0, 96, 128), topic='raw')
    assert (packet.image_height, packet.image_width) == (32, 40)
    assert (packet.grid_height, packet.grid_width) == (4, 5)

    def reliabilities():
        endpoints = robot.node.get_subscriptions_info_by_topic(image)
        return [endpoint.qos_profile.reliability for endpoint in endpoints]

    def durabilities():
        endpoints = robot.node.get_publishers_info_by_topic(tokens)
        return [endpoint.qos_profile.durability for endpoint in endpoints]

    robot.until(lambda: reliabilities() == [ReliabilityPolicy.RELIABLE], 'reliable images')
    robot.until(lambda: durabilities() == [DurabilityPolicy.TRANSIENT_LOCAL], 'latched tokens')
    assert robot.change('deactivate') and robot.change('cleanup')
    assert robot.change('configure') and robot.change('activate')
    robot.exchange(picture(0, 96, 128), topic='raw')
    robot.until(lambda: reliabilities() == [ReliabilityPolicy.RELIABLE], 'reliable images')


def test_best_effort_and_reliable_publishers_both_match(robot):
    robot.start('tokenizer_node')
    robot.exchange(picture(0))
    robot.cameras['best effort'] = robot.node.create_publisher(
        Image, 'image', helpers.best_effort()
    )
    robot.exchange(picture(1), topic='best effort')


def test_simulated_time(robot):
    clock = f'{robot.namespace}/clock'
    parameters = {'remaps': {'/clock': clock}, 'use_sim_time': True}
    robot.start('tokenizer_node', **parameters)
    robot.start(
        'lit_node', 'lit', {'tokens': 'tokenizer/tokens', '/clock': clock}, use_sim_time=True
    )
    clocks = robot.node.create_publisher(Clock, clock, 1)
    now = Clock()
    now.clock.sec, now.clock.nanosec = 77, 250_000_000

    def tick():
        clocks.publish(now)

    for node in ('tokenizer', 'lit'):
        robot.diagnostics(node, lambda v: v.stamp == 77_250_000_000, poke=tick)
    # The time stands still from here on, and nothing waits for it.
    robot.stamp = 77_000_000_000 - helpers.FRAME
    for stamp in range(10):
        tokens = robot.exchange(picture(stamp), stamp=77_000_000_000)
    robot.until(
        lambda: robot.latents,
        'latents',
        poke=lambda: robot.exchange(picture(0), stamp=77_000_000_000),
    )
    for node in ('tokenizer', 'lit'):
        report = robot.diagnostics(node, lambda v: np.isfinite(v.latency_p50))
        assert report.latency_p50 == report.latency_p99 == 250.0
    assert stamp_of(tokens.header) == 77_000_000_000
    # A camera whose clock is ahead; a latency below zero is none.
    robot.exchange(picture(0), stamp=78_000_000_000)
    for node in ('tokenizer', 'lit'):
        report = robot.diagnostics(node)
        assert report.latency_p50 == report.latency_p95 == 250.0


def test_silence_is_explained(robot):
    robot.node.destroy_publisher(robot.cameras.pop('image'))
    robot.start('tokenizer_node')
    robot.start_lit()
    report = robot.diagnostics(condition=lambda v: 'nobody publishes' in v.message)
    assert f'{robot.namespace}/image' in report.message and report.level == DiagnosticStatus.ERROR
    assert 'no packet yet' in robot.diagnostics('lit').message
    robot.node.create_publisher(CameraInfo, 'image', 1)
    report = robot.diagnostics(condition=lambda v: 'publisher(s)' in v.message)
    assert 'sensor_msgs/msg/CameraInfo' in report.message


def test_a_camera_node_feeds_the_others(robot, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for seed in range(3):
        cv2.imwrite(str(images / f'{seed}.png'), picture(seed, 60, 80))
    remaps = {'image': 'color/raw'}
    robot.start('tokenizer_node', remaps=remaps)
    robot.start_lit()
    robot.start('camera_node', remaps=remaps, source=images, rate=20.0, width=64, frame_id='hand')
    infos = robot.collect(CameraInfo, 'color/camera_info')
    latents = robot.until(
        lambda: robot.tokens and infos and find(robot.latents, status=DenseLatents.STATUS_OK),
        'tokens and whole latents',
    )
    assert latents.header.frame_id == 'hand'
    assert (robot.tokens[-1].image_height, robot.tokens[-1].image_width) == (60, 64)
    assert (infos[-1].height, infos[-1].width) == (60, 64)
    assert infos[-1].header.frame_id == 'hand'
    count = len(robot.tokens)
    robot.until(lambda: len(robot.tokens) >= count + 10, 'more than one round of the folder')
    stamps = [stamp_of(message.header) for message in robot.tokens]
    assert stamps == sorted(stamps)
    report = robot.diagnostics(condition=lambda v: v.camera_infos_in > 0)
    assert report.images_in > 0
    assert report.hardware == f'{robot.namespace}/color/raw'
    assert robot.diagnostics('lit').hardware == f'{robot.namespace}/tokenizer/tokens'


def test_whole_images_cross_process_borders(robot):
    """With the package's profile, as the launch file and the demo set it."""
    process = robot.start('tokenizer_node')
    robot.start('camera_node', width=640, height=480, rate=5.0)
    robot.until(lambda: len(robot.tokens) >= 5, 'tokens')
    assert robot.tokens[-1].image_width == 640
    assert robot.tokens[-1].header.frame_id == robot.namespace.strip('/')
    assert 'shared-memory segment' not in process.output


@pytest.mark.parametrize(
    'parameters, said',
    [
        ({'source': '/no/such/video.mp4'}, 'no such file, folder or device'),
        ({'width': 8, 'height': 8}, 'width is 8; allowed: 16 to 4096'),
    ],
)
def test_a_camera_without_images_ends_with_one_error(robot, parameters, said):
    process = robot.start('camera_node', **parameters)
    assert process.wait() == 1
    assert process.output.count('[ERROR]') == 1 and said in process.output


def test_a_camera_ends_with_its_source(robot, tmp_path):
    cv2.imwrite(str(tmp_path / '0.png'), picture(0))
    process = robot.start('camera_node', source=tmp_path, rate=20.0, loop=False)
    assert process.wait() == 0
    assert 'played to its end' in process.output


def test_nodes_stop_on_either_signal(robot):
    processes = [
        robot.start(executable, autostart=False)
        if executable != 'camera_node'
        else robot.start(executable, width=64, height=48)
        for executable in NODES
    ]
    for name in ('tokenizer', 'lit', 'camera'):
        robot.until(
            lambda n=name: (n, robot.namespace) in robot.node.get_node_names_and_namespaces(), name
        )
    robot.spin(0.5)
    for process, number in zip(
        processes, (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM), strict=True
    ):
        process.stop(number)


def test_a_node_that_is_stuck_ends_all_the_same(robot):
    process = robot.start(Path(__file__).parent / 'stuck_node.py')
    robot.until(lambda: 'stuck' in process.output, 'an image', poke=lambda: robot.show(picture(0)))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 1
    assert 'tokenizer_node: did not stop within 0.5 s' in process.output


def test_an_interrupt_while_programs_import_is_quiet(tmp_path):
    """The module that a program starts is still being imported when SIGINT arrives."""
    (tmp_path / 'slow.py').write_text(
        'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n'
    )
    program = (Path(__file__).parent.parent / 'scripts' / 'program.in').read_text()
    for name, value in (('python_executable', sys.executable), ('module', 'slow'), ('name', '')):
        program = program.replace(f'@{name}@', value)
    (tmp_path / 'program.py').write_text(program)
    result = subprocess.run(
        [sys.executable, tmp_path / 'program.py'], capture_output=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (130, b'')


WRONG_STARTS = [
    ('tokenizer_node', ['-p', 'tau:=-1.0'], 'tau'),
    ('tokenizer_node', ['-p', 'tau:=abc'], "tau is 'abc'; allowed: a number, 0 to 100"),
    ('lit_node', ['-p', 'mode:=1'], 'mode'),
    ('lit_node', ['-p', 'no equals sign'], 'no equals sign'),
    ('camera_node', ['-p', 'rate:=-5.0'], 'rate'),
    ('camera_node', ['--params-file', '/no/such/file.yaml'], '/no/such/file.yaml'),
]


def run_node(executable, *arguments, folder, **environment):
    return subprocess.run(
        [sys.executable, '-m', f'adaptok_ros.nodes.{executable}', *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=2 * helpers.DEADLINE,
        check=False,
    )


def test_wrong_starts_end_with_one_line(tmp_path):
    starts = [(node, ['--ros-args', *arguments], said) for node, arguments, said in WRONG_STARTS]
    starts.append(('lit_node', ['--cameras', 'front,,wrist'], "cameras is 'front,,wrist'"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda start: run_node(start[0], *start[1], folder=tmp_path), starts)
        for (executable, _, said), result in zip(starts, results, strict=True):
            assert result.returncode == 1
            lines = [line for line in result.stderr.splitlines() if line.startswith(executable)]
            assert len(lines) == 1 and said in lines[0], result.stderr
            assert 'Traceback' not in result.stderr


def test_what_yaml_makes_of_words_and_numbers_is_accepted(robot, tmp_path):
    """And what no node knows is named once."""
    file = tmp_path / 'parameters.yaml'
    file.write_text("""
/**:
  ros__parameters: {taw: 0.3, lit_scope: all}
/**/tokenizer_node:
  ros__parameters: {tau: 5.0}
""")
    process = robot.start('tokenizer_node', params_file=file, gating='off', tau=1)
    assert robot.exchange(picture(0)).tau == 1.0
    assert robot.set(tau=2) == ''
    assert robot.exchange(picture(0)).tau == 2.0
    assert process.output.count('taw (did you mean tau?)') == 1
    assert 'lit_scope' not in process.output
    assert process.output.count('section /**/tokenizer_node applies to no node') == 1


@pytest.mark.parametrize(
    'parameter, value, taken',
    [
        (NodeParameter('tau', 0.1, '', 0.0, 100.0), 1, 1.0),
        (NodeParameter('tau', 0.1, '', 0.0, 100.0), 101, None),
        (NodeParameter('tau', 0.1, '', 0.0, 100.0), float('nan'), None),
        (NodeParameter('tau', 0.1, '', 0.0, 100.0), True, None),
        (NodeParameter('tau', 0.1, '', 0.0, 100.0), None, None),
        (NodeParameter('tokens', 0, '', 0, 9), 5, 5),
        (NodeParameter('tokens', 0, '', 0, 9), 5.0, None),
        (NodeParameter('tokens', 0, '', 0, 9), False, None),
        (NodeParameter('gating', 'off', '', choices=('off', 'exact')), False, 'off'),
        (NodeParameter('gating', 'off', '', choices=('off', 'exact')), True, None),
        (NodeParameter('mode', 'lit', '', choices=('lit', 'hold')), False, None),
        (NodeParameter('source', '', ''), 0, None),
        (NodeParameter('loop', True, ''), False, False),
        (NodeParameter('loop', True, ''), 'off', None),
    ],
)
def test_values_have_the_type_of_the_default(parameter, value, taken):
    if taken is None:
        with pytest.raises(SettingError, match=f'{parameter.name} is {value!r}; allowed: '):
            parameter.check(value)
    else:
        result = parameter.check(value)
        assert result == taken and type(result) is type(taken)
        assert parameter.parse(str(taken)) == taken


@pytest.mark.parametrize('text', ['a,a', 'a,/a', 'front,,wrist', '', ',', '/'])
def test_cameras_are_different_names(text):
    with pytest.raises(SettingError, match=re.escape(f'cameras is {text!r}')):
        split_cameras(text)


def test_cameras_of_one_process_lie_below_its_namespace(robot):
    robot.start('lit_node', cameras=['front', '/aside'], autostart=False)
    for namespace in (f'{robot.namespace}/front', '/aside'):
        robot.until(
            lambda n=namespace: ('lit', n) in robot.node.get_node_names_and_namespaces(),
            f'the node in {namespace}',
        )


def test_a_wrong_qos_override_is_said(robot):
    override = {f'qos_overrides.{robot.namespace}/image.subscription.reliability': 'perhaps'}
    process = robot.start('tokenizer_node', **override)
    robot.until(lambda: 'not activated: ' in process.output, 'the reason')
    assert 'perhaps' in process.output
    assert robot.state() == 'inactive'


@pytest.mark.parametrize('executable', NODES)
def test_help_lists_every_parameter(executable, tmp_path):
    result = run_node(executable, '--help', folder=tmp_path, PYTHONIOENCODING='ascii')
    assert result.returncode == 0 and not result.stderr
    for parameter in NODES[executable]:
        assert re.search(
            rf'^  {parameter.name} \(default .*; allowed: .*\)$', result.stdout, re.MULTILINE
        )
        assert parameter.description in result.stdout
