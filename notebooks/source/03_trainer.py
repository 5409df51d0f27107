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
# # 03 · Trainer: its arguments, and what it does in one step
#
# In lesson 01 you wrote the training loop. `transformers.Trainer` is the same loop, written once for everybody, with
# evaluation, checkpoints, 16-bit arithmetic, several devices and trackers (they plot logs).
#
# **You will be able to**
#
# - write a run in a few lines and prove that it is lesson 01's loop;
# - say which method runs when in one step, and so which one to override;
# - choose arguments, keep the best checkpoint, resume exactly;
# - repair a Trainer whose bugs raise nothing.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop) and 02 (collators). Terms:
# [GLOSSARY.md](../GLOSSARY.md). *Deeper* sections are folded; nothing else needs them.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 400  # optimizer steps of the main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Where this leads: a run, and which of its checkpoints is kept
#
# The task is lesson 01's: which library does a sentence of documentation come from? Such sentences, here this course's
# own, without label:

# %%
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from course_utils.data import load_classification, own_sentences
from course_utils.models import load_classifier, load_tokenizer

torch.set_num_threads(1)  # small models: one thread is enough
dataset, tokenizer = load_classification(source), load_tokenizer(source)
num_labels = dataset["train"].features["label"].num_classes
for sentence in own_sentences()[:3]:
    ids = tokenizer(sentence)["input_ids"]
    print(f"{len(ids):3} tokens {ids[:5]} ...  {sentence[:48]}")
print(num_labels, "classes:", *dataset["train"].features["label"].names)

# %% [markdown]
# What goes where, with B rows in a batch, T tokens in its longest row, C classes:

# %%
from course_utils.lessons.lesson_03 import diagrams, figures

teach.show(diagrams.flow())

# %% [markdown]
# `map` tokenises the rows (lesson 02). The collator renames the column `label` to `labels`, as the model's `forward`
# calls it. We train on 3,000 rows only, as if labels were scarce.

# %%
texts = [name for name in dataset["train"].column_names if name != "label"]


def tokenize(rows):
    encoded = tokenizer(rows["text"], truncation=True, max_length=48)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


rows = dataset.map(tokenize, batched=True, remove_columns=texts)
train_rows = rows["train"].shuffle(seed=seed).select(range(3000))
validation_rows = rows["validation"].shuffle(seed=seed)
validation_rows = validation_rows.select(range(min(1000, len(validation_rows))))
test_rows = rows["test"]
collate = DataCollatorWithPadding(tokenizer)
batch = collate([train_rows[0], train_rows[1]])
print(train_rows.column_names, "->", {k: tuple(v.shape) for k, v in batch.items()})

# %% [markdown]
# `compute_metrics` receives all predictions and labels of an evaluation and returns a dictionary:

# %%
from sklearn.metrics import accuracy_score, f1_score


def compute_metrics(prediction):
    chosen = prediction.predictions.argmax(axis=-1)  # N rows: (N, C) -> (N,)
    f1 = f1_score(prediction.label_ids, chosen, average="macro", zero_division=0)
    return {"accuracy": accuracy_score(prediction.label_ids, chosen), "macro_f1": f1}


# %% [markdown]
# With `load_best_model_at_end` the run ends with the weights of its best evaluation, here of the lowest validation
# loss.

# %%
every = max(1, max_steps // 8)
settings = {
    "max_steps": max_steps,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 1e-3 if source == "local" else 5e-5,
    "warmup_steps": 0.1,  # below 1: a share of the run
    "weight_decay": 0.01,
    "logging_steps": max(1, every // 5),
    "eval_strategy": "steps",
    "eval_steps": every,
    "save_strategy": "steps",
    "save_steps": every,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "logging_nan_inf_filter": False,  # a NaN shall show: section 10
    "seed": seed,
}

# %% [markdown]
# `NoteCheckpoints` notes which checkpoints are on disk after each save; it is a *callback*, an object whose methods the
# Trainer calls at fixed points (lesson 05). `KeepHighest` puts aside the weights with the highest macro-F1, for
# section 6. The Trainer's own progress table, below, is a callback too.

# %%
from course_utils.lessons.lesson_03.runs import KeepHighest, NoteCheckpoints

scratch, notes = TemporaryDirectory(), NoteCheckpoints()
names = "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"
layers = dict(zip(names, (2, 64, 64, 2), strict=True))


def main_model(seed):
    """Two layers of width 64; from the hub: DistilBERT, a small pretrained encoder."""
    set_seed(seed)
    return load_classifier(num_labels, source, **(layers if source == "local" else {}))


# %% tags=["nbval-ignore-output"]
trainer = Trainer(
    main_model(seed),
    TrainingArguments(f"{scratch.name}/main", disable_tqdm=False, **settings),
    train_dataset=train_rows,
    eval_dataset=validation_rows,
    data_collator=collate,
    compute_metrics=compute_metrics,
    callbacks=[notes, KeepHighest("eval_macro_f1")],
)
result = trainer.train()
teach.claim("it made every step", result.global_step == max_steps)

# %%
state = trainer.state
teach.show(figures.training_curves(state.log_history, state.best_global_step))

# %% [markdown]
# The model learns its 3,000 rows by heart: the training loss steps down when an epoch ends and known rows come again;
# the validation loss turns and rises. The best checkpoint by loss is not the last, and it is in memory now: we evaluate
# again. (Accuracy and macro-F1 grow on for a while: section 6.)

# %% tags=["nbval-ignore-output"]
from transformers.utils.notebook import NotebookProgressCallback

trainer.remove_callback(NotebookProgressCallback)  # no more tables from here on
again = trainer.evaluate()["eval_loss"]
print(f"best at step {state.best_global_step}: validation loss {again:.3f}")
full_run = max_steps >= 400 and source == "local"
middle = state.best_global_step < max_steps
teach.claim("the best checkpoint is not the last", middle, when=full_run)
near = abs(again - state.best_metric) < 1e-4
teach.claim("the model in memory has the best loss, within 1e-4", near)

# %% [markdown]
# `state.log_history` is a list of dictionaries. A logged `loss` is the mean over the steps since the last log.
# With the default `logging_steps=500` this run would have logged none.
#
# `quiet_trainer` makes a Trainer without table and printing; every keyword that it does not name goes to
# `TrainingArguments`. `logged(trainer, key)` gives step and value of each log entry that has the key. The *tiny* model,
# one layer, keeps demonstrations short.

# %%
from course_utils.training.settings import logged, quiet_trainer


def tiny_model(**changes):
    """The same weights at every call."""
    set_seed(seed)  # below, vocab_size: a tokenizer from the hub has more tokens
    sizes = layers | {"num_hidden_layers": 1} | changes
    return load_classifier(num_labels, vocab_size=len(tokenizer), **sizes)


few_rows = train_rows.select(range(960))
some_rows = validation_rows.select(range(min(300, len(validation_rows))))

# %% [markdown]
# ## 2 · Is it really the same loop?
#
# Lesson 01's loop and the Trainer get the same weights, rows and settings. Three things must be pinned:
#
# 1. **Order.** The Trainer shuffles. `train_sampling_strategy="sequential"` keeps the rows' order.
# 2. **Dropout.** Both must draw the same random numbers. Starting PyTorch's `DataLoader` draws one number from the
#    global generator, lesson 01's `ShuffledBatches` draws none. So the callback `SeedFirstStep` seeds just before the
#    first forward pass.
# 3. **Arithmetic.** The same AdamW (*fused*: one call for many tensors) on the same processor, `use_cpu=True`.

# %%
from course_utils.lessons.lesson_03.runs import SeedFirstStep

steps = min(40, max_steps)
warmup = min(10, steps)
pinned = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_steps": steps}
pinned |= {"lr_scheduler_type": "cosine", "warmup_steps": warmup, "seed": seed}
pinned |= {"per_device_train_batch_size": 32, "logging_steps": 1, "use_cpu": True}
pinned |= {"train_sampling_strategy": "sequential", "data_collator": collate}
pinned |= {"callbacks": [SeedFirstStep()]}
two_layers = {"num_hidden_layers": 2}
of_trainer = quiet_trainer(tiny_model(**two_layers), scratch.name, train_rows, **pinned)
result = of_trainer.train()

# %% [markdown]
# The loop's run, from lesson 01:

# %%
from course_utils.data.batches import ShuffledBatches
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import parameter_groups
from course_utils.training.schedules import make_scheduler

model = tiny_model(**two_layers)
groups = parameter_groups(model, weight_decay=0.01)
optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
scheduler = make_scheduler(optimizer, "cosine", warmup, steps)
batches = ShuffledBatches(train_rows, 32, collate, shuffle=False)
set_seed(seed)
history = train(model, batches, optimizer, LoopConfig(steps), scheduler)

# %%
for key in ("loss", "grad_norm", "learning_rate"):
    ours = [record[key] for record in history]
    theirs = [value for _, value in logged(of_trainer, key)]
    worst = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    teach.claim(f"{key}: equal at all {len(ours)} steps, bit for bit", worst == 0)
pairs = zip(of_trainer.model.parameters(), model.parameters(), strict=True)
worst = max((a - b).abs().max().item() for a, b in pairs)
teach.claim("no weight differs at the end", worst == 0)

# %% [markdown]
# ### Deeper: what does the convenience cost?
#
# The Trainer does bookkeeping around each step: callbacks, control flags, a check for NaN, a counter of operations. We
# note the processor time after every step of both, on the tiny model, where a fixed cost per step weighs most. Same
# rows, same order, in turns; step by step the Trainer's time is divided by the loop's, and a round's median counts.

# %%
import itertools
import statistics
import time

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """The processor time at the end of every optimizer step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.process_time())


def gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


def steps_of_trainer(count):
    clock = Clock()
    options = {"per_device_train_batch_size": 32, "callbacks": [clock]}
    options |= {"train_sampling_strategy": "sequential", "max_steps": count}
    data = {"train_dataset": few_rows, "data_collator": collate}
    quiet_trainer(tiny_model(), scratch.name, **data, **options).train()
    return gaps(clock.times)


# %%
def steps_of_loop(count):
    times = []
    model = tiny_model().to(trainer.args.device)  # where the Trainer puts it
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=5e-5, fused=True)
    batches = ShuffledBatches(few_rows, 32, collate, shuffle=False)

    def note(record):
        times.append(time.process_time())

    train(model, batches, optimizer, LoopConfig(count), on_step=note)
    return gaps(times)


# %% tags=["nbval-ignore-output"]
rounds = [(steps_of_trainer(25), steps_of_loop(25)) for _ in range(3)]
ratios = [statistics.median(map(float.__truediv__, *both)) for both in rounds]
of_loop = 1e3 * statistics.median(rounds[0][1])
print(f"loop: {of_loop:.0f} ms a step; Trainer / loop:", [round(r, 2) for r in ratios])
half_more = statistics.median(ratios) < 1.5
teach.claim("the Trainer's step takes under half as much again", half_more)

# %% [markdown]
# If the rounds scatter around 1, the two cannot be told apart here; `make bench` has more rounds and larger models.
#
# One part of the cost depends on the model. To count floating point operations, the Trainer walks through all parameter
# tensors after each micro-batch. Three models show what matters: the number of tensors, not their size.


# %% tags=["nbval-ignore-output"]
def counter_cost(**sizes):
    """Parameters, parameter tensors, and the fastest of 30 counts in milliseconds."""
    model, times = tiny_model(**sizes), []
    counting = quiet_trainer(model, scratch.name)
    batch = {"input_ids": torch.zeros(32, 24, dtype=torch.long)}
    for _ in range(30):
        start = time.perf_counter()
        counting.floating_point_ops(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return model.num_parameters(), len(list(model.parameters())), min(times)


small, wide = counter_cost(), counter_cost(hidden_size=512)
deep = counter_cost(num_hidden_layers=12)
for name, (size, tensors, cost) in {"small": small, "wide": wide, "deep": deep}.items():
    print(f"{name:5} {size:9,} parameters in {tensors:2} tensors: {cost:.2f} ms")
larger = wide[0] > 5 * small[0] and wide[0] > deep[0] and wide[1] == small[1]
teach.claim("wide has the most parameters, and no more tensors than small", larger)
dearer = deep[2] > 2 * small[2] and deep[2] > 2 * wide[2]
teach.claim("more tensors cost over twice as much, larger ones do not", dearer)
little = small[2] < of_loop / 10
teach.claim("the small one's count is under a tenth of its step", little)

# %% [markdown]
# If your Trainer run is slow, look at padding (lesson 02), data loading and logging before you blame the Trainer.

# %% [markdown]
# ## 3 · A look inside: which method is called when
#
# To change one thing in the Trainer you must know where it happens. `trace` records every call in a `with` block. Two
# micro-batches a step, an evaluation after step 4:

# %%
from course_utils.training.trainer_trace import outline, trace

options = {"max_steps": 6, "per_device_train_batch_size": 32, "logging_steps": 2}
options |= {"gradient_accumulation_steps": 2, "per_device_eval_batch_size": 64}
options |= {"eval_strategy": "steps", "eval_steps": 4}
options |= {"data_collator": collate, "compute_metrics": compute_metrics}
model = load_classifier(num_labels, vocab_size=len(tokenizer))  # lesson 01's
traced = quiet_trainer(model, scratch.name, few_rows, some_rows, **options)
with trace(traced) as recorded:
    traced.train()
print(outline(recorded.of_step(0)))

# %% [markdown]
# Indented lines run inside the line above them. `on_substep_end` follows all but the last micro-batch. The next step,
# with times (rows by first call; it also logs):

# %% tags=["nbval-ignore-output"]
title = "One optimizer step of the Trainer, two micro-batches"
teach.show(figures.timeline(recorded.of_step(1), title))
names = [call.name for call in recorded.of_step(1)]
once = [names.count(name) for name in ("clip", "optimizer.step", "scheduler.step")]
twice = [names.count(name) for name in ("compute_loss", "backward")]
teach.claim("clip, optimizer and scheduler: once a step", once == [1, 1, 1])
teach.claim("compute_loss and backward: once a micro-batch", twice == [2, 2])

# %% [markdown]
# | method | what it does | override it for |
# |---|---|---|
# | `get_batch_samples` | takes the step's micro-batches, counts their labels: `num_items_in_batch` | another count |
# | `training_step` | inputs to the device, `compute_loss`, `backward` | two backward passes |
# | `compute_loss` | forward pass and loss | another loss (lesson 06) |
# | clip, `optimizer.step`, `scheduler.step`, `zero_grad` | once per step | nothing |
# | `on_...` (diamonds) | callback events | use a callback (lesson 05) |
#
# `get_batch_samples` runs *before* any forward pass: the loss can be divided by the labels of the whole window. Several
# devices average their gradients once a step, in the window's last `backward` (lesson 11).

# %% [markdown]
# **Evaluation** calls `prediction_step` once per batch (forward without gradients) and `compute_metrics` once at the
# end, by default on all rows: no average of batch averages.

# %%
print(outline(recorded.inside("evaluate")))

# %% [markdown]
# ### Exercise 03.1 · Predict the calls
#
# 50 training rows, `per_device_train_batch_size=4`, `gradient_accumulation_steps=3`, `max_steps=10`; 20 evaluation rows
# in batches of 8, `eval_strategy="steps"`, `eval_steps=4`. The Trainer also evaluates after the last step. An epoch's
# last micro-batch may be small and its last window short; none is dropped. How often is each called?

# %%
prediction = ...  # a dict: backward, optimizer.step, prediction_step,
# compute_loss and compute_metrics, each with a number

# %%
teach.check("03.1", prediction)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("03.1")`, then `teach.show_hint("03.1", 2)`, then `teach.show_solution("03.1")`; so in all exercises.
#
# </details>

# %% [markdown]
# ### Deeper: an evaluation, drawn, and the frame around the steps

# %% tags=["nbval-ignore-output"]
evaluation = recorded.inside("evaluate")
teach.show(figures.timeline(evaluation, "One evaluation"))
names = [call.name for call in evaluation]
whole = names.count("prediction_step") == math.ceil(len(some_rows) / 64)
teach.claim("one prediction_step a batch", whole)
final = names[::-1].index("compute_metrics") < names[::-1].index("prediction_step")
teach.claim("compute_metrics comes once, after the last of them", final)
before = torch.get_rng_state()
traced.evaluate()
drawn = not torch.equal(before, torch.get_rng_state())
teach.claim("an evaluation draws from the global random generator", drawn)

# %% [markdown]
# (Without `compute_metrics` the loop collects only the losses: `prediction_step` is told to drop the logits.) What is
# left when steps, evaluation and logging are taken out is the frame:

# %%
inside = "on_step_begin on_substep_end on_pre_optimizer_step on_optimizer_step "
inside += "on_step_end"
frame = [c for c in recorded.calls if c.depth == 1 and c.kind in ("setup", "callback")]
frame = [call.name for call in frame if call.name not in inside.split()]
print(" -> ".join(frame))
teach.claim("on_train_end is the last", frame[-1] == "on_train_end")

# %% [markdown]
# The Trainer's constructor has already moved the model to the device. In words, `train()` then
#
# 1. loads a checkpoint's weights, if you resume;
# 2. makes the loader and computes the number of steps from the epochs (or the other way round);
# 3. creates the optimizer (no decay for biases and norms);
# 4. hands model and optimizer to Accelerate (lesson 08), which wraps them for several processes;
# 5. creates the scheduler;
# 6. restores the state of optimizer and scheduler, if you resume;
# 7. runs epochs of steps and asks after each step whether to log, evaluate, save or stop;
# 8. logs the totals and loads the best checkpoint, if asked. With `save_total_limit=1` it now deletes a last checkpoint
#    that is not the best.

# %% [markdown]
# ## 4 · The arguments, group by group
#
# Names and defaults are read from the installed class. The typical values form one valid configuration together.

# %%
import dataclasses

from IPython.display import Markdown, display

from course_utils.training.settings import default_of, settings_table

print(len(dataclasses.fields(TrainingArguments)), "fields, of which you need these:")
display(Markdown(settings_table()))

# %% [markdown]
# To know:
#
# - **Batch**: effective batch = `per_device_train_batch_size` x devices x `gradient_accumulation_steps`.
# - **Logging, evaluation, checkpoints**: each has a *strategy* ("no", "steps", "epoch") and a number of steps.
# - **Reproducibility**: `seed` drives row order and dropout. A model that you built before the Trainer needs its own
#   `set_seed`, or `model_init`, a function that builds it after seeding.
#
# The defaults are not lesson 01's run:

# %%
from course_utils.lessons.lesson_03.runs import LESSON_01

for name, value in LESSON_01.items():
    print(f"{name:28} lesson 01: {value!s:7} default: {default_of(name)}")
agreeing = [name for name, value in LESSON_01.items() if default_of(name) == value]
wanted = ["lr_scheduler_type", "max_grad_norm"]
teach.claim("only the schedule and clipping agree by default", agreeing == wanted)

# %% [markdown]
# ### Exercise 03.2 · Translate a loop's settings
#
# `loop` describes a run of lesson 01's loop. Return the Trainer's keyword arguments for it (arguments only: a window's
# loss is section 10's). `max_grad_norm=0.0` means no clipping, for the Trainer too, `eval_every=0` no evaluation,
# `micro_batch` is the number of rows per forward pass, `schedule` a value of `lr_scheduler_type`. Logging and saving
# are free.

# %%
from course_utils.lessons.lesson_03.exercises import LOOPS

print(LOOPS[0])


# %%
def trainer_arguments(loop):
    """The Trainer's keyword arguments for the same run: a dict."""
    return ...


# %%
teach.check("03.2", trainer_arguments)

# %% [markdown]
# ### Deeper: what makes two runs differ?
#
# Two runs that "had the same settings" give different curves. Which field is it? Some fields only name, place or report
# a run and cannot change a weight: `BOOKKEEPING`. (`save_strategy` and `save_steps` are not among these: they decide
# which weights `load_best_model_at_end` finds.)

# %%
from course_utils.training.settings import BOOKKEEPING

print(sorted(BOOKKEEPING)[:6], "...")

# %% [markdown]
# #### Exercise 03.3 · The settings that differ
#
# Return the *set of names* of the fields in which two `TrainingArguments` differ, without those in `BOOKKEEPING`.


# %%
def differing_settings(first, second):
    """The names of the fields that differ: a set."""
    return ...


# %%
teach.check("03.3", differing_settings)

# %% [markdown]
# Now use it. Here are two runs of the same program. Their first two losses agree and from the third on they differ.
# Which setting is it, and why does it take until the third loss?


# %%
def mystery(name, **secret):
    options = {"max_steps": 6, "logging_steps": 1, "learning_rate": 1e-3}
    options |= {"use_cpu": True, "data_collator": collate} | secret
    run = quiet_trainer(tiny_model(), f"{scratch.name}/{name}", few_rows, **options)
    run.train()
    return run


hidden = bytes.fromhex("6164616d5f6265746132").decode()  # your function will find it
twins = [mystery("first"), mystery("second", **{hidden: 0.5})]
pairs = zip(*(logged(run, "loss") for run in twins), strict=True)
agree = [abs(a - b) < 1e-5 for (_, a), (_, b) in pairs]
yours = differing_settings(twins[0].args, twins[1].args)
print("your answer:", "none yet" if yours is ... else yours)
teach.claim("two losses agree to 1e-5, then none", agree == [1, 1, 0, 0, 0, 0])

# %% [markdown]
# <details><summary>Which setting, and why the third?</summary>
#
# The first loss is computed before any update. The first update does not depend on the betas: after bias correction the
# moments of step 1 are the gradient and its square, so the update is about learning rate x sign of the gradient. From
# the second update on, beta2 decides how the old and the new square are mixed.
#
# </details>

# %% [markdown]
# ### Deeper: two kinds of error
#
# A misspelt argument is a `TypeError`, a contradiction a `ValueError`, both before any work starts:

# %%
for wrong in ({"learning_rat": 1e-3}, {"load_best_model_at_end": True}):
    try:
        TrainingArguments(scratch.name, **wrong)
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}:", *str(error).split())

# %% [markdown]
# ### Deeper: old spellings that you may see
#
# The old names are gone, but for `gradient_checkpointing`, which is a deprecated alias. The cells below check the rows;
# section 8 uses the environment variable.
#
# | old | now |
# |---|---|
# | `TrainingArguments(evaluation_strategy=)` | `eval_strategy=` |
# | `warmup_ratio=0.1` | `warmup_steps=0.1` |
# | `group_by_length=True` | `train_sampling_strategy="group_by_length"` |
# | `no_cuda=True` | `use_cpu=True` |
# | `logging_dir=` | environment variable `TENSORBOARD_LOGGING_DIR` |
# | `overwrite_output_dir`, `save_safetensors`, `include_inputs_for_metrics`, `push_to_hub_token` | removed |
# | `Trainer(tokenizer=)` | `processing_class=`: a tokenizer, or an image processor |
# | `optim="adamw_hf"` | `optim="adamw_torch_fused"`, the default |
# | `gradient_checkpointing=True` | `activation_checkpointing=True` (lesson 09) |
# | `report_to`: default "all", every tracker that is installed | default "none" |
# | `def compute_loss(self, model, inputs, return_outputs=False)` | one more: `num_items_in_batch=None` |

# %%
from course_utils.training.settings import is_argument

renamed = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "no_cuda": "use_cpu",
}
removed = ["logging_dir", "overwrite_output_dir", "save_safetensors"]
removed += ["include_inputs_for_metrics", "push_to_hub_token"]
still_there = [old for old in [*renamed, *removed] if is_argument(old)]
there_now = [new for new in renamed.values() if is_argument(new)]
teach.claim("none of the old names is an argument any more", still_there == [])
teach.claim("all the new ones are", there_now == list(renamed.values()))
of_trainer = is_argument("processing_class", of=Trainer)
of_trainer &= not is_argument("tokenizer", of=Trainer)
teach.claim("Trainer takes processing_class, no tokenizer", of_trainer)
takes_items = is_argument("num_items_in_batch", of=Trainer.compute_loss)
teach.claim("compute_loss takes num_items_in_batch", takes_items)

# %%
fields = TrainingArguments.__dataclass_fields__
about = fields["gradient_checkpointing"].metadata["help"]
alias = about.startswith("Deprecated alias of `activation_checkpointing`")
teach.claim("gradient_checkpointing is an alias of the new name", alias)
defaults = default_of("optim"), default_of("report_to")
fused = defaults == ("adamw_torch_fused", "none")
teach.claim("defaults: fused AdamW, no tracker", fused)
try:
    TrainingArguments(scratch.name, optim="adamw_hf")
except ValueError as error:
    print("adamw_hf:", str(error).split(",")[0])

# %% [markdown]
# ## 5 · Schedules and precision
#
# A schedule multiplies the peak learning rate by a factor at each step (lesson 01). `lr_scheduler_type` names one.
# Eight of them, for 200 steps with 20 of warm-up:

# %%
from course_utils.lessons.lesson_03 import curves

schedules = curves.all_schedules()
teach.show(figures.schedules(schedules, warmup_steps=20))

# %% [markdown]
# Common practice: **linear** or **cosine** when you know the length of the run; **warm-up, stable, decay** when you do
# not: you can branch off a decay at any time. Options go into `lr_scheduler_kwargs`.
#
# **16 bits** halve memory traffic, and GPUs multiply matrices faster in them (lesson 09). **fp16** has 5 bits for the
# exponent and 10 for the fraction; **bf16** has the 8 exponent bits of fp32 and 7 for the fraction. Below a format's
# smallest *normal* number come *subnormal* ones, with fewer and fewer digits, then zero.

# %%
formats = curves.number_formats()
teach.show(figures.number_formats(formats))

# %% [markdown]
# fp16 overflows above 65504 and small gradients vanish in it, so it needs *loss scaling*, a factor on the loss that the
# Trainer finds by itself (*Deeper*). bf16 needs none, but loses small updates to weights near 1. So *mixed* precision
# keeps weights and optimizer in fp32 and casts only inside the forward pass. Hence:
#
# - `bf16=True` on NVIDIA Ampere (2020) or newer, TPUs, recent CPUs (there with `use_cpu=True`);
# - `fp16=True` on older NVIDIA GPUs (V100, T4); watch for skipped steps;
# - fp32 if unsure, or if the run is short.

# %% [markdown]
# ### Deeper: the library's schedules are lesson 01's

# %%
from course_utils.training.schedules import cosine_with_warmup, linear_with_warmup

functions = {"linear": linear_with_warmup, "cosine": cosine_with_warmup}
for name, function in functions.items():
    own = [function(step, 20, 200) for step in range(200)]
    worst = max(abs(a - b) for a, b in zip(own, schedules[name], strict=True))
    teach.claim(f"{name}: equal within 1e-12", worst <= 1e-12)
pairs = zip(curves.schedule("polynomial"), schedules["linear"], strict=True)
worst = max(abs(a - b) for a, b in pairs)
teach.claim("polynomial without power is linear, within 1e-6", worst < 1e-6)

# %% [markdown]
# ### Deeper: five numbers in 16 bits
#
# The second-last line is why mixed precision keeps the weights in fp32; the last is what loss scaling is for.

# %%
half, brain = torch.float16, torch.bfloat16
for text, number in {
    "fp16: 65504 * 2": torch.tensor(65504.0, dtype=half) * 2,
    "bf16: 65504 * 2": torch.tensor(65504.0, dtype=brain) * 2,
    "fp16: 1 + 0.001": torch.tensor(1.0, dtype=half) + 0.001,
    "bf16: 1 + 0.001": torch.tensor(1.0, dtype=brain) + 0.001,
    "fp16: 1e-8": torch.tensor(1e-8, dtype=half),
}.items():
    print(f"{text:15} = {number.item():.6g}")

# %% [markdown]
# ### Deeper: gradients that vanish, and loss scaling
#
# Below 6e-5 fp16 has only subnormal numbers; below 3e-8 it rounds to zero. Gradients are small numbers. Where do those
# of lesson 01's classifier lie, on one batch?

# %%
set_seed(seed)
model = load_classifier(num_labels, vocab_size=len(tokenizer))
model(**collate([train_rows[i] for i in range(32)])).loss.backward()
gradients = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
gradients = gradients[gradients > 0]  # most embedding rows do not occur in the batch


def in_fp16(values):
    """Share that is zero, share that is subnormal, number that overflows."""
    cast = values.to(half)
    subnormal = (cast > 0) & (cast < torch.finfo(half).tiny)
    zero = (cast == 0).double().mean().item()
    return zero, subnormal.double().mean().item(), cast.isinf().sum().item()


# %% tags=["nbval-ignore-output"]
zero, subnormal, _ = in_fp16(gradients)
print(f"in fp16: {zero:.3%} are zero, {subnormal:.1%} subnormal")
teach.claim("in fp16 over 5 % of the gradients are subnormal", subnormal > 0.05)

# %% [markdown]
# Multiplying the loss by a *scale* multiplies every gradient. But the largest may then exceed 65504. The scaler
# therefore searches: it starts at 65,536, skips a step whose gradients overflowed, halves the scale, and doubles it
# again after 2,000 good steps. By hand:

# %% tags=["nbval-ignore-output"]
scale = 2.0**16
while (too_large := in_fp16(gradients * scale)[2]) > 0:
    print(f"x {scale:,.0f}: {too_large} too large, the step is skipped")
    scale /= 2
zero, scaled, _ = in_fp16(gradients * scale)
print(f"x {scale:,.0f}: none too large, {zero:.3%} zero, {scaled:.1%} subnormal")
teach.claim("a scale above 1,000 will do", scale > 1000)
teach.claim("with it, under a tenth as many are subnormal", scaled < subnormal / 10)

# %%
limits = formats["float16"]["smallest"], formats["float16"]["tiny"]
teach.show(figures.gradient_underflow(gradients.tolist(), *limits, scale))

# %% [markdown]
# That is **loss scaling**: multiply the loss, compute gradients in fp16, divide them again before clipping and
# stepping. The Trainer does it for `fp16=True` on a GPU (`torch.amp.GradScaler`). Our cast is a sketch: in such a run
# the gradients of some parameters (embeddings) stay in fp32, and those of activations, not counted here, are fp16.

# %% [markdown]
# ### Deeper: a run in bf16, and fp16 on a CPU
#
# Do the losses stay together? Twenty steps in fp32 and in bf16, same weights, same order. We use the GPU if there is
# one, otherwise the CPU, where bf16 must be asked for together with `use_cpu`:

# %%
on_cpu = not torch.cuda.is_available()


def losses_with(**precision):
    options = {"max_steps": 20, "logging_steps": 1, "learning_rate": 1e-3}
    options |= {"use_cpu": on_cpu, "data_collator": collate} | precision
    run = quiet_trainer(tiny_model(), scratch.name, few_rows, **options)
    run.train()
    kinds = {parameter.dtype for parameter in run.model.parameters()}
    return [loss for _, loss in logged(run, "loss")], kinds


# %% tags=["nbval-ignore-output"]
losses_fp32, _ = losses_with()
losses_bf16, kinds = losses_with(bf16=True)
worst = max(abs(a - b) for a, b in zip(losses_fp32, losses_bf16, strict=True))
print(f"losses {losses_fp32[0]:.1f} to {losses_fp32[-1]:.1f}, off by {worst:.4f}")
teach.claim("bf16 and fp32 differ, by less than 0.05", 0 < worst < 0.05)
teach.claim("weights are kept in fp32", kinds == {torch.float32})

# %% [markdown]
# One trap that only measuring finds: on a CPU `fp16=True` is accepted and **ignored**.

# %%
if on_cpu:
    losses_fp16, _ = losses_with(fp16=True)
    worst = max(abs(a - b) for a, b in zip(losses_fp32, losses_fp16, strict=True))
    teach.claim("fp16 on a CPU: the losses of fp32, to the last bit", worst == 0)

# %% [markdown]
# ## 6 · Keep the best
#
# - `save_strategy`: "steps", "epoch", "best" (when the metric improves) or "no".
# - `save_total_limit=2` deletes older checkpoints after each save (plan disk for three), **but never the best one**, if
#   `metric_for_best_model` is set and that step was saved.
# - `load_best_model_at_end=True` needs the same strategy for evaluating and saving, and `save_steps` a multiple of
#   `eval_steps`; or `save_strategy="best"`.
# - `metric_for_best_model` says what is best, `greater_is_better` in which direction. Unless you set it, the Trainer
#   guesses from the name: smaller is better only if it ends in "loss".

# %%
guess = TrainingArguments(scratch.name, metric_for_best_model="eval_error_rate")
teach.claim("it would keep the largest error rate", guess.greater_is_better)

# %% [markdown]
# Section 1's run:

# %% tags=["nbval-ignore-output"]
teach.show(figures.checkpoints_on_disk(notes.kept, notes.best))
most = max(len(kept) for kept in notes.kept.values())
teach.claim("after each save at most two checkpoints on disk", most <= 2)
lost = [s for s, kept in notes.kept.items() if notes.best[s] not in kept]
teach.claim("after every save the best one is among them", lost == [])

# %% [markdown]
# **What does keeping the best buy?** Section 1's run and two more seeds. Of each we have the weights of the lowest
# validation loss, of the highest validation macro-F1, and the last. `scores_of` evaluates them on the test rows, which
# chose nothing.

# %%
from course_utils.lessons.lesson_03.runs import load_weights, scores_of
from course_utils.training.paired import mean_interval


def repeat(seed):
    options = settings | {"data_collator": collate, "seed": seed}
    options |= {"compute_metrics": compute_metrics}
    options |= {"callbacks": [KeepHighest("eval_macro_f1")]}
    place, data = f"{scratch.name}/seed-{seed}", (train_rows, validation_rows)
    run = quiet_trainer(main_model(seed), place, *data, **options)
    run.train()
    return run


# %% tags=["nbval-ignore-output"]
gains = {by: {"loss": [], "macro_f1": []} for by in ("lowest loss", "highest macro-F1")}
for run in (trainer, repeat(seed + 1), repeat(seed + 2)):
    last = scores_of(run, f"checkpoint-{max_steps}", test_rows)
    folders = f"checkpoint-{run.state.best_global_step}", "highest"
    for folder, gain in zip(folders, gains.values(), strict=True):
        scores = scores_of(run, folder, test_rows)
        for name, values in gain.items():
            values.append(scores[f"eval_{name}"] - last[f"eval_{name}"])
for by, gain in gains.items():
    differences = (f"{value:+.3f}" for value in gain["macro_f1"])
    print(f"{by:16}: macro-F1 minus the last's", *differences)
teach.show(figures.kept_minus_last(gains))
lower = mean_interval(gains["lowest loss"]["loss"]).high < 0
teach.claim("lowest loss: less loss than the last", lower, when=full_run)
by_loss, by_f1 = (sum(gain["macro_f1"]) / 3 for gain in gains.values())
teach.claim("less macro-F1 on average", by_loss < min(0, by_f1), when=full_run)

# %% [markdown]
# Chosen by loss, the weights are better in loss and, on average, worse in macro-F1 than the last and than those chosen
# by macro-F1. (Three runs are few: with some other seeds the interval holds 0.) Chosen by macro-F1, they do not
# measurably beat the last: both intervals hold 0. If you choose, do it by the metric that judges you.
#
# **`predict`** is `evaluate` that also returns the logits. Careful with `train_sampling_strategy="group_by_length"`: it
# reorders *evaluation* rows too, `label_ids` with the predictions, but not your texts: `zip(rows, predictions)` gives a
# row another row's prediction. Set it to "random" first.

# %%
labels, moved = list(some_rows["label"]), {}
for strategy in ("random", "group_by_length"):
    trainer.args.train_sampling_strategy = strategy
    found = list(trainer.predict(some_rows).label_ids)
    moved[strategy] = sum(a != b for a, b in zip(found, labels, strict=True))
    print(f"{strategy:15} {moved[strategy]} of {len(labels)} labels differ")
trainer.args.train_sampling_strategy = "random"
teach.claim("random keeps the rows' order in evaluation", moved["random"] == 0)
many = moved["group_by_length"] > 0.2 * len(labels)
teach.claim("group_by_length: over a fifth beside another row", many)

# %% [markdown]
# ### Deeper: are long rows easier?
#
# With `group_by_length` the rows go from long to short within each block of 50 batches (lesson 02). If long rows are
# easier, the training loss should rise within a block and fall at the next one: saw teeth. Are they easier?

# %% tags=["nbval-ignore-output"]
load_weights(trainer, "highest")
test = trainer.predict(test_rows)
teach.claim("in the rows' order", list(test.label_ids) == list(test_rows["label"]))
logits, labels = torch.tensor(test.predictions), torch.tensor(test.label_ids)
losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")  # (N,)
lengths = torch.tensor([len(ids) for ids in test_rows["input_ids"]])
is_long = lengths > lengths.median()
longer, shorter = losses[is_long].mean().item(), losses[~is_long].mean().item()
print(f"loss of the longer half {longer:.2f}, of the shorter half {shorter:.2f}")
teach.claim("longer rows have a lower loss", longer < shorter, when=full_run)

# %% [markdown]
# ### Deeper: saved and evaluated at the last step
#
# Three runs of seven steps. Their learning rate is 0, so only the first evaluation is an improvement. "steps" and
# "epoch" also save after the last step, "best" does not; with `eval_strategy="steps"` all evaluate there.

# %%
from course_utils.lessons.lesson_03.runs import on_disk


def saved_and_evaluated(strategy):
    options = {"max_steps": 7, "learning_rate": 0.0, "save_only_model": True}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    options |= {"save_strategy": strategy, "save_steps": 2}
    options |= {"metric_for_best_model": "loss", "per_device_eval_batch_size": 100}
    options |= {"use_cpu": True, "data_collator": collate}
    place = f"{scratch.name}/saves_{strategy}"
    run = quiet_trainer(tiny_model(), place, few_rows, some_rows, **options)
    run.train()
    return on_disk(place), [step for step, _ in logged(run, "eval_loss")]


for strategy, wanted in {"steps": [2, 4, 6, 7], "epoch": [7], "best": [2]}.items():
    saved, evaluated = saved_and_evaluated(strategy)
    print(f"{strategy}: evaluated after {evaluated}, saved after {saved}")
    expected = saved == wanted and evaluated == [2, 4, 6, 7]
    teach.claim(f"{strategy}: as the rule says", expected)

# %% [markdown]
# #### Exercise 03.4 · Which checkpoint does `load_best_model_at_end` load?
#
# `evaluations` is a list of `(step, value)`, `saved` the set of steps with a checkpoint. The Trainer loads the last
# checkpoint that was the best *at the time it was saved*; of equal values the first stays the best. Every saved step
# was evaluated. Return the checkpoint's step, or 0 if nothing is loaded.


# %%
def best_checkpoint(evaluations, saved, greater_is_better):
    """The step of the checkpoint that is loaded, or 0."""
    return ...


# %%
teach.check("03.4", best_checkpoint)

# %% [markdown]
# ### Deeper: the same metrics with the `evaluate` library
#
# `evaluate` gives metrics one interface and can combine them and feed them batch by batch. `evaluate.load("accuracy")`
# fetches a script from the hub. Offline, or for a metric of your own, the script is a file you write: a folder
# `accuracy/accuracy.py` with a subclass of `evaluate.Metric`. (In `METRIC` a doubled brace is one that `format` keeps.)

# %%
METRIC = """
import datasets
import evaluate
from sklearn.metrics import {function}


class Metric(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        columns = datasets.Features({{"predictions": number, "references": number}})
        about = {{"description": "{name}", "citation": "", "features": columns}}
        return evaluate.MetricInfo(**about)

    def _compute(self, predictions, references):
        return {{"{name}": float({function}(references, predictions{options}))}}
"""
options = ', average="macro", zero_division=0'
functions = {"accuracy": ("accuracy_score", ""), "macro_f1": ("f1_score", options)}
for name, (function, extra) in functions.items():
    folder = Path(scratch.name) / name
    folder.mkdir()
    text = METRIC.format(name=name, function=function, options=extra)
    (folder / f"{name}.py").write_text(text)

# %%
import evaluate

where = {"cache_dir": scratch.name, "keep_in_memory": True}
modules = [evaluate.load(f"{scratch.name}/{name}", **where) for name in functions]
metrics = evaluate.combine(modules)
predicted = test.predictions.argmax(-1)
for start in range(0, len(predicted), 500):
    part = slice(start, start + 500)
    metrics.add_batch(predictions=predicted[part], references=test.label_ids[part])
for name, value in metrics.compute().items():
    apart = abs(value - test.metrics[f"test_{name}"])
    teach.claim(f"{name}: the Trainer's own within 1e-12", apart <= 1e-12)

# %% [markdown]
# ## 7 · Resume
#
# A checkpoint holds what lesson 01 saved by hand: weights, moments, place in the schedule, random states, step and log.
# `trainer.train(resume_from_checkpoint=True)` takes the newest checkpoint in `output_dir`. (With `save_only_model=True`
# it holds the weights only: a resume raises nothing and starts the rest anew.) A resume is exact if losses and weights
# are those of a run without a break. Ours has 20 steps; 15 are an epoch. `killed` makes the folder that a run killed
# after a save would leave.

# %%
from course_utils.lessons.lesson_03.runs import equal_weights, killed


def resumable(name, weights_seed=seed, **changes):
    set_seed(weights_seed)
    options = {"max_steps": 20, "per_device_train_batch_size": 32}
    options |= {"learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True}
    options |= {"save_strategy": "steps", "save_steps": 8, "seed": seed}
    options |= {"data_collator": collate} | changes
    model = load_classifier(num_labels, vocab_size=len(tokenizer), **layers)
    data = few_rows.select(range(480))
    return quiet_trainer(model, f"{scratch.name}/{name}", data, **options)


def kill_and_resume(whole, step, name, weights_seed=seed, **changes):
    """A new Trainer that goes on from the checkpoint of ``step`` of ``whole``."""
    killed(whole, step, f"{scratch.name}/{name}")
    resumed = resumable(name, weights_seed, **changes)
    resumed.train(resume_from_checkpoint=True)
    return resumed


# %% [markdown]
# A *new* Trainer with *other* initial weights resumes at step 8, in the middle of an epoch, with dropout:

# %%
whole = resumable("whole")
result = whole.train()
resumed = kill_and_resume(whole, 8, "resumed", weights_seed=seed + 1)
losses = [logged(run, "loss")[8:] for run in (whole, resumed)]  # 8 are the file's
equal = len(losses[0]) == 12 and losses[0] == losses[1]
teach.claim("the losses of steps 9 to 20 are equal, bit for bit", equal)
teach.claim("so are the weights", equal_weights(whole, resumed))

# %% [markdown]
# **The second epoch.** With "random" the rows' order follows from the seed and the epoch's number. With
# "group_by_length" it is drawn from the global random generator when the epoch begins, and on resume that happens
# *before* the checkpoint's random state is restored. In the first epoch this does no harm: the generator was just
# seeded. A run killed in a later epoch goes on with another order.

# %%
by_length = {"train_sampling_strategy": "group_by_length"}
grouped = resumable("grouped", **by_length)
result = grouped.train()
first = kill_and_resume(grouped, 8, "grouped-8", **by_length)
second = kill_and_resume(grouped, 16, "grouped-16", **by_length)
random = kill_and_resume(whole, 16, "random-16")
exact = [equal_weights(grouped, first), equal_weights(whole, random)]
teach.claim("exact: grouped in epoch 1, random in epoch 2", all(exact))
off = logged(grouped, "loss")[16][1] - logged(second, "loss")[16][1]
print(f"grouped, killed in epoch 2: the next loss differs by {abs(off):.2f}")
teach.claim("grouped is not exact in epoch 2", not equal_weights(grouped, second))

# %% [markdown]
# ### Exercise 03.5 · Keep the best, and resume exactly
#
# `error_rate` is a metric of `compute_metrics`; small is better. Change the settings, and add to them, until: (1) the
# run ends with the weights of its best evaluation, whichever that is; (2) after each save there are at most two
# checkpoints; (3) killed after any save, in any epoch, it goes on exactly. Evaluations stay.
# `save_strategy="best"` is allowed.

# %%
from course_utils.lessons.lesson_03.exercises_repair import GIVEN_SETTINGS

print(GIVEN_SETTINGS)

# %%
better_settings = ...  # the whole dictionary: GIVEN_SETTINGS, changed and completed

# %%
teach.check("03.5", better_settings)

# %% [markdown]
# ### Deeper: what is in a checkpoint
#
# `get_last_checkpoint` finds the newest by its number: as text, "checkpoint-50" would come after "checkpoint-100".

# %%
from transformers.trainer_utils import get_last_checkpoint

purpose = {
    "config.json": "the architecture: from_pretrained reads it",
    "model.safetensors": "weights",
    "optimizer.pt": "both moments of every weight",
    "scheduler.pt": "position in the schedule",
    "rng_state.pth": "Python, NumPy, torch (and CUDA) generators",
    "trainer_state.json": "step, epoch, log_history, best metric",
    "training_args.bin": "the settings",
}
checkpoint = Path(get_last_checkpoint(trainer.args.output_dir))
files = {path.name for path in checkpoint.iterdir()}
for name, text in purpose.items():
    print(f"{name:19} {text}")
teach.claim("all of them are in the newest checkpoint", set(purpose) <= files)
sizes = [(checkpoint / name).stat().st_size for name in list(purpose)[1:3]]
twice = sizes[1] / sizes[0]
teach.claim("optimizer: about twice the weights", 1.9 < twice < 2.1)

# %% [markdown]
# ### Deeper: a file is missing
#
# (First something for the next section that takes ten seconds: a script that reports to two trackers. It starts now and
# works beside this section.)

# %%
from course_utils.lessons.lesson_03 import tracking

tracked_in = f"{scratch.name}/trackers"
tracking_process = tracking.start(tracked_in)

# %% [markdown]
# An exact resume needs every file. Without the random state the run goes on and ends elsewhere. Optimizer and scheduler
# are loaded only if *both* files are there: without one of them the moments restart at zero, and the learning rate
# where the schedule begins (here, without warm-up, at its peak). None of the three raises anything:

# %%
planned = dict(logged(whole, "learning_rate"))
peak = planned[1]
after = {"rng_state.pth": planned[9], "optimizer.pt": peak, "scheduler.pt": peak}
for missing, wanted in after.items():
    (killed(whole, 8, f"{scratch.name}/no_{missing}") / missing).unlink()
    other = resumable(f"no_{missing}")
    other.train(resume_from_checkpoint=True)
    rate = dict(logged(other, "learning_rate"))[9]
    print(f"without {missing:13} rate of step 9: {rate:.4f}")
    wrong = rate == wanted and not equal_weights(whole, other)
    teach.claim("it goes on and ends with other weights", wrong)

# %% [markdown]
# Without weights or step it does raise:

# %%
refused = []
for missing in ("model.safetensors", "trainer_state.json"):
    (killed(whole, 8, f"{scratch.name}/no_{missing}") / missing).unlink()
    try:
        resumable(f"no_{missing}").train(resume_from_checkpoint=True)
    except (ValueError, FileNotFoundError) as error:
        refused.append(missing)
        print(f"without {missing:18} {type(error).__name__}")
teach.claim("both are refused", len(refused) == 2)

# %% [markdown]
# `save_only_model=True` leaves out optimizer, scheduler and random state: a third of the size.

# %%
light = resumable("only_model", save_only_model=True)
result = light.train()
folders = [Path(run.args.output_dir) / "checkpoint-8" for run in (light, whole)]
files = [{path.name for path in folder.iterdir()} for folder in folders]
sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
print("left out:", sorted(files[1] - files[0]))
teach.claim("under 0.4 of the full size", sizes[0] / sizes[1] < 0.4)
restarted = kill_and_resume(light, 8, "from_only_model")
rates = dict(logged(restarted, "learning_rate"))
print(f"learning rate of step 8: {rates[8]:.5f}, of step 9: {rates[9]:.5f}")
teach.claim("the learning rate jumps back to its peak", rates[9] == peak > rates[8])

# %% [markdown]
# ## 8 · Trackers and the hub
#
# `report_to` names the trackers; the default is `"none"`. A tracker is a callback that receives each log entry.
#
# - **TensorBoard** writes event files below `output_dir`. In JupyterLab: `%load_ext tensorboard`, then
#   `%tensorboard --logdir <folder>`.
# - **Weights & Biases**: `WANDB_MODE=offline` needs no account and writes a run folder; `wandb sync` uploads it later.
# - **Trackio** writes an SQLite file, and `trackio show` opens a dashboard.
#
# `push_to_hub=True` uploads to a model repository, which is public unless you say otherwise.

# %% [markdown]
# ### Deeper: what `push_to_hub` does
#
# `push_to_hub=True` creates a model repository and uploads weights and configuration at every save
# (`hub_strategy="every_save"`); the model card only with `trainer.push_to_hub()`. It needs a token (`hf auth login`).
# Private: with `hub_private_repo=True`, or by your organisation's default. This course never turns it on:

# %%
print("push_to_hub:", trainer.args.push_to_hub)
teach.claim("nothing is uploaded by default", default_of("push_to_hub") is False)

# %% [markdown]
# ### Deeper: what the three leave on disk
#
# TensorBoard in this process, into the folder that `TENSORBOARD_LOGGING_DIR` names; the files are plain records, so we
# can read them back:

# %%
import os

os.environ["TENSORBOARD_LOGGING_DIR"] = f"{scratch.name}/tensorboard"
options = {"max_steps": 10, "logging_steps": 2, "report_to": "tensorboard"}
options |= {"eval_strategy": "steps", "eval_steps": 5}
options |= {"data_collator": collate, "compute_metrics": compute_metrics}
tracked = quiet_trainer(tiny_model(), scratch.name, few_rows, some_rows, **options)
tracked.train()
del os.environ["TENSORBOARD_LOGGING_DIR"]

# %%
from tensorboard.backend.event_processing import event_accumulator

events = event_accumulator.EventAccumulator(f"{scratch.name}/tensorboard")
events.Reload()
in_file = [event.value for event in events.Scalars("train/loss")]
pairs = zip(in_file, logged(tracked, "loss"), strict=True)
worst = max(abs(a - b) for a, (_, b) in pairs)
teach.claim("event file = log_history, within 1e-6", worst < 1e-6)
some = ("loss", "accuracy", "macro_f1", "grad_norm")
print([tag for tag in events.Tags()["scalars"] if tag.split("/")[1] in some])

# %% [markdown]
# The other two ran in the script that section 7 started, because Trackio would start its dashboard's web server by
# itself inside a notebook. `tracking.result` waits for it and reads W&B's run file and Trackio's data base. On a
# cluster without internet: offline mode, then `wandb sync wandb/offline-run-*` from a login node. With an account:
# `wandb login` once; `run_name` and `WANDB_PROJECT` name the run.

# %%
times_found = tracking.result(tracking_process, tracked_in)
found_any = times_found["Weights & Biases"] > 0
teach.claim("W&B's run file names the training loss", found_any)
five = times_found["Trackio"] == 5
teach.claim("Trackio's data base has it in five log entries", five)

# %% [markdown]
# ## 9 · When Trainer, when your own loop?
#
# - Fine-tuning, pretraining, on any number of devices: Trainer.
# - Another loss: `compute_loss_func` (lesson 06).
# - To watch, stop, save, change something: a callback (lesson 05).
# - Another forward or backward scheme: a Trainer subclass (lesson 07).
# - Several models in turn, data made while training: your own loop, with Accelerate (lesson 08).
# - To understand or debug: your own loop, on one batch.

# %% [markdown]
# ## 10 · What goes wrong
#
# Five bugs that raise nothing.
#
# ### A column silently disappears
#
# `remove_unused_columns=True` drops every column that `forward` does not name. Here each row has a `weight` (rare
# classes count more), and the loss uses it *if it is there*. (`items` holds `num_items_in_batch`.)

# %%
from collections import Counter

counts = Counter(few_rows["label"])
weights = [len(few_rows) / (num_labels * counts[label]) for label in few_rows["label"]]
weighted_rows = few_rows.add_column("weight", weights)
print(f"weights from {min(weights):.1f} to {max(weights):.1f}")


class WeightedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **items):
        weight = inputs.pop("weight", None)  # a default that hides the bug
        outputs, labels = model(**inputs), inputs["labels"]
        cross_entropy = torch.nn.functional.cross_entropy
        loss = cross_entropy(outputs["logits"], labels, reduction="none")  # (B,)
        loss = loss.mean() if weight is None else (loss * weight).mean()  # of one batch
        return (loss, outputs) if return_outputs else loss


# %%
def weighted_run(data, **changes):
    options = {"max_steps": 10, "logging_steps": 1, "learning_rate": 1e-3}
    options |= {"use_cpu": True, "data_collator": collate} | changes
    options |= {"trainer_class": WeightedTrainer}
    run = quiet_trainer(tiny_model(), scratch.name, data, **options)
    run.train()
    return run


def apart(first, second):
    pairs = zip(logged(first, "loss"), logged(second, "loss"), strict=True)
    return max(abs(a - b) for (_, a), (_, b) in pairs)


plain, planted = weighted_run(few_rows), weighted_run(weighted_rows)
teach.claim("with weights or without: no loss differs", apart(plain, planted) == 0)

# %% [markdown]
# The check: look at a batch as the model sees it. The fix: keep the columns, and demand what you need
# (`inputs["weight"]`, without a default).

# %%
print("planted:", sorted(next(iter(planted.get_train_dataloader()))))
fixed = weighted_run(weighted_rows, remove_unused_columns=False)
print("fixed:  ", sorted(next(iter(fixed.get_train_dataloader()))))
teach.claim("now the losses differ, by over 0.01", apart(plain, fixed) > 0.01)

# %% [markdown]
# ### A NaN that the log hides
#
# Now the weights arrive, and one of them is missing in the table: NaN. The loss of its batch is NaN, so is the gradient
# norm; clipping scales all gradients by it, and after one step every weight is NaN. The default
# `logging_nan_inf_filter=True` puts a number in its place: the sum of the losses since the last log, divided by one
# more than their number.

# %%
bad_step, gap = 18, list(weights)
gap[32 * (bad_step - 1)] = float("nan")
damaged = few_rows.add_column("weight", gap)
hides, options = {}, {"max_steps": 28, "logging_steps": 2}
options |= {"remove_unused_columns": False, "per_device_train_batch_size": 32}
options |= {"train_sampling_strategy": "sequential"}
for name, flag in {"filter on, the default": True, "filter off": False}.items():
    hides[name] = weighted_run(damaged, logging_nan_inf_filter=flag, **options)
logs = {name: logged(run, "loss") for name, run in hides.items()}
teach.show(figures.hidden_nan(logs, bad_step))

# %%
last = {name: points[-1][1] for name, points in logs.items()}
parameters = hides["filter on, the default"].model.parameters()
healthy = sum(p.isfinite().any().item() for p in parameters)
teach.claim("not one weight is still finite", healthy == 0)
on, off = last.values()
teach.claim("filtered, the log says 0; unfiltered, NaN", on == 0 and math.isnan(off))

# %% [markdown]
# A loss of exactly 0 looks like a triumph. (The rise before, we think, comes from rare classes, which weigh much.) The
# filter changes the log, not the training. Set it to False; lesson 05 has a callback that stops or skips.

# %% [markdown]
# ### Labels with another name
#
# In training this is an error: no loss. In evaluation it is silent, unless a best metric is set: neither loss nor
# metrics. The same with `label_names=["label"]`, which must name the *batch's* key: `labels`. The check:
# `eval_on_start=True` evaluates *before* the first step:

# %%
cases = {
    "right": (some_rows, {}),
    "a column 'target'": (some_rows.rename_column("label", "target"), {}),
    "label_names=['label']": (some_rows, {"label_names": ["label"]}),
}
options = {"max_steps": 1, "eval_strategy": "steps", "eval_on_start": True}
options |= {"data_collator": collate, "compute_metrics": compute_metrics}
found = {}
for name, (evaluation, changes) in cases.items():
    data = few_rows, evaluation
    run = quiet_trainer(tiny_model(), scratch.name, *data, **(options | changes))
    run.train()
    first = run.state.log_history[0]
    found[name] = sorted({"eval_loss", "eval_macro_f1"} & set(first))
    print(f"{name:22} step {first['step']}: {found[name]}")
counts = [len(scores) for scores in found.values()]
teach.claim("right has both, the others neither", counts == [2, 0, 0])

# %% [markdown]
# ### The best model is never loaded
#
# `load_best_model_at_end` can load only what was *saved*. `save_steps` may be a multiple of `eval_steps`, so a best
# value between two saves is recorded and lost, without a word. The check: the step of `state.best_model_checkpoint` is
# `state.best_global_step`. The cure: save at every evaluation, or `save_strategy="best"`. A wrong direction (section 6)
# is as silent.

# %% [markdown]
# ### Accumulation multiplies the loss
#
# The Trainer's class attribute `loss_is_scaled_for_ga` says who divides the loss of a window. True: it comes divided.
# False: the Trainer divides by the number k of micro-batches. None, the default: it comes divided if `forward` accepts
# `**kwargs` (and gets `num_items_in_batch`), or if there is a `compute_loss_func`. ModernBERT's classifier ignores the
# argument: nobody divides. The check: step 1 of one batch of 32 against four of 8, without dropout. The
# cure: lesson 01's summed cross entropy, divided by the labels of the whole window.

# %%
from course_utils.training.loop import summed_cross_entropy

kinds = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")
no_dropout = dict.fromkeys(kinds, 0.0)


def first_step(pieces, **changes):
    """Loss and gradient norm of 32 rows, in so many micro-batches."""
    options = {"max_steps": 1, "logging_steps": 1, "data_collator": collate}
    options |= {"per_device_train_batch_size": 32 // pieces}
    options |= {"gradient_accumulation_steps": pieces}
    options |= {"train_sampling_strategy": "sequential"} | changes
    run = quiet_trainer(tiny_model(**no_dropout), scratch.name, few_rows, **options)
    run.train()
    return [logged(run, key)[0][1] for key in ("loss", "grad_norm")]


big, wrong = first_step(1), first_step(4)
cured = first_step(4, compute_loss_func=summed_cross_entropy)
for name, values in {"wrong": wrong, "cured": cured}.items():
    ratios = [value / whole for value, whole in zip(values, big, strict=True)]
    print(f"{name}: loss x {ratios[0]:.2f}, gradient norm x {ratios[1]:.2f}")
teach.claim("wrong: four times the loss", abs(wrong[0] / big[0] - 4) < 1e-3)
teach.claim("cured: the big batch's", abs(cured[0] / big[0] - 1) < 1e-3)

# %% [markdown]
# AdamW divides by the gradient's size, clipping caps it: such a run may look healthy.
#
# | bug | what you see | check |
# |---|---|---|
# | a dropped column | the run without it | keys of a batch |
# | NaN, filtered | a loss of 0 | `logging_nan_inf_filter=False` |
# | labels misnamed | no scores | `eval_on_start=True` |
# | best not saved | a worse model | its step, the checkpoint's |
# | accumulation | a loss k times too large | step 1 against the big batch |

# %% [markdown]
# ### Exercise 03.6 · Repair a Trainer
#
# `build_suspect` makes a `WeightedTrainer`. Three demands: (1) weights arrive, and rows without the column `weight` are
# an error; (2) the loss of a step, and so its gradient, is the sum of weight times cross entropy over all rows of
# the *window*, divided by their number, whatever the sizes of the micro-batches; (3) a NaN shows in the log. It meets
# none. Write `build` that does. The model's `forward` returns a dictionary with `logits` and accepts `**kwargs`.
# `settings` bring the collator; yours win. In an evaluation `num_items_in_batch` counts one batch.


# %%
def build_suspect(model, rows, folder, **settings):
    options = {"trainer_class": WeightedTrainer} | settings
    return quiet_trainer(model, folder, rows, **options)


# %%
def build(model, rows, folder, **settings):
    """A Trainer, not trained yet; settings are passed on."""
    return ...


# %%
teach.check("03.6", build)

# %% [markdown]
# ### Deeper: the second cure, and the loop once more
#
# For a loss that is the mean of one micro-batch, as in `WeightedTrainer`, `loss_is_scaled_for_ga = False` makes the
# Trainer divide by k. That is exact when all micro-batches have the same number of labels, as here.


# %%
class MeanLossTrainer(Trainer):
    loss_is_scaled_for_ga = False


second = first_step(4, trainer_class=MeanLossTrainer)
teach.claim("the big batch's loss", abs(second[0] / big[0] - 1) < 1e-3)
teach.claim("and gradient norm", abs(second[1] / big[1] - 1) < 1e-3)

# %% [markdown]
# With the first cure, the Trainer equals the loop with accumulation as well, bit for bit:

# %%
accumulated = quiet_trainer(
    tiny_model(),
    scratch.name,
    few_rows,
    data_collator=collate,
    callbacks=[SeedFirstStep()],
    compute_loss_func=summed_cross_entropy,
    max_steps=8,
    logging_steps=1,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=3,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    train_sampling_strategy="sequential",
    use_cpu=True,
    seed=seed,
)
result = accumulated.train()
model = tiny_model()
optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-3, fused=True)
batches = ShuffledBatches(few_rows, 8, collate, shuffle=False)
set_seed(seed)
config = LoopConfig(max_steps=8, accumulation=3)
history = train(model, batches, optimizer, config, loss_function=summed_cross_entropy)
pairs = zip(logged(accumulated, "loss"), history, strict=True)
worst = max(abs(a - record["loss"]) for (_, a), record in pairs)
teach.claim("accumulated: no loss differs from the loop's", worst == 0)

# %% [markdown]
# ### Deeper: accumulation on several devices
#
# On several devices the Trainer averages gradients only at the last micro-batch of a window (lesson 11: `no_sync`).
# That saves traffic. Where parameters are sharded over the devices (lesson 12) it costs memory: until then each device
# keeps the gradients of *all* parameters. Averaging after every micro-batch is an option of Accelerate's that the
# Trainer passes on:

# %%
once_each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
options = {"gradient_accumulation_steps": 4, "accelerator_config": once_each}
synced = quiet_trainer(tiny_model(), scratch.name, **options)
plugin = synced.accelerator.gradient_state.plugin_kwargs
teach.claim("Accelerate was told", plugin["sync_each_batch"] is True)

# %% [markdown]
# ### Deeper: the best model is never loaded
#
# `overfit` trains on 200 rows with an evaluation every 5 steps; we look up its best step and plant saves that miss it:


# %%
def overfit(name, **changes):
    options = {"max_steps": 40, "learning_rate": 1e-3, "use_cpu": True, "seed": seed}
    options |= {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 100}
    options |= {"lr_scheduler_type": "constant", "data_collator": collate}
    options |= {"eval_strategy": "steps", "eval_steps": 5} | changes
    data = few_rows.select(range(200)), some_rows
    run = quiet_trainer(tiny_model(), f"{scratch.name}/{name}", *data, **options)
    run.train()
    return run


def best_was_loaded(run):
    checkpoint = str(run.state.best_model_checkpoint)
    return checkpoint.endswith(f"-{run.state.best_global_step}")


# %% tags=["nbval-ignore-output"]
keep = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
values = {loss: step for step, loss in logged(overfit("reference"), "eval_loss")}
best_step = values[min(values)]
keep |= {"save_strategy": "steps", "save_steps": best_step + 5}
missed = overfit("missed", **keep)
lost = missed.evaluate()["eval_loss"] - min(values)
print(f"best at step {best_step}, saved every {best_step + 5}: {lost:.3f} above")
teach.claim("the model in memory is worse than the best", lost > 0)
checks = [best_was_loaded(missed), best_was_loaded(trainer)]
teach.claim("the check tells it from section 1's run", checks == [False, True])

# %% [markdown]
# Nothing was printed, raised or loaded: memory holds the last weights. The Trainer even *knows* the best step. With
# `save_strategy="best"` memory holds the best step's file:

# %%
from safetensors.torch import load_file

keep |= {"save_strategy": "best", "save_total_limit": 1}
cured = overfit("cured", **keep)
in_file = load_file(f"{cured.state.best_model_checkpoint}/model.safetensors")
in_memory = cured.model.state_dict()
equal = [torch.equal(in_memory[name].cpu(), in_file[name]) for name in in_file]
teach.claim("memory = the best file, tensor by tensor", equal and all(equal))
teach.claim("the best step is not the last", cured.state.best_global_step < 40)

# %% [markdown]
# ## 11 · See it work
#
# Section 1's model with the highest macro-F1, on sentences written for this lesson:

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_03.runs import SENTENCES

load_weights(trainer, "highest")
names = dataset["train"].features["label"].names
batch = collate([tokenize({"text": sentence}) for sentence in SENTENCES])
with torch.no_grad():
    logits = trainer.model.eval()(**batch.to(trainer.args.device)).logits
chances, chosen = logits.softmax(-1).max(-1)
answers = [names[label] for label in chosen]
for text, chance, given in zip(SENTENCES, chances, answers, strict=True):
    print(f"{given:12} {chance:4.0%}  right: {SENTENCES[text]:10} {text}")
hits = sum(map(str.__eq__, answers, SENTENCES.values()))
teach.claim("at least three of five are right", hits >= 3, when=full_run)

# %% [markdown]
# ## Recap
#
# - The Trainer is lesson 01's loop (with accumulation: after section 10's cure), plus evaluation, checkpoints, trackers
#   and devices. With order, dropout and arithmetic pinned, 40 steps were equal bit for bit.
# - A step: `get_batch_samples`, `training_step` per micro-batch, clip, optimizer, scheduler, `zero_grad`.
# - bf16 where the hardware has it; fp16 needs loss scaling.
# - The best checkpoint is loaded only if its step was saved. Choose the metric you are judged by, and its direction.
# - "group_by_length" reorders predictions, and resumes exactly in the first epoch only.

# %% [markdown]
# ## Quiz
#
# **1.** A run has `per_device_train_batch_size=8`, `gradient_accumulation_steps=4`, 2 devices and `max_steps=1000`. How
# often is `scheduler.step()` called, how often do the devices average their gradients, how many rows make a step?
#
# <details><summary>Answer</summary>
#
# Both 1,000 times: once per optimizer step. A step has 8 x 4 x 2 = 64 rows.
#
# </details>
#
# **2.** The training loss in the log has been exactly 0 since step 3,000, and validation macro-F1 fell to that of a
# constant answer. What happened, and which setting would have told you?
#
# <details><summary>Answer</summary>
#
# A loss became NaN, then every weight. The filter makes a number of the losses since the last log; after the next log
# there are none, so it adds zeros. With `logging_nan_inf_filter=False` the log says NaN.
#
# </details>
#
# **3.** You evaluate more often, nothing else changes, and the final weights differ on a CPU. A bug?
#
# <details><summary>Answer</summary>
#
# No. Starting an evaluation's `DataLoader` draws a number from the global generator (section 2), so dropout goes on
# with others.
#
# </details>
#
# **Next:** [lesson 04](04_evaluation.ipynb) takes metrics seriously.

# %%
scratch.cleanup()
teach.claim("the scratch folder is gone", not Path(scratch.name).exists())
