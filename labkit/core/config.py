"""What a layer and a model are: frozen dataclasses that check themselves.

Left out on purpose: dropout, initialisation and anything that only training needs (see `train`).
The presets of published models live in `core.presets`, the names other projects use in `core.names`.

Shape suffixes, used in the whole house: B batch, S sequence, T tokens (B·S), D model width, F expert width,
E experts, K experts per token, H heads, C capacity, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self

ScoreFn = Literal["softmax", "sigmoid", "sqrtsoftplus", "topk_softmax"]
GroupScore = Literal["max", "top2_sum"]
Activation = Literal["swiglu", "clamped_swiglu"]

SCORE_FNS = ("softmax", "sigmoid", "sqrtsoftplus", "topk_softmax")
GROUP_SCORES = ("max", "top2_sum")
ACTIVATIONS = ("swiglu", "clamped_swiglu")


class Config:
    """The base of every configuration: `from_dict`, `to_dict` and `replace`, none of which ignores a key."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values. Raises ValueError for a key that is not a field, naming the nearest one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(known)}"
                raise ValueError(f"{cls.__name__} has no key {key!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, nested: `from_dict` gives the same configuration back."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        """The same configuration with some fields changed, checked again."""
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self).from_dict({**known, **changes})


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _need_int(owner: str, least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{owner}.{name} is {value!r}; give a whole number")
        _need(value >= least, f"{owner}.{name} is {value}; give {least} or more")


def _need_choice(owner: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    _need(value in choices, f"{owner}.{name} is {value!r}; choose one of {', '.join(choices)}")


def _need_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _need(number and value > 0, f"{owner}.{name} is {value!r}; give a positive number")


@dataclass(frozen=True)
class MoEConfig(Config):
    """One sparse layer: how its router decides and what its experts are.

    `score_fn` turns logits into scores: "softmax" over all experts (Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V2),
    "sigmoid" per expert (DeepSeek-V3), "sqrtsoftplus" (sqrt(softplus)), or "topk_softmax", a softmax over the chosen
    logits only (GPT-OSS). `norm_topk` makes a token's K scores sum to one before `route_scale` multiplies them.
    `selection_bias` is the loss-free balancing bias (DeepSeek-V3, section 2.1.2): it moves the choice, never the score.
    With `num_groups` > 1, experts are chosen inside the best `top_groups` groups only (DeepSeek-V2, section 2.2.2).
    `activation` is what an expert does between its matrices: "swiglu", or GPT-OSS's "clamped_swiglu", which alone reads
    `swiglu_alpha` and `swiglu_limit`: with the gate at most the limit and |up| too, (up + 1)·gate·sigmoid(alpha·gate).

    >>> MoEConfig(d_model=64, d_expert=128, num_experts=8, top_k=2).sparsity
    0.25
    >>> MoEConfig.from_dict({"d_model": 64, "d_expert": 128, "num_expert": 8, "top_k": 2})
    Traceback (most recent call last):
    ValueError: MoEConfig has no key 'num_expert'; did you mean 'num_experts'?
    """

    d_model: int
    d_expert: int
    num_experts: int
    top_k: int
    num_shared_experts: int = 0
    score_fn: ScoreFn = "softmax"
    norm_topk: bool = True
    route_scale: float = 1.0
    selection_bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    router_bias: bool = False  # a learned bias added to the logits (GPT-OSS); not the selection bias
    expert_bias: bool = False  # biases on the expert projections (GPT-OSS)
    activation: Activation = "swiglu"
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    noise_std: float = 0.0  # Gaussian noise on the logits while training (Shazeer et al. 2017, equation 4, fixed width)

    def __post_init__(self) -> None:
        _need_int(
            "MoEConfig", 1, d_model=self.d_model, d_expert=self.d_expert, num_experts=self.num_experts,
            top_k=self.top_k, num_groups=self.num_groups, top_groups=self.top_groups,
        )  # fmt: skip
        _need_int("MoEConfig", 0, num_shared_experts=self.num_shared_experts)
        _need_choice("MoEConfig", "score_fn", self.score_fn, SCORE_FNS)
        _need_choice("MoEConfig", "group_score", self.group_score, GROUP_SCORES)
        _need_choice("MoEConfig", "activation", self.activation, ACTIVATIONS)
        _need(
            self.top_k <= self.num_experts,
            f"MoEConfig.top_k is {self.top_k} but there are only {self.num_experts} experts; lower top_k",
        )
        _need(
            self.num_experts % self.num_groups == 0,
            f"MoEConfig.num_groups is {self.num_groups}, which does not divide {self.num_experts} experts",
        )
        _need(
            self.top_groups <= self.num_groups,
            f"MoEConfig.top_groups is {self.top_groups} but there are only {self.num_groups} groups",
        )
        reachable = self.top_groups * (self.num_experts // self.num_groups)
        _need(
            self.top_k <= reachable,
            f"MoEConfig.top_k is {self.top_k} but {self.top_groups} groups hold only {reachable} experts",
        )
        _need(self.route_scale > 0, f"MoEConfig.route_scale is {self.route_scale}; give a positive number")
        _need_positive("MoEConfig", swiglu_alpha=self.swiglu_alpha, swiglu_limit=self.swiglu_limit)
        _need(self.noise_std >= 0, f"MoEConfig.noise_std is {self.noise_std}; give zero or more")

    @property
    def sparsity(self) -> float:
        """The share of the routed experts that one token uses, K / E."""
        return self.top_k / self.num_experts


@dataclass(frozen=True)
class YarnConfig(Config):
    """How rotary positions are stretched to a longer context: YaRN (Peng et al. 2023, arXiv 2309.00071).

    Args:
        factor: the new context over the one trained with; original_context: that one, in tokens.
        beta_fast, beta_slow: a frequency that turns more often than `beta_fast` over the original context stays, one
            that turns less often than `beta_slow` is divided by `factor`, with a ramp between.
        mscale, mscale_all_dim: DeepSeek's two weights of the logarithm that corrects the attention's temperature; zero
            leaves them out.
        attention_factor: what cosine and sine are multiplied by; zero derives it from the fields above.
        truncate: whether the ramp's ends are rounded to whole dimensions.

    >>> YarnConfig(factor=4, original_context=2048).beta_fast
    32.0
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        _need_int("YarnConfig", 1, original_context=self.original_context)
        _need_positive("YarnConfig", factor=self.factor, beta_fast=self.beta_fast, beta_slow=self.beta_slow)
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            _need(getattr(self, name) >= 0, f"YarnConfig.{name} is {getattr(self, name)}; give zero or more")
        _need(
            self.beta_fast > self.beta_slow,
            f"YarnConfig.beta_fast is {self.beta_fast} and beta_slow {self.beta_slow}; beta_fast must be larger",
        )


@dataclass(frozen=True)
class ModelConfig(Config):
    """A decoder-only transformer whose feed-forward layers are sparse, but for the first `num_dense_layers`.

    `attention` is "gqa" (grouped queries; equal head counts make it MHA) or "mla" (latent attention, DeepSeek-V2
    section 2.1), which alone reads the `mla_*` widths. `qk_norm` is "none", "head" (RMSNorm over one head, Qwen3) or
    "full" (over all heads together, OLMoE). `d_dense` is the width of a dense feed-forward layer. With a
    `sliding_window`, a layer sees only that many last tokens, but every `full_attention_every`-th layer sees all
    (GPT-OSS: 128 and 2). Positions are rotary (RoFormer, Su et al. 2021): `rope_interleaved` turns neighbouring
    dimensions together (DeepSeek) instead of one from each half. `num_mtp_layers` are extra modules that predict tokens
    further ahead (DeepSeek-V3, section 2.2); parameter counts leave them out, as published ones do.
    """

    name: str
    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    moe: MoEConfig | None
    num_dense_layers: int = 0
    d_dense: int = 0
    attention: Literal["gqa", "mla"] = "gqa"
    qk_norm: Literal["none", "head", "full"] = "none"
    attention_bias: bool = False
    attention_sinks: bool = False
    mla_q_rank: int = 0  # 0: queries are projected directly
    mla_kv_rank: int = 0
    mla_nope_dim: int = 0
    mla_rope_dim: int = 0
    mla_v_dim: int = 0
    tie_embeddings: bool = False
    sliding_window: int = 0  # in tokens; 0: every layer sees everything
    full_attention_every: int = 0  # 0: with a window, no layer sees everything
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_interleaved: bool = False
    yarn: YarnConfig | None = None
    max_context: int = 4096  # positions that the model was made for
    num_mtp_layers: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("moe", MoEConfig), ("yarn", YarnConfig)):
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, kind.from_dict(getattr(self, name)))
        _need_int(
            "ModelConfig", 1, vocab_size=self.vocab_size, num_layers=self.num_layers, d_model=self.d_model,
            num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim,
            max_context=self.max_context,
        )  # fmt: skip
        _need_positive("ModelConfig", norm_eps=self.norm_eps, rope_theta=self.rope_theta)
        _need_int(
            "ModelConfig", 0, num_dense_layers=self.num_dense_layers, d_dense=self.d_dense, mla_q_rank=self.mla_q_rank,
            mla_kv_rank=self.mla_kv_rank, mla_nope_dim=self.mla_nope_dim, mla_rope_dim=self.mla_rope_dim,
            mla_v_dim=self.mla_v_dim, sliding_window=self.sliding_window,
            full_attention_every=self.full_attention_every, num_mtp_layers=self.num_mtp_layers,
        )  # fmt: skip
        _need(
            self.sliding_window > 0 or self.full_attention_every == 0,
            f"ModelConfig.full_attention_every is {self.full_attention_every} but there is no sliding_window",
        )
        _need_choice("ModelConfig", "attention", self.attention, ("gqa", "mla"))
        _need_choice("ModelConfig", "qk_norm", self.qk_norm, ("none", "head", "full"))
        _need(
            self.num_heads % self.num_kv_heads == 0,
            f"ModelConfig.num_kv_heads is {self.num_kv_heads}, which does not divide {self.num_heads} heads",
        )
        _need(
            self.num_dense_layers <= self.num_layers,
            f"ModelConfig.num_dense_layers is {self.num_dense_layers} of {self.num_layers} layers",
        )
        if self.moe is None:
            _need(
                self.num_dense_layers == self.num_layers,
                f"ModelConfig.moe is None, so all {self.num_layers} layers are dense: set num_dense_layers to that",
            )
        else:
            _need(
                self.moe.d_model == self.d_model,
                f"ModelConfig.d_model is {self.d_model} but its MoE layers have d_model {self.moe.d_model}",
            )
        if self.num_dense_layers:
            _need(self.d_dense >= 1, "ModelConfig has dense layers: give d_dense, their width")
        if self.attention == "mla":
            _need_int(
                "ModelConfig", 1, mla_kv_rank=self.mla_kv_rank, mla_nope_dim=self.mla_nope_dim,
                mla_rope_dim=self.mla_rope_dim, mla_v_dim=self.mla_v_dim,
            )  # fmt: skip
            _need(
                self.head_dim == self.mla_nope_dim + self.mla_rope_dim,
                f"ModelConfig.head_dim is {self.head_dim}, but with mla it is mla_nope_dim + mla_rope_dim = "
                f"{self.mla_nope_dim + self.mla_rope_dim}",
            )
            _need(
                self.num_kv_heads == self.num_heads and self.qk_norm == "none" and not self.attention_sinks
                and not self.sliding_window,
                "ModelConfig: mla has one key for each head, no qk_norm, no sinks and no sliding_window",
            )  # fmt: skip
        _need(
            self.rotary_dim % 2 == 0,
            f"ModelConfig: {self.rotary_dim} dimensions of a head are rotated in pairs; give an even number",
        )

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head carry the position."""
        return self.mla_rope_dim if self.attention == "mla" else self.head_dim

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The numbers of the layers whose feed-forward part is a mixture of experts."""
        return tuple(range(self.num_dense_layers, self.num_layers))

    def slides(self, layer: int) -> bool:
        """Whether attention in this layer, counted from 0, sees only the last `sliding_window` tokens."""
        every = self.full_attention_every
        return self.sliding_window > 0 and not (every and (layer + 1) % every == 0)

    @property
    def num_sparse_layers(self) -> int:
        """Layers whose feed-forward part is a mixture of experts."""
        return self.num_layers - self.num_dense_layers

    @property
    def num_window_layers(self) -> int:
        """Layers whose attention sees only the last `sliding_window` tokens."""
        if not self.sliding_window:
            return 0
        return self.num_layers - (self.num_layers // self.full_attention_every if self.full_attention_every else 0)
