"""The map from ids to rows and tiles equals a stable sort, whatever the routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.kernels import reference
from labkit.kernels.permute import ONE_HOT, expert_map, max_tiles


def check(ids, E, block_m):
    places = expert_map(ids, E, block_m)
    kept = ((ids >= 0) & (ids < E)).reshape(-1)
    order, _, _ = reference.sort_by_expert(torch.where((ids >= 0) & (ids < E), ids, E).long(), E + 1)
    rows = int(kept.sum())
    assert torch.equal(places.pair_N[:rows].long(), order[:rows])
    place = torch.full((ids.numel(),), -1)
    place[order[:rows]] = torch.arange(rows)
    assert torch.equal(places.place_TK.reshape(-1).long(), place)
    counts = torch.bincount(ids.reshape(-1)[kept].long(), minlength=E)
    assert places.offset_E1.tolist() == [0, *counts.cumsum(0).tolist()]
    tiles = (counts + block_m - 1) // block_m
    assert places.first_tile_E1.tolist() == [0, *tiles.cumsum(0).tolist()]
    used = int(tiles.sum())
    assert used <= len(places.tile_expert) == max_tiles(ids.numel(), E, block_m)
    assert torch.equal(places.tile_expert[:used].long(), torch.arange(E).repeat_interleave(tiles))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_it_equals_a_stable_sort(data):
    E = data.draw(st.integers(1, 70), "E")
    T, K = data.draw(st.integers(0, 90), "T"), data.draw(st.integers(1, 5), "K")
    low, high = data.draw(st.sampled_from([(0, E), (-2, E + 2), (0, 1), (E - 1, E)]), "ids from, to")
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 9), "seed"))
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    check(torch.randint(low, high, (T, K), generator=g).to(dtype), E, data.draw(st.sampled_from([1, 16, 128])))


@pytest.mark.parametrize(("T", "K", "E"), [(700, 4, 513), (1500, 8, 64), (3, 1, 600)])
def test_several_blocks_of_pairs(T, K, E):
    assert T == 3 or T * K > ONE_HOT // E
    check(torch.randint(0, E, (T, K), generator=torch.Generator().manual_seed(0)), E, 16)


def test_ids_that_are_not_contiguous():
    check(torch.randint(0, 5, (3, 40)).T, 5, 16)


@pytest.mark.parametrize(
    ("ids", "E", "block_m", "said"),
    [
        (torch.zeros(4), 3, 16, r"\(4,\) torch.float32; give \[T, K\] int64 or int32"),
        (torch.zeros(4, 2, dtype=torch.int64), 0, 16, "num_experts is 0; give 1 to 8192"),
        (torch.zeros(4, 2, dtype=torch.int64), 3, 24, "block_m is 24; give a power of two"),
    ],
)
def test_bad_input_is_told(ids, E, block_m, said):
    with pytest.raises(ValueError, match=said):
        expert_map(ids, E, block_m)
