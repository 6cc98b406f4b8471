"""Text on its way into a model: what is read, what each token is called, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from labkit.nn import Labelled, trace
from labkit.nn.labelled import labelled
from labkit.train import data

TEXTS = {"code": ["x = 1", "def f(): return x"], "english": ["It rains."]}
LINES = [line for some in TEXTS.values() for line in some]


def byte_level(special: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most 300 tokens, without a padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["It rains and rains. ", "return x = 1"] * 3, trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    words = {
        "[UNK]": 0,
        **{
            word: i
            for i, word in enumerate(["x", "=", "1", "def", "f", "(", ")", ":", "return", "It", "rains", "."], 1)
        },
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def lines_of(made: Labelled) -> list[list[str]]:
    S = made.ids_BS.shape[1]
    rows = [made.tokens[i * S : (i + 1) * S] for i in range(len(made.ids_BS))]
    return [[token for token, real in zip(row, mask, strict=True) if real]
            for row, mask in zip(rows, made.mask_BS.tolist(), strict=True)]  # fmt: skip


def test_texts_by_domain_in_bytes():
    tokenizer = byte_level()
    assert tokenizer.pad_token is None
    made = labelled(TEXTS, tokenizer)
    assert made.domains == ("code", "code", "english")
    assert ["".join(line) for line in lines_of(made)] == LINES  # the very letters, spaces too
    assert any(token.startswith(" ") for token in made.tokens)
    assert [ids[mask].tolist() for ids, mask in zip(made.ids_BS, made.mask_BS, strict=True)] == [
        tokenizer(text)["input_ids"] for text in LINES
    ]


def test_texts_by_domain_in_words():
    made = labelled({"code": "def f(): return y", "english": ["It rains."]}, word_level())
    assert lines_of(made) == [["def", "f", "():", "return", "y"], ["It", "rains", "."]]
    assert made.domains == ("code", "english")


def test_special_tokens_have_their_name():
    assert lines_of(labelled(["x = 1"], byte_level(special=True)))[0][0] == "<s>"


def test_letters_of_several_bytes_stay_readable():
    (tokens,) = lines_of(labelled(["né"], byte_level()))
    assert tokens[0] == "n"
    assert all("Ã" not in token for token in tokens)


class Pieces:
    """A slow tokenizer with SentencePiece's word boundary, which decode loses."""

    is_fast = False
    pieces = ("▁It", "▁ra", "ins", "<0x0A>", "</s>")

    def __call__(self, text):
        return {"input_ids": [0, 1, 2, 3][: len(text)]}

    def convert_ids_to_tokens(self, i):
        return self.pieces[i]

    def decode(self, ids):
        return {3: "\n", 4: ""}.get(ids[0], self.pieces[ids[0]].lstrip("▁"))


def test_a_word_boundary_that_decode_loses_is_a_space():
    assert labelled(["text"], Pieces()).tokens == (" It", " ra", "ins", "\n")
    assert labelled(torch.tensor([[1, 4]]), Pieces()).tokens == (" ra", "</s>")


def test_ids_get_names_if_there_is_a_tokenizer():
    tokenizer = byte_level()
    ids_BS = torch.tensor([tokenizer("rains")["input_ids"]])
    assert "".join(labelled(ids_BS, tokenizer).tokens) == "rains"
    assert labelled(ids_BS).tokens is None
    named = Labelled(ids_BS, tokens=("?",) * ids_BS.numel())
    assert labelled(named, tokenizer).tokens == named.tokens


@pytest.mark.parametrize("tokenizer", [byte_level, word_level])
def test_a_trace_of_texts(tokenizer):
    tokenizer = tokenizer()
    model = build("qwen3_moe", vocab_size=300)
    counts = [len(tokenizer(line)["input_ids"]) for line in LINES]
    for batch_size in (1, 8):
        records = trace(model, TEXTS, tokenizer=tokenizer, batch_size=batch_size)
        for r in records:
            assert r.sequence_T.tolist() == [row for row, n in enumerate(counts) for _ in range(n)]
            assert r.domains == ("code",) * sum(counts[:2]) + ("english",) * counts[2]
            whole = "".join(r.tokens).replace(" ", "")
            assert whole == "".join(LINES).replace(" ", "")
            assert r.loss_T.isnan().nonzero()[:, 0].tolist() == [sum(counts[: n + 1]) - 1 for n in range(3)]
    alone = trace(model, TEXTS["english"], tokenizer=tokenizer)[0]
    assert alone.domains is None
    torch.testing.assert_close(records[0].logits_TE[-counts[2] :], alone.logits_TE, atol=1e-4, rtol=1e-4)


def test_a_batch_of_our_own_data():
    batch = data.sample(data.corpus(bytes_per_domain=8192), num_sequences=4, sequence_length=8)
    made = labelled(batch)
    assert torch.equal(made.ids_BS, batch.ids_BS)
    assert (made.tokens, made.domains) == (batch.tokens, tuple(batch.domains))
    assert made.mask_BS.all()


def test_parts_leave_out_what_is_padding_in_all_of_them():
    ids_BS = torch.arange(12).view(3, 4)
    mask_BS = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    made = Labelled(ids_BS, ("a", "b", "c"), mask_BS, tuple(f"t{i}" for i in range(12)))
    first, second = made.parts(2)
    assert first.ids_BS.tolist() == [[1, 2], [5, 6]]
    assert first.mask_BS.tolist() == [[True, True], [True, False]]
    assert (first.tokens, first.domains) == (("t1", "t2", "t5", "t6"), ("a", "b"))
    assert (second.ids_BS.tolist(), second.domains) == ([[8, 9, 10, 11]], ("c",))


def test_a_mask_is_made_true_and_false():
    assert Labelled(torch.ones(1, 2, dtype=torch.int64), mask_BS=torch.tensor([[1, 0]])).mask_BS.tolist() == [
        [True, False]
    ]


IDS = torch.ones(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ids_BS": [[1, 2]]}, "ids_BS has list"),
        ({"ids_BS": IDS[0]}, r"ids_BS has shape \(2,\)"),
        ({"ids_BS": IDS.float()}, "dtype torch.float32"),
        ({"ids_BS": IDS[:0]}, "at least one"),
        ({"domains": ("a",)}, "domains has 1 labels; give a tuple of 2"),
        ({"domains": "ab"}, "domains has 2 labels"),
        ({"tokens": ("a",) * 3}, "tokens has 3 labels; give a tuple of 4"),
        ({"mask_BS": torch.ones(3)}, "3 elements for 4"),
        ({"mask_BS": torch.tensor([[0.0, 0.0], [0.0, float("-inf")]])}, "other values than 0 and 1"),
        ({"mask_BS": torch.tensor([[1, 1], [0, 0]])}, "sequence 1 is nothing but padding"),
    ],
)
def test_what_does_not_fit(fields, says):
    with pytest.raises(ValueError, match=says):
        Labelled(**{"ids_BS": IDS, **fields})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "cannot read nothing"),
        ([], "cannot read nothing"),
        ({"code": []}, "cannot read nothing"),
        ({"code": [1]}, "cannot read int"),
        ({"code": 1}, "cannot read int"),
        ({"code": None}, "cannot read NoneType"),
        ([["x"]], "cannot read list"),
        (None, "cannot read NoneType"),
        ([""], "makes no token of ''"),
    ],
)
def test_what_is_no_batch(given, says):
    with pytest.raises(ValueError, match=says):
        labelled(given, byte_level())


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="no tokenizer"):
        labelled(TEXTS)
