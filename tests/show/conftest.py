"""The fixtures of every browser test in this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from jupyter_browser import jupyter, lab

__all__ = ["jupyter", "lab"]
