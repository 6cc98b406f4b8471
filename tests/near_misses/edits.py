"""Wrong answers made from a right one, by writing something else in a place or two."""

import inspect
import linecache


def wrong(answer, mistakes):
    """Near misses of a right answer: for each mistake, what is written where something else belongs."""
    return [(edited(answer, mistake, edits), mistake) for mistake, edits in mistakes.items()]


def edited(answer, mistake, edits):
    """The answer with other words in it, in its own module's scope; a kernel stays a kernel, with a source to read."""
    function = getattr(answer, "fn", answer)
    source, scope = inspect.getsource(function), dict(function.__globals__)
    for old, new in edits.items():
        assert old in source, f"{mistake}: there is no {old!r}"
        source = source.replace(old, new)
    file = f"<{function.__name__}: {mistake}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), scope)
    return scope[function.__name__]
