"""Lesson 14's comparisons over several seeds: which patches to keep, which loss, how to treat a pretrained tower.

    python bench/bench_relevance.py                    # about 12 CPU-minutes; writes bench/results/relevance.json
    python bench/bench_relevance.py --parts loss --steps 5 --seeds 2 --out /tmp/try.json

A seed decides everything: the split of the digit images, the scenes, all weights and orders. Settings were chosen on
validation rows; every number here is accuracy on test rows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import record
import torch

from course_utils.data.batches import IGNORED
from course_utils.data.visual_questions import VqaCollator, visual_questions
from course_utils.lessons.lesson_14.runs import (
    RATES,
    NotRenormalised,
    new_model,
    other_scores,
    prepare,
    score,
    train_run,
)
from course_utils.models.vision_language import PatchReader, vision_config
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.training.part_rates import PartRatesTrainer

BUDGETS = (1, 2, 4, 8, 16)
KEEP, FILLER, FILLER_WEIGHT = 4, 8, 0.1


class InverseFrequency:
    """A collator whose relevance is 1 / the number of times that a target occurs in the training answers."""

    def __init__(self, collate: VqaCollator, rows):
        self.collate = collate
        ids = torch.tensor([number for answer in rows.answers for number in collate.ids(answer)])
        counts = torch.bincount(ids, minlength=len(collate.tokenizer)).float()
        counts[collate.tokenizer.eos_token_id] = len(rows)
        self.weights = counts.sum() / counts.clamp(min=1)

    def __call__(self, rows):
        batch = self.collate(rows)
        labels = batch["labels"]
        batch["relevance"] = self.weights[labels.clamp(min=0)].masked_fill(labels == IGNORED, 0)
        return batch


def budget(stages, seed, steps):
    """Each way to choose patches has a model of its own, trained on mixed budgets."""
    found = {}
    for how in ("learned", "oracle", "random", "uniform"):
        scores = stages.scores if how == "learned" else {
            split: other_scores(how, rows, seed) for split, rows in stages.data.items()
        }  # fmt: skip
        model = new_model(stages.reader, stages.tokenizer, seed)
        collate = VqaCollator(stages.tokenizer, BUDGETS, scores["train"], features=stages.features["train"], seed=seed)
        train_run(model, stages.data["train"], collate, steps, seed)
        found[how] = {}
        for keep in BUDGETS:
            judge = VqaCollator(stages.tokenizer, keep, scores["test"], features=stages.features["test"])
            found[how][str(keep)] = score(model, stages.data["test"], judge)
    return found


def loss(stages, seed, steps):
    """Answers behind filler: equal weights, known weights (each also in a third of the steps), two other kinds."""
    data, found = visual_questions(filler=FILLER, seed=seed), {}

    def collator(split, filler_weight):
        chosen = {"scores": stages.scores[split], "features": stages.features[split]}
        return VqaCollator(stages.tokenizer, KEEP, filler_weight=filler_weight, **chosen)

    known = collator("train", FILLER_WEIGHT)
    equal, third = collator("train", 1.0), max(1, steps // 3)
    runs = {
        "uniform, a third": (equal, PartRatesTrainer, third),
        "known, a third": (known, PartRatesTrainer, third),
        "uniform": (equal, PartRatesTrainer, steps),
        "known": (known, PartRatesTrainer, steps),
        "inverse frequency": (InverseFrequency(known, data["train"]), PartRatesTrainer, steps),
        "not renormalised": (known, NotRenormalised, steps),
    }
    for name, (collate, trainer_class, length) in runs.items():
        model = new_model(stages.reader, stages.tokenizer, seed)
        train_run(model, data["train"], collate, length, seed, trainer_class=trainer_class)
        found[name] = score(model, data["test"], collator("test", 1.0))
    return found


def tower(stages, seed, steps):
    """A pretrained tower frozen, trained at a tenth of the rate, at the same rate; and a random one."""
    pretrained = {name: value.clone() for name, value in stages.reader.tower.state_dict().items()}
    torch.manual_seed(seed)
    random = PatchReader(type(stages.reader.tower)(vision_config()), 11).tower.state_dict()
    runs = {
        "frozen": (pretrained, 0.0),
        "a tenth": (pretrained, 0.1),
        "the same": (pretrained, 1.0),
        "random, frozen": (random, 0.0),
        "random, trained": (random, 1.0),
    }
    found = {}
    for name, (weights, factor) in runs.items():
        stages.reader.tower.load_state_dict(weights)
        model = new_model(stages.reader, stages.tokenizer, seed)
        rates = dict(RATES)
        if factor:
            model.tower.requires_grad_(True)
            rates["tower"] = factor * RATES["projector"]
        collate = VqaCollator(stages.tokenizer, KEEP, stages.scores["train"])
        train_run(model, stages.data["train"], collate, steps, seed, rates=rates)
        judge = VqaCollator(stages.tokenizer, KEEP, stages.scores["test"])
        found[name] = score(model, stages.data["test"], judge)
    stages.reader.tower.load_state_dict(pretrained)
    return found


PARTS = {"budget": (budget, 3), "loss": (loss, 3), "tower": (tower, 3)}  # and how many seeds


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=from_to(1), default=300)
    parser.add_argument("--seeds", type=from_to(0), default=0, help="0: 3")
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "relevance.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts:
        run, seeds = PARTS[part]
        seeds = arguments.seeds or seeds
        results, began = [], time.process_time()
        for seed in range(seeds):
            results.append(run(prepare(seed), seed, arguments.steps))
            print(part, seed, {k: v.get("all", v) for k, v in results[-1].items()}, flush=True)
            report |= {"processor": record.processor(), "torch": torch.__version__, "steps": arguments.steps}
            report[part] = {
                "cpu_seconds": round(time.process_time() - began),
                "seed_numbers": list(range(seed + 1)),
                "seeds": results,
            }
            record.write(arguments.out, report)  # after every seed: a stopped bench leaves what it has


if __name__ == "__main__":
    main()
