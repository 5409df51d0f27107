"""Campaign: every kind of damage to every file of a sharded checkpoint of finetune on two ranks, and forged shards.

    python -m tests.campaign.shards --count 40 --seed 0                 # damages and forgeries of each kind
    python -m tests.campaign.shards --count 0 --only ZeRO-2             # every damage to every file, every forgery

The shards are FSDP2's (``pytorch_model_fsdp_0``, ``optimizer_0``) and DeepSpeed's (``global_step*``, ZeRO-2 and 3).
Damaged: missing, empty, cut, grown, a flipped byte, a folder, another rank's file, that of the checkpoint before.
``FORGED`` (``forged_shards``): contents that fit no run, or run code when they are unpickled, with sizes and checksums
that agree. Survived: both ranks end with code 2 and one sentence that names the file and the next older complete
checkpoint, and nothing is written or run; or, where finetune looks for a checkpoint itself (a fourth of the damages),
it goes on from the older one and ends with the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.campaign import damages
from tests.campaign.forged_shards import FORGED, MARKER, forge
from tests.campaign.kills import Kind, make_project
from tests.campaign.starts import Start, preload, with_one_thread_and_repairs
from tests.campaign.tally import Tally, sentence_of, tree

STEPS, OLDER = 6, 4
FLAGS = [f"--max_steps={STEPS}"]  # of several, the last one counts
KINDS = [Kind("FSDP2", 2, "fsdp2"), Kind("ZeRO-2", 2, "zero2"), Kind("ZeRO-3", 2, "zero3")]


def another_ranks(file: Path, draw: random.Random) -> None:
    """The same part of another rank; a flipped byte where there is none."""
    swaps = [("__0_0", "__1_0"), ("__1_0", "__0_0"), ("rank_0_", "rank_1_"), ("rank_1_", "rank_0_")]
    others = [file.with_name(file.name.replace(old, new)) for old, new in swaps if old in file.name]
    if others and others[0].read_bytes() != file.read_bytes():
        shutil.copyfile(others[0], file)
    else:
        damages.flipped(file, draw)


def of_the_one_before(file: Path, draw: random.Random) -> None:
    """The same file of the older checkpoint; a flipped byte where it is alike."""
    older = Path(
        str(file).replace(f"checkpoint-{STEPS}", f"checkpoint-{OLDER}").replace(f"step{STEPS}", f"step{OLDER}")
    )
    if older.read_bytes() == file.read_bytes():
        damages.flipped(file, draw)
    else:
        shutil.copyfile(older, file)


DAMAGES = [damages.missing, damages.empty, damages.cut, damages.flipped, damages.grown, damages.a_folder]
DAMAGES += [another_ranks, of_the_one_before]


class Shards:
    """A finished run of ``kind``, damaged in copies of its folder."""

    def __init__(self, kind: Kind, place: Path):
        self.kind, self.place, self.folder = kind, place, place / kind.strategy
        fault, _, log = self.start(self.folder)
        if fault:
            raise RuntimeError(f"{fault}; {log[-2000:]}")
        self.weights = kind.final_weights(self.folder)

    def start(self, output: Path, *flags: str) -> tuple[str | None, list[int], str]:
        """Fault, exit codes and log of a start in ``output``."""
        log = self.place / "start.log"
        log.unlink(missing_ok=True)
        start = self.kind.begin(self.place / "project", output, [*FLAGS, *flags], log)
        fault = start.wait()
        return fault, [start.codes[pid] for pid in start.pids], log.read_text(errors="replace")

    def files(self) -> list[str]:
        """Names of the shards and of what says where they are."""
        newest = self.folder / f"checkpoint-{STEPS}"
        shards = [path for path in newest.glob("*/*") if path.is_file()]
        return sorted(path.relative_to(newest).as_posix() for path in [*shards, *newest.glob("latest")])

    def after(self, harm: Callable[[Path], str], by_name: bool) -> str | None:
        """The fault, if there is one, of a start after ``harm`` to the newest checkpoint, which returns its name."""
        copy = self.place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        newest = copy / f"checkpoint-{STEPS}"
        name, files = harm(newest), tree(copy)
        _, codes, log = self.start(copy, *([f"--resume_from_checkpoint={newest}"] if by_name else []))
        if (copy / MARKER).exists():
            return "it ran the file's code"
        if not by_name:
            return self._went_on(copy, codes, log, name)
        said = "\n".join(dict.fromkeys(log.splitlines()))  # by both ranks
        fault, sentence = sentence_of(max(codes), said)
        if fault is None and (set(codes) != {2} or tree(copy) != files):
            fault = f"exit codes {codes}" if set(codes) != {2} else "something was written"
        names = name.split("/")  # where ranks load together, the folder is named
        if fault is None and not (any(one in sentence for one in names) and f"checkpoint-{OLDER}" in sentence):
            fault = f"{name} or checkpoint-{OLDER} is not named"
        return fault and f"{fault}: {sentence}"

    def _went_on(self, copy: Path, codes: list[int], log: str, name: str) -> str | None:
        said = any(name in line and f"goes on from checkpoint-{OLDER}" in line for line in log.splitlines())
        if not said or any(codes):
            return f"exit codes {codes}, said {said}: {log[-300:]}"
        began = json.loads((copy / "run.json").read_text())["resumed_from"]
        same = self.kind.final_weights(copy) == self.weights
        return None if same and began == OLDER else f"it went on from {began}, same weights: {same}"


def draws(shards: Shards, count: int, draw: random.Random) -> list[tuple[str, Callable, bool]]:
    """Files with what happens to them, and whether the checkpoint is asked for by name; forgeries always are."""
    damaged = [(name, damage, draw.random() < 0.75) for name in shards.files() for damage in DAMAGES]
    forged = [(name, change, True) for name, changes in FORGED[shards.kind.strategy].items() for change in changes]
    draw.shuffle(damaged)
    draw.shuffle(forged)
    if not count:
        return damaged + forged
    return damaged[: count - count // 2] + forged[: count // 2]


def campaign(count: int, seed: int, only: str = "", seconds: float = float("inf")) -> Tally:
    """``count`` tries of each kind whose name begins with ``only``, half of them forgeries; 0: all there are, once."""
    tally, began = Tally(), time.monotonic()
    kinds = [kind for kind in KINDS if kind.name.startswith(only)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = Start(partial(make_project, place / "project", kinds), 1, place / "made.log", place, {})
        if fault := made.wait():
            raise RuntimeError(fault)
        for number, kind in enumerate(kinds):
            shards, draw = Shards(kind, place), random.Random(f"{seed} {kind.name}")
            for name, change, by_name in draws(shards, count, draw):
                if time.monotonic() > began + seconds * (number + 1) / len(kinds):
                    break

                def harm(checkpoint: Path, name=name, change=change, draw=draw) -> str:
                    if change in DAMAGES:
                        change(checkpoint / name, draw)
                    else:
                        forge(checkpoint, name, change)
                    return name

                what = "damaged" if change in DAMAGES else "forged"
                fault = shards.after(harm, by_name)
                kind_of_try = f"{what} shard: {kind.name} on {kind.ranks} ranks"
                tally.count(kind_of_try, fault and f"{name}, {change.__doc__ or change.__name__}, {by_name}: {fault}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="tries of each kind; 0: all, once")
    parser.add_argument("--seed", type=int, default=0, help="of files, damages and forgeries")
    parser.add_argument("--only", default="", help="kinds whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no try after so many")
    given = parser.parse_args()
    with_one_thread_and_repairs("tests.campaign.shards", sys.argv[1:])
    preload("course_utils.recipes.finetune", "course_utils.launch")
    if any(kind.name.startswith(given.only) and kind.strategy != "fsdp2" for kind in KINDS):
        preload("deepspeed")
    tally = campaign(given.count, given.seed, given.only, given.seconds)
    tally.check()


if __name__ == "__main__":
    main()
