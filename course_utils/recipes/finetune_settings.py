"""What ``finetune`` is told: a typed class beside ``TrainingArguments``, from the command line or a YAML file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from course_utils.recipes import finetune_ranges
from course_utils.recipes.finetune_named import check_json, check_named, json_object

COURSE_MODELS = {"course/encoder": "classification", "course/causal": "causal_lm"}
RESUME = ("true", "false", "adapt")


def of(default: Any, meaning: str, **more: Any) -> Any:
    """A field with its default and the line that ``--help`` prints."""
    return field(default=default, metadata={"help": meaning, **more})


@dataclass
class Config:
    """What is trained on what; how is left to ``TrainingArguments``.

    Raises:
        ValueError: a value is out of range, names something that is not there, or would be read by nothing.
    """

    task: Literal["classification", "causal_lm"] = of("classification", "which head and which loss")
    # data: one of source, train_file, dataset_name
    source: Literal["local", "hub"] = of("local", "the course's data, from installed libraries or the hub")
    train_file: str | None = of(None, "JSON lines to train on")
    eval_file: str | None = of(None, "JSON lines to evaluate on, with --eval_strategy")
    dataset_name: str | None = of(None, "hub data set, or a folder with one")
    dataset_config: str | None = of(None, "configuration of the hub data set")
    dataset_train_split: str = of("train", "split to train on")
    dataset_test_split: str = of("test", "split to evaluate on, with --eval_strategy")
    max_length: int = of(1024, "tokens of a row; the rest is cut off")
    # model
    model_name_or_path: str = of("course/encoder", "course/encoder, course/causal, a folder, or a hub name")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = of("float32", "of the weights as they are loaded")
    attn_implementation: str | None = of(None, "attention: sdpa, eager, flash_attention_2 ...")
    use_peft: bool = of(False, "train LoRA adapters instead of all weights")
    lora_r: int = of(16, "rank of the adapters")
    lora_alpha: int = of(32, "the adapters' output is scaled by lora_alpha / lora_r")
    lora_dropout: float = of(0.05, "dropout before the adapters")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "modules that get adapters"}
    )
    # the run
    resume: str = of(
        "true",
        "true: go on from the last complete checkpoint of output_dir; false: begin anew; adapt: go on with another "
        "batch, accumulation or number of processes, at the row where the checkpoint stopped",
        nargs="?",
        const="true",
    )

    def __post_init__(self) -> None:
        finetune_ranges.check_ranges(self, finetune_ranges.OWN_RANGES)
        self.resume = str(self.resume).lower()
        if self.resume not in RESUME:
            raise ValueError(f"resume={self.resume!r} is not known; allowed: {', '.join(RESUME)}")
        self._check_model()
        self._check_data()
        finetune_ranges.check_ignored(self, COURSE_MODELS)

    def _check_model(self) -> None:
        made_for = COURSE_MODELS.get(self.model_name_or_path)
        if made_for and made_for != self.task:
            name = next(model for model, task in COURSE_MODELS.items() if task == self.task)
            raise ValueError(
                f"model_name_or_path={self.model_name_or_path!r} does not fit task={self.task!r}; allowed: {name!r}, "
                "a folder, or a hub name"
            )
        path = Path(self.model_name_or_path)
        is_path = path.is_absolute() or os.path.exists(path) or self.model_name_or_path.startswith((".", "~"))
        if not self.model_name_or_path or (is_path and not os.path.isfile(path / "config.json")):
            raise ValueError(
                f"model_name_or_path={self.model_name_or_path!r} has no config.json; allowed: a model's folder"
            )
        tensor_parallel = int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", 1))  # set by launch files and accelerate
        if tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel={tensor_parallel} needs a program that loads its model with a tensor-parallel plan, "
                "which this one does not; allowed: 1"
            )

    def _check_data(self) -> None:
        if self.train_file and self.dataset_name:
            raise ValueError(
                f"train_file={self.train_file!r} contradicts dataset_name={self.dataset_name!r}; allowed: one of them"
            )
        if self.eval_file and not self.train_file:
            raise ValueError(f"eval_file={self.eval_file!r} needs --train_file; allowed: both or none")
        if set(self.dataset_name or "") & set("*?[]") and Path(self.dataset_name).is_dir():
            raise ValueError(
                f"dataset_name={self.dataset_name!r} would be read as a pattern by the datasets library; allowed: a "
                "folder without *, ? and brackets in its name, or --train_file"
            )
        for name in ("train_file", "eval_file"):
            path = getattr(self, name)
            if path and not (os.path.isfile(path) and Path(path).suffix in (".json", ".jsonl")):
                raise ValueError(f"{name}={path!r} is no such file; allowed: a file of JSON lines (.jsonl, .json)")


class Parser(HfArgumentParser):
    """Says what is wrong in one sentence, without the two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_settings(arguments: list[str] | None = None, description: str = "") -> tuple[Config, TrainingArguments]:
    """The command line as two typed objects; ``arguments`` None: that of this process.

    A single argument that ends in ``.yaml`` is a file with the same names: ``finetune run.yaml``.
    ``{run}`` in ``output_dir`` becomes ``run_name``. FSDP saves sharded checkpoints unless it is told otherwise.

    Raises:
        ValueError: an unknown flag or value, a number out of its range, a flag that nothing would read.
    """
    parser = Parser((Config, TrainingArguments), description=description.replace("%", "%%"), allow_abbrev=False)
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) == 1 and given[0].endswith((".yaml", ".yml")):
        given = flags_of(Path(given[0]))
    given = _shard_checkpoints(parser, given)
    early, _ = parser.parse_known_args(given)  # TrainingArguments computes with some numbers as it is made
    finetune_ranges.check_ranges(early, finetune_ranges.RANGES)
    check_json(early)
    config, args = parser.parse_args_into_dataclasses(given)
    finetune_ranges.check_together(config, args)
    check_named(args)
    if not (args.output_dir or "").strip():
        raise ValueError(f"output_dir={args.output_dir!r} is empty; allowed: a folder's name")
    args.output_dir = args.output_dir.replace("{run}", run_name(config, args))
    return config, args


def flags_of(file: Path) -> list[str]:
    """The settings of a YAML file as flags, so that both are read by the same rules (YAML takes 1e-3 for text).

    Raises:
        ValueError: it cannot be read, or is no mapping of names to values.
    """
    import yaml

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"{file} is no list of settings; allowed: lines such as `learning_rate: 2e-4`")
    flags = []
    for name, value in settings.items():
        if isinstance(value, list) and value:
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _shard_checkpoints(parser: Parser, given: list[str]) -> list[str]:
    """``given`` with SHARDED_STATE_DICT where FSDP is asked for and no type: transformers' own default is FULL.

    FULL gathers the whole model and the optimizer, three times the weights, in rank 0's memory at each save, while the
    others wait; sharded, each rank writes its part. The final model is gathered either way (``finetune.save_model``).
    """
    early, _ = parser.parse_known_args(given)
    if not early.fsdp or "FSDP_STATE_DICT_TYPE" in os.environ:
        return given
    settings = json_object("fsdp_config", early.fsdp_config)
    if not {"state_dict_type", "fsdp_state_dict_type"} & settings.keys():
        return [*given, f"--fsdp_config={json.dumps(settings | {'state_dict_type': 'SHARDED_STATE_DICT'})}"]
    return given


def run_name(config: Config, args: TrainingArguments) -> str:
    """A folder's name that says what ran: ``qwen3-0.6b_lora16_lr0.0002_b8x4_seed0``; the same flags, the same name."""
    model = config.model_name_or_path.rstrip("/").rpartition("/")[2].lower()
    adapters = f"lora{config.lora_r}" if config.use_peft else "full"
    batch = f"b{args.per_device_train_batch_size}x{args.gradient_accumulation_steps}"
    return f"{model}_{adapters}_lr{args.learning_rate:g}_{batch}_seed{args.seed}"
