"""Where things lie if nobody says: LABKIT_HOME, LABKIT_STORE."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of this user's things: LABKIT_HOME, or `.labkit` in the home folder."""
    return Path(os.environ.get("LABKIT_HOME") or Path.home() / ".labkit")


def default_store() -> str:
    """LABKIT_STORE, or the folder `registry` in `home()`."""
    return os.environ.get("LABKIT_STORE") or str(home() / "registry")


def default_cache() -> Path:
    """The folder `models` in `home()`."""
    return home() / "models"
