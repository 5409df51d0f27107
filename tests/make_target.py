"""What a target of the Makefile would run."""

from __future__ import annotations

import os
import subprocess

from course_utils.authoring.build import ROOT


def commands(*arguments: str) -> str:
    """The command lines `make -n` prints. The tests run under `make test` themselves: what that call
    hands down (its level, its variables such as ONLY) is taken away, or it would show here."""
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", "-n", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outside)
    assert done.returncode == 0, done.stderr
    return done.stdout
