"""The corpus of documents: nothing held out is trained on, and the same is held out everywhere."""

import re
import sys

import pytest

from labkit.train import documents, packages, sources
from labkit.train.documents import collect, held_out

ALL = 10**9
TEXT = {"code": ALL, "english": ALL}


@pytest.fixture(scope="module")
def whole():
    """All that the library and the topics hold."""
    return collect(("code", "english"), TEXT)


@pytest.fixture(scope="module")
def small():
    return collect(train_bytes=60_000)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes an importable package; every file is given as text or bytes."""

    def write(name, files):
        for path, text in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.syspath_prepend(str(tmp_path))

    monkeypatch.setattr(sources, "MODULES", "heapq logging")
    return write


def long_function(number, lines=12):
    body = "".join(f"    total_{number} = value * {number} + {i}\n" for i in range(lines))
    return f"def function_{number}(value):\n{body}    return total_{number}\n"


def split_names(prefix, count):
    """Module names of which the first list is trained on and the second held out."""
    names = [f"m{i}" for i in range(200)]
    kept = [n for n in names if not held_out(f"{prefix}.{n}")][:count]
    return kept, [n for n in names if held_out(f"{prefix}.{n}")][:count]


def test_what_is_held_out_is_known_by_name():
    held = [name for name in sources.MODULES.split() if held_out(name)]
    assert held == ["cmd", "dis", "imaplib", "logging", "modulefinder", "queue", "xml.etree.ElementTree"]
    share = sum(held_out(f"some.module_{i}") for i in range(20_000)) / 20_000
    assert share == pytest.approx(documents.HELD_OUT_SHARE, abs=0.01)


def test_the_same_call_gives_the_same_bytes_and_another_seed_another_order(small, whole):
    assert collect(train_bytes=60_000).digest == small.digest
    assert re.fullmatch("[0-9a-f]{64}", small.digest)
    other = collect(("code", "english"), TEXT, seed=1)
    assert other.digest != whole.digest
    for domain in other.domains:
        assert set(other.train[domain]) == set(whole.train[domain])
        assert set(other.validation[domain]) == set(whole.validation[domain])


def test_no_long_block_of_a_held_out_document_is_in_training(whole):
    for domain in whole.domains:
        trained = "".join(whole.train[domain])
        blocks = [b.strip() for text in whole.validation[domain] for b in re.split(r"\n[ \t]*\n", text)]
        long = [block for block in blocks if len(block) >= documents.BLOCK_CHARACTERS]
        assert len(long) > 20
        assert [block for block in long if block in trained] == []


def test_generated_lines_are_in_one_split_only(small):
    trained, held = (set("".join(s["records"]).splitlines()) for s in (small.train, small.validation))
    assert trained & held <= {"id,city,amount,state,date"}
    trained, held = (set("".join(s["arithmetic"]).splitlines(True)) for s in (small.train, small.validation))
    assert not any(map(held_out, trained))
    assert all(map(held_out, held))


def test_records_seen_in_training_are_left_out(monkeypatch):
    made = iter([["1,a\n2,b\n"], ["2,b\n3,c\n"]])  # for training, for validation
    monkeypatch.setattr(sources, "read", lambda domain, rng, notes: next(made))
    corpus = collect(("records",), 8, 8)
    assert (corpus.train["records"], corpus.validation["records"]) == (("1,a\n2,b\n",), ("3,c\n",))


def test_sums_are_right_and_distinct(small):
    lines = "".join((*small.train["arithmetic"], *small.validation["arithmetic"])).splitlines()
    assert len(set(lines)) == len(lines) > 2000
    for line in lines:
        for part in line.split("; "):
            sides = [eval(side) for side in part.split(" = ")]
            assert all(side == sides[0] for side in sides)


def test_limits_hold_and_documents_end_with_a_line(small):
    for domain in small.domains:
        for texts, size, limit in zip(
            (small.train[domain], small.validation[domain]), small.sizes[domain], (60_000, 6_000), strict=True
        ):
            assert size == sum(len(text.encode()) for text in texts)
            assert 0.9 * limit < size <= limit
            assert all(text.endswith("\n") for text in texts)
    mixed = collect(("records", "code"), {"code": 30_000, "records": 9_000}, 4_000)
    assert mixed.domains == ("records", "code")
    assert mixed.sizes["code"][0] > 25_000 > 9_000 >= mixed.sizes["records"][0]
    assert max(size for _, size in mixed.sizes.values()) <= 4_000


def test_what_ends_early_is_told_and_the_origins_are_listed(whole):
    assert any("code: the sources hold" in note for note in whole.notes)
    rows = {origin.name: origin for origin in whole.origins}
    assert rows["standard library"].read + rows["standard library"].held_out == len(sources.MODULES.split())
    assert rows["standard library"].held_out == 7
    text = whole.describe()
    assert whole.digest[:16] in text
    assert all(word in text for word in ("reference topics", "standard library", "code", "held out"))


def test_the_digest_sees_every_document_and_where_it_ends(small):
    first, second, *rest = small.train["code"]
    merged = documents.Documents({**small.train, "code": (first + second, *rest)}, small.validation)
    moved = documents.Documents(small.validation, small.train)
    assert len({small.digest, merged.digest, moved.digest}) == 3


def test_a_package_is_read_without_being_imported_and_every_rule_holds(package):
    (a, b, c), (held, *_) = split_names("toypack", 3)
    package(
        "toypack",
        {
            "__init__.py": "raise SystemExit('imported')\n",
            f"{a}.py": '"""' + "A long story about what this module does. " * 4 + '"""\n' + long_function(1),
            f"{b}.py": long_function(2) + "def broken(:\n",
            f"{c}.py": b"# \xff\xfe\n",
            f"{held}.py": long_function(3),
            "copy.py": long_function(1),
            "zz.py": "# This file was automatically generated by a tool.\n" + long_function(4),
            "tests/deep/inner.py": long_function(5),
            "_vendor/other.py": long_function(6),
            "test_it.py": long_function(7),
            "notes.txt": "no python",
        },
    )
    corpus = collect(("code", "english"), TEXT, packages=("toypack",))
    code, prose = "".join(corpus.train["code"]), "".join(corpus.train["english"])
    assert code.count("def function_1(") == 1  # the copy is the same code
    assert "long story" in prose
    assert "long story" not in code
    assert "function_3" in "".join(corpus.validation["code"])
    assert not re.search("function_[234567]", code)
    row = next(origin for origin in corpus.origins if origin.name == "toypack")
    assert (row.held_out, row.skipped, row.unread) == (1, 4, 2)
    assert sum("toypack." in note and "left out" in note for note in corpus.notes) == 2
    assert "toypack" not in sys.modules


def test_blocks_copied_into_training_leave_the_held_out_document(package):
    (trained, *_), (held, copied, *_) = split_names("leakpack", 3)
    shared, own = long_function(1), long_function(2, lines=40)
    package(
        "leakpack",
        {
            "__init__.py": "",
            f"{trained}.py": shared + "\n\n" + long_function(3),
            f"{held}.py": shared + "\n\n" + own,
            f"{copied}.py": long_function(4, 4) + "\n\n" + long_function(3),
        },
    )
    corpus = collect(("code",), ALL, packages=("leakpack",))
    texts = [text for text in corpus.validation["code"] if "function_" in text and "total_" in text]
    assert texts == [own]  # `copied` is mostly a copy, so nothing of it stays


def test_giants_are_cut(package):
    (name, *_), _ = split_names("giantpack", 1)
    table = "".join(f"x{i} = {i}\n" for i in range(40_000))
    package("giantpack", {"__init__.py": "", f"{name}.py": table})
    corpus = collect(("code",), ALL, packages=("giantpack",))
    cut = next(text for text in corpus.train["code"] if text.startswith("x0 = 0\n"))
    assert documents.DOCUMENT_BYTES - 20 < len(cut.encode()) <= documents.DOCUMENT_BYTES < len(table)


def test_processes_change_nothing():
    items = [(name, "") for name in ("keyword", "no_such_module", "colorsys")] * 170
    alone, several = list(packages.parse_all(items)), list(packages.parse_all(items, processes=2))
    assert several == alone
    assert "kwlist = [" in alone[0].code
    assert alone[1].problem == "no source in this interpreter"


def test_a_module_that_is_a_file_and_a_library_package_can_be_found():
    assert packages.find("textwrap").files[0][0] == "textwrap"
    json = packages.find("json")
    assert [name for name, _ in json.files] == sorted(name for name, _ in json.files)
    assert json.version.startswith("Python 3.")
    assert packages.find("torch").version.startswith("2.")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: collect("code"), "distinct names"),
        (lambda: collect(("poems",)), "distinct names"),
        (lambda: collect(()), "distinct names"),
        (lambda: collect(train_bytes=0), "1 or more"),
        (lambda: collect(train_bytes={"code": 5}), "one for each"),
        (lambda: collect(train_bytes=1.5), "whole number"),
        (lambda: collect(validation_bytes=-1), "validation_bytes is -1"),
        (lambda: collect(("code",), 3), "no train document within 3 bytes"),
        (lambda: collect(packages="torch"), "import names"),
        (lambda: collect(packages=("no_such_package",)), "not installed"),
        (lambda: collect(packages=("torch.nn",)), "not installed"),
        (lambda: collect(("records",), packages=("json",)), "neither code nor english"),
        (lambda: packages.find("math"), "no .py file"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
