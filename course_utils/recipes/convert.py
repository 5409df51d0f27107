"""Turn a sharded checkpoint into a Hugging Face folder (lessons 12 and 13).

FSDP or DeepSpeed, as Trainer, Accelerate or `course_utils.recipes.finetune` wrote it; the model that was trained says
which names and shapes must be there:

    python -m course_utils.recipes.convert runs/four/checkpoint-500 --model Qwen/Qwen3-0.6B --out models/mine

A LoRA adapter alone, or added to its base:

    python -m course_utils.recipes.convert runs/lora/checkpoint-500 --model Qwen/Qwen3-0.6B --out models/adapter \\
        --adapter keep --adapter_config runs/lora
    python -m course_utils.recipes.convert runs/lora/checkpoint-500 --model Qwen/Qwen3-0.6B --out models/merged \\
        --adapter merge --adapter_config runs/lora --dtype bfloat16

A classifier whose head is not in the base model's config.json:

    python -m course_utils.recipes.convert runs/classes/checkpoint-90 --model distilbert/distilbert-base-uncased \\
        --architecture DistilBertForSequenceClassification --num_labels 3 --out models/classes

One process, no GPU, about one model of memory. The folder appears whole or not at all: a checkpoint that is
unfinished, damaged or another model's is refused in one sentence, with exit code 2, and an existing folder stays unless
--overwrite is given. Nothing that a checkpoint's pickles name is executed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from transformers.utils.logging import disable_progress_bar

from course_utils.parallel.convert import ConversionError, Converted, convert_checkpoint


def refuse(sentence: str) -> NoReturn:
    """End the program as for any flag that cannot be used."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        refuse(message)


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; one that cannot be used ends the program."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint-500, pytorch_model_fsdp_0, a folder of dcp.save, or global_step500")
    add("--model", required=True, help="the model that was trained: a folder or a hub name")
    add("--out", type=Path, required=True, help="the new folder")
    add("--adapter", choices=["keep", "merge"], help="of a LoRA run: the adapter alone, or added to its base")
    add(
        "--adapter_config", type=Path, help="folder with adapter_config.json; looked for beside the checkpoint if unset"
    )
    add("--architecture", help="the class that was trained, if config.json names another")
    add("--num_labels", type=int, help="classes of a classifier's head, if config.json says otherwise")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="of the written weights; as saved if unset")
    add("--max_shard_size", default="5GB", help="of one safetensors file")
    add("--overwrite", action="store_true", help="replace --out if it is a model's folder")
    add("--no_verify", action="store_true", help="DeepSpeed: do not compare all files with their checksums first")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Converted:
    """Convert and say what was made; ``arguments`` None: those of the command line."""
    settings = read_settings(arguments)
    disable_progress_bar()
    try:
        changes = {} if settings.num_labels is None else {"num_labels": settings.num_labels}
        made = convert_checkpoint(
            settings.checkpoint,
            settings.model,
            settings.out,
            adapter=settings.adapter,
            adapter_config=settings.adapter_config,
            architecture=settings.architecture,
            config_changes=changes,
            dtype=settings.dtype,
            max_shard_size=settings.max_shard_size,
            overwrite=settings.overwrite,
            verify=not settings.no_verify,
        )
    except (ConversionError, ValueError, OSError) as error:  # the user's to repair: no traceback
        refuse(" ".join(str(error).split()))
    counts = f"{made.tensors} tensors, {made.parameters:,} parameters, {'/'.join(made.dtypes)}"
    print(f"{made.source} -> {made.folder}: {counts}")
    print(f"files: {', '.join(made.files)}")
    print(f"load it with: {how_to_load(settings, made)}")
    return made


def how_to_load(settings: argparse.Namespace, made: Converted) -> str:
    """The line of Python that loads the folder."""
    if settings.adapter == "keep":
        return f"PeftModel.from_pretrained({made.model}.from_pretrained({settings.model!r}), {str(made.folder)!r})"
    return f"{made.model}.from_pretrained({str(made.folder)!r})"


if __name__ == "__main__":
    main()
