"""Batches of tokens in a seeded order that can be taken up again exactly; the files they come from are `token_files`.

A window is `sequence` tokens in a row, whatever documents they belong to; windows never overlap, and an epoch takes
each once. Labels are the ids themselves: the model shifts them. Left out on purpose: a mask between the documents of
a window, padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.train.token_files import TokenFile, open_tokens, write_tokens

__all__ = ["TokenBatch", "TokenFile", "TokenSource", "evaluation", "open_tokens", "write_tokens"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Windows of tokens with the domain of each.

    Args:
        ids_BS: [B, S] int64.
        labels_BS: [B, S] int64, the ids again, not shifted; −100 where nothing is to be learned.
        domains: B labels.
    """

    ids_BS: Tensor
    labels_BS: Tensor
    domains: tuple[str, ...]


class TokenSource:
    """Batches in a fixed, seeded order, the domains in given shares.

    Every row is a window of the domain that is furthest behind its share, so the shares hold exactly, not by chance.
    Within a domain an epoch takes every window once, in an order of its own; which tokens fall off at the ends also
    differs from epoch to epoch. The order depends on the seed and the files only, not on the machine.

    Args:
        files: token files by domain, such as `write_tokens(…)["train"]`.
        weights: the share of rows of each domain, any positive numbers; left out, all alike.
        seed: of the order.
        rank, world: this process and how many share the work: it gets rows `rank·B` to `rank·B + B` of a batch of
            `world·B`, so that all together see what one process with that batch would.

    Raises ValueError for no files, weights that do not fit, and files of different tokenizers.
    """

    def __init__(
        self,
        files: Mapping[str, TokenFile],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.files = dict(files)
        _check_files(self.files)
        self.domains = tuple(self.files)
        self.weights = _shares(self.domains, weights)
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of world {world}; give 0 ≤ rank < world")
        self.seed, self.rank, self.world = seed, rank, world
        self._taken = dict.fromkeys(self.domains, 0)
        self._sequence = 0  # 0: not yet asked
        self._starts: dict[str, tuple[int, np.ndarray]] = {}

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain's windows have been handed out, by all processes together."""
        windows = {domain: file.tokens // max(1, self._sequence) for domain, file in self.files.items()}
        return {domain: self._taken[domain] / max(1, windows[domain]) for domain in self.domains}

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens of each domain have been handed out, by all processes together."""
        return {domain: count * self._sequence for domain, count in self._taken.items()}

    def next(self, batch: int, sequence: int) -> TokenBatch:
        """The next `batch` windows of `sequence` tokens.

        Raises ValueError for sizes below one, a domain shorter than a window, and another sequence than before.
        """
        self._cut(batch, sequence)
        mine = range(self.rank * batch, (self.rank + 1) * batch)
        domains, starts = [], []
        for row in range(batch * self.world):
            domain = self._furthest_behind()
            if row in mine:
                domains.append(domain)
                starts.append(self._start(domain, self._taken[domain]))
            self._taken[domain] += 1
        return _batch(self.files, domains, starts, sequence)

    def state(self) -> dict[str, Any]:
        """The position, as JSON-able values; the same for every rank."""
        return {
            "seed": self.seed,
            "sequence": self._sequence,
            "taken": dict(self._taken),
            "weights": dict(self.weights),
            "files": {domain: file.checksum for domain, file in self.files.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a position: the next batches are those that followed it.

        Raises ValueError if it was told by a source of other files, weights or seed.
        """
        mine = self.state()
        if set(state) != set(mine):
            raise ValueError(f"state has the keys {', '.join(sorted(state))}; expected {', '.join(sorted(mine))}")
        for key in ("files", "weights", "seed"):
            if state[key] != mine[key]:
                raise ValueError(f"state was told by a source with other {key}: {state[key]}, here {mine[key]}")
        if set(state["taken"]) != set(self.domains):
            raise ValueError(f"state counts {', '.join(state['taken'])}; this source has {', '.join(self.domains)}")
        self._taken = {domain: int(state["taken"][domain]) for domain in self.domains}
        self._sequence = int(state["sequence"])
        self._starts.clear()

    def _cut(self, batch: int, sequence: int) -> None:
        if batch < 1 or sequence < 1:
            raise ValueError(f"batch is {batch} and sequence {sequence}; give 1 or more")
        if self._sequence not in (0, sequence):
            raise ValueError(f"sequence is {sequence}, but windows are {self._sequence} long; make a new TokenSource")
        _check_length(self.files, sequence)
        self._sequence = sequence

    def _furthest_behind(self) -> str:
        rows = sum(self._taken.values()) + 1
        # names decide between equals, not the order in which the files were given: it may differ when a run goes on
        return max(sorted(self.domains), key=lambda domain: self.weights[domain] * rows - self._taken[domain])

    def _start(self, domain: str, number: int) -> int:
        epoch, index = divmod(number, self.files[domain].tokens // self._sequence)
        if self._starts.get(domain, (-1,))[0] != epoch:
            self._starts[domain] = (epoch, self._epoch(domain, epoch))
        return int(self._starts[domain][1][index])

    def _epoch(self, domain: str, epoch: int) -> np.ndarray:
        """The first token of every window in the epoch's order."""
        windows, rest = divmod(self.files[domain].tokens, self._sequence)
        name = hashlib.sha256(f"{self.seed}/{domain}/{epoch}".encode()).digest()
        # Raw numbers of a named generator are the same in every numpy; its permutations need not be.
        raw = np.random.PCG64(int.from_bytes(name[:16], "big")).random_raw(windows + 1)
        return np.argsort(raw[1:], kind="stable") * self._sequence + int(raw[0] % np.uint64(rest + 1))


def evaluation(
    files: Mapping[str, TokenFile], sequence: int, max_tokens: int | None = None, *, batch: int = 16
) -> tuple[TokenBatch, ...]:
    """Fixed batches that cover the held-out tokens evenly, domain after domain.

    Args:
        files: token files by domain, such as `write_tokens(…)["validation"]`.
        sequence: the length of a window.
        max_tokens: the most of all domains together, shared alike; None: every whole window.
        batch: the most windows in a batch; a batch holds one domain.

    Raises ValueError for sizes below one, a domain shorter than a window, and fewer than a window for each domain.
    """
    files = dict(files)
    _check_files(files)
    if batch < 1 or sequence < 1:
        raise ValueError(f"batch is {batch} and sequence {sequence}; give 1 or more")
    _check_length(files, sequence)
    most = None if max_tokens is None else max_tokens // (sequence * len(files))
    if most == 0:
        raise ValueError(f"max_tokens is {max_tokens}; {len(files)} domains need {len(files) * sequence} or more")
    batches = []
    for domain, file in files.items():
        windows = file.tokens // sequence
        number = windows if most is None else min(windows, most)
        starts = [i * windows // number * sequence for i in range(number)]
        for first in range(0, number, batch):
            rows = starts[first : first + batch]
            batches.append(_batch(files, [domain] * len(rows), rows, sequence))
    return tuple(batches)


def _batch(files: Mapping[str, TokenFile], domains: Sequence[str], starts: Sequence[int], sequence: int) -> TokenBatch:
    ids_BS = np.empty((len(starts), sequence), dtype=np.int64)
    for row, (domain, start) in enumerate(zip(domains, starts, strict=True)):
        ids_BS[row] = files[domain].ids[start : start + sequence]
    ids_BS = torch.from_numpy(ids_BS)
    return TokenBatch(ids_BS, ids_BS.clone(), tuple(domains))


def _shares(domains: Sequence[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    weights = dict.fromkeys(domains, 1.0) if weights is None else dict(weights)
    if set(weights) != set(domains):
        raise ValueError(f"weights are of {', '.join(weights)}; give one for each of {', '.join(domains)}")
    if not all(0 < weight < float("inf") for weight in weights.values()):
        raise ValueError(f"weights are {weights}; give positive numbers, and leave a domain out of files to skip it")
    total = sum(weights[domain] for domain in domains)
    return {domain: weights[domain] / total for domain in domains}


def _check_files(files: Mapping[str, TokenFile]) -> None:
    if not files or not all(isinstance(file, TokenFile) for file in files.values()):
        raise ValueError("files must map each domain to its TokenFile, such as write_tokens(…)['train']")
    if len({(file.tokenizer, file.vocab_size) for file in files.values()}) > 1:
        raise ValueError(f"the files of {', '.join(files)} were made with different tokenizers; write them again")


def _check_length(files: Mapping[str, TokenFile], sequence: int) -> None:
    shortest = min(files, key=lambda domain: files[domain].tokens)
    if files[shortest].tokens < sequence:
        raise ValueError(
            f"sequence is {sequence} but {shortest} has only {files[shortest].tokens} tokens; "
            "shorten it or give more text"
        )
