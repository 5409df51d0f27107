"""One rank of ``Ranks``: waits for calls on its standard input, a line of JSON each, until that is closed."""

import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path

from course_utils.parallel.launched_rank import note
from course_utils.progress import report_rank


def main(path: list[str]) -> None:
    """Carry out calls ``{"file", "name", "arguments", "number"}``; the answers are files in the current folder."""
    sys.path[:] = path  # what the caller can import, its ranks can
    report_rank()
    for line in sys.stdin:
        call = json.loads(line)
        answer = Path(f"rank-{os.environ['RANK']}-{call['number']}.json")
        try:
            function = runpy.run_path(call["file"], run_name="ranks")[call["name"]]
            result = function(**call["arguments"])
            note(answer, {"result": result, "left_group": forget_accelerator()})
        except BaseException as error:
            place = error.__traceback__.tb_next  # from the function's own first line on
            text = "".join(traceback.format_exception(type(error), error, place)).rstrip()
            note(answer, {"error": text, "time": time.time()})


def forget_accelerator() -> bool:
    """The next call's ``Accelerator(...)`` gets the settings it asks for; True if the call has left the process group.

    Then these ranks are of no use: a new group at the same port may meet what is left of the old one.
    """
    state = sys.modules.get("accelerate.state")
    if state is None or not state.PartialState._shared_state:
        return False
    state.AcceleratorState._reset_state(False)
    state.GradientState._reset_state()
    return state.PartialState().use_distributed and not sys.modules["torch"].distributed.is_initialized()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
