"""One rank under a real launcher: ``<launcher> launched_rank.py program.py arguments...`` (started by ``launched``).

Runs the program as ``__main__`` with its output in ``rank-<r>.log`` and leaves notes beside it: that the rank began,
how it ended, and why it failed. SIGUSR1 makes it write the stack of every thread into its log.

Only the standard library is imported: what the program needs, it imports itself.
"""

import faulthandler
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

FOLDER = "COURSE_RANKS_FOLDER"  # names the folder of the notes; also marks every process of one run


def main(program: str, arguments: list[str]) -> None:
    """Run ``program``; its exception is noted with the time, so that the first one is known, and goes on."""
    folder, rank = Path(os.environ[FOLDER]), int(os.environ["RANK"])
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):  # the descriptors, so that output of libraries written in C++ comes along
        os.dup2(log, stream)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    (folder / f"rank-{rank}.failed").unlink(missing_ok=True)  # of an attempt before a restart
    note(folder / f"rank-{rank}.began", {"pid": os.getpid()})
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).resolve().parent)  # as if the program had been started itself
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            note(folder / f"rank-{rank}.done", {"code": 0})
        else:
            is_exit = isinstance(error, SystemExit)  # what is wrong was printed before
            why = f"it ended with exit code {error.code}" if is_exit else _traceback(error)
            note(folder / f"rank-{rank}.failed", {"time": time.time(), "why": why, "show_log": is_exit})
        raise
    note(folder / f"rank-{rank}.done", {"code": 0})


def _traceback(error: BaseException) -> str:
    """From the program's own first line on: how it was started is of no interest."""
    place = error.__traceback__
    while place and (place.tb_frame.f_code.co_filename == __file__ or "runpy" in place.tb_frame.f_code.co_filename):
        place = place.tb_next
    return "".join(traceback.format_exception(type(error), error, place))


def note(file: Path, content: object) -> None:
    """Write ``content`` as JSON, complete or not at all."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
