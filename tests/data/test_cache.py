"""The cache: built once, by one of two processes, atomic, checked, and clear about what it cannot do."""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset, DatasetDict
from filelock import FileLock

from course_utils.data import cache
from course_utils.data.cache import MANIFEST, cached_dataset, cached_folder

PROGRAM = """
import sys, time, pathlib
from course_utils.data.cache import cached_folder
log = pathlib.Path(sys.argv[1])
def build(folder):
    with log.open("a") as stream:
        stream.write("built\\n")
    (folder / "first").write_text("1" * 1000)
    time.sleep(float(sys.argv[2]))
    (folder / "second").write_text("2" * 1000)
print(cached_folder("thing", {"version": 1}, build))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(text):
    return lambda folder: (folder / "data.txt").write_text(text)


def leftovers(home):
    """Everything in the cache folder but finished entries and lock files."""
    return [path.name for path in home.iterdir() if path.name.startswith(".")] if home.exists() else []


def test_builds_once_and_again_for_other_versions(home):
    calls = []
    build = lambda folder: (calls.append(1), write("a")(folder))  # noqa: E731
    first = cached_folder("thing", {"numpy": "1"}, build)
    assert cached_folder("thing", {"numpy": "1"}, build) == first
    assert cached_folder("thing", {"numpy": "2"}, build) != first
    assert len(calls) == 2
    assert not leftovers(home)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "data.txt").write_text("b"),
        lambda folder: (folder / "data.txt").unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / MANIFEST).unlink(),
    ],
)
def test_a_damaged_cache_is_built_again(home, damage, capsys):
    folder = cached_folder("thing", {}, write("a"))
    damage(folder)
    assert cached_folder("thing", {}, write("a")) == folder
    assert (folder / "data.txt").read_text() == "a"
    assert "damaged: building it again" in capsys.readouterr().err


def test_results_of_map_beside_the_table_do_no_harm(home):
    build = lambda: DatasetDict(train=Dataset.from_dict({"x": [1, 2, 3]}))  # noqa: E731
    table = cached_dataset("table", {}, build)
    table.map(lambda row: {"y": row["x"] + 1})

    def fail():
        raise AssertionError("built a second time")

    assert cached_dataset("table", {}, fail)["train"]["x"][:] == [1, 2, 3]


def test_two_processes_build_it_once(home, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), "1.0"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_build_leaves_nothing_that_counts(home, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
    process = subprocess.Popen([*command, "60"])
    deadline = time.monotonic() + 60
    while not list(home.glob(".thing-*/first")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(home.glob("thing-*/")), "no finished folder"
    done = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "built\n" * 2
    assert not leftovers(home), "the next build removes what the killed one left"


def test_a_failing_build_leaves_nothing(home):
    def build(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("thing", {}, build)
    assert not leftovers(home)
    assert not list(home.glob("thing-*/"))


def test_a_full_disk_is_one_sentence(home):
    def build(folder):
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"COURSE_CACHE='.*' could not be written \(No space left on device\); allowed"):
        cached_folder("thing", {}, build)
    assert not leftovers(home)


def test_a_real_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """A file size limit makes the kernel refuse the write in mid-file, as a full disk does."""
    program = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "from datasets import Dataset, DatasetDict\n"
        "from course_utils.data.cache import cached_dataset\n"
        "cached_dataset('t', {}, lambda: DatasetDict(train=Dataset.from_dict({'x': ['a' * 100] * 10_000})))\n"
    )
    environment = os.environ | {"COURSE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "could not be written (File too large)" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")) == []


@pytest.mark.parametrize("kind", ["a file in its place", "no permission"])
def test_an_unusable_cache_folder_is_one_sentence(tmp_path, monkeypatch, kind):
    place = tmp_path / "cache"
    if kind == "a file in its place":
        place.write_text("")
        place = place / "below"
    else:
        # root may write everywhere: /proc is read-only for everyone.
        place = "/proc/course-cache" if os.geteuid() == 0 else place
        if os.geteuid() != 0:
            place.mkdir(mode=0o500)
    monkeypatch.setenv("COURSE_CACHE", str(place))
    with pytest.raises(OSError, match=r"COURSE_CACHE='.*' could not be written \(.+\); allowed: a writable folder"):
        cached_folder("thing", {}, write("a"))


def test_missing_cache_folder_is_made(home):
    assert not home.exists()
    assert cached_folder("thing", {}, write("a")).is_dir()


def test_manifest_names_every_file(home):
    folder = cached_folder("thing", {}, write("a"))
    assert list(json.loads((folder / MANIFEST).read_text())) == ["data.txt"]
    assert cache.is_intact(folder)


READ_ONLY = """
import sys
sys.dont_write_bytecode = True
from datasets import Dataset, DatasetDict
from course_utils.data.cache import cached_dataset
def fail():
    raise AssertionError("built a second time")
table = cached_dataset("table", {}, fail)
print(table.map(lambda row: {"y": row["x"] + 1}).filter(lambda row: row["y"] > 2)["train"]["y"][:])
"""


def obey_permissions():
    """For a child of root on Linux, which may write everywhere: prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0 and sys.platform == "linux":
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_an_intact_cache_that_may_only_be_read_serves_map_and_filter(home):
    cached_dataset("table", {}, lambda: DatasetDict(train=Dataset.from_dict({"x": [1, 2, 3]})))
    for path in (*home.rglob("*"), home):
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {"COURSE_CACHE": str(home), "HF_HOME": "/nowhere", "HOME": "/nowhere", "PYTHONPATH": os.getcwd()}
    command, captured = [sys.executable, "-c", READ_ONLY], {"capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, timeout=120, preexec_fn=obey_permissions, **captured)
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[3, 4]\n" and not list(home.rglob("cache-*"))


@pytest.mark.parametrize("place", ["{tmp}/a::b", "~nosuchuser/cache", "{tmp}/zip://x::y"])
def test_a_path_that_the_libraries_read_otherwise_is_one_sentence(place, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", place.format(tmp=tmp_path))
    with pytest.raises(OSError, match=r"COURSE_CACHE='.*' .*; allowed: ") as error:
        cached_folder("thing", {}, write("a"))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_home_that_nobody_has_is_one_sentence(monkeypatch):
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    with pytest.raises(OSError, match="Could not determine home.*; allowed: "):
        cached_folder("thing", {}, write("a"))


@pytest.mark.parametrize("kind", ["a file", "a link to nowhere"])
def test_what_is_no_folder_in_its_place_is_said_before_the_build(home, kind):
    folder = cached_folder("thing", {}, write("a"))
    cache.shutil.rmtree(folder)
    folder.write_text("mine") if kind == "a file" else folder.symlink_to("/nowhere")
    calls = []
    with pytest.raises(OSError, match=r"thing-\w+' is no folder; allowed: .*delete") as error:
        cached_folder("thing", {}, lambda place: calls.append(place))
    assert not calls and "\n" not in str(error.value) and os.path.lexists(folder) and not leftovers(home)


def test_what_a_killed_build_left_goes_with_the_next_build_of_any_entry(home):
    cached_folder("other", {}, write("a"))
    dead = home / ".thing-0123456789ab-x1y2z3"
    dead.mkdir(parents=True)
    (dead / "half").write_text("half")
    alive = home / ".busy-0123456789ab-x1y2z3"
    alive.mkdir()
    with FileLock(home / "busy-0123456789ab.lock"):
        cached_folder("third", {}, write("a"))
        assert alive.exists() and not dead.exists()
    mine = home / ".config"
    mine.mkdir()
    cached_folder("fourth", {}, write("a"))
    assert mine.exists() and not alive.exists()
