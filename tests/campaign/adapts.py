"""Campaign: ``--resume adapt`` with another batch, accumulation or number of processes, at drawn places.

    python -m tests.campaign.adapts --count 40 --seed 0

A run of finetune on one to three gloo ranks (DDP, FSDP2, ZeRO-2) goes on as another one. Survived: every row of its two
epochs is seen once an epoch, in the order of the run that nothing stopped, and run.json counts them; or, where no step
of the new batch begins at the checkpoint's row, or DeepSpeed would have to cut its shards anew, it is refused in one
sentence with exit code 2 and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from course_utils.training.resume import COMPLETE
from tests.campaign.starts import Start, preload, with_one_thread_and_repairs
from tests.campaign.tally import Tally, tree
from tests.launch.tiny_project import ROWS, make_project

EPOCHS = 2


class Cut(NamedTuple):
    """How the rows of a step are cut."""

    ranks: int
    batch: int
    accumulation: int
    strategy: str = "ddp"

    @property
    def rows(self) -> int:
        return self.ranks * self.batch * self.accumulation

    def flags(self) -> list[str]:
        return [
            f"--per_device_train_batch_size={self.batch}",
            f"--gradient_accumulation_steps={self.accumulation}",
        ]


ROUNDS = [("ddp", 1, 2), ("ddp", 2, 1), ("ddp", 2, 2), ("ddp", 1, 1)]  # strategy, processes before and after
ROUNDS += [("fsdp2", 2, 2), ("zero2", 2, 2), ("fsdp2", 2, 3), ("fsdp2", 3, 2), ("zero2", 2, 3)]
CUTS = [Cut(ranks, batch, steps) for ranks in (1, 2, 3) for batch in (2, 4, 6, 8, 12) for steps in (1, 2)]
CUTS = [cut for cut in CUTS if ROWS % cut.rows == 0 and cut.rows >= 8]


def watched(arguments: list[str], place: Path) -> None:
    """finetune's ``main``; each rank leaves the rows of its batches in ``place``."""
    from course_utils.recipes import finetune

    batches: list[list[list[int]]] = []
    build = finetune.build_trainer

    def build_and_watch(config, args):
        trainer, report = build(config, args)
        step = trainer.training_step

        def note(model, inputs, *rest, **options):
            pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
            batches.append([ids[mask.bool()].tolist() for ids, mask in pairs])
            return step(model, inputs, *rest, **options)

        trainer.training_step = note
        return trainer, report

    finetune.build_trainer = build_and_watch
    finetune.main(arguments)
    (place / f"rows-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(batches))


def arguments_of(project, cut: Cut) -> tuple[list[str], dict[str, str]]:
    """What a start is told, and its environment; of a strategy that shards also the launch files are written."""
    rows = f"--train_file={project.texts}/train.jsonl"
    own = ["--use_cpu", "--max_length=32", "--disable_tqdm=true", "--report_to=none", f"--num_train_epochs={EPOCHS}"]
    if cut.strategy == "ddp":
        own = ["--task=causal_lm", f"--model_name_or_path={project.model}", rows, *own]
        return own, {"ACCELERATE_USE_CPU": "true"}
    from course_utils.launch import Spec, write
    from course_utils.launch.spec.arguments import program_arguments
    from course_utils.launch.spec.settings import environment_variables

    sizes = {"micro_batch": cut.batch, "accumulation": cut.accumulation, "sequence_length": 32, "max_steps": 1}
    spec = Spec(strategy=cut.strategy, model=str(project.model), arguments=(rows,), precision="fp32", **sizes)
    spec = spec.on_cpu(cut.ranks)
    folder = project.folder / "-".join(["launch", *map(str, cut)])
    write(spec, folder, overwrite=True)
    variables = {name: str(value) for name, value in environment_variables(spec, "torchrun").items()}
    return [*program_arguments(spec, folder=str(folder)), *own, "--max_steps=-1"], variables


def run(project, cut: Cut, output: Path, place: Path, *more: str) -> tuple[str | None, list[list[int]]]:
    """A start: its fault, and the rows in the order in which the ranks together saw them."""
    own, variables = arguments_of(project, cut)
    for old in place.glob("rows-*.json"):
        old.unlink()
    arguments = [*own, f"--output_dir={output}", *cut.flags(), *more]
    log = output.with_name(f"{output.name}-{len(list(place.glob('*.log')))}.log")
    start = Start(partial(watched, arguments, place), cut.ranks, log, place, variables)
    fault = start.wait()
    if fault:
        return f"{sorted(start.codes.values())}: {log.read_text()[-3000:]}", []
    ranks = [json.loads((place / f"rows-{rank}.json").read_text()) for rank in range(cut.ranks)]
    return None, [row for batches in zip(*ranks, strict=True) for batch in batches for row in batch]


def one_try(project, order: list[list[int]], before: Cut, after: Cut, output: Path, draw: random.Random) -> str | None:
    """The fault of going on from a drawn checkpoint of ``before`` as ``after``."""
    steps = EPOCHS * ROWS // before.rows
    stop = draw.randrange(1, steps)
    fault, rows = run(project, before, output, output.parent, f"--save_steps={stop}", "--save_strategy=steps")
    if fault or rows != order:
        return fault or "the first run saw other rows"
    for mark in output.glob(f"checkpoint-*/{COMPLETE}"):
        if mark.parent.name != f"checkpoint-{stop}":
            mark.unlink()
    seen = stop * before.rows
    files = tree(output)
    fault, rows = run(project, after, output, output.parent, "--resume=adapt", "--save_strategy=no")
    cannot = "DeepSpeed's checkpoints belong to a number of processes" if before.strategy == "zero2" else ""
    wanted = cannot if before.ranks != after.ranks else ""
    if not wanted and seen % ROWS % after.rows and before != after:
        wanted = f"stopped after {seen % ROWS} rows of an epoch, and no step of {after.rows} rows"
    if wanted:
        refused = fault and fault.startswith(str([2] * after.ranks)) and wanted in fault and "Traceback" not in fault
        return None if refused and tree(output) == files else f"not refused ({wanted}): {fault}"
    if fault or rows != order[seen:]:
        return fault or f"it saw {len(rows)} rows of {len(order) - seen}, or in another order"
    report = json.loads((output / "run.json").read_text())
    found = report["rows_seen"], report["resumed_from"], report["steps"], report["world_size"]
    wanted = EPOCHS * ROWS, stop, stop + (len(order) - seen) // after.rows, after.ranks
    return None if found == wanted else f"run.json says {found}, and it was {wanted}"


def campaign(count: int, seed: int, seconds: float = float("inf")) -> Tally:
    """``count`` tries; ``ROUNDS`` take turns."""
    tally, draw, began = Tally(), random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if fault := Start(partial(make_project, place / "p"), 1, place / "made.log", place, {}).wait():
            raise RuntimeError(fault)
        project = _named(place / "p")
        fault, order = run(project, Cut(1, 8, 1), place / "order", place, "--save_strategy=no")
        assert not fault and len(order) == EPOCHS * ROWS, fault
        for number in range(count):
            if time.monotonic() - began > seconds:
                break
            strategy, *ranks = ROUNDS[number % len(ROUNDS)]
            before, after = (draw.choice([cut for cut in CUTS if cut.ranks == n]) for n in ranks)
            before, after = before._replace(strategy=strategy), after._replace(strategy=strategy)
            fault = one_try(project, order, before, after, place / str(number), draw)
            kind = f"--resume adapt: {ranks[0]} -> {ranks[1]} processes"
            kind += "" if strategy == "ddp" else f", {strategy}"
            tally.count(kind, fault and f"{before} {after}: {fault}")
    return tally


def _named(folder: Path):
    """The project that a fork made in ``folder``."""
    from tests.launch.tiny_project import Project

    return Project(folder, folder / "model", folder / "encoder", folder / "texts", folder / "classes.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="tries")
    parser.add_argument("--seed", type=int, default=0, help="of batches and places")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no try after so many")
    given = parser.parse_args()
    with_one_thread_and_repairs("tests.campaign.adapts", sys.argv[1:])
    preload("course_utils.recipes.finetune", "course_utils.launch")
    if given.count > len([name for name, *_ in ROUNDS if name == "ddp"]):
        preload("deepspeed")
    tally = campaign(given.count, given.seed, given.seconds)
    tally.check()


if __name__ == "__main__":
    main()
