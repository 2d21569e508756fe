"""Quality of service between publishers and bags."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)

from adaptok_ros.messages import NANOSECONDS

QUEUE = 100
"""Messages that wait at most for a slow subscriber, unless the bag says more."""
LONGEST_QUEUE = 10_000
"""Whatever the bag says."""


def to_bag(profile: QoSProfile) -> Qos:
    """What a publisher offers, as bags have it."""
    return Qos(
        history=QosHistory(int(profile.history)),
        depth=profile.depth,
        reliability=QosReliability(int(profile.reliability)),
        durability=QosDurability(int(profile.durability)),
        deadline=_time(profile.deadline),
        lifespan=_time(profile.lifespan),
        liveliness=QosLiveliness(int(profile.liveliness)),
        liveliness_lease_duration=_time(profile.liveliness_lease_duration),
        avoid_ros_namespace_conventions=profile.avoid_ros_namespace_conventions,
    )


def to_offer(profiles: Sequence[Qos]) -> QoSProfile:
    """What to offer in the place of the publishers that were recorded.

    Reliable unless all were best effort, and latched if one was: then a late subscriber gets as
    many messages as all of them would have kept.
    """
    best_effort = profiles and all(p.reliability is QosReliability.BEST_EFFORT for p in profiles)
    latched = [p for p in profiles if p.durability is QosDurability.TRANSIENT_LOCAL]
    depth = (
        sum(max(1, p.depth) for p in latched)
        if latched
        else max(QUEUE, *(p.depth for p in profiles), 0)
    )
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=min(depth, LONGEST_QUEUE),
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _time(duration: Duration) -> QosTime:
    return QosTime(*divmod(duration.nanoseconds, NANOSECONDS))
