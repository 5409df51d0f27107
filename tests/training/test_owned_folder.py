"""One run at a time in a folder; a killed owner does not keep it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from course_utils.training.owned_folder import LOCK, owned_folder

HOLD = "import sys, time; from course_utils.training.owned_folder import owned_folder\n"
HOLD += "with owned_folder(sys.argv[1]): print('held', flush=True); time.sleep(100)"


@pytest.fixture
def owner(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_holds_the_folder(owner, tmp_path):
    started = psutil.Process(owner.pid).create_time()
    who = rf"in use by process {owner.pid} on .*, started \d{{4}}-"
    with pytest.raises(ValueError, match=who) as caught, owned_folder(tmp_path, patience=0):
        pass
    assert "\n" not in str(caught.value)
    assert f'"started": {started}' in (tmp_path / LOCK).read_text()
    with owned_folder(tmp_path, rank=1, patience=0):  # the other ranks of one run
        pass


def test_a_killed_owner_leaves_it(owner, tmp_path):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    with owned_folder(tmp_path, patience=0):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_left_empty_goes_again_and_one_with_a_run_stays(tmp_path):
    with pytest.raises(RuntimeError), owned_folder(tmp_path / "runs" / "one"):
        raise RuntimeError
    assert not (tmp_path / "runs").exists()
    with owned_folder(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "one" / "model").touch()
    assert [path.name for path in (tmp_path / "runs" / "one").iterdir()] == ["model"]
    with owned_folder(tmp_path / "runs" / "one", patience=0):  # and can be had again
        pass


def test_a_file_in_its_place_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; allowed: a folder"), owned_folder(tmp_path / "file"):
        pass
