"""What a teacher said of a text, kept on disk: text and sparse logits together, one memory-mapped file.

A row of the file is a sequence: its ids, which of them are learned, their domains, and for every position K tokens with
their log-probabilities (float16) and the log of the rest's mass (float32). On reading, the kept tokens are scaled to
the mass that the rest leaves, so that float16 moves none between them and the rest. The JSON file beside it says what
made it and seals both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.core.cost import model_flops_per_token
from labkit.train.checkpoint import sha256
from labkit.train.crossentropy import IGNORED
from labkit.train.distill.fingerprint import fingerprint
from labkit.train.distill.objective import teacher_logits
from labkit.train.distill.sparse import ESTIMATORS, Estimator, SparseLogits
from labkit.train.feed import Source

FORMAT = 1
MOST_DOMAINS = 256


@dataclass(frozen=True)
class TeacherCache:
    """A cache's file, and what the JSON file beside it says about it.

    Args:
        path: of the rows, little-endian.
        sequences: N; sequence: S; k: kept tokens; vocab_size: V of the teacher.
        temperature, estimator: of the kept logits (`sparse`).
        domains: names of the numbers in the rows.
        teacher: fingerprint of the model; flops: what its forward passes took, None where nobody can count.
        checksum: SHA-256 of the file.
    """

    path: Path
    sequences: int
    sequence: int
    k: int
    vocab_size: int
    temperature: float
    estimator: Estimator
    domains: tuple[str, ...]
    teacher: str
    flops: float | None
    checksum: str

    @classmethod
    def open(
        cls, path: str | Path, teacher: nn.Module | None = None, *, vocab_size: int | None = None, verify: bool = True
    ) -> TeacherCache:
        """Check a file and what is said about it.

        Args:
            path: of the rows.
            teacher: if given, the model that must have made them; vocab_size: if given, what V must be.
            verify: read the file through and compare its checksum; otherwise only its length is compared.

        Raises ValueError for a file that is missing, truncated, altered, of another format, teacher or vocabulary.
        """
        cache = _read_sidecar(Path(path))
        size, expected = cache.path.stat().st_size, cache.sequences * cache.dtype.itemsize
        if size != expected:
            raise ValueError(f"{path} has {size:,} bytes, but {expected:,} were written; write the cache again")
        if vocab_size not in (None, cache.vocab_size):
            raise ValueError(f"{path} is of a vocabulary of {cache.vocab_size:,}, not {vocab_size:,}; write another")
        if teacher is not None and (found := fingerprint(teacher)) != cache.teacher:
            raise ValueError(
                f"{path} was made by teacher {cache.teacher[:12]}…, not by {found[:12]}…; give that model, or write "
                "the cache again"
            )
        if verify and sha256(cache.path) != cache.checksum:
            raise ValueError(f"{path} is not what was written: its checksum differs; write the cache again")
        return cache

    @property
    def dtype(self) -> np.dtype:
        """A row's."""
        return _row_dtype(self.sequence, self.k, self.vocab_size)

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for each position, its id, mask and domain included."""
        return self.dtype.itemsize / self.sequence

    @cached_property
    def rows(self) -> np.ndarray:
        """[N] rows, mapped from the file, read-only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.sequences,))

    def read(self, numbers: np.ndarray) -> CachedBatch:
        """The rows of these numbers, as a batch."""
        rows = self.rows[numbers]
        ids_BS = torch.from_numpy(rows["ids"].astype(np.int64))
        logp_BSK = torch.from_numpy(rows["logp"].astype(np.float32))
        tail_BS = torch.from_numpy(rows["tail"].astype(np.float32))
        if self.estimator != "sampled":
            logp_BSK = logp_BSK.log_softmax(-1) + torch.log(-torch.expm1(tail_BS))[..., None]
        kept_BSK = torch.from_numpy(rows["kept"].astype(np.int64))
        kept = SparseLogits(kept_BSK, logp_BSK, tail_BS, self.vocab_size, self.temperature, self.estimator)
        labels_BS = ids_BS.where(torch.from_numpy(rows["learned"].astype(bool)), IGNORED)
        return CachedBatch(ids_BS, labels_BS, torch.from_numpy(rows["domain"].astype(np.int64)), kept)


@dataclass(frozen=True, eq=False)
class CachedBatch:
    """A batch as sources give them (`train.feed.Source`), with what the teacher said of it."""

    ids_BS: Tensor
    labels_BS: Tensor
    domain_BS: Tensor
    teacher: SparseLogits


class CachedTeacher:
    """A `train.feed.Source` that reads a cache in the order in which it was written, again and again.

    Args:
        cache: as `TeacherCache.open` gives it.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self.cache, self.domains, self._taken = cache, cache.domains, 0

    @property
    def epochs(self) -> float:
        """How often the rows have been handed out."""
        return self._taken / self.cache.sequences

    def next(self, batch: int, sequence: int) -> CachedBatch:
        """The next `batch` rows. Raises ValueError for another sequence length than was written."""
        if sequence != self.cache.sequence:
            raise ValueError(f"sequence is {sequence}, but the cache's sequences have {self.cache.sequence} tokens")
        numbers = np.arange(self._taken, self._taken + batch) % self.cache.sequences
        self._taken += batch
        return self.cache.read(numbers)

    def state(self) -> dict[str, Any]:
        """The position, and of which file."""
        return {"taken": self._taken, "cache": self.cache.checksum}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises ValueError if it was told by another cache."""
        if state["cache"] != self.cache.checksum:
            raise ValueError(f"the position is of cache {state['cache'][:12]}…, not of {self.cache.checksum[:12]}…")
        self._taken = int(state["taken"])


def write_cache(
    path: str | Path,
    teacher: nn.Module,
    source: Source,
    *,
    sequences: int,
    sequence: int,
    k: int,
    temperature: float = 1.0,
    estimator: Estimator = "tail",
    batch: int = 16,
    seed: int = 0,
) -> TeacherCache:
    """Let a teacher read a source's next sequences and keep what it says; a cache that is there is replaced at once.

    Args:
        path: of the rows; the JSON file beside it has the suffix .json.
        teacher: run where its weights are.
        sequences, sequence: N and S; batch: how many are read at a time.
        k, temperature, estimator: what is kept, see `sparse`; seed: of the draws of "sampled".

    Raises ValueError for numbers out of range, labels that are not the ids themselves, and more than 256 domains.
    """
    if min(sequences, sequence, batch) < 1:
        raise ValueError(f"sequences is {sequences}, sequence {sequence}, batch {batch}; give 1 or more")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}")
    path, device = Path(path), next(teacher.parameters()).device
    names, draw, vocab_size = list(getattr(source, "domains", ())), torch.Generator(device).manual_seed(seed), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as partial, partial.open("wb") as out:
        for first in range(0, sequences, batch):
            some = source.next(min(batch, sequences - first), sequence)
            logits_BSV = teacher_logits(teacher, some.ids_BS.to(device))
            vocab_size = logits_BSV.shape[-1]
            kept = _kept(logits_BSV, k, temperature, estimator, draw)
            out.write(_rows(some, kept, names).tobytes())
    config = getattr(teacher, "config", None)
    counted = isinstance(config, ModelConfig)
    flops = sequences * sequence * model_flops_per_token(config, (sequence + 1) // 2).total if counted else None
    cache = TeacherCache(
        path, sequences, sequence, k, vocab_size, temperature, estimator, tuple(names), fingerprint(teacher), flops,
        sha256(path),
    )  # fmt: skip
    _write_sidecar(cache)
    return cache


def _kept(logits_BSV: Tensor, k: int, temperature: float, estimator: str, draw: torch.Generator) -> SparseLogits:
    if estimator == "sampled":
        return SparseLogits.drawn(logits_BSV, k, temperature=temperature, generator=draw).to("cpu")
    kept = SparseLogits.of(logits_BSV, k, temperature=temperature)
    return (kept.rescaled() if estimator == "topk" else kept).to("cpu")


def _rows(batch: Any, kept: SparseLogits, names: list[str]) -> np.ndarray:
    ids_BS, labels_BS = batch.ids_BS.cpu(), batch.labels_BS.cpu()
    learned_BS = labels_BS != IGNORED
    if not torch.equal(labels_BS[learned_BS], ids_BS[learned_BS]):
        raise ValueError("a label is neither its own token nor −100; a teacher speaks about the text as it stands")
    B, S, K = kept.ids_BSK.shape
    rows = np.empty(B, _row_dtype(S, K, kept.vocab_size))
    rows["ids"], rows["learned"], rows["domain"] = ids_BS.numpy(), learned_BS.numpy(), _domains(batch, names)
    rows["kept"], rows["logp"], rows["tail"] = kept.ids_BSK.numpy(), kept.logp_BSK.numpy(), kept.tail_BS.numpy()
    return rows


def _domains(batch: Any, names: list[str]) -> np.ndarray:
    """[B, S] or [B, 1]: the number of each token's domain; names that are new are added."""
    domain_BS = getattr(batch, "domain_BS", None)
    if domain_BS is None:
        names.extend(name for name in dict.fromkeys(batch.domains) if name not in names)
        domain_BS = torch.tensor([[names.index(name)] for name in batch.domains])
    if len(names) > MOST_DOMAINS or int(domain_BS.max()) >= MOST_DOMAINS:
        raise ValueError(f"there are more than {MOST_DOMAINS} domains; give sequences broader labels")
    return domain_BS.cpu().numpy()


def _row_dtype(S: int, K: int, vocab_size: int) -> np.dtype:
    token = "<u2" if vocab_size <= 2**16 else "<u4"
    return np.dtype([
        ("ids", token, (S,)), ("learned", "u1", (S,)), ("domain", "u1", (S,)), ("kept", token, (S, K)),
        ("logp", "<f2", (S, K)), ("tail", "<f4", (S,)),
    ])  # fmt: skip


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Another name to write to; it takes the place of `path` unless something was raised."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_sidecar(cache: TeacherCache) -> None:
    known = {name: value for name, value in asdict(cache).items() if name != "path"}
    known = {"format": FORMAT, **known}
    with _partial(_sidecar(cache.path)) as partial:
        partial.write_text(json.dumps({**known, "seal": _seal(known)}, indent=1) + "\n", "utf-8")


def _read_sidecar(path: Path) -> TeacherCache:
    sidecar = _sidecar(path)
    for needed in (path, sidecar):
        if not needed.is_file():
            raise ValueError(f"{needed} is missing; make a cache with write_cache, and keep both parts together")
    try:
        known = json.loads(sidecar.read_text("utf-8"))
        seal, version = known.pop("seal"), known["format"]
        if version != FORMAT or seal != _seal(known):
            raise ValueError
        del known["format"]
        return replace(TeacherCache(path=path, **known), domains=tuple(known["domains"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{sidecar} is not what was written beside a cache of format {FORMAT}; write the cache again"
        ) from error


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _seal(known: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
