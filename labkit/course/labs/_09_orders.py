"""Lab 09: maps and orders of tiles as a learner gets them wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs._09_answers import tile_map, tile_order

# ---------------------------------------------------------------------------------------------------------- tile_map


Pair = tuple[Tensor, Tensor]


def _begins(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)


def _map(tiles_E: Tensor, first_row_E: Tensor, block_m: int) -> Pair:
    first_tile_E = tiles_E.cumsum(0) - tiles_E
    expert_M = _numbers(tiles_E).repeat_interleave(tiles_E)
    within_M = _numbers(expert_M) - first_tile_E[expert_M]
    return expert_M, first_row_E[expert_M] + within_M * block_m


def map_full_tiles_only(counts: Tensor, block_m: int) -> Pair:
    return _map(counts // block_m, _begins(counts), block_m)


def map_one_more(counts: Tensor, block_m: int) -> Pair:
    return _map(counts // block_m + 1, _begins(counts), block_m)


def map_empty_gets_one(counts: Tensor, block_m: int) -> Pair:
    return _map(((counts + block_m - 1) // block_m).clamp(min=1), _begins(counts), block_m)


def map_padded(counts: Tensor, block_m: int) -> Pair:
    expert_M, _ = tile_map(counts, block_m)
    return expert_M, _numbers(expert_M) * block_m


def map_own_rows(counts: Tensor, block_m: int) -> Pair:
    return _map(-(-counts // block_m), torch.zeros_like(counts), block_m)


def map_last_rows(counts: Tensor, block_m: int) -> Pair:
    return _map(-(-counts // block_m), counts.cumsum(0), block_m)


def map_expert_start(counts: Tensor, block_m: int) -> Pair:
    expert_M, _ = tile_map(counts, block_m)
    return expert_M, _begins(counts)[expert_M]


def map_renumbered(counts: Tensor, block_m: int) -> Pair:
    return tile_map(counts[counts > 0], block_m)


def map_across_experts(counts: Tensor, block_m: int) -> Pair:
    row_M = torch.arange(0, int(counts.sum()), block_m, device=counts.device)
    return torch.searchsorted(counts.cumsum(0), row_M, right=True), row_M


def map_tile_numbers(counts: Tensor, block_m: int) -> Pair:
    expert_M, row_M = tile_map(counts, block_m)
    return expert_M, (row_M - _begins(counts)[expert_M]) // block_m


def map_swapped(counts: Tensor, block_m: int) -> Pair:
    return tile_map(counts, block_m)[::-1]


def map_tile_number_of_all(counts: Tensor, block_m: int) -> Pair:
    expert_M, _ = tile_map(counts, block_m)
    return expert_M, _begins(counts)[expert_M] + _numbers(expert_M) * block_m


def map_before_the_expert(counts: Tensor, block_m: int) -> Pair:
    expert_M, row_M = tile_map(counts, block_m)
    return expert_M, row_M - (-(-counts // block_m))[expert_M] * block_m


def map_next_row(counts: Tensor, block_m: int) -> Pair:
    expert_M, within_M = map_tile_numbers(counts, block_m)
    return expert_M, _begins(counts)[expert_M] + within_M


def map_one_before_only(counts: Tensor, block_m: int) -> Pair:
    return _map(-(-counts // block_m), torch.cat([counts.new_zeros(1), counts[:-1]]), block_m)


def map_edge_of_the_search(counts: Tensor, block_m: int) -> Pair:
    tiles_E = -(-counts // block_m)
    ends_E = tiles_E.cumsum(0)
    tile_M = torch.arange(int(ends_E[-1]), device=counts.device)
    expert_M = torch.searchsorted(ends_E, tile_M)
    return expert_M, _begins(counts)[expert_M] + (tile_M - (ends_E - tiles_E)[expert_M]) * block_m


def map_as_many_as_the_busiest(counts: Tensor, block_m: int) -> Pair:
    most = (-(-counts // block_m)).amax()
    return _map(most.expand(len(counts)), _begins(counts), block_m)


# -------------------------------------------------------------------------------------------------------- tile_order


def order_row_by_row(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    return tile_M // columns, tile_M % columns


def order_column_by_column(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    return tile_M % rows, tile_M // rows


def order_last_group_is_full(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    within_M = tile_M % (group * columns)
    return tile_M // (group * columns) * group + within_M % group, within_M // group


def order_never_leaves_the_group(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    row_M, column_M = tile_order(tile_M, rows, columns, group)
    return row_M - tile_M // (group * columns) * group, column_M


def order_swapped(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    return tile_order(tile_M, rows, columns, group)[::-1]


def order_groups_of_columns(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    return tile_order(tile_M, columns, rows, group)[::-1]


def order_group_number(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    number_M = tile_M // (group * columns)
    row_M, column_M = tile_order(tile_M, rows, columns, group)
    return row_M - number_M * group + number_M, column_M


def _groups(tile_M: Tensor, rows: int, columns: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each tile: its group's first row, how many rows that group has, and the tile's place within."""
    first_M = tile_M // (group * columns) * group
    return first_M, (rows - first_M).clamp(min=1, max=group), tile_M % (group * columns)


def order_number_in_the_grid(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, size_M, within_M = _groups(tile_M, rows, columns, group)
    return first_M + tile_M % size_M, within_M // size_M


def order_both_in_the_grid(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, size_M, _ = _groups(tile_M, rows, columns, group)
    return first_M + tile_M % size_M, tile_M // size_M % columns


def order_divided_by_columns(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, size_M, within_M = _groups(tile_M, rows, columns, group)
    return first_M + within_M % size_M, within_M // columns


def order_that_many_groups(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    return tile_order(tile_M, rows, columns, -(-rows // group))


def order_groups_of_rows_times_rows(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, size_M, within_M = _groups(tile_M, rows, rows, group)
    return first_M + within_M % size_M, within_M // size_M


def order_the_other_way(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    row_M, column_M = tile_M // columns, tile_M % columns
    first_M = row_M // group * group
    number_M = first_M * columns + column_M * (rows - first_M).clamp(max=group) + row_M - first_M
    return number_M // columns, number_M % columns


def order_pushed_back(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, _, within_M = _groups(tile_M, rows, columns, group)
    return (first_M + within_M % group).clamp(max=rows - 1), within_M // group


def order_snake(tile_M: Tensor, rows: int, columns: int, group: int) -> Pair:
    first_M, size_M, within_M = _groups(tile_M, rows, columns, group)
    down_M, column_M = within_M % size_M, within_M // size_M
    return first_M + torch.where(column_M % 2 == 1, size_M - 1 - down_M, down_M), column_M
