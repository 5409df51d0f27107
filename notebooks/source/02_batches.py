# %% [markdown]
# # 02 · Batches: tokens, collators, padding
#
# A model trains on rectangles of numbers. Texts are neither rectangles nor numbers. What stands between the two, the
# tokenizer, the collator and the sampler, decides how much of your hardware works on padding, what the loss is computed
# on, and whether the test score means anything. None of it raises an error when it is wrong.
#
# **You will be able to**
#
# - tokenise a data set once, in batches, and read it back memory-mapped or streamed;
# - choose between padding to a maximum, dynamic padding, length grouping and packing, and say what each costs;
# - use and write collators: for padding, masked language modelling, sequence-to-sequence labels, span corruption, and
#   tensors that are no text at all;
# - pack documents into one row so that the loss is exactly the unpacked one;
# - split data so that the test score is a promise and not a memory test;
# - say what masked-language-model pretraining buys, and measure it.
#
# **Minutes:** {minutes} · **Prerequisites:** lesson 01 (the loop), tensors in PyTorch.

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets
max_steps = 1200  # optimizer steps of the pretraining run in section 9
batch_size = 32  # sentences per batch
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed, batch_size=batch_size)

# %% [markdown]
# ## 1 · From text to token ids
#
# The data is that of lesson 01: sentences from the documentation of Python libraries, each labelled with its library.

# %%
from course_utils.data import load_classification
from course_utils.models import load_tokenizer

data = load_classification(source)
tokenizer = load_tokenizer(source)
print({split: len(rows) for split, rows in data.items()}, "| vocabulary:", len(tokenizer))

# %% [markdown]
# A tokenizer cuts text into pieces from a fixed vocabulary and numbers them. Ours is a *WordPiece* tokenizer: frequent
# words are one token, rare words are built from pieces (`##` continues a word). So the vocabulary stays small and still
# covers nearly everything. A word with a character that the vocabulary lacks becomes `[UNK]`, for "unknown". `[CLS]`
# and `[SEP]` mark the beginning and the end.
#
# The example sentence is a docstring of this course's own code.

# %%
sentence = "Stack label rows of different lengths, filling up on the right."
encoded = tokenizer(sentence)
print(tokenizer.convert_ids_to_tokens(encoded["input_ids"]))
print(list(encoded), "| back to text:", tokenizer.decode(encoded["input_ids"], skip_special_tokens=True))
print("a rare word:", tokenizer.tokenize("collators"), "| a character that is missing:", tokenizer.tokenize("\u2603"))
if source == "local":
    assert tokenizer.tokenize("collators") == ["coll", "##ators"]
    assert tokenizer.tokenize("\u2603") == [tokenizer.unk_token]  # a snowman

# %% [markdown]
# *Fast* tokenizers are written in Rust and know where each token came from. That matters whenever labels are given as
# character positions (named entities, answers inside a text): `offset_mapping` leads from one to the other.

# %%
with_offsets = tokenizer(sentence, return_offsets_mapping=True, add_special_tokens=False)
pieces = [sentence[start:stop] for start, stop in with_offsets["offset_mapping"]]
print("fast:", tokenizer.is_fast, "|", pieces[:6])
assert "".join(pieces) == sentence.replace(" ", "")

# %% [markdown]
# ### Truncation
#
# A model has a longest input it can take; `truncation=True` cuts there. Truncation is silent, so measure it before you
# accept it: how many texts lose something, and how many tokens? Note that the special tokens survive: the cut is made
# in the text, not behind `[SEP]`.

# %%
import numpy as np

texts = list(data["train"]["text"])
full = np.array([len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]])
for limit in (16, 32, 64):
    lost = np.maximum(full - limit, 0).sum() / full.sum()
    print(f"limit {limit:2d}: {np.mean(full > limit):6.1%} of the texts are cut, {lost:6.2%} of the tokens are lost")

# %%
short = tokenizer(sentence, truncation=True, max_length=8)["input_ids"]
print(len(short), tokenizer.convert_ids_to_tokens(short)[-2:])
assert short[-1] == tokenizer.sep_token_id

# %% [markdown]
# ## 2 · Tokenise once, with `map`
#
# The naive place for the tokenizer is the data set's `__getitem__`: a text comes in, ids go out. It works, and it does
# the same work again in every epoch, one text at a time, in the process that should be feeding the model.


# %%
class NaiveDataset:
    def __init__(self, rows):
        self.texts, self.labels = list(rows["text"]), list(rows["label"])

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return tokenizer(self.texts[i], truncation=True, max_length=64) | {"label": self.labels[i]}


# %% [markdown]
# `Dataset.map(batched=True)` hands the tokenizer a thousand texts at once and stores the result as an Arrow table.
# Every epoch after that only reads. (On a real run the table is also kept on disk and found again by a fingerprint of
# the function: editing the function, or anything it closes over, makes a new one.)


# %%
def tokenize(rows):
    return tokenizer(rows["text"], truncation=True, max_length=64)


columns = [name for name in data["train"].column_names if name != "label"]
tokenized = data.map(tokenize, batched=True, remove_columns=columns, keep_in_memory=True)
print(tokenized["train"].column_names, len(tokenized["train"]))

# %% [markdown]
# Both give the same numbers. What do three epochs over 3,000 rows cost? Both are read in the same way, by a
# `DataLoader` in batches of 32. What `map` gains once is paid back with every epoch, so the two are timed apart. The
# times are those of this machine and moment; that `map` and three readings are faster together is asserted.

# %% tags=["nbval-ignore-output"]
from time import perf_counter

from torch.utils.data import DataLoader


def read(rows):
    return [row for batch in DataLoader(rows, batch_size=32, collate_fn=list) for row in batch]


small = data["train"].select(range(3000))
begin = perf_counter()
naive_rows = NaiveDataset(small)
naive_lists = [read(naive_rows) for _ in range(3)][-1]
naive_time = perf_counter() - begin

begin = perf_counter()
mapped = small.map(tokenize, batched=True, remove_columns=columns, keep_in_memory=True, load_from_cache_file=False)
map_time = perf_counter() - begin
map_lists = [read(mapped) for _ in range(3)][-1]
total_time = perf_counter() - begin

assert [row["input_ids"] for row in naive_lists] == [row["input_ids"] for row in map_lists]
assert total_time < naive_time
print(f"in __getitem__: {naive_time / 3:.2f} s an epoch")
print(f"with map:       {(total_time - map_time) / 3:.2f} s an epoch, after {map_time:.2f} s once")
print(f"three epochs: {naive_time / total_time:.1f} times as fast on this machine")

# %% [markdown]
# ### Where the rows live: memory mapping
#
# An Arrow table on disk is not read into memory. The file is *mapped*: the operating system loads the pages that are
# touched, and may drop them again. A data set larger than the memory works, and eight data-loading processes share one
# copy. Arrow counts the bytes it allocated itself, so we can check: opening the corpus allocates next to nothing.

# %%
import tempfile
from pathlib import Path

import pyarrow
from datasets import load_from_disk

with tempfile.TemporaryDirectory() as folder:
    data["train"].save_to_disk(folder)
    before = pyarrow.total_allocated_bytes()
    on_disk = load_from_disk(folder)
    allocated = pyarrow.total_allocated_bytes() - before
    size = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
    in_memory = load_from_disk(folder, keep_in_memory=True)
    copied = pyarrow.total_allocated_bytes() - before - allocated
    print("mapped, not read:", allocated < 0.05 * size, "| with keep_in_memory=True:", copied > 0.5 * size)
    assert allocated < 0.05 * size < copied
    del on_disk, in_memory

# %% [markdown]
# ### Streaming
#
# When the data does not fit on the disk either, stream it: an `IterableDataset` yields rows as they arrive and applies
# `map` lazily. (From the hub: `load_dataset(..., streaming=True)`.) The price: no length, no `rows[i]`, and a shuffle
# that, within one file, only mixes what is in a buffer. With a buffer of 100 the first row can only be one of the first
# 100: if the file is sorted by class, your batches are too.

# %%
stream = data["train"].add_column("place", list(range(len(data["train"])))).to_iterable_dataset()
stream = stream.map(tokenize, batched=True, remove_columns=columns)
shuffled = stream.shuffle(seed=seed, buffer_size=100)
places = [row["place"] for row in shuffled.take(1000)]
ahead = max(place - position for position, place in enumerate(places))
print("furthest a row has jumped ahead:", ahead, "| buffer: 100")
assert sorted(places) != places and ahead <= 100

# %% [markdown]
# Large data sets usually come as many files, called *shards*. Then `shuffle` also draws the order of the shards. That
# helps against a sorted data set, but each shard is still read through the small buffer.

# %%
numbered = data["train"].select_columns("label").add_column("place", list(range(len(data["train"]))))
shards = numbered.to_iterable_dataset(num_shards=8)
starts = [next(iter(shards.shuffle(seed=s, buffer_size=100)))["place"] * 8 // len(numbered) for s in range(6)]
print("8 shards, six seeds: the first row comes from shard", starts)
assert len(set(starts)) > 1

# %% [markdown]
# A stream can still be resumed: `state_dict()` remembers how far it was read. A shuffle buffer is not part of that
# state (its content is refilled), so an exact resume needs a stream shuffled beforehand.

# %%
iterator = iter(stream)
seen = [next(iterator)["place"] for _ in range(5)]
state = stream.state_dict()
expected = [next(iterator)["place"] for _ in range(3)]
stream.load_state_dict(state)
iterator = iter(stream)
resumed = [next(iterator)["place"] for _ in range(3)]
print(seen, "then", resumed)
assert resumed == expected

# %% [markdown]
# ## 3 · Padding
#
# A batch is one tensor, so all rows must have one length. Short rows are filled with `[PAD]`, and the `attention_mask`
# says where: 1 for text, 0 for filling. By hand:

# %%
import torch


def pad_by_hand(rows, width):
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        attention_mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


# %% [markdown]
# How wide? *Pad to max* uses one width for the whole data set. *Dynamic padding* uses the longest row of each batch.
# `DataCollatorWithPadding` does the latter (and renames `label` to `labels`, the name models and `Trainer` look for).

# %%
from transformers import DataCollatorWithPadding

rows = tokenized["train"].select(range(batch_size)).to_list()
collate = DataCollatorWithPadding(tokenizer)
batch = collate(rows)
by_hand = pad_by_hand(rows, max(len(row["input_ids"]) for row in rows))
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
assert all(torch.equal(batch[name], by_hand[name]) for name in by_hand)

# %% [markdown]
# Does padding change what the model computes? It must not. The mask keeps attention away from padding, so a row's
# result is the same in a narrow and in a wide batch. Leave the mask out and it is not: the model then takes `[PAD]`
# for a word.

# %%
from course_utils.models import load_classifier

model = load_classifier(num_labels=10, vocab_size=len(tokenizer), num_hidden_layers=2).eval()  # local in any case
wide = pad_by_hand(rows, 64)
with torch.no_grad():
    narrow_logits = model(batch["input_ids"], batch["attention_mask"]).logits
    wide_logits = model(wide["input_ids"], wide["attention_mask"]).logits
    unmasked_logits = model(wide["input_ids"]).logits
print("with mask, difference <= 1e-5:", bool((narrow_logits - wide_logits).abs().max() <= 1e-5))
print("without mask, difference > 1e-3:", bool((narrow_logits - unmasked_logits).abs().max() > 1e-3))
assert (narrow_logits - wide_logits).abs().max() <= 1e-5 < 1e-3 < (narrow_logits - unmasked_logits).abs().max()

# %% [markdown]
# So padding is harmless, and it is pure waste: the model multiplies matrices for every position. How much waste? One
# number per strategy: the share of all positions that hold padding.

# %%
lengths = np.array([len(ids) for ids in tokenized["train"]["input_ids"]])
order = np.random.default_rng(seed).permutation(len(lengths))
random_batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def padding_share(batches, width=None):
    positions = sum(len(batch) * (width or lengths[batch].max()) for batch in batches)
    return 1 - sum(lengths[batch].sum() for batch in batches) / positions


share = {"pad to 64": padding_share(random_batches, 64), "dynamic": padding_share(random_batches)}
print({name: f"{value:.0%}" for name, value in share.items()}, "| mean length", round(lengths.mean(), 1))

# %% [markdown]
# Dynamic padding helps less than one would hope. A batch is as wide as its longest row, and among 32 random rows there
# nearly always is a long one.

# %% [markdown]
# ## 4 · Length grouping
#
# So do not take 32 *random* rows. Take rows of similar length. Sorting the whole data set would remove nearly all
# padding, and nearly all randomness too: the same rows would meet in every epoch, and the model would see all short
# texts, then all long ones. The compromise is to sort inside *megabatches*: shuffle everything, cut into pieces of 50
# batches, sort each piece, cut it into batches, and shuffle the batches. The grouping itself is exercise 02.3. Below is
# what stands around it: a batch sampler that a `DataLoader` accepts, with seed, epoch and a place to resume from.

# %%
from course_utils.data.sampling import LengthGroupedBatchSampler

teach.show_source(LengthGroupedBatchSampler)

# %% [markdown]
# How large should a megabatch be? Measure: padding falls fast, then there is little left to gain.

# %%
for megabatch in (1, 2, 5, 20, 50):
    batches = list(LengthGroupedBatchSampler(lengths, batch_size, seed=seed, megabatch=megabatch))
    print(f"megabatch {megabatch:2d}: {padding_share(batches):5.1%} padding")
sampler = LengthGroupedBatchSampler(lengths, batch_size, seed=seed)
share["length-grouped"] = padding_share(list(sampler))
assert share["length-grouped"] < 0.25 * share["dynamic"]
assert share["dynamic"] < share["pad to 64"]

# %% [markdown]
# Three properties a sampler must keep, because the loop relies on them: every row exactly once an epoch; another order
# in every epoch; and the order a function of seed and epoch alone, so that a resumed run (lesson 01) finds its place.

# %%
batches = list(sampler)
sampler.set_epoch(1)
second = list(sampler)
assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
assert batches != second and lengths[batches[0]].max() == lengths.max()

iterator = iter(sampler)
head = [next(iterator) for _ in range(10)]
resumed = LengthGroupedBatchSampler(lengths, batch_size)
resumed.load_state_dict(sampler.state_dict())
rest = list(resumed)
print("resumed = uninterrupted:", head + rest == second)
assert head + rest == second
assert resumed.epoch == 1 and len(rest) == len(second) - 10

# %% [markdown]
# The longest batch comes first on purpose: if the memory is too small, the run should die in its first second.
#
# > **You may see** `TrainingArguments(group_by_length=True)` in tutorials. It is now
# > `train_sampling_strategy="group_by_length"`. And `tokenizer(..., pad_to_max_length=True)` has long been
# > `padding="max_length"`.

# %% [markdown]
# ## 5 · Collators that also make labels
#
# A collator is any function from a list of rows to a batch. It is called at every step, so it is the place for
# everything that should be *different* at every step: padding widths, random masks, augmentation.
#
# ### Sequence to sequence: labels are padded too
#
# Labels that are sequences need padding as well, but not with `[PAD]`: the loss would count it. The filling for labels
# is -100, the index that `torch.nn.functional.cross_entropy` ignores. `DataCollatorForSeq2Seq` pads inputs with one and
# labels with the other. `pad_to_multiple_of=8` rounds widths up, because tensor cores work in tiles of 8; it costs a
# little padding and buys faster matrix products on a GPU.

# %%
from transformers import DataCollatorForSeq2Seq

from course_utils.data.collators import pad_labels

pairs = [{"input_ids": row["input_ids"], "labels": row["input_ids"][1:-1]} for row in rows[:4]]
seq2seq = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100, pad_to_multiple_of=8)
batch = seq2seq([dict(pair) for pair in pairs])
by_hand = pad_labels([pair["labels"] for pair in pairs], pad_to_multiple_of=8)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print("widths are multiples of 8:", all(tensor.shape[1] % 8 == 0 for tensor in batch.values()))
columns_used = by_hand.shape[1]
assert torch.equal(torch.as_tensor(batch["labels"])[:, :columns_used], by_hand)

# %% [markdown]
# ### Masked language modelling: 80 / 10 / 10
#
# BERT's pretraining task (Devlin et al. 2019, section 3.1): choose 15% of the tokens as targets. Replace 80% of those
# by `[MASK]`, 10% by a random token, leave 10% as they are. Why not mask all of them? `[MASK]` never occurs later,
# when the encoder is used. If every target were marked, only the outputs at `[MASK]` would have to be good; the other
# outputs are what later tasks use. So some targets look like ordinary tokens. The random ones keep the encoder from
# simply copying what it sees.

# %%
from transformers import DataCollatorForLanguageModeling

mlm = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15, seed=seed)
many = [{"input_ids": ids} for ids in tokenized["train"][:4000]["input_ids"]]
original = tokenizer.pad([dict(row) for row in many], return_tensors="pt")["input_ids"]
masked = mlm([dict(row) for row in many])
chosen = masked["labels"] != -100

special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
now_mask = masked["input_ids"][chosen] == tokenizer.mask_token_id
same = masked["input_ids"][chosen] == original[chosen]
parts = {"[MASK]": now_mask, "random": ~now_mask & ~same, "kept": same}
print(f"targets: {chosen.sum() / (~special).sum():.1%} of the tokens, special tokens: {(chosen & special).sum()}")
print(" | ".join(f"{name} {part.float().mean():.1%}" for name, part in parts.items()))

# %%
expected = {"[MASK]": 0.8, "random": 0.1, "kept": 0.1}
counted = [(chosen[~special], 0.15), *((parts[name], p) for name, p in expected.items())]
for values, p in counted:
    standard_error = (p * (1 - p) / len(values)) ** 0.5
    assert abs(float(values.float().mean()) - p) < 4 * standard_error
assert not (chosen & special).any() and torch.equal(masked["labels"][chosen], original[chosen])
print("15% targets, of these 80 / 10 / 10, each within four standard errors; targets are the original tokens")

# %% [markdown]
# On one sentence it looks as follows. (The masking rate is raised for the picture.)

# %%
from course_utils.lessons.lesson_02 import figures
from course_utils.teach import charts

often = DataCollatorForLanguageModeling(
    tokenizer, mlm_probability=0.35, mask_replace_prob=0.6, random_replace_prob=0.2, seed=227
)
example = often([{"input_ids": tokenizer(sentence)["input_ids"]}])
before = tokenizer.tokenize(sentence, add_special_tokens=True)
after = tokenizer.convert_ids_to_tokens(example["input_ids"][0])
targets = ["" if i == -100 else tokenizer.convert_ids_to_tokens(i) for i in example["labels"][0].tolist()]
teach.show(
    figures.masked_tokens(before, after, targets),
    alt="A sentence three times: the tokens, what the model sees with some tokens masked, replaced or kept, "
    "and the targets at those positions only.",
)

# %% [markdown]
# ### Span corruption, by hand
#
# T5 (Raffel et al. 2020) hides whole *spans*. Each span leaves one *sentinel* behind, and the decoder writes, after
# each sentinel, what it stood for. Targets are short, only what was hidden: cheaper than having the decoder write the
# whole text again. 15% of the tokens are hidden, in spans of 3 tokens on average.

# %%
from course_utils.data.collators import SpanCorruptionCollator, add_sentinels, corrupt_spans, sample_spans

ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
generator = torch.Generator().manual_seed(3)
spans = sample_spans(len(ids), generator, noise_density=0.35, mean_span_length=2.0)
names = ["<X>", "<Y>", "<Z>", "<W>"]
shown, target = corrupt_spans(tokenizer.convert_ids_to_tokens(ids), spans, names)
print(spans, "|", sum(stop - start for start, stop in spans), "of", len(ids), "tokens hidden")

# %%
teach.show(
    figures.span_corruption(tokenizer.convert_ids_to_tokens(ids), spans, shown, target),
    alt="A sentence with coloured spans; in the input each span is one sentinel; the target lists each "
    "sentinel with its span and ends with one more sentinel.",
)

# %% [markdown]
# To make the pair of input and target from given spans is exercise 02.2. Here is how the spans are drawn. The number of
# hidden tokens and of spans is fixed by rounding; random are only the places and the lengths. To draw `k` lengths that
# add up to `n`, `_cut_at_random` cuts `n` at `k - 1` random places. It is used twice: for the spans, and for the gaps
# between them.

# %%
teach.show_source(sample_spans)

# %% [markdown]
# The collator drops the special tokens, draws spans, and pads both sides.

# %%
teach.show_source(SpanCorruptionCollator.__call__)

# %% [markdown]
# So it draws new spans at every call, from its own seeded generator. Sentinels are new tokens of the
# vocabulary, so a model's embedding must grow with them (`model.resize_token_embeddings(len(tokenizer))`). We work on a
# copy of the tokenizer, so that the rest of the lesson keeps the old vocabulary.

# %%
import copy

t5_tokenizer = copy.deepcopy(tokenizer)
sentinels = add_sentinels(t5_tokenizer, 20)
t5 = SpanCorruptionCollator(t5_tokenizer, sentinels, seed=seed)
long_rows = [row for row in rows if len(row["input_ids"]) >= 10]  # in very short texts one token is a third
batch = t5(long_rows)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})

hidden = sum(int((row != -100).sum()) for row in batch["labels"])
hidden -= int(torch.isin(batch["labels"], torch.tensor([*sentinels, t5_tokenizer.sep_token_id])).sum())
text_tokens = sum(len(row["input_ids"]) - 2 for row in long_rows)
print(f"hidden: {hidden / text_tokens:.0%} of the tokens (short sentences round)")
assert (batch["labels"][batch["labels"] != -100] != tokenizer.pad_token_id).all() and 0.1 < hidden / text_tokens < 0.2

# %% [markdown]
# ### Stacking: tensors that are no text
#
# Not everything needs padding. Point clouds with a fixed number of points, images of one size, spectra: these are
# *stacked*, key by key. A padding collator would look for `input_ids` and fail. Ours refuses ragged input with a
# sentence that names the key, instead of an error from deep inside `torch.stack`.

# %%
from course_utils.data import load_point_clouds
from course_utils.data.collators import StackingCollator

clouds = load_point_clouds()["train"].with_format("torch")
stack = StackingCollator()
print({name: tuple(tensor.shape) for name, tensor in stack([clouds[i] for i in range(8)]).items()})
try:
    stack([clouds[0], {"points": clouds[1]["points"][:50], "label": 0}])
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## 6 · Packing
#
# Length grouping needs many rows to choose from, and every batch has another width. For language models there is
# another way: put several documents into one row, one behind the other, until it is full. That needs no similar rows,
# and every row has the same width. Three things belong to it:
#
# 1. **positions** start again at 0 with every document. Learned absolute positions need it. Rotary positions are
#    relative and would not notice, but transformers' automatic detection of documents relies on it;
# 2. **labels**: the first token of each document is -100. The model shifts labels by one, so otherwise the last token
#    of a document would be trained to predict the first of the next one;
# 3. **attention**: a token may look back, but only inside its own document.

# %%
from course_utils.data.packing import PackedCollator, document_mask, pack_documents

toy = pack_documents([[11, 12, 13, 14], [21, 22], [31, 32, 33]], row_length=10)
for name, tensor in toy[0].items():
    print(f"{name:13s}", tensor.tolist())

# %% [markdown]
# The documents are placed *first fit*: each goes into the first row that still has room. No document is cut.

# %%
documents = [ids for ids in tokenized["train"]["input_ids"]]
packed = pack_documents(documents, row_length=64, pad_token_id=tokenizer.pad_token_id)
real = sum(int((row["document_ids"] >= 0).sum()) for row in packed)
share["packed"] = 1 - real / (64 * len(packed))
print(f"{len(documents)} documents in {len(packed)} rows, padding {share['packed']:.1%}")
assert real == sum(map(len, documents)) and share["packed"] < share["dynamic"]
assert source == "hub" or share["packed"] < share["length-grouped"] + 0.02  # other data has other lengths

# %% [markdown]
# The attention mask of a packed row is block diagonal: blue is where a token (the *query*) may look at another (the
# *key*). The orange lines separate the documents.

# %%
toy = pack_documents([list(range(1, 6)), list(range(1, 10)), list(range(1, 5))], row_length=18)[0]
isolated = (document_mask(toy["document_ids"][None])[0, 0] == 0).double()
causal = torch.ones(18, 18).tril().double()
masks = {"one long text": causal.numpy(), "documents kept apart": isolated.numpy()}
teach.show(
    figures.attention_masks(masks, [5, 14]),
    alt="Two square masks of a row with three documents, divided by orange lines. Left, a full lower triangle: later "
    "documents look at earlier ones. Right, three separate triangles on the diagonal.",
)

# %% [markdown]
# ### The proof: packed loss = unpacked loss
#
# Take documents one at a time, without any padding, and average the loss over all targets. Then pack them. The two
# numbers must agree up to rounding, here 1e-5. The model is a small causal language model with Qwen3's architecture and
# rotary positions. Its weights are random: that is enough to see a mistake.

# %%
from course_utils.models import load_causal_lm

torch.manual_seed(seed)
model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=2).eval()
few = documents[:40]
total = targets = 0
with torch.no_grad():
    for ids in few:
        ids = torch.tensor([ids])
        total += model(input_ids=ids, labels=ids).loss.double() * (ids.shape[1] - 1)
        targets += ids.shape[1] - 1
unpacked_loss = float(total / targets)

# %%
few_packed = pack_documents(few, row_length=64)


def difference(explicit_mask, **options):
    batch = PackedCollator(explicit_mask)(few_packed) | options
    with torch.no_grad():
        return abs(float(model(**batch).loss) - unpacked_loss)


whole = PackedCollator(explicit_mask=False)(few_packed)
first_labels = torch.where(whole["position_ids"] == 0, whole["input_ids"], whole["labels"])  # the first is a target too
running = torch.arange(64).expand(len(few_packed), 64)
right_ways = {
    "explicit mask": difference(explicit_mask=True),
    "explicit mask, positions 0 to 63": difference(explicit_mask=True, position_ids=running),
    "positions, no cache": difference(explicit_mask=False, use_cache=False),
}
wrong_ways = {
    "positions, use_cache=True": difference(explicit_mask=False, use_cache=True),
    "first tokens as targets": difference(explicit_mask=True, labels=first_labels),
}
print(f"{targets} targets in {len(few_packed)} rows")
for name, value in (right_ways | wrong_ways).items():
    print(f"{name:33s} {'equal within 1e-5' if value <= 1e-5 else 'DIFFERENT'}")
assert max(right_ways.values()) <= 1e-5 and min(wrong_ways.values()) > 1e-4

# %% [markdown]
# `PackedCollator` passes the mask explicitly: additive, 0 where a token may look, a very negative number elsewhere.
# Transformers can also find it out alone: positions that fall back to 0 show where documents begin. But it only looks
# under two conditions, and does not say so when they fail. The fourth line is such a failure; we come back to it in
# *What goes wrong*. The second line is the remark on rotary positions: with the mask, running positions change nothing.

# %% [markdown]
# ## 7 · Four strategies, one table
#
# Now the comparison on equal terms: the same data set, the same causal language model, real training steps (forward,
# backward, optimizer), eight batches of each strategy. *Useful* tokens are those that are a target: no padding, and not
# a document's first token, which nothing predicts. Each strategy gets about the same number of documents a step: 32
# sentences, or the rows that 32 sentences fill when packed.


# %%
def padded_batch(indices, width=None):
    batch = pad_by_hand([{"input_ids": documents[i]} for i in indices], width or lengths[indices].max())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch | {"labels": labels}


packed_size = max(1, round(batch_size * len(packed) / len(documents)))
grouped = list(LengthGroupedBatchSampler(lengths, batch_size, seed=seed))
strategies = {
    "pad to 64": lambda step: padded_batch(random_batches[step], 64),
    "dynamic": lambda step: padded_batch(random_batches[step]),
    "length-grouped": lambda step: padded_batch(grouped[step + 1]),  # [0] is the longest batch, not a typical one
    "packed": lambda step: PackedCollator()(packed[step * packed_size :][:packed_size]),
}

# %%
model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=2).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)


def train_step(batch):
    begin = perf_counter()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return perf_counter() - begin


# %% [markdown]
# The strategies take turns, so that a busy machine slows all of them down alike. The first round warms up. The median
# of a strategy's rates counts: one interrupted step does not move it.

# %%
num_rounds = 9
rates = {name: [] for name in strategies}  # useful tokens per second
for step in range(num_rounds):
    for name, make in strategies.items():
        batch = make(step)
        duration = train_step(batch)
        if step > 0:
            rates[name].append(int((batch["labels"][:, 1:] != -100).sum()) / duration)  # [0] is never predicted

# %% tags=["nbval-ignore-output"]
speed = {name: float(np.median(rates[name])) for name in strategies}
print(f"{'strategy':16s}{'padding':>9s}{'useful tokens/s':>18s}{'against pad to 64':>20s}")
for name in strategies:
    print(f"{name:16s}{share[name]:9.1%}{speed[name]:18,.0f}{speed[name] / speed['pad to 64']:19.1f}x")
assert min(speed["length-grouped"], speed["packed"]) > 1.5 * max(speed["pad to 64"], speed["dynamic"])

# %%
teach.show(
    figures.padding_and_speed(share, speed),
    alt="Two bar charts. Padding is most of all positions when padding to 64, two thirds with dynamic "
    "padding, a few percent with grouping and packing. Useful tokens per second with grouping and with packing are "
    "far above both kinds of padding.",
)

# %% [markdown]
# And the same as a picture: the first two batches of each strategy, token by token. The percentages above it are those
# of the batches drawn, so they differ a little from the table.


# %%
def document_grid(batch):
    if "position_ids" in batch:
        starts = (batch["position_ids"] == 0).cumsum(1) - 1
        return starts.masked_fill((batch["input_ids"] == tokenizer.pad_token_id), -1).numpy()
    return torch.where(batch["attention_mask"] == 1, 0, -1).numpy()


grids = {name: [document_grid(make(step)) for step in range(2)] for name, make in strategies.items()}
teach.show(
    figures.token_grids(grids, 64),
    alt="Two batches of each strategy as grids of tokens, grey is padding. Pad to 64: mostly grey. Dynamic: narrower, "
    "two thirds grey. Length-grouped: nearly no grey. Packed: few full rows with several documents each.",
)

# %% [markdown]
# Which one to use?
#
# | strategy | use it when | mind |
# |---|---|---|
# | pad to max | shapes must be static (some accelerators, compiled graphs) | the waste |
# | dynamic | small data, quick experiments | one long row widens the batch |
# | length-grouped | classification, sequence to sequence: one answer a row | batches are less random |
# | packed | language modelling, instruction tuning: a target per token | attention mask, positions, labels |
#
# Packing is no better than grouping in this table's first column: both leave a few percent. With an explicit mask the
# full square of attention scores is computed and most of it thrown away. Fused attention kernels on a GPU compute only
# the blocks of the diagonal, which matters for long rows; that was not measured here.

# %% [markdown]
# ## 8 · Splits: what may be in the test set?
#
# The test score should tell how the model does on *new* data. Which data is new? Sentences from one source file
# resemble each other: the same author, the same phrases, docstrings copied and edited. If rows are dealt out at
# random, the test set is full of sentences whose siblings are in the training set. `load_classification` splits by
# *file*: no file is in two splits.

# %%
has_files = "file" in data["train"].column_names
if has_files:
    files = {split: set(rows["file"]) for split, rows in data.items()}
    print({split: len(names) for split, names in files.items()})
    assert not (
        files["train"] & files["test"] or files["train"] & files["validation"] or files["validation"] & files["test"]
    )
    print("files in two splits: 0")
else:
    print("this data set does not say where its rows come from: the next cells are skipped")

# %% [markdown]
# What would the other split have reported? Take all rows, split them both ways with the same sizes, and score two
# simple models on TF-IDF features. The first one only copies the label of the most similar training sentence: a model
# that does nothing but remember.

# %%
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC


def scores_of_split(texts, labels, is_test):
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    train_x, test_x = vectorizer.fit_transform(texts[~is_test]), vectorizer.transform(texts[is_test])
    nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train_x, labels[~is_test])
    copied = nearest.predict(test_x) == labels[is_test]
    close = 1 - nearest.kneighbors(test_x)[0][:, 0] > 0.9  # cosine similarity to the nearest training sentence
    linear = LinearSVC(C=0.3).fit(train_x, labels[~is_test])
    accuracy = {"nearest neighbour": copied.mean(), "linear model": linear.score(test_x, labels[is_test])}
    return accuracy, float(close.mean()), float(copied[~close].mean())


# %%
def split_by_file(files, share, rng):
    """Whole files in random order until the test set is full; files too big to be held out stay in training."""
    names, counts = np.unique(files, return_counts=True)
    held, rows = set(), 0
    for place in rng.permutation(len(names)):
        if counts[place] <= 0.01 * len(files) and rows < share * len(files):
            held.add(names[place])
            rows += counts[place]
    return np.isin(files, list(held))


# %%
from datasets import concatenate_datasets

leakage = {}
if has_files:
    everything = concatenate_datasets(list(data.values()))
    all_texts, all_labels, all_files = (np.array(everything[name]) for name in ("text", "label", "file"))
    rng = np.random.default_rng(seed)
    by_file = split_by_file(all_files, 0.15, rng)
    by_row = rng.permutation(by_file)  # as many test rows, but dealt out at random
    leakage = {"split by row": scores_of_split(all_texts, all_labels, by_row)}
    leakage["split by file"] = scores_of_split(all_texts, all_labels, by_file)
    print("test rows:", by_file.sum(), by_row.sum(), "of", len(by_file))

# %% tags=["nbval-ignore-output"]
if leakage:
    for name, (accuracy, close, without) in leakage.items():
        scores = " | ".join(f"{model_name} {value:.2f}" for model_name, value in accuracy.items())
        print(f"{name:14s}: {scores} | similarity above 0.9: {close:.1%}, nearest neighbour without them {without:.2f}")
    row, file = leakage["split by row"], leakage["split by file"]
    assert row[0]["nearest neighbour"] > file[0]["nearest neighbour"] + 0.05
    assert row[0]["linear model"] > file[0]["linear model"] + 0.03 and row[1] > file[1]
    assert row[2] > file[2] + 0.05, "not the close copies alone"

# %%
if leakage:
    models = list(leakage["split by row"][0])
    values = {name: {split: scores[0][name] for split, scores in leakage.items()} for name in models}
    teach.show(
        charts.grouped_bars(values, "test accuracy"),
        alt="Test accuracy of two models under both splits. The split by row reports clearly more for both, "
        "most for the nearest neighbour.",
    )

# %% [markdown]
# The difference is not skill. It is memory, and on a new file it is gone. Copies that differ in one word had been
# removed when the corpus was made. The rows with a very similar sentence in training do not explain the gap either:
# without them most of it is left (last column). So this is what remains after the usual cleaning. The rule: **split by
# the unit that will be new in use**. New files here; new patients in medicine; new users in recommendation; later dates
# in anything that drifts.

# %% [markdown]
# ## 9 · What pretraining buys
#
# Labels are expensive, text is not. Masked language modelling turns text into a training signal: to guess a hidden word
# the encoder must learn what words mean and what goes together. Is that worth anything for the ten libraries?
#
# To fit into this lesson everything is small: a vocabulary of 3,000, one layer, width 48. It is trained on 40,000
# paragraphs and the 12,000 training sentences, *without their labels*, with the length-grouped sampler of section 4 and
# the collator of section 5. 30% of the tokens are targets, so 24% become `[MASK]`: twice the targets per step of BERT's
# 15%. The two rates are not compared here.
#
# First the lesson of section 8. The running text comes from the same files as the sentences, and it has its own split.
# Hundreds of test sentences stand in it word for word. An encoder that has read them is not tested on new text, labels
# or not. So every file of the test and validation sentences is left out.

# %%
from course_utils.data import load_language_modelling
from course_utils.models import load_masked_lm, train_tokenizer

paragraphs = load_language_modelling(source)["train"]
if has_files:
    held_out = set(data["test"]["file"]) | set(data["validation"]["file"])
    before = set(paragraphs["text"][:40_000]) & set(data["test"]["text"])
    paragraphs = paragraphs.filter(lambda row: row["file"] not in held_out, keep_in_memory=True)
    after = set(paragraphs["text"]) & set(data["test"]["text"])
    print(f"test sentences among 40,000 paragraphs: {len(before)}; without their files: {len(after)}")
    assert not set(paragraphs["file"]) & held_out
    assert before and not after

# %%
corpus = list(paragraphs["text"][:40_000]) + texts
small_tokenizer = train_tokenizer(corpus, vocab_size=3000)
encoded = small_tokenizer(corpus, truncation=True, max_length=32)["input_ids"]
print(f"{len(encoded)} texts, {sum(map(len, encoded)) / 1e6:.1f} million tokens")
print(f"{max_steps} steps of 64 texts are {64 * max_steps / len(encoded):.1f} passes over them")

# %%
SMALL = dict(vocab_size=3000, num_hidden_layers=1, hidden_size=48, intermediate_size=96, num_attention_heads=2)
NO_DROPOUT = dict(attention_dropout=0.0, embedding_dropout=0.0, mlp_dropout=0.0)  # a text is read once or twice only
torch.manual_seed(seed)
masked_lm = load_masked_lm(**SMALL, **NO_DROPOUT)
random_encoder = copy.deepcopy(masked_lm.model)  # the same encoder before training, to compare with
print(f"{sum(p.numel() for p in masked_lm.parameters()):,} parameters")

# %% [markdown]
# One saving is worth knowing. Only the masked positions have a target, so the scores over the whole vocabulary, the
# most expensive matrix product of a small model, are needed only there.


# %%
def masked_loss(model, batch):
    chosen = batch["labels"] != -100
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    logits = model.decoder(model.head(hidden[chosen]))  # (targets, vocabulary) instead of (B, T, vocabulary)
    return torch.nn.functional.cross_entropy(logits, batch["labels"][chosen])


mlm_rows = [{"input_ids": ids} for ids in encoded]
mlm_collate = DataCollatorForLanguageModeling(small_tokenizer, mlm_probability=0.3, seed=seed)
batch = mlm_collate(mlm_rows[:64])
masked_lm.eval()
with torch.no_grad():
    difference = abs(masked_lm(**batch).loss - masked_loss(masked_lm, batch))
print("same loss as the model's own, within 1e-5:", bool(difference <= 1e-5))
assert difference <= 1e-5

# %%
from course_utils.training.schedules import make_scheduler

mlm_sampler = LengthGroupedBatchSampler([len(ids) for ids in encoded], 64, seed=seed)
loader = DataLoader(mlm_rows, batch_sampler=mlm_sampler, collate_fn=mlm_collate)
optimizer = torch.optim.AdamW(masked_lm.parameters(), lr=5e-3, weight_decay=0.01, fused=True)
scheduler = make_scheduler(optimizer, "linear", max(1, max_steps // 10), max_steps)


def endless(loader, sampler):
    while True:
        yield from loader
        sampler.set_epoch(sampler.epoch + 1)


# %%
masked_lm.train()
losses = []
for _, batch in zip(range(max_steps), endless(loader, mlm_sampler), strict=False):
    loss = masked_loss(masked_lm, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(masked_lm.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    losses.append(loss.item())
# The loss is in nats: the logarithm is the natural one. One nat is 1.44 bits.
print(f"first loss {losses[0]:.1f} nats; a uniform guess over the vocabulary costs {np.log(3000):.1f}")

# %% tags=["nbval-ignore-output"]
print(f"mean of the last steps: {np.mean(losses[-50:]):.2f} nats after {len(losses)} steps")
assert np.mean(losses[-50:]) < losses[0]

# %% [markdown]
# ### A linear probe
#
# How much did the encoder learn *about the task* without seeing a label? Freeze it, average its hidden states over each
# sentence, and train nothing but a logistic regression on these numbers, with 2,000 labels. The probe reads the hidden
# states before and after the layer, 2 x 48 numbers: the last layer of a masked language model is specialised in
# guessing words, and what is useful for other tasks often lies below it.
#
# Three opponents. Guessing the most frequent class. The random encoder, a better opponent than guessing: its features
# are a random projection of the words in the sentence, and words tell a lot. And the linear model on TF-IDF features of
# section 8, with the same 2,000 labels: it needs no encoder at all.


# %%
@torch.no_grad()
def sentence_features(encoder, texts):
    encoder.eval()
    ids = small_tokenizer(texts, truncation=True, max_length=32)["input_ids"]
    order = np.argsort([len(row) for row in ids], kind="stable")  # length grouping helps inference too
    features = np.zeros((len(ids), 2 * encoder.config.hidden_size), np.float32)
    for start in range(0, len(order), 100):
        places = order[start : start + 100]
        batch = small_tokenizer.pad({"input_ids": [ids[i] for i in places]}, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = torch.cat(encoder(**batch, output_hidden_states=True).hidden_states, dim=-1)  # (B, T, 2 * 48)
        features[places] = (states * mask).sum(1) / mask.sum(1)
    return features


# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

test = data["test"] if len(data["test"]) <= 2500 else data["test"].select(range(2500))
train_labels, test_labels = np.array(data["train"]["label"][:2000]), np.array(test["label"])


def probe(encoder):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(sentence_features(encoder, texts[:2000]), train_labels)
    return model.predict(sentence_features(encoder, list(test["text"]))) == test_labels


right = {"random": probe(random_encoder), "pretrained": probe(masked_lm.model)}
word_counts = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LinearSVC(C=0.3))
word_counts.fit(texts[:2000], train_labels)
tfidf = float(word_counts.score(list(test["text"]), test_labels))

# %% [markdown]
# Both probes are tested on the same sentences, so the uncertainty of their *difference* comes from the sentences on
# which they disagree. We draw the test set anew a thousand times (bootstrap; lesson 04) and take the middle 95%.

# %% tags=["nbval-ignore-output"]
majority = float(np.mean(test_labels == np.bincount(train_labels).argmax()))
gain = right["pretrained"].astype(float) - right["random"]
rng = np.random.default_rng(seed)
low, high = np.percentile([rng.choice(gain, len(gain)).mean() for _ in range(1000)], [2.5, 97.5])
accuracy = {name: float(values.mean()) for name, values in right.items()}
print(
    f"majority class {majority:.3f} | random encoder {accuracy['random']:.3f} | "
    f"pretrained {accuracy['pretrained']:.3f} | TF-IDF, same labels {tfidf:.3f}"
)
print(f"gain {gain.mean():+.3f}, 95% interval {low:+.3f} to {high:+.3f}")
if max_steps >= 1000 and source == "local":
    assert low > 0 and accuracy["random"] > majority and tfidf > accuracy["pretrained"]
else:
    print("run too short, or on other data: no verdict")

# %%
bars = {"majority class": majority, "random encoder": accuracy["random"], "pretrained encoder": accuracy["pretrained"]}
bars |= {"TF-IDF, same labels": tfidf}
teach.show(
    charts.grouped_bars({name: {"2,000 labels": value} for name, value in bars.items()}, "test accuracy"),
    alt="Four bars of test accuracy with 2,000 labels: the majority class is lowest, a linear probe on the random "
    "encoder follows, on the pretrained encoder it is higher, and word counts are clearly highest.",
)

# %% [markdown]
# Word counts are still better. Pretraining improved this encoder's features, it did not make them good.
#
# ### The full experiment
#
# The larger question: does it help when the whole model is *fine-tuned*, and does it still help when labels are plenty?
# That takes many minutes, so it is a benchmark (`make bench`, file `bench/bench_pretraining.py`): the course's encoder,
# pretrained on running text without the test and validation files, against the same encoder from random weights, with
# 2,000 and with 12,000 labels. Each of the three seeds has its own pretraining. If its results are there, the next
# cells show what it measured, and where.

# %% tags=["nbval-ignore-output"]
import json

import course_utils

report_file = Path(course_utils.__file__).parents[1] / "bench" / "results" / "pretraining.json"
report = json.loads(report_file.read_text()) if report_file.exists() else None
means, gains = {}, {}
if report is None:
    print("not measured on this machine yet: run `make bench`")
else:
    steps, machine = report["pretraining"]["steps"], report["machine"]
    seconds = np.mean([run["cpu_seconds"] for run in report["pretraining"]["runs"]])
    print(f"{machine['processor']}, {machine['cores']} cores | pretraining: {steps:,} steps, {seconds:.0f} CPU seconds")
    print(f"{'':25s}{'random':>12s}{'pretrained':>12s}{'difference':>12s}{'TF-IDF':>9s}")
    for setting in report["compared"]:
        task, labels = setting["task"], setting["labels"]
        runs = [run for run in report["results"] if (run["task"], run["labels"]) == (task, labels)]
        found = {start: [r["accuracy"] for r in runs if r["start"] == start] for start in ("random", "pretrained")}
        gains[task, labels] = np.subtract(found["pretrained"], found["random"])  # one per seed
        means[task, labels] = [float(np.mean(values)) for values in found.values()]
        row, counts = "".join(f"{value:12.3f}" for value in means[task, labels]), report["word_counts"][str(labels)]
        print(f"{task + f', {labels:,} labels':25s}{row}{gains[task, labels].mean():+12.3f}{counts:9.3f}")
        assert abs(gains[task, labels].mean() - setting["gain"]) < 2e-4
    assert len(means) == 3, "the probe, and fine-tuning with few and with many labels"

# %%
if report:
    teach.show(
        figures.pretraining(report),
        alt="Test accuracy from random and from pretrained weights, and of TF-IDF with a linear model, for a linear "
        "probe and for fine-tuning with few and with many labels. Error bars: half the range over the seeds.",
    )

# %% [markdown]
# How to read it. In the probe the encoder cannot adapt: what it does not know already, the labels cannot teach it. In
# fine-tuning the labels teach too. Two things make a difference uncertain. One is the runs: other seeds, other numbers.
# The error bars show half the range over the seeds. The other is the test set: with 2,500 rows an accuracy of .66 has a
# standard error of `sqrt(.66 * .34 / 2500)`, or .0095, more than both differences in fine-tuning. Both starts are
# tested on the same rows, so the error of their *difference* comes from the rows on which they disagree; the benchmark
# computes it. We call a gain *shown* if every seed has it and its mean is more than twice that error.

# %% tags=["nbval-ignore-output"]
if report:
    shown = {}
    for setting in report["compared"]:
        task, labels, gain, error = (setting[k] for k in ("task", "labels", "gain", "standard_error"))
        shown[task, labels] = bool((gains[task, labels] > 0).all() and gain > 2 * error)
        by_seed = " ".join(f"{value:+.3f}" for value in gains[task, labels])
        verdict = "shown" if shown[task, labels] else "not shown"
        print(f"{task}, {labels:,} labels: {gain:+.3f}, by seed {by_seed}, standard error {error:.3f}: {verdict}")
    assert max(abs(s["gain"]) for s in report["compared"] if s["task"] == "fine-tuning") < (0.66 * 0.34 / 2500) ** 0.5
    assert shown == {("linear probe", 2000): True, ("fine-tuning", 2000): False, ("fine-tuning", 12_000): False}
    for (task, labels), starts in means.items():
        counts = report["word_counts"][str(labels)]
        assert max(starts) < counts if task == "linear probe" else min(starts) > counts

# %% [markdown]
# So this pretraining, 2,000 steps on the text of the installed libraries, improved the frozen features, and that is all
# that is shown. In fine-tuning no gain is shown, neither with 2,000 labels nor with 12,000. Three seeds and 2,500 test
# rows cannot tell a gain of half a percentage point from none. Word counts stay ahead of the probe, and behind both
# fine-tuned encoders. Large public encoders have read many thousand times more text; they were not measured here.

# %% [markdown]
# ## What goes wrong
#
# Three mistakes that raise no error. Each is planted here, measured, and caught by a check of a few lines.
#
# ### 1 · Padding that is a target: -100 forgotten
#
# `labels = input_ids` is correct until the batch has padding. Then the model is also trained to write `[PAD]` after
# `[PAD]`, which is easy. The loss falls beautifully.


# %%
def train_padded(forget, num_steps=30):
    torch.manual_seed(seed)
    model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(num_steps):
        batch = padded_batch(random_batches[step][:16], 64)
        if forget:
            batch["labels"] = batch["input_ids"].clone()  # the bug
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = padded_batch(random_batches[-2], 64)
    with torch.no_grad():
        return loss.item(), float(model.eval()(**held_out).loss)


# %%
reported, true = train_padded(forget=False)
reported_bug, true_bug = train_padded(forget=True)

# %% tags=["nbval-ignore-output"]
print(f"correct: reported {reported:.2f}, on real tokens of held-out text {true:.2f}")
print(f"bug:     reported {reported_bug:.2f}, on real tokens of held-out text {true_bug:.2f}")
assert reported_bug < reported - 2, "the reported loss should look much better"
assert true_bug > true, "and the model should be worse"

# %% [markdown]
# The run with the bug *reports* a far lower loss and *is* worse: most of its targets were padding. A second, quieter
# form: many language-model tokenizers have no padding token, so people set it to the end token, and then mask labels by
# `input_ids == pad_token_id`. That removes every real end token, and the model never learns to stop. The library's own
# collator makes labels in this way:

# %%
end_as_padding = copy.deepcopy(tokenizer)
end_as_padding.pad_token = end_as_padding.sep_token
collate = DataCollatorForLanguageModeling(end_as_padding, mlm=False)
no_end = collate([{"input_ids": ids} for ids in documents[:4]])
end = no_end["attention_mask"].sum(1) - 1  # place of the last real token
assert (no_end["input_ids"][torch.arange(4), end] == tokenizer.sep_token_id).all()
kept_ends = int((no_end["labels"][torch.arange(4), end] != -100).sum())
print("rows whose end token is a target:", kept_ends, "of 4")
assert kept_ends == 0

# %% [markdown]
# Mask by `attention_mask`. The check has two sides: padding is no target, and in plain language modelling every real
# token is one. (Where a prompt is masked on purpose, or only some tokens are hidden, leave out the second side.)


# %%
def check_labels(batch, every_token=True):
    real, kept = batch["attention_mask"] == 1, batch["labels"] != -100
    assert not kept[~real].any(), "padding is a target"
    assert kept.any(1).all(), "a row without any target"
    assert not every_token or kept[real].all(), "a real token is no target"


check_labels(padded_batch(random_batches[0]))
padding_too = padded_batch(random_batches[0], 64)
padding_too["labels"] = padding_too["input_ids"]
caught = []
for broken in (padding_too, no_end):
    try:
        check_labels(broken)
    except AssertionError as error:
        caught.append(str(error))
print("caught:", caught)
assert caught == ["padding is a target", "a real token is no target"]

# %% [markdown]
# ### 2 · Packed documents that see each other
#
# Transformers recognises packed rows by `position_ids` that restart, but only if it is given no `attention_mask` *and*
# builds no key-value cache (keys and values of past tokens, kept for generating text). Most configurations say
# `use_cache=True`. Then nothing is isolated, and nothing is said. This one bites hand-written loops: `Trainer` sets
# `model.config.use_cache` to its own argument, which is False by default. A mask of ones, which a padding collator
# adds, has the same effect in both.
#
# A *boolean* block mask is right for PyTorch's fused attention ("sdpa"). Transformers' plain implementation ("eager")
# adds it to the scores as 0 and 1. Then it isolates nothing, and since a four-dimensional mask is used as it is, it
# replaces the causal mask too: the future becomes visible.

# %%
from transformers import TrainingArguments

assert TrainingArguments.use_cache is False
ones = torch.ones(len(few_packed), 64, dtype=torch.int64)
ids_of_documents = torch.stack([row["document_ids"] for row in few_packed])
boolean = document_mask(ids_of_documents) == 0
torch.manual_seed(seed)
model = load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=2).eval()
eager = copy.deepcopy(model)
eager.set_attn_implementation("eager")

ways = {
    "explicit mask": (model, PackedCollator(True), {}),
    "explicit mask, eager": (eager, PackedCollator(True), {}),
    "positions, no cache": (model, PackedCollator(False), {"use_cache": False}),
    "boolean mask, sdpa": (model, PackedCollator(False), {"use_cache": False, "attention_mask": boolean}),
    "positions, use_cache=True": (model, PackedCollator(False), {"use_cache": True}),
    "positions, mask of ones": (model, PackedCollator(False), {"use_cache": False, "attention_mask": ones}),
    "boolean mask, eager": (eager, PackedCollator(False), {"use_cache": False, "attention_mask": boolean}),
}

# %% [markdown]
# The test that needs no reference loss: change some tokens and look at the logits elsewhere. If the first document of
# each row is changed, the logits of the others must not move. If everything from position 40 on is changed, the logits
# before it must not move.


# %%
def leak(changed, model, collate, options):
    """Largest change of a logit outside ``changed`` (B, L) when the tokens inside are replaced."""
    batch = collate(few_packed)
    other = batch | {"input_ids": torch.where(changed, 7, batch["input_ids"])}
    with torch.no_grad():
        moved = (model(**batch, **options).logits - model(**other, **options).logits).abs().amax(-1)
    return float(moved[~changed].max())


# %%
first_document = ids_of_documents == 0
future = (torch.arange(64) >= 40).expand(len(few_packed), 64)
document_leaks = {name: leak(first_document, *way) for name, way in ways.items()}
future_leaks = {name: leak(future, *way) for name, way in ways.items()}
for name in ways:
    documents_seen = "isolated" if document_leaks[name] <= 1e-5 else "LEAK"
    print(f"{name:27s} documents {documents_seen:9s} future {'hidden' if future_leaks[name] <= 1e-5 else 'VISIBLE'}")
safe = ["explicit mask", "explicit mask, eager", "positions, no cache", "boolean mask, sdpa"]
assert all((amount <= 1e-5) == (name in safe) for name, amount in document_leaks.items())
assert all((amount <= 1e-5) == (name != "boolean mask, eager") for name, amount in future_leaks.items())

# %% [markdown]
# (`load_causal_lm` sets `use_cache=False` in its configuration for this reason.) So pass the mask explicitly, or run
# this test once on your own model and attention implementation.
#
# On a GPU with FlashAttention the mask is replaced by the places where documents begin, `cu_seq_lens_q` and
# `cu_seq_lens_k`. `DataCollatorWithFlattening` puts the whole batch into one row, and makes these places if asked with
# `return_flash_attn_kwargs=True`. The collator runs anywhere; only FlashAttention itself was not run here.

# %%
from transformers import DataCollatorWithFlattening

flat = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": ids} for ids in documents[:3]])
print("documents of", [len(ids) for ids in documents[:3]], "tokens begin and end at", flat["cu_seq_lens_q"].tolist())
assert flat["cu_seq_lens_q"].tolist() == [0, *np.cumsum([len(ids) for ids in documents[:3]])]

# %% [markdown]
# ### 3 · A split by row
#
# Planted and measured in section 8: the same models on the same rows report more when siblings of the test rows are in
# the training set. The check is a set intersection, over whatever identifies the origin of a row:


# %%
def check_split(splits, column):
    seen = {}
    for split, rows in splits.items():
        for value in set(rows[column]):
            assert seen.setdefault(value, split) == split, f"a {column} is in {seen[value]} and in {split}"


if has_files:
    check_split(data, "file")
    mixed = everything.train_test_split(test_size=0.15, seed=seed)  # deals out rows
    try:
        check_split(mixed, "file")
    except AssertionError as error:
        print("caught:", error)

# %% [markdown]
# ## Exercises
#
# ### 02.1 · Label masking
#
# In instruction tuning the model should learn to write the answer, not the question. Given a padded batch and the
# number of prompt tokens of each row, make the labels: -100 on padding and on the prompt, the token id elsewhere.
# Padding is on the right. Careful: the padding id may also occur as a real token.


# %%
def mask_labels(input_ids, attention_mask, prompt_lengths):
    """(B, L), (B, L), (B,) tensors -> labels (B, L); input_ids stays as it is."""
    ...


# %%
teach.check("02.1", mask_labels)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("02.1")` gives a hint, `teach.show_solution("02.1")` the solution.
#
# </details>
#
# ### 02.2 · Span corruption
#
# Given token ids, spans (half open, in order) and sentinel ids, return the pair of lists `(inputs, targets)` as T5
# wants them. Targets end with one more sentinel.


# %%
def corrupt(ids, spans, sentinels):
    """Lists; spans are (start, stop) pairs; -> (inputs, targets)."""
    ...


# %%
teach.check("02.2", corrupt)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("02.2")` gives a hint, `teach.show_solution("02.2")` the solution.
#
# </details>
#
# ### 02.3 · A length-grouped batch sampler
#
# The heart of section 4. `order` is the shuffled list of indices. Cut it into megabatches of `megabatch * batch_size`
# indices, sort each by length, longest first (equal lengths keep their order), and cut it into batches. Return the
# batches in that order; the last ones may be smaller.


# %%
def group_batches(lengths, order, batch_size, megabatch):
    """-> list of lists of indices."""
    ...


# %%
teach.check("02.3", group_batches)

# %% [markdown]
# <details><summary>Stuck?</summary>
#
# `teach.show_hint("02.3")` gives a hint, `teach.show_solution("02.3")` the solution.
#
# </details>

# %% [markdown]
# ## Recap
#
# - Tokenise once, with `map(batched=True)`; Arrow tables are memory-mapped; within a file, streams shuffle only what is
#   in the buffer.
# - Padding changes nothing in the result and costs time. A batch is as wide as its longest row.
# - Length grouping and packing remove nearly all padding. Packing needs positions, labels *and* a mask; test that
#   documents do not see each other.
# - Collators run at every step: random masks, spans and widths belong there.
# - -100 is what the loss skips. Check it by the attention mask, not by a token id.
# - Split by the unit that will be new in use.
# - This small pretraining improved the frozen features; in fine-tuning no gain was shown. Compare a gain with the seeds
#   and with the error of the test set. Keep the test set's files out of the pretraining text too.
#
# > **You may see** `Trainer(tokenizer=...)`: it is now `processing_class=`. `as_target_tokenizer()` became
# > `tokenizer(text_target=...)`. Loading scripts (`load_dataset("my_script.py")`) are gone: data sets are parquet
# > files.

# %% [markdown]
# ## Quiz
#
# **1.** Dynamic padding, batch size 32, or the same data with batch size 8: which wastes a larger share on padding?

# %% [markdown]
# <details><summary>Answer</summary>
#
# Batch size 32. Each batch is as wide as its longest row, and the longest of 32 random rows is longer, on average, than
# the longest of 8.
#
# </details>

# %% [markdown]
# **2.** Why are 10% of the targets in masked language modelling left unchanged?

# %% [markdown]
# <details><summary>Answer</summary>
#
# So that an ordinary-looking token can be a target too, and its output must describe it. The random 10% keep the
# encoder from simply copying.
#
# </details>

# %% [markdown]
# **3.** Your packed run's loss is a little *lower* than the unpacked one. Good news?

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. On the same documents and weights it must be equal. Either documents see each other (context that will not be
# there in use), or the targets differ: -100 on each document's first token is missing, or padding is counted.
#
# </details>

# %% [markdown]
# **4.** You have five sentences from each of 2,000 patients and want to predict a diagnosis. How do you split?

# %% [markdown]
# <details><summary>Answer</summary>
#
# By patient: all five sentences of a patient go into one split. In use the patients are new, so the test patients must
# be.
#
# </details>

# %% [markdown]
# ## Next
#
# Lesson 03 hands the loop of lesson 01 and the collators of this one to `Trainer`, and looks inside while it works.
