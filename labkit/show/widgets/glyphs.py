"""Text that a static picture can draw, whatever characters a tokenizer brings."""

from __future__ import annotations

from functools import cache

FONT = "DejaVu Sans Mono"  # comes with matplotlib


@cache
def _known(family: str) -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=family))).get_charmap())


def drawable(text: str, family: str = FONT) -> str:
    """The text with □ for every character that the font lacks, so that drawing it warns of nothing.

    >>> drawable("a␣→é"), drawable("猫")
    ('a␣→é', '□')
    """
    known = _known(family)
    return "".join(c if ord(c) in known else "□" for c in text)
