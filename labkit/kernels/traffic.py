"""What an implementation of the experts costs: FLOPs and bytes, by counting, forward only.

FLOPs are those of matrix products (a multiplication and an addition are two), as torch's flop counter counts them;
SiLU, masks and sorting are left out. Bytes: every tensor an implementation makes is written once and read once, each
expert that has tokens reads its weights once; caches that would keep a tensor on the chip are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """The cost of one forward pass.

    Args:
        flops: all FLOPs of matrix products.
        bytes: all bytes read and written.
        note: which FLOPs are wasted, in words.
        useful_flops: those that the decision asked for, 6·T·K·D·F: three products for each pair (token, expert).
    """

    flops: int
    bytes: int
    note: str
    useful_flops: int

    @property
    def wasted_flops(self) -> int:
        """FLOPs that end up multiplied by zero, or that only move data."""
        return self.flops - self.useful_flops

    @property
    def intensity(self) -> float:
        """FLOPs per byte: what the roofline asks for."""
        return self.flops / self.bytes if self.bytes else 0.0


def traffic(implementation: str, T: int, D: int, F: int, E: int, K: int, *, itemsize: int = 2) -> Traffic:
    """Count for one of "loop", "sorted", "grouped_mm", "onehot".

    Args:
        T, D, F, E, K: tokens, model width, expert width, experts, experts per token.
        itemsize: bytes an element, 2 for bfloat16. Ids and offsets are not counted.

    One-hot multiplies every token with every expert: its expert products cost exactly E / K times the useful ones, and
    its combine einsum adds 2·T·E·D. Weights are counted for min(E, T·K) experts, as if the tokens spread out.

    >>> traffic("onehot", T=10, D=4, F=8, E=8, K=2).note
    'experts: 15360 FLOPs, E/K = 4 times the useful 3840; combine: 640 more'
    >>> traffic("sorted", T=10, D=4, F=8, E=8, K=2).wasted_flops
    0
    """
    if min(T, itemsize - 1) < 0 or min(D, F, E, K) < 1 or K > E:
        raise ValueError(
            f"T={T}, D={D}, F={F}, E={E}, K={K}, itemsize={itemsize}: give T >= 0, the rest 1 or more, K at most E"
        )
    useful = 6 * T * K * D * F
    N = T * K
    weights = 3 * D * F * min(E, N)
    io = 2 * T * D + N  # x read, the result written, the scores read
    if implementation == "onehot":
        spent, combine = 6 * T * E * D * F, 2 * T * E * D
        ratio = f"{E / K:g}"
        note = f"experts: {spent} FLOPs, E/K = {ratio} times the useful {useful}; combine: {combine} more"
        elements = io + 3 * D * F * (E if T else 0) + _rows(T * E, D, F) + 4 * T * E
        return Traffic(spent + combine, elements * itemsize, note, useful)
    if implementation in ("sorted", "grouped_mm", "loop"):
        note = "none wasted: each pair (token, expert) is computed once"
        elements = io + weights + _rows(N, D, F)
        if implementation == "loop":
            elements += N * D  # index_add reads the running sum once for each pair
            note += "; E small products instead of one, and the sum is read back for each pair"
        return Traffic(useful, elements * itemsize, note, useful)
    raise ValueError(f"implementation is {implementation!r}; choose onehot, loop, sorted or grouped_mm")


def _rows(rows: int, D: int, F: int) -> int:
    """Elements written and read back for these rows: gathered x, gate and up, their product, the output."""
    return 2 * rows * (D + 2 * F + F + D)
