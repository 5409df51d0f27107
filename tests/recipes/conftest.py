"""``finetune`` in this process, on a model and rows in miniature."""

import json

import pytest

from course_utils.recipes import finetune
from tests.launch.tiny_project import offline_project

QUIET = ["--use_cpu", "--logging_steps=1", "--learning_rate=1e-3", "--disable_tqdm=true", "--report_to=none"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with offline_project(tmp_path_factory, "project") as made:
        yield made


@pytest.fixture
def run(project, tmp_path):
    """Call the program; the Trainer it returns and what run.json says."""

    def call(*arguments, task="causal_lm", output="out"):
        own = {
            "causal_lm": [f"--model_name_or_path={project.model}", f"--train_file={project.texts / 'train.jsonl'}"],
            "classification": [f"--model_name_or_path={project.encoder}", f"--train_file={project.classes}"],
        }[task]
        folder = tmp_path / output
        always = [f"--task={task}", f"--output_dir={folder}", "--max_length=32", *QUIET]
        trainer = finetune.main([*always, *own, *arguments])
        return trainer, json.loads((folder / "run.json").read_text())

    return call
