"""Lets the tests import what they share with each other and with the benchmarks, in every import
mode; settings of hypothesis.
"""

import sys
from pathlib import Path

from hypothesis import settings

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent / 'bench')]

# On a machine busy with other work an example takes as long as it takes.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')
