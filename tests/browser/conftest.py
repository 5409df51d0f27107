"""Browser tests: a headless Chromium of their own per module, and a JupyterLab server on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from course_utils.authoring.decks import browser as decks_browser
from course_utils.parallel.processes import free_ports

TOKEN = "browser-tests"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator:
    """A playwright browser context; closed with the module, because its event loop would disturb asyncio tests."""
    with decks_browser.chromium() as context:
        yield context


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab server: its ``url`` and the ``root`` folder it serves."""

    url: str
    root: Path

    def at(self, path: str) -> str:
        """The address of ``path``, such as ``api/kernels`` or ``lab/tree/NOTEBOOK``, with the token."""
        return f"{self.url}/{path}?token={TOKEN}"

    def rise(self, notebook: str) -> str:
        """The address that presents ``notebook``, a path below ``root``."""
        return self.at(f"rise/{notebook}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """JupyterLab on loopback with settings of its own, serving an empty folder."""
    home, root = tmp_path_factory.mktemp("lab-home"), tmp_path_factory.mktemp("lab-root")
    (port,) = free_ports(1)
    settings = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    settings["JUPYTERLAB_SETTINGS_DIR"] = settings["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "lab")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", server, home / "log")
        yield Lab(f"http://127.0.0.1:{port}", root)
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def wait_until_up(url: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    """Return when ``url`` answers; fail with the server's log when it stops or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not come up:\n{log.read_text()[-2000:]}")
