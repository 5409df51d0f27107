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
# # 04 · Evaluation: metrics
#
# A training run ends in a number that decides which checkpoint is kept and which model is used. This lesson computes
# that number correctly and says how much it is worth.
#
# **You will be able to**
# - write `compute_metrics` for classification, regression and generation, and choose metrics that fit the question;
# - build metrics as modules of the `evaluate` library that work without a network;
# - put an interval on every score, and say whether two models really differ;
# - evaluate on several processes exactly as on one, and save memory;
# - recognise four evaluation mistakes that raise no error.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (F1, the task) and 03 (Trainer).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 250  # optimizer steps of each training run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Look first: scores, and what they are worth
#
# The task is lesson 01's: which of ten libraries does a sentence of documentation come from? The sentences printed here
# are from the course's own code:

# %%
import numpy as np
import torch

from course_utils.data import load_classification, own_sentences

torch.set_num_threads(1)  # tiny models: more threads only get in each other's way
data = load_classification(source)
names = data["train"].features["label"].names
num_labels = len(names)
validation = data["validation"][:]  # a dict of lists
labels = torch.tensor(validation["label"])
sizes = labels.bincount(minlength=num_labels).tolist()
print("classes:", ", ".join(names))
print(f"rows of a class in the validation split: {min(sizes)} to {max(sizes)}")
for sentence in own_sentences()[:3]:
    print("-", sentence)

# %% [markdown]
# Two models that need no training loop: the **majority** class for every row, and lesson 01's word weights (TF-IDF with
# logistic regression). Up to section 10 all scores are on the *validation* split.

# %%
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

train = data["train"][:12_000]
vectors = TfidfVectorizer(min_df=2, sublinear_tf=True)
words = make_pipeline(vectors, LogisticRegression(C=10, solver="newton-cg"))
words.fit(train["text"], train["label"])
majority_class = torch.tensor(train["label"]).bincount().argmax()
predictions = {
    "majority": majority_class.repeat(len(labels)),
    "word weights": torch.tensor(words.predict(validation["text"])),
}

# %% [markdown]
# The lesson ends in a report like this: each score with an **interval**, which says how far it would move on another
# sample of rows. Section 5 explains `bootstrap`.

# %%
from course_utils.lessons.lesson_04 import figures
from course_utils.training.evaluation import macro_f1
from course_utils.training.intervals import bootstrap

metrics = {
    "accuracy": lambda predicted, labels: (predicted == labels).double().mean(),
    "macro-F1": lambda predicted, labels: macro_f1(predicted, labels, num_labels),
}


def with_intervals(predicted, labels):
    return {name: bootstrap(m, predicted, labels) for name, m in metrics.items()}


table = {model: with_intervals(p, labels) for model, p in predictions.items()}
teach.show(figures.scores(table))

# %% [markdown]
# The way of the numbers: `B` rows in a batch, `T` tokens, `C` classes, `N` rows in the split.

# %%
teach.show(figures.flow())

# %% [markdown]
# ## 2 · `compute_metrics`
#
# The Trainer collects the logits of *all* batches and then calls your function once, with an object that has
# `predictions`, an array (N, C), and `label_ids`, an array (N,). Return a dict of plain numbers. The Trainer puts
# `eval_` before each name; `metric_for_best_model` picks one of them.
#
# The numbers come from **metric modules** of the `evaluate` library, which all have one interface. `load_metric` takes
# them from this project, without a download. `evaluate.combine` makes one of several.

# %%
import evaluate

from course_utils.training.metrics import METRICS, load_metric

print(", ".join(METRICS))
accuracy = load_metric("accuracy")
f1 = load_metric("f1", average="macro", num_labels=num_labels)
report = evaluate.combine([accuracy, f1])


def compute_metrics(prediction):
    predicted = prediction.predictions.argmax(axis=-1)  # (N, C) -> (N,)
    return report.compute(predictions=predicted, references=prediction.label_ids)


# %% [markdown]
# `num_labels` matters: without it, a class that is absent from the rows is left out of the mean.
#
# Now a run. To save time the encoder is smaller than lesson 01's (width 64, two layers) and its learning rate higher.
# The checkpoint with the best macro-F1 is loaded at the end.

# %%
from tempfile import TemporaryDirectory

from transformers import DataCollatorWithPadding, set_seed

from course_utils.models import encoder_config, load_classifier, load_tokenizer
from course_utils.training.settings import quiet_trainer

scratch = TemporaryDirectory()
tokenizer = load_tokenizer(source)
small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def tokenize(rows):
    made = tokenizer(rows["text"], truncation=True, max_length=48)
    return {key: made[key] for key in ("input_ids", "attention_mask")}


unused = [name for name in train if name != "label"]
encoded = data.map(tokenize, batched=True, remove_columns=unused)


# %%
def train_on(rows, model, compute_metrics, collate, **changes):
    settings = {
        "max_steps": max_steps,
        "learning_rate": 3e-3,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
    }
    functions = {"data_collator": collate, "compute_metrics": compute_metrics}
    splits = rows["train"], rows["validation"]
    options = functions | settings | changes
    trainer = quiet_trainer(model, scratch.name, *splits, **options)
    trainer.train()
    return trainer


# %% tags=["nbval-ignore-output"]
set_seed(seed)
classifier = load_classifier(num_labels, source, **(small if source == "local" else {}))
trainer = train_on(
    encoded,
    classifier,
    compute_metrics,
    DataCollatorWithPadding(tokenizer),
    learning_rate=3e-3 if source == "local" else 5e-5,
    eval_strategy="steps",
    eval_steps=max(1, max_steps // 5),
    save_strategy="best",
    load_best_model_at_end=True,
    metric_for_best_model="f1",
    greater_is_better=True,
)
evaluations = [entry for entry in trainer.state.log_history if "eval_f1" in entry]
for entry in evaluations:
    shown = {k: f"{entry[f'eval_{k}']:.2f}" for k in ("loss", "accuracy", "f1")}
    print(f"step {entry['step']:4}", shown)
best = max(entry["eval_f1"] for entry in evaluations)
teach.claim("the best macro-F1 is what counts", best == trainer.state.best_metric)

# %% [markdown]
# `predict` gives the arrays that `compute_metrics` saw, in the order of the data set (with `group_by_length` they would
# not be: lesson 03).

# %%
output = trainer.predict(encoded["validation"])
predictions["encoder"] = torch.tensor(output.predictions.argmax(-1))
encoder_f1 = macro_f1(predictions["encoder"], labels, num_labels)
in_order = np.array_equal(output.label_ids, labels)
teach.claim("the loaded weights are the best step's", abs(encoder_f1 - best) < 1e-6)
teach.claim("the rows are in order", in_order)

# %% [markdown]
# ## 3 · One number hides the rest
#
# A class has a **precision** (of the rows given this class, the share that belongs to it), a **recall** (of its rows,
# the share that was found) and an F1. Three ways to make one number of the classes' scores:
#
# | average | what is averaged | a rare class counts |
# |---|---|---|
# | macro | the classes' scores, plainly | as much as a frequent one |
# | weighted | the classes' scores, times their number of rows | by its rows |
# | micro | hits and misses of all classes are added first, then one score | by its rows |
#
# ### Exercise 04.1 · Say the numbers first
#
# 1,000 rows in three classes: 700, 200 and 100. A model always answers with the first class. What are its accuracy, its
# macro-F1 and its micro-F1, to three digits? F1 = 2 TP / (2 TP + FP + FN): true positives, false positives, false
# negatives. A class that is never given has F1 = 0. Work it out on paper.

# %%
prediction = ...  # {"accuracy": ..., "macro_f1": ..., "micro_f1": ...}

# %%
teach.check("04.1", prediction)

# %% [markdown]
# Now for the three models here:

# %% tags=["nbval-ignore-output"]
print(f"{'':14}{'accuracy':>9}{'micro':>9}{'macro':>9}{'weighted':>9}")
gaps = []
for model, predicted in predictions.items():
    both = {"predictions": predicted, "references": labels}
    row = [accuracy.compute(**both)["accuracy"]]
    row += [f1.compute(**both, average=a)["f1"] for a in ("micro", "macro", "weighted")]
    print(f"{model:14}" + "".join(f"{value:9.2f}" for value in row))
    gaps.append(abs(row[0] - row[1]))
teach.claim("micro-F1 equals accuracy where a row has one label", max(gaps) < 1e-12)

# %% [markdown]
# With one label per row every miss is a false positive of one class *and* a false negative of another. So micro-F1 is
# accuracy under another name. `average=None` gives a score per class:

# %%
by_class = {}
for model, predicted in predictions.items():
    scores = f1.compute(predictions=predicted, references=labels, average=None)
    by_class[model] = scores["f1"]
teach.show(figures.classes(names, sizes, by_class))

# %% [markdown]
# The **confusion matrix** shows where a class's sentences go: row = true class, column = class that was given. The
# numbers are counts, the colours shares of the row. Most rows of rare classes end up in big ones' columns, and accuracy
# hardly notices.

# %%
confusion = load_metric("confusion_matrix", num_labels=num_labels)
found = confusion.compute(predictions=predictions["encoder"], references=labels)
matrix = found["confusion_matrix"]  # (C, C)
teach.show(figures.confusion(matrix, names, "Encoder on the validation split"))

# %% [markdown]
# ### The trap of the rare class
#
# Turn the task into yes or no: *is it the rarest class?* Always say no. Before you read an accuracy, compute this one.

# %%
rarest = min((size, number) for number, size in enumerate(sizes) if size)[1]
is_rare = (labels == rarest).long()
always_no = {"predictions": torch.zeros_like(is_rare), "references": is_rare}
no_skill = accuracy.compute(**always_no)["accuracy"]
recall = load_metric("recall").compute(**always_no)["recall"]
print(f"always no: accuracy {no_skill:.3f}, recall {recall:.1f}")
trap = no_skill > 0.98 and recall == 0
teach.claim("accuracy above 0.98, and nothing is found", trap, when=source == "local")

# %% [markdown]
# ### Exercise 04.2 · Macro-F1 from a confusion matrix
#
# `matrix` is a NumPy array (C, C) as above. Return macro-F1 as a float. A class that neither occurs nor is given counts
# as 0.


# %%
def macro_f1_of(matrix):
    # rows are true classes, columns are given ones
    return ...


# %%
teach.check("04.2", macro_f1_of)

# %% [markdown]
# ## 4 · A metric module of your own
#
# A module is a class with two methods. `_info` says what comes in: `features` are the columns and their types.
# `_compute` gets everything that was added and returns a dict. A whole one:

# %%
teach.show_source(type(accuracy))

# %% [markdown]
# In a file `accuracy/accuracy.py` it is found by `evaluate.load("path/to/accuracy")`, without a network. `Checked` and
# `checks` are this project's; they refuse bad input. `evaluate` adds the rest: `add_batch` in a loop, `compute` at the
# end, arrays, lists or tensors alike. `**_` is needed because in a combination `compute(average=...)` goes to *every*
# module.
#
# The values are computed by scikit-learn, scipy, `rouge_score` and `sacrebleu`. Compare all the same, in batches:

# %%
from sklearn.metrics import f1_score

rng = np.random.default_rng(seed)
module, off = load_metric("f1", average="macro", num_labels=5), []
for _ in range(20):
    wanted, given = rng.integers(0, 5, (2, rng.integers(1, 60)))
    for start in range(0, len(wanted), 16):
        part = slice(start, start + 16)
        module.add_batch(predictions=given[part], references=wanted[part])
    options = {"average": "macro", "labels": range(5), "zero_division": 0}
    off.append(abs(module.compute()["f1"] - f1_score(wanted, given, **options)))
teach.claim("scikit-learn's value, on 20 random inputs", max(off) == 0)

# %% [markdown]
# Bad input gets one sentence instead of a number:

# %%
for bad in ([0.7, 1.0], [float("nan"), 1.0], [[0.2, 0.8], [0.9, 0.1]], []):
    try:
        f1.compute(predictions=bad, references=[0, 1])
    except ValueError as error:
        print(error)

# %% [markdown]
# ### Exercise 04.3 · Write a module
#
# The share of predictions that are at most `tolerance` away from the reference:
# `Within().compute(predictions=[1.4, 5.0], references=[2, 9])` is `{"within": 0.5}`. The tolerance is 1
# unless `Within(tolerance=2)` or `compute(..., tolerance=2)` says otherwise, and the module must work inside
# `evaluate.combine`. For `description` write a string, where the source above has `__doc__`.


# %%
import datasets


class Within(evaluate.Metric):
    def __init__(self, *args, tolerance=1.0, **options):
        """Keep the tolerance; the rest is for evaluate.Metric."""
        ...

    def _info(self):
        """Description, citation and features of the inputs: a MetricInfo."""
        return ...

    def _compute(self, predictions, references):
        """{"within": the share of rows that are near enough}."""
        return ...


# %%
teach.check("04.3", Within)

# %% [markdown]
# ### Deeper: what `evaluate` writes, and where
#
# Rows that are added wait in a file, because they may be many: `HF_METRICS_CACHE`, by default below
# `~/.cache/huggingface/metrics`. `load_metric` passes `keep_in_memory=True`, which writes none. The script itself is
# copied to `HF_MODULES_CACHE`, under a hash of its text, and run from there. Files beside it come along if it imports
# them by `from .name import ...`. A metric with helpers elsewhere must import them from an installed package.
#
# `evaluate.load("accuracy")`, with a bare name, asks the hub and executes the script it gets, even with
# `HF_HUB_OFFLINE=1`; `HF_EVALUATE_OFFLINE=1`, set before the import, stops that.

# %%
from pathlib import Path

cache = Path(scratch.name, "metrics")
kept = load_metric("mae", keep_in_memory=False, cache_dir=str(cache))
kept.add_batch(predictions=[1.0, 2.0], references=[1.0, 4.0])
waiting = sorted(path.suffix for path in cache.rglob("*") if path.is_file())
print("while rows are added:", waiting, "-> result:", kept.compute())
left = [path for path in cache.rglob("*.arrow")]
teach.claim("the rows are deleted by compute", ".arrow" in waiting and not left)

# %% [markdown]
# ## 5 · How sure is a score?
#
# How far would the score move on another 1,500 sentences? The **bootstrap** answers with the rows at hand: draw as many
# rows *with replacement*, compute the score, repeat. The middle 95% of these scores, from their 2.5% to their 97.5%
# quantile, are the **percentile interval**. For a mean such as accuracy there is a formula to compare with:

# %% tags=["nbval-ignore-output"]
right = (predictions["encoder"] == labels).double().numpy()
draws = [rng.choice(right, len(right)).mean() for _ in range(1000)]
low, high = np.quantile(draws, [0.025, 0.975])
formula = 1.96 * right.std() / len(right) ** 0.5
print(f"half the width: bootstrap {(high - low) / 2:.4f}, formula {formula:.4f}")
difference = abs((high - low) / 2 - formula)
teach.claim("half the width: as the formula, to 0.3 points", difference < 0.003)

# %% [markdown]
# For macro-F1 there is no such formula; the bootstrap works all the same. Four times the rows halve the width.
#
# `bootstrap(statistic, *columns, resamples=1000, level=0.95, seed=0)` takes a function and columns of N rows each,
# tensors or arrays. It draws the same rows from every column, calls `statistic` on them, and returns an `Interval` with
# `value` (of all rows), `low` and `high`.
#
# ### Two models on the same rows
#
# Two intervals that overlap do not show that two models are equal. Compare them *row by row*: draw rows once, compute
# both scores on them, keep the difference. Does the difference's interval contain zero?


# %% tags=["nbval-ignore-output"]
def gap(a, b, y):
    return metrics["accuracy"](a, y) - metrics["accuracy"](b, y)


pair = (predictions["encoder"], predictions["word weights"])
paired = bootstrap(gap, *pair, labels)
print("encoder minus word weights, accuracy:", paired)
single = [bootstrap(metrics["accuracy"], p, labels) for p in pair]
apart = sum((i.high - i.low) ** 2 for i in single) ** 0.5  # if the rows were others
print(f"width: paired {paired.high - paired.low:.3f}, on separate rows {apart:.3f}")
full = max_steps >= 200 and source == "local"
teach.claim("pairing: a narrower interval", paired.high - paired.low < apart, when=full)

# %% [markdown]
# The interval barely excludes zero. It covers the choice of *rows*, not the training seed (there was one run), and not
# that the encoder's checkpoint was chosen on these very rows. So: weak evidence.
#
# ### Exercise 04.4 · A bootstrap interval
#
# Write it yourself, for any score. `score(predicted, labels)` takes two NumPy arrays and returns a number; `rng` is a
# NumPy generator. Return `(low, high)` of the 95% interval. Predictions must stay with their labels.


# %%
def interval_of(score, predicted, labels, rng, resamples=500):
    # draw rows, score them, repeat; then two quantiles
    return ...


# %%
teach.check("04.4", interval_of)

# %% [markdown]
# ### Deeper: how wide, and does the interval keep its promise?
#
# With fewer rows the interval is wider. Accuracy's, for parts of the validation split:

# %%
row_counts = [n for n in (94, 188, 375, 750, 1500) if n <= len(labels)]
measured = []
for n in row_counts:
    drawn = rng.permutation(len(labels))[:n]
    interval = with_intervals(predictions["encoder"][drawn], labels[drawn])["accuracy"]
    measured.append(interval.high - interval.low)
teach.show(figures.widths(row_counts, measured))

# %% [markdown]
# An interval that claims 95% should hold the true value in 95 of 100 samples. Test it: take the whole validation split
# as the truth, draw 100 small "test sets" of 300 rows from it, and count.

# %% tags=["nbval-ignore-output"]
held = {}
for name, score in metrics.items():
    truth, inside, below = float(score(predictions["encoder"], labels)), 0, 0
    for trial in range(100):
        rows = rng.integers(0, len(labels), 300)
        p, y = predictions["encoder"][rows], labels[rows]
        interval = bootstrap(score, p, y, resamples=200, seed=trial)
        inside += interval.low <= truth <= interval.high
        below += interval.high < truth
    held[name] = inside / 100
    print(f"{name:9} interval holds the true value: {inside} of 100, too low: {below}")
teach.claim("accuracy: at least 88%", held["accuracy"] >= 0.88, when=full)

# %% [markdown]
# The percentile interval serves well for means. For macro-F1 look at the second line: of 300 rows the rarest class has
# about four. Small classes drop out of some draws and count as 0 there, so the interval lies too low. It says nothing
# about classes you have hardly seen. Collect more rows of them.

# %% [markdown]
# ## 6 · Regression: how many parameters has this function?
#
# The target is a number now: how many parameters has a function, given the first sentence of its docstring? The text
# does not say; a sentence about options and axes merely makes many parameters likely. Rows from the course's own code:

# %%
from course_utils.data.regression import own_functions, parameter_counts, tokenized

counts = parameter_counts()
print({split: len(rows) for split, rows in counts.items()})
quartiles = np.quantile(counts["train"]["parameters"][:], [0.25, 0.5, 0.75, 1])
print("parameters in train, quartiles and maximum:", quartiles)
for row in own_functions()[:4]:
    print(f"{row.parameters} <- {row.text}")

# %% [markdown]
# Half of the functions have one to three parameters, a few very many. Squared errors would be about those few, so the
# target is $y = \ln(1 + n)$: `tokenized` puts `log1p(parameters)` in the column `label`. Two baselines: the training
# mean, and ridge regression (linear regression with small weights) on words and pairs of words.

# %%
from sklearn.linear_model import Ridge

tokens = load_tokenizer()  # this task is local, whatever the source
number_rows = tokenized(counts, tokens)
y = {split: np.array(rows["label"][:]) for split, rows in number_rows.items()}
texts = {split: rows["text"][:] for split, rows in counts.items()}
pairs_of_words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
ridge = make_pipeline(pairs_of_words, Ridge(alpha=3.0)).fit(texts["train"], y["train"])
guesses = {
    "training mean": np.full(len(y["validation"]), y["train"].mean()),
    "word weights": ridge.predict(texts["validation"]),
}

# %% [markdown]
# The encoder: the same model with `num_labels=1`. transformers then takes the mean squared error as the loss, and
# `predictions` have the shape (N, 1). Three seeds:

# %%
from transformers import ModernBertForSequenceClassification

five = ("mse", "mae", "r_squared", "pearsonr", "spearmanr")
regression = evaluate.combine([load_metric(name) for name in five])


def regression_metrics(prediction):
    predicted = prediction.predictions[:, 0]  # (N, 1) -> (N,)
    return regression.compute(predictions=predicted, references=prediction.label_ids)


collate, regressors = DataCollatorWithPadding(tokens), []
for run in range(3):
    set_seed(seed + run)
    model = ModernBertForSequenceClassification(encoder_config(num_labels=1, **small))
    done = train_on(number_rows, model, regression_metrics, collate, seed=seed + run)
    output = done.predict(number_rows["validation"])
    guesses[f"encoder, seed {run}"] = output.predictions[:, 0]
    regressors.append(done)

# %% tags=["nbval-ignore-output"]
results = {}
for model, guess in guesses.items():
    results[model] = regression.compute(predictions=guess, references=y["validation"])
    print(f"{model:15}", {name: round(v, 2) for name, v in results[model].items()})
r2 = {model: scores["r_squared"] for model, scores in results.items()}
seeds = [r2[f"encoder, seed {run}"] for run in range(3)]
teach.claim("the training mean: R2 of 0, within 0.02", abs(r2["training mean"]) < 0.02)
long = max_steps >= 200
teach.claim("each seed explains a tenth or more", min(seeds) > 0.1, when=long)

# %% [markdown]
# `mse` and `mae` are the mean squared and the mean absolute error. **R²** is the share of the target's variance that is
# explained: 0 for the mean, 1 for perfection. **Pearson** says how close predictions and targets are to a line,
# **Spearman** how alike their orders are; for the mean, which does not vary, both are `nan`. The encoder is no better
# than ridge on words.

# %%
bars = {model: [r2[model]] for model in ("training mean", "word weights")}
teach.show(figures.r_squared(bars | {"encoder, 3 seeds": seeds}))

# %% [markdown]
# Spoil the predictions in two ways and look what each metric sees:

# %% tags=["nbval-ignore-output"]
guess = guesses["encoder, seed 0"]
spoilt = {"as predicted": guess, "halved, plus 2": guess / 2 + 2}
spoilt["exponential"] = np.exp(guess)
seen = {}
for how, changed in spoilt.items():
    seen[how] = regression.compute(predictions=changed, references=y["validation"])
    print(f"{how:15}", {name: round(v, 2) for name, v in seen[how].items()})
pearson = [seen[how]["pearsonr"] for how in spoilt]
spearman = [seen[how]["spearmanr"] for how in spoilt]
teach.claim("Pearson sees no shift and no scale", abs(pearson[1] - pearson[0]) < 1e-4)
teach.claim("Spearman sees the order only", max(spearman) - min(spearman) < 1e-3)
teach.claim("R2 sees all of it", seen["halved, plus 2"]["r_squared"] < 0)

# %% [markdown]
# Back in numbers of parameters. A box holds the middle half of the predictions, its line is their median, the whiskers
# are the rest without outliers:

# %%
true_counts = np.array(counts["validation"]["parameters"][:])
mean_count = np.expm1(y["train"].mean())  # back from logarithms
teach.show(figures.counts_boxes(true_counts, np.expm1(guess), mean_count))

# %% [markdown]
# ### Deeper: which checkpoint is best?
#
# `metric_for_best_model` names a metric, `greater_is_better` its direction. If you leave the direction out, the name
# decides:

# %%
from transformers import TrainingArguments

for metric in ("loss", "f1", "mse", "perplexity"):
    chosen = TrainingArguments(scratch.name, metric_for_best_model=metric, use_cpu=True)
    print(f"{metric:11} greater is better: {chosen.greater_is_better}")
teach.claim("perplexity would be maximised", chosen.greater_is_better)

# %% [markdown]
# Only names that end in `loss` are minimised. With `mse` the Trainer would keep the *worst* checkpoint, and early
# stopping would stop when things get better. Say the direction, always.

# %% [markdown]
# ### Deeper: Exercise 04.5 · Repair the settings
#
# Return a repaired copy of `settings`, a dict of TrainingArguments: whatever `metric_for_best_model` it names (any of
# `METRICS` but `rouge` and `confusion_matrix`, which return no number of their name, or `loss`; with or without
# `eval_`), the best checkpoint must be kept and loaded. Leave alone what is right. One of the broken ones:
#
# ```python
# {"metric_for_best_model": "mse", "eval_strategy": "steps", "eval_steps": 50}
# ```
#
# To load the best checkpoint, the Trainer demands that `save_strategy` equals `eval_strategy` (or is `"best"`), and
# with steps that `save_steps` is a multiple of `eval_steps`. It can load only what was saved.


# %%
def repaired(settings):
    return ...


# %%
teach.check("04.5", repaired)

# %% [markdown]
# ## 7 · Generation
#
# The task: digits to words, so that every answer can be checked. The model is a tiny **encoder-decoder**: the encoder
# reads the digits, the decoder writes word by word and sees what it has written so far.

# %%
from course_utils.data.number_words import DIGITS, WORDS, number_words
from course_utils.models.seq2seq import small_seq2seq, word_tokenizer

numbers = number_words()
number_tokens = word_tokenizer((*DIGITS, *WORDS))
for row in numbers["train"].select(range(3)):
    print(f"{row['text']} -> {row['target']}")


def to_ids(rows):
    labels = number_tokens(rows["target"])["input_ids"]
    return {**number_tokens(rows["text"]), "labels": labels}


spoken = numbers.map(to_ids, batched=True, remove_columns=["text", "target"])

# %% [markdown]
# In training the decoder is shown the *true* previous words; in use it has only its own. With
# `predict_with_generate=True` a `Seq2SeqTrainer` really generates in an evaluation: `predictions` are then token ids
# (N, T), padded with -100 like the labels. `generation_trainer` makes such a trainer; `as_text` turns ids into text.
#
# - **Exact match**: the whole answer is right.
# - **ROUGE-L**: how many words are right and in the right order (F1 of the longest common subsequence).
# - **BLEU**: how many runs of one to four words are right, over all answers; here divided by 100, so 1 is perfect.

# %%
from transformers import DataCollatorForSeq2Seq

from course_utils.training.generation import as_text, generation_trainer

of_texts = evaluate.combine([load_metric(n) for n in ("exact_match", "rouge", "bleu")])


def generation_metrics(prediction):
    written = as_text(number_tokens, prediction.predictions)
    wanted = as_text(number_tokens, prediction.label_ids)
    return of_texts.compute(predictions=written, references=wanted)


# %%
set_seed(seed)
writing_model = small_seq2seq(len(number_tokens))
steps = min(max_steps, 150)
speaker = generation_trainer(
    writing_model,
    scratch.name,
    spoken["train"],
    spoken["validation"],
    data_collator=DataCollatorForSeq2Seq(number_tokens, writing_model),
    compute_metrics=generation_metrics,
    max_steps=steps,
    learning_rate=2e-3,
    warmup_steps=0.1,
    per_device_train_batch_size=64,
    per_device_eval_batch_size=300,
    generation_max_length=16,
    eval_strategy="steps",
    eval_steps=max(1, steps // 5),
)
speaker.train()
history = [entry for entry in speaker.state.log_history if "eval_bleu" in entry]
teach.show(figures.generation(history))

# %% [markdown]
# The loss falls smoothly while exact match stays near zero and then jumps: one wrong word spoils an answer. ROUGE-L and
# BLEU give credit for parts. The loss replaces none of them: it is measured on true previous words, where no mistake
# leads to the next.

# %% tags=["nbval-ignore-output"]
output = speaker.predict(spoken["validation"])
written = as_text(number_tokens, output.predictions)
answers = numbers["validation"]["target"][:]
wrong = [place for place, text in enumerate(written) if text != answers[place]]
for place in wrong[:3]:
    print(f"{numbers['validation'][place]['text']}: {written[place]}")
    print(f"{'right:':>8} {answers[place]}")
exact, rouge = output.metrics["test_exact_match"], output.metrics["test_rougeL"]
print(f"exact match {exact:.2f}, ROUGE-L {rouge:.2f}")
counted = 1 - len(wrong) / len(written)
teach.claim("exact match counts these", abs(exact - counted) < 1e-9)
some_right = max_steps >= 40 and exact < 0.99  # an untrained model writes no right word
teach.claim("ROUGE-L gives credit for parts", rouge > exact, when=some_right)

# %% [markdown]
# ### Deeper: perplexity
#
# For a language model without a right answer there is the loss itself, in readable form: **perplexity** is exp of the
# mean loss per token, in nats (the unit of natural logarithms). A perplexity of 20 means: as unsure as a fair choice
# among 20 tokens. The mean must go over *tokens*, so the module takes summed losses and token counts:

# %%
perplexity = load_metric("perplexity")
perplexity.add_batch(predictions=[90 * 2.0], references=[90])  # 90 tokens, mean loss 2
perplexity.add_batch(predictions=[10 * 4.0], references=[10])  # 10 tokens, mean loss 4
over_tokens = perplexity.compute()["perplexity"]
over_batches = np.exp((2.0 + 4.0) / 2)  # the mean of the batches' means
print(f"over tokens {over_tokens:.1f}, over batch means {over_batches:.1f}")
teach.claim("over tokens it is exp(2.2)", abs(over_tokens - np.exp(2.2)) < 1e-9)

# %% [markdown]
# ## 8 · Several processes, one number
#
# On several GPUs each process (**rank**) evaluates its share of the batches. Two things go wrong there without an
# error. The ranks need equally many batches, so the last turn is **filled up** with rows from the start of the set. And
# each rank can only score its own rows. Here 19 rows on two ranks, four a batch:

# %%
teach.show(figures.padded_ranks(rows=19, batch=4))

# %% [markdown]
# `accelerator.gather(x)` collects `x` from all ranks, filling included. `accelerator.gather_for_metrics(x)` drops the
# filling. In a loop of your own:
#
# ```python
# accelerator = Accelerator()                                           # lesson 08
# loader = accelerator.prepare(DataLoader(rows, batch_size))
# for batch in loader:
#     predicted = model(**batch).logits.argmax(-1)                      # (B,) on this rank
#     pair = accelerator.gather_for_metrics((predicted, batch["labels"]))
#     metric.add_batch(predictions=pair[0], references=pair[1])         # all ranks' rows
# ```
#
# Now for real: the trained encoder, 301 validation rows, 32 a batch, two processes on this machine that talk through
# gloo, torch's library for CPUs. `run_ranks` starts them and brings back what each returns from
# `course_utils/parallel/evaluate_on_ranks.py`.

# %%
from course_utils.parallel import evaluate_on_ranks, run_ranks

few = data["validation"].select(range(301))
folder = f"{scratch.name}/ranks"
inputs = evaluate_on_ranks.save_inputs(classifier, few, tokenizer, folder, 32)
ranks = run_ranks(evaluate_on_ranks.evaluate, processes=2, arguments=inputs)
print("rows each rank saw:", [len(rank["own"]) for rank in ranks])
for way in ("gather", "gather_for_metrics"):
    print(f"rows after {way}:", len(ranks[0][way]))

# %% [markdown]
# The reference is one process: `predict` of lesson 01 on the same rows. Four ways to get macro-F1 from two:

# %%
from datasets import load_from_disk

from course_utils.training.evaluation import predict

rows = load_from_disk(inputs["rows_folder"]).with_format("torch")
batches = [rows[start : start + 32] for start in range(0, 301, 32)]
logits, few_labels = predict(classifier, batches)


def macro_of(pairs):  # (prediction, label) of each row
    predicted, labels = zip(*pairs, strict=True)
    return f1.compute(predictions=predicted, references=labels)["f1"]


reference = macro_of(zip(logits.argmax(-1), few_labels, strict=True))
reported = {
    "gather_for_metrics": macro_of(ranks[0]["gather_for_metrics"]),
    "Trainer.evaluate": ranks[0]["trainer"]["f1"],
    "gather: filling counted": macro_of(ranks[0]["gather"]),
    "mean of the ranks' own": np.mean([macro_of(rank["own"]) for rank in ranks]),
}
teach.show(figures.ways(reported, reference, "macro-F1"))

# %%
away = {way: abs(value - reference) for way, value in reported.items()}
exactly = away["gather_for_metrics"] == 0
teach.claim("gather_for_metrics: exactly one process's value", exactly)
teach.claim("Trainer.evaluate: the same, to 1e-12", away["Trainer.evaluate"] < 1e-12)
teach.claim("it was given 301 rows, not 320", ranks[0]["trainer"]["n_seen"] == 301)
silent = min(away["gather: filling counted"], away["mean of the ranks' own"])
teach.claim("both wrong ways are off by more than 0.0001", silent > 1e-4, when=full)

# %% [markdown]
# For accuracy, a mean over rows, the mean of ranks is almost right. Macro-F1 is no such mean: it must be computed once,
# from everybody's predictions.

# %% [markdown]
# ### Deeper: `eval_loss` is not exact
#
# What `compute_metrics` returns is exact. The `eval_loss` beside it is not: the Trainer gathers one mean per batch,
# repeats it by the batch size, and the filled-up rows stay in. If you choose checkpoints by the loss on several
# processes, compute it in `compute_metrics`.

# %% tags=["nbval-ignore-output"]
true_loss = torch.nn.functional.cross_entropy(logits, few_labels).item()
relative = abs(ranks[0]["trainer"]["loss"] / true_loss - 1)
print(f"true {true_loss:.4f}, eval_loss {ranks[0]['trainer']['loss']:.4f}")
off_a_little = 1e-5 < relative < 0.2
teach.claim("eval_loss on two processes is off, by less than a fifth", off_a_little)

# %% [markdown]
# ## 9 · Memory: do not collect what you do not need
#
# `compute_metrics` sees all rows, so everything lies in memory at once. A language model has a logit for each of `V`
# entries of its vocabulary, (N, T, V) in all: 256 rows of 64 tokens with 4,096 entries are 256 MiB; with 150,000
# entries, 9 GiB. The `Trainer` calls its argument `preprocess_logits_for_metrics` on every batch and collects what that
# returns instead. Here (N, T) token ids:


# %%
def only_argmax(logits, labels):
    return logits.argmax(dim=-1)  # (B, T, V) -> (B, T)


# %% [markdown]
# On a GPU, `eval_accumulation_steps` moves what is collected to the CPU every so many batches; it saves no CPU memory.
# `batch_eval_metrics=True` calls `compute_metrics` per batch; you add up counts yourself.

# %% [markdown]
# ### Deeper: the peak, measured

# %%
from datasets import Dataset

from course_utils.models import load_causal_lm

ids = rng.integers(5, 4096, (256, 64)).tolist()
token_rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
language_model = load_causal_lm()


def token_accuracy(prediction):
    given = prediction.predictions
    given = given.argmax(-1) if given.ndim == 3 else given
    hits = given[:, :-1] == prediction.label_ids[:, 1:]  # position t predicts t + 1
    return {"accuracy": hits.mean(), "collected": prediction.predictions.nbytes / 2**20}


# %% tags=["nbval-ignore-output"]
from course_utils.training.peak_memory import peak_mib

peaks, values = {}, {}
for way, function in {"argmax per batch": only_argmax, "all logits": None}.items():
    options = {"compute_metrics": token_accuracy, "per_device_eval_batch_size": 32}
    options |= {"eval_dataset": token_rows}
    lm_trainer = quiet_trainer(language_model, scratch.name, **options)
    lm_trainer.preprocess_logits_for_metrics = function
    peak, values[way] = peak_mib(lm_trainer.evaluate)  # None where it is not Linux
    peaks[way] = values[way]["eval_collected"] if peak is None else peak
print({way: f"accuracy {value['eval_accuracy']:.5f}" for way, value in values.items()})
teach.show(figures.memory(peaks))
teach.claim("less than half", peaks["argmax per batch"] < peaks["all logits"] / 2)

# %%
print({way: f"{value['eval_collected']:g} MiB" for way, value in values.items()})
one, other = (value["eval_accuracy"] for value in values.values())
teach.claim("a small part is collected, and the metric is the same", one == other)

# %% [markdown]
# The ids are random, so the accuracy is chance, in both ways the same. A single batch's logits are 32 MiB. With all
# logits the peak is about twice what is collected: every added batch copies what is there.

# %% [markdown]
# ## What goes wrong
#
# Four mistakes. None raises an error.
#
# ### 1 · The mean of batch scores
#
# Compute macro-F1 per batch, then average: a small batch lacks classes, and a class that is absent counts as 0.
# **Check:** evaluate with two batch sizes; the score must not move.

# %%
absent = np.mean([num_labels - len(part.unique()) for part in labels.split(16)])
print(f"a batch of 16 rows lacks {absent:.1f} of {num_labels} classes on average")
batch_sizes, means = (16, 32, 128, 500), []
for size in batch_sizes:
    parts = zip(predictions["encoder"].split(size), labels.split(size), strict=True)
    means.append(np.mean([macro_f1(p, true, num_labels) for p, true in parts]))
teach.show(figures.batch_means(batch_sizes, means, encoder_f1))
too_low = means[0] < 0.8 * encoder_f1
teach.claim("16 a batch: less than 0.8 of the true value", too_low, when=full)

# %% [markdown]
# ### 2 · Filled-up rows are counted
#
# Measured in section 8. **Check:** compare the number of predictions with the number of rows.
#
# ### 3 · The metric is computed on the training split
#
# A wrong variable, and the score looks splendid. **Check:** count the training rows among the rows that were *really*
# scored. Comparing the splits finds nothing: they are fine.

# %% tags=["nbval-ignore-output"]
seen_before = torch.tensor(words.predict(train["text"]))
on_training = macro_f1(seen_before, torch.tensor(train["label"]), num_labels)
on_validation = macro_f1(predictions["word weights"], labels, num_labels)
print(f"word weights: training {on_training:.2f}, validation {on_validation:.2f}")
local = source == "local"
teach.claim("at least 0.1 too good", on_training > on_validation + 0.1, when=local)
trained, scored = set(train["text"]), {"wrong": train, "right": validation}
known = {how: sum(t in trained for t in rows["text"]) for how, rows in scored.items()}
print("training rows among the scored ones:", known)
teach.claim("the check finds the wrong variable", known["wrong"] == len(train["text"]))
teach.claim("and no training row in the right one", known["right"] == 0, when=local)

# %% [markdown]
# ### Deeper: 4 · Probabilities where classes are due
#
# Most metric modules declare their columns as `int64`. Give them probabilities, and 0.9 becomes class 0 on the way in.
# Here is our module with such columns, as the public ones have them. **Check:** whole numbers only; the course's
# modules take float columns and refuse the rest.


# %%
class Int64Accuracy(type(accuracy)):
    def _info(self):
        info = super()._info()
        whole = datasets.Value("int64")
        info.features = datasets.Features({"predictions": whole, "references": whole})
        return info


probabilities, truth = [0.9, 0.8, 0.1, 0.3], [1, 1, 0, 0]  # a perfect detector
truncated = Int64Accuracy().compute(predictions=probabilities, references=truth)
print(truncated)
teach.claim("a perfect model is half right, silently", truncated["accuracy"] == 0.5)

# %% [markdown]
# ### The four together
#
# | mistake | what you see | check |
# |---|---|---|
# | mean of batch scores | a score that depends on the batch size | two batch sizes, one number |
# | filled-up rows counted | a score slightly off | predictions = rows |
# | training split | a splendid score | no training row among the scored ones |
# | probabilities as classes | a chance-level score of a good model | whole numbers only |
#
# ### Exercise 04.6 · Repair the evaluation
#
# A colleague's `compute_metrics` for an imbalanced task:
#
# ```python
# def compute_metrics(prediction):
#     predicted = prediction.predictions.argmax(0)
#     labels = prediction.label_ids
#     scores = [f1_score(labels[i : i + 32], predicted[i : i + 32], average="weighted")
#               for i in range(0, len(labels), 32)]
#     return {"macro_f1": np.mean(scores)}
# ```
#
# Write it right. `prediction.predictions` are logits (N, C), `prediction.label_ids` class numbers (N,); rows whose
# label is -100 do not count. Return four plain floats: `macro_f1` over all C classes, `macro_f1_low` and
# `macro_f1_high` (use `bootstrap` with its defaults), and `worst_recall`, the lowest recall among the classes that
# occur.


# %%
def my_compute_metrics(prediction):
    # logits -> classes; drop ignored rows; scores; interval
    return ...


# %%
teach.check("04.6", my_compute_metrics)

# %% [markdown]
# ## 10 · The test split, once
#
# Everything was chosen on the validation split. Now the test split:

# %% tags=["nbval-ignore-output"]
test = data["test"][:]
test_labels = torch.tensor(test["label"])
tested = {
    "majority": majority_class.repeat(len(test_labels)),
    "word weights": torch.tensor(words.predict(test["text"])),
    "encoder": torch.tensor(trainer.predict(encoded["test"]).predictions.argmax(-1)),
}
final = {model: with_intervals(p, test_labels) for model, p in tested.items()}
teach.show(figures.scores(final, "Test split, used once"))
difference = bootstrap(gap, tested["encoder"], tested["word weights"], test_labels)
print("encoder minus word weights, accuracy:", difference)
above = final["encoder"]["accuracy"].low > final["majority"]["accuracy"].high
teach.claim("the encoder's interval lies above the majority's", above, when=full)

# %% [markdown]
# On rows that chose nothing, encoder and word weights are close; the paired interval says how close.
#
# What the models do now, on numbers that nobody trained on and on this course's own functions:

# %% tags=["nbval-ignore-output"]
output = speaker.predict(spoken["test"])
written, digits = as_text(number_tokens, output.predictions), numbers["test"]["text"][:]
three = [place for place, text in enumerate(digits) if len(text) == 5]  # "7 7 8"
for place in [0, 1, *three[:3]]:
    print(f"{digits[place]}: {written[place]}")
print(f"all test numbers: exact match {output.metrics['test_exact_match']:.2f}")
shown = own_functions()[:5]
made = tokens([row.text for row in shown], truncation=True, max_length=48)
made = Dataset.from_dict({key: made[key] for key in ("input_ids", "attention_mask")})
guessed = np.expm1(regressors[0].predict(made).predictions[:, 0])
for row, guess in zip(shown, guessed, strict=True):
    print(f"true {row.parameters}, predicted {guess:.1f}: {row.text}")
test_r2 = regressors[0].evaluate(number_rows["test"])["eval_r_squared"]
print(f"parameters, all test rows: R2 {test_r2:.2f}")
teach.claim("parameters: R2 on test above 0.1", test_r2 > 0.1, when=long)

# %% [markdown]
# The writing model errs on numbers of three digits, which are one in eleven. The guessed parameters stay near one or
# two, whatever the truth.

# %%
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# - `compute_metrics` sees all rows at once and returns plain numbers. Metrics are modules with `add_batch` and
#   `compute`; your own is a class with `_info` and `_compute`.
# - With imbalance, accuracy and micro-F1 are about the big classes. Look at the majority baseline first, then at
#   macro-F1, every class and the confusion matrix.
# - A score without an interval is half a score. Compare two models row by row.
# - R² sees scale and shift, Pearson does not, Spearman sees the order only. Exact match is blind to parts, the loss to
#   what happens when the model reads its own words.
# - Say `greater_is_better`: only names that end in `loss` are minimised by default.
# - On several processes: `gather_for_metrics`, one metric over all rows. For memory: `preprocess_logits_for_metrics`.
#
# ### You may see
#
# | elsewhere | today |
# |---|---|
# | `datasets.load_metric("f1")` | `evaluate.load(...)` |
# | `evaluation_strategy="steps"` | `eval_strategy="steps"` |
# | `accelerator.gather` and cutting the end off by hand | `accelerator.gather_for_metrics` |
# | `mean_squared_error(..., squared=False)` | `root_mean_squared_error` |
#
# ## Quiz

# %% [markdown]
# **1.** A detector of a rare disease has an accuracy of 99.2%. What do you ask first?
#
# <details><summary>Answer</summary>
#
# How many of the rows are ill. If it is 0.8%, always saying "healthy" reaches the same. Then: recall and precision of
# the ill class, with intervals, and the number of ill rows.
#
# </details>

# %% [markdown]
# **2.** Macro-F1 is .61 [.57, .65] for one model and .64 [.60, .68] for another, on the same rows. Equal?
#
# <details><summary>Answer</summary>
#
# Not known from these intervals. Take the difference in each bootstrap draw: both are judged on the same drawn rows,
# and what is easy or hard for both cancels. If its interval excludes zero, they differ on this kind of data.
#
# </details>

# %% [markdown]
# **3.** The loss of a translation model falls, and exact match is zero. Is the evaluation broken?
#
# <details><summary>Answer</summary>
#
# Not necessarily: with ten words, each right nine times in ten, one answer in three is right; at six in ten, one in
# 170. Look at ROUGE-L or BLEU, then at generated text: labels decoded with -100 in them, or a missing end token, give
# zero as well.
#
# </details>

# %% [markdown]
# **Next:** [lesson 05](05_callbacks.ipynb) acts on these numbers while the run goes on: callbacks that stop, save and
# watch.
