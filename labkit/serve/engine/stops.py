"""Text out of tokens, as it may be shown: whole characters only, and nothing that may be the beginning of a stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from labkit.serve.engine.vocabulary import Vocabulary

_CONTEXT = 6  # tokens of a prompt that decide how the first new one is written
_LONGEST_CHARACTER = 4  # bytes, so at most as many tokens


class ByteText:
    """Tokens to text over a byte-level vocabulary."""

    def __init__(self, bytes_of: list[bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters that one more token completes."""
        return self._decoder.decode(self._bytes_of[id] if id < len(self._bytes_of) else b"")

    def flush(self) -> str:
        """What was begun and is never completed, as �."""
        return self._decoder.decode(b"", final=True)

    def twin(self) -> ByteText:
        """Another one in the same state."""
        twin = ByteText(self._bytes_of)
        twin._decoder.setstate(self._decoder.getstate())
        return twin


class WindowText:
    """Tokens to text over any vocabulary: the last few are decoded again, and what grew is new.

    Args:
        vocabulary: decodes.
        before: the prompt, whose end decides whether a word begins with a space.
    """

    def __init__(self, vocabulary: Vocabulary, before: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._ids = self._end([id for id in before if id not in vocabulary.special])
        self._known = len(self._ids)  # tokens whose text is out
        self._shown = vocabulary.decode(self._ids)  # the text of those

    def push(self, id: int) -> str:
        """The characters that one more token completes."""
        if id in self._vocabulary.special:
            return ""
        self._ids.append(id)
        waits = len(self._ids) - self._known
        text = self._vocabulary.decode(self._ids)
        if text.endswith("\ufffd") and waits < _LONGEST_CHARACTER:
            return ""
        return self._settle(text)

    def _settle(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._ids = self._end(self._ids)
        self._known, self._shown = len(self._ids), self._vocabulary.decode(self._ids)
        return new

    def _end(self, ids: list[int]) -> list[int]:
        """The last few, from where a character begins."""
        start = max(len(ids) - _CONTEXT, 0)
        while start and self._vocabulary.continues(ids[start]):
            start -= 1
        return ids[start:]

    def flush(self) -> str:
        """What was begun and is never completed, as �."""
        return self._settle(self._vocabulary.decode(self._ids))

    def twin(self) -> WindowText:
        """Another one in the same state."""
        twin = WindowText(self._vocabulary)
        twin._ids, twin._known, twin._shown = list(self._ids), self._known, self._shown
        return twin


class NoText:
    """An engine without a tokenizer: tokens have no text."""

    def push(self, id: int) -> str:
        """Nothing."""
        return ""

    def flush(self) -> str:
        """Nothing."""
        return ""

    def twin(self) -> NoText:
        """The same."""
        return self


def text_of(vocabulary: Vocabulary | None, prompt: Sequence[int] = ()) -> ByteText | WindowText | NoText:
    """What turns the tokens that follow a prompt into text."""
    if vocabulary is None:
        return NoText()
    return WindowText(vocabulary, prompt) if vocabulary.bytes_of is None else ByteText(vocabulary.bytes_of)


class Stops:
    """Passes text on until one of some texts is complete; that one and what follows are left out.

    What may be the beginning of a stop is held back until it turned out not to be. Where the text was cut into pieces
    makes no difference: of several stops the one that is complete first counts, of those the one that began first.

    Args:
        stops: the texts, none empty.

    >>> stops = Stops(("END",))
    >>> stops.push("the E"), stops.push("N"), stops.push("ERGY EN"), stops.push("D."), stops.stopped
    ('the ', '', 'ENERGY ', '', True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far may be shown now."""
        if not self._stops:
            return text
        if not text or self.stopped:
            return ""
        text = self._held + text
        if found := [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        cut = len(text) - self._beginning(text)
        self._held = text[cut:]
        return text[:cut]

    def _beginning(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop."""
        for length in range(min(len(text), max(map(len, self._stops)) - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def flush(self) -> str:
        """No more comes: what was held back is no stop."""
        held, self._held = self._held, ""
        return held

    def twin(self) -> Stops:
        """Another one in the same state."""
        twin = Stops(self._stops)
        twin._held, twin.stopped = self._held, self.stopped
        return twin
