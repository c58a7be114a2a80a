"""What the tests here share lies beside them, in modules of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no mutant of a name is to be asked for anywhere
sys.path.insert(0, str(Path(__file__).parent))
