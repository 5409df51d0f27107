"""What warm-up, a falling rate, clipping and decay groups are each worth to a tiny encoder (lesson 01).

    python bench/bench_because.py              # about 3 minutes on two cores; writes bench/results/because.json
    python bench/bench_because.py --seeds 1 --steps 20 --out /tmp/try.json

Two learning rates: the best of four on the validation split (bench_rates.py), and three times that. Each technique is
left out alone; the same seed means the same weights, rows and dropout masks, so runs are compared in pairs.
"""

from __future__ import annotations

from pathlib import Path

import record
import torch
from transformers import DataCollatorWithPadding

from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.lessons.lesson_01.comparisons import PEAK, short_run
from course_utils.models import load_tokenizer
from course_utils.recipes.command_line import Parser, file_to_write, from_to

LEFT_OUT = {"nothing": {}, **{name: {name: False} for name in ("warmup", "falling", "clip", "groups")}}
MAX_LENGTH = 24


def rows_of(data, split, tokenizer, max_length=MAX_LENGTH):
    encoded = tokenizer(list(data[split]["text"]), truncation=True, max_length=max_length)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], data[split]["label"], strict=True)
    return [dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in columns]


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=from_to(1), default=100)
    parser.add_argument("--seeds", type=from_to(1), default=12)
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "because.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a model this small gains nothing from a second thread
    data, tokenizer = load_classification(), load_tokenizer()
    collate = DataCollatorWithPadding(tokenizer)
    rows = rows_of(data, "train", tokenizer)
    held_out = sorted(rows_of(data, "validation", tokenizer), key=lambda row: len(row["input_ids"]))
    validation = list(ShuffledBatches(held_out, 250, collate, shuffle=False))
    report = {"steps": arguments.steps, "seeds": arguments.seeds, "validation_loss": {}}
    for peak in (PEAK, 3 * PEAK):
        report["validation_loss"][f"{peak:g}"] = losses = {}
        for name, changes in LEFT_OUT.items():
            runs = [
                short_run(rows, collate, validation, seed, steps=arguments.steps, peak=peak, **changes)
                for seed in range(arguments.seeds)
            ]
            losses[name] = [round(loss, 4) for loss in runs]
            print(peak, name, losses[name], flush=True)
    record.write(arguments.out, report)


if __name__ == "__main__":
    main()
