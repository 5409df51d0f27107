"""While a cell runs in JupyterLab: one line below it that says how far it is, gone when the cell ends."""

from __future__ import annotations

import contextvars
import os
import tempfile
import threading
import time
from pathlib import Path

from course_utils import progress

PATIENCE = 2.0  # seconds until a cell is taken for a long one
EVERY = 1.0  # seconds between two lines


def show_progress_of_cells() -> None:
    """From the next cell on; does nothing where no person looks (``progress.is_live``), and only once in a kernel."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or not progress.is_live() or getattr(shell, "course_live", None):
        return
    folder = tempfile.TemporaryDirectory(prefix="course-progress-")
    os.environ[progress.RANKS_FOLDER] = folder.name
    shell.course_live = live = LiveLine(folder)
    shell.events.register("pre_run_cell", live.begin)
    shell.events.register("post_run_cell", live.end)


class LiveLine:
    """A thread beside the running cell; ``display`` under an identity, then updates, then an update that is empty.

    ``clear_output`` would take away what the cell printed. What stays in the file is an output without content.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory):
        self.folder = folder  # of the ranks' notes; removed with the kernel
        self._stop, self._thread = threading.Event(), None

    def begin(self, *_) -> None:
        self._stop = threading.Event()
        # The context holds which cell runs: where the line belongs.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._draw, progress.listen(), self._stop), daemon=True)
        self._thread.start()

    def end(self, *_) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join(5)
            self._thread = None

    def _draw(self, now: progress.Progress, stop: threading.Event) -> None:
        from IPython.display import display

        if stop.wait(PATIENCE):
            return
        since, handle = time.time() - PATIENCE, None
        while True:
            ranks = progress.steps_of_ranks(Path(self.folder.name), since)
            data = {"text/plain": now.line(time.monotonic(), ranks)}
            if handle is None:
                handle = display(data, raw=True, display_id=True)
            else:
                handle.update(data, raw=True)
            if stop.wait(EVERY):
                handle.update({}, raw=True)
                return
