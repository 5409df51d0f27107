"""What each of two ranks does in lesson 05: a run with every callback of the course, then one with a lonely stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def two_ranks(folder: str) -> dict[str, Any]:
    """Train a tiny model with the course's callbacks; what this rank's callbacks did.

    The metric follows a script (best at the second of five evaluations), so that stop and best step are known.
    """
    import shutil

    import torch
    from transformers import TrainerCallback, set_seed

    from course_utils.data import roman
    from course_utils.models import load_causal_lm
    from course_utils.training.callbacks import (
        EventRecorder,
        GenerationSamples,
        GradientWatch,
        LivePlot,
        PlateauStop,
        SaveBest,
        StopTogether,
        Throughput,
    )
    from course_utils.training.settings import quiet_trainer

    torch.set_num_threads(1)
    script = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    deletions, pictures = [], []
    remove, shutil.rmtree = (
        shutil.rmtree,
        lambda path, **options: deletions.append(str(path)) or remove(path, **options),
    )

    class StopAlone(TrainerCallback):
        """A stop at step 2, on rank 0 only."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.is_world_process_zero and state.global_step == 2:
                control.should_training_stop = True

    def trainer_with(callbacks, **settings):
        set_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 4}
        ids = {"vocab_size": len(roman.CHARACTERS), "eos_token_id": roman.END, "bos_token_id": None}
        train, validation = roman.roman_rows(64, 10)
        options = {"max_steps": 5, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "use_cpu": True}
        options |= {"logging_steps": 1, "include_num_input_tokens_seen": "non_padding"}
        trainer = quiet_trainer(
            load_causal_lm("local", **ids, **sizes),
            folder,
            train,
            validation,
            data_collator=roman.collate,
            compute_metrics=lambda prediction: {"score": next(script)},
            callbacks=callbacks,
            **options | settings,
        )
        trainer.train()
        return trainer

    def draw(history):
        from matplotlib.figure import Figure

        return Figure()

    events, stop, best, watch, meter = EventRecorder(), PlateauStop(2), SaveBest(), GradientWatch(), Throughput()
    samples = GenerationSamples([roman.prompt(7)], roman.decode, 4)
    plot = LivePlot(draw, show=pictures.append, live=False)
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "score"}
    first = trainer_with([events, stop, best, watch, samples, plot, meter], **evaluated)
    together = StopTogether()
    second = trainer_with([StopAlone(), together], eval_strategy="no")
    return {
        "events": events.counts(),
        "stopped_at": stop.stopped_at,
        "steps": first.state.global_step,
        "best_step": best.best_step,
        "deletions": len(deletions),
        "on_disk": sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*")),
        "bad_steps": watch.bad_steps,
        "samples": len(samples.samples),
        "pictures": len(pictures),
        "tokens": meter.tokens,
        "tokens_seen": first.state.num_input_tokens_seen,
        "world": first.args.world_size,
        "disagreements": together.disagreements,
        "together": second.state.global_step,
    }
