# %% tags=["parameters"] slideshow={"slide_type": "skip"}
source = "local"
max_steps = 12  # training steps per strategy in the speed figure
seed = 0

# %% slideshow={"slide_type": "skip"}
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

import course_utils
from course_utils import teach
from course_utils.data import load_classification
from course_utils.data.collators import corrupt_spans, sample_spans
from course_utils.data.packing import PackedCollator, document_mask, pack_documents
from course_utils.data.sampling import LengthGroupedBatchSampler
from course_utils.lessons.lesson_02 import figures
from course_utils.models import load_causal_lm, load_tokenizer
from course_utils.teach import charts

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% slideshow={"slide_type": "skip"}
data = load_classification(source)
tokenizer = load_tokenizer(source)
texts = list(data["train"]["text"])
documents = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
lengths = np.array([len(ids) for ids in documents])
order = np.random.default_rng(seed).permutation(len(lengths))
random_batches = [order[i : i + 32] for i in range(0, len(order), 32)]
grouped_batches = [np.array(batch) for batch in LengthGroupedBatchSampler(lengths, 32, seed=seed)]
packed = pack_documents(documents, 64, tokenizer.pad_token_id)
packed_size = max(1, round(32 * len(packed) / len(documents)))


def padded(indices, width=None):
    features = {"input_ids": [documents[i] for i in indices]}
    batch = dict(
        tokenizer.pad(features, padding="max_length" if width else True, max_length=width, return_tensors="pt")
    )
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


strategies = {
    "pad to 64": lambda step: padded(random_batches[step], 64),
    "dynamic": lambda step: padded(random_batches[step]),
    "length-grouped": lambda step: padded(grouped_batches[step + 1]),
    "packed": lambda step: PackedCollator()(packed[step * packed_size :][:packed_size]),
}

# %% [markdown] slideshow={"slide_type": "slide"}
# # 02 · Batches
#
# Tokens, collators, padding: what stands between text and a rectangle of numbers

# %% [markdown] slideshow={"slide_type": "notes"}
# Nothing in this lesson raises an error when it is wrong. The loss still falls, the run still ends. That is why every
# claim comes with a check. About 60 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From text to batch
#
# - **tokenizer**: text to ids, once, before training
# - **sampler**: which rows form a batch
# - **collator**: rows to tensors, at every step
#
# > Everything that should differ from step to step belongs in the collator: widths, masks, spans.

# %% [markdown] slideshow={"slide_type": "notes"}
# Draw the pipeline on the board. Ask: where would you put tokenising? Where random masking? The first is the same in
# every epoch, the second must not be.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Tokenise once
#
# ```python
# def tokenize(rows):
#     return tokenizer(rows["text"], truncation=True, max_length=64)
#
# rows = data.map(tokenize, batched=True, remove_columns=["text"])
# ```
#
# - a thousand texts per call, in Rust; stored as an Arrow table
# - memory-mapped: opening it reads next to nothing
# - truncation is silent: count what it cuts
# - streaming shuffles the files, and within a file only a buffer

# %% [markdown] slideshow={"slide_type": "notes"}
# In the notebook: the same three epochs with the tokenizer in __getitem__ and with map, timed side by side. Then the
# bytes Arrow allocates when the table is opened. On streams: a sorted file stays nearly sorted behind a small buffer.
# With many files their order is shuffled too.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Padding: harmless for the result, pure waste
#
# ```python
# batch = DataCollatorWithPadding(tokenizer)(rows)
# # input_ids       [[2, 917, 3, 0, 0], ...]   0: [PAD]
# # attention_mask  [[1,   1, 1, 0, 0], ...]   0: filling
# ```
#
# - **pad to max**: one width for the whole data set
# - **dynamic**: as wide as the longest row of the batch
# - leave out the mask and `[PAD]` is read as a word
#
# > Among 32 random rows there is nearly always a long one: dynamic padding helps less than one would hope.

# %% [markdown] slideshow={"slide_type": "notes"}
# The notebook asserts that a row's result is the same in a narrow and in a wide batch, and that it is not without the
# mask. Four strategies are compared after packing has been explained.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Length grouping
#
# Shuffle; sort inside *megabatches* of 50 batches; shuffle the batches.
#
# ```python
# sampler = LengthGroupedBatchSampler(lengths, batch_size=32, seed=0)
# loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate)
# for epoch in range(3):
#     sampler.set_epoch(epoch)
#     for batch in loader:
#         ...                      # checkpoint: sampler.state_dict()
# ```
#
# - every row once an epoch, another order each epoch
# - order from **seed and epoch** alone: a run can resume
# - longest batch first: too little memory shows at step one

# %% [markdown] slideshow={"slide_type": "notes"}
# Why not sort everything? The same rows would meet in every epoch, and the model would see short texts first, long ones
# last. The grouping itself is exercise 02.3, so its code is not shown here.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Labels are padded with -100
#
# ```python
# labels = input_ids.clone()
# labels[attention_mask == 0] = -100   # cross_entropy skips -100
# ```
#
# - forgotten: the model learns to write `[PAD]`; the loss looks **wonderful**
# - not by `input_ids == pad_token_id`: that may be the end token. `DataCollatorForLanguageModeling(mlm=False)` does it
# - `DataCollatorForSeq2Seq(pad_to_multiple_of=8)` does both sides

# %% [markdown] slideshow={"slide_type": "notes"}
# The notebook trains both versions: the wrong one reports a far lower loss and is worse on real tokens. With padding
# set to the end token, the library's collator leaves 0 of 4 rows an end to learn. Exercise 02.1 adds the prompt, which
# lesson 10 needs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Masked language modelling: 80 / 10 / 10
#
# 15% of the tokens are targets: 80% of these become `[MASK]`, 10% a random token, 10% are kept. (The picture has more.)

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
sentence = "Stack label rows of different lengths, filling up on the right."
often = DataCollatorForLanguageModeling(
    tokenizer, mlm_probability=0.35, mask_replace_prob=0.6, random_replace_prob=0.2, seed=227
)
example = often([{"input_ids": tokenizer(sentence)["input_ids"]}])
targets = ["" if i == -100 else tokenizer.convert_ids_to_tokens(i) for i in example["labels"][0].tolist()]
teach.show(
    figures.masked_tokens(
        tokenizer.tokenize(sentence, add_special_tokens=True),
        tokenizer.convert_ids_to_tokens(example["input_ids"][0]),
        targets,
    ),
    alt="A sentence, the same with some tokens masked, replaced or kept, and the targets at those positions.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# The picture: 35% targets, 60 / 20 / 20. Ask: why are some left unchanged? If every target were marked, only the
# outputs at [MASK] would have to be good; the others are what later tasks use. The notebook counts the shares: within
# four standard errors.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Span corruption (T5)

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
tokens = tokenizer.tokenize(sentence)
spans = sample_spans(len(tokens), torch.Generator().manual_seed(3), noise_density=0.35, mean_span_length=2.0)
teach.show(
    figures.span_corruption(tokens, spans, *corrupt_spans(tokens, spans, ["<X>", "<Y>", "<Z>"])),
    alt="A sentence with coloured spans, the input with one sentinel per span, and the target listing sentinels and "
    "spans.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Each span leaves one sentinel; the target says what each stood for, and ends with one more. 15% hidden, mean span 3 in
# the paper. A detail from the published code: every text ends in a hidden span. With one span per sentence that would
# hide only endings; ours draws the place freely. Exercise 02.2.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Packing: several documents in one row
#
# | | naive | right |
# |---|---|---|
# | positions | run on | start again at **0** |
# | labels | a document's end predicts the next one's first token | first token **-100** |
# | attention | whole row | own document only |
#
# > Packed loss = unpacked loss, within rounding.

# %% [markdown] slideshow={"slide_type": "notes"}
# If the packed loss is a bit lower, that is not good news: the documents see each other, or the targets differ. The
# notebook asserts equality within 1e-5, and that two mistakes are seen. Positions: learned absolute ones must restart;
# rotary ones are relative and would not notice, but the library finds the documents by them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who may look at whom

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
toy = pack_documents([list(range(1, 6)), list(range(1, 10)), list(range(1, 5))], row_length=18)[0]
isolated = (document_mask(toy["document_ids"][None])[0, 0] == 0).double()
masks = {"one long text": torch.ones(18, 18).tril().numpy(), "documents kept apart": isolated.numpy()}
teach.show(
    figures.attention_masks(masks, [5, 14]),
    alt="Left a full lower triangle over three documents, right three separate triangles on the diagonal; orange lines "
    "separate the documents.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# The orange lines separate three documents. Left: the third document, the last four rows, looks mostly at the text of
# the other two.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Four strategies, token by token


# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
def document_grid(batch):
    if "position_ids" in batch:
        starts = (batch["position_ids"] == 0).cumsum(1) - 1
        return starts.masked_fill(batch["input_ids"] == tokenizer.pad_token_id, -1).numpy()
    return torch.where(batch["attention_mask"] == 1, 0, -1).numpy()


teach.show(
    figures.token_grids(
        {name: [document_grid(make(step)) for step in (0, 1)] for name, make in strategies.items()}, 64
    ),
    alt="Two batches of each strategy as grids of tokens: mostly grey when padded to 64, two thirds grey with dynamic "
    "padding, nearly no grey when grouped by length or packed.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Blue is text, grey is padding; shades of blue are documents in one row. The titles count the two batches drawn, the
# next slide the whole data set. Dynamic padding disappoints: a batch is as wide as its longest row. Grouping narrows
# the batches, packing fills rows of one width.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What it buys

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=2).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
rates = {name: [] for name in strategies}  # useful tokens per second
for step in range(max_steps + 1):  # the strategies take turns; the first round warms up
    for name, make in strategies.items():
        batch = make(step)
        begin = perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 0:
            rates[name].append(int((batch["labels"][:, 1:] != -100).sum()) / (perf_counter() - begin))
speed = {name: float(np.median(rates[name])) for name in strategies}


def padding_share(batches, width=None):
    return 1 - lengths.sum() / sum(len(batch) * (width or lengths[batch].max()) for batch in batches)


share = {"pad to 64": padding_share(random_batches, 64), "dynamic": padding_share(random_batches)}
share |= {"length-grouped": padding_share(grouped_batches), "packed": 1 - lengths.sum() / (64 * len(packed))}
assert min(speed["length-grouped"], speed["packed"]) > 1.5 * max(speed["pad to 64"], speed["dynamic"])
teach.show(
    figures.padding_and_speed(share, speed),
    alt="Padding is most of all positions when padding to 64, two thirds with dynamic padding, a few percent with "
    "grouping and packing. Useful tokens per second with grouping and packing are far above both kinds of padding.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# Measured while this deck was built: same data set, same model, twelve training steps of each strategy, which take
# turns. The shares are exact, the rates belong to the machine. Useful tokens are those that are a target. Grouping or
# packing: their order changes from run to run, both are far above padding.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Isolation that silently is none
#
# transformers recognises documents where `position_ids` restart, **unless**
#
# - a key-value cache is built (`use_cache=True`, a common default; `Trainer` turns it off)
# - an `attention_mask` is passed, even all ones
#
# And a *boolean* block mask, right for sdpa, under eager attention hides nothing: **the future becomes visible** too.
#
# > Test: change one document. The logits of the others must not move.

# %% [markdown] slideshow={"slide_type": "notes"}
# A key-value cache keeps keys and values of past tokens for generation. All three were found by measuring, none prints
# a warning. Pass an additive mask explicitly, as PackedCollator does, or run the test once for your model and attention
# implementation.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Split by what will be new

# %% slideshow={"slide_type": "skip"}
from datasets import concatenate_datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import KNeighborsClassifier

if "file" in data["train"].column_names:
    rows = concatenate_datasets(list(data.values()))
    all_texts, labels, files = (np.array(rows[name]) for name in ("text", "label", "file"))
    by_file = np.isin(files, list(set(data["test"]["file"])))
else:  # the hub's data does not name its sources: both splits are random
    all_texts, labels = np.array(texts), np.array(data["train"]["label"])
    by_file = np.random.default_rng(seed).random(len(texts)) < 0.15


def copy_nearest(is_test):
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    known = vectorizer.fit_transform(all_texts[~is_test])
    model = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(known, labels[~is_test])
    return float(model.score(vectorizer.transform(all_texts[is_test]), labels[is_test]))


# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
by_row = np.random.default_rng(seed).permutation(by_file)
scores = {"split by row": copy_nearest(by_row), "split by file": copy_nearest(by_file)}
assert source == "hub" or scores["split by row"] > scores["split by file"]
teach.show(
    charts.grouped_bars({"copies the most similar training sentence": scores}, "test accuracy"),
    alt="A model that only copies the label of the most similar training sentence scores clearly higher when rows are "
    "dealt out at random than when whole files are held out.",
)

# %% [markdown] slideshow={"slide_type": "notes"}
# This model only remembers. The difference between the bars is leakage: siblings of the test sentences were in
# training. New files here, new patients in medicine, later dates where things drift. The check is a set intersection.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What pretraining buys

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
report_file = Path(course_utils.__file__).parents[1] / "bench" / "results" / "pretraining.json"
report = json.loads(report_file.read_text())
gains = [(round(setting["gain"], 3), round(setting["standard_error"], 3)) for setting in report["compared"]]
assert gains == [(0.111, 0.007), (-0.002, 0.006), (-0.004, 0.005)], "the slide's sentence names them"
teach.show(
    figures.pretraining(report),
    alt="Test accuracy from random and from pretrained weights, and of word counts, for a linear probe and for "
    "fine-tuning with 2,000 and with 12,000 labels.",
)

# %% [markdown] slideshow={"slide_type": "-"}
# > Gain: probe **+.111** ± .007 · fine-tuning, 2,000 labels −.002 ± .006 · 12,000 labels −.004 ± .005

# %% [markdown] slideshow={"slide_type": "notes"}
# From bench/bench_pretraining.py: 2,000 steps of pretraining, three seeds, each with its own; error bars are half their
# range, the standard errors come from the 2,500 test rows. In fine-tuning no gain is shown. Word counts stay ahead of
# the probe. The text leaves out the test sentences' files: with them, hundreds of test
# sentences had been read before. The notebook pretrains a smaller encoder for half a minute.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Checks that would have caught it
#
# ```python
# assert (labels[attention_mask == 0] == -100).all()
# assert (labels[attention_mask == 1] != -100).all()  # plain language modelling
#
# moved = logits_of_others(changed) - logits_of_others(original)
# assert moved.abs().max() <= 1e-5
#
# assert not set(train["file"]) & set(test["file"])
# ```
#
# **Exercises** label masking · span corruption · a length-grouped sampler

# %% [markdown] slideshow={"slide_type": "notes"}
# Give them fifteen minutes. Next lesson: the Trainer takes loop and collator, and we watch it work.
