"""Lets the tests import what they share with each other and with the benchmarks, and what policy
authors copy, in every import mode; signals as they are in a terminal; settings of hypothesis.
"""

import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

here = Path(__file__).resolve().parent
sys.path[:0] = [
    str(here),
    *(str(here.parent / part) for part in ('bench', 'bench/policies', 'examples/policy')),
]

# What runs in the background, or under nohup, has these ignored, and so would have what it starts.
# What a function here takes has its default in a new process.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# On a machine busy with other work an example takes as long as it takes; and by chance many in a
# row are too large.
settings.register_profile(
    'patient',
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile('patient')
