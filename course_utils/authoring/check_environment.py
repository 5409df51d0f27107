"""Is everything here that the course needs? ``python -m course_utils.authoring.check_environment``

Prints what it finds, then either "Everything the course needs is here." (exit code 0) or each problem with what to do
(exit code 1). Only the standard library is imported at the top: this must run where the rest is broken. Of the
environment it prints ``COURSE_CACHE`` and ``OMP_WAIT_POLICY``, never a token.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE_MB = 200  # what a rebuild of the docstring corpus may need
MEMORY_GB = 4


@dataclass(frozen=True)
class Finding:
    """One printed line. ``problem`` says what to do when the course cannot run like this; ``None``: it can."""

    name: str
    value: str
    problem: str | None = None


def main() -> int:
    """Print the findings; exit code 1 when one of them is a problem."""
    findings = [
        check_python(),
        *check_packages(ROOT / "requirements.txt"),
        check_kernel(),
        check_cores(),
        check_memory(),
        check_gpu(),
        check_cache(),
        check_wait_policy(),
        check_program(
            "C++ compiler",
            (os.environ.get("CXX", "c++"), "g++", "clang++"),
            "only torch.compile and an operator of lesson 07 need one (Debian: apt install g++ python3-dev)",
        ),
        check_headers(),
        check_program("Chromium", ("chromium",), "only the browser tests need it (Debian: apt install chromium)"),
        check_hub(),
    ]
    for finding in findings:
        print(f"{'✗' if finding.problem else '✓'} {finding.name:<18} {finding.value}")
    problems: dict[str, list[str]] = {}  # what to do -> who needs it
    for finding in findings:
        if finding.problem:
            problems.setdefault(finding.problem, []).append(finding.name)
    print()
    for what_to_do, names in problems.items():
        print(f"{', '.join(names)}: {what_to_do}")
    if not problems:
        print("Everything the course needs is here.")
    return 1 if problems else 0


def repair(command: str) -> str:
    """Run ``command`` with this Python, unless the course has a Python of its own and this is not it."""
    own = ROOT / ".venv"
    if (own / "bin" / "python").exists() and Path(sys.prefix).resolve() != own.resolve():
        return f"this is not the course's Python; start {own}/bin/python instead of {sys.executable}"
    return f"run `{sys.executable} -m {command}`"


def check_python(version: tuple[int, ...] = sys.version_info) -> Finding:
    """Python 3.11 or 3.12."""
    found = ".".join(map(str, version[:3]))
    supported = (3, 11) <= tuple(version[:2]) <= (3, 12)
    problem = None if supported else "the course needs Python 3.11 or 3.12: `make PYTHON=python3.11 course`"
    return Finding("Python", f"{found} on {platform.system()} {platform.machine()}", problem)


def check_packages(requirements: Path) -> list[Finding]:
    """Every pin of ``requirements`` against what is installed; one finding for all that match, one for each other.

    A build label is no difference: torch 2.13.0+cpu satisfies torch==2.13.0.
    """
    if not requirements.is_file():
        return [Finding("packages", "unknown", f"{requirements} is missing; clone the repository again")]
    wrong, right = [], 0
    for name, asked in read_pins(requirements.read_text()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed.split("+")[0] == asked:
            right += 1
        else:
            wrong.append(
                Finding(name, f"asked {asked}, installed {installed}", repair(f"pip install -r {requirements}"))
            )
    versions = ", ".join(f"{name} {_installed(name)}" for name in ("torch", "transformers", "accelerate", "datasets"))
    return [Finding("packages", f"{right} of {right + len(wrong)} as pinned ({versions})"), *wrong]


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def read_pins(text: str) -> list[tuple[str, str]]:
    """``[(name, version), ...]`` of the ``name==version`` lines that apply to this system."""
    pins = []
    for line in text.splitlines():
        match = re.match(r"([\w.-]+)==([\w.+!]+)\s*(?:;\s*([^#]+))?", line)
        if match and _applies(match[3]):
            pins.append((match[1], match[2]))
    return pins


def _applies(marker: str | None) -> bool:
    if marker is None:
        return True
    try:
        from packaging.markers import Marker
    except ImportError:  # pip's own installation is incomplete: ask for the package rather than hide it
        return True
    return Marker(marker.strip()).evaluate()


def check_kernel() -> Finding:
    """The Jupyter kernel that the lessons ask for."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        folder = KernelSpecManager().find_kernel_specs().get("python3")
    except ImportError:
        folder = None
    mend = repair("ipykernel install --sys-prefix")
    if folder is None:
        return Finding("Jupyter kernel", "python3: missing", mend)
    python = kernel_python(Path(folder))
    if python is not None and python.parent.resolve() != Path(sys.executable).parent.resolve():
        return Finding("Jupyter kernel", f"python3 in {folder} starts another Python: {python}", mend)
    return Finding("Jupyter kernel", f"python3 in {folder}")


def kernel_python(folder: Path) -> Path | None:
    """The program that a kernel's description starts; ``None`` for a bare ``python``: Jupyter takes its own for that.

    The program is not followed where it is a link: two environments' Pythons are links to the same file.
    """
    try:
        program = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))["argv"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return folder / "kernel.json"  # it starts nothing
    own = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}
    return None if program in own else Path(shutil.which(program) or program)


def check_cores() -> Finding:
    """How many processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Finding("cores", f"{cores}" if cores > 1 else "1: the lessons' times are for 2, expect about twice as long")


def check_memory() -> Finding:
    """Memory of the machine, or of the container if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "unknown on this system")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    size = total / 2**30
    return Finding("memory", f"{size:.1f} GiB" + ("" if size >= MEMORY_GB else ": little, close other programs"))


def check_gpu() -> Finding:
    """The accelerator torch sees, if any."""
    try:
        import torch
    except ModuleNotFoundError:
        return Finding("GPU", "unknown: torch is missing")
    except (ImportError, OSError) as error:
        return Finding(
            "GPU", "unknown", f"torch cannot be imported ({error}): {repair('pip install --force-reinstall torch')}"
        )
    if torch.cuda.is_available():
        devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        return Finding("GPU", ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices))
    if torch.backends.mps.is_available():
        return Finding("GPU", "Apple (mps)")
    if shutil.which("nvidia-smi"):
        return Finding(
            "GPU", f'an NVIDIA driver is here, but torch {torch.__version__} does not see a GPU: README, "Use a GPU"'
        )
    return Finding("GPU", "none: not needed")


def check_cache() -> Finding:
    """The folder of the course's data: can it be written, how big is it, is there room?"""
    from course_utils.data.cache import cache_folder

    folder = cache_folder()
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or error
        return Finding(
            "cache", f"{folder}: cannot be written", f"{reason}: set COURSE_CACHE to a folder you may write to"
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    state = f"{size / 1e6:.0f} MB" if folder.exists() else "not built yet (the first lesson builds it)"
    free = shutil.disk_usage(existing).free / 1e6
    problem = None
    if free < CACHE_MB:
        problem = f"free {CACHE_MB} MB on this disk, or set COURSE_CACHE to a folder on another one"
    return Finding("cache", f"{folder}: {state}, {free / 1e3:.1f} GB free", problem)


def check_wait_policy() -> Finding:
    """Whether idle OpenMP threads sleep (PASSIVE) or spin."""
    value = os.environ.get("OMP_WAIT_POLICY")
    if value and value.upper() == "PASSIVE":
        return Finding("OMP_WAIT_POLICY", value)
    hint = "`make` and the lessons set PASSIVE; export it for programs of your own"
    return Finding("OMP_WAIT_POLICY", f"{value or 'not set'}: {hint}")


def check_program(name: str, commands: tuple[str, ...], why: str) -> Finding:
    """An optional program: its path, or who needs it."""
    path = next(filter(None, map(shutil.which, commands)), None)
    return Finding(name, path or f"none: {why}")


def check_headers(folder: str = sysconfig.get_path("include")) -> Finding:
    """Python's headers, which Debian and Ubuntu keep in a package of their own: torch.compile includes them."""
    found = Path(folder, "Python.h").exists()
    return Finding(
        "Python.h", folder if found else "none: only torch.compile needs it (Debian: apt install python3-dev)"
    )


def check_hub() -> Finding:
    """Whether ``source="hub"`` would work now."""
    try:
        from huggingface_hub import constants

        from course_utils.hub import require_hub

        require_hub()
    except ImportError:
        return Finding("hub", "unknown: huggingface_hub is missing")
    except ConnectionError:
        return Finding("hub", 'not reachable: only source="hub" needs it')
    return Finding("hub", "HF_HUB_OFFLINE=1: the local cache is used" if constants.is_offline_mode() else "reachable")


if __name__ == "__main__":
    sys.exit(main())
