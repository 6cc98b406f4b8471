"""Lab 15: a fleet. Its exercises and words that help.

What they are tested on lies in `_15_cases`, right answers in `_15_answers`, the mistakes that their checks know in
`_15_words`, as `_15_mistakes` makes them.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _15_answers as right
from labkit.course.labs import _15_cases as inputs
from labkit.course.labs import _15_oracles as theirs
from labkit.course.labs import _15_words as words
from labkit.course.labs._15_recap import QUESTIONS

CHOOSE_TWO = Exercise(
    id="15.choose_two",
    title="The better of two",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.choose_two,
    cases=inputs.choose_cases,
    hints=(
        "First the list of those that may be drawn. Then one of them, then another one, then a comparison.",
        "`able = [at for at, fine in enumerate(ready) if fine]`; `able.pop(int(u * len(able)))` draws the first and "
        "takes it away, so that v cannot draw it again. What if nobody is left for v?",
        "if not able: raise ValueError(…); one = able.pop(int(u * len(able))); if not able: return one; two = "
        "able[int(v * len(able))]; return two if load[two] < load[one] else one.",
    ),
    mistakes=words.CHOOSE,
)

OWNER = Exercise(
    id="15.owner",
    title="Back to the replica that has read it, if it has room",
    difficulty=2,
    minutes=25,
    points=3,
    reference=right.owner,
    cases=inputs.owner_cases,
    hints=(
        "Two questions: who has room? And of these, whose score for this prefix is the highest? Neither needs a table.",
        "most = ⌈room · (all requests + this one) / replicas⌉; whoever has fewer than that has room. The score of a "
        "replica is sha256(name + / + prefix), where `name.encode()` makes bytes of a name and the prefix is bytes "
        "already: `max` compares digests byte by byte.",
        "if not load or room < 1: raise ValueError(…); most = math.ceil(room * (sum(load.values()) + 1) / len(load)); "
        'return max((id for id in load if load[id] < most), key=lambda id: hashlib.sha256(id.encode() + b"/" + '
        "prefix).digest()).",
    ),
    mistakes=words.OWNER,
)

ETAG = Exercise(
    id="15.etag",
    title="What a store says of a file sent in parts",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.etag,
    cases=inputs.etag_cases,
    hints=(
        "Cut the bytes into parts, the last one shorter. The store knows an MD5 of each. What is digested last?",
        "It is the MD5 of the parts' MD5s, 16 bytes each (`.digest()`), one after the other; then a dash and how many "
        "parts there are. An empty file has one part.",
        'parts = [data[at : at + part] for at in range(0, len(data), part)] or [b""]; joined = b"".join(hashlib.md5(p)'
        '.digest() for p in parts); return f"{hashlib.md5(joined).hexdigest()}-{len(parts)}". Before: ValueError for a '
        "part below 1.",
    ),
    mistakes=words.ETAG,
    oracle=Oracle("an S3 store (moto)", theirs.etag, fits=theirs.etag_fits, needs="moto"),
)

SAFE_PATH = Exercise(
    id="15.safe_path",
    title="No path out of the folder",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.safe_path,
    cases=inputs.path_cases,
    hints=(
        "Do not mend, and do not compare what comes out: look at what came in, part by part. Which parts can no honest "
        "name have?",
        'The parts are `name.split("/")`. Empty ones, "." and ".." are refused, wherever they stand; an absolute name '
        "begins with an empty one. Backslash, colon and a zero byte are refused anywhere.",
        'if any(letter in name for letter in "\\\\:\\0") or any(part in ("", ".", "..") for part in name.split("/")): '
        'raise ValueError(…); return f"{folder}/{name}".',
    ),
    mistakes=words.PATHS,
    oracle=Oracle("werkzeug's safe_join", theirs.safe_path, fits=theirs.path_fits, needs="werkzeug"),
)

PAGES = Exercise(
    id="15.pages",
    title="An alert that wakes nobody for nothing",
    difficulty=3,
    minutes=25,
    points=4,
    reference=right.pages,
    cases=inputs.pages_cases,
    hints=(
        "Write one small function first: does a window that ends at this minute burn faster than `factor`? The rest "
        "is an `and` inside of an `any`.",
        "A window of w minutes that ends at m is `[max(0, m + 1 - w) : m + 1]`. Its ratio is the sum of `failed` "
        "by the sum of `asked`, and it burns if that is above factor · budget. No requests, no fire.",
        "def burns(m, w, f): total = sum(asked[max(0, m + 1 - w) : m + 1]); return total > 0 and sum(failed[max(0, m + "
        "1 - w) : m + 1]) / total > f * budget. return [any(burns(m, long, f) and burns(m, short, f) for long, short, "
        "f in rules) for m in range(len(asked))].",
    ),
    mistakes=words.PAGES,
    oracle=Oracle("numpy.convolve", theirs.pages),
)

LAB = Lab(
    number="15",
    name="fleet",
    title="A fleet: replicas that die, and requests that do not",
    minutes=150,
    hardware="any CPU; Ray for the fleet itself",
    claims=(15,),
    exercises=(CHOOSE_TWO, OWNER, ETAG, SAFE_PATH, PAGES),
    questions=QUESTIONS,
)
