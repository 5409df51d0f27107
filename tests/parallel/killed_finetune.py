"""``course_utils.recipes.finetune`` with ranks that kill themselves: ``KILLS`` is a JSON list, one entry a start.

    [[rank, step, place], ...]     place: "step" (before it), "write" (inside the save), "mark" (saved, not yet marked)

Rank ``rank`` sends itself SIGKILL at the first such place from ``step`` on; a start without an entry runs to its end.
"write" is reached by every rank: of FSDP2 through its shards, of DeepSpeed through its slices, of DDP through the
optimizer (rank 0) or the state of the random numbers.
"""

import json
import os
import signal
import sys

import torch
from torch.distributed.checkpoint import FileSystemWriter
from transformers import TrainerCallback

from course_utils.parallel import report
from course_utils.recipes import finetune
from course_utils.training.resume import barrier

kills, attempt = json.loads(os.environ["KILLS"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
rank, from_step, where = kills[attempt] if attempt < len(kills) else (-1, 0, "")
now = {"step": 0}


def perhaps_die(place):
    """The end of this process, without a word, if it is its turn."""
    if int(os.environ["RANK"]) == rank and place == where and now["step"] >= from_step:
        print(f"attempt {attempt}: SIGKILL at step {now['step']}, {place}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Watch(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        now["step"] = state.global_step + 1
        perhaps_die("step")


class MarkOrDie(finetune.MarkComplete):
    def on_save(self, args, state, control, **kwargs):
        perhaps_die("mark")
        super().on_save(args, state, control, **kwargs)


write_data = FileSystemWriter.write_data


def write_half(self, plan, planner):
    """Write this rank's file, cut it in the middle, and die before anybody hears of it."""
    if int(os.environ["RANK"]) == rank and where == "write" and now["step"] >= from_step:
        done = write_data(self, plan, planner)
        done.wait()
        for result in done.value():
            file = os.path.join(str(self.path), result.storage_data.relative_path)
            os.truncate(file, os.path.getsize(file) // 2)
        perhaps_die("write")
    return write_data(self, plan, planner)


def save_half(thing, file, *arguments, **options):
    """As ``write_half``, for what is written with ``torch.save``."""
    save(thing, file, *arguments, **options)
    to_path = isinstance(file, str | os.PathLike)  # a stream is FSDP's: that file is not complete yet
    if to_path and int(os.environ["RANK"]) == rank and where == "write" and now["step"] >= from_step:
        os.truncate(file, os.path.getsize(file) // 2)
        perhaps_die("write")


save, torch.save = torch.save, save_half
FileSystemWriter.write_data = write_half
build = finetune.build_trainer
finetune.MarkComplete = MarkOrDie


def build_and_watch(config, args):
    trainer, written = build(config, args)
    trainer.add_callback(Watch())
    return trainer, written


finetune.build_trainer = build_and_watch
trainer = finetune.main(sys.argv[1:])
barrier()  # under DDP rank 1 is here before rank 0 has written its last word
with open(os.path.join(trainer.args.output_dir, "run.json")) as file:
    run = json.load(file)
facts = ("resumed_from", "state", "steps", "world_size", "strategy", "parameters_held", "optimizer_held")
report({"attempt": attempt} | {name: run[name] for name in facts})
