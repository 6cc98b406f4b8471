# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16 · Scale out: experts on many GPUs
#
# A sparse model has far more weights than one GPU holds, and uses few of them for a token. So its experts are spread
# over many GPUs, and tokens travel: to the experts that the router chose, and back. This lab builds that, on real
# processes that really exchange rows; measures what travels, and what makes one GPU wait for another; moves experts to
# where they even out; kills a rank and goes on without it; and ends on paper, with a plan for 10,000 GPUs.
#
# After this lab you can
#
# - read off a routing who sends how much to whom, and write the exchange with `all_to_all`;
# - prove that 2 and 4 processes compute the losses and gradients of one;
# - say what fp8 on the wire, a limit on nodes and overlap each save, and what each costs;
# - even out GPUs with copies of hot experts, and know when that does not help;
# - train on when a rank dies, on fewer ranks;
# - estimate a training run on thousands of GPUs, compare the estimate with published figures, and name what binds.
#
# It takes about two hours.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** Ranks are processes of this
# machine here. With `cpu`, or with one GPU, they exchange by gloo on the CPU; with several GPUs (`gpu`), by NCCL.

# %% tags=["setup"]
import itertools
import math
import os
import signal
import statistics
import tempfile
import textwrap
import time
from pathlib import Path

import torch
import torch.distributed as dist
from IPython.display import Markdown, display
from matplotlib.ticker import NullLocator
from torch import Tensor

from labkit import check, hint, predict, recap, reveal, show
from labkit.core import cluster_published, cluster_search, cluster_train, placement, runtime
from labkit.core.cluster import RATES, cluster
from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import gpu as gpu_named
from labkit.core.cost import model_params
from labkit.core.presets import preset
from labkit.course.mine import my_model
from labkit.course.ranks import together
from labkit.nn import MoE, Transformer, trace
from labkit.nn.oracle import hf_block
from labkit.show import figures, picture, style
from labkit.train import documents, parallel
from labkit.train.checkpoint import checkpoints
from labkit.train.parallel import checkpoint

gpus = torch.cuda.device_count() if runtime.resolve_profile(profile) == "gpu" else 0
RANKS = tuple(ranks for ranks in (1, 2, 4) if not gpus > 1 or ranks <= gpus)  # so many processes are compared
BACKEND = "nccl" if gpus > 1 else "gloo"
where = f"{RANKS[-1]} processes, {BACKEND}, " + (f"{gpus} GPUs" if gpus > 1 else f"{os.cpu_count()} CPU cores")
runtime.seed_all(seed)
torch.set_num_threads(1)  # each rank is one thread
print(where)

# %% [markdown]
# The small trained model, your own from lab 07 if you have one, and texts of its four domains. Its router has learned
# something, so its routing is worth measuring: every sparse layer's choices for every token, once.

# %%
trained = my_model()
texts = documents.collect(train_bytes=20_000, validation_bytes=8000, seed=seed)
records = {}
for domain in texts.domains:
    ids = torch.tensor(trained.tokenizer("".join(texts.validation[domain]))["input_ids"][:1536]).view(-1, 256)
    records[domain] = trace(trained.model, ids)
E, K = trained.model.config.moe.num_experts, trained.model.config.moe.top_k
chosen = {domain: [layer.topk_ids_TK for layer in layers] for domain, layers in records.items()}
LAYERS = len(next(iter(chosen.values())))
print(trained, f"\n{LAYERS} sparse layers, {E} experts, {K} for a token; {len(chosen)} domains of 1,536 tokens")

# %% [markdown]
# ## 1 · Why tokens travel
#
# A GPU's memory is what decides. DeepSeek-V3 has 671 billion parameters, nearly all of them in experts. If R GPUs hold
# an Rth of each layer's experts, and the rest of the model each in full, how many GPUs are the least that hold the
# weights? (Two bytes a parameter, 80 GB a GPU, a tenth of it kept free; nothing else in memory.)

# %%
p_least = predict("16.least", "DeepSeek-V3 in bf16: the fewest 80 GB GPUs that hold its weights?", 1, 256, "GPUs")

# %%
v3, room = preset("deepseek-v3"), 0.9 * gpu_named("H100-80GB").memory
params = model_params(v3)
WAYS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
held = {ranks: 2 * (params.total - params.routed_experts + params.routed_experts / ranks) for ranks in WAYS}
p_least.against(min(ranks for ranks, size in held.items() if size <= room), calculated=True)

# %% [markdown]
# And what is on each GPU, by the number of GPUs that share the experts:

# %%
curves = {
    "experts": [2 * params.routed_experts / ranks / 1e9 for ranks in WAYS],
    "all else, on every GPU": [2 * (params.total - params.routed_experts) / 1e9] * len(WAYS),
    "room on a GPU": [room / 1e9] * len(WAYS),
}
display(figures.cost_curve(WAYS, curves, "GPUs that share the experts", "weights on each (GB)"))

# %% [markdown]
# This is **expert parallelism**. An expert stays whole, on one GPU; attention, norms and the router are everywhere, and
# every GPU has tokens of its own. (The other way is to cut each matrix into parts, tensor parallelism: then every
# token's vector has to go to every GPU, in every layer, whatever the router says.)

# %% [markdown]
# ## 2 · Who sends how much to whom
#
# An all-to-all hands rows around: rank s gives rank d so many. Both must know the number beforehand, and in a sparse
# layer it is another one in every layer, for every pair. So first of all it is counted.

# %% [markdown]
# Both sides count from what they know: the sender from its own routing; the receiver has to be told.

# %% [markdown]
# Two ways to count matter. A *row for each choice* is the simplest: K rows for a token. But if two of a token's experts
# live on one rank, its vector need go there only once; so *visits* count tokens and ranks.


# %% exercise="16.splits"
def splits(ids_RTK: list[Tensor], owner_E: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sizes of an all-to-all, from the routing of every rank's tokens.

    Args:
        ids_RTK: for each rank the experts of its tokens, [T, K] int64; T differs from rank to rank, and may be 0.
        owner_E: [E] int64, the rank that each expert lives on. Some ranks may have none.
        num_ranks: R.

    Returns three [R, R] int64: rows that rank s (row) sends to rank d (column), one for each choice; rows that rank r
    (row) receives from rank s (column); and how many of rank s's tokens visit rank d, however many of their experts
    live there. What stays on its own rank counts too.
    """
    ### BEGIN SOLUTION
    send_RR = torch.stack([owner_E[ids_TK.flatten()].bincount(minlength=num_ranks) for ids_TK in ids_RTK])
    visits_RR = [(owner_E[ids_TK][..., None] == torch.arange(num_ranks)).any(dim=1).sum(dim=0) for ids_TK in ids_RTK]
    return send_RR, send_RR.T.contiguous(), torch.stack(visits_RR)
    ### END SOLUTION


# %% check="16.splits"
splits = check("16.splits", splits)

# %% [markdown]
# Two ranks with two experts each; three tokens on the first, one on the second:

# %% tags=["nbval-check-output"]
few = [torch.tensor([[0, 1], [0, 2], [1, 0]]), torch.tensor([[1, 3]])]
for name, part in zip(("sends", "receives", "visits"), splits(few, torch.tensor([0, 0, 1, 1]), 2), strict=True):
    print(f"{name:9}", part.tolist())

# %% [markdown]
# Now the trained model, its experts over four ranks in order. Each rank has another domain's tokens: the four domains
# are four users of one service. If routing had nothing to do with the text, three quarters of all rows would leave
# their rank. What share does?

# %%
p_leave = predict("16.leave", "Share of rows that go to another rank, of four?", 0, 100, "%")

# %%
owner = torch.arange(E) * 4 // E
by_layer = [splits([ids[layer] for ids in chosen.values()], owner, 4)[0] for layer in range(LAYERS)]
leave = [100 * (1 - rows.trace().item() / rows.sum().item()) for rows in by_layer]
p_leave.against(statistics.mean(leave), min(leave), max(leave))

# %% [markdown]
# Rank by rank, of the layer with the most uneven columns; beside it the same tokens dealt out to the ranks at random,
# which is what a service does that mixes its users.

# %%
layer = max(range(LAYERS), key=lambda at: by_layer[at].sum(0).max())
mixed = torch.cat([ids[layer] for ids in chosen.values()])[torch.randperm(4 * 1536)].chunk(4)
matrices = {"a domain each": by_layer[layer], "tokens mixed": splits(list(mixed), owner, 4)[0]}
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 3.4))
    most = max(rows.max().item() for rows in matrices.values())
    for axis, (name, rows) in zip(axes, matrices.items(), strict=True):
        axis.imshow(rows, cmap=style.SEQUENTIAL, vmin=0, vmax=most)
        for s, d in torch.ones_like(rows).nonzero().tolist():
            axis.text(d, s, f"{rows[s, d]:,}", ha="center", va="center", color="w" if rows[s, d] < 0.6 * most else "k")
        named = list(chosen) if name == "a domain each" else [f"rank {rank}" for rank in range(4)]
        axis.set(title=name, xlabel="to rank", xticks=range(4), yticks=range(4), yticklabels=named)
        axis.grid(False)
told = "; ".join(f"{name}: {rows.tolist()}, received {rows.sum(0).tolist()}" for name, rows in matrices.items())
fig.alt = f"Rows from each rank to each in layer {layer}. {told}."
display(fig)

# %% [markdown]
# Read the rows first: whom does a domain call? Then the columns.

# %% [markdown]
# What a rank *receives* is its work, and all wait for the one with the most. With a domain on each
# rank, rows differ (specialised experts are called from one side); mixed, rows are alike, and columns stay uneven,
# since experts are not equally popular. Section 7 does something about columns.

# %% [markdown]
# How much do visits save? With more ranks, fewer experts lie together. Uniform routing beside it:

# %%
OVER = (1, 2, 4, 8, 16)
flat = torch.cat([ids for layers in chosen.values() for ids in layers])
both = {"trained": flat, "uniform": torch.rand(len(flat), E).topk(K).indices}
saved = {name: [] for name in both}
for ranks in OVER:
    home = torch.arange(E) * ranks // E
    for name, ids in both.items():
        visits_TR = (home[ids][..., None] == torch.arange(ranks)).any(dim=1)
        saved[name].append(visits_TR.sum().item() / ids.numel())
curves = {f"{name} routing": [100 * share for share in shares] for name, shares in saved.items()}
display(figures.cost_curve(OVER, curves, "ranks", "visits, of the choices (%)", log=False))

# %% [markdown]
# ## 3 · There and back
#
# The layer itself, as one rank sees it. All ranks run the same function, each with tokens of its own, and meet in
# `exchange`, which is the all-to-all.


# %% exercise="16.dispatch"
def dispatch(
    x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor, owner_E: Tensor, num_ranks: int, exchange, experts
) -> Tensor:
    """A sparse layer whose experts are spread over ranks: what it gives for this rank's tokens, [T, D].

    Args:
        x_TD: [T, D], this rank's tokens; there may be none. ids_TK, scores_TK: [T, K], their experts and scores.
        owner_E: [E], the rank of each expert. num_ranks: R.
        exchange: `exchange(rows, send, receive)` hands rows (or numbers) around: the first send[0] of them to rank 0,
            the next send[1] to rank 1, and so on; it returns those that came, receive[0] from rank 0, then receive[1]
            from rank 1. Counts are R whole numbers (a tensor or a list). Every rank must call it equally often.
        experts: `experts(rows, ids)` computes row n with expert ids[n], which must live on this rank.

    The result is each token's sum of its experts' outputs, times the scores as they are. Gradients flow through all of
    it. A row may be sent for each choice, also where two experts of a token live together.
    """
    ### BEGIN SOLUTION
    flat_N, ones = ids_TK.flatten(), [1] * num_ranks
    order_N = owner_E[flat_N].argsort(stable=True)
    send_R = owner_E[flat_N].bincount(minlength=num_ranks)
    receive_R = exchange(send_R, ones, ones)
    rows_MD = exchange(x_TD[order_N // ids_TK.shape[1]], send_R, receive_R)
    ids_M = exchange(flat_N[order_N], send_R, receive_R)
    back_ND = exchange(experts(rows_MD, ids_M), receive_R, send_R)
    y_NKD = back_ND[order_N.argsort()].view(*ids_TK.shape, x_TD.shape[1])
    return (y_NKD * scores_TK[..., None]).sum(dim=1)
    ### END SOLUTION


# %% check="16.dispatch"
dispatch = check("16.dispatch", dispatch)

# %% [markdown]
# The check ran your function on ranks that live in one process, one after the other. A block of transformers, whole and
# in one piece, says whether the result is the layer: DeepSeek-V3's router and experts, 61 tokens on 1 to 4 ranks, one
# of which has none.

# %% tags=["nbval-check-output"]
small = MoEConfig(
    d_model=32, d_expert=16, num_experts=8, top_k=3, num_shared_experts=1, score_fn="sigmoid", group_score="top2_sum"
)
block = hf_block("deepseek_v3", small, seed=4)
x_TD = torch.randn(61, 32, generator=torch.Generator().manual_seed(3))
with torch.no_grad():
    _, scores_TK, ids_TK = block.gate(x_TD)
    whole = block.experts(x_TD, ids_TK, scores_TK)


def one_by_one(rows, ids):
    """The experts of the block, one for each row."""
    return block.experts(rows, ids[:, None], torch.ones(len(ids), 1))


def on_ranks(cuts, owner_E):
    """The layer on a group in this process, each rank with the tokens between two cuts."""
    parts = [tuple(t[a:b] for t in (x_TD, ids_TK, scores_TK)) for a, b in itertools.pairwise(cuts)]

    def body(rank, exchange):
        return dispatch(*parts[rank], owner_E, len(parts), exchange, one_by_one)

    return torch.cat(together(body, len(parts)))


for cuts in ([0, 61], [0, 20, 61], [0, 30, 30, 61], [0, 5, 11, 60, 61]):
    with torch.no_grad():
        same = torch.allclose(on_ranks(cuts, torch.arange(8) * (len(cuts) - 1) // 8), whole, atol=1e-5)
    print(f"tokens {[b - a for a, b in itertools.pairwise(cuts)]}: {'equal' if same else 'DIFFERENT'}")

# %% [markdown]
# Now on real processes. `parallel.launch` starts them, each with its own memory; they find each other, and exchange
# rows by `all_to_all_single`.

# %% [markdown]
# Your function is the same: only `exchange` is another.

# %% [markdown]
# `over_the_wire` is that exchange. Numbers go as they are; for rows, autograd has to know the way back, too, which is
# another all-to-all with the counts exchanged.


# %%
def over_the_wire(rows, send, receive):
    """The exchange of a real group; gradients come back the other way."""
    send, receive = [int(count) for count in send], [int(count) for count in receive]
    if rows.is_floating_point():
        return parallel.depart(rows, send, receive, dist.group.WORLD).wait()
    out = rows.new_empty(sum(receive))
    dist.all_to_all_single(out, rows.contiguous(), receive, send)
    return out


# %% [markdown]
# Each rank has a share of the tokens and of the experts. The loss is a sum over all tokens; gradients of experts are
# where the experts are.


# %%
def one_rank(layer, x_TD, routings, scores_TK, cuts, answer):
    """For each routing this rank's loss, and the gradients of all weights that its experts found."""
    rank, ranks, device, found = dist.get_rank(), dist.get_world_size(), parallel.make_mesh().device_type, []
    layer = layer.to(device)
    owner_E = torch.arange(layer.config.num_experts, device=device) * ranks // layer.config.num_experts
    for ids_TK in routings:
        layer.zero_grad()
        mine = [part[cuts[rank] : cuts[rank + 1]].to(device) for part in (x_TD, ids_TK, scores_TK)]
        y_TD = answer(
            *mine, owner_E, ranks, over_the_wire,
            lambda rows, ids: layer.experts(rows, (ids[:, None], torch.ones(len(ids), 1, device=device))),
        )  # fmt: skip
        (loss := y_TD.square().sum()).backward()
        found.append((loss.item(), [p.grad.to("cpu", copy=True) for p in layer.experts.parameters()]))
    return found


# %% [markdown]
# One process against 1, 2 and 4, with three routings: as the router has it, one expert that gets every token, one that
# gets none. With four ranks, the second has no tokens. (Colours are ranks, of four.)

# %%
layer = MoE(MoEConfig(d_model=64, d_expert=32, num_experts=8, top_k=2))
x_TD = torch.randn(96, 64)
routed = layer.router(x_TD)
everyone, nobody = routed.topk_ids_TK.clone(), torch.rand(96, 7).topk(2).indices
everyone[:, 0] = 5
everyone[:, 1] = torch.where(everyone[:, 1] == 5, 2, everyone[:, 1])
CUTS = {1: [0, 96], 2: [0, 17, 96], 4: [0, 17, 17, 70, 96]}
routings = {"as routed": routed.topk_ids_TK, "expert 5 gets all": everyone, "expert 7 gets none": nobody}
with style.use():
    fig, axes = picture.new(columns=3, size=(9.4, 2.3))
    for axis, (name, ids) in zip(axes, routings.items(), strict=True):
        axis.bar(range(8), ids.flatten().bincount(minlength=8), color=[style.PALETTE[e // 2] for e in range(8)])
        axis.set(title=name, xlabel="expert", xticks=range(8), ylim=(0, 100))
    axes[0].set_ylabel("tokens")
fig.alt = "Tokens of each expert, coloured by its rank of four: " + "; ".join(
    f"{name} {ids.flatten().bincount(minlength=8).tolist()}" for name, ids in routings.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# How far apart will the losses be, of one process and of four? (In parts of the loss; float32 has seven digits.)

# %%
p_equal = predict("16.equal", "Largest relative difference of the loss, 10 to the power of", -16, 0)

# %%
scores = routed.topk_scores_TK.detach()
single, off = {}, {}
for name, ids in routings.items():
    layer.zero_grad()
    (alone := layer.experts(x_TD, (ids, scores)).square().sum()).backward()
    single[name] = alone.item(), [p.grad.clone() for p in layer.experts.parameters()]
for ranks in RANKS:
    job = (one_rank, ranks, layer, x_TD, [*routings.values()], scores, CUTS[ranks], dispatch)
    by_rank = parallel.launch(*job, backend=BACKEND)
    for (name, (loss, slopes)), found in zip(single.items(), zip(*by_rank, strict=True), strict=True):
        summed = [sum(parts) for parts in zip(*(each for _, each in found), strict=True)]
        worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(summed, slopes, strict=True))
        off[name, ranks] = abs(sum(each for each, _ in found) - loss) / loss, worst
p_equal.against(math.log10(max(max(loss for loss, _ in off.values()), 1e-16)))

# %% [markdown]
# All of them, losses and gradients:

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.0, 2.8))
    for at, (axis, what) in enumerate(zip(axes, ("loss", "gradients"), strict=True)):
        for mark, name in zip("os^", routings, strict=True):
            axis.semilogy(RANKS, [max(off[name, ranks][at], 1e-9) for ranks in RANKS], f"{mark}-", label=name)
        axis.axhline(1e-5, color=style.LIT, linestyle="--", label="1e-5")
        axis.set(title=what, xlabel="processes", xticks=RANKS, ylim=(5e-10, 1e-4))
    axes[0].set_ylabel("relative difference")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Relative difference to one process: " + "; ".join(
    f"{name}, {ranks}: loss {loss:.0e}, gradients {slope:.0e}" for (name, ranks), (loss, slope) in off.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# What is left is rounding: sums in another order. (A difference of nothing is drawn at 1e-9.)

# %% [markdown]
# An expert with all tokens or none, and a rank without tokens, are ordinary cases: some count is zero, and everybody
# still takes part.

# %% [markdown]
# > **Find the bug: a rank that had nothing to do.** The version below is faster on ranks without tokens, its author
# > says. What do the others say?


# %% tags=["nbval-check-output"]
def hurried(x_TD, *others):
    return x_TD if len(x_TD) == 0 else dispatch(x_TD, *others)


idle = [(x_TD[:3], nobody[:3], scores[:3]), (x_TD[:0], nobody[:0], scores[:0])]
try:
    together(lambda rank, exchange: hurried(*idle[rank], torch.arange(8) // 4, 2, exchange, None), 2)
except RuntimeError as error:
    print(error)

# %% [markdown]
# On real processes nobody says anything: rank 0 waits, until the timeout of its group (ten minutes, if nobody has set
# it). That is the most common way in which a distributed program fails: not with an error, but with silence.

# %% [markdown]
# ## 4 · A model that trains on ranks
#
# `parallel.parallelize` does this to a whole model: every sparse layer keeps its share of the experts, and sends rows
# as your `dispatch` does (one for each *visit*, with the ids and scores beside it). What is no expert is on every rank,
# sees only that rank's tokens, and so its gradients are added up over all ranks. Experts' gradients need not be: each
# has seen all its tokens.

# %% [markdown]
# A small model, a dozen steps. It is written so that it can stop and go on: after every step, a checkpoint. Section 8
# needs that.

# %%
BATCH, LENGTH, STEPS = 8, 48, 10
SMALL = ModelConfig(
    "small", len(trained.tokenizer), 2, 64, num_heads=4, num_kv_heads=2, head_dim=16,
    moe=MoEConfig(d_model=64, d_expert=64, num_experts=8, top_k=2, num_shared_experts=1),
)  # fmt: skip
stream = torch.tensor(trained.tokenizer("".join("".join(texts.train[name]) for name in texts.domains))["input_ids"])
starts = torch.randint(len(stream) - LENGTH, (STEPS, BATCH))
batches = stream[starts[..., None] + torch.arange(LENGTH)]


def train_rank(batches, seed, folder=None, dies_at=None):
    """One rank's part of a training run: goes on from the newest checkpoint; the losses of all steps."""
    torch.manual_seed(seed)
    mesh, rank, ranks = parallel.make_mesh(), dist.get_rank(), dist.get_world_size()
    model = parallel.parallelize(Transformer(SMALL).to(mesh.device_type), mesh)
    optimizer, first, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), 0, []
    if folder and (found := checkpoints(folder)):
        loaded = checkpoint.load(found[-1], model, optimizer, mesh)
        first, losses = loaded.step, loaded.rest["losses"]
    for step in range(first, len(batches)):
        if rank == ranks - 1 and step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)  # the machine is gone
        losses.append(one_step(model, optimizer, batches[step].chunk(ranks)[rank].to(mesh.device_type), mesh))
        if folder:
            checkpoint.save(folder, step + 1, model, optimizer, {"losses": losses}, mesh)
    return losses


# %% [markdown]
# One step: a rank's loss is its tokens' share of the loss of all, so that what is added up is right.


# %%
def one_step(model, optimizer, ids_BS, mesh):
    """The loss of the whole batch, of which this rank has some rows."""
    optimizer.zero_grad()
    logits_BSV = model(ids_BS).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten(), reduction="sum")
    loss = loss / (BATCH * (LENGTH - 1))
    loss.backward()
    parallel.sum_gradients(model, mesh)
    optimizer.step()
    dist.all_reduce(total := loss.detach().clone())
    return total.item()


# %% [markdown]
# After ten steps, how far is the loss on the most processes from that on one? (In nats.)

# %%
p_curve = predict("16.curve", f"Difference of the loss after {STEPS} steps, {RANKS[-1]} ranks and 1: 10 to the", -12, 1)

# %%
began = time.perf_counter()
runs = {ranks: parallel.launch(train_rank, ranks, batches, seed, backend=BACKEND)[0] for ranks in RANKS}
took = time.perf_counter() - began
apart = {ranks: max(abs(a - b) for a, b in zip(losses, runs[1], strict=True)) for ranks, losses in runs.items()}
p_curve.against(math.log10(max(apart[RANKS[-1]], 1e-12)))
print(f"{len(RANKS)} runs in {took:.0f} s, starting of processes included, on {where}")

# %% [markdown]
# The curves lie on each other; on the right, what lies between them.

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(9.0, 2.8))
    for mark, (ranks, losses) in zip("os^", runs.items(), strict=False):
        size = 9 - 2 * "os^".index(mark)
        axes[0].plot(range(1, STEPS + 1), losses, f"{mark}-", label=f"{ranks} rank{'s' * (ranks > 1)}", markersize=size)
        gaps = [max(abs(a - b), 1e-9) for a, b in zip(losses, runs[1], strict=True)]
        axes[1].semilogy(range(1, STEPS + 1), gaps, f"{mark}-")
    axes[0].set(xlabel="step", ylabel="loss (nats)")
    axes[0].legend()
    axes[1].set(xlabel="step", ylabel="from one process (nats)")
told = "; ".join(f"{ranks} ranks {losses[0]:.3f} to {losses[-1]:.3f}" for ranks, losses in runs.items())
fig.alt = f"Losses over {STEPS} steps: {told}. Largest differences: {apart}."
display(fig)

# %% [markdown]
# The last digit of a float32 differs, and over ten steps no more than that (nothing is drawn at 1e-9). Over thousands
# of steps such differences grow, as they do when anything else sums in another order.

# %% [markdown]
# That is why equality is tested on one step, and on gradients.

# %% [markdown]
# There is another way to hold a large model. **FSDP2** (`fully_shard`) cuts every parameter among the ranks, experts or
# not, and gathers a block's parameters just before it runs: tokens stay, *weights* travel. In one layer of DeepSeek-V3,
# a GPU with 4,096 tokens: how many times as many bytes arrive if all experts are gathered there, as travel with the
# tokens? (Forward, bf16, a row out and a row back for each choice.)

# %%
p_gather = predict("16.gather", "Bytes of gathered experts over bytes of travelling tokens?", 1, 200, "×")

# %%
gathered = 2 * params.routed_experts / v3.num_sparse_layers
p_gather.against(gathered / (4096 * v3.moe.top_k * 2 * 2 * v3.d_model), calculated=True)

# %% [markdown]
# So experts stay, and the rest may go in shards: `parallelize(…, shard=True)`. If fewer ranks share the experts than
# there are ("ep" below all), the copies of an expert are cut, too. Ways to lay out the same model on the same ranks:
# what each rank holds, and the loss and gradient norm of one step.


# %%
def laid_out(batch, seed, ways):
    """For each (ranks that share the experts, in shards?): values held here, of experts and others; loss and norm."""
    found = []
    for ep, shard in ways:
        torch.manual_seed(seed)
        mesh = parallel.make_mesh(ep)
        model = parallel.parallelize(Transformer(SMALL).to(mesh.device_type), mesh, shard=shard)
        held = {True: 0, False: 0}
        for name, p in model.named_parameters():
            held[".experts." in name] += (p.to_local() if shard else p).numel()
        mine = batch.chunk(mesh.size())[dist.get_rank()].to(mesh.device_type)
        loss = one_step(model, torch.optim.SGD(model.parameters(), lr=0.0, foreach=False), mine, mesh)  # moves nothing
        found.append((held[True], held[False], loss, parallel.clip_gradients(model, mesh, 0.0).item()))
    return found


ways = [(RANKS[-1], False), *((ep, True) for ep in reversed(RANKS))]
layouts = parallel.launch(laid_out, RANKS[-1], batches[0], seed, ways, backend=BACKEND)[0]
told = ["experts over " + f"{ep} ranks, " * (ep > 1) + f"{'all in' if shard else 'no'} shards" for ep, shard in ways]
told[-1] = "FSDP2 alone"
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 0.9 + 0.4 * len(ways)))
    axis.barh(told, [1e-3 * e for e, *_ in layouts], color=style.PALETTE[0], label="experts")
    base = [1e-3 * e for e, *_ in layouts]
    axis.barh(told, [1e-3 * rest for _, rest, *_ in layouts], left=base, color=style.PALETTE[1], label="all else")
    axis.set(xlabel="values on each rank (thousands)")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Thousands of values on each rank, experts and all else: " + "; ".join(
    f"{name} {e / 1e3:.0f} and {rest / 1e3:.0f}" for name, (e, rest, *_) in zip(told, layouts, strict=True)
) + "."  # fmt: skip
display(fig)
for name, (_, _, loss, norm) in zip(told, layouts, strict=True):
    print(f"{name:36} loss {loss:.5f}, gradient norm {norm:.5f}")

# %% [markdown]
# One model, one loss, however it lies. In shards all of them hold the same; what differs is what travels to run it:
# with FSDP2 alone every rank gathers every expert, in every layer and both ways, whether tokens want it or not.

# %% [markdown]
# `launch` is for one machine and for notebooks. On several machines, and for runs of days, `torchrun` starts the ranks.
# The same model code and the same checkpoints, in a terminal (kill it, start it again with one process, and it goes
# on):
#
#     python -m torch.distributed.run --standalone --nproc-per-node 2 -m labkit.train.parallel --folder runs/parallel

# %% [markdown]
# ## 5 · What travels
#
# A token's vector goes out and a vector comes back, in every sparse layer, and again in the backward pass. How many
# bytes that is depends on the format. DeepSeek-V3 sends *out* in fp8, with a scale for every 128 values, and lets
# results come *back* in bf16, since they will be added up.

# %% [markdown]
# What share of the bytes of bf16 both ways is saved by fp8 on the way out?

# %%
p_fp8 = predict("16.fp8", "fp8 out, bf16 back, of bf16 both ways: bytes saved?", 0, 100, "%")

# %%
D = v3.d_model
wires = {"bfloat16": ("bfloat16", "bfloat16"), "fp8 out": ("fp8", "bfloat16"), "fp8 both ways": ("fp8", "fp8")}
sizes = {name: [parallel.row_bytes(D, wire) for wire in pair] for name, pair in wires.items()}
p_fp8.against(100 * (1 - sum(sizes["fp8 out"]) / sum(sizes["bfloat16"])), calculated=True)

# %% [markdown]
# In DeepSeek-V3, with rows of 7168 values and one trip for each of eight experts:

# %% tags=["nbval-check-output"]
for name, (out, back) in sizes.items():
    print(f"{name:14} {out:6,} + {back:6,} bytes a trip; {8 * 58 * (out + back) / 1e6:.1f} MB a token, forward")

# %% [markdown]
# And what does it cost? The trained model's own vectors, as they come into a sparse layer, through each format and
# back, then through the experts. How far is the layer's output from what it was, with fp8 on the way out?

# %%
p_off = predict("16.off", "Relative error of a layer's output, fp8 on the way out?", 0, 20, "%", step=0.1)

# %%
layers = [module for module in trained.model.modules() if isinstance(module, MoE)]
seen = {}
hooks = [layer.experts.register_forward_pre_hook(lambda m, args: seen.update({m: args})) for layer in layers]
ids = torch.tensor(trained.tokenizer("".join(texts.validation["english"]))["input_ids"][:512])[None]
with torch.no_grad():
    exact_loss = trained.model(ids, labels=ids).loss.item()
for hook in hooks:
    hook.remove()


def through(x_ND, wire):
    """What arrives of rows that were sent in a format."""
    return parallel.decode(parallel.encode(x_ND, wire), wire, x_ND.shape[1], x_ND.dtype)


errors = {}
with torch.no_grad():
    for name, (out, back) in wires.items():
        for experts, (x, *rest) in seen.items():
            right = experts(x, *rest)
            got = through(experts(through(x, out), *rest), back)
            errors.setdefault(name, []).append(100 * ((got - right).norm() / right.norm()).item())
p_off.against(statistics.mean(errors["fp8 out"]), min(errors["fp8 out"]), max(errors["fp8 out"]))

# %% [markdown]
# All six layers, each a dot:

# %%
display(figures.bars_with_spread(errors, "relative error of a layer's output", "%"))

# %% [markdown]
# Does the model notice? Every sparse layer of the trained model with fp8 on its way out, and the loss on the same text:

# %%
hooks = [layer.experts.register_forward_pre_hook(lambda m, a: (through(a[0], "fp8"), *a[1:])) for layer in layers]
with torch.no_grad():
    fp8_loss = trained.model(ids, labels=ids).loss.item()
for hook in hooks:
    hook.remove()
told = {"exact": [exact_loss], "fp8 on the way out": [fp8_loss]}
display(figures.bars_with_spread(told, "loss on 512 tokens of English", "nats"))
print(f"{1000 * (fp8_loss - exact_loss):+.1f} thousandths of a nat")

# %% [markdown]
# An error of a few per cent in every layer, and hardly any in the loss: it is as often up as down. (That the trained
# model was not trained so, and small, is a limit of this measurement; DeepSeek-V3's report compares whole training
# runs, section 3.3.)

# %% [markdown]
# The other way to save is not to *wait*. While rows are under way, something can be computed that does not need them:
# the **shared expert**, which every token visits and every rank has.

# %% [markdown]
# Two processes, a layer with a wide shared expert. What share of the layer's time does overlap save, on this machine?

# %%
p_overlap = predict("16.overlap", "Time of a layer that overlap saves?", -50, 50, "%")


# %%
def timed_layer(config, x_TD, repeats=9):
    """Seconds of the layer forward, without overlap and with it, taken in turn."""
    torch.manual_seed(0)
    mesh, found = parallel.make_mesh(), {False: [], True: []}
    layer = parallel.parallelize(MoE(config).to(mesh.device_type), mesh)
    x_TD = x_TD.to(mesh.device_type)
    for _ in range(repeats):
        for overlap in found:
            layer.overlap = overlap
            dist.barrier()
            began = time.perf_counter()
            with torch.no_grad():
                layer(x_TD).sum().item()
            found[overlap].append(time.perf_counter() - began)
    return {overlap: seconds[2:] for overlap, seconds in found.items()}


wide = MoEConfig(d_model=512, d_expert=256, num_experts=8, top_k=2, num_shared_experts=4)
seconds = parallel.launch(timed_layer, 2, wide, torch.randn(1024, 512), backend=BACKEND)[0]
p_overlap.against(100 * (1 - statistics.median(seconds[True]) / statistics.median(seconds[False])))

# %% [markdown]
# Each run is a dot:

# %%
bars = {f"{'with' if overlap else 'without'} overlap": [1e3 * s for s in all_] for overlap, all_ in seconds.items()}
display(figures.bars_with_spread(bars, f"one layer forward, 2 processes, {BACKEND}", "ms"))

# %% [markdown]
# On a CPU little is gained, or less than nothing: what moves the rows is the same cores that multiply. A GPU has
# engines and links of its own for that, and then a layer takes the *longer* of the two instead of their sum.

# %% [markdown]
# Even there it is not free: DeepSeek-V3's all-to-all occupies 20 of a GPU's 132 multiprocessors (section 3.2.2).

# %% [markdown]
# ## 6 · Fewer trips
#
# GPUs come in nodes, eight with fast links among them (NVLink, hundreds of GB/s), and between nodes there is a network
# (tens of GB/s). So a token should visit few *nodes*; inside one it may visit as many GPUs as it likes. DeepSeek-V3's
# router sees to that: at most M = 4 nodes for 8 experts.

# %% [markdown]
# How (section 2.1.2): each node is worth the sum of its best K/M scores, for this token. The M best nodes stay open,
# and of their experts the K best are chosen.


# %% exercise="16.node_limited"
def node_limited(scores_TE: Tensor, num_nodes: int, max_nodes: int, top_k: int) -> Tensor:
    """The best K experts of each token on at most M nodes; [T, K] int64, best first.

    Args:
        scores_TE: [T, E], any numbers; a bias may have made them negative.
        num_nodes: N; node n holds experts n · E/N to (n + 1) · E/N − 1.
        max_nodes: M. top_k: K, a multiple of M; a node has at least K/M experts.

    A node is worth the sum of its K/M highest scores (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). No node has to
    give a certain number of experts.
    """
    ### BEGIN SOLUTION
    scores_TNe = scores_TE.unflatten(1, (num_nodes, -1))
    worth_TN = scores_TNe.topk(top_k // max_nodes, dim=2).values.sum(dim=2)
    open_TN = torch.zeros_like(worth_TN, dtype=torch.bool).scatter(1, worth_TN.topk(max_nodes).indices, True)
    return scores_TNe.masked_fill(~open_TN[..., None], -torch.inf).flatten(1).topk(top_k).indices
    ### END SOLUTION


# %% check="16.node_limited"
node_limited = check("16.node_limited", node_limited)

# %% [markdown]
# Three nodes of two experts, two experts a token, on one node at most. The best expert of all is 0; is it chosen?

# %% tags=["nbval-check-output"]
print(node_limited(torch.tensor([[0.9, 0.0, 0.1, 0.6, 0.5, 0.4]]), num_nodes=3, max_nodes=1, top_k=2).tolist())

# %% [markdown]
# DeepSeek-V3's sizes: 256 experts on 8 nodes, 8 a token. Scores are drawn at random here (nobody's router: a trained
# one has habits). Without a limit, how many nodes does a token visit on average?

# %%
p_nodes = predict("16.nodes", "8 of 256 experts on 8 nodes, no limit: nodes visited?", 1, 8, "nodes", step=0.05)

# %%
scores_TE = torch.randn(4000, 256).sigmoid()
picks = {limit: node_limited(scores_TE, 8, limit, 8) for limit in (1, 2, 4, 8)}
trips = {limit: (torch.arange(8) == (ids // 32)[..., None]).any(1).sum(1) for limit, ids in picks.items()}
p_nodes.against(trips[8].float().mean().item())

# %% [markdown]
# How many tokens visit how many nodes, and what share of the scores is lost by the limit (of the best eight's sum):

# %%
best = scores_TE.topk(8).values.sum()
lost = {limit: 100 * (1 - scores_TE.gather(1, ids).sum() / best).item() for limit, ids in picks.items()}
with style.use():
    fig, axes = picture.new(columns=2, size=(9.0, 2.8))
    for at, limit in enumerate((4, 8)):
        shares = [100 * (trips[limit] == nodes).float().mean().item() for nodes in range(1, 9)]
        label = "at most 4 nodes" if limit == 4 else "no limit"
        axes[0].bar([nodes + 0.4 * at - 0.2 for nodes in range(1, 9)], shares, 0.4, label=label)
    axes[0].set(xlabel="nodes that a token visits", ylabel="tokens (%)", xticks=range(1, 9))
    axes[0].legend(loc="upper right")
    axes[1].plot(list(lost), list(lost.values()), "o-")
    axes[1].set(xlabel="nodes allowed", ylabel="score lost (%)", xticks=list(lost), ylim=(0, None))
fig.alt = f"Nodes visited: {trips[8].float().mean():.2f} without a limit, {trips[4].float().mean():.2f} with 4. " + (
    "Score lost: " + ", ".join(f"{limit} nodes {share:.1f} %" for limit, share in lost.items()) + "."
)
display(fig)

# %% [markdown]
# The trips themselves are the network's bytes. A token goes *once* to each node that it visits, and is handed on there
# by NVLink; with a limit of 4, at most four times over the network. Random scores are the worst case for what is lost.

# %% [markdown]
# ## 7 · Experts where they even out
#
# All ranks wait for the one with the most rows. If one expert is hot, so is its GPU. Two remedies, in DeepSeek's
# **EPLB**: give hot experts **copies** on other GPUs, and **pack** what there is so that every GPU has about as much.

# %% [markdown]
# Both are plain Python on a list of numbers: they run for a moment, once in many minutes, and nothing on the GPU waits.

# %% [markdown]
# First copies. There are more slots than experts; one by one, each extra slot goes to whoever bears most at that
# moment. A copied expert's tokens are shared out evenly among its copies.


# %% exercise="16.replicate"
def replicate(load_E: list[float], num_slots: int) -> list[int]:
    """How many copies each expert gets, the first included: the largest load of a copy becomes as small as it can.

    Args:
        load_E: tokens of each expert, zero or more.
        num_slots: copies in all.

    Every expert has one copy. Then each further one goes to the expert whose copies bear most at that moment; of
    equals, to the first. Raises ValueError for fewer slots than experts.
    """
    ### BEGIN SOLUTION
    if num_slots < len(load_E):
        raise ValueError(f"{num_slots} slots for {len(load_E)} experts; each expert needs one")
    copies_E = [1] * len(load_E)
    for _ in range(num_slots - len(load_E)):
        hottest = max(range(len(load_E)), key=lambda e: load_E[e] / copies_E[e])
        copies_E[hottest] += 1
    return copies_E
    ### END SOLUTION


# %% check="16.replicate"
replicate = check("16.replicate", replicate)

# %% [markdown]
# Three experts with 60, 25 and 5 tokens, and more and more slots. Every block is a copy:

# %% tags=["nbval-check-output"]
with style.use():
    fig, axes = picture.new(columns=4, size=(9.0, 2.2))
    for axis, slots in zip(axes, (3, 4, 5, 6), strict=True):
        copies = replicate([60, 25, 5], slots)
        each = [load / count for load, count in zip((60, 25, 5), copies, strict=True) for _ in range(count)]
        owners = [expert for expert, count in enumerate(copies) for _ in range(count)]
        axis.bar(range(slots), each, color=[style.PALETTE[expert] for expert in owners])
        axis.set(title=f"{slots} slots", xlabel="slot", xticks=range(slots), ylim=(0, 65))
        print(f"{slots} slots: copies {copies}, the largest load of one {max(each):.1f}")
    axes[0].set_ylabel("tokens")
fig.alt = "The load of each copy with three to six slots: the largest falls from 60 to 30, 25 and 20."
display(fig)

# %% [markdown]
# Then packing. Memory is the same on every GPU, so each holds the same number of slots. Perfect packing is a hard
# problem; the plain greedy way comes close.


# %% exercise="16.pack"
def pack(load_S: list[float], num_ranks: int) -> list[int]:
    """The rank of each slot, equally many on each rank, so that ranks bear about the same.

    Args:
        load_S: the load of each slot, zero or more.
        num_ranks: R, which divides the number of slots.

    The heaviest slot first (of equals, the first); each goes to the rank that bears least so far among those with room
    (of equals, the first). Raises ValueError if the slots cannot be shared evenly.
    """
    ### BEGIN SOLUTION
    if len(load_S) % num_ranks:
        raise ValueError(f"{len(load_S)} slots on {num_ranks} ranks; each rank holds as many as every other")
    room = [len(load_S) // num_ranks] * num_ranks
    total, rank_S = [0] * num_ranks, [0] * len(load_S)
    for slot in sorted(range(len(load_S)), key=lambda slot: -load_S[slot]):
        rank_S[slot] = rank = min((r for r in range(num_ranks) if room[r]), key=lambda r: total[r])
        total[rank] += load_S[slot]
        room[rank] -= 1
    return rank_S
    ### END SOLUTION


# %% check="16.pack"
pack = check("16.pack", pack)

# %% [markdown]
# The two together, on the example in EPLB's README (github.com/deepseek-ai/EPLB at d52c72d; its code prints the same):
# two layers of twelve experts, sixteen slots, eight GPUs on two nodes. There, four groups of experts are packed onto
# the nodes first, so that a limit on nodes stays one; then each node makes copies and packs its GPUs. Below, the load
# of each GPU, lightest first: by your two functions, by the published slots, and by `labkit`'s `placement.place`, which
# begins as you do and then swaps and moves copies as long as the busiest GPU gains.

# %% tags=["nbval-check-output"]
EXAMPLE = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PUBLISHED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def gpu_loads(load_E, expert_S, rank_S, ranks):
    """The load of each GPU: a copy bears its share of its expert's."""
    loads = [0.0] * ranks
    for expert, rank in zip(expert_S, rank_S, strict=True):
        loads[rank] += load_E[expert] / expert_S.count(expert)
    return loads


def place(load_E, num_slots, ranks):
    """Copies and ranks of one layer: the expert in each slot, and the slot's rank."""
    copies_E = replicate(load_E, num_slots)
    expert_S = [e for e, copies in enumerate(copies_E) for _ in range(copies)]
    return expert_S, pack([load_E[e] / copies_E[e] for e in expert_S], ranks)


for load_E, published in zip(EXAMPLE, PUBLISHED, strict=True):
    node_of = pack([sum(load_E[3 * g : 3 * g + 3]) for g in range(4)], 2)
    ours = []
    for node in range(2):
        members = [e for e in range(12) if node_of[e // 3] == node]
        expert_S, rank_S = place([load_E[e] for e in members], 8, 4)
        ours += gpu_loads([load_E[e] for e in members], expert_S, rank_S, 4)
    theirs = gpu_loads(load_E, published, [slot // 2 for slot in range(16)], 8)
    swapped = placement.place(load_E, 16, 8, num_nodes=2, num_groups=4).gpu_load
    for name, values in {"yours": ours, "EPLB": theirs, "swapped": swapped}.items():
        print(f"{name:8}", *(f"{value:6.1f}" for value in sorted(values)))

# %% [markdown]
# Yours are EPLB's, GPU for GPU. Greedy is near the best, not the best: a third copy where the second of another expert
# is missed less takes five tokens off the busiest GPU of the first layer. In the second, the busiest one stays as it
# is.

# %% [markdown]
# Now what was measured: the trained model's six layers, sixteen experts on eight ranks, two each. In order, the busiest
# rank has how many times the mean? Then with eight slots more, three on each rank.

# %%
p_busiest = predict("16.busiest", "Busiest of 8 ranks over the mean, experts in order?", 1, 8, "×", step=0.05)

# %%
mixed = [torch.cat([ids[at] for ids in chosen.values()]).flatten() for at in range(LAYERS)]
loads = [ids.bincount(minlength=E).tolist() for ids in mixed]
even = [torch.randint(E, (sum(load_E),)).bincount(minlength=E).tolist() for load_E in loads]


def busiest(load_E, slots):
    """The busiest of eight ranks over the mean: in order, or with copies and packing."""
    expert_S, rank_S = place(load_E, slots, 8) if slots else (list(range(E)), [e * 8 // E for e in range(E)])
    return 8 * max(gpu_loads(load_E, expert_S, rank_S, 8)) / sum(load_E)


WITH = {"in order": 0, "packed": 16, "8 copies, packed": 24}
table = {name: [busiest(load_E, slots) for load_E in loads] for name, slots in WITH.items()}
table["a uniform router, in order"] = [busiest(load_E, 0) for load_E in even]
p_busiest.against(statistics.mean(table["in order"]), min(table["in order"]), max(table["in order"]))

# %% [markdown]
# Every layer is a dot. The last bar is the baseline: as many tokens, sent anywhere by chance.

# %%
display(figures.bars_with_spread(table, "busiest rank over the mean", "×", baseline=("even", 1.0)))

# %% [markdown]
# Rank by rank, of the most uneven layer:

# %%
worst = max(range(LAYERS), key=lambda at: busiest(loads[at], 0))
with style.use():
    fig, axes = picture.new(columns=3, size=(9.6, 2.7))
    for axis, (name, slots) in zip(axes, WITH.items(), strict=True):
        placed = place(loads[worst], slots, 8) if slots else (list(range(E)), [e * 8 // E for e in range(E)])
        base = [0.0] * 8
        for expert, rank in zip(*placed, strict=True):
            share = loads[worst][expert] / placed[0].count(expert)
            color = style.LIT if placed[0].count(expert) > 1 else style.PALETTE[0]
            axis.bar(rank, share, 0.8, base[rank], color=color, edgecolor="white")
            base[rank] += share
        axis.axhline(sum(base) / 8, color=style.INK, linestyle="--")
        top = 1.05 * busiest(loads[worst], 0) * sum(loads[worst]) / 8
        axis.set(title=name, xlabel="rank", xticks=range(8), ylim=(0, top))
    axes[0].set_ylabel("choices")
fig.alt = f"Layer {worst}, load of eight ranks, the dashed line is the mean. Busiest over the mean: " + ", ".join(
    f"{name} {busiest(loads[worst], slots):.2f}" for name, slots in WITH.items()
) + ". Copies are orange."  # fmt: skip
display(fig)

# %% [markdown]
# Placement is made from yesterday's load. Users change: the same copies, chosen on one domain, under the load of
# another. On average, how many times the mean has the busiest rank then?

# %%
p_stale = predict("16.stale", "Placed for one domain, used by another: busiest over the mean?", 1, 8, "×", step=0.05)


# %%
def by_domain(domain, at):
    return chosen[domain][at].flatten().bincount(minlength=E).tolist()


pairs, in_order = {}, placement.Placement(tuple(range(E)), (1.0,) * E, 8)
for used in chosen:
    ratios = [in_order.imbalance_under(by_domain(used, at)) for at in range(LAYERS)]
    pairs["nobody: in order", used] = statistics.mean(ratios)
for planned in chosen:
    for used in chosen:
        ratios = []
        for at in range(LAYERS):
            found = placement.place(by_domain(planned, at), 24, 8)
            ratios.append(found.imbalance_under(by_domain(used, at)))
        pairs[planned, used] = statistics.mean(ratios)
p_stale.against(statistics.mean(pairs[a, b] for a, b in itertools.permutations(chosen, 2)))

# %% [markdown]
# (With `placement.place`, which swaps.) All pairs:

# %%
names = list(chosen)
with style.use():
    fig, (axis,) = picture.new(size=(6.0, 3.8))
    grid = [[pairs[planned, used] for used in names] for planned in [*names, "nobody: in order"]]
    axis.imshow(grid, cmap=style.SEQUENTIAL, vmin=1)
    for row, column in itertools.product(range(5), range(4)):
        dark = grid[row][column] < 0.6 * max(map(max, grid))
        axis.text(column, row, f"{grid[row][column]:.2f}", ha="center", va="center", color="w" if dark else "k")
    axis.set(xlabel="used by", ylabel="placed for")
    axis.set_xticks(range(4), names, fontsize=8)
    axis.set_yticks(range(5), [*names, "nobody: in order"])
    axis.grid(False)
told = ", ".join(f"{planned} under {used} {ratio:.2f}" for (planned, used), ratio in pairs.items())
fig.alt = f"Busiest rank over the mean, placed for one domain and used by another: {told}."
display(fig)

# %% [markdown]
# On the diagonal it is nearly even. Off it, compare with the last row, where nothing was placed: made for the wrong
# users, a placement gains little, or less than nothing.

# %% [markdown]
# So it is renewed, every ten minutes for instance (DeepSeek-V3's report, section 3.4.1), and it is worth it only where
# traffic is mixed and slow to change.

# %% [markdown]
# ## 8 · A rank dies
#
# In a month of 2,000 GPUs, one fails every few hours. All others stand still at the next exchange. What is to be done:
# notice it at once, say which one it was, and go on from the last checkpoint, on those that are left.

# %% [markdown]
# The training run of section 4, on the most ranks; before its seventh step, the last rank is killed. Does the message
# come at once, or after the timeout of a minute? And on two ranks, is the loss of the last step the same as without
# the accident?

# %%
p_told = predict("16.told", "Seconds from the start of the job until the accident is told?", 0, 90, "s")

# %%
folder = tempfile.mkdtemp(prefix="labkit-16-")
began = time.perf_counter()
try:
    parallel.launch(train_rank, RANKS[-1], batches, seed, folder, 6, backend=BACKEND, timeout=60)
    message = "nobody died"
except parallel.RankFailed as error:
    message = str(error).splitlines()[0]
p_told.against(time.perf_counter() - began)

# %% [markdown]
# What was told, and what there is to go on from:

# %% tags=["nbval-check-output"]
print(message.replace(f"rank {RANKS[-1] - 1} of {RANKS[-1]}", "rank R − 1 of R"))
print([path.name for path in checkpoints(Path(folder))])

# %% [markdown]
# On half of the ranks: each now has twice as many experts, and reads them from the files of those that had them. How
# far is the last loss from that of the run without an accident? (10 to the power of; in nats.)

# %%
p_resumed = predict("16.resumed", "Last loss, from that without an accident: 10 to the", -12, 1)

# %%
fewer = max(1, RANKS[-1] // 2)
resumed = parallel.launch(train_rank, fewer, batches, seed, folder, backend=BACKEND)[0]
p_resumed.against(math.log10(max(abs(resumed[-1] - runs[1][-1]), 1e-12)))

# %% [markdown]
# The whole run, with the accident:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.8))
    axis.plot(range(1, STEPS + 1), runs[1], "-", color=style.GREY, linewidth=6, label="one process, no accident")
    axis.plot(range(1, 7), resumed[:6], "o-", color=style.PALETTE[0], label=f"{RANKS[-1]} ranks")
    axis.plot(range(7, STEPS + 1), resumed[6:], "s-", color=style.PALETTE[1], label=f"{fewer} ranks go on")
    axis.axvline(6.5, color=style.LIT, linestyle="--", label="a rank is killed")
    axis.set(xlabel="step", ylabel="loss (nats)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Losses fall from {resumed[0]:.2f} to {resumed[-1]:.2f}; after six steps a rank dies, and the run goes on."
display(fig)

# %% [markdown]
# The grey line is the run in which nothing happened.

# %% [markdown]
# Nothing in the checkpoint says how many ranks there were: a file for each expert, one for everything else. Whoever
# comes reads the experts that are his now.

# %% [markdown]
# ## 9 · What a step takes
#
# From here on, paper. A GPU in a pipeline works on one micro-batch after the other; in each, arithmetic, the network
# and NVLink take their time. If the exchange is hidden, the longest of the three counts. And a pipeline has to fill: of
# p stages, the last begins when the first has done p − 1 micro-batches.


# %% exercise="16.step_time"
def step_time(
    compute: float, network_bytes: float, nvlink_bytes: float, network_gbit: float, nvlink_gbyte: float, stages: int,
    micro_batches: int, overlap: bool,
) -> tuple[float, float, str]:  # fmt: skip
    """Seconds of a training step in a pipeline, the share of them in which a stage is idle, and what binds.

    Args:
        compute: seconds of arithmetic of one micro-batch in one stage, forward and backward.
        network_bytes, nvlink_bytes: what a GPU sends for that micro-batch, both directions of training together.
        network_gbit: the network of a GPU in gigabits (10⁹) a second, as it is sold. nvlink_gbyte: NVLink in gigabytes.
        stages, micro_batches: p and m of the pipeline; m + p − 1 slots, each as long as one micro-batch takes.
        overlap: whether the exchange is hidden behind the arithmetic (the longer of the two counts), or waited for.

    The two links work at once, so an exchange takes as long as the slower. "compute", "network" or "nvlink" binds:
    whichever takes longest for one micro-batch.
    """
    ### BEGIN SOLUTION
    parts = {
        "compute": compute,
        "network": network_bytes / (network_gbit * 1e9 / 8),
        "nvlink": nvlink_bytes / (nvlink_gbyte * 1e9),
    }
    exchange = max(parts["network"], parts["nvlink"])
    one = max(compute, exchange) if overlap else compute + exchange
    slots = micro_batches + stages - 1
    return slots * one, (stages - 1) / slots, max(parts, key=parts.get)
    ### END SOLUTION


# %% check="16.step_time"
step_time = check("16.step_time", step_time)

# %% [markdown]
# One micro-batch of 10 ms, a quarter of a gigabyte over 400 Gbit/s, eight stages:

# %% tags=["nbval-check-output"]
for micro_batches, overlap in ((8, False), (8, True), (64, True)):
    seconds, bubble, binds = step_time(0.010, 2.5e8, 4e8, 400, 160, 8, micro_batches, overlap)
    print(f"{micro_batches:2} micro-batches, {'hidden' if overlap else 'waited for':10}: {seconds:.3f} s,", end=" ")
    print(f"idle {bubble:.0%}, {binds} binds; {1e3 * seconds / micro_batches:.1f} ms a micro-batch")

# %% [markdown]
# With DeepSeek-V3's numbers (an estimate; sections 3.2 and 4.2): 16 stages, so a micro-batch of one sequence of 4,096
# tokens meets 58/16 sparse layers in each; every row goes out and comes back, forward and backward; 400 Gbit/s of
# network, 160 GB/s of NVLink in use (section 3.2.2). With four nodes a token: how much longer is the step if the
# exchange is waited for?

# %%
p_wait = predict("16.wait", "Exchange waited for instead of hidden: the step takes longer by", 0, 200, "%")

# %%
SPEED = 1e12 * gpu_named("H100-80GB").tflops * RATES.matmul * RATES.grouped * RATES.fp8
layers_each, tokens = 58 / 16, 4096
compute = cluster_train.training_flops(v3, 4096) * tokens / 16 / SPEED
trip = 2 * tokens * layers_each * sum(sizes["fp8 out"])  # bytes of one trip a token, both passes
crossing = {nodes: trip * nodes * 7 / 8 for nodes in range(1, 9)}  # a token's own node needs no network
hidden, waited = (step_time(compute, crossing[4], trip * 7, 400, 160, 16, 120, way)[0] for way in (True, False))
p_wait.against(100 * (waited / hidden - 1), calculated=True)

# %% [markdown]
# What each of the three takes for one micro-batch in one stage, by the nodes that a token visits. Beside it, the same
# model with narrower experts, of 768 instead of 2,048 hidden values, as Qwen3-30B has them:

# %%
narrow = compute - tokens * layers_each * 9 * 18 * D * (2048 - 768) / SPEED  # nine experts, three products, 3 · 2 FLOPs
lines = {
    "arithmetic": [1e3 * compute] * 8,
    "with narrow experts": [1e3 * narrow] * 8,
    "network": [1e3 * size / 50e9 for size in crossing.values()],
    "NVLink": [1e3 * trip * 7 / 160e9] * 8,
}
axes = "nodes that a token visits", "one micro-batch, one stage (ms)"
display(figures.cost_curve(range(1, 9), lines, *axes, log=False))

# %% [markdown]
# That is what the limit on nodes is for: the network stays behind the arithmetic, and NVLink carries the rest. It also
# says what decides: a row has D values however wide the expert is, so **arithmetic for each byte grows with the
# expert's width**. Narrow experts are where exchanges bind. (Real kernels are slower than their rates, and sending
# takes multiprocessors; the lines are not where they are to a digit.)

# %% [markdown]
# `labkit.core.cluster_train` does this for whole models: products, experts, attention and memory at the rates that this
# course has measured on one H200, or that others published; tensor, pipeline, data and expert parallelism; memory; what
# is hidden and what is not. No number in it was fitted to a row of the table below.

# %% [markdown]
# DeepSeek-V3's report: 180 thousand GPU-hours on H800 for 10¹² tokens. How many does the model say?

# %%
p_hours = predict("16.hours", "GPU-hours per 10¹² tokens of DeepSeek-V3, as our model has it?", 50, 400, "thousand")

# %%
published = [*cluster_published.training(), *cluster_published.serving()]
p_hours.against(published[0].ours, calculated=True)

# %% [markdown]
# All figures that it is compared with, each with its source:

# %%
table = ["| | published | ours | error | source |", "|---|---|---|---|---|"]
for row in published:
    error = f"{row.error:+.0%}" if row.hit else f"**{row.error:+.0%}**"
    table.append(f"| {row.what} | {row.figure:,.4g} {row.unit} | {row.ours:,.4g} | {error} | {row.source} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# And as a picture: ours over the published figure. On the grey band it is within 20%.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(9.4, 0.8 + 0.26 * len(published)))
    for at, row in enumerate(published):
        axis.plot(row.ours / row.figure, at, "o", color=style.PALETTE[0] if row.hit else style.LIT)
    axis.axvspan(0.8, 1.2, color=style.GREY, alpha=0.25)
    axis.axvline(1, color=style.INK, linewidth=1)
    axis.set(xscale="log", xlabel="ours over the published figure", ylim=(len(published) - 0.5, -0.5))
    axis.set_xticks([0.25, 0.5, 0.8, 1, 1.2, 2, 4], ["¼", "½", "0.8", "1", "1.2", "2", "4"], minor=False)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(
        range(len(published)), [textwrap.shorten(row.what, 66, placeholder=" …") for row in published], fontsize=8
    )
hits = sum(row.hit for row in published)
fig.alt = f"{hits} of {len(published)} figures within 20 %. " + "; ".join(
    f"{row.what}: {row.error:+.0%}" for row in published
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# Look at those that miss, and at what they have in common: models with small experts, or small models. There the GPU
# waits for the host that starts its kernels, which this model does not count. And whole-run hours hold everything that
# went wrong, too.

# %% [markdown]
# Where large products and links are what counts, paper is a good guide.

# %% [markdown]
# ## 10 · Ten thousand GPUs
#
# The last experiment is one that nobody runs twice. DeepSeek-V3 again, as it was trained: with its multi-token module,
# and at most 15,360 sequences a step, since a larger batch would learn something else. On 2,048 GPUs it took two
# months. On 10,000, is it five times as fast? For every size the best plan is searched, and failures are counted as
# Llama 3's report has them.

# %%
p_ten = predict("16.ten", "10,000 GPUs over 2,048: tokens a second?", 1, 5, "×", step=0.05)

# %%
GPUS = (512, 1024, 2048, 4096, 10_000, 16_384, 32_768)
as_trained = v3.replace(num_mtp_layers=1)
rows = cluster_search.sweep(as_trained, "h800", GPUS, batch=15_360, precision="fp8")
by_size = {row.gpus: row for row in rows}
p_ten.against(by_size[10_000].tokens_per_second / by_size[2048].tokens_per_second, calculated=True)

# %% [markdown]
# What each size reaches, and what binds it: on the left tokens a second of one GPU, on the right where the time goes.

# %%
LOSSES = {"tensor": "cut matrices", "all_to_all": "all-to-all", "bubble": "bubble", "data": "gradients"}
LOSSES |= {"failures": "failures", "idle": "left idle"}
with style.use():
    fig, axes = picture.new(columns=2, size=(10.0, 3.2))
    rates = [row.tokens_per_gpu for row in rows]
    axes[0].plot(GPUS, rates, "o-")
    for row, rate in zip(rows, rates, strict=True):
        at = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes[0].annotate(row.binds.replace("_", "-"), (row.gpus, rate), **at)
    axes[0].set(xscale="log", xlabel="GPUs", ylabel="tokens/s of each GPU", ylim=(0, 1.25 * max(rates)))
    base = [0.0] * len(rows)
    for color, (name, label) in zip(style.PALETTE, LOSSES.items(), strict=False):
        shares = [100 * row.losses[name] for row in rows]
        axes[1].bar(range(len(rows)), shares, 0.7, base, color=color, label=label)
        base = [below + share for below, share in zip(base, shares, strict=True)]
    axes[1].set(xlabel="GPUs", ylabel="time lost (%)", ylim=(0, 1.1 * max(base)))
    sizes_told = [f"{size / 1000:.2g}k" if size >= 1000 else str(size) for size in GPUS]
    axes[1].set_xticks(range(len(rows)), sizes_told)
    axes[1].legend(loc="upper left")
    axes[0].set_xticks(GPUS, sizes_told, minor=False)
    axes[0].xaxis.set_minor_locator(NullLocator())
fig.alt = "Tokens/s of a GPU, and the largest loss: " + "; ".join(
    f"{row.gpus:,} GPUs {row.tokens_per_gpu:.0f}, {row.binds}, {sum(row.losses.values()):.0%} lost" for row in rows
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# The plans that the search found, and what breaks first from the smaller to the larger:

# %%
ten, base = by_size[10_000], by_size[2048]
plan = ten.estimate.plan
display(Markdown(cluster_search.sweep_table([base, ten])))
print(f"{plan.gpus:,} of 10,000 GPUs at work, {plan.micro_batches} micro-batches in {plan.pp} stages; "
      f"14.8 · 10¹² tokens in {ten.days(14.8e12):.0f} days instead of {base.days(14.8e12):.0f}")  # fmt: skip
print(f"a failure every {ten.reliability.between / 3600:.1f} hours, ", end="")
print(f"a checkpoint every {ten.reliability.interval:.0f} seconds of work")
print(f"breaks first: {cluster_search.breaks_first([base, ten]).replace('_', '-')}")

# %% [markdown]
# *Binds* is the largest loss at one size; *breaks first* is the loss that grew most between the two. They need not be
# the same: on 2,048 GPUs cut matrices ("tensor") bind, and on 10,000 they cost no more than there. What has grown past
# them are failures.

# %% [markdown]
# Read it as a chain. The batch is given, so more GPUs mean fewer micro-batches in each pipeline, and in one of sixteen
# stages the bubble would grow though nobody made it longer. The search gets out of its way with as few stages as memory
# allows, and to fit cuts matrices in two, which waits as well, for another link. At 32,768 GPUs so few micro-batches
# are left that the bubble is there all the same. What no plan gets out of the way of are **failures**: they grow with
# the number of GPUs, and with each the work since the last checkpoint is gone. And 15,360 sequences cannot be shared
# out evenly over any number of GPUs, so some are left idle.

# %% [markdown]
# Would twice the batch help? (Whether the model would learn as well from it is another question, and not one for a
# cost model.) The same 10,000 GPUs: how many times the tokens a second?

# %%
p_batch = predict("16.batch", "10,000 GPUs, twice the batch: tokens a second?", 0.8, 2, "×", step=0.01)

# %%
double = cluster_search.sweep(as_trained, "h800", (10_000,), batch=30_720, precision="fp8")[0]
p_batch.against(double.tokens_per_second / ten.tokens_per_second, calculated=True)

# %% [markdown]
# A larger batch fills pipelines and shares out evenly. What it does not cure is what broke first.

# %% [markdown]
# Now you. The planner from lab 00 knows clusters: choose a model, a kind of GPU, how many, and see what fits, how long
# it takes, and what binds. It opens with ten thousand GPUs and the plan that DeepSeek-V3 was trained with on 2,048 (256
# nodes; the module for more tokens is left out, and so are failures). Is it still a good plan? Change one degree after
# the other until something else binds, and then see what *Best plan* does.

# %%
V3 = {"pp": 16, "ep": 64, "products": "fp8", "sequences": 15_360, "schedule": "dualpipe", "recompute": "selective"}
display(show.planner("deepseek-v3", cluster="h800", nodes=1250).choose(**V3))

# %% [markdown]
# ## 11 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("16")

# %% [markdown]
# ## Claim verdicts
#
# No claim of the guide is about more than one machine, so none is settled here. One comes near: claim 6 has a model of
# 7 billion parameters trained by four A100 of 80 GB, and lab 00 counts its bytes. What this lab adds is the *time*,
# which the claim does not name:

# %%
dense7 = cluster_published.DENSE["llama-3.1-8b"]
four = cluster_search.best_plan(dense7, cluster("a100", 1, 4), batch=64)
days = 1e12 / four.tokens_per_second / 86_400
display(Markdown(
    f"On four A100, a dense model of 8 billion parameters does {four.tokens_per_second:,.0f} tokens a second, at an "
    f"MFU of {four.mfu:.0%}: **{days:,.0f} days for 10¹² tokens** ({four.plan.recompute} recomputation, "
    f"{four.memory.total / 1e9:.0f} GB on each). It fits; that it trains a model in useful time is another claim."
))  # fmt: skip

# %% [markdown]
# ## Further reading
#
# - Lepikhin et al. 2020, *GShard*, arXiv 2006.16668: experts over devices, and the all-to-all between them.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, arXiv 2412.19437: node-limited routing (2.1.2), DualPipe and
#   all-to-all kernels (3.2), fp8 (3.3), redundant experts in serving (3.4).
# - DeepSeek-AI 2025, *EPLB*, github.com/deepseek-ai/EPLB: copies and packing; *DeepEP*: dispatch and combine kernels.
# - Grattafiori et al. 2024, *The Llama 3 Herd of Models*, arXiv 2407.21783: parallelism and failures on 16,384 GPUs.
# - Narayanan et al. 2021, *Efficient Large-Scale Language Model Training on GPU Clusters*, arXiv 2104.04473: pipelines.
# - Zhao et al. 2025, *Insights into DeepSeek-V3*, arXiv 2505.09343: what they would ask of hardware.
