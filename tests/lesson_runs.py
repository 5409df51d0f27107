"""What happens around nbval: each lesson's kernel runs under the guard, and the run ends with a count per lesson."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

GUARD = Path(__file__).parent / "guard"
LOWEST_SHARE = 0.60  # of a lesson's code cells are compared with their committed output


def guarded(environment: dict[str, str]) -> dict[str, str]:
    """A copy of ``environment`` in which every Python that starts blocks the network and raises on deprecations."""
    rest = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != GUARD]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(GUARD), *rest])}


class LessonRuns:
    """Counts compared and ignored cells, and starts the lessons' kernels under the guard."""

    def __init__(self) -> None:
        self.compared: dict[str, int] = defaultdict(int)
        self.with_output: dict[str, int] = defaultdict(int)
        self.ignored: dict[str, int] = defaultdict(int)
        self.log = Path(tempfile.mkdtemp(prefix="course-guard-")) / "attempts.txt"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # nbval starts a lesson's kernel in the set-up of its first cell, with this process's environment.
        if isinstance(item, IPyNbCell):
            os.environ.update(guarded(dict(os.environ)), COURSE_GUARD_LOG=str(self.log))
            kind = "ignored" if not item.options["check"] or item.options["skip"] else "compared"
            item.user_properties.append(("nbval", [item.path.stem, kind, bool(item.cell.outputs)]))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if isinstance(item, IPyNbCell):
            os.environ.pop("COURSE_GUARD_LOG", None)
            os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(str(GUARD))[2].lstrip(os.pathsep)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        result = yield
        if isinstance(item, IPyNbCell) and self.log.exists():
            attempts = self.log.read_text()
            self.log.unlink()
            pytest.fail(f"cell {item.cell_num} tried to reach the network:\n{attempts}", pytrace=False)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # With xdist this runs in the controller, which sees every worker's reports.
        if report.when != "call":
            return
        for lesson, kind, has_output in (value for key, value in report.user_properties if key == "nbval"):
            (self.compared if kind == "compared" else self.ignored)[lesson] += 1
            self.with_output[lesson] += kind == "compared" and has_output

    def shares(self) -> dict[str, float]:
        """Compared share of the code cells of each lesson that ran."""
        lessons = sorted({*self.compared, *self.ignored})
        return {name: self.compared[name] / (self.compared[name] + self.ignored[name]) for name in lessons}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == 0 and any(share < LOWEST_SHARE for share in self.shares().values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        shares = self.shares()
        if not shares:
            return
        terminalreporter.section("code cells compared with their committed outputs (nbval)")
        for lesson, share in shares.items():
            terminalreporter.write_line(
                f"{lesson:<24} {self.compared[lesson]:>3} compared ({self.with_output[lesson]} with an output), "
                f"{self.ignored[lesson]:>2} ignored: {share:.0%}"
                + ("" if share >= LOWEST_SHARE else f", FAILED: below {LOWEST_SHARE:.0%}")
            )
