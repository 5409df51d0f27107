"""PEFT and TRL on lesson 10's task, for the comparisons with what is made by hand. Nothing here trains better."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.data.instructions import InstructionCollator
from course_utils.lessons.lesson_10.task import fresh
from course_utils.models.peft_names import new_name
from course_utils.training.lora import ALL_LINEAR, add_lora, lora_layers, peft_weights

QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
# TRL switches the first two on by default, where the Trainer has them off.
PLAIN = {"bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False}


def quietly(function: Callable) -> Callable:
    """Without warnings of the libraries, with ``new_name``, and without TRL's message to the hub."""

    @functools.wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        from huggingface_hub import constants

        constants.HF_HUB_DISABLE_TELEMETRY = True  # the variable of this name is read once, at import
        with warnings.catch_warnings(), new_name():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return quiet


def peft_twin(by_hand: Any, base: Any, rank: int, alpha: float) -> Any:
    """PEFT's model of ``base`` with the same adapters as ``by_hand``."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ALL_LINEAR), task_type="CAUSAL_LM")
    twin = get_peft_model(fresh(base), config)
    missing = twin.load_state_dict(peft_weights(by_hand), strict=False).unexpected_keys
    if missing:
        raise ValueError(f"PEFT has no {missing[0]!r}; allowed: adapters on the same layers")
    return twin


@quietly
def compare_with_peft(base: Any, batch: dict[str, Tensor], rank: int = 8, alpha: float = 16) -> dict[str, float]:
    """Largest differences of logits, gradients and merged weights between our LoRA and PEFT's; B is not zero."""
    torch.manual_seed(0)
    ours = add_lora(fresh(base), rank, alpha)
    for layer in lora_layers(ours).values():  # after some steps B is not zero any more; here by chance
        torch.nn.init.normal_(layer.B, std=0.05)
    theirs = peft_twin(ours, base, rank, alpha)
    outputs = [model(**batch) for model in (ours, theirs)]
    for output in outputs:
        output.loss.backward()
    gradients = dict(theirs.named_parameters())
    gaps = [
        (getattr(layer, part).grad - gradients[f"base_model.model.{name}.lora_{part}.default.weight"].grad).abs().max()
        for name, layer in lora_layers(ours).items()
        for part in "AB"
    ]
    merged = dict(theirs.merge_and_unload().named_parameters())
    weights = [(m.merged().weight - merged[f"{n}.weight"]).abs().max() for n, m in lora_layers(ours).items()]
    return {
        "logits": (outputs[0].logits - outputs[1].logits).abs().max().item(),
        "gradients": max(gaps).item(),
        "merged weights": max(weights).item(),
    }


def _dataset(rows: Sequence[dict]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(rows))


@quietly
def trl_trainer(
    base: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    steps: int,
    rate: float,
    batch: int,
    max_length: int = 112,
) -> Any:
    """TRL's SFTTrainer on prompts and completions, in order, at a constant rate; not trained yet."""
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    config = SFTConfig(
        tempfile.mkdtemp(),
        max_length=max_length,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        **QUIET,
        **PLAIN,
    )
    trainer = SFTTrainer(fresh(base), config, train_dataset=_dataset(rows), processing_class=tokenizer)
    return _silent(trainer)


def _silent(trainer: Any) -> Any:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_labels(trainer: Any, count: int) -> list[tuple[list[int], list[int]]]:
    """``(input_ids, labels)`` of the first rows as TRL's collator makes them, padding taken off."""
    found = []
    for row in list(trainer.train_dataset)[:count]:
        batch = trainer.data_collator([row])
        found.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    return found


@quietly
def sft_losses(trainer: Any) -> list[float]:
    """Train; the loss of each step as logged."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_hand_losses(base: Any, examples: Sequence[dict], steps: int, rate: float, batch: int, pad: int) -> list[float]:
    """The same in plain PyTorch: AdamW without decay, clipping at 1, rows in order, constant rate."""
    model = fresh(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = model(**InstructionCollator(pad)(examples[step * batch : (step + 1) * batch])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@quietly
def trl_dpo_loss(policy: Any, reference: Any, tokenizer: Any, triples: Sequence[tuple[str, str, str]]) -> float:
    """TRL's DPO loss of one batch of (prompt, chosen, rejected), beta .1, for a policy that is not the reference."""
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples]
    config = DPOConfig(
        tempfile.mkdtemp(), beta=0.1, max_length=112, per_device_train_batch_size=len(rows), **QUIET, **PLAIN
    )
    trainer = DPOTrainer(policy, reference, config, train_dataset=_dataset(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return trainer.compute_loss(trainer.model.eval(), batch).item()


@quietly
def grpo_step(model: Any, tokenizer: Any, rows: Sequence[dict], group_size: int = 8) -> dict[str, Any]:
    """One step of TRL's GRPOTrainer on ``rows`` (prompt, wanted); reward 1 for the wanted answer, .2 for any library.

    Returns:
        ``rewards`` and ``advantages`` (N,), ``texts``; for the loss, shuffled: ``shuffled`` advantages (N,), ``mask``
        and ``log_probs`` (N, T), ``loss``; and ``old_loss``, TRL's loss as if ``old`` (N, T), the same log
        probabilities with noise on them, had been those of the model that wrote the answers.
    """
    from trl import GRPOConfig, GRPOTrainer

    seen: dict[str, Any] = {}
    names = {row["wanted"] for row in rows}

    def reward(completions: list[str], wanted: list[str], **ignored: Any) -> list[float]:
        texts = [text.strip() for text in completions]
        values = [1.0 if t == w else 0.2 if t in names else 0.0 for t, w in zip(texts, wanted, strict=True)]
        seen.update(rewards=torch.tensor(values), texts=texts)
        return values

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            made = super()._generate_and_score_completions(inputs)
            seen["advantages"] = made["advantages"].clone()  # in the order of the rewards; later they are shuffled
            return made

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            with torch.no_grad():
                width = inputs["completion_ids"].shape[1]
                logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].log_softmax(-1)
            log_probs = logits.gather(-1, inputs["completion_ids"][..., None])[..., 0]
            old = log_probs + 0.3 * torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                old_loss = super()._compute_loss(model, {**inputs, "old_per_token_logps": old})
            loss = super()._compute_loss(model, inputs)
            wanted = {"mask": inputs["completion_mask"], "shuffled": inputs["advantages"], "log_probs": log_probs}
            wanted |= {"old": old}
            seen.update({name: value.detach().clone() for name, value in wanted.items()})
            seen.update(loss=loss.item(), old_loss=old_loss.item())
            return loss

    config = GRPOConfig(
        tempfile.mkdtemp(),
        max_steps=1,
        per_device_train_batch_size=group_size * len(rows),
        num_generations=group_size,
        max_completion_length=4,
        learning_rate=1e-4,
        **QUIET,
        **PLAIN,
    )
    trainer = Watched(fresh(model), reward, config, train_dataset=_dataset(rows), processing_class=tokenizer)
    _silent(trainer).train()
    return seen
