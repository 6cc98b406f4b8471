"""What a learner has done, kept in one JSON file: `LABKIT_HOME`, or `.labkit` in the home folder.

A folder that cannot be written never stops a lab: progress then lives as long as the kernel, and one warning says so.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

Book = dict[str, dict[str, Any]]


def home() -> Path:
    """The folder that holds the learner's progress."""
    return Path(os.environ.get("LABKIT_HOME") or Path.home() / ".labkit")


def read() -> Book:
    """Everything recorded so far: {"exercises": {id: …}, "predictions": {id: …}, "recaps": {lab: …}}.

    A damaged file is set aside under another name, never overwritten, and a warning names it.
    """
    path = home() / "progress.json"
    empty: Book = {"exercises": {}, "predictions": {}, "recaps": {}}
    try:
        book = json.loads(path.read_text("utf-8"))
        if not (isinstance(book, dict) and all(isinstance(part, dict) for part in book.values())):
            raise ValueError("not a table of tables")
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValueError) as error:
        aside = path.with_suffix(".damaged.json")
        try:
            path.replace(aside)
            warnings.warn(f"{path} could not be read ({error}); it is kept as {aside.name}", stacklevel=2)
        except OSError:
            warnings.warn(f"{path} could not be read ({error})", stacklevel=2)
        return empty
    return {**empty, **book}


def write(book: Book) -> bool:
    """Replace the file in one step; False, with a warning, where that is not possible."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=home(), prefix=".progress-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(book, file, indent=1, sort_keys=True)
            os.replace(name, home() / "progress.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(
            f"progress is not saved: {home()}: {error.strerror}. Set LABKIT_HOME to a folder you can write",
            stacklevel=2,
        )
        return False
    return True


def update(section: str, key: str, **values: Any) -> dict[str, Any]:
    """Merge `values` into one entry, save, and return the entry."""
    book = read()
    entry = {**book.setdefault(section, {}).get(key, {}), **values}
    book[section][key] = entry
    write(book)
    return entry


def forget(section: str, key: str) -> None:
    """Remove one entry, if it is there."""
    book = read()
    if book.setdefault(section, {}).pop(key, None) is not None:
        write(book)


def record(exercise_id: str, status: str, diagnosis: str = "") -> None:
    """Keep a verdict. A passed exercise stays passed; attempts that failed are counted, by diagnosis."""
    entry = read()["exercises"].get(exercise_id, {})
    seen = dict(entry.get("diagnoses", {}))
    if diagnosis:
        seen[diagnosis] = seen.get(diagnosis, 0) + 1
    best = "passed" if "passed" in (status, entry.get("status")) else status
    update("exercises", exercise_id, status=best, diagnoses=seen)


def hints_taken(exercise_id: str) -> int:
    """How many hints the learner has seen, 0 to 3."""
    return int(read()["exercises"].get(exercise_id, {}).get("hints", 0))


def record_hint(exercise_id: str, count: int) -> None:
    """Keep how many hints were shown."""
    update("exercises", exercise_id, hints=count)


def record_reveal(exercise_id: str) -> None:
    """Keep that the answer was shown."""
    update("exercises", exercise_id, revealed=True)
