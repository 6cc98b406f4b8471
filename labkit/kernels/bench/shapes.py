"""The shapes that are measured, by subject, and what each must at least compute and move.

FLOPs are those of matrix products, two a multiplication and addition. Bytes are the least: every input is read once and
every output written once, whatever a kernel reads again; of the experts' weights only those that some token visits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

SUBJECTS = ("moe", "decode", "quant", "topk", "attention")


@dataclass(frozen=True)
class MoEShape:
    """Experts: T tokens, width D, expert width F, E experts, K a token."""

    LETTERS: ClassVar[str] = "TDFEK"
    name: str
    T: int
    D: int
    F: int
    E: int
    K: int

    def __post_init__(self) -> None:
        _positive(self, "TDFEK")
        _no_more(self, "K", "E")

    def flops(self, backward: bool) -> int:
        """Three products for each pair of token and expert, and twice as many again with the gradients."""
        return 6 * self.T * self.K * self.D * self.F * (3 if backward else 1)

    def bytes(self, backward: bool, itemsize: int, visited: int | None = None) -> int:
        """Tokens in and out and the visited experts' weights; with gradients also those and what was saved, twice."""
        tokens = self.T * self.D
        weights = 3 * self.D * self.F * (self.E if visited is None else visited)
        if not backward:
            return (2 * tokens + weights) * itemsize
        return (5 * tokens + 2 * weights + 3 * self.D * self.F * self.E) * itemsize + 2 * self.saved(itemsize)

    def saved(self, itemsize: int) -> int:
        """Bytes of the pre-activation, the least that a backward pass without recomputed products needs."""
        return 2 * self.T * self.K * self.F * itemsize


@dataclass(frozen=True)
class RouterShape:
    """The router's decision: T tokens, E experts, K a token."""

    LETTERS: ClassVar[str] = "TEK"
    name: str
    T: int
    E: int
    K: int

    def __post_init__(self) -> None:
        _positive(self, "TEK")
        _no_more(self, "K", "E")

    def flops(self, backward: bool) -> int:
        """No products."""
        return 0

    def bytes(self, backward: bool, itemsize: int, visited: int | None = None) -> int:
        """Logits in; 12 bytes out a choice, and E counts. Backward choices and logits in, the logits' gradient out."""
        logits, chosen = self.T * self.E * itemsize, self.T * self.K
        return logits + 12 * chosen + 8 * self.E + (2 * logits + 12 * chosen if backward else 0)

    def saved(self, itemsize: int) -> int:
        """Nothing: the logits are an input and the ids an output."""
        return 0


@dataclass(frozen=True)
class AttentionShape:
    """Causal attention: B sequences of S tokens, H query heads, G key and value heads, d their width."""

    LETTERS: ClassVar[str] = "BHGSd"
    name: str
    B: int
    H: int
    G: int
    S: int
    d: int

    def __post_init__(self) -> None:
        _positive(self, "BHGSd")
        if self.H % self.G:
            raise ValueError(f"shape {self.name}: G is {self.G}, which does not divide the {self.H} query heads")

    def flops(self, backward: bool) -> int:
        """Half of two products (the other half is masked), and five more backward, one of them a recomputation."""
        return 2 * self.B * self.H * self.S * self.S * self.d * (7 if backward else 2) // 2

    def bytes(self, backward: bool, itemsize: int, visited: int | None = None) -> int:
        """Queries, keys and values in, the result out; backward all of these and a gradient in, three out."""
        queries, keys = (heads * self.B * self.S * self.d for heads in (self.H, self.G))
        forward = 2 * queries + 2 * keys
        return (forward + (forward + 2 * queries + 2 * keys if backward else 0)) * itemsize

    def saved(self, itemsize: int) -> int:
        """The logarithm of each query's sum, in float32; the result, which is needed too, is no extra."""
        return 4 * self.B * self.H * self.S


Shape = MoEShape | RouterShape | AttentionShape
KINDS: Mapping[str, type[Shape]] = {
    "moe": MoEShape, "decode": MoEShape, "quant": MoEShape, "topk": RouterShape, "attention": AttentionShape,
}  # fmt: skip


def _positive(shape: Shape, letters: str) -> None:
    for letter in letters:
        if getattr(shape, letter) < 1:
            raise ValueError(f"shape {shape.name}: {letter} is {getattr(shape, letter)}; give 1 or more")


def _no_more(shape: Shape, one: str, other: str) -> None:
    if getattr(shape, one) > getattr(shape, other):
        raise ValueError(f"shape {shape.name}: {one} is {getattr(shape, one)}, more than {other}")


def _named(*shapes: Shape) -> dict[str, Shape]:
    return {shape.name: shape for shape in shapes}


SHAPES: Mapping[str, Mapping[str, Shape]] = {
    "moe": _named(
        MoEShape("olmoe-4k", 4096, 2048, 1024, 64, 8),
        MoEShape("olmoe-16k", 16384, 2048, 1024, 64, 8),
        MoEShape("mixtral-4k", 4096, 4096, 14336, 8, 2),
        MoEShape("dsv2l-16k", 16384, 2048, 1408, 64, 6),
        MoEShape("qwen3-16k", 16384, 2048, 768, 128, 8),
        MoEShape("dsv3-8k", 8192, 7168, 2048, 64, 8),
    ),
    "decode": _named(
        *(MoEShape(f"olmoe-{T}", T, 2048, 1024, 64, 8) for T in (1, 16, 64, 256)),
        *(MoEShape(f"qwen3-{T}", T, 2048, 768, 128, 8) for T in (1, 16, 64, 256)),
    ),
    "quant": _named(
        MoEShape("olmoe-16k", 16384, 2048, 1024, 64, 8),
        MoEShape("dsv2l-16k", 16384, 2048, 1408, 64, 6),
        MoEShape("qwen3-16k", 16384, 2048, 768, 128, 8),
        *(MoEShape(f"olmoe-{T}", T, 2048, 1024, 64, 8) for T in (1, 4, 16)),
        *(MoEShape(f"qwen3-{T}", T, 2048, 768, 128, 8) for T in (1, 4, 16)),
    ),
    "topk": _named(
        RouterShape("olmoe-16k", 16384, 64, 8),
        RouterShape("qwen3-16k", 16384, 128, 8),
        RouterShape("dsv3-4k", 4096, 256, 8),
        RouterShape("mixtral-4k", 4096, 8, 2),
        RouterShape("olmoe-64", 64, 64, 8),
    ),
    "attention": _named(
        AttentionShape("s1024-h16-d64", 16, 16, 16, 1024, 64),
        AttentionShape("s4096-h32-d64", 4, 32, 32, 4096, 64),
        AttentionShape("s4096-h16-d128", 4, 16, 16, 4096, 128),
        AttentionShape("s8192-h16-d128", 2, 16, 16, 8192, 128),
        AttentionShape("s4096-h32-g8-d128", 4, 32, 8, 4096, 128),
        AttentionShape("s8192-h32-g4-d128", 2, 32, 4, 8192, 128),
    ),
}
"""What is measured on a GPU. One rank's share of DeepSeek-V3 has 64 of its 256 experts."""

TINY: Mapping[str, Mapping[str, Shape]] = {
    "moe": _named(MoEShape("tiny", 11, 24, 8, 3, 2)),
    "decode": _named(MoEShape("tiny-1", 1, 24, 8, 3, 2)),
    "quant": _named(MoEShape("tiny-quant", 5, 64, 128, 3, 2)),
    "topk": _named(RouterShape("tiny", 19, 6, 2)),
    "attention": _named(AttentionShape("tiny", 1, 2, 1, 24, 16)),
}
"""For a CPU, where kernels are interpreted: they show that everything runs, and nothing about speed."""


def letters(shape: Shape) -> str:
    """The sizes of a shape in words.

    >>> letters(TINY["topk"]["tiny"])
    'T 19, E 6, K 2'
    """
    return ", ".join(f"{letter} {value}" for letter, value in asdict(shape).items() if letter != "name")


def parse(text: str) -> dict[str, int]:
    """A shape as it is typed, `T=4096,E=64,K=8`, by letter. Raises ValueError for what is not that.

    >>> parse("T=4,E=8,K=2")
    {'T': 4, 'E': 8, 'K': 2}
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        letter, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not letter.isalpha() or not value.isdigit():
            raise ValueError(f"the shape {text!r} has the part {part.strip()!r}; write it like T=4096,E=64,K=8")
        if letter in found:
            raise ValueError(f"the shape {text!r} says {letter} twice")
        found[letter] = int(value)
    return found


def own(subject: str, sizes: Mapping[str, int]) -> Shape | None:
    """A shape of one's own, if these letters are the subject's; in attention B may be left out (1), and G (H).

    >>> own("attention", {"S": 64, "H": 4, "d": 32}).name
    'B1-H4-G4-S64-d32'
    """
    kind = KINDS[subject]
    if kind is AttentionShape and "H" in sizes:
        sizes = {"B": 1, "G": sizes["H"], **sizes}
    if set(sizes) != set(kind.LETTERS):
        return None
    return kind("-".join(f"{letter}{sizes[letter]}" for letter in kind.LETTERS), **sizes)


def choose(
    subjects: Sequence[str], names: Iterable[str] = (), typed: Iterable[str] = (), *, tiny: bool = False
) -> dict[str, list[Shape]]:
    """The shapes to measure, by subject.

    Args:
        subjects: of `SUBJECTS`; none means all that have what is named.
        names: of shapes; with neither these nor `typed`, all of a subject.
        typed: shapes of one's own, as `parse` takes them; each goes to the subjects whose letters it has.
        tiny: choose from `TINY` when nothing is named.

    Raises ValueError for a name, a subject or letters that do not exist, and for a subject that gets nothing.

    >>> [shape.name for shape in choose(["moe"], ["olmoe-4k"])["moe"]]
    ['olmoe-4k']
    """
    for subject in subjects:
        if subject not in SUBJECTS:
            raise ValueError(f"there is nothing called {subject!r} to measure; choose from {', '.join(SUBJECTS)}")
    names, typed, wanted = list(dict.fromkeys(names)), list(typed), list(dict.fromkeys(subjects or SUBJECTS))
    found: dict[str, list[Shape]] = {subject: [] for subject in wanted}
    for name in names:
        where = [subject for subject in wanted if name in SHAPES[subject] or name in TINY[subject]]
        if not where:
            raise ValueError(f"there is no shape {name!r}; {known(wanted)}")
        for subject in where:
            found[subject].append({**SHAPES[subject], **TINY[subject]}[name])
    for text in typed:
        mine = {subject: shape for subject in wanted if (shape := own(subject, parse(text)))}
        if not mine:
            told = "; ".join(f"{subject}: {', '.join(KINDS[subject].LETTERS)}" for subject in wanted)
            raise ValueError(f"the shape {text!r} has letters of nothing that is measured; give those of {told}")
        for subject, shape in mine.items():
            found[subject].append(shape)
    if not names and not typed:
        return {subject: list((TINY if tiny else SHAPES)[subject].values()) for subject in wanted}
    for subject in wanted:
        if subjects and not found[subject]:
            raise ValueError(f"{subject} has none of the named shapes; {known([subject])}")
    return {subject: shapes for subject, shapes in found.items() if shapes}


def known(subjects: Iterable[str]) -> str:
    """The names of the shapes there are, in words."""
    return "known are " + "; ".join(
        f"for {subject}: {', '.join([*SHAPES[subject], *TINY[subject]])}" for subject in subjects
    )
