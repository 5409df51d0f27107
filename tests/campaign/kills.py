"""Campaign: ``kill -9`` at random moments; the same command goes on, and the last weights are the same in every bit.

    python -m tests.campaign.kills --count 50 --seed 0                       # kills of each kind
    python -m tests.campaign.kills --count 8 --only "finetune, FSDP2"        # of kinds whose name begins so

The kinds are the course's loop (recipes.train_by_hand) and recipes.finetune on one process, and on two gloo ranks with
DDP, FSDP2 and ZeRO-2. Half of the kills come at any time of a run, half within milliseconds of a save's beginning; on
two ranks one is hit, and the other some moments later, or both at once. A run gets one to four kills. Survived: every
checkpoint that looks complete is whole, the next start goes on from the newest of them, and at the end the weights
equal those of the run that nothing stopped, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.campaign.starts import Start, preload, with_one_thread_and_repairs
from tests.campaign.tally import Tally

STEPS, SAVE_EVERY = 14, 2
LOOP = ["--hidden_size=32", "--num_hidden_layers=1", "--batch_size=8", "--max_length=16"]
QUIET = ["--logging_steps=1", "--disable_tqdm=true", "--report_to=none", "--learning_rate=1e-3"]
VARIANTS = [[], ["--save_total_limit=2"], ["--gradient_accumulation_steps=2"]]
FEWER = VARIANTS[:2]  # deepspeed.json says the accumulation too


@dataclass
class Kind:
    """A program as it is started, and what its runs without a kill came to."""

    name: str
    ranks: int = 1
    strategy: str = ""  # of finetune; empty: the course's loop
    variants: list[list[str]] = field(default_factory=lambda: VARIANTS)
    wholes: dict[str, tuple[bytes, float]] = field(default_factory=dict)  # variant -> final weights, seconds

    def begin(self, project: Path, output: Path, variant: list[str], log: Path) -> Start:
        if not self.strategy:
            arguments = [*LOOP, f"--folder={output}", f"--max_steps={STEPS}", f"--save_every={SAVE_EVERY}"]
            return Start(partial(_main, "train_by_hand", arguments), 1, log, project, {})
        from course_utils.launch.spec.settings import environment_variables

        spec = spec_of(self, project, output)
        arguments = [*arguments_of(self, spec), *variant]
        variables = environment_variables(spec, "torchrun") if self.ranks > 1 else {}
        variables = {name: str(value) for name, value in variables.items()}
        return Start(partial(_main, "finetune", arguments), self.ranks, log, project, variables)

    def final_weights(self, output: Path) -> bytes:
        if self.strategy:
            return (output / "model.safetensors").read_bytes()
        return (newest_complete(output)[0] / "model.safetensors").read_bytes()


KINDS = [
    Kind("the course's loop", variants=[[]]),
    Kind("finetune, 1 process", 1, "ddp"),
    Kind("finetune, DDP on 2 ranks", 2, "ddp"),
    Kind("finetune, FSDP2 on 2 ranks", 2, "fsdp2"),
    Kind("finetune, ZeRO-2 on 2 ranks", 2, "zero2", FEWER),
]


def _main(recipe: str, arguments: list[str]) -> None:
    import importlib

    importlib.import_module(f"course_utils.recipes.{recipe}").main(arguments)


def spec_of(kind: Kind, project: Path, output: Path):
    from course_utils.launch import Spec

    sizes = {"micro_batch": 8 // kind.ranks, "accumulation": 1, "max_steps": STEPS, "save_every": SAVE_EVERY}
    sizes |= {"sequence_length": 32}
    rows = (f"--train_file={project}/texts/train.jsonl", *QUIET)
    spec = Spec(strategy=kind.strategy, model=f"{project}/model", arguments=rows, precision="fp32", **sizes)
    return spec.but(output_dir=str(output)).on_cpu(kind.ranks)


def arguments_of(kind: Kind, spec) -> list[str]:
    from course_utils.launch.spec.arguments import program_arguments

    return program_arguments(spec, folder=f"launch-{kind.strategy}")


def make_project(project: Path, kinds: Sequence[Kind] = KINDS) -> None:
    """A model with dropout, so that a lost random state shows, and the launch files of each strategy."""
    from course_utils.launch import write
    from tests.launch import tiny_project

    tiny_project.make_project(project)
    file = project / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_dropout": 0.2}))
    for kind in kinds:
        if kind.ranks > 1:
            write(spec_of(kind, project, project / "out"), project / f"launch-{kind.strategy}")


def newest_complete(output: Path) -> tuple[Path | None, int, list[str]]:
    """The newest checkpoint that looks complete, its step, and the faults of all that look so."""
    from course_utils.training import checkpoint, resume

    faults, found = [], {}
    for path in output.glob("step-*"):
        found[int(path.name[-8:])] = path
        faults += [fault] if (fault := checkpoint._fault_of(path)) else []
    for path in (mark.parent for mark in output.glob(f"checkpoint-*/{resume.COMPLETE}")):
        found[int(path.name.rpartition("-")[2])] = path
        faults += [fault] if (fault := resume.fault_of(path)) else []
    return (found[max(found)], max(found), faults) if found else (None, 0, faults)


def is_saving(output: Path, since: float) -> bool:
    """Whether a checkpoint was begun after ``since`` (seconds since 1970) and is not finished."""
    unmarked = (path for path in output.glob("checkpoint-*") if not (path / "complete").exists())
    for path in (*output.glob(".step-*.tmp-*"), *unmarked):
        with contextlib.suppress(FileNotFoundError):  # finished, or replaced, between the two looks
            if max(part.stat().st_mtime for part in (path, *path.rglob("*"))) > since:
                return True
    return False


def kill_once(start: Start, output: Path, seconds: float, draw: random.Random) -> bool | None:
    """Kill ``start`` at a drawn moment; whether that was in a save. None: it had ended before."""
    in_save, began, since = draw.random() < 0.5, time.monotonic(), time.time()
    wanted, delay = draw.uniform(0.2, 1.0) * seconds, draw.uniform(0, 0.01)
    while start.runs():
        elapsed = time.monotonic() - began
        if in_save and elapsed > wanted / 2 and is_saving(output, since):
            time.sleep(delay)
            break
        if not in_save and elapsed > wanted:
            break
        time.sleep(0.0005)
    if not start.runs():
        return None
    victims = draw.sample(start.pids, len(start.pids))
    start.kill(victims[:1])
    if len(victims) > 1 and draw.random() < 0.5:  # the launcher ends the others, after a moment
        time.sleep(draw.uniform(0, 0.5))
    start.kill(victims[1:])
    saving = is_saving(output, since)
    while start.runs():
        time.sleep(0.001)
    return saving


def one_run(kind: Kind, project: Path, output: Path, kills: int, draw: random.Random, tally: Tally) -> int:
    """A run with up to ``kills`` kills, started until it ends; how many it got."""
    log = output.with_suffix(".log")
    variant = draw.choice(kind.variants)
    same = " ".join(flag for flag in variant if "limit" not in flag)  # what decides the weights
    if same not in kind.wholes:
        began = time.monotonic()
        whole = output.with_name(f"{output.name}-whole")
        if fault := kind.begin(project, whole, variant, log).wait():
            raise RuntimeError(f"{kind.name}: the run without a kill {fault}")
        kind.wholes[same] = kind.final_weights(whole), time.monotonic() - began
    weights, seconds = kind.wholes[same]
    places: list[str] = []
    fault = None
    while fault is None and len(places) < kills:
        _, step, _ = newest_complete(output)
        saving = kill_once(kind.begin(project, output, variant, log), output, seconds * (1 - step / STEPS / 2), draw)
        if saving is None:  # the reference ran at a busier time: look earlier in the next run
            kind.wholes[same] = weights, 0.7 * seconds
            break
        places.append("in a save" if saving else "elsewhere")
        _, _, faults = newest_complete(output)
        fault = faults[0] if faults else None
    fault = fault or _ends_alike(kind, project, output, variant, log, weights)
    if fault and not places:
        tally.count(f"kill -9: {kind.name}", f"{variant}, without a kill: {fault}")
    for number, place in enumerate(places, 1):
        ended_wrong = fault if number == len(places) else None
        tally.count(f"kill -9: {kind.name}", ended_wrong and f"{variant}, {places}: {ended_wrong}")
        tally.note(f"kill -9: {kind.name}", place)
    return len(places)


def _ends_alike(kind: Kind, project: Path, output: Path, variant: list[str], log: Path, weights: bytes) -> str | None:
    """The fault of the last start, which nothing stops: another beginning or other weights than they must be."""
    _, step, _ = newest_complete(output)
    if fault := kind.begin(project, output, variant, log).wait():
        return fault
    if kind.strategy:
        began = json.loads((output / "run.json").read_text())["resumed_from"]
    else:
        began = STEPS - json.loads((output / "result.json").read_text())["steps_in_this_process"]
    if began != step:
        return f"it went on from step {began}, and {step} is the newest complete checkpoint"
    return None if kind.final_weights(output) == weights else "other weights"


def campaign(count: int, seed: int, only: str = "", seconds: float = float("inf")) -> Tally:
    """``count`` kills of each kind whose name begins with ``only``, or as many as ``seconds`` allow."""
    tally = Tally()
    began = time.monotonic()
    kinds = [kind for kind in KINDS if kind.name.startswith(only)]
    with tempfile.TemporaryDirectory() as place:
        project = Path(place) / "project"
        made = Start(partial(make_project, project), 1, Path(place) / "made.log", Path(place), {})
        if fault := made.wait():
            raise RuntimeError(fault)
        for number, kind in enumerate(kinds):
            draw, done, run = random.Random(f"{seed} {kind.name}"), 0, 0
            allowed = began + seconds * (number + 1) / len(kinds)
            while done < count and time.monotonic() < allowed:
                output = Path(place) / f"{KINDS.index(kind)}-{run}"
                done += one_run(kind, project, output, min(count - done, draw.randint(1, 4)), draw, tally)
                run += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; how fast the machine is decides as well")
    parser.add_argument("--only", default="", help="kinds whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop beginning runs after so many")
    given = parser.parse_args()
    with_one_thread_and_repairs("tests.campaign.kills", sys.argv[1:])
    preload("course_utils.recipes.train_by_hand", "course_utils.recipes.finetune", "course_utils.launch")
    if any(kind.name.startswith(given.only) and kind.strategy == "zero2" for kind in KINDS):
        preload("deepspeed")
    tally = campaign(given.count, given.seed, given.only, given.seconds)
    tally.check()


if __name__ == "__main__":
    main()
