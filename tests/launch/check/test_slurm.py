"""The check of slurm.sbatch: every planted fault is a row that differs, and an edit that changes nothing is none."""

import contextlib
from pathlib import Path

import pytest

from course_utils.launch import Spec, SpecError, render, write
from course_utils.launch.check.slurm import minutes, read_directives, rows

SPEC = Spec(
    nodes=3,
    gpus_per_node=8,
    strategy="ddp",
    partition="gpu-long",
    account="lab@x",
    time_limit=90,
    output_dir="runs/$(x) 'y'",
    arguments=("it's", "$(touch stolen)", "two\nlines"),
)


@pytest.fixture
def project(tmp_path):
    """A folder with launch/, in which the script may be edited."""
    with contextlib.chdir(tmp_path):
        write(SPEC, "launch it")
        yield Path("launch it")


def differing(project):
    return {row.field for row in rows(SPEC, project) if not row.same and row.field != "sbatch --test-only"}


def edit(project, old, new):
    script = project / "slurm.sbatch"
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, new))


def test_as_written_nothing_differs(project):
    assert differing(project) == set()
    assert [path.name for path in Path().iterdir()] == ["launch it"]  # nothing was executed that leaves something


FAULTS = {
    "rank outside srun": ("export NODE_RANK=$SLURM_PROCID; exec", "exec", "can be resolved"),
    "script beside the copy": (
        "script='launch it/torchrun.sh'",
        'script="$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"',
        "can be resolved",
    ),
    "cores not passed on": ("export SRUN_CPUS_PER_TASK", "unused", "cores per machine inside srun"),
    "no address": ("read -r MASTER_ADDR < <(scontrol", "MASTER_ADDR=localhost; : < <(scontrol", "first machine"),
    "another port": ("29500 + SLURM_JOB_ID", "29501 + SLURM_JOB_ID", "first machine"),
    "ignored directive": (
        "#SBATCH --time",
        "echo begin\n#SBATCH --time",
        "directives that sbatch does not read",
    ),
    "a task per GPU": ("--ntasks-per-node=1", "--ntasks-per-node=8", "tasks per machine"),
    "fewer machines": ("--nodes=3", "--nodes=2", "machines"),
    "fewer GPUs": ("--gres=gpu:8", "--gres=gpu:4", "GPUs per machine"),
    "hours for minutes": ("--time=90", "--time=90:00:00", "time limit in minutes"),
    "warning to the steps": ("--signal=B:USR1@120", "--signal=USR1@120", "warning to this script"),
    "not requeued": ("#SBATCH --requeue", "#SBATCH --no-requeue", "may be queued again"),
    "output begins anew": ("--open-mode=append", "--open-mode=truncate", "output of each stay is kept"),
    "one core": ("#SBATCH --cpus-per-task=32\n", "", "cores per machine"),
    "memory": ("#SBATCH --mem=0\n", "", "memory per machine (0: all)"),
    "partition": ("--partition=gpu-long", "--partition=gpu", "partition"),
    "account": ("--account=lab@x", "--account=lab", "account"),
    "name": ("--job-name=finetune", '--job-name="$NAME"', "job name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(project, fault):
    old, new, field = FAULTS[fault]
    edit(project, old, new)
    assert field in differing(project)


def test_the_same_said_otherwise_is_the_same(project):
    edit(project, "#SBATCH --nodes=3", "#SBATCH -N 3 # machines")
    edit(project, "#SBATCH --time=90", "#SBATCH -t 0-1:30")
    edit(project, "#SBATCH --gres=gpu:8", '#SBATCH --gres="gpu:h100:8"\n#SBATCH --exclusive')
    assert differing(project) == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("0-1:30", 90), ("1-0", 1440), ("2-1:2:3", 2943), ("0:01", 1)],
)
def test_times_as_slurm_writes_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", [None, "", "UNLIMITED", "1.5", "1:2:3:4", "-5"])
def test_other_times_are_none(text):
    assert minutes(text) is None


HOSTILE = ("a b", "a\n#SBATCH --exclusive", 'a"b', "$(x)", "a\tb", "a#b", "a\\b", "%j", "é", "a'b")


@pytest.mark.parametrize("field", ["name", "partition", "account"])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_no_shell_would_unquote_cannot_get_into_a_directive(field, text):
    with pytest.raises(SpecError, match=f"^{field}="):
        Spec(**{field: text})


def test_all_that_may_stand_in_a_directive_arrives_as_it_is():
    words = {"name": "a" + "Z9._-" * 12, "partition": "-gpu_A.b,c@d:e/f-1", "account": "--x"}
    script = render(Spec(**words))["slurm.sbatch"]
    found = read_directives(script)
    assert (found.job_name, found.partition, found.account) == tuple(words.values())


def test_a_cpu_run_asks_for_no_gpu_and_one_machine_needs_no_address():
    script = render(Spec(device="cpu", nodes=1, gpus_per_node=2, strategy="ddp"))["slurm.sbatch"]
    assert "gres" not in script and "--mem" not in script
    assert "MASTER_ADDR" not in script


def test_a_home_folder_is_found_where_the_program_saves(tmp_path):
    """TrainingArguments reads "~", the shell does not read a quoted one: the job would find nothing saved."""
    spec = Spec(strategy="ddp", output_dir="~/my runs")
    with contextlib.chdir(tmp_path):
        write(spec, "launch")
        assert all(row.same for row in rows(spec, Path("launch")))
    assert "output=${output/#\\~/$HOME}" in render(spec)["slurm.sbatch"]
