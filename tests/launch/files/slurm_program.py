"""The course's finetune.py, watched: which node each rank is on, which signals reach it. Started by test_slurm.py.

With ``HOLD=<step>`` in the environment, every rank waits in that step of its first stay until a signal reached it,
so that an interruption happens at a known step on a machine of any speed. A rank that is never told waits for ever.
"""

import json
import os
import time
from pathlib import Path

from transformers import TrainerCallback, trainer

from course_utils.recipes import finetune
from course_utils.training.stop_on_signal import StopOnSignal

STAY = int(os.environ.get("SLURM_RESTART_COUNT", 0))
SEEN = ("SLURMD_NODENAME", "SLURM_PROCID", "SLURM_CPUS_PER_TASK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
signals = []


class Watch(TrainerCallback):
    """Writes ``output_dir/seen/stay<stay>-rank<rank>.json`` when training begins and when a signal arrives."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.folder = Path(args.output_dir, "seen")
        self.facts = {name: os.environ.get(name) for name in SEEN} | {"begins_at": state.global_step}
        self.write(signals=[])

    def on_step_end(self, args, state, control, **kwargs):
        if STAY == 0 and state.global_step == int(os.environ.get("HOLD", -1)):
            self.write(signals=[], held=True)
            while not signals:
                time.sleep(0.05)
            self.write(signals=signals, held=True)

    def write(self, **more):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"stay{STAY}-rank{os.environ['RANK']}.json"
        path.with_suffix(".tmp").write_text(json.dumps(self.facts | more))
        path.with_suffix(".tmp").replace(path)


class NotingStop(StopOnSignal):
    def _handle(self, number, frame):
        super()._handle(number, frame)
        signals.append(self.received)


finetune.StopOnSignal = NotingStop
trainer.DEFAULT_CALLBACKS.append(Watch)  # comes before finetune's own callbacks
finetune.main()
