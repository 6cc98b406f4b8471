"""Lab 12: batching, from padding to a paged cache. Its exercises and words that help.

What they are tested on lies in `_12_cases`, right answers in `_12_answers`, the mistakes that their checks know in
`_12_words`, `_12_book_words` and `_12_more_words`, as `_12_mistakes`, `_12_book_mistakes` and `_12_more_mistakes` make
them.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _12_answers as right
from labkit.course.labs import _12_cases as inputs
from labkit.course.labs import _12_more_words as more
from labkit.course.labs import _12_oracles as theirs
from labkit.course.labs import _12_words as words
from labkit.course.labs._12_recap import QUESTIONS

LEFT_PAD = Exercise(
    id="12.left_pad",
    title="Pad on the left, and say what is real",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.left_pad,
    cases=inputs.pad_cases,
    hints=(
        "Everything follows from the lengths: how much padding stands before each prompt, and where its tokens begin.",
        "Two lists of lists, ids and mask, each with (longest − length) entries in front. Positions count the mask "
        "along a row, from 0; at padding that would be −1, so clamp.",
        "longest = max(map(len, prompts)); ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts]);"
        " the mask likewise with 0 and 1; positions = (mask.cumsum(1) - 1).clamp(min=0). Before: ValueError if not "
        "prompts or not all(prompts).",
    ),
    mistakes=more.LEFT_PAD,
    oracle=Oracle("transformers' tokenizer and the positions of its generate", theirs.left_pad, theirs.no_refusal),
)

BUCKET = Exercise(
    id="12.bucket",
    title="Batches of prompts that are alike",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.bucket,
    cases=inputs.bucket_cases,
    hints=(
        "Go through the requests from the shortest to the longest. Of a batch, which row has the most padding? And "
        "how wide does the batch become with the next request?",
        "sorted(range(len(lengths)), key=lambda i: lengths[i]) gives the order. A request joins the last batch if that "
        "has fewer than `size`, and 100 · (its length − the first one's length) ≤ percent · its length.",
        "for i in order: if batches and len(batches[-1]) < size and 100 * (lengths[i] - lengths[batches[-1][0]]) <= "
        "percent * lengths[i]: batches[-1].append(i); else: batches.append([i]).",
    ),
    mistakes=more.BUCKET,
)

NEXT_STEP = Exercise(
    id="12.next_step",
    title="One step of continuous batching",
    difficulty=3,
    minutes=35,
    points=4,
    reference=right.next_step,
    cases=inputs.step_cases,
    hints=(
        "Three passes: over those that run (who decodes gets its token, others are noted), over the prompts that were "
        "noted, over those that wait. Write the first with `while`, since the list may grow shorter at its end.",
        "A decoding sequence needs a block if computed == blocks · size. While none is free: pop the last of running, "
        "add its blocks to free, note its id; if that was the sequence itself, the pass is over. Then budget −= "
        "len(chunks), and the other passes give min(budget, what is left).",
        "For those that wait: blocks = -(-tokens // size); break if something was preempted, the budget is 0, or "
        "blocks > free; else append (id, min(budget, tokens)), free -= blocks, budget -= the chunk. In the first pass: "
        "while needs and not free and at < len(running): last = running.pop(); …; if at == len(running): break.",
    ),
    mistakes=more.NEXT_STEP,
)

PLACE = Exercise(
    id="12.place",
    title="Where a token goes: blocks, holders, copy on write",
    difficulty=2,
    minutes=20,
    points=3,
    reference=right.place,
    cases=inputs.place_cases,
    hints=(
        "divmod(position, size) gives the place in the table and the offset. When is a block missing, and when may the "
        "one that is there not be written into?",
        "Missing: the place is len(table). Not writable: holders of table[place] > 1. In both cases take the lowest "
        "block with 0 holders (ValueError if there is none) and set its holders to 1; for a copy, the old block loses "
        "one holder and the table gets the new one.",
        "table, holders, copy = list(table), list(holders), None; … block = holders.index(0); holders[block] = 1; if "
        "at == len(table): table.append(block), else: copy = (table[at], block); holders[table[at]] -= 1; table[at] = "
        "block. Return table[at] * size + offset, table, holders, copy.",
    ),
    mistakes=more.PLACE,
)

PAGED_ATTENTION = Exercise(
    id="12.paged_attention",
    title="Attention through a block table",
    difficulty=2,
    minutes=25,
    points=3,
    reference=right.paged_attention,
    cases=inputs.attention_cases,
    hints=(
        "Flatten the pool's first two dimensions: then a row is block · size + offset. Gather the rows of every "
        "position that a table has, and see to those past the length afterwards.",
        "position = torch.arange(M * size); rows = tables[:, position // size] * size + position % size; seen = "
        "position < lengths[:, None]. Set what is not seen to 0 in keys and values, to −∞ in the logits. Key heads "
        "are shared by neighbours: repeat_interleave(H // G, dim=2).",
        "key, value = (pool.flatten(0, 1)[rows].masked_fill(~seen[..., None, None], 0.0).repeat_interleave(H // G, 2) "
        'for pool in …); logits = scale * torch.einsum("nhd,nphd->nhp", query, key).masked_fill(~seen[:, None], '
        '-inf); return torch.einsum("nhp,nphd->nhd", logits.softmax(-1), value).',
    ),
    mistakes=words.PAGED_ATTENTION,
    oracle=Oracle("torch's scaled_dot_product_attention, sequence by sequence", theirs.paged_attention),
)

LATENCIES = Exercise(
    id="12.latencies",
    title="What a user waits for",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.latencies,
    cases=inputs.latency_cases,
    hints=(
        "Go through the tokens in order and remember when each request had its last one. What is it if there was none?",
        "Two lists: second − arrived[id] for a request's first token, second − last[id] for every other. The "
        "percentile is the value of rank ⌈percent · count / 100⌉ in the sorted list, counted from 1.",
        "rank = -(-percent * len(values) // 100); sorted(values)[rank - 1] if values else None, for both lists.",
    ),
    mistakes=more.LATENCIES,
    oracle=Oracle("numpy's percentile, method inverted_cdf", theirs.latencies, theirs.whole_in_floats),
)

LAB = Lab(
    number="12",
    name="batching",
    title="Batching: from padding to continuous batches",
    minutes=130,
    hardware="any CPU shows the mechanics; a GPU says what they are worth",
    claims=(7,),
    exercises=(LEFT_PAD, BUCKET, NEXT_STEP, PLACE, PAGED_ATTENTION, LATENCIES),
    questions=QUESTIONS,
)
