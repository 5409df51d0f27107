# %% [markdown]
# # 01 · The training loop, by hand
#
# Everything that trains a neural network, from a laptop script to a cluster job, repeats five lines: forward, loss,
# backward, step, zero the gradients. In this lesson you write them yourself on a real task, build AdamW from its update
# rule, and end with a loop that survives being killed in the middle of a save.
#
# **You will be able to**
#
# - write a training loop and an evaluation loop for a text classifier, and say what every line is for;
# - write SGD, Adam and AdamW from their update rules, and show that yours equal torch's;
# - use weight decay, learning-rate schedules and gradient clipping for the reasons they exist;
# - accumulate gradients so that the result equals the big batch, also with ragged micro-batches;
# - save and resume a run so that the interruption leaves no trace, bit for bit;
# - recognise five mistakes that raise no error and cost accuracy.
#
# **Minutes:** 60 · **Prerequisites:** Python, and tensors and `backward()` in PyTorch. No Hugging Face knowledge.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 750  # optimizer steps of the main run
batch_size = 32  # rows per micro-batch
accumulation = 1  # micro-batches per optimizer step
with_compiled = False  # True: also check and time the compiled AdamW (needs g++, about 20 s more)
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed, batch_size=batch_size, accumulation=accumulation)

# %% [markdown]
# ## 1 · The task, and what it takes to be better than nothing
#
# The data is real and already on your disk: sentences from the documentation of the Python libraries that this course
# installs. The task: *which library does a sentence come from?* Library names inside a sentence are masked, duplicates
# are removed, and the three splits share no source file.

# %%
from course_utils.data import load_classification

data = load_classification(source)
print({split: len(rows) for split, rows in data.items()})

# %% [markdown]
# The classes are as unequal as the libraries are. That matters: a model that always answers with the largest class
# already looks useful if you only read its accuracy.

# %%
from collections import Counter

names = data["train"].features["label"].names
sizes = Counter(data["train"]["label"])
for label, size in sizes.most_common():
    print(f"{names[label]:14}{size:6}")

# %% [markdown]
# So two numbers are reported throughout. **Accuracy** is the share of right answers. **Macro-F1** computes F1 for each
# class and takes the plain mean: a rare class counts as much as a frequent one. The majority baseline shows the
# difference between the two.

# %%
from sklearn.metrics import accuracy_score, f1_score


def scores(predicted):
    truth = list(data["test"]["label"])
    macro = f1_score(truth, predicted, average="macro", zero_division=0)
    return {"accuracy": accuracy_score(truth, predicted), "macro_f1": macro}


majority = scores([sizes.most_common(1)[0][0]] * len(data["test"]))
print({name: round(value, 3) for name, value in majority.items()})

# %% [markdown]
# The second baseline is the one to beat: word weights (TF-IDF over words and word pairs) and logistic regression. It
# takes seconds. A neural network that does not beat it on this task has no business being trained.

# %% tags=["nbval-ignore-output"]
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
baseline = make_pipeline(words, LogisticRegression(C=30, solver="newton-cg"))
baseline.fit(list(data["train"]["text"]), list(data["train"]["label"]))
tfidf = scores(baseline.predict(list(data["test"]["text"])))
print({name: round(value, 3) for name, value in tfidf.items()})
assert tfidf["accuracy"] > majority["accuracy"] and tfidf["macro_f1"] > majority["macro_f1"]

# %% [markdown]
# ### From sentences to batches
#
# A tokenizer turns a sentence into numbers. Lesson 02 opens that box; here it is enough that every row becomes a list
# of `input_ids`, and that rows of one batch are padded to the longest of them, with an `attention_mask` that says
# which positions are real. `max_length=48` cuts what is longer: the cost of a batch grows with its longest row, and a
# sentence's first words mostly give its library away.

# %%
from course_utils.models import load_tokenizer

tokenizer = load_tokenizer(source)


def tokenize(split):
    encoded = tokenizer(list(data[split]["text"]), truncation=True, max_length=48)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], data[split]["label"], strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": label} for ids, mask, label in columns]


rows = {split: tokenize(split) for split in data}
at_limit = sum(len(row["input_ids"]) == 48 for row in rows["train"]) / len(rows["train"])
print(f"training rows at the limit of 48 tokens: {at_limit:.0%}")

# %%
from transformers import DataCollatorWithPadding

collate = DataCollatorWithPadding(tokenizer)
batch = collate(rows["train"][:8])
batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
print({name: tuple(tensor.shape)[0] for name, tensor in batch.items()}, "rows each; labels", batch["labels"].dtype)

# %% [markdown]
# ## 2 · Forward, loss, backward, step, zero
#
# The model is an encoder of the ModernBERT kind, small enough for a laptop, with random weights. One **forward** pass
# gives a score (a *logit*) per row and class.

# %%
import torch
from torch import nn

from course_utils.models import load_classifier

num_labels = len(names)
torch.manual_seed(seed)
model = load_classifier(num_labels, source)
outputs = model(**batch)
print("logits", tuple(outputs.logits.shape))

# %% [markdown]
# The **loss** is the cross entropy: minus the log of the probability given to the right class, averaged over the batch.
# By hand it is two lines. A model that knows nothing gives each of 10 classes one tenth, so it starts near
# $\ln 10 \approx 2.3$. If your first loss is far from $\ln(\text{classes})$, look for a bug before you train.

# %%
log_probabilities = outputs.logits - outputs.logits.logsumexp(dim=-1, keepdim=True)
by_hand = -log_probabilities[torch.arange(8), batch["labels"]].mean()
print("equals model(...).loss:", torch.allclose(by_hand, outputs.loss))

first_losses = torch.stack([nn.functional.cross_entropy(model(**batch).logits, batch["labels"]) for _ in range(8)])
print("near ln(classes):", bool((first_losses.mean() - torch.tensor(float(num_labels)).log()).abs() < 0.5))

# %% [markdown]
# **Backward** walks the computation in reverse and leaves in every parameter's `.grad` how much the loss would change.
# **Step** moves each parameter against its gradient. That is SGD, complete:
#
# $$p \leftarrow p - \eta\, g$$


# %%
def sgd_step(parameters, lr):
    with torch.no_grad():  # the update itself is not part of the model
        for p in parameters:
            p -= lr * p.grad


# %% [markdown]
# **Zero** comes last. `backward()` *adds* to `.grad`, it does not overwrite; that is what makes accumulation possible
# in section 7, and what makes forgetting this line expensive. Five rounds on the same eight rows: the loss must fall.
# This *overfit one batch* run is the cheapest test of a new training script.

# %%
model.eval()  # no dropout: the same batch must give the same loss
losses = []
for _ in range(5):
    loss = model(**batch).loss
    loss.backward()
    sgd_step(model.parameters(), lr=0.05)
    model.zero_grad()
    losses.append(loss.item())
print("fell in every round:", all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False)))
assert losses[-1] < losses[0]

# %% [markdown]
# ## 3 · From SGD to AdamW
#
# SGD uses one learning rate for every parameter. An embedding row of a rare word sees a tiny gradient now and then, a
# norm's scale sees a large one every step. Adam gives each parameter its own step size from two moving averages:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2$$
#
# $m$ is the direction, smoothed. $\sqrt v$ is the typical size of the gradient. Their ratio is about 1 whatever the
# scale of the gradient, so the learning rate says how far a parameter moves per step.
#
# Both averages start at 0, so at first they are too small. For a constant gradient $g$, after $t$ steps
# $m = g\,(1-\beta_1^t)$. Dividing by that factor repairs it: **bias correction**.

# %%
from course_utils.teach.figures import lesson_01 as figures

beta, gradient, m, raw = 0.9, 1.0, 0.0, []
for _ in range(30):
    m = beta * m + (1 - beta) * gradient
    raw.append(m)
corrected = [m / (1 - beta**t) for t, m in enumerate(raw, start=1)]
print("corrected equals the gradient:", all(abs(value - gradient) < 1e-12 for value in corrected))

# %%
teach.show(
    figures.bias_correction(range(1, 31), raw, corrected, gradient),
    alt="A moving average of a constant gradient starts near zero and needs dozens of steps to reach it; "
    "divided by one minus beta to the power of t it is right from the first step.",
)

# %% [markdown]
# Without the correction the two errors do not cancel: with $\beta_2 = 0.999$, $v$ is a thousand times too small at
# the first step and $m$ ten times. Their ratio $m/\sqrt v$ is then about $0.1 / \sqrt{0.001} \approx 3$ times too
# large, at the moment when the direction is known least.
#
# Adam in one function. Note where $\epsilon$ stands: **outside the root**. It is the floor of the denominator, in units
# of the gradient. Inside the root, $10^{-8}$ would act like $10^{-4}$ and swallow every gradient smaller than that.


# %%
def adam_step(p, g, state, lr, betas=(0.9, 0.999), eps=1e-8):
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) on tensor p with gradient g; state holds t, m and v."""
    state["t"] += 1
    state["m"] = betas[0] * state["m"] + (1 - betas[0]) * g
    state["v"] = betas[1] * state["v"] + (1 - betas[1]) * g * g
    m_hat = state["m"] / (1 - betas[0] ** state["t"])
    v_hat = state["v"] / (1 - betas[1] ** state["t"])
    return p - lr * m_hat / (v_hat.sqrt() + eps)


def new_state(p):
    return {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}


# %%
def one_step(g, inside_root):
    p = torch.zeros(1, dtype=torch.float64)
    eps = 1e-8
    if inside_root:
        return (p - g / (g * g + eps).sqrt()).item()
    return adam_step(p, torch.tensor([g], dtype=torch.float64), new_state(p), lr=1.0).item()


for g in (1e-2, 1e-5, 1e-7):
    print(f"gradient {g:.0e}: eps outside {one_step(g, False):.3f}, inside {one_step(torch.tensor(g), True):.3f}")

# %% [markdown]
# Does it equal torch's Adam? Two optimizers on a random network would drift apart for a reason that is nobody's bug:
# rounding, amplified by training. So compare where rounding is small and nothing amplifies it: in float64, on the same
# sequence of gradients. The function below does that for any optimizer class and is used for the rest of this section.


# %%
def run_on_same_gradients(make_optimizer, steps, dtype):
    """Three tensors, gradients of three very different sizes, the same for every optimizer."""
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in ((8, 5), (7,), (3, 4))]
    optimizer = make_optimizer(params)
    for _ in range(steps):
        for scale, p in zip((10.0, 1.0, 0.01), params, strict=True):
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=dtype)
        optimizer.step()
    return params


def worst(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True))


# %%
class TinyAdam:
    """Adam, and Adam + L2: the decay is added to the gradient, as `torch.optim.Adam(weight_decay=)` does it."""

    def __init__(self, params, lr=1e-2, l2=0.0):
        self.params, self.lr, self.l2 = params, lr, l2
        self.states = [new_state(p) for p in params]

    @torch.no_grad()
    def step(self):
        for p, state in zip(self.params, self.states, strict=True):
            p.copy_(adam_step(p, p.grad + self.l2 * p, state, self.lr))


for l2 in (0.0, 0.1):
    ours = run_on_same_gradients(lambda p, l2=l2: TinyAdam(p, l2=l2), 200, torch.float64)
    theirs = run_on_same_gradients(lambda p, l2=l2: torch.optim.Adam(p, 1e-2, weight_decay=l2), 200, torch.float64)
    print(f"Adam with L2 {l2}: equal to torch's within 1e-12 after 200 steps:", worst(ours, theirs) <= 1e-12)
    assert worst(ours, theirs) <= 1e-12

# %% [markdown]
# ### Why Adam + L2 is not AdamW
#
# Weight decay should pull every weight towards zero at the same rate. With SGD you can write it as a penalty
# $\frac{\lambda}{2}p^2$ in the loss: its gradient $\lambda p$ joins $g$, and the effect is the same. With Adam it is
# not: $\lambda p$ joins $g$ *before* the division by $\sqrt v$. A weight with large gradients has a large $v$, and
# its decay is divided away with them. A weight with small gradients is pulled to zero almost by sign. The penalty
# falls hardest on the weights the data says least about, and hardly on those that grow.
#
# AdamW (Loshchilov & Hutter 2019) **decouples** the two: decay acts on the weight, and never enters $m$ or $v$:
#
# $$p \leftarrow p - \eta\,\lambda\,p - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# The experiment: two weights, both starting at 1. Their gradients are pure noise, one a thousand times larger than the
# other, so decay is the only thing with a direction.

# %%
from course_utils.training.optim import AdamW


def decay_path(make_optimizer, scale, steps=600, copies=200):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.ones(copies))  # many copies, averaged: the noise cancels, the decay stays
    optimizer, path = make_optimizer([p]), [1.0]
    for _ in range(steps):
        p.grad = scale * torch.randn(copies, generator=generator)
        optimizer.step()
        path.append(p.mean().item())
    return path


# %%
versions = {
    "AdamW": lambda params: AdamW(params, lr=2e-3, weight_decay=0.5),
    "Adam + L2": lambda params: TinyAdam(params, lr=2e-3, l2=0.5),
}
scales = {"large": 10.0, "small": 0.01}
paths = {
    f"{version}, {size} gradients": decay_path(make, scale)
    for version, make in versions.items()
    for size, scale in scales.items()
}
for name, path in paths.items():
    print(f"{name:28} weight after 600 steps: {path[-1]:.2f}")

# %%
teach.show(
    figures.decay_paths(paths),
    alt="Under AdamW both weights shrink on the same curve. Under Adam plus L2 the weight with small gradients "
    "shrinks much faster, and the one with large gradients keeps nearly all of its value.",
)
assert abs(paths["AdamW, large gradients"][-1] - paths["AdamW, small gradients"][-1]) < 0.1
assert paths["Adam + L2, large gradients"][-1] - paths["Adam + L2, small gradients"][-1] > 0.3

# %% [markdown]
# ### Three versions of AdamW
#
# `course_utils.training.optim` has AdamW three times, as `torch.optim.Optimizer` subclasses with torch's state names.
# The readable one loops over parameters. Read its `_update`: it is the formula, line by line.

# %%
teach.show_source(AdamW._update)

# %% [markdown]
# The **foreach** version calls each line once for a list of all tensors. On a GPU that replaces hundreds of tiny kernel
# launches by a few. It still reads and writes every number once *per line*. The **compiled** version fixes that: the
# update is elementwise, so `torch.compile` can fuse it into one loop that reads `p, g, m, v` once and writes `p, m, v`
# once. torch's own `fused=True` is the same idea, written by hand in C++ or CUDA.

# %%
from course_utils.training.optim import CompiledAdamW, ForeachAdamW, compiler_available

classes = {"readable": AdamW, "foreach": ForeachAdamW}
if with_compiled and compiler_available():
    classes["compiled"] = CompiledAdamW
elif with_compiled:
    print("compiled: skipped, torch.compile needs a C++ compiler (g++) and none was found")
else:
    print("compiled: not in this run (with_compiled=False); `make bench` measures it")

# %%
settings = {"lr": 1e-2, "weight_decay": 0.1}
for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
    theirs = run_on_same_gradients(lambda p: torch.optim.AdamW(p, **settings), 200, dtype)
    for name, cls in classes.items():
        difference = worst(run_on_same_gradients(lambda p, c=cls: c(p, **settings), 200, dtype), theirs)
        print(f"{name}, {dtype}, 200 steps: equal to torch.optim.AdamW within {bound:.0e}:", difference <= bound)
        assert difference <= bound

# %% [markdown]
# Now their speed, on this model's parameters. Only `step()` is timed; the versions take turns in every round, so that a
# busy moment of your machine hits all of them, and the median counts. What you see depends on your machine.

# %%
import copy

from course_utils.training.timing import interleaved_medians

torch_versions = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def with_gradients():
    params = copy.deepcopy(list(model.parameters()))
    for p in params:
        p.grad = torch.randn_like(p)
    return params


# %% tags=["nbval-ignore-output"]
steps_of = {
    f"torch {name}": torch.optim.AdamW(with_gradients(), **options).step for name, options in torch_versions.items()
}
steps_of |= {f"own {name}": cls(with_gradients()).step for name, cls in classes.items()}
seconds = interleaved_medians(steps_of, rounds=30)
teach.show(
    figures.step_times(seconds),
    alt="Bars of the time of one optimizer step: torch's fused version is the fastest; for-loop and foreach versions, "
    "torch's and ours, take several times as long on a CPU.",
)
assert min(seconds.values()) > 0  # no promise about ratios: this machine may be busy; `make bench` measures with care

# %% [markdown]
# On a CPU the fused version wins because the step is limited by memory traffic, not by arithmetic. `make bench` runs
# the same comparison for longer and with the compiled version.
#
# ## 4 · Who gets decayed?
#
# Decay regularises matrices. A bias or the scale of a norm is one number per feature; pulling it to zero removes signal
# and buys nothing. So an optimizer gets two **parameter groups**. The rule is a line: tensors with two or more
# dimensions are decayed, vectors are not.

# %%
from course_utils.training.optim import parameter_groups

teach.show_source(parameter_groups)

# %%
for group in parameter_groups(model, weight_decay=0.01):
    tensors, dimensions = len(group["params"]), sorted({p.ndim for p in group["params"]})
    print(f"weight decay {group['weight_decay']}: {tensors} tensors with dimensions {dimensions}")

# %% [markdown]
# ## 5 · The learning rate over time
#
# At step 1 the weights are random and Adam's averages rest on one batch. Full-size steps in such directions can throw
# the model into a region it does not leave. So the rate **warms up** from 0. Towards the end, the remaining error is
# mostly noise from batch to batch; smaller steps average it out. So the rate **decays**. A schedule is a function from
# the step to a factor:

# %%
import math


def linear_with_warmup(step, warmup_steps, max_steps):
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (max_steps - step) / (max_steps - warmup_steps))


def cosine_with_warmup(step, warmup_steps, max_steps):
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 ... 1
    return 0.5 * (1 + math.cos(math.pi * progress))


# %%
plan = {"peak": 2e-3, "warmup": 75, "steps": 750}
by_name = {"linear": linear_with_warmup, "cosine": cosine_with_warmup}
curves = {
    name: [plan["peak"] * schedule(step, plan["warmup"], plan["steps"]) for step in range(plan["steps"] + 1)]
    for name, schedule in by_name.items()
}
teach.show(
    figures.schedules(curves, plan["warmup"]),
    alt="Both schedules rise in a straight line over the first tenth of the run. The linear one then falls in a "
    "straight line to zero; the cosine stays higher at first, falls fastest in the middle and flattens at the end.",
)

# %% [markdown]
# Equal to transformers' versions, at every step. They return a torch `LambdaLR`, which multiplies each group's initial
# learning rate by the factor; `make_scheduler` does the same with the functions above.

# %%
import transformers


def rates(make):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=plan["peak"])
    scheduler, seen = make(optimizer), []
    for _ in range(plan["steps"] + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


for name in by_name:
    theirs = getattr(transformers, f"get_{name}_schedule_with_warmup")
    expected = rates(lambda o, make=theirs: make(o, plan["warmup"], plan["steps"]))
    difference = max(abs(a - b) for a, b in zip(curves[name], expected, strict=True))
    print(f"{name}: equal to transformers' schedule within 1e-15:", difference <= 1e-15)
    assert difference <= 1e-15

# %% [markdown]
# ## 6 · Clipping by global norm
#
# Now and then a batch produces a gradient many times the usual size, and one step undoes a hundred. Clipping bounds it:
# put all gradients of the model into one long vector, and if its length exceeds the limit, scale *all* of them by the
# same factor. The direction stays; only the length changes. (Clipping each tensor by itself would bend the direction.)

# %%
from course_utils.training.loop import clip_grad_norm

teach.show_source(clip_grad_norm)

# %%
model(**batch).loss.backward()
before = [p.grad.clone() for p in model.parameters()]
norm = clip_grad_norm(model.parameters(), max_norm=0.1)
after = [p.grad.clone() for p in model.parameters()]
for p, g in zip(model.parameters(), before, strict=True):
    p.grad = g.clone()
torch_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.1)
same = all(torch.allclose(p.grad, g) for p, g in zip(model.parameters(), after, strict=True))
print("same norm and same gradients as torch's:", torch.allclose(norm, torch_norm), same)
model.zero_grad()

# %% [markdown]
# ## 7 · Accumulation: a big batch in small pieces
#
# A batch that does not fit into memory can be cut into $k$ **micro-batches**. Run forward and backward on each, let
# `.grad` add up, and step once. What an optimizer step sees is the
#
# $$\text{effective batch} = \text{per-device batch} \times \text{devices} \times \text{accumulation steps}$$

# %%
devices = 1
print(
    f"effective batch = {batch_size} per device x {devices} device x {accumulation} accumulation "
    f"= {batch_size * devices * accumulation} rows"
)

# %% [markdown]
# The loss of the big batch is a mean over its targets. Micro-batch $i$ with $n_i$ targets must contribute the **sum**
# of its losses, divided by the number of targets in the *whole window*, $N = \sum n_i$. Many scripts divide its
# **mean** by $k$ instead. That is the same only if all $n_i$ are equal. They rarely are: a token-level model has as
# many targets as unmasked tokens, and the last batch of an epoch is short.
#
# To see it, a token-level task: a tiny encoder that predicts masked words. Each micro-batch holds sentences of
# another length, so the numbers of targets differ a lot. Everything is in float64 with dropout off: any difference is
# arithmetic.

# %%
from transformers import AutoModelForMaskedLM

from course_utils.models.local import encoder_config

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}


def tiny_masked_lm():
    torch.manual_seed(seed)
    return AutoModelForMaskedLM.from_config(encoder_config(**small)).double().eval()


# %%
IGNORED = -100  # the label of a position that is no target; cross entropy skips it


def micro_batch(sentences, generator):
    padded = tokenizer.pad({"input_ids": sentences}, return_tensors="pt")
    ids, mask = padded["input_ids"], padded["attention_mask"]
    targets = (torch.rand(ids.shape, generator=generator) < 0.4) & mask.bool()
    targets[0, 1] = True  # at least one
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(targets, ids, IGNORED)}


by_length = sorted((row["input_ids"] for row in rows["train"][:2000]), key=len)
generator = torch.Generator().manual_seed(seed)
micro_batches = []
for i in range(20):
    place = int((0.02, 0.97, 0.4, 0.8)[i % 4] * len(by_length)) + 2 * (i // 4)  # short, long, middle, longer
    micro_batches.append(micro_batch(by_length[place : place + 2], generator))

# %%
counts = [int(batch["labels"].ne(IGNORED).sum()) for batch in micro_batches]
print("most targets at least three times the fewest:", max(counts) >= 3 * min(counts))

# %% [markdown]
# The big batch is the same rows in one tensor, padded to the longest.


# %%
def big_batch(window):
    longest = max(batch["input_ids"].shape[1] for batch in window)
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
    pad = nn.functional.pad
    return {
        name: torch.cat([pad(b[name], (0, longest - b[name].shape[1]), value=fill[name]) for b in window])
        for name in fill
    }


def mean_loss(model, batch):  # in float64; the model's own .loss is computed in float32
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)


def gradient(model, batches, weights):
    """The flat gradient of the weighted sum of the batches' mean losses."""
    model.zero_grad()
    for batch, weight in zip(batches, weights, strict=True):
        (weight * mean_loss(model, batch)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %%
k = 4
masked_lm = tiny_masked_lm()
errors = {"loss / k": [], "all targets": []}
for start in range(0, len(micro_batches), k):
    window, n = micro_batches[start : start + k], torch.tensor(counts[start : start + k])
    reference = gradient(masked_lm, [big_batch(window)], [1.0])
    for name, weights in (("loss / k", torch.full((k,), 1 / k)), ("all targets", n.double() / n.sum())):
        difference = gradient(masked_lm, window, weights.double()) - reference
        errors[name].append((difference.norm() / reference.norm()).item())

# %%
print("divided by all targets of the window: error below 1e-12:", max(errors["all targets"]) < 1e-12)
print("divided by k: error of 10% or more in some window:", max(errors["loss / k"]) > 0.1)
assert max(errors["all targets"]) < 1e-12 < 0.1 < max(errors["loss / k"])

# %% tags=["nbval-ignore-output"]
teach.show(
    figures.accumulation_bug(counts[:k], errors),
    alt="Left: under loss divided by k, one target in a micro-batch with few targets weighs several times its "
    "fair share. Right: the gradient is far off in every window; dividing by all targets is exact to rounding.",
)
assert len(errors["loss / k"]) == 5

# %% [markdown]
# ### The last window is short
#
# Seven micro-batches in windows of three leave a last window of one. It must be trained on (it is data like any
# other), and it must be divided by *its own* number of targets, not by what a full window would have had.
# `course_utils.training.loop` does both: `windows` yields the short one, `share_of_loss` divides by the window's
# targets.

# %%
from course_utils.training.loop import LoopConfig, share_of_loss, summed_cross_entropy, train, windows

teach.show_source(share_of_loss)
print("window sizes:", [len(window) for window in windows(micro_batches[:7], 3)])

# %% [markdown]
# Two optimizer runs over three windows: seven micro-batches with accumulation 3, and the three big batches.


# %%
def weights_after(batches, accumulation):
    model = tiny_masked_lm()
    model.train = lambda mode=True: model  # stay in evaluation mode: no dropout in this comparison
    config = LoopConfig(max_steps=3, accumulation=accumulation)
    train(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), config, loss_function=summed_cross_entropy)
    return list(model.parameters())


seven = micro_batches[:7]
difference = worst(weights_after(seven, 3), weights_after([big_batch(window) for window in windows(seven, 3)], 1))
print("same weights after 3 steps, within 1e-12:", difference <= 1e-12)
assert difference <= 1e-12

# %% [markdown]
# ## 8 · The evaluation loop
#
# Evaluation differs from training in three ways, and each is a line you can forget:
#
# - `model.eval()` switches dropout off (and `model.train()` back on afterwards);
# - `torch.no_grad()` keeps no activations for a backward pass that never comes: less memory, less time;
# - results are collected over **all rows** and reduced once. The mean of batch means is another number when the last
#   batch is shorter.

# %%
from course_utils.training.evaluation import evaluate, predict

teach.show_source(predict)

# %% [markdown]
# ## 9 · The loop in one piece
#
# Here is all of it. Read the inside of `for window in ...`: you have met every line. The order is that of transformers'
# `Trainer`, so lesson 03 can show that both give the same losses, step by step.

# %%
teach.show_source(train)

# %% [markdown]
# The data comes from `ShuffledBatches`: a new random order each epoch, and a position that can be saved. With
# `lengths`, rows of similar length share a batch. That halves the time of the run below: a step takes as long as its
# padded size asks for, and in a batch of rows drawn blindly more than half is padding. Lesson 02 shows how the
# grouping works and what it costs.

# %%
from course_utils.training.loop import ShuffledBatches

lengths = [len(row["input_ids"]) for row in rows["train"]]
train_batches = ShuffledBatches(rows["train"], batch_size, collate, seed=seed, lengths=lengths)


def padding_share(batches):
    masks = [batch["attention_mask"] for batch in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


blind = padding_share(ShuffledBatches(rows["train"], batch_size, collate, seed=seed))
grouped = padding_share(ShuffledBatches(rows["train"], batch_size, collate, seed=seed, lengths=lengths))
print(f"padding in an epoch: rows drawn blindly {blind:.0%}, grouped by length {grouped:.0%}")
assert grouped < blind / 3 or source != "local"

# %% [markdown]
# Validation and test rows are simply sorted by length: their order does not matter.

# %%
from course_utils.training.schedules import make_scheduler


def held_out(split):
    by_length = sorted(rows[split], key=lambda row: len(row["input_ids"]))
    return list(ShuffledBatches(by_length, 100, collate, shuffle=False))


validation, test = held_out("validation"), held_out("test")
print(f"{len(train_batches)} batches an epoch, {max_steps * accumulation / len(train_batches):.1f} epochs")

# %%
torch.manual_seed(seed)
model = load_classifier(num_labels, source)
optimizer = ForeachAdamW(parameter_groups(model, weight_decay=0.01), lr=2e-3 if source == "local" else 5e-5)
scheduler = make_scheduler(optimizer, "linear", warmup_steps=max_steps // 10, max_steps=max_steps)
config = LoopConfig(max_steps, accumulation, max_grad_norm=1.0, eval_every=max(1, max_steps // 6))

# %% [markdown]
# The main run: about half a minute on two cores.

# %% tags=["nbval-ignore-output"]
history = train(model, train_batches, optimizer, config, scheduler, evaluate=lambda: evaluate(model, validation))
for record in history:
    if "eval_loss" in record:
        print({name: round(record[name], 3) for name in ("step", "eval_loss", "eval_accuracy", "eval_macro_f1")})
assert len(history) == max_steps
first, last = ([record["loss"] for record in part] for part in (history[:20], history[-20:]))
assert max_steps < 200 or sum(last) / len(last) < sum(first) / len(first)

# %% tags=["nbval-ignore-output"]
teach.show(
    figures.training_curve(history, config.max_grad_norm),
    alt="The training loss falls steeply, then slowly, and drops again when the second epoch begins; the "
    "validation loss levels off above it. Below, the gradient norm lies above the clipping threshold nearly always.",
)
assert all(record["grad_norm"] > 0 for record in history)

# %% [markdown]
# Two things to read off. The training loss drops when the second epoch begins (step 375 of 750), because the model
# meets every row again. The validation loss does not follow: from here on the model also learns rows by heart.
# Validation accuracy still rises a little: the loss punishes confident mistakes, accuracy does not. And the gradient
# norm stays above 1 nearly all the time, so here clipping acts in almost every step. That is common with small models.
# Adam divides by the gradient's size anyway; what clipping changes is that no single batch dominates the averages.
#
# The test split is used once, at the end. It chose nothing: depth, dropout, length limit and learning rate were
# compared on the validation split, three seeds each (`bench/bench_classifier.py`).

# %% tags=["nbval-ignore-output"]
result = evaluate(model, test)
print(f"{'':22}accuracy  macro-F1")
for name, row in {"majority": majority, "TF-IDF + regression": tfidf, "our encoder": result}.items():
    print(f"{name:22}{row['accuracy']:8.3f}{row['macro_f1']:10.3f}")
assert 0 <= result["macro_f1"] <= 1

# %%
if max_steps >= 700 and source == "local":
    assert result["accuracy"] > tfidf["accuracy"] > 0.6 and result["macro_f1"] > tfidf["macro_f1"] > 0.48
    print("accuracy and macro-F1 above those of TF-IDF + logistic regression: True")
else:
    print("run too short to judge (or another data set)")

# %% [markdown]
# The margin over word weights is small: sentences are short, and words give most libraries away. It is also larger
# than chance. Another seed moves both numbers by about a hundredth, and so does another processor: it rounds
# differently, and training amplifies that. The three seeds of `bench/bench_classifier.py` all stay above the baseline.
# The margin is what 12,000 labels buy an encoder that has never read anything else. Lesson 02 measures what reading
# beforehand (pretraining) adds.
#
# ## 10 · Stop and resume as if nothing had happened
#
# Machines are preempted, jobs hit time limits, laptops close. A checkpoint must hold *everything the next step depends
# on*:
#
# | part | without it |
# |---|---|
# | weights | nothing to go on from |
# | optimizer: $m$, $v$, step counts | the first steps after the resume are uncorrected and too large |
# | scheduler | the rate warms up again |
# | position in the data, and its order | some rows twice in this epoch, others never |
# | random number generators | other dropout masks: a different, unrepeatable run |
#
# The experiment runs 8 steps straight, then 4 steps, a checkpoint, and 4 more in fresh objects with another seed:
# once with everything restored, and once for each part left out. *Equal* means every bit of every weight.

# %%
import tempfile
from pathlib import Path

from course_utils.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def fresh(seed):
    torch.manual_seed(seed)
    model = load_classifier(num_labels, "local", **small)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    batches = ShuffledBatches(rows["train"], 8, collate, seed=seed)
    return model, optimizer, make_scheduler(optimizer, "linear", 2, 8), batches


def go(model, optimizer, scheduler, batches, steps):
    train(model, batches, optimizer, LoopConfig(steps), scheduler)
    return [p.detach().clone() for p in model.parameters()]


straight = go(*fresh(seed), steps=8)


# %%
def interrupted(leave_out=None):
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer, scheduler, batches = fresh(seed)
        go(model, optimizer, scheduler, batches, steps=4)
        checkpoint = save_checkpoint(folder, 4, model, optimizer, scheduler, batches)
        after = dict(zip(("model", "optimizer", "scheduler", "batches"), fresh(seed + 1), strict=True))
        untouched = copy.deepcopy(after[leave_out].state_dict()) if leave_out in after else None
        load_checkpoint(checkpoint, **after)
    if untouched is not None:
        after[leave_out].load_state_dict(untouched)
    if leave_out == "random generators":
        torch.manual_seed(seed + 1)
    return go(*after.values(), steps=4)


# %%
def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


print("everything restored, equal to the straight run:", equal(interrupted(), straight))
assert equal(interrupted(), straight)
for part in ("optimizer", "scheduler", "batches", "random generators"):
    same = equal(interrupted(leave_out=part), straight)
    print(f"without {part}, equal: {same}")
    assert not same

# %% [markdown]
# ### Killed in the middle
#
# A checkpoint is also worthless if the machine dies *while it is written* and takes the previous one along.
# `save_checkpoint` writes into a folder with a temporary name, waits until the bytes are on the disk, and renames it. A
# rename either happened or it did not, so a folder called `step-...` is always complete.

# %%
teach.show_source(save_checkpoint)

# %% [markdown]
# Now for real. `course_utils/recipes/train_by_hand.py` is this lesson as a program; here with a tiny model. It is
# started twice, side by side, with the same seed. One process runs to its end. The other gets `SIGKILL`: no clean-up,
# no last words.

# %%
import os
import signal
import subprocess
import sys

program = [sys.executable, "-m", "course_utils.recipes.train_by_hand", "--source", "local", "--seed", str(seed)]
program += ["--max_steps", "30", "--save_every", "5", "--log_every", "1", "--batch_size", "8"]
program += ["--hidden_size", "32", "--num_hidden_layers", "1", "--folder"]
one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # another number of threads splits sums in another way


def start(folder):
    return subprocess.Popen([*program, folder], env=one_thread, stdout=subprocess.PIPE, text=True)


def kill_at(process, step):
    """Read what the program prints until it reports the step, then kill it; returns how it ended."""
    for line in process.stdout:
        if line.startswith(f"step {step} "):
            os.kill(process.pid, signal.SIGKILL)
    return process.wait()


# %%
scratch = tempfile.TemporaryDirectory()
whole, killed = (str(Path(scratch.name, name)) for name in ("whole", "killed"))
undisturbed, victim = start(whole), start(killed)
print("ended by SIGKILL:", kill_at(victim, step=13) == -signal.SIGKILL)
saved = int(latest_checkpoint(killed).name.removeprefix("step-"))
print("its newest checkpoint lies between step 5 and the end:", 5 <= saved < 30)

# %% [markdown]
# The same command once more, on the folder that the killed process left behind. It finds the checkpoint and goes on.

# %%
import json

resumed = start(killed)
for process in (resumed, undisturbed):
    process.communicate()
results = [json.loads(Path(folder, "result.json").read_text()) for folder in (killed, whole)]
steps_made = [result["steps_in_this_process"] for result in results]
print("resumed run: the rest only. Uninterrupted run: all 30 steps:", steps_made == [30 - saved, 30])

# %%
weights = [(latest_checkpoint(run) / "model.safetensors").read_bytes() for run in (whole, killed)]
print("final weights bitwise equal:", weights[0] == weights[1])
assert weights[0] == weights[1] and steps_made == [30 - saved, 30]
scratch.cleanup()

# %% [markdown]
# Damage is found when a checkpoint is read, not three days later: sizes and checksums lie beside the files.

# %%
from course_utils.training.checkpoint import CheckpointError

with tempfile.TemporaryDirectory() as folder:
    objects = fresh(seed)
    checkpoint = save_checkpoint(folder, 1, *objects)
    with open(checkpoint / "model.safetensors", "rb+") as file:
        file.truncate(1000)
    try:
        load_checkpoint(checkpoint, *objects)
    except CheckpointError as error:
        print(str(error).replace(folder, "FOLDER"))

# %% [markdown]
# ## What goes wrong
#
# Five mistakes. None raises an error; each is planted here, measured, and caught by a check worth keeping in your own
# code.
#
# ### 1 · `loss / k` with ragged micro-batches
#
# Measured in section 7: the gradient is off by tens of percent. For a batch whose micro-batches hold 90 targets and
# 10 targets, a target of the second weighs nine times one of the first. **Check:** one window, float64, against the
# big batch.


# %%
def accumulates_correctly(weights_of_window):
    window, n = micro_batches[:k], counts[:k]
    reference = gradient(masked_lm, [big_batch(window)], [1.0])
    return worst([gradient(masked_lm, window, weights_of_window(n))], [reference]) < 1e-10


print("loss / k passes the check:", accumulates_correctly(lambda n: [1 / len(n)] * len(n)))
print("all targets passes the check:", accumulates_correctly(lambda n: [c / sum(n) for c in n]))
assert not accumulates_correctly(lambda n: [1 / len(n)] * len(n))

# %% [markdown]
# ### 2 · The scheduler is stepped once per micro-batch
#
# With accumulation 4 the schedule runs four times too fast: the rate is zero after a quarter of the run, and the
# other three quarters train nothing. The loss curve only looks *converged*. **Check:** after the run, the scheduler
# has counted as many steps as the optimizer.


# %%
def schedule_of_run(per_micro_batch, steps=60, accumulation=4):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make_scheduler(optimizer, "linear", 6, steps), []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(accumulation if per_micro_batch else 1):
            scheduler.step()
    return factors, scheduler.last_epoch == steps


right, passes = schedule_of_run(False)
wrong, wrong_passes = schedule_of_run(True)
print("check passes, right and wrong:", passes, wrong_passes)
print(f"steps with a learning rate above zero: right {sum(f > 0 for f in right)}, wrong {sum(f > 0 for f in wrong)}")
assert passes and not wrong_passes

# %%
teach.show(
    figures.learning_rate_bug(right, wrong, 4),
    alt="The intended rate rises and falls over the whole run. Stepped per micro-batch it rises four times faster and "
    "is zero after a quarter of the run.",
)

# %% [markdown]
# ### 3 · `zero_grad` is forgotten
#
# Every step then uses the sum of *all* gradients since the start: an endless momentum that answers to batches from long
# ago. Adam hides the growing length, so the loss falls at first, and then less than it should. **Check:** the gradient
# before a step equals that of a fresh backward pass on the same batch.


# %%
def run_with(zero, steps=60):
    torch.manual_seed(seed)
    model = load_classifier(num_labels, "local", **small).eval()
    optimizer, losses, norms = ForeachAdamW(model.parameters(), lr=3e-3), [], []
    batches = ShuffledBatches(rows["train"], 16, collate, seed=seed)
    for _, batch in zip(range(steps), batches, strict=False):
        loss = model(**batch).loss
        loss.backward()
        norms.append(clip_grad_norm(model.parameters(), float("inf")).item())
        optimizer.step()
        if zero:
            model.zero_grad()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20, norms


# %% tags=["nbval-ignore-output"]
(good_loss, good_norms), (bad_loss, bad_norms) = run_with(zero=True), run_with(zero=False)
print(f"mean loss of the last 20 steps: with zero_grad {good_loss:.2f}, without {bad_loss:.2f}")
print(f"gradient norm at the last step: with {good_norms[-1]:.1f}, without {bad_norms[-1]:.1f}")
assert bad_norms[-1] > 3 * good_norms[-1] and bad_loss > good_loss


# %%
def gradients_are_fresh(model, batch):
    """To be called between backward and step: is .grad this batch's gradient and nothing else?"""
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(**batch).loss.backward()
    return worst(found, [p.grad for p in model.parameters()]) < 1e-6


tiny = load_classifier(num_labels, "local", **small).eval()
two = [collate(rows["train"][:8]), collate(rows["train"][8:16])]
for zero in (True, False):
    tiny.zero_grad()
    for batch_of_two in two:
        if zero:
            tiny.zero_grad()
        tiny(**batch_of_two).loss.backward()
    print(f"zero_grad {'called' if zero else 'forgotten'}: check passes:", gradients_are_fresh(tiny, two[1]))

# %% [markdown]
# ### 4 · Evaluation without `model.eval()`
#
# Dropout stays on: predictions get worse, and differ each time you ask. **Check:** evaluate twice; the results must
# be equal.


# %%
def careless_predictions(model, batches):
    with torch.no_grad():  # ... but no model.eval()
        return torch.cat([model(**{n: t for n, t in b.items() if n != "labels"}).logits for b in batches])


model.train()
few = validation[::3]
print("careless, twice equal:", torch.equal(careless_predictions(model, few), careless_predictions(model, few)))
print("predict(), twice equal:", torch.equal(predict(model, few)[0], predict(model, few)[0]))
print("and predict() leaves the model in training mode:", model.training)

# %% tags=["nbval-ignore-output"]
labels = torch.cat([b["labels"] for b in few])
noisy = (careless_predictions(model, few).argmax(-1) == labels).float().mean()
clean = (predict(model, few)[0].argmax(-1) == labels).float().mean()
print(f"accuracy on a third of the validation split: with dropout {noisy:.3f}, without {clean:.3f}")
assert not torch.equal(careless_predictions(model, few), predict(model, few)[0])

# %% [markdown]
# ### 5 · The last, partial window is dropped
#
# `if (i + 1) % accumulation == 0: step()` is how accumulation is usually written. When the epoch ends in the middle
# of a window, its gradients are either thrown away, or, worse, left in `.grad` and mixed into the next epoch.
# **Check:** targets seen by optimizer steps in one epoch = targets in the data set.


# %%
def targets_trained_on(batches, accumulation):
    """The usual modulo loop."""
    seen, waiting = 0, 0
    for i, batch in enumerate(batches):
        waiting += int(batch["labels"].ne(IGNORED).sum())
        if (i + 1) % accumulation == 0:  # optimizer.step() would stand here
            seen, waiting = seen + waiting, 0
    return seen


every = sum(counts[:7])
by_windows = sum(sum(int(b["labels"].ne(IGNORED).sum()) for b in window) for window in windows(seven, 3))
print("modulo loop sees all targets:", targets_trained_on(seven, 3) == every)
print("windows() sees all targets:", by_windows == every)
assert targets_trained_on(seven, 3) < every == by_windows

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell and the one below it. The checker says what it tried and what it expected.
#
# ### 01.1 · Bias correction
#
# Return `(m_hat, v_hat)`. `step` counts from 1.


# %%
def bias_correct(m, v, step, beta1, beta2): ...


# %%
teach.check("01.1", bias_correct)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("01.1")`, and if you want to compare: `teach.show_solution("01.1")`.
#
# </details>
#
# ### 01.2 · Decoupled decay
#
# `direction` is Adam's $\hat m / (\sqrt{\hat v} + \epsilon)$, already computed. Return the new weight as a new tensor.


# %%
def decayed_update(p, direction, lr, weight_decay): ...


# %%
teach.check("01.2", decayed_update)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("01.2")`, and if you want to compare: `teach.show_solution("01.2")`.
#
# </details>
#
# ### 01.3 · Token-weighted accumulation
#
# `loss_sums[i]` is the *summed* loss of micro-batch `i` (a tensor that remembers its graph), `counts[i]` its number of
# targets. Return the loss of the whole window, ready for `backward()`.


# %%
def window_loss(loss_sums, counts): ...


# %%
teach.check("01.3", window_loss)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("01.3")`, and if you want to compare: `teach.show_solution("01.3")`.
#
# </details>
#
# ### 01.4 · Cosine schedule with warm-up
#
# Section 5 has one; write it from memory. Return the factor at `step`.


# %%
def my_cosine(step, warmup_steps, max_steps): ...


# %%
teach.check("01.4", my_cosine)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("01.4")`, and if you want to compare: `teach.show_solution("01.4")`.
#
# </details>
#
# ## Recap
#
# - Forward, loss, backward, step, zero. The first loss should be near $\ln(\text{classes})$, and one batch should
#   overfit.
# - Adam divides a smoothed gradient by its typical size. Bias correction repairs the start; $\epsilon$ is a floor,
#   outside the root; AdamW's decay acts on the weights, at the same rate for all.
# - Matrices are decayed, biases and norms are not. The rate warms up, then decays, once per *optimizer* step.
# - Clipping scales all gradients by one factor.
# - Accumulation equals the big batch when you divide by the targets of the whole window, the short last one included.
# - A checkpoint holds weights, optimizer, scheduler, data position and random states, and appears by a rename.
#
# ### You may see
#
# | elsewhere | today |
# |---|---|
# | `from transformers import AdamW` | `torch.optim.AdamW` |
# | `optim="adamw_hf"` | `optim="adamw_torch_fused"` (the default) |
# | `warmup_ratio=0.1` | `warmup_steps=0.1` (a value below 1 is a share of the run) |
# | `torch.load(path)` of an untrusted file | `torch.load(path, weights_only=True)`, the default since torch 2.6 |
# | `loss = loss / accumulation_steps` | divide by the targets of the window |
#
# ## Quiz

# %% [markdown]
# **1.** Your first training loss on a 10-class problem is 9.7. What do you suspect?
#
# <details><summary>Answer</summary>
#
# A model that knows nothing has a loss of about $\ln 10 = 2.3$. At 9.7 it is *confidently wrong*: logits are too
# large (a broken initialisation, features that are not normalised), or labels and classes do not line up. Do not
# train; look.
#
# </details>

# %% [markdown]
# **2.** Why does $\epsilon = 10^{-8}$ inside the root behave so differently from outside?
#
# <details><summary>Answer</summary>
#
# Inside, it is compared with $g^2$, so it acts like $\sqrt{10^{-8}} = 10^{-4}$ on the scale of $g$. Gradients below
# $10^{-4}$ are common in large models; they would hardly move their weights.
#
# </details>

# %% [markdown]
# **3.** You double `accumulation` and keep the number of epochs. What happens to the number of optimizer steps, and
# what should you reconsider?
#
# <details><summary>Answer</summary>
#
# It halves. The schedule's `max_steps` and `warmup_steps` are counted in optimizer steps and must be halved too. The
# effective batch doubled, so the gradient is less noisy, and a somewhat higher learning rate may be best.
#
# </details>

# %% [markdown]
# **4.** A resumed run gives the right loss at its first step and then drifts away from the uninterrupted one. Which
# part of the checkpoint is probably missing?
#
# <details><summary>Answer</summary>
#
# The first loss depends on weights, data position and dropout masks: these are fine. The *second* depends on the
# update: the optimizer's averages or the scheduler's step were not restored.
#
# </details>

# %% [markdown]
# **5.** Why compare optimizers in float64 and on recorded gradients rather than by training two models?
#
# <details><summary>Answer</summary>
#
# Training amplifies rounding: torch's own fused and for-loop versions end with visibly different weights when each
# trains its own model in float32. On one sequence of gradients nothing is fed back, and in float64 a wrong formula
# stands out from rounding by ten orders of magnitude.
#
# </details>

# %% [markdown]
# **Next:** lesson 02 opens the box that this lesson kept closed: how sentences become batches, what padding costs,
# and how to pay less for it.
