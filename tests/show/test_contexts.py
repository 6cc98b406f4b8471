"""The contexts' kernel side: it finds every run that joins to the word and no other, and counts their experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from records import large, make, payload

from labkit.core.metrics import load
from labkit.core.routing import Routing
from labkit.show.widgets.contexts import Contexts, contexts
from labkit.show.widgets.running_text import RunningText

THREE = ("code", "english", "numbers")


def by_hand(texts: tuple[str, ...], sequences: tuple[int, ...], word: str) -> list[tuple[int, int]]:
    """Every run, tried one after another."""
    T = len(texts)
    return [
        (i, j)
        for i in range(T)
        for j in range(i, min(T, i + len(word)))
        if sequences[i] == sequences[j] and "".join(texts[i : j + 1]) == word
    ]


@pytest.mark.parametrize("seed", range(5))
def test_finds_every_run_and_no_other(seed):
    draw = torch.Generator().manual_seed(seed)
    pieces = ("a", "b", "ab", "ba", "aa", "b␣")
    texts = tuple(pieces[i] for i in torch.randint(len(pieces), (120,), generator=draw).tolist())
    sequences = tuple(t // 7 for t in range(120))
    text = RunningText(texts, sequences)
    found = {word: text.runs(word) for word in ("a", "ab", "aab", "abab", "b ", "zz")}
    assert found == {word: by_hand(texts, sequences, word.replace(" ", "␣")) for word in found}
    assert sum(map(len, found.values())) > 20


def test_a_match_never_crosses_sequences():
    text = RunningText(tuple("abab"), (0, 0, 0, 1))
    assert text.runs("ab") == [(0, 1)]


def test_whole_words_have_no_letter_beside_them():
    w = contexts(make(T=400, text="the other, the␣then\n", L=1, sequence=400), word="the")
    inside = w.matches
    w.whole = True
    assert inside == 2 * w.matches == 80
    joined = "".join(RunningText.of(make(T=400, text="the other, the␣then\n", sequence=400)[0]).texts)
    assert all(joined[last - 2 : last + 1] == "the" for last in w.positions)


def test_a_words_share_is_that_of_its_last_tokens():
    records = make(T=400, L=2, text="the cat in the hat ", sequence=50)
    w = contexts(records, word="the ", layer=1)
    rows = [last for _, last in by_hand(records[1].tokens, tuple(records[1].sequence_T.tolist()), "the ")]
    assert w.positions == rows
    assert w.matches == len(rows) > 30
    chosen = records[1].topk_ids_TK[rows].flatten().tolist()
    assert w.share_E.tolist() == pytest.approx([chosen.count(e) / len(chosen) for e in range(8)])
    assert torch.equal(w.baseline_E, load(records[1]))
    assert w.lit_expert == w.share_E.argmax()
    w.layer = 0
    chosen = records[0].topk_ids_TK[rows].flatten().tolist()
    assert w.view["share"] == pytest.approx([chosen.count(e) / len(chosen) for e in range(8)], abs=1e-4)


def test_domains_have_the_words_share_and_their_own_baseline():
    (r,) = make(T=600, L=1, domains=THREE)
    w = contexts(r, word=" for")
    assert [row[0] for row in w.view["rows"]] == list(THREE)
    for name, n, share, everyone in w.view["rows"]:
        mine = [t for t in range(600) if r.domains[t] == name]
        hits = [t for t in mine if r.tokens[t] == " for"]
        assert n == len(hits)
        for rows, said in ((hits, share), (mine, everyone)):
            chosen = r.topk_ids_TK[rows].flatten().tolist()
            assert said == pytest.approx([chosen.count(e) / len(chosen) for e in range(8)], abs=1e-4)


def test_occurrences_are_sampled_evenly_and_it_says_so():
    (r,) = make(T=1000, L=1)
    w = contexts(r, word=" for")
    hits = [t for t in range(1000) if r.tokens[t] == " for"]
    shown = [line["last"] for line in w.view["lines"]]
    assert len(hits) == w.matches > 40 == len(shown)
    assert w.sampled == f"Shown: 40 of {len(hits)} occurrences, evenly spaced over 1,000 tokens."
    ranks = torch.tensor([hits.index(t) for t in shown])
    assert (ranks[0], ranks[-1]) == (0, len(hits) - 1)
    assert ranks.diff().max() - ranks.diff().min() <= 1
    for line in w.view["lines"]:
        assert line["ids"] == r.topk_ids_TK[line["last"]].tolist()
        text = "".join(line["left"] + line["key"] + line["right"])
        around = r.tokens[line["start"] : line["start"] + len(line["left"] + line["key"] + line["right"])]
        assert text == "".join(around).replace(" ", "␣").replace("\n", "⏎")
        assert len({int(r.sequence_T[t]) for t in range(line["start"], line["start"] + len(around))}) == 1
    assert contexts(make(T=60)[0], word=" for").sampled == ""


def test_following_a_token_takes_its_word():
    w = contexts(make(T=200), word=" for")
    w.follow = 7
    assert w.word == make(T=200)[0].tokens[7].replace(" ", "␣").replace("\n", "⏎")
    assert w.follow == -1
    letters = contexts(make(T=200, text="the cat, "), word="the")
    letters.follow = 5
    assert letters.word == "cat"
    letters.follow = 7
    assert letters.word == ","


def test_starts_with_a_word_of_most_domains_and_lists_the_commonest():
    w = contexts(make(T=600, L=1, domains=THREE))
    assert w.word == "␣for"
    assert w.frequent[0] == "␣for"
    letters = contexts(make(T=300, text="of the of \\xc3\\xa9 cat of "))
    assert letters.frequent[0] == "of"
    assert set(letters.frequent) == {"of", "the", "cat"}


def test_a_word_that_does_not_occur_is_said_and_near_ones_are_named():
    w = contexts(make(T=400), word="For")
    assert (w.matches, w.view["lines"], w.detail, w.lit_expert) == (0, [], "", -1)
    assert w.share_E.tolist() == [0.0] * 8
    assert w.view["note"] == "“For” does not occur. But “␣for” does."
    text = RunningText(("The", "the", "x"), (0, 0, 0))
    record = make(T=3, E=2, K=1, L=1, domains=None)[0]
    two = contexts(replace(record, tokens=text.texts), word="THE")
    assert two.view["note"] == "“THE” does not occur. But “The”, “the” do."
    w.occurrence = 0
    w.word = " for"
    assert w.matches > 0


def test_a_value_out_of_range_from_the_browser_changes_nothing():
    w = contexts(make(T=60), word=" for")
    view = w.view
    for wrong in ({"word": ""}, {"occurrence": w.matches}, {"follow": 60}, {"layer": 5}):
        with pytest.raises(ValueError, match="give "):
            w.set_state(wrong)
    assert (w.word, w.occurrence, w.follow, w.layer, w.view) == (" for", 0, -1, 0, view)


def test_the_largest_record_sends_little():
    w = contexts(large(), word=" for")
    w.occurrence = 39
    assert payload(w) < 100_000
    assert w.matches > 5000


@pytest.mark.parametrize(
    ("records", "word", "state"),
    [
        (make(T=300, domains=THREE), " for", {"occurrence": 4, "layer": 1}),
        (make(T=1, E=2, K=1, L=1, domains=None), None, {}),
        (make(T=60), "nothing", {}),
        (make(T=300, E=64, K=8, L=1), None, {"lit_expert": 5}),
        (make(T=90, text="猫$x_{2$^🙂\n", domains=tuple("abcdefgh"), sequence=9), "$", {}),
    ],
)
def test_picture_says_what_it_shows(records, word, state):
    w = contexts(records, word=word)
    for name, value in state.items():
        setattr(w, name, value)
    data, meta = w._repr_mimebundle_()
    assert "image/png" in data
    alt = meta["image/png"]["alt"]
    assert w.view["note"] in alt
    assert w.detail in alt


def test_the_lit_expert_is_said_in_words():
    w = contexts(make(T=300, E=8), word=" for")
    w.lit_expert = 3
    mine, everyone = (f"{100 * share_E[3]:.3g} %" for share_E in (w.share_E, w.baseline_E))
    assert w.detail.endswith(f" Lit: expert 3, with {mine} of this word's choices and {everyone} of all.")


def test_a_word_of_any_length_is_said_in_short():
    w = contexts(make(T=300), word="z" * 5000)
    assert "z" * 59 + "…” does not occur" in w.view["note"]
    assert len(w.picture().alt) < 300
    assert w.word == "z" * 5000


LINE = "def f(x):\n  return x + 1 # the other\n"


@pytest.mark.parametrize(
    ("E", "K", "text", "word"),
    [(8, 2, None, " for"), (16, 4, None, " for"), (64, 8, None, " for"), (16, 4, LINE, "return x + 1 # the other")],
)
def test_texts_of_the_picture_touch_neither_each_other_nor_the_chips(E, K, text, word):
    figure = contexts(make(T=700, E=E, K=K, domains=("arithmetic", "mathematics"), text=text), word=word).picture()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ax = next(a for a in figure.axes if "Occurrences" in a.get_title("left") + a.get_title())
    chips = [chip.get_window_extent() for chip in ax.patches]
    texts = [text for text in ax.texts if text.get_text() and not text.get_text().isdigit()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert len(boxes) > 20
    for i, box in enumerate(boxes):
        row = [b for b in boxes[i + 1 :] if abs(b.y0 + b.y1 - box.y0 - box.y1) < 8]
        row += [c for c in chips if c.y0 < (box.y0 + box.y1) / 2 < c.y1]
        assert not [b for b in row if b.x0 + 0.5 < box.x1 and box.x0 + 0.5 < b.x1]


def test_script_asks_nothing_of_the_network():
    source = str(Contexts._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def unnamed() -> Routing:
    return make(T=5, tokens=False)[0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: contexts(unnamed()), "needs the text of each token; build the Routing with tokens="),
        (lambda: contexts(make(T=5), word=""), "word is empty"),
        (lambda: contexts(make(T=5), layer=2), "layer is 2; give 0 to 1"),
        (lambda: setattr(contexts(make(T=60), word=" for"), "occurrence", 99), "occurrence is 99"),
        (lambda: setattr(contexts(make(T=5)), "lit_expert", 8), "lit_expert is 8; give -1 to 7"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
