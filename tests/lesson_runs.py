"""What happens around the lessons of a test run: nbval's kernels are guarded, and every execution is counted.

A lesson takes minutes, and there will be fifteen: each runs once whole (nbval) and once short
(``tests.headless.papermill``), lesson 01 once more in a browser. Each of these three doors calls ``record_execution``,
and a session in which a lesson ran more often fails.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

GUARD = Path(__file__).parent / "guard"
LOWEST_SHARE = 0.60  # of a lesson's code cells are compared with their committed output
EXECUTION = "lesson execution"  # name of the user property: with xdist the controller sees every worker's
KINDS = ("whole", "short", "browser", "stopped")  # stopped: by a wrong parameter or for want of a network, at once


def guarded(environment: dict[str, str]) -> dict[str, str]:
    """A copy of ``environment`` in which every Python that starts blocks the network and raises on deprecations."""
    rest = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != GUARD]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(GUARD), *rest])}


def record_execution(record: Callable[[str, object], None], lesson: Path, kind: str) -> None:
    """Count one start of ``lesson``; ``record`` is pytest's fixture ``record_property``."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(KINDS)}")
    record(EXECUTION, [lesson.stem, kind])


def too_many(counts: Counter[tuple[str, str]]) -> list[str]:
    """What a run with these executions, ``(lesson, kind)``, wastes, a sentence each."""
    found = []
    for (lesson, kind), count in sorted(counts.items()):
        if count > 1 and kind != "stopped":
            found.append(f"{lesson} was executed {count} times ({kind}); allowed: once")
        if kind in ("browser", "stopped") and not lesson.startswith("01_"):
            found.append(f"{lesson} was executed ({kind}); allowed: lesson 01 only")
    return found


def fail_session(session: pytest.Session, name: str, sentence: str) -> None:
    """Let the whole session fail, as if a last test called ``name`` had; pytest's closing line counts it."""
    if hasattr(session.config, "workerinput"):
        return  # of xdist's processes only the controller has seen every report
    report = pytest.TestReport(name, (name, None, name), {}, "failed", sentence, "call")
    session.config.hook.pytest_runtest_logreport(report=report)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


class LessonRuns:
    """Counts compared and ignored cells, and starts the lessons' kernels under the guard."""

    def __init__(self) -> None:
        self.compared: dict[str, int] = defaultdict(int)
        self.with_output: dict[str, int] = defaultdict(int)
        self.ignored: dict[str, int] = defaultdict(int)
        self.folder = tempfile.TemporaryDirectory(prefix="course-guard-")
        self.log = Path(self.folder.name) / "attempts.txt"

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

    def pytest_unconfigure(self) -> None:
        self.folder.cleanup()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for lesson, share in self.shares().items():
            if share < LOWEST_SHARE:
                fail_session(session, lesson, f"{share:.0%} of its cells are compared; allowed: {LOWEST_SHARE:.0%}")

    def pytest_terminal_summary(self, terminalreporter) -> None:
        shares = self.shares()
        if not shares:
            return
        terminalreporter.write_sep("=", "code cells compared with their committed outputs (nbval)")
        for lesson, share in shares.items():
            terminalreporter.write_line(
                f"{lesson:<24} {self.compared[lesson]:>3} compared ({self.with_output[lesson]} with an output), "
                f"{self.ignored[lesson]:>2} ignored: {share:.0%}"
            )


class Executions:
    """Counts how often each lesson was started in this session, whoever started it."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        # A kernel that is not there yet, or no longer, is about to be started.
        if isinstance(item, IPyNbCell) and not (item.parent.kernel and item.parent.kernel.is_alive()):
            record_execution(lambda *entry: item.user_properties.append(entry), item.path, "whole")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":  # the last of a test's reports has all that was recorded
            self.counts.update(tuple(value) for key, value in report.user_properties if key == EXECUTION)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for sentence in too_many(self.counts):
            fail_session(session, "executions per lesson", sentence)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self.counts:
            return
        terminalreporter.write_sep("=", "executions per lesson")
        terminalreporter.write_line(f"{'':<24}" + "".join(f"{kind:>9}" for kind in KINDS))
        for lesson in sorted({lesson for lesson, _ in self.counts}):
            numbers = "".join(f"{self.counts[lesson, kind] or '-':>9}" for kind in KINDS)
            terminalreporter.write_line(f"{lesson:<24}{numbers}")
