"""Train lesson 14's vision-language model: the program that its launch files start.

One process on the CPU, a short try:

    python -m course_utils.recipes.train_vision_language --output_dir runs/vlm --max_steps 40 --use_cpu

4 GPUs of one machine, 16 questions each:

    torchrun --standalone --nproc-per-node 4 -m course_utils.recipes.train_vision_language \\
        --output_dir runs/vlm --max_steps 300 --per_device_train_batch_size 16 --bf16

`course_utils.launch` writes such lines from a spec. Stages 1 and 2, tower and scorer, are made once, by the first
process of each machine, and kept in --output_dir/stages.pt; the others wait and read. The output folder also gets the
weights and run.json: what really ran; one run at a time may have it. Every flag of TrainingArguments is understood or
refused; --learning_rate is that of the new parts. What cannot be used ends the program before any work, with one
sentence and exit code 2.
"""

from __future__ import annotations

import os
import pickle
from argparse import ArgumentTypeError
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import Qwen3ForCausalLM, SiglipVisionModel, TrainingArguments, set_seed

from course_utils.data.visual_questions import IMAGE, KINDS, PATCHES, VqaCollator, scene_tokenizer, visual_questions
from course_utils.models.vision_language import VisionLanguageModel, text_config, vision_config
from course_utils.parallel import report
from course_utils.parallel.shared_folder import seen_by_all
from course_utils.parallel.what_ran import WriteRun, WrongRun, check_ranks
from course_utils.recipes.command_line import folder_to_write, refusing
from course_utils.recipes.finetune_named import check_json, check_named
from course_utils.recipes.finetune_ranges import COUNT, COUNT_OR_0, POSITIVE_OR_0, RANGES, Range, check_ranges
from course_utils.recipes.finetune_ranges import _check_reports as check_reports
from course_utils.recipes.finetune_settings import Parser, of
from course_utils.training.owned_folder import owned_folder
from course_utils.training.part_rates import PartRatesTrainer, freeze
from course_utils.training.vision_stages import patch_scores, pretrain_tower, tower_features, train_scorer
from course_utils.training.vqa import best_word, metrics_of

OWN_RANGES = {
    "scenes": Range(1, 1_000_000),
    "keep": Range(1, PATCHES),
    "filler": COUNT_OR_0,
    "filler_weight": POSITIVE_OR_0,
    "tower_steps": COUNT,
    "scorer_steps": COUNT,
    "tower_rate": POSITIVE_OR_0,
    "save_total_limit": COUNT,  # nothing goes on from a checkpoint here, so one is enough
}
METRICS = ("loss", *(f"accuracy_{kind}" for kind in KINDS))


@dataclass
class Config:
    """What is trained on what; how is left to ``TrainingArguments``. ``OWN_RANGES`` says what a number may be."""

    scenes: int = of(8000, "scenes in the training split")
    keep: int = of(4, "image tokens, 1 to 16")
    filler: int = of(0, "filler words in front of each answer")
    filler_weight: float = of(1.0, "relevance of a filler word in the loss")
    tower_steps: int = of(250, "steps of stage 1")
    scorer_steps: int = of(700, "steps of stage 2")
    tower_rate: float = of(0.0, "learning rate of the tower; 0: frozen, and not in the optimizer")


def stages(config: Config, args: TrainingArguments, data: dict, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Tower weights, and scores of every row: made by one process that sees ``output_dir``, read by the others."""
    path = Path(args.output_dir) / "stages.pt"
    wanted = {"scenes": config.scenes, "tower": config.tower_steps, "scorer": config.scorer_steps, "seed": args.seed}
    with args.main_process_first(local=not seen_by_all(args.output_dir), desc="stages 1 and 2"):
        if (found := read_stages(path)).get("made_with") == wanted:
            return found
        tower = pretrain_tower(data["train"], config.tower_steps, args.seed).tower
        features = {split: tower_features(tower, rows.images) for split, rows in data.items()}
        scorer = train_scorer(features["train"], data["train"], vocabulary, config.scorer_steps, args.seed)
        scores = {s: patch_scores(scorer, features[s], rows.questions, vocabulary) for s, rows in data.items()}
        found = {"made_with": wanted, "tower": tower.state_dict(), "scores": scores}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            torch.save(found, temporary)
            temporary.replace(path)  # whole or not there
        finally:
            temporary.unlink(missing_ok=True)
        return found


def read_stages(path: Path) -> dict[str, Any]:
    """What ``stages`` wrote; empty if it is not there or cannot be read: then it is made anew."""
    try:
        found = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return {}
    return found if isinstance(found, dict) and found.keys() >= {"made_with", "tower", "scores"} else {}


def build_trainer(config: Config, args: TrainingArguments) -> tuple[PartRatesTrainer, WriteRun]:
    """Data, model and Trainer, ready to train, and who writes run.json."""
    args.remove_unused_columns = False  # the collator reads columns that the model does not know
    data, tokenizer = visual_questions(config.scenes, config.filler, args.seed), scene_tokenizer()
    found = stages(config, args, data, tokenizer.get_vocab())
    set_seed(args.seed)  # the same new weights on every rank
    tower = SiglipVisionModel(vision_config())
    tower.load_state_dict(found["tower"])
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    language_model = Qwen3ForCausalLM(text_config(len(tokenizer)))
    model = VisionLanguageModel(freeze(tower), language_model, image, marks_scores=True)
    rates = dict.fromkeys(("projector", "language_model", "score_direction"), args.learning_rate)
    if config.tower_rate:
        tower.requires_grad_(True)
        freeze(tower.vision_model.post_layernorm if hasattr(tower, "vision_model") else tower.post_layernorm)
        rates["tower"] = config.tower_rate
    trainer = PartRatesTrainer(
        model,
        args,
        rates=rates,
        data_collator=Collators(config, tokenizer, found["scores"]),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=metrics_of(data["validation"].kinds),
        preprocess_logits_for_metrics=best_word,
    )
    trainer.add_callback(writer := WriteRun(trainer))
    check_ranks(trainer)
    return trainer, writer


class Collators:
    """One ``VqaCollator`` a split, as scores go by row number: rows say which split they are from."""

    def __init__(self, config: Config, tokenizer: Any, scores: dict[str, torch.Tensor]):
        make = partial(VqaCollator, tokenizer, config.keep, filler_weight=config.filler_weight)
        self.of_split = {split: make(scores=values) for split, values in scores.items()}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.of_split[rows[0]["split"]](rows)


def read_settings(arguments: list[str] | None = None) -> tuple[Config, TrainingArguments]:
    """The command line as two typed objects; ``arguments`` None: that of this process.

    Raises:
        ValueError: an unknown flag or value, a number out of its range, a flag that nothing would read.
    """
    parser = Parser((Config, TrainingArguments), description=__doc__.replace("%", "%%"), allow_abbrev=False)
    parser.set_defaults(learning_rate=3e-3)
    early, _ = parser.parse_known_args(arguments)  # TrainingArguments computes with some numbers as it is made
    check_ranges(early, RANGES | OWN_RANGES)
    check_json(early)
    config, args = parser.parse_args_into_dataclasses(arguments)
    check_named(args)
    try:
        folder_to_write(args.output_dir or "")
    except ArgumentTypeError as error:
        raise ValueError(f"output_dir={error}") from error
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    contradictions = {
        "fp16=True is read by nothing on a CPU; allowed: --fp16 false, or --bf16": args.fp16
        and args.device.type == "cpu",
        f"label_smoothing_factor={args.label_smoothing_factor} is read by nothing here, as the loss is this program's; "
        "allowed: 0": args.label_smoothing_factor,
        "do_predict=True is read by nothing here; allowed: false": args.do_predict,
        "resume_from_checkpoint is read by nothing here; allowed: to begin anew": args.resume_from_checkpoint,
        f"filler_weight={config.filler_weight} is read by nothing; allowed: with --filler": config.filler_weight != 1
        and not config.filler,
        f"metric_for_best_model={metric!r} is not known; allowed: {', '.join(METRICS)}": metric not in METRICS,
    }
    for sentence, is_so in contradictions.items():
        if is_so:
            raise ValueError(sentence)
    check_reports(args)
    return config, args


def main(arguments: list[str] | None = None) -> PartRatesTrainer:
    """Train; returns the Trainer, whose ``state`` knows the losses."""
    with ExitStack() as held:
        with refusing(WrongRun):
            config, args = read_settings(arguments)
            held.enter_context(owned_folder(args.output_dir))
            trainer, writer = build_trainer(config, args)
        trainer.train()
        trainer.save_model()
        writer.finish()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        report({"world_size": args.world_size, "losses": losses})
    return trainer


if __name__ == "__main__":
    record(main)()  # an exception also goes to the rank's error.json, where torchrun was given a log folder
