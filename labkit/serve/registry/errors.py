"""What can go wrong in a registry, one class for each thing that a caller may want to do about it."""

from __future__ import annotations


class Damaged(ValueError):
    """What lies in the store or in the cache is not what its manifest says; it must not be used."""


class Missing(FileNotFoundError):
    """There is no such model, version, alias or object."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Lost(RuntimeError):
    """A conditional write did not find what it expected: somebody else was there first."""


class Moved(Lost):
    """An alias does not name what the caller believed; nothing was changed."""


class Interrupted(RuntimeError):
    """The store could not be reached any more; what is finished is kept and the same call goes on from there."""


class Unfit(RuntimeError):
    """The store cannot hold a registry, for example because it ignores the conditions of a write."""


class Refused(RuntimeError):
    """The store does not let us do this: no credentials, wrong ones, or no right to it."""
