"""The page of `adaptok report`: all in one file, and asking nobody for anything."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bags import TOPIC, packets_of, write_packets
from test_inspect import at_rate, camera_bag, write_bag

from adaptok_ros.bags.inspection import inspect_bag
from adaptok_ros.bags.pictures import Painter
from adaptok_ros.cli import main
from adaptok_ros.cli.bag.description import describe
from adaptok_ros.cli.report_page import make_page
from adaptok_ros.packet import seal

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
LOADING = ('src', 'srcset', 'href', 'action', 'data', 'poster', 'background')
VOID = {'meta', 'img', 'source', 'br', 'link'}


class Page(HTMLParser):
    """A page, read: what it loads, its text, and whether its elements are nested."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.text, self._open = [], [], '', []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in LOADING]
        assert not any(name.startswith('on') for name, _ in attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    """The page, after a look at what it must not do."""
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert all(value.startswith('data:') for value in page.loads)
    assert 'script' not in page.tags and 'link' not in page.tags
    assert not re.search(r'(https?:)?//\w|url\(|@import', re.sub(r'base64,[\w+/=]+', '', text))
    assert "default-src 'none'" in text
    return page


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """The page of a bag of the shipped tokenizer's, and its file."""
    folder = tmp_path_factory.mktemp('report')
    camera_bag(folder / 'bag', count=12)
    assert main(['report', str(folder / 'bag'), '--output', str(folder / 'page.html')]) == 0
    return folder / 'page.html'


def test_a_page_is_whole_and_asks_nobody(written):
    page = read_page(written)
    assert page.tags.count('img') == 1 + 3 * 6  # a plot, and three pictures of six times
    assert page.tags.count('source') == 1  # the plot on a dark screen
    assert '/front/tokens' in page.text and 'everything that was sent is there' in page.text
    assert 'Some pictures are not decoded' not in page.text
    assert written.stat().st_size < 500_000


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: the page is not shown')
@pytest.mark.parametrize('dark', [False, True])
def test_a_page_is_shown_by_chromium(written, tmp_path, dark):
    command = [CHROMIUM, '--headless=new', '--disable-gpu', '--hide-scrollbars', '--no-first-run']
    command += ['--no-sandbox'] if os.geteuid() == 0 else []
    command += [f'--user-data-dir={tmp_path}/profile', '--window-size=1000,1600']
    command += ['--blink-settings=preferredColorScheme=0'] if dark else []
    command += [f'--screenshot={tmp_path}/page.png', written.as_uri()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    shown = cv2.imread(str(tmp_path / 'page.png'))
    assert shown is not None, output.decode()
    ground, ink = np.median(shown, axis=(0, 1)).mean(), shown[:200].mean(axis=2)
    assert ground < 60 if dark else ground > 230
    assert ink.max() > 200 and ink.min() < 80  # text in a colour that can be read
    plot_and_pictures = shown[400:, 100:900]
    assert plot_and_pictures.std() > 20


def test_faults_and_events_are_on_the_page(tmp_path, capsys, monkeypatch):
    packets = packets_of(keyframe_interval=10)
    del packets[13:15]
    write_bag(tmp_path / 'my <bag>', {TOPIC: at_rate(packets), '/silent': []})
    monkeypatch.chdir(tmp_path)
    assert main(['report', 'my <bag>']) == 0
    output = capsys.readouterr()
    assert f'{TOPIC}: 2 packets lost in 1 gap' in output.err
    page = read_page(tmp_path / 'my <bag>.html')
    for text in (
        'my <bag>',
        'Not whole.',
        'gap: 2 packets lost',
        'STALE',
        '/silent',
        'no packets',
    ):
        assert text in page.text
    assert "tokens are of 'test@0123456789ab'" in page.text


def test_what_cannot_be_made_is_one_error(tmp_path, capsys):
    assert main(['report', str(tmp_path / 'none')]) == 1
    write_packets(tmp_path / 'bag', packets_of()[:2], TOPIC, 'mcap')
    assert main(['report', str(tmp_path / 'bag'), '--output', str(tmp_path / 'no/page')]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert 'not a bag' in errors[0] and 'cannot be written' in errors[1] and len(errors) == 2


names = st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='\0'), max_size=40)
wild = st.fixed_dictionaries({}, optional={
    'stamp': st.integers(0, (2**31 - 1) * 10**9),
    'frame_id': names,
    'tokenizer': names | st.just('adaptok-tiny@7584ae4914b2'),
    'image_height': st.integers(0, 65535),
    'image_width': st.integers(0, 65535),
    'sequence': st.integers(0, 2**32 - 1),
    'epoch': st.integers(0, 2**32 - 1),
    'tau': st.floats(width=32),
    'deferred': st.integers(0, 24),
})  # fmt: skip


@pytest.mark.filterwarnings('error::UserWarning')  # of matplotlib, where a figure is no good
def test_whatever_packets_say_there_is_a_page(tmp_path_factory):
    """Packets with the right checksum, recorded at any time, that say anything."""
    packets = packets_of()
    painter = Painter()

    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.floats(-1e9, 5e9), wild), min_size=1, max_size=8),
        st.text('<>&"\'/abc\n\x1b{}', min_size=1, max_size=20),
    )
    def check(changes, topic):
        sent = [
            (seconds, seal(dataclasses.replace(packet, **changed)))
            for packet, (seconds, changed) in zip(packets, changes)
        ]
        folder = tmp_path_factory.mktemp('wild')
        inspection = inspect_bag(write_bag(folder / 'bag', {topic: sent}), snapshots=4)
        inspection.to_json()
        assert all(line.isprintable() for line in describe(inspection))
        page = folder / 'page.html'
        page.write_text(make_page(inspection, painter), encoding='utf-8')
        read_page(page)

    check()
