"""A camera for LeRobot that receives tokens over Zenoh or ROS; LeRobot imports it by its name."""

from lerobot_camera_adaptok.camera import AdaptokCamera
from lerobot_camera_adaptok.config import AdaptokCameraConfig

__all__ = ['AdaptokCamera', 'AdaptokCameraConfig']
