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
# # 10 · Fine-tuning a language model
#
# A pretrained model continues text. Fine-tuning makes it answer. Whether that works depends less on the training loop,
# which you know, than on which tokens have a label, where the answer begins, which weights may move and what is lost
# while they move. This lesson builds each of these by hand and measures it.
#
# **You will be able to**
# - turn rows of any data set into prompts, answers and labels, with a boundary that cannot shift;
# - put low-rank adapters (LoRA) into a model, train, switch off and merge them, equal to PEFT, Hugging Face's library;
# - measure what fine-tuning teaches and what it makes the model forget;
# - name the silent bugs of instruction tuning and the number that shows each.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 01 (the loop), 02 (tokens, labels of -100), 06 (who divides).

# %% tags=["parameters"]
source = "local"  # "local": offline; "hub": the public data sets and models
max_steps = 60  # optimizer steps of each compared run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Before and after
#
# Fine-tuning starts from a **base**: a model that was trained on much text (*pretrained*). `load_base_lm` gives one
# that fits a laptop: a decoder with Qwen3's architecture, trained once in about half a minute and then cached. It
# has read sentences of documentation, and sentences followed by a topic. It has never met an instruction.
#
# The tokenizer is of the kind that GPT-2, Llama 3 and Qwen use: **byte-level BPE**. It can write any text, if
# need be in bytes, and *a space belongs to the word behind it* (shown as `Ġ`). `<bos>` is its begin token,
# `<|im_end|>` its end token.

# %%
import torch

from course_utils.data import own_sentences
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.training.base_lm import load_base_lm

torch.set_num_threads(1)  # for a model this small, threads cost more than they bring
tokenizer = load_chat_tokenizer(source)
base = load_base_lm(source)
sentence = own_sentences()[52]  # our own, as an example
print(f"{sum(p.numel() for p in base.parameters()):,} parameters")
print(tokenizer.tokenize("Which library?"))

# %% [markdown]
# The task: *Which library documents this?* The answer is one of ten names. Of `load_instructions`, `take_rows` gives
# 3,000 training rows that the base has not seen, and 300 rows each for validation and test.

# %%
from course_utils.data import load_instructions
from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10 import figures, task

# the ten: accelerate, datasets, matplotlib, numpy, pandas, scipy, sklearn, sympy, torch
# and transformers
rows = task.take_rows(load_instructions(source), source)
template = Template("{instruction}\n\n{input}\n\nAnswer:", " {output}")
topic_template = Template("{input}\n\nTopic:", " {output}")
example = {
    "instruction": "Which library documents this?",
    "input": sentence,
    "output": "torch",  # an answer for the form's sake: the sentence is ours
}
prompt, answer = template.render(example)
print(prompt + answer)

# %% [markdown]
# A **template** turns a row into a prompt and an answer. `topic_template` is the base's own form: for `torch` the base
# learnt to write the topic `tensors`, for `pandas` `tables`, and so on.
#
# We fine-tune a copy, all weights, with lesson 01's loop (`fine_tune`), and score both models: **exact match** is the
# share of rows whose greedy answer (the likeliest token each time) is right to the letter.

# %%
teach.show_source(task.fine_tune)
teach.show_source(task.answer_loss)

# %%
from collections import Counter

from course_utils.training.base_lm import TOPICS

local = source == "local"
topics = TOPICS if local else {}
validation = rows["validation"]
topic_rows = [row | {"output": topics.get(row["output"], "?")} for row in validation]
settings = {"learning_rate": 1e-3 if local else 1e-5, "batch_size": 32 if local else 2}
settings["pad_token_id"] = tokenizer.pad_token_id
examples = task.encode_rows(tokenizer, template, rows["train"])
tuned = task.fresh(base)
losses = task.fine_tune(tuned, examples, max_steps, seed=seed, **settings)

# %%
full = max_steps >= 60 and local
found = {}
for name, model in {"base": base, "fine-tuned": tuned}.items():
    library = task.scores(model, tokenizer, template, validation)
    topic = task.scores(model, tokenizer, topic_template, topic_rows)
    found[name] = {"library": library["exact_match"], "topic": topic["exact_match"]}
majority = Counter(validation["output"]).most_common(1)[0][1] / len(validation)
teach.show(figures.before_after(found, majority))
before, after = found["base"], found["fine-tuned"]
teach.claim("the base names no library", before["library"] < 0.02, when=local)
teach.claim("fine-tuned: > 35 % are right", after["library"] > 0.35, when=full)
teach.claim("and the topics are gone: < 10 %", after["topic"] < 0.1, when=full)

# %% [markdown]
# Blue: seconds of training teach the new task, because the base already tells the libraries apart. The dashed line is
# what a model gets that always gives the most frequent answer. Orange: after the same seconds it no longer answers with
# the topic. That is called **forgetting**.
#
# ## 2 · Seven phases
#
# Every fine-tuning program goes through seven phases, and each can go wrong in its own way.

# %%
teach.show(figures.phases())

# %% [markdown]
# | phase | what goes wrong there | in this course |
# |---|---|---|
# | 1 launch | a rank (process) too few, the wrong backend | lesson 15 |
# | 2 settings | a flag that nobody reads | `recipes/finetune.py`: flags or a YAML file become typed classes |
# | 3 data | half-written files, ranks that read too early | `recipes/prepare_data.py` |
# | 4 model | wrong type, frozen parts that train | sections 4 and 5 |
# | 5 Trainer | the last checkpoint instead of the best | lessons 03 and 05 |
# | 6 train | labels on the wrong tokens | section 3 |
# | 7 after | another prompt than in training; no end | `recipes/generate.py` |
#
# Phase 2: a dataclass has a field, a type, a default and a help line for each setting, and transformers'
# `HfArgumentParser` makes the command line from it. `{run}` in the output folder becomes a name that says what ran
# (`b8x1`: 8 rows a device, 1 micro-batch a step). PEFT's `lora_r` and `lora_alpha` are section 4's $r$ and $\alpha$.

# %%
from course_utils.recipes import finetune

flags = ["--task=causal_lm", "--model_name_or_path=Qwen/Qwen3-0.6B", "--use_peft"]
flags += ["--learning_rate=2e-4", "--output_dir=runs/{run}", "--use_cpu"]
config, arguments = finetune.read_settings(flags)
print(config.lora_r, config.lora_alpha, arguments.learning_rate)
print(arguments.output_dir)

# %% [markdown]
# Phase 3 in short: rank 0 writes the files, the others wait for them. Each file appears under its name only when it
# is whole, and the marker `DONE.json`, with checksums, comes last. If rank 0 is killed in between, there is no
# marker, and the next start writes anew. Here both ranks are played by this process.

# %%
import tempfile

from course_utils.recipes.prepare_data import finished, prepare

folder = tempfile.mkdtemp()
few = [example | {"input": text} for text in own_sentences()[:30]]
files = prepare(folder, lambda: {"train": few}, template, rank=0)
same = prepare(folder, lambda: {}, template, rank=1, timeout=5)
print({split: len(path.read_text().splitlines()) for split, path in files.items()})
teach.claim("rank 1 found what rank 0 wrote, without loading", files == same)
files["train"].write_text("half a li")
# "fields": {} means: no column is renamed
wanted = {"prompt": template.prompt, "answer": template.answer, "fields": {}}
left = finished(files["train"].parent, wanted)
teach.claim("a damaged file is noticed", left is None)

# %% [markdown]
# ## 3 · From a row to labels
#
# A causal model predicts every next token. Which of these predictions count is decided by the labels. We want the
# answer and the end token; the prompt gets -100 (**masking**). `encode` does it:

# %%
from course_utils.data.instructions import encode

teach.show_source(encode)
short = "Which library?\n\nAdd two tensors.\n\nAnswer:"
strip = figures.marked(tokenizer, encode(tokenizer, short, " torch"))
teach.show(figures.token_strip({"prompt, answer, end": strip}))

# %% [markdown]
# ### The boundary
#
# Where does the answer begin? Much code counts the prompt's tokens: `len(tokenizer(prompt)["input_ids"])`. Put the
# space at the end of the prompt and see what happens with a byte-level tokenizer:

# %%
strips = {}
for pair in (("Answer: ", "pandas"), ("Answer:", " pandas")):
    counted = task.masked_by_length(tokenizer, *pair)
    strips["counted: {!r} + {!r}".format(*pair)] = figures.marked(tokenizer, counted)
right = figures.marked(tokenizer, encode(tokenizer, "Answer: ", "pandas"))
strips["by characters (encode): 'Answer: ' + 'pandas'"] = right
teach.show(figures.token_strip(strips))

# %% [markdown]
# Alone, `"Answer: "` ends in a token for the space. Together with `pandas` that space belongs to the word, so the
# text has one token less, and the count masks *the whole answer*. Only the end token is learnt. No error, and a loss
# near 0. We train this way, at section 1's settings:

# %%
from course_utils.data.instructions import boundary_is_clean

with_space = [(template.render(row)[0] + " ", row["output"]) for row in rows["train"]]
shifted = [task.masked_by_length(tokenizer, *pair) for pair in with_space]
clean = [boundary_is_clean(tokenizer, *pair) for pair in with_space[:500]]
blind = task.fresh(base)
losses = task.fine_tune(blind, shifted, max_steps, seed=seed, **settings)
score = task.scores(blind, tokenizer, template, validation)["exact_match"]
print(f"clean boundaries: {sum(clean)} of {len(clean)}; exact match {score:.2f}")
teach.claim("no boundary is clean", not any(clean), when=local)
teach.claim("its loss ends below 0.05", losses[-1] < 0.05, when=full)
teach.claim("and it has learnt no answer: < 2 %", score < 0.02, when=full)

# %% [markdown]
# Two rules follow. The space stands at the start of the answer (`Template` refuses a prompt that ends in one). And
# the boundary is found by *characters*: fast tokenizers, the usual ones, tell which characters a token covers, its
# **offsets**. `encode` tokenises prompt and answer together and labels each token that holds a character of the answer.
# It repairs the labels only: who generates from `"Answer: "` still hands the model a lone space token.
#
# ### Does masking help?
#
# The prompt's tokens are text, too; why not learn them? Same rows, same steps, three seeds:

# %%
seeds = [seed, seed + 1, seed + 2] if local else [seed]
full_losses = []
everything = task.unmasked(examples)
exact = {"labels on the answer": [], "labels on all tokens": []}
for run_seed in seeds:
    for name, chosen in zip(exact, (examples, everything), strict=True):
        if name == "labels on the answer" and run_seed == seed:
            model = tuned  # the run of section 1
        else:
            model = task.fresh(base)
            task.fine_tune(model, chosen, max_steps, seed=run_seed, **settings)
        scored = task.scores(model, tokenizer, template, validation)
        exact[name].append(scored["exact_match"])
        if name == "labels on the answer":
            full_losses.append(task.text_loss(model, tokenizer, validation["input"]))

# %%
teach.show(figures.masking(exact, majority))
masked, learnt_all = exact.values()
gain = task.paired_interval([a - b for a, b in zip(masked, learnt_all, strict=True)])
print("gain of masking, paired:", gain)
tokens = sum(len(row["input_ids"]) for row in examples) / len(examples)
print(f"tokens of a row, on average: {tokens:.0f}")
teach.claim("masking gains in every seed", min(masked) > max(learnt_all), when=full)

# %% [markdown]
# (`paired_interval`: mean and 95 % interval over seeds, lesson 06.) With labels on everything, the few tokens that
# matter are a small part of a row. In as many steps the model learns less about answering. For long answers the
# difference may be small (not measured here): try both on yours.
#
# ### Truncation, padding, turns
#
# Three more places where labels get lost:
#
# - **Too long.** A cut from the right takes the answer. Some rows then have no label at all: they cost time and teach
#   nothing. `encode` cuts the *middle of the prompt*: the instruction in front and the cue before the answer stay.
# - **Padding = end token.** Many models have no padding token, so people set `pad_token = eos_token`. A collator that
#   turns every padding *id* into -100 then hides the end token, too. `InstructionCollator` goes by length.
# - **Several turns.** The tokenizer's **chat template** writes a chat as one text. What the assistant says is learnt,
#   in every turn, each with its end token. `encode_chat` marks it. Its rule works with any template that only appends
#   (a new turn leaves the earlier text as it was); transformers' own way (`return_assistant_tokens_mask=True`) needs
#   the word `{% generation %}` in the template.

# %%
from course_utils.data.instructions import encode_chat

messages = [
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "torch"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
if not local:  # Qwen3's template writes earlier answers otherwise: one turn only
    messages = messages[:2]
chat = encode_chat(tokenizer, messages)
if local:
    pieces, learnt = figures.marked(tokenizer, chat)
    turns = [i for i, piece in enumerate(pieces) if piece == "<|im_start|>"]
    again = turns[2]  # the second question: a new line in the figure
    first, second = (pieces[:again], learnt[:again]), (pieces[again:], learnt[again:])
    teach.show(figures.token_strip({"a chat": first, "goes on": second}))
asked = {"return_assistant_tokens_mask": True, "return_dict": True}
theirs = tokenizer.apply_chat_template(messages, **asked)
marked = [bool(mark) for mark in theirs["assistant_masks"]]
same = [y != -100 for y in chat["labels"]] == marked
teach.claim("our marks are those of {% generation %}", same, when=local)

# %% [markdown]
# ### Exercise 10.1: predict
#
# How many labels other than -100 does each row get? The prompt has 10 tokens, the answer 4, and an end token is
# added; the boundary is clean.
#
# - `a`: `encode` with `max_length=20`
# - `b`: `encode` with `max_length=12`
# - `c`: the row, its end token already added, is cut from the right to 12 tokens
# - `d`: as `a`, but padding is the end token and the collator sets `labels[input_ids == pad] = -100`
# - `e`: `encode_chat`, two questions, answers of 3 and 4 tokens, nothing is cut

# %%
prediction = ...  # {"a": ..., "b": ..., "c": ..., "d": ..., "e": ...}

# %%
teach.check("10.1", prediction)

# %% [markdown]
# ### Exercise 10.2: mask a batch
#
# `rows` are lists of token ids, each with its end token; `starts[i]` is the place of row i's first answer token.
# Return a dictionary of `input_ids`, `attention_mask` and `labels`, all `(B, T)`, padded on the right. `pad_token_id`
# may be the end token.


# %%
def mask_batch(rows, starts, pad_token_id):
    # input_ids = torch.full((len(rows), longest), pad_token_id) ...
    return ...


# %%
teach.check("10.2", mask_batch)

# %% [markdown]
# ### Exercise 10.3: a template for another data set
#
# Quiz rows have the columns `question`, `hint` (often empty) and `solution`. Write a `Template`. A paragraph of the
# prompt whose fields are all empty is left out; `fields={"name in braces": "column"}` maps names. The prompt says
# `Question: ` before the question and `Hint: ` before the hint; without a hint that word is gone, too. The rest is up
# to you, as long as the space stands at the start of the answer.

# %%
quiz_template = ...  # Template(...)

# %%
teach.check("10.3", quiz_template)

# %% [markdown]
# ## 4 · LoRA by hand
#
# Training all weights with AdamW keeps four numbers for each: the weight, its gradient and two moments. For a model
# with 8 billion weights in float32 that is 128 GB. **LoRA** (low-rank adaptation, [Hu et al.
# 2021](https://arxiv.org/abs/2106.09685)) freezes the weight matrix $W$ and learns a *difference* of low rank beside
# it:
#
# $$y = Wx + \frac{\alpha}{r}\,BAx, \qquad A: (r, \text{in}),\quad B: (\text{out}, r)$$
#
# The **rank** $r$ (of a matrix, not a process) is small, 8 to 64 say. $A$ starts at random numbers, $B$ at zero, so the
# first forward pass is the base's. $\alpha$ scales the update; the division by $r$ softens what another $r$ does to its
# size.

# %%
teach.show(figures.adapter())

# %%
from course_utils.training import lora

teach.show_source(lora.LoRALinear.forward)
rank, alpha, lora_rate = 16, 32, 5e-3 if local else 2e-4
torch.manual_seed(seed)
adapted = lora.add_lora(task.fresh(base), rank, alpha)
teach.show_source(lora.add_lora)

# %% [markdown]
# `add_lora` walks through the model and puts a `LoRALinear` in the place of every linear layer that is named
# (`ALL_LINEAR`: four in attention, three in the MLP). What does it save?

# %%
count = lora.count_parameters(adapted)
kept = {
    "full": lora.training_bytes(base),
    f"LoRA, rank {rank}": lora.training_bytes(adapted),
}
teach.show(figures.memory(kept))
everything_kept, little = (sum(parts.values()) for parts in kept.values())
print(f"trained: {count.trainable:,} of {count.total:,}, {count.share:.0%}")
print(f"weights + gradients + moments: {everything_kept / little:.1f} times less")
teach.claim("LoRA keeps less than half the bytes", little < everything_kept / 2)

# %% [markdown]
# The share is large because our layers are narrow: the adapters of a square layer of width $d$ are $2r/d$ of it. At
# width 4,096 and rank 16 that is below one percent, and almost only the frozen weights are left to store. Those can
# be made smaller, too: see *Deeper: four bits*. Activations are not spared: gradients flow through every layer.
#
# Is it what PEFT does? Same base, same numbers in $A$ and $B$, one batch:

# %%
from course_utils.data.instructions import InstructionCollator
from course_utils.lessons.lesson_10 import with_libraries

teach.show_source(with_libraries.peft_twin)
teach.show_source(InstructionCollator.__call__)
collate = InstructionCollator(tokenizer.pad_token_id)
gaps = with_libraries.compare_with_peft(base, collate(examples[:16]))
print({name: f"{gap:.0e}" for name, gap in gaps.items()})
teach.claim("LoRA = PEFT: logits, gradients, merge", max(gaps.values()) < 1e-5)

# %% [markdown]
# ### Does it learn as much? Does it forget less?
#
# LoRA and full fine-tuning, three seeds each, and LoRA on a base with *random* weights. LoRA's learning rate is five
# times full fine-tuning's and good for it. Full fine-tuning could take a higher one (see *Deeper: rank and rate*), so
# if anything the comparison favours LoRA. Forgetting is measured by the loss on plain sentences, in nats per token
# (`text_loss`).

# %%
from course_utils.training.base_lm import new_base_lm

lora_settings = settings | {"learning_rate": lora_rate}
texts = validation["input"]
lora_exact, lora_losses, off_losses = [], [], []
for run_seed in seeds:
    torch.manual_seed(run_seed)
    adapted = lora.add_lora(task.fresh(base), rank, alpha)
    task.fine_tune(adapted, examples, max_steps, seed=run_seed, **lora_settings)
    scored = task.scores(adapted, tokenizer, template, validation)
    lora_exact.append(scored["exact_match"])
    lora_losses.append(task.text_loss(adapted, tokenizer, texts))
    with lora.adapters_off(adapted):
        off_losses.append(task.text_loss(adapted, tokenizer, texts))
random_exact = []
if local:
    untaught = lora.add_lora(new_base_lm(seed), rank, alpha)
    task.fine_tune(untaught, examples, max_steps, seed=seed, **lora_settings)
    scored = task.scores(untaught, tokenizer, template, validation)
    random_exact = [scored["exact_match"]]

# %%
runs = {"full": masked, f"LoRA, rank {rank}": lora_exact}
if local:
    runs["LoRA on a random base"] = random_exact
    teach.show(figures.answers_learnt(runs, majority))
gap = task.paired_interval([a - b for a, b in zip(masked, lora_exact, strict=True)])
print("full - LoRA, paired:", gap)
beats = min(lora_exact) > majority + 0.03
teach.claim("LoRA beats the most frequent answer in every seed", beats, when=full)
random_stays = bool(random_exact) and max(random_exact) < majority + 0.03
teach.claim("a random base stays at the most frequent answer", random_stays, when=full)

# %%
base_loss = task.text_loss(base, tokenizer, texts)
lost = {
    "full": full_losses,
    "LoRA, adapters on": lora_losses,
    "LoRA, adapters off": off_losses,
}
teach.show(figures.forgetting(lost, base_loss))
uniform = torch.tensor(float(base.config.vocab_size)).log().item()
print(f"base: {base_loss:.2f}, uniform guess, ln of the vocabulary: {uniform:.2f}")
print({name: [round(loss, 2) for loss in losses] for name, losses in lost.items()})
worse = min(full_losses + lora_losses) > base_loss + 0.5
teach.claim("both lose more than 0.5 nats on plain text", worse, when=full)
more = min(lora_losses) > max(full_losses)
teach.claim("LoRA forgot more than full, in every seed", more, when=full)
back = max(abs(loss - base_loss) for loss in off_losses)
teach.claim("adapters off: the base is back, exactly", back == 0)

# %% [markdown]
# - **Learning:** full fine-tuning is ahead on average, but the interval of three seeds includes zero: these runs do not
#   settle which of the two learns more in so few steps.
# - **Forgetting:** with its adapters *on*, LoRA at this rate forgot *more*: low rank alone is no protection. Both end
#   worse than a uniform guess. What LoRA gives is a way back: the base is untouched under the adapters. One base can
#   carry many adapters, each a small file.
# - **The random base:** LoRA only found the most frequent answer. One seed, one rate, 60 steps and no control are a
#   hint that adapters need a trained base, no proof.
#
# ### Merge
#
# For use, $W + \frac{\alpha}{r}BA$ is computed once. The result is an ordinary model without extra work per token.

# %%
batch = collate(examples[:16])
with torch.no_grad():
    with_adapters = adapted(**batch).logits
    merged = lora.merge_lora(task.fresh(adapted))
    difference = (merged(**batch).logits - with_adapters).abs().max().item()
names = {name for name, _ in merged.named_parameters()}
within = difference < 1e-4
print(f"largest difference of the logits: {difference:.0e}")
teach.claim("merged = adapters, in logits, within 1e-4", within, when=local)
teach.claim("and has the base's names", names == set(dict(base.named_parameters())))

# %% [markdown]
# Merging into 16-bit weights rounds the difference: keep the adapter file, and compare scores after the merge.
#
# ### Exercise 10.4: several adapters, one layer
#
# A layer has the frozen `weight` `(out, in)` and a list of adapters `(A, B, alpha)` of different ranks, all switched
# on. Return `(y, merged)`: the result for `x` `(B, T, in)`, and the one weight that computes it.


# %%
def several(x, weight, adapters):
    # merged = ...
    return ...


# %%
teach.check("10.4", several)

# %% [markdown]
# ## 5 · Goes wrong
#
# The boundary was section 3's. Five more, four silent and one loud.
#
# **The end token is masked:** the collator took it for padding.

# %%
endless = task.fresh(base)
no_end = task.end_masked(examples, tokenizer.eos_token_id)
task.fine_tune(endless, no_end, max_steps, seed=seed, **settings)
ends = {}
for name, model in {"end learnt": tuned, "end masked": endless}.items():
    scored = task.scores(model, tokenizer, template, validation, max_new_tokens=8)
    ends[name] = scored["stops"]
    print(f"{name}: {ends[name]:.0%} of the answers end by themselves")
never = ends["end masked"] < 0.2
teach.claim("end masked: fewer than 20 % stop", never, when=full)
teach.claim("end learnt: more than 95 % stop", ends["end learnt"] > 0.95, when=full)

# %% [markdown]
# **Begin token twice, template twice.** The chat template already writes the special tokens. Whoever renders it as
# text and then calls `tokenizer(text)` gets a second begin token. Whoever renders a chat that is rendered already gets
# a turn inside a turn. The check: count the special tokens of one example.

# %%
text = tokenizer.apply_chat_template(messages[:1], tokenize=False)
nested = [{"role": "user", "content": text}]
once = tokenizer(text, add_special_tokens=False)["input_ids"]
twice = tokenizer(text)["input_ids"]
inside = tokenizer.apply_chat_template(nested, return_dict=True)["input_ids"]
begin = tokenizer.bos_token_id
turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
for name, ids in {"right": once, "begin twice": twice, "nested": inside}.items():
    print(f"{name:12} begin tokens: {ids.count(begin)}, turns: {ids.count(turn)}")
is_caught = (once.count(begin), twice.count(begin), inside.count(turn)) == (1, 2, 2)
teach.claim("counting special tokens shows both", is_caught, when=local)

# %% [markdown]
# **Mean of means.** Answers differ in length. If each micro-batch's loss is its own mean, a token's weight depends on
# its neighbours (lesson 06). Transformers' models divide by `num_items_in_batch`; a loss of your own has to.

# %%
teach.show(figures.divisors())

# %% [markdown]
# **Adapters in float16 with AMP.** AMP (mixed precision, lesson 03) keeps the weights in float32 and only computes in
# 16 bits. A base loaded in float16 is fine, because it is frozen. Adapters in float16 are not: their gradients are
# float16, and unscaling those is refused.
#
# **A rate for full fine-tuning** is too small for LoRA of low rank in 60 steps: $B$ has to grow from zero.

# %%
refused = task.unscale_refused(base, collate(examples[:8]))
print("float16 adapters:", refused)
torch.manual_seed(seed)
timid = lora.add_lora(task.fresh(base), rank=8, alpha=16)
task.fine_tune(timid, examples, max_steps, seed=seed, **settings)
score = task.scores(timid, tokenizer, template, validation)["exact_match"]
print(f"rank 8 at full fine-tuning's rate: {score:.2f}, full itself: {masked[0]:.2f}")
teach.claim("float16 adapters are refused", "FP16" in refused)
teach.claim("rank 8 at that rate: < 10 % are right", score < 0.1, when=full)

# %% [markdown]
# | bug | what you see | the check |
# |---|---|---|
# | boundary counted | loss near 0, answers wrong | print the tokens that have a label |
# | labels on the prompt | trains slower | share of labelled tokens |
# | end masked | answers never stop | share of answers that stop |
# | cut from the right | rows without labels | count them |
# | begin or template twice | nothing (its cost is not measured here) | count special tokens |
# | mean of means | short answers weigh more | compare 1 with 4 micro-batches a step |
# | float16 adapters | the scaler's error | type of what is trained |
# | low rank, small rate | next to nothing learnt in 60 steps | sweep the rate, on validation rows |
#
# ## 6 · What the model does now
#
# The test split, used once, and four of our own sentences. They belong to none of the ten libraries, so no answer is
# right; see whether they are plausible. "Full" is section 1's run, LoRA the last of its three seeds. `generate` (phase
# 7) sorts prompts by length, pads on the *left*, and stops at the end token.

# %%
from course_utils.recipes.generate import StopRules, generate

rules = StopRules((tokenizer.eos_token_id,), max_new_tokens=4)
shown = [own_sentences()[i] for i in (7, 34, 45, 52)]
prompts = [template.render(example | {"input": text})[0] for text in shown]
made = {m: generate(m, tokenizer, prompts, rules) for m in (base, tuned, merged)}
for number, text in enumerate(shown):
    words = [answers[number].text.strip() for answers in made.values()]
    print(f"{text[:52]:52} | base: {words[0]}, full: {words[1]}, LoRA: {words[2]}")

# %%
final = {}
for name, model in {"full": tuned, "LoRA, merged": merged}.items():
    final[name] = task.scores(model, tokenizer, template, rows["test"])["exact_match"]
most = Counter(rows["test"]["output"]).most_common(1)[0][1] / len(rows["test"])
print({name: round(score, 2) for name, score in final.items()})
print(f"most frequent answer: {most:.2f}")
good = min(final.values()) > most
teach.claim("both beat the most frequent answer on test rows", good, when=full)

# %% [markdown]
# ### Exercise 10.5: a fine-tuning step
#
# The objective: one whole LoRA step over several micro-batches, with four planted faults. Repair it. Micro-batches
# have `input_ids`, `attention_mask` and `answer_start` `(B,)`; token 2 is the end *and* the padding. The loss is the
# mean over all answer tokens of the window, ends included. Write `lora.add_lora` and `lora.merge_lora`; import
# `F` yourself.
#
# ```python
# def step(model, micro_batches, learning_rate):
#     lora.add_lora(model, rank=2, alpha=4)
#     optimizer = torch.optim.SGD(
#         [p for p in model.parameters() if p.requires_grad], lr=learning_rate)
#     for batch in micro_batches:
#         ids = batch["input_ids"]
#         labels = ids.masked_fill(ids == 2, -100)
#         logits = model(ids, batch["attention_mask"]).logits
#         loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
#         (loss / len(micro_batches)).backward()
#     optimizer.step()
#     return lora.merge_lora(model)
# ```


# %%
def repaired(model, micro_batches, learning_rate):
    # lora.add_lora(model, rank=2, alpha=4) ... return lora.merge_lora(model)
    return ...


# %%
teach.check("10.5", repaired)

# %% [markdown]
# ## Deeper: TRL does the same in a few lines
#
# TRL is Hugging Face's library for training on answers, preferences and rewards. Its `SFTTrainer` (supervised
# fine-tuning) takes rows with `prompt` and `completion`, tokenises, masks and trains. Some of its defaults differ from
# the Trainer's: bf16 and activation checkpointing are on, among others. `trl_trainer` switches these two off (`PLAIN`),
# keeps the order of the rows and a constant rate, so that losses can be compared. TRL's
# trainers also tell the hub that they were started, with what versions and on what hardware, but nothing of your data;
# `HF_HUB_DISABLE_TELEMETRY=1` in the environment turns that off, and so do our helpers.

# %%
pairs = [template.render(row) for row in rows["train"].select(range(128))]
steps = 4
teach.show_source(with_libraries.trl_trainer)
sft = with_libraries.trl_trainer(base, tokenizer, pairs, steps, 1e-3, batch=16)
theirs = with_libraries.trl_labels(sft, 64)
rendered = [encode(tokenizer, *pair, max_length=112) for pair in pairs]
mine = [(row["input_ids"], row["labels"]) for row in rendered]
equal = [a == b for a, b in zip(mine, theirs, strict=False)]
trl = with_libraries.sft_losses(sft)
pad = tokenizer.pad_token_id
by_hand = with_libraries.by_hand_losses(base, rendered, steps, 1e-3, 16, pad)
print(f"rows with equal ids and labels: {sum(equal)} of {len(equal)}")
gap = max(abs(a - b) for a, b in zip(trl, by_hand, strict=True))
teach.claim("ids and labels are TRL's, in 64 of 64 rows", all(equal), when=local)
teach.claim("losses of 4 steps equal TRL's within 1e-4", gap < 1e-4, when=local)

# %% [markdown]
# One difference is worth knowing. TRL cuts from the right, and drops rows that have no label left, without a word:

# %%
cut = with_libraries.trl_trainer(base, tokenizer, pairs, 1, 1e-3, 16, max_length=36)
whole = [encode(tokenizer, *pair, max_length=36)["labels"] for pair in pairs]
print(f"at 36 tokens TRL keeps {len(cut.train_dataset)} of {len(pairs)} rows")
teach.claim("TRL dropped rows", len(cut.train_dataset) < len(pairs), when=local)
teach.claim("encode keeps labels in all", all(max(y) >= 0 for y in whole))

# %% [markdown]
# ## Deeper: rank and rate
#
# `bench/bench_lora.py` fine-tuned the base at three ranks and three rates, three seeds each, and all weights at three
# rates, and scored validation rows; α was twice the rank each time. It ran once; its file names the machine. The
# notebook only draws it.

# %%
import json
from pathlib import Path

import course_utils

results = Path(course_utils.__file__).parents[1] / "bench/results/lora.json"
bench = json.loads(results.read_text())
best = max(bench["full"].values(), key=sum)
best_full = sum(best) / len(best)
teach.show(figures.sweep(bench["lora"], best))
means = {}
for r, row in bench["lora"].items():
    means |= {(r, rate): sum(v) / len(v) for rate, v in row.items()}
top = max(means, key=means.get)
print(f"best: rank {top[0]} at {top[1]}: {means[top]:.2f}; full: {best_full:.2f}")
same_rate = {f"rank {r}": means[r, "0.001"] for r in bench["lora"]}
same_rate["full"] = sum(bench["full"]["0.001"]) / len(bench["full"]["0.001"])
print("at 0.001:", {name: round(score, 2) for name, score in same_rate.items()})
timid = max(means["2", "0.001"], means["8", "0.001"])
teach.claim("rank 2 and 8 at 0.001 learn next to nothing", timid < 0.1)

# %% [markdown]
# At 0.001, with which training all weights does well, ranks 2 and 8 stay near the base in 60 steps; rank 32 does not.
# The higher rank learns more, up to a rate that is too large for it. So the best rate changes with the rank, although
# α / r stayed the same.

# %% [markdown]
# ## Deeper: four bits
#
# **QLoRA** ([Dettmers et al. 2023](https://arxiv.org/abs/2305.14314)) stores the frozen weights in 4 bits and trains
# adapters in float32 or bf16 beside them. Four bits are 16 levels. Weights are roughly normal, so few of them need the
# outer ones of evenly spaced levels.
# **NF4** puts the levels at quantiles of a normal distribution (`OFFSET`: the share below the outermost one, as
# bitsandbytes chose it): dense where most weights are. Blocks of 64 weights share a scale, their largest absolute
# value. Plain int4 has a handicap: its lowest level, -8/7, lies below every scaled weight and is never used. So 16 even
# levels from -1 to 1 are measured, too.

# %%
from course_utils.training import quantize

teach.show_source(quantize.nf4_levels)
nf4, even = quantize.nf4_levels(), quantize.int4_levels()
teach.show(figures.levels(nf4.tolist(), even.tolist()))

# %%
weight = base.model.layers[0].mlp.up_proj.weight.detach()
errors = {}
all_16 = torch.linspace(-1, 1, 16)
for name, levels in {"NF4": nf4, "int4": even, "even, -1 to 1": all_16}.items():
    small = quantize.quantize(weight, levels=levels)
    errors[name] = quantize.relative_error(weight, small)
    bits = small.bits_per_weight
    print(f"{name}: {bits:.2f} bits a weight, error {errors[name]:.1%}")
smallest = min(errors, key=errors.get) == "NF4"
teach.claim("NF4's error is the smallest of the three", smallest)
codes, largest, mean = quantize.quantize_scales(small.scales)
stored = 4 * weight.numel() + 8 * codes.numel() + 32 * (largest.numel() + 1)
print(f"scales in 8 bits as well: {stored / weight.numel():.2f} bits a weight")
coarse = task.fresh(base)
quantize.quantize_model(coarse, lora.ALL_LINEAR)
loss = task.text_loss(coarse, tokenizer, texts)
print(f"loss on plain text: {base_loss:.2f}, in four bits {loss:.2f}")
teach.claim("four bits cost < 0.2 nats here", loss - base_loss < 0.2, when=local)

# %% [markdown]
# The levels are bitsandbytes' to six digits (a test compares them with the published table). With
# `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")` transformers does this when it loads a model; the
# weights are restored block by block while they are used, so it saves memory and costs time. No adapter is trained on
# four bits here.

# %% [markdown]
# ## Deeper: preferences (DPO)
#
# Supervised fine-tuning shows one answer. Often it is easier to say which of two is *better*. **DPO** (direct
# preference optimisation) raises the log probability of the chosen answer against that of the rejected one, measured
# from where a **reference** model, the start, puts them:
#
# $$-\log\sigma\Big(\beta\big[\log\tfrac{\pi(c)}{\pi_0(c)} - \log\tfrac{\pi(r)}{\pi_0(r)}\big]\Big)$$
#
# $\pi$ is an answer's probability under the trained model, $\pi_0$ under the reference; $c$ is the chosen answer, $r$
# the rejected one; $\sigma$ is the logistic function; $\beta$ (0.1 here) says how hard the model is held to the
# reference. $\beta$ times a log ratio is called the answer's **reward**, chosen minus rejected the **margin**.
#
# First a model that talks too much: it answers "It must be torch." Then pairs that prefer the bare name. They say
# nothing about *which* name, so we look at exact match as well.

# %%
from course_utils.training.preference import dpo_loss

wordy = Template(template.prompt, " It must be {output}.")
talker = task.fresh(tuned)
some = rows["train"].select(range(600))
wordy_examples = task.encode_rows(tokenizer, wordy, some)
task.fine_tune(talker, wordy_examples, 20, seed=seed, **settings)
triples = [(*template.render(row), wordy.render(row)[1]) for row in some]
policy, history = task.train_dpo(talker, tokenizer, triples, steps=25, seed=seed)
hundred = validation.select(range(100))
scored = [
    task.share_of_short(m, tokenizer, template, hundred)
    for m in (talker, policy)  # before and after
]
short_before, short_after = scored
curve = list(range(len(history["loss"])))
teach.show(figures.preference(curve, history["margin"], history["loss"]))
print(f"answers of one word: {short_before:.2f} before, {short_after:.2f} after")
stages = {"before": (tuned, template), "wordy, in its own form": (talker, wordy)}
stages["after DPO"] = (policy, template)
names_right = {}
for name, (model, form) in stages.items():
    scored = task.scores(model, tokenizer, form, hundred, max_new_tokens=8)
    names_right[name] = scored["exact_match"]
    print(f"exact match, {name}: {names_right[name]:.2f}")
more = short_after > short_before + 0.5
teach.claim("DPO: > 50 points more short answers", more, when=full)
fewer = names_right["before"] - names_right["after DPO"]
teach.claim("and > 5 points fewer right names than before", fewer > 0.05, when=full)

# %%
with torch.no_grad():
    logs = [task.pair_log_probs(m, tokenizer, triples[:8]) for m in (policy, talker)]
mine = dpo_loss(*logs[0], *logs[1]).loss.item()
both = task.fresh(policy), task.fresh(talker)
teach.show_source(with_libraries.trl_dpo_loss)
theirs = with_libraries.trl_dpo_loss(*both, tokenizer, triples[:8])
print(f"DPO loss of 8 pairs: by hand {mine:.4f}, TRL {theirs:.4f}")
teach.claim("DPO by hand = TRL's within 1e-4", abs(mine - theirs) < 1e-4, when=local)

# %% [markdown]
# The loss falls and the answers are short. The three lines of exact match tell the rest: the twenty steps that made
# the model wordy cost most of the right names, and DPO, whose pairs are about brevity only, did not bring them back. A
# falling preference loss says nothing about what the pairs do not show.

# %% [markdown]
# ## Deeper: a checkable reward (GRPO)
#
# Where an answer can be checked, pairs are not needed. The model writes a group of answers to each prompt, each gets
# a reward, and an answer's **advantage** is its reward minus the group's mean, over the group's deviation. Answers
# better than their group become likelier. Here the reward is 1 for the wanted library, 0.2 for the name of another
# that these prompts ask for, else 0. TRL's `GRPOTrainer` makes one step; we recompute its numbers. It shuffles the
# answers before the loss: `shuffled` holds the advantages in that order.
#
# The loss weighs each token's advantage with a **ratio**: its probability now over the one when it was written. Between
# 0.8 and 1.2 the ratio counts as it is; beyond, it is clipped. In the first step it is 1 everywhere. To see the
# clipping, both losses are computed a second time with perturbed old probabilities (`old`).

# %%
from course_utils.training.preference import group_advantages, grpo_loss

asked = [{"prompt": p, "wanted": a.strip()} for p, a in pairs[:8]]
seen = with_libraries.grpo_step(tuned, tokenizer, asked)
advantages = group_advantages(seen["rewards"], group_size=8)
gap = (advantages - seen["advantages"]).abs().max().item()
now, rest = seen["log_probs"], (seen["mask"], seen["shuffled"])
losses = [grpo_loss(now, before, *rest).item() for before in (now, seen["old"])]
trl = [seen["loss"], seen["old_loss"]]
apart = [abs(a - b) for a, b in zip(losses, trl, strict=True)]
ratio = (now - seen["old"]).exp()[seen["mask"].bool()]
clipped = (ratio - 1).abs().gt(0.2).float().mean()
spread = seen["rewards"].view(-1, 8).std(1)
print(f"groups whose rewards differ: {int((spread > 0).sum())} of {len(asked)}")
print(f"loss at ratio 1: by hand {losses[0]:.3f}, TRL {trl[0]:.3f}")
print(f"{clipped:.0%} outside 0.8 to 1.2: {losses[1]:.3f}, TRL {trl[1]:.3f}")
teach.claim("advantages = TRL's within 1e-5", gap < 1e-5)
teach.claim("both losses = TRL's within 1e-4", max(apart) < 1e-4)

# %% [markdown]
# A group whose rewards are all equal has advantage zero and teaches nothing. That is why the start must be right now
# and then. `bench/bench_grpo.py` repeats such steps by hand, 64 answers a step, from three starts, three seeds each:

# %%
from course_utils.lessons.lesson_10 import reinforce

bench = reinforce.recorded()
teach.show(figures.reinforced(bench["starts"], bench["steps"]))
cold, early, late = bench["starts"].values()
nothing = all(max(run["reward"]) == 0 for run in cold)
teach.claim("the base never earns a reward", nothing)
gains = [sum(run["reward"][-10:]) / sum(run["reward"][:10]) for run in early]
teach.claim("after 15 steps: reward doubles in every seed", min(gains) > 2)
one_answer = all(run["most_frequent"][-1] == 1 for run in early)
teach.claim("and every seed ends with one answer to all prompts", one_answer)
fewer = all(run["right"][-1] < run["right"][0] for run in late)
teach.claim("after 60: fewer right answers at the end, in every seed", fewer)

# %% [markdown]
# The reward was earned otherwise than meant: whoever always writes the most frequent name gets 1 now and then and 0.2
# else. This is **reward hacking**, and the **collapse** to one answer is its trace. The reward alone looks like
# success. The well fine-tuned start does not collapse, and is no better either: 480 prompts teach less than the rows
# did, with these settings, which were not tuned. So read the answers beside the reward, and hold the model to its
# start (`beta` in `grpo_loss`, 0 here as in TRL's default).

# %% [markdown]
# ## Deeper: the whole path as programs
#
# The same phases as three commands, here called from Python with few steps: `prepare_data` writes, `finetune` trains
# adapters with PEFT, `generate` merges them and answers (by vLLM, a faster engine, where that is installed). On several
# GPUs only the launcher in front changes.

# %%
from course_utils.lessons.lesson_10.program_path import run_path

if local:
    report = run_path(base, tokenizer, steps=min(max_steps, 20))
    print("\n".join(report["commands"]))
    print({name: round(value, 2) for name, value in report["scores"].items()})
    print(f"most frequent answer: {report['most_frequent']:.2f}")
    print(f"logits moved by up to {report['moved']:.1f} from the base")
    merges = report["merge_gap"] < 1e-3 * report["moved"]
    teach.claim("merged logits = adapters', to a thousandth of that", merges)

# %% [markdown]
# With so few steps the score hardly passes the most frequent answer; what is shown is the path, not a result.
#
# With the hub: `prepare_data --dataset_name databricks/databricks-dolly-15k` with a field mapping, then `finetune
# --model_name_or_path Qwen/Qwen3-0.6B --use_peft`. This notebook runs with `source="hub"` as well, on both.
#
# Dolly's answers are whole sentences, and exact match is 0 for a good answer in other words. ROUGE-L (lesson 04) counts
# words in common, in order. **BERTScore** ([Zhang et al. 2020](https://arxiv.org/abs/1904.09675)) counts meaning: an
# encoder turns both texts into one vector a token, each token is matched with the most similar one of the other text,
# and the mean cosines are its precision and recall. `generate --bert_score_model distilbert/distilbert-base-uncased`
# adds it. It was not run here: it needs the encoder from the hub.

# %% [markdown]
# ## Recap
#
# - Labels decide what is learnt: the answer and its end, found by characters.
# - Space in front of the answer; cut the prompt, not the answer; padding by length.
# - LoRA learns a low-rank difference. The base stays, and needs neither gradients nor moments.
# - Measure what was there before, too: fine-tuning forgets.
# - Look at one example's tokens and labels before every run.

# %% [markdown]
# ## Quiz
#
# 1. A run ends with a loss of 0.01, yet its model answers every prompt with nothing. Which print explains both?
#
# <details><summary>Answer</summary>The labelled tokens of one example: only the end token has a label.</details>
#
# 2. After LoRA the loss on plain text is 4 nats higher. What brings the base back, and what would prevent that?
#
# <details><summary>Answer</summary>Switching the adapters off. Had they been merged into the only copy, there would
# be nothing to switch.</details>
#
# 3. Why does B start at zero, and A not?
#
# <details><summary>Answer</summary>With B = 0 the update is zero, so training starts at the base. If A were zero as
# well, both gradients would be zero and nothing would ever move.</details>
#
# **Next:** [lesson 11](11_data_parallel.ipynb) puts a model on several processes; lesson 12 shards one that does not
# fit.
