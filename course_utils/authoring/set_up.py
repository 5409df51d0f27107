"""Create .venv and install requirements.txt into it, once: ``python3 course_utils/authoring/set_up.py``.

On Linux the package index usually gives torch's CUDA build, several GB larger than the one for the CPU. So the small
one is installed first; pip keeps it. ``--gpu`` (``make GPU=1``) leaves the choice to pip.

``make`` calls this before everything else. It runs on the system's Python before anything is installed: standard
library only, and no recent syntax, so that an old Python gets a sentence instead of a SyntaxError.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ((3, 11), (3, 12))


def fingerprint(root):
    """What an installation depends on: the pins, and the folder that ``-e .`` points to (a moved clone reinstalls)."""
    pins = (root / "requirements.txt").read_bytes()
    return hashlib.sha256(pins + str(root).encode()).hexdigest()


def stamp_file(root):
    """Written last, with the fingerprint inside: without it an installation counts as unfinished."""
    return root / ".venv" / "installed.sha256"


def is_ready(root):
    """True when .venv holds a finished installation of the present requirements.txt."""
    stamp = stamp_file(root)
    return stamp.is_file() and stamp.read_text().split()[:1] == [fingerprint(root)]


def torch_build(root):
    """The version of .venv's torch with its label, such as "2.13.0+cpu"; empty where there is none."""
    ask = "import importlib.metadata; print(importlib.metadata.version('torch'))"
    command = [str(root / ".venv" / "bin" / "python"), "-c", ask]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def missing_prerequisite(version=None, have_ensurepip=None):
    """One sentence that says why .venv cannot be created, or ``None``."""
    version = version or sys.version_info[:2]
    if have_ensurepip is None:
        have_ensurepip = importlib.util.find_spec("ensurepip") is not None
    found = ".".join(map(str, version))
    if version not in SUPPORTED:
        return f"python={found}: the course needs 3.11 or 3.12; name one with `make PYTHON=python3.11 course`"
    if not have_ensurepip:
        return f"python={found}: the venv module cannot install pip; run `sudo apt-get install python3-venv`"
    return None


def other_python():
    """The first of python3.11 and python3.12 on this system that can create .venv, or ``None``.

    A system may have two: Docker's image of Python 3.12 also holds Debian's python3.11, which cannot install pip.
    """
    ask = f"import ensurepip, sys; sys.exit(sys.version_info[:2] not in {SUPPORTED})"
    for version in SUPPORTED:
        program = shutil.which("python{}.{}".format(*version))
        if program and subprocess.run([program, "-c", ask], stderr=subprocess.DEVNULL).returncode == 0:
            return program
    return None


def install(root, gpu=False, python=sys.executable):
    """Create .venv where it is missing and install requirements.txt; the stamp is written only after success."""
    venv = root / ".venv"
    # An older stamp must not survive a half-finished installation of newer pins.
    stamp_file(root).unlink(missing_ok=True)
    if not (venv / "bin" / "pip").exists():
        print("set-up: creating .venv with " + python, flush=True)
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
    print("set-up: installing requirements.txt (a few minutes, once)", flush=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += [] if sys.stdout.isatty() else ["--quiet"]  # progress bars only where a person watches them
    torch = re.search(r"^torch==([\w.]+)", (root / "requirements.txt").read_text(), re.MULTILINE)
    if torch and gpu and torch_build(root).endswith("+cpu"):
        subprocess.run(pip + ["--force-reinstall", torch.group()], check=True, cwd=str(root))
        if torch_build(root).endswith("+cpu"):
            print("set-up: your package index offers torch's CPU build only", flush=True)
    elif torch and not gpu and sys.platform == "linux":
        install_cpu_build(root, pip, torch.group(1))
    subprocess.run(pip + ["-r", "requirements.txt"], check=True, cwd=str(root))
    stamp_file(root).write_text(fingerprint(root) + "\n")


def install_cpu_build(root, pip, version):
    """Install torch's CPU build, unless a torch of this version is there, whatever its build.

    Two ways, and neither needs an index's address: pip's own index may offer the build by its label, and uv knows
    where PyTorch publishes it. Where both fail, a sentence says that the large build follows.
    """
    python = pip[0]
    uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    ways = (
        [pip + ["torch==" + version + "+cpu"]],
        [pip + ["uv"], uv + ["--torch-backend", "cpu", "torch==" + version]],
    )
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": str(root)}
    for commands in ways:
        if torch_build(root).split("+")[0] == version:
            return
        # A way that fails is no error: the next one follows.
        all(subprocess.run(command, **silent).returncode == 0 for command in commands)
    if torch_build(root).split("+")[0] != version:
        print("set-up: torch's CPU build is not within reach; the one with CUDA follows, several GB more", flush=True)


def main(root=ROOT, gpu=False):
    """Exit code 0 when .venv is ready, 1 with one sentence otherwise."""
    if is_ready(root) and not (gpu and torch_build(root).endswith("+cpu")):
        return 0
    # An existing .venv has its own Python; only a new one depends on this one.
    problem = None if (root / ".venv" / "bin" / "pip").exists() else missing_prerequisite()
    python = sys.executable if problem is None else other_python()
    if python is not None:
        try:
            install(root, gpu, python)
            return 0
        except subprocess.CalledProcessError as error:
            problem = "`{}` failed with exit code {}; its message is above".format(
                " ".join(map(str, error.cmd)), error.returncode
            )
        except KeyboardInterrupt:
            problem = "interrupted; the next `make` goes on with the installation"
    print("set-up: " + problem, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(gpu="--gpu" in sys.argv[1:]))
