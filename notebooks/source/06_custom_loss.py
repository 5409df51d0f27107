# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Custom losses: compute_loss and training_step
#
# The loss says what you want. Changing it is easy; but with four micro-batches or on two processes a custom loss may
# mean something else, without an error. This lesson builds six losses besides cross-entropy, gives them to the Trainer
# in two ways, and measures who divides by what.
#
# **You will be able to**
# - give the Trainer any loss, as a `compute_loss_func` or by overriding `compute_loss`;
# - say for each way who divides the loss, and prove that accumulated equals full batch, on one process and on two;
# - choose and weigh losses for rare classes, for soft targets, for tokens that matter more, and for several parts;
# - tell from a measurement whether a loss helps.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop, accumulation) and 03 (the Trainer's step).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 400  # optimizer steps of each compared run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · What a loss can change
#
# The task is lesson 01's: which library does a documentation sentence come from? The largest class has nearly thirty
# times as many rows as the smallest.

# %%
import torch

from course_utils.data import load_classification, own_sentences
from course_utils.models import load_tokenizer

torch.set_num_threads(1)  # for a model this small, threads cost more than they bring
dataset = load_classification(source)
tokenizer = load_tokenizer(source)
names = dataset["train"].features["label"].names
num_labels = len(names)
for text in own_sentences()[9:11]:  # two rows as an example, our own
    print(len(tokenizer(text)["input_ids"]), "tokens:", text)

# %% [markdown]
# To compare many losses we need a model that trains in a second: a **bag of embeddings**, the mean of a sentence's
# token vectors, then two small layers. `padded` makes one large batch of each split.

# %%
from course_utils.lessons.lesson_06.bag_runs import logits_of, padded, scores, train_bag
from course_utils.training.class_weights import class_counts, inverse_frequency, recalls

splits = {name: padded(tokenizer, rows) for name, rows in dataset.items()}
train_labels = splits["train"]["labels"]
validation_labels = splits["validation"]["labels"]
counts = class_counts(train_labels, num_labels)
print("train:", tuple(splits["train"]["input_ids"].shape))
teach.show_source(train_bag)

# %% [markdown]
# `train` is lesson 01's loop, which lesson 03 showed to be the Trainer's, bit for bit. Two runs with one seed, so the
# same first weights and order of rows. Only the loss differs: in the second rare classes weigh more (section 4).

# %%
from course_utils.lessons.lesson_06 import figures
from course_utils.training import losses
from course_utils.training.losses import cross_entropy, for_trainer


def run(loss_function, run_seed=seed):
    sizes = len(tokenizer), num_labels
    return train_bag(splits["train"], loss_function, run_seed, max_steps, *sizes)


weights = inverse_frequency(counts, power=0.5)
plain_model = run(for_trainer(cross_entropy))
weighted_model = run(for_trainer(losses.weighted_cross_entropy, class_weights=weights))

# %%
validation_logits = logits_of(plain_model, splits["validation"])
found = {}
both = {"cross-entropy": plain_model, "weights 1 / √n": weighted_model}
for name, model in both.items():
    predicted = logits_of(model, splits["validation"]).argmax(-1)
    found[name] = recalls(predicted, validation_labels, num_labels).nan_to_num()
teach.show(figures.recall_by_class(names, counts.tolist(), found))

# %%
full = max_steps >= 300 and source == "local"
rarest = counts.argsort()[:3]
before, after = (recall[rarest].mean().item() for recall in found.values())
teach.claim("cross-entropy finds < 15 % of the rarest", before < 0.15, when=full)
teach.claim("class weights find at least twice as many", after > 2 * before, when=full)

# %% [markdown]
# The price: `pandas` loses most, about 0.11. `accelerate` stays at 0 with both losses.
#
# ## 2 · Three places for a loss
#
# One micro-batch on its way from rows to a gradient: B rows, C classes, k micro-batches in an optimizer step, n
# processes. The places are called **doors** below.

# %%
teach.show(figures.flow())

# %% [markdown]
# 1. **The model's own loss**, which `model(**batch)` returns.
# 2. **`Trainer(compute_loss_func=...)`**: a function of the model's outputs, the labels and `num_items_in_batch`. Take
#    it where these are enough.
# 3. **Overriding `compute_loss`**: you call the model yourself and see the whole batch. Take it for a second model, or
#    for weights that come with the rows.
#
# A loss in this course is a *pure function*: logits `(..., C)`, labels `(...)` and a divisor go in, one number comes
# out. `for_trainer` puts it into the form that door 2 wants.

# %%
teach.show_source(cross_entropy)
teach.show_source(losses.divide)
teach.show_source(for_trainer)

# %% [markdown]
# Without `num_items_in_batch`, `divide` counts the micro-batch's own targets: that gives a mean, and means do not add
# up. A label of -100 adds 0 to the sum and does not count in the divisor.
#
# `training_step` moves the batch to the device, calls `compute_loss`, **may divide the result**, and calls `backward`.
# The diagram's red boxes go wrong silently.
#
# ## 3 · Who divides?
#
# Lesson 01's rule: the loss of an optimizer step is the mean over **all targets of the window**, however it is cut into
# micro-batches. So each micro-batch contributes its *sum* divided by the window's count. That count is
# `num_items_in_batch`: the labels other than -100 in all micro-batches of the step, on all processes
# (`average_tokens_across_devices=True`, the default).

# %%
teach.show(figures.window((4, 1, 2)))

# %% [markdown]
# We compare one optimizer step on 16 rows, in k micro-batches, with the full batch in plain PyTorch. First the usual
# override:

# %%
from torch.nn import functional as F
from transformers import Trainer


class MeanLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **ignored):
        outputs = model(inputs["input_ids"])
        loss = F.cross_entropy(outputs["logits"], inputs["labels"])  # a mean
        return (loss, outputs) if return_outputs else loss


# %% [markdown]
# Nearly all models of transformers take `**kwargs` in `forward`. From that signature the Trainer concludes that the
# loss is divided by `num_items_in_batch` already, and does not divide by k, whatever your override does. `DeafModel` is
# a bag that takes `**kwargs` and ignores them, as ModernBERT's classifier does (lesson 03). A `Way` names a model, a
# Trainer class and a loss function; `compare` makes one step with it.

# %%
from course_utils.lessons.lesson_06 import who_divides
from course_utils.lessons.lesson_06.who_divides import DeafModel, PlainModel, Way

divisions = [1, 2, 4, 8]
ways = {
    "mean, count ignored": Way(DeafModel, MeanLoss),
    "sum / num_items": Way(PlainModel, function=for_trainer(cross_entropy)),
    "mean divided by k twice": Way(DeafModel, who_divides.OverrideDividesTwice),
}
measure = who_divides.compare
steps = {name: [measure(way, k) for k in divisions] for name, way in ways.items()}
curves = {name: [one["loss"] for one in found] for name, found in steps.items()}
teach.show(figures.loss_against_k(divisions, curves))

# %%
grows, exact, falls = ([one["gradient"] for one in found] for found in steps.values())
print(f"gradient factor at k = 8: {grows[-1]:.3f}, {exact[-1]:.3f}, {falls[-1]:.3f}")
teach.claim("the ignored count makes it k times as large", abs(grows[-1] - 8) < 1e-4)
off = max(abs(factor - 1) for factor in exact)
teach.claim("sum / num_items is the full batch's within 1e-6", off < 1e-6)

# %% [markdown]
# The cure is a class attribute (ga: gradient accumulation): `loss_is_scaled_for_ga = False` says that your override
# returns a micro-batch's mean, to be divided by k. The third line's class also writes
# `loss / self.args.gradient_accumulation_steps`. It divides twice, and the loss **falls** with k: it looks like
# progress.
#
# ### All ways, on one process and on two
#
# With n processes there is one more division: `DistributedDataParallel` (DDP) *averages* the gradients. That is right
# for means; a sum over the count of all processes comes out n times too small. So the Trainer multiplies by n where it
# expects such a sum: at door 2, and at door 1 if the model has `**kwargs`. At door 3 you multiply, or nobody does. With
# `average_tokens_across_devices=False` each process counts its own labels only, and the Trainer never multiplies.
# `survey` measures eleven ways; with `run_ranks` two real processes do so too, and try six losses.

# %%
from course_utils.lessons.lesson_06.who_divides import on_ranks, survey
from course_utils.parallel import run_ranks

alone = survey([4])
rank_0, rank_1 = run_ranks(on_ranks, 2, {"accumulations": [1, 2]}, timeout=300)
both = {name: alone[name] + rank_0["ways"][name] for name in alone}
factors = {name: [one["gradient"] for one in found] for name, found in both.items()}
columns = ["1 process, k = 4", "2 processes, k = 1", "2 processes, k = 2"]
teach.show(figures.divided(factors, columns))

# %% [markdown]
# Factors on the full batch's gradient:
#
# - **Model.** Without `**kwargs` the Trainer divides by k. With them it trusts the model.
# - **Function.** It is trusted, and must use its third argument.
# - **Override.** All depends on the *model's* signature, unless you set `loss_is_scaled_for_ga`: `False` for a mean,
#   `True` for sum / num_items, which then needs the factor `self.accelerator.num_processes`.
#
# One trap has no row: without `**kwargs` in the model, an override gets `num_items_in_batch=None`, unless you set
# `self.model_accepts_loss_kwargs = True` in `__init__`.

# %%
wrong = [n for n, values in factors.items() if max(abs(x - 1) for x in values) > 1e-3]
print(len(wrong), "of", len(factors), "ways are wrong in some column")
halved = factors["override: sum / num_items"][1]
teach.claim("2 processes halve an override's sum / num_items", round(halved, 3) == 0.5)
worst = max(rank_0["losses"].values())
teach.claim("six losses, doors 2 and 3, 2 processes: exact within 1e-6", worst < 1e-6)
teach.claim("both processes measured the same", rank_0 == rank_1)
without, times_n = rank_0["evaluation"].values()
print(f"eval_loss on 2 processes / full batch's: {without:.2f}, with n {times_n:.2f}")
teach.claim("eval_loss needs the factor as well", abs(times_n - 1) < 1e-5 < 1 - without)

# %% [markdown]
# A mean is exact only if all micro-batches have equally many targets. Rows without a label (-100) break that; no flag
# repairs it:

# %%
ragged = survey([4], ragged=True)
of_mean = ragged["override: mean, flag False"][0]["off"]
of_sum = ragged["override: the same x processes"][0]["off"]
print(f"gradient off by {of_mean:.0%} of its length with means, {of_sum:.0%} with sums")
teach.claim("with uneven counts a mean of means is off by > 10 %", of_mean > 0.1)
teach.claim("sum / num_items is exact within 1e-6", of_sum < 1e-6)

# %% [markdown]
# **In evaluation** `num_items_in_batch` counts the labels of one evaluation batch, on all processes, and the Trainer
# averages the processes' *losses*: an override needs the factor n here too. And `eval_loss` is *your* loss: compare
# runs by a metric.
#
# ### Exercise 06.1: predict
#
# By what factor is the gradient larger or smaller than the full batch's? Count the divisions; all micro-batches have
# equal counts, the model has `**kwargs` and ignores them. "Flag" is `loss_is_scaled_for_ga`.
#
# - `a`: override returns sum / num_items with flag `False`; k = 8 micro-batches, 1 process
# - `b`: override returns sum / num_items with flag `True`, no factor; k = 2, 4 processes
# - `c`: override returns mean x num_processes with flag `False`; k = 8, 4 processes
# - `d`: `compute_loss_func` returns a mean; k = 2, 4 processes, `average_tokens_across_devices=False`

# %%
prediction = ...  # {"a": ..., "b": ..., "c": ..., "d": ...}

# %%
teach.check("06.1", prediction)

# %% [markdown]
# ### Exercise 06.2: debug
#
# This override weighs classes and has four faults. Two facts help: `F.cross_entropy(weight=w)` divides its mean by the
# *sum of the micro-batch's weights*, not by its rows; and `class_weights` came from NumPy, so it is float64, which
# `F.cross_entropy` refuses. `w.to(logits)` gives it the logits' type and device.
#
# ```python
# def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
#     outputs = model(inputs["input_ids"])
#     loss = F.cross_entropy(outputs["logits"], inputs["labels"], weight=self.class_weights)
#     loss = loss / self.args.gradient_accumulation_steps
#     return (loss, outputs) if return_outputs else loss
# ```
#
# Write it for a class with `loss_is_scaled_for_ga = True`, where `num_items_in_batch` is given. `trainer` stands for
# `self`.


# %%
def repaired(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
    # loss = ...
    return ...


# %%
teach.check("06.2", repaired)

# %% [markdown]
# ## 4 · Class weights
#
# **Weighted cross-entropy**, $-w_y \log p_y$, lets a rare row count as several. Two usual weights of a class with $n_c$
# rows:
#
# - a power of the frequency, $w_c \propto n_c^{-p}$. With $p = 1$ all classes have the same say;
# - the **effective number** ([Cui et al. 2019](https://arxiv.org/abs/1901.05555)): rows overlap, so the n-th adds only
#   $\beta^{n-1}$, and $w_c \propto (1-\beta)/(1-\beta^{n_c})$. For few rows this is about $1/n$, for many it flattens.
#
# Both are scaled so that a training row's mean weight is 1. Otherwise the size of the loss changes, and what clipping
# does.

# %%
from course_utils.training.class_weights import effective_number

curves = {
    "1 / n": inverse_frequency(counts),
    "1 / √n": inverse_frequency(counts, power=0.5),
    "effective number, β = 0.999": effective_number(counts, beta=0.999),
}
drawn = {name: w.tolist() for name, w in curves.items()}
teach.show(figures.weights(counts.tolist(), drawn))
share = counts / counts.sum()
means = [(w * share).sum().item() for w in curves.values()]
teach.claim("a training row's mean weight is 1", max(abs(m - 1) for m in means) < 1e-5)

# %% [markdown]
# PyTorch divides by the sum of the micro-batch's weights: a single rare row fills the loss, and the parts do not add
# up:

# %%
logits, labels = validation_logits[:64], validation_labels[:64]
w = inverse_frequency(counts)
whole = F.cross_entropy(logits, labels, weight=w)
pieces = zip(logits.split(8), labels.split(8), strict=True)
torch_parts = torch.stack([F.cross_entropy(a, b, weight=w) for a, b in pieces]).mean()
pieces = zip(logits.split(8), labels.split(8), strict=True)
our_parts = sum(losses.weighted_cross_entropy(a, b, w, 64) for a, b in pieces)
our_whole = losses.weighted_cross_entropy(logits, labels, w)
of_torch, ours = abs(torch_parts / whole - 1), abs(our_parts / our_whole - 1)
teach.claim("torch's weighted mean: parts off by > 1 %", of_torch > 0.01, when=full)
teach.claim("sum / num_items: 8 parts equal the whole within 1e-6", ours < 1e-6)

# %% [markdown]
# ## 5 · Focal loss
#
# Cross-entropy goes on pulling at rows that are right. **Focal loss** ([Lin et al.
# 2017](https://arxiv.org/abs/1708.02002)) fades a row out as the probability $p$ of its right class grows:
#
# $$\ell = -(1-p)^\gamma \log p$$
#
# Its pull on the right class's logit $z$ (the derivative), by the product rule and $dp/dz = p(1-p)$:
#
# $$\frac{d\ell}{dz} = (1-p)^\gamma\,\big(\gamma\, p \log p + p - 1\big)$$
#
# $\gamma = 0$ is cross-entropy, $p - 1$. For small $p$ the pull is *larger* than that, for large $p$ smaller:

# %%
from course_utils.training.losses import focal_loss

teach.show(figures.focal())
z = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
two_classes = torch.stack([z, torch.zeros_like(z)], dim=-1)  # p = sigmoid(z)
right = torch.zeros(41, dtype=torch.long)
focal_loss(two_classes, right, gamma=2.0, num_items_in_batch=1).backward()
p = z.detach().sigmoid()
by_hand = (1 - p) ** 2 * (2 * p * p.log() + p - 1)
off = (z.grad - by_hand).abs().max()
teach.claim("autograd gives the derived formula within 1e-12", off < 1e-12)

# %% [markdown]
# Focal loss asks how *wrong* a row is, not how *rare* its class. Rare rows are often wrong, so it reaches them, and
# mislabelled rows too.
#
# ### Exercise 06.3: write
#
# Write focal loss of each row, shape `(B,)`, not divided. `logits` is `(B, C)`, `labels` `(B,)`. A row labelled -100
# has loss 0, and a row with $p = 1$ must not give nan.


# %%
def focal_of_rows(logits, labels, gamma):
    # log_p = ...
    return ...


# %%
teach.check("06.3", focal_of_rows)

# %% [markdown]
# ## 6 · Label smoothing, and the prior
#
# **Label smoothing** ([Szegedy et al. 2016](https://arxiv.org/abs/1512.00567)) aims at $1-\varepsilon$ for the right
# class and spreads $\varepsilon$ evenly over all, which limits how certain the model becomes. The Trainer has it as
# `label_smoothing_factor`. It knows nothing of rare classes: it is our control.
#
# **Logit adjustment** ([Menon et al. 2021](https://arxiv.org/abs/2007.07314)) goes to the cause. Cross-entropy also
# teaches the classes' shares, the
# *prior*. Where two classes overlap, the boundary with the fewest errors lies deep inside the rare one, which has few
# rows to lose:

# %%
teach.show(figures.boundary())

# %% [markdown]
# In logits, the two boundaries are the logarithm of the shares' ratio apart. So, *in training only*, add
# $\tau \log \pi_c$ to each logit, where $\pi_c$ is the class's share. The network need not learn the shares; without
# the term, its boundary is that of equal classes.

# %%
from course_utils.training.class_weights import log_prior
from course_utils.training.losses import label_smoothing, logit_adjusted

prior = log_prior(counts)
teach.show_source(logit_adjusted)

# %% [markdown]
# ## 7 · Does it help?
#
# Each loss has a setting, chosen on **validation** by macro-F1, with one seed of its own. Then five seeds run, and test
# is used once. `rare_recall` is the mean recall of the rarest 30 % of classes.


# %%
def weighted(weights):
    return for_trainer(losses.weighted_cross_entropy, class_weights=weights)


make = {
    "1/n^p: p": lambda p: weighted(inverse_frequency(counts, p)),
    "effective: β": lambda b: weighted(effective_number(counts, b)),
    "focal: γ": lambda g: for_trainer(focal_loss, gamma=g),
    "smoothing: ε": lambda e: for_trainer(label_smoothing, epsilon=e),
    "logit adj.: τ": lambda t: for_trainer(logit_adjusted, log_prior=prior, tau=t),
}
powers = taus = (0.25, 0.5, 1.0)
betas, gammas, epsilons = (0.99, 0.999, 0.9999), (0.5, 1.0, 2.0, 4.0), (0.05, 0.1, 0.2)
settings = dict(zip(make, (powers, betas, gammas, epsilons, taus), strict=True))


def score_on(split, model):
    return scores(logits_of(model, splits[split]), splits[split]["labels"], counts)


# %%
search_seed = seed + 100
base = score_on("validation", run(for_trainer(cross_entropy), search_seed))["macro_f1"]
tried = {name: {} for name in make}
for name, build in make.items():
    for value in settings[name]:
        model = run(build(value), search_seed)
        tried[name][value] = score_on("validation", model)["macro_f1"]
teach.show(figures.settings(tried, base))

# %% tags=["nbval-ignore-output"]
chosen = {name: max(values, key=values.get) for name, values in tried.items()}
print(chosen)
teach.claim("every loss has a setting", set(chosen) == set(make))

# %% [markdown]
# Runs of one seed share a part of their luck. The **paired difference** to cross-entropy with the same seed removes it.
# Bars are 95 % intervals over five pairs (Student's t), small dots the pairs.

# %%
from course_utils.training.paired import paired_interval

seeds = range(seed, seed + 5)
plain_models = [run(for_trainer(cross_entropy), s) for s in seeds]
results = {"cross-entropy": [score_on("test", model) for model in plain_models]}
for name, build in make.items():
    results[name] = [score_on("test", run(build(chosen[name]), s)) for s in seeds]

# %%
titles = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
titles["rare_recall"] = "rare-class recall"
intervals = {title: {} for title in titles.values()}
pairs = {title: {} for title in titles.values()}
for score, title in titles.items():
    plain = [one[score] for one in results["cross-entropy"]]
    for name in make:
        label, values = name.split(":")[0], [one[score] for one in results[name]]
        intervals[title][label] = paired_interval(values, plain)
        pairs[title][label] = [a - b for a, b in zip(values, plain, strict=True)]
teach.show(figures.differences(intervals, pairs))

# %% tags=["nbval-ignore-output"]
for name, runs in results.items():
    means = {score: sum(one[score] for one in runs) / 5 for score in titles}
    print(f"{name:15}", {score: f"{mean:.3f}" for score, mean in means.items()})
for title, found in intervals.items():
    print(f"\n95 % intervals, {title}:")
    for name, one in found.items():
        print(f"  {name:10} {one.low:+.3f} to {one.high:+.3f}")
few = [int((splits["test"]["labels"] == c).sum()) for c in rarest]
print("test rows of the three rarest classes:", few)
macro, rare = intervals["macro-F1"], intervals["rare-class recall"]
lowest = min(macro["1/n^p"].low, macro["effective"].low)
teach.claim("class weights raise macro-F1: intervals above 0", lowest > 0, when=full)
smoothed = rare["smoothing"].high
no_gain = smoothed < 0.01
these = full and seed == 0  # other seeds: a wider interval
teach.claim("smoothing raises rare recall by < 0.01, if at all", no_gain, when=these)

# %% [markdown]
# On this data and this model:
#
# - **Class weights** of the chosen strength help most, in macro-F1 and rare-class recall. The effective number costs
#   0.4 to 1.7 points of accuracy; the interval of $1/\sqrt n$ contains 0.
# - **Focal loss** helps, less than weights.
# - **Logit adjustment** raises rare-class recall a little; in macro-F1 its interval contains 0.
# - **Label smoothing** costs a little rare recall and gains a little accuracy.
#
# Limits: one seed chose the settings; the chosen τ stands at the edge of its grid, a smaller one may be better. The
# intervals cover seeds only, not the few test rows of rare classes; the runs are short. Keep the procedure, not the
# ranking.

# %% [markdown]
# ## Deeper: the boundary of a finished model
#
# Logit adjustment has a free version. A model trained with cross-entropy has the prior inside its logits, so subtract
# $\tau \log \pi_c$ from them, without training anything:

# %% tags=["nbval-ignore-output"]
for tau in (0.0, 0.5, 1.0):
    now = scores(validation_logits - tau * prior, validation_labels, counts)
    two = {score: f"{now[score]:.2f}" for score in ("accuracy", "rare_recall")}
    print(f"tau {tau:.1f}:", two)
shifted = scores(validation_logits - prior, validation_labels, counts)
unshifted = scores(validation_logits, validation_labels, counts)
gained = shifted["rare_recall"] - unshifted["rare_recall"]
lost = unshifted["accuracy"] - shifted["accuracy"]
teach.claim("a shift of the logits finds more rare rows ...", gained > 0.1, when=full)
teach.claim("... and costs accuracy: it is not for nothing", lost > 0.02, when=full)

# %% [markdown]
# ### Deeper: exercise 06.4, vary
#
# Which `tau` is best depends on what you count. Return the one of `taus` whose *shifted* logits have the best macro-F1.
# The cell below then applies it to the model above. Change macro-F1 to accuracy afterwards and explain why the answer
# moves.

# %%
from course_utils.training.evaluation import macro_f1

teach.show_source(macro_f1)


def best_tau(logits, labels, log_prior, taus):
    # score every tau
    return ...


# %%
teach.check("06.4", best_tau)
tried_taus = [0.0, 0.25, 0.5, 0.75, 1.0]
best = best_tau(validation_logits, validation_labels, prior, tried_taus)
if best is not ...:
    for tau in tried_taus:
        now = scores(validation_logits - tau * prior, validation_labels, counts)
        print(f"tau {tau:.2f}: macro-F1 {now['macro_f1']:.3f}")
    print("best:", best)

# %% [markdown]
# ## 8 · Tokens that matter more
#
# For a language model every token is a target, and most are filler. A **relevance** $r_t$ per target weighs them:
#
# $$\ell = \frac{\sum_t r_t \, (-\log p_t)}{\sum_t r_t}$$
#
# The relevance comes with the batch, beside `labels` and in the same shape: that needs door 3. Three details make
# `RelevanceTrainer`, with which lesson 14 trains:
#
# - the divisor is the *window's* sum of relevances: `get_batch_samples` adds up relevance instead of counting labels;
# - a causal model's logits at position t predict token t + 1: labels and relevance are shifted together;
# - `remove_unused_columns=True` would drop `relevance`, which no model's `forward` names: the class refuses to start.

# %%
from course_utils.training.trainers import RelevanceTrainer

teach.show_source(RelevanceTrainer.get_batch_samples)
teach.show_source(RelevanceTrainer.compute_loss)

# %% [markdown]
# An untrained language model reads a sentence. The last two tokens get relevance 1, the filler before them 0.1:

# %%
from course_utils.models import load_causal_lm

language_model = load_causal_lm(vocab_size=len(tokenizer))
sentence = "the value of the function is given by the second argument"
ids = torch.tensor([tokenizer(sentence, add_special_tokens=False)["input_ids"]])
with torch.no_grad():
    token_logits = language_model(ids).logits
per_token = F.cross_entropy(token_logits[0, :-1], ids[0, 1:], reduction="none")
words = tokenizer.convert_ids_to_tokens(ids[0, 1:])
relevance = torch.full((len(words),), 0.1)
relevance[-2:] = 1.0
teach.show(figures.tokens(words, relevance.tolist(), per_token.tolist()))
weighed = relevance * per_token
answer_share = (weighed[-2:].sum() / weighed.sum()).item()
teach.claim("the two relevant tokens make half of the loss or more", answer_share > 0.5)

# %% [markdown]
# Rows of different lengths, random relevances, one batch of 16 rows against four of 4:

# %%
from course_utils.lessons.lesson_06.relevance_runs import first_step, relevance_rows

rows = relevance_rows()
whole_loss, whole_norm = first_step(rows, accumulation=1)
parts_loss, parts_norm = first_step(rows, accumulation=4)
loud_rows = [row | {"relevance": 10 * row["relevance"]} for row in rows]
loud_loss, loud_norm = first_step(loud_rows, accumulation=4)
off, louder = abs(parts_norm / whole_norm - 1), abs(loud_norm / whole_norm - 1)
teach.claim("4 micro-batches equal the full batch within 1e-5", off < 1e-5)
teach.claim("ten times the relevance changes nothing", louder < 1e-5)

# %% [markdown]
# Lesson 14 measures whether it *helps*.
#
# ### Exercise 06.5: write
#
# `logits` is `(B, T, C)` straight from a causal model, `labels` and `relevance` are `(B, T)`, `total_relevance` is the
# window's. Labels of -100 are no targets.


# %%
def relevance_loss(logits, labels, relevance, total_relevance):
    # losses = ...
    return ...


# %%
teach.check("06.5", relevance_loss)

# %% [markdown]
# ## 9 · A loss of several parts, each in the log
#
# **Distillation** ([Hinton et al. 2015](https://arxiv.org/abs/1503.02531)) trains a model, the student, on the
# probabilities of a finished one, the teacher: "mostly numpy, a little scipy" says more than a label. The loss has two
# parts. The hard one is the label's cross-entropy. The soft one is the distance to the teacher, both sides' logits
# divided by a temperature $T$, which evens out probabilities:
#
# $$T^2 \sum_c q_c \log (q_c / p_c), \qquad q = \mathrm{softmax}(z_{teacher}/T), \quad p = \mathrm{softmax}(z/T)$$
#
# Softened gradients are about $1/T^2$ as large; the factor $T^2$ makes up for it. A **multi-task loss** too is a
# weighted sum, with a part for each task. Log the parts: a sum that falls can hide a part that rises. `PartsTrainer`
# takes a function that returns them; its `log` puts each beside `loss`.

# %%
from course_utils.training.trainers import PartsTrainer

teach.show_source(PartsTrainer.log)

# %% [markdown]
# The teacher is the mean of section 7's five cross-entropy models; its logits become a part of the batch. `distil`
# trains a bag with `PartsTrainer`.

# %%
from course_utils.lessons.lesson_06.bag_runs import distil
from course_utils.training.losses import distillation


def soft_and_hard(outputs, batch, num_items_in_batch=None):
    logits, labels = outputs["logits"], batch["labels"]
    teacher_logits = batch["teacher_logits"]
    return {
        "hard": cross_entropy(logits, labels, num_items_in_batch),
        "soft": distillation(logits, teacher_logits, labels, 2.0, num_items_in_batch),
    }


teacher = sum(logits_of(model, splits["train"]) for model in plain_models) / 5
taught = splits["train"] | {"teacher_logits": teacher}
student_steps = max(20, max_steps // 2)


def taught_bag(weights, run_seed):
    sizes = student_steps, len(tokenizer), num_labels
    return distil(taught, soft_and_hard, weights, run_seed, *sizes)


student = taught_bag({"hard": 0.5, "soft": 0.5}, seed)
teach.show(figures.parts(student.state.log_history, ["loss", "loss_hard", "loss_soft"]))

# %%
entries = [one for one in student.state.log_history if "loss_soft" in one]
sums = [0.5 * one["loss_hard"] + 0.5 * one["loss_soft"] for one in entries]
gap = max(abs(one["loss"] - total) for one, total in zip(entries, sums, strict=True))
teach.claim("every logged loss is the weighted sum of its parts", gap < 1e-3)

# %% [markdown]
# ### Deeper: does the teacher help?
#
# With and without it, three seeds, the same number of steps, on validation. The interval is Student's t: few pairs tell
# little about their own spread, so with three it reaches 4.3 standard errors to each side, with section 7's five 2.8,
# and not the usual 2.

# %%
gains = {}
for s in range(seed, seed + 3):
    for name, soft in (("alone", 0.0), ("taught", 0.5)):
        one = taught_bag({"hard": 1 - soft, "soft": soft}, s).model.eval()
        gains.setdefault(name, []).append(score_on("validation", one)["macro_f1"])
gain = paired_interval(gains["taught"], gains["alone"])

# %% tags=["nbval-ignore-output"]
print(f"macro-F1 {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
teach.claim("no gain that three seeds can tell from 0", gain.low < 0, when=these)

# %% [markdown]
# Three seeds cannot tell: a gain or a loss of nearly three points would both fit. A larger teacher was not tried.

# %% [markdown]
# ## 10 · What goes wrong
#
# **Weights in another order.** `Counter` lists classes as it meets them, not by number:

# %%
from collections import Counter

in_order_met = torch.tensor(list(Counter(train_labels.tolist()).values()))
misplaced = inverse_frequency(in_order_met, power=0.5)
misplaced_model = run(weighted(misplaced))
wrong_recall = score_on("validation", misplaced_model)["rare_recall"]
right_recall = score_on("validation", weighted_model)["rare_recall"]
more = right_recall > wrong_recall
teach.claim("the right weights find more rare rows than misplaced", more, when=full)
rightly = [bool(w.argmax() == counts.argmin()) for w in (weights, misplaced)]
print("the heaviest class is the rarest:", rightly)

# %% [markdown]
# **Weights of another type.** `F.cross_entropy` refuses NumPy's float64; a product by hand does not, and all that
# follows is float64. Weights left on the CPU beside a GPU model raise an error. `w.to(logits)` cures both:

# %%
numpy_weights = torch.from_numpy(weights.numpy().astype("float64"))
try:
    F.cross_entropy(logits, labels, weight=numpy_weights)
except RuntimeError as error:
    print("torch:", str(error).splitlines()[0][:60])
by_row = F.cross_entropy(logits, labels, reduction="none")
by_product = (numpy_weights[labels] * by_row).mean()
of_course = losses.weighted_cross_entropy(logits, labels, numpy_weights)
print("by hand:", by_product.dtype, "| course:", of_course.dtype)
teach.claim("the course's losses stay in float32", of_course.dtype == torch.float32)

# %% [markdown]
# **Label smoothing ignored, or applied twice.** A `compute_loss_func` makes `label_smoothing_factor` do nothing. In
# `super().compute_loss` it is applied, and a smoothing of your own comes on top. The first loss of the 16 rows tells:

# %%
from course_utils.lessons.lesson_06.who_divides import ModelWithConfig, one_step

with_func = Way(ModelWithConfig, function=for_trainer(cross_entropy))
ignored = one_step(with_func, 1, label_smoothing_factor=0.2)[0]
once = one_step(Way(ModelWithConfig), 1, label_smoothing_factor=0.2)[0]
on_top = Way(ModelWithConfig, who_divides.SmoothTwice)
twice = one_step(on_top, 1, label_smoothing_factor=0.2)[0]
plain_loss = who_divides.full_batch()[0]
smoothed_loss = lambda x, y: label_smoothing(x, y, 0.2)  # noqa: E731
smooth_loss = who_divides.full_batch(loss=smoothed_loss)[0]
teach.claim("compute_loss_func: it changes nothing", abs(ignored - plain_loss) < 1e-4)
teach.claim("without it: smoothed once", abs(once - smooth_loss) < 1e-4)
nearest = min(abs(twice - plain_loss), abs(twice - smooth_loss))
teach.claim("an override on top of super(): neither of both", nearest > 1e-4)

# %% [markdown]
# | symptom | cause | check |
# |---|---|---|
# | loss grows with k | a mean where a sum / num_items is due | step 1 at k = 1 and 4: same loss and gradient norm |
# | loss falls with k | divided twice | the same |
# | gradient 1/n on n processes | `num_processes` is missing | the same, with `run_ranks` |
# | wrong for ragged rows only | mean of means | the same, some labels at -100 |
# | weights do not help rare classes | weights in another order | heaviest class is the rarest |
# | float64 everywhere | weights from NumPy | `loss.dtype` |
# | smoothing changes nothing | `compute_loss_func` | first loss against the closed form |
#
# ### Exercise 06.6: a loss that adds up
#
# `make_loss(counts, gamma)` returns a `compute_loss_func`: focal loss times class weights ($1/n$, mean 1 over the
# training rows). It leaves out labels of -100, honours `num_items_in_batch`, divides by its own labels when that is
# None, and stays in float32 for bfloat16 logits. `outputs` is a dictionary with `"logits"`. Write it without the
# course's losses.


# %%
def make_loss(counts, gamma):
    # def loss_function(outputs, labels, num_items_in_batch=None): ...
    return ...


# %%
teach.check("06.6", make_loss)

# %% [markdown]
# ## 11 · What the model says now
#
# Sentences of our own, each written for one library, and the probability that section 1's two models give that. The
# first two belong to the rarest classes.

# %% tags=["nbval-ignore-output"]
examples = [
    ("accelerate", "Prepare the model and the optimizer for several processes."),
    ("datasets", "Map a function over the rows of the table and cache the result."),
    ("matplotlib", "Draw the axis ticks and their labels in the given color."),
    ("torch", "Computes the gradient of the tensor with respect to the graph leaves."),
]
chances = []
for name, text in [(name, text) for name, text in examples if name in names]:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    says = [model(ids).logits.softmax(-1)[0] for model in (plain_model, weighted_model)]
    chances.append([chance[names.index(name)].item() for chance in says])
    before, after = chances[-1]
    print(f"{name:10} plain {before:.2f}, weighted {after:.2f}: {text}")
surer = all(after > before for before, after in chances[:2])
teach.claim("weights make the model surer of both rare libraries", surer, when=full)

# %% [markdown]
# ## Deeper: every loss against its closed form, its derivative, its special cases
#
# Three checks, in float64: `torch.autograd.gradcheck` compares the derivative with finite differences; a special case
# must fall back to cross-entropy; a library's version must agree.

# %%
from course_utils.training.losses import relevance_weighted

generator = torch.Generator().manual_seed(seed)
x = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
y = torch.tensor([0, 3, -100, 1, 2, 2])
soft = torch.randn(6, 4, dtype=torch.float64, generator=generator)
some = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
every = {
    "cross-entropy": lambda x: cross_entropy(x, y, 7),
    "weighted": lambda x: losses.weighted_cross_entropy(x, y, some, 7),
    "focal": lambda x: focal_loss(x, y, 2.0, some, 7),
    "smoothing": lambda x: label_smoothing(x, y, 0.1, 7),
    "logit adjustment": lambda x: logit_adjusted(x, y, some.log(), 1.0, 7),
    "relevance": lambda x: relevance_weighted(x, y, torch.linspace(0, 1, 6), 7),
    "distillation": lambda x: distillation(x, soft, y, 2.0, 7),
}
passed = {name: torch.autograd.gradcheck(loss, x) for name, loss in every.items()}
teach.claim("gradcheck passes for seven losses", all(passed.values()))

# %%
ones, flat = torch.ones(4, dtype=torch.float64), torch.full((4,), 0.25).log()
special = {
    "weights 1": losses.weighted_cross_entropy(x, y, ones),
    "gamma 0": focal_loss(x, y, 0.0),
    "epsilon 0": label_smoothing(x, y, 0.0),
    "tau 0": logit_adjusted(x, y, some.log(), 0.0),
    "a flat prior": logit_adjusted(x, y, flat, 1.0),
    "equal relevance": relevance_weighted(x, y, torch.full((6,), 0.3)),
}
reference = F.cross_entropy(x, y)
apart = {name: abs(value.item() - reference.item()) for name, value in special.items()}
worst = max(apart.values())
teach.claim("six special cases are cross-entropy within 1e-12", worst < 1e-12)
smooth = F.cross_entropy(x, y, label_smoothing=0.1)
of_torch, same = abs(label_smoothing(x, y, 0.1) - smooth), distillation(soft, soft, y)
teach.claim("smoothing equals torch's within 1e-12", of_torch < 1e-12)
teach.claim("a student that equals its teacher has distance 0", abs(same) < 1e-12)

# %% [markdown]
# ## Deeper: overriding training_step
#
# `training_step` is the place for a second backward pass. Adversarial training of the embedding (after Miyato et al.,
# arXiv:1605.07725) is an example: a first pass finds the direction in which the embeddings hurt most, a second pass
# trains on embeddings moved a little in that direction. Calling `super().training_step` twice inherits everything this
# lesson is about: the division by k, the loss's scaling for fp16, the accelerator's backward. The gradients of both
# passes add up in `.grad`. From the second micro-batch of a window on it holds the earlier ones too, so the direction
# comes from what the first pass *added*.


# %%
class AdversarialTrainer(Trainer):
    epsilon = 0.5

    def training_step(self, model, inputs, num_items_in_batch=None):
        table = self.accelerator.unwrap_model(model).embedding.weight
        before = 0 if table.grad is None else table.grad.clone()
        first = super().training_step(model, dict(inputs), num_items_in_batch)
        added = table.grad - before
        move = self.epsilon * added / (added.norm() + 1e-12)
        table.data += move
        second = super().training_step(model, dict(inputs), num_items_in_batch)
        table.data -= move
        return (first + second) / 2


# %%
class WithoutMove(AdversarialTrainer):
    epsilon = 0.0


without = Way(PlainModel, WithoutMove)
doubled = [measure(without, k)["gradient"] for k in (1, 4)]
apart = max(abs(factor - 2) for factor in doubled)
teach.claim("without the move: twice one pass's gradient, at k = 1 and 4", apart < 1e-5)
moved = measure(Way(PlainModel, AdversarialTrainer), 1)
teach.claim("with it the second pass has a larger loss", moved["loss"] > 1)

# %% [markdown]
# ## Recap
#
# - A loss enters through the model, through `compute_loss_func`, or through an override. The Trainer decides from
#   signatures and one flag whether to divide by k; check it with one step at k = 1 and k = 4.
# - Divide a sum by `num_items_in_batch`. In an override, set `loss_is_scaled_for_ga = True` and multiply by
#   `self.accelerator.num_processes`.
# - Class weights want a mean of 1 over rows, the order of class numbers, and the logits' type.
# - Choose a loss's setting on validation, compare paired runs over several seeds, and say so when it does not help.
# - Log every part of a loss.

# %% [markdown]
# ## Quiz
#
# **1.** Your `compute_loss_func` returns `F.cross_entropy(logits, labels)`. With 4 micro-batches training "works" as
# before. What is different, and who notices?
#
# <details><summary>Answer</summary>
#
# Loss and gradient are four times as large. AdamW hardly notices. Clipping bites more often, the log shows it, and
# SGD's steps would be four times as long.
#
# </details>

# %% [markdown]
# **2.** Why does `RelevanceTrainer` replace `num_items_in_batch`?
#
# <details><summary>Answer</summary>
#
# That counts labels. With a mean relevance of 0.2 the gradient would be a fifth of what it should be.
#
# </details>

# %% [markdown]
# **3.** A run with focal loss ends at `eval_loss` 0.4, one with cross-entropy at 0.9. Which is better?
#
# <details><summary>Answer</summary>
#
# Nobody knows. The factor $(1-p)^\gamma$ is below 1, so focal loss is smaller for the same predictions. Compare
# macro-F1, or cross-entropy of both.
#
# </details>
#
# **Next:** [lesson 07](07_beyond_text.ipynb) leaves text: any `nn.Module` in the Trainer, two optimizers, and operators
# of your own.
