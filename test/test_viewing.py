"""The layouts for Foxglove and RViz name what the nodes publish."""

import json
import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is missing: the topics are those of the nodes')

import rclpy
from ros_helpers import Robot, join_ros

from adaptok_ros.msg import DenseLatents, SparseTokens
from adaptok_ros.nodes.reports import LITReport, TokenizerReport, key_of

CONFIG = Path(__file__).parent.parent / 'config'
REPORTS = {'/tokenizer': TokenizerReport, '/lit': LITReport}
FIELDS = {'/tokenizer/tokens': SparseTokens, '/lit/latents': DenseLatents}
IMAGE, DIAGNOSTICS = 'sensor_msgs/msg/Image', 'diagnostic_msgs/msg/DiagnosticArray'


def foxglove():
    """Kinds of messages that the panels want by topic, and the paths of plots."""
    layout = json.loads((CONFIG / 'foxglove.json').read_text())
    panels = layout['configById']
    topics, paths = {}, []
    for panel in panels.values():
        if 'imageMode' in panel:
            topics[panel['imageMode']['imageTopic']] = IMAGE
        if 'topicToRender' in panel:
            topics[panel['topicToRender']] = DIAGNOSTICS
        paths += [path['value'] for path in panel.get('paths', [])]
    named = re.findall(r'"(?:first|second)": "([^"]+)"', json.dumps(layout['layout']))
    assert sorted(named) == sorted(panels)
    return topics, paths


def rviz():
    displays = yaml.safe_load((CONFIG / 'adaptok.rviz').read_text())['Visualization Manager']
    assert all(each['Class'] == 'rviz_default_plugins/Image' for each in displays['Displays'])
    return {each['Topic']['Value']: IMAGE for each in displays['Displays']}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Topics that the nodes publish, with the kinds of their messages."""
    join_ros()
    with Robot('', tmp_path_factory.mktemp('viewing')) as robot:
        robot.start('tokenizer_node')
        robot.start_lit()
        wanted = {*foxglove()[0], *rviz(), *FIELDS}
        found = {}

        def are_there():
            for topic in wanted:
                for info in robot.node.get_publishers_info_by_topic(topic):
                    found[topic] = info.topic_type
            return wanted <= set(found)

        robot.until(are_there, f'publishers of {wanted}')
    rclpy.try_shutdown()
    return found


def test_layouts_name_topics_that_are_published(published):
    for topics in (foxglove()[0], rviz()):
        assert topics and topics.items() <= published.items()


def test_plots_name_fields_and_figures_that_are_published():
    _, paths = foxglove()
    for path in paths:
        figure = re.fullmatch(
            r'/diagnostics\.status\[:\]\{name=="(.+?)"\}\.values\[:\]\{key=="(.+?)"\}\.value', path
        )
        if figure:
            node, key = figure.groups()
            keys = {key_of(field) for field in REPORTS[node].__dataclass_fields__.values()}
            assert key in keys
        else:
            topic, field = path.rsplit('.', 1)
            assert field in FIELDS[topic].get_fields_and_field_types()
    assert len(paths) == 7
