"""The jobs of the ranks lie beside the tests, where the ranks find them too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
