"""Reports of nodes as records and as text, and the level of what went wrong."""

import dataclasses

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: diagnostics are those of the nodes')

import rclpy
import rclpy.logging
from diagnostic_msgs.msg import DiagnosticStatus
from ros_helpers import isolate

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.arrivals import Arrivals
from adaptok_ros.nodes.diagnostics import new_status, read_status
from adaptok_ros.nodes.faults import FaultLog
from adaptok_ros.nodes.reports import (
    KINDS,
    FaultReport,
    LITReport,
    NodeStatus,
    TokenizerReport,
    TransportReport,
    as_text,
    from_text,
)


def example(kind):
    """A report with another value in every field."""
    make = {'int': lambda n: n, 'float': lambda n: n + 0.25, 'str': lambda n: f'text {n}'}
    fields = dataclasses.fields(kind)
    return kind(*(make[field.type](number) for number, field in enumerate(fields)))


@pytest.mark.parametrize('kind', KINDS)
def test_reports_survive_being_text(kind):
    report = example(kind)
    values = as_text(report)
    assert len(values) == len(dataclasses.fields(kind))
    assert from_text(kind, {**values, 'of another report': ''}) == report
    values.popitem()
    with pytest.raises(KeyError):
        from_text(kind, values)


@pytest.mark.parametrize('figures', [(), (TokenizerReport,), (LITReport,)])
def test_statuses_are_read_as_they_were_written(figures):
    reports = tuple(example(kind) for kind in (*figures, FaultReport, TransportReport))
    node = rclpy.create_node('teller', namespace='/front')
    status = new_status(node, '/front/image', DiagnosticStatus.WARN, 'no images', *reports)
    node.destroy_node()
    expected = NodeStatus('/front/teller', '/front/image', 1, 'no images', reports)
    assert read_status(status) == expected
    assert [expected.find(kind) for kind in KINDS].count(None) == len(KINDS) - len(reports)


@pytest.mark.parametrize('damage', ['missing', 'text'])
def test_a_report_that_cannot_be_read_is_left_out(damage):
    node = rclpy.create_node('teller')
    faults = FaultReport(1, 2, '')
    status = new_status(node, '', DiagnosticStatus.OK, '', example(LITReport), faults)
    node.destroy_node()
    (gaps,) = [pair for pair in status.values if pair.key == 'gaps']
    if damage == 'missing':
        status.values.remove(gaps)
    else:
        gaps.value = 'many'
    assert read_status(status).reports == (faults,)


def test_units_are_in_the_keys():
    values = as_text(example(TokenizerReport))
    assert values['convert (ms, median)'] == '10.25'
    assert {'encode (ms, median)', 'select (ms, median)', 'images in (Hz)', 'tau'} <= set(values)
    assert 'restored (% of the grid, median)' in as_text(example(LITReport))


@pytest.fixture(scope='module', autouse=True)
def ros():
    isolate()
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def faults():
    return FaultLog(rclpy.logging.get_logger('test_diagnostics'))


def broken():
    return [][1]


def caught(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError('nothing was raised')


def test_expected_faults_are_reported_as_they_are(faults, capfd):
    faults.fail(SettingError('tau is -1; allowed: 0 to 100'), 'image dropped')
    assert faults.report() == FaultReport(1, 0, 'image dropped: tau is -1; allowed: 0 to 100')
    assert faults.explain(SettingError('tau is -1')) == 'tau is -1'
    assert 'Traceback' not in capfd.readouterr().err


def test_texts_of_others_are_cut(faults):
    faults.fail(SettingError('x' * 5_000_000), 'packet dropped')
    assert faults.report().last_error == f'packet dropped: {"x" * 483}…'
    faults.fail(caught(lambda: {}['x' * 5_000]))
    assert faults.report().last_error.endswith(', please report')
    node = rclpy.create_node('test_texts')
    status = new_status(
        node, 'camera', DiagnosticStatus.WARN, 'x' * 501, FaultReport(0, 0, 'ö' * 501)
    )
    node.destroy_node()
    assert len(status.message) == len(status.values[2].value) == 500


def test_bugs_tell_where_and_leave_one_traceback_a_place(faults, capfd):
    for _ in range(3):
        faults.fail(caught(broken), 'image dropped')
    report = faults.report()
    assert (report.errors, report.bugs) == (0, 3)
    assert report.last_error.startswith('bug in adaptok_ros: IndexError: list index out of range')
    assert report.last_error.endswith(
        f'test_diagnostics.py:{broken.__code__.co_firstlineno + 1}, please report'
    )
    faults.fail(caught(lambda: {}['key']))
    assert capfd.readouterr().err.count('Traceback') == 2


def test_the_level_is_that_of_the_time_since_the_last_report(faults):
    assert faults.take_news() == (DiagnosticStatus.OK, '')
    faults.fail(SettingError('no'))
    assert faults.take_news() == (DiagnosticStatus.ERROR, 'no')
    assert faults.take_news() == (DiagnosticStatus.OK, '')
    faults.succeed()
    faults.fail(SettingError('no'))
    assert faults.take_news() == (DiagnosticStatus.WARN, 'no')
    faults.succeed()
    assert faults.take_news() == (DiagnosticStatus.OK, '')


@pytest.mark.parametrize('lost, warned', [(0, False), (2, False), (30, True)])
def test_lost_images_are_warned_of_by_their_share(lost, warned):
    arrivals = Arrivals()
    arrivals.begin()
    for _ in range(40):
        arrivals.receive(100)
    arrivals.lose(lost)
    isolate()
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node('arrivals', context=context)
        remarks = arrivals.remarks(node, '/image')
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert arrivals.lost == lost
    assert any('are lost' in remark.text for remark in remarks) == warned
