"""``python -m adaptok_ros`` is the ``adaptok`` command."""

import sys

from adaptok_ros.cli import main

sys.exit(main())
