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
# # 14 · Vision and language: patches, questions, relevance
#
# A model that answers questions about images is a language model with some of its tokens replaced by patches of the
# image. This lesson builds one, trains it in stages, and asks what **relevance** is good for: to choose the patches
# that become tokens, and to weigh the tokens in the loss.
#
# **You will be able to**
# - join a vision tower and a language model by hand, and show that the result equals transformers' LLaVA;
# - build batches in which only the answer is learnt, and a score that tells seeing from guessing;
# - freeze parts, give the others learning rates of their own, and count what the optimizer keeps;
# - write the loss of such a step with relevance in it, and say from measurements when relevance helps.
#
# **Minutes:** {minutes} · **Prerequisites:** lessons 03 (the Trainer), 05 (callbacks) and 06 (relevance in a loss).

# %% tags=["parameters"]
source = "local"  # the digits come with scikit-learn: "hub" changes nothing here
max_steps = 300  # optimizer steps of the main run
seed = 0

# %%
from course_utils import teach

teach.start(source=source, max_steps=max_steps, seed=seed)

# %% [markdown]
# ## 1 · Look first
#
# A **scene** has 4 x 4 cells. Four to eight of them hold a real handwritten digit. The others hold a digit whose pixels
# were shuffled: as much ink, nothing to read. A question is about a place, about how many digits there are, or about
# the largest one.

# %%
import torch

from course_utils.data.visual_questions import scene_tokenizer, visual_questions
from course_utils.lessons.lesson_14 import figures

torch.set_num_threads(1)  # for models this small, threads cost more than they bring
data, tokenizer = visual_questions(seed=seed), scene_tokenizer()
test = data["test"]
print({name: len(rows) for name, rows in data.items()}, "questions")
# the first question of each kind, and one more about a place
shown = [test.kinds.index(kind) for kind in ("at", "count", "largest")] + [3]


def pick(texts):
    return [texts[number] for number in shown]


teach.show(figures.scenes(test.images[shown], pick(test.questions), pick(test.answers)))

# %% [markdown]
# Each split has digit images of its own. A model that had seen the test digits in training could remember them.
#
# `prepare` and `train_run` do what the rest of the lesson takes apart: pretrain a tower, train a scorer, train the
# vision-language model. Here is what flows where. B is the number of questions in a batch, Q the number of a question's
# tokens, k that of the patches kept, V and D the widths of the two networks:

# %%
teach.show(figures.flow())

# %%
from course_utils.data.visual_questions import VqaCollator
from course_utils.lessons.lesson_14.runs import new_model, prepare, train_run

short = max_steps < 200
tower_steps, scorer_steps = (50, 100) if short else (250, 700)
stages = prepare(seed, tower_steps, scorer_steps)  # reader (with tower), scores
model = new_model(stages.reader, tokenizer, seed)  # frozen tower, the rest is new


def collator(split, keep=4, scores=stages.scores, **settings):
    features = stages.features[split]
    return VqaCollator(tokenizer, keep, scores[split], features=features, **settings)


trainer = train_run(model, data["train"], collator("train"), max_steps, seed)

# %%
from course_utils.lessons.lesson_14.runs import said, score

answers = said(model, test, shown, collator("test"), tokenizer)
asked = pick(test.questions)
titles = [f"{asked[i]}\n→ {word}" for i, word in enumerate(answers)]
relevance = stages.scores["test"][shown]
first_titles = titles
teach.show(figures.heat_maps(test.images[shown], relevance, titles, "relevance"))

# %% [markdown]
# The colour is the **relevance** of each patch to the question, on a scale of its own in each scene. Where to look was
# learned from answers alone; but the tower had learned before, from a label for each patch, what is a digit and what is
# not. Only the four most relevant patches of each scene became tokens.
#
# Accuracy means little without two rules that see no image: always the most frequent answer (**majority**), and the
# most frequent answer to this very question (**question only**).

# %%
from course_utils.training.vqa import by_kind, without_image

rules = without_image(data["train"], test)
blind = {name: by_kind(right, test.kinds) for name, right in rules.items()}
seeing = score(model, test, collator("test"))
teach.show(figures.accuracy({**blind, "model": seeing}))

# %%
full = max_steps >= 300
above = {kind: seeing[kind] - blind["question only"][kind] for kind in seeing}
teach.claim("places: 0.7 above the question-only rule", above["at"] > 0.7, when=full)
teach.claim("largest: 0.3 above it", above["largest"] > 0.3, when=full)
teach.claim("count: less than 0.3 above it", above["count"] < 0.3, when=full)

# %% [markdown]
# Why is the count so low? Four patches for up to eight digits looks like the reason. Section 6 tries more patches.
#
# ## 2 · The model by hand
#
# Four lines make a vision-language model of a vision tower and a language model:
#
# 1. the **tower**, a Transformer over patches, gives a vector of width V for each patch;
# 2. the **projector**, two small layers, brings it to the language model's width D;
# 3. these vectors take the places of the tokens `<image>` among the word embeddings;
# 4. the causal language model goes on as if they were words.
#
# This is the form of LLaVA-1.5 (Liu et al., [arXiv:2310.03744](https://arxiv.org/abs/2310.03744)); in the first LLaVA
# ([arXiv:2304.08485](https://arxiv.org/abs/2304.08485)) the projector had one layer. The tower has the architecture of
# SigLIP, an image encoder (one layer, width 64); the language model that of Qwen3, a causal Transformer (two layers,
# width 64). All 16 patches, no relevance yet. T is the number of all tokens of a row; `masked_scatter` puts the image
# tokens, in their order, where the mask is true:

# %%
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM, SiglipVisionModel

from course_utils.models.vision_language import text_config, vision_config

torch.manual_seed(seed)
tower = SiglipVisionModel(vision_config())
language_model = Qwen3ForCausalLM(text_config(len(tokenizer)))
first, second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
image_id = tokenizer.convert_tokens_to_ids("<image>")


def by_hand(pixel_values, input_ids, attention_mask):
    patches = tower(pixel_values, output_hidden_states=True).hidden_states[-1]
    image_tokens = second(F.gelu(first(patches)))  # (B, 16, D)
    embeddings = language_model.get_input_embeddings()(input_ids)  # (B, T, D)
    is_image = (input_ids == image_id)[..., None]  # (B, T, 1)
    embeddings = embeddings.masked_scatter(is_image, image_tokens)
    return language_model(inputs_embeds=embeddings, attention_mask=attention_mask)


# %%
batch = VqaCollator(tokenizer)([data["train"][number] for number in range(4)])
print({name: tuple(value.shape) for name, value in batch.items()})
seen = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
with torch.no_grad():
    logits = by_hand(**seen).logits
print("logits:", tuple(logits.shape))

# %% [markdown]
# The batch's `relevance` is that of lesson 06: the weight of each token in the loss (section 7). That of a patch is
# called its **score** in code.
#
# ### The same as transformers' own class
#
# `LlavaForConditionalGeneration` is built from a config that names the same tower and language model. We copy our
# weights into it and compare. The course's `VisionLanguageModel`, with which the rest of the lesson trains, is the same
# four lines as a class; it can also keep a part of the patches.

# %%
from transformers import LlavaForConditionalGeneration

from course_utils.models.vision_language import VisionLanguageModel, llava_config

llava = LlavaForConditionalGeneration(llava_config(len(tokenizer), image_id)).eval()
ours = VisionLanguageModel(tower, language_model, image_id)
for name, layer in (("linear_1", first), ("linear_2", second)):
    getattr(ours.projector, name).load_state_dict(layer.state_dict())
llava.model.vision_tower.load_state_dict(tower.state_dict())
llava.model.multi_modal_projector.load_state_dict(ours.projector.state_dict())
llava.model.language_model.load_state_dict(language_model.model.state_dict())
with torch.no_grad():
    theirs = llava(**seen, labels=batch["labels"])
    course = ours(**seen, labels=batch["labels"])
off = max((theirs.logits - logits).abs().max(), (course.logits - logits).abs().max())
teach.claim("by hand = LLaVA = the course's class: logits within 1e-5", off < 1e-5)
loss_off = abs(theirs.loss - course.loss)
teach.claim("LLaVA's loss equals the course's within 1e-5", loss_off < 1e-5)

# %% [markdown]
# ### Deeper: a wrong number of image tokens
#
# Both refuse a row whose number of `<image>` tokens is not the number of its patches. That check is worth having: a
# wrong count would shift every image after it to another row.

# %%
no_image = batch["input_ids"].masked_fill(batch["input_ids"] == image_id, 1)
none_left = seen | {"input_ids": no_image}
refused = 0
for some in (llava, ours):
    try:
        some(**none_left)
    except ValueError as error:
        refused += 1
        print(type(some).__name__, "says:", str(error).splitlines()[0])
teach.claim("both refuse a wrong number of image tokens", refused == 2)

# %% [markdown]
# ## 3 · What is a label
#
# A row is: image tokens, question, answer, end. The collator writes -100 wherever nothing is to be predicted. LLaVA's
# class does *not* do that for you: what stands in `labels` is learnt, image tokens included.

# %%
row = collator("train")([data["train"][shown[0]]])
words = tokenizer.convert_ids_to_tokens(row["input_ids"][0])
teach.show(figures.tokens(words, (row["labels"][0] != -100).tolist()))
print("patches that became tokens:", row["kept"][0].tolist())

# %% [markdown]
# ### Exercise 14.1: debug
#
# This function makes one row. It has three faults, none of which raises an error. Repair it.


# %%
def make_row(image_id, k, question, answer, end_id):
    input_ids = [image_id] * k + question + answer + [end_id]
    labels = [image_id] * k + [-100] * len(question) + answer + [-100]
    labels = labels[1:] + [-100]  # position t predicts token t + 1
    return {"input_ids": input_ids, "labels": labels}


# %%
row_1 = ...  # your repaired function: row_1 = make_row
teach.check("14.1", row_1)

# %% [markdown]
# As in every causal model of transformers, the loss itself shifts: logits at position t are for the label at t + 1.
#
# ## 4 · The score
#
# **VQA accuracy** (visual question answering) is the share of questions answered with the right word. Three rules:
#
# - Judge the answer word only, the one in front of the end. The end is easy to learn, and would hide errors.
# - Report each kind of question. An average over kinds hides that one of them is not learnt at all.
# - Beside it, what the question alone gives away (Goyal et al., [arXiv:1612.00837](https://arxiv.org/abs/1612.00837)).
#
# In the Trainer this is `compute_metrics`. `preprocess_logits_for_metrics=best_word` keeps one token id a position
# instead of a logit for each word.
#
# ### Exercise 14.2: write
#
# `logits` is `(B, T, C)` straight from the model, `labels` is `(B, T)` with the answer and then the end as its last
# targets, `kinds` is a list of B names. Return `{"all": ..., kind: ...}` for the kinds that occur.


# %%
def vqa_accuracy(logits, labels, kinds):
    # for each row: which position speaks about the answer word?
    return ...


# %%
teach.check("14.2", vqa_accuracy)

# %% [markdown]
# ## 5 · Stages, freezing, learning rates
#
# The parts are trained one after the other, as is usual. LLaVA starts from a pretrained language model and freezes it
# while the projector is new. Ours has no pretrained one, so both learn together, in stage 3:

# %%
teach.show(figures.stages())

# %% [markdown]
# **Stage 1** pretrains the tower: 16 labels a scene, which digit each patch holds, or none. **Stage 2** trains the
# **scorer**. It averages the question's word vectors into a query and compares it with a key for each patch, made of
# what the patch shows and where it is. The softmax over the patches is the relevance. The patches' values, weighed by
# it, must give the answer. So looking at the right place lowers the loss. Now and then a start keeps to wrong places;
# its loss stays high, and `train_scorer` begins again.

# %%
from course_utils.lessons.lesson_14.runs import scorer_alone
from course_utils.models.vision_language import PatchScorer

teach.show_source(PatchScorer.forward)
with torch.no_grad():
    read = stages.reader(test.images).logits.argmax(-1)
patch_accuracy = (read == test.cells).float().mean().item()
at = torch.tensor([kind == "at" for kind in test.kinds])
top = stages.scores["test"].argmax(1, keepdim=True)
found = test.relevant.gather(1, top)[at].float().mean().item()
print(f"tower: {patch_accuracy:.2f} of the patches; scorer: {found:.2f} of places")
alone = scorer_alone(stages, "test")
print(f"answers right: scorer {alone['all']:.2f}, model {seeing['all']:.2f}")
teach.claim("the tower reads 97 % of the patches", patch_accuracy > 0.97, when=full)
teach.claim("the scorer finds 97 % of the places", found > 0.97, when=full)

# %% [markdown]
# The scorer answers questions too; the printed line compares it with the model. One-word answers need no language
# model. The point of the larger model is that its answers are text.
#
# **Stage 3** is the run of section 1. Tower and scorer are **frozen**: `requires_grad_(False)`, before the optimizer
# is made. What a frozen tower says about an image never changes, so `features` holds it, computed once for all rows.
#
# **Stage 4** goes on with the tower in training, at a tenth of the others' rate, so that what it knows is corrected and
# not overwritten. The others' rate is a third of stage 3's. `part_groups` makes groups by part, with and without decay:

# %%
import copy

from course_utils.training.part_rates import part_groups

rates = dict.fromkeys(("projector", "language_model", "score_direction"), 1e-3)
rates["tower"] = 1e-4
tuned = copy.deepcopy(model)
tuned.tower.requires_grad_(True)
tuned.tower.post_layernorm.requires_grad_(False)  # LLaVA takes what stands before it
for group in part_groups(tuned, rates, weight_decay=0.01):
    numbers = sum(p.numel() for p in group["params"])
    print(f"{group['name']:16} {group['lr']:g} {group['weight_decay']:5g} {numbers:7,}")

# %% [markdown]
# `score_direction` is one vector, added to each image token times its patch's score: it tells the language model how
# relevant a token is. The last norm of the tower is frozen because nothing behind it is used: it would never get a
# gradient, and `DistributedDataParallel` (lesson 08) stops when a parameter gets none.
#
# ### Frozen, or only slow?
#
# A learning rate of 0 also leaves the weights as they are. What does the optimizer keep?

# %%
from course_utils.training.part_rates import state_by_part

kept = {}
pixels = VqaCollator(tokenizer, 4, stages.scores["train"])
for name, tower_rate in (("frozen", {}), ("rate 0", {"tower": 0.0})):
    trial = copy.deepcopy(model)
    trial.tower.requires_grad_(name == "rate 0")
    own = {part: rate for part, rate in rates.items() if part != "tower"} | tower_rate
    run = train_run(trial, data["train"], pixels, 1, seed, rates=own)
    kept[name] = state_by_part(trial, run.optimizer, rates)
    print(f"{name:8} numbers in AdamW's state:", kept[name])
size = sum(p.numel() for p in tuned.tower.parameters() if p.requires_grad)
teach.claim("frozen: no state for the tower", kept["frozen"]["tower"] == 0)
teach.claim("rate 0: two numbers a parameter", kept["rate 0"]["tower"] == 2 * size)

# %% [markdown]
# With a tower of a billion parameters those are 8 GB for nothing, and a backward pass through the tower besides.
#
# ### Exercise 14.3: write
#
# Return a dictionary: how many numbers of each part in `parts` are trained; 0 where none is. A parameter belongs to a
# part if its name is the part's, as `score_direction`, or begins with the part and a dot: `tower` is not `tower_head`.
# A tensor with two names counts once, for its first.


# %%
def trainable(model, parts):
    # for name, parameter in model.named_parameters(): ...
    return ...


# %%
teach.check("14.3", trainable)

# %% [markdown]
# ### The whole run, each setting with its reason

# %%
from functools import partial
from tempfile import TemporaryDirectory

from course_utils.lessons.lesson_14.runs import prediction_panel
from course_utils.training.callbacks import PredictionImages
from course_utils.training.part_rates import PartRatesTrainer
from course_utils.training.settings import logged, quiet_trainer
from course_utils.training.vqa import best_word, metrics_of

scratch = TemporaryDirectory()
every = max(1, max_steps // 6)
arguments = {
    "max_steps": max(1, max_steps // 3),  # it corrects; stage 3 has learnt the task
    "per_device_train_batch_size": 64,  # x 1 process x 1 = the effective batch
    "gradient_accumulation_steps": 1,  # 64 rows of 15 tokens fit anywhere
    "learning_rate": 1e-3,  # not read: rates says one for each part
    "lr_scheduler_type": "linear",  # down to 0: the last steps settle
    "warmup_steps": 10,  # AdamW's averages start empty
    "weight_decay": 0.01,  # of matrices; part_groups spares biases and norms
    "max_grad_norm": 1.0,  # a rare batch must not throw the tower off
    "optim": "adamw_torch_fused",  # one call for all parameters (lesson 09)
    "bf16": False,  # True on a GPU that has it; here it would be slower
    "logging_steps": every,  # a handful of points
    "eval_strategy": "steps",  # accuracy by kind while it trains ...
    "eval_steps": every,  # ... often enough to see it fall
    "per_device_eval_batch_size": 256,  # no gradients are kept
    "save_strategy": "steps",  # must save where it evaluates, for the next line
    "save_steps": every,
    "save_total_limit": 1,  # and the best one
    "load_best_model_at_end": True,  # the tower may get worse: keep what was better
    "metric_for_best_model": "accuracy_all",  # what will be reported
    "greater_is_better": True,
    "remove_unused_columns": False,  # the collator reads columns of its own
    "report_to": "tensorboard",
    "run_name": "stage 4",
    "seed": seed,
    "use_cpu": True,  # leave it out where there is a GPU
}

# %% [markdown]
# `quiet_trainer` (lesson 03) is a Trainer that prints nothing, `PartRatesTrainer` the `RelevanceTrainer` of lesson 06
# with `part_groups` in its `create_optimizer`. Two data sets need two tables of patch scores, and a Trainer has one
# collator: `by_split` looks which split a row is from.

# %% tags=["nbval-ignore-output"]
pixels = {s: VqaCollator(tokenizer, 4, rows) for s, rows in stages.scores.items()}


def by_split(rows):
    return pixels[rows[0]["split"]](rows)


validation = data["validation"]
panel = prediction_panel(validation, [0, 1, 2, 5], pixels["validation"], tokenizer)
stage_4 = quiet_trainer(
    tuned,
    scratch.name,
    data["train"],
    validation,
    data_collator=by_split,
    compute_metrics=metrics_of(validation.kinds),
    trainer_class=partial(PartRatesTrainer, rates=rates),
    callbacks=[PredictionImages(panel, f"{scratch.name}/board")],
    **arguments,
)
stage_4.preprocess_logits_for_metrics = best_word
stage_4.train()
before = score(model, validation, collator("validation"))["all"]
after = score(tuned, validation, pixels["validation"])["all"]
print(f"validation: {before:.2f} after stage 3, {after:.2f} after stage 4")
this_seed = full and seed == 0
teach.claim("stage 4 costs less than 0.02", after > before - 0.02, when=this_seed)

# %% [markdown]
# Whether stage 4 *gains* anything, this run cannot say: its best checkpoint was chosen on the rows that judge it here,
# and it is one seed. Section 6 has several.

# %% [markdown]
# ### Deeper: watching it
#
# `PredictionImages` is a callback that draws a few scenes with the model's answers (the right ones in brackets) at
# every evaluation, into the same event files that hold the curves. `tensorboard --logdir` shows both. What is in them:

# %%
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(f"{scratch.name}/board").Reload()
pictures = [event.step for event in events.Images("predictions")]
print("pictures of predictions at steps", pictures)
evaluated = [step for step, _ in logged(stage_4, "eval_loss")]
teach.claim("a picture at every evaluation", pictures == sorted(set(evaluated)))
teach.show(panel(tuned))

# %% [markdown]
# With W&B among `report_to` the callback is meant to send the picture there too; no cell here shows that.

# %% [markdown]
# ## 6 · Relevance chooses the patches
#
# In LLaVA-1.5 an image is 576 tokens; other models use fewer, or many more. Each costs time and memory in every layer.
# A **budget** of k tokens asks: which k? Four ways to score patches:
#
# - **learned**: the scorer, which has read the question;
# - **oracle**: the patches that decide the answer, known here because we made the scenes;
# - **random**, and **uniform**: one order for all questions, spread over the grid.
#
# `bench/bench_relevance.py` trained a model *of its own* for each way, on budgets of 1 to 16 drawn for each batch, with
# three seeds, and scored the test rows. Dots are means, bars 95 % intervals:

# %%
from course_utils.lessons.lesson_14.runs import measured
from course_utils.training.paired import mean_interval, paired_interval

bench = measured()
print(bench["processor"], "|", bench["steps"], "steps a model")
print("seeds:", bench["budget"]["seed_numbers"])
teach.show(figures.budget(bench["budget"]["seeds"]))


# %%
def over_seeds(how, keep, kind="all"):
    return [one[how][str(keep)][kind] for one in bench["budget"]["seeds"]]


ahead = paired_interval(over_seeds("learned", 4), over_seeds("random", 16))
print("4 learned - all 16 with random scores: ", ahead)
teach.claim("4 learned beat 16 with random scores", ahead.low > 0)
same_patches = paired_interval(over_seeds("learned", 16), over_seeds("random", 16))
print("16 learned - all 16 with random scores:", same_patches)
oracle_lead = paired_interval(over_seeds("oracle", 1), over_seeds("learned", 1))
print("oracle - learned, 1 patch:             ", oracle_lead)
more = {}
for how in ("learned", "oracle", "random", "uniform"):
    few, many = (over_seeds(how, keep, "count") for keep in (4, 16))
    more[how] = paired_interval(many, few)
    mean = mean_interval(few).value
    print(f"count, {how:8} {mean:.2f} with 4 patches; 16 add {more[how]}")
held_zero = [one.low <= 0 <= one.high for one in more.values()]
teach.claim("count: no way is measurably better with 16 patches", all(held_zero))

# %% [markdown]
# Two things to take along.
#
# - Four patches with learned scores beat 16 with random ones *at this length of training*. That is not all due to the
#   choice. With 16 every way keeps the same patches, and learned is as far ahead: there it is the scores in the tokens
#   (`score_direction`) that help. And the scorer had up to 700 steps before, which "random" had not.
# - The average hides the count. It stays low for every way, and more patches did not help measurably; 16 came in one
#   batch of five. The cause is not shown. Look at the kinds before you cut tokens.

# %% [markdown]
# ### Deeper: one model under another choice
#
# Here the model of section 1, trained under learned relevance, k = 4, meets patches chosen otherwise, on validation
# rows. It was never trained for the other three, so this shows how much it leans on the choice, not which is best:

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_14.runs import other_scores

swapped = {"learned": score(model, validation, collator("validation"))}
for how in ("oracle", "random", "uniform"):
    other = {"validation": other_scores(how, validation, seed)}
    swapped[how] = score(model, validation, collator("validation", scores=other))
for how, values in swapped.items():
    print(f"{how:8}", {kind: f"{value:.2f}" for kind, value in values.items()})
learned, drawn = swapped["learned"]["at"], swapped["random"]["at"]
teach.claim("places: learned beats random by 0.5", learned > drawn + 0.5, when=full)

# %% [markdown]
# ## 7 · Relevance weighs the loss
#
# Real answers are sentences. Ours now get eight random filler words in front: "so well look ... seven". A filler word
# cannot be predicted, yet it makes most of the loss. Lesson 06's `RelevanceTrainer` weighs each target's loss:
# here 0.1 for filler, 1 for the answer word and the end, divided by the **sum of the weights** of the window
# (lesson 06: the micro-batches of one optimizer step). A third of the steps, equal compute, both ways. The score judges
# the answer word only, and the model reads the row's own filler in front of it:

# %% tags=["nbval-ignore-output"]
chatty = visual_questions(filler=8, seed=seed)
print("answer:", chatty["train"].answers[0])
third = max(1, max_steps // 3)
weighed = {}
for name, weight in (("equal", 1.0), ("weights", 0.1)):
    learner = new_model(stages.reader, tokenizer, seed)
    filled = collator("train", filler_weight=weight)
    train_run(learner, chatty["train"], filled, third, seed)
    weighed[name] = score(learner, chatty["validation"], collator("validation"))
    print(f"{name:8}", {kind: f"{value:.2f}" for kind, value in weighed[name].items()})
better = weighed["weights"]["all"] > weighed["equal"]["all"]
teach.claim("after a third of the steps the weights are ahead", better, when=this_seed)

# %% [markdown]
# One seed. The bench ran three (a fourth was stopped), for a third of the steps and for all. It also tried weights that
# nobody has to know: 1 / frequency of the target word, with all steps only. Differences to equal weights, same seed:

# %%
in_bench = bench["loss"]["seeds"]
accuracy = {name: [one[name]["all"] for one in in_bench] for name in in_bench[0]}
against = {
    "weights, a third of the steps": ("known, a third", "uniform, a third"),
    "weights, all steps": ("known", "uniform"),
    "1 / frequency, all steps": ("inverse frequency", "uniform"),
}
gains = {n: paired_interval(accuracy[a], accuracy[b]) for n, (a, b) in against.items()}
by_seed = {}
for n, (a, b) in against.items():
    by_seed[n] = [x - y for x, y in zip(accuracy[a], accuracy[b], strict=True)]
teach.show(figures.weights(gains, by_seed))

# %%
for name, one in gains.items():
    print(f"{name:30} {one.value:+.3f}, interval {one.low:+.3f} to {one.high:+.3f}")
early = gains["weights, a third of the steps"]
teach.claim("a third of the steps: the interval is above 0", early.low > 0)

# %% [markdown]
# Known weights buy *speed*: the answer gets its share of the gradient from the first step on. Given time, equal weights
# catch up: with all steps three seeds cannot tell the two apart (grey: the interval holds 0). Nor the weights by
# frequency; whether those buy speed was not measured. With answers of one word there is nothing to weigh.
#
# ### Exercise 14.4: predict
#
# An answer has 4 filler words of weight 0.25, the answer word and the end of weight 1. Somebody divides by the number
# of targets, not by the sum of the weights. By which factor does each of these change, compared with the right
# division? The gradient, a step of plain SGD, AdamW's first step, and the gradient behind `max_grad_norm=1`, if the
# right gradient's norm is 3? Decide before you read on.

# %%
prediction = ...  # {"gradient": , "sgd step": , "adamw step": , "clipped gradient": }

# %%
teach.check("14.4", prediction)

# %% [markdown]
# ### Deeper: the missing division, measured
#
# Measured on our rows (8 fillers of 0.1), without clipping and weight decay: one step with each division, and how far
# the weights moved.

# %% tags=["nbval-ignore-output"]
from torch.nn.utils import parameters_to_vector

from course_utils.lessons.lesson_14.runs import NotRenormalised


def one_step(trainer_class, optimizer):
    learner = new_model(stages.reader, tokenizer, seed)
    start = parameters_to_vector(learner.language_model.parameters()).detach().clone()
    settings = {"optim": optimizer, "trainer_class": trainer_class}
    settings |= {"max_grad_norm": 1e9, "warmup_steps": 0, "weight_decay": 0.0}
    filled = collator("train", filler_weight=0.1)
    done = train_run(learner, chatty["train"], filled, 1, seed, **settings)
    end = parameters_to_vector(learner.language_model.parameters()).detach()
    return done.state.log_history[0] | {"step length": (end - start).norm().item()}


factor = {}
for optimizer in ("sgd", "adamw_torch"):
    divided = one_step(PartRatesTrainer, optimizer)
    undivided = one_step(NotRenormalised, optimizer)
    names = ("loss", "grad_norm", "step length")
    factor[optimizer] = {name: undivided[name] / divided[name] for name in names}
    print(f"{optimizer:12}", {n: f"{v:.2f}" for n, v in factor[optimizer].items()})
mean_weight = (8 * 0.1 + 2) / 10
sgd_off = abs(factor["sgd"]["step length"] - mean_weight)
teach.claim("SGD: the learning rate is 0.28 of what was asked", sgd_off < 0.002)
adam_off = abs(factor["adamw_torch"]["step length"] - 1)
teach.claim("AdamW: its step hardly changes (within 5 %)", adam_off < 0.05)

# %% [markdown]
# So under SGD the mean weight is a hidden factor on the learning rate. AdamW cancels it; but with clipping on, fewer
# gradients reach the limit, and losses of two runs cannot be compared.

# %% [markdown]
# ## 8 · What goes wrong
#
# **Image and question left in the labels.** 100 steps with every token a label, which LLaVA's class would accept:

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_14.runs import EverythingIsLabel


def hundred_steps(collate):
    learner = new_model(stages.reader, tokenizer, seed)
    done = train_run(learner, data["train"], collate, third, seed)
    return learner, [loss for _, loss in logged(done, "loss")]


train_scores, train_features = stages.scores["train"], stages.features["train"]
everything = EverythingIsLabel(tokenizer, 4, train_scores, features=train_features)
right_model, right_losses = hundred_steps(collator("train"))
wrong_model, wrong_losses = hundred_steps(everything)
judge = collator("validation")
told, blurred = (score(m, validation, judge)["all"] for m in (right_model, wrong_model))
print(f"only the answer: loss {right_losses[-1]:.2f}, accuracy {told:.2f}")
print(f"everything:      loss {wrong_losses[-1]:.2f}, accuracy {blurred:.2f}")
teach.claim("everything: accuracy is lower", blurred < told, when=full)
for name, collate in (("answer", collator("train")), ("everything", everything)):
    labels = collate([data["train"][0]])["labels"]
    targets, images = int((labels != -100).sum()), int((labels == image_id).sum())
    print(f"check, {name}: {targets} labels in a row, {images} are image tokens")

# %% [markdown]
# The two losses cannot be compared: they are means over other tokens. Which of the two harms more, image or question,
# this run does not tell. **Check:** two labels a row. "No image token among them" would miss the question.
#
# **Wrong image for a question.** A join that is off by one row raises nothing: shapes fit, the loss falls, because the
# question alone gives something away. **Check:** score the model with each question's own image, and with another
# row's, its patches scored for this question. If both are equal, it does not use the image, or never had the right one.

# %% tags=["nbval-ignore-output"]
from course_utils.lessons.lesson_14.runs import other_images

features, scores = other_images(stages, "train")
broken = VqaCollator(tokenizer, 4, scores, features=features)
shuffled_model, losses = hundred_steps(broken)
print(f"off by one: first logged loss {losses[0]:.2f}, last {losses[-1]:.2f}")
teach.claim("off by one: the loss falls", losses[-1] < losses[0], when=full)
features, scores = other_images(stages, "validation")
elsewhere = VqaCollator(tokenizer, 4, scores, features=features)
lead = {}
for name, learner in (("right pairs", right_model), ("off by one", shuffled_model)):
    own, other = (score(learner, validation, c)["all"] for c in (judge, elsewhere))
    lead[name] = own - other
    print(f"trained on {name:12} own image {own:.2f}, another row's {other:.2f}")
teach.claim("right pairs: own images lead by 0.3", lead["right pairs"] > 0.3, when=full)
teach.claim("off by one: no lead above 0.05", lead["off by one"] < 0.05, when=full)

# %% [markdown]
# | symptom | cause | check |
# |---|---|---|
# | a loss unlike that of other runs, answers worse | image or question in the labels | two labels a row |
# | accuracy of the question-only rule | image and question do not belong together | own image against another row's |
# | small loss and gradient norm, clipping bites less often | weights not renormalised | twice the weights: same loss |
# | memory of a frozen part | rate 0 instead of `requires_grad=False` | optimizer state by part |
# | DDP stops: a parameter got no gradient | the tower's last norm is trained, but not used | freeze it |
# | saving fails: tensors share memory | embedding and output layer are one tensor, two names | save it under one name |
# | the average is fine, one kind is not | to be found out | accuracy by kind |
#
# ### Exercise 14.5: the whole step
#
# The lesson's objective: the loss of one step, from patches to weights, without `score_direction`.
#
# - `features` `(B, P, V)` and `scores` `(B, P)` of all patches; each row of `ids` `(B, T)` holds the number `image` k
#   times;
# - keep the k best patches of each row, in the order of the grid; `projector` takes `(B, k, V)` to `(B, k, D)`;
# - `embed(ids)` gives `(B, T, D)`, `decoder(embeddings)` gives logits `(B, T, C)`;
# - `labels` and `weights`, the relevance, are `(B, T)`; a label of -100 is no target. Renormalise over this batch.


# %%
def step_loss(features, scores, projector, embed, decoder, ids, labels, weights, image):
    # kept = ...
    return ...


# %%
teach.check("14.5", step_loss)

# %% [markdown]
# ## 9 · What the model says now
#
# Four test questions that no cell above has shown, one of them a count, with the right answers in brackets. Colour on
# the right patch does not make an answer right, and for a count it lies on all patches:

# %%
kinds = ("largest", "at", "count", "at")
places = {name: [n for n, k in enumerate(test.kinds) if k == name] for name in kinds}
last = [places[name][-1 - i] for i, name in enumerate(kinds)]
now = said(model, test, last, collator("test"), tokenizer)
answered = zip(last, now, strict=True)
titles = [f"{test.questions[n]}\n→ {word} ({test.answers[n]})" for n, word in answered]
looked_at = stages.scores["test"][last]
teach.show(figures.heat_maps(test.images[last], looked_at, titles, "relevance"))

# %% [markdown]
# ## Deeper: where the gradient goes
#
# Relevance says where the scorer looks. What does the *answer* depend on? The gradient of the loss with respect to the
# pixels, its absolute value summed over each patch:

# %%
from course_utils.data.visual_questions import by_patch


def pixel_gradient(split, numbers):
    collate = VqaCollator(tokenizer, 4, stages.scores[split])
    batch = collate([data[split][number] for number in numbers])
    batch.pop("relevance")
    pixels = batch["pixel_values"].requires_grad_()
    return by_patch(torch.autograd.grad(model(**batch).loss, pixels)[0].abs())


maps = pixel_gradient("test", shown)
both = "relevance / gradient"
teach.show(figures.heat_maps(test.images[shown], relevance, first_titles, both, maps))

# %% tags=["nbval-ignore-output"]
shares = pixel_gradient("test", range(400))
shares = shares / shares.sum(1, keepdim=True)
relevant = test.relevant[:400]
kept_patches = stages.scores["test"][:400].topk(4).indices
even_share = relevant.gather(1, kept_patches).float().mean(1)
for kind in ("at", "count", "largest"):
    is_kind = torch.tensor([k == kind for k in test.kinds[:400]])
    share = (shares * relevant)[is_kind].sum(1).mean().item()
    even = even_share[is_kind].mean().item()
    print(f"{kind:8} {share:.2f} on relevant patches, even over the 4: {even:.2f}")
    if kind == "at":
        teach.claim("places: 1.5 times an even share", share > 1.5 * even, when=full)

# %% [markdown]
# Only the four kept patches have a direct path to the answer; an even split over them would put a quarter on the one
# that a question about a place needs. A part goes to the others: inside the tower every patch attends to all.

# %% [markdown]
# ## Deeper: the same rows through transformers' processor
#
# A **processor** is a tokenizer and an image processor in one: it scales pixels, and writes as many `<image>` tokens as
# the image has patches. Offline and without torchvision only the classes that end in `Pil` work. It takes pictures of 0
# to 255. SigLIP's own mean and spread, 0.5, would bring them to -1 to 1; ours stay at 0 to 1, as the collator has them.

# %%
import numpy as np
from PIL import Image
from transformers import LlavaProcessor, SiglipImageProcessorPil

unit = {"image_mean": [0.0], "image_std": [1.0]}
image_processor = SiglipImageProcessorPil(do_resize=False, do_convert_rgb=False, **unit)
processor = LlavaProcessor(
    image_processor=image_processor,
    tokenizer=tokenizer,
    patch_size=8,
    vision_feature_select_strategy="full",
    image_token="<image>",
)
picture = Image.fromarray((255 * test.images[0, 0].numpy()).round().astype(np.uint8))
text = f"<image> {test.questions[0]}"
made = processor(images=[picture], text=[text], return_tensors="pt")
print(*(tuple(value.shape) for value in made.values()))
print("image tokens:", int((made["input_ids"] == image_id).sum()))
collated = VqaCollator(tokenizer)([test[0]])
off = (made["pixel_values"] - collated["pixel_values"]).abs().max().item()
teach.claim("pixels as in the collator's batch, within the 256 levels", off < 1 / 255)
length = made["input_ids"].shape[1]
same_ids = torch.equal(made["input_ids"], collated["input_ids"][:, :length])
teach.claim("its ids are the batch's, up to the answer", same_ids)

# %% [markdown]
# ## Deeper: the same run on 4 GPUs
#
# `course_utils/recipes/train_vision_language.py` is this lesson as a program: it makes the stages once, by the first
# process of a machine, while the others wait. A `Spec` (lesson 15) describes the run, `plan` says what it needs, and
# `render` gives the launch files' texts. 16 questions on each of 4 GPUs are the 64 of this lesson.

# %%
from course_utils.launch import Spec, render
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.report import verdict
from course_utils.models.configs import shape_of_config

spec = Spec(
    name="vision-language",
    program="course_utils.recipes.train_vision_language",
    arguments=("--keep=4", "--report_to=wandb", "--logging_steps=25"),
    model=shape_of_config(text_config(len(tokenizer))),
    strategy="ddp",
    gpus_per_node=4,
    gpu="A100-40GB",
    micro_batch=16,
    sequence_length=15,
    max_steps=300,
    output_dir="runs/vision-language",
)
print(spec.effective_batch, "questions a step.", verdict(plan(spec)))
texts = render(spec)
print(len(texts), "files:", ", ".join(sorted(texts)))
flags = [line.strip() for line in texts["torchrun.sh"].splitlines() if "=" in line]
ours_of_them = ("--nproc", "--per_", "--keep")
print("\n".join(line for line in flags if line.startswith(ours_of_them)))

# %% [markdown]
# The model is tiny: nearly all of the memory stays free. The plan counts the language model; tower and projector have
# three fifths as many parameters (section 5).
#
# Now the rehearsal: the same files for two processes on this CPU, fewer scenes and steps. W&B runs in **offline mode**:
# no account, a folder that `wandb sync` can upload later.

# %% tags=["nbval-ignore-output"]
import os
from pathlib import Path

from course_utils.launch.run_here import run_here

small = ("--scenes=500", "--tower_steps=10", "--scorer_steps=10", "--logging_steps=1")
rehearsal = spec.but(max_steps=4, save_every=4, arguments=(*spec.arguments, *small))
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
ran = run_here(rehearsal, "torchrun.sh", f"{scratch.name}/rehearsal", processes=2)
for name in ("world_size", "backend", "wrapper", "effective_batch", "state"):
    print(f"{name:16}{ran[name]}")
wandb_files = list(Path(f"{scratch.name}/rehearsal").rglob("offline-run-*/run-*.wandb"))
print("W&B offline runs:", len(wandb_files))
teach.claim("two processes in one DDP run", ran["wrapper"] == "DistributedDataParallel")
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
held = ran["optimizer_held"]  # numbers that each process's optimizer was given
teach.claim("no optimizer state for frozen parts", held == [trained] * 2)

# %% [markdown]
# `write(spec, "launch")` would put the files of the 4-GPU run into a folder. They were not started on 4 GPUs here.

# %% [markdown]
# ## Recap
#
# - A vision-language model is a language model whose `<image>` tokens are projected patches; by hand it equals LLaVA.
# - Labels are the answer and its end. Score by kind, beside what the question alone gives away.
# - Freeze before the optimizer is made; give pretrained parts a smaller rate; count the optimizer's state.
# - 4 patches with learned scores did better than 16 with random ones; the scores in the tokens have a part in that.
# - The count stayed low with any number of patches; why is not shown. Known weights in the loss bought speed.
# - Divide weighted losses by the sum of the weights.

# %% [markdown]
# ## Quiz
#
# **1.** Your model reaches 0.45 on a benchmark whose most frequent answer is right in 0.2 of the rows. Does it see?
#
# <details><summary>Answer</summary>
#
# Not shown. The question alone may give 0.45 away. Score the question-only rule, and the model with other rows' images.
#
# </details>

# %% [markdown]
# **2.** Why does the tower's rate of 0 cost memory, though no weight moves?
#
# <details><summary>Answer</summary>
#
# Gradients are computed and AdamW keeps two numbers for each parameter it was given. `requires_grad=False` avoids both.
#
# </details>

# %% [markdown]
# **3.** A paper keeps a tenth of the image tokens and loses 0.01 of accuracy. What do you ask?
#
# <details><summary>Answer</summary>
#
# Accuracy by kind of question: counting or reading may be gone while the average holds. And against which baseline:
# random patches, or all of them after equally long training?
#
# </details>
#
# **Next:** [lesson 15](15_launch.ipynb) plans such runs for any model and cluster, and checks that launch files do what
# was asked.
