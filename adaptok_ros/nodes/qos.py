"""Quality of service of every topic; all of it can be overridden by ``qos_overrides``."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from adaptok_ros.messages import token_queue

MOST_VIDEO_PACKETS = 60
"""Packets of video that wait at most; they build on each other."""
MOST_PENDING = 300
"""Packets that wait at most while LIT is busy; those beyond are lost, which makes a gap."""


def newest_image() -> QoSProfile:
    """Subscription to a camera: only the newest counts, and any publisher matches."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def camera(transport: str) -> QoSProfile:
    """Subscription to a camera through a transport.

    Video must be whole. Compressed images may be video; most of them are not, and come from
    publishers of either kind.
    """
    if transport in ('raw', 'compressedDepth'):
        return newest_image()
    is_video = transport != 'compressed'
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=MOST_VIDEO_PACKETS,
        reliability=ReliabilityPolicy.RELIABLE if is_video else ReliabilityPolicy.BEST_EFFORT,
    )


def image_output() -> QoSProfile:
    """Published images: reliable, so that viewers of either kind match."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
    )


def tokens(keyframe_interval: int) -> QoSProfile:
    """Tokens build on each other: reliable, with room for two keyframe intervals."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=token_queue(keyframe_interval),
        reliability=ReliabilityPolicy.RELIABLE,
    )


def latched() -> QoSProfile:
    """The last message reaches whoever subscribes later."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def overridable() -> QoSOverridingOptions:
    """Parameters ``qos_overrides.<topic>.<publisher|subscription>.<policy>``."""
    return QoSOverridingOptions(
        (
            QoSPolicyKind.HISTORY,
            QoSPolicyKind.DEPTH,
            QoSPolicyKind.RELIABILITY,
            QoSPolicyKind.DURABILITY,
        )
    )
