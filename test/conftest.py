"""Lets the tests import what they share, in every import mode; settings of hypothesis."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# On a machine busy with other work an example takes as long as it takes.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')
