"""``recipes/generate``: order, batches, stop rules, scores; the branch for vLLM as far as it goes without it."""

import importlib.util
import json
import sys
import types

import pytest
import torch

from course_utils.models import load_causal_lm
from course_utils.models.chat_tokenizer import load_chat_tokenizer
from course_utils.recipes import generate as recipe
from course_utils.recipes.generate import Answer, StopRules, choose_engine, generate, score
from course_utils.training.bert_score import bert_scores
from tests.recipes.refused import refusal

PROMPTS = ["Add two tensors.", "a", "Which library documents this?\n\nAnswer:", "two words"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_chat_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    return load_causal_lm(vocab_size=len(tokenizer), **sizes, eos_token_id=2, bos_token_id=1).eval()


def test_batches_change_neither_order_nor_answers(model, tokenizer):
    rules = StopRules((tokenizer.eos_token_id,), 6)
    alone = [generate(model, tokenizer, [prompt], rules)[0] for prompt in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, rules, batch_size=3) == alone
    assert len({answer.text for answer in alone}) > 1


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(model, tokenizer):
    rules = StopRules((tokenizer.eos_token_id,), 6)
    before = torch.random.get_rng_state()
    first, again = (generate(model, tokenizer, PROMPTS, rules, temperature=1.0, seed=3) for _ in range(2))
    assert first == again and torch.equal(before, torch.random.get_rng_state())
    assert first != generate(model, tokenizer, PROMPTS, rules, temperature=1.0, seed=4)


def test_an_answer_ends_at_the_end_token_a_stop_text_or_the_limit(model, tokenizer):
    free = generate(model, tokenizer, PROMPTS[:1], StopRules((tokenizer.eos_token_id,), 6))[0]
    assert free.reason == "length"
    stop = free.text[3:5]
    stopped = generate(model, tokenizer, PROMPTS[:1], StopRules((tokenizer.eos_token_id,), 6, (stop,)))[0]
    assert stopped == Answer(free.text[: free.text.find(stop)], "stop")
    first = tokenizer(PROMPTS[0])["input_ids"]
    token = model(torch.tensor([first])).logits[0, -1].argmax().item()
    assert generate(model, tokenizer, PROMPTS[:1], StopRules((token,), 6))[0] == Answer("", "stop")


def test_vllm_gets_the_same_ids_and_rules(monkeypatch, tokenizer):
    seen = {}

    class LLM:
        def __init__(self, **settings):
            seen["model"] = settings["model"]

        def generate(self, prompts, settings, use_tqdm):
            seen.update(prompts=prompts, settings=settings)
            ids = [*tokenizer(" torch", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids)]) for _ in prompts]

    fake = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    rules = StopRules((2,), 5, ("\n",))
    answers = recipe.generate_with_vllm("folder", tokenizer, PROMPTS, rules)
    assert answers == [Answer(" torch", "stop")] * 4
    assert [p["prompt_token_ids"] for p in seen["prompts"]] == [tokenizer(p)["input_ids"] for p in PROMPTS]
    assert seen["settings"]["stop_token_ids"] == [2] and seen["settings"]["stop"] == ["\n"]
    assert seen["settings"]["max_tokens"] == 5 and seen["settings"]["temperature"] == 0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_transformers_is_taken():
    assert choose_engine() == "transformers"
    with pytest.raises(ValueError, match="not installed"):
        choose_engine("vllm")
    with pytest.raises(ValueError, match="not known"):
        choose_engine("other")


def test_scores():
    found = score([Answer(" torch", "stop"), Answer(" a b", "length")], [" torch", " a c"])
    assert found == {"exact_match": 0.5, "rouge_l": 0.75, "stops": 0.5}


def test_the_program_merges_an_adapter_and_scores(model, tokenizer, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(recipe.load(str(tmp_path / "base"))[0], LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    lines = [json.dumps({"prompt": prompt, "completion": " torch"}) for prompt in PROMPTS]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    line = [f"--model={tmp_path}/base", f"--adapter={tmp_path}/adapter", f"--file={tmp_path}/test.jsonl"]
    encoder = f"--bert_score_model={tmp_path}/base"
    found = recipe.main([*line, encoder, f"--out={tmp_path}/out.jsonl", "--max_new_tokens=3"])
    rows = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert set(found) == {"exact_match", "rouge_l", "stops", "bert_score"}
    answers = [row["answer"] for row in rows]
    scored = bert_scores(*recipe.load_encoder(str(tmp_path / "base")), answers, [" torch"] * len(rows))
    assert found["bert_score"] == sum(one.f1 for one in scored) / len(rows) < 1
    assert "transformers exact_match" in capsys.readouterr().out
    out = f"--out={tmp_path}/o.jsonl"
    assert "not installed" in refusal(capsys, lambda: recipe.main([*line, out, "--engine=vllm"]))
