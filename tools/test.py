"""Run pytest on the installed package: python tools/test.py [ARG...].

Not `python -m pytest`, which would put the source folder, a package of the same name without
messages, before the installed one; and not `pytest`, which may be another Python's.
"""

import os
import random
import sys
from pathlib import Path

import pytest

import adaptok_ros

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run them, far from robots and other tests on the network or machine."""
    found = Path(adaptok_ros.__file__).parent
    version = sys.version.split()[0]
    if found == ROOT / 'adaptok_ros':
        sys.exit('error: the tests would import the source folder: unset PYTHONPATH')
    print(f'== testing {os.path.relpath(found, ROOT)} with Python {version}', flush=True)
    if os.environ.get('ROS_DISTRO') == 'humble':
        os.environ['ROS_LOCALHOST_ONLY'] = '1'
    else:
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    os.chdir(ROOT)
    return int(pytest.main(['test', *sys.argv[1:]]))


if __name__ == '__main__':  # processes that tests spawn import this file
    sys.exit(main())
