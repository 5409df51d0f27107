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
# # 05 · Callbacks: control without subclassing
#
# The Trainer runs your loop. A *callback* is an object whose methods it calls at fixed points of that loop, the
# *events*. There it can look at the run, and ask the Trainer to stop, to save or to evaluate.
#
# **You will be able to**
# - say which event comes when, what a callback sees there, and what it does not see;
# - stop a run, keep its best checkpoint, freeze layers, watch gradients, draw a live curve, print samples;
# - write a callback whose memory survives a resume and which does the right thing on several processes;
# - recognise six callback bugs that raise nothing.
#
# **Minutes:** {minutes} · **Prerequisites:** lesson 03 (Trainer, checkpoints, resume).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 800  # optimizer steps that the main run asks for
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Look first: a run that was steered
#
# The task is that of lessons 01 and 03: which library is a sentence from? Example rows, from this project's docstrings:

# %%
from tempfile import TemporaryDirectory

import torch
from transformers import DataCollatorWithPadding, set_seed

from course_utils.data import load_classification, own_sentences
from course_utils.models import load_tokenizer

torch.set_num_threads(1)  # small models: one thread costs half the time of two
dataset, tokenizer = load_classification(source), load_tokenizer(source)
num_labels = dataset["train"].features["label"].num_classes
for sentence in own_sentences()[:3]:
    ids = tokenizer(sentence)["input_ids"]
    print(f"{len(ids):3} tokens {ids[:5]} ...  {sentence[:48]}")

# %%
texts = [name for name in dataset["train"].column_names if name != "label"]


def tokenize(rows):
    encoded = tokenizer(rows["text"], truncation=True, max_length=48)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


rows = dataset.map(tokenize, batched=True, remove_columns=texts)
collate = DataCollatorWithPadding(tokenizer)
print({name: len(split) for name, split in rows.items()}, "labels:", num_labels)


# %% [markdown]
# This lesson trains about fifteen models, so the model is small: the mean of the token vectors, and two layers on top.
# A plain `nn.Module` will do, if it returns a dictionary with a `loss`.


# %%
class Bag(torch.nn.Module):
    """Mean of the token vectors (B, width), then two layers to logits (B, C)."""

    def __init__(self, vocabulary, labels, width=64):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        first, last = torch.nn.Linear(width, width), torch.nn.Linear(width, labels)
        self.head = torch.nn.Sequential(first, torch.nn.ReLU(), last)

    def forward(self, input_ids, attention_mask, labels=None):
        mask = attention_mask[..., None].float()  # (B, T, 1)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
        logits = self.head(mean)
        if labels is None:
            return {"logits": logits}
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


# %% [markdown]
# `run` trains it, evaluating sixteen times. The learning rate is constant: a run that may end at any step must not
# depend on a schedule with a fixed end.

# %%
from course_utils.training.evaluation import macro_f1
from course_utils.training.settings import logged, quiet_trainer

scratch = TemporaryDirectory()
every = max(1, max_steps // 16)


def score(prediction):
    logits, labels = torch.tensor(prediction.predictions), prediction.label_ids
    return {"macro_f1": macro_f1(logits.argmax(-1), torch.tensor(labels), num_labels)}


def run(name, callbacks=(), train_rows=rows["train"], seed=seed, **settings):
    set_seed(seed)
    options = {"max_steps": max_steps, "logging_steps": every, "eval_steps": every}
    options |= {"eval_strategy": "steps", "metric_for_best_model": "macro_f1"}
    options |= {"per_device_train_batch_size": 64, "per_device_eval_batch_size": 250}
    options |= {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "seed": seed}
    folder, model = f"{scratch.name}/{name}", Bag(len(tokenizer), num_labels)
    options |= {"data_collator": collate, "compute_metrics": score} | settings
    data = train_rows, rows["validation"]
    trainer = quiet_trainer(model, folder, *data, callbacks=callbacks, **options)
    trainer.train()
    return trainer


# %% [markdown]
# The run has two callbacks. `PlateauStop` ends it when the validation loss has not improved for three evaluations.
# `SaveBest` keeps only the checkpoint with the lowest loss. `on_disk` lists the steps of a folder's checkpoints.

# %%
from course_utils.lessons.lesson_05 import figures
from course_utils.lessons.lesson_05.scripted import on_disk
from course_utils.training.callbacks import PlateauStop, SaveBest

stop, best = PlateauStop(patience=3, metric="loss"), SaveBest(metric="loss")
steered = run("steered", [stop, best])
last_step, kept = steered.state.global_step, on_disk(steered.args.output_dir)
print("asked for", max_steps, "steps, made", last_step, "| checkpoints on disk:", kept)
teach.claim("exactly one checkpoint is on disk, the best", kept == [best.best_step])

# %%
history, steps = steered.state.log_history, (best.best_step, last_step, max_steps)
teach.show(figures.steered_run(history, *steps, "eval_macro_f1"))

# %% [markdown]
# The validation loss rises a little after its best; macro-F1 is still rising. Was it right to stop? Section 4 asks.
#
# Who talks to whom:

# %%
teach.show(figures.flow())

# %% [markdown]
# The arrow down carries the settings (`args`), the `state` of the run, the `control` flags and the objects (`model`,
# `optimizer`, `lr_scheduler`, data loaders). It does *not* carry the batch, the logits or the loss tensor: whoever
# needs those overrides a method (lesson 06). The arrow up is one object: `control`.
#
# Callbacks are called in the order of a list: `DefaultFlowCallback`, trackers (`report_to="tensorboard"`, lesson 03),
# yours, and last the progress bar (`disable_tqdm=False`) or the printer of logs. This list has no tracker, and
# `quiet_trainer` removed the printer:

# %%
print(steered.callback_handler.callback_list)

# %% [markdown]
# `DefaultFlowCallback` is why `logging_steps`, `eval_steps` and `save_steps` work: it sets the flags.

# %% [markdown]
# ## 2 · The events, in order
#
# `EventRecorder` notes at each of the 16 events its name, the step and the flags that are set. The recorded run is
# short: two micro-batches a step; log, evaluation and checkpoint at every second step. `listing` prints a line an
# event, equal ones folded. Its number is `state.global_step`, which counts *finished* steps: step 2 begins at 1.

# %%
from course_utils.training.callbacks import EventRecorder
from course_utils.training.callbacks.events import listing

recorder = EventRecorder()
few_rows = rows["train"].select(range(64))
short = {"max_steps": 4, "per_device_train_batch_size": 8}
short |= {"gradient_accumulation_steps": 2}
often = {"logging_steps": 2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
recorded = run("recorded", [recorder], few_rows, **short, **often)
print(listing(recorder.of_step(2)))

# %% [markdown]
# Each micro-batch but the step's last is followed by `on_substep_end`. Then the gradients are clipped, and the
# optimizer moves between `on_pre_optimizer_step` and `on_optimizer_step`. In `on_step_end` `DefaultFlowCallback`, first
# in the list, sets the flags; the recorder, after it, sees them. The Trainer does what they say, in this order: log,
# evaluate (a prediction event per batch, then its own log entry), save. Each flag is cleared when it is acted on.

# %%
two_steps = recorder.of_step(1) + recorder.of_step(2)
teach.show(figures.timeline(two_steps, "Two optimizer steps"))

# %%
counts = recorder.counts()  # of the whole run of 4 steps
for name, times in counts.items():
    print(f"{times:3}  {name}")
right = counts["on_step_end"] == 4 and counts["on_substep_end"] == 4 * (2 - 1)
teach.claim("on_step_end fires once a step, on_substep_end inside it", right)

# %% [markdown]
# These are 14. Nothing asked for the other two: `on_predict` (`trainer.predict`) and `on_push_begin` (hub). The fifth
# `on_log` is a summary of the run, after the last step.
#
# One trap: the scheduler moves between `on_optimizer_step` and `on_step_end`. Two steps of a linear schedule:


# %%
from transformers import TrainerCallback


class PrintRate(TrainerCallback):
    """The optimizer's learning rate at two events of each step."""

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        print("on_optimizer_step", optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        print("on_step_end      ", optimizer.param_groups[0]["lr"])


linear = {"max_steps": 2, "eval_strategy": "no", "lr_scheduler_type": "linear"}
rated = run("rates", [PrintRate()], few_rows, **linear)

# %% [markdown]
# To see the learning rate that *this* step used, read it in `on_optimizer_step`. `LearningRateLogger` does, for every
# parameter group, and logs it.
#
# One rule the recorded run does not show: with the strategy "steps" the Trainer evaluates and saves at the last step
# too, due or not.
#
# ### Exercise 05.1 · Predict the events (predict)
#
# A run has `max_steps=20`, `gradient_accumulation_steps=3`, `logging_steps=5`, `eval_strategy="steps"`, `eval_steps=8`,
# `save_strategy="steps"`, `save_steps=10`, all within one epoch. How often do `on_step_end`, `on_substep_end`,
# `on_log`, `on_evaluate` and `on_save` fire? Mind the end of the run, and look at which entries `on_log` announces.

# %%
prediction = ...  # a dictionary with these five names: {"on_step_end": 20, ...}

# %%
teach.check("05.1", prediction)

# %% [markdown]
# ## 3 · State and control
#
# | object | what is in it | you may |
# |---|---|---|
# | `args` | `TrainingArguments` | read |
# | `state` | `global_step`, `epoch`, `max_steps`, `log_history`, `best_metric`, `is_world_process_zero` | read |
# | `control` | `should_log`, `should_evaluate`, `should_save`, `should_epoch_stop`, `should_training_stop` | change |
# | `model`, `optimizer` | the objects themselves | change, at your own risk |
# | `logs` | the entry that is logged; only in `on_log` | read |
# | `metrics` | the evaluation's values; only in `on_evaluate` | read |
#
# The first three flags are reset before each step, `should_epoch_stop` before each epoch; `should_training_stop` stays.
# Change the `control` you were given, which is the Trainer's own object, or return a new one.
#
# A small useful callback. (`n & (n - 1)` is 0 for powers of two only. `logged` gives the step and value of each log
# entry that has a key.)


# %%
class EvaluateEarly(TrainerCallback):
    """Evaluate at steps 1, 2, 4, 8 ...: most goes wrong at the beginning of a run."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step & (state.global_step - 1) == 0:
            control.should_evaluate = True


# %%
early = run("early", [EvaluateEarly()], few_rows, max_steps=10, eval_steps=10)
steps = [step for step, _ in logged(early, "eval_loss")]
print("evaluated at", steps)
teach.claim("at powers of two, and at eval_steps", steps == [1, 2, 4, 8, 10])

# %% [markdown]
# Callbacks can also change the model, for example keep the embedding frozen while a new head learns, then let it train.
# One fact first. The Trainer builds its optimizer between `on_init_end` and `on_train_begin`, from the parameters that
# have `requires_grad=True` *at that moment*. What is frozen before never gets into it: setting `requires_grad=True`
# later does not help, and no warning tells you.
#
# ### Exercise 05.2 · Unfreeze at a step (write)
#
# Parameters whose name begins with `prefix` must not change in the first `step` optimizer steps, and train from then
# on. All others train throughout. A run resumed after `step` must not freeze them again.


# %%
class Unfreeze(TrainerCallback):
    def __init__(self, prefix, step):
        """Keep what the events below will need."""
        ...

    # which events do you need?


# %%
teach.check("05.2", Unfreeze)

# %% [markdown]
# ## 4 · Stopping: by hand, the library's, and a better one
#
# *Early stopping* ends a run when the metric has not improved for `patience` evaluations. `EarlyStoppingCallback` does
# it for `metric_for_best_model`. By hand, from the list of values:


# %%
def stop_evaluation(values, patience, greater_is_better=True):
    """Number of the evaluation at which the run ends; None: it is not stopped."""
    best, waited = None, 0
    for number, value in enumerate(values, 1):
        better = best is None or (value > best if greater_is_better else value < best)
        best, waited = (value, 0) if better else (best, waited + 1)
        if waited == patience:
            return number
    return None


# %% [markdown]
# To test a stopping rule one must know the metric beforehand. `scripted(values, callbacks)` is a real Trainer run of a
# tiny model, with an evaluation after each step, in which only the metric, `eval_score`, follows a script: `values`.

# %%
from transformers import EarlyStoppingCallback

from course_utils.lessons.lesson_05.scripted import scripted

scripts = [[0.5, 0.7, 0.6, 0.65, 0.9], [0.5, 0.5, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4]]
for values in scripts:
    rules = EarlyStoppingCallback(2), PlateauStop(2)
    ended = [scripted(values, [rule]).state.global_step for rule in rules]
    expected = stop_evaluation(values, 2) or len(values)
    print(values, "-> library, ours, by hand:", *ended, expected)
    teach.claim("all three stop at the same step", ended == [expected] * 2)

# %% [markdown]
# Section 1's run by hand, from the losses in its log, where smaller is better:

# %%
losses = [loss for _, loss in logged(steered, "eval_loss")]
number = stop_evaluation(losses, 3, greater_is_better=False)
expected = every * number if number else max_steps
teach.claim("section 1's run stopped where its history says", last_step == expected)

# %% [markdown]
# ### A slow gain is not a plateau
#
# Noise also "improves" a metric. So `EarlyStoppingCallback(3, early_stopping_threshold=0.01)` asks for a gain of more
# than 0.01, but over the *best value so far*, which every small step moves along. A steady gain of 0.004 is therefore
# stopped. `PlateauStop(min_delta=0.01)` compares with the last value that *counted* as a gain, as torch's
# `ReduceLROnPlateau` does. Then small steps add up.

# %%
values = [round(0.5 + 0.004 * number, 3) for number in range(10)]
teach.show(figures.creep(values, min_delta=0.01))
early = scripted(values, [EarlyStoppingCallback(3, 0.01)]).state.global_step
patient = scripted(values, [PlateauStop(3, min_delta=0.01)]).state.global_step
print("steady gain: EarlyStopping ends at", early, "| PlateauStop at", patient, "of 10")
differ = early == 4 and patient == 10
teach.claim("the library's rule stops a steady gain, PlateauStop does not", differ)

# %% [markdown]
# ### Exercise 05.3 · Plateau stop (write)
#
# Write the callback. It watches `metrics["eval_score"]`, larger is better. The first value that is a number is the
# reference. A value above `reference + min_delta` becomes the reference; after `patience` evaluations in a row without
# a new reference the run stops. A NaN, also a first one, counts as an evaluation without a gain. Do not use
# `state.best_metric`.


# %%
class Plateau(TrainerCallback):
    def __init__(self, patience, min_delta):
        """Keep what the event below will need."""
        ...

    # which event do you need?


# %%
teach.check("05.3", Plateau)

# %% [markdown]
# ### What does stopping give?
#
# Three rules, three seeds: run to the end and keep the last weights; stop by validation loss; stop by validation
# macro-F1 (both with patience 3, keeping the best checkpoint by that metric). One full run per seed, with a checkpoint
# at every evaluation, is enough: `under_rule` finds in its history where the rule would have stopped and what it would
# have kept. Validation decides, test only reports.

# %%
from course_utils.lessons.lesson_05.stopping import paired_interval, under_rule

rules = {"no stop": (None, True), "by loss": ("eval_loss", False)}
rules["by macro-F1"] = "eval_macro_f1", True
scores = {name: [] for name in rules}
for number in range(3):
    saving = {"save_strategy": "steps", "save_steps": every}
    full = run(f"full-{number}", seed=seed + number, **saving)
    for name, rule in rules.items():
        scores[name].append(under_rule(full, rows["test"], *rule))
teach.show(figures.rules(scores))

# %% [markdown]
# The differences to "no stop", seed by seed. `paired_interval` gives their mean and the ends of its 95 % interval
# (Student's t, wide for three seeds).

# %%
base = scores.pop("no stop")
gains = {
    f"{label}, stopped {name}": paired_interval(runs, base, key)
    for key, label in (("loss", "loss"), ("macro_f1", "macro-F1"))
    for name, runs in scores.items()
}
teach.show(figures.paired(gains, "test score minus the score without stopping"))
full_run = max_steps >= 800 and source == "local" and seed == 0  # of few runs
lower = gains["loss, stopped by loss"][2] < 0
teach.claim("stopping by loss lowers the test loss", lower, when=full_run)
costs = gains["macro-F1, stopped by loss"][1] < 0
teach.claim("and, on the mean of three seeds, macro-F1 too", costs, when=full_run)

# %% [markdown]
# One interval excludes zero: stopping by loss lowers the test loss. On the mean its macro-F1 is lower too, but that
# interval contains zero: three seeds do not decide it. Stopping by macro-F1 saves few steps here, and neither of its
# differences is clear. A rule looks after the metric that it watches; expect nothing from it for another.

# %% [markdown]
# ## 5 · Keeping the best checkpoint
#
# The Trainer keeps `state.best_metric`. When is it updated? The recorder notes its value at each event. In step 2 of
# this run the metric rises from 0.5 to 0.7:

# %%
recorder = EventRecorder()
at_each = {"save_strategy": "steps", "save_steps": 1}
scripted([0.5, 0.7, 0.6], [recorder], f"{scratch.name}/order", **at_each)
teach.show(figures.when_best_changes(recorder.of_step(2) + recorder.of_step(3)[:1]))
seen = {event.name: event.best_metric for event in recorder.of_step(2)}
old_then_new = (seen["on_evaluate"], seen["on_save"]) == (0.5, 0.7)
teach.claim("on_evaluate still sees the old best, on_save the new", old_then_new)

# %% [markdown]
# So "is this a new best?" must be asked in `on_evaluate`. At the first evaluation the old best is `None`. By hand, with
# a best value of its own:


# %%
class KeepBest(TrainerCallback):
    """Ask for a checkpoint at each new best of a metric."""

    def __init__(self, key, greater_is_better):
        self.key, self.sign, self.best = key, 1 if greater_is_better else -1, None

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = self.sign * metrics[self.key]
        is_number = value == value  # NaN is not equal to itself
        if is_number and (self.best is None or value > self.best):
            self.best = value
            control.should_save = True


# %%
values, where = [float("nan"), 0.5, 0.7, 0.6, 0.7, 0.4, 0.9], f"{scratch.name}/best"
kinds, same = ("hand", "ours", "library"), {"save_strategy": "best"}
for greater, best_step in ((True, 7), (False, 6)):
    scripted(values, [KeepBest("eval_score", greater)], f"{where}-hand-{greater}")
    scripted(values, [SaveBest(greater_is_better=greater)], f"{where}-ours-{greater}")
    same |= {"save_total_limit": 1, "greater_is_better": greater}
    scripted(values, [], f"{where}-library-{greater}", **same)
    hand, ours, theirs = [on_disk(f"{where}-{kind}-{greater}") for kind in kinds]
    print("larger is better: " if greater else "smaller is better:", hand, ours, theirs)
    exact = ours == theirs == [best_step]
    teach.claim("SaveBest and save_strategy='best' leave exactly the best", exact)

# %% [markdown]
# `KeepBest` never deletes. `SaveBest` deletes the best before, once the new one is complete. So does the library, with
# `save_strategy="best"` and `save_total_limit=1`; take that when it is enough. `SaveBest` can also follow another
# metric than early stopping does, and stand beside periodic checkpoints.

# %% [markdown]
# ### Deeper: exercise 05.4 · Keep the best by perplexity (vary)
#
# Perplexity (the exponential of the mean loss per token) should be small. Change `given`, and add to it, until exactly
# one checkpoint is left after the run, the one with the lowest `eval_perplexity`, with an evaluation every 50 steps.

# %%
given = {"eval_strategy": "no", "save_strategy": "steps"}
given |= {"metric_for_best_model": "perplexity"}
arguments = ...  # the whole dictionary: given, changed and completed

# %%
teach.check("05.4", arguments)

# %% [markdown]
# ## 6 · A memory that survives a resume
#
# A callback's attributes are gone when the process ends. What must outlive it goes through `ExportableState`: a method
# `state()` returns the constructor's arguments and the attributes to set afterwards, and the Trainer writes them into
# each checkpoint's `trainer_state.json`. `PlateauStop` derives from it too, and has this method:

# %%
teach.show_source(PlateauStop.state)

# %%
import json

values = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]  # patience 3: ends at 5
folder = f"{scratch.name}/memory"
whole = scripted(values, [PlateauStop(3)], folder, **at_each)
with open(f"{folder}/checkpoint-4/trainer_state.json") as file:
    saved = json.load(file)
print("uninterrupted, it stops at step", whole.state.global_step)
print("in checkpoint-4:", saved["stateful_callbacks"]["PlateauStop"])

# %% [markdown]
# After step 4 it had waited for two evaluations. Resume from there, once as usual, once with a setting that is off by
# default:

# %%
ends = {}
for flag in (False, True):
    stop = PlateauStop(3)
    options = {"restore_callback_states_from_checkpoint": flag} | at_each
    resumed = scripted(values, [stop], folder, resume_at=4, **options)
    ends[flag] = resumed.state.global_step
    in_use = stop in resumed.callback_handler.callbacks
    print(f"restore={flag!s:5}: stops at {ends[flag]}; our object is in use: {in_use}")
right = ends == {False: 8, True: 5}
teach.claim("only restored states stop where the uninterrupted run did", right)

# %% [markdown]
# - Without `restore_callback_states_from_checkpoint=True` every memory starts empty, silently: 0.6, the value at step
#   5, became the reference, and three more had to pass.
# - With it, the Trainer builds a *new* object from `state()`: read results from `trainer.callback_handler.callbacks`,
#   not from the variable you kept.
# - What can be computed from `state.log_history` need not be saved: the Trainer always restores that, and `SaveBest`
#   reads its best value there.

# %% [markdown]
# ### Deeper: the best checkpoint after a resume
#
# The best of the first part (0.9 at step 2) must win against a later 0.8, and lose against 0.95. With and without
# restored states:

# %%
for later, expected in ((0.8, 2), (0.95, 3)):
    for flag in (False, True):
        folder = f"{scratch.name}/resumed-{later}-{flag}"
        scripted([0.5, 0.9], [SaveBest()], folder)
        options = {"restore_callback_states_from_checkpoint": flag}
        scripted([0.5, 0.9, later], [SaveBest()], folder, resume_at=2, **options)
        sentence = f"then {later}, restored={flag}: only checkpoint-{expected} is left"
        teach.claim(sentence, on_disk(folder) == [expected])

# %% [markdown]
# ## 7 · Watching gradients: a NaN that the log hides
#
# One row is now empty: its attention mask is all zeros. `Bag` divides by the number of tokens, and 0/0 is NaN. So are
# the loss, every gradient and, after one step, all weights. In a second run `GradientWatch` skips that step. What does
# the log say?

# %%
from course_utils.training.callbacks import GradientWatch

damaged = rows["train"].select(range(6400)).to_list()
damaged[1000]["attention_mask"] = [0] * len(damaged[1000]["attention_mask"])
nan_steps = min(100, max_steps)
settings = {"max_steps": nan_steps, "logging_steps": 5, "eval_steps": 20}
hidden = run("hidden", [], damaged, **settings)
skip = GradientWatch("skip")
skipped = run("skipped", [skip], damaged, **settings)
print("steps with NaN:", skip.bad_steps)

# %%
bad_step = (skip.bad_steps or [nan_steps])[0]
histories = hidden.state.log_history, skipped.state.log_history
teach.show(figures.hidden_nan(*histories, bad_step, "eval_macro_f1"))

# %%
after = [loss for step, loss in logged(hidden, "loss") if step > bad_step + 5]
found = bool(skip.bad_steps and after)
zero = max(after, default=0) == 0
teach.claim("after the NaN the log reports a loss of exactly 0", zero, when=found)
weights = [parameter.isfinite().all().item() for parameter in hidden.model.parameters()]
teach.claim("while not one weight tensor is still finite", not any(weights), when=found)
healthy = all(parameter.isfinite().all() for parameter in skipped.model.parameters())
teach.claim("with the step skipped all weights are finite", healthy)

# %% [markdown]
# The culprit is a default: `logging_nan_inf_filter=True` replaces a NaN loss by the average of the losses since the
# last log. After the next log there are none, so it adds zeros. It filters the *log*, not the training. Set it to
# False, and watch the gradients.
#
# `GradientWatch` takes the gradients' norms in `on_pre_optimizer_step`, per part of the model. It can `"record"` them,
# `"stop"` the run at the first log after a NaN, or `"skip"` the step: it sets the gradients to `None`, and the
# optimizer passes over parameters without one.

# %% [markdown]
# ### Deeper: which norms?
#
# That event comes *after* clipping, so the norms are clipped ones; the log's own `grad_norm` is the one before. And
# clipping divides by the total norm, so one NaN spreads to every gradient: the step is exact, the guilty layer is not
# known.

# %%
options = {"max_steps": 3, "logging_steps": 1, "max_grad_norm": 0.1}
watched = run("watched", [GradientWatch("record")], few_rows, **options)
entry = watched.state.log_history[0]
parts = {key: entry[key] for key in entry if key.startswith("grad_norm")}
print({key: f"{value:.2f}" for key, value in parts.items()})
clipped = sum(parts[f"grad_norm/{part}"] ** 2 for part in ("embedding", "head")) ** 0.5
teach.claim("together they are 0.1, the clipped norm", abs(clipped - 0.1) < 1e-3)

# %% [markdown]
# ## 8 · Seeing: a live curve and samples
#
# A loss says how wrong the model is, not what it does wrong. So print what it writes. The task for a tiny causal
# language model: continue a number in digits as a Roman numeral.

# %%
from course_utils.data import roman
from course_utils.models import load_causal_lm

train_numbers, validation_numbers = roman.roman_rows(seed=seed)
set_seed(seed)
writer = load_causal_lm("local", **roman.TINY_MODEL)
row = train_numbers[0]
print(roman.decode(row["input_ids"]), "| labels:", row["labels"])

# %% [markdown]
# `GenerationSamples` continues the same prompts at every evaluation, always with the likeliest token: no random number
# is drawn, so the run is the same without it. `LivePlot` redraws the curve at most once a second. In JupyterLab it
# moves; where a program runs the notebook, one picture appears at the end. `Throughput` is for the next section.

# %%
from course_utils.training.callbacks import GenerationSamples, LivePlot, Throughput

numbers = (7, 49, 1987, 2024, 3888)
prompts = [roman.prompt(number) for number in numbers]
samples = GenerationSamples(prompts, roman.decode, max_new_tokens=16)
meter = Throughput()
writer_steps = min(200, max_steps)
options = {"max_steps": writer_steps, "learning_rate": 5e-3, "warmup_steps": 0.1}
options |= {"per_device_train_batch_size": 64, "per_device_eval_batch_size": 150}
options |= {"eval_strategy": "steps", "eval_steps": max(1, writer_steps // 5)}
writing = quiet_trainer(
    writer,
    f"{scratch.name}/writer",
    train_numbers,
    validation_numbers,
    data_collator=roman.collate,
    callbacks=[samples, meter, LivePlot(figures.loss_curve, show=teach.show)],
    logging_steps=min(10, writer_steps),
    seed=seed,
    include_num_input_tokens_seen="non_padding",  # for Throughput
    **options,
)
result = writing.train()

# %% [markdown]
# And the samples?

# %% tags=["nbval-ignore-output"]
right = "right", [roman.roman(number) for number in numbers]
for step, texts in [("step", numbers), *samples.samples, right]:
    print(f"{step:>5}  " + " ".join(f"{text:<15}" for text in texts))
evaluations = len(logged(writing, "eval_loss"))
teach.claim("there is a row per evaluation", len(samples.samples) == evaluations > 0)


# %% tags=["nbval-ignore-output"]
def share_right(numbers):
    prompts = [roman.prompt(number) for number in numbers]
    written = GenerationSamples(prompts, roman.decode, 16).write(writer)
    right = [roman.roman(number) for number in numbers]
    return sum(map(str.__eq__, written, right)) / len(right)


long, short = share_right(range(1001, 3999, 50)), share_right(range(1, 100, 2))
print(f"right: {long:.0%} of numbers with four digits, {short:.0%} below 100")
teach.claim("numbers below 100 are worse", short < long, when=max_steps >= 200)

# %%
written = [roman.decode(row["input_ids"]) for row in train_numbers]
rare = sum(int(text.split("=")[0]) < 100 for text in written) / len(written)
print(f"numbers below 100: {rare:.1%} of the training rows")

# %% [markdown]
# The samples show what the curve hides: much is still wrong, short numbers more often than long ones. They are few, so
# their loss hardly moves the mean. Give them more rows, or a metric of their own.

# %% [markdown]
# ## Deeper: throughput and MFU
#
# A callback does not see the batch, so it cannot count tokens. The Trainer can: `include_num_input_tokens_seen` keeps
# `state.num_input_tokens_seen` up to date ("non_padding" counts useful tokens, "all" counts padding too; either gathers
# a number over all ranks at each micro-batch). `Throughput` divides by the time between logs, in which evaluation and
# saving are left out. The clock is read in `on_log`: there the Trainer has just read the loss, so a GPU has finished.

# %% tags=["nbval-ignore-output"]
print(f"{meter.tokens:,} tokens, {meter.tokens_per_second:,.0f} tokens/s")
mean_length = sum(len(row["input_ids"]) for row in train_numbers) / len(train_numbers)
off = abs(meter.tokens / (mean_length * 64 * logged(writing, "loss")[-1][0]) - 1)
teach.claim("steps x rows x mean length, within 5 %", off < 0.05, when=max_steps >= 40)

# %% [markdown]
# *MFU* (model FLOPs utilisation) relates that to the hardware: the floating-point operations that the model needs for
# these tokens, over what the device could do at its peak. Training takes $6N + 12 L H Q T$ per token ([Chowdhery et al.
# 2022](https://arxiv.org/abs/2204.02311), PaLM, appendix B): $N$ weights in matrix multiplications, each used once
# forward and twice backward, two operations each; and attention over $T$ tokens, in $L$ layers of $H$ heads of width
# $Q$. (A causal model needs half of the attention; a kernel that computes the whole square, as here, counts it all.) Is
# the formula right? torch can count operator by operator:

# %%
from course_utils.models.configs import shape_of_config
from course_utils.models.flops import counted_flops, training_flops_per_token

batch = roman.collate(train_numbers[:64])
length = batch["input_ids"].shape[1]
per_token = training_flops_per_token(shape_of_config(writer.config), length)
counted = counted_flops(writer, batch) / batch["input_ids"].numel()
print(f"FLOPs per token: formula {per_token:,.0f}, counted {counted:,.0f}")
teach.claim("formula and count agree within 10 %", abs(per_token / counted - 1) < 0.1)

# %% tags=["nbval-ignore-output"]
from course_utils.training.callbacks.throughput import matmul_peak

peak = matmul_peak()  # of a GPU the data sheet's: course_utils.gpus
share = meter.tokens_per_second * per_token / peak
print(f"peak of one thread, measured: {peak / 1e9:.0f} GFLOP/s; MFU {share:.1%}")
teach.claim("the run uses less than its peak", 0 < share < 1)

# %% [markdown]
# Small, and no wonder: matrices of width 64 do not fill a core. Lesson 09 works on that number. Given
# `flops_per_token` (and, on hardware that `course_utils.gpus` does not know, `peak`), the callback logs `mfu` itself.

# %% [markdown]
# ## Deeper: count the waits
#
# There is no queue on a CPU, but the calls are the same and can be counted on any machine: `CountWaits` counts the
# values that Python reads from tensors.

# %%
from course_utils.training.waits import CountWaits


class NormOfEach(TrainerCallback):
    """A naive gradient watcher: every parameter's norm, read at every step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norms = [p.grad.norm().item() for p in model.parameters()]


def waits_per_step(callbacks, **settings):
    options = {"max_steps": 10, "logging_steps": 10, "eval_strategy": "no"} | settings
    with CountWaits() as waits:
        run("waits", callbacks, few_rows, **options)
    return waits.count / 10


# %%
unfiltered = {"logging_nan_inf_filter": False}
records, skips = [GradientWatch("record")], [GradientWatch("skip")]
waits = {
    "Trainer, default": waits_per_step([]),
    "without NaN filter": waits_per_step([], **unfiltered),
    "and a norm of each parameter": waits_per_step([NormOfEach()], **unfiltered),
    'and GradientWatch("record")': waits_per_step(records, **unfiltered),
    'and GradientWatch("skip")': waits_per_step(skips, **unfiltered),
}
teach.show(figures.waits(waits))
plain, naive, ours, skipping = list(waits.values())[1:]
five = round(naive - plain) == 5
teach.claim("the naive watcher waits once a step for each of 5 parameters", five)
teach.claim("GradientWatch, recording, adds less than one a step", ours - plain < 1)
teach.claim("one that skips adds one a step", round(skipping - plain) == 1)
teach.claim("the Trainer's own NaN filter waits too", waits["Trainer, default"] > plain)

# %% [markdown]
# "skip" must know before the optimizer moves whether the gradients are finite, so it cannot put the question off until
# the next log. And that NaN filter again: on a GPU, switching it off saves waits as well.

# %% [markdown]
# ## Deeper: two processes
#
# On several processes each has its own Trainer and its own callbacks, and *every event fires on every rank*. (A rank is
# one process of the run; lesson 11.) What must happen once, such as writing a file, printing, deleting a checkpoint,
# is guarded by `state.is_world_process_zero`. What steers the loop must happen on all. The metrics are gathered, so
# they are the same everywhere, and decisions made from them agree. `run_ranks` starts two real processes.

# %%
from course_utils.lessons.lesson_05.two_ranks import two_ranks
from course_utils.parallel import run_ranks

some = ("on_step_end", "on_substep_end", "on_log", "on_evaluate", "on_save")
where = {"folder": f"{scratch.name}/ranks"}
ranks = first, second = run_ranks(two_ranks, 2, where, timeout=240)
done = ("stopped_at", "best_step", "deletions", "samples", "pictures")
for rank, found in enumerate(ranks):
    print(f"rank {rank}:", {name: found["events"].get(name, 0) for name in some})
    print("       ", {name: found[name] for name in done})

# %%
same = first["events"] == second["events"]
teach.claim("every event fires equally often on both ranks", same)
decisions = ("stopped_at", "best_step", "bad_steps")
same = all(first[name] == second[name] for name in decisions)
teach.claim("stop, best step and bad steps are the same on both", same)
once = [(first[name] > 0, second[name]) for name in done[2:]]
alone = once == [(True, 0)] * 3
teach.claim("deleting, writing samples and drawing happen on rank 0 only", alone)
exact = first["on_disk"] == [first["best_step"]]
teach.claim("exactly the best checkpoint is left", exact)

# %% [markdown]
# In a second run of the same two processes, one callback asks for a stop at step 2 on rank 0 only, as
# `if state.is_world_process_zero: control.should_training_stop = True` does. Rank 1 would go on to the next average of
# gradients and wait for a partner that left: a hang, or an error from the communication library.
# `StopTogether`, last in the list, compares the wishes at each step: if any rank wants to stop, all do.

# %%
for rank, found in enumerate(ranks):
    print(f"rank {rank} ended at {found['together']}, apart at", found["disagreements"])
seen = first["disagreements"] == second["disagreements"] == [2]
teach.claim("StopTogether saw the disagreement at step 2", seen)
teach.claim("and both ranks ended there", first["together"] == second["together"] == 2)

# %% [markdown]
# ## Deeper: two callbacks of one class
#
# Two `PlateauStop` objects, one for the loss and one for macro-F1, are a natural wish. Their states are kept under the
# class's name, as a list, to which transformers 5.23 appends at each save; a resume restores the first two entries.

# %%
values = [0.5, 0.9, 0.8, 0.7]
pair = [PlateauStop(9), PlateauStop(8)]


def saved_states(pair, name):
    scripted(values, pair, f"{scratch.name}/{name}", **at_each)
    with open(f"{scratch.name}/{name}/checkpoint-4/trainer_state.json") as file:
        return json.load(file)["stateful_callbacks"]


entries = saved_states(pair, "pair")["PlateauStop"]
waited = [entry["attributes"]["waited"] for entry in entries]
print("true:", [stop.waited for stop in pair], "| saved:", waited)
stale = waited[:2] != [stop.waited for stop in pair]
teach.claim("the two entries that a resume takes are stale", stale)


# %% [markdown]
# So: one class per object, for example `class LossPlateau(PlateauStop): pass`. Then each has its own name and its own,
# current, state.


# %%
class LossPlateau(PlateauStop):
    """The same rule under a name of its own."""


pair = [PlateauStop(9), LossPlateau(8)]
saved = saved_states(pair, "named")
now = [saved[kind]["attributes"]["waited"] for kind in ("PlateauStop", "LossPlateau")]
true = now == [stop.waited for stop in pair]
teach.claim("with a class each the saved states are the true ones", true)

# %% [markdown]
# ## What goes wrong
#
# Six silent bugs: two are planted here, four were measured above.
#
# ### 1 · Comparing with a best value that is already the new one


# %%
class LateComparison(TrainerCallback):
    """Notes the steps whose checkpoint is a new best. In on_save, it is too late."""

    def __init__(self):
        self.new_bests = []

    def on_save(self, args, state, control, **kwargs):
        scores = [entry.get("eval_score") for entry in state.log_history]
        latest = [score for score in scores if score is not None][-1]
        if latest > state.best_metric:
            self.new_bests.append(state.global_step)


values = [0.5, 0.7, 0.6, 0.9]
late = LateComparison()
scripted(values, [late], f"{scratch.name}/late", **at_each)
print("new bests at 1, 2 and 4; noticed:", late.new_bests)
teach.claim("a comparison in on_save never finds a new best", late.new_bests == [])

# %% [markdown]
# ### 2 · Changing a copy of `control`

# %%
from dataclasses import replace


class StopOnCopy(TrainerCallback):
    """Wants to end the run at step 2; makes a new control, and does not return it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= 2:
            control = replace(control, should_training_stop=True)


class StopAndReturn(StopOnCopy):
    """The same, and returns it."""

    def on_step_end(self, args, state, control, **kwargs):
        return replace(control, should_training_stop=state.global_step >= 2)


stops = StopOnCopy(), StopAndReturn()
made = [scripted(values, [stop]).state.global_step for stop in stops]
print("steps made of 4, copy dropped and copy returned:", made)
teach.claim("the copy that nobody returns stops nothing", made == [4, 2])

# %% [markdown]
# ### 3 · Waiting for the GPU at every step
#
# A GPU works through a queue while Python runs ahead. `.item()`, `float(tensor)` and `if tensor:` make Python wait
# until the queue is empty. A callback that reads every parameter's norm at every step waits once per parameter.
# `GradientWatch` with "record" or "stop" reads its norms in `on_log`, where the Trainer waits anyway; "skip" waits once
# a step. "Deeper: count the waits" counts them.
#
# ### 4 · A stop on rank 0 only
#
# `is_world_process_zero` (is this rank 0, the first process?) is right for printing and wrong for stopping: every event
# fires on every process of a run, with the same metrics, and each must take the same decision. "Deeper: two processes"
# measures what happens otherwise.
#
# | bug | what you see | what catches it |
# |---|---|---|
# | compare in `on_save` | never a new best | record `state.best_metric` per event; keep your own best |
# | changed copy, not returned | the run goes on | a scripted metric and the expected step |
# | a wait at every step | a slow GPU, no error | `CountWaits`, or a profiler (lesson 09) |
# | stop on rank 0 only | a hang on several processes | `StopTogether`, a test on 2 processes |
# | state not restored | stops late after a resume | compare with the uninterrupted run |
# | `logging_nan_inf_filter` | a loss of 0 | `GradientWatch`, or the filter off |
#
# ### Exercise 05.5 · Three bugs in one callback (debug)
#
# This callback should end the run, on every process, as soon as an evaluation reports `eval_macro_f1` of at least
# `target`. It contains three of this lesson's bugs. Copy it into the second cell and repair it.


# %%
class Planted(TrainerCallback):
    def __init__(self, target):
        self.target = target

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.is_world_process_zero and (state.best_metric or 0) >= self.target:
            control = replace(control, should_training_stop=True)


# %%
class StopAtTarget(TrainerCallback):
    def __init__(self, target):
        """Keep what the event below will need."""
        ...

    # the repaired copy


# %%
teach.check("05.5", StopAtTarget)

# %% [markdown]
# ## When a callback is enough
#
# | you want to | take |
# |---|---|
# | look at the run, log, draw, print samples | a callback |
# | stop, save, evaluate at another moment | a callback: `control` |
# | freeze, unfreeze, skip a step's gradients | a callback: `model`, in `on_train_begin` or later |
# | another loss, anything with batch or logits | override `compute_loss`, or pass `compute_loss_func` (lesson 06) |
# | two backward passes, another kind of step | override `training_step` (lesson 07) |
# | another optimizer or sampler | `optimizers=`, `create_optimizer`, `get_train_dataloader` |
# | another loop | your own loop (lessons 01 and 08) |
#
# ### Exercise 05.6 · A guard that survives a resume (write)
#
# `SpikeGuard(limit, factor)` reads the training loss where it is logged (`logs["loss"]`; not every log has one). A
# *spike* is a loss above `factor` times the lowest loss logged before it, or NaN. Count the spikes in `self.spikes`; at
# the `limit`-th, end the run, on every process. A spike is never the lowest loss; the first loss is no spike unless it
# is NaN. After a resume with restored states it must go on as if nothing had happened.

# %%
from transformers.trainer_callback import ExportableState


class SpikeGuard(TrainerCallback, ExportableState):
    def __init__(self, limit, factor):
        """Keep what the events below will need."""
        ...

    # which events, and what must be in state()?


# %%
teach.check("05.6", SpikeGuard)

# %% [markdown]
# ## Recap
#
# - A callback is called at 16 events. It sees `args`, `state`, `control` and the objects, not batch or loss tensor.
# - `control` is the way back: change the object you were given, or return the new one.
# - `state.best_metric` changes after `on_evaluate` and before `on_save`. Keep your own best; ask in `on_evaluate`.
# - A stopping rule looks after the metric it watches. Let only gains that count move its reference.
# - Memory goes through `ExportableState`, and comes back only with `restore_callback_states_from_checkpoint=True`.
# - `logging_nan_inf_filter=True` hides a NaN. Look at the gradients, and read them at logs, not at steps.
# - On several processes steer on all ranks, write on rank 0.
#
# > **You may see** `on_step_end(..., tokenizer=...)`: the argument is now `processing_class`. And
# > `evaluation_strategy=`: now `eval_strategy=`.
#
# ## Quiz
#
# **1.** A callback sets `control.should_save = True` in `on_log`. Is a checkpoint written at this step?
#
# <details><summary>Answer</summary>
#
# Yes, if the log belongs to a step: logging comes first, then evaluation, then the flag for saving is looked at.
#
# </details>
#
# **2.** Early stopping with patience 3 is resumed from a checkpoint and stops two evaluations too late. Why?
#
# <details><summary>Answer</summary>
#
# Its counter started at zero: `restore_callback_states_from_checkpoint` is off by default.
#
# </details>
#
# **3.** Your callback freezes the embedding in `on_init_end` and unfreezes it at step 100. The embedding never changes.
#
# <details><summary>Answer</summary>
#
# The optimizer is built in `train()` from the parameters that require gradients then. Freeze in `on_train_begin`.
#
# </details>
#
# **Next:** [lesson 06](06_custom_loss.ipynb), where the loss itself is yours: `compute_loss`, `num_items_in_batch`,
# imbalance.

# %%
scratch.cleanup()
