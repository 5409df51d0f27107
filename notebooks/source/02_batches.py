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
# # 02 · Batches: tokens, collators, padding
#
# A model trains on rectangles of numbers; texts are words, of any length. What stands between decides how much of
# your hardware works on padding, what the loss counts, and what the test score means. Mistakes there raise no error.
#
# **You will be able to**
#
# - tokenise a data set once and say what truncation costs;
# - choose between padding to a maximum, dynamic padding, length grouping and packing, and measure each;
# - write samplers and collators, and labels that leave out what is no target;
# - pack documents so that the loss is exactly the unpacked one;
# - split data so that the test score holds for new data;
# - say what pretraining on unlabelled text bought here, and what it did not.
#
# **Minutes:** {minutes} · **Prerequisites:** lesson 01 (the loop), tensors in PyTorch. Terms:
# [GLOSSARY.md](../GLOSSARY.md). *Deeper* sections are folded; nothing else needs them.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets
max_steps = 1200  # optimizer steps of the pretraining run in section 9
batch_size = 32  # sentences per batch, at most 256
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed, batch_size=batch_size,
            at_most={"batch_size": 256})  # fmt: skip

# %% [markdown]
# ## 1 · Where this leads
#
# The data is that of lesson 01: one sentence of documentation a row, with the library that it comes from. Here are four
# sentences of this course's own, with their length in tokens:

# %%
from course_utils.data import load_classification, own_sentences
from course_utils.models import load_tokenizer

data, tokenizer = load_classification(source), load_tokenizer(source)
is_local, has_files = source == "local", "file" in data["train"].column_names
texts = list(data["train"]["text"])
own = [own_sentences()[number] for number in (7, 9, 10, 19)]
for sentence in own:
    print(f"{len(tokenizer(sentence)['input_ids']):3} tokens  {sentence}")

# %% [markdown]
# Lengths differ, a batch is a rectangle. Three parts make it:

# %%
from course_utils.lessons.lesson_02 import diagrams, figures

teach.show(diagrams.pipeline(len(texts), batch_size))

# %% [markdown]
# The end of the lesson: the same sentences as batches in four ways, token by token. `Strategies` holds what the next
# sections build.

# %%
from course_utils.lessons.lesson_02.strategies import Strategies

documents = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
ways = Strategies(documents, batch_size, width=64, seed=seed)
grids = {name: ways.grids(name) for name in ways.names}
teach.show(figures.token_grids(grids, 64))

# %% [markdown]
# Grey is **padding**, filler that makes rows equally long. The model computes it like text. *Length-grouped*: texts of
# similar length share a batch (3 % padding over all batches). *Packed*: several texts share a row.

# %% [markdown]
# ## 2 · From text to token ids
#
# A tokenizer cuts text into pieces of a fixed vocabulary, **tokens**, and gives their numbers, **token ids**. Ours is a
# *WordPiece* tokenizer: frequent words are one token, rare words are built from pieces (`##` continues a word).

# %%
sentence = own[0]
encoded = tokenizer(sentence)
print(encoded["input_ids"])
print(tokenizer.convert_ids_to_tokens(encoded["input_ids"]))
print("back:", tokenizer.decode(encoded["input_ids"], skip_special_tokens=True))

# %% [markdown]
# `[CLS]` and `[SEP]` mark beginning and end. The text comes back in lower case: this tokenizer lower-cases before it
# cuts. That leaves fewer words to know and loses the difference between `None` and `none`. A word with a character
# that the vocabulary lacks becomes `[UNK]`, *unknown*:

# %%
rare, snowman = tokenizer.tokenize("collators"), tokenizer.tokenize("\u2603")
print(rare, snowman)
teach.claim("a rare word has several pieces", len(rare) > 1, when=is_local)
teach.claim("a snowman is unknown", snowman == [tokenizer.unk_token], when=is_local)

# %% [markdown]
# **Truncation.** A model has a longest input; `truncation=True` cuts there, silently. So count first what a limit cuts:

# %%
import numpy as np

whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
full = np.array([len(ids) for ids in whole])
teach.show(figures.length_histogram(full, limits=(16, 32, 64)))
lost = {limit: np.maximum(full - limit, 0).sum() / full.sum() for limit in (16, 32, 64)}
print({limit: f"{share:.0%} of all tokens lost" for limit, share in lost.items()})
teach.claim("a limit of 64 loses under 3 %", lost[64] < 0.03, when=is_local)

# %% [markdown]
# ### Deeper: which characters does a token cover?
#
# *Fast* tokenizers, written in Rust, know where each token came from. That matters when labels are given as character
# positions (names in a text, the answer to a question): `offset_mapping` leads from one to the other.

# %%
with_places = tokenizer(sentence, return_offsets_mapping=True, add_special_tokens=False)
pieces = [sentence[start:stop] for start, stop in with_places["offset_mapping"]]
print("fast:", tokenizer.is_fast, pieces[:6])
joined = "".join(pieces)
without_spaces = sentence.replace(" ", "")
teach.claim("the pieces are the sentence, spaces aside", joined == without_spaces)

# %% [markdown]
# ## 3 · Tokenise once, with `map`
#
# `Dataset.map(batched=True)` hands the tokenizer a thousand rows at once and stores what comes back as a table. Every
# epoch only reads it.


# %%
def tokenize(rows):
    return tokenizer(rows["text"], truncation=True, max_length=64)


columns = [name for name in data["train"].column_names if name != "label"]
options = dict(batched=True, remove_columns=columns, keep_in_memory=True)
tokenized = data.map(tokenize, **options)
print(tokenized["train"])
same = list(tokenized["train"]["input_ids"]) == documents
teach.claim("the ids are those of section 1", same)

# %% [markdown]
# ### Deeper: what `map` saves
#
# The naive place for the tokenizer is the data set's `__getitem__`: a text comes in, ids go out, in every epoch again,
# one text at a time. With `map` the table can also be kept on disk; it is found again by a fingerprint of the function,
# so editing `tokenize`, or an object of the notebook that it uses, makes a new one (imported functions count by their
# name only). Three epochs over 3,000 rows, read by the same `DataLoader`:


# %%
class NaiveDataset:
    def __init__(self, rows):
        self.texts, self.labels = list(rows["text"]), list(rows["label"])

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        encoded = tokenizer(self.texts[i], truncation=True, max_length=64)
        return encoded | {"label": self.labels[i]}


# %% tags=["nbval-ignore-output"]
from time import perf_counter

from torch.utils.data import DataLoader


def read(rows):
    loader = DataLoader(rows, batch_size=32, collate_fn=list)
    return [row["input_ids"] for batch in loader for row in batch]


small, begin = data["train"].select(range(3000)), perf_counter()
naive_ids = [read(NaiveDataset(small)) for _ in range(3)][-1]
naive_time, begin = perf_counter() - begin, perf_counter()
mapped = small.map(tokenize, **options, load_from_cache_file=False)
map_time = perf_counter() - begin
mapped_ids = [read(mapped) for _ in range(3)][-1]
total_time = perf_counter() - begin
print(f"in __getitem__: {naive_time / 3:.2f} s an epoch")
print(f"with map: {(total_time - map_time) / 3:.2f} s an epoch, {map_time:.2f} s once")
teach.claim("both give the same ids", naive_ids == mapped_ids)
teach.claim("map and three readings are faster together", total_time < naive_time)

# %% [markdown]
# ### Deeper: rows that stay on disk (memory mapping)
#
# A table on disk is not read into memory. The file is *mapped*: the operating system loads the pages that are touched
# and may drop them again. A data set larger than the memory works, and several loading processes share one copy.
# Arrow, the library behind the tables, counts the bytes that it allocated itself:

# %%
import tempfile
from pathlib import Path

import pyarrow
from datasets import load_from_disk

with tempfile.TemporaryDirectory() as folder:
    data["train"].save_to_disk(folder)
    size = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
    before = pyarrow.total_allocated_bytes()
    on_disk = load_from_disk(folder)
    mapped_bytes = pyarrow.total_allocated_bytes() - before
    in_memory = load_from_disk(folder, keep_in_memory=True)
    copied = pyarrow.total_allocated_bytes() - before - mapped_bytes
    del on_disk, in_memory
teach.claim("opening it allocates under 5 % of its size", mapped_bytes < 0.05 * size)
teach.claim("keep_in_memory=True allocates over half", copied > 0.5 * size)

# %% [markdown]
# ### Deeper: rows that come as they are read (streaming)
#
# When the data does not fit on the disk either, it is *streamed*: an `IterableDataset` yields rows as they arrive and
# applies `map` on the way (from the hub: `load_dataset(..., streaming=True)`). The price: no length, no `rows[i]`,
# and a shuffle that only mixes what is in a buffer.

# %%
teach.show(diagrams.shuffle_buffer())

# %%
places = list(range(3000))
rows = data["train"].select(places).add_column("place", places)
stream = rows.to_iterable_dataset()
reach = {}
for size in (100, 3000):
    shuffled = stream.shuffle(seed=seed, buffer_size=size)
    reach[size] = [row["place"] for row in shuffled]
teach.show(figures.buffer_reach(reach))
ahead = max(place - position for position, place in enumerate(reach[100]))
teach.claim("buffer 100: no row jumps further ahead than 100", 0 < ahead <= 100)

# %% [markdown]
# In the other direction there is no limit: a row that is never drawn waits long in the buffer.
#
# If the file is sorted by class, your batches are too. Large data sets usually come as many files, **shards**; then
# `shuffle` also draws the order of the shards. That helps, but each shard is still read through the buffer.

# %%
shards = rows.to_iterable_dataset(num_shards=8)
starts = []
for draw in range(6):
    first = next(iter(shards.shuffle(seed=draw, buffer_size=100)))
    starts.append(first["place"] * 8 // len(places))
print("8 shards, six seeds: the first row comes from shard", starts)
teach.claim("not always the same shard comes first", len(set(starts)) > 1)

# %% [markdown]
# A stream can be resumed: `state_dict()` remembers how far it was read. The content of a shuffle buffer is not part of
# it, so an exact resume needs data that was shuffled on disk.

# %%
iterator = iter(stream)
seen = [next(iterator)["place"] for _ in range(5)]
state = stream.state_dict()
expected = [next(iterator)["place"] for _ in range(3)]
stream.load_state_dict(state)
iterator = iter(stream)
resumed = [next(iterator)["place"] for _ in range(3)]
print(seen, "then", resumed)
teach.claim("the resumed stream goes on where it stopped", resumed == expected)

# %% [markdown]
# ## 4 · Padding
#
# Short rows are filled with `[PAD]`, id 0, and the `attention_mask` says where: 1 for text, 0 for filling. A
# **collator** is a function that turns a list of rows into a batch; `DataCollatorWithPadding` makes it as wide as its
# longest row, which is called **dynamic padding**.

# %%
from transformers import DataCollatorWithPadding

collate = DataCollatorWithPadding(tokenizer)
rows = [dict(tokenizer(text)) for text in own]
batch = collate(rows)
print(tuple(batch["input_ids"].shape), *batch["input_ids"].tolist(), sep="\n")
for row in batch["attention_mask"].tolist():
    print(*row)

# %% [markdown]
# Padding must not change what the model computes for a row. The mask keeps attention away from it, so a batch padded to
# 64 gives the same logits. Without the mask, `[PAD]` is read as a word:

# %%
import torch

from course_utils.models import load_classifier

torch.manual_seed(seed)
sizes = dict(vocab_size=len(tokenizer), num_hidden_layers=2)
model = load_classifier(num_labels=10, **sizes).eval()
wide = tokenizer.pad(rows, padding="max_length", max_length=64, return_tensors="pt")
with torch.no_grad():
    narrow = model(**batch).logits
    masked = (narrow - model(**wide).logits).abs().max()
    unmasked = (narrow - model(wide["input_ids"]).logits).abs().max()
teach.claim("with the mask the logits agree within 1e-5", masked <= 1e-5)
teach.claim("without it they are off by over 1e-3", unmasked > 1e-3)

# %% [markdown]
# So masked padding is harmless, and pure waste. Its share of all the positions:

# %%
lengths = np.array([len(ids) for ids in documents])
order = np.random.default_rng(seed).permutation(len(lengths))


def padding_share(batches, width=None):
    widths = [width or lengths[batch].max() for batch in batches]
    positions = sum(len(b) * w for b, w in zip(batches, widths, strict=True))
    return 1 - lengths.sum() / positions


random_batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
share = {"pad to 64": padding_share(random_batches, width=64)}
share["dynamic"] = padding_share(random_batches)
print({name: f"{value:.0%}" for name, value in share.items()})
big = batch_size >= 24  # of fewer rows the longest is shorter
teach.claim("dynamic: still over 60 %", share["dynamic"] > 0.6, when=is_local and big)

# %% [markdown]
# Little help: 32 random rows nearly always hold a long one.

# %% [markdown]
# ### Exercise 02.1 · Predict: how much padding?
#
# Eight rows have 12, 3, 5, 11, 4, 10, 2 and 9 tokens. How many positions of padding are there in all, if they are (a)
# padded to 16; (b) cut in this order into batches of four, with dynamic padding; (c) the same with batches of two?

# %%
prediction = ...  # (a, b, c)

# %%
teach.check("02.1", prediction)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("02.1")`, then `teach.show_hint("02.1", 2)`, then `teach.show_solution("02.1")`; so in all exercises.
#
# </details>

# %% [markdown]
# ## 5 · Length grouping
#
# So take rows of similar length. Sorting the whole data set would remove nearly all padding and nearly all randomness:
# the same rows would meet in every epoch. The compromise sorts inside **megabatches**: shuffle everything, cut into
# pieces of 50 batches, sort each piece, cut it into batches, shuffle the batches.
#
# What chooses the rows of each batch is a **batch sampler**, an iterable of lists of row numbers that `DataLoader`
# takes. Larger megabatches leave less padding, and less chance in who meets whom:

# %%
from course_utils.data.sampling import LengthGroupedBatchSampler

for megabatch in (1, 2, 5, 20, 50):
    sampler = LengthGroupedBatchSampler(lengths, batch_size, seed, megabatch)
    grouped = list(sampler)
    print(f"megabatch {megabatch:2d}: {padding_share(grouped):5.1%} padding")
share["length-grouped"] = padding_share(grouped)
teach.claim("50 leave under a tenth", share["length-grouped"] < 0.1, when=is_local)

# %% [markdown]
# A sampler must keep three promises. Every row comes once an epoch, every epoch has another order, and the order is a
# function of seed and epoch alone, so that a resumed run finds its place (lesson 01). The course's sampler also puts
# the longest batch first: if the memory is too small, the run should die at once.

# %%
sampler.set_epoch(1)
second = list(sampler)
once = sorted(i for batch in second for i in batch) == list(range(len(lengths)))
teach.claim("every row comes once", once)
teach.claim("epoch 1 has another order than epoch 0", grouped != second)
longest_first = lengths[second[0]].max() == lengths.max()
teach.claim("the longest row is in the first batch", longest_first)

# %% [markdown]
# ### Exercise 02.2 · Write the grouping
#
# `order` is the shuffled list of row numbers. Cut it into megabatches of `megabatch * batch_size`, sort each by length,
# longest first (equal lengths keep their order), cut it into batches. Return the batches in that order; the last may be
# smaller.


# %%
def group_batches(lengths, order, batch_size, megabatch):
    # -> a list of lists of row numbers
    return ...


# %%
teach.check("02.2", group_batches)

# %% [markdown]
# ### Deeper: stopping in the middle of an epoch
#
# `state_dict` holds seed, epoch and the number of batches handed out.

# %%
iterator = iter(sampler)
head = [next(iterator) for _ in range(10)]
resumed = LengthGroupedBatchSampler(lengths, batch_size)
resumed.load_state_dict(sampler.state_dict())
rest = list(resumed)
teach.claim("resumed = uninterrupted", head + rest == second and len(head) == 10)

# %% [markdown]
# ## 6 · Collators that make labels
#
# A collator is called at every step: it is the place for whatever should *differ* from step to step.
#
# **Sequence to sequence** (seq2seq) tasks map one text to another: here, a function's docstring to its name. An
# *encoder* reads the input, and a second Transformer, the **decoder**, writes the output token by token. So labels are
# sequences too and need padding. With `[PAD]` they would count in the loss; the filling is **-100**, which torch's
# cross entropy skips:

# %%
from transformers import DataCollatorForSeq2Seq

names = ("progress bars off", "pad labels", "cut at random")  # theirs, in words
pairs = []
for text, name in zip(own[:3], names, strict=True):
    labels = tokenizer(name)["input_ids"]
    pairs.append({"input_ids": tokenizer(text)["input_ids"], "labels": labels})
batch = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)(pairs)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print(*batch["labels"].tolist(), sep="\n")
ends = (batch["labels"] == -100).sum(1)
teach.claim("each row of labels ends in -100", bool((ends > 0).all()))

# %% [markdown]
# `pad_to_multiple_of=8` rounds widths up: the matrix units of a GPU work in tiles of 8.
#
# **Masked language modelling** makes labels from text alone: some tokens are hidden, and the encoder guesses them from
# both sides. BERT ([Devlin et al. 2019](https://arxiv.org/abs/1810.04805)) takes 15 % of the tokens as targets. Of
# these, 80 % become `[MASK]`, 10 % a random token, 10 % stay. Why not mask all? In later use there is no `[MASK]`, so
# outputs at ordinary tokens must be good too; that is the paper's reason, not measured here.

# %% [markdown]
# On one sentence. For the picture the rate is 35 %, the shares are 60/20/20, and the seed is one where all three cases
# occur:

# %%
from transformers import DataCollatorForLanguageModeling

rates = dict(mlm_probability=0.35, mask_replace_prob=0.6, random_replace_prob=0.2)
often = DataCollatorForLanguageModeling(tokenizer, **rates, seed=26)
example = often([{"input_ids": tokenizer(sentence)["input_ids"]}])
words = tokenizer.tokenize(sentence, add_special_tokens=True)
seen = tokenizer.convert_ids_to_tokens(example["input_ids"][0])
labels = example["labels"][0].tolist()
wanted = [w if i != -100 else "" for w, i in zip(words, labels, strict=True)]
teach.show(figures.masked_tokens(words, seen, wanted))

# %% [markdown]
# ### Exercise 02.3 · Write the labels of an answer
#
# A model should learn to write the answer, not the question. Given a padded batch and the number of prompt tokens of
# each row, make the labels: -100 on padding and on the prompt, the token id elsewhere, not shifted. Padding is on the
# right. Its id may also occur as a real token.


# %%
def mask_labels(input_ids, attention_mask, prompt_lengths):
    # (B, L), (B, L), (B,) -> labels (B, L); input_ids stays as it is
    return ...


# %%
teach.check("02.3", mask_labels)

# %% [markdown]
# ### Deeper: 15 %, and of these 80 / 10 / 10, counted

# %%
mlm = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=seed)
many = [{"input_ids": ids} for ids in documents[:4000]]
original = ways.padded(range(4000))["input_ids"]  # (rows, longest)
corrupted = mlm(many)
ids, chosen = corrupted["input_ids"], corrupted["labels"] != -100
special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
now_mask, same = ids == tokenizer.mask_token_id, ids == original
cases = {
    "targets": (chosen[~special], 0.15),
    "[MASK]": (now_mask[chosen], 0.8),
    "random": ((~now_mask & ~same)[chosen], 0.1),
    "kept": (same[chosen], 0.1),
}
off = []  # distance from the wanted share, in standard errors
for name, (values, wanted) in cases.items():
    found = float(values.double().mean())
    off.append(abs(found - wanted) / (wanted * (1 - wanted) / len(values)) ** 0.5)
    print(f"{name:8} {found:6.1%}")
teach.claim("all four within four standard errors", max(off) < 4)
teach.claim("no special token is a target", not (chosen & special).any())

# %% [markdown]
# ### Deeper: span corruption, T5's task
#
# T5 ([Raffel et al. 2020](https://arxiv.org/abs/1910.10683)) is a seq2seq model; it is pretrained by hiding whole
# *spans*. Each span leaves one
# **sentinel** behind, a special token, and the decoder writes after each sentinel what it stood for. Targets are short,
# only what was hidden: cheaper than writing the whole text again. 15 % of the tokens are hidden, in spans of 3 tokens
# on average; in the picture 35 %, in spans of 2.

# %%
from course_utils.data.collators import (
    SpanCorruptionCollator,
    add_sentinels,
    corrupt_spans,
    sample_spans,
)

words = tokenizer.tokenize(sentence)
generator = torch.Generator().manual_seed(3)
spans = sample_spans(len(words), generator, noise_density=0.35, mean_span_length=2.0)
shown, target = corrupt_spans(words, spans, ["<X>", "<Y>", "<Z>", "<W>"])
print(spans)
teach.show(figures.span_corruption(words, spans, shown, target))

# %% [markdown]
# How the spans are drawn: the numbers of hidden tokens and of spans are fixed by rounding, random are places and
# lengths. `_cut_at_random(n, k)` cuts `n` into `k` lengths; it is used for the spans and for the gaps between them.

# %%
teach.show_source(sample_spans)

# %% [markdown]
# The collator drops the special tokens, draws new spans at every call from its own seeded generator, and pads both
# sides. Sentinels are new tokens, so a model's embedding must grow with them
# (`model.resize_token_embeddings(len(tokenizer))`). We work on a copy of the tokenizer.

# %%
import copy

teach.show_source(SpanCorruptionCollator.__call__)
t5_tokenizer = copy.deepcopy(tokenizer)
sentinels = add_sentinels(t5_tokenizer, 20)
corrupt = SpanCorruptionCollator(t5_tokenizer, sentinels, seed=seed)
# The number of hidden tokens is rounded: for shorter texts the share would be far off.
long_rows = [{"input_ids": ids} for ids in documents[:100] if len(ids) >= 12]
labels = corrupt(long_rows)["labels"]
not_text = torch.tensor([-100, *sentinels, t5_tokenizer.sep_token_id])
hidden = int((~torch.isin(labels, not_text)).sum())
hidden_share = hidden / sum(len(row["input_ids"]) - 2 for row in long_rows)
print(f"hidden: {hidden_share:.0%} of the tokens")
teach.claim("between 10 and 20 % are hidden", 0.1 < hidden_share < 0.2)

# %% [markdown]
# #### Exercise 02.4 · Write span corruption
#
# Given token ids, spans (half open, in order) and sentinel ids, return the pair of lists `(inputs, targets)` as in the
# picture. Targets end with one more sentinel.


# %%
def corrupt_text(ids, spans, sentinels):
    # lists; spans are (start, stop) pairs -> (inputs, targets)
    return ...


# %%
teach.check("02.4", corrupt_text)

# %% [markdown]
# ### Deeper: stacking, for tensors that are no text
#
# Point clouds with a fixed number of points, images of one size, spectra need no padding: they are *stacked*, key by
# key. A padding collator would look for `input_ids` and fail. The course's `StackingCollator` refuses ragged input with
# a sentence that names the key.

# %%
from course_utils.data import load_point_clouds
from course_utils.data.collators import StackingCollator

clouds = load_point_clouds()["train"].with_format("torch")
stacked = StackingCollator()([clouds[i] for i in range(8)])
print({name: tuple(tensor.shape) for name, tensor in stacked.items()})
try:
    StackingCollator()([clouds[0], {"points": clouds[1]["points"][:50], "label": 0}])
except ValueError as error:
    print("ValueError:", error)
teach.claim("label is called labels now", "labels" in stacked)

# %% [markdown]
# ## 7 · Packing
#
# A **causal language model** (GPT, Qwen) predicts the next token from those before it: *causal* means that attention
# looks only back. Its labels are the input ids. The model shifts them by one place itself, so what it says at a
# position is compared with the label one place on:

# %%
teach.show(diagrams.label_shift(tokenizer.tokenize(sentence)[:7]))

# %% [markdown]
# Instead of grouping, put several documents into one row, until it is full. Every row has the same width. Three rules
# belong to it:
#
# 1. **Positions** start again at 0 with every document. (Our model's positions are *rotary*: attention sees distances
#    only and would not notice. Models with a learned vector for each place would; and transformers finds documents by
#    the zeros.)
# 2. **Labels**: each document's first token is -100. Else the last token of the document before it would have to
#    predict it.
# 3. **Attention** stays inside the document.

# %%
from course_utils.data.packing import PackedCollator, document_mask, pack_documents

toy = pack_documents([[11, 12, 13, 14], [21, 22], [31, 32, 33]], row_length=10)
for name, tensor in toy[0].items():
    print(f"{name:13s}", tensor.tolist())

# %% [markdown]
# `pack_documents` works *first fit*: each document goes into the first row that has room for it, among the last 64.
# None is cut (beyond section 1's 64 tokens).

# %%
packed = pack_documents(documents, 64, tokenizer.pad_token_id)
real = sum(int((row["document_ids"] >= 0).sum()) for row in packed)
share["packed"] = 1 - real / (64 * len(packed))
print(f"{len(documents)} texts in {len(packed)} rows, {share['packed']:.1%} padding")
teach.claim("packing loses no token", real == lengths.sum())
teach.claim("under a tenth is padding", share["packed"] < 0.1, when=is_local)

# %% [markdown]
# In attention each token asks with one vector, the **query**, and is found by another, its **key**. The mask says which
# query may look at which key. Orange lines separate three documents:

# %%
toy = pack_documents([[1] * 5, [1] * 9, [1] * 4], row_length=18)[0]
apart = (document_mask(toy["document_ids"][None])[0, 0] == 0).numpy()
masks = {"one long text": np.tri(18), "documents kept apart": apart}
teach.show(figures.attention_masks(masks, [5, 14]))

# %% [markdown]
# **The proof: packed loss = unpacked loss.** Take 40 documents one at a time, without padding, and average the loss
# over all targets. Then pack them. Random weights show a mistake in rules 2 and 3 (in rule 1 not: rotary positions).
# `PackedCollator` stacks rows and passes the mask: 0 where a token may look, a very negative number elsewhere.

# %%
from course_utils.models import load_causal_lm

torch.manual_seed(seed)
causal = load_causal_lm(**sizes).eval()
total = targets = 0
with torch.no_grad():
    for ids in documents[:40]:
        ids = torch.tensor([ids])
        count = ids.shape[1] - 1
        total += causal(input_ids=ids, labels=ids).loss.double() * count
        targets += count
unpacked_loss = float(total / targets)

# %%
few_packed = pack_documents(documents[:40], row_length=64)


def packed_difference(explicit_mask=True, **changes):
    batch = PackedCollator(explicit_mask)(few_packed) | changes
    with torch.no_grad():
        return abs(float(causal(**batch).loss) - unpacked_loss)


whole = PackedCollator()(few_packed)
starts = whole["position_ids"] == 0
first_too = torch.where(starts, whole["input_ids"], whole["labels"])
one_text = torch.full((64, 64), -1e9).triu(1).expand(len(few_packed), 1, 64, 64)
no_rule_2 = packed_difference(labels=first_too)
no_rule_3 = packed_difference(attention_mask=one_text)
teach.claim("with all rules within 1e-5", packed_difference() <= 1e-5)
teach.claim("first tokens as targets: off by over 1e-4", no_rule_2 > 1e-4)
teach.claim("documents see each other: off by over 1e-4", no_rule_3 > 1e-4)

# %% [markdown]
# ### Exercise 02.5 · Repair a packing function
#
# This function packs documents, which fit, into one row; `allowed[query, key]` says who may look at whom. Write it anew
# without its four faults. Positions and queries of padding are free.


# %%
def pack_faulty(documents, row_length, pad_token_id):
    ids, labels, positions, owner = [], [], [], []
    for number, document in enumerate(documents):
        ids += document
        labels += document[1:] + [-100]
        positions += range(len(positions), len(positions) + len(document))
        owner += [number] * len(document)
    rest = row_length - len(ids)
    ids += [pad_token_id] * rest
    labels += [pad_token_id] * rest
    positions += range(rest)
    owner += [-1] * rest
    owner = torch.tensor(owner)
    same = owner[:, None] == owner[None, :]
    past = torch.ones(row_length, row_length).tril().bool()
    parts = {"input_ids": ids, "labels": labels, "position_ids": positions}
    tensors = {name: torch.tensor(part) for name, part in parts.items()}
    return tensors | {"allowed": same | past}


# %%
def pack_row(documents, row_length, pad_token_id):
    # the repaired function
    return ...


# %%
teach.check("02.5", pack_row)

# %% [markdown]
# ## 8 · Four strategies, measured
#
# The same sentences, the same causal model, real training steps (forward, backward, optimizer). A token is *useful* if
# it is a target. In `race` the four take turns: a busy moment hits all; the median of six steps counts. The
# positions of just these batches predict the gain (red). A step also has a part that does not grow with the batch,
# above all the optimizer; a tiny batch measures it (black).

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_02.strategies import race

torch.set_num_threads(1)  # from here on: other programs disturb one thread less
torch.manual_seed(seed)
speed = race(ways, load_causal_lm(**sizes).train(), rounds=6)
teach.show(figures.padding_and_speed(ways.shares(), speed))
slow = max(speed["pad to 64"].gain, speed["dynamic"].gain)
fast = min(speed["length-grouped"].gain, speed["packed"].gain)
teach.claim("grouping and packing: over 1.5 times dynamic", fast > 1.5 * slow, when=big)

# %% [markdown]
# Why blue and black differ was not measured, and it varies: measure on your machine. Grouped and packed pad alike;
# packed has a quarter of the rows, computes the attention scores of all 64 x 64 pairs of a row and throws most away. On
# a GPU there is code that skips them (see *Deeper*; not measured here).
#
# | strategy | use it when | mind |
# |---|---|---|
# | pad to max | shapes must be static (some accelerators, compiled graphs) | the waste |
# | dynamic | small data, quick experiments | one long row widens the batch |
# | length-grouped | one answer a row: classification, seq2seq | less random batches (effect not measured) |
# | packed | a target per token: language modelling | mask, positions, labels |

# %% [markdown]
# ## 9 · What pretraining buys
#
# Labels are expensive, text is not. Does an encoder that has guessed hidden words know something about the ten
# libraries? A vocabulary of 3,000, one layer, width 48, 40,000 paragraphs and the training sentences *without labels*,
# the sampler of section 5 and the collator of section 6 (30 % targets: more to learn from in a short run).

# %%
import copy

from course_utils.data import load_language_modelling
from course_utils.models import load_masked_lm, train_tokenizer

paragraphs = load_language_modelling(source)["train"]
if has_files:  # sentences are split by file (section 10): what was read is not new
    held_out = set(data["test"]["file"]) | set(data["validation"]["file"])
    new = [file not in held_out for file in paragraphs["file"]]
    paragraphs = paragraphs.select(np.flatnonzero(new))
corpus = list(paragraphs["text"][:40_000]) + texts
common = len(set(corpus) & set(data["test"]["text"]))
teach.claim("no test sentence is among them", common == 0, when=is_local)

# %%
small_tokenizer = train_tokenizer(corpus, vocab_size=3000)
encoded = small_tokenizer(corpus, truncation=True, max_length=32)["input_ids"]
small = dict(vocab_size=3000, num_hidden_layers=1, hidden_size=48)
small |= dict(intermediate_size=96, num_attention_heads=2, embedding_dropout=0.0)
torch.manual_seed(seed)
masked_lm = load_masked_lm(**small)
untrained = copy.deepcopy(masked_lm)  # to compare with later
print(f"{len(encoded):,} texts, {masked_lm.num_parameters():,} parameters")

# %% [markdown]
# Only masked positions have a target, so the scores over the vocabulary, a small model's costliest product, are
# computed only there:


# %%
def masked_loss(model, batch):
    chosen = batch["labels"] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = model.model(**inputs).last_hidden_state  # (B, T, H)
    logits = model.decoder(model.head(hidden[chosen]))  # (targets, vocabulary)
    return torch.nn.functional.cross_entropy(logits, batch["labels"][chosen])


# %%
from torch.utils.data import DataLoader

from course_utils.training.schedules import make_scheduler

rows = [{"input_ids": ids} for ids in encoded]  # 64 a batch, whatever batch_size is
mlm = DataCollatorForLanguageModeling(small_tokenizer, mlm_probability=0.3, seed=seed)
sampler = LengthGroupedBatchSampler([len(ids) for ids in encoded], 64, seed=seed)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=mlm)
optimizer = torch.optim.AdamW(masked_lm.parameters(), lr=5e-3, weight_decay=0.01)
scheduler = make_scheduler(optimizer, "linear", max(1, max_steps // 10), max_steps)


def endless():
    while True:
        yield from loader
        sampler.set_epoch(sampler.epoch + 1)


# %%
masked_lm.train()
losses = []
for _, batch in zip(range(max_steps), endless(), strict=False):
    loss = masked_loss(masked_lm, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(masked_lm.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    losses.append(loss.item())

# %% tags=["nbval-ignore-output"]
counts = np.bincount(np.concatenate(encoded), minlength=3000)[5:]  # 0 to 4: special
frequency = np.maximum(counts, 1) / counts.sum()
by_frequency = float(-(frequency * np.log(frequency)).sum())
teach.show(figures.masked_loss(losses, float(np.log(3000)), by_frequency))
full_run = max_steps >= 1000 and is_local
context = np.mean(losses[-25:]) < by_frequency - 0.8  # copying kept targets: about 0.5
teach.claim("over 0.8 below guessing by frequency", context, when=full_run)

# %% [markdown]
# The loss is in *nats*: logarithms are natural. Red is what the words' frequencies alone would reach. **See it work**
# on this course's own sentences, which it has not read. Its favourites are frequent words:

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_02 import pretraining

asked = [
    ("Compare a checkpoint's files with its manifest.", "with"),
    ("Width of all queries of a token.", "of"),
    ("Replace each span by one sentinel.", "by"),
    ("The first sentence of a docstring on one line, markup removed.", "of"),
]
chances = []
for text, word in asked:
    before = pretraining.guess(untrained, small_tokenizer, text, word)[1]
    best, after = pretraining.guess(masked_lm, small_tokenizer, text, word)
    chances.append((before, after))
    print(text.replace(word, "____", 1))
    print(f"    {' | '.join(best)}; probability of {word}: {before:.1%} -> {after:.1%}")
before, after = np.mean(chances, axis=0)
teach.claim("on average likelier", after > before, when=max_steps >= 1000)

# %% [markdown]
# **A linear probe.** How much does it know about the ten libraries? Freeze the encoder, average its vectors over each
# sentence, and train only a logistic regression on them, with 2,000 labels. The opponents: the same encoder untrained
# (a random mixture of the words, and words tell a lot), and word weights, the TF-IDF model of lesson
# 01, with the same labels.

# %% tags=["nbval-ignore-output"]
from course_utils.training.intervals import bootstrap

right = {
    "untrained": pretraining.probe(untrained.model, small_tokenizer, data),
    "pretrained": pretraining.probe(masked_lm.model, small_tokenizer, data),
    "word weights": pretraining.word_weights(data),
}
print({name: f"{values.mean():.3f}" for name, values in right.items()})
gain = right["pretrained"].astype(float) - right["untrained"]
interval = bootstrap(np.mean, gain)
print("gain, with its 95 % interval over the test rows:", interval)
teach.claim("pretraining improves the probe", interval.low > 0, when=full_run)
ahead = right["word weights"].mean() > right["pretrained"].mean()
teach.claim("word weights stay ahead", ahead, when=full_run)

# %% [markdown]
# (The interval draws the test rows anew, for one pretraining and both models on the same rows; lesson 04.) And if the
# whole encoder is trained further, **fine-tuned**? That takes many minutes, so it was measured beforehand
# (`bench/bench_pretraining.py`), with lesson 01's larger encoder and three seeds, each with its own pretraining.

# %%
report = pretraining.recorded()
gains = pretraining.paired(report)
teach.show(figures.paired_gains(gains))
probe, few_labels, many_labels = gains.values()
sure = min(probe[0]) > 0 and probe[1] > probe[2]
teach.claim("the probe gains: every seed, and beyond its interval", sure)
unsure = all(abs(mean) < half for _, mean, half in (few_labels, many_labels))
teach.claim("in fine-tuning no gain is shown", unsure)

# %% [markdown]
# Squares are means, bars two standard errors from the test rows only: seeds scatter further. So this pretraining
# improved frozen features; in fine-tuning, three seeds and 2,500 rows cannot tell its gain from none. Why do public
# checkpoints help, then? They have read incomparably more, and longer texts:

# %%
here = report["pretraining"]["steps"] * report["pretraining"]["batch_size"]
bert = 1_000_000 * 256  # steps, sequences a step (Devlin et al. 2019, appendix A.2)
print(f"texts read in pretraining: {here:,} in the benchmark, {bert:,} by BERT")

# %% [markdown]
# Lesson 01 with `source="hub"` fine-tunes such a checkpoint, DistilBERT; not measured here, without a network.

# %% [markdown]
# ### Deeper: the loss at the targets only is the model's own loss

# %%
batch = mlm(rows[:64])
masked_lm.eval()
with torch.no_grad():
    apart = abs(masked_lm(**batch).loss - masked_loss(masked_lm, batch))
teach.claim("masked_loss is the model's own within 1e-5", apart <= 1e-5)

# %% [markdown]
# ### Deeper: why the test files are left out of the text
#
# The running text comes from the same files as the sentences and has a split of its own. With all files, hundreds of
# test sentences stand in it word for word.

# %%
if has_files:
    everything_read = set(load_language_modelling(source)["train"]["text"][:40_000])
    common = len(everything_read & set(data["test"]["text"]))
    print("test sentences among the first 40,000 paragraphs:", common)
    teach.claim("over 100 test sentences", common > 100)

# %% [markdown]
# ## 10 · What goes wrong
#
# Four mistakes without an error, planted and caught.
#
# ### Padding that is a target
#
# `labels = input_ids` is right until the batch has padding. Then the model also learns to write `[PAD]` after `[PAD]`,
# which is easy:

# %%
from course_utils.training.paired import paired_interval


def train_padded(forget, seed):
    torch.manual_seed(seed)
    model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(20):
        first = 8 * (step + 20 * seed)
        batch = ways.padded(order[first : first + 8], 64)  # -100 on padding
        if forget:
            batch["labels"] = batch["input_ids"].clone()  # the bug
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        held_out = ways.padded(order[-128:])
        return loss.item(), float(model.eval()(**held_out).loss)


# %% tags=["nbval-ignore-output"]
runs = [[train_padded(bug, seed) for seed in range(5)] for bug in (True, False)]
change = {}
for place, name in enumerate(("reported", "real tokens of other text")):
    bug, correct = np.array(runs)[..., place].tolist()  # a number for each seed
    change[name] = paired_interval(bug, correct)  # mean difference, seed by seed
    print(f"{name}: {np.mean(correct):.2f}, with the bug {np.mean(bug):.2f}")
    print("    difference with its 95 % interval over the seeds:", change[name])
reported, real = change.values()
teach.claim("it reports over 1 nat less", reported.high < -1)
teach.claim("and is worse: the interval is above 0", real.low > 0)

# %% [markdown]
# Trained longer, the harm may fade; the reported number stays meaningless.
#
# A quieter form: many tokenizers of language models have no padding token, so people use the end token, and mask labels
# by `input_ids == pad_token_id`. That removes every real end: when to stop is not learned. The library's own collator
# does so:

# %%
end_as_padding = copy.deepcopy(tokenizer)
end_as_padding.pad_token = end_as_padding.sep_token
plain = DataCollatorForLanguageModeling(end_as_padding, mlm=False)
no_end = plain([{"input_ids": ids} for ids in documents[:4]])
ends = no_end["attention_mask"].sum(1) - 1  # place of the last real token
kept = int((no_end["labels"][torch.arange(4), ends] != -100).sum())
teach.claim("of 4 rows none has its end as a target", kept == 0)

# %% [markdown]
# The check: padding is no target, and in plain language modelling (not packed) every real token is one.


# %%
def label_faults(batch):
    real, target = batch["attention_mask"] == 1, batch["labels"] != -100
    return bool(target[~real].any()), bool((~target[real]).any())


good = ways.padded(order[:32])
padded_too = good | {"labels": good["input_ids"]}
teach.claim("right labels pass", label_faults(good) == (False, False))
teach.claim("padding as a target is caught", label_faults(padded_too) == (True, False))
teach.claim("missing ends are caught", label_faults(no_end) == (False, True))

# %% [markdown]
# ### Packed documents that see each other
#
# Without a mask, transformers recognises packed documents where positions fall back to 0, but only if it builds no
# **key-value cache** (keys and values of past tokens, kept for generating text). Many configurations say
# `use_cache=True`. Then nothing is isolated and nothing is said. The check needs no reference: change the first
# document of each row; the logits of the others must not move.


# %%
def leak(changed, model, batch):
    """Largest change of a logit outside `changed` (B, L) if what is inside changes."""
    other = batch | {"input_ids": torch.where(changed, 7, batch["input_ids"])}
    with torch.no_grad():
        moved = (model(**batch).logits - model(**other).logits).abs().amax(-1)
    return float(moved[~changed].max())


document_ids = torch.stack([row["document_ids"] for row in few_packed])
first = document_ids == 0
found_by_positions = PackedCollator(explicit_mask=False)(few_packed)
with_mask = leak(first, causal, whole)
without_cache = leak(first, causal, found_by_positions | {"use_cache": False})
with_cache = leak(first, causal, found_by_positions | {"use_cache": True})
teach.claim("explicit mask: nothing moves", with_mask <= 1e-5)
teach.claim("positions, use_cache=False: nothing moves", without_cache <= 1e-5)
teach.claim("positions, use_cache=True: documents leak", with_cache > 1e-3)

# %% [markdown]
# Pass the mask explicitly, as `PackedCollator` does.
#
# ### A split by row
#
# The test score should hold for *new* data. Sentences of one file resemble each other. So `load_classification` splits
# by *file*. What would a split by row have reported? Three draws of both splits with equally many test rows, two models
# on TF-IDF features; the *nearest neighbour* only copies the label of the most similar training sentence, *without
# copies* where that similarity is at most 0.9.

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_02 import leaks

if has_files:
    scores = leaks.compare(data)
    for name, splits in scores.items():
        interval = paired_interval(*splits.values())  # over the three draws
        print(f"{name:18} row minus file {interval}")
        teach.claim("more by row, 95 % interval above 0", interval.low > 0)

# %% tags=["nbval-ignore-output"]
if has_files:
    teach.show(figures.leakage({name: scores[name] for name in list(scores)[:2]}))
    extra = [np.subtract(*splits.values()).mean() for splits in scores.values()]
    teach.claim("copying gains more than the linear model", extra[0] > extra[1])

# %% [markdown]
# On a new file that gain is gone. Copies explain hardly any of it. The rule: **split by the unit that will be new in
# use**: files here, users in recommendation, later dates in what drifts. The check is a set intersection:


# %%
def shared(splits, column):
    values = [set(rows[column]) for rows in splits.values()]
    return sum(map(len, values)) - len(set().union(*values))


if has_files:
    dealt_out = data["train"].train_test_split(test_size=0.15, seed=seed)
    none, many = shared(data, "file"), shared(dealt_out, "file")
    teach.claim("our splits share no file", none == 0)
    teach.claim("rows dealt out: over 100 files shared", many > 100)

# %% [markdown]
# | mistake | what you see | check |
# |---|---|---|
# | padding is a target | a wonderful loss | labels against the attention mask |
# | real ends are no target | ends are not learned | the same, other side |
# | documents see each other | another loss | change one document |
# | split by row | a test score too high | no shared file |

# %% [markdown]
# ### Deeper: seven ways to isolate documents, three of which do not
#
# A mask of ones, which a padding collator adds, switches the recognition off too. `Trainer` sets `use_cache` to False
# itself; hand-written loops do not. A *boolean* block mask is right for *sdpa*, PyTorch's fused attention, but *eager*,
# the plain implementation of transformers, adds it to the scores as 0 and 1: it isolates nothing, and since a mask of
# four dimensions replaces the causal one, the future becomes visible.

# %%
eager = copy.deepcopy(causal)
eager.set_attn_implementation("eager")
boolean = document_mask(document_ids) == 0
ones = torch.ones(len(few_packed), 64, dtype=torch.int64)
bare = found_by_positions | {"use_cache": False}
tries = {
    "explicit mask": (causal, whole),
    "explicit mask, eager": (eager, whole),
    "positions, no cache": (causal, bare),
    "boolean mask, sdpa": (causal, bare | {"attention_mask": boolean}),
    "positions, use_cache=True": (causal, bare | {"use_cache": True}),
    "positions, mask of ones": (causal, bare | {"attention_mask": ones}),
    "boolean mask, eager": (eager, bare | {"attention_mask": boolean}),
}
late = (torch.arange(64) >= 40).expand(len(few_packed), 64)
document_leaks = {name: leak(first, *way) for name, way in tries.items()}
future_leaks = {name: leak(late, *way) for name, way in tries.items()}
for name in tries:
    apart = "isolated" if document_leaks[name] <= 1e-5 else "LEAK"
    future = "hidden" if future_leaks[name] <= 1e-5 else "VISIBLE"
    print(f"{name:27s} documents {apart:9s} future {future}")
safe = [name for name, amount in document_leaks.items() if amount <= 1e-5]
teach.claim("the first four isolate, the others do not", safe == list(tries)[:4])
seen = [name for name, amount in future_leaks.items() if amount > 1e-5]
teach.claim("only one shows the future", seen == ["boolean mask, eager"])

# %% [markdown]
# With the explicit mask, running positions change nothing here: rotary positions see distances only.

# %%
running = torch.arange(64).expand(len(few_packed), 64)
moved = packed_difference(position_ids=running)
teach.claim("positions 0 to 63 with the mask: same loss within 1e-5", moved <= 1e-5)

# %% [markdown]
# ### Deeper: packing for FlashAttention
#
# FlashAttention takes no mask but the places where documents begin, `cu_seq_lens_q` and `cu_seq_lens_k`.
# `DataCollatorWithFlattening` puts the whole batch into one row and makes these places on request. The collator runs
# anywhere; FlashAttention itself was not run here.

# %%
from transformers import DataCollatorWithFlattening

flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
flat = flatten([{"input_ids": ids} for ids in documents[:3]])
edges = [0, *np.cumsum([len(ids) for ids in documents[:3]]).tolist()]
print("documents begin and end at", flat["cu_seq_lens_q"].tolist())
same = flat["cu_seq_lens_q"].tolist() == edges
teach.claim("that is the running sum of lengths", same)

# %% [markdown]
# ### Deeper: old spellings that you may see
#
# | elsewhere | today |
# |---|---|
# | `TrainingArguments(group_by_length=True)` | `train_sampling_strategy="group_by_length"` |
# | `tokenizer(..., pad_to_max_length=True)` | `padding="max_length"` |
# | `Trainer(tokenizer=...)` | `processing_class=...` |
# | `with tokenizer.as_target_tokenizer():` | `tokenizer(text_target=...)` |
# | `load_dataset("my_script.py")` | parquet, CSV, JSON or text files: loading scripts are gone |

# %% [markdown]
# ## Recap
#
# - Tokenise once, with `map`; count what truncation cuts.
# - Masked, padding changes nothing but costs time: a batch is as wide as its longest row. Grouping and packing remove
#   nearly all of it.
# - Collators run at every step: random masks, spans and widths belong there. -100 is what the loss skips; check it by
#   the attention mask.
# - Packing needs positions, labels *and* a mask. Split by the unit that will be new in use.

# %% [markdown]
# ## Quiz
#
# **1.** Why does `DataCollatorForLanguageModeling` mask anew at every step, instead of once with `map`?
#
# <details><summary>Answer</summary>
#
# Each epoch then hides other tokens of the same text. Masked once, the same holes would come back in every epoch.
#
# </details>
#
# **2.** With the same weights, packed documents give a slightly *lower* mean loss than unpacked ones. Good news?
#
# <details><summary>Answer</summary>
#
# No. Over all targets it must be equal. Either documents see each other, or the targets differ.
#
# </details>
#
# **3.** You have five sentences from each of 2,000 patients and want to predict a diagnosis. How do you split?
#
# <details><summary>Answer</summary>
#
# By patient: all five sentences of one go into one split, since in use the patients are new.
#
# </details>
#
# **Next:** [lesson 03](03_trainer.ipynb) hands loop and collators to `Trainer`, and looks inside while it works.
