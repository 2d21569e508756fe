"""The page of ``adaptok watch``: what is shown when, to whom, and what others may not do."""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import sys
import time

import cv2
import numpy as np
import pytest

from adaptok_ros.cli import main
from adaptok_ros.errors import SettingError
from adaptok_ros.monitor.board import MOST_VIEWERS, Board
from adaptok_ros.monitor.pictures import LONGEST_SIDE, ages_png, jpeg, legend_png
from adaptok_ros.monitor.record import (
    STALE,
    Heard,
    Node,
    Picture,
    Role,
    State,
    shorten,
    view_stream,
)
from adaptok_ros.monitor.server import MOST_CONNECTIONS, WatchServer
from adaptok_ros.nodes.reports import FaultReport, LITReport, NodeStatus, TokenizerReport
from adaptok_ros.sending.images import ImageError
from adaptok_ros.sending.overlay import KEPT_COLOUR

DEADLINE = 30.0
TOPIC = '/front/tokenizer/tokens'
NODES = (Node('/front/tokenizer', Role.TOKENIZER), Node('/front/lit', Role.LIT))


def report(kind, **values):
    """A report in which every other number is 0, and every text empty."""
    blank = {'int': 0, 'float': 0.0, 'str': ''}
    fields = {field.name: blank[field.type] for field in dataclasses.fields(kind)}
    return kind(**{**fields, **values})


def status(name='/front/tokenizer', level=0, message='running', *reports):
    return NodeStatus(name, '/front/image', level, message, reports)


@pytest.fixture
def board():
    board = Board()
    board.see({TOPIC: NODES})
    return board


@pytest.fixture
def server(board):
    server = WatchServer(board, '127.0.0.1', 0)
    yield server
    server.close()


def get(server, path, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(*server.address, timeout=DEADLINE)
    connection.request('GET', path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


@contextlib.contextmanager
def events(server, topic=TOPIC):
    """An open stream of events; None if it is refused."""
    connection = http.client.HTTPConnection(*server.address, timeout=DEADLINE)
    connection.request('GET', f'/events?stream={topic}')
    answer = connection.getresponse()
    yield answer if answer.status == 200 else None
    answer.close()
    connection.close()


def next_event(answer, name):
    """What the next event of a name brings."""
    while answer.readline().strip() != f'event: {name}'.encode():
        pass
    return json.loads(answer.readline().removeprefix(b'data: '))


def wait_until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def view(nodes=NODES, now=0.0, **heard):
    """A stream of which nodes have said something at a time."""
    found = {
        f'/front/{name}': Heard(status(f'/front/{name}', *said), at)
        for name, (at, *said) in heard.items()
    }
    return view_stream(TOPIC, nodes, found, {}, now)


def test_a_stream_waits_runs_grows_old_and_goes():
    assert view(nodes=()).state is State.WAITING
    assert view().state is State.WAITING
    assert view(tokenizer=(0.0, 0, 'running')).state is State.RUNNING
    assert view(now=STALE + 0.1, tokenizer=(0.0, 0, 'running')).state is State.STALE
    gone = [dataclasses.replace(node, present=False) for node in NODES]
    assert view(nodes=gone, tokenizer=(0.0, 0, 'running')).state is State.GONE


def test_levels_of_others_are_taken_as_errors():
    assert view(tokenizer=(0.0, 3, 'stale')).level == 2


def test_a_node_that_took_the_place_of_one_that_went_is_the_one_that_counts():
    former = Node('/front/a', Role.TOKENIZER, present=False)
    shown = view(nodes=(former, *NODES), tokenizer=(0.0, 0, 'running'), a=(0.0, 0, 'running'))
    assert shown.state is State.RUNNING
    assert [node.name for node in shown.nodes] == ['/front/tokenizer', '/front/a', '/front/lit']


def test_headlines_are_figures_of_the_reports():
    nan = float('nan')
    tokenizer = report(TokenizerReport, kept=4.25, data_out=12.345, latency_p50=nan)
    lit = report(LITReport, status='STALE', gaps=3, latency_p50=41.2)
    shown = view(
        tokenizer=(0.0, 1, 'slow', tokenizer, FaultReport(0, 0, '')), lit=(0.0, 2, 'no', lit)
    )
    assert (shown.level, shown.status) == (2, 'STALE')
    found = {headline.name: headline for headline in shown.headlines}
    assert (found['kept'].text, found['kept'].unit) == ('4.25', '%')
    assert (found['data'].text, found['data'].value) == ('12.3', 12.345)
    assert (found['tokens_p50'].text, found['tokens_p50'].value) == ('-', None)
    assert (found['latents_p50'].text, found['gaps'].text) == ('41.2', '3')
    texts = {figure.label: figure.text for figure in shown.nodes[0].figures}
    assert texts['kept'] == '4.25' and texts['errors'] == '0'


@pytest.mark.parametrize(
    'value, text', [(3, '3'), (1234567, '1234567'), (0.0, '0.00'), (9.999, '10.0'), (512.6, '513')]
)
def test_numbers_are_short(value, text):
    assert shorten(value) == text


def test_what_is_heard_of_strangers_is_not_kept(board):
    board.hear(status('/other/tokenizer'))
    assert board.topics() == [TOPIC]
    board.hear(status(message='loading'))
    (tokenizer, lit) = board.view(TOPIC).nodes
    assert (tokenizer.message, lit.state) == ('loading', State.WAITING)


def test_nodes_that_have_gone_are_shown_for_a_while(board, monkeypatch):
    board.hear(status())
    board.see({})
    assert {node.state for node in board.view(TOPIC).nodes} == {State.GONE}
    begin = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: begin + 3600.0)
    board.see({})
    assert board.topics() == []


def test_the_page_brings_all_it_needs_and_allows_nothing_else(server):
    code, headers, page = get(server, '/')
    assert code == 200 and headers['Content-Type'].startswith('text/html')
    linked = set(re.findall(r'[\w-]+://[\w.-]+', page.decode()))
    assert linked == {'http://www.w3.org'}  # the name of SVG
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy and 'http' not in policy
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert get(server, '/nothing')[0] == 404


@pytest.mark.parametrize('host', ['localhost', 'LOCALHOST:9000', '192.168.0.7:8080', '[::1]:80'])
def test_browsers_may_call_it_by_address_or_own_name(server, host):
    assert get(server, '/', Host=host)[0] == 200
    assert get(server, '/', Host=socket.gethostname())[0] == 200


@pytest.mark.parametrize('host', ['evil.example', 'localhost.evil.example:8080', '[::1', ''])
@pytest.mark.parametrize('path', ['/', '/events', '/picture?kind=overlay'])
def test_names_of_others_are_refused(server, host, path):
    """They may point here (DNS rebinding)."""
    code, _, body = get(server, path, Host=host)
    assert code == 403 and b'host is ' in body


def test_other_sites_are_refused(server):
    assert get(server, '/legend.png', **{'Sec-Fetch-Site': 'cross-site'})[0] == 403
    assert get(server, '/legend.png', **{'Sec-Fetch-Site': 'same-origin'})[0] == 200
    # By plain HTTP in a local network browsers may send an Origin and nothing else.
    for origin in ('http://evil.example', 'null'):
        code, _, body = get(server, '/events', Origin=origin)
        assert code == 403 and b'other web sites' in body


def test_figures_come_as_events(server, board):
    board.hear(status('/front/tokenizer', 1, 'warned', report(TokenizerReport, tau=0.05)))
    with events(server) as stream:
        shown = next_event(stream, 'figures')
    assert shown['streams'] == [{'topic': TOPIC, 'state': 'running', 'level': 1}]
    assert shown['stream']['nodes'][0]['message'] == 'warned'
    assert shown['stream']['pictures'] == {'overlay': None, 'reconstruction': None, 'ages': None}
    with events(server, '/not/there/yet') as stream:
        assert next_event(stream, 'figures')['stream']['state'] == 'waiting'


def test_pictures_are_drawn_only_when_asked_for_and_the_newest_wins(server, board):
    drawn = []

    def draw(number):
        drawn.append(number)
        return jpeg(np.full((48, 64, 3), number, np.uint8))

    path = f'/picture?stream={TOPIC}&kind=overlay'
    board.show(TOPIC, Picture.OVERLAY, lambda: draw(1))
    assert get(server, path)[0] == 404  # nobody looked when it came
    with events(server) as idle, events(server) as stream:  # one of them never reads
        assert idle is not None
        next_event(stream, 'figures')
        for number in range(200):
            board.show(TOPIC, Picture.OVERLAY, lambda n=number: draw(n))
        while (
            next_event(stream, 'pictures')['overlay'] < board.frame(TOPIC, Picture.OVERLAY).number
        ):
            pass
        for _ in range(2):
            code, headers, body = get(server, path)
            assert (code, headers['Content-Type']) == (200, 'image/jpeg')
        picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (48, 64, 3) and abs(int(picture[20, 20, 0]) - 199) < 4
        assert drawn == [199]
    wait_until(lambda: not board.viewed())
    assert get(server, path)[0] == 404


def test_a_picture_that_cannot_be_drawn_says_why(server, board):
    def draw():
        raise ImageError('height', 0, '1 to 8192')

    with events(server) as stream:
        next_event(stream, 'figures')
        board.show(TOPIC, Picture.AGES, draw)
        code, _, body = get(server, f'/picture?stream={TOPIC}&kind=ages')
        assert code == 422 and b'height is 0' in body
    assert get(server, f'/picture?stream={TOPIC}&kind=depth')[0] == 400


def test_viewers_are_limited(server, board):
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_VIEWERS - 1):
            assert stack.enter_context(events(server))
        with events(server) as last:
            assert last
            with events(server) as refused:
                assert refused is None
            assert get(server, '/')[0] == 200

        def is_served():
            with events(server) as again:
                return again is not None

        wait_until(is_served)


def test_connections_are_limited(server):
    idle = [socket.create_connection(server.address) for _ in range(MOST_CONNECTIONS)]
    try:
        with socket.create_connection(server.address, DEADLINE) as refused:
            assert refused.recv(1) == b''
    finally:
        for connection in idle:
            connection.close()
    wait_until(lambda: is_answered(server))


def is_answered(server):
    try:
        return get(server, '/legend.png')[0] == 200
    except (ConnectionError, http.client.BadStatusLine):
        return False


def test_a_port_in_use_is_named(server):
    with pytest.raises(SettingError, match=rf'port {server.address[1]}: .*--port'):
        WatchServer(Board(), '127.0.0.1', server.address[1])
    with pytest.raises(SettingError, match='allowed: 0 to 65535'):
        WatchServer(Board(), '127.0.0.1', 65536)
    with pytest.raises(SettingError, match=r"host 'no\.such\.host\.invalid'"):
        WatchServer(Board(), 'no.such.host.invalid', 0)


def test_only_loopback_is_private(server):
    assert server.is_private and server.url == f'http://127.0.0.1:{server.address[1]}/'
    public = WatchServer(Board(), '0.0.0.0', 0)
    assert not public.is_private
    public.close()


def test_ages_are_brightest_where_they_are_newest():
    ages = np.array([[0, 1, 3], [15, 63, 255]], np.uint8)
    shown = cv2.imdecode(np.frombuffer(ages_png(ages), np.uint8), cv2.IMREAD_COLOR)
    assert tuple(shown[0, 0, ::-1]) == KEPT_COLOUR
    red = shown[..., 2].ravel().astype(int)
    assert (np.diff(red) < 0).all()
    legend = cv2.imdecode(np.frombuffer(legend_png(), np.uint8), cv2.IMREAD_COLOR)
    assert (legend[0, 0] == shown[0, 0]).all() and (legend[0, -1] == shown[1, 2]).all()


def test_large_pictures_are_scaled_down():
    file = jpeg(np.zeros((1080, 1920, 3), np.uint8))
    shown = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (540, LONGEST_SIDE, 3)


def test_the_terminal_shows_the_same_figures(board):
    console = pytest.importorskip('rich.console', reason='rich is missing: adaptok_ros[watch]')
    from adaptok_ros.monitor.terminal import render

    said = 'engines [red]tensorrt[/red] failed'
    board.hear(status('/front/tokenizer', 1, said, report(TokenizerReport, kept=4.25)))
    board.hear(status('/front/lit', 0, 'running', report(LITReport, status='OK', gaps=2)))
    shown = console.Console(width=110, record=True, file=open('/dev/null', 'w'))
    shown.print(render([board.view(TOPIC)], 'waiting'))
    text = shown.export_text()
    for expected in (TOPIC, '4.25 %', 'kB/s', '2      gaps', 'latents OK', 'WARN', said):
        assert expected in text, text
    shown.print(render([], 'waiting for a tokenizer'))
    assert 'waiting for a tokenizer' in shown.export_text()


def test_without_ros_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    assert main(['watch']) == 1
    assert 'needs ROS 2 (rclpy)' in capsys.readouterr().err
