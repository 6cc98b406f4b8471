"""Answers to lab 11 as learners might write them: wrong ones with the mistake to be found, and right ones.

Most wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import math

import torch
from edits import wrong

# Without these names an edited answer would not find what it calls.
__all__ = ["NEAR_MISSES", "RIGHT_ANSWERS", "math", "torch"]


# ------------------------------------------------------------------------------------------------------------ absmax


def rows(w):
    """A row at a time."""
    if torch.isnan(w).any() or torch.isinf(w).any():
        raise ValueError("not finite")
    wide = w.to(torch.float32)
    codes, largest = torch.zeros(wide.shape, dtype=torch.int8), torch.zeros(len(wide), 1)
    for number, row in enumerate(wide):
        most = row.abs().max()
        largest[number] = most
        if most > 0:
            codes[number] = torch.round(row * (127 / most)).to(torch.int8)
    return codes, largest


ABSMAX = {
    "truncates": {"torch.round(row * (127 / most))": "(row * (127 / most))"},
    "floors": {"torch.round": "torch.floor"},
    "per_tensor": {"row.abs().max()": "wide.abs().max()"},
    "signed_largest": {"row.abs().max()": "row.max()", "most > 0": "most != 0"},
    "levels_128": {"127": "128"},
    "levels_255": {"127": "255"},
    "levels_127_5": {"torch.round(row * (127 / most))": "torch.round(row * (127.5 / most)).clamp(-127, 127)"},
    "tiny_row": {"(127 / most)": "(127 / (most + 1e-8))"},
    "step_returned": {"largest[number] = most": "largest[number] = most / 127"},
    "inverse_returned": {"largest[number] = most": "largest[number] = 127 / (most if most > 0 else 1.0)"},
    "zero_row_is_one": {"largest[number] = most": "largest[number] = most if most > 0 else 1.0"},
    "flat": {"return codes, largest": "return codes, largest[:, 0]"},
    "float_codes": {"dtype=torch.int8": "dtype=torch.float32"},
    "half_scales": {"return codes, largest": "return codes, largest.to(w.dtype)"},
    "accepts_nan": {"if torch.isnan(w).any() or torch.isinf(w).any():": "if False:"},
}


def columns_at_once(w):
    """With numbers of steps clamped, as bitsandbytes has it."""
    if not torch.isfinite(w).all():
        raise ValueError
    largest = w.float().abs().max(dim=1, keepdim=True).values
    codes = (w.float() * 127 / largest.clamp(min=1e-30)).round().clamp(-127, 127)
    return codes.to(torch.int8), largest


# --------------------------------------------------------------------------------------------------- outlier_product


def by_columns(x, codes, largest, threshold):
    """Two lists of columns."""
    found = (x.abs() >= threshold).any(dim=0)
    apart, rest = found.nonzero().flatten(), (~found).nonzero().flatten()
    weights = codes.float() * largest / 127
    y = x[:, apart] @ weights[:, apart].T
    if len(rest):
        inside = x[:, rest]
        most = inside.abs().max(dim=1, keepdim=True).values.clamp(min=1e-30)
        whole = torch.round(inside * 127 / most)
        sums = whole.double() @ codes[:, rest].double().T
        y = y + (sums * most.double() * largest.double().T / 127**2).float()
    return y


OUTLIERS = {
    "no_outliers": {"(x.abs() >= threshold)": "(x.abs() >= math.inf)"},
    "all_in_high": {"torch.round(inside * 127 / most)": "inside * 127 / most"},
    "outliers_in_scale": {"most = inside.abs()": "most = x.abs()"},
    "outliers_twice": {"(~found)": "(~found | found)"},
    "outliers_dropped": {"y = x[:, apart] @ weights[:, apart].T": "y = x.new_zeros(len(x), len(codes))"},
    "every_token": {".any(dim=0)": ".all(dim=0)"},
    "strict": {">=": ">"},
    "signed": {"(x.abs() >=": "(x >="},
    "one_scale": {"inside.abs().max(dim=1, keepdim=True).values": "inside.abs().max()"},
    "column_scales": {
        "max(dim=1": "max(dim=0",
        "whole.double() @": "(whole * most / 127).double() @",
        "sums * most.double() * largest.double().T / 127**2": "sums * largest.double().T / 127",
    },
    "mean_for_any": {"(x.abs() >= threshold).any(dim=0)": "(x.abs().mean(dim=0) >= threshold)"},
    "steps_128": {"inside * 127 / most)": "inside * 128 / most).clamp(-128, 127)", "127**2": "(128 * 127)"},
    "int8_sums": {
        "whole.double() @ codes[:, rest].double().T": "(whole.to(torch.int8) @ codes[:, rest].T).double()",
    },
    "no_columns_left": {"if len(rest):": "if True:"},
    "truncates": {"torch.round": "torch.trunc"},
    "divided_once": {"127**2": "127"},
    "codes_as_weights": {"codes.float() * largest / 127": "codes.float()"},
    "largest_as_step": {"codes.float() * largest / 127": "codes.float() * largest"},
}


def by_values(x, codes, largest, threshold):
    """Masks in place of lists, and a loop over tokens."""
    outlier = ((x >= threshold) | (x <= -threshold)).any(0).float()
    weights, made = codes.float() * (largest / 127), []
    for token in x:
        inside = token * (1 - outlier)
        step = inside.abs().max() / 127
        whole = torch.round(inside / step) if step > 0 else inside
        made.append((whole.double() @ codes.double().T * step * largest.double()[:, 0] / 127).float())
        made[-1] = made[-1] + (token * outlier) @ weights.T
    return torch.stack(made)


VALUES = {
    "zero_token": {" if step > 0 else inside": ""},
    "values_not_columns": {
        "for token in x:": "for token in x:\n        outlier = (token.abs() >= threshold).float()",
    },
    "tokens_for_columns": {
        "for token in x:": "for token in x:\n        outlier = (token.abs() >= threshold).any().float()",
    },
}

# --------------------------------------------------------------------------------------------------------------- nf4


def by_middles(w, levels, block):
    """Where a weight falls between the middles of neighbouring levels."""
    R, C = w.shape
    blocks = w.reshape(R, C // block, block)
    largest = blocks.abs().max(dim=2).values
    safe = largest.clamp(min=1e-30)
    scaled = (blocks / safe[:, :, None]).reshape(R, C)
    code = torch.bucketize(scaled.contiguous(), (levels[1:] + levels[:-1]) / 2)
    code = code.to(torch.uint8)
    return (code[:, ::2] << 4) | code[:, 1::2], largest


NF4 = {
    "low_first": {"(code[:, ::2] << 4) | code[:, 1::2]": "(code[:, 1::2] << 4) | code[:, ::2]"},
    "halves_of_row": {"code[:, ::2]": "code[:, : C // 2]", "code[:, 1::2]": "code[:, C // 2 :]"},
    "three_bits": {"(code[:, ::2] << 4) |": "(code[:, ::2] << 3) +"},
    "unpacked": {"(code[:, ::2] << 4) | code[:, 1::2]": "code"},
    "level_below": {"bucketize(scaled.contiguous(), (levels[1:] + levels[:-1]) / 2)":
                    "bucketize(scaled.contiguous(), levels, right=True).clamp(1, 16) - 1"},
    "level_above": {"bucketize(scaled.contiguous(), (levels[1:] + levels[:-1]) / 2)":
                    "bucketize(scaled.contiguous(), levels).clamp(max=15)"},
    "strided_blocks": {"w.reshape(R, C // block, block)": "w.reshape(R, block, C // block).transpose(1, 2)",
                       "safe[:, :, None]).reshape": "safe[:, :, None]).transpose(1, 2).reshape"},
    "tiny_block": {"min=1e-30": "min=1e-6"},
    "not_scaled": {"(blocks / safe[:, :, None])": "blocks"},
    "scale_per_row": {"blocks.abs().max(dim=2).values": "w.abs().max(dim=1).values[:, None].expand(R, C // block)"},
    "scale_per_matrix": {"blocks.abs().max(dim=2).values": "w.abs().max().expand(R, C // block)"},
    "signed_largest": {"blocks.abs().max(dim=2)": "blocks.max(dim=2)",
                       "largest.clamp(min=1e-30)": "torch.where(largest == 0, 1.0, largest)"},
    "deviation": {"blocks.abs().max(dim=2).values": "blocks.pow(2).mean(dim=2).sqrt()"},
    "sign_lost": {"(blocks / safe": "(blocks.abs() / safe"},
    "equal_steps": {"R, C = w.shape": "R, C = w.shape\n    levels = torch.linspace(-1, 1, 16)"},
    "zero_is_one": {", largest\n": ", torch.where(largest == 0, 1.0, largest)\n"},
    "flat_scales": {", largest\n": ", largest.reshape(-1)\n"},
}  # fmt: skip


def by_distance(w, levels, block):
    """The smallest distance; a block of zeros is told apart by its code."""
    blocks = torch.stack(w.split(block, dim=1), dim=1)
    largest = blocks.abs().amax(dim=2)
    scaled = blocks / largest[:, :, None]
    scaled = torch.nan_to_num(scaled)
    code = torch.stack([(scaled - level).abs() for level in levels], dim=-1).argmin(dim=-1).flatten(1)
    return (16 * code[:, 0::2] + code[:, 1::2]).to(torch.uint8), largest


DISTANCE = {
    "zero_block": {"torch.nan_to_num(scaled)": "scaled"},
    "signed_distance": {"(scaled - level).abs()": "(scaled - level)"},
}

# --------------------------------------------------------------------------------------------------------- fp8_block


def by_loops(w, block):
    """Block after block; slices stop at the edge by themselves."""
    down, across = math.ceil(w.shape[0] / block), math.ceil(w.shape[1] / block)
    scale = torch.ones(down, across)
    codes = torch.zeros(w.shape, dtype=torch.float8_e4m3fn)
    for i in range(down):
        for j in range(across):
            place = slice(i * block, i * block + block), slice(j * block, j * block + block)
            most = w[place].abs().max()
            if most > 0:
                scale[i, j] = most / 448
            codes[place] = (w[place] / scale[i, j]).to(torch.float8_e4m3fn)
    return codes, scale


FP8 = {
    "not_divided": {"(w[place] / scale[i, j])": "w[place]"},
    "inverse_returned": {"return codes, scale": "return codes, 1 / scale"},
    "turned_scale": {"return codes, scale": "return codes, scale.T.contiguous()"},
    "largest_returned": {
        "return codes, scale": "return codes, torch.where(codes_are_zero(w, block), 0.0, 448 * scale)"
    },
    "one_scale": {"w[place].abs().max()": "w.abs().max()"},
    "stretches": {"math.ceil(w.shape[0] / block)": "len(w)", "slice(i * block, i * block + block)": "slice(i, i + 1)"},
    "scale_by_rows": {"w[place].abs().max()": "w[place[0]].abs().max()"},
    "scale_by_columns": {"w[place].abs().max()": "w[:, place[1]].abs().max()"},
    "signed_largest": {"w[place].abs().max()": "signed_largest(w[place])", "most > 0": "most != 0"},
    "other_e4m3": {"448": "240"},
    "e5m2": {"448": "57344", "e4m3fn": "e5m2"},
    "above_the_top": {"448": "480"},
    "to_one": {"most / 448": "most"},
    "as_int8": {"448": "127"},
    "whole_numbers": {"(w[place] / scale[i, j])": "(w[place] / scale[i, j]).round()"},
    "edge_dropped": {"return codes": "codes, scale = whole_blocks(w, block, codes, scale)\n    return codes"},
    "zero_block": {"if most > 0:\n                scale": "if True:\n                scale"},
    "stays_wide": {"return codes, scale": "return codes.float(), scale"},
}


def codes_are_zero(w, block):
    """Blocks of zeros."""
    filled = torch.nn.functional.pad(w, (0, -w.shape[1] % block, 0, -w.shape[0] % block))
    return filled.unflatten(0, (-1, block)).unflatten(2, (-1, block)).abs().amax((1, 3)) == 0


def signed_largest(part):
    """The largest value of a block; zeros fill up what the edge cuts off, as a padded block has them."""
    return part.max()


def whole_blocks(w, block, codes, scale):
    """Only what lies in whole blocks, as floor division has it."""
    R, C = (size // block * block if size >= block else size for size in w.shape)
    codes = codes.float()
    codes[R:], codes[:, C:] = 0, 0
    return codes.to(torch.float8_e4m3fn), scale[: max(1, R // block), : max(1, C // block)]


def by_view(w, block):
    """Fills up with zeros, then six lines of reshaping."""
    R, C = w.shape
    down, across = -(-R // block), -(-C // block)
    filled = w.new_zeros(down * block, across * block)
    filled[:R, :C] = w
    parts = filled.view(down, block, across, block).transpose(1, 2)
    most = parts.abs().flatten(2).max(dim=2).values
    scale = torch.where(most == 0, torch.ones_like(most), most / 448)
    codes = (parts / scale[:, :, None, None]).transpose(1, 2).reshape(filled.shape)[:R, :C]
    return codes.to(torch.float8_e4m3fn), scale


VIEW = {
    "edge_refused": {"filled = w.new_zeros(down * block, across * block)\n    filled[:R, :C] = w": "filled = w"},
    "blocks_by_view": {
        "view(down, block, across, block).transpose(1, 2)": "view(down, across, block, block)",
        ".transpose(1, 2).reshape(filled": ".reshape(filled",
    },
    "filling_kept": {"reshape(filled.shape)[:R, :C]": "reshape(filled.shape)"},
    "zero_scale": {
        "torch.where(most == 0, torch.ones_like(most), most / 448)": "most / 448",
        "(parts / scale[:, :, None, None])": "torch.nan_to_num(parts / scale[:, :, None, None])",
    },
}

# ----------------------------------------------------------------------------------------------------- bytes_by_room


def weighed(model, room):
    """Storages first, with the name that each was seen under."""
    first = {}
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        storage = tensor.untyped_storage()
        first.setdefault(storage.data_ptr(), (room(name), storage.nbytes()))
    rooms = {}
    for where, size in first.values():
        rooms[where] = rooms.get(where, 0) + size
    return rooms


BYTES = {
    "parameters_only": {" + list(model.named_buffers())": ""},
    "buffers_only": {"list(model.named_parameters()) + ": ""},
    "what_is_saved": {"list(model.named_parameters()) + list(model.named_buffers())": "model.state_dict().items()"},
    "shared_twice": {
        "named_parameters()": "named_parameters(remove_duplicate=False)", "storage.data_ptr(), (": "name, (",
    },
    "views_apart": {"storage.data_ptr(), (": "id(tensor), ("},
    "by_first_element": {"storage.data_ptr(), (": "tensor.data_ptr(), ("},
    "nobody_shares": {"storage.data_ptr(), (": "name, (", "storage.nbytes()": "tensor.nbytes"},
    "top_only": {
        "named_parameters()": "named_parameters(recurse=False)", "named_buffers()": "named_buffers(recurse=False)",
    },
    "last_room": {
        "first.setdefault(storage.data_ptr(), (room(name), storage.nbytes()))":
        "first[storage.data_ptr()] = (room(name), storage.nbytes())"
    },
    "view_for_storage": {"storage.nbytes()": "tensor.nbytes"},
    "four_bytes_each": {"storage.nbytes()": "4 * (storage.nbytes() // tensor.element_size())"},
    "elements": {"storage.nbytes()": "storage.nbytes() // tensor.element_size()"},
    "buffers_first": {
        "list(model.named_parameters()) + list(model.named_buffers())":
        "list(model.named_buffers()) + list(model.named_parameters())"
    },
    "by_tensor": {"(room(name), storage": "(name, storage"},
    "last_only": {"rooms.get(where, 0) + size": "size"},
    "only_the_sum": {"return rooms": "return sum(rooms.values())"},
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------- pick_precision


def ranked(feature, low, high, budget):
    """Sorts pairs of feature and place."""
    if budget < low:
        raise ValueError("too little")
    share = (budget - low) / (high - low)
    number = min(len(feature), math.floor(len(feature) * share))
    order = sorted(range(len(feature)), key=lambda t: (-float(feature[t]), t))
    mask = torch.zeros(len(feature), dtype=torch.bool)
    for token in order[:number]:
        mask[token] = True
    return mask


PICK = {
    "smallest": {"-float(feature[t])": "float(feature[t])"},
    "by_size": {"-float(feature[t])": "-abs(float(feature[t]))"},
    "first_come": {"(-float(feature[t]), t)": "t"},
    "rank_for_place": {"return mask": "return torch.tensor([token < number for token in order], dtype=torch.bool)"},
    "of_high": {"(budget - low) / (high - low)": "budget / high"},
    "low_free": {"/ (high - low)": "/ high"},
    "cheap_share": {"(budget - low) / (high - low)": "max(0, (high - budget) / (high - low))"},
    "turned": {"return mask": "return ~mask"},
    "rounds": {"math.floor(": "round("},
    "rounds_up": {"math.floor(": "math.ceil("},
    "later_first": {"t]), t)": "t]), -t)"},
    "any_of_equals": {"t]), t)": "t]), 2 * t % 5)"},
    "low_refused": {"if budget < low:": "if budget <= low:"},
    "accepts_less": {
        "if budget < low:": "if False:",
        "min(len(feature), ": "max(0, min(len(feature), ",
        "share))": "share)))",
    },
    "numbers_of_tokens": {"return mask": "return torch.tensor(order[:number], dtype=torch.int64)"},
    "whole_numbers": {"return mask": "return mask.int()"},
}


def by_threshold(feature, low, high, budget):
    """Everything above the last value, and of those equal to it as many as are left."""
    if budget < low:
        raise ValueError(budget)
    T = feature.numel()
    number = min(T, int((budget - low) * T / (high - low)))
    if number == 0:
        return torch.zeros(T, dtype=torch.bool)
    last = feature.topk(number).values[-1]
    above, equal = feature > last, feature == last
    return above | (equal & (equal.cumsum(0) <= number - above.sum()))


THRESHOLD = {
    "threshold_lets_ties_in": {"(equal & (equal.cumsum(0) <= number - above.sum()))": "equal"},
    "unbounded": {"min(T, int((budget - low) * T / (high - low)))": "int((budget - low) * T / (high - low))",
                  "feature.topk(number).values": "feature.sort(descending=True).values[:number].view(number)"},
}  # fmt: skip

NEAR_MISSES = {
    "11.absmax": wrong(rows, ABSMAX),
    "11.outlier_product": [*wrong(by_columns, OUTLIERS), *wrong(by_values, VALUES)],
    "11.nf4": [*wrong(by_middles, NF4), *wrong(by_distance, DISTANCE)],
    "11.fp8_block": [*wrong(by_loops, FP8), *wrong(by_view, VIEW)],
    "11.bytes_by_room": wrong(weighed, BYTES),
    "11.pick_precision": [*wrong(ranked, PICK), *wrong(by_threshold, THRESHOLD)],
}

RIGHT_ANSWERS = {
    "11.absmax": [rows, columns_at_once],
    "11.outlier_product": [by_columns, by_values],
    "11.nf4": [by_middles, by_distance],
    "11.fp8_block": [by_loops, by_view],
    "11.bytes_by_room": [weighed],
    "11.pick_precision": [ranked, by_threshold],
}
