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

# %% slideshow={"slide_type": "skip"} tags=["parameters"]
source = "local"
max_steps = 400
seed = 0

# %% slideshow={"slide_type": "skip"}
import math
import tempfile
from functools import partial

import torch
from transformers import Trainer, set_seed

from course_utils import teach
from course_utils.data import load_point_clouds
from course_utils.data.collators import StackingCollator
from course_utils.data.digits import digit_splits
from course_utils.lessons.lesson_07 import figures
from course_utils.lessons.lesson_07.baselines import baselines
from course_utils.models.codec import Codec
from course_utils.models.point_net import PointNet
from course_utils.models.soft_threshold import Denoiser, SoftThreshold
from course_utils.training.settings import quiet_trainer
from course_utils.training.two_optimizers import TwoOptimizersTrainer

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
scratch = tempfile.TemporaryDirectory()
usual = {"data_collator": StackingCollator(), "max_steps": max_steps, "use_cpu": True, "warmup_steps": 20}
usual |= {"per_device_train_batch_size": 32, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}


def fit(make_model, train_rows, seed=seed, **options):
    set_seed(seed)
    trainer = quiet_trainer(make_model(), scratch.name, train_rows, **(usual | {"seed": seed} | options))
    trainer.train()
    return trainer


class MeanPointNet(PointNet):
    def features(self, points, mask=None):
        return self.per_point(points).mean(dim=1), None


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


rows = {split: list(part) for split, part in load_point_clouds(seed=seed).with_format("torch").items()}
scores, networks = {"maximum": [], "mean": []}, {}
for name, model_class in (("maximum", PointNet), ("mean", MeanPointNet)):
    for run_seed in range(seed, seed + 3):
        run = fit(model_class, rows["train"], run_seed, compute_metrics=accuracy)
        scores[name].append(run.evaluate(rows["validation"])["eval_accuracy"])
        networks[name] = run.model.eval()
point_net = networks["maximum"]

# %% slideshow={"slide_type": "skip"}
images = {split: torch.tensor(part[0]) for split, part in digit_splits(seed).items()}
pixel_rows = [{"pixels": image} for image in images["train"]]
test = images["test"]
for_codec = {"per_device_train_batch_size": 64, "learning_rate": 1e-2}
codecs = {
    quality: fit(partial(Codec, quality), pixel_rows, trainer_class=TwoOptimizersTrainer, **for_codec).model.eval()
    for quality in (20.0, 100.0, 400.0)
}
plain = fit(partial(Codec, 100.0), pixel_rows, trainer_class=Trainer, **for_codec).model.eval()
curve, decoded = [], {}
for codec in codecs.values():
    with torch.no_grad():
        output = codec(test)
    curve.append((output.bits.item(), -10 * math.log10(output.distortion)))
    decoded[f"{curve[-1][0]:.1f} bits"] = output.decoded
noisy = {
    split: part + 0.25 * torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
    for split, part in images.items()
}
pairs = [{"noisy": n, "label": c} for n, c in zip(noisy["train"], images["train"], strict=True)]
denoiser = fit(Denoiser, pairs, max_steps=min(150, max_steps), learning_rate=1e-2).model

# %% [markdown] slideshow={"slide_type": "slide"}
# # 07 · Beyond text
#
# Any nn.Module, two optimizers, your own operator

# %% [markdown] slideshow={"slide_type": "notes"}
# Models that no library brings, trained by the Trainer: point clouds, a codec, a denoiser. About 80 minutes with
# exercises. Ask first: what does the Trainer know about words? Answer: nothing.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Digits as points, named by a PointNet
#
# No text, no tokenizer, and still the same Trainer.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
ten = rows["validation"][:10]
with torch.no_grad():
    guesses = point_net(torch.stack([row["points"] for row in ten])).logits.argmax(-1)
teach.show(figures.clouds(ten, guesses))

# %% [markdown] slideshow={"slide_type": "notes"}
# 64 points a cloud, drawn where the ink is: x, y, ink. Above each what the model says. Let the room guess the red ones:
# some are hard for us too. Trained in a few seconds on one core.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What the Trainer needs of a model
#
# Names that match and a loss in the output: there is no other agreement.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.contract())

# %% [markdown] slideshow={"slide_type": "notes"}
# The whole agreement is on this slide. Keys of the batch are names of forward's arguments. Forward returns a dictionary
# (or a ModelOutput, or a tuple) with the loss first. No config, no tokenizer, no base class. The red remark at the
# collator is the first bug of today.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## PointNet: the same network for every point, then a maximum
#
# Nothing before the maximum mixes points, so their order cannot matter.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.architecture())

# %% [markdown] slideshow={"slide_type": "notes"}
# Qi et al. 2017. The order of the points cannot matter: nothing before the maximum mixes points, and the maximum does
# not know an order. Exercise 07.1 goes on from here: what else can it not see?

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Why a maximum and not a mean?
#
# Both ignore the order; the maximum can say "somewhere there is a point like this".

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.pooling(scores))

# %% [markdown] slideshow={"slide_type": "notes"}
# Both ignore the order. Three seeds each, same steps. A likely reason: a mean gives each point a sixty-fourth; a
# maximum can say "somewhere there is a point like this".

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Only critical points count
#
# Remove every pale point and the logits stay the same.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
ten = rows["test"][:10]
points = torch.stack([row["points"] for row in ten])
with torch.no_grad():
    guesses = point_net(points).logits.argmax(-1)
    critical = [places.unique() for places in point_net.features(points)[1]]
teach.show(figures.clouds(ten, guesses, critical))

# %% [markdown] slideshow={"slide_type": "notes"}
# Large points gave at least one of the 128 maxima. Remove all pale ones: the logits stay. Remove the large ones: they
# do not. This is the answer to part of exercise 07.1, so show it after the exercise.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Goes wrong: a column that never arrives
#
# ```python
# def collate(rows):
#     clouds = [row["points"] - row.get("origin", 0.0) for row in rows]
# ```
#
# - `forward(points, mask, labels)` does not name `origin`
# - so the Trainer drops it **before** the collator
# - no error, no warning: accuracy falls from about 0.8 to below 0.2
#
# > `remove_unused_columns=False`, and print what the collator receives.

# %% [markdown] slideshow={"slide_type": "notes"}
# The friendly default in row.get makes it silent. The notebook measures both runs. The check takes a second: let the
# collator return the keys of a row.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A codec: two losses, two optimizers
#
# Two groups of parameters, each with a loss and an optimizer of its own.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.two_optimizers())

# %% [markdown] slideshow={"slide_type": "notes"}
# Go through the picture from left to right, then down. Blue belongs to the Trainer's AdamW, orange to a second Adam.
# The quantiles bound the coder's tables; a table's size is a whole number, so the main loss has no gradient for them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Four methods
#
# | method | what changes |
# |---|---|
# | `create_optimizer` | hide the quantiles, `super()`, show them; a second Adam |
# | `training_step` | `super()`; at the end of a window one auxiliary step |
# | `_save_optimizer_and_scheduler` | `super()`, and one more file |
# | `_load_optimizer_and_scheduler` | `super()`, and read it |
#
# > Resumed = uninterrupted, bit for bit. Without the last two, only the quantiles differ.

# %% [markdown] slideshow={"slide_type": "notes"}
# sync_gradients is True at the last micro-batch of a window. Honest remark: for this model one optimizer with two
# groups and the summed loss would nearly do, because the gradients never meet; only the clipping's joint norm differs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Rate and distortion
#
# Up and left is better: fewer bits, truer pictures. The learned codec is ahead at few bits.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.rate_distortion({"learned codec": curve} | baselines(images["train"], test)))

# %% [markdown] slideshow={"slide_type": "notes"}
# Three lambdas, three codecs. Far ahead at few bits; at many bits plain grey levels with zlib come up to it. The rate
# is not only an estimate: the range coder's files are within two percent of it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Before and after
#
# Three bytes a digit, and one can still read most.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.before_after(test[:12], decoded))

# %% [markdown] slideshow={"slide_type": "notes"}
# Test images. At a third of a bit per pixel a digit of 64 pixels is about three bytes, and one can still read most.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Goes wrong: one optimizer owns everything
#
# The loss looks the same; the coder's tables do not fit the symbols.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.coder_tables({"one optimizer": plain, "two optimizers": codecs[100.0]}, test))

# %% [markdown] slideshow={"slide_type": "notes"}
# With a plain Trainer the quantiles never move: no gradient reaches them. The loss is as good as before, but a third of
# the symbols is outside of the tables and gets clamped. Checks: did every parameter move; decode real bytes.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## An operator of our own: the soft threshold
#
# Forward cuts small numbers; backward must say how, for the input and for the threshold.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
x = torch.linspace(-3, 3, 301, requires_grad=True)
t = torch.ones(301, requires_grad=True)
out = SoftThreshold.apply(x, t)
by_x, by_t = torch.autograd.grad(out.sum(), (x, t))
teach.show(figures.operator(*(values.detach() for values in (x, out, by_x, by_t))))

# %% [markdown] slideshow={"slide_type": "notes"}
# Small numbers become zero, the others move towards zero by t. Left: the operator. Middle and right: what backward
# multiplies the incoming gradient with. A threshold shared by many elements gets the sum.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Three ways, one operator
#
# | way | gives | checked by |
# |---|---|---|
# | `torch.autograd.Function` | a backward of your own | `gradcheck` |
# | `torch.library.custom_op` | a name; compile and autocast know it | `opcheck` too |
# | C++ with `TORCH_LIBRARY` | compiled code; registered alike | both |
# | CUDA behind a C interface | a kernel, loaded with `ctypes` | equality, on a GPU |
#
# > gradcheck proves the mathematics, opcheck the registration. Neither proves half precision.

# %% [markdown] slideshow={"slide_type": "notes"}
# The C++ build takes 10 to 20 seconds once and is cached. Without a compiler one sentence says so. The CUDA kernel was
# compiled but never ran where this was written: there was no GPU. Tests compare it where there is one.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Goes wrong: fp16 ends at 65,504
#
# - 100,000 elements, each with gradient 1
# - the shared threshold's gradient is their sum: **minus infinity** in fp16
# - under autocast only if the threshold is a *scalar*: then the operator computes in fp16
#
# ```python
# torch.library.register_autocast("lesson::soft_threshold", "cpu", torch.float32)
# ```
#
# > Run one step in the real precision and size before the real run.

# %% [markdown] slideshow={"slide_type": "notes"}
# No single value is large. gradcheck cannot see it: float64, few elements. The autocast rule makes the operator compute
# in float32; then the gradient is exactly -100,000.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 64 thresholds, learned
#
# Fast waves hold more noise than digit: they get the large thresholds.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.denoised(test, noisy["test"], denoiser))

# %% [markdown] slideshow={"slide_type": "notes"}
# Cosine waves, soft threshold, back. 64 parameters, trained by the Trainer in about a second. Fast waves get large
# thresholds: there is more noise than digit in them. Better than the best single threshold by half a decibel, on
# one draw of noise.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Take home
#
# - Keys in, loss out: that is all the Trainer asks
# - What `forward` does not name never reaches your collator
# - Look at gradients: which loss reaches whom?
# - Save both optimizers; prove it by resuming
# - Decode real bytes before you believe a rate
# - gradcheck, opcheck, and one step in the real precision

# %% [markdown] slideshow={"slide_type": "notes"}
# Now the last exercise: a Trainer with two optimizers and three bugs, that trains without an error.

# %% slideshow={"slide_type": "skip"}
scratch.cleanup()
