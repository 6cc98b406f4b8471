"""The tokens of a record as one running text in which words can be looked up."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from labkit.core.routing import Routing
from labkit.show.widgets.layers import visible

FREQUENT = 40
WORD = re.compile(r"(?<![\w\\])[^\W\d_]{2,}")  # no digits, and nothing of an escaped byte such as \xc8


@dataclass(frozen=True, eq=False)
class RunningText:
    """A record's tokens in a row.

    Args:
        texts: the readable text of each token, never empty.
        sequences: which sequence each token is of.
    """

    texts: tuple[str, ...]
    sequences: tuple[int, ...]

    def __post_init__(self) -> None:
        ends = list(accumulate(map(len, self.texts)))
        object.__setattr__(self, "_joined", "".join(self.texts))
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_starts", [0, *ends[:-1]])

    @classmethod
    def of(cls, record: Routing) -> RunningText:
        """The text of a record. Raises ValueError if it has no tokens' texts.

        >>> import torch
        >>> ids_TK = torch.zeros(3, 1, dtype=torch.int64)
        >>> r = Routing.of(torch.zeros(3, 1), ids_TK, torch.ones(3, 1), tokens=tuple("a b"))
        >>> RunningText.of(r).texts
        ('a', '␣', 'b')
        """
        if record.tokens is None:
            raise ValueError("contexts needs the text of each token; build the Routing with tokens=…")
        readable = {token: visible(token) for token in set(record.tokens)}
        sequences = (0,) * record.num_tokens if record.sequence_T is None else tuple(record.sequence_T.tolist())
        return cls(tuple(readable[token] for token in record.tokens), sequences)

    @property
    def by_letter(self) -> bool:
        """Whether most tokens are single characters, as a byte model's are."""
        return sum(len(text) == 1 for text in self.texts) > len(self.texts) / 2

    def runs(self, word: str, whole: bool = False) -> list[tuple[int, int]]:
        """Every run of neighbouring tokens of one sequence whose texts join to the word: [(first, last), …].

        Args:
            word: as written or as shown, so " the" and "␣the" are the same.
            whole: leave out runs with a letter or digit of the same sequence right before or after the word.

        >>> text = RunningText(tuple("the␣other"), (0,) * 9)
        >>> text.runs("the"), text.runs("the", whole=True)
        ([(0, 2), (5, 7)], [(0, 2)])
        """
        word, found = visible(word), []
        at = self._joined.find(word)
        while at >= 0:
            first, last = bisect_left(self._starts, at), bisect_left(self._ends, at + len(word))
            fits = first <= last and self._starts[first] == at and self._ends[last] == at + len(word)
            if (
                fits
                and self.sequences[first] == self.sequences[last]
                and not (whole and self._inside(word, first, last))
            ):
                found.append((first, last))
            at = self._joined.find(word, at + 1)
        return found

    def _inside(self, word: str, first: int, last: int) -> bool:
        """Whether the run is a part of a longer word."""
        before, after = self.neighbour(first, -1), self.neighbour(last, 1)
        return (word[0].isalnum() and before[-1:].isalnum()) or (word[-1].isalnum() and after[:1].isalnum())

    def neighbour(self, token: int, by: int) -> str:
        """The text of the token so far away, or "" where the sequence or the text ends."""
        other = token + by
        if not 0 <= other < len(self.texts) or self.sequences[other] != self.sequences[token]:
            return ""
        return self.texts[other]

    def around(self, token: int) -> str:
        """The token's text; where tokens are letters, the whole word that the letter belongs to."""
        if not (self.by_letter and self.texts[token].isalnum()):
            return self.texts[token]
        first = last = token
        while len(before := self.neighbour(first, -1)) == 1 and before.isalnum():
            first -= 1
        while len(after := self.neighbour(last, 1)) == 1 and after.isalnum():
            last += 1
        return "".join(self.texts[first : last + 1])

    def frequent(self) -> list[str]:
        """The commonest words, or the commonest tokens with a letter where tokens are longer than letters."""
        pieces = WORD.findall(self._joined) if self.by_letter else (t for t in self.texts if any(map(str.isalpha, t)))
        common = [word for word, _ in Counter(pieces).most_common(FREQUENT)]
        return common or [text for text, _ in Counter(self.texts).most_common(FREQUENT)]

    def context(self, first: int, last: int, letters: int) -> tuple[int, list[str], list[str]]:
        """About so many letters of the same sequence on either side: (position of the first token, left, right)."""
        left, right, low, high = [], [], first, last
        while sum(map(len, left)) < letters and (text := self.neighbour(low, -1)):
            left.insert(0, text)
            low -= 1
        while sum(map(len, right)) < letters and (text := self.neighbour(high, 1)):
            right.append(text)
            high += 1
        return low, left, right
