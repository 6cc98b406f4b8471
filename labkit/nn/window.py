"""A language model without attention: the last few bytes, embedded side by side, then sparse layers.

The neural probabilistic language model of Bengio et al. 2003 (JMLR 3, equation 1) with mixture-of-experts layers for
its hidden layer. It learns real text within seconds on a CPU, so labs 03 and 04 train many of them; the transformer
comes in lab 06. Left out on purpose: attention, and anything that looks further back than `window` bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn.moe import MoE


class WindowModel(nn.Module):
    """Predicts the next byte from the last `window` bytes.

    Args:
        moe: the sparse layers; their d_model is the width of the model.
        num_layers: sparse layers, one after another, each with a norm before it and a residual around it.
        window: how many bytes a position sees, itself included; before the start it sees a padding symbol.
        d_embed: width of one byte's embedding.
        vocab_size: V.
        layer: makes one sparse layer of `moe`; by default `nn.MoE`. It is called as `layer(x, return_routing=True,
            layer=i, ids=ids)` and must answer `(y, Routing)`.

    Raises ValueError for sizes below one.

    >>> _ = torch.manual_seed(0)
    >>> model = WindowModel(MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2))
    >>> logits, records = model(torch.zeros(2, 5, dtype=torch.int64), return_routing=True)
    >>> logits.shape, records[0].topk_ids_TK.shape
    (torch.Size([2, 5, 256]), torch.Size([10, 2]))
    """

    def __init__(
        self,
        moe: MoEConfig,
        num_layers: int = 1,
        window: int = 8,
        d_embed: int = 32,
        vocab_size: int = 256,
        layer: Callable[[MoEConfig], nn.Module] = MoE,
    ) -> None:
        super().__init__()
        sizes = {"num_layers": num_layers, "window": window, "d_embed": d_embed, "vocab_size": vocab_size}
        if wrong := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"WindowModel was given {wrong}; give 1 or more")
        self.window, self.vocab_size = window, vocab_size
        self.embed = nn.Embedding(vocab_size + 1, d_embed)  # the last row stands before the start
        self.mix = nn.Linear(window * d_embed, moe.d_model)
        self.norms = nn.ModuleList(nn.RMSNorm(moe.d_model) for _ in range(num_layers))
        self.layers = nn.ModuleList(layer(moe) for _ in range(num_layers))
        self.norm = nn.RMSNorm(moe.d_model)
        self.head = nn.Linear(moe.d_model, vocab_size, bias=False)

    def forward(self, ids_BS: Tensor, return_routing: bool = False) -> Tensor | tuple[Tensor, tuple[Routing, ...]]:
        """[B, S] int64 to the logits of the next byte, [B, S, V]; with `return_routing` also one record a layer."""
        x = self.mix(self._contexts(ids_BS))
        records = []
        for i, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            y, routing = layer(norm(x), return_routing=True, layer=i, ids=ids_BS)
            x = x + y
            records.append(routing)
        logits_BSV = self.head(self.norm(x))
        return (logits_BSV, tuple(records)) if return_routing else logits_BSV

    def _contexts(self, ids_BS: Tensor) -> Tensor:
        """The embeddings of each position's window, side by side: [B, S, window · d_embed]."""
        if ids_BS.ndim != 2 or ids_BS.is_floating_point():
            raise ValueError(f"ids_BS has shape {tuple(ids_BS.shape)} and dtype {ids_BS.dtype}; give integers [B, S]")
        before = ids_BS.new_full((ids_BS.shape[0], self.window - 1), self.vocab_size)
        windows_BSW = torch.cat([before, ids_BS], dim=1).unfold(1, self.window, 1)
        return self.embed(windows_BSW).flatten(2)
