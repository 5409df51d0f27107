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
# # 03 · Trainer and TrainingArguments
#
# In lesson 01 you wrote the training loop. `transformers.Trainer` is the same loop, written once for everybody: with
# evaluation, checkpoints, mixed precision, several devices and trackers. This lesson opens it up, so that you use it
# because you know what it does, and leave it when you need something else.
#
# **You will be able to**
# - write a run in a few lines and prove that it is lesson 01's loop;
# - say which method runs when in one step, and therefore which one to override;
# - choose arguments group by group, evaluate with metrics, keep the best checkpoint, resume exactly, watch curves;
# - spot four silent bugs before they cost a run.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop) and 02 (collators).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 400  # optimizer steps of the main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · The same run in a few lines
#
# The task is lesson 01's: which library does a documentation sentence come from? The Trainer wants three things from
# you: a **model** that returns a loss, **data sets** whose rows are dictionaries, and a **collator** that turns rows
# into a batch. Everything else is a setting.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from course_utils.data import load_classification
from course_utils.models import load_classifier, load_tokenizer

dataset = load_classification(source)
tokenizer = load_tokenizer(source)
num_labels = dataset["train"].features["label"].num_classes
print({name: len(split) for name, split in dataset.items()}, "labels:", num_labels)


# %% [markdown]
# `map` tokenises each split once (lesson 02). We keep `label` under its own name for now: the collator renames it to
# `labels`, which is what the model's `forward` calls it. Section 12 shows what happens when that name is wrong. Rows
# are cut at 48 tokens, as in lesson 01.


# %%
def tokenize(rows):
    return tokenizer(rows["text"], truncation=True, max_length=48)


text_columns = [name for name in dataset["train"].column_names if name != "label"]
rows = dataset.map(tokenize, batched=True, remove_columns=text_columns)
rows = rows.select_columns([name for name in rows["train"].column_names if name != "token_type_ids"])
train_rows, validation_rows, test_rows = rows["train"], rows["validation"], rows["test"]
collate = DataCollatorWithPadding(tokenizer)
print(train_rows.column_names, "->", list(collate([train_rows[0], train_rows[1]])))

# %% [markdown]
# Now the run itself. `scratch` is a temporary folder for everything this lesson writes. Twenty steps are enough to see
# it work; the full run comes in section 7.

# %%
scratch = TemporaryDirectory()
set_seed(seed)
model = load_classifier(num_labels, source)

trainer = Trainer(
    model,
    TrainingArguments(
        output_dir=f"{scratch.name}/first",
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        max_steps=20,
        logging_steps=5,
        save_strategy="no",
        disable_tqdm=True,  # no progress bar: this notebook's outputs are compared by a test
        dataloader_pin_memory=False,  # pinning helps only when batches are copied to a GPU
    ),
    train_dataset=train_rows,
    data_collator=collate,
)

# %% [markdown]
# Without a progress bar the Trainer prints its logs through a callback instead. We remove that one and read
# `trainer.state.log_history`, a plain list of dictionaries. It is the source of every curve in this lesson.

# %%
from transformers.trainer_callback import PrinterCallback

trainer.remove_callback(PrinterCallback)
result = trainer.train()
for entry in trainer.state.log_history[:2]:
    print({key: round(value, 1) for key, value in entry.items() if key in ("step", "loss")})
print("steps:", result.global_step, "| last entry:", sorted(trainer.state.log_history[-1])[:3], "...")

# %% [markdown]
# The logged `loss` is the mean over the steps since the last log, not the loss of that step. With `logging_steps=500`
# (the default) a run of 300 steps logs no loss curve at all.
#
# The rest of the lesson builds many Trainers. `quiet_trainer` is the cell above as a function: everything it does not
# name is passed on to `TrainingArguments`. The *tiny* model keeps demonstrations short.

# %%
from course_utils.training.settings import quiet_trainer

teach.show_source(quiet_trainer)


# %%
def tiny_model(**overrides):
    """One layer, width 64; the same weights at every call."""
    set_seed(seed)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    return load_classifier(num_labels, vocab_size=len(tokenizer), **(sizes | overrides))


few_rows = train_rows.select(range(960))
some_rows = validation_rows.select(range(min(300, len(validation_rows))))
print(f"{tiny_model().num_parameters():,} parameters")

# %% [markdown]
# ## 2 · Is it really the same loop?
#
# A claim to be proved, not believed. Lesson 01's loop and the Trainer get the same weights, rows and settings. Three
# things must be pinned, and each is a lesson about reproducibility:
#
# 1. **Order.** The Trainer shuffles with a `RandomSampler`. `train_sampling_strategy="sequential"` keeps the rows'
#    order.
# 2. **Dropout.** Both must draw the same random numbers. Starting PyTorch's `DataLoader` draws one number from the
#    global generator, our `ShuffledBatches` draws none. So we seed after the loader has started: in `on_step_begin`
#    of step 0, just before the first forward pass.
# 3. **Arithmetic.** The same AdamW kernel (fused) and the same processor: `use_cpu=True`.

# %%
from transformers import TrainerCallback

from course_utils.data.batches import ShuffledBatches
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import parameter_groups
from course_utils.training.schedules import make_scheduler
from course_utils.training.settings import logged


class SeedFirstStep(TrainerCallback):
    """Seed every generator right before the first forward pass."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            set_seed(args.seed)


# %% [markdown]
# The Trainer's run, with a warm-up, a cosine schedule, weight decay and clipping, so that there is something to differ.

# %%
parity_steps = min(40, max_steps)
warmup = min(10, parity_steps)
settings = {"learning_rate": 1e-3, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": warmup}
trainer = quiet_trainer(
    tiny_model(num_hidden_layers=2),
    scratch.name,
    train_rows,
    data_collator=collate,
    callbacks=[SeedFirstStep()],
    max_steps=parity_steps,
    per_device_train_batch_size=32,
    logging_steps=1,
    train_sampling_strategy="sequential",
    use_cpu=True,
    seed=seed,
    **settings,
)
result = trainer.train()

# %% [markdown]
# The loop's run, from lesson 01.

# %%
loop_model = tiny_model(num_hidden_layers=2)
optimizer = torch.optim.AdamW(parameter_groups(loop_model, weight_decay=0.01), lr=1e-3, fused=True)
scheduler = make_scheduler(optimizer, "cosine", warmup_steps=warmup, max_steps=parity_steps)
batches = ShuffledBatches(train_rows, 32, collate, shuffle=False)
set_seed(seed)
history = train(loop_model, batches, optimizer, LoopConfig(max_steps=parity_steps), scheduler)

# %% [markdown]
# Not "close": the same bits, in the loss of every step, the gradient norms, the learning rates and the final weights.

# %%
for key in ("loss", "grad_norm", "learning_rate"):
    of_trainer = [value for _, value in logged(trainer, key)]
    of_loop = [record[key] for record in history]
    assert of_trainer == of_loop, key
    print(f"{key:14} equal at all {len(of_loop)} steps: {of_trainer == of_loop}")
pairs = list(zip(trainer.model.parameters(), loop_model.parameters(), strict=True))
assert all(torch.equal(a, b) for a, b in pairs)
print("final weights equal, bit for bit:", all(torch.equal(a, b) for a, b in pairs))

# %% [markdown]
# So nothing in the Trainer is magic, and nothing in your loop was a toy.
#
# ### What does the convenience cost?
#
# The Trainer does bookkeeping around each step: callbacks, control flags, a check for NaN, a counter of operations.
# We note the time after every step of both, on the tiny model, where a fixed cost per step weighs most. Same rows, same
# order; the two take turns, and the fastest step of each counts, because a busy machine slows the others. `make bench`
# repeats this with medians of more rounds and with larger models.

# %%
import itertools
import statistics
import time


class Clock(TrainerCallback):
    """The time at the end of every optimizer step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter())


def steps_of_trainer(count):
    clock = Clock()
    options = {"per_device_train_batch_size": 32, "train_sampling_strategy": "sequential", "callbacks": [clock]}
    quiet_trainer(tiny_model(), scratch.name, few_rows, data_collator=collate, max_steps=count, **options).train()
    return [after - before for before, after in itertools.pairwise(clock.times)]


# %%
def steps_of_loop(count):
    model = tiny_model().to("cuda" if torch.cuda.is_available() else "cpu")  # where the Trainer puts it
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=5e-5, fused=True)
    batches = ShuffledBatches(few_rows, 32, collate, shuffle=False)
    times = []
    train(model, batches, optimizer, LoopConfig(count), on_step=lambda record: times.append(time.perf_counter()))
    return [after - before for before, after in itertools.pairwise(times)]


# %% tags=["nbval-ignore-output"]
rounds = [(steps_of_trainer(25), steps_of_loop(25)) for _ in range(2)]
of_trainer, of_loop = (1e3 * min(sum(column, [])) for column in zip(*rounds, strict=True))
print(f"per step: loop {of_loop:.1f} ms, Trainer {of_trainer:.1f} ms, ratio {of_trainer / of_loop:.2f}")
assert 0.5 < of_trainer / of_loop < 3

# %% [markdown]
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


small, wide, deep = counter_cost(), counter_cost(hidden_size=512), counter_cost(num_hidden_layers=12)
for name, (size, tensors, cost) in {"small": small, "wide": wide, "deep": deep}.items():
    print(f"{name:5} {size:9,} parameters in {tensors:2} tensors: {cost:.2f} ms")
assert wide[0] > 5 * small[0] and wide[1] == small[1] < deep[1] and wide[0] > deep[0]
assert deep[2] > 2 * small[2] and deep[2] > 2 * wide[2]  # more tensors cost more, larger ones do not

# %% [markdown]
# So the cost grows only with the number of parameter tensors, not with their size: well under a millisecond here, and
# nobody can see it in a step of 200 ms. If your Trainer run is slow, look at padding (lesson 02), data loading and
# logging before you blame the Trainer.

# %% [markdown]
# ## 3 · A look inside: which method is called when
#
# To change one thing in the Trainer you must know where it happens. Reading 4,700 lines is one way; watching is
# another. `trace` gives the trainer's objects stopwatches for the duration of a `with` block and records every call.

# %%
from course_utils.training.trainer_trace import outline, trace


def share_correct(prediction):
    return {"accuracy": (prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean()}


trainer = quiet_trainer(
    load_classifier(num_labels, vocab_size=len(tokenizer)),
    scratch.name,
    few_rows,
    some_rows,
    data_collator=collate,
    compute_metrics=share_correct,
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

# %% [markdown]
# One optimizer step, with two micro-batches. Indented lines run inside the line above them.

# %%
print(outline(recorded.of_step(1)))

# %%
from course_utils.lessons.lesson_03 import figures
from course_utils.teach import charts

teach.show(
    figures.timeline(recorded.of_step(1), "One optimizer step of the Trainer, two micro-batches"),
    alt="Timeline of one Trainer step: get_batch_samples, then twice training_step with compute_loss and backward, "
    "then clip, optimizer, scheduler, zero_grad and logging. Forward and backward take nearly all the time.",
)

# %% [markdown]
# Read it from top to bottom:
#
# | method | what it does | override it when |
# |---|---|---|
# | `get_batch_samples` | takes the step's micro-batches and counts their labels (`num_items_in_batch`) | rarely |
# | `training_step` | `model.train()`, inputs to the device, `compute_loss`, `backward` | you need two backward passes |
# | `compute_loss` | the forward pass; the loss from the model or from `compute_loss_func` | another loss (lesson 06) |
# | clip | one global norm, as in lesson 01 | never; set `max_grad_norm` |
# | `optimizer.step`, `scheduler.step`, `zero_grad` | once per step, not per micro-batch | never |
# | `on_...` | callback events: black diamonds | watch or steer without subclassing (lesson 05) |
#
# `get_batch_samples` runs *before* any forward pass. That is why the loss can be divided by the number of labels of
# the whole window, which lesson 01 showed to be the only correct way.
#
# Lesson 01's facts hold here too, and the trace proves it. Per optimizer step there are two backward passes and one
# scheduler step:

# %%
names = [call.name for call in recorded.of_step(1)]
print({name: names.count(name) for name in ("compute_loss", "backward", "clip", "optimizer.step", "scheduler.step")})
assert names.count("backward") == 2 and names.count("scheduler.step") == names.count("optimizer.step") == 1
assert names.index("clip") < names.index("optimizer.step") < names.index("scheduler.step") < names.index("zero_grad")

# %% [markdown]
# ### Evaluation
#
# `evaluate` makes a loader and hands it to `evaluation_loop`, which calls `prediction_step` once per batch: forward
# without gradients, returning loss, logits and labels. The loop collects them all and calls your `compute_metrics`
# once at the end, so a metric sees every row and never an average of batch averages. (Without `compute_metrics` it
# collects only the losses: `prediction_step` is told to drop the logits.)

# %%
import math

print(outline(recorded.inside("evaluate")))
names = [call.name for call in recorded.inside("evaluate")]
assert names.count("prediction_step") == math.ceil(len(some_rows) / 64) and names.count("compute_metrics") == 1
assert names.index("compute_metrics") > max(i for i, name in enumerate(names) if name == "prediction_step")

# %%
teach.show(
    figures.timeline(recorded.inside("evaluate"), "One evaluation"),
    alt="Timeline of Trainer.evaluate: the loader is made, evaluation_loop calls prediction_step once per batch, each "
    "with compute_loss inside, and a callback event after each; then compute_metrics once, and a log entry.",
)

# %% [markdown]
# ### And around the steps: what `train()` does
#
# What is left when the steps, the evaluation and the logging are taken out is the frame: loader, optimizer, scheduler,
# `on_train_begin`, the epochs, `on_train_end`.

# %%
frame = [call for call in recorded.calls if call.depth == 1 and call.kind in ("setup", "callback")]
inside_steps = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
print(" -> ".join(call.name for call in frame if call.name not in inside_steps))
assert trainer.state.global_step == 6 and frame[-1].name == "on_train_end"

# %% [markdown]
# The Trainer's constructor has already moved the model to the device. In words, `train()` then
#
# 1. loads a checkpoint's weights, if you resume;
# 2. makes the loader and computes the number of steps from the epochs (or the other way round);
# 3. creates the optimizer (no decay for biases and norms);
# 4. hands model and optimizer to Accelerate, which wraps them for several processes;
# 5. creates the scheduler;
# 6. restores the state of optimizer and scheduler, if you resume;
# 7. runs epochs of steps and asks after each step whether to log, evaluate, save or stop;
# 8. logs the totals and loads the best checkpoint, if asked. With `save_total_limit=1` it now deletes a last checkpoint
#    that is not the best.

# %% [markdown]
# ## 4 · The arguments, group by group
#
# `TrainingArguments` has more than a hundred fields. The table lists those you will use, by group. It is generated:
# names and defaults are read from the installed class, so it cannot go stale without an error.

# %%
import dataclasses

from IPython.display import Markdown, display

from course_utils.training.settings import MOST_USED, settings_table, typical_values

print(len(dataclasses.fields(TrainingArguments)), "fields, of which this table has", len(MOST_USED))
display(Markdown(settings_table()))

# %% [markdown]
# The typical values are not prose either. Together they form one valid configuration. (`bf16=True` is an error on a
# machine without a GPU, unless `use_cpu=True` says that a CPU is what you want. This lesson runs anywhere.)

# %%
typical = TrainingArguments(output_dir=scratch.name, **(typical_values() | {"use_cpu": True}))
print("schedule:", typical.lr_scheduler_type.value, "| warm-up:", typical.get_warmup_steps(1000), "of 1000 steps")

# %% [markdown]
# What each group decides:
#
# - **Optimisation**: where the weights go. `warmup_steps` below 1 is a share of the run: 0.1 of 1,000 steps is 100.
# - **Batch**: effective batch = `per_device_train_batch_size` x devices x `gradient_accumulation_steps`.
# - **Precision**: how numbers are stored while computing (section 6).
# - **Logging, evaluation, checkpoints**: each has a *strategy* ("no", "steps", "epoch") and a number of steps.
# - **Reproducibility**: `seed` drives the row order and dropout. It does *not* seed a model that you built before
#   the Trainer: call `set_seed` first, or pass `model_init`, a function that builds the model after seeding.
#
# Six defaults are not what lesson 01's run was given. Whoever moves it into the Trainer and leaves them out gets
# another run. The schedule and clipping happen to agree:

# %%
from course_utils.training.settings import default_of

lesson_01 = {
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,  # max_steps // 10
    "weight_decay": 0.01,
    "per_device_train_batch_size": 32,
    "seed": 0,
    "logging_steps": 1,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
}
for name, value in lesson_01.items():
    default = default_of(name)
    print(f"{name:28} lesson 01: {value:<7} default: {default:<7} {'same' if default == value else 'differs'}")
same = {name for name, value in lesson_01.items() if default_of(name) == value}
assert same == {"lr_scheduler_type", "max_grad_norm"} and LoopConfig(max_steps=1).max_grad_norm == 1.0

# %% [markdown]
# Two kinds of error protect you. A misspelt argument is a `TypeError`, a contradiction a `ValueError`, both before any
# work starts:

# %%
for wrong in ({"learning_rat": 1e-3}, {"load_best_model_at_end": True}):
    try:
        TrainingArguments(output_dir=scratch.name, **wrong)
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}")

# %% [markdown]
# > **You may see** these spellings in older tutorials. Each row is checked below. The old names are gone, but for
# > `gradient_checkpointing`, which still works and warns.
# >
# > | old | now |
# > |---|---|
# > | `TrainingArguments(evaluation_strategy=)` | `eval_strategy=` |
# > | `warmup_ratio=0.1` | `warmup_steps=0.1` |
# > | `group_by_length=True` | `train_sampling_strategy="group_by_length"` |
# > | `no_cuda=True` | `use_cpu=True` |
# > | `logging_dir=` | environment variable `TENSORBOARD_LOGGING_DIR` |
# > | `overwrite_output_dir`, `save_safetensors`, `include_inputs_for_metrics`, `push_to_hub_token` | removed |
# > | `Trainer(tokenizer=)` | `processing_class=` |
# > | `optim="adamw_hf"` | `optim="adamw_torch_fused"`, the default |
# > | `gradient_checkpointing=True` | `activation_checkpointing=True` |
# > | `report_to`: default "all", every tracker that is installed | default "none" |
# > | `def compute_loss(self, model, inputs, return_outputs=False)` | one more: `num_items_in_batch=None` |

# %%
from course_utils.training.settings import is_argument

renamed = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "no_cuda": "use_cpu",
}
removed = ["logging_dir", "overwrite_output_dir", "save_safetensors", "include_inputs_for_metrics", "push_to_hub_token"]
assert all(not is_argument(old) and is_argument(new) for old, new in renamed.items())
assert not any(is_argument(name) for name in removed)
assert not is_argument("tokenizer", of=Trainer) and is_argument("processing_class", of=Trainer)
try:
    TrainingArguments(output_dir=scratch.name, optim="adamw_hf")
except ValueError as error:
    print("adamw_hf:", str(error).split(",")[0])

# %%
renamed_help = TrainingArguments.__dataclass_fields__["gradient_checkpointing"].metadata["help"]
is_alias = renamed_help.startswith("Deprecated alias of `activation_checkpointing`")
print("gradient_checkpointing is the old name of activation_checkpointing:", is_alias)
assert is_alias
assert default_of("optim") == "adamw_torch_fused" and default_of("report_to") == "none"
assert is_argument("num_items_in_batch", of=Trainer.compute_loss)

# %% [markdown]
# ## 5 · Schedules
#
# A schedule multiplies the peak learning rate by a factor at each step. `lr_scheduler_type` names one; the Trainer
# builds it with `transformers.get_scheduler`. We ask each for 200 steps with 20 of warm-up and draw the factor.

# %%
from transformers import get_scheduler


def factors(name, steps=200, warmup=20, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=options)
    curve = []
    for _ in range(steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


# %%
curves = {name: factors(name) for name in ("linear", "cosine", "constant_with_warmup", "inverse_sqrt")}
curves["polynomial, power=2"] = factors("polynomial", power=2)
curves["cosine_with_restarts"] = factors("cosine_with_restarts", num_cycles=3)
curves["cosine_with_min_lr"] = factors("cosine_with_min_lr", min_lr_rate=0.1)
curves["warmup_stable_decay"] = factors("warmup_stable_decay", num_decay_steps=40)
teach.show(
    charts.schedules(curves, warmup_steps=20),
    alt="Eight panels, each one schedule: all rise linearly during the warm-up; linear falls in a straight line, "
    "cosine in a half wave, one stays constant, one falls with the inverse square root, the polynomial of power 2 in a "
    "parabola, one restarts three times, one ends at a tenth of the peak, one is flat and falls only at the end.",
)
assert max(abs(a - b) for a, b in zip(factors("polynomial"), curves["linear"], strict=True)) < 1e-6

# %% [markdown]
# How to choose: **linear** or **cosine** when you know the length of the run (they differ little); **warm-up, stable,
# decay** when you do not, because you can branch off a decay at any time; **constant with warm-up** for comparisons
# that must not depend on the length. The warm-up protects the first steps, in which Adam's second moment rests on a
# handful of gradients. Options of a schedule go into `lr_scheduler_kwargs`: `polynomial` without `power` is `linear`.
#
# The library's curves are lesson 01's functions:

# %%
from course_utils.training.schedules import cosine_with_warmup, linear_with_warmup

for name, function in {"linear": linear_with_warmup, "cosine": cosine_with_warmup}.items():
    worst = max(abs(function(step, 20, 200) - curves[name][step]) for step in range(200))
    print(f"{name}: largest difference <= 1e-12: {worst <= 1e-12}")
    assert worst <= 1e-12

# %% [markdown]
# ## 6 · Mixed precision: bf16 or fp16
#
# 16 bits halve memory traffic and let matrix units run several times faster. Two layouts exist. **fp16** spends 5 bits
# on the exponent and 10 on the fraction; **bf16** keeps the 8 exponent bits of fp32 and has 7 for the fraction. So
# fp16 is finer and bf16 reaches further. A lack of range ends a run (infinity, or zero where a gradient was); a lack of
# digits only adds noise.
#
# Every format has a smallest *normal* number. Below it come the *subnormal* numbers, which have fewer and fewer digits,
# and then zero.

# %%
formats = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    info = torch.finfo(dtype)
    formats[str(dtype)[6:]] = {
        "max": info.max,
        "tiny": info.tiny,  # the smallest normal number
        "smallest": info.tiny * info.eps,  # the smallest subnormal one
        "eps": info.eps,  # from 1 to the next number
    }
for name, info in formats.items():
    print(f"{name:9}", {key: f"{value:.3g}" for key, value in info.items()})

# %%
teach.show(
    figures.number_formats(formats),
    alt="Left: the range of bfloat16 equals that of float32, from 1e-38 to 1e38; float16 ends at 65504. Right: between "
    "1 and 1.032 float16 has 33 numbers, bfloat16 has 5.",
)

# %% [markdown]
# Three facts to try by hand. fp16 **overflows** just above 65504. bf16 takes that number in its stride, rounded to
# 65536. And in bf16 a small update to a weight near 1 is **lost**, because the next number after 1 is 1.0078:

# %%
print("fp16: 65504 * 2     =", (torch.tensor(65504.0, dtype=torch.float16) * 2).item())
print("bf16: 65504 * 2     =", (torch.tensor(65504.0, dtype=torch.bfloat16) * 2).item())
print("bf16: 1 + 0.001     =", (torch.tensor(1.0, dtype=torch.bfloat16) + 0.001).item())
print("fp16: 1 + 0.001     =", round((torch.tensor(1.0, dtype=torch.float16) + 0.001).item(), 6))
print("fp16: 1e-8          =", torch.tensor(1e-8, dtype=torch.float16).item())

# %% [markdown]
# The third line is why *mixed* precision keeps the weights and the optimizer in fp32 and casts only inside the forward
# pass (`torch.autocast`): sums of many small updates need the digits.
#
# ### Gradients that vanish
#
# The last line above is fp16's other problem. Below 6e-5 fp16 has only subnormal numbers; below 3e-8 it rounds to zero.
# Gradients are small numbers. We take one batch of our classifier and ask where its gradients
# lie, before and after multiplying the loss (and so every gradient) by 65,536.

# %%
set_seed(seed)
model = load_classifier(num_labels, vocab_size=len(tokenizer))
model(**collate([train_rows[i] for i in range(32)])).loss.backward()
gradients = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
gradients = gradients[gradients > 0]  # most embedding rows do not occur in the batch


def in_fp16(values):
    """Share that is zero, share that is subnormal, number that overflows."""
    half = values.to(torch.float16)
    subnormal = (half > 0) & (half < torch.finfo(torch.float16).tiny)
    return (half == 0).double().mean().item(), subnormal.double().mean().item(), half.isinf().sum().item()


# %% tags=["nbval-ignore-output"]
for scale in (1.0, 2.0**16):
    zero, subnormal, overflows = in_fp16(gradients * scale)
    print(f"loss x {scale:7,.0f}: zero {zero:.3%}, subnormal {subnormal:.1%}, overflows {overflows}")
plain_zero, plain_subnormal, _ = in_fp16(gradients)
assert plain_zero > 0 and plain_subnormal > 0.05
assert in_fp16(gradients * 2.0**16)[1] < plain_subnormal / 10

# %% [markdown]
# A large part of the gradients would lose digits, and scaling cures it. But a scale can also be too big: then the
# largest gradient exceeds 65504. The scaler therefore searches: it skips a step whose gradients overflowed, halves the
# scale, and doubles it again after 2,000 good steps. By hand, from a scale that is too big on purpose:

# %%
scale, skipped = 2.0**22, 0
while in_fp16(gradients * scale)[2] > 0:
    scale, skipped = scale / 2, skipped + 1
print(f"steps skipped: at least one: {skipped > 0}; found a scale above 1,000 without overflow: {scale > 1000}")
assert skipped > 0 and scale > 1000 and in_fp16(gradients * scale)[2] == 0

# %%
half = formats["float16"]
teach.show(
    figures.gradient_underflow(gradients.tolist(), half["smallest"], half["tiny"], scale),
    alt="Histogram of gradient magnitudes. A large part lies in the zone where fp16 loses digits; multiplied by the "
    "loss scale the whole histogram moves into fp16's normal range, left of its largest number.",
)

# %% [markdown]
# That is **loss scaling**: multiply the loss, compute gradients in fp16, divide them again before clipping and
# stepping. The Trainer does it for `fp16=True` on a GPU (`torch.amp.GradScaler`).
# bf16 needs none of it. Hence the rule:
#
# | hardware | use |
# |---|---|
# | NVIDIA Ampere or newer, TPU, recent CPU | `bf16=True` |
# | older NVIDIA GPU (V100, T4) | `fp16=True`, watch for skipped steps |
# | unsure, or the run is short | fp32 (and `tf32=True` on Ampere or newer) |
#
# Do the losses stay together? Twenty steps in fp32 and in bf16, same weights, same order. We use the GPU if there is
# one, otherwise the CPU, where bf16 must be asked for together with `use_cpu`:

# %%
on_cpu = not torch.cuda.is_available()


def losses_with(**precision):
    trainer = quiet_trainer(
        tiny_model(),
        scratch.name,
        few_rows,
        data_collator=collate,
        max_steps=20,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=on_cpu,
        **precision,
    )
    trainer.train()
    return [loss for _, loss in logged(trainer, "loss")], {p.dtype for p in trainer.model.parameters()}


# %% tags=["nbval-ignore-output"]
losses_fp32, _ = losses_with()
losses_bf16, dtypes = losses_with(bf16=True)
worst = max(abs(a - b) for a, b in zip(losses_fp32, losses_bf16, strict=True))
print("weights are kept in", *dtypes)
print(f"losses of {losses_fp32[0]:.1f} to {losses_fp32[-1]:.1f}; largest difference: {worst:.4f}")
assert losses_fp32 != losses_bf16 and worst <= 0.1 and dtypes == {torch.float32}

# %% [markdown]
# One trap that only measuring finds: on a CPU `fp16=True` is accepted and **ignored**. The losses are those of fp32,
# to the last bit.

# %%
if on_cpu:
    losses_fp16, _ = losses_with(fp16=True)
    print("fp16 on a CPU equals fp32 exactly:", losses_fp16 == losses_fp32)
    assert losses_fp16 == losses_fp32
else:
    print("A GPU is here: fp16 is real.")

# %% [markdown]
# ## 7 · The main run, with first metrics
#
# A loss says little to a person. `compute_metrics` receives all predictions and labels of an evaluation and returns a
# dictionary. Our classes are uneven (counted below), so accuracy alone flatters a model that ignores the small ones.
# **Macro-F1** is the mean of the per-class F1 values: every class counts the same.
# Lesson 04 is all about metrics; these two are enough to select a model.

# %%
import collections

from sklearn.metrics import accuracy_score, f1_score

counts = collections.Counter(train_rows["label"])
print(f"largest class / smallest class: {max(counts.values()) / min(counts.values()):.0f}")


def compute_metrics(prediction):
    predicted = prediction.predictions.argmax(axis=-1)  # (N, num_labels) -> (N,)
    return {
        "accuracy": accuracy_score(prediction.label_ids, predicted),
        "macro_f1": f1_score(prediction.label_ids, predicted, average="macro", zero_division=0),
    }


# %% [markdown]
# The run uses most groups at once. It evaluates and saves five times, keeps two checkpoints, and ends with the weights
# of the best macro-F1. `metric_for_best_model` is a key of the evaluation's result; the Trainer puts `eval_` in front
# of your metric's name. Rows of similar length share a batch (lesson 02): less padding, less time.

# %%
every = max(1, max_steps // 5)
set_seed(seed)
trainer = quiet_trainer(
    load_classifier(num_labels, source),
    f"{scratch.name}/main",
    train_rows,
    validation_rows,
    data_collator=collate,
    compute_metrics=compute_metrics,
    max_steps=max_steps,
    per_device_train_batch_size=32,
    per_device_eval_batch_size=128,
    train_sampling_strategy="group_by_length",
    learning_rate=1e-3 if source == "local" else 5e-5,
    lr_scheduler_type="linear",
    warmup_steps=0.1,
    weight_decay=0.01,
    logging_steps=max(1, max_steps // 40),
    eval_strategy="steps",
    eval_steps=every,
    save_strategy="steps",
    save_steps=every,
    save_total_limit=2,
    load_best_model_at_end=True,
    metric_for_best_model="eval_macro_f1",
    greater_is_better=True,
    seed=seed,
)


# %% [markdown]
# A callback notes which checkpoints lie on the disk after each save. We look at that in the next section.


# %%
class NoteCheckpoints(TrainerCallback):
    """After each save: the steps of the checkpoints on disk, and the best one so far."""

    def __init__(self):
        self.kept, self.best = {}, {}

    def on_save(self, args, state, control, **kwargs):
        folders = Path(args.output_dir).glob("checkpoint-*")
        self.kept[state.global_step] = sorted(int(folder.name.split("-")[1]) for folder in folders)
        self.best[state.global_step] = state.best_global_step


# %%
notes = NoteCheckpoints()
trainer.add_callback(notes)
result = trainer.train()
assert result.global_step == max_steps

# %% tags=["nbval-ignore-output"]
for step, value in logged(trainer, "eval_macro_f1"):
    accuracy = dict(logged(trainer, "eval_accuracy"))[step]
    print(f"step {step:4}: accuracy {accuracy:.3f}, macro-F1 {value:.3f}")
best_f1 = max(value for _, value in logged(trainer, "eval_macro_f1"))
print(f"best checkpoint: {Path(trainer.state.best_model_checkpoint).name}, macro-F1 {trainer.state.best_metric:.3f}")
assert trainer.state.best_metric == best_f1

# %%
teach.show(
    figures.training_curves(trainer.state.log_history, trainer.state.best_global_step),
    alt="Left: training loss falls, validation loss falls and flattens. Right: accuracy and macro-F1 on the "
    "validation rows rise and level off; a dashed line marks the best checkpoint.",
)

# %% [markdown]
# The saw teeth are the sampler: within each block of 50 batches the rows go from long to short. Long rows are easier
# (measured below), so the training loss falls when a block begins and climbs to its end. The run ends soon after its
# first epoch (375 steps); lesson 01's has a hundred steps more.
#
# After training the model in memory is the best one, even when it is not the last (section 12 has such a run). We check
# it by evaluating again, and only then look at the test rows. They had no say in which checkpoint is kept.

# %%
again = trainer.evaluate()
print("the model in memory has the best macro-F1:", again["eval_macro_f1"] == trainer.state.best_metric)
assert again["eval_macro_f1"] == trainer.state.best_metric

# %% [markdown]
# `predict` is `evaluate` that also returns the logits, one row per example.
#
# Careful: with `group_by_length` the rows are not in the data set's order, here too. `label_ids` is reordered with
# them, your texts are not, so `zip(rows, predictions)` pairs strangers and raises nothing. Under another sampling
# strategy an evaluation on one device keeps the order:

# %%
labels_in_order = list(some_rows["label"])
for strategy, wanted in (("group_by_length", False), ("random", True)):
    trainer.args.train_sampling_strategy = strategy
    found = list(trainer.predict(some_rows).label_ids)
    print(f"{strategy:15} predictions in the data set's order: {found == labels_in_order}")
    assert (found == labels_in_order) == wanted and sorted(found) == sorted(labels_in_order)

# %% [markdown]
# So the test rows come now, with "random", in their order:

# %% tags=["nbval-ignore-output"]
test = trainer.predict(test_rows)
assert list(test.label_ids) == list(test_rows["label"])
print({key: round(value, 3) for key, value in test.metrics.items() if key in ("test_accuracy", "test_macro_f1")})
if max_steps >= 400 and source == "local":
    assert test.metrics["test_accuracy"] >= 0.62 and test.metrics["test_macro_f1"] >= 0.48
else:
    print("run too short (or not local) to judge")

# %% [markdown]
# Every prediction belongs to its row, and we can ask whether long rows are easier.

# %% tags=["nbval-ignore-output"]
logits, labels = torch.tensor(test.predictions), torch.tensor(test.label_ids)
losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")  # (N,)
lengths = torch.tensor([len(ids) for ids in test_rows["input_ids"]])
is_long = lengths > lengths.median()
print(f"loss of the longer half {losses[is_long].mean():.2f}, of the shorter half {losses[~is_long].mean():.2f}")
if max_steps == 400 and source == "local":
    logged_loss = dict(logged(trainer, "loss"))  # every ten steps, mean of the ten
    begins, ends = ([logged_loss[step] for step in range(first, 351, 50)] for first in (60, 50))
    print(f"training loss: first steps of a block {statistics.mean(begins):.2f}, last {statistics.mean(ends):.2f}")
    assert statistics.mean(begins) < statistics.mean(ends) and losses[is_long].mean() < losses[~is_long].mean()
    assert math.ceil(len(train_rows) / 32) == 375  # steps in an epoch

# %% [markdown]
# ### The same metrics with the `evaluate` library
#
# `evaluate` gives metrics one interface and can combine them and feed them batch by batch. `evaluate.load("accuracy")`
# fetches a script from the hub. Offline, or for a metric of your own, the script is a file you write: a folder
# `accuracy/accuracy.py` with a subclass of `evaluate.Metric`.

# %%
METRIC = """
import datasets
import evaluate
from sklearn.metrics import {function}


class Metric(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        features = datasets.Features({{"predictions": number, "references": number}})
        return evaluate.MetricInfo(description="{name}", citation="", features=features)

    def _compute(self, predictions, references):
        return {{"{name}": float({function}(references, predictions{options}))}}
"""
options = ', average="macro", zero_division=0'
for name, function, extra in (("accuracy", "accuracy_score", ""), ("macro_f1", "f1_score", options)):
    folder = Path(scratch.name) / name
    folder.mkdir()
    (folder / f"{name}.py").write_text(METRIC.format(name=name, function=function, options=extra))

# %%
import evaluate

modules = [
    evaluate.load(f"{scratch.name}/{name}", cache_dir=scratch.name, keep_in_memory=True)
    for name in ("accuracy", "macro_f1")
]
metrics = evaluate.combine(modules)
predicted = test.predictions.argmax(-1)
for start in range(0, len(predicted), 500):
    part = slice(start, start + 500)
    metrics.add_batch(predictions=predicted[part], references=test.label_ids[part])
combined = metrics.compute()
print({name: abs(value - test.metrics[f"test_{name}"]) <= 1e-12 for name, value in combined.items()})
assert all(abs(value - test.metrics[f"test_{name}"]) <= 1e-12 for name, value in combined.items())

# %% [markdown]
# ## 8 · Checkpoints: when, how many, which
#
# - `save_strategy`: "steps", "epoch", "best" (only when the metric improves) or "no". With "steps" and "epoch" a run
#   also saves after its last step; "best" does not. With `eval_strategy="steps"` it also evaluates after the last step.
# - `save_total_limit=2` deletes older checkpoints after each save, **but never the best one**. So the two kept are the
#   newest and the best; when the newest is the best, the one before it stays too.
# - `load_best_model_at_end=True` needs evaluation and saving in step: the same strategy, and `save_steps` a multiple
#   of `eval_steps`.

# %% tags=["nbval-ignore-output"]
teach.show(
    figures.checkpoints_on_disk(notes.kept, notes.best),
    alt="A grid of saves and checkpoints. After each save at most two checkpoints are on disk: the best so far and the "
    "newest, or the newest two.",
)
for step, kept in notes.kept.items():
    assert len(kept) <= 2 and step in kept and notes.best[step] in kept

# %% [markdown]
# Three runs of seven steps show the rules for the last step. Their learning rate is 0, so only the first evaluation is
# an improvement.


# %%
def saved_and_evaluated(strategy):
    run = quiet_trainer(
        tiny_model(),
        f"{scratch.name}/saves_{strategy}",
        few_rows,
        some_rows,
        data_collator=collate,
        max_steps=7,
        per_device_eval_batch_size=100,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy=strategy,
        save_steps=2,
        save_only_model=True,
        metric_for_best_model="loss",
        use_cpu=True,
    )
    run.train()
    saved = sorted(int(folder.name.split("-")[1]) for folder in Path(run.args.output_dir).glob("checkpoint-*"))
    return saved, [step for step, _ in logged(run, "eval_loss")]


for strategy, wanted in {"steps": [2, 4, 6, 7], "epoch": [7], "best": [2]}.items():
    saved, evaluated = saved_and_evaluated(strategy)
    print(f"{strategy:5} evaluated after {evaluated}, saved after {saved}")
    assert saved == wanted and evaluated == [2, 4, 6, 7]

# %% [markdown]
# What is in a checkpoint? Everything lesson 01 saved by hand. `get_last_checkpoint` finds the newest by its number: as
# text, "checkpoint-50" would come after "checkpoint-100".

# %%
from transformers.trainer_utils import get_last_checkpoint

checkpoint = Path(get_last_checkpoint(trainer.args.output_dir))
assert checkpoint.name == f"checkpoint-{max_steps}"
purpose = {
    "config.json": "the architecture: from_pretrained reads it",
    "model.safetensors": "weights",
    "optimizer.pt": "both moments of every weight: twice the weights' size",
    "scheduler.pt": "position in the schedule",
    "rng_state.pth": "Python, NumPy, torch (and CUDA) generators",
    "trainer_state.json": "step, epoch, log_history, best metric",
    "training_args.bin": "the settings",
}
assert set(purpose) <= {path.name for path in checkpoint.iterdir()}
for name, text in purpose.items():
    print(f"{name:19} {text}")
ratio = (checkpoint / "optimizer.pt").stat().st_size / (checkpoint / "model.safetensors").stat().st_size
print(f"optimizer / weights: {ratio:.1f}")

# %% [markdown]
# Before we go on, something for section 10 that takes ten seconds: a script that reports to two trackers. It starts now
# and works beside the next section. The model is three lines: any module whose output has a loss will do.

# %%
SCRIPT = """
import torch
from course_utils import teach
from course_utils.training.settings import quiet_trainer

teach.start()


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


rows = [{"x": torch.tensor([i / 100]), "labels": torch.tensor([3 * i / 100])} for i in range(100)]
trackers = ["wandb", "trackio"]
trainer = quiet_trainer(Line(), "out", rows, max_steps=10, logging_steps=2, report_to=trackers, run_name="line")
trainer.train()
"""

# %%
import os
import subprocess
import sys

tracked_in = Path(scratch.name) / "trackers"
tracked_in.mkdir()
(tracked_in / "track.py").write_text(SCRIPT)
environment = os.environ | {
    "WANDB_MODE": "offline",
    "WANDB_DIR": str(tracked_in),
    "WANDB_SILENT": "true",
    "TRACKIO_DIR": str(tracked_in / "trackio"),
}
with (tracked_in / "track.log").open("w") as log:
    tracking = subprocess.Popen([sys.executable, "track.py"], cwd=tracked_in, env=environment, stdout=log, stderr=log)

# %% [markdown]
# ## 9 · Resume
#
# `trainer.train(resume_from_checkpoint=True)` takes the newest checkpoint in `output_dir`; a path takes that one. The
# test of a resume is not that it runs but that nobody can tell. We train 20 steps without a break. `interrupted` makes
# the folder that the same run would leave if it were killed after a save.


# %%
import shutil


def resumable(folder, weights_seed=seed, **settings):
    set_seed(weights_seed)
    return quiet_trainer(
        load_classifier(num_labels, vocab_size=len(tokenizer), num_hidden_layers=1, hidden_size=64),
        f"{scratch.name}/{folder}",
        few_rows.select(range(480)),  # 15 steps are an epoch
        data_collator=collate,
        max_steps=20,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=8,
        use_cpu=True,
        seed=seed,
        **settings,
    )


def interrupted(run, step, folder):
    """Copy the checkpoint of ``step`` into a new folder, as the only one there."""
    name = f"checkpoint-{step}"
    return Path(shutil.copytree(f"{run.args.output_dir}/{name}", f"{scratch.name}/{folder}/{name}"))


def equal_weights(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


# %% [markdown]
# A *new* Trainer with *other* initial weights resumes at step 8 (the middle of an epoch, with dropout) and goes to 20.

# %%
whole = resumable("whole")
result = whole.train()
interrupted(whole, 8, "resumed")
resumed = resumable("resumed", weights_seed=seed + 1)
result = resumed.train(resume_from_checkpoint=True)
print("weights equal, bit for bit:", equal_weights(whole, resumed))
print("losses of all 20 steps equal:", logged(whole, "loss") == logged(resumed, "loss"))
assert equal_weights(whole, resumed) and logged(whole, "loss") == logged(resumed, "loss")

# %% [markdown]
# ### The second epoch
#
# The order of the rows must be the same too. With "random" the order of an epoch follows from the seed and the epoch's
# number. With "group_by_length" it is drawn from the global random generator when the epoch begins, and on resume that
# happens *before* the checkpoint's random state is restored. In the first epoch nobody notices: the generator was just
# seeded. A run that is killed in a later epoch goes on with another order. Our main run had that strategy.

# %%
whole_runs = {"random": whole, "group_by_length": resumable("grouped", train_sampling_strategy="group_by_length")}
result = whole_runs["group_by_length"].train()
for strategy, step, wanted in (("random", 16, True), ("group_by_length", 8, True), ("group_by_length", 16, False)):
    folder = f"{strategy}_{step}"
    interrupted(whole_runs[strategy], step, folder)
    resumed = resumable(folder, train_sampling_strategy=strategy)
    resumed.train(resume_from_checkpoint=True)
    equal = equal_weights(whole_runs[strategy], resumed)
    print(f"{strategy:15} resumed at step {step:2}, epoch {1 + step // 15}: weights equal: {equal}")
    assert equal == wanted

# %% [markdown]
# ### A file is missing
#
# An exact resume needs every file. Without the random state the run goes on and ends elsewhere. Optimizer and scheduler
# are loaded only if *both* files are there: without one of them the moments restart at zero, and the learning rate
# jumps back to its peak. None of the three raises anything:

# %%
planned = dict(logged(whole, "learning_rate"))
peak = planned[1]
assert planned[9] < peak
for missing, wanted in (("rng_state.pth", planned[9]), ("optimizer.pt", peak), ("scheduler.pt", peak)):
    (interrupted(whole, 8, f"no_{missing}") / missing).unlink()
    other = resumable(f"no_{missing}")
    other.train(resume_from_checkpoint=True)
    rate = dict(logged(other, "learning_rate"))[9]
    print(f"without {missing:13} weights equal: {equal_weights(whole, other)}, rate of step 9: {rate:.4f}")
    assert not equal_weights(whole, other) and rate == wanted

# %% [markdown]
# Without weights or step it does raise:

# %%
for missing in ("model.safetensors", "trainer_state.json"):
    (interrupted(whole, 8, f"no_{missing}") / missing).unlink()
    try:
        resumable(f"no_{missing}").train(resume_from_checkpoint=True)
        raise AssertionError("not refused")
    except (ValueError, FileNotFoundError) as error:
        print(f"without {missing:18} {type(error).__name__}")

# %% [markdown]
# `save_only_model=True` leaves out optimizer, scheduler and random state: a third of the size. Resuming from it raises
# nothing, but restarts schedule and moments: the learning rate jumps back.

# %%
light = resumable("only_model", save_only_model=True)
result = light.train()
checkpoints = [Path(run.args.output_dir) / "checkpoint-8" for run in (light, whole)]
files = [{path.name for path in folder.iterdir()} for folder in checkpoints]
sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in checkpoints]
print("left out:", sorted(files[1] - files[0]), f"| size: {sizes[0] / sizes[1]:.2f} of the full checkpoint")
assert files[1] - files[0] == {"optimizer.pt", "scheduler.pt", "rng_state.pth"} and sizes[0] < 0.4 * sizes[1]
interrupted(light, 8, "from_only_model")
restarted = resumable("from_only_model")
restarted.train(resume_from_checkpoint=True)
rates = dict(logged(restarted, "learning_rate"))
print(f"learning rate of step 8: {rates[8]:.5f}, of step 9: {rates[9]:.5f}")
assert rates[9] == peak > rates[8] and not equal_weights(light, restarted)

# %% [markdown]
# ## 10 · Trackers and the hub
#
# `report_to` names the trackers; the default is `"none"`. A tracker is a callback that receives each `log` call.
#
# **Weights & Biases** works without an account in offline mode: `WANDB_MODE=offline` writes a local run folder that
# `wandb sync` can upload later. **Trackio** is a local-first tracker: it writes an SQLite file, and `trackio show`
# opens a dashboard. Inside a notebook Trackio would start that dashboard's web server by itself, so both run from the
# script that was started before section 9. Meanwhile the third tracker, in this process:

# %% [markdown]
# **TensorBoard** writes event files into `TENSORBOARD_LOGGING_DIR` (or below `output_dir`). In JupyterLab, run
# `%load_ext tensorboard` and `%tensorboard --logdir <folder>` in a cell, or `tensorboard --logdir <folder>` in a
# terminal. The files are plain records, so we can read them back:

# %%
os.environ["TENSORBOARD_LOGGING_DIR"] = f"{scratch.name}/tensorboard"
tracked = quiet_trainer(
    tiny_model(),
    scratch.name,
    few_rows,
    some_rows,
    data_collator=collate,
    compute_metrics=compute_metrics,
    max_steps=10,
    logging_steps=2,
    eval_strategy="steps",
    eval_steps=5,
    report_to="tensorboard",
)
tracked.train()
del os.environ["TENSORBOARD_LOGGING_DIR"]

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(f"{scratch.name}/tensorboard")
events.Reload()
in_file = [(event.step, event.value) for event in events.Scalars("train/loss")]
same = all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(in_file, logged(tracked, "loss"), strict=True))
print([tag for tag in events.Tags()["scalars"] if tag.split("/")[1] in ("loss", "accuracy", "macro_f1", "grad_norm")])
print("event file = log_history:", same)
assert same

# %% [markdown]
# And the two of the script: what did they leave on the disk?

# %%
import sqlite3

assert tracking.wait() == 0, (tracked_in / "track.log").read_text()[-2000:]
run_file = next(tracked_in.glob("wandb/offline-run-*/run-*.wandb"))
print("W&B: offline run file holds train/loss:", b"train/loss" in run_file.read_bytes())
with sqlite3.connect(next((tracked_in / "trackio").glob("*.db"))) as connection:
    logs = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY step").fetchall()
print("Trackio:", sum(b"train/loss" in bytes(metrics) for _, metrics in logs), "losses of run", logs[0][0])
assert b"train/loss" in run_file.read_bytes() and logs[0][0] == "line"

# %% [markdown]
# With an account: `wandb login` once, leave `WANDB_MODE` out, set `run_name` and the environment variable
# `WANDB_PROJECT`. On a cluster without internet: offline mode, then `wandb sync wandb/offline-run-*` from a login node.
#
# ### push_to_hub
#
# `push_to_hub=True` creates a model repository (`hub_model_id`, default: the name of `output_dir`) and uploads weights
# and configuration at every save (`hub_strategy="every_save"`). The model card, and with `"end"` everything, is
# uploaded only when you call `trainer.push_to_hub()`. It needs a token (`hf auth login`) and a network. The repository
# is public unless `hub_private_repo=True` or your organisation's default is private. (Source: `_push_from_checkpoint`
# and `push_to_hub` of the installed Trainer.) It is off by default, and this course never turns it on:

# %%
assert default_of("push_to_hub") is False and trainer.args.push_to_hub is False
print("push_to_hub:", trainer.args.push_to_hub, "| report_to:", default_of("report_to"))

# %% [markdown]
# ## 11 · When Trainer, when your own loop?
#
# | you want | take |
# |---|---|
# | standard fine-tuning or pretraining, any number of devices | Trainer |
# | another loss | Trainer with `compute_loss_func` (lesson 06) |
# | to watch, stop, save or change something at certain moments | Trainer with a callback (lesson 05) |
# | another forward/backward scheme | a Trainer subclass (lesson 07) |
# | several models in turn (GANs), data made while training | your own loop, with Accelerate (lesson 08) |
# | to understand or debug | your own loop, on one batch |
#
# A sign that you have outgrown the Trainer: you override three methods and copy half of their bodies. A sign that you
# should have taken it: your loop grows flags for resuming, logging and mixed precision.

# %% [markdown]
# ## 12 · What goes wrong
#
# Four bugs that raise nothing. Each is planted, measured and caught.
#
# ### A column silently disappears
#
# `remove_unused_columns=True` drops every column that `forward` does not name. Usually that is what you want. Here it
# is not: we give each row a `weight` (rare classes count more) and use it in the loss, *if it is there*.

# %%
counts = collections.Counter(few_rows["label"])
weights = [len(few_rows) / (num_labels * counts[label]) for label in few_rows["label"]]
weighted_rows = few_rows.add_column("weight", weights)


class WeightedTrainer(Trainer):
    loss_is_scaled_for_ga = False  # our loss is the mean of one micro-batch; see "Accumulation" below

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weight = inputs.pop("weight", None)  # a default that hides the bug
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")  # (B,)
        loss = loss.mean() if weight is None else (loss * weight).mean()
        return (loss, outputs) if return_outputs else loss


# %%
def weighted_run(rows, **settings):
    trainer = quiet_trainer(
        tiny_model(),
        scratch.name,
        rows,
        data_collator=collate,
        trainer_class=WeightedTrainer,
        max_steps=10,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=True,  # the comparison is bitwise
        **settings,
    )
    trainer.train()
    return trainer


without, planted = weighted_run(few_rows), weighted_run(weighted_rows)
print("weighted run = run without weights:", logged(planted, "loss") == logged(without, "loss"))
assert logged(planted, "loss") == logged(without, "loss")

# %% [markdown]
# Ten steps, not one bit of difference: the weights never arrived. The check is to look at a batch as the model will see
# it. `get_train_dataloader` is public, so this is one line worth having in every project. The fix is to keep the
# columns, and to demand what you need (`inputs["weight"]`, without a default).

# %%
print("planted:", sorted(next(iter(planted.get_train_dataloader()))))
fixed = weighted_run(weighted_rows, remove_unused_columns=False)
print("fixed:  ", sorted(next(iter(fixed.get_train_dataloader()))))
assert "weight" not in next(iter(planted.get_train_dataloader()))
assert "weight" in next(iter(fixed.get_train_dataloader())) and logged(fixed, "loss") != logged(without, "loss")

# %% [markdown]
# ### Labels with another name
#
# In training this bug is loud: no `labels`, no loss, an error.


# %%
def labels_run(train, evaluation, **settings):
    return quiet_trainer(
        tiny_model(),
        scratch.name,
        train,
        evaluation,
        data_collator=collate,
        compute_metrics=compute_metrics,
        max_steps=4,
        per_device_eval_batch_size=100,
        eval_strategy="steps",
        eval_steps=4,
        **settings,
    )


try:
    labels_run(few_rows.rename_column("label", "target"), some_rows).train()
except ValueError as error:
    print(str(error).split(",")[0])

# %% [markdown]
# In evaluation it is silent: without labels `prediction_step` still runs, and returns neither loss nor metrics. The
# same happens with the argument that looks as if it named your column: `label_names=["label"]`. It must name the
# *batch's* key, after the collator, which is `labels`.

# %%
cases = {
    "right": labels_run(few_rows, some_rows),
    "evaluation rows with 'target'": labels_run(few_rows, some_rows.rename_column("label", "target")),
    "label_names=['label']": labels_run(few_rows, some_rows, label_names=["label"]),
}
for name, run in cases.items():
    run.train()
    found = {key for entry in run.state.log_history for key in entry}
    print(f"{name}:", sorted(found & {"eval_loss", "eval_accuracy", "eval_macro_f1"}))

# %% [markdown]
# The check is one evaluation *before* training, which costs seconds and tells you that names, metrics and memory fit:


# %%
def check_evaluation(trainer, metric):
    """Raise before training if an evaluation would lack ``metric``."""
    found = trainer.evaluate()
    if metric not in found:
        raise ValueError(f"metric={metric!r} is missing; allowed: {', '.join(sorted(found))}")


check_evaluation(cases["right"], "eval_macro_f1")
for name in list(cases)[1:]:
    try:
        check_evaluation(cases[name], "eval_macro_f1")
        raise AssertionError("not caught")
    except ValueError as error:
        print("caught:", str(error).split(";")[0])

# %% [markdown]
# ### The best model is never loaded
#
# `load_best_model_at_end` can load only what was *saved*. `save_steps` may be a multiple of `eval_steps`, so a best
# value between two saves is recorded and lost. We provoke it with a model that overfits 200 rows: its validation loss
# has a minimum in the middle of the run.


# %%
def overfit(folder, **settings):
    trainer = quiet_trainer(
        tiny_model(embedding_dropout=0.0),
        f"{scratch.name}/{folder}",
        few_rows.select(range(200)),
        some_rows,
        data_collator=collate,
        max_steps=40,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=5,
        use_cpu=True,
        seed=seed,
        **settings,
    )
    trainer.train()
    return trainer


# %%
reference = overfit("reference")
evaluations = logged(reference, "eval_loss")
best_step = min(evaluations, key=lambda entry: entry[1])[0]
save_steps = best_step + 5  # a multiple of eval_steps, one evaluation too late
planted = overfit(
    "planted", save_strategy="steps", save_steps=save_steps, load_best_model_at_end=True, metric_for_best_model="loss"
)
loaded = planted.evaluate()["eval_loss"]
lost = loaded - min(value for _, value in evaluations)
print("the best step is not the last:", best_step < 40)
print("the loaded model is worse than the best one:", lost > 0)
assert logged(planted, "eval_loss")[: len(evaluations)] == evaluations and lost > 0

# %% tags=["nbval-ignore-output"]
loaded_from = planted.state.best_model_checkpoint
name = Path(loaded_from).name if loaded_from else "nothing"
print(f"best at step {best_step}, saved every {save_steps}, loaded {name}: loss {lost:.3f} above the best")
assert planted.state.best_global_step == best_step


# %% [markdown]
# Nothing was printed and nothing raised. The Trainer even *knows* the best step. The check compares it with the
# checkpoint; the cure is to save at every evaluation, or `save_strategy="best"`.


# %%
def best_was_loaded(trainer):
    checkpoint = trainer.state.best_model_checkpoint
    return checkpoint is not None and checkpoint.endswith(f"-{trainer.state.best_global_step}")


cured = overfit(
    "cured", save_strategy="best", save_total_limit=1, load_best_model_at_end=True, metric_for_best_model="loss"
)
print("planted:", best_was_loaded(planted), "| cured:", best_was_loaded(cured))
assert not best_was_loaded(planted) and best_was_loaded(cured)

# %% [markdown]
# Here the best step is not the last one, so this is a proof: the model in memory has the weights of the best step's
# file, and its loss.

# %%
from safetensors.torch import load_file

in_file = load_file(f"{cured.state.best_model_checkpoint}/model.safetensors")
in_memory = cured.model.state_dict()
print("memory = best checkpoint:", all(torch.equal(in_memory[name], value) for name, value in in_file.items()))
assert len(in_file) > 0 and all(torch.equal(in_memory[name], value) for name, value in in_file.items())
assert cured.state.best_global_step < cured.state.global_step == 40
assert abs(cured.evaluate()["eval_loss"] - cured.state.best_metric) < 1e-6

# %% [markdown]
# Its sibling is the **direction**. Unless you set `greater_is_better`, the Trainer guesses from the name: smaller is
# better only if it ends in "loss". With a metric called `error_rate` it keeps the worst model, carefully:

# %%
for metric in ("eval_loss", "eval_macro_f1", "eval_error_rate"):
    arguments = TrainingArguments(scratch.name, metric_for_best_model=metric)
    print(f"{metric}: greater_is_better={arguments.greater_is_better}")
assert TrainingArguments(scratch.name, metric_for_best_model="eval_error_rate").greater_is_better is True

# %% [markdown]
# ### Accumulation multiplies the loss
#
# The one that surprises most. If a model's `forward` accepts `**kwargs`, the Trainer assumes that the model divides its
# loss by `num_items_in_batch`, so it does not divide by the number of micro-batches. ModernBERT's classifier accepts
# the argument and ignores it. With 4 micro-batches loss and gradients are four times too large:


# %%
no_dropout = dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"), 0.0)


def accumulating(steps, **options):
    trainer = quiet_trainer(
        tiny_model(**no_dropout),
        scratch.name,
        few_rows,
        data_collator=collate,
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=32 // steps,
        gradient_accumulation_steps=steps,
        train_sampling_strategy="sequential",
        **options,
    )
    trainer.train()
    return logged(trainer, "loss")[0][1], logged(trainer, "grad_norm")[0][1]


(big, big_norm), (planted, planted_norm) = accumulating(1), accumulating(4)
print(f"one batch of 32: loss {big:.1f}; four of 8: loss {planted:.1f}; ratio {planted / big:.1f}")
print(f"gradient norm: ratio {planted_norm / big_norm:.1f}")
assert abs(planted / big - 4) < 1e-4

# %% [markdown]
# With clipping and AdamW, which divides by the gradient's size, the run still learns; only the log looks odd and
# clipping bites more often. That is how such a bug survives. The check is the comparison above, on step 1. The cure is
# to say how the loss is normalised: lesson 01's summed cross entropy, divided by the labels of the whole window.

# %%
from course_utils.training.loop import summed_cross_entropy

cured, cured_norm = accumulating(4, compute_loss_func=summed_cross_entropy)
print(f"cured: loss ratio {cured / big:.1f}, gradient norm ratio {cured_norm / big_norm:.1f}")
assert abs(cured / big - 1) < 1e-4

# %% [markdown]
# The second cure is for a loss that is the mean of one micro-batch, as in `WeightedTrainer`: the class attribute
# `loss_is_scaled_for_ga = False` makes the Trainer divide by the number of micro-batches. That is exact when all
# micro-batches have the same number of labels, as here.


# %%
class MeanLossTrainer(Trainer):
    loss_is_scaled_for_ga = False


cured, cured_norm = accumulating(4, trainer_class=MeanLossTrainer)
print(f"second cure: loss ratio {cured / big:.1f}, gradient norm ratio {cured_norm / big_norm:.1f}")
assert abs(cured / big - 1) < 1e-4 and abs(cured_norm / big_norm - 1) < 1e-3

# %% [markdown]
# With the first cure, the Trainer equals the loop with accumulation as well, bit for bit:

# %%
trainer = quiet_trainer(
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
trainer.train()
loop_model = tiny_model()
optimizer = torch.optim.AdamW(parameter_groups(loop_model, 0.0), lr=1e-3, fused=True)
batches = ShuffledBatches(few_rows, 8, collate, shuffle=False)
set_seed(seed)
config = LoopConfig(max_steps=8, accumulation=3)
history = train(loop_model, batches, optimizer, config, loss_function=summed_cross_entropy)
equal = [value for _, value in logged(trainer, "loss")] == [record["loss"] for record in history]
print("accumulated: losses equal at all steps:", equal)
assert equal

# %% [markdown]
# ## 13 · Exercises
#
# ### 03.1 Translate a loop's settings
#
# `loop` describes a run of lesson 01's loop. Return the keyword arguments that make the Trainer do the same. The keys
# are printed below; `max_grad_norm=0.0` means no clipping, `eval_every=0` no evaluation, `micro_batch` is the number
# of rows per forward pass. Leave nothing to a default that the loop did not have.

# %%
from course_utils.lessons.lesson_03.exercises import LOOPS

print(LOOPS[0])


# %%
def trainer_arguments(loop): ...


# %%
teach.check("03.1", trainer_arguments)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("03.1")`, and `teach.show_solution("03.1")` when you want to compare.
#
# </details>
#
# ### 03.2 What makes two runs differ?
#
# Two runs that "had the same settings" give different curves. Write a function that takes both `TrainingArguments` and
# returns the *set of names* of the fields that differ, without those that cannot change a weight (`BOOKKEEPING`: names,
# folders, logging). `save_strategy` and `save_steps` are not among these: they decide which weights
# `load_best_model_at_end` finds (section 12).

# %%
from course_utils.training.settings import BOOKKEEPING

print(sorted(BOOKKEEPING)[:6], "...")


def differing_settings(first, second): ...


# %%
teach.check("03.2", differing_settings)

# %% [markdown]
# Now use it. Here are two runs of the same program. Their first two losses agree and from the third on they differ.
# Which setting is it, and why does it take until the third loss? (The quiz below has the answer.)


# %%
def mystery(name, **secret):
    trainer = quiet_trainer(
        tiny_model(),
        f"{scratch.name}/{name}",
        few_rows,
        data_collator=collate,
        max_steps=6,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        **secret,
    )
    trainer.train()
    return trainer


hidden = bytes.fromhex("6164616d5f6265746132").decode()  # no peeking: your function will find it
runs = [mystery("first"), mystery("second", **{hidden: 0.5})]
pairs = zip(logged(runs[0], "loss"), logged(runs[1], "loss"), strict=True)
print("losses agree to 1e-5, step by step:", [abs(a - b) < 1e-5 for (_, a), (_, b) in pairs])
print("your answer:", differing_settings(runs[0].args, runs[1].args))

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("03.2")`, and `teach.show_solution("03.2")` when you want to compare.
#
# </details>
#
# ### 03.3 Which checkpoint does `load_best_model_at_end` load?
#
# `evaluations` is a list of `(step, value)`, `saved` the set of steps with a checkpoint. Return the step whose weights
# the Trainer ends with, or `None` if nothing is loaded. Remember section 12: it loads the last checkpoint that was the
# best *at the time it was saved*.


# %%
def best_checkpoint(evaluations, saved, greater_is_better): ...


# %%
teach.check("03.3", best_checkpoint)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# Run `teach.show_hint("03.3")`, and `teach.show_solution("03.3")` when you want to compare.
#
# </details>

# %% [markdown]
# ## Recap
#
# - The Trainer is lesson 01's loop: same losses, gradients and weights to the last bit, plus evaluation, checkpoints,
#   trackers and devices, for a small fixed cost per step.
# - One step is `get_batch_samples`, `training_step` (`compute_loss`, `backward`) per micro-batch, clip, optimizer,
#   scheduler, `zero_grad`, and the callback events between them.
# - Its defaults are not lesson 01's run: rate 5e-5, no warm-up, no weight decay, batches of 8, seed 42, a log entry
#   every 500 steps. The linear schedule and clipping at 1.0 happen to agree.
# - bf16 where the hardware has it; fp16 needs loss scaling because small gradients lose digits or vanish.
# - `load_best_model_at_end` loads the best evaluated checkpoint only if that step was saved; otherwise an earlier one
#   that was best when it was saved, or nothing. Set `greater_is_better` yourself.
# - Resume is exact when every file is there and the order is "random" or "sequential"; with "group_by_length" only
#   inside the first epoch.
# - Before a long run: look at one batch, evaluate once, compare accumulation with the big batch.

# %% [markdown]
# ## Quiz
#
# **1.** A run has `per_device_train_batch_size=8`, `gradient_accumulation_steps=4`, 2 devices and `max_steps=1000`. How
# often is `scheduler.step()` called?
#
# <details><summary>Answer</summary>
#
# 1,000 times on each process: once per optimizer step. Micro-batches do not count. The effective batch is 64.
#
# </details>

# %% [markdown]
# **2.** Why do the first two losses of exercise 03.2's runs agree although `adam_beta2` differs?
#
# <details><summary>Answer</summary>
#
# The first loss is computed before any update. The first update does not depend on the betas: after bias correction the
# moments of step 1 are the gradient and its square, whatever the betas are, so the update is about learning rate x sign
# of the gradient. The second loss therefore agrees too. From the second update on, beta2 decides how the old and the
# new square are mixed.
#
# </details>

# %% [markdown]
# **3.** You evaluate every 100 steps instead of every 500, nothing else changes, and the final weights differ on a CPU.
# A bug?
#
# <details><summary>Answer</summary>
#
# No. Starting the evaluation's `DataLoader` draws a number from the global random generator, so dropout continues with
# other numbers. The runs are equally good, but not equal. This is why `eval_steps` is not in `BOOKKEEPING`.
#
# </details>

# %% [markdown]
# **4.** fp16 has more digits than bf16. Why is bf16 preferred?
#
# <details><summary>Answer</summary>
#
# Range. fp16 ends at 65,504 and rounds below about 3e-8 to zero, so activations overflow and gradients vanish; it needs
# loss scaling and skips steps. bf16 has the range of fp32. Its few digits matter less, because weights and optimizer
# state stay in fp32.
#
# </details>

# %% [markdown]
# **5.** `evaluate()` returns only `eval_runtime` and rates. What is the first thing to look at?
#
# <details><summary>Answer</summary>
#
# The keys of one evaluation batch: `next(iter(trainer.get_eval_dataloader()))`. No `labels` in it, or a `label_names`
# that names something else, means no loss and no metrics, without an error.
#
# </details>

# %% [markdown]
# **Next:** lesson 04 takes metrics seriously: macro and micro averages, confusion matrices, generation metrics,
# memory, distributed evaluation and confidence intervals.

# %%
scratch.cleanup()
print("scratch folder removed:", not Path(scratch.name).exists())
