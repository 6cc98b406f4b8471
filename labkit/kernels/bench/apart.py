"""Libraries to compare with that may lie apart: in a folder of their own, which nothing else sees, and in silence.

Where transformers finds torchao it imports it at once, seconds long: `make setup-test` puts it into `peers` beside the
environment's own packages.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType

FOLDER = "peers"


def load(name: str) -> ModuleType:
    """The module of this name, from the environment or from its folder of peers, without its warnings and log lines.

    Raises ImportError if it is in neither.

    >>> load("math").sqrt(4.0)
    2.0
    """
    apart, before = str(Path(sys.prefix) / FOLDER), logging.root.manager.disable
    sys.path.append(apart)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        logging.disable(before)
        sys.path.remove(apart)
