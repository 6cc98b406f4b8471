"""Where the corpus comes from: the interpreter's own library, and generators of right sums and made-up records.

Sources are read through the import system's loaders, so a library inside a zip file works too. Only modules that are
the same on every platform are named, and only those that Python 3.11 to 3.14 all have.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
from collections.abc import Iterator

# Written out, so that neither a folder's order nor an extra file changes the corpus.
MODULES = """
    argparse ast asyncio.base_events asyncio.futures asyncio.locks asyncio.queues asyncio.streams asyncio.tasks
    bdb calendar cmd code codeop colorsys compileall concurrent.futures._base configparser contextlib copy csv
    dataclasses difflib dis doctest email.header email.message email.utils filecmp fileinput fnmatch fractions
    ftplib functools getopt gettext graphlib gzip hashlib heapq hmac html.parser http.client http.cookiejar
    http.cookies http.server imaplib inspect ipaddress json.decoder json.encoder keyword linecache logging
    logging.config logging.handlers mailbox mimetypes modulefinder multiprocessing.managers multiprocessing.pool
    netrc numbers optparse pdb pickle pickletools pkgutil plistlib poplib pprint profile pstats pyclbr queue
    quopri random reprlib rlcompleter sched secrets selectors shelve shlex smtplib socketserver statistics string
    stringprep symtable tabnanny tarfile textwrap threading timeit token tokenize trace traceback turtle types
    typing unittest.case unittest.loader unittest.mock unittest.runner urllib.parse urllib.request
    urllib.robotparser wave weakref wsgiref.handlers xml.dom.minidom xml.etree.ElementTree xml.sax.saxutils
    xmlrpc.client zipapp zipfile
"""


def read(domain: str, rng: random.Random, notes: list[str]) -> Iterator[str]:
    """Documents of one domain, lazily; `arithmetic` and `records` never end. What is missing is added to `notes`.

    Raises ValueError for a domain that has no source.
    """
    makers = {"code": _code, "english": _english, "arithmetic": _arithmetic, "records": _records}
    if domain not in makers:
        raise ValueError(f"domain is {domain!r}; choose one of {', '.join(makers)}")
    return makers[domain](rng, notes)


def module_source(name: str) -> str | None:
    """A library module's source text, or None where this interpreter has none (frozen, stripped or missing).

    >>> module_source("json.decoder").splitlines()[0]
    '\"\"\"Implementation of JSONDecoder'
    >>> module_source("no_such_module") is None
    True
    """
    try:
        spec = importlib.util.find_spec(name)
        return spec.loader.get_source(name) if spec and spec.loader else None
    except (ImportError, AttributeError, OSError, SyntaxError, UnicodeDecodeError):
        return None


def split_docstrings(source: str) -> tuple[str, list[str]]:
    """A module's lines without its docstrings, and the docstrings, their indentation taken off.

    >>> split_docstrings('def f():\\n    "Say what f does."\\n    return 1\\n')
    ('def f():\\n    return 1\\n', ['Say what f does.'])
    """
    found, drop = [], set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        first = node.body[0]
        found.append((first.lineno, text))
        if isinstance(node, ast.Module) or len(node.body) > 1:
            drop.update(range(first.lineno, first.end_lineno + 1))
    lines = source.splitlines(keepends=True)
    kept = "".join(line for number, line in enumerate(lines, start=1) if number not in drop)
    return kept, [text for _, text in sorted(found)]


def _modules(rng: random.Random, notes: list[str]) -> Iterator[str]:
    names = MODULES.split()
    rng.shuffle(names)
    for name in names:
        source = module_source(name)
        if source is None:
            notes.append(f"no source of {name} in this interpreter; left out")
        else:
            yield source


def _code(rng: random.Random, notes: list[str]) -> Iterator[str]:
    for source in _modules(rng, notes):
        yield split_docstrings(source)[0].lstrip("\n")


def _english(rng: random.Random, notes: list[str]) -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        notes.append("no pydoc_data.topics in this interpreter; english is made of docstrings alone")
        topics = {}
    names = sorted(topics)
    rng.shuffle(names)
    for name in names:
        yield topics[name].strip() + "\n\n"
    for source in _modules(rng, notes):
        prose = [text for text in split_docstrings(source)[1] if ">>>" not in text and len(text) > 80]
        yield "".join(text + "\n\n" for text in prose)


def _arithmetic(rng: random.Random, notes: list[str]) -> Iterator[str]:
    seen = set()
    while True:
        lines = []
        while len(lines) < 100:
            line = rng.choice((_sum, _steps, _product))(rng)
            if line not in seen:
                seen.add(line)
                lines.append(line)
        yield "".join(lines)


def _sum(rng: random.Random) -> str:
    a, b = rng.randrange(100_000), rng.randrange(100_000)
    return f"{a} + {b} = {a + b}\n" if rng.random() < 0.5 else f"{a} - {b} = {a - b}\n"


def _product(rng: random.Random) -> str:
    a, b = rng.randrange(2, 1000), rng.randrange(2, 1000)
    return f"{a} * {b} = {a * b}; {a * b} / {b} = {a}\n"


def _steps(rng: random.Random) -> str:
    a, b, c = (rng.randrange(2, 100) for _ in range(3))
    return f"({a} + {b}) * {c} = {a + b} * {c} = {(a + b) * c}\n"


_CITIES = ("Oslo", "Quito", "Accra", "Hanoi", "Turin", "Perth", "Leeds", "Osaka")
_STATES = ("open", "paid", "late", "void")


def _records(rng: random.Random, notes: list[str]) -> Iterator[str]:
    number = rng.randrange(10_000, 20_000)
    while True:
        rows = []
        for _ in range(50):
            number += rng.randrange(1, 9)
            rows.append(
                {
                    "id": number, "city": rng.choice(_CITIES), "amount": rng.randrange(100, 1_000_000) / 100,
                    "state": rng.choice(_STATES), "date": f"20{rng.randrange(10, 26)}-{rng.randrange(1, 13):02}",
                }
            )  # fmt: skip
        yield _as_csv(rows) if rng.random() < 0.5 else "".join(json.dumps(row) + "\n" for row in rows)


def _as_csv(rows: list[dict]) -> str:
    head = ",".join(rows[0]) + "\n"
    return head + "".join(",".join(str(value) for value in row.values()) + "\n" for row in rows)
