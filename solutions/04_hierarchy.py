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
# # 04 · Hierarchy: fine-grained, shared and grouped experts
#
# So far all experts of a layer were alike: E networks of one size, K of them for every token. DeepSeek's models give
# this crowd a structure. Experts are cut **finer**, one or two of them are **shared** by all tokens, and the rest live
# in **groups**, of which a token may visit only a few. The hope behind it: what is common gathers in one place, and the
# others are free to specialise. Do they?
#
# After this lab you can
#
# - split every expert of a trained layer without changing what the layer computes, at equal parameters and FLOPs;
# - add shared experts, and limit a token to a few groups, as DeepSeek-V2 and DeepSeek-V3 do, proved against the
#   production code;
# - measure specialisation as lift, against the right permutation and against a router that has learned nothing;
# - take experts away and read from the loss what they knew;
# - give a verdict on claim 3: *base experts learn what is general and domain experts what is special*.
#
# It takes about an hour and a half. Any CPU will do; on a GPU the same experiments train longer and larger.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first**; `cpu` shows every effect in
# seconds, `gpu` trains larger layers for longer, `auto` asks the machine.

# %% tags=["setup"]
import math
import statistics
from dataclasses import replace

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from labkit import check, claim, hint, predict, recap, reveal, show
from labkit.core import metrics, runtime
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels import reference
from labkit.nn import MoE, WindowModel, trace
from labkit.nn.oracle import hf_block
from labkit.show import picture, style
from labkit.train import data
from labkit.train.balance import switch_loss

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# ## 1 · A hierarchy on paper
#
# The guide that this course audits describes two kinds of experts: *base experts*, which learn what is general, and
# *domain experts*, which learn what is special. It shows a class for it. Below is what that class holds, in our own
# words.

# %% [markdown]
# > **Find the bug.** Which part of this layer is a base expert, and which a domain expert? Look before you run it.


# %% tags=["nbval-check-output"]
class GuidesHierarchy(torch.nn.Module):
    def __init__(self, d_model, num_experts):
        super().__init__()
        self.router = torch.nn.Linear(d_model, num_experts)

    def forward(self, x):
        return torch.topk(self.router(x).softmax(dim=-1), 2)


layer = GuidesHierarchy(16, 8)
print("what it holds:", {name: tuple(value.shape) for name, value in layer.named_parameters()})
kinds = {
    kind: sum(kind in name for name, _ in layer.named_modules()) for kind in ("expert", "base", "domain", "shared")
}
print("modules by name:", kinds)

# %% [markdown]
# **What is wrong.** Neither exists. There is one linear layer that makes eight numbers for each token, and no expert of
# either kind behind them. A hierarchy would need at least one network that every token passes, and a reason why the
# others should come to know different things. Training does not see the words *base* and *domain*: if experts divide
# the work by domain, it is because the loss made them.

# %% [markdown]
# So we build what the words could mean, the way published models do it, and then measure. Three ideas, each with its
# price:
#
# | idea | from | what it changes |
# |---|---|---|
# | fine-grained experts | DeepSeekMoE (Dai et al. 2024), section 3.1 | many narrow experts instead of few wide ones |
# | shared experts | DeepSeekMoE, section 3.2 | some experts work for every token, unweighted |
# | groups | DeepSeek-V2, section 2.2.2; DeepSeek-V3 | a token's experts come from few devices |

# %% [markdown]
# ## 2 · Finer experts at the same cost
#
# Cut each of N experts into m parts, each with $1/m$ of its hidden units, and let every token choose m times as many.
# Parameters and FLOPs of the experts stay what they were (DeepSeekMoE, equations 6 to 8):
#
# $$ h_t = u_t + \sum_{i=1}^{mN} g_{i,t} \, \mathrm{FFN}_i(u_t), \qquad
# g_{i,t} = \begin{cases} s_{i,t} & s_{i,t} \in \mathrm{TopK}(\{s_{j,t}\}, mK) \\ 0 & \text{otherwise.} \end{cases} $$

# %% [markdown]
# What grows is the number of ways to combine them. The paper's example: 16 experts, 2 of them chosen, against 64
# experts, 8 of them chosen. The first gives 120 combinations. The second?

# %%
p_combinations = predict(
    "04.combinations", "64 choose 8 is larger than 16 choose 2 by how many powers of ten?", 0, 20, "powers of ten"
)

# %%
p_combinations.against(math.log10(math.comb(64, 8) / math.comb(16, 2)), calculated=True)

# %% [markdown]
# The whole ladder, for a model width of 2048 and experts of 1408 hidden units at m = 1. One column is not constant: the
# router has a row for each expert.

# %% tags=["nbval-check-output"]
print(f"{'m':>2}{'experts':>9}{'chosen':>8}{'width':>7}{'combinations':>27}{'expert FLOPs':>14}{'router share':>14}")
for m in (1, 2, 4, 8):
    experts, chosen, width = 16 * m, 2 * m, 1408 // m
    flops, router = 6 * 2048 * width * chosen, 2 * 2048 * experts
    combinations = f"{math.comb(experts, chosen):,}"
    print(f"{m:>2}{experts:>9}{chosen:>8}{width:>7}{combinations:>27}{flops / 1e6:>12.1f} M{router / flops:>14.2%}")

# %% [markdown]
# Over ninety billion billion combinations, at the price of a router that is still below two per cent of its experts:
# that is what the last row says. But a combination that *could* be chosen is not yet one that is useful. Before we
# train anything, a fact that is easy to miss: cutting alone changes nothing at all.

# %% [markdown]
# A SwiGLU expert is a sum over its hidden units, and each unit has its own gate:
#
# $$ \mathrm{expert}(x) = \sum_{f=1}^{F} d_f \cdot \mathrm{SiLU}(g_f \cdot x)\,(u_f \cdot x)
# = \sum_{j=1}^{m} \mathrm{part}_j(x) , $$
#
# where $g_f$ and $u_f$ are rows of the gate and up matrices and $d_f$ is a column of down. Divide the units into m sets
# and you have m parts that add up to the expert, exactly.

# %% [markdown]
# For the whole layer to stay the same, all m parts of a chosen expert must be chosen, and their weights must be right.
# Give each part the router row of the expert it came from: m twins then have one and the same logit, so the mK best
# logits are exactly the K old winners with all their twins. Their weights are the catch. What is the softmax of a row
# in which every logit stands m times?


# %% exercise="04.split_experts"
def split_experts(
    router_ED: torch.Tensor, gate_up_E2FD: torch.Tensor, down_EDF: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut every expert into m narrow ones, such that the layer with mK of them computes what it did with K.

    Part j of expert e becomes expert e·m + j and takes the hidden units j·F/m up to (j + 1)·F/m.
    The layer's scores are a softmax over all experts, renormalised over the chosen ones or not.
    If something has to be scaled to keep the function, scale `down`.

    Args:
        router_ED: [E, D], the router's rows.
        gate_up_E2FD: [E, 2F, D], in each expert the F rows of the gate first, then the F rows of up.
        down_EDF: [E, D, F].
        m: parts for each expert.

    Returns the three tensors of the finer layer, [mE, D], [mE, 2F/m, D] and [mE, D, F/m], in the dtype that came in.
    Raises ValueError if m does not divide F.
    """
    ### BEGIN SOLUTION
    E, D, F = down_EDF.shape
    if F % m:
        raise ValueError(f"m is {m}, which does not divide the expert width {F}")
    gate_up = gate_up_E2FD.reshape(E, 2, m, F // m, D).transpose(1, 2).reshape(E * m, 2 * F // m, D)
    down = down_EDF.reshape(E, D, m, F // m).transpose(1, 2).reshape(E * m, D, F // m)
    return router_ED.repeat_interleave(m, dim=0), gate_up, m * down
    ### END SOLUTION


# %% check="04.split_experts"
split_experts = check("04.split_experts", split_experts)

# %% [markdown]
# Now hold it against a layer, in three kinds of routing. Two of them must agree to rounding. The third has sigmoid
# scores that nobody divides by anything: there each twin keeps the full score, and your factor m is one too many.


# %% tags=["nbval-check-output"]
def run_layer(x_TD, router_ED, gate_up_E2FD, down_EDF, k, **how):
    ids, weights = reference.route(x_TD @ router_ED.T, top_k=k, **how)
    return reference.experts_loop(x_TD, ids, weights, gate_up_E2FD, down_EDF)


draw = torch.Generator().manual_seed(1)
x_TD = torch.randn(200, 32, generator=draw)
layer = [torch.randn(*shape, generator=draw) / 6 for shape in ((16, 32), (16, 2 * 64, 32), (16, 32, 64))]
finer = split_experts(*layer, 4)
for name, how in {
    "softmax, renormalised": {},
    "softmax as it is": {"norm_topk": False},
    "sigmoid as it is": {"score_fn": "sigmoid", "norm_topk": False},
}.items():
    before, after = run_layer(x_TD, *layer, 2, **how), run_layer(x_TD, *finer, 8, **how)
    print(f"{name:<22} outputs after : before = {(after.norm() / before.norm()).item():.3f}")
print("parameters of the experts:", *(sum(t.numel() for t in tensors[1:]) for tensors in (layer, finer)))
print("multiply-adds a token:    ", *(3 * 32 * t[2].shape[2] * k for t, k in ((layer, 2), (finer, 8))))

# %% [markdown]
# > **Find the bug.** `gate_up.reshape(m * E, 2 * F // m, D)` is one line, has the right shape, and is wrong. It cuts
# > the rows in memory order, and in memory all gates come before all ups. The picture shows where the rows of two old
# > experts go (blue and orange: gate and up of the first; green and pink: of the second). What is a part whose rows
# > are all of one kind?

# %%
kind = torch.tensor([0, 1]).repeat_interleave(8)  # gate rows, then up rows
marked = torch.stack([kind, kind + 2]).float()[:, :, None]  # two experts of width 8, D = 1
ways = {
    "split_experts": split_experts(torch.zeros(2, 1), marked, torch.zeros(2, 1, 8), 4)[1],
    "one reshape": marked.reshape(8, 4, 1),
}
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 3.0))
    for axis, (name, rows) in zip(axes, ways.items(), strict=True):
        for part, row in [(p, r) for p in range(8) for r in range(4)]:
            value = int(rows[part, row, 0])
            axis.plot(part, row, "s", markersize=17, color=style.PALETTE[value])
            axis.text(part, row, "gu"[value % 2], ha="center", va="center", color="white")
        axis.set(title=name, xlabel="new expert", ylabel="row of gate_up", xlim=(-0.6, 7.6), ylim=(3.6, -0.6))
        axis.grid(False)
fig.alt = (
    "Eight new experts of four rows. Left, each has two gate rows (g) above two up rows (u). Right, after one reshape, "
    "experts 0, 1, 4 and 5 hold only gate rows and the others only up rows."
)
display(fig)

# %% [markdown]
# On the right a part's "gate" multiplies rows that were gates too, and in the next part ups multiply ups. Nothing
# fails; the layer computes another function. Only a comparison of outputs can tell.

# %% [markdown]
# Here is that comparison, on the layer from above with softmax scores. Both tensors have the shape that was asked for.

# %% tags=["nbval-check-output"]
reshaped = (finer[0], layer[1].reshape(finer[1].shape), finer[2])
for name, parts in {"split_experts": finer, "one reshape": reshaped}.items():
    before, after = run_layer(x_TD, *layer, 2), run_layer(x_TD, *parts, 8)
    print(f"{name:<14} gate_up {tuple(parts[1].shape)}, same outputs: {torch.allclose(before, after, atol=1e-4)}")

# %% [markdown]
# So a layer can be refined at any time without a change, and whatever finer experts are good for must come from
# training, when the twins drift apart and the router learns to choose them one by one.

# %% [markdown]
# ### Does it pay?
#
# We train small byte models on text of four domains: code, English, arithmetic and records. A model sees the last
# eight bytes, has one sparse layer, and guesses the next byte. All models of this lab have the same number of expert
# parameters, use the same number of them for each token, and differ in structure only.

# %%
SEEDS = range(5)
D, WIDTH, STEPS, BATCH = (128, 256, 400, 64) if profile == "gpu" else (32, 64, 200, 4)
base = MoEConfig(d_model=D, d_expert=WIDTH // 4, num_experts=64, top_k=8)
STRUCTURES = {
    "coarse": base.replace(d_expert=WIDTH, num_experts=16, top_k=2),
    "fine": base,
    "fine + shared": base.replace(num_experts=63, top_k=7, num_shared_experts=1),
    "fine, 3 of 8 groups": base.replace(num_groups=8, top_groups=3, group_score="top2_sum"),
}
source = data.corpus(bytes_per_domain=400_000 if profile == "gpu" else 200_000, validation_share=0.2)
pool_BS = data.sample(
    source, num_sequences=16_384 if profile == "gpu" else 8192, sequence_length=65, seed=seed
).ids_BS.to(device)
test = data.sample(source, num_sequences=512 if profile == "gpu" else 192, sequence_length=65, split="validation")
DOMAINS = source.domains
print(source.describe())


# %% [markdown]
# The training loop: next-byte cross-entropy, plus the auxiliary loss of lab 03 with a small coefficient, so that no
# expert is left without work. On a GPU every expert computes every token here, and what was not chosen counts zero
# (lab 02's `onehot`): the same result for eight or nine times the arithmetic, in a few large products instead of a
# queue of hundreds of small ones.


# %%
def fresh(moe, seed):
    """A byte model with this sparse layer, not trained yet."""
    torch.manual_seed(seed)
    how = "onehot" if device.type == "cuda" else "auto"
    return WindowModel(moe, d_embed=16, layer=lambda moe: MoE(moe, implementation=how)).to(device)


def train(moe, seed):
    """The model of this seed after training, and its loss at every step, in nats."""
    model = fresh(moe, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    draw, losses = torch.Generator(device).manual_seed(seed), []
    for _ in range(STEPS):
        ids_BS = pool_BS[torch.randint(len(pool_BS), (BATCH,), generator=draw, device=device)]
        logits_BSV, records = model(ids_BS[:, :-1], return_routing=True)
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + switch_loss(records, alpha=0.01)).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return model, torch.stack(losses).cpu()


# %% [markdown]
# And the reading of a model: one `Routing` record of held-out text, with the domain, the sequence and the loss of every
# byte. The last byte of a sequence has nothing after it, so its loss is NaN.


# %%
@torch.no_grad()
def read(model, batch=test):
    """What the model's sparse layer decides for the batch, and how well the model predicts it."""
    ids_BS = batch.ids_BS.to(device)
    logits_BSV, records = model(ids_BS, return_routing=True)
    loss_BS = F.cross_entropy(logits_BSV[:, :-1].mT, ids_BS[:, 1:], reduction="none")
    loss_T = F.pad(loss_BS, (0, 1), value=math.nan).flatten().cpu()
    B, S = ids_BS.shape
    labels = {"tokens": batch.tokens, "domains": batch.token_domains}
    return replace(records[0].detach(), **labels, sequence_T=torch.arange(B).repeat_interleave(S), loss_T=loss_T)


def mean_loss(record):
    return record.loss_T.nanmean().item()


# %% [markdown]
# Before they run: the coarse model has 16 experts and chooses 2, the fine one 64 and 8. Five seeds each. Where does the
# fine one end?

# %%
p_fine = predict(
    "04.fine", "How much lower is the fine model's held-out loss, on average over five seeds?", -0.2, 0.3, "nats"
)

# %%
models, curves, records = {}, {}, {}
for name, moe in STRUCTURES.items():
    models[name], curves[name] = zip(*(train(moe, s) for s in SEEDS), strict=True)
    records[name] = [read(model) for model in models[name]]
loss = {name: [mean_loss(record) for record in found] for name, found in records.items()}
gain = [a - b for a, b in zip(loss["coarse"], loss["fine"], strict=True)]
p_fine.against(statistics.mean(gain), min(gain), max(gain))

# %% [markdown]
# Every run is a dot; the bar is the mean. The right-hand side shows the way there. A byte model that knows nothing has
# a loss of $\ln 256 \approx 5.5$ nats.


# %%
def compare(names):
    """Held-out losses as dots, one a seed, and the training curves."""
    with style.use():
        fig, axes = picture.new(columns=2, size=(9.6, 3.0))
        for row, name in enumerate(names):
            rows = [row + 0.08 * (s - 2) for s in SEEDS]  # one below the other, so that none hides another
            axes[0].scatter(loss[name], rows, color=style.PALETTE[row], alpha=0.8)
            axes[0].plot([statistics.mean(loss[name])] * 2, [row - 0.3, row + 0.3], color=style.INK)
            smooth = torch.stack(curves[name]).mean(0).unfold(0, STEPS // 20, STEPS // 20).mean(1)
            axes[1].plot(
                [STEPS // 20 * (i + 0.5) for i in range(len(smooth))], smooth, color=style.PALETTE[row], label=name
            )
        axes[0].set(xlabel="held-out loss, nats a byte; one dot a seed", ylim=(len(names) - 0.4, -0.6))
        axes[0].set_yticks(range(len(names)), names)
        axes[1].set(xlabel="training step", ylabel="training loss, nats a byte")
        axes[1].legend()
    means = ", ".join(f"{name} {statistics.mean(loss[name]):.3f}" for name in names)
    fig.alt = f"Held-out loss in nats a byte, mean of five seeds: {means}. Right: training curves."
    return fig


display(compare(["coarse", "fine"]))

# %%
spread = max(statistics.stdev(loss[name]) for name in ("coarse", "fine"))
wins = sum(g > 0 for g in gain)
display(Markdown(
    f"The fine model is better on **{wins} of {len(gain)} seeds**, on average by {statistics.mean(gain):.3f} nats; one "
    f"model's own seeds scatter with a standard deviation of up to {spread:.3f}."
))  # fmt: skip

# %% [markdown]
# The curves all but lie on each other: compare the width of the left-hand axis with the height of the right-hand one.
# So read the difference beside the scatter of the seeds, and before you read it as a law, recall the conditions: one
# small layer, a short training, bytes. DeepSeekMoE reports gains from finer experts on language models of two billion
# parameters; nothing here contradicts or proves that. What it costs is not in the picture: sixty-four small products
# instead of sixteen larger ones are slower on most machines, at equal FLOPs (lab 02 and lab 09).

# %% [markdown]
# ## 3 · Shared experts
#
# Suppose every expert needs to know that a space follows a comma. With K of E experts working for a token, each of them
# learns it on its own, again and again. DeepSeekMoE sets $K_s$ experts aside that every token passes, so that the
# routed ones need not repeat what is common (section 3.2, equation 9):
#
# $$ h_t = u_t + \sum_{i=1}^{K_s} \mathrm{FFN}_i(u_t) + \sum_{i=K_s+1}^{mN} g_{i,t} \, \mathrm{FFN}_i(u_t) . $$

# %% [markdown]
# No weight stands before the first sum. To keep the cost, the router chooses $mK - K_s$ of the remaining $mN - K_s$
# experts: here 7 of 63, and one shared. You write what the layer adds to $u_t$. `reference.experts_loop` computes the
# routed sum and `reference.swiglu` one expert, as you built them in lab 02.


# %% exercise="04.shared_expert"
def shared_expert(
    x_TD: torch.Tensor, topk_ids_TK: torch.Tensor, topk_scores_TK: torch.Tensor,
    gate_up_E2FD: torch.Tensor, down_EDF: torch.Tensor,
    shared_gate_up_S2FD: torch.Tensor, shared_down_SDF: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The output of a layer with E routed and S shared experts; the residual connection is not part of it.

    Args:
        x_TD: [T, D], float32.
        topk_ids_TK, topk_scores_TK: [T, K], the router's decision; the scores need not sum to one.
        gate_up_E2FD, down_EDF: [E, 2F, D] and [E, D, F], the routed experts.
        shared_gate_up_S2FD, shared_down_SDF: [S, 2F, D] and [S, D, F], the shared ones; S may be 0.

    Returns [T, D], like x_TD.
    """
    ### BEGIN SOLUTION
    y_TD = reference.experts_loop(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    for gate_up_2FD, down_DF in zip(shared_gate_up_S2FD, shared_down_SDF, strict=True):
        y_TD = y_TD + reference.swiglu(x_TD, gate_up_2FD, down_DF)
    return y_TD
    ### END SOLUTION


# %% check="04.shared_expert"
shared_expert = check("04.shared_expert", shared_expert)

# %% [markdown]
# S shared experts of width F that all work for every token are, by the sum over hidden units of section 2, one network
# of width S·F. `labkit.nn.MoE` and `transformers` keep them so. Beside it stands a fault that is easy to make.

# %% tags=["nbval-check-output"]
moe = MoEConfig(d_model=32, d_expert=16, num_experts=16, top_k=4, num_shared_experts=2, norm_topk=False)
torch.manual_seed(2)
layer, x_TD = MoE(moe), torch.randn(100, 32)
gate, up = layer.shared.gate_up_2FD.detach().chunk(2)
shared = (
    torch.cat([gate.view(2, 16, 32), up.view(2, 16, 32)], dim=1),
    layer.shared.down_DF.detach().view(32, 2, 16).transpose(0, 1),
)
experts = (layer.experts.gate_up_E2FD.detach(), layer.experts.down_EDF.detach())
with torch.no_grad():
    y_TD, decision = layer(x_TD, return_routing=True)
ours_TD = shared_expert(x_TD, decision.topk_ids_TK, decision.topk_scores_TK, *experts, *shared)
print("two shared experts, or one of twice the width: same output", torch.allclose(ours_TD, y_TD, atol=1e-5))
weight_T = decision.topk_scores_TK.sum(1)
print(f"a token's routing weights add up to {weight_T.min():.1f} at least, {weight_T.max():.1f} at most")

# %% [markdown]
# > **Find the bug.** Put the shared expert into the router's sum, `weights.sum() * shared(x)`, and with renormalised
# > weights you will see no difference: their sum is one. In a model without renormalisation, as here, the *general*
# > part of the layer then fades for every token about which the router is undecided, and the router gets a gradient
# > from a network that it does not choose.

# %% [markdown]
# The second line is the sum that such a bug multiplies with. Where the router spreads its favour, only a part of the
# shared output is left.

# %%
ordered_T = weight_T.sort().values
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.6))
    axis.plot(range(100), 100 * ordered_T, color=style.LIT, label="shared output times the weights")
    axis.axhline(100, color=style.PALETTE[0], label="shared output as it is (DeepSeekMoE)")
    axis.set(xlabel="token, by how decided the router is", ylabel="what is left of it, %", ylim=(0, 110))
    axis.legend(loc="lower right")
fig.alt = f"With the bug only {ordered_T[0]:.0%} to {ordered_T[-1]:.0%} of the shared output is left, by token."
display(fig)

# %% [markdown]
# Is a shared expert worth a routed one? Same parameters, same FLOPs, five seeds: 64 choose 8 against 63 choose 7 plus
# one that all tokens share.

# %%
p_shared = predict(
    "04.shared", "How much lower is the held-out loss *with* a shared expert, on average?", -0.2, 0.2, "nats"
)

# %%
gain = [a - b for a, b in zip(loss["fine"], loss["fine + shared"], strict=True)]
p_shared.against(statistics.mean(gain), min(gain), max(gain))
display(compare(["coarse", "fine", "fine + shared"]))

# %% [markdown]
# If the interval above has zero inside, this experiment does not say which is better, and a single pair of runs would
# have said whatever its seeds said. If it has not, the sign is an answer for this size and this training; hold it
# against the scatter of one model's own seeds before you make more of it.
#
# A shared expert also has a merit that no loss shows: it needs no routing, so on many devices it can work while the
# others are still sending tokens to each other (lab 16).

# %% [markdown]
# ## 4 · Groups: fewer devices for each token
#
# With 64 or 256 narrow experts spread over devices, a token's K experts may sit on K different ones. Each visit sends D
# values there and D back, so the number of devices that a token visits is what its routing costs in communication.
#
# DeepSeek-V2 (section 2.2.2) first picks the M best devices, then the K best experts on them. A device is worth as much
# as its best expert. DeepSeek-V3 (section 2.1.2) does it with nodes, and a node's worth is the *sum* of its best K/M
# scores: of two, with its K = 8 and M = 4.

# %% [markdown]
# Experts of a group are neighbours: group g holds the experts $gE/G$ up to $(g+1)E/G$. The selection bias of lab 01
# takes part in both choices, of groups and of experts, and as always it never touches the weights.


# %% exercise="04.group_limited_top_k"
def group_limited_top_k(
    scores_TE: torch.Tensor, bias_E: torch.Tensor, k: int, num_groups: int, top_groups: int,
    group_score: str = "top2_sum",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Choose each token's K best experts inside its best groups.

    Args:
        scores_TE: [T, E], float32, positive; no two biased scores of a token are equal.
        bias_E: [E], float32, of any sign: added to the scores for both choices, never to what is returned.
        k: experts for each token; num_groups: equal blocks of neighbours; top_groups: how many of them a token may use.
        group_score: what a group is worth: "max", its best biased score, or "top2_sum", the sum of its two best.

    Returns `(topk_ids, topk_scores)`, both [T, K]: the winners, best first by biased score, int64, and their own,
    unbiased scores. An expert outside the chosen groups can never win.
    """
    ### BEGIN SOLUTION
    choice_TGN = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    best = 2 if group_score == "top2_sum" else 1
    worth_TG = choice_TGN.topk(best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(worth_TG, dtype=torch.bool).scatter(1, worth_TG.topk(top_groups).indices, True)
    choice_TE = choice_TGN.masked_fill(~kept_TG[..., None], float("-inf")).flatten(1)
    topk_ids_TK = choice_TE.topk(k, dim=-1).indices
    return topk_ids_TK, scores_TE.gather(1, topk_ids_TK)
    ### END SOLUTION


# %% check="04.group_limited_top_k"
group_limited_top_k = check("04.group_limited_top_k", group_limited_top_k)

# %% [markdown]
# > **Find the bug.** `choice.masked_fill(~kept, 0.0)` was in published code for a long time. It is right as long as
# > scores are positive. Now let the balancer push biases below zero, and watch who wins.

# %% tags=["nbval-check-output"]
one = torch.tensor([[0.80, 0.70, 0.30, 0.20, 0.60, 0.10]])


def zero_mask(scores_TE, bias_E, k):
    choice = (scores_TE + bias_E).unflatten(1, (3, 2))
    kept = torch.zeros(len(scores_TE), 3).scatter(1, choice.sum(-1).topk(1).indices, 1.0).bool()
    return choice.masked_fill(~kept[..., None], 0.0).flatten(1).topk(k).indices


for push in (0.0, -0.5, -0.75, -1.0):
    bias_E = torch.full((6,), push)
    ids, _ = group_limited_top_k(one, bias_E, 2, 3, 1)
    inside = int((zero_mask(one, bias_E, 2) < 2).sum())
    print(
        f"bias {push:>5}: right {sorted(ids[0].tolist())}; masked with zero, {inside} of 2 come from the allowed group"
    )

# %% [markdown]
# A bias that is the same for all experts should change nothing. With the zero mask it does: once an allowed score is
# below zero, the *forbidden* ones, all zero, are the highest of the row. `transformers` had this line in its
# DeepSeek-V3 until 2026 (pull request 45441), vLLM and SGLang until February 2025 (13474 and 3705). All three were
# mended with minus infinity. As long as all biases are positive, nobody notices.

# %% [markdown]
# The two ways to value a group can disagree. One token, three groups of two experts, one group allowed:

# %% tags=["nbval-check-output"]
specialist = torch.tensor([[0.90, 0.05, 0.70, 0.60, 0.20, 0.10]])
for how in ("max", "top2_sum"):
    ids, weights = group_limited_top_k(specialist, torch.zeros(6), 2, 3, 1, how)
    print(f"{how:<9} experts {ids[0].tolist()}, scores {[round(w, 2) for w in weights[0].tolist()]}")
print(f"no limit  experts {specialist[0].topk(2).indices.tolist()}")

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(8.4, 2.6))
    for axis, (how, best) in zip(axes, {"max": 1, "top2_sum": 2}.items(), strict=True):
        worth = specialist.view(3, 2).topk(best).values.sum(-1)
        for expert, score in enumerate(specialist[0].tolist()):
            lit = expert // 2 == worth.argmax()
            axis.bar(expert, score, color=style.PALETTE[0] if lit else style.GREY)
        for group, value in enumerate(worth.tolist()):
            axis.text(2 * group + 0.5, 1.0, f"worth {value:.2f}", ha="center")
        axis.set(title=how, xlabel="expert, in groups of two", ylabel="score", ylim=(0, 1.15), xticks=range(6))
fig.alt = (
    "Six scores in three groups. With max the group of 0.90 and 0.05 is kept, with top2_sum that of 0.70 and 0.60."
)
display(fig)

# %% [markdown]
# Blue is what may be chosen. "max" follows the star and has to take its poor neighbour too; the sum prefers two good
# ones. With several experts from each group, which is what K = 8 and M = 3 or 4 come to, the sum is nearer to what the
# token will get.

# %% [markdown]
# ## 5 · The whole layer, against the production code
#
# Sigmoid scores, a bias for the choice, groups, weights renormalised and scaled, routed experts and shared ones: that
# is DeepSeek-V3's sparse block, and you have written its parts. Put together, they must equal
# `DeepseekV3MoE` in `transformers`, on its own weights.


# %%
def deepseek_v3(block, moe, x_TD):
    """The sparse block out of this lab's functions, with the weights of transformers' block."""
    bias_E = block.gate.e_score_correction_bias
    scores_TE = (x_TD @ block.gate.weight.T).sigmoid()
    ids, weights = group_limited_top_k(scores_TE, bias_E, moe.top_k, moe.num_groups, moe.top_groups)
    weights = moe.route_scale * weights / (weights.sum(1, keepdim=True) + 1e-20)
    wide = block.shared_experts
    shared = (torch.cat([wide.gate_proj.weight, wide.up_proj.weight])[None], wide.down_proj.weight[None])
    return shared_expert(x_TD, ids, weights, block.experts.gate_up_proj, block.experts.down_proj, *shared)


# %% [markdown]
# Four variants: with one shared expert and with two, with one group out of four, and with three groups out of eight.

# %% tags=["nbval-check-output"]
v3 = MoEConfig(
    d_model=32, d_expert=8, num_experts=16, top_k=4, num_shared_experts=2, score_fn="sigmoid", selection_bias=True,
    route_scale=2.5, num_groups=4, top_groups=2, group_score="top2_sum",
)  # fmt: skip
x_TD = torch.randn(300, 32, generator=torch.Generator().manual_seed(3))
for fields in ({}, {"num_shared_experts": 1}, {"top_groups": 1}, {"num_groups": 8, "top_groups": 3, "top_k": 6}):
    moe = v3.replace(**fields)
    block = hf_block("deepseek_v3", moe, seed=4)
    with torch.no_grad():
        block.gate.e_score_correction_bias.abs_()
        same = torch.allclose(deepseek_v3(block, moe, x_TD), block(x_TD[None])[0], atol=1e-4)
    told = f"{moe.top_groups} of {moe.num_groups} groups, K = {moe.top_k}, {moe.num_shared_experts} shared"
    print(f"{told:<35} {'equal on all 300 tokens' if same else 'DIFFERENT'}")

# %% [markdown]
# In the published models, groups are devices: V2 puts its 160 experts on 8 devices and allows 3, V3 its 256 on 8 nodes
# and allows 4. Our `fine` model never had a limit. If its 64 experts lived on 8 devices, how many would a token visit?

# %%
p_groups = predict(
    "04.groups", "K = 8 of 64 experts on 8 devices, no limit: how many devices does a token visit?", 1, 8
)


# %%
def chosen(ids_TK, E=64):
    return torch.zeros(len(ids_TK), E).scatter(1, ids_TK, 1.0)


def devices(ids_TK):
    """How many of the 8 groups each token's experts lie in, on average."""
    return chosen(ids_TK).unflatten(1, (8, -1)).amax(-1).sum(1).mean().item()


visited = [devices(record.topk_ids_TK) for record in records["fine"]]
p_groups.against(statistics.mean(visited), min(visited), max(visited))

# %% [markdown]
# Eight different experts drawn at random leave out a given device with probability $\binom{56}{8} / \binom{64}{8}$.
# So pure chance visits

# %% tags=["nbval-check-output"]
by_chance = 8 * (1 - math.comb(56, 8) / math.comb(64, 8))
print(f"{by_chance:.2f} of 8 devices")

# %% [markdown]
# Now the limit, M from 1 to 8, put upon two of the trained models after the fact. Three readings: devices visited, the
# share of the free choice that survives, and the price in loss when the models are run with it.

# %%
limited, LIMITS = {}, (1, 2, 3, 4, 8)
for how in ("max", "top2_sum"):
    for M in LIMITS:
        for model, free in zip(models["fine"][:2], records["fine"][:2], strict=True):
            scores_TE = free.logits_TE.softmax(-1)
            ids, _ = group_limited_top_k(scores_TE, torch.zeros(64), 8, 8, M, how)
            free_TE = chosen(free.topk_ids_TK)
            both_TE = chosen(ids) * free_TE
            kept, weight = both_TE.sum() / free_TE.sum(), (both_TE * scores_TE).sum() / (free_TE * scores_TE).sum()
            router = model.layers[0].router
            router.config = base.replace(num_groups=8, top_groups=M, group_score=how)
            price = mean_loss(read(model)) - mean_loss(free)
            router.config = base
            limited.setdefault((how, M), []).append((devices(ids), 100 * kept.item(), price, weight.item()))
after = {key: [statistics.mean(values) for values in zip(*runs, strict=True)] for key, runs in limited.items()}
trained_price = [a - b for a, b in zip(loss["fine, 3 of 8 groups"], loss["fine"], strict=True)]

# %%
with style.use():
    fig, axes = picture.new(columns=3, size=(10.4, 3.1))
    for how, marker in (("max", "o"), ("top2_sum", "s")):
        for axis, part in zip(axes, range(3), strict=True):
            axis.plot(LIMITS, [after[how, M][part] for M in LIMITS], marker=marker, label=how)
    axes[0].axhline(by_chance, color=style.INK, linestyle=":", label="random experts, no limit")
    axes[2].plot([3] * len(trained_price), trained_price, "D", color=style.LIT, alpha=0.7, label="trained with it")
    axes[2].axhline(0, color=style.INK, linestyle=":")
    axes[0].set(ylabel="devices visited by a token", ylim=(0, 8))
    axes[1].set(ylabel="of the free choice kept, %", ylim=(0, 105))
    axes[2].set(ylabel="loss added, nats a byte")
    for axis in axes:
        axis.set(xlabel="groups allowed, M", xticks=LIMITS)
        axis.legend(fontsize=9)
fig.alt = (
    f"With M = 3 groups a token visits {after['top2_sum', 3][0]:.1f} devices, keeps {after['top2_sum', 3][1]:.0f} % "
    f"of its free choice and loses {after['top2_sum', 3][2]:.3f} nats; with M = 1 it keeps "
    f"{after['top2_sum', 1][1]:.0f} %."
)
display(fig)

# %% [markdown]
# In words, for the limit that DeepSeek-V2 has:

# %%
_, share, price, weight = after["top2_sum", 3]
display(Markdown(
    f"With 3 of 8 groups {100 - share:.0f} % of the free choice falls out, which carried {1 - weight:.0%} of its "
    f"weight. Other experts step in, and the loss changes by {price:+.3f} nats."
))  # fmt: skip

# %% [markdown]
# With "max" a token's favourite can never fall out; with the sum it can. The diamonds, one a seed, are models that were
# *trained* under the limit of 3 instead of being limited afterwards. Whether training helps them to live with it, you
# see by comparing them with the lines at M = 3.

# %% [markdown]
# ## 6 · Specialisation, measured
#
# Does the sparse layer divide the work by domain? The usual evidence is a coloured map with a few bright cells. We want
# a number, and something to compare it with. For domain d and expert e,
#
# $$ \mathrm{lift}(d, e) = \frac{P(e \mid d)}{P(e)} , $$
#
# both counted over choices. 1 says that the domain uses the expert as often as anyone, 2 twice as often, 0 never.


# %% exercise="04.lift"
def lift(topk_ids_TK: torch.Tensor, domain_T: torch.Tensor, num_experts: int, num_domains: int) -> torch.Tensor:
    """How much more often a domain chooses an expert than all tokens do.

    Args:
        topk_ids_TK: [T, K] int64, the experts of each token; all K choices count alike.
        domain_T: [T] int64, the domain of each token, in [0, num_domains). Every domain has a token.
        num_experts: E; num_domains: G.

    Returns [G, E], float32: P(e | d) / P(e). An expert that nobody chose has lift 1.
    """
    ### BEGIN SOLUTION
    chosen_TE = torch.zeros(len(topk_ids_TK), num_experts, device=topk_ids_TK.device).scatter(1, topk_ids_TK, 1.0)
    counts_GE = torch.zeros(num_domains, num_experts, device=chosen_TE.device).index_add(0, domain_T, chosen_TE)
    share_GE = counts_GE / counts_GE.sum(dim=1, keepdim=True)
    overall_E = counts_GE.sum(dim=0) / counts_GE.sum()
    return torch.where(overall_E > 0, share_GE / overall_E, 1.0)
    ### END SOLUTION


# %% check="04.lift"
lift = check("04.lift", lift)

# %% [markdown]
# Six tokens, two domains of unequal size, three experts, one choice each. Work one cell out by hand before you run it.

# %% tags=["nbval-check-output"]
ids = torch.tensor([[0], [0], [1], [0], [1], [2]])
domain_T = torch.tensor([0, 0, 0, 0, 1, 1])
table = lift(ids, domain_T, 3, 2)
print("domain 0:", [round(v, 3) for v in table[0].tolist()])
print("domain 1:", [round(v, 3) for v in table[1].tolist()])
record = Routing.of(torch.zeros(6, 3), ids, torch.ones(6, 1), domains=("a",) * 4 + ("b",) * 2)
print("as labkit.core.metrics counts:", torch.allclose(table, metrics.lift_by_domain(record).lift_GE))

# %% [markdown]
# Expert 1 has one choice from each domain and still the lifts differ: domain 1 is smaller, so one choice is a larger
# share of it. And with six tokens, is a lift of 3 remarkable? Shuffle the labels and it will often come out so.

# %% [markdown]
# A table has G · E cells; for a verdict we need one number. **Peak lift**: each expert's highest lift over the domains,
# averaged over all choices,
#
# $$ \mathrm{peak} = \sum_e P(e) \, \max_d \mathrm{lift}(d, e) . $$
#
# Averaging over choices instead of experts keeps rarely used experts, whose lifts are noisy, from deciding. Experts
# that ignore domains have a peak of 1; with four equally large domains and an expert for each, it is 4.


# %%
def peak(ids_TK, domain_T, E):
    """Peak lift: the mean over all choices of the chosen expert's highest lift."""
    return (chosen(ids_TK, E).sum(0) / ids_TK.numel() * lift(ids_TK, domain_T, E, len(DOMAINS)).amax(0)).sum().item()


domain_T = torch.tensor([DOMAINS.index(label) for label in test.token_domains])
sequence_T = torch.arange(len(test.domains)).repeat_interleave(test.ids_BS.shape[1])
domain_B = torch.tensor([DOMAINS.index(label) for label in test.domains])
draw = torch.Generator().manual_seed(seed)
by_token = [domain_T[torch.randperm(len(domain_T), generator=draw)] for _ in range(50)]
shuffled_B = [domain_B[torch.randperm(len(domain_B), generator=draw)] for _ in range(50)]
by_sequence = [labels_B[sequence_T] for labels_B in shuffled_B]

# %% [markdown]
# The maximum of four noisy numbers is above 1 even where there is nothing to find, so the peak needs a **baseline with
# permuted labels**. But what is permuted? The next cell compares shuffling single bytes with shuffling whole
# sequences, which keeps the bytes of one text together.

# %%
record = records["fine + shared"][0]
E = record.num_experts
unshuffled = peak(record.topk_ids_TK, domain_T, E)
shuffled = {
    name: [peak(record.topk_ids_TK, labels, E) for labels in found]
    for name, found in (("bytes shuffled", by_token), ("sequences shuffled", by_sequence))
}
bins = torch.arange(1.0, 1.6, 0.01).numpy()
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 2.8))
    for color, (name, values) in zip(style.PALETTE, shuffled.items(), strict=False):
        axis.hist(values, bins=bins, color=color, label=name)
    axis.axvline(unshuffled, color=style.LIT, label="labels as they are")
    axis.set(xlabel="peak lift (no unit)", ylabel="shuffles of 50", xlim=(0.98, max(unshuffled * 1.05, 1.3)))
    axis.legend()
fig.alt = (
    "Peak lifts: "
    + ", ".join(f"{n} {min(v):.2f} to {max(v):.2f}" for n, v in shuffled.items())
    + f", real {unshuffled:.2f}."
)
display(fig)

# %% [markdown]
# Bytes of one text resemble each other, so a sequence is closer to *one* draw than to sixty-five. Shuffling bytes
# pretends otherwise, and its baseline lies too low: whoever compares with it finds more specialisation than there is.
# From here on whole sequences are shuffled. (That baseline also shrinks towards 1 as more text is read. A ratio to it
# is only comparable with ratios on as much text.)

# %% [markdown]
# ### Claim 3
#
# The guide: *base experts learn what is general and domain experts what is special*. Half of it can be tested with
# lift: the routed experts' peak should be well above the permuted baseline. (For the other half lift is useless. Every
# token uses the shared expert, so P(e | d) = P(e) = 1 by construction. Section 7 tests it.) We count it as holding if
# the peak is at least 1.5 times the baseline in every run.

# %% [markdown]
# There will be forty baselines of fifty shuffles each. Two remarks make them quick: P(e) cancels in the peak, which
# leaves $\sum_e \max_d P(e \mid d)$; and whole sequences move, so it is enough to count each sequence once.

# %%
p_lift = predict(
    "04.peak", "Routed experts of `fine + shared`: peak lift divided by that of shuffled labels?", 1, 4, "×"
)  # fmt: skip


# %%
def permuted(record):
    """The mean peak lift of shuffled sequences: what chance gives."""
    E, peaks = record.num_experts, []
    counts_BE = torch.zeros(len(domain_B), E).index_add(0, sequence_T, chosen(record.topk_ids_TK, E))
    for labels_B in shuffled_B:
        counts_GE = torch.zeros(len(DOMAINS), E).index_add(0, labels_B, counts_BE)
        peaks.append((counts_GE / counts_GE.sum(1, keepdim=True)).amax(0).sum().item())
    return statistics.mean(peaks)


def real(record):
    return peak(record.topk_ids_TK, domain_T, record.num_experts)


chance = {name: [permuted(record) for record in found] for name, found in records.items()}
ratio = {name: [real(r) / c for r, c in zip(records[name], chance[name], strict=True)] for name in STRUCTURES}
value = ratio["fine + shared"]
p_lift.against(statistics.mean(value), min(value), max(value))
slow = statistics.mean(shuffled["sequences shuffled"])
print("the same baseline as with your lift:", math.isclose(chance["fine + shared"][0], slow, rel_tol=1e-4))

# %% [markdown]
# Two more baselines, which most such figures leave out. **Untrained**: the same model before its first step. Its router
# is random, and it still tells domains apart, because their bytes differ. **Bytes alone**: an imaginary router that
# knows only which byte it looks at and follows the trained router's average habit for that byte. What it reaches needs
# no notion of a domain. (It is rather too high than too low: a byte that stands in one domain only says which.)


# %%
def bytes_alone(record):
    """The peak lift that follows from the current byte: P(e | d) rebuilt as the sum of P(byte | d) P(e | byte)."""
    byte_T, E = test.ids_BS.flatten(), record.num_experts
    habit_VE = torch.zeros(256, E).index_add(0, byte_T, chosen(record.topk_ids_TK, E))
    habit_VE = habit_VE / habit_VE.sum(1, keepdim=True).clamp_min(1)
    counts_GV = torch.zeros(len(DOMAINS), 256).index_put((domain_T, byte_T), torch.ones(()), accumulate=True)
    share_GE = counts_GV / counts_GV.sum(1, keepdim=True) @ habit_VE
    return share_GE.amax(0).sum().item()


untrained, alone = {}, {}
for name, moe in STRUCTURES.items():
    blank = [read(fresh(moe, s)) for s in SEEDS]
    untrained[name] = [real(record) / permuted(record) for record in blank]
    alone[name] = [bytes_alone(record) / c for record, c in zip(records[name], chance[name], strict=True)]

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.4, 3.6))
    sets = (("untrained", untrained, "o", style.GREY), ("bytes alone", alone, "^", style.PALETTE[1]))
    for label, values, marker, color in (*sets, ("trained", ratio, "D", style.PALETTE[0])):
        for row, name in enumerate(STRUCTURES):
            named = label if row == 0 else None
            axis.plot(values[name], [row] * len(values[name]), marker, color=color, alpha=0.8, label=named)
    axis.axvline(1, color=style.INK, linestyle=":", label="permuted sequences")
    axis.axvline(1.5, color=style.LIT, linestyle="--", label="claim 3 counts as holding")
    axis.set_yticks(range(len(STRUCTURES)), list(STRUCTURES))
    axis.set(xlabel="peak lift, as a multiple of permuted sequences", ylim=(3.6, -0.6))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Peak lift over permuted: " + "; ".join(
    f"{name} untrained {statistics.mean(untrained[name]):.2f}, bytes alone {statistics.mean(alone[name]):.2f}, trained "
    f"{statistics.mean(ratio[name]):.2f}" for name in STRUCTURES
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# Read from left to right. The dotted line is *no relation at all*; a router that has learned nothing is already beyond
# it. What training added is the distance from the grey dots, not from the dotted line. And the triangles say how much
# of the trained lift is knowledge of single bytes: an expert for digits looks like an expert for arithmetic on any map
# of domains.
#
# Compare two rows as well. If the shared expert took over what is common and left the routed ones free to specialise,
# the diamonds of `fine + shared` should lie to the right of those of `fine`.

# %% [markdown]
# Which experts are these? Rows are domains, columns experts. Sort by a domain and brush its best experts: how much of
# the *other* domains do they take as well?

# %%
best = max(range(len(SEEDS)), key=lambda s: ratio["fine + shared"][s])
display(show.lift_map(records["fine + shared"][best]))

# %% [markdown]
# (It is the seed with the highest ratio of the five; a picture chosen for being clear is a biased sample, so the claim
# below takes all of them.) What do an expert's bytes look like in their places? Pick one with a high lift and read.

# %%
display(show.contexts(records["fine + shared"][best]))

# %% [markdown]
# The claim, recorded with all five runs.

# %%
sizes = f"{STEPS} steps, model width {D}, 63 routed experts and one shared, text of four domains"
where = runtime.device_name(device)
claim(3, statistics.mean(value), low=min(value), high=max(value), runs=len(value), condition=f"{sizes}, {where}")
rows = {"routed experts": value, "untrained router": untrained["fine + shared"], "bytes alone": alone["fine + shared"]}
display(Markdown("\n".join(
    ["| | mean of five seeds | from | to |", "|---|---|---|---|"]
    + [f"| {name} | {statistics.mean(v):.2f} × | {min(v):.2f} | {max(v):.2f} |" for name, v in rows.items()]
)))  # fmt: skip

# %% [markdown]
# DeepSeekMoE's argument has another side: less redundancy. If two experts are always chosen together, they could be
# one. The map shows how often two experts meet, beside what their loads alone would give.

# %%
display(show.coactivation_map(records["fine + shared"][best]))

# %% [markdown]
# ## 7 · What is general? Take it away
#
# Lift cannot see the shared expert, but the loss can: remove a part, and see where predictions get worse. If the shared
# expert holds what is general, its absence should hurt *all* domains, and evenly.


# %% exercise="04.ablation"
def ablation(
    loss_T: torch.Tensor, loss_without_T: torch.Tensor, domain_T: torch.Tensor, num_domains: int
) -> torch.Tensor:
    """How much worse a model predicts each domain after something was removed.

    Args:
        loss_T, loss_without_T: [T], float32, nats: each token's loss with everything, and without the part. Where
            nothing follows a token, both are NaN.
        domain_T: [T] int64, the domain of each token, in [0, num_domains). Every domain has a token with a loss.
        num_domains: G.

    Returns [G], float32: the mean rise of the loss over a domain's tokens, positive where the model is worse without.
    """
    ### BEGIN SOLUTION
    rise_T = loss_without_T - loss_T
    real_T = ~rise_T.isnan()
    return torch.stack([rise_T[real_T & (domain_T == domain)].mean() for domain in range(num_domains)])
    ### END SOLUTION


# %% check="04.ablation"
ablation = check("04.ablation", ablation)

# %% [markdown]
# A fair comparison needs care. A routed expert works for a ninth of the tokens and the shared one for all, so of course
# the shared one is missed more. So we take the same amount from everybody: from *every* token its shared expert, or
# from every token its favourite routed expert, or its third, or its last. The place stays empty; nobody steps in.


# %%
class WithoutRank(torch.nn.Module):
    """A router whose tokens lose their expert of one rank: its weight becomes zero, the others stay."""

    def __init__(self, router, rank):
        super().__init__()
        self.router, self.rank = router, rank

    def forward(self, x, **labels):
        decision = self.router(x, **labels)
        left_TK = decision.topk_scores_TK.clone()
        left_TK[:, self.rank] = 0
        return replace(decision, topk_scores_TK=left_TK)


# %% [markdown]
# And a helper that takes a part out, reads the model, and puts it back.


# %%
def without(model, rank):
    """The record of a model without its shared expert (rank None) or without each token's expert of a rank."""
    layer = model.layers[0]
    shared, router = layer.shared, layer.router
    if rank is None:
        layer.shared = None
    else:
        layer.router = WithoutRank(router, rank)
    record = read(model)
    layer.shared, layer.router = shared, router
    return record


# %% [markdown]
# Two numbers for each part: the mean rise, which says how much it is needed, and its **unevenness**, the largest rise
# of a domain divided by the mean over the domains: 1 if all suffer alike, 4 if one of the four suffers alone.

# %%
p_uneven = predict(
    "04.uneven", "Without the shared expert: the worst-hit domain's rise, divided by the mean rise?", 1, 4, "×"
)  # fmt: skip

# %%
PARTS = {"shared": None, "favourite": 0, "second": 1, "third": 2, "last of seven": 6}
rises = {name: [] for name in PARTS}
for model, whole in zip(models["fine + shared"], records["fine + shared"], strict=True):
    for name, rank in PARTS.items():
        rises[name].append(ablation(whole.loss_T, without(model, rank).loss_T, domain_T, len(DOMAINS)))
uneven = {name: [(rise.max() / rise.mean()).item() for rise in found] for name, found in rises.items()}
p_uneven.against(statistics.mean(uneven["shared"]), min(uneven["shared"]), max(uneven["shared"]))

# %% [markdown]
# For the unevenness there is a baseline too: the same rises with the labels of the sequences shuffled. Texts differ, so
# even then no four numbers are equal.

# %%
model, whole = models["fine + shared"][best], records["fine + shared"][best]
uneven_shuffled = {}
for name in PARTS:
    lost_T = without(model, PARTS[name]).loss_T
    found = [ablation(whole.loss_T, lost_T, labels, len(DOMAINS)) for labels in by_sequence]
    uneven_shuffled[name] = statistics.mean((rise.max() / rise.mean()).item() for rise in found)

# %%
with style.use():
    fig, axes = picture.new(columns=2, size=(10.4, 3.4))
    for row, name in enumerate(PARTS):
        for d, domain in enumerate(DOMAINS):
            dots = [rise[d].item() for rise in rises[name]]
            label = domain if row == 0 else None
            axes[0].plot(dots, [row + 0.15 * (d - 1.5)] * len(dots), "o", color=style.PALETTE[d], ms=4, label=label)
        label = "labels as they are" if row == 0 else None
        axes[1].plot(uneven[name], [row] * len(uneven[name]), "D", color=style.PALETTE[0], alpha=0.7, label=label)
        label = "labels shuffled" if row == 0 else None
        axes[1].plot(uneven_shuffled[name], row, "|", color=style.INK, markersize=18, label=label)
    axes[0].set(xlabel="loss added when it is missing, nats a byte; one dot a seed", ylim=(4.6, -0.6))
    axes[1].set(xlabel="unevenness: worst-hit domain over the mean", ylim=(4.6, -0.6), xlim=(0.9, 4.1))
    axes[0].set_yticks(range(len(PARTS)), list(PARTS))
    axes[1].set_yticks(range(len(PARTS)), [])
    axes[0].legend(title="domain", loc="lower right")
    axes[1].legend(loc="upper right")
fig.alt = "Loss added and unevenness, mean of seeds: " + "; ".join(
    f"without {n} {torch.stack(rises[n]).mean():.3f} nats, {statistics.mean(uneven[n]):.2f} times" for n in PARTS
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run:

# %%
missed = {name: torch.stack(rises[name]).mean().item() for name in ("shared", "favourite")}
spread = {name: statistics.mean(uneven[name]) for name in missed}
size = "more" if missed["shared"] > missed["favourite"] else "less"
evenly = "more" if spread["shared"] < spread["favourite"] else "less"
display(Markdown(
    f"Without the shared expert the loss rises by {missed['shared']:.3f} nats, without each token's favourite by "
    f"{missed['favourite']:.3f}. The shared one is missed **{size} than a favourite**, and its absence is spread "
    f"**{evenly} evenly** over the domains ({spread['shared']:.2f} against {spread['favourite']:.2f})."
))  # fmt: skip

# %% [markdown]
# Two readings of *general* come apart here. One is **for everybody**: then the question is how evenly its absence is
# felt, the right-hand plot. The other is **most of what is known**: then it is how much is lost, the left-hand plot. An
# expert that every token passes is *there* for everybody by construction. Whether everybody needs it equally, and
# whether much is lost with it, is left to training: nothing in the loss asks for either. (Where the rises themselves
# are tiny, as for the last of seven, their ratio says little.)

# %% [markdown]
# One expert at a time, as the literature does it: expert e is switched off for all tokens, and the next best takes its
# place. `trace` from `labkit.nn` reads a model as `read` does, any model with routers, and can leave an expert out. The
# eight busiest go in turn: the view shows what each costs, with the interval over texts, and who takes over.

# %%
busiest = whole.tokens_per_expert_E.argsort(descending=True)[:8].tolist()
ablated = {expert: trace(model, test, ablate=(0, expert))[0] for expert in busiest}
display(show.ablation(whole, ablated))
rise = {expert: mean_loss(record) - mean_loss(whole) for expert, record in ablated.items()}
dearest = max(rise, key=rise.get)
served = whole.tokens_per_expert_E[dearest].item() / whole.num_tokens
display(Markdown(
    f"The dearest of the eight, expert {dearest}, works for {served:.0%} of the tokens. Without it the loss is "
    f"{rise[dearest]:.3f} nats above {mean_loss(whole):.3f}."
))  # fmt: skip

# %% [markdown]
# This is the gentle way to take something away: six other experts still work for the same token, and a neighbour steps
# in. So a small rise does not say that an expert knew little: others may know it too. And before you call one
# *the* arithmetic expert, see in the view whether the rise is in arithmetic alone.

# %% [markdown]
# ## 8 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("04")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 3** (base experts learn what is general and domain experts what is special), read from your own run above:
#
# - *What is special*: the card in section 6 has the lift over permuted sequences, and the verdict. Hold it against the
#   untrained router and against bytes alone before you call it a domain expert: the table under the card says how much
#   of the lift is there without training, or without any notion of a domain.
# - *What is general*: a lift says nothing about shared experts, since everybody uses them. By ablation, section 7 says
#   how evenly the shared expert is needed, and whether it is needed more than a routed one.
# - In the guide's own code there is neither kind of expert, so on it the claim cannot even be asked.
#
# Lab 07 asks again on a model with attention, trained for longer.

# %% [markdown]
# ## Further reading
#
# - Dai et al. 2024, *DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models*, arXiv
#   2401.06066: section 3 for both ideas, and its own ablations of shared and routed experts.
# - DeepSeek-AI 2024, *DeepSeek-V2*, arXiv 2405.04434, section 2.2.2: device-limited routing; *DeepSeek-V3 Technical
#   Report*, arXiv 2412.19437, section 2.1.2: node-limited routing.
# - Muennighoff et al. 2024, *OLMoE*, arXiv 2409.02060, section 5: domain and vocabulary specialisation, co-activation
#   and saturation; it trained with and without a shared expert.
# - Jiang et al. 2024, *Mixtral of Experts*, arXiv 2401.04088: routing analysed by domain, and how little was found.
# - Westfall and Young 1993, *Resampling-Based Multiple Testing*: what to do when a table has hundreds of cells.
