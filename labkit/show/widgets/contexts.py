"""The same word in other contexts: does a router read the word, or what stands around it?

Each occurrence is shown with the experts it was sent to, and all of them together beside all tokens of the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from labkit.core.metrics import load
from labkit.core.routing import Routing
from labkit.show.picture import Picture
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within
from labkit.show.widgets.layers import as_layers, evenly, layer_names, visible
from labkit.show.widgets.running_text import RunningText

SHOWN = 40
LETTERS = 26
DOMAINS = 4
LONGEST = 60


class Contexts(LabWidget):
    """A live view of one word's occurrences and their experts.

    Args:
        records: one record, or one a layer, with the text of each token.
        word: the word to look up; if not given, the commonest of those that stand in the most domains.
        layer: a position in the sequence of records.

    A match is a run of neighbouring tokens of one sequence whose texts join to the word; its decision is that of its
    last token. Traits that browser and kernel share: `word`, `whole` (only where no letter or digit is next to it),
    `layer`, `occurrence` (among those shown), `lit_expert`, and `follow`, a token whose word is looked up next.
    `matches` counts the occurrences; `share_E` and `baseline_E` are the load of the word's choices and of all.
    Raises ValueError for a record without texts, an empty word, and values out of range.
    """

    _esm = esm("contexts")

    word = traitlets.Unicode().tag(sync=True)
    whole = traitlets.Bool(False).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    occurrence = traitlets.Int(0).tag(sync=True)
    lit_expert = traitlets.Int(-1).tag(sync=True)
    follow = traitlets.Int(-1).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    frequent = traitlets.List(traitlets.Unicode()).tag(sync=True)
    num_experts = traitlets.Int().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    detail = traitlets.Unicode("").tag(sync=True)

    def __init__(self, records: Routing | Sequence[Routing], word: str | None = None, layer: int = 0) -> None:
        self._layers = as_layers(records, "contexts")
        first = self._layers[0]
        self._text = RunningText.of(first)
        domains = first.domains or ("",) * first.num_tokens
        self._domains = tuple(sorted(set(domains)))
        index = {name: g for g, name in enumerate(self._domains)}
        self._domain_T = torch.tensor([index[name] for name in domains])
        self._runs: list[tuple[int, int]] = []
        frequent = self._text.frequent()
        super().__init__(
            names=layer_names(self._layers), frequent=frequent, num_experts=first.num_experts, layer=layer,
            word=self._first_word(frequent) if word is None else word,
        )  # fmt: skip
        self._look_up()
        self.observe(self._look_up, names=["word", "whole"])
        self.observe(self._decide, names=["layer"])
        self.observe(self._say, names=["occurrence", "lit_expert", "view"])
        self.observe(self._go_on, names=["follow"])

    @property
    def matches(self) -> int:
        """How often the word occurs."""
        return len(self._runs)

    @property
    def positions(self) -> list[int]:
        """The last token of each occurrence: the one whose decision is shown."""
        return [last for _, last in self._runs]

    @property
    def share_E(self) -> Tensor:
        """Each expert's share of the choices of this word; [E], float32, zeros if it does not occur."""
        return self._share(torch.tensor(self.positions, dtype=torch.int64))

    @property
    def baseline_E(self) -> Tensor:
        """Each expert's share of all choices; [E], float32."""
        return load(self._layers[self.layer])

    @traitlets.validate("word")
    def _check_word(self, proposal: Any) -> str:
        if not proposal["value"]:
            raise OutOfRange("Contexts.word is empty; give a word, or a part of one")
        return proposal["value"]

    @traitlets.validate("layer", "occurrence", "lit_expert", "follow")
    def _check(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        E, T = self._layers[0].num_experts, self._layers[0].num_tokens
        low, high = {
            "layer": (0, len(self._layers) - 1),
            "occurrence": (0, max(0, min(len(self._runs), SHOWN) - 1)),
            "lit_expert": (-1, E - 1),
            "follow": (-1, T - 1),
        }[name]
        return within(f"Contexts.{name}", value, low, high)

    def _first_word(self, frequent: list[str]) -> str:
        """Of the commonest words, the one in the most domains; of those, the commonest."""

        def spread(word: str) -> int:
            return len({int(self._domain_T[last]) for _, last in self._text.runs(word)})

        return max(frequent[:12], key=spread)

    def _go_on(self, change: Any) -> None:
        if self.follow >= 0:
            self.word = self._text.around(self.follow)
            self.follow = -1

    def _look_up(self, change: Any = None) -> None:
        self._runs = self._text.runs(self.word, self.whole)
        self.occurrence = 0
        n = len(self._runs)
        T = self._layers[0].num_tokens
        self.sampled = f"Shown: {SHOWN} of {n:,} occurrences, evenly spaced over {T:,} tokens." if n > SHOWN else ""
        self._decide()

    def _decide(self, change: Any = None) -> None:
        share_E = self.share_E
        self.lit_expert = int(share_E.argmax()) if self._runs else -1
        shown = [self._runs[i] for i in evenly(len(self._runs), SHOWN).tolist()]
        self.view = {
            "lines": [self._line(first, last) for first, last in shown],
            "matches": len(self._runs),
            "share": _rounded(share_E),
            "baseline": _rounded(self.baseline_E),
            "rows": self._rows(),
            "note": self._note(share_E),
        }
        self._say()

    def _line(self, first: int, last: int) -> dict[str, Any]:
        r = self._layers[self.layer]
        start, left, right = self._text.context(first, last, LETTERS)
        return {
            "first": first,
            "last": last,
            "start": start,
            "left": left,
            "key": list(self._text.texts[first : last + 1]),
            "right": right,
            "domain": self._domains[int(self._domain_T[last])],
            "ids": r.topk_ids_TK[last].tolist(),
            "weights": _rounded(r.topk_scores_TK[last].float()),
        }

    def _share(self, rows_N: Tensor) -> Tensor:
        r = self._layers[self.layer]
        ids_N = r.topk_ids_TK[rows_N].reshape(-1)
        return torch.bincount(ids_N, minlength=r.num_experts).float() / max(1, len(ids_N))

    def _rows(self) -> list[list[Any]]:
        """[domain, occurrences, share of the word's choices [E], share of all the domain's choices [E]] by domain."""
        if len(self._domains) < 2:
            return []
        at_N = torch.tensor(self.positions, dtype=torch.int64)
        of_N = self._domain_T[at_N]
        common = [g for g, _ in Counter(of_N.tolist()).most_common(DOMAINS)]
        return [
            [
                self._domains[g],
                int((of_N == g).sum()),
                _rounded(self._share(at_N[of_N == g])),
                _rounded(self._share((self._domain_T == g).nonzero().flatten())),
            ]
            for g in sorted(common)
        ]

    def _note(self, share_E: Tensor) -> str:
        shown, n = _short(visible(self.word)), len(self._runs)
        if n == 0:
            return f"“{shown}” does not occur{' as a whole word' if self.whole else ''}.{self._instead()}"
        top, baseline = int(share_E.argmax()), self.baseline_E
        used = int((share_E > 0).sum())
        unseen = len(set(self._domain_T[torch.tensor(self.positions)].tolist())) - DOMAINS
        others = f" {unseen} more domains are not shown by themselves." if unseen > 0 else ""
        return (
            f"“{shown}” occurs {n:,}×; in {self.names[self.layer]} its choices go to {used} of {self.num_experts} "
            f"experts, most often to expert {top}: {100 * share_E[top]:.3g} % of its choices, against "
            f"{100 * baseline[top]:.3g} % of all tokens' choices.{others}"
        )

    def _instead(self) -> str:
        """Tokens that differ from the word only in spaces or case."""
        bare = visible(self.word).strip("␣").lower()
        near = [text for text in self.frequent if text.strip("␣").lower() == bare]
        return f" But {', '.join(f'“{text}”' for text in near)} {'does' if len(near) == 1 else 'do'}." if near else ""

    def _say(self, change: Any = None) -> None:
        lines = self.view["lines"]
        if not lines:
            self.detail = ""
            return
        line = lines[min(self.occurrence, len(lines) - 1)]
        experts = ", ".join(f"{e} with weight {w:.3g}" for e, w in zip(line["ids"], line["weights"], strict=True))
        where = f"{line['domain']}, " if line["domain"] else ""
        run = (
            f"the last of tokens {line['first']:,} to {line['last']:,}" if line["first"] < line["last"] else "its token"
        )
        self.detail = (
            f"Occurrence {self.occurrence + 1} of {len(lines)} shown ({where}token {line['last']:,}): "
            f"expert{'s' if len(line['ids']) > 1 else ''} {experts}; the decision is that of {run}."
            f"{self._lit_in_words()}"
        )

    def _lit_in_words(self) -> str:
        e = self.lit_expert
        if e < 0:
            return ""
        mine, everyone = 100 * self.view["share"][e], 100 * self.view["baseline"][e]
        return f" Lit: expert {e}, with {mine:.3g} % of this word's choices and {everyone:.3g} % of all."

    def picture(self) -> Picture:
        """The word's load beside everyone's, and the first occurrences, as they stand."""
        from labkit.show.widgets.contexts_picture import draw

        return draw(self)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def contexts(records: Routing | Sequence[Routing], word: str | None = None, layer: int = 0) -> Contexts:
    """One word's occurrences on one record, or on one a layer; see `Contexts`.

    >>> r = Routing.of(torch.zeros(3, 2), torch.tensor([[0], [1], [0]]), torch.ones(3, 1), tokens=("a", "b", "a"))
    >>> w = contexts(r, word="a")
    >>> w.matches, w.share_E.tolist()
    (2, [1.0, 0.0])
    """
    return Contexts(records, word, layer)
