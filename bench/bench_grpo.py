"""GRPO by hand on lesson 10's task: what a short run learns, and what it loses. Judged on validation rows.

python bench/bench_grpo.py                 # about 8 CPU-minutes; writes bench/results/grpo.json
python bench/bench_grpo.py --seeds 1 --steps 10 --out /tmp/try.json

Three starts: the base, which never names a library; a copy after 15 steps of fine-tuning; one after 60.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import record
import torch

from course_utils.data import load_instructions
from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10 import reinforce, task
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.teach.lesson import quieten
from course_utils.training.base_lm import load_base_lm

STARTS = {"the base": 0, "15 steps of fine-tuning": 15, "60 steps of fine-tuning": 60}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=from_to(1), default=3)
    parser.add_argument("--steps", type=from_to(1), default=60)
    parser.add_argument("--rate", type=from_to(0, kind=float), default=2e-4)
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "grpo.json")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    tokenizer, base, template = (
        load_chat_tokenizer(),
        load_base_lm(),
        Template("{instruction}\n\n{input}\n\nAnswer:", " {output}"),
    )
    rows = task.take_rows(load_instructions())
    examples = task.encode_rows(tokenizer, template, rows["train"])

    def run(steps_before: int, seed: int) -> dict[str, list[float]]:
        start = task.fresh(base)
        if steps_before:
            task.fine_tune(start, examples, steps_before, 1e-3, seed=seed, pad_token_id=tokenizer.pad_token_id)
        found = reinforce.grpo_run(
            start,
            tokenizer,
            template,
            rows["train"],
            rows["validation"],
            steps=options.steps,
            rate=options.rate,
            seed=seed,
        )
        print(
            steps_before,
            seed,
            {k: [round(x, 2) for x in v][:: 10 if len(v) > 20 else 1] for k, v in found.items()},
            flush=True,
        )
        return {name: [round(value, 4) for value in values] for name, values in found.items()}

    report = {
        "steps": options.steps,
        "rate": options.rate,
        "group": reinforce.GROUP,
        "starts": {name: [run(before, seed) for seed in range(options.seeds)] for name, before in STARTS.items()},
        "machine": {"processor": record.processor(), "torch": torch.__version__, "threads": 1},
    }
    record.write(options.out, report)


if __name__ == "__main__":
    main()
