"""Pictures of a demo: what the camera saw, what was sent, and what the policy got."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

from adaptok_ros.arrays import Image
from adaptok_ros.cli.demo_record import Record
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet, unpack_mask
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.overlay import draw_kept, draw_label
from adaptok_ros.tokenizers.tokenizer import Tokenizer

SHEET_COLUMNS = 5
ANIMATION_SECONDS = 10.0
ANIMATION_WIDTH = 320
"""Pixels of each of the three pictures, at most."""
WEBP_QUALITY = 60


@dataclasses.dataclass(frozen=True)
class Panel:
    """One frame three times: from the camera, what was sent of it, and as decoded.

    :ivar seconds: since the first packet
    """

    seconds: float
    pictures: tuple[Image, ...]


def draw_panels(packets: Sequence[Packet], images: Mapping[int, Image]) -> list[Panel]:
    """Every frame of which there is an image, but for the first, which is all new."""
    stream, tokenizer = LatentStream(DEFAULT_TOKENIZER), Tokenizer(DEFAULT_TOKENIZER)
    panels = []
    for packet in packets:
        stream.push(packet)
        image = images.get(packet.stamp)
        if image is None or packet is packets[0]:
            continue
        size = (packet.image_height, packet.image_width)
        keep = unpack_mask(packet).reshape(packet.grid_height, packet.grid_width)
        sent = draw_kept(image, keep, tokenizer.description.stride, *size)
        received = tokenizer.decode(stream.latents().values, *size)
        height, width = image.shape[:2]
        pictures = tuple(
            np.asarray(cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
            for each in (image, sent, received)
        )
        share = f'sent: {100 * packet.kept / packet.positions:.1f} %'
        for picture, text in zip(pictures, ('camera', share, 'received')):
            draw_label(picture, text)
        seconds = (packet.stamp - packets[0].stamp) * 1e-9
        panels.append(Panel(seconds, pictures))
    stream.close()
    tokenizer.close()
    return panels


def write_sheet(panels: Sequence[Panel], path: Path) -> None:
    """Some frames side by side, with the time of each."""
    columns = []
    picks = np.linspace(0, len(panels) - 1, min(SHEET_COLUMNS, len(panels))).astype(int)
    for panel in (panels[index] for index in picks):
        column = np.vstack(panel.pictures)
        draw_label(column[column.shape[0] - 30 :], f'{panel.seconds:.1f} s')
        columns.append(column)
    cv2.imwrite(str(path), cv2.cvtColor(np.hstack(columns), cv2.COLOR_RGB2BGR))


def write_animation(panels: Sequence[Panel], path: Path) -> bool:
    """The first seconds as an animated WebP, in real time: camera, sent, received.

    :returns: whether it is written, for no panel may lie in them
    """
    shown = [panel for panel in panels if panel.seconds <= ANIMATION_SECONDS]
    if not shown:
        return False
    times = [panel.seconds for panel in shown]
    durations = [max(20, round(1e3 * step)) for step in np.diff([*times, times[-1] + 1.0])]
    first, *rest = (PillowImage.fromarray(_row(panel)) for panel in shown)
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=durations,
        loop=0,
        quality=WEBP_QUALITY,
        method=4,
    )
    return True


def _row(panel: Panel) -> Image:
    row = np.hstack(panel.pictures)
    scale = 3 * ANIMATION_WIDTH / row.shape[1]
    if scale >= 1.0:
        return row
    size = (3 * ANIMATION_WIDTH, round(row.shape[0] * scale))
    return np.asarray(cv2.resize(row, size, interpolation=cv2.INTER_AREA), np.uint8)


def write_plot(record: Record, path: Path) -> None:
    """Share sent and latency over time."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5))
    start = record.stamps[0] * 1e-9
    upper.plot(1e-9 * (np.array(record.stamps) - record.stamps[0]), record.kept, linewidth=0.9)
    upper.set_ylabel('positions sent (%)')
    upper.set_ylim(bottom=0)
    lower.plot(np.array(record.latency_times) - start, record.latency, linewidth=0.9)
    lower.set_ylabel('camera to policy (ms)')
    lower.set_xlabel('time (s)')
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
