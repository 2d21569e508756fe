"""The example policies, with which everything here is measured."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / 'examples' / 'policy'))

from networks import EYES as EYES
from networks import WEIGHTS as WEIGHTS
from networks import GridEyes as GridEyes
from networks import Policy as Policy
from networks import PolicyDescription as PolicyDescription
from networks import load_policy as load_policy
from train import Data as Data
from train import Recording as Recording
from train import fit as fit
