"""What names may be: of models, aliases, versions, and of the files that a manifest speaks of."""

from __future__ import annotations

import re
import unicodedata

MODEL = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9_-])?")
ALIAS = re.compile(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
VERSION = re.compile(r"v[1-9][0-9]{0,8}")
LATEST = "latest"
# Names that some systems give to devices, whatever the ending.
DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}
PATH_BYTES, PART_BYTES, DEPTH = 1024, 200, 16


def need_model(name: object) -> str:
    """A model's name, or ValueError: small letters, digits, `.`, `_`, `-`, 64 at most.

    >>> need_model("four-domains")
    'four-domains'
    >>> need_model("../other")
    Traceback (most recent call last):
    ValueError: a model cannot be called '../other'; use small letters, digits, '.', '_' and '-' ...
    """
    if not isinstance(name, str) or not MODEL.fullmatch(name) or name.split(".")[0] in DEVICES:
        raise ValueError(
            f"a model cannot be called {_short(name)}; use small letters, digits, '.', '_' and '-' "
            "(64 at most, a letter or digit first), for example 'four-domains'"
        )
    return name


def need_alias(alias: object) -> str:
    """An alias's name, or ValueError: small letters, digits and `-`, and nothing that reads as a version.

    >>> need_alias("v3")
    Traceback (most recent call last):
    ValueError: an alias cannot be called 'v3'; use small letters, digits and '-' ...
    """
    taken = isinstance(alias, str) and (alias == LATEST or re.fullmatch(r"v[0-9]+", alias))
    if not isinstance(alias, str) or not ALIAS.fullmatch(alias) or taken:
        raise ValueError(
            f"an alias cannot be called {_short(alias)}; use small letters, digits and '-' (32 at most, a letter "
            f"first), for example 'prod'; 'v1', 'v2', … are versions and '{LATEST}' is the newest"
        )
    return alias


def is_version(ref: str) -> bool:
    """Whether a reference reads as a version's id, `v1` and so on."""
    return VERSION.fullmatch(ref) is not None


def split(text: str) -> tuple[str, str]:
    """`name@ref` as its two halves; without `@` the newest version is meant.

    >>> split("four-domains@prod"), split("four-domains")
    (('four-domains', 'prod'), ('four-domains', 'latest'))
    """
    name, at, ref = text.partition("@")
    if at and not ref:
        raise ValueError(
            f"{_short(text)} ends in '@'; give name@version or name@alias, for example 'four-domains@prod'"
        )
    return need_model(name), ref or LATEST


def need_prefix(part: str, uri: str) -> None:
    """Raise ValueError unless a part of a store's prefix is of letters, digits, `.`, `_`, `-`, and not all dots."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", part) or not part.strip("."):
        raise ValueError(f"{uri!r} is no store: its prefix holds {part!r}; use letters, digits, '.', '_' and '-'")


def need_path(path: object) -> str:
    """A file's path inside of a version, or ValueError; what passes stays inside of any folder on any system.

    >>> need_path("shards/model-00001.safetensors")
    'shards/model-00001.safetensors'
    >>> need_path("a/../../b")
    Traceback (most recent call last):
    ValueError: 'a/../../b' is no path of a file inside of a version: '..' is not a name
    """
    if not isinstance(path, str) or not path:
        raise ValueError(f"{_short(path)} is no path of a file inside of a version: it must be a text with a name")
    reason = _trick(path)
    if reason:
        raise ValueError(f"{_short(path)} is no path of a file inside of a version: {reason}")
    return path


def _trick(path: str) -> str:
    try:
        length = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not Unicode text"
    if length > PATH_BYTES:
        return f"it is longer than {PATH_BYTES} bytes"
    if any(unicodedata.category(letter)[0] == "C" for letter in path):
        return "it holds a control character or one that cannot be seen"
    if unicodedata.normalize("NFC", path) != path:
        return "it is not in Unicode's composed form (NFC), so two systems could read it as two names"
    if held := sorted(set(path) & set('\\:*?"<>|')):
        return f"it holds {held[0]!r}"
    parts = path.split("/")
    if len(parts) > DEPTH:
        return f"it is deeper than {DEPTH} folders"
    return next((reason for part in parts if (reason := _bad_part(part))), "")


def _bad_part(part: str) -> str:
    if part in ("", ".", ".."):
        return f"{part!r} is not a name"
    if len(part.encode("utf-8")) > PART_BYTES:
        return f"a name in it is longer than {PART_BYTES} bytes"
    if part[0] == "." or part[-1] in ". " or part[0] == " ":
        return f"{part!r} begins with '.' or ' ', or ends so"
    if part.split(".")[0].rstrip().casefold() in DEVICES:
        return f"{part!r} is a device on some systems"
    return ""


def need_distinct(paths: list[str]) -> None:
    """Raise ValueError if two paths are one on a system that does not tell case, or one is a folder of another."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(_folded(path), path)
        if other is not path:
            raise ValueError(f"{_short(other)} and {_short(path)} are the same file where case is not told apart")
    for path in paths:
        parts = _folded(path).split("/")
        for end in range(1, len(parts)):
            if (other := seen.get("/".join(parts[:end]))) is not None:
                raise ValueError(f"{_short(other)} is a file, and {_short(path)} needs it to be a folder")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", path).casefold())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
