"""What counting can do: interpolated n-gram models, the baselines that a trained model must beat.

Interpolated Kneser–Ney with one discount for each order (Kneser and Ney 1995; Chen and Goodman 1999, whose estimate
n1 / (n1 + 2·n2) of the discount is used). The highest order counts occurrences, each lower one counts how many
different tokens an n-gram follows; below the unigram lies the uniform distribution, so no token has probability zero.
N-grams are kept as 64-bit hashes in sorted arrays: exact but for collisions. Left out on purpose: modified Kneser–Ney's
three discounts, sentence boundaries (where a row begins, the shorter orders serve as they are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labkit.train.tokenizer import token_lengths, tokenizer_digest
from labkit.train.tokens import TokenFile, evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TOKENS_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Order:
    """The counts of one order: what n-grams of that length there are, and what their contexts lead to.

    Args:
        keys: [N] uint64, sorted hashes of the n-grams; counts: [N] int64.
        context_keys: [C] uint64, sorted hashes of the first n − 1 tokens.
        totals: [C] int64, the sum of the counts after a context; types: [C] int64, how many tokens follow it.
        discount: taken off every count and given to the lower order.
    """

    keys: np.ndarray
    counts: np.ndarray
    context_keys: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float


@dataclass(frozen=True, eq=False)
class NGram:
    """An interpolated n-gram model over a vocabulary of `vocab_size` tokens; `orders[0]` is the unigram."""

    vocab_size: int
    orders: tuple[Order, ...]

    def nats(self, ids_BS: np.ndarray) -> np.ndarray:
        """−ln p of every token given the tokens before it in its row, at most n − 1 of them.

        Args:
            ids_BS: [B, S] integers in [0, V).

        Returns [B, S] float64. Raises ValueError for other shapes and ids.
        """
        ids_BS = np.asarray(ids_BS)
        if ids_BS.ndim != 2:
            raise ValueError(f"ids have shape {ids_BS.shape}; give [B, S]")
        _check_ids(ids_BS, self.vocab_size)
        found = np.empty(ids_BS.shape)
        step = max(1, _TOKENS_AT_ONCE // max(1, ids_BS.shape[1]))
        for first in range(0, len(ids_BS), step):
            found[first : first + step] = self._nats(ids_BS[first : first + step])
        return found

    def distribution(self, context: Sequence[int] = ()) -> np.ndarray:
        """[V] float64, the probability of each token after these; it sums to one."""
        context = list(context)[-(len(self.orders) - 1) :] if len(self.orders) > 1 else []
        rows = np.array([[*context, token] for token in range(self.vocab_size)])
        return np.exp(-self.nats(rows)[:, -1])

    def _nats(self, ids_BS: np.ndarray) -> np.ndarray:
        B, S = ids_BS.shape
        p_BS = np.full((B, S), 1 / self.vocab_size)
        before_BS = _hashes(ids_BS, 0)  # of the n − 1 tokens that end at each position
        for n, order in enumerate(self.orders, start=1):
            if n > S:
                break
            here_BS = _hashes(ids_BS, n)
            context = before_BS[:, : S - n + 1] if n == 1 else before_BS[:, n - 2 : S - 1]
            at, known = _look_up(order.context_keys, context.ravel())
            place, seen = _look_up(order.keys, here_BS[:, n - 1 :].ravel())
            count = np.where(seen, order.counts[place], 0)
            total, types, lower = order.totals[at], order.types[at], p_BS[:, n - 1 :].ravel()
            p = (np.maximum(count - order.discount, 0) + order.discount * types * lower) / total
            p_BS[:, n - 1 :] = np.where(known, p, lower).reshape(B, S - n + 1)
            before_BS = here_BS
        return -np.log(p_BS)


def fit(ids: np.ndarray, vocab_size: int, order: int = 5) -> NGram:
    """Count n-grams up to this order.

    Args:
        ids: [T] integers in [0, V), such as `TokenFile.ids`; documents are not kept apart.
        vocab_size: V.
        order: n, 1 or more; 1 is the unigram model.

    Raises ValueError for sizes out of range, and for fewer tokens than `order`. A million tokens need about 0.2 GB
    while it counts.
    """
    if vocab_size < 1 or order < 1:
        raise ValueError(f"vocab_size is {vocab_size} and order {order}; give 1 or more")
    if np.ndim(ids) != 1 or len(ids) < order:
        raise ValueError(f"ids have shape {np.shape(ids)}; give [T] with at least {order} tokens, one for each order")
    _check_ids(ids, vocab_size)
    orders: list[Order] = []
    ends = np.arange(order - 1, len(ids))  # where an n-gram of the order in hand ends, once for each time it counts
    for n in range(order, 0, -1):
        hashes = _hashes(ids[None], n)[0, ends]
        keys, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        ends = ends[first]
        before = _hashes(ids[None], n - 1)[0, ends - 1]  # for n = 1 all alike
        context_keys, context = np.unique(before, return_inverse=True)
        totals = np.bincount(context, weights=counts).astype(np.int64)
        orders.append(Order(keys, counts, context_keys, totals, np.bincount(context), _discount(counts)))
    return NGram(vocab_size, tuple(reversed(orders)))


@dataclass(frozen=True)
class Loss:
    """What a model loses on held-out tokens: nats a token, nats a byte of their text, and how many tokens it were."""

    nats_per_token: float
    nats_per_byte: float
    tokens: int


def baselines(
    train: Mapping[str, TokenFile],
    validation: Mapping[str, TokenFile],
    tokenizer: PreTrainedTokenizerFast,
    sequence: int = 512,
    max_tokens: int | None = None,
    *,
    orders: Sequence[int] = (1, 5),
) -> dict[str, dict[int, Loss]]:
    """The losses of n-gram models fitted to each domain's training tokens, on exactly what a trained model is asked.

    Args:
        train, validation: token files by domain, made with `tokenizer`.
        sequence, max_tokens: as `tokens.evaluation` takes them. As there, a window's first token is given and not
            predicted, and nothing before the window is seen.
        orders: the lengths n.

    Returns for each domain and order its `Loss`. Raises ValueError for files of another tokenizer, a domain without
    training tokens, windows of one token, and what `evaluation` and `fit` refuse.
    """
    digest = tokenizer_digest(tokenizer)
    if missing := set(validation) - set(train):
        raise ValueError(f"validation has {', '.join(sorted(missing))}, which train lacks; give the same domains")
    if other := [f.path for f in (*train.values(), *validation.values()) if f.tokenizer != digest]:
        raise ValueError(f"{other[0]} was made with another tokenizer; give the one that made the files")
    if sequence < 2:
        raise ValueError(f"sequence is {sequence}; give 2 or more: the first token of a window is not predicted")
    lengths, found = token_lengths(tokenizer), {}
    for domain, ids_BS in _windows(validation, sequence, max_tokens).items():
        models = {n: fit(train[domain].ids, len(lengths), n) for n in orders}
        size = max(1, int(lengths[ids_BS[:, 1:]].sum()))
        nats = {n: model.nats(ids_BS)[:, 1:] for n, model in models.items()}
        found[domain] = {n: Loss(float(x.mean()), float(x.sum()) / size, x.size) for n, x in nats.items()}
    return found


def describe(found: Mapping[str, Mapping[int, Loss]]) -> str:
    """A table of `baselines`."""
    lines = [f"{'domain':<12}{'model':>9}{'nats/token':>12}{'nats/byte':>11}{'tokens':>11}"]
    for domain, losses in found.items():
        for n, loss in losses.items():
            name = "unigram" if n == 1 else f"{n}-gram"
            numbers = f"{loss.nats_per_token:>12.4f}{loss.nats_per_byte:>11.4f}{loss.tokens:>11,}"
            lines.append(f"{domain:<12}{name:>9}{numbers}")
    return "\n".join(lines)


def _windows(files: Mapping[str, TokenFile], sequence: int, max_tokens: int | None) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {domain: [] for domain in files}
    for batch in evaluation(files, sequence, max_tokens):
        rows[batch.domains[0]].append(batch.ids_BS.numpy())
    return {domain: np.concatenate(parts) for domain, parts in rows.items()}


def _discount(counts: np.ndarray) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _hashes(ids_BS: np.ndarray, n: int) -> np.ndarray:
    """[B, S] uint64: the hash of the n tokens that end at each position; before position n − 1 it means nothing."""
    B, S = ids_BS.shape
    state = np.full((B, S), _mix(np.array([n], dtype=np.uint64))[0])
    for back in range(n - 1, -1, -1):
        state[:, back:] = _mix(state[:, back:] ^ (ids_BS[:, : S - back].astype(np.uint64) + np.uint64(1)))
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads every bit (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _look_up(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key stands in the sorted keys, and whether it is there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids have dtype {ids.dtype}; give integers")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids run from {int(ids.min())} to {int(ids.max())}; this vocabulary has [0, {vocab_size})")
