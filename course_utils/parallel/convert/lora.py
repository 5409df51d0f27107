"""LoRA adapters in a sharded checkpoint: which tensors are whose, the adapter alone, or added to its base (lesson 12).

A checkpoint of a PEFT model holds either the adapter only (Trainer; DeepSpeed with ``exclude_frozen_parameters``) or
the base beside it under PEFT's names:

    base_model.model.<module>.lora_A[.default].weight    (r, in)     lora_B: (out, r)
    base_model.model.<module>.base_layer.weight          (out, in)   frozen
    base_model.model.<module>.modules_to_save.default.weight         trained whole (a new head)

Merged: ``W + s * B @ A``, with ``s = lora_alpha / r`` (Hu et al. 2021, arXiv:2106.09685, section 4.1), or
``lora_alpha / sqrt(r)`` with ``use_rslora``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_utils.models.peft_names import new_name
from course_utils.parallel.convert.check import ConversionError, Layout, Stored, check_fit, unwrapped

if TYPE_CHECKING:
    from peft import LoraConfig

ROOT = "base_model.model."


def has_adapter(names: Any) -> bool:
    """Whether these are names of a PEFT model."""
    return any(".lora_" in name for name in names)


class Adapter:
    """The adapter's tensors and, where the checkpoint has them, the frozen base's.

    Args:
        stored: the checkpoint.
        config: PEFT's settings of the adapter.
        layout, model: of the base model; ``model`` lies on the "meta" device and gets adapters here.

    Raises:
        ConversionError: several adapters, or names and shapes that do not fit ``config``.
    """

    def __init__(self, stored: Stored, config: LoraConfig, layout: Layout, model: torch.nn.Module, place: Any):
        from peft import get_peft_model, get_peft_model_state_dict

        self.stored, self.config, self.layout, self.place = stored, config, layout, place
        self.adapter: dict[str, str] = {}  # PEFT's name in a file -> name in the checkpoint
        base: dict[str, str] = {}
        called: set[str] = set()
        names = {_from_root(unwrapped(name)): name for name in stored.shapes}
        whole = any(".base_layer." in name for name in names)
        for name, key in names.items():
            if found := re.fullmatch(r"(.+\.lora_\w+?)(?:\.(\w+))?(\.weight|\.bias)", name) or re.fullmatch(
                r"(.+\.lora_embedding_[AB])(?:\.(\w+))?()", name
            ):
                called |= {found[2]} - {None}
                self.adapter[ROOT + found[1] + found[3]] = key
            elif found := re.fullmatch(r"(.+)\.modules_to_save\.(\w+)\.(.+)", name):
                called.add(found[2])
                self.adapter[f"{ROOT}{found[1]}.{found[3]}"] = key
            elif whole:
                base[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = key
            else:
                self.adapter[ROOT + name] = key
        if len(called) > 1:
            raise ConversionError(f"{place} holds adapters {', '.join(sorted(called))}; allowed: one")
        with torch.device("meta"), new_name():
            wanted = get_peft_model_state_dict(get_peft_model(model, config))
        shapes = {name: value.shape for name, value in wanted.items()}
        check_fit(
            {name: stored.shapes[key] for name, key in self.adapter.items()},
            Layout(f"this LoRA of {layout.owner}", shapes, {}),
            place,
        )
        self.base = base  # the model's name -> name in the checkpoint; empty: the checkpoint holds the adapter only

    def merged(
        self, base: Stored, base_names: Mapping[str, str]
    ) -> tuple[dict[str, torch.dtype], Callable[[str], Tensor]]:
        """``({name: dtype}, read)`` of the base with the adapter added, module by module.

        Args:
            base: where the frozen weights are; ``base_names``: the model's name -> the name there.

        Raises:
            ConversionError: a variant of LoRA that is not plain addition.
        """
        odd = _not_plain(self.config, from_elsewhere=base is not self.stored)
        strange = [name for name in self.adapter if ".lora_" in name and not re.search(r"\.lora_[AB]\.weight$", name)]
        if odd or strange:
            raise ConversionError(
                f"{self.place} is a LoRA with {odd or strange[0]}, which is not merged here; allowed: adapter='keep', "
                "then PEFT's merge_and_unload"
            )
        deltas, replaced = {}, {}
        for name, key in self.adapter.items():
            module = name.removeprefix(ROOT)
            if module.endswith(".lora_A.weight"):
                module = module.removesuffix(".lora_A.weight")
                deltas[f"{module}.weight"] = (key, self.adapter[name.replace(".lora_A.", ".lora_B.")], module)
            elif ".lora_" not in module:
                replaced[module] = key

        def read(name: str) -> Tensor:
            if name in replaced:
                return self.stored.read(replaced[name])
            weight = base.read(base_names[name])
            if name not in deltas:
                return weight
            a, b, module = deltas[name]
            low, high = self.stored.read(a), self.stored.read(b)
            if low.dtype in (torch.float16, torch.bfloat16):  # as PEFT does on the CPU
                low, high = low.float(), high.float()
            delta = high @ low
            delta = (delta.T if self.config.fan_in_fan_out else delta) * self._scale(module)
            return weight + delta.to(self.stored.dtypes[a])

        names = [name for name in self.layout.shapes if name not in self.layout.tied]
        lacking = [name for name in names if name not in base_names and name not in replaced]
        if lacking:
            raise ConversionError(f"the base model has no weights for {lacking[0]}; allowed: a folder with safetensors")
        return {
            n: base.dtypes[base_names[n]] if n in base_names else self.stored.dtypes[replaced[n]] for n in names
        }, read

    def _scale(self, module: str) -> float:
        rank = _by_pattern(self.config.rank_pattern, module, self.config.r)
        alpha = _by_pattern(self.config.alpha_pattern, module, self.config.lora_alpha)
        return alpha / (math.sqrt(rank) if self.config.use_rslora else rank)


def _from_root(name: str) -> str:
    return name[name.find(ROOT) + len(ROOT) :] if ROOT in name else name


def _by_pattern(patterns: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    """As PEFT looks up ``rank_pattern`` and ``alpha_pattern``: the end of the module's name, as an expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _not_plain(config: LoraConfig, from_elsewhere: bool) -> str | None:
    """The setting that makes this adapter more than ``W + s * B @ A``; None for a plain one."""
    for name in ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora"):
        if getattr(config, name, None):
            return f"{name}={getattr(config, name)!r}"
    if config.bias != "none":
        return f"bias={config.bias!r}"
    # PiSSA and its kind move a part of the base's weights into the adapter when training begins.
    if from_elsewhere and config.init_lora_weights not in (True, False, "gaussian"):
        return f"init_lora_weights={config.init_lora_weights!r}"
    return None
