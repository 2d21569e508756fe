"""Send a camera's tokens over Zenoh, with no ROS anywhere: needs adaptok_ros[zenoh].

On the robot, which waits for whoever connects, and on the policy's side (docs/lerobot.md)::

    python3 examples/zenoh_sender.py 0 --listen tcp/0.0.0.0:7447
    lerobot-record --robot.cameras='{front: {type: adaptok, topic: /front/tokenizer/tokens,
        endpoint: tcp/192.168.1.5:7447}}' …
"""

import argparse
import contextlib
import sys
import time

import cv2
import numpy as np

from adaptok_ros import AdaptokError, SelectionConfig, Sender, Tokenizer
from adaptok_ros.zenoh import PacketPublisher, open_session, plain_key


def main() -> int:
    """Send until a video ends; a camera that ends is an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='number of a camera, or a video, sent as fast as it plays')
    parser.add_argument('--topic', default='/front/tokenizer/tokens', help='(%(default)s)')
    parser.add_argument('--listen', default='', help='endpoint to be reached at')
    parser.add_argument('--connect', default='', help='endpoint of a router or receiver')
    parser.add_argument('--tau', type=float, default=0.05, help='(%(default)s)')
    arguments = parser.parse_args()
    is_camera = arguments.source.isdecimal()
    with contextlib.ExitStack() as stack:
        capture = cv2.VideoCapture(int(arguments.source) if is_camera else arguments.source)
        stack.callback(capture.release)
        if not capture.isOpened():
            parser.error(
                f'source is {arguments.source!r}; allowed: number of a camera, or a video'
            )
        tokenizer = stack.enter_context(contextlib.closing(Tokenizer('adaptok-tiny')))
        # Nobody asks for keyframes here: whoever joins has everything after 60 frames.
        sender = Sender(tokenizer, SelectionConfig(tau=arguments.tau, refresh_period=60))
        session = open_session(arguments.connect, arguments.listen)
        stack.callback(session.close)
        publisher = PacketPublisher(session, plain_key(arguments.topic))
        stack.callback(publisher.close)
        sent = send_all(capture, sender, publisher, is_camera)
    if is_camera:
        print(f'error: camera {arguments.source} ended after {sent} images', file=sys.stderr)
    return int(is_camera)


def send_all(
    capture: cv2.VideoCapture, sender: Sender, publisher: PacketPublisher, is_camera: bool
) -> int:
    """Send until there is no further image.

    :returns: number of images
    """
    number = 0
    while True:
        began = time.monotonic()
        found, image = capture.read()
        if not found:
            return number
        rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        packet = sender.send(rgb, time.time_ns(), 'camera')
        if packet is not None:
            publisher.send(packet)
        if not is_camera:
            period = 1 / (capture.get(cv2.CAP_PROP_FPS) or 30.0)
            time.sleep(max(0.0, began + period - time.monotonic()))
        number += 1


if __name__ == '__main__':
    try:
        sys.exit(main())
    except AdaptokError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        pass
