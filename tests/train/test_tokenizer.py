"""Tokenizers: nothing is lost, the same text gives the same tokenizer, and transformers reads what we save."""

import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.train import tokenizer as tk
from labkit.train.documents import collect

V = 400
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
DATA = st.binary(max_size=60) | TEXTS.map(str.encode)


@pytest.fixture(scope="module")
def texts():
    return collect(train_bytes=40_000)


@pytest.fixture(scope="module")
def bpe(texts):
    return tk.train_tokenizer(texts.train, V)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def tokenizer(request, bpe):
    return bpe if request.param == "bpe" else tk.byte_tokenizer()


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tk.encode_documents(tokenizer, [text])[0]) == text


@given(data=DATA)
@settings(max_examples=60, deadline=None)
def test_every_byte_string_comes_back(tokenizer, data):
    ids = tk.encode_bytes(tokenizer, data)
    assert tk.decode_bytes(tokenizer, ids) == data
    assert tk.token_lengths(tokenizer)[ids].sum() == len(data)


def test_bytes_that_are_no_text_come_back(tokenizer):
    for data in (
        bytes(range(256)),
        b"\xff",
        b"a\xc3",
        b"\x80\xe2\x82",
        b"\r\n\t  \n",
        "é\udc80".encode("utf-8", "surrogatepass"),
    ):
        assert tk.decode_bytes(tokenizer, tk.encode_bytes(tokenizer, data)) == data
    assert tk.encode_bytes(tokenizer, b"sum = 1") == tk.encode_documents(tokenizer, ["sum = 1"])[0]


def test_words_that_look_special_stay_words(tokenizer):
    text = f"a{tk.END}b{tk.PAD}"
    (ids,) = tk.encode_documents(tokenizer, [text])
    assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tk.decode_bytes(tokenizer, ids) == text.encode()
    assert tokenizer.eos_token_id in tokenizer(text)["input_ids"]  # a prompt may hold them


def test_special_tokens_and_sizes(bpe):
    assert (bpe.bos_token, bpe.eos_token, bpe.pad_token) == (tk.END, tk.END, tk.PAD)
    assert (bpe.eos_token_id, bpe.pad_token_id, len(bpe)) == (0, 1, V)
    assert bpe.padding_side == "left"
    assert bpe("x")["input_ids"] == tk.encode_documents(bpe, ["x"])[0]  # nothing is put in front
    table = tk.token_bytes(bpe)
    assert sorted(table, key=len)[:2] == [b"", b""]
    assert {bytes([b]) for b in range(256)} <= set(table)
    assert len(set(table)) == V - 1


def test_bytes_are_their_own_ids():
    tokenizer = tk.byte_tokenizer()
    assert tk.encode_bytes(tokenizer, bytes(range(256))) == list(range(256))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (256, 257, 258)
    assert tokenizer("né")["input_ids"] == list("né".encode())


def test_digits_stand_alone_and_merges_are_learned(bpe):
    ids = bpe("12345 + 678")["input_ids"]
    table = tk.token_bytes(bpe)
    assert [table[i] for i in ids if table[i].isdigit()] == [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]
    assert not any(re.search(rb"\d.|.\d", data) for data in table)
    assert b" self" in table or b"self" in table


def test_the_same_texts_give_the_same_tokenizer_also_in_one_thread(texts, bpe):
    assert tk.tokenizer_digest(tk.train_tokenizer(texts.train, V)) == tk.tokenizer_digest(bpe)
    code = (
        "from labkit.train import tokenizer as tk; from labkit.train.documents import collect;"
        f"print(tk.tokenizer_digest(tk.train_tokenizer(collect(train_bytes=40_000).train, {V})))"
    )
    env = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == tk.tokenizer_digest(bpe)


def test_digests_tell_tokenizers_apart(texts, bpe):
    others = [
        tk.byte_tokenizer(),
        tk.train_tokenizer(texts.train, V + 1),
        tk.train_tokenizer({"code": texts.train["code"]}, V),
    ]
    assert len({tk.tokenizer_digest(t) for t in (bpe, *others)}) == 4
    before = tk.tokenizer_digest(bpe)
    bpe(["a", "much longer text"], padding=True, truncation=True, max_length=4)  # leaves its mark in the backend
    assert tk.tokenizer_digest(bpe) == before
    assert len(tk.encode_documents(bpe, ["a", "long text " * 9])[1]) > 4


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tk.tokenizer_digest(loaded) == tk.tokenizer_digest(tokenizer)
    text = f"def f(x):\n    return  x + 12 # né 🚨 !{tk.END}"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token, loaded.eos_token_id, loaded.pad_token_id, loaded.padding_side, len(loaded)) == (
        tk.END, tokenizer.eos_token_id, tokenizer.pad_token_id, "left", len(tokenizer),
    )  # fmt: skip
    padded = loaded(["a b c d", "a"], padding=True)
    assert padded["attention_mask"][1][0] == 0


def test_bytes_per_token(texts, bpe):
    found = tk.bytes_per_token(bpe, texts.validation)
    assert tuple(found) == texts.domains
    data = "".join(texts.validation["code"])
    assert found["code"] == pytest.approx(
        len(data.encode()) / sum(map(len, tk.encode_documents(bpe, texts.validation["code"])))
    )
    assert found["english"] > 1.3 > found["arithmetic"] >= 1
    assert tk.bytes_per_token(tk.byte_tokenizer(), {"x": ["né"]}) == {"x": 1.0}


def test_every_domain_has_a_say():
    rng = random.Random(0)
    words = ["".join(rng.choices("uvwxyz", k=4)) for _ in range(20_000)]
    lopsided = {"code": (" ".join(words),), "english": ("abcd " * 200,)}
    alike = tk.train_tokenizer(lopsided, 262, bytes_per_domain=600)
    assert b"abcd" in tk.token_bytes(alike)
    by_size = tk.train_tokenizer(lopsided, 262, bytes_per_domain=None)
    assert not any(b"ab" in data for data in tk.token_bytes(by_size))


def test_added_tokens_are_their_own_text(texts):
    tokenizer = tk.byte_tokenizer()
    before = tk.tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    assert tk.tokenizer_digest(tokenizer) != before
    assert tk.token_bytes(tokenizer)[258] == b"<tool>"
    assert np.array_equal(tk.token_lengths(tokenizer)[-3:], [0, 0, 6])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: tk.train_tokenizer(t, 257), "258 or more"),
        (lambda t: tk.train_tokenizer({"code": ["tiny"]}, 500), "give only 2"),
        (lambda t: tk.train_tokenizer({"code": "one text"}, 300), "domain to its documents"),
        (lambda t: tk.train_tokenizer(["a"], 300), "domain to its documents"),
        (lambda t: tk.train_tokenizer(t, 300, bytes_per_domain=0), "1 or more"),
        (lambda t: tk.decode_bytes(tk.byte_tokenizer(), [258]), "this vocabulary has"),
        (lambda t: tk.decode_bytes(tk.byte_tokenizer(), [-1]), "this vocabulary has"),
        (lambda t: tk.bytes_per_token(tk.byte_tokenizer(), "text"), "domain to its documents"),
    ],
)
def test_bad_input(texts, call, words):
    with pytest.raises(ValueError, match=words):
        call(texts.train)
