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
# # 07 · Beyond text: any nn.Module, two optimizers, your own operator
#
# `Trainer` is known for language models, but nothing in it knows about words. Here it trains two models that no library
# brings: a classifier of point clouds and a codec, which turns images into bytes and back. Then we write an
# **operator** of our own, a function of tensors that torch knows by name. A Deeper section trains a third model with
# it, a denoiser.
#
# **You will be able to**
#
# - say what the Trainer needs of a model, and give it any `nn.Module`;
# - write a collator for examples of different sizes, and notice when a column of the data never arrives;
# - train one model with two losses and two optimizers, save both and resume bit for bit;
# - write an operator with its own backward, tell autocast and `torch.compile` about it, and prove it right.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (optimizers, checkpoints), 02 (collators), 03 (Trainer).

# %% tags=["parameters"]
source = "local"  # both values use the same images: scikit-learn brings them along
max_steps = 400  # optimizer steps of each main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Look first: digits as points
#
# scikit-learn brings 1,797 scanned digits of 8 x 8 pixels. `load_point_clouds` turns each into a **point cloud**: 64
# points that fall where the ink is. A point is three numbers: x, y and how much ink its pixel has.

# %%
import torch

from course_utils.data import load_point_clouds

full = max_steps >= 400  # only then are trained models judged
torch.set_num_threads(1)  # for tiny models a second thread costs time
clouds = load_point_clouds(points=64, seed=seed).with_format("torch")
print({split: len(rows) for split, rows in clouds.items()})
row = clouds["train"][0]
print("label", row["label"].item(), "points", tuple(row["points"].shape), "first two:")
print(row["points"][:2].numpy().round(1))

# %% [markdown]
# The order of the points means nothing. A network that flattens the 64 x 3 numbers would have to learn that from
# examples; **PointNet** has it built in. Here is the end result; section 3 takes it apart.

# %% [markdown]
# One function trains everything in this lesson. `quiet_trainer` (lesson 03) is `Trainer` without progress bars;
# `StackingCollator` (lesson 02) stacks tensors of equal shape and renames `label` to `labels`.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import set_seed

from course_utils.data.collators import StackingCollator
from course_utils.training.settings import quiet_trainer

scratch = TemporaryDirectory()
usual = {"data_collator": StackingCollator(), "max_steps": max_steps, "use_cpu": True}
usual |= {"per_device_train_batch_size": 32, "learning_rate": 3e-3}
usual |= {"lr_scheduler_type": "cosine", "warmup_steps": 20}


def fit(make_model, train_rows, seed=seed, resume=None, **options):
    set_seed(seed)
    options = usual | {"seed": seed} | options
    trainer = quiet_trainer(make_model(), scratch.name, train_rows, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# %% tags=["nbval-ignore-output"]
from course_utils.models.point_net import PointNet


def accuracy(prediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": hits.mean()}


rows = {split: list(part) for split, part in clouds.items()}  # small enough for memory
point_net = fit(PointNet, rows["train"], compute_metrics=accuracy)
reached = point_net.evaluate(rows["validation"])["eval_accuracy"]
print(f"validation accuracy {reached:.2f}; guessing would give 0.10")
teach.claim("PointNet names over 80 % of the digits", reached > 0.8, when=full)

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_07 import figures

first_ten = rows["validation"][:10]
guesses = point_net.predict(first_ten).predictions.argmax(-1)
teach.show(figures.clouds(first_ten, guesses))
right = sum(guesses == [int(row["label"]) for row in first_ten])
teach.claim("most of these ten are right", right > 5, when=full)

# %% [markdown]
# ## 2 · What the Trainer needs of a model
#
# No configuration, no tokenizer, no base class: a `torch.nn.Module` whose `forward` keeps to this agreement.

# %%
teach.show(figures.contract())

# %% [markdown]
# | the Trainer does | so the model must |
# |---|---|
# | `model(**batch)` | name its arguments as the collator names its keys |
# | `outputs["loss"]`, or `outputs[0]` of a tuple | return the loss, a scalar, when there are labels |
# | everything else becomes predictions | return `logits` with the batch as first axis |
# | looks for `labels` to know whether there is a loss | have `labels`, or you set `label_names` |
# | `state_dict()` into `model.safetensors` | hold its state in parameters and buffers |
#
# A plain dictionary will do, as in section 3. A `ModelOutput`, which every model of transformers returns, is a
# dictionary with attributes: `output.loss` and `output["loss"]` both work. Entries that are `None` are not listed:

# %%
output = PointNet()(torch.randn(2, 64, 3))
print(type(output).__mro__[1].__name__, list(output), output.loss)

# %% [markdown]
# ### Deeper: a model without labels
#
# A model whose target *is* its input, such as a codec, has no `labels`. Then the Trainer trains but reports no
# `eval_loss`, without a word, unless `label_names` says which key is the target.


# %%
class Copy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, points):
        copy = self.layer(points)
        return {"loss": (copy - points).square().mean(), "copy": copy}


only_points = [{"points": row["points"]} for row in first_ten]
for options in ({}, {"label_names": ["points"]}):
    copy = fit(Copy, only_points, max_steps=2, **options)
    print(options, "->", "eval_loss" in copy.evaluate(only_points))

# %% [markdown]
# ## 3 · PointNet
#
# $$f(\{x_1, \dots, x_n\}) = g\big(\max_i\, h(x_i)\big)$$
#
# The same small network $h$ turns each point alone into 128 numbers. The maximum over the points, of each number
# separately, is one row for the whole cloud. A classifier $g$ reads that row ([Qi et al.
# 2017](https://arxiv.org/abs/1612.00593)).

# %%
teach.show(figures.architecture())


# %%
from itertools import pairwise


class TinyPointNet(torch.nn.Module):
    def __init__(self, widths=(3, 32, 64, 128)):
        super().__init__()
        layers = []
        for inside, outside in pairwise(widths):
            layers += [torch.nn.Linear(inside, outside), torch.nn.LayerNorm(outside)]
            layers += [torch.nn.ReLU()]
        self.per_point = torch.nn.Sequential(*layers[:-1])
        head = [torch.nn.LayerNorm(128), torch.nn.Linear(128, 64), torch.nn.ReLU()]
        self.classifier = torch.nn.Sequential(*head, torch.nn.Linear(64, 10))

    def forward(self, points, labels=None):
        hidden = self.per_point(points)  # (B, N, 128): each point alone
        row = hidden.max(dim=1).values  # (B, 128)
        logits = self.classifier(row)
        if labels is None:
            return {"logits": logits}
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


# %% [markdown]
# `course_utils.models.point_net.PointNet` is this class with a mask, which section 4 needs. With the same weights:

# %%
tiny, imported = TinyPointNet(), PointNet()
imported.load_state_dict(tiny.state_dict())
batch = StackingCollator()(first_ten)
logits = tiny(**batch)["logits"]
same = torch.equal(imported(**batch).logits, logits)
teach.claim("the hand-written PointNet equals the library's, bit for bit", same)
shuffled = tiny(batch["points"][:, torch.randperm(64)])["logits"]
apart = (shuffled - logits).abs().max()
teach.claim("another order of the points changes no logit by 1e-6", apart < 1e-6)

# %% [markdown]
# Why the maximum? The mean does not depend on the order either. Three seeds of each, the same steps:


# %% tags=["nbval-ignore-output"]
class MeanPointNet(PointNet):
    def features(self, points, mask=None):  # what the classifier gets
        return self.per_point(points).mean(dim=1), None


scores = {"maximum": [reached], "mean": []}
for name, model_class in (("maximum", PointNet), ("mean", MeanPointNet)):
    for run_seed in range(seed + len(scores[name]), seed + 3):
        run = fit(model_class, rows["train"], run_seed, compute_metrics=accuracy)
        scores[name].append(run.evaluate(rows["validation"])["eval_accuracy"])
worst, best = min(scores["maximum"]), max(scores["mean"])
teach.show(figures.pooling(scores))
teach.claim("the worst maximum beats the best mean", worst > best, when=full)

# %% [markdown]
# A likely reason, not measured here: in a mean each point counts for a sixty-fourth, while a maximum can say "somewhere
# there is a point like this".
#
# ### Exercise 07.1 · Predict
#
# Which of these changes to a cloud leave its logits as they are? Answer with a set of their names.

# %%
from course_utils.lessons.lesson_07.exercises import CHANGES

for name, meaning in CHANGES.items():
    print(f"{name:17} {meaning}")

# %%
prediction = ...

# %%
teach.check("07.1", prediction)

# %% [markdown]
# Stuck here or later: `teach.show_hint("07.1")`, then `teach.show_hint("07.1", 2)`, then `teach.show_solution("07.1")`.
#
# The paper calls the points that gave a maximum **critical points**. Section 9 draws them.
#
# ## 4 · Clouds of different sizes, and a column that never arrives
#
# A sensor does not return 64 points each time, and it measures from where it stands. `record_clouds` makes our clouds
# like that: a random number of points, moved to a random place, which the column `origin` holds.

# %%
from course_utils.data.clouds import CloudCollator, record_clouds

recorded = {}
for number, (split, part) in enumerate(load_point_clouds(points=64, seed=seed).items()):
    moved = record_clouds(part, fewest=16, seed=seed + number)
    recorded[split] = moved.with_format("torch")
for row in list(recorded["train"])[:3]:
    print(tuple(row["points"].shape), "origin", row["origin"].numpy().round(1))

# %% [markdown]
# A batch is one tensor, so small clouds are padded with zeros. But a zero is a place like any other, in the middle of
# the image. A **mask** says which points are real, and PointNet sets the others to minus infinity before the maximum.
#
# ### Exercise 07.2 · Write the collator
#
# `rows` is a list of dictionaries with `points` (n, 3), a tensor with another n in each row, and `label`, an int.
# Return `points` (B, N, 3) with N the largest n and zeros behind the real points, `mask` (B, N), True where a point is
# real, and `labels` (B,).


# %%
def collate_clouds(rows):
    """points (B, N, 3), mask (B, N) and labels (B,)."""
    return ...


# %%
teach.check("07.2", collate_clouds)

# %% [markdown]
# From here on `CloudCollator` does this. It also moves each cloud back: it subtracts `origin` *if the row has one*.
# A friendly line, `row.get("origin", 0.0)`, and a trap. Two runs:

# %% tags=["nbval-ignore-output"]
ragged = {split: list(part) for split, part in recorded.items()}
ways = {"default": {}, "all columns": {"remove_unused_columns": False}}
ragged_runs, found = {}, {}
for name, options in ways.items():
    options |= {"data_collator": CloudCollator(), "compute_metrics": accuracy}
    ragged_runs[name] = fit(PointNet, ragged["train"], **options)
    found[name] = ragged_runs[name].evaluate(ragged["validation"])["eval_accuracy"]
print({name: round(float(value), 2) for name, value in found.items()})
lost = found["all columns"] - found["default"]
teach.claim("the default loses over 30 points of accuracy", lost > 0.3, when=full)

# %% [markdown]
# No error, no warning. The Trainer drops every column that the model's `forward` does not name, *before* the collator,
# and only the collator uses `origin`. The cure is `remove_unused_columns=False`. The check belongs before every run
# with a collator of your own: look at what it receives.

# %%
for name, run in ragged_runs.items():
    run.data_collator = lambda rows: sorted(rows[0])  # what a row holds
    print(f"{name}: the collator receives", next(iter(run.get_train_dataloader())))

# %% [markdown]
# ## 5 · Two losses: a codec for images
#
# The second model writes an image in as few bits as it can and reads it back. An **encoder** turns 8 x 8 pixels into a
# **latent**: 8 channels of 2 x 2 numbers, rounded to whole numbers. A **decoder** makes an image of them. Two things
# count: the **rate**, bits per pixel, and the **distortion**, the mean squared error. The loss weighs them:
#
# $$\text{loss} = \text{rate} + \lambda \cdot \text{distortion}$$
#
# A whole number of probability $p$ costs $-\log_2 p$ bits. An **entropy coder**, which writes likely numbers with fewer
# bits, comes close to that. So the model learns a distribution of each channel, and the rate is what it says. Rounding
# has no useful gradient; in training, noise between $-\frac12$ and $\frac12$ stands in for it ([Balle et al.
# 2017](https://arxiv.org/abs/1611.01704)).

# %%
teach.show(figures.two_optimizers())

# %% [markdown]
# A coder needs a *table* per channel: the whole numbers, or **symbols**, that can occur, each with its probability. It
# ends at the **quantiles**, three a channel: lowest, median, highest. Between the outer two lies all but a billionth of
# the distribution; rounding is centred at the median. The main loss never uses the table, so it has no gradient for the
# quantiles. They get a loss of their own, the **auxiliary loss**: how far each stands from where the distribution, held
# fixed, has it.

# %%
from course_utils.data.digits import digit_splits
from course_utils.models.codec import Codec

images = {split: torch.tensor(part[0]) for split, part in digit_splits(seed).items()}
pixel_rows = [{"pixels": image} for image in images["train"]]
set_seed(seed)
codec = Codec(lam=100.0)
output = codec(images["train"][:64])
print({name: tuple(value.shape) for name, value in output.items()})

# %% [markdown]
# Which loss reaches which parameter? After `backward`, those that have a gradient were reached.


# %%
def reached_by(loss):
    codec.zero_grad()
    loss.backward()
    return {name for name, p in codec.named_parameters() if p.grad is not None}


by_main, by_aux = reached_by(output.loss), reached_by(codec.aux_loss())
print("by the auxiliary loss:", by_aux)
only = by_aux == {"bottleneck.quantiles"}
teach.claim("the auxiliary loss reaches only the quantiles", only)
everything = {name for name, _ in codec.named_parameters()}
teach.claim("the main loss reaches everything else", by_main == everything - by_aux)

# %% [markdown]
# Two methods of the Trainer change. `create_optimizer` collects every parameter that requires a gradient, so we hide
# the quantiles from it for a moment. `training_step` does forward and backward of one micro-batch; after the last one
# of a window, where `sync_gradients` is true (lesson 03's accumulation), we add the auxiliary step.

# %%
from transformers import Trainer


class TwoOptimizers(Trainer):
    def create_optimizer(self, model=None):
        quantiles = self.model.bottleneck.quantiles
        quantiles.requires_grad_(False)
        super().create_optimizer(model)  # AdamW on what is left
        quantiles.requires_grad_(True)
        self.aux_optimizer = torch.optim.Adam([quantiles], lr=2e-2)
        return self.optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.aux_optimizer.zero_grad()
            model.aux_loss().backward()
            self.aux_optimizer.step()
            self.aux_optimizer.zero_grad()  # before the Trainer clips: not in its norm
        return loss


# %% [markdown]
# The quantiles' learning rate is large and constant, while AdamW's falls to zero: they must follow the distribution to
# the end. For *this* model one optimizer with two parameter groups and the sum of both losses could do nearly the same,
# since no parameter gets both gradients. But the Trainer clips by the joint norm (lesson 01), so large gradients of the
# quantiles would shorten the others' steps.


# %% tags=["nbval-ignore-output"]
import math
from functools import partial

test = images["test"]
for_codec = {"per_device_train_batch_size": 64, "learning_rate": 1e-2}
two_optimizers = for_codec | {"trainer_class": TwoOptimizers}


def in_db(decoded):  # PSNR: 10 dB more is a tenth of the squared error
    return -10 * math.log10((decoded - test).square().mean())


codecs, curve = {}, []
for lam in (20.0, 100.0, 400.0):  # `lambda` is a word of Python
    run = fit(partial(Codec, lam), pixel_rows, **two_optimizers)
    codecs[lam] = run.model.eval()
    with torch.no_grad():
        output = run.model(test)
    bits, db = output.bits.item(), in_db(output.decoded)
    curve.append((bits, db))
    print(f"lambda {lam:3.0f}: {bits:.2f} bits per pixel, {db:.1f} dB")
rising = sorted(curve) == sorted(curve, key=lambda point: point[1]) == curve
teach.claim("a larger lambda buys quality with bits", rising, when=full)

# %% [markdown]
# ### The bits are real
#
# The rate so far is an estimate. `compress` rounds, looks each symbol up in its channel's table and writes bytes with a
# **range coder**, an entropy coder; `decompress` reads them. A symbol beyond its table's ends is clamped to the nearest
# end.

# %% tags=["nbval-ignore-output"]
pictures = {}
for (lam, codec), (bits, _) in zip(codecs.items(), curve, strict=True):
    data = codec.compress(test)
    pictures[f"{bits:.1f} bits"] = codec.decompress(data, len(test))
    estimate = bits * test.numel() / 8
    print(f"lambda {lam:3.0f}: estimated {estimate:.0f}, file {len(data)} bytes")
    with torch.no_grad():
        apart = (codec(test).decoded - codec.decompress(data, len(test))).abs().max()
    inside = codec.outside(test) == 0  # else a symbol is clamped to its table's edge
    same = "the bytes hold what the model decodes, within 1e-5"
    teach.claim(same, apart < 1e-5, when=inside)
    near = abs(len(data) / estimate - 1) < 0.02
    teach.claim("the file has the estimated size within 2 %", near, when=full)

# %% [markdown]
# What would simpler methods do with the same bits? `baselines` has two: fewer grey levels packed by `zlib`, and cosine
# waves (JPEG's idea) with an ideal entropy coder.

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_07.baselines import baselines

others = baselines(images["train"], test)
teach.show(figures.rate_distortion({"learned codec": curve} | others))
bits, psnr = others["grey levels + zlib"][0]  # two levels
better = curve[0][0] < bits and curve[0][1] > psnr
teach.claim("the codec: fewer bits and better than 2 levels", better, when=full)

# %% [markdown]
# With few bits the learned codec is far ahead; with more, grey levels catch up. Each point is one seed, and the bits do
# not count what the decoder needs besides: its weights and tables.

# %% tags=["nbval-ignore-output"]
teach.show(figures.before_after(test[:12], pictures))
decibels = [in_db(decoded) for decoded in pictures.values()]
better = decibels == sorted(decibels)
teach.claim("more bits, less error in the decoded images", better, when=full)

# %% [markdown]
# ### Goes wrong: one optimizer silently owns everything
#
# Train the same codec with a plain `Trainer`. AdamW owns the quantiles, but no gradient ever reaches them, and an
# optimizer skips a parameter without one.

# %% tags=["nbval-ignore-output"]
plain = fit(partial(Codec, 100.0), pixel_rows, **for_codec).model.eval()
two = codecs[100.0]
stood = set(plain.bottleneck.quantiles.unique().tolist()) == {-1.0, 0.0, 1.0}
teach.claim("a plain Trainer never moved the quantiles from -1, 0, 1", stood)
for name, model in (("one optimizer", plain), ("two", two)):
    decoded = model.decompress(model.compress(test), len(test))
    loss, outside = model(test).loss.item(), model.outside(test)
    print(f"{name:13}: loss {loss:.1f}, outside {outside:.0%}, {in_db(decoded):.1f} dB")
bad = plain.outside(test) > 0.1 and two.outside(test) < 0.001
teach.claim("one: over 10 % of the symbols outside; two: none", bad, when=full)

# %% tags=["nbval-ignore-output"]
teach.show(figures.coder_tables({"one optimizer": plain, "two optimizers": two}, test))
smaller = len(plain.compress(test)) < len(two.compress(test))
teach.claim("clamped symbols make a smaller file", smaller, when=full)

# %% [markdown]
# Clamping makes the file small and ruins the images. No training curve shows it: the loss never uses the table. Two
# checks do: ask whether every parameter that requires a gradient has moved, as the first claim above does; and decode
# real bytes before you believe a rate.
#
# ### Exercise 07.3 · Split the parameters
#
# `TwoOptimizers` knows where its one parameter is. Write the general part: `split(model)` returns two lists,
# `(main, auxiliary)`. Auxiliary is what is *named* `quantiles`, in whatever submodule; frozen parameters belong to
# nobody.


# %%
def split(model):
    """(main, auxiliary): two lists of parameters."""
    return ...


# %%
teach.check("07.3", split)

# %% [markdown]
# ## 6 · A checkpoint with both optimizers
#
# The Trainer saves *its* optimizer. Ours has moments too; without them a resumed run is another run. Two more methods
# save and load them. Their names begin with an underscore, so a new version may rename them: the claim below would
# notice.


# %%
class Resumable(TwoOptimizers):
    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save(self.aux_optimizer.state_dict(), f"{output_dir}/aux.pt")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # None: a fresh start
            state = torch.load(f"{checkpoint}/aux.pt", weights_only=True)
            self.aux_optimizer.load_state_dict(state)


# %% [markdown]
# Forty steps in one go, against twenty and, with all objects new, twenty more:


# %%
def forty_steps(trainer_class, resume=None):
    saving = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20}
    run = fit(Codec, pixel_rows, resume=resume, trainer_class=trainer_class, **saving)
    return run.model.state_dict()


def differing(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


# %%
whole = forty_steps(Resumable)
checkpoint = f"{scratch.name}/checkpoint-20"
forgetful = differing(whole, forty_steps(TwoOptimizers, checkpoint))
resumed = differing(whole, forty_steps(Resumable, checkpoint))
print("without the second optimizer's state these differ:", forgetful)
teach.claim("with it the resumed run equals the whole one, bit for bit", resumed == [])

# %% [markdown]
# `course_utils.training.two_optimizers.TwoOptimizersTrainer` is `Resumable` with the general split of exercise 07.3:

# %%
from course_utils.training.two_optimizers import TwoOptimizersTrainer

imported = differing(whole, forty_steps(TwoOptimizersTrainer))
teach.claim("by hand = imported, bit for bit", imported == [])

# %% [markdown]
# ## 7 · An operator of your own
#
# Our operator removes noise. Written as a sum of cosine waves, a digit is a few large numbers, and noise is many small
# ones. The **soft threshold** sets small numbers to zero and moves the others towards zero by the threshold $t$ (Donoho
# 1995):
#
# $$S(x, t) = \operatorname{sign}(x)\,\max(|x| - t,\ 0)$$
#
# torch's `softshrink` has a constant $t$; we want to learn one per wave. Autograd could differentiate the formula. We
# write the **backward** ourselves, as you must where autograd cannot see inside (C++, a GPU kernel) or where another
# gradient trains better than the true one.
#
# Where $|x| > t$, $S = x - t \operatorname{sign}(x)$: its derivative by $x$ is 1, by $t$ it is
# $-\operatorname{sign}(x)$. Elsewhere both are 0. Backward gets the gradient of the output, `grad`, multiplies (the
# chain rule) and returns one gradient per input, of that input's shape. A threshold shared by many elements gets the
# *sum* over them: `sum_to_size` sums until the wanted shape is left.


# %%
class SoftThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, threshold):
        ctx.save_for_backward(x, threshold)  # kept for backward
        return torch.sign(x) * (x.abs() - threshold).clamp_min(0)

    @staticmethod
    def backward(ctx, grad):
        x, threshold = ctx.saved_tensors
        through = torch.where(x.abs() > threshold, grad, 0)
        of_threshold = (-through * torch.sign(x)).sum_to_size(threshold.shape)
        return through, of_threshold


# %%
x = torch.linspace(-3, 3, 301, requires_grad=True)
t = torch.ones(301, requires_grad=True)
out = SoftThreshold.apply(x, t)
by_x, by_t = torch.autograd.grad(out.sum(), (x, t))
teach.show(figures.operator(*(values.detach() for values in (x, out, by_x, by_t))))

# %% [markdown]
# **gradcheck** compares a backward with finite differences, in float64, where these are exact enough.

# %%
doubles = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(seed)}
inputs = torch.randn(5, 4, **doubles), torch.rand(4, **doubles)
inputs = tuple(tensor.requires_grad_() for tensor in inputs)
teach.claim("gradcheck passes", torch.autograd.gradcheck(SoftThreshold.apply, inputs))

# %% [markdown]
# ### The same, known to torch by name
#
# `torch.library.custom_op` registers an operator: it gets a name and a signature, and the rest of torch can be told
# about it. `torch.compile` wants a **fake**: which shape and type come out, without computing. Autograd wants the
# backward, and `setup_context`, which keeps what backward needs. Autocast, lesson 03's mixed precision, wants a rule:
# the type to compute in. `mutates_args=()` promises that no input is changed in place.

# %%
from torch import Tensor


@torch.library.custom_op("lesson::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.sign(x) * (x.abs() - threshold).clamp_min(0)


@soft_threshold.register_fake
def _(x, threshold):
    return torch.empty_like(x)


soft_threshold.register_autograd(
    lambda ctx, grad: SoftThreshold.backward(ctx, grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

# %% [markdown]
# **opcheck** tests the registration: is the signature true, does the fake agree with the real result, does autograd
# find the formula, does all of it compile? Then we compile it ourselves; the backend `aot_eager` traces forward and
# backward but generates no code, so it needs no C++ compiler.

# %%
singles = tuple(tensor.detach().float().requires_grad_() for tensor in inputs)
report = torch.library.opcheck(soft_threshold, singles)
print(report)
teach.claim("opcheck passes all four tests", set(report.values()) == {"SUCCESS"})
teach.claim("gradcheck passes", torch.autograd.gradcheck(soft_threshold, inputs))

compiled = torch.compile(soft_threshold, fullgraph=True, backend="aot_eager")
same = torch.equal(compiled(*singles), soft_threshold(*singles))
teach.claim("it compiles in one graph, with the same result", same)

# %% [markdown]
# ### Goes wrong: half precision
#
# Mixed precision hands an operator fp16 data, made by the layer before, and a float32 parameter. fp16 ends at 65,504
# (lesson 03). Each value here is small, but the threshold's gradient is a sum over all elements. One threshold for all
# can be a vector of one number, shape `(1,)`, or a scalar, shape `()`:

# %%
many = torch.full((100_000,), 2.0, dtype=torch.float16)


def under_autocast(shape):
    t = torch.ones(shape, requires_grad=True)  # float32, like every parameter
    with torch.autocast("cpu", dtype=torch.float16):
        out = soft_threshold(many, t)
    out.float().sum().backward()
    return t.grad.item()


before = {shape: under_autocast(shape) for shape in ((1,), ())}
print("gradient of the threshold, by its shape:", before)
teach.claim("a scalar's gradient is minus infinity", before[()] == -math.inf)

# %% [markdown]
# torch's type promotion decides: fp16 with a float32 *vector* is computed in float32 and the sum fits; with a float32
# *scalar* it stays fp16 and the sum overflows. gradcheck could not see it: it computes in float64, on few elements. The
# check: run forward and backward once in the precision, shapes and size of the real run, and compare with float32. The
# cure is a rule: under autocast, cast every input to float32 first.

# %%
torch.library.register_autocast("lesson::soft_threshold", "cpu", torch.float32)
after = {shape: under_autocast(shape) for shape in before}
print("with the rule:", after)
exact = set(after.values()) == {-100_000}
teach.claim("with the rule both gradients are exact", exact)

# %% [markdown]
# ### Exercise 07.4 · Vary the operator
#
# A *leaky* soft threshold lets a share `leak` of small numbers through: `leak * x` where `|x| <= threshold`, and `x -
# (1 - leak) * threshold * sign(x)` elsewhere. `threshold` and `leak` are tensors of one number. Write its backward:
# return the gradients of `x`, `threshold` and `leak`. What does `leak` change for a threshold that is far too large?


# %%
def backward(grad, x, threshold, leak):
    """Gradients of x, threshold and leak."""
    return ...


# %%
teach.check("07.4", backward)

# %% [markdown]
# <details><summary>What a leak changes for a threshold that is far too large</summary>
#
# Every `x` is inside. Without a leak the output and all gradients are 0: nothing learns. With one, `x` gets
# `leak * grad` and `leak` the sum of `x * grad`, so the layers before and `leak` itself go on learning. The threshold
# still gets 0 until some `x` has grown beyond it.
#
# </details>

# %% [markdown]
# ## Deeper: the Trainer learns 64 thresholds
#
# `course_utils.models.soft_threshold` has this operator, and `Denoiser`, a model of 64 parameters: into waves, soft
# threshold, back. Its `labels` are the clean images.

# %%
from course_utils.models.soft_threshold import Denoiser

generator = torch.Generator().manual_seed(seed)
noise = {k: torch.randn(v.shape, generator=generator) for k, v in images.items()}
noisy = {k: v + 0.25 * noise[k] for k, v in images.items()}
both = zip(noisy["train"], images["train"], strict=True)
pairs = [{"noisy": before, "label": clean} for before, clean in both]
denoiser = fit(Denoiser, pairs, max_steps=min(150, max_steps), learning_rate=1e-2).model


# %% [markdown]
# Does learning one threshold per wave pay? Beside it: no threshold, and the best single one, chosen on the validation
# images. One draw of noise and one seed: read the difference between the last two as an example, not as a law.


# %%
def error(model, split="test"):
    with torch.no_grad():
        return (model(noisy[split])["logits"] - images[split]).square().mean().item()


choices = [Denoiser(0.05 * step) for step in range(1, 10)]
single = min(choices, key=lambda model: error(model, "validation"))
errors = [error(model) for model in (Denoiser(0.0), single, denoiser)]
print("none, one, 64 thresholds:", [f"{-10 * math.log10(e):.1f} dB" for e in errors])
falling = errors == sorted(errors, reverse=True)
drawn = full and seed == 0
teach.claim("on this draw 64 thresholds beat one, one beats none", falling, when=drawn)
teach.show(figures.denoised(test, noisy["test"], denoiser))

# %% [markdown]
# ## Deeper: the entropy model and the range coder inside
#
# Each channel's distribution is a tiny network from a number to the logit of "a latent is below it". Made of softplus
# weights and of $x + a \tanh x$ with $|a| < 1$, it can only rise. The probability of a whole number is the difference
# of the sigmoid 0.5 above and 0.5 below it. The auxiliary loss compares logits: $|F(q) - \text{target}|$, where $F$ is
# this network, held fixed, and the target of a quantile $q$ is the logit of the share that must lie below it: half a
# billionth, one half, all but half a billionth.

# %%
from course_utils.models.entropy_bottleneck import EntropyBottleneck

teach.show_source(EntropyBottleneck.logits)

# %%
grid = torch.arange(-300, 301.0).repeat(8, 1, 1)
with torch.no_grad():
    cumulative = torch.sigmoid(two.bottleneck.logits(grid))
    total = two.bottleneck.likelihood(grid).sum(-1)
rises = (cumulative.diff(dim=-1) >= 0).all().item()
teach.claim("every cumulative distribution rises", rises)
apart = (total - 1).abs().max()
teach.claim("all probabilities add up to 1 within 0.001", apart < 1e-3)

# %% [markdown]
# A range coder holds an interval of whole numbers. A symbol of probability $p$ narrows it to $p$ of its width; the
# bytes on which both ends agree are final and leave. 202 symbols, one table:

# %%
from course_utils.models import range_coder

table = range_coder.counts([0.9, 0.05, 0.05])
message = [0] * 200 + [1, 2]
data = range_coder.encode(message, [table] * len(message))
information = -sum(math.log2(table[s] / sum(table)) for s in message) / 8
print(f"{information:.1f} bytes of information, {len(data)} bytes written")
back = range_coder.decode(data, [table] * len(message))
teach.claim("decoded without a loss", back == message)

# %% [markdown]
# About three of the written bytes are the coder's end, which a long file does not notice.
#
# The decoder needs the same tables, to the last count. They come from floating point numbers: a decoder on another
# processor may round one of them differently and read nonsense. Real codecs store the tables as whole numbers in the
# model's file.

# %% [markdown]
# ## Deeper: the operator in C++
#
# An operator in C++ is registered in the same place. `soft_threshold.cpp` includes `ATen/ATen.h` and `torch/library.h`
# only; the usual `torch/extension.h` brings Python's headers too. `torch.utils.cpp_extension.load` builds it
# once, into the course's cache. Where there is no compiler one sentence says so and the lesson goes on.

# %%
from course_utils.models import soft_threshold_native as native

cpp = Path(native.__file__).with_name("soft_threshold.cpp").read_text()
print(cpp[cpp.index("TORCH_LIBRARY(") :])

# %% tags=["nbval-ignore-output"]
try:
    fast = native.cpp_operator()
    print("built and loaded:", fast)
except native.NoCompiler as reason:
    fast = soft_threshold
    print(reason)
teach.claim("gradcheck passes", torch.autograd.gradcheck(fast, inputs))
report = torch.library.opcheck(fast, singles)
teach.claim("opcheck passes", set(report.values()) == {"SUCCESS"})
same = torch.equal(fast(*inputs), soft_threshold(*inputs))
teach.claim("it equals the Python version", same)

# %% [markdown]
# The fake and the backward are registered from Python, as before. A function that C++ exports through pybind, without
# a registration, would stop `torch.compile(fullgraph=True)`; a registered operator does not. Do not expect speed from
# this one (not measured here): C++ pays where there is no torch operator for the inner loop.

# %% [markdown]
# ## Deeper: the operator in CUDA
#
# `soft_threshold.cu` holds two kernels behind a C interface: pointers, a size, a stream. `nvcc` compiles it without any
# torch header, `ctypes` loads it, and an `autograd.Function` hands over `tensor.data_ptr()` and torch's current stream.

# %%
cuda = Path(native.__file__).with_name("soft_threshold.cu").read_text()
print(cuda[cuda.index("__global__") : cuda.index("// Each thread's")])

# %% [markdown]
# This was compiled where the lesson was built, but there was no GPU: the kernel itself never ran. `make test`
# compares it with the Python version where a GPU and `nvcc` are. Without a GPU a launch returns an error's number, 35
# if the driver is missing; the count of devices is then that number below zero.

# %% tags=["nbval-ignore-output"]
try:
    kernels = native.cuda_library()
    devices = kernels.soft_threshold_devices()
    error_code = kernels.soft_threshold_forward(None, None, None, 1, 1, None)
    print(f"compiled and loaded; devices: {devices}; a launch returns {error_code}")
    honest = devices > 0 or error_code != 0
except (native.NoCompiler, OSError) as reason:
    print(reason)
    honest = True
teach.claim("without a GPU a launch returns an error and no result", honest)

# %% tags=["nbval-ignore-output"]
if torch.cuda.is_available():
    on_gpu = [tensor.detach().cuda() for tensor in singles]
    found = native.CudaSoftThreshold.apply(*on_gpu)
    apart = (found - soft_threshold(*on_gpu)).abs().max().item()
else:
    apart = math.inf
gpu = torch.cuda.is_available()
teach.claim("the kernel equals the Python version within 1e-6", apart < 1e-6, when=gpu)

# %% [markdown]
# ## 8 · What goes wrong, in one table
#
# | mistake | what you see | the check |
# |---|---|---|
# | a column that only the collator uses is dropped | nothing; accuracy falls far | print what the collator receives |
# | `label_names` not set for a model without `labels` | no `eval_loss` | one `evaluate()` before training |
# | one optimizer owns a parameter that no gradient reaches | nothing: the loss is fine | did every parameter move? |
# | the second optimizer is not in the checkpoint | nothing; another run | resumed = uninterrupted, bitwise |
# | a sum in fp16 under autocast | an infinite gradient | one step in the real precision, shapes and size |
#
# ### Exercise 07.5 · Repair a Trainer with two optimizers
#
# The objective of this lesson. `Watched` is a small regression whose parameter `levels` must be trained on `aux_loss`
# by an optimizer of its own. `BrokenTrainer` means to do that, and trains without an error, but three of its four
# methods are wrong, one of them in two ways.

# %%
from course_utils.lessons.lesson_07.broken import LEVELS_FILE, BrokenTrainer, Watched

teach.show_source(Watched)
teach.show_source(BrokenTrainer)
print("LEVELS_FILE is", LEVELS_FILE)

# %% [markdown]
# Repair them in a subclass. To reach the Trainer's own method past the broken one, write
# `super(BrokenTrainer, self).create_optimizer(model)`. The second optimizer is called `aux_optimizer`. `Path` and
# `LEVELS_FILE` are imported. The checker looks at owners, counts steps with accumulation, and resumes a run.


# %%
class Repaired(BrokenTrainer):
    """Write the methods anew that are wrong."""


# %%
teach.check("07.5", Repaired)

# %% [markdown]
# ## 9 · What the models do now
#
# PointNet on the test clouds, for the first time. `features(points)` returns the row and, for each of its numbers, the
# index of the point that gave it: the critical points, drawn large, are all that the classifier sees.

# %% tags=["nbval-ignore-output"]
final = point_net.evaluate(rows["test"])["eval_accuracy"]
print(f"test accuracy {final:.2f}")
teach.claim("PointNet names over 80 % of the test digits", final > 0.8, when=full)

# %% tags=["nbval-ignore-output"]
ten = rows["test"][:10]
with torch.no_grad():
    points = torch.stack([row["points"] for row in ten])
    guesses = point_net.model(points).logits.argmax(-1)
    critical = [places.unique() for places in point_net.model.features(points)[1]]
teach.show(figures.clouds(ten, guesses, critical))
teach.claim("fewer than all points decide", sum(map(len, critical)) < 10 * 64)

# %% [markdown]
# ## Recap
#
# - The Trainer needs an `nn.Module` whose `forward` takes the batch's keys and returns a loss. No configuration, no
#   base class; section 2 has the agreement.
# - It drops what `forward` does not name before your collator sees it: `remove_unused_columns=False`.
# - Two optimizers are four methods: create, step, save, load. Look at gradients to see which loss reaches whom.
# - An operator of your own is a forward and a backward; registered by name it also has a fake and an autocast rule.
#   gradcheck proves the mathematics, opcheck the registration, and neither proves half precision.
#
# ## Quiz
#
# **1.** You add a column `weight` that your `compute_loss` override reads from `inputs`. It raises `KeyError:
# 'weight'`. Why?
#
# <details><summary>Answer</summary>
#
# `forward` does not name `weight`, so the Trainer dropped the column before the collator. Here you are lucky: it is an
# error. Set `remove_unused_columns=False`, and take `weight` out of `inputs` before `model(**inputs)`.
#
# </details>

# %% [markdown]
# **2.** Why does the auxiliary step stand behind `if self.accelerator.sync_gradients`?
#
# <details><summary>Answer</summary>
#
# `training_step` runs once per micro-batch. With accumulation 4 the quantiles would make four steps for each one of the
# others, and the number of steps would depend on how the batch is cut, which it must not.
#
# </details>

# %% [markdown]
# **3.** An operator passes gradcheck and opcheck, and the model still diverges in fp16. What did neither of them test?
#
# <details><summary>Answer</summary>
#
# Half precision at real size. gradcheck needs float64, and opcheck compares shapes, types and registration on the
# inputs you give it. Sums over many elements, squares and exponentials leave fp16's range only with real data.
#
# </details>
#
# **Next:** [lesson 08](08_accelerate.ipynb) writes the loop again with Accelerate, so that it runs on any hardware.

# %%
scratch.cleanup()
print("scratch folder removed:", not Path(scratch.name).exists())
