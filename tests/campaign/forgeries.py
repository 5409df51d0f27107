"""Contents that fit no run, in files whose sizes and checksums agree: what a stranger, or another program, writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from course_utils.training import checkpoint as of_loop
from course_utils.training import resume

GONE = object()


def put(*where: Any) -> Callable[[Any], Any]:
    """A change: the last of ``where`` is put at the place the keys before it lead to; GONE removes what is there."""
    *keys, last, value = where

    def change(content: Any) -> Any:
        inner = content
        for key in keys:
            inner = inner[key]
        if value is GONE:
            del inner[last]
        else:
            inner[last] = value
        return content

    change.__doc__ = " ".join(map(str, where)).replace(str(GONE), "gone")[:100]
    return change


def instead(value: Any) -> Callable[[Any], Any]:
    """A change: ``value`` instead of everything."""

    def change(content: Any) -> Any:
        return value

    change.__doc__ = f"all is {value!r}"[:100]
    return change


def removed(content: Any) -> Any:
    """the file is gone"""
    return GONE


def inside(key: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The change of what ``key`` leads to."""

    def change_inside(content: Any) -> Any:
        return content | {key: change(content[key])}

    change_inside.__doc__ = f"{key}: {change.__doc__}"
    return change_inside


NAN = float("nan")
OPTIMIZER = [
    instead([1]),
    instead({}),
    put("state", GONE),
    put("state", 0, 3),
    put("state", 0, "exp_avg", GONE),
    put("state", 0, "exp_avg", torch.zeros(2)),
    put("state", 1, "exp_avg_sq", "text"),
    put("state", 0, "step", GONE),
    put("state", 0, "step", torch.tensor(NAN)),
    put("state", 0, "step", -1.0),
    put("state", 777, {"step": torch.tensor(1.0)}),
    put("param_groups", []),
    put("param_groups", 0, "text"),
    put("param_groups", 0, "params", [0, 1]),
    put("param_groups", 0, "lr", GONE),
    put("param_groups", 0, "lr", "text"),
    put("param_groups", 0, "lr", NAN),
    put("param_groups", 0, "betas", (0.9,)),
    put("param_groups", 0, "weight_decay", True),
]
SCHEDULER = [
    instead([1]),
    instead({}),
    put("last_epoch", GONE),
    put("last_epoch", "4"),
    put("last_epoch", NAN),
    put("base_lrs", 3),
    put("base_lrs", [0.1]),
    put("_last_lr", [NAN, NAN]),
]
RANDOM = [instead(3), instead({}), put("python", GONE), put("python", (3, (1, 2), None)), put("numpy", "text")]
FORGED: dict[str, dict[str, list[Callable[[Any], Any]]]] = {
    "finetune": {
        "optimizer.pt": [removed, *OPTIMIZER, put("state", {}), put("state", 0, "step", torch.tensor(9.0))],
        "scheduler.pt": [removed, *SCHEDULER],
        "rng_state.pth": [removed, *RANDOM, put("cpu", torch.zeros(3))],
        "trainer_state.json": [
            instead([1]),
            instead({}),
            instead({"foo": 1}),
            put("global_step", "6"),
            put("global_step", 4),
            put("global_step", -6),
            put("log_history", "text"),
            put("log_history", [1]),
            put("epoch", None),
            put("train_batch_size", "8"),
            put("stateful_callbacks", [1]),
        ],
        "model.safetensors": [
            instead({}),
            put("model.norm.weight", torch.zeros(3)),
            put("model.norm.weight", GONE),
            put("lm_head.weight", torch.zeros(2, 2)),
            put("other.weight", torch.zeros(2)),
        ],
        "complete": [
            put("facts", GONE),
            put("facts", [1]),
            put("facts", "rows_seen", GONE),
            put("facts", "rows_seen", -1),
            put("facts", "rows_in_epoch", "text"),
            put("facts", "epoch", 0.5),
            put("facts", "step", 4),
            put("facts", "step", "6"),
            put("facts", "processes", GONE),
            put("facts", "seed", GONE),
            put("files", []),
            put("files", GONE),
            put("files", {}),
            put("files", "optimizer.pt", 3),
            put("files", "model.safetensors", [1, 2, 3]),
            put("files", "../../secret", [1, "a"]),
        ],
    },
    "train_by_hand": {
        "state.pt": [
            *(inside("optimizer", change) for change in OPTIMIZER),
            *(inside("scheduler", change) for change in SCHEDULER),
            *(inside("random", change) for change in RANDOM),
            inside("random", put("torch", torch.zeros(3))),
            instead(3),
            put("step", GONE),
            put("step", "6"),
            put("step", -1),
            put("step", 4),
            put("batches", None),
            put("batches", {"epoch": 1}),
            put("generators", {"batches.rng": {"kind": "torch", "path": (), "state": 3}}),
        ],
        "model.safetensors": [
            instead({}),
            put("model.final_norm.weight", torch.zeros(3)),
            put("model.final_norm.weight", GONE),
            put("other.weight", torch.zeros(2)),
        ],
    },
}
# What a run that goes on does not read: its own arguments, model and tokenizer are built from the command line. (That
# they are damaged is noticed all the same: the manifest lists them.)
HARMLESS = ["training_args.bin", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def rewrite(path: Path, change: Callable[[Any], Any] | None) -> None:
    """Change a file's content and keep its format; None: bytes that are of no format."""
    from transformers.trainer_pt_utils import safe_globals

    if change is None:
        path.write_bytes(b"not what it was")
    elif path.suffix in (".pt", ".pth"):
        with safe_globals():
            content = change(torch.load(path, weights_only=True))
        if content is GONE:
            path.unlink()
        else:
            torch.save(content, path)
    elif path.suffix == ".safetensors":
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))


def forge(checkpoint: Path, file: str, change: Callable[[Any], Any] | None) -> None:
    """Change a file of finetune's checkpoint, and its manifest so that it agrees."""
    if file == "complete":
        content = json.loads((checkpoint / file).read_text())
        del content["sha256"]
        content = change(content)
        (checkpoint / file).write_text(json.dumps(content | {"sha256": resume._checksum_of(content)}))
        return
    facts = resume.read_facts(checkpoint)
    rewrite(checkpoint / file, change)
    resume.mark_complete(checkpoint, facts)


def forge_loop(checkpoint: Path, file: str, change: Callable[[Any], Any] | None) -> None:
    """The same for a checkpoint of the course's loop."""
    rewrite(checkpoint / file, change)
    manifest = {name: of_loop._describe(checkpoint / name) for name in (of_loop.WEIGHTS, of_loop.STATE)}
    (checkpoint / of_loop.MANIFEST).write_text(json.dumps(manifest))
