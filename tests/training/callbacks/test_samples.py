"""GenerationSamples: what the model writes, without a trace in the run; resume."""

import pytest
import torch
from transformers import set_seed

from course_utils.models import load_causal_lm
from course_utils.training.callbacks import GenerationSamples
from course_utils.training.settings import quiet_trainer
from tests.training.callbacks.runs import RESTORE, restored
from tests.training.trainer_runs import same_weights

ROW = {"input_ids": torch.tensor([4, 5, 6, 7, 1]), "labels": torch.tensor([4, 5, 6, 7, 1])}


def run(folder, callbacks=(), resume=False, **settings):
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 4}
    model = load_causal_lm("local", vocab_size=12, eos_token_id=1, bos_token_id=None, attention_dropout=0.2, **sizes)
    defaults = {"max_steps": 40, "learning_rate": 2e-2, "eval_strategy": "steps", "eval_steps": 20, "use_cpu": True}
    trainer = quiet_trainer(model, folder, [ROW] * 64, [ROW] * 4, callbacks=callbacks, **(defaults | settings))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def words(ids):
    return " ".join(map(str, ids))


def test_samples_are_what_the_model_learned_and_the_run_is_the_same(tmp_path):
    samples = GenerationSamples([[4], [4, 5, 6]], words, max_new_tokens=6)
    watched, plain = run(tmp_path, [samples]), run(tmp_path)
    assert [step for step, _ in samples.samples] == [20, 40]
    assert samples.samples[-1][1] == ["5 6 7", "7"]
    assert same_weights(watched.model, plain.model)
    watched.evaluate()
    assert len(samples.samples) == 2  # evaluating by hand adds nothing
    watched.model.train()
    samples.write(watched.model)
    assert watched.model.training


def test_samples_survive_resume(tmp_path):
    class Words(GenerationSamples):
        """``decode`` cannot be in a checkpoint: a class that brings it along."""

        def __init__(self, prompts, max_new_tokens=20):
            super().__init__(prompts, words, max_new_tokens)

    run(tmp_path, [Words([[4]], 6)], save_strategy="steps", save_steps=20, max_steps=20)
    resumed = run(tmp_path, [Words([[4]], 6)], resume=True, **RESTORE)
    assert [step for step, _ in restored(resumed, Words).samples] == [20, 40]


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError, match="prompts="):
        GenerationSamples([])
    with pytest.raises(ValueError, match="decode=None"):
        run(tmp_path, [GenerationSamples([[4]])])
