"""How other projects write down rotary positions: `rope_parameters` of transformers 5, and the older `rope_scaling`."""

from __future__ import annotations

from typing import Any

from labkit.core.config import ModelConfig, YarnConfig

KEYS = ("rope_parameters", "rope_theta", "rope_scaling")
_YARN = {
    "original_max_position_embeddings": "original_context", "factor": "factor", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor", "truncate": "truncate",
}  # fmt: skip

Fields = dict[str, Any]


def read_rope(theirs: Fields, max_context: int, default_theta: float) -> Fields:
    """Our fields `rope_theta` and `yarn` out of a configuration of transformers.

    Args:
        theirs: the whole configuration, with any of `KEYS`.
        max_context: in tokens; where YaRN names no factor, it is this over the original context.
        default_theta: of the family, where none is given.

    Raises ValueError for another kind of scaling than YaRN, an unknown key, and two thetas that differ.

    >>> scaling = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 8}
    >>> read_rope({"rope_scaling": scaling}, max_context=32, default_theta=1e4)["yarn"].original_context
    8
    """
    values = {**(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
    thetas = {float(t) for t in (values.pop("rope_theta", None), theirs.get("rope_theta")) if t is not None}
    if len(thetas) > 1:
        raise ValueError(f"rope_theta is given as {' and as '.join(map(str, sorted(thetas)))}; give one")
    kinds = {values.pop(key) for key in ("rope_type", "type") if key in values} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in ("default", "yarn"):
        raise ValueError(f"rope_type is {kind!r}, which a ModelConfig cannot express; only 'default' and 'yarn'")
    if values.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor: a ModelConfig turns every dimension of a head, so only 1.0")
    unknown = sorted(set(values) - set(_YARN)) if kind == "yarn" else sorted(k for k in values if k not in _YARN)
    if unknown:
        raise ValueError(f"rope_parameters has keys that the map does not know: {', '.join(unknown)}")
    return {
        "rope_theta": thetas.pop() if thetas else default_theta,
        "yarn": _yarn(values, max_context) if kind == "yarn" else None,
    }


def write_rope(model: ModelConfig) -> Fields:
    """The `rope_parameters` of transformers for a model.

    >>> from labkit.core.presets import preset
    >>> write_rope(preset("mixtral-8x7b"))
    {'rope_type': 'default', 'rope_theta': 1000000.0}
    """
    if model.yarn is None:
        return {"rope_type": "default", "rope_theta": model.rope_theta}
    yarn = {key: getattr(model.yarn, mine) for key, mine in _YARN.items()}
    empty = ("mscale", "mscale_all_dim", "attention_factor")
    return {
        "rope_type": "yarn",
        "rope_theta": model.rope_theta,
        **{key: value for key, value in yarn.items() if value or key not in empty},
    }


def older_rope(model: ModelConfig) -> Fields:
    """The same in the words of transformers 4, for programs that know only those; both may stand in one file.

    >>> from labkit.core.presets import preset
    >>> older_rope(preset("mixtral-8x7b"))
    {'rope_theta': 1000000.0, 'rope_scaling': None}
    """
    values = write_rope(model)
    theta, kind = values.pop("rope_theta"), values["rope_type"]
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else {**values, "type": kind}}


def _yarn(values: Fields, max_context: int) -> YarnConfig:
    given = {_YARN[key]: value for key, value in values.items() if value is not None}
    given.setdefault("original_context", max_context)
    given.setdefault("factor", max_context / given["original_context"])
    return YarnConfig(**given)
