"""Text as it comes: whole characters, nothing of a stop, and in the end what the tokenizer says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from labkit.core.runtime import data_path
from labkit.serve.engine.stops import NoText, Stops, text_of
from labkit.serve.engine.vocabulary import Vocabulary

BYTES = Vocabulary(Tokenizer.from_file(str(data_path("checkpoints/four-domains") / "tokenizer.json")))
TEXTS = st.text(alphabet="ab \n你好é😀👩‍🚀<|>", max_size=20)


def metaspace() -> Vocabulary:
    """Words with ▁ for a space, and bytes for what is no word: as Llama and Mixtral do."""
    tokens = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "▁a", "▁ab", "ab", "▁▁"]
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b"), ("▁", "▁")]
    model = models.BPE({token: at for at, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Vocabulary(tokenizer)


WORDS = metaspace()


def shown(vocabulary: Vocabulary, ids, prompt=()) -> list[str]:
    text = text_of(vocabulary, prompt)
    return [*[text.push(id) for id in ids], text.flush()]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_bytes_make_whole_characters(text):
    ids = BYTES.encode(text)
    parts = shown(BYTES, ids)
    assert "".join(parts) == text == BYTES.decode(ids)
    assert not any("\ufffd" in part for part in parts)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 4095), max_size=12))
def test_any_tokens_end_as_the_tokenizer_says(ids):
    assert "".join(shown(BYTES, ids)) == BYTES.decode(ids)
    for id in ids:
        assert id in BYTES.special or BYTES.text(id) == BYTES.decode([id])


def test_a_character_of_several_tokens_comes_at_its_last():
    ids = BYTES.encode("😀")
    assert len(ids) > 1
    assert shown(BYTES, ids) == [""] * (len(ids) - 1) + ["😀", ""]
    assert shown(BYTES, ids[:-1])[-1] == "\ufffd"


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_words_go_on_where_the_prompt_ended(prompt, text):
    before, ids = WORDS.encode(prompt), WORDS.encode(text)
    parts = shown(WORDS, ids, before)
    assert "".join(parts) == WORDS.decode(before + ids)[len(WORDS.decode(before)) :]
    assert not any("\ufffd" in part for part in parts)


def test_the_first_word_after_a_prompt_keeps_its_space():
    assert "".join(shown(WORDS, WORDS.encode("ab"), WORDS.encode("a"))) == " ab"


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 20))
def test_twins_go_on_alike_and_apart(text, cut):
    for vocabulary in (BYTES, WORDS):
        ids = vocabulary.encode(text)
        first = text_of(vocabulary)
        for id in ids[:cut]:
            first.push(id)
        second = first.twin()
        rest = [first.push(id) for id in ids[cut:]] + [first.flush()]
        assert rest == [second.push(id) for id in ids[cut:]] + [second.flush()]


def test_without_a_tokenizer_there_is_no_text():
    text = text_of(None)
    assert isinstance(text, NoText)
    assert (text.push(3), text.twin().flush()) == ("", "")


def test_what_is_no_fast_tokenizer_is_refused():
    with pytest.raises(ValueError, match="no fast tokenizer"):
        Vocabulary(object())


# --- stops

PIECES = st.lists(st.text(alphabet="abc", max_size=4), max_size=8)
ENDS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def before_a_stop(text: str, stops: list[str]) -> str | None:
    """The text before the stop that is complete first; letter by letter."""
    for end in range(len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)]
    return None


@settings(max_examples=400, deadline=None)
@given(PIECES, ENDS)
def test_wherever_the_text_is_cut_a_stop_ends_it_alike(pieces, ends):
    stops, out, text = Stops(ends), "", ""
    for piece in pieces:
        out, text = out + stops.push(piece), text + piece
        wanted = before_a_stop(text, ends)
        assert stops.stopped == (wanted is not None)
        assert out == wanted if stops.stopped else text.startswith(out)
        if not stops.stopped:  # nothing is held that cannot become a stop
            held = text[len(out) :]
            assert not held or any(stop.startswith(held) and stop != held for stop in ends)
    out += stops.flush()
    whole = before_a_stop(text, ends)
    assert out == (text if whole is None else whole)


def test_a_twin_holds_what_was_held():
    stops = Stops(["END"])
    assert stops.push("x EN") == "x "
    twin = stops.twin()
    assert (stops.push("D"), stops.stopped, twin.stopped) == ("", True, False)
    assert twin.push("E") == "EN"  # and the new E is held
    assert twin.flush() == "E"
