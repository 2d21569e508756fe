"""Where the time of a frame goes: stages in one process, then the nodes as processes.

The content is the rendered scene with sensor noise. Beside each stage stands its floor: the
bytes and operations that it cannot do without, at the ceilings of the machine. The nodes get
prepared images from a process that is the cameras; what that costs is listed apart.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ros
from chain import Chain, save_images
from clips import scene_images
from measuring import (
    WARM_UP,
    Effort,
    Settings,
    Stopwatch,
    encoder_flops,
    lit_flops,
    progress,
    spread,
)
from tables import number, table, with_spread

from adaptok_ros.messages import byte_array, fill_latents, fill_tokens, packet_from_message
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.packet import Packet, Payload
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.images import ImageConverter
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

RATE = 30.0
SEND = 'encode, select and pack'
BESIDE = ('message to array', 'select and pack', 'fill and publish tokens')
"""Stages of the tokenizer other than its engine."""
APART, GATED, TOGETHER = '', ', gated', ', one process'
"""Every node a process of its own; the same, computing only what changes; or all tokenizer nodes
in one process."""
PREPARED = 30
"""Images that the cameras repeat, back and forth."""
PROCESSES = (
    # name in tables, run, kind of process, what it puts out
    ('tokenizer, without LIT', 'tokenizer', 'tokenizer_node', 'tokens'),
    ('tokenizer', 'chain', 'tokenizer_node', 'tokens'),
    ('LIT', 'chain', 'lit_node', 'latents'),
    ('cameras', 'tokenizer', 'camera', ''),
    ('listener', 'tokenizer', 'listener', ''),
)


class Wire:
    """Publishers of a node of this process, with a subscriber in another one."""

    def __init__(self, node: Any) -> None:
        from rclpy.serialization import deserialize_message, serialize_message

        from adaptok_ros.msg import DenseLatents, SparseTokens
        from adaptok_ros.nodes import qos

        self._serialize, self._deserialize = serialize_message, deserialize_message
        self._tokens_type, self._latents_type = SparseTokens, DenseLatents
        self._tokens = node.create_publisher(SparseTokens, 'echo/tokens', qos.tokens(0))
        self._latents = node.create_publisher(DenseLatents, 'echo/latents', qos.image_output())

    def publish_tokens(self, packet: Packet) -> Any:
        """As the tokenizer node does; the message."""
        message = self._tokens_type()
        fill_tokens(message, packet)
        self._tokens.publish(message)
        return message

    def publish_latents(self, latents: Any) -> Any:
        """As the LIT node does; the message."""
        message = self._latents_type()
        fill_latents(message, latents, Payload.FLOAT32)
        self._latents.publish(message)
        return message

    def serialized(self, message: Any) -> bytes:
        """What goes over the wire."""
        return bytes(self._serialize(message))

    def received(self, data: bytes, message: Any) -> Any:
        """What rclpy makes of it in the receiving process."""
        return self._deserialize(data, type(message))


@contextlib.contextmanager
def wire(folder: Path) -> Iterator[Wire]:
    """Over real DDS."""
    with ros.Processes(folder) as processes, ros.node('bench_stages') as node:
        processes.peer('echo').ask()
        yield Wire(node)


def measure_stages(
    width: int, height: int, settings: Settings, over: Wire | None
) -> dict[str, Any]:
    """Milliseconds and floor of every stage at one size."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    sender = Sender(tokenizer, SelectionConfig())
    lit, hold = LatentStream(DEFAULT_TOKENIZER), LatentStream(mode='hold')
    converter = ImageConverter()
    clock = Stopwatch()
    kept, sizes = [], []
    images = scene_images(width, height, settings.effort.frames + WARM_UP)
    for index, pixels in enumerate(images):
        clock.counting = index >= WARM_UP
        data = byte_array(pixels)
        image = clock(
            'message to array', converter.to_rgb, 'rgb8', height, width, 3 * width, False, data
        )
        packet = clock(SEND, sender.send, image, index, 'camera')
        clock.divide(SEND, 'encode', sender.timings.encode, 'select and pack')
        if over is not None:
            message = clock('fill and publish tokens', over.publish_tokens, packet)
            sent = over.serialized(message)
            message = clock('receive tokens', over.received, sent, message)
            packet = packet_from_message(message)
        clock('check, unpack and hold', hold.push, packet)
        clock("the same and LIT's window", lit.push, packet)
        dense = clock('LIT', lit.latents)
        if over is not None:
            message = clock('fill and publish latents', over.publish_latents, dense)
            sent = over.serialized(message)
            clock('receive latents', over.received, sent, message)
        if clock.counting:
            kept.append(packet.kept / packet.positions)
            sizes.append(packet.nbytes)
    positions = packet.positions
    grid, share, nbytes = dense.values.nbytes, float(np.mean(kept)), float(np.mean(sizes))
    folder = find_model(DEFAULT_TOKENIZER)
    # Bytes that have to be read or written at the least, and operations.
    needs = {
        'message to array': (0.0, 0.0),
        'encode': (pixels.nbytes + grid, encoder_flops(folder, positions)),
        'select and pack': (2 * grid + 1.5 * share * grid + positions / 8, 0.0),
        'fill and publish tokens': (2 * nbytes, 0.0),
        'receive tokens': (2 * nbytes, 0.0),
        'check, unpack and hold': (nbytes + share * grid, 0.0),
        "the same and LIT's window": (nbytes + (1 + share) * grid, 0.0),
        'LIT': (5 * grid, lit_flops(folder, packet.grid_height, packet.grid_width)),
        'fill and publish latents': (2 * grid, 0.0),
        'receive latents': (2 * grid, 0.0),
    }
    tokenizer.close()
    lit.close()
    return {
        'stages': {
            stage: {
                'ms': spread(values),
                'floor': {
                    'bytes': needs[stage][0],
                    'flops': needs[stage][1],
                    'ms': settings.ceilings.floor_ms(*needs[stage]),
                },
            }
            for stage, values in clock.wall.items()
            if stage != SEND
        },
        'kept_share': share,
        'bytes': {'raw': pixels.nbytes, 'tokens': nbytes, 'latents': grid},
    }


def measure_nodes(
    width: int, height: int, cameras: int, arrangement: str, effort: Effort, folder: Path
) -> dict[str, Any]:
    """Latencies, losses, highest rates and costs of the nodes of some cameras.

    :param arrangement: :data:`APART`, :data:`GATED`, or :data:`TOGETHER`, then without LIT
    """
    shared = arrangement == TOGETHER
    gated = arrangement == GATED
    images = save_images(folder, scene_images(width, height, PREPARED))
    namespaces = [f'/bench{number}' for number in range(cameras)]
    try_seconds = effort.seconds / 2
    with ros.Processes(folder) as processes:
        chain = Chain(processes, images, 'raw', namespaces)
        chain.receiver = processes.peer('listener', *namespaces)
        for group in [namespaces] if shared else [[namespace] for namespace in namespaces]:
            processes.node('tokenizer_node', group, *(('-p', 'gating:=noise') if gated else ()))
        chain.wait_for('tokens')
        run = chain.run(RATE, effort.seconds, ('tokens',))
        rate = chain.highest_rate('tokens', run, try_seconds, effort.tries)
        result: dict[str, Any] = {'tokenizer': run, 'highest_rate': {'tokens': rate}}
        if not shared:
            for namespace in namespaces:
                processes.node(
                    'lit_node',
                    [namespace],
                    '-r',
                    'tokens:=tokenizer/tokens',
                    *(('-p', 'lit_scope:=changed') if gated else ()),
                )
            chain.wait_for('latents')
            run = chain.run(RATE, effort.seconds, ('tokens', 'latents'))
            result['chain'] = run
            if cameras == 1:
                rate = chain.highest_rate('latents', run, try_seconds, effort.tries)
                result['highest_rate']['latents'] = rate
    images.unlink()
    return result


def measure(settings: Settings) -> dict[str, Any]:
    """All sizes, and all numbers of cameras where there is ROS."""
    effort = settings.effort
    result: dict[str, Any] = {'sizes': {}, 'rate': RATE}
    skipped = ros.missing()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        over = None if skipped else stack.enter_context(wire(folder))
        for width, height in effort.sizes:
            progress(f'stages at {width}x{height}')
            result['sizes'][f'{width}x{height}'] = measure_stages(width, height, settings, over)
        stack.close()
        if skipped:
            return {**result, 'skipped': skipped}
        for width, height in effort.sizes:
            found = result['sizes'][f'{width}x{height}']
            found['nodes'] = {}
            for cameras in effort.cameras:
                for arrangement in (APART, GATED if cameras == 1 else TOGETHER):
                    name = f'{cameras}{arrangement}'
                    progress(f'nodes at {width}x{height}, cameras: {name}')
                    found['nodes'][name] = measure_nodes(
                        width, height, cameras, arrangement, effort, folder
                    )
            found['floor_ms'] = _age_floors(found, settings)
    return result


def _age_floors(found: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Least latency of tokens and latents: the floors of the stages, copies and hops between."""
    stages, loopback = found['stages'], settings.ceilings.loopback_ms or 0.0
    # An image is copied into shared memory and out of it, each time read and written.
    image = settings.ceilings.floor_ms(4 * found['bytes']['raw'])
    sending = ('encode', 'select and pack', 'fill and publish tokens', 'receive tokens')
    receiving = ("the same and LIT's window", 'LIT', 'fill and publish latents', 'receive latents')
    tokens = 2 * loopback + image + sum(stages[stage]['floor']['ms'] for stage in sending)
    latents = tokens + loopback + sum(stages[stage]['floor']['ms'] for stage in receiving)
    return {'tokens': tokens, 'latents': latents}


def tables(result: dict[str, Any]) -> str:
    """Stages by size; then the nodes by size and number of cameras."""
    sizes = result['sizes']
    names = list(next(iter(sizes.values()))['stages'])
    text = 'Milliseconds, median (p10 to p90), and the floor:\n\n' + table(
        ['stage', *(f'{size} | floor' for size in sizes)],
        (
            [
                stage,
                *(
                    f'{with_spread(found["stages"][stage]["ms"])} | '
                    f'{number(found["stages"][stage]["floor"]["ms"])}'
                    for found in sizes.values()
                ),
            ]
            for stage in names
        ),
    )
    # A header cell that holds two columns needs the line below to have them as well.
    text = text.replace(
        '| ' + ' | '.join(['---'] * (1 + len(sizes))) + ' |',
        '| ' + ' | '.join(['---'] * (1 + 2 * len(sizes))) + ' |',
    )
    text += '\n\n' + _notes(sizes)
    if 'skipped' in result:
        return text + f'\n\nNodes: left out, {result["skipped"]}.'
    rows, costs = [], []
    for size, found in sizes.items():
        for cameras, nodes in found['nodes'].items():
            rows.append([size, cameras, *_ages(nodes, found['floor_ms']), *_rates(nodes)])
            costs += _costs(size, cameras, nodes)
    return (
        text
        + '\n\n'
        + '\n\n'.join(
            [
                'Every node is a process of its own, or all tokenizer nodes share one. Gated: '
                '`gating: noise` and `lit_scope: changed`. Every camera sends '
                f'{result["rate"]:.0f} images/s. The columns give the latency at a listener in '
                'another process, p50 / p95 / p99 ms. Lost: images published minus messages that '
                'arrived. Highest rate: the rate held, and the next one tried, which lost more '
                'than 1 %.',
                table(
                    [
                        'size',
                        'cameras',
                        'tokens, without LIT',
                        'lost',
                        'tokens, with LIT',
                        'lost',
                        'floor',
                        'latents',
                        'lost',
                        'floor',
                        'highest rate, tokens',
                        'latents',
                    ],
                    rows,
                ),
                'What the processes use while images arrive: cores (1 = one core busy all the '
                'time), CPU ms per message published, memory in MB, resident (RSS) and with '
                'shared pages divided (PSS). Where there are several processes of a kind, the row '
                'is their sum.',
                table(
                    ['size', 'cameras', 'process', 'cores', 'CPU ms per message', 'RSS', 'PSS'],
                    costs,
                ),
            ]
        )
    )


def _notes(sizes: dict[str, Any]) -> str:
    parts = []
    for size, found in sizes.items():
        stages = found['stages']
        encode = stages['encode']['ms']['median']
        select = stages['select and pack']['ms']['median']
        beside = sum(stages[name]['ms']['median'] for name in BESIDE if name in stages)
        parts.append(
            f'{size}: {100 * found["kept_share"]:.1f} % of positions sent, '
            f'{number(found["bytes"]["tokens"] / 1e3)} kB of tokens per image '
            f'(raw: {number(found["bytes"]["raw"] / 1e3)} kB); select and pack takes '
            f'{100 * select / encode:.1f} % of encode, everything in the tokenizer except encode '
            f'{number(beside)} ms; encode runs at '
            f'{stages["encode"]["floor"]["flops"] / encode / 1e6:.0f} GFLOP/s, LIT at '
            f'{stages["LIT"]["floor"]["flops"] / stages["LIT"]["ms"]["median"] / 1e6:.0f}.'
        )
    return '\n\n'.join(parts)


def _ages(nodes: dict[str, Any], floors: dict[str, float]) -> list[str]:
    def cells(run: str, kind: str) -> list[str]:
        if run not in nodes:
            return ['', '']
        found = nodes[run][kind]
        age = found['age_ms']
        ages = ' / '.join(number(age[name]) for name in ('median', 'p95', 'p99'))
        return [ages, f'{found["lost"]} of {found["lost"] + found["arrived"]}']

    return [
        *cells('tokenizer', 'tokens'),
        *cells('chain', 'tokens'),
        number(floors['tokens']),
        *cells('chain', 'latents'),
        number(floors['latents']),
    ]


def _rates(nodes: dict[str, Any]) -> list[str]:
    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return ''
        if found['lost'] is None:
            return f'at least {number(found["held"])}'
        return f'{number(found["held"])} ({number(found["lost"])} loses)'

    return [cell(nodes['highest_rate'].get(kind)) for kind in ('tokens', 'latents')]


def _costs(size: str, cameras: str, nodes: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, run, kind, output in PROCESSES:
        if run not in nodes:
            continue
        found, seconds = nodes[run]['processes'][kind], nodes[run]['seconds']
        done = nodes[run][output]['arrived'] if output else 0
        rows.append(
            [
                size,
                cameras,
                name,
                number(found['cpu_seconds'] / seconds),
                number(found['cpu_seconds'] * 1e3 / done) if done else '',
                number(found['rss_mb']),
                number(found['pss_mb']),
            ]
        )
    return rows
