"""A lesson's opening call: validate its parameters, seed everything, silence what would make noise in outputs."""

from __future__ import annotations

import ast
import gc
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from course_utils.hub import check_source
from course_utils.teach.live import show_progress_of_cells

# NumPy's seeds end at 2**32 - 1, and a lesson also uses the seeds above its own: the second run has seed + 1.
HIGHEST_SEED = 2**32 - 1001


def start(
    *,
    source: str = "local",
    max_steps: int = 1,
    seed: int = 0,
    at_most: Mapping[str, int] | None = None,
    **sizes: int,
) -> None:
    """Check a lesson's parameters before any work starts, seed every generator and quieten the libraries.

    Args:
        source: where data and models come from, ``"local"`` or ``"hub"``.
        max_steps: optimizer steps of the lesson's main run, >= 1.
        seed: seed of Python, NumPy and torch, 0 <= seed <= ``HIGHEST_SEED``.
        at_most: the largest value of those parameters that would not fit the memory, or the data, otherwise.
        **sizes: any further whole-number parameter of the lesson, each >= 1.

    Raises:
        TypeError, ValueError: one sentence naming the parameter, its value and what is allowed; also for a parameter
            given to papermill that the lesson does not have.
    """
    _refuse_unknown_parameters()
    check_source(source)
    for name, value in {"max_steps": max_steps, **sizes}.items():
        _whole_number(name, value, lowest=1, highest=(at_most or {}).get(name, 10**9))
    _whole_number("seed", seed, lowest=0, highest=HIGHEST_SEED)
    quieten()
    seed_everything(seed)
    # The Trainer collects garbage at the end of every train(), which visits every object of every library: 0.3 s.
    # What is imported by now stays anyway; frozen, it is not visited (docs.python.org/3/library/gc.html#gc.freeze).
    gc.freeze()
    show_progress_of_cells()


def _refuse_unknown_parameters() -> None:
    """What papermill was given beyond the lesson's parameters, it puts into a cell of its own and nobody would read."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    known: list[str] = []
    for cell in shell.user_ns.get("In", ()) if shell else ():
        names = _assigned(cell)
        if cell.startswith("# Parameters\n") and known:
            if unknown := sorted(set(names) - set(known)):
                raise ValueError(
                    f"{unknown[0]}={shell.user_ns.get(unknown[0])!r} is no parameter of this lesson; "
                    f"allowed: {', '.join(known)}"
                )
            return
        known += names


def _assigned(code: str) -> list[str]:
    """The names to which a cell's lines assign."""
    try:
        lines = ast.parse(code).body
    except SyntaxError:  # a magic
        return []
    targets = [target for line in lines if isinstance(line, ast.Assign) for target in line.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _whole_number(name: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; allowed: a whole number >= {lowest}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name}={value} is out of range; allowed: a whole number from {lowest} to {highest}")


def quieten() -> None:
    """Keep progress bars and informational logging out of a lesson's outputs; errors still show."""
    # OpenMP threads that wait by spinning steal the cores from every other program: steps of 0.1 s become > 1 s.
    # Threads that sleep at once make the steps of a small model much longer. So a thread looks 1000 times, then sleeps
    # (bench/bench_threads.py; the second variable is known to GNU's runtime only).
    if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # DeepSpeed, which accelerate imports when it is installed, prints a dated line to stdout where there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # DataLoader(pin_memory=True) warns on a machine without an accelerator, where there is nothing to do about it.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (transformers.set_seed)."""
    from transformers import set_seed

    set_seed(seed)


def show_source(obj: Callable | type) -> None:
    """Display a helper's source, highlighted, where a lesson speaks of it."""
    from IPython.display import Code, display

    display(Code(inspect.getsource(obj), language="python"))
