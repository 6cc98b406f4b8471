"""A card says the same in text and in HTML, escapes what it is given, and refuses what it cannot show."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest

from labkit.show.cards import MARKS, Card


class Reader(HTMLParser):
    """Collects the visible text and the tags, and notices a tag that is never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def bundle(card: Card) -> dict[str, str]:
    return card._repr_mimebundle_(include=None, exclude=None)


def test_both_forms_carry_every_word():
    card = Card("fail", "01.top_k", ["expected [0, 1]", "got\n  [1, 0]"], [("case", "got"), ("tie", 3)])
    plain, html = bundle(card)["text/plain"], Reader(bundle(card)["text/html"])
    assert html.open == []
    for word in ("01.top_k", "expected [0, 1]", "[1, 0]", "case", "tie", "3"):
        assert word in plain
        assert word in html.text


def test_plain_text_is_deterministic_and_aligned():
    card = Card("info", "table", table=[("name", "n"), ("long name", 12)])
    assert str(card) == str(Card("info", "table", table=[["name", "n"], ["long name", 12]]))
    assert str(card) == "i table\n  name       n\n  ---------  --\n  long name  12"
    assert "0x" not in repr(card)


@pytest.mark.parametrize("field", ["title", "lines", "table", "alt"])
def test_html_escapes(field):
    nasty = '<script>alert("x")</script>'
    values = {"title": nasty, "lines": [nasty, nasty + "\n"], "table": [[nasty]], "alt": nasty}
    card = Card("info", **({"title": "t"} | {field: values[field]}))
    html = bundle(card)["text/html"]
    assert "<script" not in html
    assert '"x"' not in html
    assert "script" not in Reader(html).tags


def test_backticks_become_code():
    assert "<code>dim=-1</code>" in Card("todo", "t", ["use `dim=-1`"]).html()


@pytest.mark.parametrize("kind", list(MARKS))
def test_every_kind_has_its_own_mark_and_an_accessible_name(kind):
    assert len(set(MARKS.values())) == len(MARKS)
    html = Card(kind, "a title").html()
    assert f'aria-label="{kind}: a title"' in html
    assert 'role="note"' in html


def test_nothing_from_outside():
    html = Card("pass", "t", ["l"], [("a",), ("b",)]).html()
    assert not {"script", "link", "img", "style"} & set(Reader(html).tags)
    assert "http" not in html


def test_frozen_and_hashable():
    card = Card("pass", "t", ["a"], [["h"], [1]])
    assert hash(card) == hash(Card("pass", "t", ("a",), (("h",), ("1",))))
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.title = "other"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"kind": "great", "title": "t"}, "choose one of pass"),
        ({"kind": "pass", "title": "  "}, "give one line"),
        ({"kind": "pass", "title": "a\nb"}, "give one line"),
        ({"kind": "pass", "title": "t", "lines": "abc"}, "give a list of strings"),
        ({"kind": "pass", "title": "t", "table": [["a", "b"], ["c"]]}, "row 1 has 1 cells"),
    ],
)
def test_bad_input(kwargs, says):
    with pytest.raises(ValueError, match=says):
        Card(**kwargs)
