# %% tags=["parameters"] slideshow={"slide_type": "skip"}
source = "local"
max_steps = 120
seed = 0

# %% slideshow={"slide_type": "skip"}
from collections import Counter

import torch
from torch import nn
from transformers import DataCollatorWithPadding

from course_utils import teach
from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.lessons.lesson_01 import comparisons, diagrams, figures
from course_utils.models import load_classifier, load_tokenizer
from course_utils.training.evaluation import evaluate
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import AdamW, ForeachAdamW, parameter_groups
from course_utils.training.schedules import cosine_with_warmup, linear_with_warmup, make_scheduler

teach.start(source=source, max_steps=max_steps, seed=seed)
data, tokenizer = load_classification(source), load_tokenizer(source)
names = data["train"].features["label"].names
collate = DataCollatorWithPadding(tokenizer)


def tokenize(split):
    encoded = tokenizer(list(data[split]["text"]), truncation=True, max_length=48)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], data[split]["label"], strict=True)
    return [dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in columns]


rows = tokenize("train")
held_out = sorted(tokenize("validation"), key=lambda row: len(row["input_ids"]))
validation = list(ShuffledBatches(held_out, 100, collate, shuffle=False))

# %% [markdown] slideshow={"slide_type": "slide"}
# # 01 · The training loop
#
# Five lines, written by hand once, and what can go wrong in each of them

# %% [markdown] slideshow={"slide_type": "notes"}
# Welcome. Everything later in the course, Trainer, data parallel, FSDP, DeepSpeed, is this loop with parts moved
# around. Today we write it ourselves. Every number in the lesson is measured while it runs, or in a bench that the
# lesson names.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where this leads
#
# The encoder that this loop trains beats word weights, by little.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
scores = comparisons.recorded("classifier")
encoder = [run["test"] for run in scores["compared"][0]["runs"]]
teach.show(figures.scores({"word weights": [scores["word_weights_test"]], "encoder, 3 seeds": encoder}))
for score, bar in scores["word_weights_test"].items():
    teach.claim(f"every seed is above word weights in {score}", min(run[score] for run in encoder) > bar)

# %% [markdown] slideshow={"slide_type": "notes"}
# Which of ten libraries does a sentence of documentation come from? The data is on everybody's disk. The bar to clear
# is logistic regression on word weights, which takes seconds. These test rows had a say in two settings; the lesson
# ends with rows that had none. The margin is small: 12,000 labels for an encoder that has never read anything else.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Classes are far from equal
#
# Accuracy rewards the large classes, so macro-F1 is reported too.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.class_sizes(Counter(names[label] for label in data["train"]["label"])))

# %% [markdown] slideshow={"slide_type": "notes"}
# Always saying the largest class looks useful in accuracy. So we also report macro-F1: F1 of each class, averaged, each
# class counting the same. A rare class that is never found costs a tenth of the score.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From token ids to logits
#
# Every tensor of the lesson has one of these shapes.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.shape_flow(8, 28, 128, 10))

# %% [markdown] slideshow={"slide_type": "notes"}
# Say the words: embedding, a vector per token; attention, each token's vector takes in a mixture of all others; a norm
# keeps the sizes in order; the mean over the real tokens; the head, two layers. Every tensor of the lesson has one of
# these shapes.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The loop
#
# ```python
# for batch in batches:
#     outputs = model(**batch)        # forward
#     loss = outputs.loss             # loss
#     loss.backward()                 # d loss / d p  into  p.grad
#     optimizer.step()                # move every p
#     model.zero_grad()               # backward ADDS: clear it
# ```
#
# - the first loss: $\ln(\text{classes})$ or a few tenths above, on some hundred rows
# - one batch, repeated, must overfit

# %% [markdown] slideshow={"slide_type": "notes"}
# Ask the room what happens without the last line before you go on. Then the two free tests of any new script: the
# first loss is ln 10 = 2.3 for ten classes or a few tenths above, and a handful of rows can be learnt by heart. Eight
# rows are too few for the first test. If one of the two fails, do not start the long run.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Four changes: SGD to AdamW
#
# ```python
# direction = g                                    # SGD
# m = 0.9 * m + 0.1 * g;  direction = m            # momentum
# v = 0.999 * v + 0.001 * g * g
# direction = g / (v.sqrt() + eps)                 # RMS step
# direction = m_hat / (v_hat.sqrt() + eps)         # Adam
#
# p = p - lr * decay * p - lr * direction          # + decay: AdamW
# ```

# %% [markdown] slideshow={"slide_type": "notes"}
# One line for all of them, the last one; only the direction changes. The hats are bias correction, on the slide after
# next. Epsilon stands outside the root: inside it 1e-8 would act like 1e-4 and swallow small gradients.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What each change is worth
#
# Dividing by the root of `v` is nearly everything here.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
race = comparisons.Race(rows, collate, validation, len(names), len(tokenizer))
for name, rule in comparisons.RULES.items():
    race.run(name, rule, comparisons.RATES[name], decay=0.1 if name == "AdamW" else 0)
teach.show(figures.learning_curves(race.curves))

# %% [markdown] slideshow={"slide_type": "notes"}
# A cheap model, word vectors and a linear layer, three seeds, each rule with its best learning rate on validation
# data. Dividing by the root of v is nearly everything here, likely because most vectors belong to rare words (not
# measured). Momentum shows nothing. Say that this is one model: the point is to ask.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Bias correction
#
# Without it the first steps are several times too long.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
steps = range(1, 5001)
teach.show(figures.bias_correction(steps, [(1 - 0.9**t) / (1 - 0.999**t) ** 0.5 for t in steps]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Both averages start at zero. For a constant gradient m is g times one minus beta to the t; divide it out. v forgets a
# hundred times more slowly, so without the correction the steps are three to six times too long, for hundreds of steps,
# when we know the direction least.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the learning rate means under Adam
#
# The length of a step, in learning rates:
#
# - gradients agree: about **1**
# - pure noise: about **0.2**
# - one gradient after a long silence: up to **3.2**
# - the scale of the gradients: cancels
#
# > A rare word's vector makes the longest steps.

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson measures these four. The bound is one minus beta1 over the root of one minus beta2. Exercise 01.1: what do
# alternating signs give? Let the room guess.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Adam + L2 is not AdamW
#
# L2 is divided by the gradient's size; decoupled decay is not.


# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
def decay_path(make_optimizer, scale, steps=600, copies=200):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.ones(copies))
    optimizer, path = make_optimizer([p]), [1.0]
    for _ in range(steps):
        p.grad = scale * torch.randn(copies, generator=generator)
        optimizer.step()
        path.append(p.mean().item())
    return path


versions = {"AdamW": AdamW, "Adam + L2": torch.optim.Adam}
paths = {
    f"{version}, {size} gradients": decay_path(lambda p, c=cls: c(p, lr=2e-3, weight_decay=0.5), scale)
    for version, cls in versions.items()
    for size, scale in {"large": 10.0, "small": 0.01}.items()
}
teach.show(figures.decay_paths(paths))

# %% [markdown] slideshow={"slide_type": "notes"}
# Pure noise as gradient, so decay is the only force. Left: both weights shrink at the same rate. Right: L2 joins the
# gradient and is divided by its size, so the weight with large gradients keeps nearly everything. That is what
# "decoupled" in AdamW means. The lesson's AdamW, and the course's three versions of it, equal torch's to 1e-12.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Warm up, then decay
#
# Small steps while the averages are young, small steps at the end.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
curves = {
    name: [1e-3 * schedule(step, 50, 500) for step in range(501)]
    for name, schedule in {"linear": linear_with_warmup, "cosine": cosine_with_warmup}.items()
}
teach.show(figures.schedules(curves, 50))

# %% [markdown] slideshow={"slide_type": "notes"}
# Warm-up because Adam's averages rest on one batch at first. At step 0 the rate is 0: the first step changes nothing,
# in transformers too. Decay because late error is mostly noise between batches, and small steps average it out. One
# step of the scheduler per optimizer step, not per micro-batch. Exercise 01.2 asks for a third shape.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Clip by global norm: an outlier under Adam
#
# One outlier: a step that is too long, then many that are too short.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
around = comparisons.around_outlier(comparisons.adam, limit=1.1)
teach.show(figures.outlier(range(-20, 100), {name: lengths[180:] for name, lengths in around.items()}))

# %% [markdown] slideshow={"slide_type": "notes"}
# One norm over all gradients, one factor for all: the direction stays. With SGD a gradient 100 times too large makes a
# step 100 times too long. Under Adam the step is some ten times as long as the others, and what follows is shorter for
# long, because v remembers.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What do they buy?
#
# Right of zero it helps. Only the falling rate clearly does here.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
parts = {"warmup": "no warm-up", "falling": "rate does not fall"}
parts |= {"clip": "no clipping", "groups": "decay on everything"}
teach.show(figures.because(comparisons.recorded("because")["validation_loss"], parts))

# %% [markdown] slideshow={"slide_type": "notes"}
# bench/bench_because.py: a tiny encoder, one part left out at a time, twelve seeds, paired, 95 percent intervals. Left
# the best rate on validation data, right three times that. The falling rate helps at both, on the right only just;
# decay groups show a thousandth on the left, the other intervals contain zero. That large runs need the others is
# commonly believed; it is not shown here. Ask what your own run says.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Accumulation: one window, one step
#
# Every share is divided by the targets of the **whole** window.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.accumulation_window([12, 3, 8]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Effective batch = per-device batch times devices times accumulation. Each micro-batch adds its share: the sum of its
# losses over all targets of the window. Clip, step, schedule, zero once. The short last window counts its own targets.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## `loss / k` is another gradient
#
# Off by half the length of the gradient, and nothing is raised.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
generator = torch.Generator().manual_seed(seed)
counts = [12, 3, 8, 5]
layer = nn.Linear(16, 10, dtype=torch.float64)


def gradient(pieces, weights):
    layer.zero_grad()
    for (x, y), weight in zip(pieces, weights, strict=True):
        (weight * nn.functional.cross_entropy(layer(x), y)).backward()
    return torch.cat([p.grad.flatten() for p in layer.parameters()])


errors = {"loss / k": [], "all targets": []}
for _ in range(5):
    pieces = [
        (
            torch.randn(n, 16, generator=generator, dtype=torch.float64),
            torch.randint(0, 10, (n,), generator=generator),
        )
        for n in counts
    ]
    reference = gradient([tuple(map(torch.cat, zip(*pieces, strict=True)))], [1.0])
    for name, weights in (("loss / k", [1 / 4] * 4), ("all targets", [n / sum(counts) for n in counts])):
        errors[name].append(((gradient(pieces, weights) - reference).norm() / reference.norm()).item())
teach.show(figures.accumulation_bug(counts, errors["loss / k"]))
teach.claim("divided by all targets: within 1e-12", max(errors["all targets"]) < 1e-12)

# %% [markdown] slideshow={"slide_type": "notes"}
# What is measured here: a random linear layer on random data, with the numbers of targets of the lesson's window. Means
# divided by k are right only if all counts are equal, which they are not: padding, masking, the short last window.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Evaluation: three lines to forget
#
# - `model.eval()`: dropout off; back to the mode it was in afterwards
# - `torch.no_grad()`: no activations kept
# - sum over **all rows**, divide once: the mean of batch means is another number
#
# > Evaluate twice. If the two results differ, dropout is on.

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 01.4 has a function with all of these mistakes and one more. The check at the bottom is worth having in a
# test. The mean of batch means is wrong as soon as the last batch is shorter.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A checkpoint appears by a rename
#
# Killed at any moment, the newest folder is a whole checkpoint.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.save_timeline())

# %% [markdown] slideshow={"slide_type": "notes"}
# It holds what the next step depends on: weights; the optimizer's m, v and step counts; the scheduler; the position
# in the data; random states. The lesson leaves out one part at a time and shows when the resumed run first differs. A
# folded section kills a real process with SIGKILL, starts it again and compares the final weights: every bit is
# equal.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Five silent mistakes
#
# | mistake | check |
# |---|---|
# | `loss / k`, ragged batches | one window against the big batch |
# | scheduler per micro-batch | its step count = optimizer's |
# | `zero_grad` forgotten | gradients are empty before a window |
# | no `model.eval()` | evaluate twice |
# | last window dropped, or left in `.grad` | targets seen = targets there |

# %% [markdown] slideshow={"slide_type": "notes"}
# None raises an error. Each is planted and measured in the lesson. Take the right column home: five assertions that
# fit into any training script. The third one stands before the forward pass, so dropout does not matter.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A real run
#
# 120 steps, run when this deck was built. The lesson runs 500.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
torch.manual_seed(seed)
model = load_classifier(len(names), source)
optimizer = ForeachAdamW(parameter_groups(model, 0.01), lr=1e-3)
batches = ShuffledBatches(rows, 32, collate, seed=seed, lengths=[len(row["input_ids"]) for row in rows])
history = train(
    model,
    batches,
    optimizer,
    LoopConfig(max_steps, eval_every=max_steps // 5),
    make_scheduler(optimizer, "linear", max_steps // 10, max_steps),
    evaluate=lambda: evaluate(model, validation),
)
teach.show(figures.training_curve(history, 1.0, len(batches)))

# %% [markdown] slideshow={"slide_type": "notes"}
# A short run, made when this deck was built; the lesson's run is four times as long and reaches the second epoch, where
# the training loss drops and the validation loss does not. The first validation point may lie below the blue line: that
# line is a mean over the last 25 steps. The norm's axis is logarithmic. With a limit of 1 nearly every step is clipped;
# under Adam that changes little.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - 01.1 predict: how long is Adam's step?
# - 01.2 write: warm-up, plateau, fall
# - 01.3 vary: the same run in other pieces
# - 01.4 debug: repair an evaluation
# - 01.5 write: **the whole loop**
#
# `teach.check(...)` says what it tried, what it expected, and gives a hint.

# %% [markdown] slideshow={"slide_type": "notes"}
# Half an hour. The stubs are in the notebook, each after its section. Whoever finishes 01.5 reads train() in
# course_utils/training/loop.py. Next lesson: what is inside a batch, and what padding costs.
