"""Marking answers: the learner's code runs in a sandboxed kernel, the verdict is made outside it.

What enters the kernel: the lab's own setup cells, the learner's exercise cells, and inputs drawn from fresh secret
seeds. What never enters: the reference, its results, the judge. So there is nothing inside to overwrite or to read:
whatever the learner's code does to `check`, to this package's modules or to the printed outcomes, it still has to
come up with the right values. A cell that does not end, or ends the kernel, gets no marks; the kernel is started
again without it, and the others are marked. A later exercise that calls an earlier one calls the learner's own.

What remains possible: labkit's finished rooms (`kernels`, `nn`) can be imported inside, because setup cells need
them, and they hold the same functions as some exercises. Such answers pass, with a flag for the instructor, found by
reading the source; code that hides what it reads is not flagged. Answers copied from another learner are not seen.
"""

from __future__ import annotations

import ast
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.course.exercise import Exercise
from labkit.course.judge import Verdict
from labkit.course.probe import Unreadable, probe_code, read_outcomes
from labkit.course.sandbox import MAX_TEXT, Reply, Session

TIMEOUT = 60.0
NUM_SEEDS = 3
ENDED = {
    "timeout": ("endless", "Your code was still running after {timeout:g} seconds and was stopped. Look for a loop."),
    "dead": ("kernel_died", "Your code ended the Python process, or used more memory than there is."),
    "flood": ("prints_too_much", f"Your code printed more than {MAX_TEXT // 2**20} MiB and was stopped."),
}


class MarkingError(RuntimeError):
    """The course's own part of a notebook does not run in the sandbox; no learner is to blame."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A learner's cell for an exercise: its source, None if there is no such cell, and the stub it grew from."""

    exercise: Exercise
    source: str | None
    stub: str = ""


@dataclass(frozen=True, eq=False)
class Mark:
    """The verdict on one answer, and what an instructor may want to look at."""

    exercise: Exercise
    verdict: Verdict
    flags: tuple[str, ...] = ()


def mark_answers(
    setup: Sequence[str],
    answers: Sequence[Answer],
    open_session: Callable[[], Session] = Session,
    timeout: float = TIMEOUT,
    seeds: Sequence[int] | None = None,
) -> tuple[Mark, ...]:
    """Mark `answers`, in the order of the notebook.

    Args:
        setup: the sources of the lab's setup cells.
        answers: one for each exercise.
        open_session: starts a kernel; by default a sandboxed one.
        timeout: seconds that a cell, and the call of its function on all inputs, may take each.
        seeds: what the inputs are drawn from; by default fresh and secret.

    Raises ValueError for a timeout that is not positive, MarkingError if a setup cell fails, SandboxError if no kernel
    starts.
    """
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; give a number of seconds above 0")
    chosen = tuple(seeds) if seeds is not None else tuple(secrets.randbelow(2**31) for _ in range(NUM_SEEDS))
    desk = _Desk(setup, open_session, timeout, chosen)
    try:
        return tuple(Mark(answer.exercise, desk.verdict(answer), flags(answer, setup)) for answer in answers)
    finally:
        desk.close()


class _Desk:
    """A kernel that is started again, without the guilty cell, whenever an answer has broken it."""

    def __init__(
        self, setup: Sequence[str], open_session: Callable[[], Session], timeout: float, seeds: Sequence[int]
    ) -> None:
        self._setup, self._open, self._timeout, self._seeds = setup, open_session, timeout, seeds
        self._replay: list[str] = []
        self._session: Session | None = None

    def close(self) -> None:
        """Kill the kernel, if there is one."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def verdict(self, answer: Answer) -> Verdict:
        """Run an answer's cell, call its function, judge the outcomes."""
        exercise = answer.exercise
        if answer.source is None:
            return _failed("missing", f"The cell of exercise {exercise.id} is missing, or is no longer marked as its.")
        defined = self._run(f"globals().pop({exercise.name!r}, None);", answer.source)
        if defined.status == "error":
            return _failed("cell_raises", f"Your cell raised {defined.error_type}: {defined.error}")
        if defined.status != "ok":
            return self._broken(defined)
        cases, nonce = exercise.inputs(self._seeds), secrets.token_hex(16)
        probed = self._run(probe_code(exercise.name, cases, nonce))
        if probed.status in ENDED:
            return self._broken(probed)
        self._replay.append(answer.source)
        try:
            outcomes = read_outcomes(probed.text, nonce, len(cases))
        except Unreadable as error:
            return _failed("unreadable", f"Your function left no readable results: {probed.error or error}")
        if outcomes is None:
            return _failed("not_defined", f"The cell defines no {exercise.name}; keep the name that it came with.")
        try:
            return exercise.judge()(cases, outcomes)
        except RuntimeError:  # the reference itself failed
            raise
        except Exception as error:  # outcomes made to upset the judge
            return _failed("unreadable", f"Your function's results cannot be compared: {type(error).__name__}")

    def _broken(self, reply: Reply) -> Verdict:
        self.close()
        diagnosis, says = ENDED[reply.status]
        return _failed(diagnosis, says.format(timeout=self._timeout))

    def _run(self, *cells: str) -> Reply:
        if self._session is None:
            self._session = self._restart()
        for cell in cells:
            reply = self._session.run(cell, self._timeout)
            if reply.status != "ok":
                break
        return reply

    def _restart(self) -> Session:
        session = self._open()
        try:
            for source in self._setup:
                reply = session.run(source, max(self._timeout, 120))
                if reply.status != "ok":
                    raise MarkingError(
                        f"a setup cell of this lab ends with {reply.status!r} in the sandbox: "
                        f"{reply.error_type} {reply.error}".rstrip()
                    )
            for source in self._replay:
                if session.run(source, self._timeout).status in ENDED:  # it went well the first time, and not now
                    self._replay.remove(source)
                    session.close()
                    return self._restart()
        except BaseException:
            session.close()
            raise
        return session


def flags(answer: Answer, setup: Sequence[str]) -> tuple[str, ...]:
    """What an instructor may want to look at: where an answer reaches for labkit's own implementations.

    >>> from labkit.course.labs import find
    >>> flags(Answer(find("01.top_k"), "from labkit.kernels import reference as r\\ntop_k = r.top_k"), [])
    ('uses labkit (labkit.kernels)',)
    """
    names = _labkit_names(setup)
    used = _labkit_use(answer.source or "", names) - _labkit_use(answer.stub, names)
    return (f"uses labkit ({', '.join(sorted(used))})",) if used else ()


def _labkit_names(setup: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for node in (node for source in setup for node in _walk(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and _modules(node):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return names


def _labkit_use(source: str, names: set[str]) -> set[str]:
    used: set[str] = set()
    for node in _walk(source):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            used |= _modules(node)
        elif isinstance(node, ast.Name) and (node.id in names or node.id == "labkit"):
            used.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("labkit."):
            used.add(node.value)
    return used


def _modules(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return {name for name in names if name.split(".")[0] == "labkit"}


def _walk(source: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _failed(diagnosis: str, says: str) -> Verdict:
    return Verdict("failed", 0, diagnosis, says)
