"""Installed packages as text: which of their files are read, which are not, and their code and docstrings apart.

No package is imported: files are found through the import system's specs and read as text.
Not read: what is not Python; folders and files of tests; vendored copies of other packages; files whose opening
comments say that a program wrote them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labkit.train import sources

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "_vendored", "vendor", "vendored", "third_party", "extern", "externals"}
)
_TEST_FILE = re.compile(r"(test_.*|.*_tests?|conftest)\.py")
_GENERATED = re.compile(r"\s*#(.*(auto(matically)?[- ]?generated|do not edit|@generated)|\W*generated (by|from))", re.I)
_OPENING_LINES = 30


@dataclass(frozen=True)
class Package:
    """An installed package's files, sorted by path.

    Args:
        name: as it is imported.
        version: of the distribution that it came with; the interpreter's for a library package.
        files: (dotted module name, path) of each file that may be read.
        skipped: how many .py files lie in folders of tests or vendored copies, or are tests by name.
    """

    name: str
    version: str
    files: tuple[tuple[str, str], ...]
    skipped: int


@dataclass(frozen=True)
class Module:
    """One file's text: its code without docstrings, and the docstrings; `problem` says why there is none."""

    name: str
    code: str = ""
    prose: tuple[str, ...] = ()
    problem: str = ""


def installed(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that can be found here, in the same order; nothing is imported.

    >>> installed(("json", "no_such_package"))
    ('json',)
    """
    return tuple(name for name in names if name.isidentifier() and importlib.util.find_spec(name) is not None)


def find(name: str) -> Package:
    """An installed package by its import name, such as "torch". Raises ValueError if it is not there or has no .py.

    >>> find("json").files[0][0]
    'json'
    """
    if not installed((name,)):
        raise ValueError(f"package {name!r} is not installed here; install it, or leave it out (`packages.installed`)")
    spec = importlib.util.find_spec(name)
    if spec.submodule_search_locations is None:
        paths = [(name, spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
        skipped = 0
    else:
        paths, skipped = _walk(name, [Path(folder) for folder in spec.submodule_search_locations])
    if not paths:
        raise ValueError(f"package {name!r} has no .py file that is read; leave it out")
    return Package(name, _version(name), tuple(paths), skipped)


def parse(item: tuple[str, str]) -> Module:
    """The text of one (module name, path); an empty path names a module of the interpreter's own library.

    What cannot be read, parsed, or was written by a program comes back with its `problem`, never as an exception.
    """
    name, path = item
    try:
        source = _read(path) if path else sources.module_source(name)
        if source is None:
            return Module(name, problem="no source in this interpreter")
        if path and _is_generated(source):
            return Module(name, problem="generated")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in others' strings
            code, prose = sources.split_docstrings(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Module(name, problem=f"{type(error).__name__}: {error}".splitlines()[0])
    return Module(name, code.lstrip("\n"), tuple(prose))


def parse_all(items: Sequence[tuple[str, str]], processes: int = 1) -> Iterator[Module]:
    """`parse` of every item, in order and lazily; with more than one process they work ahead.

    Processes are started afresh, so a script that asks for several must have its `if __name__ == "__main__":`.
    """
    if processes <= 1 or len(items) < _WORTH_PROCESSES:
        yield from map(parse, items)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(parse, items, chunksize=32)
    finally:
        pool.shutdown(cancel_futures=True)


_WORTH_PROCESSES = 500


def _walk(name: str, folders: list[Path]) -> tuple[list[tuple[str, str]], int]:
    found, skipped = [], 0
    for root in folders:
        for folder, _, names in os.walk(root):
            inside = Path(folder).relative_to(root).parts
            for file in sorted(n for n in names if n.endswith(".py")):
                if SKIPPED_FOLDERS & set(inside) or _TEST_FILE.fullmatch(file):
                    skipped += 1
                    continue
                stem = () if file == "__init__.py" else (file[:-3],)
                found.append((".".join((name, *inside, *stem)), str(Path(folder) / file)))
    return sorted(found), skipped


def _version(name: str) -> str:
    if name in sys.stdlib_module_names:
        return "Python " + ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        owners = importlib.metadata.packages_distributions().get(name, ())
        return importlib.metadata.version(owners[0]) if owners else "unknown"


def _read(path: str) -> str:
    with tokenize.open(path) as file:  # minds the coding line
        return file.read()


def _is_generated(source: str) -> bool:
    opening = source.split("\n", _OPENING_LINES)[:_OPENING_LINES]
    return any(_GENERATED.match(line) for line in opening)
