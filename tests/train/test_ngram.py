"""n-gram baselines: equal to counting with dictionaries, and proper distributions."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from labkit.train import ngram
from labkit.train.documents import collect
from labkit.train.tokenizer import byte_tokenizer, train_tokenizer
from labkit.train.tokens import evaluation, write_tokens

V = 7


class Slow:
    """Interpolated Kneser–Ney with dictionaries and tuples, written from the formula."""

    def __init__(self, ids, order):
        self.order, self.counts = order, {}
        grams = [tuple(ids[i : i + order]) for i in range(len(ids) - order + 1)]
        self.counts[order] = Counter(grams)
        for n in range(order - 1, 0, -1):  # how many different tokens stand before an n-gram
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.followers = {n: defaultdict(dict) for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[n][gram[:-1]][gram[-1]] = count

    def discount(self, n):
        values = list(self.counts[n].values())
        once, twice = values.count(1), values.count(2)
        return once / (once + 2 * twice) if once else 0.5

    def p(self, context, token):
        context = tuple(context[-(self.order - 1) :]) if self.order > 1 else ()
        return self._p(context, token, len(context) + 1)

    def _p(self, context, token, n):
        if n == 0:
            return 1 / V
        after, d = self.followers[n].get(context, {}), self.discount(n)
        lower = self._p(context[1:], token, n - 1)
        if not after:
            return lower
        return (max(after.get(token, 0) - d, 0) + d * len(after) * lower) / sum(after.values())


def markov(length, seed=0):
    rng = np.random.default_rng(seed)
    ids = [0, 1, 2]
    while len(ids) < length:
        ids.append(int((ids[-1] * 3 + ids[-2] + (rng.random() < 0.3) * rng.integers(V)) % (V - 1)))  # never V − 1
    return np.array(ids, dtype=np.uint16)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 40, 400])
def test_it_equals_counting_with_dictionaries(order, length):
    ids = markov(length, seed=order)
    slow, fast = Slow(ids.tolist(), order), ngram.fit(ids, V, order)
    rows = np.random.default_rng(1).integers(0, V, (30, 9))
    rows[:10] = markov(90, seed=9).reshape(10, 9)
    nats = fast.nats(rows)
    assert nats.shape == (30, 9)
    for row, found in zip(rows.tolist(), nats, strict=True):
        expected = [-math.log(slow.p(row[:i], token)) for i, token in enumerate(row)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4, 5])
def test_probabilities_sum_to_one_after_every_context(order):
    model = ngram.fit(markov(300), V, order)
    contexts = [(), (0,), (6,), (6, 6, 6, 6), (6, 6, 6, 2), *markov(40, seed=3).reshape(8, 5).tolist()]
    for context in contexts:
        p = model.distribution(context)
        assert p.shape == (V,)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert p.min() > 0  # also for the token never seen
    assert model.distribution((9, 9, 1, 2, 3, 4, 5)[-order + 1 :] if order > 1 else ()).sum() == pytest.approx(1)


def test_a_small_case_by_hand():
    ids = np.array([0, 1, 0, 1, 0, 2])
    unigram = ngram.fit(ids, 4, 1)  # counts 3, 2, 1: one token once, one twice, so the discount is 1/3
    np.testing.assert_allclose(
        unigram.distribution(), [(3 - 1 / 3 + 1 / 4) / 6, (2 - 1 / 3 + 1 / 4) / 6, (1 - 1 / 3 + 1 / 4) / 6, 1 / 24]
    )
    bigram = ngram.fit(ids, 4, 2)  # 01 twice, 10 twice, 02 once: discount 1/5
    below = bigram.orders[0]  # each of 1, 0, 2 follows one kind of token: discount 1, so all is uniform
    assert (sorted(below.counts.tolist()), below.discount) == ([1, 1, 1], 1.0)
    np.testing.assert_allclose(bigram.distribution((0,)), [0.4 / 12, (1.8 + 0.1) / 3, (0.8 + 0.1) / 3, 0.4 / 12])


def test_hashes_do_not_depend_on_place_and_see_order_and_length():
    ids = np.array([[1, 2, 3, 1, 2, 3, 3, 2, 1, 1]])
    three = ngram._hashes(ids, 3)[0]
    assert three[2] == three[5] != three[8]
    every = [int(h) for n in (1, 2, 3) for h in np.unique(ngram._hashes(ids, n)[0, n - 1 :])]
    grams = {tuple(ids[0, i : i + n]) for n in (1, 2, 3) for i in range(11 - n)}
    assert len(set(every)) == len(every) == len(grams)
    zeros = [ngram._hashes(np.zeros((1, 5), dtype=int), n)[0, -1] for n in range(5)]
    assert len(set(zeros)) == 5


def test_more_context_helps_and_what_was_seen_costs_little():
    ids = markov(20_000)
    held = markov(4_000, seed=8).reshape(8, -1)
    losses = [ngram.fit(ids, V, n).nats(held).mean() for n in (1, 2, 3)]
    assert losses[2] < losses[0] - 0.5  # what comes next hangs on the last two
    repeated = np.tile(np.arange(V), 200)
    assert ngram.fit(repeated, V, 3).nats(repeated[None])[0, 3:].max() < 0.01


def test_portions_change_nothing(monkeypatch):
    model, rows = ngram.fit(markov(500), V, 4), markov(300, seed=2).reshape(30, 10)
    whole = model.nats(rows)
    monkeypatch.setattr(ngram, "_TOKENS_AT_ONCE", 35)
    np.testing.assert_array_equal(model.nats(rows), whole)
    assert model.nats(rows[:0]).shape == (0, 10)
    assert model.nats(rows[:, :2]).shape == (30, 2)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    texts = collect(train_bytes=60_000)
    tokenizer = train_tokenizer(texts.train, 500)
    return texts, tokenizer, write_tokens(tmp_path_factory.mktemp("ngram"), texts, tokenizer)


def test_baselines_are_the_mean_over_what_a_model_predicts(written):
    _, tokenizer, files = written
    found = ngram.baselines(files["train"], files["validation"], tokenizer, 64, 4 * 10 * 64)
    assert {domain: list(losses) for domain, losses in found.items()} == {key: [1, 5] for key in files["train"]}
    for domain, losses in found.items():
        batches = evaluation({domain: files["validation"][domain]}, 64, 10 * 64)
        ids = np.concatenate([batch.ids_BS.numpy() for batch in batches])
        model = ngram.fit(files["train"][domain].ids, 500)
        expected = model.nats(ids)[:, 1:]
        size = len(tokenizer.decode(ids[:, 1:].flatten().tolist(), skip_special_tokens=True).encode(errors="replace"))
        assert losses[5].tokens == expected.size
        assert losses[5].nats_per_token == pytest.approx(expected.mean())
        assert losses[5].nats_per_byte == pytest.approx(expected.sum() / size, rel=0.01)
        assert losses[1].nats_per_token > losses[5].nats_per_token > 0
    text = ngram.describe(found)
    assert len(text.splitlines()) == 9
    assert all(word in text for word in ("unigram", "5-gram", "records", "nats/byte"))


def test_bytes_cost_the_same_a_token_and_a_byte_but_for_the_ends(tmp_path):
    texts = collect(("english",), 30_000)
    tokenizer = byte_tokenizer()
    files = write_tokens(tmp_path, texts, tokenizer)
    found = ngram.baselines(files["train"], files["validation"], tokenizer, 100, orders=(3,))["english"][3]
    assert found.nats_per_token <= found.nats_per_byte < 1.02 * found.nats_per_token
    alone = ngram.fit(files["train"]["english"].ids, 258, 3)
    ids = files["validation"]["english"].ids
    assert found.nats_per_token == pytest.approx(alone.nats(ids[None])[0].mean(), rel=0.05)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ngram.fit(np.arange(4), 4, 5), "at least 5 tokens"),
        (lambda: ngram.fit(np.zeros((2, 9), dtype=int), 4), "at least 5 tokens"),
        (lambda: ngram.fit(np.arange(9), 9, 0), "1 or more"),
        (lambda: ngram.fit(np.arange(9), 8), "this vocabulary has"),
        (lambda: ngram.fit(np.arange(9) / 2, 9), "integers"),
        (lambda: ngram.fit(np.arange(9), 9).nats(np.arange(9)), r"give \[B, S\]"),
        (lambda: ngram.fit(np.arange(9), 9).nats(np.full((1, 2), 9)), "this vocabulary has"),
        (lambda: ngram.fit(np.arange(9), 9).nats(np.full((1, 2), -1)), "this vocabulary has"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_baselines_refuse_what_does_not_belong_together(written):
    _, tokenizer, files = written
    train, held = files["train"], files["validation"]
    with pytest.raises(ValueError, match="another tokenizer"):
        ngram.baselines(train, held, byte_tokenizer(), 64)
    with pytest.raises(ValueError, match="which train lacks"):
        ngram.baselines({"code": train["code"]}, held, tokenizer, 64)
    with pytest.raises(ValueError, match="2 or more"):
        ngram.baselines(train, held, tokenizer, 1)
