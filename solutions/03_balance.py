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
# # 03 · Balance: keeping experts alive
#
# A router that learns from the task alone feeds its favourites: who is chosen learns, who has learned is chosen. Left
# to itself it gives most of the work to some experts and lets others starve. This lab watches that happen, then builds
# the remedies that published models use, and measures what they cost.
#
# After this lab you can
#
# - write the auxiliary loss, the z-loss and the loss-free bias, and keep padding out of them;
# - say what a limited capacity drops, and why expert choice looks into the future;
# - diagnose six broken layers that train without an error, from their curves, and write one with none of the faults;
# - judge the claim that adaptive routing "adds 12% accuracy": against which other routing, over how many seeds?

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. `cpu` trains many tiny models within seconds each, `gpu` trains larger ones
# for longer. **Run the cell above and the one below first.**

# %% tags=["setup"]
import functools
import statistics

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from labkit import check, claim, hint, predict, recap, reveal, show
from labkit.core import capacity, metrics, runtime
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn import MoE, WindowModel
from labkit.nn.fixed import FrozenRouter, HashRouter, RandomRouter, StaticRouter
from labkit.show import picture, style
from labkit.train import data

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other

# %% [markdown]
# ## 1 · A router that nobody watches
#
# Our model guesses the next byte from the last eight: their embeddings side by side, one sparse layer with a residual
# connection, and a linear layer to the 256 bytes (`labkit.nn.WindowModel`; without its experts it is the language model
# of Bengio et al. 2003). The text has four domains: source code, English, arithmetic, records. It is no chatbot, but it
# learns real text in seconds, so we can afford to train it many times.

# %%
STEPS, EVERY, LR = (200, 10, 1e-2) if profile == "gpu" else (100, 5, 2e-2)
B, S, WIDTH = (64, 64, 64) if profile == "gpu" else (8, 64, 32)
SIXTEEN = MoEConfig(d_model=WIDTH, d_expert=WIDTH, num_experts=16, top_k=2)
text = data.corpus(bytes_per_domain=100_000)
held_out = data.sample(text, num_sequences=256, sequence_length=S + 1, seed=1, split="validation")


@functools.cache
def batches(seed, padded=False):
    """The training bytes of one seed, [STEPS, B, S + 1]; padded ones end early, in every second sequence very early."""
    ids = data.sample(text, num_sequences=STEPS * B, sequence_length=S + 1, seed=seed).ids_BS.view(STEPS, B, S + 1)
    if padded:
        draw = torch.Generator().manual_seed(seed)
        length = torch.randint(S // 4, S + 1, (STEPS, B, 1), generator=draw)
        length[:, ::2] = torch.randint(S // 8, S // 4, (STEPS, B // 2, 1), generator=draw)
        ids = ids.masked_fill(torch.arange(S + 1) >= length, 0)
    return ids.to(device)


# %% [markdown]
# One training loop serves the whole lab. `balance` may add something to the loss, `nudge` may move the router after a
# step, `watch` notes something every few steps. Byte 0 is padding: it occurs in no text, and it has no task loss.


# %%
def train(moe, layer=MoE, balance=None, nudge=None, watch=None, padded=False, seed=seed):
    """Train one model; returns it, and what `watch(router, record, mask, task, extra, loss_T)` said, by step."""
    torch.manual_seed(seed)
    model = WindowModel(moe, d_embed=16, layer=layer).to(device)
    router, seen = model.layers[0].router, {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for step, ids in enumerate(batches(seed, padded)):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        x, y = ids[:, :-1], ids[:, 1:]
        logits, (record,) = model(x, return_routing=True)
        loss_T = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", ignore_index=0)
        task, mask = loss_T.sum() / (y != 0).sum(), x != 0
        extra = balance(record, mask) if balance else torch.zeros_like(task)
        if watch and (step % EVERY == 0 or step == STEPS - 1):
            seen[step] = watch(router, record, mask, task, extra, loss_T)
        (task + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
        if nudge:
            nudge(router, record, mask)
    return model, seen


# %% [markdown]
# And one function to judge a model on text that it has not seen. It returns the loss in nats per byte, the accuracy of
# the best guess in per cent, and the router's record with each byte's domain.


# %%
@torch.no_grad()
def evaluate(model):
    """Loss and accuracy on held-out text, and the router's record of it."""
    x, y = held_out.ids_BS[:, :-1].to(device), held_out.ids_BS[:, 1:].to(device)
    logits, (record,) = model.eval()(x, return_routing=True)
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()).item()
    labels = {"domains": tuple(domain for domain in held_out.domains for _ in range(S))}
    labels["tokens"] = data.Batch(x.cpu(), held_out.domains).tokens
    r = record.detach()
    r = Routing.of(r.logits_TE, r.topk_ids_TK, r.topk_scores_TK, **labels)
    return loss, 100 * (logits.argmax(-1) == y).float().mean().item(), r


# %% [markdown]
# > **Find the bug.** The guide's router scores the experts, takes two, and returns. Its training loss is the task's
# > and nothing else. No line of that is wrong, so look for a line that is missing: who tells the router that an expert
# > exists which it has stopped asking?

# %% [markdown]
# Sixteen experts, two for each byte. If the load were even, the two busiest experts would get 12.5% of all choices; the
# most that two experts can get is everything. Train for a few seconds, look at text that the model has not seen: how
# much do the two busiest get?

# %%
p_collapse = predict("03.collapse", "Nothing balances. The two busiest of 16 experts get which share?", 12.5, 100, "%")


# %%
def keep_record(router, record, mask, task, extra, loss_T):
    """What the widget below wants: the record with the loss of each byte."""
    r = record.detach()
    return Routing.of(r.logits_TE, r.topk_ids_TK, r.topk_scores_TK, loss_T=loss_T.detach().cpu())


alone_model, alone = train(SIXTEEN, watch=keep_record)
alone_loss, _, alone_record = evaluate(alone_model)
p_collapse.against(100 * metrics.load(alone_record).topk(2).values.sum().item())

# %% [markdown]
# Each line below is one expert's share of a training batch. The two that are busiest in the end are coloured, the
# others grey; the dashed line is the even share, 1/E.


# %%
def draw_loads(axis, run, title):
    """Each expert's share of the choices over training, the even share dashed."""
    share_SE = 100 * torch.stack([metrics.load(record) for record in run.values()])
    busiest = share_SE[-1].topk(2).indices.tolist()
    for expert, line in enumerate(share_SE.T):
        axis.plot(list(run), line, color=style.LIT if expert in busiest else style.GREY, linewidth=1.6)
    axis.axhline(100 / share_SE.shape[1], color=style.INK, linestyle="--", linewidth=1.2, label="even share, 1/E")
    axis.set(title=title, xlabel="training step", ylabel="share of the choices (%)", ylim=(0, None))
    axis.legend(loc="upper right")


with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.2))
    draw_loads(axis, alone, "nothing balances")
fig.alt = "Shares of 16 experts over training: a few rise far above the dashed even share, many fall towards zero."
display(fig)

# %% [markdown]
# The first steps decide much. All experts start alike; small differences of the untrained router send more bytes to
# some, those improve first, and a better answer earns a higher score. An expert that is not chosen gets no gradient: it
# learns nothing, and falls further behind. That need not be final: as long as it is some byte's second choice, it can
# come back. How many do, in your run?

# %% [markdown]
# Two numbers sum up a load. **MaxVio** (Wang et al. 2024) looks at the busiest expert: how far it is above the mean, as
# a part of the mean. **Entropy** looks at all of them: 1 is even, normalised. What is the worst that can happen?

# %% tags=["nbval-check-output"]
eight = torch.arange(64)[:, None]
cases = {
    "even": torch.cat([eight % 8, (eight + 4) % 8], dim=1),
    "half idle": torch.cat([eight % 4, (eight + 2) % 4], dim=1),
    "collapsed": torch.tensor([[0, 1]]).repeat(64, 1),
}
for name, ids_TK in cases.items():
    made = Routing.of(torch.zeros(64, 8), ids_TK, torch.full((64, 2), 0.5))
    violation, evenness = metrics.max_violation(made), metrics.entropy(made, normalised=True)
    print(f"{name:<10} tokens {made.tokens_per_expert_E.tolist()!s:<34} MaxVio {violation:.1f}  entropy {evenness:.2f}")

# %% [markdown]
# A token cannot choose an expert twice, so with K = 2 of 8 the busiest has at most T tokens: MaxVio ends at E/K − 1 =
# 3, and the entropy at ln K / ln E.

# %% [markdown]
# ## 2 · The auxiliary loss
#
# The classical remedy is a second loss (Shazeer et al. 2017; GShard 2020; Switch Transformers 2021, equations 4 to 6):
#
# $$ L_\mathrm{aux} = \alpha \, E \sum_{e=1}^{E} f_e \, P_e , \qquad
# f_e = \frac{\text{tokens that chose } e}{T} , \qquad P_e = \frac{1}{T} \sum_t \mathrm{softmax}(h_t)_e . $$

# %% [markdown]
# $f$ is what one would like to be even, but it is a count: it has no slope. $P$ has one. So $f$ acts as a price list,
# and the gradient lowers the *probability* of an expert in proportion to how many tokens chose it. With an even load
# the sum is K whatever E is (here, as in `transformers`, $f$ sums to K).

# %% [markdown]
# Batches of text are padded. Padding must not vote: all padding looks alike and goes to the same experts, so a loss
# that counts it sees a crowd there and drives real text away. T is the number of *real* tokens, in both factors.


# %% exercise="03.aux_loss"
def aux_loss(logits_TE: torch.Tensor, topk_ids_TK: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """E · Σ f_e P_e over real tokens, without a coefficient.

    Args:
        logits_TE: [T, E], float32, the router's logits, on any device.
        topk_ids_TK: [T, K] int64, the experts that were chosen; with a bias these need not be the K highest logits.
        mask_T: [T] bool, True for a real token; None where all are real. At least one is.

    Returns a scalar, float32; its gradient flows to the logits through P alone.
    """
    ### BEGIN SOLUTION
    E = logits_TE.shape[1]
    probs_TE, choices_TE = logits_TE.softmax(dim=-1), F.one_hot(topk_ids_TK, E).sum(dim=1).float()
    if mask_T is not None:
        probs_TE, choices_TE = probs_TE[mask_T], choices_TE[mask_T]
    return E * (choices_TE.mean(dim=0) * probs_TE.mean(dim=0)).sum()
    ### END SOLUTION


# %% check="03.aux_loss"
aux_loss = check("03.aux_loss", aux_loss)

# %% [markdown]
# Four situations with 8 experts and K = 2. Even gives K = 2. What is the most that it can give?

# %% tags=["nbval-check-output"]
sure = {name: 20.0 * F.one_hot(ids_TK, 8).sum(1).float() for name, ids_TK in cases.items()}
for name, ids_TK in cases.items():
    print(f"{name:<10} and the router is sure of it: {aux_loss(sure[name], ids_TK).item():.2f}")
print(f"{'collapsed':<10} and the router is undecided: {aux_loss(torch.zeros(64, 8), cases['collapsed']).item():.2f}")
padded_ids, padded_logits = (torch.cat([each["even"], each["collapsed"]]) for each in (cases, sure))
real_T = torch.arange(128) < 64
print(f"{'even text':<10} and as much padding on experts 0 and 1: {aux_loss(padded_logits, padded_ids).item():.2f}")
print(f"{'even text':<10} and the padding masked: {aux_loss(padded_logits, padded_ids, real_T).item():.2f}")

# %% [markdown]
# The fourth line is worth a thought: a collapsed choice with undecided probabilities costs no more than an even one.
# The loss is not a measure of the load; it is a lever that lowers the *sum* over experts of load times probability.
# What it does is in its gradient, below for a random router with a favourite.

# %%
crowd_TE = torch.randn(256, 8, generator=torch.Generator().manual_seed(1)) + torch.linspace(1.2, 0.0, 8)
crowd_TE.requires_grad_(True)
ids_TK = crowd_TE.topk(2).indices
slope_E = torch.autograd.grad(aux_loss(crowd_TE, ids_TK), crowd_TE)[0].sum(0)
share_E = 100 * metrics.load(Routing.of(crowd_TE.detach(), ids_TK, torch.full((256, 2), 0.5)))
with style.use():
    fig, axes = picture.new(columns=2, size=(8.8, 2.8))
    axes[0].bar(range(8), share_E, color=style.expert_colors(8))
    axes[0].axhline(100 / 8, color=style.INK, linestyle="--", linewidth=1.2, label="even share, 1/E")
    axes[0].set(title="load", xlabel="expert", ylabel="share of the choices (%)", xticks=range(8))
    axes[0].legend()
    axes[1].bar(range(8), -slope_E, color=style.expert_colors(8))
    axes[1].axhline(0, color=style.INK, linewidth=1)
    axes[1].set(title="push of the loss", xlabel="expert", ylabel="push on the logits (sum)", xticks=range(8))
fig.alt = "Left: loads fall from expert 0 to 7. Right: the loss pushes logits of busy experts down, of idle ones up."
display(fig)

# %% [markdown]
# Busy experts are pushed down, idle ones up, and every token feels it, whatever its task needs. That is the price: the
# router now serves two masters, and $\alpha$ decides how much it listens to each. Section 4 measures it.

# %% [markdown]
# ## 3 · Balance without a loss
#
# Wang et al. (2024) and DeepSeek-V3 leave the loss alone. A bias $b_e$ is added to each expert's score *for the choice
# only* (lab 01, section 6), and after each step a rule outside of autograd moves it (their algorithm 1):
#
# $$ b_e \leftarrow b_e + u \cdot \mathrm{sign}\Big( \frac{1}{E} \sum_j c_j - c_e \Big) , $$
#
# where $c_e$ counts the tokens that expert $e$ got in this step.


# %% exercise="03.update_bias"
def update_bias(bias_E: torch.Tensor, tokens_per_expert_E: torch.Tensor, rate: float) -> torch.Tensor:
    """The bias after one step: starving experts up, busy ones down, those at the mean stay.

    Args:
        bias_E: [E], float32; it is left as it was.
        tokens_per_expert_E: [E], int64.
        rate: the size of a step, u.

    Returns a new [E], float32.
    """
    ### BEGIN SOLUTION
    counts_E = tokens_per_expert_E.float()
    return bias_E + rate * torch.sign(counts_E.mean() - counts_E)
    ### END SOLUTION


# %% check="03.update_bias"
update_bias = check("03.update_bias", update_bias)

# %% [markdown]
# Alone, without any training, on the crowd of section 2: the scores stay as they are, and only the bias moves. How many
# steps of 0.01 does it take until no expert is more than a fifth above the mean?

# %%
p_walk = predict("03.walk", "Steps of 0.01 until MaxVio is below 0.2, on fixed scores?", 0, 100, "steps", step=1)

# %%
scores_TE, bias_E = crowd_TE.detach().softmax(-1), torch.zeros(8)
walk, loads, violations = [], [], []
for _ in range(100):
    counts_E = torch.bincount((scores_TE + bias_E).topk(2).indices.flatten(), minlength=8)
    walk.append(bias_E)
    loads.append(100 * counts_E / counts_E.sum())
    violations.append((counts_E.max() / counts_E.float().mean() - 1).item())
    bias_E = update_bias(bias_E, counts_E, 0.01)
p_walk.against(next(step for step, violation in enumerate(violations) if violation < 0.2))
with style.use():
    fig, axes = picture.new(columns=2, size=(8.8, 2.8))
    for axis, lines, label in ((axes[0], walk, "selection bias"), (axes[1], loads, "share of the choices (%)")):
        for expert, line in enumerate(torch.stack(lines).T):
            axis.plot(line, color=style.expert_color(expert, 8))
        axis.set(xlabel="step", ylabel=label)
    axes[1].axhline(100 / 8, color=style.INK, linestyle="--", linewidth=1.2, label="even share, 1/E")
    axes[1].legend()
fig.alt = "Left: eight biases fan out in equal steps and then hover. Right: eight loads run together at the even share."
display(fig)

# %% [markdown]
# A thermostat: it knows *too much* and *too little* and nothing else. Far from balance it walks at a constant pace,
# near it it rattles around the target. The rate sets both: small is slow, large is restless. In numbers:

# %% tags=["nbval-check-output"]
even_E, skewed_E = torch.tensor([4, 4, 4, 4]), torch.tensor([9, 4, 2, 1])
print("an even load moves nothing:   ", update_bias(torch.zeros(4), even_E, 0.01).tolist())
print("a skewed one:                 ", [round(b, 2) for b in update_bias(torch.zeros(4), skewed_E, 0.01).tolist()])
hundredfold_E = update_bias(torch.zeros(4), 100 * skewed_E, 0.01)
print("with a hundred times as many: ", [round(b, 2) for b in hundredfold_E.tolist()])

# %% [markdown]
# ## 4 · None, loss or bias?
#
# Now both in training, with your functions. The question is not whether they balance. It is what they *cost*: how much
# worse does the model predict for it? Three seeds for each setting, so that a difference can be told from luck.

# %% [markdown]
# Switch used $\alpha = 0.01$ (with $f$ summing to 1). At $\alpha = 1$ the balance loss is about as large as the task's.
# By how much does the loss on held-out text rise from nothing to $\alpha = 1$?

# %%
p_cost = predict(
    "03.cost", "Held-out loss with α = 1, minus the loss without balancing, mean of three seeds?", -0.1, 0.5, "nats"
)


# %%
def with_loss(alpha):
    """Settings of `train` for the auxiliary loss."""
    return {"moe": SIXTEEN, "balance": lambda r, mask: alpha * aux_loss(r.logits_TE, r.topk_ids_TK, mask.flatten())}


def with_bias(rate):
    """Settings of `train` for the loss-free bias."""

    def nudge(router, record, mask):
        counts_E = record.keep(mask).tokens_per_expert_E
        router.expert_bias_E.copy_(update_bias(router.expert_bias_E, counts_E, rate))

    return {"moe": SIXTEEN.replace(selection_bias=True), "nudge": nudge}


settings = {"none": {"moe": SIXTEEN}}
settings |= {f"loss, α = {alpha}": with_loss(alpha) for alpha in (0.01, 0.1, 1.0)}
settings |= {f"bias, u = {rate}": with_bias(rate) for rate in (0.001, 0.01, 0.03)}
runs = {name: [train(watch=keep_record, seed=s, **how) for s in range(3)] for name, how in settings.items()}
results = {name: [evaluate(model) for model, _ in three] for name, three in runs.items()}
loss_of = {name: [loss for loss, _, _ in three] for name, three in results.items()}
gaps = [a - b for a, b in zip(loss_of["loss, α = 1.0"], loss_of["none"], strict=True)]
p_cost.against(statistics.mean(gaps), min(gaps), max(gaps))

# %% [markdown]
# Every dot is a run: how uneven its load is on held-out text, and how well it predicts. Down and to the left is better.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(9.4, 3.8))
    for (name, three), marker in zip(results.items(), "o^Dvo^D", strict=True):
        color = style.PALETTE[["none", "loss", "bias"].index(name.split(",")[0])]
        points = [(metrics.max_violation(record), loss) for loss, _, record in three]
        axis.plot(*zip(*points, strict=True), marker, color=color, alpha=0.8, label=name)
    axis.axvline(0, color=style.INK, linestyle="--", linewidth=1.2, label="even load, 1/E each")
    axis.set(xlabel="MaxVio on held-out text", ylabel="held-out loss (nats per byte)")
    fig.legend(loc="outside right upper")
fig.alt = "Runs by imbalance and held-out loss: without balancing far to the right; loss and bias move them left."
display(fig)
rows = [(n, statistics.mean(metrics.max_violation(r) for _, _, r in results[n]), loss_of[n]) for n in settings]
shown = [f"| {n} | {v:.2f} | {statistics.mean(x):.3f} | {max(x) - min(x):.3f} |" for n, v, x in rows]
head = "| balancing | MaxVio | held-out loss (nats) | range over three seeds |\n|---|---|---|---|\n"
display(Markdown(head + "\n".join(shown)))

# %% [markdown]
# Read the last column first: a difference smaller than it may be luck. What does balance cost at all, then? If you see
# a price, it is most likely at α = 1, where the loss is so strong that it drowns the task. Idle experts are wasted
# parameters, too: a balanced model may even predict better. And does every setting balance in as few steps as ours? On
# a real machine balance has another worth which this figure does not show: experts sit on different GPUs, and the
# busiest one decides how long all wait (lab 16).

# %% [markdown]
# Now scrub through three of these trainings. The view starts at the last step; go back to the first with the slider or
# the arrow keys, and switch between the runs. When does each remedy take hold? Whose load still moves at the end?

# %%
scrubbed = {"none": "none", "loss": "loss, α = 0.1", "bias": "bias, u = 0.01"}
view = show.balance_over_training({short: runs[name][0][1] for short, name in scrubbed.items()})
view.step = STEPS - 1
view

# %% [markdown]
# The loss grips at once, since its gradient is there from the first step. The bias has to walk first, as in section 3.
# In the end both are far closer to the even line than the run without. DeepSeek-V3 uses the bias and, beside it, a very
# small balance loss within each sequence; its report gives $u = 0.001$ for most of the training, which takes many more
# steps than we have.

# %% [markdown]
# ## 5 · The z-loss: not balance, but calm
#
# Router logits may drift upwards in training, and large logits mean rounding errors in half precision (lab 01) and
# decisions that hardly any gradient can move again. ST-MoE (Zoph et al. 2022, equation 5) adds
#
# $$ L_z = \frac{1}{T} \sum_t \Big( \ln \sum_e e^{h_{t,e}} \Big)^2 , $$
#
# with a coefficient of 0.001. A softmax does not change if a constant is added to all logits; this loss does, and pulls
# that constant back.


# %% exercise="03.z_loss"
def z_loss(logits_TE: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over real tokens of the squared log of the softmax's denominator.

    Args:
        logits_TE: [T, E], float32; some are far above 88.
        mask_T: [T] bool, True for a real token; None where all are real.

    Returns a scalar, float32.
    """
    ### BEGIN SOLUTION
    squares_T = logits_TE.logsumexp(dim=-1) ** 2
    return squares_T.mean() if mask_T is None else squares_T[mask_T].mean()
    ### END SOLUTION


# %% check="03.z_loss"
z_loss = check("03.z_loss", z_loss)

# %% [markdown]
# Three rows of logits that all make the same decision with the same weights, and what the z-loss says of them:

# %% tags=["nbval-check-output"]
for name, shift in (("as they are", 0.0), ("all lifted by 10", 10.0), ("all lifted by 100", 100.0)):
    row = torch.tensor([[2.0, 1.0, 0.0, -1.0]]) + shift
    print(f"{name:<18} softmax {[round(p, 2) for p in row.softmax(-1)[0].tolist()]}  z-loss {z_loss(row).item():8.1f}")

# %% [markdown]
# Train with a z-loss of 0.01 (ten times the paper's, for our training is short) beside the auxiliary loss. How large is
# $|\ln \sum e^h|$ in the end, as a share of what it is without?


# %%
def watch_logits(router, record, mask, task, extra, loss_T):
    logits_TE = record.logits_TE.detach()
    return torch.stack([f.mean() for f in (logits_TE.logsumexp(-1).abs(), logits_TE.amax(-1), logits_TE.amin(-1))])


p_z = predict("03.z_loss", "With a z-loss of 0.01: |ln Σ exp| in the end, as a share of that without?", 0, 150, "%")


# %%
calm = {}
for coefficient in (0.0, 0.01):

    def both(r, mask, coefficient=coefficient):
        return 0.01 * aux_loss(r.logits_TE, r.topk_ids_TK) + coefficient * z_loss(r.logits_TE)

    seen = train(SIXTEEN, balance=both, watch=watch_logits)[1]
    calm[f"z-loss × {coefficient}"] = list(seen), torch.stack(list(seen.values())).cpu().T
without, under = (values[0, -1].item() for _, values in calm.values())
p_z.against(100 * under / without)
with style.use():
    fig, axes = picture.new(columns=2, size=(9.2, 3.0))
    for (name, (steps, values)), color in zip(calm.items(), style.PALETTE, strict=False):
        axes[0].plot(steps, values[0], color=color, label=name)
        axes[1].plot(steps, values[1], color=color)
        axes[1].plot(steps, values[2], ":", color=color)
    axes[0].set(title="|ln Σ exp|, mean over tokens", xlabel="training step", ylabel="(no unit)", ylim=(0, None))
    axes[1].set(title="– largest and ·· smallest logit, mean", xlabel="training step", ylabel="logit (no unit)")
    axes[0].legend()
fig.alt = "Left: the log of the denominator falls with the z-loss and not without. Right: all logits move down with it."
display(fig)

# %% [markdown]
# What it holds is the denominator, and with it the largest logit, which can never be above $\ln \sum e^h$. Its gradient
# pulls at each logit in proportion to its probability, so mostly at the largest. Does that narrow the gap between the
# largest and the smallest? Compare the two in the right panel. In a training as short as ours nothing was about to
# overflow; in one of a million steps the same pull is there in every step.

# %% [markdown]
# It says nothing about *which* expert is chosen, so it balances nothing: models that use it (OLMoE, ST-MoE) use it
# *beside* an auxiliary loss.

# %% [markdown]
# ## 6 · A full expert
#
# Balance on average is not balance in every batch. Fixed buffers, as GShard and Switch have them, give each expert
#
# $$ C = \Big\lceil \text{factor} \cdot \frac{T K}{E} \Big\rceil $$
#
# places (Switch, equation 3, for K = 1). A pair of token and expert without a place is **dropped**: it counts zero, and
# the residual connection carries the token past. Who loses?

# %% [markdown]
# - By **position**: first come, first served, in the order of the batch (GShard, Switch). All first choices are seated
#   before any second choice.
# - By **score**: the pair with the highest weight comes first, whoever it belongs to (batch prioritised routing,
#   Riquelme et al. 2021, for K = 1).


# %% exercise="03.keep"
def keep(
    topk_ids_TK: torch.Tensor, topk_scores_TK: torch.Tensor, capacity: int, policy: str = "position"
) -> torch.Tensor:
    """Which pairs of token and expert get a place.

    Args:
        topk_ids_TK: [T, K] int64, the chosen experts, first choice first.
        topk_scores_TK: [T, K] float32, their weights, no two of them equal.
        capacity: how many tokens an expert takes, 0 or more.
        policy: "position", all first choices in the order of the batch, then all second ones, and so on; or "score",
            all pairs from the highest weight to the lowest.

    Returns [T, K] bool: True where the pair is kept. Raises ValueError for another policy.
    """
    ### BEGIN SOLUTION
    T, K = topk_ids_TK.shape
    ids_N = topk_ids_TK.T.flatten()
    if policy == "position":
        order_N = torch.arange(T * K)
    elif policy == "score":
        order_N = topk_scores_TK.T.flatten().argsort(descending=True, stable=True)
    else:
        raise ValueError(f"policy is {policy!r}; choose position or score")
    queue_N = ids_N[order_N]
    place_N = F.one_hot(queue_N).cumsum(dim=0).gather(1, queue_N[:, None])[:, 0]
    kept_N = torch.empty(T * K, dtype=torch.bool)
    kept_N[order_N] = place_N <= capacity
    return kept_N.view(K, T).T
    ### END SOLUTION


# %% check="03.keep"
keep = check("03.keep", keep)

# %% [markdown]
# Six tokens, three experts with two places each, by hand. Follow expert 0: who asks first, and what is left for the
# second choices?

# %% tags=["nbval-check-output"]
six_ids = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0], [2, 0], [0, 2]])
six_scores = torch.tensor([[0.55, 0.45], [0.60, 0.40], [0.90, 0.10], [0.70, 0.30], [0.80, 0.20], [0.95, 0.05]])
for policy in ("position", "score"):
    kept_TK = keep(six_ids, six_scores, 2, policy)
    shown = [" ".join(map(str, row)) for row in torch.where(kept_TK, six_ids, -1).tolist()]
    print(f"by {policy:<9}", "   ".join(f"{t}: {row}" for t, row in enumerate(shown)).replace("-1", "–"))

# %% [markdown]
# By position the last token loses its first choice although it is the surest of all. By score it keeps it, and the
# undecided ones lose.
#
# A factor of 1.25 is common. For a router that is balanced, how much is dropped? And for one that is not?

# %%
p_dropped = predict("03.dropped", "No balancing, a factor of 1.25: which share of all choices is dropped?", 0, 100, "%")

# %%
factors = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
lost = {}
for short, name in scrubbed.items():
    r = results[name][0][2]
    places = [capacity.expert_capacity(r.num_tokens, r.num_experts, r.top_k, factor) for factor in factors]
    lost[short] = [100 * (~keep(r.topk_ids_TK, r.topk_scores_TK, each)).float().mean().item() for each in places]
p_dropped.against(lost["none"][factors.index(1.25)])
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.0))
    for (short, values), marker in zip(lost.items(), "os^", strict=True):
        axis.plot(factors, values, marker=marker, label=short)
    perfect = [max(0, 100 * (1 - factor)) for factor in factors]
    axis.plot(factors, perfect, color=style.INK, linestyle="--", linewidth=1.2, label="even load, 1/E each")
    axis.set(xlabel="capacity factor", ylabel="choices dropped (%)", ylim=(0, None))
    axis.legend(title="balancing")
fig.alt = "Dropped choices fall with the capacity factor; without balancing many more are lost."
display(fig)

# %% [markdown]
# Below, every band is the way from a domain to an expert, in the unbalanced router; what finds no place is grey. Move
# the capacity. Does it hit all domains alike? (The same number is lost under both policies. What differs is who.)

# %%
show.flow(results["none"][0][2], capacity_factor=1.25)

# %% [markdown]
# Later systems drop nothing: grouped kernels take uneven slices as they come (lab 09; MegaBlocks, Gale et al. 2022),
# and balance is then a matter of speed alone.

# %% [markdown]
# ## 7 · Let the experts choose
#
# If balance is wanted, why not turn the choice round? In **expert choice** (Zhou et al. 2022) each expert takes the C
# tokens that like it best. Every expert has exactly C tokens: no loss, no bias, no dropping. A token is then taken by
# several experts, or by one, or by none.


# %% exercise="03.expert_choice"
def expert_choice(scores_TE: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert's `capacity` best tokens.

    Args:
        scores_TE: [T, E], float32, a softmax over the experts for each token; no two of a column are equal.
        capacity: C, 1 to T.

    Returns `(tokens_EC, scores_EC)`, both [E, C], the most wanted token first: the tokens' positions, int64, and their
    scores for that expert, as they are.
    """
    ### BEGIN SOLUTION
    scores_EC, tokens_EC = scores_TE.T.topk(capacity, dim=-1)
    return tokens_EC, scores_EC
    ### END SOLUTION


# %% check="03.expert_choice"
expert_choice = check("03.expert_choice", expert_choice)

# %% [markdown]
# Perfect balance, for free? Here is the catch. Eight tokens stand in a row, as in a sentence, and two experts take four
# each. Only the *last* token changes. Do the experts of the seven before it stay the same?

# %% tags=["nbval-check-output"]
likes_first = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
for last in (0.1, 0.95):
    likes_first[-1] = last
    sentence_TE = torch.stack([likes_first, 1 - likes_first], dim=1)
    chosen = sentence_TE.argmax(1).tolist()
    tokens = [sorted(row) for row in expert_choice(sentence_TE, 4)[0].tolist()]
    print(f"last token likes expert 0 by {last:.2f}: the tokens chose {chosen}, the experts chose {tokens}")

# %% [markdown]
# Token choice changed for the last token alone. But expert 0 gave up token 3 for one that comes *later*, and expert 1
# took it over. In training, the model's answer at one position then depends on bytes that it is about to predict: the
# future leaks. When writing, there is no future yet, and the router meets a situation that it was never trained for.

# %% [markdown]
# How much does it matter on text? We take the router of section 1, replace the last quarter of each held-out sequence
# by that of another one, and count how many bytes of the first half get other experts.

# %%
p_leak = predict("03.leak", "Bytes of the first half whose experts change with the last quarter?", 0, 100, "%")


# %%
@torch.no_grad()
def owners(ids_BS):
    """Which experts take which byte, each sequence for itself: [B, S, E] bool."""
    scores_TE = alone_model(ids_BS.to(device), return_routing=True)[1][0].logits_TE.cpu().softmax(-1)
    places = capacity.expert_capacity(S, 16, 2)
    taken_BSE = torch.zeros(len(ids_BS), S, 16, dtype=torch.bool)
    for b, scores_SE in enumerate(scores_TE.view(len(ids_BS), S, 16)):
        taken_BSE[b].T.scatter_(1, expert_choice(scores_SE, places)[0], True)
    return taken_BSE


ids = held_out.ids_BS[:128, :S]
changed = ids.clone()
changed[:, -(S // 4) :] = ids.roll(1, dims=0)[:, -(S // 4) :]
by_experts = owners(ids)
moved = (by_experts != owners(changed))[:, : S // 2].any(-1).float().mean().item()
p_leak.against(100 * moved)
with style.use():
    fig, (axis,) = picture.new(size=(7.0, 2.8))
    spread = torch.bincount(by_experts.sum(-1).flatten()).float()
    axis.bar(range(len(spread)), 100 * spread / spread.sum(), color=style.PALETTE[0], label="expert choice")
    axis.axvline(2, color=style.INK, linestyle="--", linewidth=1.2, label="token choice: K = 2 each")
    axis.set(xlabel="experts that take a byte", ylabel="bytes (%)")
    axis.legend()
fig.alt = "Under expert choice most bytes are taken by none to two experts, a few by many; token choice gives each two."
display(fig)

# %% [markdown]
# This router was not trained for it, so take the shape and not the numbers. In an image or in an encoder, where all
# is there from the start, nothing leaks, and expert choice is a fine idea. By the way: dropping by *score* leaks too,
# for a later token may take the place. Dropping by position does not for K = 1: only those before it decide about a
# token. With K = 2 even that leaks a little, since all first choices, later ones too, are seated before any second.

# %% [markdown]
# ## 8 · Does a router have to learn? Claim 2
#
# The guide claims that adaptive routing *adds 12% accuracy*. Added to what? The fair question is: at equal FLOPs,
# does a router that learns beat one that does not? `labkit.nn.fixed` has four that do not:
#
# | router | how it decides |
# |---|---|
# | hash | by the byte itself, through a table drawn once (Roller et al. 2021) |
# | frozen | a linear router as always, with random weights that never learn |
# | random | anew for every byte, every time |
# | static | always experts 0 and 1: a dense layer of the same FLOPs |

# %% tags=["nbval-check-output"]
two_of_four = MoEConfig(d_model=4, d_expert=4, num_experts=4, top_k=2)
word = torch.tensor(list(b"noon"))
x_TD = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
made = {"hash": HashRouter(two_of_four, 256), "frozen": FrozenRouter(two_of_four), "static": StaticRouter(two_of_four)}
for name, router in made.items():
    ids_TK = router(x_TD, ids=word).topk_ids_TK.sort(1).values
    same_letter = torch.equal(ids_TK[1], ids_TK[2]) and torch.equal(ids_TK[0], ids_TK[3])
    weights = router(x_TD, ids=word).topk_scores_TK[0].tolist()
    print(f"{name:<7} weights {weights}  equal letters of 'noon', equal experts: {same_letter}")

# %% [markdown]
# All of them compute K = 2 experts of the same width for each byte, so the FLOPs are the same, but for the router
# itself. All have 16 experts, so the parameters are the same as well; static never uses 14 of them, and a frozen,
# random or hash router has no weights to learn: those weigh their two experts equally. The learned router has the
# auxiliary loss with $\alpha = 0.01$. Five seeds each; a seed sets the start, the text and its order, and the tables.

# %% [markdown]
# The gain is the learned router's accuracy minus that of the *best* fixed one, on the same seed. "12%" can be read in
# two ways, and we report both: in **points** of accuracy, and **relative** to the other's accuracy, which makes a gain
# the larger number (and a loss too) and so is the kinder reading of a claim. The verdict uses that one.

# %%
p_gain = predict("03.gain", "Learned routing against the best fixed one: relative gain in accuracy?", -20, 30, "%")

# %%
SEEDS = range(5)
KINDS = {
    "learned": lambda seed: MoE,
    "hash": lambda seed: lambda moe: MoE(moe, router=HashRouter(moe, 256, seed)),
    "frozen": lambda seed: lambda moe: MoE(moe, router=FrozenRouter(moe, seed)),
    "random": lambda seed: lambda moe: MoE(moe, router=RandomRouter(moe, seed)),
    "static": lambda seed: lambda moe: MoE(moe, router=StaticRouter(moe)),
}
accuracy = {}
for kind, layer in KINDS.items():
    balance = with_loss(0.01)["balance"] if kind == "learned" else None
    models = [train(SIXTEEN, layer(s), balance, seed=s)[0] for s in SEEDS]
    accuracy[kind] = [evaluate(model)[1] for model in models]
mean = {kind: statistics.mean(dots) for kind, dots in accuracy.items()}
best_fixed = max(list(KINDS)[1:], key=mean.get)


# %% [markdown]
# The interval is Student's t for the five paired differences, at 95% (2.776 standard errors either way): it says how
# far the mean of five seeds may be off by luck. With five numbers it is wide, as it should be.


# %%
def interval(differences):
    """The mean of five paired differences, and its 95% interval."""
    middle = statistics.mean(differences)
    reach = 2.776 * statistics.stdev(differences) / len(differences) ** 0.5
    return middle, middle - reach, middle + reach


def gains(kind):
    """Points and per cent that learned routing gains over another kind, seed by seed."""
    pairs = list(zip(accuracy["learned"], accuracy[kind], strict=True))
    return [a - b for a, b in pairs], [100 * (a - b) / b for a, b in pairs]


# %% [markdown]
# Left: every run is a dot, the bar is their mean. Right: what learned routing gains over each of the others, with its
# interval; at zero the two are equally good.

# %%
p_gain.against(*interval(gains(best_fixed)[1]))
with style.use():
    fig, axes = picture.new(columns=2, size=(9.8, 3.0))
    for row, (kind, dots) in enumerate(accuracy.items()):
        axes[0].plot(dots, [row] * 5, "o", color=style.PALETTE[row], alpha=0.8)
        axes[0].plot(mean[kind], row, "|", color=style.INK, markersize=18)
        if kind != "learned":
            middle, low, high = interval(gains(kind)[1])
            axes[1].errorbar(middle, row, xerr=[[middle - low], [high - middle]], fmt="D", color=style.PALETTE[row])
    axes[0].set(xlabel="accuracy of the next byte (%)", yticks=range(5), yticklabels=list(KINDS), ylim=(4.6, -0.6))
    axes[1].axvline(0, color=style.INK, linewidth=1.2)
    axes[1].axvline(12, color=style.LIT, linestyle=":", label="claimed: 12%")
    axes[1].set(xlabel="gain of learned routing (relative %)", yticks=range(5), yticklabels=[], ylim=(4.6, -0.6))
    axes[1].legend()
fig.alt = f"Accuracy of five routers, five seeds each, and the gain of learned routing. Best fixed: {best_fixed}."
display(fig)

# %% [markdown]
# The table has both readings. A negative number says that the router that learns does *worse*.

# %%
rows = []
for kind in list(KINDS)[1:]:
    points, relative = (interval(each) for each in gains(kind))
    cells = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*each) for each in (points, relative)]
    rows.append(f"| {kind} | {mean[kind]:.2f} | {cells[0]} | {cells[1]} |")
head = "| against | accuracy (%) | gain in points | relative gain (%) |\n|---|---|---|---|\n"
weakest = min(list(KINDS)[1:], key=mean.get)
said = f"Learned: {mean['learned']:.2f}% on average of five seeds. Best opponent: {best_fixed}. Weakest: {weakest}.\n\n"
display(Markdown(said + head + "\n".join(rows)))
value, low, high = interval(gains(best_fixed)[1])
_ = claim(2, value, low=low, high=high, runs=5, condition=(
    f"relative gain of learned routing over {best_fixed} routing, the best fixed one; accuracy of the next byte of "
    f"held-out text, byte model with 2 of 16 experts of width {WIDTH}, {STEPS} steps, equal FLOPs, five seeds, 95% t "
    f"interval, on {runtime.device_name(device)}"
))  # fmt: skip

# %% [markdown]
# So what is adaptive routing worth? It depends on the opponent, and that is the lesson. Against *random* routing any
# rule looks good, even one that never learns: a random router takes from the experts what every fixed rule gives
# them, a kind of token that is theirs. Against the best fixed rule little may be left, or less than nothing. Look at
# the relative gain over the weakest opponent: with that one alone beside it, how would the claim have fared?

# %% [markdown]
# Do not read it as "hash beats learning" either. Our vocabulary has 256 bytes and the model a window of eight, so the
# last byte says a great deal about the next, and a hash gives every byte its own experts from the first step on,
# while a learned router has to find that out. Roller et al. (2021) found hashing competitive in real language models
# too; most large models since learn their routing, and DeepSeek-V4 hashes in its first layers. Your run is one model
# at one size: a claim without an opponent, a scale and a spread cannot be more.

# %% [markdown]
# ## 9 · The clinic
#
# Six sparse layers were brought in. All train, none raises an error, and their owners are content: *the loss goes
# down*. Each has a single fault, one of these:
#
# - **double softmax**: the chosen scores go through a second softmax;
# - **the balance loss is computed and dropped**, so that its gradient never reaches the router;
# - **K = 1, renormalised**: the one weight is divided by itself;
# - **the selection bias is in the weights**, not only in the choice;
# - **capacity by position**: a full expert turns away whoever stands later in the batch;
# - **the balance loss counts padding**.

# %% [markdown]
# Each patient has a mended twin: same seed, same text, same everything, but for the one fault. (The patients live in
# `labkit.course.labs._03_clinic`. Diagnose first, read later.) In how many of the six is the sick one's *loss* in the
# end more than 2% above its twin's?

# %%
p_loss = predict("03.clinic", "In how many of six does the loss give the fault away?", 0, 6, "patients", step=1)

# %% [markdown]
# A chart has six measurements: the loss, the weight of the favourite expert, the length of the gradient that reaches
# the router's matrix (from the task, and from the balance loss), MaxVio with and without padding, who is dropped, and
# how much of the weights moves if *all* selection biases are lifted by 0.1, which changes no choice (and is zero where
# there is no bias).


# %%
def vitals(router, record, mask, task, extra, loss_T):
    """Six measurements at one step, as tensors."""
    real = record.keep(mask)

    def slope(loss):
        if not loss.requires_grad:
            return torch.zeros_like(loss)
        return torch.autograd.grad(loss, router.weight_ED, retain_graph=True)[0].norm()

    def violation(r):
        return r.tokens_per_expert_E.max() / r.tokens_per_expert_E.float().mean() - 1

    gone_BN = (record.topk_scores_TK == 0).view(8, -1) & mask.view(8, -1).repeat_interleave(record.top_k, 1)
    asked_8 = record.top_k * mask.view(8, -1).sum(1)
    return {
        "loss": task.detach(), "favourite": real.topk_scores_TK.amax(1).mean().detach(),
        "task": slope(task), "balance": slope(extra), "real": violation(real), "all": violation(record),
        "dropped": gone_BN.sum(1) / asked_8, "lifted": weight_moved_by_a_lift(router, real),
    }  # fmt: skip


# %%
from labkit.course.labs._03_clinic import PATIENTS, RATE, weight_moved_by_a_lift


def nudge_masked(router, record, mask):
    router.expert_bias_E.copy_(update_bias(router.expert_bias_E, record.keep(mask).tokens_per_expert_E, RATE))


def admit(patient, treatment):
    """Train a patient or its twin; the vitals by step, on the CPU."""
    nudge = nudge_masked if treatment.nudge else None
    seen = train(patient.config(treatment), treatment.layer, treatment.balance, nudge, vitals, padded=True)[1]
    values = {key: torch.stack([at[key] for at in seen.values()]).detach().cpu() for key in seen[0]}
    return values | {"step": list(seen)}


ward = {p.letter: {"sick": admit(p, p.sick), "mended": admit(p, p.mended)} for p in PATIENTS}
excess = {
    letter: 100 * (pair["sick"]["loss"][-5:].mean() / pair["mended"]["loss"][-5:].mean() - 1).item()
    for letter, pair in ward.items()
}
p_loss.against(float(sum(percent > 2 for percent in excess.values())))
print("the sick one's loss against its twin's:", ", ".join(f"{p} {percent:+.1f}%" for p, percent in excess.items()))

# %% [markdown]
# The loss is a poor witness: compare these differences with what another seed changes, in the last column of section
# 4's table. So take all six panels. This function draws a chart; orange is the sick layer, dark the mended one. Where
# only orange is to be seen, the two lie on each other, and a line that is missing may be the finding.

# %%
PANELS = {
    "loss (nats)": ("loss",),
    "favourite's weight": ("favourite",),
    "gradient: – task, ·· balance loss": ("task", "balance"),
    "MaxVio, 0 is even: – real tokens, ·· all": ("real", "all"),
}


# %%
def chart(letter):
    """The six panels of one patient."""
    with style.use():
        fig, axes = picture.new(columns=3, rows=2, size=(10.6, 5.0))
        for who, color in (("mended", style.INK), ("sick", style.LIT)):
            seen = ward[letter][who]
            for axis, (title, keys) in zip(axes, PANELS.items(), strict=False):
                for key, line in zip(keys, ("-", ":"), strict=False):
                    if key != "balance" or seen[key].max() > 0:
                        axis.plot(seen["step"], seen[key].clamp_min(1e-10), line, color=color, label=who)
                axis.set(title=title, xlabel="training step")
            shift = -0.2 if who == "mended" else 0.2
            axes[4].bar(torch.arange(8) + 1 + shift, 100 * seen["dropped"][-5:].mean(0), 0.38, color=color)
            axes[5].plot(seen["step"], 100 * seen["lifted"], color=color)
        axes[2].set(yscale="log", ylim=(None, 1))
        axes[2].tick_params(which="minor", labelleft=False)
        axes[3].axhline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        axes[4].set(title="dropped, % of real choices", xlabel="eighth of the batch, first to last", ylim=(0, 40))
        axes[5].plot(0, 6, alpha=0)
        axes[5].set(title="weight moved by a common lift, %", xlabel="training step", ylim=(-0.5, None))
        if not any(ward[letter][who]["dropped"].any() for who in ("sick", "mended")):
            axes[4].text(4.5, 20, "no expert is ever full", ha="center", color=style.INK)
        axes[0].legend(loc="upper right")
    fig.alt = f"Chart of patient {letter}: loss, favourite's weight, router's gradient, MaxVio, who is dropped, lift."
    return fig


# %% [markdown]
# **Patient A.** Its owner writes: "The logged balance is better than ever."

# %%
display(chart("A"))

# %% [markdown]
# **Patient B.** "Our router is nice and soft."

# %%
display(chart("B"))

# %% [markdown]
# **Patient C.** "Same capacity as everybody, we lose a few per cent, as one does." (Both have just enough places for an
# even load.)

# %%
display(chart("C"))

# %% [markdown]
# **Patient D.** "The balance loss is in the log. I print it in every step."

# %%
display(chart("D"))

# %% [markdown]
# **Patient E.** "One expert a token, as in Switch. The load is fine." (Sick and mended both have K = 1.)

# %%
display(chart("E"))

# %% [markdown]
# **Patient F.** "No balance loss at all, we use the bias."

# %%
display(chart("F"))

# %% [markdown]
# Your diagnoses, please: each fault occurs once. A wrong one is answered with where that fault would have shown, and
# where to look instead.

# %%
from labkit.course.labs._03_diagnoses import clinic

clinic()

# %% [markdown]
# What did *not* show? At this size and in so few steps, for most patients hardly anything in the loss. That is how such
# faults survive a review: what they cost is in a panel that nobody had plotted.

# %% [markdown]
# Now mend them. Here is one step of a sparse layer, seen from outside: what it answers, its loss, and the gradient
# that reaches the router. A version with all six faults would pass as a layer anywhere: it runs, and its loss falls.
# Write one with none of them. You may call your functions from above.


# %% exercise="03.mend"
def mend(
    logits_TE: torch.Tensor,
    outputs_TED: torch.Tensor,
    target_TD: torch.Tensor,
    mask_T: torch.Tensor,
    bias_E: torch.Tensor,
    k: int,
    capacity: int,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of a sparse layer: softmax scores, the choice with a bias, weights, dropping by score, two losses.

    Weights are renormalised over the K chosen experts if k > 1, before anything is dropped; what is dropped counts
    zero, and the token's other weights stay. The balance loss counts the choices before dropping.

    Args:
        logits_TE: [T, E], float32; outputs_TED: [T, E, D], what each expert would answer; target_TD: [T, D].
        mask_T: [T] bool, True for a real token. Where there is padding, no expert is full.
        bias_E: [E], added to the scores for the choice.
        k: experts for each token; capacity: places of each expert; alpha: coefficient of the balance loss.

    Returns `(y_TD, loss, gradient_TE)`: the layer's output for all tokens, [T, D]; the mean squared error over real
    tokens and D plus alpha times the balance loss, a scalar; the gradient of that loss with respect to the logits,
    [T, E]. All are float32 and detached.
    """
    ### BEGIN SOLUTION
    T, E = logits_TE.shape
    logits_TE = logits_TE.detach().requires_grad_(True)
    scores_TE = logits_TE.softmax(dim=-1)
    ids_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if k > 1:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    weights_TK = weights_TK * keep(ids_TK, weights_TK, capacity, "score")
    y_TD = (weights_TK[..., None] * outputs_TED[torch.arange(T)[:, None], ids_TK]).sum(dim=1)
    loss = ((y_TD - target_TD)[mask_T] ** 2).mean() + alpha * aux_loss(logits_TE, ids_TK, mask_T)
    return y_TD.detach(), loss.detach(), torch.autograd.grad(loss, logits_TE)[0]
    ### END SOLUTION


# %% check="03.mend"
mend = check("03.mend", mend)

# %% [markdown]
# A discharge examination, one question for each fault, asked of your step from outside. These are properties that must
# hold for *any* logits. That is how such bugs are caught before they train: not by a curve, but by a test.

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(7)
logits_TE, outputs_TED, target_TD = (torch.randn(*shape, generator=draw) for shape in ((12, 4), (12, 4, 3), (12, 3)))
real_T, no_bias, order_T = torch.arange(12) < 12, torch.zeros(4), torch.randperm(12, generator=draw)


def step(logits_TE=logits_TE, outputs_TED=outputs_TED, target_TD=target_TD, mask_T=real_T, bias_E=no_bias, k=2,
         capacity=12, alpha=0.0):  # fmt: skip
    return mend(logits_TE, outputs_TED, target_TD, mask_T, bias_E, k, capacity, alpha)


sure = step(20 * logits_TE)[0] - outputs_TED[torch.arange(12), logits_TE.argmax(-1)]
in_order = step(capacity=5)[0]
shuffled = step(logits_TE[order_T], outputs_TED[order_T], target_TD[order_T], capacity=5)[0]
half_T, other_TE = torch.arange(12) < 6, torch.cat([logits_TE[:6], logits_TE[6:].flip(1)])
print("A  other padding, same loss:           ", torch.allclose(step(mask_T=half_T, alpha=1.0)[1],
      step(other_TE, mask_T=half_T, alpha=1.0)[1]))  # fmt: skip
print("B  a sure router follows its favourite:", bool((sure.abs().mean(1) < 0.01).float().mean() > 0.5))
print("C  a shuffled batch, the same answers: ", torch.allclose(in_order[order_T], shuffled, atol=1e-6))
print("D  alpha moves the router's gradient:  ", bool((step(alpha=1.0)[2] - step()[2]).abs().max() > 1e-3))
print("E  K = 1: the task moves the router:   ", bool(step(k=1)[2].abs().max() > 1e-3))
print("F  a common lift of the bias, no change:", torch.allclose(step()[0], step(bias_E=no_bias + 1)[0], atol=1e-6))

# %% [markdown]
# `tests/nn/test_clinic.py` of this repository asks the same six questions of `labkit`'s own layer and of the patients:
# each patient fails its own and passes the others.

# %% [markdown]
# ## 10 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("03")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 2**, "adaptive routing adds 12% accuracy", names no opponent. Here a learned router with an auxiliary loss met
# four that do not learn, at the same FLOPs, with five seeds. The verdict above is for the best of the four, in relative
# accuracy, with an interval. It holds for a byte model of this size and says nothing about larger ones; what does carry
# over is the method. Against random routing alone every router would have looked adaptive.

# %% [markdown]
# ## Further reading
#
# - Shazeer et al. 2017, *Outrageously Large Neural Networks*, arXiv 1701.06538: the first balance losses.
# - Lepikhin et al. 2020, *GShard*, arXiv 2006.16668: capacity, dropping, the auxiliary loss as it is known today.
# - Fedus, Zoph, Shazeer 2021, *Switch Transformers*, arXiv 2101.03961: equations 3 to 6.
# - Zoph et al. 2022, *ST-MoE*, arXiv 2202.08906: the z-loss, and what makes sparse models unstable.
# - Riquelme et al. 2021, *Scaling Vision with Sparse Mixture of Experts*, arXiv 2106.05974: who should be dropped.
# - Zhou et al. 2022, *Mixture-of-Experts with Expert Choice Routing*, arXiv 2202.09368.
# - Roller et al. 2021, *Hash Layers for Large Sparse Models*, arXiv 2106.04426.
# - Wang et al. 2024, *Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts*, arXiv 2408.15664: the bias,
#   and MaxVio.
# - DeepSeek-AI 2024, *DeepSeek-V3 Technical Report*, arXiv 2412.19437: section 2.1.2.
