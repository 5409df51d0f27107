"""Train the course's classifier with a hand-written loop; kill it at any time and start it again (lesson 01).

    python -m course_utils.recipes.train_by_hand --folder runs/by_hand                  # 500 steps, under a minute
    python -m course_utils.recipes.train_by_hand --folder runs/by_hand --save_every 50  # then Ctrl-C or kill -9
    python -m course_utils.recipes.train_by_hand --folder runs/by_hand --save_every 50  # the same line goes on
    python -m course_utils.recipes.train_by_hand --folder runs/tiny --max_steps 20 --hidden_size 32

One process, CPU or one GPU. Effective batch = batch_size x 1 device x accumulation. The folder gets checkpoints
(step-00000050) and, at the end, result.json. The same command with the same folder always continues; another folder
starts anew.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding

from course_utils.data import load_classification
from course_utils.data.batches import ShuffledBatches
from course_utils.models import load_classifier, load_tokenizer
from course_utils.training.checkpoint import CheckpointError
from course_utils.training.evaluation import evaluate
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import ForeachAdamW, parameter_groups
from course_utils.training.schedules import make_scheduler


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where checkpoints and result.json go")
    # data
    add("--source", default="local", choices=["local", "hub"])
    add("--batch_size", type=int, default=32, help="rows per micro-batch")
    add("--accumulation", type=int, default=1, help="micro-batches per optimizer step")
    add("--max_length", type=int, default=48, help="tokens of a row; what is longer is cut")
    # model; None keeps the course's configuration
    add("--hidden_size", type=int, default=None)
    add("--num_hidden_layers", type=int, default=None)
    # optimization
    add("--max_steps", type=int, default=500, help="optimizer steps")
    add("--learning_rate", type=float, default=1e-3, help="at the end of the warm-up; a pretrained model wants ~5e-5")
    add("--weight_decay", type=float, default=0.01)
    add("--schedule", default="linear", choices=["linear", "cosine", "constant"])
    add("--warmup_share", type=float, default=0.1, help="of max_steps")
    add("--max_grad_norm", type=float, default=1.0, help="0 does not clip")
    # bookkeeping
    add("--save_every", type=int, default=250, help="optimizer steps between checkpoints; 0 never")
    add("--log_every", type=int, default=10, help="optimizer steps between printed lines")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, or go on training; returns what result.json gets. ``arguments`` None: those of the command line."""
    settings = read_settings(arguments)
    if not 0 <= settings.warmup_share <= 1:
        raise ValueError(f"warmup_share={settings.warmup_share} is out of range; allowed: a number from 0 to 1")
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
    settings.folder.mkdir(parents=True, exist_ok=True)
    (settings.folder / "result.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, ConnectionError, CheckpointError) as error:
        raise SystemExit(f"error: {error}") from None
