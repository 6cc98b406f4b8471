"""Token files and batches: what is written is read, every window comes once an epoch, and a position is exact."""

import hashlib
import json
import random
from collections import Counter
from string import ascii_letters
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.train import data
from labkit.train.documents import collect
from labkit.train.tokenizer import byte_tokenizer, decode_bytes, encode_documents, train_tokenizer
from labkit.train.tokens import TokenFile, TokenSource, evaluation, open_tokens, write_tokens

S = 8
SIZES = {"a": 203, "b": 96, "c": 51}  # tokens for training


@pytest.fixture(scope="module")
def texts():
    return collect(train_bytes=20_000)


@pytest.fixture(scope="module")
def bpe(texts):
    return train_tokenizer(texts.train, 320)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three domains of random letters, so that a window tells where it stands."""
    rng = random.Random(0)
    letters = {domain: "".join(rng.choices(ascii_letters, k=size - 1)) for domain, size in SIZES.items()}
    held = {domain: (text[:-2],) for domain, text in letters.items()}
    made = SimpleNamespace(train={d: (t,) for d, t in letters.items()}, validation=held, digest="0" * 64)
    return write_tokens(tmp_path_factory.mktemp("tokens"), made, byte_tokenizer())


def drawn(source, batches, batch=4, sequence=S):
    return [source.next(batch, sequence) for _ in range(batches)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.ids_BS, b.ids_BS) and a.domains == b.domains for a, b in zip(left, right, strict=True)
    )


def start(file, row):
    """The one position at which a window stands in its file."""
    views = np.lib.stride_tricks.sliding_window_view(file.ids, len(row))
    (found,) = np.flatnonzero((views == np.asarray(row)).all(1)).tolist()
    return found


def test_files_hold_every_document_and_its_end(texts, bpe, tmp_path):
    written = write_tokens(tmp_path, texts, bpe)
    for split in ("train", "validation"):
        for domain, documents in getattr(texts, split).items():
            file, ids = written[split][domain], []
            for document in encode_documents(bpe, documents):
                ids += [*document, bpe.eos_token_id]
            assert file.ids.tolist() == ids
            assert (file.tokens, file.documents) == (len(ids), len(documents))
            assert file.bytes == sum(len(text.encode()) for text in documents)
            assert decode_bytes(bpe, ids) == "".join(documents).encode()
            assert (file.vocab_size, file.dtype, file.corpus, file.end_id) == (320, "uint16", texts.digest, 0)
            assert file.checksum == hashlib.sha256(file.path.read_bytes()).hexdigest()
    again = open_tokens(tmp_path, bpe)
    assert {split: dict(sorted(by.items())) for split, by in written.items()} == again
    assert not list(tmp_path.glob("*.partial"))


def test_the_small_corpus_of_pages_can_be_written_too(tmp_path):
    pages = data.corpus(bytes_per_domain=10_000)
    files = write_tokens(tmp_path, pages, byte_tokenizer())
    assert (
        bytes(files["train"]["code"].ids[: len(pages.train["code"][0].encode())].tolist())
        == pages.train["code"][0].encode()
    )
    assert files["train"]["code"].documents == len(pages.train["code"])


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(65_600)])
    made = SimpleNamespace(train={"a": ("x<65599>",)}, validation={"a": ("y",)}, digest="0")
    file = write_tokens(tmp_path, made, tokenizer)["train"]["a"]
    assert file.dtype == "uint32"
    assert file.ids.tolist() == [ord("x"), 258 + 65_599, 256]
    assert file.path.stat().st_size == 12


def test_a_spoilt_file_is_refused(texts, bpe, tmp_path):
    path = write_tokens(tmp_path, texts, bpe)["train"]["code"].path
    good, sidecar = path.read_bytes(), path.with_suffix(".json")
    known = json.loads(sidecar.read_text())
    for spoilt in (good[:-1], good[:-2], good + b"\0\0", b""):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="bytes, but its sidecar says"):
            TokenFile.open(path, verify=False)
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(ValueError, match="checksum differs"):
        TokenFile.open(path)
    assert TokenFile.open(path, verify=False).tokens == known["tokens"]
    path.write_bytes(good)
    with pytest.raises(ValueError, match="was made with tokenizer"):
        open_tokens(tmp_path, byte_tokenizer())
    for change in ({"format": 2}, {"dtype": "float64"}, {"extra": 1}, {"split": "test"}, {"tokens": "9"}):
        sidecar.write_text(json.dumps(known | change))
        with pytest.raises(ValueError, match="no sidecar of format 1"):
            TokenFile.open(path)
    for text in ("", "[]", "{}"):
        sidecar.write_text(text)
        with pytest.raises(ValueError, match="no sidecar of format 1"):
            TokenFile.open(path)
    sidecar.write_text(json.dumps(known | {"corpus": "another"}))
    with pytest.raises(ValueError, match="2 corpora or tokenizers"):
        open_tokens(tmp_path)
    sidecar.unlink()
    with pytest.raises(ValueError, match=r"json is missing"):
        open_tokens(tmp_path, bpe)
    with pytest.raises(ValueError, match="no token file"):
        open_tokens(tmp_path / "elsewhere")


def test_a_batch_is_whole_windows_with_labels_and_domains(files):
    batch = TokenSource(files["train"]).next(6, S)
    assert batch.ids_BS.shape == (6, S)
    assert batch.ids_BS.dtype == batch.labels_BS.dtype == torch.int64
    assert torch.equal(batch.ids_BS, batch.labels_BS)
    assert batch.labels_BS.data_ptr() != batch.ids_BS.data_ptr()
    assert Counter(batch.domains) == {"a": 2, "b": 2, "c": 2}
    for row, domain in zip(batch.ids_BS.tolist(), batch.domains, strict=True):
        assert start(files["train"][domain], row) >= 0


@pytest.mark.parametrize("domain", SIZES)
def test_an_epoch_takes_every_window_once_in_an_order_of_its_own(files, domain):
    file = files["train"][domain]
    source, windows = TokenSource({domain: file}, seed=3), SIZES[domain] // S
    orders = []
    for epoch in range(6):
        assert source.epochs == {domain: epoch}
        first = [start(file, source.next(1, S).ids_BS[0].tolist()) for _ in range(windows)]
        phase = min(first)
        assert sorted(first) == [phase + S * i for i in range(windows)]
        assert 0 <= phase <= SIZES[domain] % S
        orders.append((phase, tuple(place - phase for place in first)))
    assert len({order for _, order in orders}) == 6
    assert len({phase for phase, _ in orders}) > 1 or SIZES[domain] % S == 0
    assert source.tokens == {domain: 6 * windows * S}


@given(shares=st.lists(st.floats(0.02, 50), min_size=3, max_size=3), rows=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_shares_hold_within_a_row_at_every_point(files, shares, rows):
    source = TokenSource(files["train"], dict(zip(SIZES, shares, strict=True)))
    source.next(rows, S)
    for domain, share in zip(SIZES, shares, strict=True):
        assert abs(source.tokens[domain] / S - rows * share / sum(shares)) < 2


def test_the_order_is_the_same_on_every_machine(files):
    source = TokenSource({"b": files["train"]["b"]}, seed=5)
    places = [start(files["train"]["b"], source.next(1, S).ids_BS[0].tolist()) for _ in range(12)]
    assert places == [24, 0, 88, 72, 56, 16, 8, 40, 64, 48, 80, 32]


@given(before=st.integers(0, 40), after=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_position_is_taken_up_exactly(files, before, after, batch, seed):
    weights = {"a": 3, "b": 1, "c": 0.3}
    source = TokenSource(files["train"], weights, seed)
    drawn(source, before, batch)
    state = json.loads(json.dumps(source.state()))
    expected = drawn(source, after, batch)
    fresh = TokenSource(files["train"], weights, seed)
    fresh.load(state)
    assert same(drawn(fresh, after, batch), expected)
    assert fresh.state() == source.state()
    source.load(state)
    assert same(drawn(source, after, batch), expected)


def test_a_state_is_no_view_of_the_source(files):
    source = TokenSource(files["train"])
    state = source.state()
    drawn(source, 3)
    assert state["taken"] == {"a": 0, "b": 0, "c": 0}
    assert state["sequence"] == 0


def test_a_position_brings_its_window_length(files):
    long = TokenSource(files["train"])
    drawn(long, 3, 4, 16)
    state = long.state()
    source = TokenSource(files["train"])
    drawn(source, 3, 4, S)
    source.load(state)
    with pytest.raises(ValueError, match="windows are 16 long"):
        source.next(4, S)
    assert source.epochs == long.epochs
    assert same(drawn(source, 5, 4, 16), drawn(long, 5, 4, 16))


def test_seeds_differ_and_weights_decide(files):
    one, two = (drawn(TokenSource(files["train"], seed=seed), 5) for seed in (0, 1))
    assert same(one, drawn(TokenSource(files["train"]), 5))
    assert not same(one, two)
    heavy = TokenSource(files["train"], {"a": 8, "b": 1, "c": 1})
    assert Counter(heavy.next(20, S).domains) == {"a": 16, "b": 2, "c": 2}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_one_process_would_see(files, world):
    whole = drawn(TokenSource(files["train"], seed=2), 20, 4 * world)
    ranks = [TokenSource(files["train"], seed=2, rank=rank, world=world) for rank in range(world)]
    parts = [drawn(source, 20) for source in ranks]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.ids_BS, torch.cat([part[step].ids_BS for part in parts]))
        assert batch.domains == sum((part[step].domains for part in parts), ())
    assert all(source.state() == ranks[0].state() for source in ranks)


def test_a_state_of_another_source_is_refused(files):
    source = TokenSource(files["train"])
    state = source.state()
    for change, words in (
        ({"seed": 1}, "other seed"),
        ({"weights": {"a": 1.0}}, "other weights"),
        ({"files": {}}, "other files"),
        ({"taken": {"a": 1}}, "state counts a"),
        ({"more": 1}, "has the keys"),
    ):
        with pytest.raises(ValueError, match=words):
            source.load(state | change)
    with pytest.raises(ValueError, match="other files"):
        TokenSource(files["validation"]).load(state)


def test_evaluation_covers_evenly_and_is_fixed(files):
    held = files["validation"]
    every = evaluation(held, S, batch=4)
    assert same(every, evaluation(held, S, batch=4))
    counts = Counter(domain for batch in every for domain in batch.domains)
    assert counts == {domain: held[domain].tokens // S for domain in SIZES}
    assert all(len(set(batch.domains)) == 1 and len(batch.domains) <= 4 for batch in every)
    for domain, file in held.items():
        rows = torch.cat([batch.ids_BS for batch in every if batch.domains[0] == domain])
        assert rows.flatten().tolist() == file.ids[: len(rows) * S].tolist()
    some = evaluation(held, S, 3 * 6 * S)
    rows = [row for batch in some if batch.domains[0] == "a" for row in batch.ids_BS.tolist()]
    places = [start(held["a"], row) // S for row in rows]
    assert len(rows) == 6
    gaps = np.diff([*places, held["a"].tokens // S])
    assert 0 < gaps.min() <= gaps.max() <= gaps.min() + 1
    assert sum(batch.ids_BS.numel() for batch in some) <= 3 * 6 * S


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: TokenSource({}), "map each domain"),
        (lambda f: TokenSource({"a": "path"}), "map each domain"),
        (lambda f: TokenSource(f, {"a": 1}), "one for each"),
        (lambda f: TokenSource(f, {"a": 1, "b": 1, "c": 0}), "positive numbers"),
        (lambda f: TokenSource(f, {"a": 1, "b": 1, "c": float("nan")}), "positive numbers"),
        (lambda f: TokenSource(f, rank=2, world=2), "0 ≤ rank < world"),
        (lambda f: TokenSource(f).next(0, 5), "1 or more"),
        (lambda f: TokenSource(f).next(2, 52), "c has only 51 tokens"),
        (lambda f: evaluation(f, 0), "1 or more"),
        (lambda f: evaluation(f, 52), "c has only 51 tokens"),
        (lambda f: evaluation(f, 8, 23), "need 24 or more"),
        (lambda f: evaluation({}, 8), "map each domain"),
    ],
)
def test_bad_input(files, call, words):
    with pytest.raises(ValueError, match=words):
        call(files["train"])


def test_windows_keep_their_length_and_files_their_tokenizer(files, texts, bpe, tmp_path):
    source = TokenSource(files["train"])
    source.next(1, S)
    with pytest.raises(ValueError, match="windows are 8 long"):
        source.next(1, S + 1)
    other = write_tokens(tmp_path, texts, bpe)["train"]["code"]
    with pytest.raises(ValueError, match="different tokenizers"):
        TokenSource({**files["train"], "code": other})
    bpe_without_end = byte_tokenizer()
    bpe_without_end.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        write_tokens(tmp_path, texts, bpe_without_end)


def test_the_order_of_the_files_decides_nothing(files):
    one = TokenSource(files["train"], seed=3)
    other = TokenSource(dict(reversed(files["train"].items())), seed=3)
    one.next(5, 16)
    other.load(one.state())
    for _ in range(4):
        torch.testing.assert_close(one.next(5, 16).ids_BS, other.next(5, 16).ids_BS, rtol=0, atol=0)
