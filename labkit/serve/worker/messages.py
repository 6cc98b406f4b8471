"""What parent and child tell each other: tuples whose first item says what they are.

To the child: ("run", id, prompt, params, priority, salt, produced or None), ("cancel", id), ("report",), ("stop",).
From the child: ("progress", share, what), ("ready", info, limits or None), ("beat", turns),
("step", requests taken, load, deltas, reports), ("gone", id) of one cancelled, ("refused", id, why),
("failed", module, type, message, where).
Several travel together, as a list. Deltas and loads go as bare tuples: a third of the bytes, and of the time; reports
as `Reports` packs them.
"""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any

from labkit.serve.engine.delta import Delta
from labkit.serve.scheduler.step import Load

Message = tuple[Any, ...]

pack_delta = attrgetter(*(field.name for field in fields(Delta)))
pack_load = attrgetter(*(field.name for field in fields(Load)))


def unpack_delta(packed: tuple[Any, ...]) -> Delta:
    """A delta as it was."""
    return Delta(*packed)


def unpack_load(packed: tuple[int, ...]) -> Load:
    """A load as it was."""
    return Load(*packed)
