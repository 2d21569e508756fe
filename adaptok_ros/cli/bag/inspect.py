"""What a recorded token stream holds, and whether it replays whole."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from adaptok_ros.bags.bag import read_packets
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.packet import PacketError
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag inspect``."""
    parser.add_argument('bag', type=Path, help='folder of a rosbag2 bag, mcap or sqlite3')
    parser.add_argument('--topic', default='', help='token topic, where there are several')
    parser.add_argument('--start', type=int, default=0, help='skip this many packets first')


def run(arguments: argparse.Namespace) -> int:
    """Print a summary."""
    stream = LatentStream(mode='hold')
    stamps, kept, sizes, taus = [], [], [], set()
    whole_at: int | None = None
    packets = read_packets(arguments.bag, arguments.topic)
    for index, packet in enumerate(packets):
        if index < arguments.start:
            continue
        try:
            stream.push(packet)
        except PacketError as error:
            print(f'packet {index}: {error}')
            continue
        stamps.append(packet.stamp)
        kept.append(100.0 * packet.kept / packet.positions)
        sizes.append(packet.nbytes / 1e3)
        taus.add(packet.tau)
        if whole_at is None and stream.receiver.status is Status.OK:
            whole_at = index
    if not stamps:
        print(f'no packet that could be applied; skipped: {packets.skipped}')
        return 1
    last = stream.receiver.last
    assert last is not None
    span = (max(stamps) - min(stamps)) / NANOSECONDS
    rate = f'{(len(stamps) - 1) / span:.1f} Hz' if span > 0 else 'one instant'
    counters = stream.receiver.counters
    tau = ' to '.join(f'{tau:.4g}' for tau in sorted({min(taus), max(taus)}))
    print(f'tokenizer   {last.tokenizer}, tau {tau}')
    print(
        f'grid        {last.grid_height} x {last.grid_width} x {last.channels}, images '
        f'{last.image_width}x{last.image_height}'
    )
    print(f'packets     {len(stamps)} over {span:.1f} s, {rate}')
    print(f'kept        mean {np.mean(kept):.2f} %, median {np.median(kept):.2f} %')
    print(f'packet      mean {np.mean(sizes):.2f} kB, largest {np.max(sizes):.2f} kB')
    print(
        f'stream      {counters.gaps} gaps ({counters.lost} packets), {counters.restarts} '
        f'restarts, {counters.late} late, {counters.rejected} rejected'
    )
    if packets.skipped:
        print(f'skipped     {packets.skipped}')
    whole = 'never' if whole_at is None else f'from packet {whole_at} on'
    print(f'whole       {whole}; at the end {stream.receiver.status.name}')
    return 0
