"""Image messages to RGB arrays: cv_bridge against the builtin way.

Each message goes both ways, in changing order. Its content is noise, for no conversion depends on
it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from measuring import WARM_UP, Settings, Stopwatch, progress, ratios, spread
from tables import table, with_spread

from adaptok_ros.messages import byte_array
from adaptok_ros.nodes.image_conversion import PIXEL_BYTES, Bridge, MessageConverter, find_bridge

ENCODINGS = ('rgb8', 'bgr8', 'mono8', 'mono16', 'bayer_rggb8', 'yuv422')
BUILTIN, CV_BRIDGE = 'builtin', 'cv_bridge'


def measure(settings: Settings) -> dict[str, Any]:
    """Milliseconds of every encoding, both ways where there is a cv_bridge."""
    if importlib.util.find_spec('sensor_msgs') is None:
        return {'skipped': 'no sensor_msgs: source ROS 2, or use make bench'}
    from sensor_msgs.msg import Image

    bridge = find_bridge()
    ways = {BUILTIN: MessageConverter(Bridge('not asked for'))}
    if bridge.convert is not None:
        ways[CV_BRIDGE] = MessageConverter(bridge)
    width, height = settings.effort.scene
    generator = np.random.default_rng(0)
    found = {}
    for encoding in ENCODINGS:
        progress(f'conversion: {encoding}')
        step = width * PIXEL_BYTES[encoding]
        clock = Stopwatch()
        for index in range(settings.effort.frames + WARM_UP):
            clock.counting = index >= WARM_UP
            data = byte_array(generator.integers(0, 256, height * step, np.uint8))
            message = Image(encoding=encoding, height=height, width=width, step=step, data=data)
            for way in list(ways)[:: 1 if index % 2 else -1]:
                clock(way, ways[way].to_rgb, message)
        builtin = clock.wall[BUILTIN]
        found[encoding] = {BUILTIN: spread(builtin)}
        if CV_BRIDGE in ways:
            through = clock.wall[CV_BRIDGE]
            found[encoding] |= {
                CV_BRIDGE: spread(through),
                'more': spread(ms - base for ms, base in zip(through, builtin)),
                'ratio': ratios(through, builtin),
            }
    return {'bridge': bridge.name, 'size': f'{width}x{height}', 'encodings': found}


def tables(result: dict[str, Any]) -> str:
    """One row per encoding."""
    if 'skipped' in result:
        return f'Left out: {result["skipped"]}.'
    encodings = result['encodings']
    ways = [name for name in (BUILTIN, CV_BRIDGE) if name in next(iter(encodings.values()))]
    both = CV_BRIDGE in ways
    columns = [*ways, *(('more', 'ratio') if both else ())]
    header = [
        'encoding',
        *(f'{way} (ms)' for way in ways),
        *(('cv_bridge takes more (ms)', 'ratio') if both else ()),
    ]
    return f'{result["size"]}, median (p10 to p90); {result["bridge"]}.\n\n' + table(
        header,
        (
            [name, *(with_spread(cells[column]) for column in columns)]
            for name, cells in encodings.items()
        ),
    )
