"""torch.compile is offered where it can work: Debian's g++ comes without Python's headers."""

import sysconfig

import pytest

from course_utils.training.optim import CompiledAdamW, compiler_available


def test_a_compiler_without_pythons_headers_is_none(tmp_path, monkeypatch):
    """Seen on a fresh Debian with g++: the lessons went on to compile, and g++ said that there is no Python.h."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name, *_: str(tmp_path))
    assert not compiler_available()
    with pytest.raises(RuntimeError, match="install g\\+\\+ and python3-dev"):
        CompiledAdamW([])
