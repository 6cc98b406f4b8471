"""Lab 09: the mistakes in a map and in an order of tiles that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _09_orders as wrong


def elsewhere(failure: Failure) -> bool:
    """Whether a tensor was made on the default device, where the counts are not."""
    return failure.outcome.error_type == "OtherDevice"


TILE_MAP = (
    Mistake(
        "full_tiles_only",
        "What does not fill a tile is left out: the division rounds down. An expert with c rows needs ⌈c / block_m⌉ "
        "tiles, and in whole numbers that is (c + block_m - 1) // block_m.",
        like=wrong.map_full_tiles_only,
    ),
    Mistake(
        "one_tile_too_many",
        "An expert whose rows fill its tiles exactly gets one more, which is empty; so does an expert without rows. "
        "Round up, instead of adding one: (c + block_m - 1) // block_m.",
        like=wrong.map_one_more,
    ),
    Mistake(
        "a_tile_for_nobody",
        "Experts without a row have a tile here. It would compute nothing, and its first row is somebody else's.",
        like=wrong.map_empty_gets_one,
    ),
    Mistake(
        "rows_with_padding",
        "The first rows are multiples of block_m, as if every expert's rows began at a new tile. They lie side by "
        "side: the padding is only in the tile that computes, never in memory.",
        like=wrong.map_padded,
    ),
    Mistake(
        "counted_from_the_expert",
        "Rows are counted from the first row of their expert. All experts lie in one tensor: add where each begins, "
        "the sum of the counts before it.",
        like=wrong.map_own_rows,
    ),
    Mistake(
        "begins_where_it_ends",
        "`cumsum` counts each expert's own rows too, so this is where it *ends*. Subtract its count, and you have "
        "where it begins.",
        like=wrong.map_last_rows,
    ),
    Mistake(
        "the_same_tile_again",
        "All tiles of an expert begin at its first row. The j-th of them begins j · block_m rows later.",
        like=wrong.map_expert_start,
    ),
    Mistake(
        "renumbered",
        "Right until an expert has no rows: from there on the numbers are those of the experts that are left, and "
        "every tile would be multiplied by another expert's matrix.",
        like=wrong.map_renumbered,
    ),
    Mistake(
        "across_experts",
        "The rows were cut into tiles first, and then each tile was given to the expert of its first row. A tile must "
        "not span two experts: it is multiplied by one matrix.",
        like=wrong.map_across_experts,
    ),
    Mistake(
        "tile_numbers",
        "The second value says the how-manieth tile of its expert each is. Asked is its first *row*, counted from the "
        "first row of all.",
        like=wrong.map_tile_numbers,
    ),
    Mistake(
        "tile_number_of_all",
        "The number that is multiplied by block_m counts all tiles, from the first expert's on. It has to begin at 0 "
        "for every expert: subtract the number of tiles before its first.",
        like=wrong.map_tile_number_of_all,
    ),
    Mistake(
        "before_the_expert",
        "`tiles_E.cumsum(0)` counts each expert's own tiles too, so every tile lies too early by all tiles of its "
        "expert. Subtract tiles_E from it: that is the number of its first tile.",
        like=wrong.map_before_the_expert,
    ),
    Mistake(
        "next_row",
        "Each tile begins one row after the one before it. A tile has block_m rows, so that is where the next begins.",
        like=wrong.map_next_row,
    ),
    Mistake(
        "swapped",
        "These are (first row, expert); (expert, first row) was asked for.",
        like=wrong.map_swapped,
    ),
    Mistake(
        "one_before_only",
        "An expert begins after *all* experts before it; here only the count of the last of them was added. "
        "`cumsum` adds them all up.",
        like=wrong.map_one_before_only,
    ),
    Mistake(
        "edge_of_the_search",
        "An expert whose tiles end at m does not own tile m: the next one does. `torch.searchsorted(…, right=True)` "
        "goes past equal values.",
        like=wrong.map_edge_of_the_search,
    ),
    Mistake(
        "as_many_as_the_busiest",
        "Every expert has as many tiles as the busiest: most are empty, and begin in other experts' rows. Each has as "
        "many as its own count needs.",
        like=wrong.map_as_many_as_the_busiest,
    ),
    Mistake(
        "other_device",
        "Right as long as everything is on the CPU: a tensor that is made without `device=` lands on the default "
        "device, and on a GPU the counts are elsewhere. Give `device=tokens_per_expert_E.device`.",
        when=elsewhere,
    ),
)

TILE_ORDER = (
    Mistake(
        "row_by_row",
        "Row by row, whatever `group` is: neighbours share their rows and every one of them needs other columns.",
        like=wrong.order_row_by_row,
    ),
    Mistake(
        "column_by_column",
        "Down all the rows before the next column: as if the group had all rows in it.",
        like=wrong.order_column_by_column,
    ),
    Mistake(
        "last_group_is_full",
        "Right until the last group, which has fewer rows if `group` does not divide them. There tiles land on rows "
        "that do not exist, and others are never computed. Its size is min(group, rows - first).",
        like=wrong.order_last_group_is_full,
    ),
    Mistake(
        "never_leaves_the_first_group",
        "All groups are on the rows of the first one: the row *within* the group is right, where the group begins has "
        "to be added.",
        like=wrong.order_never_leaves_the_group,
    ),
    Mistake("swapped", "These are (column, row); (row, column) was asked for.", like=wrong.order_swapped),
    Mistake(
        "groups_of_columns",
        "The groups are of columns, where rows were meant: along a row within the group, then the next row.",
        like=wrong.order_groups_of_columns,
    ),
    Mistake(
        "group_number_for_row",
        "Group number g begins at row g · group, not at row g.",
        like=wrong.order_group_number,
    ),
    Mistake(
        "number_in_the_grid",
        "Right as long as a group's size divides the number of tiles before it; in a last group of three rows it may "
        "not. The row comes from the place *within* the group, tile % (group * columns), like the column.",
        like=wrong.order_number_in_the_grid,
    ),
    Mistake(
        "both_in_the_grid",
        "Row and column come from the tile's number in the whole grid. Take its place *within* the group, tile % "
        "(group * columns): only while the sizes divide each other is that the same.",
        like=wrong.order_both_in_the_grid,
    ),
    Mistake(
        "divided_by_columns",
        "The place within the group was divided by the number of columns. It goes *down* first: a column of the group "
        "is full after as many tiles as the group has rows.",
        like=wrong.order_divided_by_columns,
    ),
    Mistake(
        "that_many_groups",
        "`group` is how many rows a group has; here it is how many groups there are.",
        like=wrong.order_that_many_groups,
    ),
    Mistake(
        "groups_of_rows_times_rows",
        "A whole group has group · columns tiles; you counted group · rows.",
        like=wrong.order_groups_of_rows_times_rows,
    ),
    Mistake(
        "the_other_way",
        "This is the way back: from a tile of the grid to its place in the order. Asked is which tile the program with "
        "this number takes.",
        like=wrong.order_the_other_way,
    ),
    Mistake(
        "pushed_back",
        "Tiles of the last group that would lie below the last row were pushed back onto it: some are computed twice, "
        "others never. Divide by the group's own size, min(group, rows - first).",
        like=wrong.order_pushed_back,
    ),
    Mistake(
        "snake",
        "Every other column runs upwards. The order asked for goes down in each column.",
        like=wrong.order_snake,
    ),
)
