"""The guard that the lessons run under: what it must stop is stopped, what it must let pass passes."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import nbformat
import pytest


def run(code: str, environment: dict[str, str], **extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**environment, **extra}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import socket; socket.getaddrinfo('example.org', 443)",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "\"import socket; socket.create_connection(('192.0.2.1', 80), 1)\"], check=True)",
        "from huggingface_hub import HfApi; HfApi().model_info('gpt2')",
    ],
    ids=["connect", "lookup", "datagram", "urllib", "child", "hub"],
)
def test_outgoing_connections_fail(code, guarded_environment, tmp_path):
    log = tmp_path / "attempts.txt"
    done = run(code, guarded_environment, COURSE_GUARD_LOG=str(log))
    assert done.returncode != 0
    assert "must run without a network" in done.stderr
    assert "192.0.2.1" in log.read_text() or "example.org" in log.read_text() or "huggingface" in log.read_text()


def test_a_swallowed_attempt_is_recorded(guarded_environment, tmp_path):
    log = tmp_path / "attempts.txt"
    code = """
    import socket
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except Exception:
        pass
    """
    assert run(code, guarded_environment, COURSE_GUARD_LOG=str(log)).returncode == 0
    assert "192.0.2.1" in log.read_text()


def test_loopback_and_unix_sockets_pass(guarded_environment, tmp_path):
    code = f"""
    import socket
    server = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    unix = socket.socket(socket.AF_UNIX); unix.bind({str(tmp_path / "s")!r}); unix.listen()
    socket.socket(socket.AF_UNIX).connect({str(tmp_path / "s")!r})
    socket.getaddrinfo(socket.gethostname(), None)
    print("passed")
    """
    assert run(code, guarded_environment).stdout == "passed\n"


def test_asking_for_the_own_address_gets_the_usual_error(guarded_environment):
    code = """
    import socket
    try:
        socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 80))
    except OSError as error:
        print(error.errno)
    """
    assert run(code, guarded_environment).stdout == "101\n"


@pytest.mark.parametrize("library", ["transformers", "datasets", "accelerate", "evaluate", "peft"])
@pytest.mark.parametrize("stacklevel", [1, 2])
def test_announced_deprecations_raise_whoever_they_are_attributed_to(library, stacklevel, guarded_environment):
    code = f"""
    import sys, types, warnings
    module = types.ModuleType("{library}.somewhere")
    exec("import warnings\\ndef old(): warnings.warn('old is deprecated', FutureWarning, {stacklevel})", vars(module))
    warnings.simplefilter("ignore")
    module.old()
    """
    done = run(code, guarded_environment)
    assert done.returncode != 0 and "FutureWarning: old is deprecated" in done.stderr


def test_logged_deprecations_raise(guarded_environment):
    code = """
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.get_logger("transformers.somewhere").warning_once("`old` is deprecated and will be removed in v6")
    """
    done = run(code, guarded_environment)
    assert done.returncode != 0 and "`old` is deprecated" in done.stderr


def test_a_real_deprecated_argument_raises(guarded_environment):
    code = """
    import tempfile
    from transformers import TrainingArguments
    TrainingArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, gradient_checkpointing=True)
    """
    done = run(code, guarded_environment)
    assert done.returncode != 0 and "deprecated" in done.stderr, done.stderr


def test_other_warnings_and_imports_pass(guarded_environment):
    code = """
    import warnings, logging
    import accelerate, datasets, evaluate, peft, transformers
    from transformers import Trainer
    warnings.warn("mine", FutureWarning)
    logging.getLogger("mine").warning("deprecated")
    print("passed")
    """
    done = run(code, guarded_environment)
    assert done.stdout == "passed\n", done.stderr
    assert "<string>:5: FutureWarning: mine" in done.stderr


def lesson(code: str) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(code, execution_count=1)
    return nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "p"}})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import socket; socket.getaddrinfo('example.org', 443)", "must run without a network"),
        (
            "try:\n    __import__('socket').getaddrinfo('example.org', 443)\nexcept Exception:\n    pass",
            "tried to reach",
        ),
        (
            "from transformers.utils import logging\nlogging.get_logger('transformers.x').warning('deprecated')",
            "deprec",
        ),
        ("print('another output')", "mismatch 'stdout'|Unexpected output fields"),
        ("pass", None),
    ],
    ids=["network", "swallowed", "deprecation", "output", "clean"],
)
def test_nbval_runs_under_the_guard(code, message, tmp_path, pytestconfig):
    """The same pytest command as `make test`, on a lesson with a planted fault."""
    path = tmp_path / "01_planted.ipynb"
    nbformat.write(lesson(code), path)
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-rA"]
    command += ["--confcutdir", str(pytestconfig.rootpath), "-c", str(pytestconfig.rootpath / "pyproject.toml")]
    command += [f"--rootdir={pytestconfig.rootpath}", str(pytestconfig.rootpath / "tests/guard"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=pytestconfig.rootpath)
    if message is None:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "01_planted                 1 compared (0 with an output),  0 ignored: 100%" in done.stdout
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert any(part in done.stdout for part in message.split("|")), done.stdout
