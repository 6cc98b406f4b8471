"""Labs on kernels: Triton where there is one. Elsewhere its kernels are plain functions that nobody can launch.

Triton exists for Linux only; the list of labs, the progress and the README must not depend on it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["tl", "triton"]


class _Absent:
    """Stands for a module that is not there: its `jit` leaves a function as it is, and its types are nothing."""

    constexpr = None

    @staticmethod
    def jit(function: Any) -> Any:
        """The function itself."""
        return function


try:
    from labkit.kernels.language import tl, triton
except ImportError:  # no Triton for this system
    tl = triton = _Absent()
