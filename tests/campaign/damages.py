"""Campaign: every kind of damage to every file of a checkpoint. Refused in one sentence, or proven harmless.

    python -m tests.campaign.damages --count 300 --seed 0     # of the course's loop, and of finetune, each
    python -m tests.campaign.damages --count 0                # every damage to every file once, no more

A file of the newest checkpoint is missing, empty, cut, has a flipped byte, is a folder, or is another file's content:
a neighbour's or its own of the checkpoint before. Survived: the program says one sentence that names the file and the
next older complete checkpoint, ends with code 2 and writes nothing; or, where finetune looks for a checkpoint itself,
it says so, goes on from the older one and ends with the same weights. ``FORGED``: the content fits no run, and sizes
and checksums were made to agree. ``HARMLESS``: files that a run does not read when it goes on; that is proven by the
weights at its end.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from tests.campaign.forgeries import FORGED, HARMLESS, forge, forge_loop
from tests.campaign.tally import Tally, ended, sentence_of, tree

STEPS, SAVE_EVERY = 6, 2
LOOP = ["--hidden_size=32", "--num_hidden_layers=1", "--batch_size=8", "--max_length=16"]
QUIET = ["--logging_steps=1", "--disable_tqdm=true", "--report_to=none", "--use_cpu", "--max_length=32"]


def missing(file: Path, draw: random.Random) -> None:
    file.unlink()


def empty(file: Path, draw: random.Random) -> None:
    file.write_bytes(b"")


def cut(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(1, file.stat().st_size)])


def flipped(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def grown(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes() + bytes(draw.randrange(1, 9)))


def a_folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def a_neighbours(file: Path, draw: random.Random) -> None:
    others = [other for other in files_of(file.parent) if other.read_bytes() != file.read_bytes()]
    shutil.copyfile(draw.choice(others), file)


def of_the_one_before(file: Path, draw: random.Random) -> None:
    name, step = file.parent.name, int(file.parent.name.rpartition("-")[2])
    older = file.parent.with_name(name.replace(f"{step:08d}" if name.startswith("step") else str(step), before(name)))
    if (older / file.name).read_bytes() == file.read_bytes():  # the same in all checkpoints: a flip instead
        return flipped(file, draw)
    shutil.copyfile(older / file.name, file)


def before(name: str) -> str:
    """The number in the name of the checkpoint before."""
    step = int(name.rpartition("-")[2]) - SAVE_EVERY
    return f"{step:08d}" if name.startswith("step") else str(step)


DAMAGES = [missing, empty, cut, flipped, grown, a_folder, a_neighbours, of_the_one_before]


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


@functools.cache
def few_rows(source: str = "local"):
    """The course's data, 256 rows a split: the program tokenises all of them at each start."""
    from course_utils.data.text import load_classification

    data = load_classification(source)
    return type(data)({split: data[split].select(range(256)) for split in data})


def started(recipe: str, arguments: list[str]) -> tuple[object, str, str]:
    """How the recipe ends (``ended``), run in this process as ``python -m`` runs it."""
    module = f"course_utils.recipes.{recipe}"
    rows = mock.patch("course_utils.data.load_classification", few_rows)
    with rows, mock.patch.object(sys, "argv", [module, *arguments]):
        return ended(lambda: runpy.run_module(module, run_name="__main__", alter_sys=False))


class Subject:
    """A program's finished run in ``folder``, damaged in copies of it."""

    def __init__(self, name: str, recipe: str, arguments: list[str], folder: Path, output: str):
        self.name, self.recipe, self.arguments, self.folder, self.output = name, recipe, arguments, folder, output
        code, errors, _ = started(recipe, [*arguments, f"--{output}={folder}"])
        assert code == 0, errors
        newest = f"step-{STEPS:08d}" if recipe == "train_by_hand" else f"checkpoint-{STEPS}"
        self.newest, self.older = newest, f"{newest.rpartition('-')[0]}-{before(newest)}"
        self.weights = self._weights(folder)

    def _weights(self, folder: Path) -> bytes:
        inner = self.newest if self.recipe == "train_by_hand" else ""
        return (folder / inner / "model.safetensors").read_bytes()

    def after(self, damage: Callable[[Path], None], copy: Path, by_name: bool) -> str | None:
        """The fault, if there is one, of a start after ``damage`` to the newest checkpoint of ``copy``."""
        shutil.copytree(self.folder, copy)
        named = damage(copy / self.newest)
        seen = tree(copy)
        flags = [f"--resume_from_checkpoint={copy / self.newest}"] if by_name else []
        code, errors, out = started(self.recipe, [*self.arguments, f"--{self.output}={copy}", *flags])
        if self.recipe == "finetune" and not by_name:
            return self._went_on(code, errors, out, copy, named)
        fault, sentence = sentence_of(code, errors)
        if fault is None and not any(name in sentence for name in named):
            fault = f"none of {named} is named"
        if fault is None and self.older not in sentence:
            fault = f"{self.older} is not named"
        if fault is None and tree(copy) != seen:
            fault = "something was written"
        return fault and f"{fault}: {sentence}"

    def _went_on(self, code: object, errors: str, out: str, copy: Path, named: list[str]) -> str | None:
        """It looked for a checkpoint itself: it must name the damaged file, take the older one, and end alike."""
        line = next((line for line in out.splitlines() if f"goes on from {self.older}" in line), "")
        if code != 0 or not any(name in line for name in named):
            return f"exit code {code}, {line or errors[-300:]!r}"
        began = json.loads((copy / "run.json").read_text())["resumed_from"]
        if began != STEPS - SAVE_EVERY or self._weights(copy) != self.weights:
            return f"it went on from {began}, same weights: {self._weights(copy) == self.weights}"
        return None

    def goes_on(self, change: Callable[[Path], None], copy: Path) -> str | None:
        """The fault unless a run goes on from the changed checkpoint, now the newest, and ends alike."""
        shutil.copytree(self.folder, copy)
        shutil.rmtree(copy / self.newest)
        change(copy / self.older)
        (copy / "model.safetensors").unlink()
        code, errors, _ = started(self.recipe, [*self.arguments, f"--{self.output}={copy}"])
        if code != 0:
            return f"exit code {code}: {errors[-300:]}"
        began = json.loads((copy / "run.json").read_text())["resumed_from"]
        same = self._weights(copy) == self.weights
        return None if same and began == STEPS - SAVE_EVERY else f"it went on from {began}, same weights: {same}"


def draws(subject: Subject, count: int, draw: random.Random) -> list[tuple[str, Callable]]:
    """Every damage to every file in a drawn order, then drawn ones; ``count`` in all, 0 for every one once."""
    newest = subject.folder / subject.newest
    names = [file.relative_to(newest).as_posix() for file in files_of(newest)]
    every = [(name, damage) for name in names for damage in DAMAGES]
    draw.shuffle(every)
    more = [(draw.choice(names), draw.choice(DAMAGES)) for _ in range(count - len(every))]
    return [*every, *more][: count or None]


def damage_all(
    subject: Subject, todo: list[tuple[str, Callable]], draw: random.Random, place: Path, tally: Tally, automatic: float
) -> None:
    for name, damage in todo:

        def harm(checkpoint: Path, name=name, damage=damage) -> list[str]:
            damage(checkpoint / name, draw)
            # A manifest that was replaced by another contradicts all files: any of them may be the one that is named.
            is_manifest = name in ("complete", "manifest.json")
            return [name, *(file.name for file in files_of(checkpoint))] if is_manifest else [name]

        by_name = subject.recipe == "finetune" and draw.random() >= automatic
        fault = subject.after(harm, copy := place / "copy", by_name)
        shutil.rmtree(copy)
        tally.count(f"damaged file: {subject.name}", fault and f"{name}, {damage.__name__}, by name {by_name}: {fault}")


def forge_all(subject: Subject, count: int | None, draw: random.Random, place: Path, tally: Tally) -> None:
    todo = [(file, change) for file, changes in FORGED[subject.recipe].items() for change in changes]
    draw.shuffle(todo)
    for file, change in todo[:count]:

        def harm(checkpoint: Path, file=file, change=change) -> list[str]:
            (forge if subject.recipe == "finetune" else forge_loop)(checkpoint, file, change)
            return [file]

        fault = subject.after(harm, copy := place / "copy", by_name=subject.recipe == "finetune")
        shutil.rmtree(copy)
        tally.count(f"forged file: {subject.name}", fault and f"{file}, {change.__doc__}: {fault}")


def harmless_all(subject: Subject, place: Path, tally: Tally) -> None:
    for file in HARMLESS:
        fault = subject.goes_on(lambda checkpoint, file=file: forge(checkpoint, file, None), copy := place / "copy")
        shutil.rmtree(copy)
        tally.count(f"forged file that is not read: {subject.name}", fault and f"{file}: {fault}")


def campaign(
    count: int, seed: int, subjects: list[Subject], place: Path, forgeries: tuple[int, int] | None = None
) -> Tally:
    """``count`` damages of each program (0: every one once), and all forgeries or so many of each program."""
    draw, tally = random.Random(seed), Tally()
    for number, subject in enumerate(subjects):
        automatic = 0.25 if forgeries is None else 0.0  # a fourth are left to finetune itself, which costs a run's end
        damage_all(subject, draws(subject, count, draw), draw, place, tally, automatic)
        forge_all(subject, forgeries and forgeries[number], draw, place, tally)
        if forgeries is None and subject.recipe == "finetune":
            harmless_all(subject, place, tally)
    return tally


def subjects(place: Path) -> list[Subject]:
    from tests.launch.tiny_project import make_project

    project = make_project(place / "project")
    sizes = [f"--max_steps={STEPS}", f"--save_steps={SAVE_EVERY}", "--per_device_train_batch_size=8"]
    own = ["--task=causal_lm", f"--model_name_or_path={project.model}", f"--train_file={project.texts}/train.jsonl"]
    loop = [*LOOP, f"--max_steps={STEPS}", f"--save_every={SAVE_EVERY}"]
    return [
        Subject("the course's loop", "train_by_hand", loop, place / "loop", "folder"),
        Subject("finetune", "finetune", [*own, *QUIET, *sizes], place / "trainer", "output_dir"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="damages of each program; 0: every one once")
    parser.add_argument("--seed", type=int, default=0, help="of files, damages and places")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tally = campaign(given.count, given.seed, subjects(Path(folder)), Path(folder))
    tally.check()


if __name__ == "__main__":
    main()
