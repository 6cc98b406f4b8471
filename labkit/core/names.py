"""The one map between our names and other projects': transformers' configurations and DeepSeek's inference code.

Every key of a foreign configuration is read, or known to change nothing that a `ModelConfig` describes, or an error.
The keys in `UNDESCRIBED` say how a model is stored or served (number format, quantisation): `undescribed` returns them,
so that none is missed.
transformers is imported only by `hf_config` and `hf_meta_model`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.families import FAMILIES, UNDESCRIBED, Family, Fields
from labkit.core.parameters import need_model
from labkit.core.positions import read_rope, write_rope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "FAMILIES",
    "UNDESCRIBED",
    "Glossary",
    "family_of",
    "from_hf_config",
    "glossary",
    "hf_config",
    "hf_meta_model",
    "to_hf_config",
    "undescribed",
]

_GATE, _UP, _DOWN = "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
_TENSORS = (
    ("router weight", *[_GATE] * 5, "mlp.router.weight", "ffn.gate.weight"),
    ("selection bias", "", "", "", "", "mlp.gate.e_score_correction_bias", "", "ffn.gate.bias"),
    ("gate_up_E2FD", *[_UP] * 5, f"{_UP} ([E, D, 2F], columns interleaved)", "ffn.experts.N.w1, w3"),
    ("down_EDF", *[_DOWN] * 5, f"{_DOWN} ([E, F, D])", "ffn.experts.N.w2"),
)


def _family(key: object) -> Family:
    if key not in FAMILIES:
        raise ValueError(f"there is no map for model_type {key!r}; the known ones are {', '.join(FAMILIES)}")
    return FAMILIES[key]


def _plain(config: Mapping[str, Any] | PreTrainedConfig) -> Fields:
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        from transformers import PreTrainedConfig

        generic = set(PreTrainedConfig().to_dict()) - {"model_type", "tie_word_embeddings"}
        return {key: value for key, value in config.to_dict().items() if key not in generic}
    raise ValueError(f"from_hf_config takes a dict or a transformers configuration, got {type(config).__name__}")


def _checked(family: Family, values: Fields) -> Fields:
    for key, value in values.items():
        if not family.knows(key):
            raise ValueError(
                f"{family.title} has a key {key!r} that the map does not know; nothing is ignored in silence"
            )
        allowed = family.must.get(key, (value,))
        if value not in allowed:
            raise ValueError(
                f"{family.title}: {key} is {value!r}, which a ModelConfig cannot express; only {allowed[0]!r}"
            )
    full = {**family.defaults, **{k: v for k, v in values.items() if k not in family.aliases}}
    for alias, key in family.aliases.items():
        if alias in values and full.setdefault(key, values[alias]) != values[alias]:
            raise ValueError(f"{family.title}: {alias} is {values[alias]!r} but {key} is {full[key]!r}; give one")
    missing = sorted(set(family.names.values()) - set(full))
    if missing:
        raise ValueError(f"{family.title}: the configuration lacks {', '.join(missing)}")
    return full


def _read(family: Family, values: Fields, name: str) -> ModelConfig:
    theirs = _checked(family, values)
    ours = {**family.fixed, **{mine: theirs[key] for mine, key in family.names.items()}}
    family.read(theirs, ours)
    if family.theta is not None:
        ours.update(read_rope(theirs, ours["max_context"], family.theta))
    moe = {key[4:]: value for key, value in ours.items() if key.startswith("moe.")}
    model = {key: value for key, value in ours.items() if not key.startswith("moe.")}
    return ModelConfig(name=name, moe=MoEConfig(d_model=model["d_model"], **moe), **model)


def from_hf_config(config: Mapping[str, Any] | PreTrainedConfig, name: str | None = None) -> ModelConfig:
    """Our configuration of a model that transformers describes.

    Args:
        config: a `config.json` as a dict, or a transformers configuration. The sizes must be there; an optional key
            that is missing means what it means there. With model_type "deepseek_inference", the names of DeepSeek's
            own inference code.
        name: of the model; if not given, where the configuration was loaded from, or its model_type.

    Raises ValueError for an unknown model_type, an unknown key, and a value a ModelConfig cannot express.

    >>> from labkit.core.presets import preset
    >>> mixtral = preset("mixtral-8x7b")
    >>> from_hf_config(to_hf_config(mixtral, "mixtral"), name="mixtral-8x7b") == mixtral
    True
    """
    values = _plain(config)
    key = values.pop("model_type", None)
    return _read(_family(key), values, name or values.get("_name_or_path") or str(key))


def to_hf_config(model: ModelConfig, family: str) -> Fields:
    """The same model in another project's words, as the plain values of a `config.json`.

    Args:
        family: a key of `FAMILIES`, such as "qwen3_moe".

    Raises ValueError if the family cannot say something this model has, naming each field; it is read back to be sure.

    >>> from labkit.core.presets import preset
    >>> to_hf_config(preset("olmoe-1b-7b"), "olmoe")["num_experts_per_tok"]
    8
    """
    m, target = need_model(model, "to_hf_config"), _family(family)
    if m.moe is None:
        raise ValueError(f"{m.name} has no sparse layer, so {target.title} cannot describe it; give it a MoEConfig")
    theirs = {
        key: getattr(m.moe, mine[4:]) if mine.startswith("moe.") else getattr(m, mine)
        for mine, key in target.names.items()
    }
    target.write(m, theirs)
    if target.theta is not None:
        theirs["rope_parameters"] = write_rope(m)
    back = _read(target, theirs, m.name)
    lost = [k for k, v in _flat(m).items() if _flat(back)[k] != v]
    if lost:
        raise ValueError(
            f"{target.title} cannot express {', '.join(f'{k} = {_flat(m)[k]!r}' for k in lost)} of {m.name}"
        )
    return {"model_type": family, **theirs}


def _flat(model: ModelConfig) -> Fields:
    values = model.to_dict()
    return {**{f"moe.{k}": v for k, v in values.pop("moe").items()}, **values}


def family_of(model: ModelConfig) -> str:
    """The first family of transformers that can express this model. Raises ValueError if none can.

    >>> from labkit.core.presets import preset
    >>> family_of(preset("gpt-oss-20b"))
    'gpt_oss'
    """
    why = []
    for family in [f for f in FAMILIES if f != "deepseek_inference"]:
        try:
            to_hf_config(model, family)
        except ValueError as error:
            why.append(str(error))
        else:
            return family
    raise ValueError("no family of transformers can express this model:\n" + "\n".join(why))


def undescribed(config: Mapping[str, Any] | PreTrainedConfig) -> Fields:
    """The keys of a foreign configuration that say how it is stored or served, which no `ModelConfig` holds.

    >>> undescribed({"model_type": "mixtral", "dtype": "bfloat16", "hidden_size": 64})
    {'dtype': 'bfloat16'}
    """
    return {key: value for key, value in _plain(config).items() if key in UNDESCRIBED}


def hf_config(model: ModelConfig, family: str | None = None, **more: Any) -> PreTrainedConfig:
    """The transformers configuration of a model; `more` sets keys of theirs that we do not describe."""
    from transformers import AutoConfig

    values = to_hf_config(model, family or family_of(model))
    return AutoConfig.for_model(values.pop("model_type"), **{**values, **more})


def hf_meta_model(model: ModelConfig, family: str | None = None) -> PreTrainedModel:
    """transformers' own model on the meta device: every shape, no memory. The oracle of our parameter counts.

    Buffers, such as DeepSeek-V3's selection bias, are not parameters; its multi-token prediction is not in the model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = hf_config(model, family)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@dataclass(frozen=True)
class Glossary:
    """A table of words: ours first, then each project's; empty where a project has no such thing."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in (self.header, *self.rows))
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return "<table>" + row("th", self.header) + "".join(row("td", cells) for cells in self.rows) + "</table>"


def glossary() -> Glossary:
    """Our words beside everybody else's, in the order of our configuration.

    >>> [row for row in glossary().rows if row[0] == "moe.top_k"][0][:3]
    ('moe.top_k', 'num_experts_per_tok', 'num_experts_per_tok')
    """
    ours = list(dict.fromkeys(word for family in FAMILIES.values() for word in family.names))
    rows = tuple((word, *(family.names.get(word, "") for family in FAMILIES.values())) for word in ours)
    return Glossary(("ours", *(family.title for family in FAMILIES.values())), rows + _TENSORS)
