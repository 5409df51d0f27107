"""The launch files of a spec: one registry, rendered in memory, written all together or not at all (lesson 15).

    from course_utils.launch import Spec, write
    write(Spec(strategy="fsdp2", nodes=2), "launch")

To add a file: a template ``templates/<name>.j2`` and a line in ``FILES``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from course_utils.errors import SpecError
from course_utils.launch.files import cloud, preflight, values
from course_utils.launch.files.templating import fill
from course_utils.launch.spec import Spec, state

Values = Callable[[Spec, str], dict[str, Any]]


def _no_values(spec: Spec, folder: str) -> dict[str, Any]:
    return {}


def _always(spec: Spec) -> bool:
    return True


class LaunchFile(NamedTuple):
    """One file: its purpose, what its template gets besides ``spec`` and ``folder``, and the specs that need it."""

    name: str  # the template is templates/<name>.j2
    purpose: str  # one line for README.md
    values: Values = _no_values  # (spec, folder) -> the template's further values
    applies: Callable[[Spec], bool] = _always


def _deepspeed(spec: Spec) -> bool:
    return spec.is_deepspeed


FILES: tuple[LaunchFile, ...] = (
    LaunchFile("spec.yaml", "the spec all other files were written from", values.spec_yaml),
    LaunchFile("torchrun.sh", "starts one machine's processes with torchrun", values.torchrun_sh),
    LaunchFile("accelerate.sh", "starts one machine's processes with `accelerate launch`", values.accelerate_sh),
    LaunchFile("accelerate.yaml", "settings of `accelerate launch`", values.accelerate_yaml),
    LaunchFile("fsdp.json", "FSDP for TrainingArguments", values.fsdp_json, lambda spec: spec.is_fsdp),
    LaunchFile("deepspeed.json", "ZeRO, for every launcher", values.deepspeed_json, _deepspeed),
    LaunchFile("deepspeed.sh", "starts one machine's processes with deepspeed", values.deepspeed_sh, _deepspeed),
    LaunchFile("hostfile", "machines and processes, for deepspeed.sh", values.hostfile, _deepspeed),
    LaunchFile("preflight.py", "looks at the machines before training", preflight.values, preflight.applies),
    LaunchFile(
        "slurm.sbatch",
        "a SLURM cluster: starts torchrun.sh on every machine, again and again until finished",
        values.slurm_sbatch,
    ),
    LaunchFile("sagemaker_v3.py", "starts the run on Amazon SageMaker with SDK 3", cloud.sagemaker_values),
    LaunchFile("sagemaker_v2.py", "the same with SDK 2", cloud.sagemaker_v2_values),
    LaunchFile("sagemaker_entry.py", "what SageMaker starts on every rank", cloud.entry_values),
    LaunchFile("trainjob.yaml", "Kubernetes, with Kubeflow Trainer", cloud.trainjob_values),
    LaunchFile("skypilot.yaml", "any cloud, with SkyPilot", cloud.skypilot_values),
    LaunchFile("ray_train.py", "a Ray cluster, with Ray Train", cloud.ray_values),
    LaunchFile(
        "README.md",
        "how to start each file",
        lambda spec, folder: values.readme(spec, folder) | {"files": files_of(spec)},
    ),
)


def files_of(spec: Spec) -> list[LaunchFile]:
    """The files that this spec gets."""
    return [file for file in FILES if file.applies(spec)]


def render(spec: Spec, folder: str | os.PathLike[str] = "launch") -> dict[str, str]:
    """The text of every file, by name. ``folder`` is where they will lie, seen from where they are started.

    Raises:
        SpecError: ``folder`` is not UTF-8, or ``spec.warning`` is too short to save the model.
    """
    state.check_warning(spec)
    where = Path(folder).as_posix()
    try:
        where.encode("utf-8")
    except UnicodeEncodeError:  # the files name their folder, and they are UTF-8
        raise SpecError(f"folder={where!r} is not UTF-8; allowed: a name that is") from None
    return {
        file.name: fill(f"{file.name}.j2", spec=spec, folder=where, **file.values(spec, where))
        for file in files_of(spec)
    }


def write(spec: Spec, folder: str | os.PathLike[str] = "launch", overwrite: bool = False) -> list[Path]:
    """Write the files of ``spec`` into ``folder`` and return their paths; all of them, or nothing at all.

    The files are completed in a temporary folder beside it, which then takes its name. With ``overwrite`` the old
    folder is replaced as a whole, so that no file of an earlier spec stays behind; a folder that holds anything else is
    refused.

    Raises:
        SpecError: ``folder`` exists and ``overwrite`` is False, or it holds something that is not a launch file.
        OSError: the disk is full or may not be written; ``folder`` is as it was.
    """
    target = Path(folder)
    texts = render(spec, folder)
    refuse_to_lose(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    stays = _must_stay(target)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target if stays else target.parent))
    try:
        for name, text in texts.items():
            path = fresh / name
            path.write_text(text, encoding="utf-8", newline="\n")
            path.chmod(0o755 if name.endswith((".sh", ".sbatch")) else 0o644)
        fresh.chmod(0o755)  # mkdtemp makes it private
        (_move_into if stays else _take_the_place)(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already if all went well
    return [target / name for name in texts]


def refuse_to_lose(target: Path, overwrite: bool) -> None:
    """Raise SpecError if writing into ``target`` would replace something that is not ours to replace."""
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise SpecError(f"folder={str(target)!r} is not a folder; allowed: a folder of launch files, or a new name")
    found = {path.name for path in target.iterdir()}
    strange = sorted(found - {file.name for file in FILES})
    if strange:
        raise SpecError(
            f"folder={str(target)!r} holds {strange[0]!r}, which is no launch file; allowed: another folder"
        )
    if found and not overwrite:
        raise SpecError(f"folder={str(target)!r} holds launch files already; allowed: overwrite=True, or a new name")


def _must_stay(target: Path) -> bool:
    """Whether ``target`` cannot step aside: it is where somebody stands, or a disk of its own."""
    place = target.resolve()
    return place.is_dir() and (place == Path.cwd() or place in Path.cwd().parents or os.path.ismount(place))


def _move_into(fresh: Path, target: Path) -> None:
    """Move the files of ``fresh`` into ``target`` one by one; if that fails, all of them leave and the old ones return.

    ``target`` holds nothing but launch files (``refuse_to_lose``) and ``fresh``.
    """
    aside = Path(tempfile.mkdtemp(prefix=".old-", dir=fresh))
    names = sorted(path.name for path in fresh.iterdir() if path != aside)
    moved: list[tuple[Path, Path]] = []  # from, to
    try:
        for path in [path for path in target.iterdir() if path != fresh]:
            path.rename(aside / path.name)
            moved.append((path, aside / path.name))
        for name in names:
            (fresh / name).rename(target / name)
            moved.append((fresh / name, target / name))
    except OSError:
        for source, place in reversed(moved):
            place.rename(source)
        raise


def _take_the_place(fresh: Path, target: Path) -> None:
    """Rename ``fresh`` to ``target``; a folder that is there steps aside first and comes back if that fails."""
    if not target.exists():
        fresh.rename(target)
        return
    aside = fresh.with_name(f"{fresh.name}.old")
    target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside)
