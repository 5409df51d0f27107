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
max_steps = 200  # of the run whose curves are shown
seed = 0

# %% slideshow={"slide_type": "skip"}
import tempfile

import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import DataCollatorWithPadding, set_seed

from course_utils import teach
from course_utils.data import load_classification
from course_utils.lessons.lesson_03 import curves, diagrams, figures
from course_utils.lessons.lesson_03.runs import NoteCheckpoints
from course_utils.models import load_classifier, load_tokenizer
from course_utils.training.settings import logged, quiet_trainer
from course_utils.training.trainer_trace import trace

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
dataset = load_classification(source)
tokenizer = load_tokenizer(source)
num_labels = dataset["train"].features["label"].num_classes
text_columns = [name for name in dataset["train"].column_names if name != "label"]


def tokenize(rows):
    encoded = tokenizer(rows["text"], truncation=True, max_length=48)
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


rows = dataset.map(tokenize, batched=True, remove_columns=text_columns)
collate = DataCollatorWithPadding(tokenizer)
scratch = tempfile.TemporaryDirectory()


small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}


def fresh_model(**sizes):
    set_seed(seed)
    return load_classifier(num_labels, vocab_size=len(tokenizer), **sizes)


def compute_metrics(prediction):
    predicted = prediction.predictions.argmax(axis=-1)
    macro_f1 = f1_score(prediction.label_ids, predicted, average="macro", zero_division=0)
    return {"accuracy": accuracy_score(prediction.label_ids, predicted), "macro_f1": macro_f1}


# %% [markdown] slideshow={"slide_type": "slide"}
# # 03 · Trainer
#
# Its arguments, and what it does in one step: the loop you wrote, written once for everybody

# %% [markdown] slideshow={"slide_type": "notes"}
# In lesson 01 everybody wrote a loop. Today we replace it by a few lines, prove that nothing changed, and open the
# box. Goal: people use the Trainer because they know what it does. About 75 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What you give, what you get
#
# Three things only you can give; everything else is a setting with a default.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# Blue: three things that only you can give. Orange: everything else is a setting. The middle column is lesson 01's
# loop. Ask what each of the three results is good for; the lesson returns to all of them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Three things from you, the rest are settings
#
# ```python
# trainer = Trainer(
#     model,                                   # returns a loss
#     TrainingArguments(
#         output_dir="runs/first",
#         per_device_train_batch_size=32,
#         learning_rate=1e-3,
#         max_steps=400,
#     ),
#     train_dataset=train_rows,                # rows are dictionaries
#     data_collator=collate,                   # rows -> batch
# )
# trainer.train()
# ```

# %% [markdown] slideshow={"slide_type": "notes"}
# Model, data, collator. Ask: what in lesson 01's loop do you miss here? Optimizer, schedule, clipping, device, seed.
# They are all there, as defaults. That is the comfort and the danger.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Is it the same loop? Pin three things
#
# - **Order:** `train_sampling_strategy="sequential"`
# - **Dropout:** seed right before the first forward pass
# - **Arithmetic:** same AdamW kernel, same processor
#
# > Then every loss, every gradient norm and every final weight is equal, bit for bit.

# %% [markdown] slideshow={"slide_type": "notes"}
# Show the assertion in the notebook, section 2. The subtle one is dropout: starting a DataLoader draws one number
# from the global generator, so seeding before train() is too early. We seed in on_step_begin of step 0.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One optimizer step, traced live
#
# Backward runs once per micro-batch; clip, optimizer, scheduler and zero_grad once per step.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
trainer = quiet_trainer(
    fresh_model(),
    scratch.name,
    rows["train"].select(range(640)),
    rows["validation"].select(range(300)),
    data_collator=collate,
    compute_metrics=compute_metrics,
    max_steps=6,
    per_device_train_batch_size=32,
    gradient_accumulation_steps=2,
    per_device_eval_batch_size=64,
    eval_strategy="steps",
    eval_steps=4,
    logging_steps=2,
)
with trace(trainer) as recorded:
    trainer.train()
teach.show(figures.timeline(recorded.of_step(4), "Two micro-batches, one update"))

# %% [markdown] slideshow={"slide_type": "notes"}
# Read from top to bottom. Grey contains what is below it. Black diamonds are callback events: they cost nothing.
# get_batch_samples runs before any forward pass, so the labels of the whole window can be counted. Clip, optimizer,
# scheduler and zero_grad run once per step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which method do I override?
#
# | you want | touch |
# |---|---|
# | another loss | `compute_loss_func`, `compute_loss` |
# | two backward passes, two optimizers | `training_step` |
# | other predictions while evaluating | `prediction_step` |
# | to watch, stop, save, change a rate | a callback, no subclass |
# | another order of rows | `train_sampling_strategy` |

# %% [markdown] slideshow={"slide_type": "notes"}
# Rule of thumb: setting before callback, callback before override, override before copying. If you copy more than
# half of a method's body, write your own loop (lesson 08 makes that loop portable).

# %% [markdown] slideshow={"slide_type": "slide"}
# ## One evaluation
#
# `prediction_step` runs once per batch, `compute_metrics` once, on all rows.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
title = "evaluate: predictions first, metrics once at the end"
teach.show(figures.timeline(recorded.inside("evaluate"), title))

# %% [markdown] slideshow={"slide_type": "notes"}
# prediction_step once per batch, without gradients. The loop collects logits and labels; compute_metrics sees all rows
# at once, so by default nothing averages batch averages. It also means that all logits must fit: lesson 04. Without
# compute_metrics the loop keeps the losses only.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Defaults are not your loop's
#
# | | `TrainingArguments` | lesson 01's run |
# |---|---|---|
# | `learning_rate` | 5e-5 | 1e-3 |
# | `warmup_steps` | 0 | a tenth of the run |
# | `weight_decay` | 0.0 | 0.01 |
# | `per_device_train_batch_size` | 8 | 32 |
# | `seed` | 42 | 0 |
# | `logging_steps` | 500 | every step |

# %% [markdown] slideshow={"slide_type": "notes"}
# The schedule (linear) and clipping (1.0) happen to agree. Exercise 03.2 is exactly this translation. The lesson's
# table of arguments is generated from the installed class, so the defaults shown there cannot go stale.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Schedules
#
# Linear or cosine when the length is known; warm-up, stable, decay when it is not.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.schedules(curves.all_schedules(), warmup_steps=20))

# %% [markdown] slideshow={"slide_type": "notes"}
# Linear or cosine when the length is known. Warm-up, stable, decay when it is not: branch off a decay whenever you
# like. warmup_steps=0.1 means a tenth of the run: the old warmup_ratio is gone. polynomial without power is linear.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## bf16 reaches further, fp16 is finer

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
formats = curves.number_formats()
teach.show(figures.number_formats(formats))

# %% [markdown] slideshow={"slide_type": "-"}
# `bf16=True` on Ampere or newer, `fp16=True` on V100 and T4

# %% [markdown] slideshow={"slide_type": "notes"}
# A lack of range ends a run (infinity, or zero where a gradient was); a lack of digits only adds noise. Subnormal
# numbers lie between the smallest normal one and zero and have fewer and fewer digits. The weights stay in fp32 in both
# cases: in bf16, 1 plus 0.001 is 1. On a CPU fp16=True is accepted and silently ignored; the lesson measures that.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Why fp16 needs loss scaling
#
# A factor on the loss moves every gradient to the right: too little loses the small ones, too much the large.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
model = fresh_model()
model(**collate([rows["train"][i] for i in range(32)])).loss.backward()
gradients = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
half = formats["float16"]
limits = half["smallest"], half["tiny"]
teach.show(figures.gradient_underflow(gradients[gradients > 0].tolist(), *limits, 2.0**14))

# %% [markdown] slideshow={"slide_type": "notes"}
# Real gradients of our classifier. The pale zone is subnormal: fewer and fewer digits, then zero. Multiplying the
# loss moves everything to the right. Too far, and the largest overflow: the scaler skips that step and halves the
# scale.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The best checkpoint is not the last
#
# The loss turns before accuracy and macro-F1 stop growing: choose by the metric you are judged by.

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
notes = NoteCheckpoints()
every = max(1, max_steps // 8)
trainer = quiet_trainer(
    fresh_model(**small),
    f"{scratch.name}/run",
    rows["train"].shuffle(seed=seed).select(range(1500)),
    rows["validation"].shuffle(seed=seed).select(range(500)),
    data_collator=collate,
    compute_metrics=compute_metrics,
    callbacks=[notes],
    max_steps=max_steps,
    per_device_train_batch_size=32,
    per_device_eval_batch_size=125,
    learning_rate=1e-3,
    warmup_steps=0.1,
    logging_steps=max(1, max_steps // 30),
    eval_strategy="steps",
    eval_steps=every,
    save_strategy="steps",
    save_steps=every,
    save_total_limit=2,
    load_best_model_at_end=True,
    metric_for_best_model="loss",
    seed=seed,
)
trainer.train()
state = trainer.state
teach.show(figures.training_curves(state.log_history, state.best_global_step))
middle = state.best_global_step < max_steps
teach.claim("the best is not the last", middle, when=max_steps >= 200 and source == "local")

# %% [markdown] slideshow={"slide_type": "notes"}
# A short run on 1,500 rows, made when this deck was built; the lesson's takes 400 steps on 3,000. It learns its rows by
# heart: the validation loss turns before accuracy and macro-F1 stop growing. The lesson compares on the test rows,
# three seeds. Lowest loss minus last: lower loss, on average lower macro-F1. Highest macro-F1 beats lowest loss in
# macro-F1 on average; against the last nothing is measurable: its intervals hold zero. Choose by the
# metric that judges you.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which checkpoints stay
#
# The newest and the best stay; a best step that was never saved cannot be loaded.

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
teach.show(figures.checkpoints_on_disk(notes.kept, notes.best))
teach.claim("after each save at most two", max(map(len, notes.kept.values())) <= 2)

# %% [markdown] slideshow={"slide_type": "notes"}
# save_total_limit=2: the newest and the best; during a save there are three. The best is never deleted.
# load_best_model_at_end loads the best evaluated checkpoint only if that step was saved; otherwise an earlier one that
# was best when it was saved, or nothing. So save at every evaluation, or use save_strategy="best".

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Resume: the same run, bit for bit
#
# ```python
# trainer.train(resume_from_checkpoint=True)
# ```
#
# | missing | what happens |
# |---|---|
# | `optimizer.pt` or `scheduler.pt` | both restart, no error |
# | `rng_state.pth` | other dropout, other weights, no error |
# | `model.safetensors`, `trainer_state.json` | an error |
#
# > `group_by_length`: exact in the first epoch only.

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson trains 20 steps without a break, then resumes at step 8 in a new Trainer with other initial weights:
# bitwise equal on a CPU. Then it deletes one file at a time: the run goes on happily and ends with other weights.
# save_only_model=True leaves out the same three files. group_by_length draws an epoch's order from the global generator
# before the checkpoint's random state is restored, so in a later epoch the order is another one. The same setting sorts
# evaluation rows: predictions no longer stand beside their texts. Exercise 03.5 asks for settings that do all of it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Trackers
#
# - `report_to="none"` is the default
# - **TensorBoard:** event files; `%tensorboard --logdir ...` in JupyterLab
# - **W&B:** `WANDB_MODE=offline` needs no account; `wandb sync` later
# - **Trackio:** an SQLite file; `trackio show`
# - `push_to_hub=False` is the default too
#
# > A tracker is a callback: it receives the settings once and every `log`.

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson runs all three without a network and reads the written files back. Inside a notebook Trackio would start
# its dashboard's server, so we run it from a script.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A NaN that the log hides
#
# A NaN is logged as a number, later as 0: switch `logging_nan_inf_filter` off.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
damaged = [dict(row) for row in rows["train"].select(range(960))]


class Poisoned(type(trainer)):
    def compute_loss(self, model, inputs, return_outputs=False, **items):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **items)
        loss = loss * float("nan") if model.training and self.state.global_step == 17 else loss
        return (loss, outputs) if return_outputs else loss


logs = {}
for name, flag in {"filter on, the default": True, "filter off": False}.items():
    options = {"max_steps": 28, "logging_steps": 2, "logging_nan_inf_filter": flag, "use_cpu": True}
    options |= {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "trainer_class": Poisoned}
    run = quiet_trainer(fresh_model(**small), scratch.name, damaged, data_collator=collate, **options)
    run.train()
    logs[name] = logged(run, "loss")
teach.show(figures.hidden_nan(logs, 18))
teach.claim("filtered, a dead model logs a loss of 0", logs["filter on, the default"][-1][1] == 0)

# %% [markdown] slideshow={"slide_type": "notes"}
# The loss of step 18 is NaN, so is the gradient norm; clipping spreads it, and from then on every weight is NaN.
# logging_nan_inf_filter=True, the default, puts a number made of the losses since the last log in its place; after the
# next log there are none: it adds zeros. A loss of 0 looks like a triumph. Switch the filter off in every run.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Bugs that raise nothing, and their checks
#
# | bug | check |
# |---|---|
# | `remove_unused_columns` drops your `weight` | keys of a batch |
# | NaN, filtered from the log | `logging_nan_inf_filter=False` |
# | `label_names=["label"]`: no scores | `eval_on_start=True` |
# | the best step was **not saved** | its step, the checkpoint's |
# | `**kwargs` ignored: loss x k | step 1 against the big batch |

# %% [markdown] slideshow={"slide_type": "notes"}
# Each is planted and measured in section 10. The last one is the most surprising: with 4 micro-batches the logged loss
# is exactly 4 times too large for this model. The cure is a compute_loss_func that divides by the labels of the window.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Trainer or your own loop?
#
# <div class="columns"><div>
#
# **Trainer**
#
# - fine-tuning, pretraining
# - any number of devices
# - custom loss, callbacks
#
# </div><div>
#
# **Own loop**
#
# - several models in turn
# - data made while training
# - to understand and debug
#
# </div></div>

# %% [markdown] slideshow={"slide_type": "notes"}
# Signs that you outgrew the Trainer: three overrides, each a copied body. Signs that you should have taken it: your
# loop grows flags for resuming, logging and precision.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **03.1** Predict the calls of a run
# - **03.2** Translate a loop's settings
# - **03.5** Keep the best, and resume exactly
# - **03.6** Repair a Trainer
# - *Deeper:* **03.3** the settings that differ, **03.4** which checkpoint is loaded
#
# > Next: metrics, taken seriously (lesson 04).

# %% [markdown] slideshow={"slide_type": "notes"}
# 25 minutes. 03.1 after the two timelines, 03.2 after the defaults. 03.6 is the objective: three faults, three checks.
# In 03.3 the first two losses agree although beta2 differs: bias correction makes the first update independent of it.

# %% slideshow={"slide_type": "skip"}
scratch.cleanup()
