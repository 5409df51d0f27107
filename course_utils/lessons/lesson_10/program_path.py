"""The seven phases as three programs, called in this process: prepare_data, finetune, generate."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from course_utils.data.instructions import pad_left
from course_utils.models.peft_names import new_name


def run_path(base: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Data, adapters, merge and answers in a temporary folder.

    Returns:
        ``commands`` (as one would type them, with short names for the folders), ``scores``, ``most_frequent`` (share of
        the scored rows with the most frequent answer), and of some prompts' logits: ``moved``, the largest difference
        between adapters and base, and ``merge_gap``, between the merged model and adapters.
    """
    from course_utils.data import load_instructions
    from course_utils.data.instructions import Template
    from course_utils.lessons.lesson_10.task import BASE_ROWS
    from course_utils.recipes import finetune, generate, prepare_data

    folder = Path(tempfile.mkdtemp())
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    splits = load_instructions()
    few = {
        "train": splits["train"].select(range(BASE_ROWS, BASE_ROWS + 32 * steps)),
        "test": splits["validation"].select(range(100)),
    }
    files = prepare_data.prepare(folder / "data", lambda: few, Template(), rank=0)
    train = [
        "--task=causal_lm",
        f"--model_name_or_path={folder}/base",
        f"--train_file={files['train']}",
        f"--output_dir={folder}/run",
        "--use_peft",
        "--lora_r=16",
        "--lora_dropout=0",
        "--learning_rate=1e-2",
        f"--max_steps={steps}",
        "--per_device_train_batch_size=32",
        "--use_cpu",
    ]
    hidden = ["--report_to=none", "--disable_tqdm=true", "--save_strategy=no"]
    answer = [f"--model={folder}/base", f"--adapter={folder}/run", f"--file={files['test']}"]
    answer += [f"--out={folder}/answers.jsonl", "--max_new_tokens=4", "--batch_size=100"]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), new_name():
        warnings.simplefilter("ignore")
        finetune.main(train + hidden)
        scores = generate.main(answer)
    names = {f"{folder}/": ""}
    lines = ["prepare_data --folder=data", f"finetune {' '.join(train)}", f"generate {' '.join(answer)}"]
    commands = ["python -m course_utils.recipes." + _shorten(line, names) for line in lines]
    wanted = Counter(few["test"]["output"])
    report = {"commands": commands, "scores": scores, "most_frequent": max(wanted.values()) / wanted.total()}
    return report | _merge_report(base, tokenizer, folder, [Template().render(row)[0] for row in few["test"]][:8])


@torch.no_grad()
def _merge_report(base: Any, tokenizer: Any, folder: Path, prompts: list[str]) -> dict[str, float]:
    """``moved`` and ``merge_gap`` of the adapter in ``folder/run``, merged as ``generate`` does it."""
    from peft import PeftModel

    from course_utils.recipes import generate

    batch = pad_left([tokenizer(prompt)["input_ids"] for prompt in prompts], tokenizer.pad_token_id)
    with warnings.catch_warnings(), new_name():
        warnings.simplefilter("ignore")
        merged = generate.load(f"{folder}/base", f"{folder}/run")[0].eval()
        adapted = PeftModel.from_pretrained(copy.deepcopy(base), folder / "run").eval()
    plain, merged, adapted = (model(**batch).logits for model in (base, merged, adapted))
    return {"moved": (adapted - plain).abs().max().item(), "merge_gap": (merged - adapted).abs().max().item()}


def _shorten(line: str, names: dict[str, str]) -> str:
    for long, short in names.items():
        line = line.replace(long, short)
    return line
