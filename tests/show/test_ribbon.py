"""The ribbon's kernel side: what it sends is what the record says, wherever the window stands."""

from __future__ import annotations

import base64

import pytest
import torch
from records import large, make, payload

from labkit.core.routing import Routing
from labkit.show.style import GREY, LIT, PALETTE
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.glyphs import drawable
from labkit.show.widgets.ribbon import Ribbon, ribbon
from labkit.show.widgets.ribbon_picture import _ground, _lines


def test_choices_are_the_records_at_the_absolute_position():
    records = make(T=700, L=3, K=2)
    w = ribbon(records, start=600, length=50)
    assert w.token == 600
    w.token = 431
    for row, r in zip(w.choices, records, strict=True):
        assert [e for e, _ in row] == r.topk_ids_TK[431].tolist()
        assert [x for _, x in row] == pytest.approx(r.topk_scores_TK[431].tolist())
    assert w.detail["ids"] == [[e for e, _ in row] for row in w.choices]


def test_window_holds_the_first_choices_of_the_chosen_layer():
    records = make(T=700, L=3)
    w = ribbon(records, start=250, length=100)
    w.layer = 2
    assert w.window["texts"] == [t.replace(" ", "␣").replace("\n", "⏎") for t in records[0].tokens[250:350]]
    assert w.window["first"] == records[2].topk_ids_TK[250:350, 0].tolist()
    assert w.window["shown"] == pytest.approx(records[2].topk_scores_TK[250:350, 0].tolist(), abs=1e-4)
    w.lit_expert = 3
    rows = zip(records[2].topk_ids_TK[250:350].tolist(), records[2].topk_scores_TK[250:350].tolist(), strict=True)
    weight = [sum(x for e, x in zip(ids, scores, strict=True) if e == 3) for ids, scores in rows]
    assert w.window["shown"] == pytest.approx(weight, abs=1e-4)
    assert w.window["chosen"] == [int(x > 0) for x in weight]
    assert f"chosen by {sum(x > 0 for x in weight)} of these 100 tokens" in w.window["note"]
    assert "even load would give it 25." in w.window["note"]


def test_a_token_takes_its_window_along_and_a_window_its_token():
    w = ribbon(make(T=700), length=100)
    w.token = 257
    assert (w.start, w.window["start"], len(w.window["texts"])) == (200, 200, 100)
    w.start = 650
    assert (w.token, w.detail["title"].split(":")[0]) == (650, "Token 650")
    assert len(w.window["texts"]) == 50
    assert w.sampled == "Shown: tokens 650 to 699 of 700; the rest comes page by page."
    w.length = 1000
    w.start = 0
    assert w.sampled == ""


def test_sequences_and_domains_begin_on_a_new_line():
    w = ribbon(make(T=100, sequence=40), start=30, length=60)
    assert w.window["breaks"] == [[0, "code"], [10, "english"], [50, "code"]]
    w = ribbon(make(T=100, sequence=40, domains=None), start=30, length=60)
    assert w.window["breaks"] == [[0, ""], [10, ""], [50, ""]]
    texts = w.window["texts"]
    lines = _lines(w.window)
    assert [i for line in lines for i, _ in line] == list(range(60))
    assert {0, 10, 50} < {line[0][0] for line in lines}
    assert all("⏎" not in texts[i] for line in lines for i, _ in line[:-1])


def test_many_experts_light_one_and_few_have_their_own_colours():
    few, many = ribbon(make(T=50)), ribbon(make(T=50, E=16))
    assert few.lit_expert == -1
    assert many.lit_expert == many.choices[0][0][0]
    assert [_ground(few, i)[0] for i in range(50)] == [PALETTE[e] for e in few.window["first"]]
    grounds = [_ground(many, i)[0] for i in range(50)]
    assert grounds == [LIT if chosen else GREY for chosen in many.window["chosen"]]
    assert set(grounds) == {LIT, GREY}


def test_without_texts_a_token_is_its_position():
    w = ribbon(make(T=20, tokens=False), start=5, length=3)
    assert w.window["texts"] == ["#5", "#6", "#7"]


def test_a_value_out_of_range_from_the_browser_changes_nothing():
    w = ribbon(make(T=50))
    before = (w.token, w.window, w.detail)
    for wrong in ({"token": 50}, {"layer": 2, "token": 3}, {"lit_expert": 8}):
        with pytest.raises(ValueError, match="give "):
            w.set_state(wrong)
        assert (w.token, w.layer, w.lit_expert) == (0, 0, -1)
    assert (w.token, w.window, w.detail) == before


def test_the_largest_record_sends_little():
    w = ribbon(large())
    w.length = 1000
    w.token = 99_999
    w.layer = 15
    assert payload(w) < 100_000
    assert w.sampled == "Shown: tokens 99,000 to 99,999 of 100,000; the rest comes page by page."


@pytest.mark.parametrize(
    ("records", "state"),
    [
        (make(T=240, L=2), {"token": 33, "layer": 1}),
        (make(T=1, E=2, K=1, L=1), {}),
        (make(T=90, E=64, K=8, L=30), {"layer": 29, "lit_expert": -1}),
        (make(T=90, text="猫$x_{2$^🙂\n"), {"lit_expert": 2}),
    ],
)
def test_picture_says_what_it_shows(records, state):
    w = ribbon(records)
    for name, value in state.items():
        setattr(w, name, value)
    data, meta = w._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == w.model_id
    alt = meta["image/png"]["alt"]
    assert alt == data["text/plain"]
    assert f"Token {w.token}" in alt
    assert w.names[w.layer] in alt
    assert w.window["note"] in alt


def test_letters_that_the_font_lacks_are_boxes():
    assert drawable("x␣猫⏎") == "x␣□⏎"


def test_script_asks_nothing_of_the_network():
    source = str(Ribbon._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def empty() -> Routing:
    return Routing.of(torch.zeros(0, 2), torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ribbon("text"), "ribbon got str"),
        (lambda: ribbon([]), "got nothing"),
        (lambda: ribbon(empty()), "at least one token"),
        (lambda: ribbon([*make(T=5), *make(T=6)]), "layers of one batch"),
        (lambda: ribbon(make(T=5), start=5), "start is 5; give 0 to 4"),
        (lambda: ribbon(make(T=5), length=0), "length is 0; give 1 to 1000"),
        (lambda: setattr(ribbon(make(T=5)), "token", -1), "token is -1; give 0 to 4"),
        (lambda: setattr(ribbon(make(T=5)), "layer", 2), "layer is 2; give 0 to 1"),
        (lambda: setattr(ribbon(make(T=5)), "lit_expert", 8), "lit_expert is 8; give -1 to 7"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
