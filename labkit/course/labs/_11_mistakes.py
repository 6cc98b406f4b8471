"""Lab 11: mistakes as a learner makes them, in rounding, scales, outliers and packing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.judge import Failure

Pair = tuple[Tensor, Tensor]


def _one_for_zero(largest: Tensor) -> Tensor:
    return torch.where(largest != 0, largest, 1.0)


class Absmax:
    """`absmax` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, w: Tensor) -> Pair:
        if self.wrong != "accepts_nan" and not w.isfinite().all():
            raise ValueError("not finite")
        if self.wrong == "half_scales":
            codes, largest = Absmax("")(w)
            return codes, largest.to(w.dtype)
        w = w.float()
        largest = self._largest(w)
        wrong, _, clamped = self.wrong.partition(", clamped to ")
        steps = {"levels_128": 128, "levels_255": 255, "levels_127_5": 127.5}.get(wrong, 127)
        codes = self._rounded(w / (_one_for_zero(largest) / steps))
        if clamped:
            codes = codes.clamp(int(clamped), 127)
        if self.wrong == "float_codes":
            return codes, largest
        codes = codes.to(torch.int8)
        kept = {"flat": largest[:, 0] if largest.ndim == 2 else largest, "step_returned": largest / 127}
        kept |= {"zero_row_is_one": _one_for_zero(largest), "inverse_returned": 127 / _one_for_zero(largest)}
        return codes, kept.get(self.wrong, largest)

    def _largest(self, w: Tensor) -> Tensor:
        if self.wrong == "per_tensor":
            return w.abs().amax().expand(len(w), 1).clone()
        if self.wrong == "per_column":
            return w.abs().amax(0, keepdim=True)
        if self.wrong == "signed_largest":
            return w.amax(-1, keepdim=True)
        return w.abs().amax(-1, keepdim=True)

    def _rounded(self, scaled: Tensor) -> Tensor:
        if self.wrong == "truncates":
            return scaled.trunc()
        if self.wrong == "floors":
            return scaled.floor()
        return scaled.round()


def cut_off(failure: Failure) -> bool:
    """Whether codes are what is left of the steps when their fraction is cut off: however they were computed."""
    return _made_by(torch.trunc, failure)


def down(failure: Failure) -> bool:
    """Whether codes are the steps rounded down: however they were computed."""
    return _made_by(torch.floor, failure)


def _made_by(whole: Callable[[Tensor], Tensor], failure: Failure) -> bool:
    """Whether some code is wrong and all are as `whole` makes them; what is nearly whole may go either way."""
    w, got = failure.case.args[0].double(), failure.got[0].double()
    steps = 127 * w / _one_for_zero(w.abs().amax(-1, keepdim=True))
    possible = torch.stack([whole(steps * (1 + error)) for error in (0.0, 1e-6, -1e-6)])
    return bool((got != failure.expected[0].double()).any() and (got == possible).any(0).all())


def signed(failure: Failure) -> bool:
    """Whether the largest values came back where the largest sizes should, whatever became of the codes."""
    largest, right = failure.got[1], failure.expected[1]
    return torch.equal(largest, failure.case.args[0].float().amax(-1, keepdim=True)) and not torch.equal(largest, right)


def tiny_lost(failure: Failure) -> bool:
    """Whether only rows (or blocks) of tiny weights have wrong codes."""
    w, *_, block = (*failure.case.args, failure.case.args[0].shape[1])
    if len(failure.case.args) == 3:
        block = failure.case.args[2]
    wrong = failure.got[0] != failure.expected[0]
    parts = w.float().unflatten(-1, (-1, block)).abs().amax(-1)
    wrong = wrong.unflatten(-1, (parts.shape[1], -1)).any(-1)
    most = parts[wrong]
    return bool(wrong.any() and (most < 1e-4).all() and (most > 0).all())


def accepted(failure: Failure) -> bool:
    """Whether something came out where the input should be refused."""
    return bool(failure.refusal) and failure.outcome.status == "value"


def _block_maxima(w: Tensor, block: int) -> Tensor:
    filled = F.pad(w, (0, -w.shape[1] % block, 0, -w.shape[0] % block))
    return filled.unflatten(0, (-1, block)).unflatten(2, (-1, block)).abs().amax((1, 3))


def edge_fails(failure: Failure) -> bool:
    """Whether it raised, at sizes that are no multiple of the block."""
    w, block = failure.case.args
    return failure.outcome.status == "error" and bool(w.shape[0] % block or w.shape[1] % block)


def edge_gone(failure: Failure) -> bool:
    """Whether the codes have only what lies in whole blocks."""
    (R, C), block = failure.case.args[0].shape, failure.case.args[1]
    return tuple(failure.got[0].shape) == (R // block * block, C // block * block) != (R, C)


def zero_scale(failure: Failure) -> bool:
    """Whether codes are right, and scales as well but for blocks of zeros."""
    (codes, scale), (right, scales) = failure.got, failure.expected
    of_zeros = _block_maxima(failure.case.args[0], failure.case.args[1]) == 0
    wrong = ~torch.isclose(scale, scales, rtol=1e-4, atol=0.0)
    return bool(torch.equal(codes.float(), right.float()) and wrong.any() and not (wrong & ~of_zeros).any())


def zero_token(failure: Failure) -> bool:
    """Whether NaN came out for tokens of which nothing but zeros is left, and for no others."""
    x, _, _, threshold = failure.case.args
    nothing = (x.masked_fill((x.abs() >= threshold).any(0), 0.0) == 0).all(-1)
    return bool(nothing.any() and torch.equal(failure.got.isnan().any(-1), nothing))


def no_columns_left(failure: Failure) -> bool:
    """Whether it raised where every column has an outlier."""
    x, _, _, threshold = failure.case.args
    return failure.outcome.status == "error" and bool((x.abs() >= threshold).any(0).all())


_CUT = {  # where a quotient is nearly whole, cutting off depends on how it was computed
    "truncates": lambda x, most: x / (most / 127),
    "truncates, multiplied first": lambda x, most: x * 127 / most,
    "truncates, divided first": lambda x, most: x / most * 127,
    "truncates, by the inverse": lambda x, most: x * (127 / most),
}


class OutlierProduct:
    """`outlier_product` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, x: Tensor, codes: Tensor, largest_R1: Tensor, threshold: float) -> Tensor:
        wrong = self.wrong
        size = x if wrong == "signed" else x.abs()
        mask = size > threshold if wrong == "strict" else size >= threshold
        if wrong == "mean_for_any":
            mask = (size.mean(0) >= threshold).expand_as(mask)
        if wrong == "no_outliers":
            mask = torch.zeros_like(mask)
        if wrong == "all_in_high":
            mask = torch.ones_like(mask)
        if wrong == "tokens_for_columns":
            mask = mask.any(1, keepdim=True).expand_as(mask)
        elif wrong == "every_token":
            mask = mask.all(0).expand_as(mask)
        elif wrong != "values_not_columns":
            mask = mask.any(0).expand_as(mask)
        inside, apart = x.masked_fill(mask, 0.0), x.masked_fill(~mask, 0.0)
        return self._sum(x, inside, apart, codes, largest_R1)

    def _sum(self, x: Tensor, inside: Tensor, apart: Tensor, codes: Tensor, largest_R1: Tensor) -> Tensor:
        wrong = self.wrong
        measured = x if wrong in ("outliers_in_scale", "outliers_twice") else inside
        largest = measured.abs().amax(-1, keepdim=True)
        if wrong == "one_scale":
            largest = largest.amax().expand_as(largest)
        if wrong == "column_scales":
            largest = inside.abs().amax(0, keepdim=True)
        step = _one_for_zero(largest) / (128 if wrong == "steps_128" else 127)
        inside = x if wrong == "outliers_twice" else inside
        whole = (inside / step).round()
        if wrong == "steps_128":
            whole = whole.clamp(-128, 127)
        if wrong in _CUT:
            whole = _CUT[wrong](inside, _one_for_zero(largest)).trunc()
        if wrong == "column_scales":
            whole, step = whole * step, torch.ones(len(x), 1)
        sums = whole.double() @ codes.double().T
        if wrong == "int8_sums":
            sums = (sums + 128) % 256 - 128
        y = sums.float() * step
        y = y * (largest_R1.T if wrong == "divided_once" else largest_R1.T / 127)
        weights = codes.float() if wrong == "codes_as_weights" else codes * largest_R1 / 127
        if wrong == "largest_as_step":
            weights = codes * largest_R1
        return y if wrong == "outliers_dropped" else y + apart @ weights.T


class NF4:
    """`nf4` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, w: Tensor, levels: Tensor, block: int) -> Pair:
        wrong = self.wrong
        if wrong == "blocks_down_columns":
            return self._down(w, levels, block)
        if wrong == "strided_blocks":
            return self._strided(w, levels, block)
        parts = w.unflatten(-1, (-1, block))
        largest = parts.abs().amax(-1)
        if wrong == "signed_largest":
            largest = parts.amax(-1)
        if wrong == "scale_per_row":
            largest = w.abs().amax(-1, keepdim=True).expand_as(largest).clone()
        if wrong == "scale_per_matrix":
            largest = w.abs().amax().expand_as(largest).clone()
        if wrong == "deviation":
            largest = parts.square().mean(-1).sqrt()
        by = largest if wrong == "zero_block" else torch.where(largest != 0, largest, 1.0)
        scaled = parts if wrong == "not_scaled" else parts / by[..., None]
        packed = self._packed(scaled.flatten(-2), levels)
        kept = torch.where(largest > 0, largest, 1.0) if wrong == "zero_is_one" else largest
        return packed, kept.flatten() if wrong == "flat_scales" else kept

    def _packed(self, scaled: Tensor, levels: Tensor) -> Tensor:
        wrong = self.wrong
        if wrong == "equal_steps":
            levels = torch.linspace(-1, 1, 16)
        code = (scaled.abs() if wrong == "sign_lost" else scaled)[..., None] - levels
        code = (code if wrong == "signed_distance" else code.abs()).argmin(-1)
        if wrong == "level_below":
            code = (torch.searchsorted(levels, scaled.contiguous(), right=True) - 1).clamp(0, 15)
        if wrong == "level_above":
            code = torch.searchsorted(levels, scaled.contiguous()).clamp(0, 15)
        code = code.to(torch.uint8)
        if wrong == "unpacked":
            return code
        even, odd = code[:, 0::2], code[:, 1::2]
        if wrong == "halves_of_row":
            even, odd = code.chunk(2, dim=1)
        if wrong == "low_first":
            even, odd = odd, even
        return even * 8 + odd if wrong == "three_bits" else even * 16 + odd

    def _strided(self, w: Tensor, levels: Tensor, block: int) -> Pair:
        parts = w.unflatten(-1, (block, -1))
        largest = parts.abs().amax(1)
        return self._packed((parts / _one_for_zero(largest)[:, None]).flatten(-2), levels), largest

    def _down(self, w: Tensor, levels: Tensor, block: int) -> Pair:
        if len(w) % block:
            raise RuntimeError(f"{len(w)} rows are no multiple of {block}")
        largest = w.unflatten(0, (-1, block)).abs().amax(1)
        scaled = w / _one_for_zero(largest).repeat_interleave(block, 0)
        return self._packed(scaled, levels), largest


class Fp8Block:
    """`fp8_block` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, w: Tensor, block: int) -> Pair:
        wrong, (R, C) = self.wrong, w.shape
        if wrong == "edge_dropped":
            return self._dropped(w, block)
        if wrong == "stretches":
            return self._stretches(w, block)
        if wrong == "blocks_by_view":
            return self._by_view(w, block)
        if wrong == "filling_kept":
            return Fp8Block("")(F.pad(w, (0, -C % block, 0, -R % block)), block)
        filled = F.pad(w, (0, -C % block, 0, -R % block))
        parts = filled.unflatten(0, (-1, block)).unflatten(2, (-1, block))
        largest = (parts.amax((1, 3)) if wrong == "signed_largest" else parts.abs().amax((1, 3))).clone()
        if wrong == "one_scale":
            largest = largest.amax().expand_as(largest).clone()
        if wrong == "scale_by_rows":
            largest = largest.amax(1, keepdim=True).expand_as(largest).clone()
        if wrong == "scale_by_columns":
            largest = largest.amax(0, keepdim=True).expand_as(largest).clone()
        top = {"other_e4m3": 240.0, "e5m2": 57344.0, "above_the_top": 480.0, "to_one": 1.0, "as_int8": 127.0}
        scale = largest / top.get(wrong, 448.0)
        if wrong != "zero_block":
            scale = torch.where(largest != 0, scale, 1.0)
        wide = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[:R, :C]
        return self._made(w, wide, scale, largest)

    def _made(self, w: Tensor, wide: Tensor, scale: Tensor, largest: Tensor) -> Pair:
        wrong, e4m3 = self.wrong, torch.float8_e4m3fn
        if wrong == "not_divided":
            return w.to(e4m3), scale
        scaled = w / wide
        if wrong == "whole_numbers":
            scaled = scaled.round()
        if wrong == "truncates":
            scaled = scaled * (1 - 2.0**-5)
        codes = scaled.to(torch.float8_e5m2 if wrong == "e5m2" else e4m3)
        kept = {"turned_scale": scale.T.contiguous(), "inverse_returned": 1 / scale, "largest_returned": largest}
        if wrong == "stays_wide":
            return codes.float(), scale
        return codes, kept.get(wrong, scale)

    def _stretches(self, w: Tensor, block: int) -> Pair:
        made = [Fp8Block("")(row[None], block) for row in w]
        return torch.cat([codes for codes, _ in made]), torch.cat([scale for _, scale in made])

    def _by_view(self, w: Tensor, block: int) -> Pair:
        R, C = w.shape
        filled = F.pad(w, (0, -C % block, 0, -R % block))
        parts = filled.reshape(-(-R // block), -(-C // block), block, block)
        largest = parts.abs().amax((2, 3))
        scale = torch.where(largest > 0, largest / 448, 1.0)
        codes = (parts / scale[..., None, None]).reshape(filled.shape)[:R, :C]
        return codes.to(torch.float8_e4m3fn), scale

    def _dropped(self, w: Tensor, block: int) -> Pair:
        R, C = (max(1, size // block) * block if size >= block else size for size in w.shape)
        codes, scale = Fp8Block("")(w[:R, :C], block)
        return F.pad(codes.float(), (0, w.shape[1] - C, 0, w.shape[0] - R)).to(torch.float8_e4m3fn), scale
