"""A policy that acts on dense latents: subscribe, trust the status, look at the ages, stop.

Run it with::

    python3 examples/policy_node.py --ros-args -r latents:=/front/lit/latents
"""

import time

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # Humble has both here
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from adaptok_ros import AdaptokError, Status, latents_from_message
from adaptok_ros.msg import DenseLatents

OLD = 30
"""Frames after which this policy no longer relies on a position that was not renewed."""
TIMEOUT = 0.5
"""Seconds without latents that may be trusted after which the robot has to stop."""


class Policy(Node):
    """Stands in for a real policy: prints what it would be given."""

    def __init__(self) -> None:
        super().__init__('policy')
        self.trusted_at = time.monotonic()
        self.moving = False
        # Depth 1, best effort: a policy wants the newest latents, not all of them.
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(DenseLatents, 'latents', self.on_latents, qos)
        # Whatever is dead, this timer is not; it also runs while simulated time stands.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TIMEOUT / 5, self.look, clock=steady)

    def on_latents(self, message: DenseLatents) -> None:
        """Turn a message into what a network takes."""
        try:
            latents = latents_from_message(message)
        except AdaptokError as error:  # from another version of the package, or damaged
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        if latents.status is not Status.OK:
            self.stop(f'latents are {latents.status.name}')
            return
        self.trusted_at = time.monotonic()
        self.moving = True
        observation = latents.values  # [H, W, C] float32; torch.from_numpy takes it as it is
        fresh = float(np.mean(latents.age < OLD))
        self.get_logger().info(
            f'observation {observation.shape}, mean {observation.mean():+.3f}, '
            f'{100 * fresh:.0f} % renewed within {OLD} frames',
            throttle_duration_sec=1.0,
        )

    def look(self) -> None:
        """Stop where nothing has come for too long."""
        silent = time.monotonic() - self.trusted_at
        if silent > TIMEOUT:
            self.stop(f'no latents for {silent:.1f} s')

    def stop(self, why: str) -> None:
        """Bring the robot to a stand; a real policy would command it here."""
        if self.moving:
            self.moving = False
            self.get_logger().warning(f'stopping: {why}')


def main() -> None:
    """Run the policy."""
    rclpy.init()
    node = Policy()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else a signal ended it in the middle of something
            raise
    finally:
        node.destroy_node()
        if rclpy.ok():
            rclpy.shutdown()


if __name__ == '__main__':
    main()
