"""The whole sparse transformer: embed, then blocks of attention and experts, then a head.

What Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3 and GPT-OSS differ in stands in their `ModelConfig`, so there
is one class for all. Left out on purpose: dropout, encoders, anything that only training or serving needs.

Shape suffixes: B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.core.routing import Routing
from labkit.nn.attention import Attention, LatentAttention
from labkit.nn.experts import SwiGLU
from labkit.nn.mask import attention_mask as make_mask
from labkit.nn.moe import MoE
from labkit.nn.precision import in_autocast_dtype
from labkit.nn.rope import rope_tables

if TYPE_CHECKING:
    from labkit.nn.cache import KVCache

IGNORED = -100  # a label that is not learned, as in torch and transformers


@dataclass(frozen=True, eq=False)
class Output:
    """What a forward pass gives.

    Args:
        logits: [B, S, V], of the token that follows each position.
        loss: the mean cross-entropy of the labels, in nats; None without labels.
        routing: one record for each sparse layer, the first first; None unless asked for.
        hidden: [B, S, D], what the head reads.
        mtp_logits: for each multi-token module, [B, S − k, V]: position i predicts token i + k + 1.
        mtp_routing: what the routers of these modules decided.
        cache: the cache that was given, one step further.
    """

    logits: Tensor
    loss: Tensor | None = None
    routing: tuple[Routing, ...] | None = None
    hidden: Tensor | None = None
    mtp_logits: tuple[Tensor, ...] = ()
    mtp_routing: tuple[Routing, ...] = ()
    cache: KVCache | None = None


@dataclass(frozen=True, eq=False)
class Positions:
    """What every layer of one forward pass shares: rotary tables, and a mask for each kind of layer."""

    cos: Tensor
    sin: Tensor
    masks: dict[bool, Any]


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then that + feed-forward(norm(that)) (pre-norm, Xiong et al. 2020).

    Args:
        config: of the model; layer: its number from 0, which decides whether it is dense or sparse and what it sees.
        implementation: of the experts.
    """

    def __init__(self, config: ModelConfig, layer: int, implementation: str = "auto") -> None:
        super().__init__()
        self.layer, self.slides = layer, config.slides(layer)
        self.norm_attention = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = (LatentAttention if config.attention == "mla" else Attention)(config, layer)
        self.norm_ffn = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        dense = layer < config.num_dense_layers
        self.ffn = SwiGLU(config.d_model, config.d_dense) if dense else MoE(config.moe, implementation)

    def forward(
        self, x_BSD: Tensor, positions: Positions, cache: KVCache | None = None, ids_BS: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """[B, S, D] to the same, and what the router decided (None in a dense layer)."""
        mask = positions.masks[self.slides]
        x_BSD = x_BSD + self.attention(self.norm_attention(x_BSD), positions.cos, positions.sin, mask, cache)
        normed_BSD = self.norm_ffn(x_BSD)
        if isinstance(self.ffn, MoE):
            y_BSD, routing = self.ffn(normed_BSD, return_routing=True, layer=self.layer, ids=ids_BS)
            return x_BSD + y_BSD, routing
        return x_BSD + self.ffn(normed_BSD), None


class MTPModule(nn.Module):
    """Predicts one token further ahead from what the model knew one token ago (DeepSeek-V3, section 2.2, eqs 21–23)."""

    def __init__(self, config: ModelConfig, depth: int, implementation: str = "auto") -> None:
        super().__init__()
        D, eps = config.d_model, config.norm_eps
        self.norm_embed, self.norm_hidden = nn.RMSNorm(D, eps=eps), nn.RMSNorm(D, eps=eps)
        self.project = nn.Linear(2 * D, D, bias=False)
        self.block = Block(config, config.num_layers + depth, implementation)
        self.norm = nn.RMSNorm(D, eps=eps)

    def forward(self, embedded_BSD: Tensor, hidden_BSD: Tensor, positions: Positions) -> tuple[Tensor, Routing | None]:
        """The next token's embedding and the previous depth's output to this depth's, [B, S, D] each."""
        both = torch.cat([self.norm_embed(embedded_BSD), self.norm_hidden(hidden_BSD)], dim=-1)
        x_BSD, routing = self.block(self.project(both).to(both.dtype), positions)  # the stream stays wide in autocast
        return self.norm(x_BSD), routing


class Transformer(nn.Module):
    """A decoder-only language model with sparse feed-forward layers.

    Args:
        config: what the model is.
        implementation: of the experts, a name of `kernels.dispatch.names()` or "auto".

    >>> from labkit.core.config import MoEConfig
    >>> moe = MoEConfig(d_model=16, d_expert=8, num_experts=4, top_k=2)
    >>> config = ModelConfig("tiny", 32, 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=moe)
    >>> output = Transformer(config)(torch.zeros(2, 5, dtype=torch.int64), return_routing=True)
    >>> output.logits.shape, [record.layer for record in output.routing]
    (torch.Size([2, 5, 32]), [0, 1])
    """

    def __init__(self, config: ModelConfig, implementation: str = "auto") -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(f"Transformer takes a ModelConfig, got {type(config).__name__}; `preset(name)` gives one")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, i, implementation) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.mtp = nn.ModuleList(MTPModule(config, i, implementation) for i in range(config.num_mtp_layers))
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight again: normal, deviation one over the root of the width it reads.

        What writes into the residual stream is smaller by the root of twice the layers (GPT-2, Radford et al. 2019,
        section 2.3), norms are one, biases and sinks zero.
        """
        depth = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name.endswith("bias_E2F") or name.endswith("bias_ED"):
                (nn.init.ones_ if ".norm" in f".{name}" or "_norm." in name else nn.init.zeros_)(parameter)
                continue
            writes = name.endswith(("attention.output.weight", ".down_EDF", ".down_DF"))
            std = parameter.shape[-1] ** -0.5 * (depth if writes else 1.0)
            nn.init.normal_(parameter, std=std, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.embed.weight.dtype

    def forward(
        self,
        ids_BS: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        labels: Tensor | None = None,
        return_routing: bool = False,
        return_mtp: bool | None = None,
    ) -> Output:
        """Logits of what follows every position.

        Args:
            ids_BS: [B, S] integers in [0, V).
            attention_mask: [B, S with what the cache holds], 1 where a token is real; padding may stand on either side.
            position_ids: [B, S]; by default they count the real tokens.
            cache: read and written; its `length` positions stand before ids_BS. One that attends by itself takes a flat
                batch [1, T] with position_ids and without a mask.
            labels: [B, S], usually the ids themselves; position i is held against label i + 1, −100 is left out.
            return_routing: give the routers' records too.
            return_mtp: give the multi-token modules' logits; by default only while training, and never with a cache.

        Raises ValueError for ids, masks or labels that do not fit.
        """
        start = 0 if cache is None else cache.length
        self._check(ids_BS, attention_mask, labels, start)
        attends = cache is not None and cache.attends
        if attends and (position_ids is None or attention_mask is not None):
            raise ValueError("this cache knows who sees whom; give position_ids, and no attention_mask")
        positions = self._positions(ids_BS, attention_mask, position_ids, start, masked=not attends)
        x_BSD, records = self.embed(ids_BS), []
        for block in self.layers:
            x_BSD, routing = block(x_BSD, positions, cache, ids_BS)
            records += [] if routing is None else [routing]
        if cache is not None:
            cache.advance(ids_BS.shape[1])
        hidden_BSD = self.norm(x_BSD)
        logits_BSV = self.head(hidden_BSD)
        wants_mtp = self.training and cache is None if return_mtp is None else return_mtp
        mtp_logits, mtp_routing = self._mtp(ids_BS, attention_mask, hidden_BSD) if wants_mtp else ((), ())
        return Output(
            logits_BSV,
            None if labels is None else next_token_loss(logits_BSV, labels),
            tuple(records) if return_routing else None,
            hidden_BSD,
            mtp_logits,
            mtp_routing,
            cache,
        )

    def generate(self, ids_BS: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Continue every row of ids; see `nn.generate.generate` for the options, which are transformers'."""
        from labkit.nn.generate import generate

        return generate(self, ids_BS, attention_mask, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Transformer:
        """The model of a Hugging Face folder; see `nn.interop.load` for the options."""
        from labkit.nn.interop import load

        return load(folder, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write a folder that transformers' `from_pretrained` loads; see `nn.interop.save` for the options."""
        from labkit.nn.interop import save

        return save(self, folder, **options)

    def _mtp(
        self, ids_BS: Tensor, attention_mask: Tensor | None, hidden_BSD: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Routing, ...]]:
        logits, records = [], []
        for depth, module in enumerate(self.mtp, 1):
            if ids_BS.shape[1] <= depth:
                break
            ahead_BS = ids_BS[:, depth:]
            mask = None if attention_mask is None else attention_mask[:, depth:]
            positions = self._positions(ahead_BS, mask, None, 0)
            hidden_BSD, routing = module(self.embed(ahead_BS), hidden_BSD[:, :-1], positions)
            logits.append(self.head(hidden_BSD))
            records += [] if routing is None else [routing]
        return tuple(logits), tuple(records)

    def _positions(
        self,
        ids_BS: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        start: int,
        *,
        masked: bool = True,
    ) -> Positions:
        S, total = ids_BS.shape[1], start + ids_BS.shape[1]
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(start, total, device=ids_BS.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, start:]
        cos, sin = rope_tables(self.config, position_ids, in_autocast_dtype(self.norm.weight).dtype)
        kinds = {self.config.slides(layer) for layer in range(self.config.num_layers + self.config.num_mtp_layers)}
        window = self.config.sliding_window
        masks = {
            slides: make_mask(S, total, attention_mask, window=window if slides else 0, device=ids_BS.device)
            for slides in (kinds if masked else ())
        } or dict.fromkeys(kinds)
        return Positions(cos, sin, masks)

    def _check(self, ids_BS: Tensor, attention_mask: Tensor | None, labels: Tensor | None, start: int) -> None:
        if ids_BS.ndim != 2 or ids_BS.is_floating_point() or ids_BS.dtype == torch.bool or ids_BS.numel() == 0:
            raise ValueError(f"ids_BS has shape {tuple(ids_BS.shape)} and dtype {ids_BS.dtype}; give integers [B, S]")
        if ids_BS.device.type == "cpu":  # on a GPU, reading the values would make the host wait
            low, high = int(ids_BS.min()), int(ids_BS.max())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"token ids run from {low} to {high}, outside the vocabulary of {self.config.vocab_size}; "
                    "are they of this model's tokenizer?"
                )
        B, S = ids_BS.shape
        if attention_mask is not None and attention_mask.shape != (B, start + S):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(B, start + S)}: a column for each "
                f"of the {start} cached and {S} new positions"
            )
        if labels is not None and labels.shape != ids_BS.shape:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; expected {tuple(ids_BS.shape)}, as the ids")


def filled(model: Transformer, state: dict[str, Tensor]) -> Transformer:
    """A model made without memory, with these tensors as its own, in evaluation mode; a tied head is the embedding."""
    if model.config.tie_embeddings:
        state["head.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    if model.config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model.requires_grad_().eval()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile, and afterwards the mode that it was in.

    >>> layer = nn.Dropout()
    >>> with evaluating(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def next_token_loss(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits at position i against label i + 1; labels of −100 are left out.

    >>> next_token_loss(torch.zeros(1, 3, 8), torch.tensor([[0, 5, -100]])).exp().round().item()
    8.0
    """
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten(), ignore_index=IGNORED)
