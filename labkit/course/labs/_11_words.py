"""Lab 11: the mistakes in formats that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._11_mistakes import NF4 as Nf4
from labkit.course.labs._11_mistakes import (
    Absmax,
    Fp8Block,
    OutlierProduct,
    accepted,
    cut_off,
    down,
    edge_fails,
    edge_gone,
    no_columns_left,
    signed,
    tiny_lost,
    zero_scale,
    zero_token,
)

_ABSMAX = {
    "truncates": "The codes are cut off towards zero: `.to(torch.int8)` does that by itself. Round first; else the "
    "error "
    "is up to a whole step, and always towards zero.",
    "floors": "The codes are rounded down. Nearest halves the error: `.round()`.",
    "per_tensor": "All rows share the scale of the largest weight of the matrix. Each row has its own: `amax(dim=-1, "
    "keepdim=True)`.",
    "per_column": "The largest was taken of each column. A row is an output, and shares a scale: `dim=-1`.",
    "signed_largest": "The largest *value* was taken, not the largest size. Where the largest is negative it is "
    "missed: "
    "`.abs()` before `.amax()`.",
    "levels_128": "The largest weight lies at 128 steps, which int8 does not have: it wraps around to −128, or has to "
    "be clamped. There are 127 steps on either side.",
    "levels_255": "255 steps were laid from zero to the largest. They have to do for both signs: 127 on either side.",
    "levels_127_5": "127.5 steps were laid from zero to the largest, half of 255. Codes are whole: 127 on either side.",
    "step_returned": "The codes are right; a step, largest / 127, came back in place of the largest itself.",
    "inverse_returned": "The codes are right; 127 / largest came back in place of the largest.",
    "zero_row_is_one": "The codes are right. For a row of zeros the largest is 0, and 1 came back: replace it for the "
    "division only.",
    "flat": "The largest sizes are [R]; keep the last dimension, [R, 1], so that codes · largest works: "
    "`keepdim=True`.",
    "float_codes": "The codes are whole numbers in a floating-point tensor, four bytes each. Convert them: "
    "`.to(torch.int8)`.",
    "half_scales": "Scales came back in the weights' own format. In float16 they have three digits, and every weight "
    "of "
    "the row gets their error: `.float()` first.",
    "accepts_nan": "A weight that is NaN or infinite came through. One of them makes a whole row useless without a "
    "sound: raise ValueError.",
}
_SEEN = {"truncates": cut_off, "floors": down, "accepts_nan": accepted, "signed_largest": signed}
_CLAMPED = [(name, f"{name}, clamped to {low}") for name in ("levels_128", "levels_127_5") for low in (-127, -128)]
_TINY = (
    "A {} of tiny weights came out wrong: its largest was clamped, or something was added to it. Zero alone must not "
    "be divided by; whatever is larger is a scale like any other."
)
ABSMAX = (
    *(Mistake(name, says, like=Absmax(name), when=_SEEN.get(name)) for name, says in _ABSMAX.items()),
    *(Mistake(name, _ABSMAX[name], like=Absmax(how)) for name, how in _CLAMPED),
    Mistake("tiny_row", _TINY.format("row"), when=tiny_lost),
)

_OUTLIERS = {
    "no_outliers": "That is the product with all columns in INT8: the threshold has no effect.",
    "all_in_high": "That is the product with all columns in high precision: nothing was quantised. Only columns with "
    "an "
    "outlier stay as they are.",
    "outliers_in_scale": "The outlier columns are out of the whole numbers, but not out of the tokens' scales: their "
    "largest was taken before. Then the rest is as coarse as without LLM.int8.",
    "outliers_twice": "Columns with outliers are in both parts, so they count twice. Set them to zero in the INT8 "
    "part.",
    "outliers_dropped": "The columns with outliers are missing in the result. Add their product, in high precision.",
    "values_not_columns": "Only the large values were taken out, and the rest of their columns stayed in INT8. A "
    "column "
    "belongs to one part for all tokens; a product of scattered values would be a sparse one.",
    "every_token": "A column was taken out only if *every* token has an outlier there. One is enough: `.any(dim=0)`.",
    "tokens_for_columns": "Tokens with an outlier were taken out as a whole, `any(dim=1)`. Columns are: `any(dim=0)`.",
    "strict": "A value that is just as large as the threshold counts as an outlier: `>=`.",
    "signed": "Outliers below zero were not found: compare the size, `x.abs()`.",
    "one_scale": "All tokens share one scale. Each has its own, [T, 1]: `amax(dim=-1, keepdim=True)`.",
    "column_scales": "The activations have a scale for each column. Such a scale cannot be taken out of a sum over "
    "columns: the product would not be one of whole numbers. Each *token* has its own: `amax(dim=-1, keepdim=True)`.",
    "mean_for_any": "A column was taken out where the *mean* of its sizes reaches the threshold. One value is enough: "
    "`.any(dim=0)`.",
    "truncates": "The tokens' codes were cut off: round.",
    "steps_128": "The tokens were laid on 128 steps. As for weights, there are 127 on either side.",
    "int8_sums": "The sum of products was kept in eight bits, and wrapped around: 127 · 127 alone is 16,129. Widen the "
    "codes before the product, to float64 or int32.",
    "divided_once": "There are two scales, and each is a largest size over 127. One of them was not divided.",
    "codes_as_weights": "The columns apart were multiplied with the weights' codes. Make them whole first: codes · "
    "largest / 127.",
    "largest_as_step": "The weights of the columns apart are 127 times too large: codes · largest *over 127*.",
}
_CUTS = ("multiplied first", "divided first", "by the inverse")
OUTLIER_PRODUCT = (
    *(Mistake(name, says, like=OutlierProduct(name)) for name, says in _OUTLIERS.items()),
    *(Mistake("truncates", _OUTLIERS["truncates"], like=OutlierProduct(f"truncates, {how}")) for how in _CUTS),
    Mistake(
        "zero_token",
        "Where a token has nothing but zeros in the INT8 part, its scale is 0, and 0 / 0 is NaN. Divide by 1 there.",
        when=zero_token,
    ),
    Mistake(
        "no_columns_left",
        "It fails where every column has an outlier: of no columns there is no largest. Set columns to zero rather "
        "than cut them out, or treat that case apart.",
        when=no_columns_left,
    ),
)

_NF4 = {
    "low_first": "The two halves of each byte are swapped: the even column goes into the high half, × 16.",
    "halves_of_row": "A byte holds column j and column j + C/2. It should hold two neighbours, `code[:, 0::2]` and "
    "`code[:, 1::2]`.",
    "three_bits": "The even column's code was moved by three bits, × 8. A half byte has four: × 16.",
    "unpacked": "There is one code in a byte. Two belong there: half of the memory would be empty.",
    "level_below": "Each weight got the next level *below* it. The nearest is meant: the smallest distance.",
    "level_above": "Each weight got the next level *above* it: that is what `searchsorted` and `bucketize` find among "
    "the levels. The nearest is meant: the smallest distance.",
    "signed_distance": "The smallest *signed* difference is that to the largest level, for every weight. Distances "
    "have no sign: `.abs()` before `.argmin()`.",
    "not_scaled": "The weights were compared with the levels as they are. Levels are from −1 to 1: divide each block "
    "by "
    "its largest size.",
    "scale_per_row": "All blocks of a row share one scale. Each block has its own.",
    "scale_per_matrix": "The whole matrix has one scale. Each block of a row has its own.",
    "blocks_down_columns": "The blocks go down the columns. Neighbours in a *row* share a scale.",
    "strided_blocks": "A block has every n-th column of a row. Neighbours share a scale: the block's columns are the "
    "*last* dimension, `unflatten(-1, (-1, block))`.",
    "signed_largest": "The largest value of a block was taken, not the largest size: `.abs()` before `.amax()`.",
    "deviation": "A block was divided by its root mean square. Then some weights lie beyond the outermost level: "
    "absmax.",
    "sign_lost": "The sign is gone: the levels are from −1 to 1, with sign.",
    "equal_steps": "These are sixteen levels at equal distances. The levels are given; use them.",
    "zero_block": "In a block of zeros, 0 / 0 is NaN, and its code is not that of 0. Divide by 1 there.",
    "zero_is_one": "The codes are right. For a block of zeros the largest is 0, and 1 came back: replace it for the "
    "division only.",
    "flat_scales": "The scales are right and flat. Their shape is [R, C/block].",
}
NF4 = (
    *(Mistake(name, says, like=Nf4(name)) for name, says in _NF4.items()),
    Mistake("tiny_block", _TINY.format("block"), when=tiny_lost),
)

_FP8 = {
    "not_divided": "The weights were converted as they are. Divide each block by its scale first: small weights become "
    "zero otherwise, large ones NaN.",
    "inverse_returned": "The codes are right; the scale is upside down. It is what a code of 1 is worth: largest / "
    "448.",
    "largest_returned": "The codes are right; the largest sizes came back in place of the scales, largest / 448.",
    "turned_scale": "The codes are right; the scales are transposed. Rows of the scale are rows of blocks.",
    "one_scale": "All blocks share the scale of the largest. Each has its own.",
    "scale_by_rows": "Blocks of the same rows share a scale. Cut the columns, too.",
    "scale_by_columns": "Blocks of the same columns share a scale. Cut the rows, too.",
    "stretches": "Each row was cut into stretches by itself; that is what DeepSeek-V3 does for activations. A weight's "
    "block has rows as well as columns, and its scale is one number for all of them.",
    "blocks_by_view": "Neighbours in memory were taken for blocks: `reshape(…, block, block)` goes along a whole row "
    "first. Cut rows and columns apart, [⌈R/block⌉, block, ⌈C/block⌉, block], and look over dimensions 1 and 3.",
    "filling_kept": "The zeros that filled up the last blocks came back with the codes. Cut them off again: [:R, :C].",
    "signed_largest": "The largest value of a block was taken, not the largest size: `.abs()` before `.amax()`.",
    "other_e4m3": "The largest became 240. That is the end of another E4M3, the one with infinities; torch's "
    "`float8_e4m3fn` ends at 448.",
    "e5m2": "That is E5M2, with two bits of mantissa and 57,344 at the end. E4M3 is `torch.float8_e4m3fn`, up to 448.",
    "above_the_top": "The largest weights lie above 448 and have become NaN: E4M3 has no infinity, and no room above.",
    "to_one": "The largest of a block became 1. That leaves the codes from 1 to 448 unused, and small weights fall "
    "below "
    "the smallest number.",
    "as_int8": "The largest became 127. In E4M3 the end is 448.",
    "whole_numbers": "The scaled weights were rounded to whole numbers first. The conversion rounds by itself, and "
    "knows "
    "fractions.",
    "truncates": "The codes are rounded towards zero. Torch's conversion rounds to the nearest: divide, convert, and "
    "nothing else.",
    "edge_dropped": "What lies beyond the last whole block is missing. There are ⌈R/block⌉ × ⌈C/block⌉ blocks.",
    "zero_block": "A block of zeros has the scale 0, and 0 / 0 is NaN. Its scale shall be 1.",
    "stays_wide": "The codes are rounded, but lie in float32, four bytes each. Leave them in `torch.float8_e4m3fn`.",
}
_EDGE = (
    "It fails where the sizes are no multiple of the block. The last blocks may be smaller: fill up with zeros and cut "
    "off again, or slice."
)
FP8_BLOCK = (
    *(Mistake(name, says, like=Fp8Block(name)) for name, says in _FP8.items()),
    Mistake("edge_refused", _EDGE, when=edge_fails),
    Mistake("edge_dropped", _FP8["edge_dropped"], when=edge_gone),
    Mistake("zero_scale", "The codes are right. The scale of a block of zeros shall be 1.0.", when=zero_scale),
)
