"""Lets the tests import what they share, in every import mode and version of pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
