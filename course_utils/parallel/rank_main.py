"""One rank of ``run_ranks``: ``python -m course_utils.parallel.rank_main call.json result.json``."""

import importlib
import json
import runpy
import sys
from pathlib import Path

from course_utils.progress import report_rank


def main(call_file: str, result_file: str) -> None:
    """Call the function that ``call_file`` names and write what it returns, complete or not at all."""
    call = json.loads(Path(call_file).read_text())
    sys.path[:] = call["path"]  # what the caller can import, its ranks can
    report_rank()
    where, _, name = call["function"].rpartition(":")
    if where.endswith(".py"):
        function = runpy.run_path(where, run_name="ranks")[name]
    else:
        function = getattr(importlib.import_module(where), name)
    answer = json.dumps(function(**call["arguments"]))
    leave_group()
    unfinished = Path(f"{result_file}.tmp")
    unfinished.write_text(answer)
    unfinished.replace(result_file)


def leave_group() -> None:
    """Leave torch's process group, if the function joined one: its threads would outlive it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
