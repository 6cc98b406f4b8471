"""Seeded records for the tests of views: words that have favourite experts, in sequences that have a domain."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from labkit.core.routing import Routing

VOCABULARY = {
    "code": ("def", " return", " x", " =", "(", ")", ":", "\n", " for", " in"),
    "english": (" the", " of", " a", " for", " in", " word", " is", ",", ".", "\n"),
    "numbers": (" 1", " 2", " 3", " +", " =", "(", ")", " for", " 10", "\n"),
}


def make(
    T: int = 240,
    E: int = 8,
    K: int = 2,
    L: int = 2,
    domains: tuple[str, ...] | None = ("code", "english"),
    seed: int = 0,
    *,
    sequence: int = 40,
    tokens: bool = True,
    text: str | None = None,
    spread: float = 1.0,
) -> tuple[Routing, ...]:
    """One record a layer about T tokens in sequences of `sequence` tokens; the domains take the sequences in turn.

    Args:
        domains: labels, known to VOCABULARY or not; None leaves the labels out.
        tokens: whether the record carries the tokens' texts.
        text: a text whose characters are the tokens, repeated as often as needed, in place of the vocabulary's words.
        spread: how strongly a token's text and its domain decide, beside noise of standard deviation one.
    """
    draw = torch.Generator().manual_seed(seed)
    sequence_T = torch.arange(T) // sequence
    names = domains or ("english",)
    domain_T = sequence_T % len(names)
    words = [VOCABULARY.get(name, VOCABULARY["english"]) for name in names]
    picks = torch.randint(10, (T,), generator=draw).tolist()
    texts = [words[d][i] for d, i in zip(domain_T.tolist(), picks, strict=True)]
    if text is not None:
        texts = [text[t % len(text)] for t in range(T)]
    ids = {word: i for i, word in enumerate(sorted(set(texts)))}
    word_T = torch.tensor([ids[word] for word in texts])
    loss_T = torch.rand(T, generator=draw) * 3
    loss_T[torch.cat([sequence_T[1:] != sequence_T[:-1], torch.tensor([True])])] = float("nan")
    labels = tuple(names[d] for d in domain_T.tolist()) if domains else None

    def layer(number: int) -> Routing:
        of_word = spread * torch.randn(len(ids), E, generator=draw)
        of_domain = spread * torch.randn(len(names), E, generator=draw)
        logits_TE = of_word[word_T] + of_domain[domain_T] + torch.randn(T, E, generator=draw)
        scores_TK, topk_ids_TK = logits_TE.softmax(-1).topk(K, dim=-1)
        return Routing.of(
            logits_TE, topk_ids_TK, scores_TK / scores_TK.sum(-1, keepdim=True), layer=number,
            tokens=tuple(texts) if tokens else None, domains=labels, sequence_T=sequence_T, loss_T=loss_T,
        )  # fmt: skip

    return tuple(layer(number) for number in range(L))


def large(T: int = 100_000, E: int = 64, K: int = 8, L: int = 16) -> tuple[Routing, ...]:
    """L layers that share one layer's decisions: as large as a view must bear, and soon made."""
    (record,) = make(T, E, K, 1, ("code", "english", "numbers"))
    return tuple(replace(record, layer=number) for number in range(L))


def payload(widget: Any) -> int:
    """How many characters of JSON the widget sends to the browser, its script and ipywidgets' own traits left out."""
    own = [name for name in widget.keys if not name.startswith("_") and name not in ("layout", "tabbable", "tooltip")]
    return sum(len(json.dumps(getattr(widget, name))) for name in own)
