"""How gradients are reduced where a strategy leaves it open: how often, and in which number type (lesson 15)."""

from __future__ import annotations

import json
from typing import NamedTuple

from course_utils.launch.spec import Spec
from course_utils.launch.spec.arguments import value_of


class Reduction(NamedTuple):
    """What changes memory and traffic of DDP and FSDP under accumulation.

    ``each_batch``: gradients are reduced in every micro-batch, not once per step: the Trainer's
    ``accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}``. DeepSpeed decides for itself.
    ``fp32``: FSDP adds up and reduces gradients in fp32. accelerate 1.15 sets ``reduce_dtype`` to the type of the
    computation (``FullyShardedDataParallelPlugin.set_mixed_precision``), so bf16 unless a plugin is built with
    ``MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)``.
    """

    each_batch: bool = False
    fp32: bool = False


def asked(spec: Spec) -> Reduction:
    """What the program's own arguments ask for: ``--accelerator_config`` as JSON. A file's name is not opened."""
    text = value_of(spec.arguments, "--accelerator_config") or ""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else {}
    except ValueError:  # the program will refuse it
        found = {}
    settings = found.get("gradient_accumulation_kwargs")
    return Reduction(each_batch=isinstance(settings, dict) and settings.get("sync_each_batch") is True)
