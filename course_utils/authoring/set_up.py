"""Create .venv and install requirements.txt into it, once: ``python3 course_utils/teach/set_up.py``.

``make`` calls this before everything else. It runs on the system's Python before anything is installed: standard
library only, and no recent syntax, so that an old Python gets a sentence instead of a SyntaxError.
"""

import hashlib
import importlib.util
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
    return stamp.is_file() and stamp.read_text().strip() == fingerprint(root)


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


def install(root):
    """Create .venv where it is missing and install requirements.txt; the stamp is written only after success."""
    venv = root / ".venv"
    # An older stamp must not survive a half-finished installation of newer pins.
    stamp_file(root).unlink(missing_ok=True)
    if not (venv / "bin" / "pip").exists():
        print("set-up: creating .venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    print("set-up: installing requirements.txt (a few minutes, once)", flush=True)
    pip = [
        str(venv / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-r",
        "requirements.txt",
    ]
    # Progress bars only where a person watches them.
    subprocess.run(pip + ([] if sys.stdout.isatty() else ["--quiet"]), check=True, cwd=str(root))
    stamp_file(root).write_text(fingerprint(root) + "\n")


def main(root=ROOT):
    """Exit code 0 when .venv is ready, 1 with one sentence otherwise."""
    if is_ready(root):
        return 0
    # An existing .venv has its own Python; only a new one depends on this one.
    problem = None if (root / ".venv" / "bin" / "pip").exists() else missing_prerequisite()
    if problem is None:
        try:
            install(root)
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
    sys.exit(main())
