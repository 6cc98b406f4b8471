"""Which programs serve which layout, and what each takes for granted; read in their own model files, named beside.

A server's model file often computes one model only: an epsilon written into the code, a bias that it never loads. A
folder whose configuration says otherwise is loaded without a word and answers wrongly. So each such assumption stands
here, and `served_by` holds a configuration against them. No torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core.config import ModelConfig
from labkit.core.names import FAMILIES, family_of, from_hf_config

_VLLM, _SGLANG = "vllm-project/vllm: vllm/model_executor/models", "sgl-project/sglang: python/sglang/srt/models"


@dataclass(frozen=True)
class Rule:
    """Something that a program takes for granted: what, and whether it is so for a model."""

    says: str
    holds: Callable[[ModelConfig], bool]


_UNTIED = Rule(
    "its head is read from lm_head.weight, never from the embedding (untie it)", lambda c: not c.tie_embeddings
)
_NO_BIAS = Rule("attention has no biases in its code; they would be dropped", lambda c: not c.attention_bias)
_SPARSE = Rule("every layer is sparse in its code", lambda c: not c.num_dense_layers)
_NARROW = Rule("a head is d_model / num_heads wide in its code", lambda c: c.head_dim * c.num_heads == c.d_model)
_NO_YARN = Rule("its code does not stretch positions", lambda c: c.yarn is None)
_NO_WINDOW = Rule("its code has no sliding window", lambda c: not c.sliding_window)
_EPS_5 = Rule("norms have an epsilon of 1e-5 in its code", lambda c: c.norm_eps == 1e-5)
_EPS_6 = Rule("latents are normed with rms_norm_eps, not with 1e-6", lambda c: c.norm_eps == 1e-6)
_RAW = Rule("scores are never renormalised in its code", lambda c: not c.moe.norm_topk)
_ALL_HEADS = Rule("there are as many key heads as heads in its code", lambda c: c.num_kv_heads == c.num_heads)
_INTERLEAVED = Rule("neighbouring dimensions turn together in its code", lambda c: c.rope_interleaved)
_SHARED = Rule("there are shared experts in its code", lambda c: c.moe.num_shared_experts > 0)
_BIASED = Rule("attention has biases in its code", lambda c: c.attention_bias)
_YARN = Rule("positions are stretched by YaRN in its code", lambda c: c.yarn is not None)
_EVERY_SECOND = Rule("every second layer slides in its code", lambda c: c.full_attention_every == 2)
_LIMITS = Rule(
    "the activation has alpha 1.702 and limit 7 in its code",
    lambda c: (c.moe.swiglu_alpha, c.moe.swiglu_limit) == (1.702, 7.0),
)
_ALPHA = Rule("the activation has alpha 1.702 in its code", lambda c: c.moe.swiglu_alpha == 1.702)
_LATENT = (_UNTIED, _NO_BIAS, _INTERLEAVED, _EPS_6, _SHARED)


@dataclass(frozen=True)
class Reader:
    """One program's code for one family: the file, the version in which it was read, what it takes for granted."""

    program: str
    family: str
    source: str
    rules: tuple[Rule, ...] = ()


READERS = (
    Reader("vLLM", "mixtral", f"{_VLLM}/mixtral.py at 005df92d, and pull request 14961", (_UNTIED,)),
    Reader("vLLM", "olmoe", f"{_VLLM}/olmoe.py at 048a32c7", (_UNTIED, _NO_BIAS, _EPS_5, _RAW)),
    Reader("vLLM", "qwen3_moe", f"{_VLLM}/qwen3_moe.py at 002456df", (_NO_BIAS,)),
    Reader("vLLM", "deepseek_v2", f"{_VLLM}/deepseek_v2.py at 002d6073", _LATENT),
    Reader("vLLM", "deepseek_v3", f"{_VLLM}/deepseek_v2.py at 002d6073", _LATENT),
    Reader("vLLM", "gpt_oss", f"{_VLLM}/gpt_oss.py at a6b6cfaa",
           (_UNTIED, _BIASED, _EPS_5, _YARN, _EVERY_SECOND, _LIMITS)),
    Reader("SGLang", "mixtral", f"{_SGLANG}/mixtral.py, 2025", (_UNTIED, _NARROW, _NO_YARN, _NO_WINDOW)),
    Reader("SGLang", "olmoe", f"{_SGLANG}/olmoe.py at 067e8f42", (_UNTIED, _NO_BIAS, _EPS_5, _RAW, _ALL_HEADS)),
    Reader("SGLang", "qwen3_moe", f"{_SGLANG}/qwen3_moe.py at 008af3a6", (_UNTIED, _SPARSE)),
    Reader("SGLang", "deepseek_v2", f"{_SGLANG}/deepseek_v2.py at 00114aef", _LATENT),
    Reader("SGLang", "deepseek_v3", f"{_SGLANG}/deepseek_v2.py at 00114aef", _LATENT),
    Reader("SGLang", "gpt_oss", f"{_SGLANG}/gpt_oss.py at 009c6808", (_UNTIED, _ALPHA)),
    *(
        Reader("transformers", family, "tests/nn/test_families.py: logits equal to its own model's")
        for family in FAMILIES if family != "deepseek_inference"
    ),
)  # fmt: skip
"""Who reads what. Later versions may take less for granted; none of these programs runs in our tests but the last."""


@dataclass(frozen=True)
class Served:
    """Whether one program serves a model as it is; if not, `why` not. `source` says where that was read."""

    program: str
    serves: bool
    why: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.program}: {'yes' if self.serves else 'no, ' + '; '.join(self.why)} ({self.source})"


def served_by(model: ModelConfig | Mapping[str, Any] | str | Path) -> tuple[Served, ...]:
    """Which of vLLM, SGLang, transformers and ONNX Runtime serve a model, as far as its configuration tells.

    Args:
        model: its configuration, in our words or as a `config.json`; or a folder with one.

    Raises ValueError for a configuration that cannot be read.

    >>> from labkit.core.presets import preset
    >>> [(served.program, served.serves) for served in served_by(preset("qwen3-30b-a3b"))]
    [('vLLM', True), ('SGLang', True), ('transformers', True), ('ONNX Runtime', True)]
    """
    config, family, unknown = _read(model)
    found = [
        Served(reader.program, *_against(reader, config), reader.source)
        for reader in READERS
        if reader.family == family
    ]
    if family is None:
        found = [Served(name, False, (unknown,), "labkit.core.names") for name in ("vLLM", "SGLang", "transformers")]
    return (*found, Served("ONNX Runtime", True, (), "tests/serve/test_export_onnx.py: logits equal to ours"))


def _against(reader: Reader, config: ModelConfig) -> tuple[bool, tuple[str, ...]]:
    broken = tuple(rule.says for rule in reader.rules if not rule.holds(config))
    return not broken, broken


def _read(model: ModelConfig | Mapping[str, Any] | str | Path) -> tuple[ModelConfig, str | None, str]:
    if isinstance(model, (str, Path)):
        from labkit.nn.interop import read_config

        config, family = read_config(model)
        return config, family, ""
    if isinstance(model, Mapping):
        return from_hf_config(model), str(model.get("model_type")), ""
    if not isinstance(model, ModelConfig):
        raise ValueError(f"served_by takes a ModelConfig, a config.json or a folder, got {type(model).__name__}")
    try:
        return model, family_of(model), ""
    except ValueError as error:
        return model, None, f"no family of theirs is this model ({str(error).splitlines()[-1]})"
