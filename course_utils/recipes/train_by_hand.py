"""Train the course's classifier with a hand-written loop; kill it at any time and start it again (lesson 01).

    python -m course_utils.recipes.train_by_hand --folder runs/by_hand                  # 500 steps, under a minute
    python -m course_utils.recipes.train_by_hand --folder runs/stopped --save_every 50  # then Ctrl-C or kill -9
    python -m course_utils.recipes.train_by_hand --folder runs/stopped --save_every 50  # the same line goes on
    python -m course_utils.recipes.train_by_hand --folder runs/tiny --max_steps 20 --hidden_size 32

One process, CPU or one GPU. Effective batch = batch_size x 1 device x accumulation. The folder gets settings.json,
checkpoints (step-00000050) and, at the end, result.json. The same command with the same folder always goes on, to the
very weights of a run that nothing stopped (on one machine, with one number of threads); another folder starts anew.
A flag that cannot be used, or that contradicts the folder's checkpoints, is said in one sentence, with exit code 2.
"""

import argparse
import json

import torch
from transformers import DataCollatorWithPadding

from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.hub import require_hub
from course_utils.models import load_classifier, load_tokenizer
from course_utils.recipes.command_line import Parser, folder_to_write, from_to, refuse, same_flags
from course_utils.training.checkpoint import CheckpointError, latest_checkpoint, verify_checkpoint
from course_utils.training.evaluation import evaluate
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import ForeachAdamW, parameter_groups
from course_utils.training.schedules import make_scheduler

SIZE_STEP = 8  # the encoder's 4 heads, each of which rotates its numbers in pairs
MAY_CHANGE = ("folder", "save_every", "log_every")  # between the starts of one run: they do not touch the weights


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; one that cannot be used ends the program."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    add, share = parser.add_argument, from_to(0, 1, float)
    add("--folder", type=folder_to_write, required=True, help="where checkpoints and result.json go")
    # data
    add("--source", default="local", choices=["local", "hub"], help="the course's data and model, or the hub's")
    add("--batch_size", type=from_to(1), default=32, help="rows per micro-batch")
    add("--accumulation", type=from_to(1), default=1, help="micro-batches per optimizer step")
    add("--max_length", type=from_to(3), default=48, help="tokens of a row; what is longer is cut")
    # model
    width = f"a multiple of {SIZE_STEP}; the course's configuration if unset"
    add("--hidden_size", type=from_to(SIZE_STEP, 8192), help=width)
    add("--num_hidden_layers", type=from_to(1, 512), help="the course's configuration if unset")
    # optimization
    rate = "at the end of the warm-up; a pretrained model wants ~5e-5"
    add("--max_steps", type=from_to(1), default=500, help="optimizer steps")
    add("--learning_rate", type=from_to(0, kind=float), default=1e-3, help=rate)
    add("--weight_decay", type=from_to(0, kind=float), default=0.01, help="of matrices, not of biases and norms")
    add("--schedule", default="linear", choices=["linear", "cosine", "constant"], help="after the warm-up")
    add("--warmup_share", type=share, default=0.1, help="of max_steps")
    add("--max_grad_norm", type=from_to(0, kind=float), default=1.0, help="0 does not clip")
    # bookkeeping
    add("--save_every", type=from_to(0), default=250, help="optimizer steps between checkpoints; 0 never")
    add("--log_every", type=from_to(1), default=10, help="optimizer steps between printed lines")
    add("--seed", type=from_to(0, 2**32 - 1), default=0, help="of new weights, dropout and the rows' order")
    settings = parser.parse_args(arguments)

    sizes = settings.hidden_size, settings.num_hidden_layers
    if settings.source == "hub" and sizes != (None, None):
        refuse("--hidden_size and --num_hidden_layers contradict --source hub, a pretrained model; allowed: neither")
    if (settings.hidden_size or 0) % SIZE_STEP:
        refuse(f"argument --hidden_size: {settings.hidden_size} does not fit; allowed: a multiple of {SIZE_STEP}")
    return settings


def check_same_run(settings: argparse.Namespace) -> None:
    """End the program if the folder's checkpoints belong to other flags; a run that begins writes its flags down.

    Loading a checkpoint would silently undo some of them (learning_rate, seed) and mix others in (batch_size).

    Raises:
        CheckpointError: the newest checkpoint is damaged.
    """
    file = settings.folder / "settings.json"
    flags = {name: value for name, value in vars(settings).items() if name not in MAY_CHANGE}
    newest = latest_checkpoint(settings.folder)
    if newest is None:  # written only now: a kill while writing must not matter later
        settings.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(flags, indent=2))
        return
    verify_checkpoint(newest)
    same_flags(file, flags)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, or go on training; returns what result.json gets. ``arguments`` None: those of the command line."""
    settings = read_settings(arguments)
    if settings.source == "hub":
        require_hub()  # before anything is written
    check_same_run(settings)
    config = LoopConfig(
        max_steps=settings.max_steps,
        accumulation=settings.accumulation,
        max_grad_norm=settings.max_grad_norm,
        save_every=settings.save_every,
        folder=settings.folder,
        resume=True,  # no checkpoint in the folder: starts at step 0
    )
    torch.manual_seed(settings.seed)

    # data: tokenized once, padded batch by batch
    data = load_classification(settings.source)
    tokenizer = load_tokenizer(settings.source)
    rows = {}
    for split in ("train", "test"):
        encoded = tokenizer(list(data[split]["text"]), truncation=True, max_length=settings.max_length)
        columns = (encoded["input_ids"], encoded["attention_mask"], data[split]["label"])
        names = ("input_ids", "attention_mask", "labels")
        rows[split] = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    collate = DataCollatorWithPadding(tokenizer)
    lengths = [len(row["input_ids"]) for row in rows["train"]]
    batches = ShuffledBatches(rows["train"], settings.batch_size, collate, seed=settings.seed, lengths=lengths)

    # model
    sizes = {"hidden_size": settings.hidden_size, "num_hidden_layers": settings.num_hidden_layers}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    model = load_classifier(data["train"].features["label"].num_classes, settings.source, **sizes)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model.to(device)

    # optimizer and schedule
    optimizer = ForeachAdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    warmup_steps = round(settings.warmup_share * settings.max_steps)
    scheduler = make_scheduler(optimizer, settings.schedule, warmup_steps, settings.max_steps)
    print(f"effective batch = {settings.batch_size} x 1 device x {settings.accumulation} accumulation", flush=True)

    def log(record: dict[str, float]) -> None:
        if record["step"] % settings.log_every == 0:
            print(
                f"step {record['step']} loss {record['loss']:.4f} learning rate {record['learning_rate']:.2e}",
                flush=True,
            )

    # train, or go on training
    history = train(model, batches, optimizer, config, scheduler, on_step=log)

    # what remains
    by_length = sorted(rows["test"], key=lambda row: len(row["input_ids"]))
    result = evaluate(model, ShuffledBatches(by_length, 100, collate, shuffle=False))
    result |= {"max_steps": config.max_steps, "steps_in_this_process": len(history)}
    (settings.folder / "result.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, CheckpointError) as error:
        refuse(error)
