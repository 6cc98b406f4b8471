"""A corpus for training real, if small, models: whole documents, held out by name, so that nothing held out leaks.

The four domains of `train.data`. A library module, a reference topic or a sum is held out if and only if the SHA-256 of
its name says so, on every machine and Python version, whatever else is read. Installed packages' sources may join.
Blocks of a held-out document that stand in a training document too (licences, copied functions) are taken out of it.
Left out on purpose: near-duplicates within the training text, quality filters, downloads.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from labkit.train import packages as installed
from labkit.train import sources

DOMAINS = ("code", "english", "arithmetic", "records")
HELD_OUT_SHARE = 0.08
DOCUMENT_BYTES = 262_144  # a longer document is cut: giants are tables rather than text
BLOCK_CHARACTERS = 160
_LINES_OF_SUMS = 100
_BLANK = re.compile(r"(\n(?:[ \t]*\n)+)")


@dataclass(frozen=True)
class Origin:
    """One source of text and what became of it, counted in modules or topics.

    Args:
        name, version: of the package, the library or the reference.
        read: read for training; held_out: read for validation.
        skipped: left out by rule: tests, vendored copies, generated files.
        unread: not readable or not parsable here; `Documents.notes` says why.
    """

    name: str
    version: str
    read: int
    held_out: int
    skipped: int
    unread: int


@dataclass(frozen=True)
class Documents:
    """Whole documents by domain, for training and validation.

    Args:
        train: for each domain its documents, at most 256 KiB each.
        validation: the same for the held-out ones.
        origins: what was read.
        notes: what could not be read, and limits that the sources could not fill.
    """

    train: dict[str, tuple[str, ...]]
    validation: dict[str, tuple[str, ...]]
    origins: tuple[Origin, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The labels, in the order asked for."""
        return tuple(self.train)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every split's, domain's and document's bytes, in hexadecimal."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation):
            for domain, documents in split.items():
                for text in (domain, str(len(documents)), *documents):
                    data = text.encode()
                    sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()

    @cached_property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """For each domain the UTF-8 bytes of training and of validation."""
        return {d: (sum(map(_size, self.train[d])), sum(map(_size, self.validation[d]))) for d in self.domains}

    def describe(self) -> str:
        """Tables of sizes and of what was read, the digest, and the notes."""
        lines = [f"{'domain':<12}{'documents':>11}{'bytes':>15}{'held out':>11}{'bytes':>13}"]
        for domain, (train, held) in self.sizes.items():
            counts = len(self.train[domain]), len(self.validation[domain])
            lines.append(f"{domain:<12}{counts[0]:>11,}{train:>15,}{counts[1]:>11,}{held:>13,}")
        lines.append(f"\n{'source':<18}{'version':<16}{'read':>8}{'held out':>10}{'skipped':>9}{'unread':>8}")
        for o in self.origins:
            lines.append(f"{o.name:<18}{o.version:<16}{o.read:>8,}{o.held_out:>10,}{o.skipped:>9,}{o.unread:>8,}")
        return "\n".join([*lines, f"\ndigest {self.digest[:16]}", *self.notes])


def held_out(name: str) -> bool:
    """Whether what has this name is for validation: the same answer everywhere, for about eight names in a hundred.

    >>> held_out("logging"), held_out("heapq")
    (True, False)
    """
    return _hash(name) < HELD_OUT_SHARE * 2**64


def collect(
    domains: Sequence[str] = DOMAINS,
    train_bytes: int | Mapping[str, int] = 1_000_000,
    validation_bytes: int | Mapping[str, int] | None = None,
    *,
    packages: Sequence[str] = (),
    seed: int = 0,
    processes: int = 1,
) -> Documents:
    """Read and generate documents of these domains.

    Args:
        domains: labels out of `DOMAINS`, in the order wanted.
        train_bytes: the most UTF-8 bytes for training, of every domain or by domain. The generated domains fill it;
            code and english end earlier where the sources do, and a note says so.
        validation_bytes: the same for validation; left out, a tenth of `train_bytes`.
        packages: import names of installed packages whose sources are read beside the standard library, such as
            ("torch", "transformers").
        seed: of the order of the documents and of what is generated; it never changes what is held out.
        processes: how many parse sources; more than one only pays for packages.

    Raises ValueError for unknown or repeated domains, sizes below one, a package that is not installed, and a domain
    that stays empty.
    """
    _check(domains, packages)
    limits = {"train": _limits(train_bytes, domains, "train_bytes")}
    default = {domain: max(1, size // 10) for domain, size in limits["train"].items()}
    limits["validation"] = _limits(validation_bytes or default, domains, "validation_bytes")
    reader = _Reader(tuple(installed.find(name) for name in packages), seed, processes)
    shelves: dict[str, dict[str, _Shelf]] = {}
    for split in ("train", "validation"):  # in this order: validation loses what training holds
        shelves[split] = {domain: _Shelf(domain, limits[split][domain]) for domain in domains}
        held = None if split == "train" else shelves["train"]
        reader.fill(shelves[split], split, held)
    for split, by_domain in shelves.items():
        reader.notes += [note for shelf in by_domain.values() if (note := shelf.shortfall(split))]
    texts = [{d: tuple(shelf.texts) for d, shelf in shelves[split].items()} for split in ("train", "validation")]
    return Documents(*texts, origins=reader.origins(), notes=tuple(dict.fromkeys(reader.notes)))


@dataclass
class _Shelf:
    """One domain's documents of one split while they are gathered."""

    domain: str
    limit: int
    texts: list[str] = field(default_factory=list)
    left: int = -1
    seen: set[int] = field(default_factory=set)  # of whole documents, and of blocks or lines

    def __post_init__(self) -> None:
        self.left = self.limit

    @property
    def full(self) -> bool:
        return self.left <= 0

    def add(self, text: str, train: _Shelf | None) -> None:
        """Keep a document, or as much as fits; in validation without the blocks that `train` holds."""
        if train is not None:
            text = _without(text, train.seen)
        if self.full or not text.strip() or hash(text) in self.seen:
            return
        self.seen.add(hash(text))
        text = _cut(text, min(DOCUMENT_BYTES, self.left))
        if not text:  # its first line is longer than what is left, or than a document may be
            self.left = 0 if self.left < DOCUMENT_BYTES else self.left
            return
        self.texts.append(text)
        self.left -= _size(text)
        self.seen.update(hash(block) for block in _blocks(text))

    def shortfall(self, split: str) -> str:
        """A note if the sources ended before the limit; raises ValueError if nothing is there."""
        if not self.texts:
            raise ValueError(
                f"{self.domain!r} has no {split} document within {self.limit:,} bytes; raise {split}_bytes"
            )
        if self.full or self.domain in ("arithmetic", "records") or self.left < _SLACK:
            return ""
        return f"{self.domain}: the sources hold {self.limit - self.left:,} of {self.limit:,} {split} bytes"


_SLACK = 1024


class _Reader:
    """Goes through all sources for one split after the other and counts what it meets."""

    def __init__(self, packages: tuple[installed.Package, ...], seed: int, processes: int) -> None:
        self.packages, self.seed, self.processes = packages, seed, processes
        self.notes: list[str] = []
        self.counts: dict[str, Counter[str]] = {}

    def fill(self, shelves: dict[str, _Shelf], split: str, train: dict[str, _Shelf] | None) -> None:
        for domain in shelves:
            if domain in ("arithmetic", "records"):
                rng = random.Random(f"{domain}/{split}/{self.seed}")
                held = train and train[domain]
                (_sums if domain == "arithmetic" else _records)(shelves[domain], rng, held)
        text = {domain: shelf for domain, shelf in shelves.items() if domain in ("code", "english")}
        if "english" in text:
            self._topics(text["english"], split, train and train["english"])
        if text:
            self._modules(text, split, train)

    def _topics(self, shelf: _Shelf, split: str, train: _Shelf | None) -> None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            self.notes.append("no pydoc_data.topics in this interpreter; english is made of docstrings alone")
            return
        for name in self._order(topics, split, "topics."):
            if shelf.full:
                return
            shelf.add(topics[name].strip() + "\n", train)
            self._count("reference topics", split)

    def _modules(self, shelves: dict[str, _Shelf], split: str, train: dict[str, _Shelf] | None) -> None:
        paths = dict.fromkeys(sources.MODULES.split(), ("standard library", ""))
        for package in self.packages:
            paths.update({name: (package.name, path) for name, path in package.files if name not in paths})
        items = [(name, paths[name][1]) for name in self._order(paths, split)]
        for module in installed.parse_all(items, self.processes):
            if all(shelf.full for shelf in shelves.values()):
                return
            origin = paths[module.name][0]
            if module.problem:
                self._problem(origin, module)
                continue
            self._count(origin, split)
            for domain, shelf in shelves.items():
                text = module.code if domain == "code" else _prose(module.prose, shelf)
                if not shelf.full and text:
                    shelf.add(text, train and train[domain])

    def _order(self, names: Iterable[str], split: str, prefix: str = "") -> list[str]:
        kept = [name for name in names if held_out(prefix + name) == (split == "validation")]
        return sorted(kept, key=lambda name: _hash(f"{self.seed}/{name}"))

    def _problem(self, origin: str, module: installed.Module) -> None:
        kind = "generated" if module.problem == "generated" else "unread"
        self._count(origin, kind)
        if kind == "unread":
            self.notes.append(f"{module.name} left out: {module.problem}")

    def _count(self, origin: str, what: str) -> None:
        self.counts.setdefault(origin, Counter())[what] += 1

    def origins(self) -> tuple[Origin, ...]:
        python = "Python " + ".".join(map(str, sys.version_info[:3]))
        known = {package.name: package for package in self.packages}
        rows = []
        for name, count in sorted(self.counts.items(), key=lambda pair: (pair[0] in known, pair[0])):
            version = known[name].version if name in known else python
            skipped = (known[name].skipped if name in known else 0) + count["generated"]
            rows.append(Origin(name, version, count["train"], count["validation"], skipped, count["unread"]))
        return tuple(rows)


def _prose(texts: Iterable[str], shelf: _Shelf) -> str:
    """Docstrings worth reading, each only once in the split."""
    kept = []
    for text in texts:
        if ">>>" not in text and len(text) > 80 and hash(text) not in shelf.seen:
            shelf.seen.add(hash(text))
            kept.append(text)
    return "\n\n".join(kept) + "\n" if kept else ""


def _sums(shelf: _Shelf, rng: random.Random, train: _Shelf | None) -> None:
    lines: list[str] = []
    for line in _lines(sources.read("arithmetic", rng, [])):
        if held_out(line) == (train is not None):
            lines.append(line)
        if len(lines) == _LINES_OF_SUMS:
            shelf.add("".join(lines), None)
            lines = []
            if shelf.full:
                return


def _records(shelf: _Shelf, rng: random.Random, train: _Shelf | None) -> None:
    for document in sources.read("records", rng, []):
        lines = document.splitlines(keepends=True)
        if train is not None:
            lines = [line for line in lines if line.startswith("id,") or hash(line) not in train.seen]
        shelf.add("".join(lines), None)
        shelf.seen.update(map(hash, lines))
        if shelf.full:
            return


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        yield from document.splitlines(keepends=True)


def _blocks(text: str) -> Iterator[str]:
    return (part.strip() for part in _BLANK.split(text)[::2] if len(part.strip()) >= BLOCK_CHARACTERS)


def _without(text: str, seen: set[int]) -> str:
    """The text without its long blocks, between blank lines, that were seen; empty if less than half is left."""
    parts = _BLANK.split(text)
    pairs = [(block, gap) for block, gap in zip(parts[::2], [*parts[1::2], ""], strict=True)]
    kept = [b + g for b, g in pairs if len(b.strip()) < BLOCK_CHARACTERS or hash(b.strip()) not in seen]
    if len(kept) == len(pairs):
        return "" if hash(text) in seen else text
    rest = "".join(kept)
    return rest if 2 * len(rest) >= len(text) else ""


def _cut(text: str, size: int) -> str:
    """The text's first whole lines, at most `size` bytes."""
    data = text.encode()
    return text if len(data) <= size else data[: data.rfind(b"\n", 0, size) + 1].decode()


def _size(text: str) -> int:
    return len(text.encode())


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _limits(value: int | Mapping[str, int], domains: Sequence[str], what: str) -> dict[str, int]:
    limits = dict(value) if isinstance(value, Mapping) else dict.fromkeys(domains, value)
    if set(limits) != set(domains) or any(isinstance(v, bool) or not isinstance(v, int) for v in limits.values()):
        raise ValueError(f"{what} is {value!r}; give a whole number, or one for each of {', '.join(domains)}")
    if min(limits.values()) < 1:
        raise ValueError(f"{what} is {value!r}; give 1 or more")
    return limits


def _check(domains: Sequence[str], packages: Sequence[str]) -> None:
    if isinstance(domains, str) or not domains or len(set(domains)) != len(domains) or not set(domains) <= set(DOMAINS):
        raise ValueError(f"domains is {domains!r}; give distinct names out of {', '.join(DOMAINS)}")
    if isinstance(packages, str) or len(set(packages)) != len(packages):
        raise ValueError(f"packages is {packages!r}; give distinct import names, such as ('torch', 'transformers')")
    if packages and not {"code", "english"} & set(domains):
        raise ValueError(f"packages is {packages!r}, but neither code nor english is asked for")
