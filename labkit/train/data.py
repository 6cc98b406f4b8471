"""Text whose domain is known, made on this machine: nothing is downloaded, and a digest says what was read.

Four domains, byte-level (vocabulary 256): "code" (the standard library's sources, docstrings taken out), "english"
(the interpreter's reference topics and those docstrings), "arithmetic" and "records" (generated, right and distinct).
The same interpreter version and seed give the same bytes. Left out on purpose: learned tokenizers, streaming.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from labkit.train import sources

DOMAINS = ("code", "english", "arithmetic", "records")
VOCAB_SIZE = 256
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Corpus:
    """Pages of text by domain, split for training and validation; no page is in both.

    Args:
        train: for each domain its pages, at most 4096 bytes each, cut at line ends.
        validation: the same for the held-out pages.
        notes: what could not be read and what was done instead; usually empty.
    """

    train: dict[str, tuple[str, ...]]
    validation: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The labels, in the order asked for."""
        return tuple(self.train)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every domain's name and bytes, in hexadecimal: equal digests mean equal corpora."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation):
            for domain, pages in split.items():
                for text in (domain, *pages):
                    data = text.encode()
                    sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()

    def bytes_of(self, domain: str, split: str = "train") -> bytes:
        """One domain's pages of a split, joined. Raises ValueError for a domain or split that is not there."""
        if split not in ("train", "validation"):
            raise ValueError(f"split is {split!r}; choose 'train' or 'validation'")
        if domain not in self.train:
            raise ValueError(f"domain is {domain!r}; this corpus has {', '.join(self.domains)}")
        return "".join(getattr(self, split)[domain]).encode()

    def describe(self) -> str:
        """A table of sizes, the digest, and the notes."""
        lines = [f"{'domain':<12}{'pages':>7}{'train bytes':>13}{'validation':>12}"]
        for domain in self.domains:
            pages = len(self.train[domain]) + len(self.validation[domain])
            sizes = [len(self.bytes_of(domain, split)) for split in ("train", "validation")]
            lines.append(f"{domain:<12}{pages:>7,}{sizes[0]:>13,}{sizes[1]:>12,}")
        return "\n".join([*lines, f"digest {self.digest[:16]}", *self.notes])


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of bytes with the domain of each.

    Args:
        ids_BS: [B, S] int64, each in [0, 256).
        domains: B labels.
    """

    ids_BS: Tensor
    domains: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The readable text of each of the B·S bytes: what `Routing.tokens` wants.

        >>> Batch(torch.tensor([[65, 10, 200]]), ("code",)).tokens
        ('A', '⏎', '\\\\xc8')
        """
        return tuple(_VISIBLE[i] for i in self.ids_BS.flatten().tolist())

    @property
    def token_domains(self) -> tuple[str, ...]:
        """The label of each of the B·S bytes: what `Routing.domains` wants."""
        S = self.ids_BS.shape[1]
        return tuple(domain for domain in self.domains for _ in range(S))

    @property
    def texts(self) -> tuple[str, ...]:
        """Each sequence as text; bytes of a character that the window cuts are shown as �."""
        return tuple(bytes(row).decode(errors="replace") for row in self.ids_BS.tolist())


_SPECIAL = {ord("\n"): "⏎", ord("\t"): "⇥", ord(" "): "␣"}
_VISIBLE = tuple(_SPECIAL.get(i, chr(i) if 33 <= i < 127 else f"\\x{i:02x}") for i in range(VOCAB_SIZE))


def corpus(
    domains: Sequence[str] = DOMAINS,
    bytes_per_domain: int = 200_000,
    *,
    validation_share: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """Read and generate the text of these domains.

    Args:
        domains: labels out of `DOMAINS`, in the order wanted.
        bytes_per_domain: how much of each, both splits together; at least two pages (8192 bytes).
        validation_share: the held-out share, in (0, 1).
        seed: of the order in which library modules are read, of the generated domains, and of the split.

    Raises ValueError for unknown or repeated domains, impossible sizes, and when this interpreter's library holds less
    text than asked for (it says how much there is).
    """
    _check_corpus(domains, bytes_per_domain, validation_share)
    train, validation, notes = {}, {}, []
    for domain in domains:
        rng = random.Random(f"{domain}/{seed}")
        pages = _pages(domain, bytes_per_domain, rng, notes)
        rng.shuffle(pages)
        held = max(1, round(len(pages) * validation_share))
        train[domain], validation[domain] = tuple(pages[held:]), tuple(pages[:held])
    return Corpus(train, validation, tuple(dict.fromkeys(notes)))


def sample(source: Corpus, *, num_sequences: int, sequence_length: int, seed: int = 0, split: str = "train") -> Batch:
    """Random windows, the domains in turn: sequence i comes from domain i modulo their number.

    Args:
        source: a `Corpus`.
        num_sequences: B; sequence_length: S, in bytes.
        seed: the same seed gives the same batch.
        split: "train" or "validation".

    Raises ValueError for sizes below one and for windows longer than a domain's split.
    """
    if num_sequences < 1 or sequence_length < 1:
        raise ValueError(f"num_sequences is {num_sequences} and sequence_length {sequence_length}; give 1 or more")
    texts = {domain: source.bytes_of(domain, split) for domain in source.domains}
    shortest = min(texts, key=lambda domain: len(texts[domain]))
    if sequence_length > len(texts[shortest]):
        raise ValueError(
            f"sequence_length is {sequence_length} but {shortest} has only {len(texts[shortest])} {split} bytes; "
            "shorten it or raise bytes_per_domain"
        )
    rng = random.Random(f"{split}/{seed}")
    labels = tuple(source.domains[i % len(source.domains)] for i in range(num_sequences))
    rows = []
    for domain in labels:
        start = rng.randrange(len(texts[domain]) - sequence_length + 1)
        rows.append(list(texts[domain][start : start + sequence_length]))
    return Batch(torch.tensor(rows, dtype=torch.int64), labels)


def byte_features(ids: Tensor, dim: int, *, seed: int = 0, window: int = 8) -> Tensor:
    """A vector for each byte in its context, without a trained model: what labs 01 and 02 route.

    Each position's 1-, 2- and 3-grams (ending there, never looking ahead) are hashed into a fixed random table; a row
    is the position's own sum plus the mean over the last `window` positions, scaled to root mean square one.

    Args:
        ids: [..., S] integers in [0, 256).
        dim: D, the width.
        seed: of the table.
        window: how many bytes back the mean reaches, counting the byte itself.

    Returns [..., S, D] float32 on the CPU. Raises ValueError for other ids and sizes below one.

    >>> byte_features(torch.tensor(list(b"one two")), dim=16).shape
    torch.Size([7, 16])
    """
    _check_ids(ids)
    if dim < 1 or window < 1:
        raise ValueError(f"dim is {dim} and window {window}; give 1 or more")
    ids = ids.detach().cpu().long()
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(_BUCKETS, dim, generator=generator)
    rows = ids.reshape(ids.shape[:-1].numel(), ids.shape[-1])
    own = sum(table[_gram(rows, n)] for n in (1, 2, 3))
    total = own.cumsum(dim=1)
    before = torch.zeros_like(total)
    before[:, window:] = total[:, :-window]
    count = torch.arange(1, rows.shape[1] + 1).clamp_max(window)[:, None]
    x = own + (total - before) / count
    return (x / x.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)).reshape(*ids.shape, dim)


_BUCKETS = 4096


def _gram(rows: Tensor, n: int) -> Tensor:
    """The bucket of the n-gram that ends at each position; before the start stands 256."""
    padded = torch.nn.functional.pad(rows, (n - 1, 0), value=VOCAB_SIZE)
    value = torch.full_like(rows, n)
    for k in range(n):
        value = (value * 1_000_003 + padded[:, k : k + rows.shape[1]] + 1) % 2_147_483_647
    return (value * 40_503 % 2_147_483_647) % _BUCKETS


def toy_2d(num_points: int = 600, num_classes: int = 4, *, seed: int = 0, noise: float = 0.04) -> tuple[Tensor, Tensor]:
    """Points in the plane on interleaved spiral arms, one class an arm: lab 01's toy, which no straight line divides.

    Args:
        num_points: N; the classes take turns, so their sizes differ by one at most.
        num_classes: arms, 2 or more.
        seed: of the positions.
        noise: standard deviation around the arm, where the outer end is at radius 1.

    Returns `x` [N, 2] float32 and `labels` [N] int64. Raises ValueError for sizes out of range.

    >>> x, labels = toy_2d(6, 3)
    >>> labels.tolist()
    [0, 1, 2, 0, 1, 2]
    """
    if num_points < 1 or num_classes < 2 or noise < 0:
        raise ValueError(
            f"num_points is {num_points}, num_classes {num_classes}, noise {noise}; give 1, 2 and 0 or more"
        )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_points) % num_classes
    radius = 0.15 + 0.85 * torch.rand(num_points, generator=generator).sqrt()
    angle = 2 * torch.pi * labels / num_classes + 1.2 * torch.pi * radius
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return x + noise * torch.randn(num_points, 2, generator=generator), labels


def _pages(domain: str, size: int, rng: random.Random, notes: list[str]) -> list[str]:
    pages, left = [], size
    for text in sources.read(domain, rng, notes):
        for page in _cut(text):
            data = page.encode()[:left]
            pages.append(data.decode(errors="ignore"))
            left -= len(data)
            if left == 0:
                return pages
    raise ValueError(
        f"bytes_per_domain is {size:,} but {domain!r} has only {size - left:,} bytes in this interpreter's library; "
        f"ask for less{': ' + '; '.join(notes) if notes else ''}"
    )


def _cut(text: str) -> Iterator[str]:
    page, size = [], 0
    for line in text.splitlines(keepends=True):
        length = len(line.encode())
        if page and size + length > PAGE_BYTES:
            yield "".join(page)
            page, size = [], 0
        page.append(line)
        size += length
    if page:
        yield "".join(page)


def _check_corpus(domains: Sequence[str], bytes_per_domain: int, validation_share: float) -> None:
    if isinstance(domains, str) or not domains or len(set(domains)) != len(domains) or not set(domains) <= set(DOMAINS):
        raise ValueError(f"domains is {domains!r}; give distinct names out of {', '.join(DOMAINS)}")
    if bytes_per_domain < 2 * PAGE_BYTES:
        raise ValueError(f"bytes_per_domain is {bytes_per_domain}; give {2 * PAGE_BYTES} or more, two pages")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}; give a share between 0 and 1")


def _check_ids(ids: Tensor) -> None:
    if ids.ndim < 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; give integers [..., S]")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < VOCAB_SIZE:  # int: 256 wraps in uint8
        raise ValueError(f"ids run from {int(ids.min())} to {int(ids.max())}; bytes lie in [0, {VOCAB_SIZE})")
