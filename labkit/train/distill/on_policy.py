"""Text that the student writes itself: the teacher then corrects the mistakes that the student really makes.

GKD (Agarwal et al. 2024, arXiv 2306.13649, algorithm 1): a batch is the student's own with probability λ, else the
data's. No gradient flows through the drawing, as there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from labkit.nn.generate import generate
from labkit.nn.model import Transformer
from labkit.train.crossentropy import IGNORED
from labkit.train.feed import Source
from labkit.train.tokens import TokenBatch


class OnPolicy:
    """A `train.feed.Source` whose batches the student writes, from the beginnings of a text's windows.

    The loop fetches a batch after the update before it, so the student that writes is the one that learns from it. How
    a batch is drawn follows from the seed, the batch's number and the weights: a resumed run writes the same.

    Args:
        student: the model in training, used where it is.
        text: where beginnings come from; it must give `domains`.
        prompt: tokens of a window that are kept; share: λ, how many of the batches are the student's own.
        temperature: of the drawing; seed: of draws and of λ's coin.

    Raises ValueError for numbers out of range.
    """

    def __init__(
        self,
        student: Transformer,
        text: Source,
        *,
        prompt: int,
        share: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if prompt < 1 or not 0 <= share <= 1:
            raise ValueError(f"prompt is {prompt} and share {share}; give 1 token or more and a share from 0 to 1")
        self.student, self.text, self.prompt, self.share = student, text, prompt, share
        self.temperature, self.seed, self._count = temperature, seed, 0
        self.domains = getattr(text, "domains", ())

    def next(self, batch: int, sequence: int) -> Any:
        """A batch of the text, or the student's own; ValueError for sequences not longer than a prompt."""
        if sequence <= self.prompt:
            raise ValueError(f"sequence is {sequence}, the prompt {self.prompt}; leave the student something to write")
        number = int.from_bytes(hashlib.sha256(f"{self.seed}/{self._count}".encode()).digest()[:6], "big")
        self._count += 1
        some = self.text.next(batch, sequence)
        return self._written(some, number) if number / 2**48 < self.share else some

    def state(self) -> dict[str, Any]:
        """The text's position, and how many batches were drawn."""
        return {"count": self._count, "text": self.text.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self._count = int(state["count"])
        self.text.load(state["text"])

    def _written(self, some: Any, seed: int) -> TokenBatch:
        """Prompts and what the student wrote after them; labels are −100 on the prompts."""
        device, S, P = self.student.device, some.ids_BS.shape[1], self.prompt
        ids_BS = generate(
            self.student, some.ids_BS[:, :P].to(device), max_new_tokens=S - P, do_sample=True,
            temperature=self.temperature, generator=torch.Generator(device).manual_seed(seed),
        ).cpu()  # fmt: skip
        labels_BS = ids_BS.clone()
        labels_BS[:, :P] = IGNORED
        return TokenBatch(ids_BS, labels_BS, tuple(some.domains))
