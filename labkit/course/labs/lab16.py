"""Lab 16: experts on many GPUs. Its exercises and words that help.

What they are tested on lies in `_16_cases`, right answers in `_16_answers`, the mistakes that their checks know in
`_16_words`, as `_16_mistakes` and `_16_more_mistakes` make them. Ranks in one process: `labkit.course.ranks`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _16_answers as right
from labkit.course.labs import _16_cases as inputs
from labkit.course.labs import _16_oracles as theirs
from labkit.course.labs import _16_words as words
from labkit.course.labs._16_recap import QUESTIONS

SPLITS = Exercise(
    id="16.splits",
    title="Who sends how much to whom",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.splits,
    cases=inputs.split_cases,
    hints=(
        "owner_E[ids] turns experts into the ranks that they live on. Then it is a matter of counting, rank by rank.",
        "Counts: owner_E[ids_TK.flatten()].bincount(minlength=num_ranks). What is received is the transpose. For the "
        "visits, ask of each token and rank whether *any* of its K choices goes there.",
        "send = torch.stack([… for ids_TK in ids_RTK]); visits of a rank: (owner_E[ids_TK][..., None] == "
        "torch.arange(num_ranks)).any(dim=1).sum(dim=0). Return send, send.T.contiguous(), visits.",
    ),
    mistakes=words.SPLITS,
    oracle=Oracle("numpy's histogram2d", theirs.splits),
)

DISPATCH = Exercise(
    id="16.dispatch",
    title="There and back: a sparse layer over ranks",
    difficulty=3,
    minutes=35,
    points=4,
    reference=right.dispatch,
    cases=inputs.dispatch_cases,
    hints=(
        "Five steps: sort the choices by the rank of their expert; tell everybody how many rows come; send rows and "
        "ids; let the experts compute and send back; undo the sort and sum up.",
        "flat = ids_TK.flatten(); order = owner_E[flat].argsort(stable=True); choice n belongs to token n // K. The "
        "counts travel as one number to each rank: exchange(send, [1] * num_ranks, [1] * num_ranks). Back: the two "
        "counts change places.",
        "rows = exchange(x_TD[order // K], send, receive); ids = exchange(flat[order], send, receive); back = "
        "exchange(experts(rows, ids), receive, send); y = back[order.argsort()].view(T, K, D); return (y * "
        "scores_TK[..., None]).sum(dim=1).",
    ),
    mistakes=words.DISPATCH,
)

NODE_LIMITED = Exercise(
    id="16.node_limited",
    title="At most M nodes a token",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.node_limited,
    cases=inputs.node_cases,
    hints=(
        "First the nodes, then the experts: find the M best nodes of each token, strike out the experts of all others, "
        "take the best K of what is left.",
        "scores_TE.unflatten(1, (num_nodes, -1)) has a dimension for nodes. A node's worth is the sum of its "
        "topk(top_k // max_nodes). Strike out with −∞.",
        "open = torch.zeros_like(worth, dtype=torch.bool).scatter(1, worth.topk(max_nodes).indices, True); return "
        "scores_TNe.masked_fill(~open[..., None], -torch.inf).flatten(1).topk(top_k).indices.",
    ),
    mistakes=words.NODE_LIMITED,
    oracle=Oracle("transformers' DeepSeek-V3 router", theirs.node_limited, theirs.two_each),
)

REPLICATE = Exercise(
    id="16.replicate",
    title="Copies for the hot ones",
    difficulty=1,
    minutes=10,
    points=1,
    reference=right.replicate,
    cases=inputs.replicate_cases,
    hints=(
        "Everybody has one copy. Then one copy after the other: who bears most now?",
        "What a copy of expert e bears is load_E[e] / copies[e]. `max(range(E), key=…)` gives the first of equals.",
        "copies = [1] * E; for _ in range(num_slots - E): hottest = max(range(E), key=lambda e: load_E[e] / "
        "copies[e]); copies[hottest] += 1. Before: ValueError if num_slots < E.",
    ),
    mistakes=words.REPLICATE,
)

PACK = Exercise(
    id="16.pack",
    title="Slots onto ranks, evenly",
    difficulty=2,
    minutes=15,
    points=2,
    reference=right.pack,
    cases=inputs.pack_cases,
    hints=(
        "Heaviest first. Each goes to the rank that bears least so far, among those that have room.",
        "Keep two lists: the total of each rank, and its room, S // R at first. sorted(range(S), key=lambda s: "
        "-load_S[s]) is the order; sorted is stable, so equals stay in theirs.",
        "for slot in order: rank = min((r for r in range(R) if room[r]), key=lambda r: total[r]); rank_S[slot] = rank; "
        "total[rank] += load_S[slot]; room[rank] -= 1. Before: ValueError if S % R.",
    ),
    mistakes=words.PACK,
)

STEP_TIME = Exercise(
    id="16.step_time",
    title="What a step takes, and what binds",
    difficulty=2,
    minutes=20,
    points=2,
    reference=right.step_time,
    cases=inputs.step_cases,
    hints=(
        "First seconds for each of the three: arithmetic, network, NVLink. Then one micro-batch in one stage. Then how "
        "many such slots a pipeline needs until the last micro-batch has left the last stage.",
        "A network of G Gbit/s moves G · 10⁹ / 8 bytes a second. The exchange takes as long as the slower link; "
        "hidden, the longer of exchange and arithmetic counts, else their sum. Slots: micro_batches + stages − 1.",
        "parts = {'compute': …, 'network': …, 'nvlink': …}; exchange = max(network, nvlink); one = max(compute, "
        "exchange) if overlap else compute + exchange; return slots * one, (stages - 1) / slots, max(parts, "
        "key=parts.get).",
    ),
    mistakes=words.STEP_TIME,
    rtol=1e-9,
    atol=0.0,
)

LAB = Lab(
    number="16",
    name="scale_out",
    title="Scale out: experts on many GPUs",
    minutes=130,
    hardware="any CPU: ranks are processes there; several GPUs give the same numbers at their own speed",
    claims=(),
    exercises=(SPLITS, DISPATCH, NODE_LIMITED, REPLICATE, PACK, STEP_TIME),
    questions=QUESTIONS,
)
