"""The stub server, found by the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from proxy_stub import front, stub

__all__ = ["front", "stub"]
