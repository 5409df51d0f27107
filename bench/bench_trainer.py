"""What the Trainer adds to a bare loop, as a ratio of times per optimizer step.

    python bench/bench_trainer.py                  # three minutes on two cores; writes bench/results/trainer.json
    python bench/bench_trainer.py --steps 100 --rounds 9 --out /tmp/try.json
    python bench/bench_trainer.py --device cuda    # prints; the file holds a CPU's numbers

Both train the same model on the same rows in the same order with the same optimizer kernel. They take turns; the time
between the ends of two steps is noted and the median counts, so setting up is left out. The Trainer neither logs,
evaluates nor saves: what is left is its bookkeeping around each step. Its counter of operations is timed alone: it
walks through the parameter tensors, so a deep model pays more than a wide one.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import record
import torch
from transformers import TrainerCallback, default_data_collator, set_seed

from course_utils import teach
from course_utils.data.batches import ShuffledBatches
from course_utils.models import load_classifier
from course_utils.recipes.command_line import Parser, file_to_write, from_to
from course_utils.training.loop import LoopConfig, train
from course_utils.training.optim import parameter_groups
from course_utils.training.settings import quiet_trainer

MODELS = {
    "1 layer x 64": {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64},
    "1 layer x 512": {"num_hidden_layers": 1, "hidden_size": 512, "intermediate_size": 64},
    "12 layers x 64": {"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 64},
    "the course's classifier": {},
}


def make_rows(count, length=24):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 8000, (count, length), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(3)} for row in tokens]


class Clock(TrainerCallback):
    """The time at the end of every optimizer step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter())


def steps_of_trainer(sizes, rows, count, device, folder):
    """Seconds of each step but the first."""
    set_seed(0)
    clock = Clock()
    trainer = quiet_trainer(
        load_classifier(10, **sizes),
        folder,
        rows,
        callbacks=[clock],
        max_steps=count,
        per_device_train_batch_size=32,
        train_sampling_strategy="sequential",
        use_cpu=device == "cpu",
    )
    trainer.train()
    return [after - before for before, after in itertools.pairwise(clock.times)]


def steps_of_loop(sizes, rows, count, device):
    """Seconds of each step but the first."""
    set_seed(0)
    model = load_classifier(10, **sizes).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=5e-5, fused=True)
    batches = ShuffledBatches(rows, 32, default_data_collator, shuffle=False)
    times = []
    train(model, batches, optimizer, LoopConfig(count), on_step=lambda record: times.append(time.perf_counter()))
    return [after - before for before, after in itertools.pairwise(times)]


def counter_milliseconds(sizes, device, folder):
    """Parameters, parameter tensors, and the median time of one count of floating point operations."""
    trainer = quiet_trainer(load_classifier(10, **sizes), folder, use_cpu=device == "cpu")
    batch, times = {"input_ids": torch.zeros(32, 24, dtype=torch.long)}, []
    for _ in range(100):
        start = time.perf_counter()
        trainer.floating_point_ops(batch)
        times.append(time.perf_counter() - start)
    return trainer.model.num_parameters(), len(list(trainer.model.parameters())), 1e3 * statistics.median(times)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=from_to(1), default=60, help="optimizer steps of one run (default: 60)")
    parser.add_argument("--rounds", type=from_to(1), default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=file_to_write, default=Path(__file__).parent / "results" / "trainer.json")
    settings = parser.parse_args()

    teach.start()
    print(f"{record.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows, results = make_rows(640), []
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in MODELS.items():
            of_loop, of_trainer = [], []
            for _ in range(settings.rounds):
                of_loop += steps_of_loop(sizes, rows, settings.steps, settings.device)
                of_trainer += steps_of_trainer(sizes, rows, settings.steps, settings.device, folder)
            loop, trainer = 1e3 * statistics.median(of_loop), 1e3 * statistics.median(of_trainer)
            parameters, tensors, counter = counter_milliseconds(sizes, settings.device, folder)
            row = {"model": name, "parameters": parameters, "tensors": tensors, "loop_ms": round(loop, 1)}
            row |= {"trainer_ms": round(trainer, 1), "ratio": round(trainer / loop, 2), "counter_ms": round(counter, 2)}
            print(json.dumps(row))
            results.append(row)
    if settings.device == "cpu":
        record.write(settings.out, {"cores": os.cpu_count(), "step": "32 rows x 24 tokens", "rows": results})


if __name__ == "__main__":
    main()
