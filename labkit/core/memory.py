"""Bytes of training and of inference. Pure arithmetic: states and caches are exact, activations are an estimate."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.config import ModelConfig
from labkit.core.parameters import model_params, need_model, vector_params

OPTIMIZERS = ("adam", "adamw8bit", "sgd", "muon")
PRECISIONS = ("mixed", "fp32")
WEIGHT_BITS = (4, 8, 16, 32)
BLOCK_8BIT = 256  # values that share one float32 scale in bitsandbytes' 8-bit optimizers


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step by what they hold."""

    weights: int
    master: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def states(self) -> int:
        """Everything that does not depend on the batch."""
        return self.weights + self.master + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.states + self.activations


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of inference: weights and cache. There are no gradients and no optimizer in inference."""

    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache


def _need_count(who: str, least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{who}: {name} is {value!r}; give a whole number of {least} or more")


def _need_one_of(who: str, name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{who}: {name} is {value!r}; choose one of {', '.join(map(str, choices))}")


def _kv_values(model: ModelConfig) -> int:
    if model.attention == "mla":
        return model.mla_kv_rank + model.mla_rope_dim
    return 2 * model.num_kv_heads * model.head_dim


def kv_cache_bytes_per_token(model: ModelConfig, bytes_per_value: float = 2) -> float:
    """Bytes of cache that one more token costs, over all layers, before any sliding window drops old tokens.

    Keys and values of GQA: layers · 2 · H_kv · d. MLA keeps one latent and one rotary key for all heads:
    layers · (kv_rank + d_rope) (DeepSeek-V2, arXiv 2405.04434, table 1).

    >>> from labkit.core.presets import preset
    >>> kv_cache_bytes_per_token(preset("mixtral-8x7b")), kv_cache_bytes_per_token(preset("deepseek-v3"))
    (131072, 70272)
    """
    m = need_model(model, "kv_cache_bytes_per_token")
    if not bytes_per_value > 0:
        raise ValueError(f"kv_cache_bytes_per_token: bytes_per_value is {bytes_per_value}; give a positive number")
    return m.num_layers * _kv_values(m) * bytes_per_value


def kv_cache_bytes(model: ModelConfig, batch: int, context: int, kv_bits: int = 16) -> int:
    """Bytes of cache for `batch` sequences of `context` tokens; a layer with a sliding window keeps only the window.

    >>> from labkit.core.presets import preset
    >>> kv_cache_bytes(preset("gpt-oss-20b"), batch=1, context=1024)
    28311552
    """
    m = need_model(model, "kv_cache_bytes")
    _need_count("kv_cache_bytes", batch=batch, context=context)
    _need_one_of("kv_cache_bytes", "kv_bits", kv_bits, WEIGHT_BITS)
    window = m.num_window_layers
    kept = (m.num_layers - window) * context + window * min(context, m.sliding_window)
    return batch * kept * _kv_values(m) * kv_bits // 8


def inference_memory(
    model: ModelConfig, batch: int, context: int, weight_bits: int = 16, kv_bits: int = 16
) -> InferenceMemory:
    """Bytes to serve a model: all weights (every expert, visited or not) and the cache of a full batch.

    Left out: the scales of a quantised format (a few per cent), and the workspace of one step.

    Args:
        batch: sequences at once.
        context: tokens of each, prompt and answer together.
        weight_bits, kv_bits: 4, 8, 16 or 32.

    Raises ValueError for a number out of range.

    >>> from labkit.core.presets import preset
    >>> inference_memory(preset("olmoe-1b-7b"), batch=1, context=4096).weights
    13838323712
    """
    m = need_model(model, "inference_memory")
    _need_count("inference_memory", batch=batch, context=context)
    _need_one_of("inference_memory", "weight_bits", weight_bits, WEIGHT_BITS)
    return InferenceMemory(-(-model_params(m).total * weight_bits // 8), kv_cache_bytes(m, batch, context, kv_bits))


def _optimizer_bytes(model: ModelConfig, optimizer: str) -> int:
    params = model_params(model)
    if optimizer == "sgd":
        return 0
    if optimizer == "adam":
        return 8 * params.total
    if optimizer == "adamw8bit":
        return 2 * params.total + 2 * 4 * -(-params.total // BLOCK_8BIT)
    by_adam = params.embedding + params.head + vector_params(model)
    return 4 * (params.total - by_adam) + 8 * by_adam


def attention_values(model: ModelConfig, sequence_length: int, flash: bool) -> int:
    """Values that one layer's attention keeps for the backward pass, per token; see `activation_bytes`."""
    m = model
    if m.attention == "mla":
        queries = m.num_heads * (m.mla_nope_dim + m.mla_rope_dim)
        latents = 2 * m.mla_q_rank + 2 * m.mla_kv_rank
        values = 2 * queries + 2 * m.num_heads * m.mla_v_dim + latents
    else:
        values = m.head_dim * (2 * m.num_heads + 2 * m.num_kv_heads)
    return 2 * m.d_model + values + (0 if flash else m.num_heads * sequence_length)


def ffn_values(model: ModelConfig, sparse: bool) -> int:
    """Values that one feed-forward layer keeps for the backward pass, per token; see `activation_bytes`."""
    if not sparse:
        return 2 * model.d_model + 4 * model.d_dense
    c = model.moe
    routed = c.top_k * (2 * model.d_model + 4 * c.d_expert) + 2 * c.num_experts
    return 2 * model.d_model + routed + 4 * c.num_shared_experts * c.d_expert


def activation_bytes(
    model: ModelConfig,
    tokens: int,
    sequence_length: int,
    *,
    precision: str = "mixed",
    checkpointing: bool = False,
    flash: bool = True,
) -> int:
    """An estimate of what autograd keeps between forward and backward, in bytes.

    The accounting of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), which sums the inputs that each operation
    keeps, redone for this model: no dropout, SwiGLU, GQA or MLA, and experts. Values per token and layer:

    - attention: 2·D (norm, projections) + queries, keys, values and output; without flash attention also one row of
      probabilities, H·S (their 5·a·s/h counts dropout and its mask too);
    - dense feed-forward: 2·D + 4·F (gate, its SiLU, up, their product);
    - experts: 2·D + K·(2·D + 4·F) (the gathered input and the unweighted output as well) + 4·F per shared expert + 2·E.

    After the layers: 2·D, the logits V, and V in float32 for the loss. With checkpointing only each layer's input D
    stays, and the largest layer is there once more while it is recomputed (their section 5, full recomputation).
    `mixed` counts 2 bytes a value, `fp32` 4. Left out: workspaces, fragmentation, the backward pass's own buffers.

    >>> from labkit.core.presets import preset
    >>> m = preset("olmoe-1b-7b")
    >>> activation_bytes(m, 4096, 4096) > 3 * activation_bytes(m, 4096, 4096, checkpointing=True)
    True
    """
    m = need_model(model, "activation_bytes")
    _need_count("activation_bytes", tokens=tokens, sequence_length=sequence_length)
    _need_one_of("activation_bytes", "precision", precision, PRECISIONS)
    if tokens % sequence_length:
        raise ValueError(
            f"activation_bytes: {tokens} tokens are no whole number of sequences of {sequence_length}; "
            "give a multiple of sequence_length"
        )
    attention = attention_values(m, sequence_length, flash)
    sparse = [ffn_values(m, True)] * m.num_sparse_layers if m.moe is not None else []
    layers = [attention + ffn for ffn in [ffn_values(m, False)] * m.num_dense_layers + sparse]
    kept = m.num_layers * m.d_model + max(layers) if checkpointing else sum(layers)
    size = 2 if precision == "mixed" else 4
    return tokens * (size * (kept + 2 * m.d_model + m.vocab_size) + 4 * m.vocab_size)


def training_memory(
    model: ModelConfig,
    tokens_per_step: int,
    sequence_length: int,
    *,
    precision: str = "mixed",
    optimizer: str = "adam",
    checkpointing: bool = False,
    flash: bool = True,
) -> TrainingMemory:
    """Bytes of one training step on one device, without any sharding.

    With P parameters (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1, the "16 bytes a parameter" of Adam):
    `mixed`: weights 2·P and gradients 2·P in 16 bits, a float32 master copy 4·P; `fp32`: weights 4·P, gradients 4·P.
    Optimizer: `adam` 8·P; `adamw8bit` 2·P and one float32 scale per 256 values of each moment (Dettmers et al. 2022,
    arXiv 2110.02861); `sgd`, without momentum, nothing; `muon` 4 per matrix entry, and Adam's 8 for embedding, head,
    norms and biases. An expert that no token visits has all of these too. Activations: `activation_bytes`.

    Args:
        tokens_per_step: tokens whose activations are alive at once (one micro-batch), a multiple of sequence_length.
        sequence_length: tokens of one sequence.
        precision: "mixed" or "fp32".
        optimizer: "adam", "adamw8bit", "sgd" or "muon".
        checkpointing: keep only each layer's input and recompute the rest.
        flash: attention that never stores its probabilities.

    Raises ValueError for an unknown choice or a number out of range.

    >>> from labkit.core.presets import preset
    >>> t = training_memory(preset("olmoe-1b-7b"), 4096, 4096)
    >>> t.states == 16 * 6_919_161_856
    True
    """
    m = need_model(model, "training_memory")
    _need_one_of("training_memory", "precision", precision, PRECISIONS)
    _need_one_of("training_memory", "optimizer", optimizer, OPTIMIZERS)
    size, total = (2 if precision == "mixed" else 4), model_params(m).total
    activations = activation_bytes(
        m, tokens_per_step, sequence_length, precision=precision, checkpointing=checkpointing, flash=flash
    )
    return TrainingMemory(
        weights=size * total,
        master=4 * total if precision == "mixed" else 0,
        gradients=size * total,
        optimizer=_optimizer_bytes(m, optimizer),
        activations=activations,
    )
