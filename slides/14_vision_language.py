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
max_steps = 300
seed = 0

# %% slideshow={"slide_type": "skip"}
import torch

from course_utils import teach
from course_utils.data.visual_questions import VqaCollator, by_patch
from course_utils.lessons.lesson_14 import figures
from course_utils.lessons.lesson_14.runs import measured, new_model, prepare, said, score, train_run
from course_utils.teach.figure import describe
from course_utils.training.paired import paired_interval
from course_utils.training.vqa import by_kind, without_image

teach.start(source=source, max_steps=max_steps, seed=seed)
torch.set_num_threads(1)
stages = prepare(seed, *((50, 100) if max_steps < 200 else (250, 700)))
data, test, tokenizer = stages.data, stages.data["test"], stages.tokenizer
model = new_model(stages.reader, tokenizer, seed)
collate = {s: VqaCollator(tokenizer, 4, stages.scores[s], features=stages.features[s]) for s in data}
train_run(model, data["train"], collate["train"], max_steps, seed)
shown = [test.kinds.index(kind) for kind in ("at", "count", "largest")] + [3]
bench = measured()

# %% [markdown] slideshow={"slide_type": "slide"}
# # 14 · Vision and language
#
# Patches as words, and what relevance is good for

# %% [markdown] slideshow={"slide_type": "notes"}
# Goal: everybody can say what a vision-language model is in four lines, can train one in stages, and can tell from a
# measurement when relevance helps. About 75 minutes with exercises. Ask who has used a model that reads images, and who
# knows how many tokens an image costs there.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Scenes and questions
#
# Real digits among shuffled ones: as much ink, and nothing to read.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
asked = [test.questions[n] for n in shown]
teach.show(figures.scenes(test.images[shown], asked, [test.answers[n] for n in shown]))

# %% [markdown] slideshow={"slide_type": "notes"}
# Real handwritten digits among shuffled ones, which have as much ink and nothing to read. Three kinds of question. Each
# split has digit images of its own.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## It looks at the right place
#
# Where to look was learned from answers alone.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
words = said(model, test, shown, collate["test"], tokenizer)
titles = [f"{question}\n→ {word}" for question, word in zip(asked, words, strict=True)]
teach.show(figures.heat_maps(test.images[shown], stages.scores["test"][shown], titles, "relevance"))

# %% [markdown] slideshow={"slide_type": "notes"}
# The colour is the relevance of each patch to the question. Where to look was learned from answers alone. Only four
# patches of each scene became tokens.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What flows where
#
# Orange is new: a score between vision and language.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.flow())

# %% [markdown] slideshow={"slide_type": "notes"}
# Green: vision. Blue: language. Orange: relevance, which stands between them. Without the orange part this is
# LLaVA-1.5.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## By hand
#
# ```python
# patches = tower(pixel_values, output_hidden_states=True).hidden_states[-1]
# image_tokens = second(F.gelu(first(patches)))               # (B, 16, D)
# embeddings = language_model.get_input_embeddings()(input_ids)
# is_image = (input_ids == image_id)[..., None]
# embeddings = embeddings.masked_scatter(is_image, image_tokens)
# return language_model(inputs_embeds=embeddings)
# ```
#
# > Equal to `LlavaForConditionalGeneration`, logits and loss.

# %% [markdown] slideshow={"slide_type": "notes"}
# Let the room name the shapes line by line. The last hidden state is the one before the tower's final norm: that norm
# gets no gradient, which DDP will complain about.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What is a label

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
row = collate["train"]([data["train"][data["train"].kinds.index("at")]])
names = tokenizer.convert_ids_to_tokens(row["input_ids"][0])
teach.show(figures.tokens(names, (row["labels"][0] != -100).tolist()))

# %% [markdown] slideshow={"slide_type": "-"}
# - LLaVA's class does not mask image tokens for you
# - Labels stand where their tokens stand: the loss shifts
# - The end is a label, or the model never stops

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 14.1 repairs a row with three faults, one for each bullet.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Seeing, or guessing?
#
# Two baselines see no image: show them beside every score, and by kind.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
table = {name: by_kind(right, test.kinds) for name, right in without_image(data["train"], test).items()}
teach.show(figures.accuracy({**table, "model": score(model, test, collate["test"])}))

# %% [markdown] slideshow={"slide_type": "notes"}
# Majority and question-only see no image. Always show them beside a score. And always by kind: the count is low, the
# average hides it. Ask why: four patches for eight digits? A later slide tries more.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Stages
#
# Freeze before the optimizer is made; a rate of 0 is not freezing.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.stages())

# %% [markdown] slideshow={"slide_type": "notes"}
# Freeze before the optimizer is made. A frozen tower's output never changes: compute it once. A rate of 0 is not
# freezing: AdamW keeps two numbers for every parameter it was given.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## A rate for each part
#
# ```python
# rates = {"tower": 1e-4, "projector": 1e-3, "language_model": 1e-3}
#
# class PartRatesTrainer(RelevanceTrainer):
#     def create_optimizer(self, model=None):
#         if self.optimizer is None:
#             groups = part_groups(self.model, self.rates, self.args.weight_decay)
#             kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
#             self.optimizer = kind(groups, **settings)
#         return self.optimizer
# ```

# %% [markdown] slideshow={"slide_type": "notes"}
# The pretrained tower gets small corrections; one schedule scales all of them. A trainable parameter
# that no part claims is an error, not a default. Exercise 14.3 counts.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Which patches become tokens
#
# At this length of training, four patches with learned scores beat sixteen with random ones.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
teach.show(figures.budget(bench["budget"]["seeds"]))

# %% [markdown] slideshow={"slide_type": "notes"}
# From bench/bench_relevance.py: three seeds, a model of its own for every way. Four patches with learned scores beat
# sixteen with random ones at this length of training. At sixteen all ways keep the same patches: that gain is due to
# the scores in the tokens, not to choosing.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## And by kind: the count
#
# More patches did not help measurably with counting: an average hides that.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
figure = figures.budget(bench["budget"]["seeds"], "count")
figure.axes[0].set_title("Only the questions that ask for a count")
figure.axes[0].legend(loc="upper left", fontsize=10.5, ncols=2)
words = "Accuracy of counts against the number of kept patches: low for all four ways, with long intervals."
teach.show(describe(figure, words))

# %% [markdown] slideshow={"slide_type": "notes"}
# The same runs, only the questions that ask for a count. More patches did not help measurably; 16 came in one batch of
# five. The cause is not shown. The average of the slide before hides all that.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Where the gradient goes
#
# A part goes past the kept patches, because the tower's patches attend to each other.

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
batch = VqaCollator(tokenizer, 4, stages.scores["test"])([test[n] for n in shown])
batch.pop("relevance")
pixels = batch["pixel_values"].requires_grad_()
maps = by_patch(torch.autograd.grad(model(**batch).loss, pixels)[0].abs())
teach.show(figures.heat_maps(test.images[shown], maps, titles, "gradient"))

# %% [markdown] slideshow={"slide_type": "notes"}
# Absolute gradient of the loss with respect to the pixels, summed over each patch. A part goes past the kept patches,
# because the tower's patches attend to each other.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Relevance in the loss

# %% slideshow={"slide_type": "-"} tags=["hide-input"] jupyter={"source_hidden": true}
runs = bench["loss"]["seeds"]
accuracy = {name: [one[name]["all"] for one in runs] for name in runs[0]}
against = {
    "weights, a third of the steps": ("known, a third", "uniform, a third"),
    "weights, all steps": ("known", "uniform"),
    "1 / frequency, all steps": ("inverse frequency", "uniform"),
}
gains = {n: paired_interval(accuracy[a], accuracy[b]) for n, (a, b) in against.items()}
pairs = {n: [x - y for x, y in zip(accuracy[a], accuracy[b], strict=True)] for n, (a, b) in against.items()}
teach.show(figures.weights(gains, pairs))

# %% [markdown] slideshow={"slide_type": "-"}
# > It buys speed. Given time, equal weights catch up.

# %% [markdown] slideshow={"slide_type": "notes"}
# Answers behind eight random filler words, weight 0.1 for filler. Equal compute, same seeds. The last two intervals
# hold zero: say so.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## Not renormalised
#
# $$\ell = \frac{\sum_t r_t\,(-\log p_t)}{\sum_t r_t} \qquad \text{not} \qquad \frac{\sum_t r_t\,(-\log p_t)}{n}$$
#
# | | what changes |
# |---|---|
# | loss, gradient | times the mean weight |
# | SGD | a smaller learning rate that nobody asked for |
# | AdamW | hardly anything ... |
# | clipping | ... but it bites less often |

# %% [markdown] slideshow={"slide_type": "notes"}
# Exercise 14.4 predicts these factors for another case before the cell measures them. Check: twice the weights must
# give the same loss.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## What goes wrong
#
# | symptom | check |
# |---|---|
# | a strange loss, worse answers | two labels a row |
# | accuracy of the question-only rule | own image against another row's |
# | memory of a frozen part | optimizer state by part |
# | the average is fine | accuracy by kind |

# %% [markdown] slideshow={"slide_type": "notes"}
# The first three are planted and measured in the notebook. The second check is the one to take home: it finds a wrong
# join that no shape and no loss curve shows.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The same run on 4 GPUs
#
# ```
# torchrun --standalone --nproc-per-node 4 \
#     -m course_utils.recipes.train_vision_language \
#     --output_dir runs/vlm --max_steps 300 \
#     --per_device_train_batch_size 16 --bf16
# ```
#
# - stages once, by the first process; the others wait
# - planned and written by `course_utils.launch`, rehearsed on 2 CPU processes

# %% [markdown] slideshow={"slide_type": "notes"}
# The Deeper section plans it, renders the files and rehearses them, with W&B in offline mode. It was not started on
# four GPUs here.

# %% [markdown] slideshow={"slide_type": "slide"}
# ## To take home
#
# - A vision-language model: a language model whose image tokens are projected patches
# - Score by kind, beside what the question gives away
# - Freeze before the optimizer is made
# - Learned scores help a lot here; the count stays low, unseen in the average
# - Divide by the sum of the weights

# %% [markdown] slideshow={"slide_type": "notes"}
# Then exercise 14.5: the loss of a whole step, from patches to weights. Next: lesson 15.
