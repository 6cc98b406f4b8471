"""Tiles, counted one program at a time, by hand, and as the kernels' own map has them."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from labkit.core.routing import Routing
from labkit.core.tiling import BLOCKS_M, rows_of_experts, tiling

CASES = [(1, 1), (3, 7), (16, 200), (64, 64), (512, 9)]


def drawn(E: int, most: int) -> list[int]:
    """Rows of E experts, up to `most`, some of them idle."""
    draw = random.Random(E)
    return [draw.choice((0, draw.randint(0, most))) for _ in range(E - 1)] + [most]


@pytest.mark.parametrize(("E", "most"), CASES)
@pytest.mark.parametrize("block_m", BLOCKS_M)
def test_counts_one_program_at_a_time(E, most, block_m):
    rows_E = drawn(E, most)
    t = tiling(rows_E, block_m, 64, width=200, multiprocessors=7)
    tiles = [(e, row) for e, n in enumerate(rows_E) for row in range(0, n, block_m)]
    programs = [(*tile, column) for tile in tiles for column in range(0, 200, 64)]
    real = [min(block_m, rows_E[e] - row) for e, row in tiles]
    assert t.tiles_E == tuple(sum(owner == e for owner, _ in tiles) for e in range(E))
    assert (t.rows, t.tiles, t.columns, t.programs) == (sum(rows_E), len(tiles), 4, len(programs))
    assert t.padding == sum(block_m - n for n in real) == sum(t.padding_E)
    assert t.computed == t.rows + t.padding
    assert t.waste == pytest.approx(1 - sum(real) / (block_m * len(real)))
    waves = [programs[i : i + 7] for i in range(0, len(programs), 7)]
    assert t.waves == len(waves)
    assert t.last_wave == pytest.approx(len(waves[-1]) / 7)
    assert all(p < block_m for p in t.padding_E)


def test_reading_by_hand():
    t = tiling([128], block_m=128, block_n=256, width=256)
    assert t.intensity == pytest.approx(2 * 128 * 256 * 64 / (2 * (128 + 256) * 64)) == pytest.approx(128 * 256 / 384)
    assert t.read_per_flop == pytest.approx(1 / t.intensity)
    half = tiling([64], block_m=128, block_n=256, width=256)
    assert half.read_per_flop == pytest.approx(2 / t.intensity)  # half of what the tile computes is padding
    narrow = tiling([128], block_m=128, block_n=256, width=128)
    assert narrow.read_per_flop == pytest.approx(2 / t.intensity)  # here half of its columns
    assert tiling([1], 128, 256, bytes_per_value=1).intensity == 2 * t.intensity
    assert (t.register_share, tiling([1], 256, 256).register_share) == (0.5, 1.0)


def test_a_larger_tile_reads_less_and_never_wastes_less():
    rows_E = drawn(64, 300)
    all_sizes = [tiling(rows_E, block_m) for block_m in BLOCKS_M]
    for small, large in pairwise(all_sizes):
        assert large.intensity > small.intensity
        assert large.padding >= small.padding
        assert large.tiles <= small.tiles


@pytest.mark.parametrize("block_m", BLOCKS_M)
def test_padding_to_the_busiest_never_wastes_less(block_m):
    uneven, even = tiling([1, 0, 40], block_m), tiling([40, 40, 40], block_m)
    assert uneven.busiest_computed == even.busiest_computed == even.computed
    assert uneven.busiest_waste == pytest.approx(1 - 41 / even.computed)
    assert uneven.busiest_waste > uneven.waste
    assert even.busiest_waste == pytest.approx(even.waste)


def test_no_rows_at_all_is_nothing_to_do():
    t = tiling([0, 0], block_m=16)
    assert (t.tiles, t.programs, t.waves, t.padding, t.waste, t.last_wave, t.busiest_waste) == (0,) * 7
    assert math.isnan(t.read_per_flop)


def test_the_last_wave_is_full_where_programs_fit_exactly():
    t = tiling([4] * 6, block_m=4, block_n=8, width=16, multiprocessors=12)
    assert (t.programs, t.waves, t.last_wave) == (12, 1, 1.0)


def test_rows_come_from_lists_arrays_tensors_and_records():
    r = Routing.of(torch.zeros(3, 4), torch.tensor([[0, 1], [1, 3], [1, 0]]), torch.ones(3, 2))
    assert rows_of_experts(r) == tiling(r, 16).rows_E == (2, 3, 0, 1)
    for given in ([2, 0], (2, 0), range(2, -1, -2), np.array([2, 0]), list(np.array([2, 0])), torch.tensor([2, 0])):
        assert rows_of_experts(given) == (2, 0)
        assert all(type(n) is int for n in rows_of_experts(given))


def test_the_kernels_map_has_the_same_tiles():
    permute = pytest.importorskip("labkit.kernels.permute")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids_TK = torch.rand(37, 5, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :2].to(device)
    places = permute.expert_map(ids_TK, num_experts=5, block_m=16)
    t = tiling(torch.bincount(ids_TK.flatten(), minlength=5), block_m=16)
    assert places.first_tile_E1.diff().tolist() == list(t.tiles_E)
    assert int(places.first_tile_E1[-1]) == t.tiles <= permute.max_tiles(t.rows, 5, 16)


def test_it_needs_no_torch():
    code = "import sys, labkit.core.tiling; print({'torch', 'numpy', 'matplotlib'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tiling([], 16), "tiling got no experts; give the tokens of each"),
        (lambda: tiling(torch.zeros(0, dtype=torch.int64), 16), "got no experts"),
        (lambda: tiling([1, -2], 16), "expert 1 has -2 tokens; give a whole number"),
        (lambda: tiling([1.5], 16), "expert 0 has 1.5 tokens"),
        (lambda: tiling([True], 16), "expert 0 has True tokens"),
        (lambda: tiling([[1, 2]], 16), r"expert 0 has \[1, 2\] tokens"),
        (lambda: tiling(torch.tensor([0.5]), 16), "expert 0 has 0.5 tokens"),
        (lambda: tiling(64, 16), "got int; give the tokens of each expert, one number an expert"),
        (lambda: tiling(torch.tensor(3), 16), "got Tensor; give"),
        (lambda: tiling("12", 16), "got str; give"),
        (lambda: tiling({0: 5}, 16), "got dict; give"),
        (lambda: tiling([1], 0), "block_m is 0; give a whole number of one or more"),
        (lambda: tiling([1], 16.0), "block_m is 16.0; give"),
        (lambda: tiling([1], 16, True), "block_n is True; give"),
        (lambda: tiling([1], 16, width=-1), "width is -1; give"),
        (lambda: tiling([1], 16, multiprocessors=0), "multiprocessors is 0; give"),
        (lambda: tiling([1], 16, bytes_per_value=0), "bytes_per_value is 0; give a positive number"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
