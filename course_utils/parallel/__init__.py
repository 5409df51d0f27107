"""Several processes: start local ranks, rehearse on the CPU, see what really ran. Importing this costs nothing."""

from pathlib import Path

from course_utils.lazy import attributes
from course_utils.parallel.launched import report, run_launched
from course_utils.parallel.local_ranks import RanksFailed, run_ranks
from course_utils.parallel.rank_pool import Ranks, shared_ranks

_LATER = {"WriteRun": "what_ran", "describe": "what_ran"}  # transformers: seconds
__getattr__ = attributes(__name__, _LATER)
__all__ = [
    "Ranks",
    "RanksFailed",
    "WriteRun",
    "cpu_site_folder",
    "describe",
    "report",
    "run_launched",
    "run_ranks",
    "shared_ranks",
]


def cpu_site_folder() -> Path:
    """The folder to put first on PYTHONPATH so that an unchanged program shards on CPU processes.

    See ``cpu_site/sitecustomize.py``. A ``sitecustomize`` that is on the path already is run as well.
    """
    return Path(__file__).resolve().parent / "cpu_site"
