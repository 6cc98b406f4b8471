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
# # Gallery: routing that can be seen and touched
#
# Nine views of the same record, and a tenth of how a batch is served. A router decides for every token, in every
# layer; `labkit.nn.trace` writes down what it decided, for a model of ours or for any mixture of experts in
# `transformers`, and each of the nine reads that record and nothing else. So whatever you see here on two tiny models,
# you can see on a model of your own with the same line.
#
# Nothing is asked of you. Every view answers to the mouse and to the keyboard: click into it, or go to it with Tab, and
# it has the keys that the line "Keys" under it names. Every view has a Python side too: what you pick is an attribute
# that the next cell can read. Where nothing runs, as on a printed page, the picture of the view stands in its place.

# %% tags=["parameters"]
profile = "auto"
seed = 0
model_name = ""  # a model on a hub, such as "allenai/OLMoE-1B-7B-0924"; empty: only the two tiny models

# %% [markdown]
# The next cell picks the size of the training (`cpu` or `gpu`) and draws every random number from one seed.

# %% tags=["setup"]
import torch
import torch.nn.functional as F
from IPython.display import display
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from labkit import show
from labkit.core import metrics, runtime
from labkit.core.config import MoEConfig
from labkit.nn import Labelled, WindowModel, trace
from labkit.serve import timeline, workload
from labkit.serve.scheduler import Limits
from labkit.train import balance, data

profile = runtime.resolve_profile(profile)
device = runtime.device() if profile == "gpu" else torch.device("cpu")
runtime.seed_all(seed)
torch.set_num_threads(1)  # what runs on the CPU here is small: threads would only wait for each other
large = profile == "gpu"

# %% [markdown]
# ## A model of ours
#
# It guesses the next byte from the last eight (Bengio et al. 2003), and its hidden layers are three mixtures of eight
# experts, of which two work on each byte. The text has four domains whose labels we know: code, English, sums and
# records. The router sees no label.
#
# The same model is trained three times: with nothing that keeps the experts evenly loaded, with the auxiliary loss of
# Switch Transformers, and with the balancing bias of DeepSeek-V3. At some steps the same text, which no run trains on,
# is traced.

# %%
corpus = data.corpus(bytes_per_domain=200_000 if large else 60_000)
watched = data.sample(corpus, num_sequences=40, sequence_length=64, split="validation")
STEPS, BATCH = (1000, 64) if large else (200, 12)
LOOKS = sorted({round(STEPS * share**2) for share in (0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1)})


def ours(kind):
    sizes = {"d_model": 64, "d_expert": 64, "num_experts": 8, "top_k": 2}
    config = MoEConfig(**sizes, score_fn="sigmoid", selection_bias=kind == "bias")
    torch.manual_seed(seed)
    return WindowModel(config, num_layers=3).to(device)


# %% [markdown]
# What comes back from `trace` is one `Routing` a layer: logits, chosen experts, their weights, the text and the domain
# of every token, which sequence it is of, and the loss of the prediction that follows it.


# %%
def train(model, kind, looks=LOOKS):
    optimizer, seen = torch.optim.AdamW(model.parameters(), lr=3e-3), {}
    for step in range(STEPS + 1):
        if step in looks:
            seen[step] = trace(model, watched)
        ids = data.sample(corpus, num_sequences=BATCH, sequence_length=64, seed=step).ids_BS.to(device)
        logits, records = model(ids, return_routing=True)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        if kind == "loss":
            loss = loss + sum(balance.switch_loss(record, alpha=0.02) for record in records)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for layer, record in zip(model.layers, records, strict=True):
            if kind == "bias":
                balance.bias_step(layer.router, record, rate=0.02)
    return seen


# %% [markdown]
# Three trainings, and the loss of each before and after. "loss" is the run that the views below look at.

# %%
models_of_ours = {kind: ours(kind) for kind in ("none", "loss", "bias")}
runs = {kind: train(model, kind) for kind, model in models_of_ours.items()}
model = models_of_ours["loss"]
mine = runs["loss"][STEPS]
for name, seen in runs.items():
    first, last = seen[0][0], seen[STEPS][0]
    print(f"{name:>5}: {first.loss_T.nanmean():.2f} to {last.loss_T.nanmean():.2f} nats a byte in {STEPS} steps")
print(f"{len(mine)} layers, {mine[0].num_tokens:,} tokens, {mine[0].num_experts} experts, top {mine[0].top_k}")

# %% [markdown]
# ## A model of somebody else's
#
# `OlmoeForCausalLM` is the architecture of OLMoE-1B-7B, with softmax routers and attention. Ours is tiny, with 16
# experts of which 4 work, and begins with random weights; its tokenizer is made here from the same text. Only a few
# steps of training follow, so expect little of it. **What an untrained router does is not specialisation.** It is a
# fixed random function of the token. Domains use different tokens, so even it sends them to different experts, and a
# comparison with shuffled labels alone would call that a finding. The views show the model after its few steps; section
# 6 compares it with the untrained one.

# %%
pages = [page for domain in corpus.domains for page in corpus.train[domain]]
bytes_and_merges = Tokenizer(models.BPE())
bytes_and_merges.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_and_merges.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False)
bytes_and_merges.train_from_iterator(pages, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_and_merges, pad_token="<pad>")


def labelled(batch, tokenizer=tokenizer, length=40):
    """The batch's text in the tokens of a tokenizer; padding is masked, so no record holds it."""
    kind = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    encoded = tokenizer(list(batch.texts), **kind)
    return Labelled(encoded.input_ids, batch.domains, mask_BS=encoded.attention_mask.bool())


# %% [markdown]
# The two runs differ in one number, `router_aux_loss_coef`, the weight of the same auxiliary loss in `transformers`.


# %%
def olmoe(coefficient):
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = OlmoeConfig(
        **sizes, num_key_value_heads=4, num_experts=16, num_experts_per_tok=4, vocab_size=len(tokenizer),
        router_aux_loss_coef=coefficient, output_router_logits=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    return OlmoeForCausalLM(config).to(device)


def train_olmoe(theirs, steps):
    optimizer, seen = torch.optim.AdamW(theirs.parameters(), lr=2e-3), {}
    for step in range(steps + 1):
        if step in {0, steps // 8, steps // 4, steps // 2, steps}:
            seen[step] = trace(theirs, labelled(watched), tokenizer=tokenizer)
        batch = labelled(data.sample(corpus, num_sequences=BATCH, sequence_length=96, seed=step))
        ids, mask = batch.ids_BS.to(device), batch.mask_BS.to(device)
        loss = theirs(ids, attention_mask=mask, labels=ids.masked_fill(~mask, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


# %%
their_steps = 400 if large else 64
models_of_theirs = {name: olmoe(coefficient) for name, coefficient in (("none", 0.0), ("loss", 0.05))}
their_runs = {name: train_olmoe(each, their_steps) for name, each in models_of_theirs.items()}
theirs = their_runs["loss"][their_steps]
first, last = their_runs["loss"][0][0], theirs[0]
print(f"{first.loss_T.nanmean():.2f} to {last.loss_T.nanmean():.2f} nats a token in {their_steps} steps")
print(f"{len(theirs)} layers, {last.num_tokens:,} tokens, {last.num_experts} experts, top {last.top_k}")

# %% [markdown]
# ## 1 · Token ribbon
#
# The text, each token in the colour of its first expert. **Click a word**, or walk with ← →: below, its chosen experts
# in every layer, with their weights. ↑ ↓ chooses the layer that colours the text, and 1 lights the token's first expert
# everywhere. Look for runs of one colour: spaces, digits, the beginnings of lines.

# %%
ribbon = show.ribbon(mine)
display(ribbon)

# %% [markdown]
# Beyond eight experts no palette can name them, so on the other model every token is grey and one expert is lit. The
# tokens are longer now: pieces of words.

# %%
display(show.ribbon(theirs))

# %% [markdown]
# ## 2 · From tokens to experts
#
# A band from every group of tokens to every expert, as wide as the number of choices. **Hover over a band**, or pick
# one with the arrow keys. Then move the **capacity** with − and +: each expert takes at most that multiple of the even
# share, and what does not fit turns grey. P changes who is dropped: the last in the batch, or the least weighty.

# %%
flow = show.flow(mine, capacity_factor=1.0)
display(flow)

# %% [markdown]
# Drops are the price of a fixed capacity for an uneven router. The same factor on the other model:

# %%
display(show.flow(theirs, layer=1, capacity_factor=1.0))

# %% [markdown]
# ## 3 · Load map
#
# Layers × experts; the middle of the colour scale is the even share, 1/E, which is what a uniform router would give.
# **Click a cell**, or walk with the arrow keys, to hear its load; S sorts the experts of every layer by load. An even
# map is no merit by itself: a random router has one too.

# %%
load = show.load_map(mine)
display(load)

# %%
display(show.load_map(theirs))

# %% [markdown]
# ## 4 · Balance over training
#
# Three runs, side by side. **Drag the slider**, walk with ← →, or press the space bar to play. The dashed line is the
# even share. Watch how uneven each run becomes, and what its loss does meanwhile: an even load is a means, a low loss
# is the end.

# %%
training = show.balance_over_training(runs)
training.step = STEPS
display(training)

# %% [markdown]
# At step 0 stands the router that has learned nothing. Its load is uneven too, since tokens are. Does the loss balance
# *this* layer? `transformers` puts the tokens of all layers together before it measures the load, so layers that lean
# different ways look even to it; our own loss above looks at each layer by itself.

# %%
display(show.balance_over_training(their_runs))

# %% [markdown]
# ## 5 · Which experts are chosen together
#
# Each cell is a pair of experts. The **lift** divides how often they meet by how often they would meet if only their
# loads mattered: 1 is chance. M shows plain counts instead. **Click a pair** and read the tokens that it shares.

# %%
pairs = show.coactivation_map(mine)
display(pairs)

# %%
display(show.coactivation_map(theirs, layer=1))

# %% [markdown]
# ## 6 · Domain lift
#
# Above, how much more often one domain goes to each expert than all tokens do; 1, the dashed line, is no preference.
# The **grey range is what appears when the labels are shuffled** among whole sequences: a hollow dot inside it means
# nothing. Below, all domains; hatched cells are inside their range. **Drag over some experts**, or hold Shift with ← →:
# what share of every domain do they take together, and with which tokens? ↑ ↓ changes the domain, S sorts.

# %%
lift = show.lift_map(mine, layer=1)
lift.brush = [0, 1]
display(lift)

# %% [markdown]
# On the other model compare before and after its training. If the untrained router already has cells outside the grey
# range, then those cells speak of the tokens that a domain uses, and not of anything learned.

# %%
before = their_runs["loss"][0]
for name, records in (("untrained", before), ("after its few steps", theirs)):
    table, chance = metrics.lift_by_domain(records[1]), metrics.permuted_lift(records[1])
    outside = chance.exceeded_by(table)
    print(f"{name}: {int(outside.sum())} of {outside.numel()} cells outside the range of shuffled labels")
display(show.lift_map(theirs, layer=1))

# %% [markdown]
# ## 7 · The same word in other contexts
#
# Does a router read the word, or what stands around it? Every occurrence of one word is a row, with the experts that it
# was sent to; beside them stands the share that all tokens together give to each expert. **Type a word** after /, or
# take the next of the list with N. If all rows look alike, the token alone decides.

# %%
words = show.contexts(mine, word="a")
display(words)

# %%
display(show.contexts(theirs, layer=1))

# %% [markdown]
# ## 8 · What an expert is worth
#
# The text is traced again, each time without one expert of the middle layer: its tokens go to the next best. The dots
# are the change of the loss, with an interval from drawing sequences anew; the line at zero means no change. **Click an
# expert**: who takes its tokens over, beside what load alone would predict, and after which tokens the prediction
# suffers most.

# %%
gone = {expert: trace(model, watched, ablate=(1, expert)) for expert in range(8)}
worth = show.ablation(mine, gone, layer=1)
display(worth)

# %% [markdown]
# Here every other expert was removed. In a model that has hardly learned, an expert can go with little harm, and some
# may even be better gone. For an expert that was not removed, the view says who would be next best by the logits alone.

# %%
their_model = models_of_theirs["loss"]
without = {e: trace(their_model, labelled(watched), tokenizer=tokenizer, ablate=(1, e)) for e in range(0, 16, 2)}
display(show.ablation(theirs, without, layer=1))

# %% [markdown]
# ## 9 · Tiles of a kernel
#
# What a GPU kernel makes of the same counts (lab 09). It computes each expert's rows in tiles of a fixed height; where
# an expert's rows do not fill its last tile, the rest is computed for nothing. **Move the slider** to another height,
# pick an expert with the arrow keys: empty rows on the one side, weights read again for every tile on the other.

# %%
cut = show.tiles(mine[1], block_m=16)
display(cut)

# %%
display(show.tiles(theirs[1]))

# %% [markdown]
# ## 10 · A batch over its steps
#
# Serving has a router of its own: the scheduler, which decides who computes what in the next step, and who holds which
# block of the cache. No model is needed to watch it; what a step takes is only counted. The same eight requests are
# batched in five ways, from padding to reused beginnings. **Press the space bar** to play, walk with ← →, choose a way
# with W. Click a bar or a block to light its request; P goes to the next preemption, where one request loses its blocks
# to another and will compute them again.

# %%
lengths = [(prompt // 8 + 1, output // 8 + 1) for prompt, output in workload.lognormal_lengths(8, seed=1)]
jobs = list(workload.arrivals(lengths, seed=seed, beginnings=1, beginning_tokens=8))
tight = Limits(num_blocks=24, block_size=4, max_tokens_per_step=24, max_sequences=6, reserve=0)
batch = show.batch_timeline(timeline.ladder(jobs, tight, batch_size=4))
batch.way, batch.step = 4, 12
display(batch)

# %% [markdown]
# Two hundred requests, as many as come to a small server within a second. Beyond eight, the one in hand is lit. Drag
# over the curve at the top to see where prompts crowd in and where the blocks run out.

# %%
jobs = list(workload.arrivals(workload.lognormal_lengths(200), rate=200, seed=seed, beginnings=4, beginning_tokens=64))
roomy = Limits(num_blocks=400, max_tokens_per_step=256, max_sequences=32, reserve=0)
served = show.batch_timeline(timeline.ladder(jobs, roomy, batch_size=16)["continuous, prefixes reused"])
served.step, served.selected = 150, 20
display(served)

# %% [markdown]
# ## What the kernel knows
#
# Every view keeps what you picked. Touch some of them, then run this cell again.

# %%
print("ribbon:   token", ribbon.token, "went to", ribbon.choices[0])
print(f"flow:     factor {flow.capacity_factor}, {flow.drop_rate:.1%} of the choices dropped")
print("lift:     brushed", lift.brush, {name: f"{share.share:.1%}" for name, share in lift.brushed.items()})
heirs = {expert: f"{share:.0%}" for expert, share in list(worth.heirs.items())[:3]}
print(f"ablation: expert {worth.expert} costs {worth.effect['all tokens'].change:+.3f} nats a byte; heirs:", heirs)
print(f"tiles:    {cut.block_m} rows each, {cut.tiling.tiles} of them, {cut.tiling.padding} rows empty")
print(f"batch:    {batch.timeline.name}, step {batch.step}: {len(batch.moment.holders)} blocks held")

# %% [markdown]
# ## A real model
#
# The same two lines trace a model of any size. Set `model_name` in the cell of parameters, at the top, and run the
# notebook again; a GPU with room for the weights helps.

# %%
if model_name:
    real_tokenizer = AutoTokenizer.from_pretrained(model_name)
    real_tokenizer.pad_token = real_tokenizer.pad_token or real_tokenizer.eos_token
    real = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto").to(device)
    records = trace(real, labelled(watched, real_tokenizer), tokenizer=real_tokenizer)
    display(show.ribbon(records), show.load_map(records), show.lift_map(records))
else:
    lines = [
        "Nothing was downloaded. Set `model_name` to a mixture of experts on a hub, for example",
        'model_name = "allenai/OLMoE-1B-7B-0924"',
        "Then this cell loads it with `transformers`, traces the same text, and shows three of the views.",
    ]
    display(show.Card("info", "No real model was asked for", lines))
