"""The examples of the other tests, for tests that follow remedies."""

import sys
from pathlib import Path

sys.path += [str(p) for p in Path(__file__).parents[1].iterdir() if p.is_dir()]
