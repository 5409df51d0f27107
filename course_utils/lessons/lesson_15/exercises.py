"""Exercises 1 to 3 of lesson 15: what a step waits for, a plan for a 7B model, every machine's command."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

from course_utils.lessons.lesson_15 import exercises_config, exercises_own, exercises_run  # noqa: F401 - 15.4 to 15.9
from course_utils.lessons.lesson_15.fast_plans import best_tokens_per_second, slow_because
from course_utils.teach.exercise import Wrong, ask, exercise

# 15.1: 3 micro-batches, 0.4 s forward and 0.8 s backward each; adding up all gradients takes 1.0 s, gathering 0.5 s.
WAITS = {"once": 0.2, "each batch": 0.6, "one micro-batch": 0.0, "once, then gather": 0.7}


@exercise(
    "15.1",
    "seconds of waiting",
    hints=(
        "Draw two lanes as in the figure of section 3. When is a micro-batch's gradient ready, and what is computed "
        "from then on?",
        "Take the backward pass behind which the sum can hide, subtract its seconds from those of the sum, and count "
        "how often that happens in a step. What hides behind nothing is waited for in full.",
    ),
    kind="predict",
)
def check_waits(answer: Any) -> None:
    """``answer`` maps the four situations of ``WAITS`` to seconds."""
    given = "3 micro-batches, 0.4 s forward and 0.8 s backward each; a sum of all gradients takes 1.0 s"
    if not isinstance(answer, dict) or WAITS.keys() - answer.keys():
        names = ", ".join(map(repr, WAITS))
        raise Wrong(given=given, expected=f"seconds under {names}", got=repr(answer)[:200], hint="Give four numbers.")
    backward = "Gradients are complete in the last backward pass only: what came before cannot hide their sum."
    hints = {
        ("once", 0.0): backward,
        ("once", 1.0): "Part of the sum hides: buckets are sent while the last backward pass still computes.",
        ("once", 0.6): "It is one sum in a step, not one per micro-batch.",
        ("each batch", 0.2): "There is a sum in every micro-batch, and each sticks out behind its own backward pass.",
        ("each batch", 0.0): backward,
        ("each batch", 3.0): "Each sum hides in part behind its backward pass.",
        ("one micro-batch", 0.2): "One micro-batch of three times the sequences: its backward pass takes longer.",
        ("one micro-batch", 0.6): "One micro-batch of three times the sequences: its backward pass takes longer.",
        ("once, then gather", 0.2): "Weights are gathered after the update, when nothing is computed.",
        ("once, then gather", 0.5): "The sum sticks out as before; the gathering comes on top.",
    }
    for name, seconds in WAITS.items():
        got = answer[name]
        is_number = isinstance(got, int | float) and not isinstance(got, bool)
        if not is_number or abs(got - seconds) > 0.01:
            usual = "What is computed from the moment on at which this can be sent?"
            hint = hints.get((name, round(got, 2)) if is_number else None, usual)
            raise Wrong(given=f"{given}; {name}", expected="seconds of waiting", got=repr(got), hint=hint)


# 15.2: the run, and what the learner decides
SEVEN_B = {
    "model": "meta-llama/Llama-2-7b-hf",
    "nodes": 2,
    "gpus_per_node": 8,
    "gpu": "A100-80GB",
    "network": 6.25,
    "sequence_length": 4096,
    "global_batch": 128,
    "precision": "bf16",
}
CHOICES = ("strategy", "replicas", "offload", "reshard_after_forward", "micro_batch", "checkpointing")
NEAR_ENOUGH = 0.97  # of the best tokens/s: below that the planner's assumptions do not tell two plans apart


@exercise(
    "15.2",
    "a 7B model on two machines with a slow network",
    hints=(
        "Ask the planner: strategies(Spec(**SEVEN_B)) lists what fits, the fastest first. What does the best of them "
        "still wait for, and over which link?",
        "Print plan(...).speed.exposed and .total for a few micro-batches, with and without replicas=2 and "
        "checkpointing. Memory that is free can be spent on fewer, longer micro-batches.",
    ),
    kind="vary",
)
def check_seven_b(answer: Callable[[], dict[str, Any]]) -> None:
    """``answer()`` returns fields of a spec out of ``CHOICES``."""
    from course_utils.launch import Spec, SpecError
    from course_utils.launch.planner.plan import plan
    from course_utils.launch.planner.report import verdict

    given = "Llama-2-7b on 2 x 8 A100-80GB over 6.25 GB/s, 128 sequences of 4,096 tokens a step"
    expected = "fields of a spec that fits and is fast"
    fields = ask(answer, given=given, expected=expected)
    if not isinstance(fields, dict) or set(fields) - set(CHOICES):
        wanted = f"a dict with some of {CHOICES}"
        raise Wrong(given=given, expected=wanted, got=repr(fields)[:200], hint="The rest of the run is fixed.")
    try:
        found = plan(Spec(**SEVEN_B | fields))
    except SpecError as error:
        raise Wrong(given=given, expected=expected, got=str(error), hint="The spec itself is refused.") from None
    if not found.fits:
        hint = "It does not fit: the verdict says what may."
        raise Wrong(given=given, expected=expected, got=verdict(found), hint=hint)
    best = best_tokens_per_second(SEVEN_B)
    if found.speed.tokens_per_second < NEAR_ENOUGH * best:
        wanted = f"at least {NEAR_ENOUGH:.0%} of {best:,.0f} tokens/s"
        got = f"{found.speed.tokens_per_second:,.0f} tokens/s, {found.speed.exposed:.1f} s of waiting in each step"
        raise Wrong(given=given, expected=wanted, got=got, hint=slow_because(found))


HOSTS = ("gpu-a", "gpu-b", "gpu-c")
CALLS = (  # hosts, GPUs, this machine's name, port
    (HOSTS, 8, "gpu-c", 29500),
    (HOSTS, 4, "gpu-a.cluster.local", 29511),
    (("gpu-10", "gpu-1"), 8, "gpu-1.cluster.local", 29500),
    (("gpu-b",), 8, "gpu-b", 29500),
)


@exercise(
    "15.3",
    "the same function on every machine",
    hints=(
        "Which one am I? The scheduler's list says it, once the domain is cut off. Everything else is the same on each "
        "machine.",
        "Five options for several machines: how many, how many processes on this one, which one this is, and the "
        "address and the port of machine 0. For one machine two are enough. `torchrun --help` spells them.",
    ),
)
def check_command(answer: Callable[[tuple[str, ...], int, str, int], list[str]]) -> None:
    """``answer(hosts, gpus, me, port)`` returns the words of this machine's torchrun command, up to its program."""
    for hosts, gpus, me, port in CALLS:
        given = f"hosts {', '.join(hosts)}; {gpus} GPUs each; this is {me}; port {port}"
        words = ask(answer, hosts, gpus, me, port, given=given, expected="['torchrun', ...]")
        _check_one_command(words, given, hosts, gpus, me, port)


def _check_one_command(words: Any, given: str, hosts: tuple[str, ...], gpus: int, me: str, port: int) -> None:
    if not isinstance(words, list) or words[:1] != ["torchrun"] or not all(isinstance(word, str) for word in words):
        raise Wrong(
            given=given,
            expected="['torchrun', ...]: a list of words",
            got=repr(words)[:200],
            hint="One word per list entry, numbers as text: '--nnodes=3'.",
        )
    config, standalone = _elastic(words[1:], given)
    seen = {
        "machines": (len(hosts), config.max_nodes),
        "processes per machine": (gpus, config.nproc_per_node),
        "any free port": (len(hosts) == 1, standalone),
    }
    if len(hosts) > 1:
        seen |= {
            "rendezvous": ("static", config.rdzv_backend),
            "rank of this machine": (hosts.index(me.split(".")[0]), config.rdzv_configs.get("rank")),
            "meeting point": (f"{hosts[0]}:{port}", config.rdzv_endpoint),
        }
    hints = {
        "machines": "--nnodes is the number of machines.",
        "processes per machine": "--nproc-per-node counts one machine's processes, not all of them.",
        "any free port": "--standalone picks a free port: on one machine, and only there.",
        "rendezvous": "Fixed ranks need the static rendezvous: no --rdzv-backend.",
        "rank of this machine": "--node-rank is this machine's place in hosts; a name may carry its domain.",
        "meeting point": "All machines meet at machine 0, hosts[0]: that is --master-addr and --master-port.",
    }
    for what, (asked, resolved) in seen.items():
        if asked != resolved:
            raise Wrong(given=given, expected=f"{what}: {asked!r}", got=repr(resolved), hint=hints[what])


def _elastic(words: list[str], given: str) -> tuple[Any, bool]:
    """What torchrun makes of the words, a program appended, and whether ``--standalone`` is among them."""
    from torch.distributed.run import config_from_args, parse_args

    complaint = io.StringIO()
    quiet = mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"})  # unset, torchrun sets it and says so
    try:
        with quiet, contextlib.redirect_stderr(complaint):
            args = parse_args([*words, "program.py"])
            return config_from_args(args)[0], bool(args.standalone)
    except SystemExit:
        text = complaint.getvalue().strip().splitlines()[-1]
        raise Wrong(
            given=given, expected="words that torchrun knows", got=text, hint="`torchrun --help` lists its options."
        ) from None
