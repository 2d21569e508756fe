"""What a bag holds as a recording for the Rerun viewer; no viewer is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adaptok_ros.bags.inspection import Inspection
from adaptok_ros.bags.pictures import Painter, as_webp, spread
from adaptok_ros.bags.topic_inspection import TopicInspection
from adaptok_ros.cli.bag.description import describe_event
from adaptok_ros.errors import MissingPackageError

TIMELINE = 'recording'
"""Seconds from the start of the bag."""


def load_rerun() -> Any:
    """The module ``rerun``.

    :raises MissingPackageError: it is not installed
    """
    try:
        import rerun
    except ImportError as error:
        raise MissingPackageError(
            "--rrd needs the Rerun SDK (about 760 MB): pip install 'adaptok_ros[rerun]'"
        ) from error
    return rerun


def write_rrd(inspection: Inspection, painter: Painter, path: Path, times: int) -> None:
    """Write curves, events and pictures, as entities below the name of their topic.

    :param times: of which there are pictures, for each topic
    :raises MissingPackageError: Rerun is not installed
    :raises OSError: the file cannot be written
    """
    rerun = load_rerun()
    path.write_bytes(b'')  # so that what is wrong with the path is said as everywhere else
    with rerun.RecordingStream('adaptok') as stream:
        stream.save(path)
        for topic in inspection.topics:
            if not topic.packets:
                continue
            _send_curves(rerun, stream, topic)
            for event in topic.events:
                stream.set_time(TIMELINE, duration=event.begin)
                stream.log(f'{topic.topic}/events', rerun.TextLog(describe_event(event)))
            for snapshot in spread(inspection.snapshots[topic.topic], times):
                stream.set_time(TIMELINE, duration=snapshot.seconds)
                for name, image in painter.paint(snapshot).named.items():
                    data = as_webp(image)
                    picture = rerun.EncodedImage(contents=data, media_type='image/webp')
                    stream.log(f'{topic.topic}/{name}', picture)
        stream.flush()


def _send_curves(rerun: Any, stream: Any, topic: TopicInspection) -> None:
    series = topic.series
    begins = series.width * np.arange(len(series.packets))
    curves = {
        'sent_percent': np.array([np.nan if kept is None else kept for kept in series.kept]),
        'kilobytes_per_second': np.array(series.bytes) / series.width / 1e3,
        'packets_per_second': np.array(series.packets) / series.width,
    }
    for name, values in curves.items():
        there = np.isfinite(values)
        stream.send_columns(
            f'{topic.topic}/{name}',
            indexes=[rerun.TimeColumn(TIMELINE, duration=begins[there])],
            columns=rerun.Scalars.columns(scalars=values[there]),
        )
