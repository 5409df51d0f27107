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
max_steps = 60  # of each run
seed = 0

# %% slideshow={"slide_type": "skip"}
import json
from collections import Counter
from pathlib import Path

import torch

import course_utils
from course_utils import teach
from course_utils.data import load_instructions
from course_utils.data.instructions import Template, encode, encode_chat
from course_utils.lessons.lesson_10 import figures, task
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.training import lora, quantize
from course_utils.training.base_lm import TOPICS, load_base_lm

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
tokenizer, base = load_chat_tokenizer(source), load_base_lm(source)
rows = task.take_rows(load_instructions(source), source)
template = Template()
topic_template = Template("{input}\n\nTopic:", " {output}")
validation = rows["validation"]
topic_rows = [row | {"output": TOPICS.get(row["output"], "?")} for row in validation]
examples = task.encode_rows(tokenizer, template, rows["train"])
tuned = task.fresh(base)
task.fine_tune(tuned, examples, max_steps, 1e-3, seed=seed)
torch.manual_seed(seed)
adapted = lora.add_lora(task.fresh(base), 16, 32)
task.fine_tune(adapted, examples, max_steps, 5e-3, seed=seed)


def marks(encoded):
    return figures.marked(tokenizer, encoded)


# %% [markdown] slideshow={"slide_type": "slide"}
# # 10 · Fine-tuning a language model
#
# Which tokens are learnt, which weights may move, what is lost

# %% [markdown] slideshow={"slide_type": "notes"}
# Goal of the session: everybody can say for a given row which tokens have a label, can put adapters into a model by
# hand, and measures what was there before as well as what was taught. About 75 minutes with exercises. Start with the
# question: who has fine-tuned a model, and who has looked at the labels of one example?

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Sixty steps: a new answer, an old one gone
#
# Fine-tuning teaches quickly, and forgets quickly.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
found = {}
for name, model in {"base": base, "fine-tuned": tuned}.items():
    library = task.scores(model, tokenizer, template, validation)["exact_match"]
    topic = task.scores(model, tokenizer, topic_template, topic_rows)["exact_match"]
    found[name] = {"library": library, "topic": topic}
majority = Counter(validation["output"]).most_common(1)[0][1] / len(validation)
teach.show(figures.before_after(found, majority))

# %% [markdown] slideshow={"slide_type": "notes"}
# The base writes the topic of a documentation sentence; we teach it to name the library. It learns fast, because it
# can tell the libraries apart already. After the same seconds it no longer answers with topics: forgetting. Keep
# both bars in mind.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Seven phases
#
# When something is wrong, ask first in which phase.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.phases())

# %% [markdown] slideshow={"slide_type": "notes"}
# Every fine-tuning program has them, whatever its size. When something is wrong, ask first in which phase. Data: rank
# 0 writes once, the marker comes last, so a killed rank 0 leaves no half data set that somebody trains on.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Only the answer is learnt
#
# Grey has the label -100; the end token is part of the answer.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
one = encode(tokenizer, "Which library?\n\nAdd two tensors.\n\nAnswer:", " torch")
teach.show(figures.token_strip({"prompt, answer, end": marks(one)}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Each box is a token. Grey has the label -100. The last orange box is the end token: ask what happens without it. It
# never stops. We measure that later.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where does the answer begin?
#
# The prompt alone has another number of tokens than the prompt inside the whole.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
counted = task.masked_by_length(tokenizer, "Answer: ", "pandas")
strips = {
    "counted: 'Answer: ' + 'pandas'": marks(counted),
    "by characters: 'Answer: ' + 'pandas'": marks(encode(tokenizer, "Answer: ", "pandas")),
}
teach.show(figures.token_strip(strips))

# %% [markdown] slideshow={"slide_type": "notes"}
# The most frequent silent bug. Alone, the prompt ends in a token for the space. Together with the answer the space
# belongs to the word: one token less, and the count masks the whole answer. The loss goes to zero, the model learns
# to stop. Cure: space at the answer's start, boundary by characters.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Two rules
#
# ```python
# # the space stands in the answer
# Template("{input}\n\nAnswer:", " {output}")
#
# found = tokenizer(prompt + answer,
#                   return_offsets_mapping=True)
# learnt = [end > len(prompt)
#           for _, end in found["offset_mapping"]]
# ```
#
# > Print the labelled tokens of one example before every run.

# %% [markdown] slideshow={"slide_type": "notes"}
# Offsets say which characters a token covers. A token that holds at least one character of the answer is learnt.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A chat: what the assistant says, and its end
#
# Only the assistant's words and their end are learnt.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
messages = [
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
teach.show(figures.token_strip({"one turn": marks(encode_chat(tokenizer, messages))}))

# %% [markdown] slideshow={"slide_type": "notes"}
# The chat template writes roles and turns. Only what the assistant says is learnt. Applying the template twice, or
# adding a second begin token, gives no error: count the special tokens of one example.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## LoRA: freeze the weight, learn a low-rank difference
#
# B starts at zero, so the first forward pass is the base's.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.adapter())

# %% [markdown] slideshow={"slide_type": "notes"}
# B starts at zero: the first forward pass is the base's. A must not be zero as well: ask why. Then both gradients
# would be zero. Alpha over r only softens what another rank does to the update; the best rate still changes.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What training keeps
#
# A gradient and two moments for each trained weight: freeze most weights, and most of it is gone.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.memory({"full": lora.training_bytes(base), "LoRA, rank 16": lora.training_bytes(adapted)}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Gradients and moments exist for trained weights only. In a wide model the orange sliver nearly vanishes. Activations
# are not in the picture and are not spared.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What it learns
#
# Both learn far more than the most frequent answer; here full fine-tuning learns more.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
exact = {
    name: [task.scores(model, tokenizer, template, validation)["exact_match"]]
    for name, model in {"full": tuned, "LoRA, rank 16": adapted}.items()
}
teach.show(
    figures.dots(
        exact,
        "exact match on validation rows, one seed",
        ("most frequent answer", majority),
        "Full fine-tuning's dot lies right of LoRA's, and both right of the line of the most frequent answer.",
    )
)

# %% [markdown] slideshow={"slide_type": "notes"}
# One seed here; the lesson has three with an interval, and one run of LoRA on a random base, which stays on the
# dashed line: a hint, no proof, that adapters need a trained base.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What it forgets
#
# With its adapters switched off, the base is back exactly.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
texts = validation["input"]
lost = {
    "full": [task.text_loss(tuned, tokenizer, texts)],
    "LoRA, adapters on": [task.text_loss(adapted, tokenizer, texts)],
}
with lora.adapters_off(adapted):
    lost["LoRA, adapters off"] = [task.text_loss(adapted, tokenizer, texts)]
teach.show(figures.forgetting(lost, task.text_loss(base, tokenizer, texts)))

# %% [markdown] slideshow={"slide_type": "notes"}
# Loss on plain text, which the base was trained on. LoRA with its adapters on forgets more at this rate. Its
# protection is the switch: off, the base is back exactly.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Rank and rate
#
# LoRA needs a rate of its own: full fine-tuning's is too low for it.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
bench = json.loads((Path(course_utils.__file__).parents[1] / "bench/results/lora.json").read_text())
teach.show(figures.sweep(bench["lora"], max(bench["full"].values(), key=sum)))

# %% [markdown] slideshow={"slide_type": "notes"}
# From the committed benchmark, three seeds a point, validation rows. Whoever takes over full fine-tuning's rate
# stands at the left edge and, at a low rank, concludes that LoRA does not work.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The end token, masked
#
# One grey box too many, and the model never stops.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
hidden = task.end_masked([one], tokenizer.eos_token_id)[0]
strips = {"right": marks(one), "padding = end, masked by id": marks(hidden)}
teach.show(figures.token_strip(strips))

# %% [markdown] slideshow={"slide_type": "notes"}
# One box is grey that should be orange. In the lesson: nearly no answer stops by itself. Pad by length, never by
# token.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Mean of means
#
# Sum over the window and divide once, or tokens of short answers shout.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.divisors())

# %% [markdown] slideshow={"slide_type": "notes"}
# Lesson 06 again, with answers: a token of a short answer shouts. Sum over the window, divide once.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Deeper: four bits
#
# Levels dense where most weights are; a scale for each 64 weights.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.levels(quantize.nf4_levels().tolist(), quantize.int4_levels().tolist()))

# %% [markdown] slideshow={"slide_type": "notes"}
# QLoRA freezes the base in four bits. The levels are quantiles of a normal distribution: dense where most weights
# are. A scale for each 64 weights costs half a bit.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Exercise 10.5
#
# Repair one whole step: four faults.
#
# ```python
# for batch in micro_batches:
#     ids = batch["input_ids"]
#     labels = ids.masked_fill(ids == 2, -100)  # 2: end, padding
#     logits = model(ids, batch["attention_mask"]).logits
#     loss = F.cross_entropy(logits.flatten(0, 1),
#                            labels.flatten())
#     (loss / len(micro_batches)).backward()
# ```

# %% [markdown] slideshow={"slide_type": "notes"}
# Let them find all four before anybody types: prompt learnt, end masked, not shifted, mean of means.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Take home
#
# - Labels decide what is learnt: look at them
# - The space belongs to the answer
# - LoRA: the base stays, without gradients and moments
# - Measure what was there before, too

# %% [markdown] slideshow={"slide_type": "notes"}
# Next: lesson 11, one model on several processes. Ask for one thing each person will check in their own code
# tomorrow.
