"""Where experts live: copies of the busy ones, packed onto GPUs so that the busiest GPU has least to do. numpy only.

Words: a slot is room for one expert's weights; `num_slots` of them lie on `num_gpus` GPUs in order, equally many on
each, and GPUs lie on nodes in order. Slots beyond the number of experts hold copies. A copied expert's tokens are
spread evenly over its copies.

The idea of redundant experts and of groups kept on one node: DeepSeek-V3 (arXiv 2412.19437, sections 3.4.1 and 3.4.2).
Packing is Graham's longest processing time first (1969, doi 10.1137/0117039) with equally many items in each pack, then
exchanges of two items while the busiest pack gains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.core.whole import need_whole

ROUNDS = 24  # copies moved from one expert to another, at most, after the first packing


@dataclass(frozen=True)
class Placement:
    """Which expert each slot holds, and the load it was chosen for.

    Args:
        experts: the expert of each slot; slots of GPU g are `g·slots_per_gpu … (g + 1)·slots_per_gpu − 1`.
        load: tokens of each expert, in any unit, that the choice was made for.
        num_gpus, num_nodes: GPUs in all and the nodes they lie on, in order.

    >>> p = place([6, 1, 1], num_slots=4, num_gpus=2)
    >>> p.copies, p.gpu_load.tolist(), p.imbalance, p.imbalance_before
    ((2, 1, 1), [4.0, 4.0], 1.0, 1.75)
    """

    experts: tuple[int, ...]
    load: tuple[float, ...]
    num_gpus: int
    num_nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("num_gpus", "num_nodes"):
            need_whole(f"Placement: {name}", getattr(self, name))
        if len(self.experts) % self.num_gpus or self.num_gpus % self.num_nodes:
            raise ValueError(
                f"Placement: {len(self.experts)} slots on {self.num_gpus} GPUs on {self.num_nodes} nodes; "
                "give equally many slots to each GPU and GPUs to each node"
            )
        missing = sorted(set(range(len(self.load))) ^ set(self.experts))
        if missing:
            raise ValueError(
                f"Placement: slots and load disagree on expert {missing[0]}; every expert of the load needs a slot, "
                f"and slots hold experts 0 to {len(self.load) - 1}"
            )

    @property
    def num_experts(self) -> int:
        """E, the experts that the router knows."""
        return len(self.load)

    @property
    def num_slots(self) -> int:
        """Experts with their copies."""
        return len(self.experts)

    @property
    def slots_per_gpu(self) -> int:
        """Slots on each GPU."""
        return self.num_slots // self.num_gpus

    @cached_property
    def slots(self) -> tuple[tuple[int, ...], ...]:
        """The slots of each expert, ascending; the inverse of `experts`."""
        found: list[list[int]] = [[] for _ in self.load]
        for slot, expert in enumerate(self.experts):
            found[expert].append(slot)
        return tuple(map(tuple, found))

    @property
    def copies(self) -> tuple[int, ...]:
        """How many slots each expert has."""
        return tuple(map(len, self.slots))

    @property
    def gpu_load(self) -> NDArray[np.float64]:
        """Load of each GPU, [num_gpus], under the load that the placement was made for."""
        return self.gpu_load_under(self.load)

    @property
    def imbalance(self) -> float:
        """The busiest GPU's load over the mean; 1 is even."""
        return self.imbalance_under(self.load)

    @property
    def imbalance_before(self) -> float:
        """The same with every expert once, in order, on as many GPUs."""
        parts = np.array_split(np.asarray(self.load, float), self.num_gpus)
        return _over_mean(np.array([part.sum() for part in parts]))

    def on_gpu(self, gpu: int) -> tuple[int, ...]:
        """The experts of this GPU's slots."""
        return self.experts[gpu * self.slots_per_gpu : (gpu + 1) * self.slots_per_gpu]

    def gpu_load_under(self, load: ArrayLike) -> NDArray[np.float64]:
        """Load of each GPU, [num_gpus], if the experts had this load [E], such as that of the next hour."""
        load_E = _need_load("gpu_load_under", load)
        if len(load_E) != self.num_experts:
            raise ValueError(f"gpu_load_under: load of {len(load_E)} experts, the placement has {self.num_experts}")
        each_E = load_E / np.asarray(self.copies)
        return each_E[list(self.experts)].reshape(self.num_gpus, -1).sum(-1)

    def imbalance_under(self, load: ArrayLike) -> float:
        """The busiest GPU's load over the mean under this load."""
        return _over_mean(self.gpu_load_under(load))


def place(
    load: ArrayLike, num_slots: int, num_gpus: int, *, num_nodes: int = 1, num_groups: int | None = None
) -> Placement:
    """Copies and places of one layer's experts with the busiest GPU's load as low as this search gets it.

    Args:
        load: [E], tokens of each expert, measured; zeros are fine.
        num_slots: E or more, a multiple of `num_gpus`; `num_slots − E` are for copies.
        num_gpus: a multiple of `num_nodes`.
        num_groups: the router's groups of experts (`MoEConfig.num_groups`). If given, it is a multiple of `num_nodes`
            and a group's experts, with their copies, stay on one node, so that a token limited to few groups visits
            few nodes. If not, an expert may be copied to any node.

    Raises ValueError for a load that is no finite number of zero or more, or for sizes that do not divide.

    >>> p = place([90, 132, 40, 61, 104, 165, 39, 4], num_slots=12, num_gpus=4, num_nodes=2, num_groups=4)
    >>> sorted(set(p.experts[:6])), p.slots_per_gpu
    ([4, 5, 6, 7], 3)
    """
    load_E = _need_load("place", load)
    _need_sizes(len(load_E), num_slots, num_gpus, num_nodes, num_groups)
    nodes = 1 if num_groups is None else num_nodes
    found = []
    for homes in _homes(load_E, num_groups or 1, nodes):
        placed = [_on_node(load_E, home, num_slots // nodes, num_gpus // nodes) for home in homes]
        found.append(Placement(tuple(int(e) for part in placed for e in part), tuple(load_E), num_gpus, num_nodes))
    return min(found, key=lambda p: p.gpu_load.max())


def place_layers(
    load: ArrayLike, num_slots: int, num_gpus: int, *, num_nodes: int = 1, num_groups: int | None = None
) -> tuple[Placement, ...]:
    """`place` for every layer: load is [layers, E]."""
    load_LE = np.asarray(load, float)
    if load_LE.ndim != 2:
        raise ValueError(f"place_layers: load has shape {load_LE.shape}; give [layers, experts]")
    return tuple(place(load_E, num_slots, num_gpus, num_nodes=num_nodes, num_groups=num_groups) for load_E in load_LE)


def copies_for(load: ArrayLike, num_slots: int) -> NDArray[np.int64]:
    """How many slots each expert gets, [E]: one each, then always one more for the largest load per copy.

    The largest load per copy is then as small as it can be: an expert only gets its next copy when no other expert's
    copy is larger, so undoing any of these steps leaves a larger one.

    >>> copies_for([6, 1, 1], num_slots=5).tolist()
    [3, 1, 1]
    """
    load_E = _need_load("copies_for", load)
    if num_slots < len(load_E):
        raise ValueError(f"copies_for: {num_slots} slots for {len(load_E)} experts; give at least one for each")
    copies_E = np.ones(len(load_E), np.int64)
    for _ in range(num_slots - len(load_E)):
        copies_E[np.argmax(load_E / copies_E)] += 1
    return copies_E


def lower_bound(load: ArrayLike, num_slots: int, num_gpus: int) -> float:
    """A load that no placement's busiest GPU can be below: the mean, or the largest copy if that is larger.

    >>> lower_bound([6, 1, 1], num_slots=4, num_gpus=2)
    4.0
    """
    load_E = _need_load("lower_bound", load)
    return float(max(load_E.sum() / num_gpus, (load_E / copies_for(load_E, num_slots)).max()))


def pack(weights: ArrayLike, packs: int, *, exchange: bool = True) -> NDArray[np.int64]:
    """The pack of each item, [n]: equally many items in each, the heaviest pack light.

    The heaviest item first, each to the lightest pack with room; then, with `exchange`, the heaviest pack gives an item
    for a lighter one of another pack, the swap that leaves the heavier of the two lightest, as long as that gains.

    >>> pack([4, 3, 2, 1], packs=2).tolist()
    [0, 1, 1, 0]
    """
    w_n = _need_load("pack", weights)
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


def spread(placement: Placement, topk_ids: ArrayLike) -> NDArray[np.int64]:
    """The slot for each of the T·K choices, [T, K]: an expert's tokens go round its copies, so no copy has two more.

    Args:
        topk_ids: [T, K], the experts that the router chose.

    >>> p = place([6, 1, 1], num_slots=4, num_gpus=2)
    >>> ids = np.array([[0], [0], [1], [0], [2]])
    >>> slots = spread(p, ids)
    >>> (np.array(p.experts)[slots] == ids).all(), len(set(slots[[0, 1, 3], 0].tolist()))
    (np.True_, 2)
    """
    ids_TK = np.asarray(topk_ids)
    if ids_TK.dtype.kind not in "iu" or (ids_TK.size and not 0 <= ids_TK.min() <= ids_TK.max() < placement.num_experts):
        raise ValueError(f"spread: give expert numbers from 0 to {placement.num_experts - 1}, whole numbers")
    flat, out = ids_TK.reshape(-1), np.zeros(ids_TK.size, np.int64)
    for expert, slots in enumerate(placement.slots):
        mine = np.flatnonzero(flat == expert)
        out[mine] = np.asarray(slots)[np.arange(len(mine)) % len(slots)]
    return out.reshape(ids_TK.shape)


def moved(before: Placement, after: Placement) -> tuple[int, ...]:
    """The slots whose GPU did not hold their expert before: what a change of placement has to send.

    >>> moved(place([6, 1, 1], 4, 2), place([6, 1, 1], 4, 2))
    ()
    """
    if (before.num_experts, before.num_gpus) != (after.num_experts, after.num_gpus):
        raise ValueError(
            f"moved: {before.num_experts} experts on {before.num_gpus} GPUs and {after.num_experts} on "
            f"{after.num_gpus}; give two placements of one layer on the same GPUs"
        )
    had = [set(before.on_gpu(gpu)) for gpu in range(before.num_gpus)]
    return tuple(s for s, expert in enumerate(after.experts) if expert not in had[s // after.slots_per_gpu])


def _over_mean(loads: NDArray[np.float64]) -> float:
    mean = loads.mean()
    return float(loads.max() / mean) if mean > 0 else 1.0


def _need_load(who: str, load: ArrayLike) -> NDArray[np.float64]:
    load_E = np.asarray(load, float)
    if load_E.ndim != 1 or not load_E.size or not np.isfinite(load_E).all() or (load_E < 0).any():
        raise ValueError(f"{who}: load has shape {load_E.shape}; give [experts] finite numbers of zero or more")
    return load_E


def _need_sizes(experts: int, num_slots: int, num_gpus: int, num_nodes: int, num_groups: int | None) -> None:
    for name, value in (("num_slots", num_slots), ("num_gpus", num_gpus), ("num_nodes", num_nodes)):
        need_whole(f"place: {name}", value)
    if num_slots < experts or num_slots % num_gpus or num_gpus % num_nodes:
        raise ValueError(
            f"place: {experts} experts in {num_slots} slots on {num_gpus} GPUs on {num_nodes} nodes; give a slot for "
            "every expert, equally many slots to each GPU and GPUs to each node"
        )
    if num_groups is None:
        return
    need_whole("place: num_groups", num_groups)
    if experts % num_groups or num_groups % num_nodes:
        raise ValueError(
            f"place: {experts} experts in {num_groups} groups on {num_nodes} nodes; give equally many experts to each "
            "group and groups to each node, or leave num_groups out"
        )


def _homes(load_E: NDArray, groups: int, nodes: int) -> Iterator[list[NDArray]]:
    """Which experts live on which node, by the plain packing of groups and by the one with exchanges."""
    if nodes == 1:
        yield [np.arange(len(load_E))]
        return
    members = np.arange(len(load_E)).reshape(groups, -1)
    for exchange in (False, True):
        node_of = pack(load_E[members].sum(-1), nodes, exchange=exchange)
        yield [members[node_of == node].reshape(-1) for node in range(nodes)]


def _on_node(load_E: NDArray, home: NDArray, slots: int, gpus: int) -> NDArray:
    """The expert of each slot of one node, GPU by GPU: pack, then move copies to the busiest GPU's experts."""
    load_h = load_E[home]
    copies_h = copies_for(load_h, slots)
    best, items, pack_n = _packed(load_h, copies_h, gpus)
    for _ in range(ROUNDS):
        for other in _moved_copy(load_h, copies_h, items[pack_n == np.argmax(_sums(load_h, copies_h, items, pack_n))]):
            trial = _packed(load_h, other, gpus)
            if trial[0] < best * (1 - 1e-12):
                copies_h, (best, items, pack_n) = other, trial
                break
        else:
            break
    return home[items[np.argsort(pack_n, kind="stable")]]


def _packed(load_h: NDArray, copies_h: NDArray, gpus: int) -> tuple[float, NDArray, NDArray]:
    """The busiest GPU's load, the expert of each item, and each item's GPU."""
    items = np.repeat(np.arange(len(load_h)), copies_h)
    pack_n = pack((load_h / copies_h)[items], gpus)
    return float(_sums(load_h, copies_h, items, pack_n).max()), items, pack_n


def _sums(load_h: NDArray, copies_h: NDArray, items: NDArray, pack_n: NDArray) -> NDArray:
    return np.bincount(pack_n, (load_h / copies_h)[items])


def _moved_copy(load_h: NDArray, copies_h: NDArray, busy: NDArray) -> Iterator[NDArray]:
    """Copy counts with one copy moved: to an expert of the busiest GPU, or from one that lies there twice."""
    spare = np.flatnonzero(copies_h > 1)
    if not len(spare):
        return
    there, times = np.unique(busy, return_counts=True)
    missed_least = spare[np.argsort(load_h[spare] / (copies_h[spare] - 1), kind="stable")][:2]
    largest = np.argsort(-load_h / copies_h, kind="stable")[:2]
    for takers, givers in ((there, missed_least), (largest, there[times > 1])):
        for taker, giver in ((int(t), int(g)) for t in takers for g in givers if t != g):
            other = copies_h.copy()
            other[taker] += 1
            other[giver] -= 1
            yield other


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
