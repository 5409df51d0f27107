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
max_steps = 800
seed = 0

# %% slideshow={"slide_type": "skip"}
import tempfile

import torch
from transformers import DataCollatorWithPadding, TrainerCallback, set_seed

from course_utils import teach
from course_utils.data import load_classification, roman
from course_utils.lessons.lesson_05 import figures
from course_utils.lessons.lesson_05.scripted import scripted
from course_utils.lessons.lesson_05.stopping import paired_interval, under_rule
from course_utils.models import load_causal_lm, load_tokenizer
from course_utils.training.callbacks import EventRecorder, GenerationSamples, GradientWatch, PlateauStop, SaveBest
from course_utils.training.evaluation import macro_f1
from course_utils.training.settings import quiet_trainer
from course_utils.training.waits import CountWaits

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
dataset, tokenizer = load_classification(source), load_tokenizer(source)
num_labels = dataset["train"].features["label"].num_classes
texts = [name for name in dataset["train"].column_names if name != "label"]


def tokenize(rows):
    encoded = tokenizer(rows["text"], truncation=True, max_length=48)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


rows = dataset.map(tokenize, batched=True, remove_columns=texts)
collate = DataCollatorWithPadding(tokenizer)
scratch = tempfile.TemporaryDirectory()
every = max(1, max_steps // 16)


class Bag(torch.nn.Module):
    def __init__(self, vocabulary, labels, width=64):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        first, last = torch.nn.Linear(width, width), torch.nn.Linear(width, labels)
        self.head = torch.nn.Sequential(first, torch.nn.ReLU(), last)

    def forward(self, input_ids, attention_mask, labels=None):
        mask = attention_mask[..., None].float()
        logits = self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}


def score(prediction):
    logits, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
    return {"macro_f1": macro_f1(logits.argmax(-1), labels, num_labels)}


def run(name, callbacks=(), train_rows=rows["train"], seed=seed, **settings):
    set_seed(seed)
    options = {"max_steps": max_steps, "logging_steps": every, "eval_steps": every, "eval_strategy": "steps"}
    options |= {"per_device_train_batch_size": 64, "per_device_eval_batch_size": 250, "seed": seed}
    options |= {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "metric_for_best_model": "macro_f1"}
    options |= {"data_collator": collate, "compute_metrics": score} | settings
    model, data = Bag(len(tokenizer), num_labels), (train_rows, rows["validation"])
    trainer = quiet_trainer(model, f"{scratch.name}/{name}", *data, callbacks=callbacks, **options)
    trainer.train()
    return trainer


# %% [markdown] slideshow={"slide_type": "slide"}
# # 05 · Callbacks
#
# Control without subclassing

# %% [markdown] slideshow={"slide_type": "notes"}
# The Trainer runs the loop; callbacks look and ask. Today: events, flags, stopping, the best checkpoint, memory over a
# resume, watching gradients, samples, two processes, and bugs that raise nothing. About 80 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A run that was steered
#
# Two callbacks decided here: when to stop, and which checkpoint to keep.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
best = SaveBest(metric="loss")
steered = run("steered", [PlateauStop(patience=3, metric="loss"), best])
steps = (best.best_step, steered.state.global_step, max_steps)
teach.show(figures.steered_run(steered.state.log_history, *steps, "eval_macro_f1"))

# %% [markdown] slideshow={"slide_type": "notes"}
# Two callbacks of the course: one stops when the validation loss has not improved for three evaluations, one keeps the
# best checkpoint and only that. Ask: is this the right moment to stop? Look at the right panel. We come back to it.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What a callback sees, what it may change
#
# It sees state and objects and sets the flags of control; batch, logits and loss stay inside.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# Down: settings, state, control, the objects. Up: control. The batch, the logits and the loss stay inside; who needs
# them overrides compute_loss, which is lesson 06. DefaultFlowCallback comes first and sets the flags.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two steps, every event
#
# The order is fixed: micro-batches, clip, optimizer, scheduler, then log, evaluate, save.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
recorder = EventRecorder()
settings = {"max_steps": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "logging_steps": 2}
settings |= {"eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
few_rows = rows["train"].select(range(64))
run("recorded", [recorder], few_rows, **settings)
teach.show(figures.timeline(recorder.of_step(1) + recorder.of_step(2), "Two optimizer steps, two micro-batches each"))

# %% [markdown] slideshow={"slide_type": "notes"}
# Recorded live. Two micro-batches: one substep_end, because the last micro-batch ends the step. Clipping is before
# pre_optimizer_step, the scheduler before step_end. Then log, evaluate, save, in this order. Exercise 05.1 here.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The smallest useful callback
#
# ```python
# class EvaluateEarly(TrainerCallback):
#     """Evaluate at steps 1, 2, 4, 8 ..."""
#
#     def on_step_end(self, args, state, control, **kwargs):
#         if state.global_step & (state.global_step - 1) == 0:
#             control.should_evaluate = True
# ```
#
# > Change the `control` you were given, or return a new one.

# %% [markdown] slideshow={"slide_type": "notes"}
# Flags: should_log, should_evaluate, should_save are reset before each step; should_epoch_stop before each epoch;
# should_training_stop stays. Exercise 05.2: freeze and unfreeze. The trap is on_init_end: what is frozen before the
# optimizer is built never trains again.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A slow gain is not a plateau
#
# With a threshold, the rule that compares with the best so far stops a run that still improves.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.creep([round(0.5 + 0.004 * number, 3) for number in range(10)], min_delta=0.01))

# %% [markdown] slideshow={"slide_type": "notes"}
# Both rules ask for a gain of more than 0.01, patience 3. EarlyStoppingCallback compares with the best so far, which
# creeps along: it stops at the fourth evaluation of a run that improves forever. PlateauStop keeps the last value that
# counted, as ReduceLROnPlateau does. Without a threshold both are the same. Exercise 05.3.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What does stopping give? Three seeds
#
# Stopping by the loss makes the fewest steps; what that costs is on the next slide.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
rules = {"no stop": (None, True), "by loss": ("eval_loss", False), "by macro-F1": ("eval_macro_f1", True)}
scores = {name: [] for name in rules}
for number in range(3):
    full = run(f"full-{number}", seed=seed + number, save_strategy="steps", save_steps=every)
    for name, rule in rules.items():
        scores[name].append(under_rule(full, rows["test"], *rule))
teach.show(figures.rules(scores))

# %% [markdown] slideshow={"slide_type": "notes"}
# Choices on the validation split, reported on the test split. Stopping by the loss takes fewest steps and gives the
# lowest loss, and on the mean a lower macro-F1. The next slide asks how sure that is.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The differences, with their intervals

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
base = scores.pop("no stop")
gains = {
    f"{label}, stopped {name}": paired_interval(found, base, key)
    for key, label in (("loss", "loss"), ("macro_f1", "macro-F1"))
    for name, found in scores.items()
}
teach.show(figures.paired(gains, "test score minus the score without stopping"))

# %% [markdown] slideshow={"slide_type": "-"}
# > A rule looks after the metric that it watches.

# %% [markdown] slideshow={"slide_type": "notes"}
# Student's 95 % interval of three paired differences: wide, and honest. Only the loss's gain, stopped by loss, excludes
# zero; three seeds do not decide about macro-F1. Stopping is a safeguard, not a trick.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## When does `state.best_metric` change?

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
recorder = EventRecorder()
scripted([0.5, 0.7, 0.6], [recorder], f"{scratch.name}/order", save_strategy="steps", save_steps=1)
teach.show(figures.when_best_changes(recorder.of_step(2) + recorder.of_step(3)[:1]))

# %% [markdown] slideshow={"slide_type": "-"}
# - ask in `on_evaluate`, with a best value of your own
# - the first evaluation counts; NaN never does
# - `greater_is_better=None` maximises every name that does not end in "loss"

# %% [markdown] slideshow={"slide_type": "notes"}
# A comparison in on_save never finds a new best: it compares the new best with itself. SaveBest keeps exactly the best
# checkpoint, for both directions and after a resume. save_strategy="best" with save_total_limit=1 does the same; take
# it when it is enough. Perplexity is the trap for the direction: exercise 05.4.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A memory that survives a resume
#
# ```python
# class PlateauStop(TrainerCallback, ExportableState):
#     def state(self):
#         return {
#             "args": {"patience": self.patience},        # constructor
#             "attributes": {"waited": self.waited},      # set afterwards
#         }
# ```
#
# - back only with `restore_callback_states_from_checkpoint=True`
# - in a **new** object: look in `trainer.callback_handler.callbacks`
# - `state.log_history` is always restored

# %% [markdown] slideshow={"slide_type": "notes"}
# Measured in the lesson: interrupted after step 4, the run should stop at 5. Without the setting it counts
# anew and stops at 8. Two callbacks of one class get each other's old states: one class per object.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A NaN that the log hides
#
# The filtered log looks like a triumph; the gradients know better.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
damaged = rows["train"].select(range(6400)).to_list()
damaged[1000]["attention_mask"] = [0] * len(damaged[1000]["attention_mask"])
short = {"max_steps": min(100, max_steps), "logging_steps": 5, "eval_steps": 20}
hidden, skip = run("hidden", [], damaged, **short), GradientWatch("skip")
skipped = run("skipped", [skip], damaged, **short)
bad_step = (skip.bad_steps or [short["max_steps"]])[0]
teach.show(figures.hidden_nan(hidden.state.log_history, skipped.state.log_history, bad_step, "eval_macro_f1"))

# %% [markdown] slideshow={"slide_type": "notes"}
# One empty row: 0/0, NaN loss, NaN gradients, NaN weights. logging_nan_inf_filter=True, the default, replaces a NaN
# loss by the mean since the last log; after the next log that is zero. The curve looks like a triumph. GradientWatch
# sees it in on_pre_optimizer_step and can record, stop, or skip the step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## How often does a step wait?
#
# Keep tensors and read them in `on_log`: each number read is one wait.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}


class NormOfEach(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms = [p.grad.norm().item() for p in model.parameters()]


def waits_per_step(callbacks, **settings):
    with CountWaits() as waits:
        run("waits", callbacks, few_rows, max_steps=10, logging_steps=10, eval_strategy="no", **settings)
    return waits.count / 10


unfiltered = {"logging_nan_inf_filter": False}
waits = {
    "Trainer, default": waits_per_step([]),
    "without NaN filter": waits_per_step([], **unfiltered),
    "and a norm of each parameter": waits_per_step([NormOfEach()], **unfiltered),
    'and GradientWatch("record")': waits_per_step([GradientWatch("record")], **unfiltered),
    'and GradientWatch("skip")': waits_per_step([GradientWatch("skip")], **unfiltered),
}
teach.show(figures.waits(waits))

# %% [markdown] slideshow={"slide_type": "notes"}
# On a GPU each .item(), float(tensor) or `if tensor` empties the queue. Counted on a CPU, where the calls are the same.
# A naive watcher waits once per parameter; keep tensors and read them in on_log, where the Trainer waits anyway.
# "skip" must decide before the optimizer moves: one wait a step.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Read what the model writes
#
# The loss cannot see that the few short numbers are wrong; samples can.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
train_numbers, validation_numbers = roman.roman_rows(seed=seed)
set_seed(seed)
numbers = (7, 49, 1987, 2024, 3888)
samples = GenerationSamples([roman.prompt(number) for number in numbers], roman.decode, max_new_tokens=16)
steps = min(200, max_steps)
options = {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": 0.1, "per_device_train_batch_size": 64}
options |= {"eval_strategy": "steps", "eval_steps": max(1, steps // 5), "seed": seed, "data_collator": roman.collate}
writer = load_causal_lm("local", **roman.TINY_MODEL)
data = train_numbers, validation_numbers
quiet_trainer(writer, f"{scratch.name}/writer", *data, callbacks=[samples], **options).train()
teach.show(figures.written(samples.samples, numbers, [roman.roman(number) for number in numbers]))

# %% [markdown] slideshow={"slide_type": "notes"}
# GenerationSamples continues the same prompts at every evaluation. The loss curve looks fine; the samples show that
# short numbers are wrong more often than long ones. They are few of the rows: the mean does not notice. LivePlot draws
# the curve while it grows, in JupyterLab only.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two processes
#
# - **every event fires on every rank**
# - steer on all ranks: the metrics are gathered, so decisions agree
# - write, print, delete on one: `state.is_world_process_zero`
#
# > A stop on rank 0 only leaves the others waiting. `StopTogether` compares the wishes.

# %% [markdown] slideshow={"slide_type": "notes"}
# The lesson starts two real processes: the same counts of events, the same stop, one deletion. Then a stop on rank 0
# only: StopTogether notices at step 2 and ends both.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Bugs that raise nothing
#
# | bug | what catches it |
# |---|---|
# | compare in `on_save` | your own best value; record the events |
# | a copy of `control`, not returned | a scripted metric and the expected step |
# | a wait at every step | `CountWaits`, a profiler |
# | stop on rank 0 only | a test on two processes |
# | state not restored | the uninterrupted run |

# %% [markdown] slideshow={"slide_type": "notes"}
# Two are planted in the lesson, the others measured on the way. Exercise 05.5 has three of them in one small callback.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Your turn
#
# - **05.1** How often does each event fire?
# - **05.2** Freeze, and unfreeze at a step
# - **05.3** A plateau stop
# - **05.4** Keep the best by perplexity
# - **05.5** Three bugs in one callback
# - **05.6** A guard that survives a resume
#
# > Next: the loss itself (lesson 06).

# %% [markdown] slideshow={"slide_type": "notes"}
# 36 minutes. 05.6 is the lesson in one callback: read, decide, remember, on every rank. If time is short, do 05.2 and
# 05.6.

# %% slideshow={"slide_type": "skip"}
scratch.cleanup()
