"""Run pytest on the package: python tools/test.py [--sources] [ARG...].

On the installed package, or with ``--sources`` on the source folder itself, together with the
messages that were built. Not by `python -m pytest`, which would put the source folder, a package
of the same name without messages, before the installed one; and not by `pytest`, which may be
another Python's.
"""

import importlib
import importlib.util
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'adaptok_ros'
GENERATED = ('msg', '*.so')
"""What the build adds to the package: messages, and what converts them."""


def installed_package() -> Path:
    """Folder of the package that Python would import."""
    spec = importlib.util.find_spec('adaptok_ros')
    if spec is None or spec.origin is None:
        sys.exit('error: adaptok_ros is not installed: make build, or make test-core')
    found = Path(spec.origin).parent
    if found == PACKAGE:
        sys.exit('error: the tests would import the source folder: unset PYTHONPATH')
    return found


def link_sources(folder: Path) -> None:
    """Make a package of links in ``folder`` and let it be imported, here and in processes.

    Python runs the source files through the links, so what is tested is never a copy.
    """
    installed = installed_package()
    package = folder / 'adaptok_ros'
    package.mkdir()
    for entry in PACKAGE.iterdir():
        (package / entry.name).symlink_to(entry)
    for pattern in GENERATED:
        for entry in installed.glob(pattern):
            (package / entry.name).symlink_to(entry)
    (package / 'interfaces').symlink_to(ROOT / 'msg')
    sys.path.insert(0, str(folder))
    paths = [str(folder), os.environ.get('PYTHONPATH', '')]
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    importlib.invalidate_caches()


def run_pytest(tested: Path, arguments: list[str]) -> int:
    """Run the tests, far from robots and other tests on the network or machine."""
    version = sys.version.split()[0]
    print(f'== testing {os.path.relpath(tested, ROOT)} with Python {version}', flush=True)
    if os.environ.get('ROS_DISTRO') == 'humble':
        os.environ['ROS_LOCALHOST_ONLY'] = '1'
    else:
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    os.chdir(ROOT)
    return int(pytest.main(arguments))


def main() -> int:
    """Run what the command line names, or all tests."""
    arguments = sys.argv[1:]
    if arguments[:1] != ['--sources']:
        return run_pytest(installed_package(), arguments)
    with tempfile.TemporaryDirectory(prefix='adaptok-sources-') as folder:
        link_sources(Path(folder))
        return run_pytest(PACKAGE, arguments[1:])


if __name__ == '__main__':  # processes that tests spawn import this file
    sys.exit(main())
