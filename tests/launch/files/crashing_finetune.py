"""The course's finetune.py with a rank that dies: started by torchrun.sh, accelerate.sh and slurm.sbatch as written.

``CRASH`` is a JSON list: ``[rank, steps, how]``. In its first start the rank dies in the first of ``steps``, in its
second one in the second, and so on: "kill" by SIGKILL, "exit" by os._exit, "raise" with an exception.
"""

import json
import os
import signal

from torch.distributed.elastic.multiprocessing.errors import record
from transformers import TrainerCallback, trainer

from course_utils.recipes import finetune

RANK, STEPS, HOW = json.loads(os.environ["CRASH"])
NEVER = 10**9
START = int(os.environ.get("SLURM_RESTART_COUNT") or os.environ["TORCHELASTIC_RESTART_COUNT"])
STEP = (STEPS[START:] or [NEVER])[0]


class Crash(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        with open(f"{args.output_dir}-starts.txt", "a") as notes:
            notes.write(f"start {START}, rank {os.environ['RANK']}, from step {state.global_step}\n")

    def on_step_end(self, args, state, control, **kwargs):
        if int(os.environ["RANK"]) != RANK or state.global_step < STEP:
            return
        if HOW == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if HOW == "exit":
            os._exit(41)
        raise RuntimeError(f"rank {RANK} crashes in step {state.global_step}")


trainer.DEFAULT_CALLBACKS.append(Crash)
record(finetune.main)()
