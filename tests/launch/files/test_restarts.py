"""After a crash: torchrun starts one machine's ranks again, SLURM a job on several; each so many times at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.errors import SpecError
from course_utils.launch import Spec, render, write
from course_utils.launch.check.folder import check

CRASHES = """\
import os, sys
print("hello of rank", os.environ["RANK"], "attempt", os.environ["TORCHELASTIC_RESTART_COUNT"])
open(f"seen-{os.environ['RANK']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}", "w").close()
sys.exit(int(os.environ["RANK"]))
"""
SRUN = """#!/bin/sh
date +%N > "$OUTPUT/run.json"; date +%N > "$OUTPUT/.owner"  # as every start of finetune does
[ -z "$SAVES" ] || date +%N > "$OUTPUT/checkpoint"
exit "$CODE"
"""
COMMANDS = {
    "srun": SRUN,
    "scontrol": "#!/bin/sh\ncase $1 in show) echo machine0 ;; *) echo \"$@\" >> \"$NOTES\" ;; esac\n",
}  # fmt: skip


@pytest.mark.long  # tests/parallel/test_restarts.py kills ranks under torchrun in every run
def test_torchrun_starts_a_crashed_run_again_and_keeps_each_ranks_log(tmp_path):
    """The script as it is written, two processes; rank 1 always crashes."""
    (tmp_path / "crashes.py").write_text(CRASHES)
    spec = Spec(program="crashes.py", trainer_flags=False, strategy="ddp", log_dir="logs of $x")
    write(spec.on_cpu(2).but(max_restarts=2), tmp_path / "launch")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "launch/torchrun.sh"]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert sorted(one.name for one in tmp_path.glob("seen-1-*")) == ["seen-1-0", "seen-1-1", "seen-1-2"]
    logs = sorted((tmp_path / "logs of $x").rglob("stdout.log"))
    last = [one.read_text() for one in logs if "attempt_2" in str(one)]
    assert [text for text in last if text] and all("attempt 2" in text for text in last if text)
    assert {part for one in logs for part in one.parts if part.startswith("attempt_")} >= {"attempt_0", "attempt_1"}


def stays(spec, tmp_path, number, code, saves):
    """So many stays of one job whose srun ends with ``code``; the requeues that SLURM was asked for."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir(exist_ok=True)
    for name, text in COMMANDS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    output = tmp_path / spec.output_dir
    output.mkdir(parents=True, exist_ok=True)
    write(spec, tmp_path / "launch", overwrite=True)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    job |= {"SLURM_JOB_NODELIST": "machine[0-1]", "CODE": str(code), "OUTPUT": str(output), "SAVES": "yes" * saves}
    environment = os.environ | job | {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)}
    for _ in range(number):
        for old in output.iterdir():
            os.utime(old, (0, 0))  # of an earlier stay
        done = subprocess.run(["bash", tmp_path / "launch" / "slurm.sbatch"], env=environment, timeout=60)
        assert done.returncode == code
    return notes.read_text().splitlines() if notes.exists() else []


TWO = Spec(strategy="ddp", nodes=2, max_restarts=2, output_dir="it's $x")


def test_slurm_queues_a_crashed_job_again_so_many_times_at_most(tmp_path):
    assert stays(TWO, tmp_path, 4, code=3, saves=True) == ["requeue 7"] * 2


@pytest.mark.parametrize(
    ("spec", "code", "saves"),
    [(TWO, 3, False), (TWO, 0, True), (TWO.but(max_restarts=0), 3, True), (TWO.but(nodes=1), 3, True)],
    ids=["saved nothing", "finished", "not asked", "one machine: torchrun does it"],
)
def test_slurm_does_not_queue_again(spec, code, saves, tmp_path):
    assert stays(spec, tmp_path, 1, code, saves) == []


def test_who_restarts_is_said_in_each_file(tmp_path):
    texts = render(Spec(strategy="zero2", max_restarts=4))
    assert "--max-restarts=4  #" in texts["torchrun.sh"] and "--max_restarts=4  #" in texts["accelerate.sh"]
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  #" in texts["torchrun.sh"]
    assert "default=4" in texts["ray_train.py"] and "4 times at most" in texts["README.md"]
    assert "export PET_STANDALONE=1  #" in texts["accelerate.sh"] and "PET_" not in texts["torchrun.sh"]
    assert "restarts" not in texts["deepspeed.sh"] and "RDZV_TCP_STORE" not in texts["deepspeed.sh"]
    several = render(TWO)
    assert "sbatch --exclude=NAME" in several["slurm.sbatch"] and "sbatch --exclude=NAME" in several["README.md"]
    assert "excnodelist=NAME" in several["slurm.sbatch"] and "PET_" not in several["accelerate.sh"]
    assert "max-restarts" not in several["torchrun.sh"] and "count < 2" in several["slurm.sbatch"]


def test_restarts_and_logs_survive_the_check(tmp_path):
    write(Spec(strategy="ddp", max_restarts=4, log_dir="logs"), tmp_path / "launch")
    assert [row for row in check(tmp_path / "launch") if not row.same] == []
    script = tmp_path / "launch" / "accelerate.sh"
    script.write_text(script.read_text().replace("--max_restarts=4", "--max_restarts=9").replace("--tee=3", "--tee=1"))
    different = [(row.file, row.field, row.resolved) for row in check(tmp_path / "launch") if not row.same]
    assert different == [("accelerate.sh", "restarts after a crash", 9), ("accelerate.sh", "streams in it", "OUT")]


def test_a_log_folder_that_no_launcher_would_find():
    with pytest.raises(SpecError, match="log_dir='~/logs' would be a folder called '~'"):
        Spec(log_dir="~/logs")
