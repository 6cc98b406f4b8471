"""Lab 12's oracles: transformers' own padding, torch's attention on each sequence alone, numpy's percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a tokenizer of transformers pads on the left, and the positions that its `generate` makes of the mask."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(100)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), pad_token=str(pad), padding_side="left"
    )
    padded = tokenizer.pad({"input_ids": [list(prompt) for prompt in prompts]}, return_tensors="pt")
    mask_BS = padded["attention_mask"]
    positions_BS = (mask_BS.long().cumsum(-1) - 1).masked_fill(mask_BS == 0, 0)
    return padded["input_ids"], mask_BS, positions_BS


def no_refusal(case: Case) -> bool:
    """Whether every prompt has a token; a tokenizer pads empty ones, too."""
    return bool(case.args[0]) and all(case.args[0])


def paged_attention(
    query_NHd: Tensor, key_BSGd: Tensor, value_BSGd: Tensor, tables_NM: Tensor, lengths_N: Tensor, scale: float
) -> Tensor:
    """Each sequence's blocks laid side by side, cut to its length, through torch's scaled dot-product attention."""
    found = []
    for query_Hd, table_M, length in zip(query_NHd, tables_NM, lengths_N.tolist(), strict=True):
        key_GPd, value_GPd = (pool[table_M].flatten(0, 1)[:length].transpose(0, 1) for pool in (key_BSGd, value_BSGd))
        y_1H1d = F.scaled_dot_product_attention(
            query_Hd[None, :, None], key_GPd[None], value_GPd[None], scale=scale, enable_gqa=True
        )
        found.append(y_1H1d[0, :, 0])
    return torch.stack(found)


def latencies(
    arrived: Mapping[str, float], tokens: Sequence[tuple[float, str]], percent: int
) -> tuple[float | None, float | None]:
    """numpy's percentile by inverted distribution function, of each request's times (see `whole_in_floats`)."""
    times = {id: np.array([second for second, who in tokens if who == id]) for id in arrived}
    first = [seconds[0] - arrived[id] for id, seconds in times.items() if len(seconds)]
    gaps = np.concatenate([np.empty(0), *(np.diff(seconds) for seconds in times.values())])
    return tuple(
        float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else None
        for values in (first, gaps)
    )


def whole_in_floats(case: Case) -> bool:
    """Whether numpy finds the rank: it multiplies in floating point, and 56 % of 25 becomes the 15th value there."""
    return case.args[2] != 56
