"""Rank and learning rate of LoRA, and full fine-tuning's rate, on lesson 10's task; judged on validation rows.

python bench/bench_lora.py                 # about 4 CPU-minutes; writes bench/results/lora.json
python bench/bench_lora.py --seeds 1 --steps 10 --out /tmp/try.json
"""

from __future__ import annotations

from pathlib import Path

import record
import torch

from course_utils.data import load_instructions
from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10 import task
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.teach.lesson import quieten
from course_utils.training.base_lm import load_base_lm
from course_utils.training.lora import add_lora

RANKS, LORA_RATES, FULL_RATES = (2, 8, 32), (1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=from_to(1), default=3)
    parser.add_argument("--steps", type=from_to(1), default=60)
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "lora.json")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    tokenizer, base, template = load_chat_tokenizer(), load_base_lm(), Template()
    rows = task.take_rows(load_instructions())
    examples = task.encode_rows(tokenizer, template, rows["train"])

    def run(rank: int | None, rate: float, seed: int) -> float:
        model = task.fresh(base)
        torch.manual_seed(seed)
        if rank:
            add_lora(model, rank, 2 * rank)
        task.fine_tune(model, examples, options.steps, rate, seed=seed)
        score = task.scores(model, tokenizer, template, rows["validation"])["exact_match"]
        print(rank or "full", rate, seed, round(score, 3), flush=True)
        return score

    seeds = range(options.seeds)
    report = {
        "steps": options.steps,
        "full": {f"{rate:g}": [run(None, rate, seed) for seed in seeds] for rate in FULL_RATES},
        "lora": {str(r): {f"{rate:g}": [run(r, rate, seed) for seed in seeds] for rate in LORA_RATES} for r in RANKS},
        "machine": {"processor": record.processor(), "torch": torch.__version__, "threads": 1},
    }
    record.write(options.out, report)


if __name__ == "__main__":
    main()
