"""Makes ``tests/delta/support`` importable: tensors to draw, and peers that hand messages to each other."""

from __future__ import annotations

import sys
from pathlib import Path

SUPPORT = str(Path(__file__).parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)
