"""Labelled text on its way into a model: token ids, which of them are real, and what each is called.

Legend: B sequences, S positions of the longest, T = B·S.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.core.padding import real_tokens


@dataclass(frozen=True, eq=False)
class Labelled:
    """Sequences of token ids with the domain of each.

    Args:
        ids_BS: [B, S], whole numbers.
        domains: the label of each sequence, B strings; None where there are none.
        mask_BS: [B, S], true or 1 where a token is real; None: all are. Padding may stand on either side.
        tokens: the text of each position, row by row, B·S strings, padding included; None where nobody knows.

    Raises ValueError if one does not fit the others, or if a sequence is nothing but padding.
    """

    ids_BS: Tensor
    domains: tuple[str, ...] | None = None
    mask_BS: Tensor | None = None
    tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        ids = self.ids_BS
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.numel() == 0:
            what = f"shape {tuple(ids.shape)} and dtype {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"Labelled.ids_BS has {what}; give whole numbers [sequences, positions], at least one")
        for name, labels, wanted in (("domains", self.domains, len(ids)), ("tokens", self.tokens, ids.numel())):
            if isinstance(labels, str) or (labels is not None and len(labels) != wanted):
                raise ValueError(f"Labelled.{name} has {len(labels)} labels; give a tuple of {wanted}")
        mask_BS = real_tokens(self.mask_BS, ids.numel(), ids.device).view(ids.shape)
        if not mask_BS.any(dim=1).all():
            empty = (~mask_BS.any(dim=1)).nonzero()[0].item()
            raise ValueError(f"Labelled.mask_BS: sequence {empty} is nothing but padding; leave it out")
        object.__setattr__(self, "mask_BS", mask_BS)

    def parts(self, size: int) -> Iterator[Labelled]:
        """The same sequences, `size` at a time, without positions that are padding in all of them."""
        S = self.ids_BS.shape[1]
        for start in range(0, len(self.ids_BS), size):
            rows = slice(start, start + size)
            used = self.mask_BS[rows].any(dim=0).nonzero()
            columns = slice(int(used[0]), int(used[-1]) + 1)
            tokens = None
            if self.tokens is not None:
                lines = (self.tokens[row * S : (row + 1) * S] for row in range(len(self.ids_BS))[rows])
                tokens = tuple(token for line in lines for token in line[columns])
            domains = None if self.domains is None else tuple(self.domains[rows])
            yield Labelled(self.ids_BS[rows, columns], domains, self.mask_BS[rows, columns], tokens)


def labelled(batch: Any, tokenizer: Any = None) -> Labelled:
    """A `Labelled` batch of whatever text comes in.

    Args:
        batch: a `Labelled`; anything with `ids_BS` and `domains`, such as `train.data.Batch`; token ids [B, S]; or
            texts: a mapping from domain to one text or several, or a sequence of texts without domains.
        tokenizer: of transformers; needed for texts, and to name tokens that come as ids. Texts are padded on the
            right, with id 0 under the mask, so a tokenizer without a padding token will do. Nothing is cut off.

    Raises ValueError for anything else, for texts without a tokenizer, and for a text without a token.

    >>> labelled(torch.tensor([[5, 6]])).mask_BS.tolist()
    [[True, True]]
    """
    if isinstance(batch, Labelled):
        return _named(batch, tokenizer)
    if isinstance(batch, Tensor):
        return _named(Labelled(batch), tokenizer)
    if hasattr(batch, "ids_BS"):
        tokens = getattr(batch, "tokens", None)
        domains = getattr(batch, "domains", None)
        made = Labelled(batch.ids_BS, domains, getattr(batch, "mask_BS", None), tokens)
        return _named(made, tokenizer)
    texts, domains = _texts(batch)
    if tokenizer is None:
        raise ValueError("trace was given text and no tokenizer; give tokenizer=…, or token ids as a Labelled batch")
    return _tokenized(texts, domains, tokenizer)


def _texts(batch: Any) -> tuple[list[str], tuple[str, ...] | None]:
    if isinstance(batch, str):
        batch = [batch]
    if isinstance(batch, Mapping):
        rows = [
            (d, text) for d, some in batch.items() for text in (some if isinstance(some, (list, tuple)) else [some])
        ]
        domains, texts = tuple(str(d) for d, _ in rows), [text for _, text in rows]
    elif isinstance(batch, Sequence):
        domains, texts = None, list(batch)
    else:
        domains, texts = None, [batch]
    if not texts or not all(isinstance(text, str) for text in texts):
        kinds = ", ".join(sorted({type(text).__name__ for text in texts})) or "nothing"
        raise ValueError(
            f"trace cannot read {kinds} as a batch; give a Labelled, token ids [B, S], or texts by domain: "
            '{"code": ["…"], "english": ["…"]}'
        )
    return texts, domains


def _tokenized(texts: list[str], domains: tuple[str, ...] | None, tokenizer: Any) -> Labelled:
    with_spans = bool(getattr(tokenizer, "is_fast", False))
    rows, names = [], []
    for text in texts:
        made = tokenizer(text, return_offsets_mapping=True) if with_spans else tokenizer(text)
        ids = list(made["input_ids"])
        if not ids:
            raise ValueError(f"the tokenizer makes no token of {text[:40]!r}; leave that text out")
        rows.append(ids)
        called = _names(ids, tokenizer)
        if with_spans:  # the very letters; special tokens have none
            called = [text[a:b] or name for (a, b), name in zip(made["offset_mapping"], called, strict=True)]
        names.append(called)
    S = max(map(len, rows))
    ids_BS = torch.tensor([row + [0] * (S - len(row)) for row in rows])
    mask_BS = torch.tensor([[True] * len(row) + [False] * (S - len(row)) for row in rows])
    tokens = tuple(token for row in names for token in row + [""] * (S - len(row)))
    return Labelled(ids_BS, domains, mask_BS, tokens)


def _named(batch: Labelled, tokenizer: Any) -> Labelled:
    if batch.tokens is not None or tokenizer is None:
        return batch
    return Labelled(
        batch.ids_BS, batch.domains, batch.mask_BS, tuple(_names(batch.ids_BS.flatten().tolist(), tokenizer))
    )


def _names(ids: list[int], tokenizer: Any) -> list[str]:
    """Each id's text; the word boundary that SentencePiece keeps in a piece, and `decode` loses, is a space again."""
    known = {}
    for i in set(ids):
        piece, text = tokenizer.convert_ids_to_tokens(i), tokenizer.decode([i])
        lost = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
        known[i] = (" " if lost else "") + (text or str(piece))
    return [known[i] for i in ids]
