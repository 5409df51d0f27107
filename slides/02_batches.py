# %% tags=["parameters"] slideshow={"slide_type": "skip"}
source = "local"
max_steps = 8  # training steps per strategy in the speed figure
seed = 0

# %% slideshow={"slide_type": "skip"}
import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from course_utils import teach
from course_utils.data import load_classification, own_sentences
from course_utils.data.collators import corrupt_spans, sample_spans
from course_utils.data.packing import document_mask, pack_documents
from course_utils.lessons.lesson_02 import diagrams, figures, leaks, pretraining
from course_utils.lessons.lesson_02.strategies import Strategies, race
from course_utils.models import load_causal_lm, load_tokenizer

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% slideshow={"slide_type": "skip"}
data, tokenizer = load_classification(source), load_tokenizer(source)
texts = list(data["train"]["text"])
documents = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
ways = Strategies(documents, batch_size=32, width=64, seed=seed)
sentence = own_sentences()[7]

# %% [markdown] slideshow={"slide_type": "slide"}
# # 02 · Batches
#
# Tokens, collators, padding: what stands between text and a rectangle of numbers

# %% [markdown] slideshow={"slide_type": "notes"}
# Nothing in this lesson raises an error when it is wrong. The loss still falls, the run still ends. That is why every
# claim comes with a check. About 75 minutes with exercises.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## From text to batch
#
# What differs from step to step belongs in the collator.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.pipeline(len(texts), 32))

# %% [markdown] slideshow={"slide_type": "notes"}
# Red says how often each part runs. Ask: where would you put tokenising? Where random masking? The first is the same in
# every epoch, the second must not be. Whatever should differ from step to step belongs in the collator.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same sentences in four ways
#
# Grouping narrows the batches; packing fills the rows.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.token_grids({name: ways.grids(name) for name in ways.names}, 64))

# %% [markdown] slideshow={"slide_type": "notes"}
# Blue is text, grey is padding; shades of blue are documents in one row. The titles count the two batches drawn.
# Dynamic padding disappoints: a batch is as wide as its longest row. Grouping narrows the batches, packing fills rows
# of one width. This is where the lesson leads.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Truncation is silent: count first
#
# The tokenizer cuts at the limit without a word.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.length_histogram([len(ids) for ids in whole], limits=(16, 32, 64)))

# %% [markdown] slideshow={"slide_type": "notes"}
# The tokenizer cuts at the limit without a word. Tokenise once, with Dataset.map(batched=True): a thousand texts a
# call, stored as a table that is memory-mapped. The notebook times that against a tokenizer in __getitem__.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A stream is shuffled through a buffer

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.shuffle_buffer())

# %% [markdown] slideshow={"slide_type": "-"}
# > A file that is sorted by class stays nearly sorted behind a small buffer. Several files: their order is drawn too.

# %% [markdown] slideshow={"slide_type": "notes"}
# This is a Deeper section of the notebook: there the row numbers are drawn against the position at which they came out,
# for a buffer of 100 and for one of 3,000.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Padding: harmless behind the mask, pure waste
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

# %% [markdown] slideshow={"slide_type": "notes"}
# The notebook claims that a row's logits are the same in a narrow and in a wide batch, and that they are not without
# the mask. Exercise 02.1 here: predict the padding of eight rows.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Length grouping
#
# Shuffle; sort inside *megabatches* of 50 batches; shuffle the batches.
#
# ```python
# sampler = LengthGroupedBatchSampler(lengths, batch_size=32, seed=0)
# loader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate)
# ```
#
# - every row once an epoch, another order each epoch
# - order from **seed and epoch** alone: a run can resume
# - longest batch first: too little memory shows at step one

# %% [markdown] slideshow={"slide_type": "notes"}
# Why not sort everything? The same rows would meet in every epoch, and the model would see short texts first, long ones
# last. The grouping itself is exercise 02.2, so its code is not shown here.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Labels are padded with -100
#
# ```python
# labels = input_ids.clone()
# labels[attention_mask == 0] = -100   # cross_entropy skips -100
# ```
#
# - forgotten: the model learns to write `[PAD]`; the loss looks **wonderful**
# - not by `input_ids == pad_token_id`: that may be the end token
# - `DataCollatorForSeq2Seq(pad_to_multiple_of=8)` does both sides

# %% [markdown] slideshow={"slide_type": "notes"}
# The notebook trains both versions with five seeds: the wrong one reports a far lower loss and is worse on real
# tokens. With padding set to the end token, the library's own collator leaves no row an end to learn. Exercise 02.3
# adds the prompt, which lesson 10 needs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Masked language modelling: 80 / 10 / 10
#
# 15% of the tokens are targets: 80% of these become `[MASK]`, 10% a random token, 10% are kept. (The picture has more.)

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
rates = {"mlm_probability": 0.35, "mask_replace_prob": 0.6, "random_replace_prob": 0.2}
example = DataCollatorForLanguageModeling(tokenizer, **rates, seed=26)([tokenizer(sentence)])
words = tokenizer.tokenize(sentence, add_special_tokens=True)
seen = tokenizer.convert_ids_to_tokens(example["input_ids"][0])
labels = example["labels"][0].tolist()
teach.show(figures.masked_tokens(words, seen, [w if i != -100 else "" for w, i in zip(words, labels, strict=True)]))

# %% [markdown] slideshow={"slide_type": "notes"}
# The picture: 35% targets, 60 / 20 / 20, and a seed where all three cases occur. Ask: why are some left unchanged? In
# later use there is no [MASK], so the outputs at ordinary tokens must be good too; that is the paper's reason.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Span corruption (T5)
#
# Each span leaves a sentinel; the labels say what it stood for.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
tokens = tokenizer.tokenize(sentence)
spans = sample_spans(len(tokens), torch.Generator().manual_seed(3), noise_density=0.35, mean_span_length=2.0)
teach.show(figures.span_corruption(tokens, spans, *corrupt_spans(tokens, spans, ["<X>", "<Y>", "<Z>", "<W>"])))

# %% [markdown] slideshow={"slide_type": "notes"}
# Deeper in the notebook. Each span leaves one sentinel; the target says what each stood for, and ends with one more.
# 15% hidden, mean span 3 in the paper. In its published code every text ends in a hidden span; ours draws the place
# freely. Exercise 02.4.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A causal model shifts its labels itself
#
# Shift them in the collator too, and it learns the token after next.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(diagrams.label_shift(tokens[:7]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Labels are the input ids. What the model says at a position (arrow) is compared with the label one place on. Shifting
# them in the collator too is one of the four faults of exercise 02.5.

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
# If the packed loss is a bit lower at the same weights, that is not good news: the documents see each other, or the
# targets differ. The notebook claims equality within 1e-5, and that rules two and three, broken, are seen. Positions:
# learned ones must restart; rotary ones are relative and would not notice, but the library finds the documents by them.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Who may look at whom
#
# Unmasked, the third document reads mostly the other two.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
toy = pack_documents([[1] * 5, [1] * 9, [1] * 4], row_length=18)[0]
apart = (document_mask(toy["document_ids"][None])[0, 0] == 0).numpy()
teach.show(figures.attention_masks({"one long text": np.tri(18), "documents kept apart": apart}, [5, 14]))

# %% [markdown] slideshow={"slide_type": "notes"}
# The orange lines separate three documents. Left: the third document, the last four rows, looks mostly at the text of
# the other two. Without a mask transformers finds documents by positions, but not if a key-value cache is built, and
# nothing is said. Test: change one document; the logits of the others must not move.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What it buys
#
# Less padding is more useful tokens a second, nearly in proportion.

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
torch.set_num_threads(1)  # other programs disturb one thread less
torch.manual_seed(seed)
speed = race(ways, load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=2).train(), rounds=max_steps)
teach.show(figures.padding_and_speed(ways.shares(), speed))
slow, fast = ("pad to 64", "dynamic"), ("length-grouped", "packed")
gain = min(speed[name].gain for name in fast) / max(speed[name].gain for name in slow)
teach.claim("grouping and packing: over 1.5 times as fast as dynamic padding", gain > 1.5)

# %% [markdown] slideshow={"slide_type": "notes"}
# Measured while this deck was built: same data set, same model, the strategies take turns. The shares are exact, the
# gains belong to the machine. A count of positions predicts the red diamond; with the part of a step that does not grow
# with the batch, the black mark. What explains the rest was not measured.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Split by what will be new
#
# A split by row lets siblings of the test rows into training.

# %% slideshow={"slide_type": "-"} tags=["hide-input", "nbval-ignore-output"] jupyter={"source_hidden": true}
if "file" in data["train"].column_names:  # the hub's data does not name its sources
    scores = leaks.compare(data, draws=1)
    teach.show(figures.leakage({name: scores[name] for name in list(scores)[:2]}))
    differences = [splits["split by row"][0] - splits["split by file"][0] for splits in scores.values()]
    teach.claim("the split by row reports more, for both models", min(differences) > 0)

# %% [markdown] slideshow={"slide_type": "notes"}
# The nearest neighbour only copies the label of the most similar training sentence. The difference between the bars is
# leakage: siblings of the test sentences were in training. New files here, new patients in medicine, later dates where
# things drift. The notebook draws three splits of each kind; this slide one.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What pretraining buys
#
# It helps a frozen encoder; fine-tuning on these labels shows no gain.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
gains = pretraining.paired(pretraining.recorded())
teach.show(figures.paired_gains(gains))
probe, *tuned = gains.values()
teach.claim("the probe gains more than two standard errors", probe[1] > probe[2])
teach.claim("fine-tuning shows no gain", all(abs(mean) < half for _, mean, half in tuned))

# %% [markdown] slideshow={"slide_type": "notes"}
# From bench/bench_pretraining.py: three seeds, each with its own pretraining. Squares are means, bars two standard
# errors from the 2,500 test rows only; seeds scatter further. Word weights stay ahead of the probe. The text leaves out
# the test sentences' files: with them, hundreds of test sentences had been read before. The notebook pretrains a
# smaller encoder.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Checks that would have caught it
#
# ```python
# real, target = attention_mask == 1, labels != -100
# target[~real].any(), (~target[real]).any()      # both False
#
# moved = logits_of_others(changed) - logits_of_others(original)
# moved.abs().max() <= 1e-5
#
# not set(train["file"]) & set(test["file"])
# ```
#
# **Exercises** padding · length grouping · label masking · span corruption · repair a packing function

# %% [markdown] slideshow={"slide_type": "notes"}
# The second side of the first check holds in plain language modelling only. Give them twenty-five minutes. Next lesson:
# the Trainer takes loop and collator, and we watch it work.
