"""What the checks of files and the explanation of a stranger's share."""

import logging
import warnings
from pathlib import Path

from course_utils import launch
from course_utils.launch.check.rows import quiet


def test_tools_are_quiet_and_afterwards_heard_again(caplog, recwarn):
    before = logging.root.manager.disable
    logger = logging.getLogger("a tool")
    with quiet():
        logger.error("no GPU here")
        warnings.warn("will go away", FutureWarning, stacklevel=1)
    assert not caplog.records and not recwarn.list and logging.root.manager.disable == before
    logger.warning("heard")
    assert [record.getMessage() for record in caplog.records] == ["heard"]


def test_one_function_quietens_them():
    files = Path(launch.__file__).parent.rglob("*.py")
    assert [path.name for path in files if "logging.disable(" in path.read_text()] == ["rows.py"]
