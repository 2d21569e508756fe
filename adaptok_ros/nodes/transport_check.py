"""What became of shared memory in a process, and why images are lost: a check, not a guess."""

from __future__ import annotations

import os

from rclpy.utilities import get_rmw_implementation_identifier

from adaptok_ros.nodes.reports import TransportReport
from adaptok_ros.nodes.shared_memory import Room, Segments, abandoned, look, segments
from adaptok_ros.nodes.transport import (
    IMAGES_IN_SEGMENT,
    PROFILE_VARIABLES,
    SEGMENTS,
    SENDING_SHARE,
    USUAL_SEGMENT,
    choose_segment,
    profile_path,
    profile_variable,
)

DATAGRAM = 65_000
"""Bytes that UDP takes in one piece."""

OVERHEAD = 1 << 20
"""Bytes that a process takes beside its segment: ports, bookkeeping, a segment for discovery."""

MANY = 100
"""Processes for which there need be no worry about room."""

CURES = 'see Troubleshooting in the README'


def uses_fast_dds() -> bool:
    """Whether any of this concerns the middleware in use."""
    return 'fastrtps' in get_rmw_implementation_identifier()


def report_transport() -> TransportReport:
    """What shared memory looks like from this process now."""
    mapped, room = segments(), look()
    left = str(room)
    fitting = room.free // (mapped.own + OVERHEAD)
    if mapped.own and fitting < MANY:
        left += f', enough for {fitting} more processes like this one'
    return TransportReport(_megabytes(mapped.own), _megabytes(*mapped.others), left)


def check_start() -> str:
    """What is wrong with shared memory once the nodes of this process are made; '' if nothing."""
    if not uses_fast_dds() or segments().own:
        return ''
    return explain_no_segment(look(), abandoned())


def explain_sent(image_bytes: int) -> str:
    """Why images of this size that this process sends may be lost, and the cure; '' if not so."""
    if not uses_fast_dds():
        return ''
    return explain_small_segment(image_bytes, segments().own, 'of this node', look(), abandoned())


def explain_received(image_bytes: int) -> str:
    """Why images of this size do not reach this process, and the cure; '' if it is unknown.

    :param image_bytes: 0 = not known, which explains only what befalls all that are large
    """
    if not uses_fast_dds():
        return ''
    return explain_loss(image_bytes, segments(), look(), abandoned())


def explain_loss(image_bytes: int, mapped: Segments, room: Room, left: int) -> str:
    """See :func:`explain_received`.

    :param left: bytes of segments whose processes have ended
    """
    if not mapped.own:
        return explain_no_segment(room, left)
    if not mapped.others:
        return (
            'nobody sends to this process by shared memory, and large images travel as UDP '
            'fragments: the camera is on another machine or in another container (start both with '
            f'--ipc=host), or found no room in /dev/shm ({room}); {CURES}'
        )
    # Which of them is the camera's is unknown. It is too small for sure if the largest is.
    largest, smallest = mapped.others[-1], mapped.others[0]
    segment = largest if image_bytes > largest else smallest
    where = 'of a process from which this one receives'
    return explain_small_segment(image_bytes, segment, where, room, left)


def explain_small_segment(
    image_bytes: int, segment: int, where: str, room: Room, left: int
) -> str:
    """Why a segment is too small for images, and the cure; '' if it is not.

    :param where: whose segment it is
    """
    if image_bytes <= segment or image_bytes <= DATAGRAM:
        return ''
    said = (
        f'images of {image_bytes / 1e6:.2f} MB exceed the shared-memory segment {where} '
        f'({segment / 1e6:.2f} MB): most of them are lost'
    )
    if IMAGES_IN_SEGMENT * image_bytes > SEGMENTS[-1]:
        return f'{said}, with any profile of this package: send them smaller, or compressed'
    fitting = choose_segment(room.free, image_bytes)
    if fitting >= IMAGES_IN_SEGMENT * image_bytes:
        profile = f'{profile_variable()}=…/config/{profile_path(fitting).name}'
        return f'{said}. Start the camera with {profile} of this package; {CURES}'
    return f'{said}. {_more_room(image_bytes, room, left)}'


def explain_no_segment(room: Room, left: int) -> str:
    """Why Fast DDS has no segment in this process, and the cure."""
    said = (
        'Fast DDS has no shared memory in this process, and images above 65 kB travel as UDP '
        'fragments, most of which are lost'
    )
    if room.is_writable and room.free > SEGMENTS[0]:
        chosen = next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), '')
        if chosen:
            return f'{said}: /dev/shm has room ({room}), but {chosen} uses none of it; {CURES}'
    return f'{said}. {_more_room(0, room, left)}'


def _more_room(image_bytes: int, room: Room, left: int) -> str:
    """What /dev/shm is, and how to get one that suffices."""
    wanted = max(IMAGES_IN_SEGMENT * image_bytes, USUAL_SEGMENT)
    enough = next(s for s in SEGMENTS if s >= wanted) * SENDING_SHARE * 10 // 9
    ended = ''
    if left > room.size // 10:
        ended = (
            f', and {left / 1e6:.0f} MB of it belong to processes that have ended (fastdds shm '
            'clean frees them)'
        )
    # The next larger number of MiB, for the profile has to fit.
    return (
        f'/dev/shm is {room}{ended}: start the container with --shm-size={(enough >> 20) + 1}m or '
        '--ipc=host, ask for reliable images (qos_overrides), or send compressed ones '
        f'(transport:=compressed); {CURES}'
    )


def _megabytes(*sizes: int) -> str:
    return ', '.join(f'{size / 1e6:.2f} MB' for size in sizes if size) or 'none'
