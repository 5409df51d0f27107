"""Fine-tune a classifier or a causal language model: the program that the launch files start (lesson 15).

One process, on the CPU or one GPU; the course's small encoder on the course's data:

    python -m course_utils.recipes.finetune --model_name_or_path course/encoder --output_dir runs/one --max_steps 500

4 GPUs of one machine, a model from the hub on your own JSON lines, sharded with FSDP2:

    torchrun --standalone --nproc-per-node 4 -m course_utils.recipes.finetune --task causal_lm \\
        --model_name_or_path Qwen/Qwen3-0.6B --train_file chats.jsonl --bf16 --fsdp --output_dir runs/four

2 nodes of 8 GPUs, the same line on each with NODE_RANK 0 or 1, and an output folder that both see:

    torchrun --nnodes 2 --nproc-per-node 8 --node-rank $NODE_RANK --master-addr node1 --master-port 29500 \\
        -m course_utils.recipes.finetune --task causal_lm --model_name_or_path Qwen/Qwen3-0.6B \\
        --train_file chats.jsonl --bf16 --fsdp --output_dir /shared/runs/two

CPU with 2 processes, to try the whole way before a cluster is paid for:

    torchrun --standalone --nproc-per-node 2 -m course_utils.recipes.finetune --use_cpu \\
        --model_name_or_path course/encoder --output_dir runs/cpu --max_steps 20

The settings as a file, and a folder named after them (`output_dir: runs/{run}`):

    python -m course_utils.recipes.finetune run.yaml

`python -m course_utils.launch write` writes such lines for a given cluster, and those for accelerate and DeepSpeed.

Rows are `text` and `label` for classification; `text`, or `prompt` and `completion` (only the completion is learnt),
for causal_lm. Effective batch = per_device_train_batch_size x processes x gradient_accumulation_steps. The same
command goes on from the last complete checkpoint of --output_dir (--resume false starts anew). SIGTERM or SIGUSR1, on
any rank: a checkpoint at the end of the current step, then exit code 0. The output folder gets checkpoints, the final
model as a Hugging Face folder, and run.json: what really ran. Every flag of TrainingArguments is understood, and names
that TRL's SFT script has too mean the same there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from course_utils.models import load_causal_lm, load_classifier, load_tokenizer
from course_utils.models.local import CAUSAL_VOCAB_SIZE
from course_utils.parallel.what_ran import WriteRun, WrongRun, check_ranks
from course_utils.recipes import finetune_data
from course_utils.training.evaluation import macro_f1
from course_utils.training.loop import summed_cross_entropy
from course_utils.training.resume import MarkComplete, NothingLeft, StopIfDone, agreed_checkpoint, forget_checkpoints
from course_utils.training.stop_on_signal import StopOnSignal

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

COURSE_MODELS = {"course/encoder": "classification", "course/causal": "causal_lm"}


def of(default: Any, meaning: str) -> Any:
    """A field with its default and the line that ``--help`` prints."""
    return field(default=default, metadata={"help": meaning})


@dataclass
class Config:
    """What is trained on what; how is left to ``TrainingArguments``.

    Raises:
        ValueError: a value is out of range or names something that is not there.
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
    resume: bool = of(True, "go on from the last complete checkpoint of output_dir")

    def __post_init__(self) -> None:
        for name, lowest in {"max_length": 2, "lora_r": 1, "lora_alpha": 1}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; allowed: a whole number >= {lowest}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout} is out of range; allowed: from 0 to below 1")
        made_for = COURSE_MODELS.get(self.model_name_or_path)
        if made_for and made_for != self.task:
            name = next(model for model, task in COURSE_MODELS.items() if task == self.task)
            raise ValueError(
                f"model_name_or_path={self.model_name_or_path!r} does not fit task={self.task!r}; allowed: {name!r}, "
                "a folder, or a hub name"
            )
        path = Path(self.model_name_or_path)
        is_path = path.is_absolute() or path.exists() or self.model_name_or_path.startswith(".")
        if is_path and not (path / "config.json").is_file():
            raise ValueError(f"model_name_or_path={str(path)!r} has no config.json; allowed: a model's folder")
        tensor_parallel = int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", 1))  # set by launch files and accelerate
        if tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel={tensor_parallel} needs a program that loads its model with a tensor-parallel plan, "
                "which this one does not; allowed: 1"
            )
        finetune_data.check_files(self)


class Parser(HfArgumentParser):
    """Says what is wrong in one sentence, without the two hundred lines of usage."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def read_settings(arguments: list[str] | None = None) -> tuple[Config, TrainingArguments]:
    """The command line as two typed objects; ``arguments`` None: that of this process.

    A single argument that ends in ``.yaml`` is a file with the same names: ``finetune run.yaml``.
    ``{run}`` in ``output_dir`` becomes ``run_name``.

    Raises:
        ValueError: an unknown flag or value.
    """
    description = __doc__.replace("%", "%%")
    parser = Parser((Config, TrainingArguments), description=description, allow_abbrev=False)
    given = sys.argv[1:] if arguments is None else arguments
    is_file = len(given) == 1 and given[0].endswith((".yaml", ".yml"))
    config, args = parser.parse_yaml_file(given[0]) if is_file else parser.parse_args_into_dataclasses(given)
    args.output_dir = args.output_dir.replace("{run}", run_name(config, args))
    return config, args


def run_name(config: Config, args: TrainingArguments) -> str:
    """A folder's name that says what ran: ``qwen3-0.6b_lora16_lr0.0002_b8x4_seed0``; the same flags, the same name."""
    model = config.model_name_or_path.rstrip("/").rpartition("/")[2].lower()
    adapters = f"lora{config.lora_r}" if config.use_peft else "full"
    batch = f"b{args.per_device_train_batch_size}x{args.gradient_accumulation_steps}"
    return f"{model}_{adapters}_lr{args.learning_rate:g}_{batch}_seed{args.seed}"


def load_words(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model; one without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    if config.model_name_or_path == "course/causal":
        return load_tokenizer(vocab_size=CAUSAL_VOCAB_SIZE)
    if config.model_name_or_path == "course/encoder":
        return load_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: Config, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None) -> PreTrainedModel:
    """The model with the task's head, and LoRA adapters on all its linear layers if asked for."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    if config.model_name_or_path in COURSE_MODELS:
        model = load_classifier(len(labels), **names) if labels else load_causal_lm()
        model = model if config.dtype == "auto" else model.to(getattr(torch, config.dtype))
    else:
        auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
        options = {"dtype": config.dtype, "attn_implementation": config.attn_implementation, **names}
        model = auto.from_pretrained(config.model_name_or_path, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    return add_adapters(model, config) if config.use_peft else model


def add_adapters(model: PreTrainedModel, config: Config) -> Any:
    """``model`` inside PEFT's wrapper: its weights frozen, LoRA (Hu et al. 2021, arXiv:2106.09685) beside them."""
    from peft import LoraConfig, get_peft_model

    modules = config.lora_target_modules
    settings = LoraConfig(
        task_type="SEQ_CLS" if config.task == "classification" else "CAUSAL_LM",
        target_modules=modules[0] if len(modules) == 1 else modules,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    return get_peft_model(model, settings)


def class_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro-F1 of a whole evaluation, from logits (N, C) and labels (N,)."""
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    predicted = logits.argmax(-1)
    accuracy = (predicted == labels).float().mean().item()
    return {"accuracy": accuracy, "macro_f1": macro_f1(predicted, labels, logits.shape[-1])}


def build_trainer(config: Config, args: TrainingArguments) -> tuple[Trainer, WriteRun]:
    """Data, model and Trainer, ready to train, and who writes run.json; raises if not what was asked would run."""
    set_seed(args.seed)  # on every rank the same: new weights must agree before they are wrapped
    tokenizer = load_words(config)
    with args.main_process_first(desc="data"):  # one process of each machine fills the cache, the others read it
        splits = finetune_data.load_rows(config)
        rows = finetune_data.tokenize(splits, tokenizer, config)
    is_classifier = config.task == "classification"
    labels = splits["train"].features["label"].names if is_classifier else None
    trainer = Trainer(
        load_model(config, tokenizer, labels),
        args,
        data_collator=DataCollatorWithPadding(tokenizer) if is_classifier else DataCollatorForSeq2Seq(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
        # ModernBERT's classifier takes the count of the whole window's targets and ignores it (lesson 03).
        compute_loss_func=summed_cross_entropy if is_classifier else None,
        compute_metrics=class_scores if is_classifier else None,
        callbacks=[StopOnSignal(), MarkComplete(), StopIfDone()],
    )
    trainer.add_callback(report := WriteRun(trainer))
    check_ranks(trainer)
    return trainer, report


def choose_checkpoint(config: Config, args: TrainingArguments) -> str | None:
    """Where to go on: ``--resume_from_checkpoint``, else the last complete checkpoint, unless ``--resume false``."""
    if args.resume_from_checkpoint:
        return args.resume_from_checkpoint
    if not config.resume:
        forget_checkpoints(args)
        return None
    found = agreed_checkpoint(args.output_dir)
    return str(found) if found else None


def save_model(trainer: Trainer) -> None:
    """The whole model as a Hugging Face folder in ``output_dir``, however it is sharded."""
    if trainer.is_fsdp_enabled:  # sharded checkpoints are for resuming; save_model would write nothing in that mode
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()


def main(arguments: list[str] | None = None) -> Trainer:
    """Train or go on training; returns the Trainer, whose ``state`` knows the losses."""
    try:
        config, args = read_settings(arguments)
        trainer, report = build_trainer(config, args)
        checkpoint = choose_checkpoint(config, args)
    except (ValueError, OSError, ImportError, WrongRun) as error:  # the user's to repair: no traceback
        raise SystemExit(f"error: {' '.join(str(error).split())}") from error
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except NothingLeft:  # the weights are loaded; perhaps the job was killed while it saved its result
        trainer.callback_handler.on_train_end(args, trainer.state, trainer.control)
    if trainer.state.global_step >= trainer.state.max_steps:
        save_model(trainer)
        report.finish()
    elif trainer.is_world_process_zero():
        print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; the same command goes on")
    trainer.end()
    return trainer


if __name__ == "__main__":
    main()
