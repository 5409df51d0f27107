"""The base of lesson 10: it knows topics, no library, and is built the same way twice."""

import torch

from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.training import base_lm


def test_the_base_writes_a_topic():
    tokenizer, model = load_chat_tokenizer(), base_lm.load_base_lm()
    ids = tokenizer("Return a tensor filled with zeros.\n\nTopic:", return_tensors="pt")["input_ids"]
    word = tokenizer.decode(model(ids).logits[0, -1].argmax()).strip()
    assert word in base_lm.TOPICS.values()


def test_pretraining_is_repeatable_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (base_lm.pretrain(base_lm.new_base_lm(), 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), base_lm.new_base_lm().parameters(), strict=True)
    )
