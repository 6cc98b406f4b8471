"""How many copies of each expert, and equally many items in each of several packs, the heaviest pack light. numpy only.

Packing is Graham's longest processing time first (1969, doi 10.1137/0117039) with equally many items in each pack, then
exchanges of two items while the heaviest pack gains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.core.whole import need_whole


def need_load(who: str, load: ArrayLike) -> NDArray[np.float64]:
    """The load as an array, [experts], float64. Raises ValueError, in the name of `who`, unless it is one."""
    load_E = np.asarray(load, float)
    if load_E.ndim != 1 or not load_E.size or not np.isfinite(load_E).all() or (load_E < 0).any():
        raise ValueError(f"{who}: load has shape {load_E.shape}; give [experts] finite numbers of zero or more")
    return load_E


def copies_for(load: ArrayLike, num_slots: int) -> NDArray[np.int64]:
    """How many slots each expert gets, [E]: one each, then always one more for the largest load per copy.

    The largest load per copy is then as small as it can be: an expert only gets its next copy when no other expert's
    copy is larger, so undoing any of these steps leaves a larger one.

    >>> copies_for([6, 1, 1], num_slots=5).tolist()
    [3, 1, 1]
    """
    load_E = need_load("copies_for", load)
    if num_slots < len(load_E):
        raise ValueError(f"copies_for: {num_slots} slots for {len(load_E)} experts; give at least one for each")
    copies_E = np.ones(len(load_E), np.int64)
    for _ in range(num_slots - len(load_E)):
        copies_E[np.argmax(load_E / copies_E)] += 1
    return copies_E


def pack(weights: ArrayLike, packs: int, *, exchange: bool = True) -> NDArray[np.int64]:
    """The pack of each item, [n]: equally many items in each, the heaviest pack light.

    The heaviest item first, each to the lightest pack with room; then, with `exchange`, the heaviest pack gives an item
    for a lighter one of another pack, the swap that leaves the heavier of the two lightest, as long as that gains.

    >>> pack([4, 3, 2, 1], packs=2).tolist()
    [0, 1, 1, 0]
    """
    w_n = need_load("pack", weights)
    need_whole("pack: packs", packs)
    if len(w_n) % packs:
        raise ValueError(f"pack: {len(w_n)} items into {packs} packs; give a multiple")
    pack_n, loads, room = np.zeros(len(w_n), np.int64), [0.0] * packs, [len(w_n) // packs] * packs
    for item in np.argsort(-w_n, kind="stable"):
        least = min((p for p in range(packs) if room[p]), key=loads.__getitem__)
        pack_n[item] = least
        loads[least] += float(w_n[item])
        room[least] -= 1
    return _exchange(w_n, pack_n, packs) if exchange else pack_n


def _exchange(w_n: NDArray, pack_n: NDArray, packs: int) -> NDArray:
    pack_n = pack_n.copy()
    for _ in range(4 * len(w_n)):
        loads = np.bincount(pack_n, w_n, minlength=packs)
        top = int(np.argmax(loads))
        mine, theirs = np.flatnonzero(pack_n == top), np.flatnonzero(pack_n != top)
        if not len(theirs):
            break
        shift = w_n[mine][:, None] - w_n[theirs][None, :]
        heavier = np.maximum(loads[top] - shift, loads[pack_n[theirs]][None, :] + shift)
        i, j = np.unravel_index(np.argmin(heavier), heavier.shape)
        if heavier[i, j] >= loads[top] * (1 - 1e-12):
            break
        pack_n[mine[i]], pack_n[theirs[j]] = pack_n[theirs[j]], top
    return pack_n
