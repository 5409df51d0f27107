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
import re
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from course_utils.parallel.convert import ConversionError, Converted, convert_checkpoint
from course_utils.recipes.command_line import Parser, folder_to_write, from_to, model_name, refusing


def name(text: str) -> str:
    """A flag's ``type``: the name of a class, not empty."""
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no class; allowed: a model of transformers, as Qwen3ForCausalLM")
    return text


def size(text: str) -> str:
    """A flag's ``type``: such as "5GB", which huggingface_hub reads as 5e9 bytes."""
    match = re.fullmatch(r"([0-9]+(\.[0-9]+)?) ?[KMGT]B", text, re.IGNORECASE)
    if not match or float(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; allowed: a number >= 1 with KB, MB, GB or TB")
    return text


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; one that cannot be used ends the program."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint-500, pytorch_model_fsdp_0, a folder of dcp.save, or global_step500")
    add("--model", type=model_name, required=True, help="the model that was trained: a folder or a hub name")
    add("--out", type=folder_to_write, required=True, help="the new folder")
    add("--adapter", choices=["keep", "merge"], help="of a LoRA run: the adapter alone, or added to its base")
    add(
        "--adapter_config", type=Path, help="folder with adapter_config.json; looked for beside the checkpoint if unset"
    )
    add("--architecture", type=name, help="the class that was trained, if config.json names another")
    add("--num_labels", type=from_to(1), help="classes of a classifier's head, if config.json says otherwise")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="of the written weights; as saved if unset")
    add("--max_shard_size", type=size, default="5GB", help="of one safetensors file")
    add("--overwrite", action="store_true", help="replace --out if it is a model's folder")
    add("--no_verify", action="store_true", help="DeepSpeed: do not compare all files with their checksums first")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Converted:
    """Convert and say what was made; ``arguments`` None: those of the command line."""
    settings = read_settings(arguments)
    disable_progress_bar()
    with refusing(ConversionError):
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
