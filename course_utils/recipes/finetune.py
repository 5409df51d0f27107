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
command goes on from the last complete checkpoint of --output_dir (--resume false starts anew; --resume adapt goes on
with another batch or number of processes, at the row where the checkpoint stopped). SIGTERM or SIGUSR1 on any rank, or
a launcher that died: a checkpoint at the end of the current step, then exit code 0.

The output folder gets checkpoints, each with the checksums of its files, the final model as a Hugging Face folder, and
run.json: what really ran; one run at a time may have it. FSDP saves sharded checkpoints, each rank its own part: the
FULL_STATE_DICT that --fsdp_config can ask for gathers model and optimizer on rank 0. Every flag of TrainingArguments is
understood or refused, and names that TRL's SFT script has too mean the same there. What cannot be used ends the program
before any work, with one sentence and exit code 2.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from course_utils.parallel.what_ran import WriteRun, WrongRun, check_ranks
from course_utils.recipes import finetune_data, finetune_settings
from course_utils.recipes.command_line import refuse
from course_utils.recipes.finetune_model import load_model, load_words
from course_utils.recipes.finetune_resume import GoingOn, choose_checkpoint, made_with, position
from course_utils.recipes.finetune_settings import Config
from course_utils.training.checked_loading import DoesNotFit
from course_utils.training.evaluation import macro_f1
from course_utils.training.loop import summed_cross_entropy
from course_utils.training.owned_folder import owned_folder
from course_utils.training.resume import MarkComplete, NothingLeft, StopIfDone
from course_utils.training.stop_on_signal import StopOnSignal, ends_with_launcher

if TYPE_CHECKING:
    from transformers import EvalPrediction

read_settings = partial(finetune_settings.read_settings, description=__doc__)


def class_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro-F1 of a whole evaluation, from logits (N, C) and labels (N,)."""
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    predicted = logits.argmax(-1)
    accuracy = (predicted == labels).float().mean().item()
    return {"accuracy": accuracy, "macro_f1": macro_f1(predicted, labels, logits.shape[-1])}


def build_trainer(config: Config, args: TrainingArguments) -> tuple[GoingOn, WriteRun]:
    """Data, model and Trainer, ready to train, and who writes run.json; raises if not what was asked would run."""
    set_seed(args.seed)  # on every rank the same: new weights must agree before they are wrapped
    tokenizer = load_words(config)
    # One process fills the cache and the others read it: one of the job on a shared disk, else one of each machine.
    with args.main_process_first(local=not finetune_data.has_one_cache(args), desc="data"):
        splits = finetune_data.load_rows(config)
        rows = finetune_data.tokenize(splits, tokenizer, config)
    is_classifier = config.task == "classification"
    labels = splits["train"].features["label"].names if is_classifier else None
    trainer = GoingOn(
        load_model(config, tokenizer, labels),
        args,
        data_collator=DataCollatorWithPadding(tokenizer) if is_classifier else DataCollatorForSeq2Seq(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
        # ModernBERT's classifier takes the count of the whole window's targets and ignores it (lesson 03).
        compute_loss_func=summed_cross_entropy if is_classifier else None,
        compute_metrics=class_scores if is_classifier else None,
        callbacks=[StopOnSignal(), StopIfDone()],
    )
    trainer.add_callback(report := WriteRun(trainer))
    check_ranks(trainer)
    return trainer, report


def save_model(trainer: Trainer) -> None:
    """The whole model as a Hugging Face folder in ``output_dir``, however it is sharded."""
    if trainer.is_fsdp_enabled:  # sharded checkpoints are for resuming; save_model would write nothing in that mode
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()


def main(arguments: list[str] | None = None) -> Trainer:
    """Train or go on training; returns the Trainer, whose ``state`` knows the losses."""
    with ExitStack() as held:
        try:
            with ends_with_launcher():
                config, args = read_settings(arguments)
                held.enter_context(owned_folder(args.output_dir))
                trainer, report = build_trainer(config, args)
                facts = made_with(trainer)
                checkpoint = choose_checkpoint(config, trainer, report, facts)
        except (ValueError, OSError, ImportError, WrongRun) as error:  # the user's to repair: no traceback
            refuse(error)
        trainer.add_callback(MarkComplete(lambda: facts | position(trainer, report)))
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except (DoesNotFit, WrongRun) as error:  # found while the checkpoint is loaded: nothing is written yet
            refuse(error)
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
    record(main)()  # an exception also goes to the rank's error.json, where torchrun was given a log folder
