"""The published models, with the sizes their cards publish."""

import pytest

from labkit.core.cost import model_params
from labkit.core.presets import PRESETS, SOURCES, preset

PUBLISHED = {  # billions: total, active; as the cards and papers round them
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (141, 39),
    "olmoe-1b-7b": (6.9, 1.3),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235, 22),
    "deepseek-v2-lite": (15.7, 2.4),  # leaves the embedding out of the active ones
    "deepseek-v3": (671, 37),
    "gpt-oss-20b": (20.9, 3.6),  # its card leaves the embedding out
    "gpt-oss-120b": (116.8, 5.1),  # its card leaves the embedding out
}


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_the_published_ones(name: str) -> None:
    p, (total, active) = model_params(preset(name)), PUBLISHED[name]
    left_out = p.embedding if name.startswith(("gpt-oss", "deepseek-v2")) else 0
    assert p.total / 1e9 == pytest.approx(total, rel=0.01)
    assert (p.active - left_out) / 1e9 == pytest.approx(active, rel=0.06)


def test_every_preset_has_a_source_and_its_own_name() -> None:
    assert PRESETS.keys() == SOURCES.keys() == PUBLISHED.keys()
    assert all(model.name == name for name, model in PRESETS.items())


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = preset("olmoe-1b-7b")


@pytest.mark.parametrize(
    ("name", "says"), [("mixtral", "did you mean 'mixtral-8x"), ("zzz", "the presets are"), (7, "takes a name")]
)
def test_an_unknown_name_helps(name: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        preset(name)


def test_case_does_not_matter() -> None:
    assert preset("DeepSeek-V3") is preset("deepseek-v3")
