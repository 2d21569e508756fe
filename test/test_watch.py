"""``adaptok watch`` beside real nodes on the rendered scene, and its page in headless Chromium."""
# ruff: noqa: E402 (the helpers say what is missing)

import contextlib
import http.client
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

helpers = pytest.importorskip('ros_helpers')  # the reason names what is missing

import rclpy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from ros_helpers import Robot

from adaptok_ros.monitor.board import Board
from adaptok_ros.monitor.pictures import jpeg
from adaptok_ros.monitor.record import Node, Picture, Role
from adaptok_ros.monitor.server import WatchServer
from adaptok_ros.monitor.subscriptions import _names

SIZE = (240, 320)
GRID = (30, 40)
NAMESPACE = 'watched'
TOPIC = f'/{NAMESPACE}/tokenizer/tokens'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


class Watch:
    """``adaptok watch`` as a process.

    :ivar url: of its page
    """

    def __init__(self, folder, *arguments, **options):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'adaptok_ros', 'watch', *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options},
        )

    def read_url(self):
        line = self._process.stdout.readline().decode()
        assert line.startswith('open http://127.0.0.1:'), (
            line + self._process.stderr.read().decode()
        )
        self.url = line.split()[1]
        return self

    def read_error(self):
        """The next line of them."""
        return self._process.stderr.readline().decode()

    def stop(self):
        """Ask it to end; it must do so in order."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(helpers.DEADLINE)
        finally:
            self._process.kill()
        assert self._process.returncode == 0
        if self._process.stderr is not None:
            said = self._process.stderr.read().decode()
            assert 'Traceback' not in said, said

    def request(self, path):
        """An answer, and the connection on which it comes."""
        connection = http.client.HTTPConnection(
            urlsplit(self.url).netloc, timeout=2 * helpers.DEADLINE
        )
        connection.request('GET', path)
        return connection.getresponse(), connection

    def get(self, path):
        answer, connection = self.request(path)
        body = answer.read()
        connection.close()
        return answer.status, answer.headers['Content-Type'], body

    @contextlib.contextmanager
    def look(self, topic=TOPIC):
        """Look at a stream as a page does; gives its events, which are names and contents."""
        answer, connection = self.request(f'/events?stream={topic}')
        assert answer.status == 200
        try:
            yield read_events(answer)
        finally:
            answer.close()
            connection.close()


def read_events(answer):
    while True:
        name = answer.readline().decode().strip().removeprefix('event: ')
        content = json.loads(answer.readline().removeprefix(b'data: '))
        answer.readline()
        yield name, content


def figures(events, condition):
    """The next figures of the stream that meet a condition."""
    return next(
        content['stream']
        for name, content in events
        if name == 'figures' and condition(content['stream'])
    )


def is_complete(stream):
    headlines = {headline['name']: headline['value'] for headline in stream['headlines']}
    return stream['status'] == 'OK' and headlines.get('kept') and headlines.get('latents_p50')


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    helpers.join_ros()
    folder = tmp_path_factory.mktemp('robot')
    with Robot(NAMESPACE, folder) as robot:
        scene = {'image': 'scene/image'}  # another topic than the robot's own camera
        robot.start('tokenizer_node', remaps=scene)
        robot.start_lit()
        robot.start('camera_node', remaps=scene, height=SIZE[0], width=SIZE[1], rate=5.0)
        yield robot
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def watch(robot, tmp_path_factory):
    folder = tmp_path_factory.mktemp('watch')
    watch = Watch(folder, '--namespace', NAMESPACE, '--port', '0').read_url()
    yield watch
    watch.stop()


def test_figures_arrive_and_are_those_of_diagnostics(watch, robot):
    with watch.look() as events:
        shown = figures(events, is_complete)
    assert shown['topic'] == TOPIC and shown['state'] == 'running'
    tokenizer, lit = shown['nodes']
    assert (tokenizer['name'], tokenizer['role']) == (f'/{NAMESPACE}/tokenizer', 'tokenizer')
    assert (lit['name'], lit['role']) == (f'/{NAMESPACE}/lit', 'LIT')
    texts = {figure['label']: figure['text'] for figure in tokenizer['figures']}
    report = robot.diagnostics('tokenizer')
    assert (texts['tau'], texts['backend']) == (f'{report.tau:g}', report.backend)
    assert int(texts['images received']) > 0 and texts['/dev/shm'] != ''
    values = {headline['name']: headline['value'] for headline in shown['headlines']}
    assert 0.0 < values['kept'] <= 100.0 and values['data'] > 0.0 and values['gaps'] == 0


def test_pictures_arrive(watch):
    with watch.look() as events:
        kinds = {'overlay', 'reconstruction', 'ages'}
        next(content for name, content in events if name == 'pictures' and set(content) == kinds)
        for kind, expected, size in (
            ('overlay', 'image/jpeg', SIZE),
            ('reconstruction', 'image/jpeg', SIZE),
            ('ages', 'image/png', GRID),
        ):
            code, content_type, file = watch.get(f'/picture?stream={TOPIC}&kind={kind}')
            assert (code, content_type) == (200, expected), file
            image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
            assert image.shape == (*size, 3) and image.std() > 1.0


def test_nothing_is_drawn_for_nobody(watch, robot):
    topics = [f'/{NAMESPACE}/{topic}' for topic in ('tokenizer/overlay', 'lit/reconstruction')]

    def viewers():
        return [robot.node.count_subscribers(topic) for topic in topics]

    robot.until(lambda: viewers() == [0, 0], 'nobody looks')
    with watch.look() as events:
        figures(events, is_complete)
        robot.until(lambda: viewers() == [1, 1], 'somebody looks')
        with watch.look():
            pass
    robot.until(lambda: viewers() == [0, 0], 'nobody looks any more')


def test_a_node_that_ends_is_gone(watch, robot):
    node = robot.start('tokenizer_node', name='second')
    with watch.look(f'/{NAMESPACE}/second/tokens') as events:
        figures(events, lambda stream: stream['state'] == 'running')
        node.stop()
        shown = figures(events, lambda stream: stream['state'] == 'gone')
    assert shown['nodes'][0]['name'] == f'/{NAMESPACE}/second'


def test_what_is_not_there_is_told_with_what_is(robot, tmp_path):
    watch = Watch(tmp_path, '--namespace', 'other', '--port', '0').read_url()
    said = ''
    while TOPIC not in said:  # DDS may take its time to find it
        said = watch.read_error()
    watch.stop()
    start = 'adaptok: waiting for a tokenizer node that publishes tokens below /other; there are '
    assert said.startswith(start)


def test_the_terminal_shows_figures(robot, tmp_path):
    pytest.importorskip('rich', reason='rich is missing: adaptok_ros[watch]')
    ours, theirs = pty.openpty()
    terminal = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '80', 'LINES': '40'}
    watch = Watch(tmp_path, '--tokens', TOPIC, '--terminal', stdout=theirs, env=terminal)
    os.close(theirs)
    text = b''
    wanted = (b'latency of latents', b'kB/s', TOPIC.encode())
    while not all(each in text for each in wanted):
        text += os.read(ours, 1 << 16)
    reader = threading.Thread(target=drain, args=(ours,), daemon=True)
    reader.start()
    watch.stop()
    os.close(ours)


def drain(descriptor):
    """Read on, or who writes would wait."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 1 << 16):
            pass


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip(
        'playwright.sync_api', reason='playwright is missing: the page was seen in no browser'
    )
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if os.path.exists(own) else next(filter(None, map(shutil.which, BROWSERS)), '')
        if not found:
            pytest.skip(f'no browser: neither {own} nor one of {", ".join(BROWSERS)}')
        sandbox = ['--no-sandbox'] if os.geteuid() == 0 else []  # which root cannot have
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, watch):
    """The page of a new browser, which says nothing in the console and asks no other host."""
    wrong = []
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(3000.0 * helpers.DEADLINE)
    page.on('console', lambda message: wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('request', lambda r: r.url.startswith((watch.url, 'data:')) or wrong.append(r.url))
    page.goto(watch.url)
    yield page
    context.close()
    assert wrong == []


def test_the_page_shows_figures_and_pictures(page):
    for kind, (height, width) in (('overlay', SIZE), ('reconstruction', SIZE), ('ages', GRID)):
        page.wait_for_function(
            '([kind, width, height]) => {'
            '  const image = document.querySelector(`#${kind} .picture`);'
            '  return !image.hidden && image.naturalWidth === width'
            '    && image.naturalHeight === height;'
            '}',
            arg=[kind, width, height],
        )
    number = page.locator('[data-name="kept"] .number')
    number.wait_for()
    assert number.inner_text().endswith('%') and float(number.inner_text()[:-1]) > 0.0
    assert page.locator('#topic').inner_text() == TOPIC or page.locator('#streams').is_visible()
    assert page.locator('#connection').inner_text() == 'live'
    page.locator('.node summary').first.click()
    page.get_by_text('images lost by the middleware').wait_for()
    page.get_by_text('restored (% of the grid, median)').wait_for(state='hidden')


def test_the_page_waits_for_what_is_not_there(browser, watch):
    page = browser.new_page()
    page.set_default_timeout(3000.0 * helpers.DEADLINE)
    page.goto(f'{watch.url}#/{NAMESPACE}/third/tokens')
    banner = page.get_by_text(f'Waiting for the tokenizer node of /{NAMESPACE}/third/tokens')
    banner.wait_for()
    page.locator('#streams').select_option(TOPIC)
    banner.wait_for(state='hidden')
    page.locator('[data-name="kept"]').wait_for()
    page.close()


def test_the_page_shows_no_picture_of_another_stream_or_time(browser):
    board = Board()
    board.see({name: [Node(f'{name}/tokenizer', Role.TOKENIZER)] for name in ('/a', '/b')})
    server = WatchServer(board, '127.0.0.1', 0)
    asked, drawn = threading.Event(), threading.Event()

    def draw():
        asked.set()
        assert drawn.wait(helpers.DEADLINE)
        return jpeg(np.zeros((8, 8, 3), np.uint8))

    def until(condition):
        page.wait_for_function(f'() => {condition}')

    def show(stream):
        while stream not in board.viewed():
            page.wait_for_timeout(20)
        board.show(stream, Picture.OVERLAY, draw)

    page = browser.new_page()
    page.set_default_timeout(1000.0 * helpers.DEADLINE)
    page.goto(f'{server.url}#%')  # not the name of a stream: the first one is shown
    show('/a')
    assert asked.wait(helpers.DEADLINE)
    page.locator('#streams').select_option('/b')
    hidden = "picture('overlay').hidden"
    until(f"stream === '/b' && {hidden}")
    page.evaluate(
        '() => {'
        '  window.came = [];'
        "  const image = picture('overlay');"
        "  image.addEventListener('load', () => came.push(image.hidden));"
        '}'
    )
    drawn.set()  # the picture of /a comes now
    until('came.length')
    assert page.evaluate('came') == [True]
    show('/b')
    until(f'!{hidden}')
    page.evaluate('disconnect()')
    while board.viewed():
        page.wait_for_timeout(20)
    page.evaluate('connect()')  # as after the tab was in the background
    until(hidden)
    show('/b')
    until(f'!{hidden}')
    page.close()
    server.close()


def test_ends_whose_node_is_unknown_yet_are_left_out():
    unknown = {'node_name': '_NODE_NAME_UNKNOWN_', 'node_namespace': '_NODE_NAMESPACE_UNKNOWN_'}
    ends = [
        TopicEndpointInfo(**unknown),
        TopicEndpointInfo(node_name='lit', node_namespace='/front'),
    ]
    assert _names(ends) == [('/front', 'lit')]
