"""Lab 10: mistakes as a learner makes them in the flash kernel. It goes wrong in every way, and WRONG says in which.

A mistake that does not fit together in unequal tiles is not made there: errors that are alike would be taken for it.
"""

from __future__ import annotations

from labkit.course.labs._language import tl, triton


@triton.jit
def flash(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, D)
    program = tl.program_id(0)
    if WRONG == "always_the_first_tile":
        program = 0
    row = program * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + column[None, :], mask=(row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], 0.0 if WRONG == "top_begins_at_zero" else float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    last = S if WRONG == "loop_to_S" else K
    if CAUSAL:
        last = tl.minimum(K, (program + 1) * BLOCK_S)
    if WRONG == "whole_tiles_only":
        last = tl.maximum(K // BLOCK_K, 1) * BLOCK_K
    for first in range(0, last, BLOCK_K):
        key = (0 if WRONG == "first_tile_only" else first) + tl.arange(0, BLOCK_K)
        at, inside = key[:, None] * D + column[None, :], (key < K)[:, None]
        k = tl.load(k_ptr + at, mask=inside, other=0.0)
        scores = tl.dot(q, k if WRONG == "not_transposed" and D == BLOCK_K else tl.trans(k), input_precision="ieee")
        if WRONG == "divided_by_scale":
            scores /= scale
        elif WRONG != "not_scaled":
            scores *= scale
        seen = (key < (S if WRONG == "keys_by_S" else K))[None, :]
        if WRONG == "padding_counts":
            seen = (key > -1)[None, :]
        if CAUSAL and WRONG != "not_causal":
            if WRONG == "not_itself":
                seen = seen & ((key[None, :] < row[:, None]) | (key[None, :] == 0))
            elif WRONG == "rows_of_the_tile":
                seen = seen & (key[None, :] <= tl.arange(0, BLOCK_S)[:, None])
            elif WRONG == "the_future":
                seen = seen & ((key[None, :] >= row[:, None]) | (key[None, :] == 0))
            else:
                seen = seen & (key[None, :] <= row[:, None])
        unmasked = scores
        scores = tl.where(seen, scores, 0.0 if WRONG == "masked_with_zero" else float("-inf"))
        highest = tl.max(unmasked if WRONG == "masked_after_the_maximum" else scores, axis=1)
        higher = highest if WRONG == "block_maximum" else tl.maximum(top, highest)
        if WRONG == "no_maximum":
            higher = tl.zeros([BLOCK_S], tl.float32)
        powers = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        if WRONG == "powers_of_two":
            powers = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(top - higher)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
        added = tl.sum(powers, axis=0 if WRONG == "sums_of_columns" and BLOCK_S == BLOCK_K else 1)
        if WRONG == "total_not_shrunk" or WRONG == "neither_shrunk":
            total += added
        else:
            total = total * shrink + added
        if WRONG == "out_not_shrunk" or WRONG == "neither_shrunk":
            kept = out
        elif WRONG == "columns_shrunk" and D == BLOCK_S:
            kept = out * shrink
        else:
            kept = out * shrink[:, None]
        if WRONG == "divided_in_every_tile":
            powers = powers / tl.sum(powers, axis=1)[:, None]
        if WRONG != "powers_stay_wide":
            powers = powers.to(v.dtype)
        out = kept + tl.dot(powers, v, input_precision="ieee")
        if WRONG != "maximum_forgotten":
            top = higher
    if WRONG != "not_divided" and WRONG != "divided_in_every_tile":
        out = out / total[:, None]
    tl.store(out_ptr + row[:, None] * D + column[None, :], out, mask=(row < S)[:, None])
