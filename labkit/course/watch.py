"""What watches an answer while it trains: gradients, memory and random numbers are no return values (lab 07).

Like what `course.given` hands out, it travels with a case into a grader's sandbox, so it does not live in `labs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Block:
    """A piece of a network whose activations can be counted.

    Args:
        kind: "swiglu", "dropout" (which draws random numbers) or "lookup" (whose first input is integers).
    """

    kind: Literal["swiglu", "dropout", "lookup"]

    def stages(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Every intermediate tensor in order; the last is the output."""
        if self.kind == "lookup":
            ids, table_VD = inputs
            rows = table_VD[ids]
            yield rows
            yield rows.tanh()
            return
        x, up, down = inputs
        hidden = F.linear(x, up)
        yield hidden
        if self.kind == "dropout":
            kept = F.dropout(hidden.sigmoid(), 0.4)
        else:
            gate, other = hidden.chunk(2, dim=-1)
            kept = F.silu(gate) * other
        yield kept
        yield x + F.linear(kept, down)


class Watched:
    """A block that counts its calls and remembers its activations without holding them."""

    def __init__(self, block: Block) -> None:
        self.block, self.calls = block, 0
        self._seen: list[StorageWeakRef] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        for value in self.block.stages(*inputs):
            self._seen.append(StorageWeakRef(value.untyped_storage()))
        self._seen.pop()  # the output is the caller's
        return value

    def alive(self) -> int:
        """How many activations are in memory now."""
        return sum(not seen.expired() for seen in self._seen)


def recomputed(answer: Callable[..., Tensor], block: Block, *inputs: Tensor, depth: int = 1) -> dict[str, Any] | None:
    """What an answer to 07.recompute does: `depth` blocks one after the other, then a backward pass.

    Args:
        answer: called as answer(block, x, *others).
        block: of the stack, the same each time; inputs: x and the others, which all blocks share.
        depth: how many.

    Returns output, gradients, how often the block ran, activations in memory between the passes, and the next random
    number after both, which tells whether the generator is where it was. None if the answer gave no tensor.
    """
    watched, (x, *others) = Watched(block), inputs
    torch.manual_seed(1234)
    for _ in range(depth):
        x = answer(watched, x, *others)
        if not isinstance(x, Tensor):
            return None
    alive, wanted = watched.alive(), [value for value in inputs if value.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if x.requires_grad:
        slope = torch.linspace(-1, 2, x.numel()).view_as(x).cos()
        gradients = torch.autograd.grad(x, wanted, slope, allow_unused=True)
    return {
        "output": x,
        "gradients": tuple(gradients),
        "activations kept": alive,
        "block ran": watched.calls,
        "next random number": torch.rand(()).item(),
    }


class Bigram(nn.Module):
    """A language model of two tables that notes how much it has to hold at once.

    Args:
        embed_VD, head_VD: [V, D].
    """

    def __init__(self, embed_VD: Tensor, head_VD: Tensor) -> None:
        super().__init__()
        self.embed_VD, self.head_VD = nn.Parameter(embed_VD.clone()), nn.Parameter(head_VD.clone())
        self.most_rows = self.most_graphs = 0
        self._hidden: list[StorageWeakRef] = []

    def forward(self, ids_BS: Tensor) -> Tensor:
        """[B, S] ids to [B, S, V] logits."""
        self.most_rows = max(self.most_rows, len(ids_BS))
        waiting = sum(not seen.expired() for seen in self._hidden)
        self.most_graphs = max(self.most_graphs, 1 + waiting)
        hidden_BSD = self.embed_VD[ids_BS].tanh()
        self._hidden.append(StorageWeakRef(hidden_BSD.untyped_storage()))
        return F.linear(hidden_BSD, self.head_VD)

    def unwatched(self, ids_BS: Tensor) -> Tensor:
        """The same logits, and nothing noted."""
        return F.linear(self.embed_VD[ids_BS].tanh(), self.head_VD)


def accumulated(
    answer: Callable[..., Any], tables: tuple[Tensor, Tensor], micro_batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """What an answer to 07.accumulate does to a model of these two tables, [V, D] each, for these micro-batches.

    Returns the loss that it reports, the gradients that it leaves, the most sequences in one forward pass, and the most
    micro-batches whose activations were in memory at once.
    """
    model = Bigram(*tables)
    loss = answer(model, micro_batches)
    return {
        "loss": loss,
        "gradients": tuple(None if p.grad is None else p.grad.clone() for p in model.parameters()),
        "sequences at once": model.most_rows,
        "micro-batches in memory": model.most_graphs,
    }


def one_depth(answer: Callable[..., Tensor], logits_BSV: Tensor, *others: Any) -> Tensor:
    """What an answer to 07.mtp gives for logits of one depth, [B, S, V], which ask for a gradient."""
    return answer((logits_BSV,), *others)
