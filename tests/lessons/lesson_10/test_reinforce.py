"""Lesson 10's GRPO run by hand: who is rewarded, which tokens count, and a reward that is easy to earn is earned."""

import pytest
import torch

from course_utils.data.instructions import Template
from course_utils.lessons.lesson_10 import reinforce, task
from course_utils.models import load_causal_lm
from course_utils.models.chat_tokenizer import load_chat_tokenizer

PROMPTS = ["Which library documents this?\n\nAnswer:", "a\n\nAnswer:"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_chat_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return load_causal_lm(vocab_size=len(tokenizer), num_hidden_layers=1).eval()


def test_rewards():
    names = {"torch", "numpy"}
    assert [reinforce.reward(text, "torch", names) for text in ("torch", "numpy", "Torch", "")] == [1, 0.2, 0, 0]


def test_tokens_after_the_end_do_not_count(model, tokenizer, monkeypatch):
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = torch.tensor([[7, end, pad, pad], [7, 8, 9, 10], [end, pad, pad, pad], [7, 8, 9, end]])
    made = rows.repeat(2 * reinforce.GROUP // len(rows), 1)
    monkeypatch.setattr(type(model), "generate", lambda self, input_ids, **rest: torch.cat([input_ids, made], 1))
    batch, mask = reinforce.sample(model, tokenizer, PROMPTS)
    assert mask[:4].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert torch.equal(batch["attention_mask"][:, -4:], mask)


def test_log_probs_are_the_models_of_each_token_whatever_stands_in_front(model, tokenizer):
    torch.manual_seed(1)
    batch, mask = reinforce.sample(model, tokenizer, PROMPTS)
    found = reinforce.answer_log_probs(model, batch, mask.shape[1])
    row = reinforce.GROUP  # the short prompt: padding in front
    own = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
    count = int(mask[row].sum())
    alone = model(own).logits[0, -count - 1 : -1].log_softmax(-1)
    expected = alone.gather(-1, own[0, -count:, None])[:, 0]
    torch.testing.assert_close(found[row, :count], expected, rtol=1e-4, atol=1e-4)


def test_what_is_rewarded_becomes_likelier(model, tokenizer, monkeypatch):
    template = Template("{instruction} {input}", " {output}")
    rows = [{"instruction": "Which?", "input": "x", "output": name} for name in ("torch", "numpy")]
    start = task.fresh(model)  # one that says both, now and then
    task.fine_tune(start, task.encode_rows(tokenizer, template, rows * 8), 40, 3e-3, batch_size=16)
    before = start.lm_head.weight.clone()
    monkeypatch.setattr(reinforce, "reward", lambda text, wanted, names: float(text == "torch"))
    found = reinforce.grpo_run(start, tokenizer, template, rows, rows, steps=20, rate=1e-3, seed=0, prompts=2, every=20)
    assert torch.equal(start.lm_head.weight, before)  # a copy is trained
    assert sum(found["reward"][:3]) < 2.1 and sum(found["reward"][-3:]) > 2.7
    assert found["most_frequent"][-1] == 1 and found["right"][-1] == 0.5
