"""What is missing or contradictory in a model's folder, before a server loads it and answers nonsense.

No tensor is read, only the headers of their files, so that a folder of any size is checked in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labkit.core.names import from_hf_config
from labkit.nn import interop, shards
from labkit.nn.tensor_names import UNUSED, WORDS
from labkit.serve.export.known import Served, served_by

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_SPECIAL = ("bos", "eos", "pad")
_READ_BY_OTHERS = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing: an "error" stops a server or makes it wrong, a "warning" may, a "note" is good to know."""

    level: Level
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.says}"


@dataclass(frozen=True)
class FolderReport:
    """What `check_folder` found, and who serves the folder; `ok` without errors."""

    folder: Path
    findings: tuple[Finding, ...]
    served: tuple[Served, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing found stops a server or makes it wrong."""
        return all(finding.level != "error" for finding in self.findings)

    def __str__(self) -> str:
        found = [str(finding) for finding in self.findings] or ["nothing is missing or contradictory"]
        return "\n".join([*found, *("served by " + str(served) for served in self.served)])


def check_folder(folder: str | Path) -> FolderReport:
    """Read a folder's configuration, tokenizer and headers as servers do, and say what does not fit together.

    Raises ValueError only if there is no such folder; all else is a `Finding`, errors first.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give that of one model")
    config, problem = _object(folder / "config.json")
    if problem:
        return FolderReport(folder, (Finding("error", "config.json", problem),))
    found = [*_layout(config), *_numbers(folder, config), *_tokenizer(folder, config), *_ids(folder, config)]
    served: tuple[Served, ...] = ()
    try:
        from_hf_config(config)
        served = served_by(config)
    except ValueError as error:
        found.append(Finding("error", "config.json", str(error)))
    else:
        found += _shards(folder, config)
    order = {"error": 0, "warning": 1, "note": 2}
    return FolderReport(folder, tuple(sorted(found, key=lambda each: order[each.level])), served)


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file; empty if it is not there or holds none."""
    return _object(path)[0]


def end_of_answers(folder: str | Path) -> int | None:
    """The token that ends an answer, as the folder says it (the first, if there are several)."""
    said = [read_json(Path(folder) / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    return next((ids[0] for ids in map(_listed, said) if ids), None)


def _object(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, "is missing"
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"cannot be read: {error}"
    return (values, "") if isinstance(values, dict) else ({}, "holds no JSON object")


def _layout(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Which model it is, and what others read of it."""
    family, named = config.get("model_type"), config.get("architectures")
    if family in WORDS:
        wanted = [WORDS[family].architecture]
        if not named:
            says = f"architectures is missing; servers choose their code by it: {wanted}"
            yield Finding("error", "config.json", says)
        elif named != wanted:
            yield Finding("error", "config.json", f"architectures is {named}, but model_type {family!r} means {wanted}")
    if family == "deepseek_v3":
        for key, value in _READ_BY_OTHERS.items():
            if key not in config:
                says = f"{key} is missing; vLLM or SGLang then take another router than this family's: give {value!r}"
                yield Finding("error", "config.json", says)
    if config.get("rope_parameters") and "rope_theta" not in config:
        says = "rope_theta is missing beside rope_parameters; servers on transformers 4 take their default instead"
        yield Finding("warning", "config.json", says)
    quantised = config.get("quantization_config")
    if isinstance(quantised, Mapping) and quantised.get("quant_method") == "labkit":
        yield Finding(
            "error", "config.json", "weights are packed by labkit, which no other server reads; save plain ones"
        )


def _numbers(folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    new, old = config.get("dtype"), config.get("torch_dtype")
    if new and old and new != old:
        yield Finding("error", "config.json", f"dtype is {new!r} but torch_dtype {old!r}; give one")
    if not (new or old):
        yield Finding("warning", "config.json", "dtype is missing; servers then take float32 or choose one")
    if (new or old) == "float64":
        yield Finding(
            "warning", "config.json", "dtype is float64, in which no server computes; store float32 or bfloat16"
        )
    for path in sorted(each for pattern in shards.PICKLES for each in folder.glob(pattern)):
        yield Finding("warning", path.name, "is a pickle, which can run code when it is read; remove it")


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    vocab = _vocabulary(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        says = "is missing: servers then take and give token ids only"
        yield Finding("warning", "tokenizer.json", says)
        return
    if not (folder / "tokenizer_config.json").is_file():
        yield Finding("warning", "tokenizer_config.json", "is missing: special tokens are not known")
    largest, size = max(vocab.values(), default=-1), config.get("vocab_size")
    if isinstance(size, int) and largest >= size:
        says = f"holds token {largest}, but vocab_size is {size}; are both of the same model?"
        yield Finding("error", "tokenizer.json", says)
    said = read_json(folder / "tokenizer_config.json")
    if said.get("tokenizer_class") == "TokenizersBackend":
        says = "tokenizer_class is one that transformers 4 does not know; PreTrainedTokenizerFast is known to all"
        yield Finding("warning", "tokenizer_config.json", says)
    templates = ("chat_template.jinja", "chat_template.json")
    if "chat_template" not in said and not any((folder / name).is_file() for name in templates):
        yield Finding("note", "tokenizer_config.json", "has no chat_template: completions work, chats need one")


def _ids(folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Special tokens: told alike in three places, within the vocabulary, and an end among them."""
    generation, said = read_json(folder / "generation_config.json"), read_json(folder / "tokenizer_config.json")
    vocab, size = _vocabulary(folder), config.get("vocab_size")
    for kind in _SPECIAL:
        places = {
            "config.json": _listed(config.get(f"{kind}_token_id")),
            "generation_config.json": _listed(generation.get(f"{kind}_token_id")),
            "tokenizer_config.json": _listed(vocab.get(_text(said.get(f"{kind}_token")))),
        }
        told = {place: ids for place, ids in places.items() if ids}
        for place, ids in told.items():
            if isinstance(size, int) and not all(isinstance(i, int) and 0 <= i < size for i in ids):
                yield Finding("error", place, f"{kind}_token_id is {ids}; the vocabulary is [0, {size})")
        if told and not set.intersection(*map(set, told.values())):
            words = ", ".join(f"{ids} in {place}" for place, ids in told.items())
            yield Finding("error", "config.json", f"{kind}_token_id is {words}; give one everywhere")
        if not told and kind == "eos":
            says = "no eos_token_id anywhere: answers end at their longest only"
            yield Finding("warning", "generation_config.json", says)


def _shards(folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Tensors by the headers: all there, none too many, of the shapes and the format that the configuration says."""
    try:
        expected = interop.layout(from_hf_config(config), str(config["model_type"]))
        with shards.Shards(folder) as files:
            yield from _tensors(files, expected, config)
            stored = {name: files.stored(name) for name in files.names}
    except ValueError as error:
        yield Finding("error", shards.SINGLE, str(error))
        return
    index = read_json(folder / shards.INDEX)
    total = (index.get("metadata") or {}).get("total_size")
    held = sum(each.nbytes for each in stored.values())
    if total is not None and total != held:
        yield Finding("warning", shards.INDEX, f"total_size is {total:,}, but the shards hold {held:,} bytes")
    named = set(index.get("weight_map", {}).values()) or {shards.SINGLE}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in named:
            yield Finding("warning", path.name, "is not named by the index; servers that read every file take it too")


def _tensors(
    files: shards.Shards, expected: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> Iterator[Finding]:
    tied, layers = bool(config.get("tie_word_embeddings")), config["num_hidden_layers"]
    missing = sorted(expected.keys() - files.names)
    absent = {name for name in missing if _layer(name) >= layers}  # multi-token modules, which transformers leaves out
    if missing := [name for name in missing if name not in absent]:
        yield Finding("error", shards.SINGLE, f"lacks {_some(missing)}")
    if absent:
        yield Finding(
            "note", shards.SINGLE, f"lacks the multi-token modules that config.json names ({len(absent)} tensors)"
        )
    extra = sorted(name for name in files.names - expected.keys() if not UNUSED.search(name) and _layer(name) < layers)
    if tied and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        yield Finding("note", shards.SINGLE, "holds lm_head.weight beside tied embeddings; servers read the embedding")
    if extra:
        yield Finding("error", shards.SINGLE, f"holds {_some(extra)}, which config.json has no place for")
    for name in sorted(expected.keys() & files.names):
        if files.stored(name).shape != expected[name]:
            says = f"{name} has shape {files.stored(name).shape}, but config.json says {expected[name]}"
            yield Finding("error", shards.SINGLE, says)
    said, embedding = config.get("dtype") or config.get("torch_dtype"), "model.embed_tokens.weight"
    if said and embedding in files.names:
        is_there = str(files.stored(embedding).dtype).removeprefix("torch.")
        if is_there != said:
            says = f"dtype is {said!r}, but the weights are stored as {is_there}; servers convert them"
            yield Finding("warning", "config.json", says)


def _vocabulary(folder: Path) -> dict[str, int]:
    """Every token of a tokenizer.json by its text."""
    values = read_json(folder / "tokenizer.json")
    vocab = (values.get("model") or {}).get("vocab") or {}
    plain = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    return {**plain, **{token["content"]: token["id"] for token in values.get("added_tokens") or []}}


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if name.startswith("model.layers.") and parts[2].isdigit() else -1


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
