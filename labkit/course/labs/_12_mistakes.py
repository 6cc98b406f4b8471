"""Lab 12: mistakes as a learner makes them, in tensors. Each class is its exercise's answer with one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LeftPad:
    """`left_pad` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
        wrong = self.wrong
        if wrong == "empty_accepted" and not all(prompts):
            prompts = [list(prompt) or [pad] for prompt in prompts]
        if not prompts or not all(prompts):
            raise ValueError("a prompt is empty")
        ids_BS = torch.tensor(self._rows(prompts, 0 if wrong == "zero_for_pad" else pad))
        real_BS = torch.tensor(self._rows([[1] * len(prompt) for prompt in prompts], 0))
        mask_BS = (ids_BS != pad).long() if wrong == "mask_from_ids" else real_BS
        mask_BS = {"mask_inverted": 1 - mask_BS, "mask_all": torch.ones_like(mask_BS)}.get(wrong, mask_BS)
        positions_BS = self._positions(mask_BS)
        return ids_BS, mask_BS, positions_BS * mask_BS if wrong.endswith(", zero at padding") else positions_BS

    def _rows(self, prompts: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
        wrong, lengths = self.wrong, list(map(len, prompts))
        width = min(lengths) if wrong == "cut_to_shortest" else max(lengths) + (wrong == "one_too_wide")
        rows = [list(prompt)[::-1] if wrong == "reversed" else list(prompt) for prompt in prompts]
        rows = [row[-width:] for row in rows]
        if wrong.startswith("right"):
            return [row + [fill] * (width - len(row)) for row in rows]
        if wrong.startswith("both_sides"):
            return [[fill] * ((width - len(row)) // 2) + row + [fill] * -(-(width - len(row)) // 2) for row in rows]
        return [[fill] * (width - len(row)) + row for row in rows]

    def _positions(self, mask_BS: Tensor) -> Tensor:
        wrong, counted_BS = self.wrong, mask_BS.cumsum(1)
        if wrong == "columns":
            return torch.arange(mask_BS.shape[1]).expand_as(mask_BS).clone()
        if wrong == "columns_masked":
            return torch.arange(mask_BS.shape[1]) * mask_BS
        if wrong == "from_one":
            return counted_BS
        if wrong == "below_zero":
            return counted_BS - 1
        if wrong == "along_batch":
            return (mask_BS.cumsum(0) - 1).clamp(min=0)
        if wrong == "backwards":
            return mask_BS.flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)
        return (counted_BS - 1).clamp(min=0)


class PagedAttention:
    """`paged_attention` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong, _, self.how = wrong.partition(", ")

    def __call__(
        self, query_NHd: Tensor, key_BSGd: Tensor, value_BSGd: Tensor, tables_NM: Tensor, lengths_N: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        wrong, size, (H, d) = self.wrong, key_BSGd.shape[1], query_NHd.shape[1:]
        scale = {"no_scale": 1.0, "root_scale": d**-0.5, "scale_twice": scale**2, "divided": 1 / scale}.get(
            wrong, scale
        )
        if wrong == "swapped":
            key_BSGd, value_BSGd = value_BSGd, key_BSGd
        position_P = torch.arange(tables_NM.shape[1] * size)
        rows_NP = self._rows(tables_NM, position_P, size) % (key_BSGd.shape[0] * size)
        seen_NP = self._seen(position_P, lengths_N, size)
        if wrong == "zero_is_nobody":
            seen_NP = seen_NP & (tables_NM[:, position_P // size] != 0)
        seen_N11P, hidden = seen_NP[:, None, None], ~seen_NP[..., None, None]
        key_NPGd, value_NPGd = (pool.flatten(0, 1)[rows_NP] for pool in (key_BSGd, value_BSGd))
        key_NPGd = key_NPGd.masked_fill(hidden, 0.0)
        if wrong != "nan":
            value_NPGd = value_NPGd.masked_fill(hidden, 0.0)
        groups = H // key_BSGd.shape[2]
        query_NGrd = self._grouped(query_NHd, groups)
        logits = scale * torch.einsum("ngrd,npgd->ngrp", query_NGrd, key_NPGd)
        logits = logits.masked_fill(~seen_N11P, 0.0 if wrong == "zero_mask" else -torch.inf)
        weights = self._softmax(logits, seen_N11P)
        return self._whole(torch.einsum("ngrp,npgd->ngrd", weights, value_NPGd), H)

    def _softmax(self, logits: Tensor, seen: Tensor) -> Tensor:
        axis: dict[str, Any] = {"over_batch": 0, "over_groups": 1, "over_heads": 2}
        if self.wrong in axis:
            if self.how == "of all":
                return logits.flatten(1, 2).masked_fill(~seen[:, 0], -1e9).softmax(1).view_as(logits) * seen
            if self.how == "minus infinity":
                return logits.softmax(dim=axis[self.wrong])
            return logits.masked_fill(~seen, -1e9).softmax(dim=axis[self.wrong]) * seen
        if self.wrong == "no_softmax":
            return logits.masked_fill(~seen, 0.0)
        if self.wrong == "mean":
            return seen / seen.sum(-1, keepdim=True).expand_as(logits)
        return logits.softmax(dim=-1)

    def _rows(self, tables_NM: Tensor, position_P: Tensor, size: int) -> Tensor:
        wrong, block_NP, offset_P = self.wrong, tables_NM[:, position_P // size], position_P % size
        if wrong == "no_table":
            return position_P.expand(len(tables_NM), -1)
        if wrong == "first_block":
            return tables_NM[:, :1] * size + position_P
        if wrong == "block_for_row":
            return block_NP
        if wrong == "block_plus_offset":
            return block_NP + offset_P
        if wrong == "first_rows":
            return block_NP * size
        if wrong == "sorted_blocks":
            return tables_NM.sort(dim=1).values[:, position_P // size] * size + offset_P
        if wrong == "others_table":
            return block_NP[:1].expand_as(block_NP) * size + offset_P
        return block_NP * size + offset_P

    def _seen(self, position_P: Tensor, lengths_N: Tensor, size: int) -> Tensor:
        wrong, block_P = self.wrong, position_P // size
        if wrong == "begun_blocks":
            return block_P * size < lengths_N[:, None]
        if wrong == "full_blocks":
            return (block_P + 1) * size <= lengths_N[:, None]
        if wrong == "everything":
            return (position_P >= 0).expand(len(lengths_N), -1)
        if wrong == "longest":
            return (position_P < lengths_N.max()).expand(len(lengths_N), -1)
        if wrong == "one_too_many":
            return position_P <= lengths_N[:, None]
        if wrong == "itself_left_out":
            return position_P < (lengths_N[:, None] - 1).clamp(min=1)
        return position_P < lengths_N[:, None]

    def _grouped(self, query_NHd: Tensor, groups: int) -> Tensor:
        if self.wrong == "heads_in_turn":
            return query_NHd.unflatten(1, (groups, -1)).transpose(1, 2)
        return query_NHd.unflatten(1, (-1, groups))

    def _whole(self, y_NGrd: Tensor, H: int) -> Tensor:
        if self.wrong == "heads_in_turn":
            return y_NGrd.transpose(1, 2).flatten(1, 2)
        if self.wrong == "heads_shuffled":
            return y_NGrd.transpose(1, 2).flatten(1, 2)
        return y_NGrd.flatten(1, 2)
