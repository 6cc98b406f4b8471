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
# # 13 · Distillation: large teachers, small students
#
# A large model has learned something; a small one is to have it. In this lab the small one learns from the large one's
# *probabilities*, or is cut out of it, expert by expert. How good does it get, and is it worth the price?
# Wherever the question is whether a teacher pays, a student that learned alone, for as many FLOPs, stands beside.
#
# After this lab you can
#
# - write the losses of distillation: temperature with its T², forward and reverse KL, Jensen–Shannon between them;
# - keep a teacher on disk in a few tokens a position, without teaching the student that all others are impossible;
# - count what a teacher costs, and say how many steps without one it is worth;
# - let a student learn from its own text;
# - prune and merge experts so that router, bias and experts still mean the same, and make a sparse model dense;
# - give a verdict on claim 5 (*distilling a 175B model into a 7B one loses less than 3%*), with a student that is 25
#   times smaller.
#
# It takes about two hours. A CPU shows the mechanics in a few steps; what a student is worth takes a GPU.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% [markdown]
# Nothing from another notebook is needed. **Run the cell above and the one below first.** `cpu` trains for a few steps,
# `gpu` long enough for a verdict; `auto` asks the machine.

# %% tags=["setup"]
import copy
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch import Tensor

from labkit import check, claim, hint, predict, recap, reveal
from labkit.core import runtime
from labkit.core.config import ModelConfig
from labkit.core.cost import model_flops_per_token, model_params
from labkit.course.mine import my_model
from labkit.kernels import reference
from labkit.nn import Labelled, Transformer, trace
from labkit.nn.densify import densify
from labkit.nn.merge import merge_by_use
from labkit.nn.prune import prune as prune_layers
from labkit.nn.prune import prune_by_use, use
from labkit.show import figures, picture, style
from labkit.train import documents
from labkit.train.distill import Budget, CachedTeacher, DistillConfig, Distillation, OnPolicy, TeacherCache, distill
from labkit.train.distill import divergences, write_cache
from labkit.train.distill.run import longer
from labkit.train.evaluate import losses
from labkit.train.loop import TrainConfig, train
from labkit.train.tokens import TokenSource, evaluation, write_tokens

gpu = runtime.resolve_profile(profile) == "gpu"
device = runtime.device() if gpu else torch.device("cpu")
where = runtime.device_name(device)
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
scratch = tempfile.TemporaryDirectory(prefix="lab13-")
work = Path(scratch.name)

# %% [markdown]
# ## 1 · What a teacher knows that the text does not
#
# The teacher is your own model from lab 07, if you have trained one, else the one that comes with the course. Student
# and teacher must share a vocabulary, or their probabilities are about different things.

# %%
BYTES = 6_000_000 if gpu else 50_000  # of text, each domain
S, HELD = (256, 131_072) if gpu else (64, 512)  # tokens of a window; held-out tokens in all
FEW = 16 if gpu else 2  # windows of each domain that are looked at closely

trained = my_model(device=device)
teacher, tokenizer = trained.model.eval(), trained.tokenizer
texts = documents.collect(train_bytes=BYTES, validation_bytes=max(16_000, BYTES // 40), seed=seed)
files, DOMAINS = write_tokens(work, texts, tokenizer), texts.domains
held = evaluation(files["validation"], S, HELD, batch=64)
print(trained)

# %% [markdown]
# The text says which token came next: one number for each position. The teacher says how likely *each* token was. Here
# is what it holds possible in the middle of a held-out window of each domain.

# %%
near = {d: torch.cat([b.ids_BS for b in held if b.domains[0] == d])[:FEW].to(device) for d in DOMAINS}


@torch.no_grad()
def speak(model, ids_BS):
    """Logits [B, S, V] in float32."""
    return model(ids_BS).logits.float()


said = {d: speak(teacher, ids_BS) for d, ids_BS in near.items()}
for d in DOMAINS:
    at, (row, logits) = S // 2, (near[d][0].tolist(), said[d][0])
    top = logits[at].softmax(-1).topk(5)
    words = [
        f"{tokenizer.decode([i])!r} {p:.0%}" for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    print(f"{d:<11}…{tokenizer.decode(row[at - 7 : at + 1])[-24:]!r}\n{'':<12}→ {', '.join(words)}")
    print(f"{'':<12}the text: {tokenizer.decode([row[at + 1]])!r}")

# %% [markdown]
# That is the idea of distillation (Hinton, Vinyals and Dean 2015): a wrong token with 20 % is another thing than one
# with 0.001 %, and the text never tells. Its value depends on how much there is to tell. A position where the teacher
# is sure of one token teaches what the text teaches.

# %% [markdown]
# The **entropy** of the teacher's distribution counts that, in nats; its exponential is the number of tokens between
# which it hesitates. In English, on average?

# %%
p_choices = predict("13.choices", "Exponential of the teacher's mean entropy, in English?", 1, 60, "tokens")


# %%
def entropy(logits):
    """Nats at every position."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


teacher_loss = losses(teacher, held)
unsure = {d: entropy(logits[:, :-1]).flatten() for d, logits in said.items()}
p_choices.against(unsure["english"].mean().exp().item())

# %% [markdown]
# Domain by domain: boxes hold the middle half of all positions, the dot is the mean. A teacher that is neither too sure
# nor too shy has a mean entropy as large as its loss (the cross). A cross above its dot: the teacher is surer than it
# should be, or the few windows that the dot stands for are easier than all held-out text, which the cross stands for.

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.0))
    axis.boxplot(
        [v.cpu().numpy() for v in unsure.values()], showfliers=False, showmeans=True,
        meanprops={"marker": "o", "markerfacecolor": style.PALETTE[0], "markeredgecolor": "white"},
        medianprops={"color": style.INK},
    )  # fmt: skip
    axis.plot(
        range(1, len(DOMAINS) + 1), [teacher_loss[d] for d in DOMAINS], "x", color=style.LIT, zorder=5, label="loss"
    )
    axis.set_xticks(range(1, len(DOMAINS) + 1), DOMAINS)
    axis.set(ylabel="entropy (nats)")
    axis.legend()
fig.alt = "Mean entropy of the teacher and its loss: " + "; ".join(
    f"{d} {unsure[d].mean():.2f} and {teacher_loss[d]:.2f} nats" for d in DOMAINS
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# So soft targets can add most where the boxes are high. There the teacher is also furthest from knowing: what it says
# is a guess, and the student learns the guess.

# %% [markdown]
# There is another way to see it. The gradient of cross-entropy in the student's logits is *its probabilities minus a
# one at the token that came*, and which one came was chance. With the teacher's probabilities in place of the one, the
# gradient is what it would be on average over all continuations that the teacher holds possible. Less noise, then, and
# the teacher's errors in exchange.

# %% [markdown]
# ### The student
#
# Claim 5 is about a student that is 25 times smaller (175B to 7B). Ours is a dense model of a few layers; its
# width is chosen so that its parameters come nearest to a twenty-fifth of the teacher's.

# %%
TIMES, LAYERS = 25, 4


def dense(width):
    """A dense student with the teacher's vocabulary."""
    heads = max(1, width // 32)
    sizes = (LAYERS, width, heads, 1, min(32, width), None)
    about = {"num_dense_layers": LAYERS, "d_dense": 3 * width, "qk_norm": "head", "tie_embeddings": True}
    return ModelConfig("student", teacher.config.vocab_size, *sizes, max_context=teacher.config.max_context, **about)


size = model_params(teacher.config).total
SMALL = min(map(dense, range(8, 513, 4)), key=lambda c: abs(model_params(c).total - size / TIMES))


def fresh(seed, config=SMALL):
    """An untrained model."""
    torch.manual_seed(seed)
    return Transformer(config).to(device)


print(f"student: width {SMALL.d_model}, {model_params(SMALL).total:,} parameters")

# %% [markdown]
# ## 2 · Softer
#
# A teacher that is nearly sure gives all wrong tokens together very little, and a loss hardly feels what it says of
# them. A **temperature** $T$ divides the logits of both models before the softmax, so that small probabilities come up
# (Hinton et al., section 2). With the text's own token beside it the loss is
#
# $$ L = h \cdot \mathrm{CE}(\text{text}, q_1) + (1 - h) \cdot T^2 \cdot \mathrm{KL}(p_T \,\|\, q_T), \qquad
# p_T = \mathrm{softmax}(z_{\text{teacher}} / T) . $$

# %% [markdown]
# Three logits, 6, 3 and 0, from sharpened to all but level:

# %% tags=["nbval-check-output"]
three = torch.tensor([6.0, 3.0, 0.0])
for T in (0.5, 1.0, 2.0, 4.0, 100.0):
    print(f"T = {T:5.1f}: " + ", ".join(f"{p:.4f}" for p in (three / T).softmax(-1)))

# %% [markdown]
# And the real teacher, at the English position of section 1, its 200 likeliest tokens in order:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.2, 2.8))
    curves = {
        T: (said["english"][0, S // 2] / T).softmax(-1).sort(descending=True).values[:200] for T in (1.0, 2.0, 4.0)
    }
    for (T, values), dash in zip(curves.items(), ("-", "--", ":"), strict=True):
        axis.loglog(range(1, len(values) + 1), values.cpu(), dash, label=f"T = {T:.0f}")
    axis.set(xlabel="rank of the token", ylabel="probability")
    axis.legend()
fig.alt = "Probability of the likeliest token, of the hundredth: " + "; ".join(
    f"T = {T:.0f}: {v[0]:.3f}, {v[99]:.5f}" for T, v in curves.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# Why $T^2$? The divergence's gradient in the student's logits is $(q_T - p_T) / T$, and at high temperature the two
# differ by about $1/T$ of what they did. The factor is there so that $h$ means much the same at every
# high temperature.


# %% exercise="13.soft_loss"
def soft_loss(student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor, temperature: float, hard: float) -> Tensor:
    """Hinton's loss of a batch: hard · cross-entropy + (1 − hard) · T² · KL(teacher ‖ student), in nats.

    Both terms are means over the positions whose *next* token has a label. The cross-entropy is taken at temperature 1,
    the divergence at `temperature`, both distributions softened.

    Args:
        student_BSV, teacher_BSV: [B, S, V] logits; those of position i are about token i + 1.
        labels_BS: [B, S] int64, the text itself, not shifted; -100 where nothing is to be learned.
        temperature: T > 0; hard: the share of the text, from 0 to 1.

    Returns a scalar. Raises ValueError if no position has a label to predict.
    """
    ### BEGIN SOLUTION
    target_BS = labels_BS[:, 1:]
    learned = target_BS != -100
    if not learned.any():
        raise ValueError("no position has a label to predict: every one is -100")
    student_TV, teacher_TV = student_BSV[:, :-1][learned], teacher_BSV[:, :-1][learned]
    logp = F.log_softmax(teacher_TV / temperature, -1)
    logq = F.log_softmax(student_TV / temperature, -1)
    soft = (logp.exp() * (logp - logq)).sum(-1).mean()
    return hard * F.cross_entropy(student_TV, target_BS[learned]) + (1 - hard) * temperature**2 * soft
    ### END SOLUTION


# %% check="13.soft_loss"
soft_loss = check("13.soft_loss", soft_loss)

# %% [markdown]
# The training loop below uses `labkit.train.distill`, which computes the same a slice at a time, so that logits of a
# large vocabulary need not be widened all at once. Is it the same?

# %% tags=["nbval-check-output"]
draw = torch.Generator().manual_seed(0)
z_student, z_teacher = torch.randn(2, 2, 6, 11, generator=draw)
labels = torch.randint(11, (2, 6), generator=draw)
labels[1, 3:] = -100
mask = torch.cat([labels[:, 1:] != -100, torch.zeros(2, 1, dtype=torch.bool)], 1)
for T in (1.0, 2.0, 4.0):
    loops = T**2 * divergences(z_student, z_teacher, temperature=T, mask_BS=mask).sum() / mask.sum()
    print(f"T = {T:.0f}: yours {soft_loss(z_student, z_teacher, labels, T, 0.0):.4f}, the loop's {loops:.4f}")

# %% [markdown]
# Now with the real teacher and an untrained student, in English. If T² is left out, what is left of the gradient at
# $T = 8$, as a share of that at $T = 1$?

# %%
p_square = predict("13.square", "Without T²: size of the gradient at T = 8, against T = 1?", 0, 20, "%")

# %%
SCALE = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
untrained = speak(fresh(seed), near["english"])
sizes = {}
for T in SCALE:
    z = untrained.clone().requires_grad_()
    soft_loss(z, said["english"], near["english"], T, 0.0).backward()
    sizes[T] = z.grad.norm().item()
bare = {T: value / T**2 for T, value in sizes.items()}
p_square.against(100 * bare[8.0] / bare[1.0])

# %% [markdown]
# Over all temperatures:

# %%
lines = {
    "with T²": [sizes[T] / sizes[1.0] for T in SCALE],
    "without": [bare[T] / bare[1.0] for T in SCALE],
    "1 / T²": [T**-2 for T in SCALE],
}
display(figures.cost_curve(SCALE, lines, "temperature T (no unit)", "size of the gradient (T = 1 is 1)"))

# %% [markdown]
# Hinton's argument holds where T is far above all logits: there the line with T² is level, and the one without falls as
# 1/T². On the way there, beyond T = 1, both fall further, because what a few tokens had is shared by thousands. A loss
# that mixes both terms and forgets the factor is, at a high temperature, a loss of the text alone.

# %% [markdown]
# Is softer better for a language model? Hinton's models told digits, sounds and pictures apart, and mostly one answer
# is right. Here several are, and the teacher is unsure by itself. Section 6 tries it.

# %% [markdown]
# ## 3 · Which way round?
#
# A student that is too small cannot say everything that its teacher says. What should it give up? That depends on the
# divergence. **Forward** KL, $\mathrm{KL}(p \,\|\, q)$, weighs with the teacher: where the teacher has mass the student
# must have some. **Reverse** KL, $\mathrm{KL}(q \,\|\, p)$, weighs with the student: where it has mass, the teacher
# must. Between them lies the generalized Jensen–Shannon divergence (GKD, Agarwal et al. 2024, equation 1):
#
# $$ D_\beta(p, q) = \beta \, \mathrm{KL}(p \,\|\, m) + (1 - \beta) \, \mathrm{KL}(q \,\|\, m), \qquad
# m = \beta p + (1 - \beta) q . $$

# %% [markdown]
# Two traps are in it. At β = 0 and β = 1 that formula gives 0 for everybody, so both ends are defined as the two KLs.
# And a mixture of probabilities is no mixture of their logarithms.


# %% exercise="13.divergence"
def divergence(student_TV: Tensor, teacher_TV: Tensor, beta: float) -> Tensor:
    """How far a student's distribution is from its teacher's, at every position, in nats.

    β = 0: forward KL(teacher ‖ student). β = 1: reverse KL(student ‖ teacher). Between them the generalized
    Jensen–Shannon divergence β·KL(teacher ‖ m) + (1 − β)·KL(student ‖ m) with m = β·teacher + (1 − β)·student.

    Args:
        student_TV: [T, V] logits, finite, of any size. Gradients must flow back to them.
        teacher_TV: [T, V] logits; -inf for a token that is ruled out (never with β = 1).
        beta: from 0 to 1.

    Returns [T].
    """

    ### BEGIN SOLUTION
    def kl(p: Tensor, logp: Tensor, logm: Tensor) -> Tensor:
        return torch.where(p == 0, 0.0, p * (logp - logm)).sum(-1)

    logq, logp = student_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
    if beta == 0:
        return kl(logp.exp(), logp, logq)
    if beta == 1:
        return kl(logq.exp(), logq, logp)
    logm = torch.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    return beta * kl(logp.exp(), logp, logm) + (1 - beta) * kl(logq.exp(), logq, logm)
    ### END SOLUTION


# %% check="13.divergence"
divergence = check("13.divergence", divergence)

# %% [markdown]
# A teacher with two ways to go on: 41 tokens in a row, two peaks. The student can only make *one* peak, and choose its
# place and its width. All of its possibilities are tried, and each divergence takes the one that it likes best.

# %% [markdown]
# How much of its mass will the student of forward KL put into the valley between the peaks, tokens 17 to 24, where the
# teacher has hardly any?

# %%
p_valley = predict("13.valley", "Forward KL: the best student's mass in the valley?", 0, 60, "%")

# %%
places = torch.arange(41.0, dtype=torch.float64)


def peak(place, width):
    return -((places - place) ** 2) / (2 * width**2)


two = torch.logaddexp(math.log(0.65) + peak(12, 2.5), math.log(0.35) + peak(29, 2.5))
shapes = [(place / 2, width / 4) for place in range(8, 73) for width in range(4, 49)]
family = torch.stack([peak(*shape) for shape in shapes])
best = {b: shapes[int(divergence(family, two.expand_as(family), b).argmin())] for b in (0.0, 0.1, 0.5, 0.9, 1.0)}
p_valley.against(100 * peak(*best[0.0]).softmax(-1)[17:25].sum().item())

# %% [markdown]
# The choice of every β, in numbers: the place of the peak, its width, its mass in the valley and beyond it.

# %% tags=["nbval-check-output"]
print(f"teacher: valley {two.softmax(-1)[17:25].sum():.0%}, the lower peak {two.softmax(-1)[25:].sum():.0%}")
for b, (place, width) in best.items():
    q = peak(place, width).softmax(-1)
    print(f"β = {b}: place {place:4.1f}, width {width:5.2f}, valley {q[17:25].sum():.0%}, beyond {q[25:].sum():.0%}")

# %% [markdown]
# As pictures:

# %%
with style.use():
    fig, axes = picture.new(columns=3, size=(9.6, 2.6))
    for axis, (b, name) in zip(axes, ((0.0, "forward KL"), (0.5, "β = 0.5"), (1.0, "reverse KL")), strict=True):
        axis.fill_between(places, two.softmax(-1), color=style.GREY, alpha=0.6, label="teacher")
        axis.plot(places, peak(*best[b]).softmax(-1), color=style.PALETTE[0], label="student")
        axis.set(title=name, xlabel="token", ylim=(0, 0.18))
    axes[0].set_ylabel("probability")
    axes[0].legend(fontsize=8)
fig.alt = "The best single peak for a teacher with two: " + "; ".join(
    f"β = {b}: at {place} with width {width}" for b, (place, width) in best.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# There is no gliding: somewhere between β = 0.1 and 0.5 the best student jumps from one answer to the other.

# %% [markdown]
# Forward KL **covers**: rather a wrong token than one left out. A text drawn from that student falls into the valley
# often. Reverse KL **chooses**: it writes only what the teacher might, and forgets the other way.

# %% [markdown]
# For a language model that is judged by its loss on a text, covering is right; one that is judged by what it writes may
# be better off choosing. Nothing of this matters to a student that is large enough.

# %% [markdown]
# One more trap. Is a small β nearly forward KL, because β = 0 is? Take β = 0.01, and the real teacher and an untrained
# student.

# %%
p_beta = predict("13.beta", "Divergence at β = 0.01, as a share of forward KL?", 0, 120, "%")

# %%
pair = (untrained[:, :-1].flatten(0, 1), said["english"][:, :-1].flatten(0, 1))
BETAS = [0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999]
between = [divergence(*pair, b).mean().item() for b in BETAS]
ends = [divergence(*pair, b).mean().item() for b in (0.0, 1.0)]
p_beta.against(100 * between[1] / ends[0])

# %% [markdown]
# The whole way from one end to the other, with the same numbers divided by β and by 1 − β:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 3.2))
    axis.semilogy(BETAS, between, "o-", label="D")
    axis.semilogy(BETAS, [v / b for v, b in zip(between, BETAS, strict=True)], "s-", label="D / β")
    axis.semilogy(BETAS, [v / (1 - b) for v, b in zip(between, BETAS, strict=True)], "^-", label="D / (1 − β)")
    axis.axhline(ends[0], color=style.INK, linestyle="--", label="forward KL")
    axis.axhline(ends[1], color=style.INK, linestyle=":", label="reverse KL")
    axis.set(xlabel="β (no unit)", ylabel="divergence (nats)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"D over β from {between[0]:.4f} to {between[-1]:.4f} nats, largest {max(between):.2f}; "
fig.alt += f"forward KL {ends[0]:.2f}, reverse KL {ends[1]:.2f}."
display(fig)

# %% [markdown]
# It vanishes towards both ends. Only divided by β does it near forward KL. A setting of β = 0.01 trains with a loss of
# about a hundredth of β = 0's, or less, and Adam, which divides by the gradient's size, hides that until a second loss
# stands beside it.

# %% [markdown]
# ## 4 · A teacher on disk
#
# A teacher need not run beside every student. It can read the text once, and what it says is kept. All of it? That is
# two bytes for every token of the vocabulary, at every position: much more than the text.

# %% [markdown]
# So only the $k$ likeliest
# tokens are kept. In English, how much of the teacher's mass lies in its 8 likeliest?

# %%
p_mass = predict("13.mass", "Teacher's mass in its 8 likeliest tokens, in English?", 0, 100, "%")

# %%
KS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def mass(logits, temperature=1.0):
    """Mean mass of the k likeliest tokens, for every k of KS."""
    p = (logits / temperature).softmax(-1).topk(max(KS), dim=-1).values.cumsum(-1).flatten(0, -2).mean(0)
    return [p[k - 1].item() for k in KS]


in_top = {d: mass(logits) for d, logits in said.items()}
softer = mass(said["english"], 2.0)
p_mass.against(100 * in_top["english"][KS.index(8)])

# %% [markdown]
# For every k and every domain, and once more at $T = 2$:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 3.1))
    for d, values in in_top.items():
        axis.semilogx(KS, [100 * v for v in values], "o-", base=2, label=d)
    axis.semilogx(KS, [100 * v for v in softer], "--", color=style.INK, base=2, label="english, T = 2")
    axis.set(xlabel="tokens kept, k", ylabel="mass (%)", ylim=(0, 103), xticks=KS)
    axis.set_xticklabels(KS)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Teacher's mass in its 8 likeliest tokens: " + ", ".join(
    f"{d} {v[KS.index(8)]:.0%}" for d, v in in_top.items()
) + f"; english at T = 2 {softer[KS.index(8)]:.0%}."  # fmt: skip
display(fig)

# %% [markdown]
# At T = 2 (dashed) the same few tokens hold much less: what is kept must fit the temperature that it is for.
#
# What about the rest? It is often left out, and the kept tokens are scaled to sum to one. There is a better way that
# costs one number more: keep the rest's *mass*, and compare $k + 1$ outcomes, the kept tokens and "something else".


# %% exercise="13.tail_bucket"
def tail_bucket(student_TV: Tensor, ids_TK: Tensor, logp_TK: Tensor, tail_T: Tensor) -> Tensor:
    """Forward KL over K + 1 outcomes: the tokens that were kept of a teacher, and all others together, in nats.

    Args:
        student_TV: [T, V] logits. Gradients must flow back to them.
        ids_TK: [T, K] int64, K different tokens in any order, K < V.
        logp_TK: [T, K] the teacher's log-probability of each.
        tail_T: [T] the log of the teacher's mass on all other tokens; -inf where nothing is left over.

    Returns [T]. A student may leave very little to the rest, 10⁻¹⁰ for instance: float32 must not lose it.
    """
    ### BEGIN SOLUTION
    logq_TV = student_TV.log_softmax(-1)
    kept_TK = logq_TV.gather(-1, ids_TK)
    rest_T = logq_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
    logp = torch.cat([logp_TK, tail_T[:, None]], -1)
    logq = torch.cat([kept_TK, rest_T[:, None]], -1)
    return torch.where(logp == -math.inf, 0.0, logp.exp() * (logp - logq)).sum(-1)
    ### END SOLUTION


# %% check="13.tail_bucket"
tail_bucket = check("13.tail_bucket", tail_bucket)

# %% [markdown]
# A teacher over twelve tokens; three are kept. A student that can say anything is trained with each loss until nothing
# moves any more. If the kept tokens are *rescaled* to sum to one, how much mass will it leave to the nine others? The
# teacher leaves them two fifths.

# %%
p_rest = predict("13.rest", "Rescaled: mass that the student leaves to the other nine?", 0, 60, "%")

# %%
twelve = -1.0 * torch.arange(1.0, 13.0).log()[None]  # Zipf: the n-th likeliest has 1/n of the first
logp = twelve.log_softmax(-1)
ids, kept = torch.arange(3)[None], logp[:, :3]
tail = logp[:, 3:].logsumexp(-1)
WAYS = {
    "everything": lambda z: divergence(z, twelve, 0.0),
    "kept, and the rest's mass": lambda z: tail_bucket(z, ids, kept, tail),
    "kept, rescaled": lambda z: tail_bucket(z, ids, kept.log_softmax(-1), torch.full((1,), -math.inf)),
}
ended = {}
for name, loss in WAYS.items():
    z = torch.zeros(1, 12, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(z).sum().backward()
        optimizer.step()
    ended[name] = z.detach().softmax(-1)[0]
p_rest.against(100 * ended["kept, rescaled"][3:].sum().item())

# %% [markdown]
# All three ends beside the teacher:

# %% tags=["nbval-check-output"]
print(f"{'teacher':<26} first {logp.exp()[0, 0]:.2f}, the other nine together {tail.exp().item():.2f}")
for name, q in ended.items():
    print(f"{name:<26} first {q[0]:.2f}, the other nine together {q[3:].sum():.2f}")

# %% [markdown]
# Rescaling teaches that what was left out is impossible, and the student becomes too sure of itself by exactly the mass
# that was left out. With the rest's mass the student is right about how much there is, and free in how to share it out.

# %% [markdown]
# Token by token it looks like this. (A third way draws $k$ tokens from the teacher instead of taking the likeliest:
# right on average, and noisy. Anshumann et al. 2025; `write_cache(…, estimator="sampled")`.)

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.8))
    for n, (name, q) in enumerate([("teacher", logp.exp()[0]), *ended.items()]):
        color = style.GREY if n == 0 else style.PALETTE[n - 1]
        axis.bar(torch.arange(12) + 0.2 * (n - 1.5), q, 0.19, color=color, label=name)
    axis.axvline(2.5, color=style.INK, linestyle=":")
    axis.set(xlabel="token (kept: left of the line)", ylabel="probability", xticks=range(12))
    axis.legend()
fig.alt = "Mass beyond the kept tokens: teacher " + f"{tail.exp().item():.2f}; " + "; ".join(
    f"{name} {q[3:].sum():.2f}" for name, q in ended.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# Now the real teacher, on the text that the students will read.

# %% [markdown]
# The sizes of the whole experiment stand here: they decide how much the teacher has to read. Its text
# goes into the file with what it says, so that a student cannot be taught about another text.

# %%
SEEDS = (0, 1, 2) if gpu else (0, 1)
STEPS, BATCH, RATE = (120, 64, 6e-3) if gpu else (3, 2, 4e-3)
EPOCHS, KEPT = (4, 64) if gpu else (2, 16)

cache = write_cache(
    work / "teacher.bin", teacher, TokenSource(files["train"], seed=9), sequences=STEPS * BATCH // EPOCHS, sequence=S,
    k=KEPT, batch=BATCH,
)  # fmt: skip
whole = 2 * teacher.config.vocab_size
print(f"{cache.sequences * S:,} tokens read; {cache.bytes_per_token:.0f} bytes a token, all logits: {whole:,}")

# %% [markdown]
# A file can be cut short, or belong to another teacher. Students would train on it without an error, so it is sealed:

# %% tags=["nbval-check-output"]
content = bytearray(cache.path.read_bytes())
content[-3] ^= 1  # one bit
(work / "other.bin").write_bytes(content)
(work / "other.bin.json").write_bytes((work / "teacher.bin.json").read_bytes())
for path, who in (("teacher.bin", teacher), ("other.bin", None), ("teacher.bin", fresh(0))):
    try:
        TeacherCache.open(work / path, who)
        print(path, "is fine")
    except ValueError as error:
        print(path, "refused:", "checksum" if "checksum" in str(error) else "another teacher")

# %% [markdown]
# ## 5 · The price
#
# "25 times smaller" has several meanings. The embedding is a table that multiplies nothing; a sparse teacher uses only
# some of its experts for a token. Parameters decide memory, FLOPs decide what a token costs. By what factor does a
# token cost more FLOPs in this teacher than in its student?

# %%
p_flops = predict("13.flops", "FLOPs of a token: teacher over student?", 1, 60, "×")


# %%
def per_token(config):
    """FLOPs of a token's forward pass, in the middle of a window."""
    return model_flops_per_token(config, (S + 1) // 2).total


def sizes_of(config):
    p = model_params(config)
    inner = p.total - p.embedding - p.head
    return {"parameters": p.total, "without embedding": inner, "active": p.active, "FLOPs a token": per_token(config)}


both = {"teacher": sizes_of(teacher.config), "student": sizes_of(SMALL)}
ratios = {name: value / both["student"][name] for name, value in both["teacher"].items()}
p_flops.against(ratios["FLOPs a token"], calculated=True)
rows = [f"| {n} | {both['teacher'][n]:,} | {both['student'][n]:,} | {r:.1f}× |" for n, r in ratios.items()]
display(Markdown("| | teacher | student | |\n|---|---|---|---|\n" + "\n".join(rows)))

# %% [markdown]
# A sparse teacher is cheap to listen to: it costs what it uses, not what it has. A dense one of the same size would
# multiply every token with all of its parameters.

# %% [markdown]
# Training is three forward passes a token, two of them for the backward. Distilling adds the teacher's reading, one
# forward pass of the teacher. For that the student could have trained longer: how much longer?


# %% exercise="13.equal_steps"
def equal_steps(
    steps: int, student: dict[str, int], teacher: dict[str, int], students: int = 1, epochs: int = 1
) -> int:
    """How many steps without a teacher cost as many FLOPs as `steps` with one, rounded down.

    A token's forward pass is 2 FLOPs for every parameter that it multiplies with. A training step is 3 forward passes
    (one forward, two backward); the teacher's reading is 1. What the teacher said is kept: `students` students share
    its cost, and each reads it in `epochs` epochs. Attention scores and norms are left out.

    Args:
        steps: of the distillation, for one student, all epochs together.
        student, teacher: parameters by part. "embedding" is looked up; "dense" (attention, routers, shared experts) and
            "head" serve every token. With experts: "expert" is one expert of every layer, added up over layers;
            "num_experts" and "top_k" as usual. Without, these three are missing.
        students, epochs: 1 or more.
    """

    ### BEGIN SOLUTION
    def forward(model: dict[str, int]) -> int:
        active = model["dense"] + model["head"] + model.get("top_k", 0) * model.get("expert", 0)
        return 2 * active

    step = 3 * forward(student) * students * epochs
    return steps * (step + forward(teacher)) // step
    ### END SOLUTION


# %% check="13.equal_steps"
equal_steps = check("13.equal_steps", equal_steps)

# %% [markdown]
# Round numbers first: the claim's own. A dense teacher of 175B, a dense student of 7B, embeddings left aside.

# %% tags=["nbval-check-output"]
large, little = ({"embedding": 0, "dense": n * 10**9, "head": 0} for n in (175, 7))
for students, epochs in ((1, 1), (3, 1), (1, 4), (3, 4)):
    steps = equal_steps(1000, little, large, students, epochs)
    print(f"{students} student(s), {epochs} epoch(s): 1000 steps with the teacher cost {steps:,} without")

# %% [markdown]
# And here, by your count and by `labkit`'s, which has attention scores, too:


# %%
def parts_of(config):
    """Parameters by part, for equal_steps; a tied head multiplies all the same."""
    p, moe = model_params(config), config.moe
    parts = {"embedding": p.embedding, "head": config.vocab_size * config.d_model}
    parts["dense"] = p.attention + p.dense + p.router + p.shared_experts
    if moe is not None:
        parts |= {"expert": p.routed_experts // moe.num_experts, "num_experts": moe.num_experts, "top_k": moe.top_k}
    return parts


def settings(seed, **changes):
    """How every student here is trained."""
    about = {"steps": STEPS, "batch": BATCH, "learning_rate": RATE, "warmup": STEPS // 15, "schedule": "cosine"}
    about |= {"sequence": S, "seed": seed, "device": str(device), "progress": "quiet", "log_every": STEPS}
    return TrainConfig(**(about | changes))


budget = Budget.of(SMALL, teacher.config, settings(0))
yours = equal_steps(STEPS, parts_of(SMALL), parts_of(teacher.config))
print(f"{STEPS} steps with the teacher cost as much as {yours} without; with attention scores {budget.equal_steps}")

# %% [markdown]
# Sharing makes a teacher cheap. What remains of its price, for a student that is one of n and reads e epochs:

# %%
SHARED = {
    "1 student": (1, 1),
    f"{len(SEEDS)} students": (len(SEEDS), 1),
    f"{EPOCHS} epochs": (1, EPOCHS),
    f"{len(SEEDS)} students, {EPOCHS} epochs": (len(SEEDS), EPOCHS),
}
reading = per_token(teacher.config) / (3 * per_token(SMALL))
with style.use():
    fig, (axis,) = picture.new(size=(7.6, 2.1))
    axis.barh(list(SHARED), 1.0, color=style.PALETTE[0], label="the student's own training")
    price = [reading / (n * e) for n, e in SHARED.values()]
    axis.barh(list(SHARED), price, left=1.0, color=style.PALETTE[1], label="the teacher's reading")
    axis.set(xlabel="FLOPs (the student's own are 1)")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "FLOPs of the teacher's reading, the student's own being 1: " + ", ".join(
    f"{name} {value:.2f}" for name, value in zip(SHARED, price, strict=True)
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# What is nowhere in this picture is the teacher's own training. If it has to be trained for the purpose, that is
# usually the largest bar by far; if it is there anyway, it is free.

# %% [markdown]
# Busbridge et al. (2025) come to the same parting of ways:
# distil if the teacher exists or serves many students, else train the student.

# %% [markdown]
# ## 6 · The student, 25 times smaller
#
# Four students for every seed, all from the same weights:
#
# - **with the teacher** beside it, forward KL at T = 1;
# - **alone, equal tokens**: the same text, no teacher;
# - **alone, equal FLOPs**: no teacher, and as many steps more as its reading would have cost;
# - **from the cache**: k tokens and the rest's mass, the same text several times.
#
# The first two say whether a teacher helps per token. The first and the third say whether it pays.

# %% [markdown]
# Two predictions. Below zero in the first: the teacher wins, its price counted. The second is the claim's.

# %%
p_wins = predict("13.wins", "Loss with the teacher, minus alone at equal FLOPs?", -2, 2, "nats", step=0.01)
p_gap = predict("13.gap", "Loss of the distilled student, above its teacher's?", 0, 500, "%")

# %% [markdown]
# `distill` trains a student with its teacher, and then a copy of the same start without one for as many FLOPs. There is
# no way to ask it for the first alone.


# %%
def heard(model):
    """Held-out loss by domain, nats a token."""
    return losses(model, held, autocast=torch.bfloat16 if gpu else None)


def one_seed(seed):
    """The four students of a seed."""
    text = lambda: TokenSource(files["train"], seed=seed)  # noqa: E731
    made = {
        name: fresh(seed)
        for name in ("with the teacher", "alone, equal tokens", "alone, equal FLOPs", "from the cache")
    }
    result = distill(made["with the teacher"], teacher, text(), settings(seed))
    made["alone, equal FLOPs"] = result.alone
    train(made["alone, equal tokens"], text(), settings(seed))
    train(made["from the cache"], CachedTeacher(cache), settings(seed), objective=Distillation(DistillConfig()))
    return made


teacher_loss = heard(teacher)
students = {s: one_seed(s) for s in SEEDS}
ARMS = tuple(students[SEEDS[0]])
found = {arm: [heard(students[s][arm]) for s in SEEDS] for arm in ARMS}

# %% [markdown]
# The mean over the four domains, each counting the same:


# %%
def mean(by_domain):
    return statistics.mean(by_domain.values())


goal = mean(teacher_loss)
totals = {arm: [mean(each) for each in seeds] for arm, seeds in found.items()}
apart = [a - b for a, b in zip(totals["with the teacher"], totals["alone, equal FLOPs"], strict=True)]
gaps = [100 * (value / goal - 1) for value in totals["with the teacher"]]
p_wins.against(statistics.mean(apart), min(apart), max(apart))
p_gap.against(statistics.mean(gaps), min(gaps), max(gaps))
display(figures.bars_with_spread(totals, "held-out loss", "nats a token", ("teacher", goal)))

# %% [markdown]
# In words, from this run:

# %%
per_token_gain = [a - b for a, b in zip(totals["with the teacher"], totals["alone, equal tokens"], strict=True)]


def sided(values, better, worse):
    """Which way the seeds point."""
    wins = sum(value < 0 for value in values)
    return {len(values): better, 0: worse}.get(wins, f"{better} for {wins} of {len(values)} seeds")


words = f"**Per token** the teacher {sided(per_token_gain, 'helps', 'does not help')} "
words += f"({statistics.mean(per_token_gain):+.3f} nats, {min(per_token_gain):+.3f} to {max(per_token_gain):+.3f}). "
words += f"**Per FLOP** it {sided(apart, 'pays', 'does not pay')} ({statistics.mean(apart):+.3f} nats, "
words += f"{min(apart):+.3f} to {max(apart):+.3f}; the student alone took {budget.equal_steps} steps for {STEPS}). "
one_of_all = Budget.of(SMALL, cache.flops / len(SEEDS), settings(0)).equal_steps
words += f"The one from the cache, which {len(SEEDS)} share, costs as much as {one_of_all} steps alone. "
if not gpu:
    words += f"After {STEPS} steps that is a test of the machinery and says nothing about students."
display(Markdown(words))

# %% [markdown]
# Domain by domain, as a gap to the teacher in per cent of the teacher's loss: where that is small, a few hundredths of
# a nat are many per cent. Is the gap largest where the teacher hesitated most (section 1)?

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.6, 3.1))
    for n, (arm, seeds) in enumerate(found.items()):
        gap = [[100 * (each[d] / teacher_loss[d] - 1) for each in seeds] for d in DOMAINS]
        x = [i + 0.19 * (n - 1.5) for i in range(len(DOMAINS))]
        axis.bar(x, [statistics.mean(v) for v in gap], 0.18, label=arm)
        for at, values in zip(x, gap, strict=True):
            axis.plot([at] * len(values), values, ".", color=style.INK, markersize=4)
    axis.axhline(3, color=style.LIT, linestyle="--", label="claim 5: 3 %")
    axis.set_xticks(range(len(DOMAINS)), DOMAINS)
    axis.set(ylabel="loss above the teacher's (%)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
above = {
    arm: {d: 100 * (statistics.mean(each[d] for each in seeds) / teacher_loss[d] - 1) for d in DOMAINS}
    for arm, seeds in found.items()
}
fig.alt = "Loss above the teacher's: " + "; ".join(
    f"{arm}: " + ", ".join(f"{d} {value:.0f} %" for d, value in by_domain.items()) for arm, by_domain in above.items()
) + "."  # fmt: skip
display(fig)

# %% [markdown]
# To see a gap in nats, multiply it by the teacher's loss, the cross in section 1: then the domains' order may be
# another.
#
# The student from the cache has no rival here. One that trained alone for *its* FLOPs would have the few steps more
# that the sentence above names, so whether the cache pays is left open.

# %% [markdown]
# Into the ledger goes the student with the teacher beside it, in the mean over domains. Loss is one measure of quality
# among several, and a strict one: 3 % of one nat are 0.03 nats.

# %%
WHOSE = {"yours": "your own", "shipped": "the shipped"}[trained.whose]
_ = claim(
    5, statistics.mean(gaps), low=min(gaps), high=max(gaps), runs=len(SEEDS),
    condition=(
        f"held-out loss, mean over four domains; {WHOSE} teacher of {size / 1e6:.2f} M parameters with a loss of "
        f"{goal:.2f} nats, student of "
        f"{model_params(SMALL).total / 1e6:.2f} M ({size / model_params(SMALL).total:.1f} times fewer), "
        f"{STEPS * BATCH * S:,} tokens, {where}"
        + ("" if gpu else f"; {STEPS} steps: the mechanics, no verdict on distillation")
    ),
)  # fmt: skip

# %% [markdown]
# A percentage of the teacher's loss is kind to a teacher that has learned little: a student equals it easily. The
# literature often asks another question (Fedus et al. 2021): of the way from the student *alone* to its teacher, which
# share does distillation go?

# %%
plain = totals["alone, equal tokens"]
if min(plain) <= goal:
    way = "A student alone is as good as this teacher: there is nothing to distil. Train the teacher for longer."
else:
    shares = [100 * -gain / (value - goal) for gain, value in zip(per_token_gain, plain, strict=True)]
    way = f"Of the way from the student alone to its teacher it goes {statistics.mean(shares):.0f} % at equal tokens "
    way += f"({min(shares):.0f} to {max(shares):.0f} over {len(shares)} seeds)."
display(Markdown(way))

# %% [markdown]
# ### Other losses

# %% [markdown]
# T = 2 and the reverse direction, for one seed; on a GPU Jensen–Shannon and half of the text's own loss, too. All are
# judged by their loss on the text, at temperature 1. Softer: better or worse?

# %%
p_soft = predict("13.soft", "Loss of the student at T = 2, minus that at T = 1?", -0.5, 1.5, "nats", step=0.01)

# %%
OTHERS = {"T = 2": DistillConfig(temperature=2.0), "reverse KL": DistillConfig(beta=1.0)}
if gpu:
    OTHERS |= {"β = 0.5": DistillConfig(beta=0.5), "half text, half teacher": DistillConfig(hard=0.5)}
first = SEEDS[0]
ended = {"forward KL, T = 1": mean(found["with the teacher"][0])}
for name, chosen in OTHERS.items():
    student = fresh(first)
    text = TokenSource(files["train"], seed=first)
    train(student, text, settings(first), objective=Distillation(chosen, teacher))
    ended[name] = mean(heard(student))
p_soft.against(ended["T = 2"] - ended["forward KL, T = 1"])

# %% [markdown]
# One seed only: hold differences against the spread over seeds in the figure before.

# %%
spread = max(totals["with the teacher"]) - min(totals["with the teacher"])
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 0.9 + 0.38 * len(ended)))
    start = ended["forward KL, T = 1"]
    axis.axvspan(-spread, spread, color=style.GREY, alpha=0.4, linewidth=0, label="spread of forward KL over seeds")
    axis.barh(list(ended), [v - start for v in ended.values()], color=style.PALETTE[0], height=0.6)
    axis.set(xlabel="held-out loss minus that of forward KL (nats a token)")
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Loss minus that of forward KL at T = 1: " + ", ".join(
    f"{name} {v - start:+.3f}" for name, v in ended.items()
) + f" nats; spread over seeds {spread:.3f}."  # fmt: skip
display(fig)

# %% [markdown]
# Two things pull at T = 2: softer targets say more of the unlikely tokens, and a language has thousands of those, on
# which a small student can spend all its strength. Reverse KL is not made for this judge: it may leave out what it
# cannot say, and a text that says it anyway is expensive.

# %% [markdown]
# Reverse KL, and β = 0.5 with it, also starts slowly. Its gradient at a token has the student's own probability $q$ for
# a factor: a token that the student holds all but impossible is hardly pulled up, however sure the teacher is of it.
# Forward KL's gradient is $q - p$, which does not vanish with $q$. In words:


# %%
def compared(name):
    """How a loss did against forward KL at T = 1, in words."""
    off = ended[name] - start
    return f"{name} is {abs(off):.3f} nats {'worse' if off > 0 else 'better'}" + (
        "" if abs(off) > spread else ", which is less than seeds differ"
    )


display(Markdown("; ".join(compared(name) for name in OTHERS) + f". ({STEPS} steps, one seed.)"))

# %% [markdown]
# ## 7 · The student's own text
#
# A student that writes reads its own words, and their mistakes. It was trained on other people's. **On-policy**
# distillation lets the student write and the teacher comment (GKD, algorithm 1): the divergence is taken on what the
# student will really see.

# %% [markdown]
# How far from its teacher is it there, as a multiple of how far it is on real text?

# %%
p_own = predict("13.own", "Divergence on the student's own text, over that on real text?", 0, 4, "×", step=0.05)

# %%
ON = {"steps": 16, "batch": 64, "sequence": 128} if gpu else {"steps": 2, "batch": 2, "sequence": 32}
PROMPT = ON["sequence"] // 2


@torch.no_grad()
def astray(student, own):
    """Forward KL at every position after the prompt [S − prompt], on the student's own text or on the real one."""
    text = TokenSource(files["validation"], seed=5)
    source = OnPolicy(student.eval(), text, prompt=PROMPT, seed=7) if own else text
    ids_BS = source.next(ON["batch"], ON["sequence"]).ids_BS.to(device)
    apart_BS = divergences(speak(student, ids_BS), speak(teacher, ids_BS))
    return apart_BS[:, PROMPT:].mean(0).cpu()


distilled = students[first]["with the teacher"]
before = {"real text": astray(distilled, False), "its own text": astray(distilled, True)}
p_own.against((before["its own text"].mean() / before["real text"].mean()).item())

# %% [markdown]
# Now both ways of going on, from the same student, for the same few steps: on the text as before, and on what it
# writes.

# %%
again = settings(first, **ON, learning_rate=RATE / 10, warmup=0)
after = {"before": distilled, "more real text": copy.deepcopy(distilled), "its own text": copy.deepcopy(distilled)}
took = {}
for name in ("more real text", "its own text"):
    text = TokenSource(files["train"], seed=20)
    source = text if name == "more real text" else OnPolicy(after[name], text, prompt=PROMPT)
    began = time.perf_counter()
    train(after[name], source, again, objective=Distillation(DistillConfig(), teacher))
    took[name] = time.perf_counter() - began
measured = {name: (astray(m, False).mean().item(), astray(m, True).mean().item()) for name, m in after.items()}

# %% [markdown]
# Divergence from the teacher, on both kinds of text:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.2, 2.9))
    for n, label in enumerate(("on real text", "on its own text")):
        x = [i + 0.36 * (n - 0.5) for i in range(len(measured))]
        axis.bar(x, [pair[n] for pair in measured.values()], 0.34, label=label)
    axis.set_xticks(range(len(measured)), measured)
    axis.set(xlabel="trained on", ylabel="KL(teacher ‖ student) (nats)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
told = [f"{name}: {real:.3f} on real, {own:.3f} on its own" for name, (real, own) in measured.items()]
fig.alt = "Divergence from the teacher. " + "; ".join(told) + f" nats; {ON['steps']} steps."
display(fig)
print(f"seconds: {took['more real text']:.1f} on real text, {took['its own text']:.1f} on its own")

# %% [markdown]
# If the student is *nearer* to its teacher on its own text: what a weak student writes is what it thinks likely, and
# both may be unsure of how such a text goes on. A small divergence there is no sign that it writes well. And a few
# steps on its own text can be worse on both kinds: the text is poor, and the second one is not that of *before*, since
# a student that has changed writes another.

# %% [markdown]
# Writing is slow: every token is a forward pass of its own, and the teacher reads what nobody can keep for another
# student: this text exists for one student, at one moment.

# %% [markdown]
# And a student that writes nonsense learns what its teacher thinks of nonsense; GKD starts from one that can write
# already. What it can buy should be looked for where the student's own text counts, in long answers, rather than in a
# loss on given text.

# %% [markdown]
# ## 8 · Fewer experts
#
# The other road to a small model needs no training at first: cut it out of the large one. A sparse model shows where:
# experts that are seldom chosen.

# %% [markdown]
# Which are they? The router is watched on text of the kind that the model will read: a `Routing` record keeps, for a
# layer, which experts each token chose and with what scores.

# %%
CALIBRATION, BRIEF = (32_768, 32_768) if gpu else (1024, 256)  # tokens to count use on; to judge by
sample = evaluation(files["train"], S, CALIBRATION, batch=64)
labelled = Labelled(torch.cat([b.ids_BS for b in sample]), sum((b.domains for b in sample), ()))
records = trace(teacher, labelled, batch_size=32)
brief = evaluation(files["validation"], S, BRIEF, batch=64)
E, K = teacher.config.moe.num_experts, teacher.config.moe.top_k


def judged(model):
    return mean(losses(model, brief, autocast=torch.bfloat16 if gpu else None))


whole = judged(teacher)
display(figures.load_bars(records[0], "Load of the first layer's experts"))

# %% [markdown]
# An expert is more than its three matrices. The router has a row for it, and perhaps a selection bias; its *number* is
# how everybody finds it. Cut all of it, or nothing.


# %% exercise="13.prune"
def prune(layer: dict[str, Tensor], used_E: Tensor, number: int, top_k: int) -> tuple[dict[str, Tensor], int]:
    """A sparse layer with its `number` most used experts, and the top_k that it can still have.

    Those that stay keep the order of their numbers. Between equally used ones the lower number stays.

    Args:
        layer: tensors by name. Those whose names begin with "router." or "experts." have the experts for their first
            dimension; all others ("shared.…") are everybody's and stay as they are.
        used_E: [E] how much each expert is used, any numbers of 0 or more.
        number: of experts to keep; top_k: how many a token chose so far.

    Returns the new layer and the new top_k, which is the old one unless fewer experts are left. Raises ValueError
    unless 1 ≤ number ≤ E.
    """
    ### BEGIN SOLUTION
    if not 1 <= number <= len(used_E):
        raise ValueError(f"number is {number}; give 1 to {len(used_E)}, the number of experts")
    order_E = torch.sort(used_E, descending=True, stable=True).indices
    keep_N = order_E[:number].sort().values
    kept = {
        name: tensor[keep_N] if name.startswith(("router.", "experts.")) else tensor for name, tensor in layer.items()
    }
    return kept, min(top_k, number)
    ### END SOLUTION


# %% check="13.prune"
prune = check("13.prune", prune)

# %% [markdown]
# On the teacher's own layers, against `labkit.nn.prune`:

# %% tags=["nbval-check-output"]
half = prune_by_use(teacher, records, E // 2, by="scores")
same = []
for record in records:
    old, new = (model.layers[record.layer].ffn.state_dict() for model in (teacher, half))
    cut, left = prune(old, use(record, "scores").to(device), E // 2, K)
    same += [torch.equal(cut[name], new[name]) for name in new]
print("yours and labkit's are the same:", all(same), "· tensors missing:", len(set(new) - set(cut)))

# %% [markdown]
# By what should use be counted: by how many tokens chose an expert, or by the scores that they gave it? And is either
# better than throwing dice? Nobody is trained again here.

# %% [markdown]
# With half of the experts left, by scores: how much is the
# loss above the teacher's?

# %%
p_half = predict("13.half", "Loss above the teacher's with half of the experts, by scores?", 0, 250, "%")

# %%
LEFT = [n for n in ((14, 12, 10, 8, 6, 4) if gpu else (8, 4)) if K <= n * E // 16 < E]
DICE = (0, 1, 2) if gpu else (0,)
NUMBERS = [n * E // 16 for n in LEFT]


def at_random(number, seed):
    """As many experts, chosen by dice."""
    dice = torch.Generator().manual_seed(seed)
    keep = {r.layer: tuple(torch.randperm(E, generator=dice)[:number].sort().values.tolist()) for r in records}
    return prune_layers(teacher, keep)


by = {how: [judged(prune_by_use(teacher, records, n, by=how)) for n in NUMBERS] for how in ("scores", "tokens")}
chance = [[judged(at_random(n, s)) for s in DICE] for n in NUMBERS]
middle = min(range(len(NUMBERS)), key=lambda i: abs(NUMBERS[i] - E / 2))
p_half.against(100 * (by["scores"][middle] / whole - 1))

# %% [markdown]
# Loss over what is left; the band is chance, from its best to its worst throw:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(7.8, 3.2))
    for (how, values), mark in zip(by.items(), "os", strict=True):
        axis.plot([E, *NUMBERS], [whole, *values], f"{mark}-", label=f"the most used, by {how}")
    low, high = ([whole, *(pick(v) for v in chance)] for pick in (min, max))
    axis.fill_between([E, *NUMBERS], low, high, color=style.GREY, alpha=0.5, label="by dice")
    axis.plot([E, *NUMBERS], [whole, *map(statistics.mean, chance)], ":", color=style.INK, label="by dice, mean")
    axis.set(xlabel="experts left in every layer", ylabel="held-out loss (nats a token)")
    axis.invert_xaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Loss with all {E} experts {whole:.2f}; " + "; ".join(
    f"{n} left: by scores {a:.2f}, by tokens {b:.2f}, by dice {statistics.mean(c):.2f}"
    for n, a, b, c in zip(NUMBERS, by["scores"], by["tokens"], chance, strict=True)
) + " nats."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run:

# %%
apart_from = {how: sum(a < min(c) for a, c in zip(values, chance, strict=True)) for how, values in by.items()}
display(
    Markdown(
        "Keeping the most used experts is better than every throw of the dice "
        + " and ".join(f"at {n} of {len(NUMBERS)} sizes by {how}" for how, n in apart_from.items())
        + f" ({len(DICE)} {'throw' if len(DICE) == 1 else 'throws'} a size)."
    )
)

# %% [markdown]
# How much an expert is used says nothing about what it does: one that few tokens choose may be the only one that can do
# what those need. REAP (further reading) therefore also counts how large an expert's output is.

# %% [markdown]
# ### Merging
#
# Instead of throwing experts away one can *average* them with those that stay. But an expert's hidden units can stand
# in any order: exchange two of them, gate row, up row and down column together, and it computes the same. Two experts
# may be equal and look nothing alike.

# %% [markdown]
# Before weights are averaged the units must be brought into the same order (Git
# Re-Basin, Ainsworth et al. 2023; for experts M-SMoE, Li et al. 2024).


# %% exercise="13.align"
def align(anchor: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The other expert with its units in the order of the anchor's, greedily.

    A unit is a row of gate, a row of up and a column of down. Two units are as alike as the inner product of all their
    weights. The most alike pair of all (a unit of the anchor, one of the other) is taken first, then the most alike
    pair of those that are left, and so on; each unit is in one pair. The other's unit then stands in the place of its
    partner. What the other expert computes does not change.

    Args:
        anchor, other: each a pair of tensors of a SwiGLU expert, gate_up_2FD [2F, D], all rows of gate first, then all
            rows of up, and down_DF [D, F].

    Returns the other's pair, reordered.
    """

    ### BEGIN SOLUTION
    def units(gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
        return torch.cat([*gate_up_2FD.chunk(2), down_DF.T], dim=1)

    gate_up_2FD, down_DF = other
    width = down_DF.shape[1]
    alike_FF = units(*anchor) @ units(*other).T
    order_F = torch.empty(width, dtype=torch.int64)
    for _ in range(width):
        place, unit = divmod(int(alike_FF.argmax()), width)
        order_F[place] = unit
        alike_FF[place], alike_FF[:, unit] = -math.inf, -math.inf
    gate_FD, up_FD = gate_up_2FD.chunk(2)
    return torch.cat([gate_FD[order_F], up_FD[order_F]]), down_DF[:, order_F]
    ### END SOLUTION


# %% check="13.align"
align = check("13.align", align)

# %% [markdown]
# By hand first: two units in width one. The other expert has them the other way round.

# %% tags=["nbval-check-output"]
ours = (torch.tensor([[5.0], [1.0], [7.0], [2.0]]), torch.tensor([[-4.0, 3.0]]))  # gate 5 1, up 7 2
theirs = (torch.tensor([[1.0], [5.0], [2.0], [6.0]]), torch.tensor([[3.0, -4.0]]))
gate_up, down = align(ours, theirs)
x = torch.tensor([[0.3]])
print("gate", gate_up[:2, 0].tolist(), "up", gate_up[2:, 0].tolist(), "down", down[0].tolist())
print("computes", round(reference.swiglu(x, *theirs).item(), 4), "before,", end=" ")
print(round(reference.swiglu(x, gate_up, down).item(), 4), "after")

# %% [markdown]
# An expert of the teacher, and a copy of it whose units are shuffled: the same function. Their weights are averaged.
# How far is the average from that function, as a share of its size?

# %%
p_average = predict("13.average", "Error of the average of two equal experts, units shuffled?", 0, 120, "%")

# %%
bank = teacher.layers[records[0].layer].ffn.experts
expert = (bank.gate_up_E2FD[0].detach().cpu(), bank.down_EDF[0].detach().cpu())
order = torch.randperm(expert[1].shape[1], generator=torch.Generator().manual_seed(0))
copied = (torch.cat([half[order] for half in expert[0].chunk(2)]), expert[1][:, order])
x_TD = torch.randn(256, expert[1].shape[0], generator=torch.Generator().manual_seed(1))
y_TD = reference.swiglu(x_TD, *expert)


def error(one, two):
    """Of the average of two experts, against the function of the first, in per cent of its size."""
    found = reference.swiglu(x_TD, *((a + b) / 2 for a, b in zip(one, two, strict=True)))
    return 100 * ((found - y_TD).norm() / y_TD.norm()).item()


p_average.against(error(expert, copied))
print(f"the copy itself is off by {error(copied, copied):.3f} %, the average after your alignment by", end=" ")
print(f"{error(expert, align(expert, copied)):.3f} %")

# %% [markdown]
# That experts of a trained layer are *that* much alike is too much to hope. What is merging worth, then? The same
# number of experts: pruned by scores, or merged. In merging the most used experts lead, every other joins one of them,
# and each group becomes the average of its experts, units aligned, weighed by use. In the router a group keeps the row
# of the expert that leads it.

# %%
p_merge = predict("13.merge", "Half of the experts: loss merged, minus loss pruned?", -2, 3, "nats", step=0.02)

# %%
ALIKE = "weights" if gpu else "routing"  # who merges with whom; by weights is better and takes longer
merged = merge_by_use(teacher, records, E // 2, alike=ALIKE, rows="leader")
pruned = prune_by_use(teacher, records, E // 2, by="scores")
p_merge.against(judged(merged) - judged(pruned))

# %% [markdown]
# If merging lost: an average of functions that do different things for different tokens is seldom one that does any of
# them well, and pruning leaves those that stay what they were. (REAP, Lasby et al. 2025, argues so for models that
# write.) If it won: then there were experts that did nearly the same.

# %% [markdown]
# ## 9 · Cut first, then learn
#
# Surgery gives a start; the teacher, who is at hand, can help with the rest. A sparse model can also be made **dense**:
# its most used experts side by side in one feed-forward layer, each scaled by its mean score (after OneS, Xue et al.
# 2022). That one needs no router at all.

# %% [markdown]
# All go through a few steps with the teacher, and their copies through as many FLOPs without. Of the loss that pruning
# added, what share is back after the steps with the teacher?

# %%
p_back = predict("13.back", "Share of the added loss that is back, pruned, with the teacher?", 0, 100, "%")

# %%
MEND, SIDE = {"steps": 45, "batch": 32} if gpu else {"steps": 2, "batch": 2}, 2
flat = densify(teacher, records, experts=SIDE)
STARTS = {
    "pruned": pruned, "merged": merged, f"dense, {SIDE} experts": flat, "dense, at random": fresh(seed, flat.config)
}  # fmt: skip
mended = {}
for name, start in STARTS.items():
    sparse = start.config.moe is not None
    how = settings(first, **MEND, learning_rate=2e-3, warmup=MEND["steps"] // 10, balance_loss=0.01 if sparse else 0.0)
    equal = Budget.of(start.config, teacher.config, how).equal_steps
    taught, alone = copy.deepcopy(start), copy.deepcopy(start)
    train(taught, TokenSource(files["train"], seed=30), how, objective=Distillation(DistillConfig(), teacher))
    train(alone, TokenSource(files["train"], seed=30), longer(how, equal))
    mended[name] = {"cut": judged(start), "with the teacher": judged(taught), "alone, equal FLOPs": judged(alone)}
cut = mended["pruned"]
p_back.against(100 * (cut["cut"] - cut["with the teacher"]) / (cut["cut"] - whole))

# %% [markdown]
# From the cut to what a few steps make of it:

# %%
with style.use():
    fig, (axis,) = picture.new(size=(8.0, 3.0))
    for row, values in enumerate(mended.values()):
        axis.plot(list(values.values()), [row] * 3, "-", color=style.GREY, zorder=1)
    for n, stage in enumerate(("cut", "with the teacher", "alone, equal FLOPs")):
        axis.scatter([v[stage] for v in mended.values()], range(len(mended)), marker="osD"[n], label=stage, zorder=2)
    axis.axvline(whole, color=style.INK, linestyle="--", label="teacher")
    axis.set_yticks(range(len(mended)), mended)
    axis.set(xlabel=f"held-out loss (nats a token), {MEND['steps']} steps", ylim=(len(mended) - 0.5, -0.5))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = f"Teacher {whole:.2f}. " + "; ".join(
    f"{name}: cut {v['cut']:.2f}, with the teacher {v['with the teacher']:.2f}, alone {v['alone, equal FLOPs']:.2f}"
    for name, v in mended.items()
) + " nats."  # fmt: skip
display(fig)

# %% [markdown]
# In words, from this run:

# %%
pays = [name for name, v in mended.items() if v["with the teacher"] < v["alone, equal FLOPs"]]
said_so = f"Per FLOP the teacher is ahead for {len(pays)} of {len(mended)} starts"
said_so += f" ({'; '.join(pays)})" if pays else ""
by_start = mended["dense, at random"]["with the teacher"] - mended[f"dense, {SIDE} experts"]["with the teacher"]
said_so += f". What the cut is worth as a start: {by_start:+.2f} nats against the same dense model from random weights."
display(Markdown(said_so))

# %% [markdown]
# Everything that this lab made small, in one picture: parameters against loss. The models did not all train for the
# same time: the smallest one had the steps and the batch of section 6, which are more than those of this section.
# Compare it with care; a larger model that stands above it has seen less text.

# %%
points = {name: (model_params(m.config).total, mended[name]["with the teacher"]) for name, m in STARTS.items()}
points["teacher"] = (size, whole)
points["25 times smaller"] = (model_params(SMALL).total, judged(distilled))
with style.use():
    fig, (axis,) = picture.new(size=(7.4, 3.3))
    for n, (name, (parameters, value)) in enumerate(points.items()):
        axis.semilogx(parameters / 1e6, value, "o", color=style.PALETTE[n], markersize=9, label=name)
    axis.axhline(1.03 * whole, color=style.LIT, linestyle="--", label="claim 5: 3 % above")
    axis.set(xlabel="parameters (millions)", ylabel="held-out loss (nats a token)")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
fig.alt = "Parameters and loss: " + "; ".join(f"{n} {p / 1e6:.2f} M, {v:.2f}" for n, (p, v) in points.items()) + "."
display(fig)

# %% [markdown]
# ## 10 · Recap
#
# Six questions. Each can be failed, and each wrong answer has its own reply.

# %%
recap("13")

# %% [markdown]
# ## Claim verdicts
#
# **Claim 5** (*distilling a 175B model into a 7B one loses less than 3%*): the card of section 6 has the student with
# a twenty-fifth of the teacher's parameters, on held-out text, for several seeds. Read it with four remarks:
#
# - 25 times fewer parameters is not 25 times less work; section 5 has the table.
# - The student saw far less text than the teacher, whose own training is charged to nobody. A longer run should narrow
#   the gap, with a teacher and without.
# - The guide does not say what is lost: loss, accuracy or a benchmark. A student of a task with few answers can lose
#   less than 3 % of its accuracy and be far from its teacher's distribution.
# - What the literature reports at such ratios is a part of the way, not all of it but 3 %. Fedus et al. (2021), who
#   distilled sparse models into dense ones, therefore count which share of the teacher's *gain* over the dense student
#   is kept, as section 6 does.

# %% [markdown]
# ## Further reading
#
# - Hinton, Vinyals and Dean 2015, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
# - Agarwal et al. 2024, *On-Policy Distillation of Language Models* (GKD), arXiv 2306.13649: Jensen–Shannon with β, and
#   students that write.
# - Busbridge et al. 2025, *Distillation Scaling Laws*, arXiv 2502.08606: when a teacher pays, and when to train alone.
# - Anshumann et al. 2025, *Sparse Logit Sampling*, arXiv 2503.16870: what top-k does to a student, and an unbiased way.
# - Fedus, Zoph and Shazeer 2021, *Switch Transformers*, arXiv 2101.03961: sparse teachers, dense students.
# - Xue et al. 2022, *One Student Knows All Experts Know* (OneS), arXiv 2201.10890: from sparse to dense.
# - Li et al. 2024, *Merge, Then Compress* (M-SMoE), arXiv 2310.01334; Ainsworth et al. 2023, *Git Re-Basin*, arXiv
#   2209.04836: units in order before an average.
# - Lasby et al. 2025, *REAP the Experts*, arXiv 2510.13999: pruning by what experts contribute.
