"""What the model writes, at every evaluation: loss curves do not show what is still wrong (lesson 05)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class GenerationSamples(TrainerCallback, ExportableState):
    """Continue the same prompts at every evaluation, greedily, on rank 0; ``samples`` keeps step and texts.

    Greedy search draws no random numbers, so the run is the same with and without this callback. The model is in
    evaluation mode while it writes and goes back into the mode it was in. Where the weights are sharded (FSDP, ZeRO-3)
    all ranks would have to generate together: not for these.

    Args:
        prompts: token ids of each prompt.
        decode: new token ids -> text, for example ``tokenizer.decode``. None: set ``decode`` before training.
        max_new_tokens: longest continuation, in tokens.

    Raises:
        ValueError: no prompt; when training starts: ``decode`` is missing (a function cannot be in a checkpoint; a
            restored callback takes ``processing_class.decode`` where the Trainer has one).
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        decode: Callable[[Sequence[int]], str] | None = None,
        max_new_tokens: int = 20,
    ):
        if not prompts:
            raise ValueError("prompts=[] is empty; allowed: at least one list of token ids")
        self.prompts = [list(map(int, prompt)) for prompt in prompts]
        self.decode, self.max_new_tokens = decode, max_new_tokens
        self.samples: list[tuple[int, list[str]]] = []
        self._training = False

    def on_train_begin(self, args, state, control, processing_class=None, **kwargs):
        if state.global_step == 0:
            self.samples = []
        self.decode = self.decode or getattr(processing_class, "decode", None)
        if self.decode is None:
            raise ValueError("decode=None and the Trainer has no processing_class; allowed: one of the two")
        self._training = True

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if self._training and state.is_world_process_zero:
            self.samples.append((state.global_step, self.write(model)))

    def on_train_end(self, args, state, control, **kwargs):
        self._training = False

    @torch.no_grad()
    def write(self, model) -> list[str]:
        """The continuations, one a prompt. Each prompt is generated alone: no padding, so no padding side to mind."""
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        texts = []
        for prompt in self.prompts:
            ids = torch.tensor([prompt], device=device)  # (1, T)
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                use_cache=True,
            )
            texts.append(self.decode([t for t in written[0, len(prompt) :].tolist() if not _is_end(model, t)]))
        model.train(was_training)
        return texts

    def table(self, headings: Sequence[object], right: Sequence[str] = ()) -> str:
        """Markdown: a row per evaluation, a column per prompt; ``right`` answers stand in the last row."""
        rows = [["step", *headings], ["---"] * (1 + len(headings))]
        rows += [[step, *(f"`{text}`" if text else "" for text in texts)] for step, texts in self.samples]
        rows += [["right", *(f"`{text}`" for text in right)]] if right else []
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)

    def state(self) -> dict:
        """What a checkpoint keeps: prompts and samples."""
        return {
            "args": {"prompts": self.prompts, "max_new_tokens": self.max_new_tokens},
            "attributes": {"samples": [[step, texts] for step, texts in self.samples]},
        }


def _is_end(model, token: int) -> bool:
    ends = model.generation_config.eos_token_id
    return token in (ends if isinstance(ends, list) else [ends, model.generation_config.pad_token_id])
