"""TRL's SFTTrainer as a rung of ``bench_ladder.py``."""

import copy
import time

import torch
from transformers import TrainerCallback

from course_utils.data.batches import IGNORED
from course_utils.training.ladder import Round, Rung

STEPS = 2  # optimizer steps of a round


class TrlClimb:
    """TRL's SFTTrainer behind the interface of ``Climb``: a round is ``STEPS`` optimizer steps after one of warm-up."""

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append((time.perf_counter(), time.process_time()))

    def __init__(self, packing, texts, tokenizer, model, row_length, rows, device, folder):
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback
        from trl import SFTConfig, SFTTrainer

        self.rung = Rung(self.name_of(packing))
        self.clock, self.batches, self.dtypes = self.Clock(), [], set()
        documents = tokenizer(list(texts), truncation=True, max_length=row_length)["input_ids"]
        tokenizer = copy.copy(tokenizer)
        tokenizer.eos_token = tokenizer.sep_token  # TRL wants one by this name
        config = SFTConfig(
            output_dir=str(folder),
            max_length=row_length,
            packing=True,
            packing_strategy=packing,
            per_device_train_batch_size=rows,
            max_steps=STEPS + 1,
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=device == "cpu",
            optim="adamw_torch_fused",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        self.trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"input_ids": documents}),
            processing_class=tokenizer,
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)
        collate = self.trainer.data_collator
        self.trainer.data_collator = lambda rows: self.seen(collate(rows))
        model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, i, out: self.dtypes.add(out.dtype))

    @staticmethod
    def name_of(packing):
        return f"TRL, packing_strategy={packing!r}"

    def seen(self, batch):
        self.batches.append((int(batch["labels"][:, 1:].ne(IGNORED).sum()), batch["input_ids"].numel()))
        return batch

    def round(self):
        self.clock.ends.clear()
        self.batches.clear()
        self.trainer.train()
        (wall, cpu), (wall_end, cpu_end) = self.clock.ends[0], self.clock.ends[-1]
        used = self.batches[1 : STEPS + 1]  # the loader may have fetched one more
        if self.dtypes != {torch.bfloat16}:
            raise RuntimeError(f"TRL computed in {self.dtypes}: it does not run with bf16 as the ladder's top does")
        return Round(sum(u for u, _ in used), sum(c for _, c in used), wall_end - wall, cpu_end - cpu)
