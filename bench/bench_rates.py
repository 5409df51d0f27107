"""How the learning rates of lesson 01's cheap comparisons were chosen: validation loss, mean of three seeds.

    python bench/bench_rates.py              # about a minute on two cores; writes bench/results/rates.json
    python bench/bench_rates.py --steps 5 --out /tmp/try.json

The seeds are 100 to 102; the lesson and bench_because.py use others. AdamW is run with a decay of 0.1.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import record
import torch
from bench_because import rows_of
from transformers import DataCollatorWithPadding

from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.lessons.lesson_01 import comparisons
from course_utils.models import load_tokenizer
from course_utils.recipes.command_line import Parser, file_to_write, from_to

SEEDS = (100, 101, 102)
PLAIN, ADAPTIVE, ENCODER = (0.1, 0.3, 1.0, 2.0), (0.01, 0.03, 0.1), (1e-3, 3e-3, 1e-2, 3e-2)
TRIED = {"SGD": PLAIN, "momentum": PLAIN, "RMS step": ADAPTIVE, "Adam": ADAPTIVE, "AdamW": ADAPTIVE}


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=from_to(0), default=0, help="0: as many as in the lesson")
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "rates.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, tokenizer = load_classification(), load_tokenizer()
    collate, found = DataCollatorWithPadding(tokenizer), {}
    for max_length in (48, 24):  # as in the lesson and as in bench_because.py
        rows = rows_of(data, "train", tokenizer, max_length)
        held_out = sorted(rows_of(data, "validation", tokenizer, max_length), key=lambda row: len(row["input_ids"]))
        validation = list(ShuffledBatches(held_out, 250, collate, shuffle=False))
        if max_length == 48:
            steps = {"steps": arguments.steps} if arguments.steps else {}
            race = comparisons.Race(rows, collate, validation, 10, len(tokenizer), SEEDS, **steps)
            for name, rates in TRIED.items():
                for rate in rates:
                    race.run(name, comparisons.RULES[name], rate, decay=0.1 if name == "AdamW" else 0)
                    note(found, name, rate, race.reached[name])
        else:
            for rate in ENCODER:
                steps = arguments.steps or 100
                losses = [
                    comparisons.short_run(rows, collate, validation, seed, steps=steps, peak=rate) for seed in SEEDS
                ]
                note(found, "encoder", rate, losses)
    record.write(arguments.out, {"seeds": SEEDS, "validation_loss": found})


def note(found, name, rate, losses):
    """A run that diverged counts as infinitely bad; JSON has no infinity, so it gets 99."""
    average = mean(losses)
    found.setdefault(name, {})[f"{rate:g}"] = round(average, 4) if math.isfinite(average) else 99
    print(name, rate, found[name][f"{rate:g}"], flush=True)


if __name__ == "__main__":
    main()
