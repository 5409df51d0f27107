"""How every recipe refuses: one sentence on stderr, exit code 2."""

import pytest


def refusal(capsys, call):
    """The one sentence with which ``call`` ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return sentence
