"""The corpus: real and known text, the same bytes every time, nothing shared between the splits."""

import ast
import json
import random
import re
import sys

import pytest
import torch

from labkit.train import data, sources

SMALL = 40_000


@pytest.fixture(scope="module")
def small():
    return data.corpus(bytes_per_domain=SMALL)


def both(corpus, domain):
    return corpus.bytes_of(domain) + corpus.bytes_of(domain, "validation")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small):
    assert data.corpus(bytes_per_domain=SMALL).digest == small.digest
    assert data.corpus(bytes_per_domain=SMALL, seed=1).digest != small.digest
    assert re.fullmatch("[0-9a-f]{64}", small.digest)


def test_every_domain_has_the_size_asked_for(small):
    assert small.domains == data.DOMAINS
    for domain in small.domains:
        assert SMALL - 4 < len(both(small, domain)) <= SMALL
        both(small, domain).decode("utf-8")


def test_no_page_is_in_both_splits_and_no_generated_line(small):
    for domain in small.domains:
        assert small.train[domain]
        assert small.validation[domain]
        assert not set(small.train[domain]) & set(small.validation[domain])
    for domain in ("arithmetic", "records"):
        train, held = (set("".join(s[domain]).splitlines()) for s in (small.train, small.validation))
        shared = train & held
        assert all(line.startswith("id,") for line in shared)


def test_the_digest_sees_every_byte_and_the_split(small):
    page, *rest = small.train["code"]
    other = data.Corpus({**small.train, "code": (page + " ", *rest)}, small.validation)
    moved = data.Corpus(small.validation, small.train)
    assert len({small.digest, other.digest, moved.digest}) == 3


def test_sums_are_right():
    text = next(sources.read("arithmetic", random.Random(0), []))
    for line in text.splitlines():
        for part in line.split("; "):
            sides = [eval(side) for side in part.split(" = ")]
            assert len(sides) >= 2
            assert all(side == sides[0] for side in sides)


def test_records_parse():
    documents = sources.read("records", random.Random(0), [])
    kinds = set()
    for _ in range(12):
        lines = next(documents).splitlines()
        kinds.add(lines[0][0])
        if lines[0].startswith("{"):
            rows = [json.loads(line) for line in lines]
            assert {row["state"] for row in rows} <= {"open", "paid", "late", "void"}
        else:
            assert {len(line.split(",")) for line in lines} == {5}
    assert kinds == {"{", "i"}


def test_code_still_parses_and_has_no_docstring():
    for name in ("heapq", "textwrap", "json.decoder"):
        code, prose = sources.split_docstrings(sources.module_source(name))
        documented = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]
        assert all(len(node.body) == 1 for node in documented)
        assert prose


def test_every_module_named_is_found_and_modules_are_distinct():
    names = sources.MODULES.split()
    assert len(set(names)) == len(names)
    assert [name for name in names if sources.module_source(name) is None] == []


def test_missing_sources_are_told(monkeypatch):
    real = sources.module_source
    monkeypatch.setattr(sources, "module_source", lambda name: None if name < "t" else real(name))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    told = data.corpus(("english",), 10_000)
    assert any("docstrings alone" in note for note in told.notes)
    assert any("no source of" in note for note in told.notes)
    assert "docstrings alone" in told.describe()
    monkeypatch.setattr(sources, "module_source", lambda name: None)
    with pytest.raises(ValueError, match="only 0 bytes"):
        data.corpus(("code",), 10_000)


def test_describe_shows_sizes_and_digest(small):
    text = small.describe()
    assert small.digest[:16] in text
    assert all(domain in text for domain in small.domains)


def test_sample_takes_domains_in_turn_from_the_right_split(small):
    batch = data.sample(small, num_sequences=6, sequence_length=50, split="validation")
    assert batch.ids_BS.shape == (6, 50)
    assert batch.ids_BS.dtype == torch.int64
    assert batch.domains == (*data.DOMAINS, "code", "english")
    for row, domain in zip(batch.ids_BS.tolist(), batch.domains, strict=True):
        assert bytes(row) in small.bytes_of(domain, "validation")
        assert bytes(row) not in small.bytes_of(domain)
    again = data.sample(small, num_sequences=6, sequence_length=50, split="validation")
    assert torch.equal(again.ids_BS, batch.ids_BS)
    other = data.sample(small, num_sequences=6, sequence_length=50, split="validation", seed=1)
    assert not torch.equal(other.ids_BS, batch.ids_BS)


def test_tokens_and_labels_line_up():
    batch = data.Batch(torch.tensor([list(b"a b"), list(b"\nz\xe2")]), ("code", "english"))
    assert batch.tokens == ("a", "␣", "b", "⏎", "z", "\\xe2")
    assert batch.token_domains == ("code",) * 3 + ("english",) * 3
    assert batch.texts == ("a b", "\nz�")


def test_byte_features_look_back_only_and_not_far():
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    x = data.byte_features(ids, 16, window=4)
    later, earlier = ids.clone(), ids.clone()
    later[:, 20] = (later[:, 20] + 1) % 256
    y = data.byte_features(later, 16, window=4)
    torch.testing.assert_close(y[:, :20], x[:, :20])
    assert not torch.allclose(y[:, 20], x[:, 20])
    earlier[:, 0] = (earlier[:, 0] + 1) % 256
    torch.testing.assert_close(data.byte_features(earlier, 16, window=4)[:, 10:], x[:, 10:])


def test_byte_features_are_fixed_scaled_and_tell_domains_apart(small):
    batch = data.sample(small, num_sequences=32, sequence_length=64)
    x = data.byte_features(batch.ids_BS.to(torch.uint8), 32)
    torch.testing.assert_close(x.square().mean(-1), torch.ones(32, 64))
    assert torch.equal(x, data.byte_features(batch.ids_BS, 32))
    assert not torch.equal(x, data.byte_features(batch.ids_BS, 32, seed=1))
    label = torch.tensor([small.domains.index(domain) for domain in batch.domains])
    fit = torch.linalg.lstsq(x.flatten(0, 1), torch.nn.functional.one_hot(label.repeat_interleave(64)).float())
    held = data.sample(small, num_sequences=32, sequence_length=64, split="validation")
    guess = (data.byte_features(held.ids_BS, 32).flatten(0, 1) @ fit.solution).argmax(1)
    assert (guess == label.repeat_interleave(64)).float().mean() > 0.4  # chance is 0.25


def test_byte_features_of_nothing():
    assert data.byte_features(torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4)
    assert data.byte_features(torch.zeros(2, 0, 3, dtype=torch.int64), 4).shape == (2, 0, 3, 4)


def test_toy_2d_is_seeded_balanced_and_not_linear():
    x, labels = data.toy_2d(401, 4)
    assert x.shape == (401, 2)
    assert x.dtype == torch.float32
    assert labels.bincount().tolist() == [101, 100, 100, 100]
    assert torch.equal(x, data.toy_2d(401, 4)[0])
    assert not torch.equal(x, data.toy_2d(401, 4, seed=1)[0])
    ones = torch.cat([x, torch.ones(401, 1)], dim=1)
    line = (ones @ torch.linalg.lstsq(ones, torch.nn.functional.one_hot(labels).float()).solution).argmax(1)
    near = torch.cdist(x, x).fill_diagonal_(9).argmin(1)
    assert (line == labels).float().mean() < 0.8 < (labels[near] == labels).float().mean()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: data.corpus("code"), "distinct names"),
        (lambda c: data.corpus(("code", "code")), "distinct names"),
        (lambda c: data.corpus(("poems",)), "distinct names"),
        (lambda c: data.corpus(()), "distinct names"),
        (lambda c: data.corpus(bytes_per_domain=100), "two pages"),
        (lambda c: data.corpus(validation_share=1.0), "between 0 and 1"),
        (lambda c: data.sample(c, num_sequences=0, sequence_length=5), "1 or more"),
        (lambda c: data.sample(c, num_sequences=1, sequence_length=10**6), "shorten it"),
        (lambda c: data.sample(c, num_sequences=1, sequence_length=5, split="test"), "split is 'test'"),
        (lambda c: c.bytes_of("poems"), "this corpus has"),
        (lambda c: sources.read("poems", random.Random(0), []), "choose one of"),
        (lambda c: data.byte_features(torch.tensor([256]), 4), "bytes lie in"),
        (lambda c: data.byte_features(torch.tensor([0.5]), 4), "integers"),
        (lambda c: data.byte_features(torch.tensor([1]), 0), "1 or more"),
        (lambda c: data.toy_2d(0), "num_points is 0"),
        (lambda c: data.toy_2d(5, 1), "num_classes 1"),
    ],
)
def test_bad_input(small, call, words):
    with pytest.raises(ValueError, match=words):
        call(small)
