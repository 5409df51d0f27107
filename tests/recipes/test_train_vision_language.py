"""The vision-language model as a program: it trains, says what ran, and makes its stages once."""

from __future__ import annotations

import json

from course_utils.recipes import train_vision_language

SMALL = "--scenes=100 --tower_steps=2 --scorer_steps=2 --max_steps=2 --use_cpu --report_to=none --disable_tqdm=True"


def test_it_trains_and_makes_its_stages_once(tmp_path):
    arguments = [*SMALL.split(), f"--output_dir={tmp_path}", "--tower_rate=1e-4"]
    trainer = train_vision_language.main(arguments)
    assert trainer.state.global_step == 2
    assert {group["name"] for group in trainer.optimizer.param_groups} >= {"tower", "projector", "language_model"}
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished"
    made = (tmp_path / "stages.pt").stat().st_mtime_ns
    train_vision_language.main([*SMALL.split(), f"--output_dir={tmp_path}"])
    assert (tmp_path / "stages.pt").stat().st_mtime_ns == made
    assert (tmp_path / "model.safetensors").exists()
