"""The seven phases as three programs, called in this process: prepare_data, finetune, generate."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any


def run_path(base: Any, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Data, adapters, merge and answers in a temporary folder.

    Returns:
        ``commands`` (as one would type them, with short names for the folders), ``scores`` and ``adapter_bytes``.
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
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finetune.main(train + hidden)
        scores = generate.main(answer)
    names = {f"{folder}/": ""}
    lines = ["prepare_data --folder=data", f"finetune {' '.join(train)}", f"generate {' '.join(answer)}"]
    commands = ["python -m course_utils.recipes." + _shorten(line, names) for line in lines]
    size = (folder / "run" / "adapter_model.safetensors").stat().st_size
    return {"commands": commands, "scores": scores, "adapter_bytes": size}


def _shorten(line: str, names: dict[str, str]) -> str:
    for long, short in names.items():
        line = line.replace(long, short)
    return line
