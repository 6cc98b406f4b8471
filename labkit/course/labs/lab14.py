"""Lab 14: an engine behind a server. Its exercises and words that help.

What they are tested on lies in `_14_cases`, right answers in `_14_answers`, the mistakes that their checks know in
`_14_stream_words` and `_14_words`, as `_14_stream_mistakes`, `_14_relay_mistakes` and `_14_mistakes` make them; more
in `_14_more_mistakes`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _14_answers as right
from labkit.course.labs import _14_cases as inputs
from labkit.course.labs import _14_more_mistakes as more
from labkit.course.labs import _14_oracles as theirs
from labkit.course.labs import _14_stream_words as streams
from labkit.course.labs import _14_words as words
from labkit.course.labs._14_recap import QUESTIONS

EVENTS = Exercise(
    id="14.events",
    title="Events from bytes that are cut anywhere",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.events,
    cases=inputs.events_cases,
    hints=(
        "Keep two things between chunks: the bytes of a line that is not whole yet, and the data of an event that is "
        "not whole yet. When is a line whole? When an event?",
        '`*lines, held = (held + chunk).split(b"\\n")` gives the whole lines and keeps the rest. For each line: take a '
        '`\\r` off its end, `partition(b":")` it, and if its name is `data`, remember the value without *one* leading '
        "space, decoded. An empty line, with data remembered, ends an event.",
        'held, data = b"", []; for chunk in chunks: *lines, held = (held + chunk).split(b"\\n"); for line in lines: '
        'line = line.removesuffix(b"\\r"); name, _, value = line.partition(b":"); if name == b"data": data.append('
        'value.removeprefix(b" ").decode()); elif not line and data: text, data = "\\n".join(data), []; return if '
        "text is [DONE], else yield text.",
    ),
    mistakes=(*streams.EVENTS, *more.EVENTS),
    oracle=Oracle("the openai client's decoder", theirs.events, fits=theirs.events_fit, needs="openai"),
)

UNTIL_STOP = Exercise(
    id="14.until_stop",
    title="Text that may turn out to be a stop",
    difficulty=3,
    minutes=25,
    points=4,
    reference=right.until_stop,
    cases=inputs.stop_cases,
    hints=(
        "After each piece, ask two things of the text that is held: is a stop in it? If not: which end of it could "
        "still become one? Everything in front of that end may go.",
        "Go letter by letter, and a stop is complete when the text *ends* with it: then the first to be complete is "
        "found by itself. What has to stay is the longest `stop[:n]`, over all stops and n below its length, that the "
        "text ends with.",
        'held = ""; for piece in pieces: for letter in piece: held += letter; ended = [s for s in stops if held.'
        "endswith(s)]; if ended: yield held[: len(held) - max(map(len, ended))]; return. After the letters: "
        "keep = max(("
        "n for s in stops for n in range(len(s)) if held.endswith(s[:n])), default=0); yield held[: len(held) - keep]; "
        "held = held[len(held) - keep :]. After all pieces: yield held.",
    ),
    mistakes=(*more.STOPS, *streams.STOPS),
    oracle=Oracle("partial matches of `regex`", theirs.until_stop, fits=theirs.stop_fits, needs="regex"),
)

RELAY = Exercise(
    id="14.relay",
    title="Whatever ends it, nothing stays held",
    difficulty=2,
    minutes=25,
    points=4,
    reference=right.relay,
    cases=inputs.relay_cases,
    hints=(
        "An answer can end in four ways: it is complete, the engine fails, the generator is closed at its `yield`, or "
        "its task is cancelled at an `await`. Which part of a `try` sees all four?",
        "`submit` stands in front of the `try`, so that a refusal gets out as it is. Inside: `async for piece in "
        "answer: yield …`, then [DONE]. `except RuntimeError` sends the error; `finally: answer.cancel()`.",
        "answer = engine.submit(prompt); try: async for piece in answer: yield f\"data: {json.dumps({'text': piece})}"
        '\\n\\n"; yield "data: [DONE]\\n\\n"; except RuntimeError as error: yield f"data: {json.dumps({\'error\': {'
        "'message': str(error), 'type': 'server_error'}})}\\n\\n\"; finally: answer.cancel().",
    ),
    mistakes=(*streams.RELAY, *more.RELAY),
)

ADMIT = Exercise(
    id="14.admit",
    title="A bucket of tokens, and when to come again",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.admit,
    cases=inputs.admit_cases,
    hints=(
        "First what can never be; then what has flowed in meanwhile, at most what fits; then the question itself.",
        "cost > burst: ValueError. level = min(burst, level + rate · elapsed). If the cost is there, take it, "
        "and 0. If "
        "not, take nothing; (cost − level) tokens are missing, which take how many seconds?",
        "if cost > burst: raise ValueError(…); level = min(burst, level + rate * elapsed); if cost <= level: return "
        "level - cost, 0; return level, math.ceil((cost - level) / rate).",
    ),
    mistakes=(*words.ADMIT, *more.ADMIT),
)

DRAW = Exercise(
    id="14.draw",
    title="The same token in any company",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.draw,
    cases=inputs.draw_cases,
    hints=(
        "A row knows its own logits, temperature and key, and nobody else's. Write it for one row, and loop.",
        "uniform = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, k, i])).random(V). The token is the "
        "largest of logits / T − log(−log u). At T = 0 there is no noise and no division. NaN anywhere in the row: −1.",
        "for n, (seed, k, i) in enumerate(keys_N3.tolist()): score = logits_NV[n].double(); if "
        "temperature_N[n] > 0: u = "
        "torch.from_numpy(…random(len(score))); score = score / temperature_N[n] - (-u.log()).log(); ids[n] = -1 if "
        "score.isnan().any() else score.argmax().",
    ),
    mistakes=(*more.DRAW, *words.DRAW),
    oracle=Oracle("the inverse of torch's Gumbel distribution", theirs.draw),
)

QUANTILE = Exercise(
    id="14.quantile",
    title="A quantile from buckets, and its error",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.quantile,
    cases=inputs.quantile_cases,
    hints=(
        "In order of size, the observation that you look for is number q · total. In which bucket does it lie, and how "
        "far into it?",
        "The bucket is the first whose cumulative count is rank or more. Below it lie `counts[at - 1]`, or nobody. "
        "Inside it go (rank − below) / (counts[at] − below) of the way from its lower edge to its upper one.",
        "rank = q * counts[-1]; at = next(i for i, c in enumerate(counts) if c >= rank); lower, below = "
        "(edges[at - 1], "
        "counts[at - 1]) if at else (0.0, 0); if edges[at] is infinite: return lower, lower, inf; return lower "
        "+ (rank - "
        "below) / (counts[at] - below) * (edges[at] - lower), lower, edges[at]. Before: ValueError for a q outside, "
        "three NaN for no observations.",
    ),
    mistakes=(*words.QUANTILE, *more.QUANTILE),
    oracle=Oracle("numpy.interp", theirs.quantile, fits=theirs.quantile_fits),
)

LAB = Lab(
    number="14",
    name="serving",
    title="Serving: a server that no request can break",
    minutes=150,
    hardware="any CPU; a GPU for the load that a server really carries",
    claims=(),
    exercises=(EVENTS, UNTIL_STOP, RELAY, ADMIT, DRAW, QUANTILE),
    questions=QUESTIONS,
)
