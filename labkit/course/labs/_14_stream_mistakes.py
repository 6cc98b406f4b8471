"""Lab 14: mistakes as a learner makes them, in reading events and in looking for stops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from labkit.course.judge import Failure
from labkit.course.labs import _14_answers as right


class Events:
    """`events` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[str]:
        wrong = self.wrong
        if wrong == "waits_for_the_end":
            return iter(list(self._read(chunks)))
        if wrong == "a_chunk_is_an_event":
            return (chunk.decode().removeprefix("data:").strip() for chunk in chunks)
        if wrong == "lines_of_a_chunk":
            return self._line_by_line(chunks)
        return self._read(chunks)

    def _line_by_line(self, chunks: Iterator[bytes]) -> Iterator[str]:
        for chunk in chunks:
            for line in chunk.splitlines():
                if line.startswith(b"data:"):
                    if line == b"data: [DONE]":
                        return
                    yield line.removeprefix(b"data:").removeprefix(b" ").decode()

    def _lines(self, held: bytes | str) -> tuple[list[Any], Any]:
        wrong, end = self.wrong, "\n" if isinstance(held, str) else b"\n"
        if wrong == "other_line_ends":
            parts = held.splitlines(keepends=True)
            rest = parts.pop() if parts and not parts[-1].endswith("\n") else held[:0]
            return [part.splitlines()[0] for part in parts], rest
        *lines, rest = held.split(end)
        return lines, rest

    def _read(self, chunks: Iterator[bytes]) -> Iterator[str]:
        wrong, data = self.wrong, []
        text = wrong in ("chunks_decoded", "chunks_decoded, ignoring", "chunks_decoded, replacing", "other_line_ends")
        held: Any = "" if text else b""
        pending = b""
        for chunk in chunks:
            if wrong == "other_line_ends":
                pending += chunk
                whole = pending[: pending.rfind(b"\n") + 1]
                pending = pending[len(whole) :]
                held += whole.decode()
            elif text:
                how = {"chunks_decoded, ignoring": "ignore", "chunks_decoded, replacing": "replace"}
                held += chunk.decode(errors=how.get(wrong, "strict"))
            else:
                held += chunk
            lines, held = self._lines(held)
            for raw in lines:
                line = raw if isinstance(raw, str) else raw.decode()
                if wrong != "carriage_returns":
                    line = line.removesuffix("\r")
                if line == "" or (wrong == "carriage_returns_first" and line.strip() == ""):
                    if not data and wrong != "empty_events":
                        continue
                    found, data = self._joined(data), []
                    if found == "[DONE]" and wrong == "done_is_an_event":
                        yield found
                        return
                    if found == "[DONE]" and wrong != "reads_on":
                        return
                    if wrong == "done_anywhere" and "[DONE]" in found:
                        return
                    if found != "[DONE]" and not (wrong == "empty_data_lost" and not found):
                        yield found
                else:
                    data += self._value(line)
                    if wrong == "every_line" and data:
                        yield data.pop()
        if wrong == "half_an_event" and data:
            yield self._joined(data)

    def _value(self, line: str) -> list[str]:
        wrong = self.wrong
        if wrong == "all_fields" and line:
            return [line.partition(":")[2].removeprefix(" ")]
        if wrong == "starts_with_data":
            return [line[4:].removeprefix(":").removeprefix(" ")] if line.startswith("data") else []
        if wrong == "space_needed":
            return [line[6:]] if line.startswith("data: ") else []
        if wrong == "space_kept":
            return [line[5:]] if line.startswith("data:") else []
        if wrong == "six_bytes_cut":
            return [line[6:]] if line.startswith("data:") else []
        if wrong == "colon_needed":
            return [line[5:].removeprefix(" ")] if line.startswith("data:") else []
        if wrong == "last_colon":
            return [line.split(":")[-1].removeprefix(" ")] if line.split(":")[0] == "data" else []
        name, _, value = line.partition(":")
        if name != "data":
            return []
        return [value.strip() if wrong == "all_spaces" else value.removeprefix(" ")]

    def _joined(self, data: list[str]) -> str:
        if self.wrong == "joined_without_newline":
            return "".join(data)
        if self.wrong == "last_line_only":
            return data[-1]
        return "\n".join(data)


class UntilStop:
    """`until_stop` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
        wrong = self.wrong
        if wrong == "piece_by_piece":
            return self._alone(pieces, stops)
        if wrong == "waits_for_the_end":
            return iter(["".join(right.until_stop(pieces, stops))])
        if wrong == "restarts":
            return self._restarts(pieces, stops)
        if wrong == "holds_nothing":
            return self._holds_nothing(pieces, stops)
        return self._read(pieces, stops)

    def _alone(self, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
        for piece in pieces:
            places = [piece.find(stop) for stop in stops if stop in piece]
            if places:
                yield piece[: min(places)]
                return
            yield piece

    def _holds_nothing(self, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
        text, out = "", 0
        for piece in pieces:
            text += piece
            found = self._found(text, stops)
            yield text[out : len(text) if found is None else found[0]]
            out = len(text)
            if found is not None:
                return

    def _restarts(self, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
        """Holds a beginning; when the next letter does not fit, all of it is let go."""
        held = ""
        for piece in pieces:
            for letter in piece:
                if held and not any(stop.startswith(held + letter) for stop in stops):
                    yield held
                    held = ""
                held += letter
                if held in stops:
                    return
                if not any(stop.startswith(held) for stop in stops):
                    yield held
                    held = ""
        yield held

    def _read(self, pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
        wrong, held = self.wrong, ""
        for piece in pieces:
            held += piece
            found = self._found(held, stops)
            if found is not None:
                start, end = found
                held = held[: end if wrong == "stop_included" else start]
                if wrong != "text_before_lost":
                    yield held
                if wrong == "reads_on":
                    for _ in pieces:
                        pass
                return
            keep = self._keep(held, stops)
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
        if wrong != "tail_lost":
            yield held

    def _found(self, held: str, stops: tuple[str, ...]) -> tuple[int, int] | None:
        places = [(held.find(stop), held.find(stop) + len(stop), at) for at, stop in enumerate(stops) if stop in held]
        if not places:
            return None
        if self.wrong == "first_in_the_list":
            best = min(places, key=lambda place: place[2])
        elif self.wrong == "starts_first":
            best = min(places)
        elif self.wrong == "last_place":
            last = [(held.rfind(stop), held.rfind(stop) + len(stop), 0) for stop in stops if stop in held]
            best = max(last, key=lambda place: (place[1], -place[0]))
        elif self.wrong == "only_at_the_end":
            ends = [place for place in places if held.endswith(stops[place[2]])]
            if not ends:
                return None
            best = max(ends, key=lambda place: place[1] - place[0])
            best = (len(held) - (best[1] - best[0]), len(held), 0)
        elif self.wrong == "shorter_of_two":
            best = min(places, key=lambda place: (place[1], -place[0]))
        else:
            best = min(places, key=lambda place: (place[1], place[0]))
        return best[0], best[1]

    def _keep(self, held: str, stops: tuple[str, ...]) -> int:
        wrong = self.wrong
        if wrong == "fixed_tail":
            return min(len(held), max((len(stop) - 1 for stop in stops), default=0))
        if wrong == "whole_tail":
            begun = [held.find(letter) for letter in {stop[0] for stop in stops} if letter in held]
            return len(held) - min(begun) if begun else 0
        if wrong == "one_letter":
            return int(bool(held) and any(held[-1] == stop[0] for stop in stops if len(stop) > 1))
        if wrong == "first_stop_only":
            stops = stops[:1]
        begun = [n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])]
        if wrong == "shortest_beginning":
            return min(begun, default=0)
        return max(begun, default=0)


# ------------------------------------------------------------------------------------ what has no single implementation


def half_a_character(failure: Failure) -> bool:
    """Whether the answer raised because half a character cannot be decoded."""
    return failure.outcome.error_type == "UnicodeDecodeError"


def asks_on(failure: Failure) -> bool:
    """Whether text came out right, and more pieces were asked for after the stop."""
    got, expected = failure.got, failure.expected
    return len(got) > len(expected) and got[: len(expected)] == list(expected) and not "".join(got[len(expected) :])


def late(failure: Failure) -> bool:
    """Whether the text is right in the end, and some of it came later than it might, and none earlier."""
    got, expected = (list(accumulate(map(len, texts))) for texts in (failure.got, failure.expected))
    same = "".join(failure.got) == "".join(failure.expected)
    return same and got != expected and all(a <= b for a, b in zip(got, expected, strict=True))


def early(failure: Failure) -> bool:
    """Whether text was let go that a stop then turned out to begin with."""
    got, expected = "".join(failure.got), "".join(failure.expected)
    return got.startswith(expected) and got != expected
