"""A trace is read as it was written; busy time and gaps add up."""

import json

import pytest
import torch
from torch.profiler import record_function

from course_utils.training import profile
from course_utils.training.profile import Event


def work():
    with record_function("products"):
        a = torch.ones(64, 64)
        for _ in range(3):
            a = a @ a / 64
    with record_function("sums"):
        a.sum()


def test_a_trace_of_real_work(tmp_path, capfd):
    trace = profile.record(work, tmp_path / "step.json")
    assert [span.name for span in trace.spans()] == ["products", "sums"]
    calls = {one.name: one.calls for one in trace.operators}
    assert calls["aten::mm"] == 3 and calls["aten::sum"] == 1 and "products" not in calls
    assert [one.seconds for one in trace.operators] == sorted((o.seconds for o in trace.operators), reverse=True)
    products = trace.spans()[0]
    inside = [e for e in trace.events if e.name == "aten::mm"]
    assert len(inside) == 3 and all(products.start <= e.start <= e.end <= products.end + 1e-6 for e in inside)
    assert json.loads(trace.file.read_text())["traceEvents"]  # what Perfetto opens
    assert capfd.readouterr().err == ""


def test_busy_time_counts_nested_operators_once():
    events = [
        Event("outer", "operator", 1.0, 4.0),
        Event("inner", "operator", 2.0, 1.0),
        Event("span", "span", 0.0, 10.0),
        Event("late", "operator", 7.0, 5.0),
    ]
    assert profile.busy_seconds(events, 0.0, 10.0) == 7.0
    assert profile.gaps(events, 0.0, 10.0) == [(0.0, 1.0), (5.0, 7.0)]
    assert profile.gaps(events, 0.0, 10.0, shortest=1.5) == [(5.0, 7.0)]
    assert profile.gaps([], 0.0, 2.0) == [(0.0, 2.0)]


def test_an_empty_trace_and_a_wrong_warmup(tmp_path):
    file = tmp_path / "empty.json"
    file.write_text('{"traceEvents": []}')
    assert profile.read(file) == []
    with pytest.raises(ValueError, match="warmup=-1"):
        profile.record(work, file, warmup=-1)
