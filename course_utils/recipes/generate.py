"""Answer many prompts with a fine-tuned model, in batches: with vLLM where it is installed, else with transformers.

    python -m course_utils.recipes.generate --model runs/four --file data/which/test.jsonl --out answers.jsonl
    python -m course_utils.recipes.generate --model Qwen/Qwen3-0.6B --adapter runs/lora --file data/which/test.jsonl \\
        --out answers.jsonl --max_new_tokens 64 --stop $'\\n\\n'

Both engines get the same token ids and the same rules for stopping: the end token, one of --stop, or --max_new_tokens.
Greedy unless --temperature is above 0. Rows with ``completion`` are scored: exact match and ROUGE-L, and BERTScore with
--bert_score_model, an encoder such as distilbert/distilbert-base-uncased. An adapter is merged into the model first.
vLLM needs a GPU and its own versions of torch; its branch has not been run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from course_utils.data.instructions import pad_left
from course_utils.training.bert_score import bert_scores


@dataclass(frozen=True)
class StopRules:
    """When an answer ends: at an end token, at one of ``texts`` (which is cut off), or after ``max_new_tokens``."""

    eos_token_ids: tuple[int, ...]
    max_new_tokens: int = 64
    texts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} is out of range; allowed: a whole number >= 1")

    def cut(self, text: str) -> tuple[str, bool]:
        """``text`` up to the first stop text, and whether there was one."""
        places = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)


@dataclass(frozen=True)
class Answer:
    """``reason`` is "stop" for an end token or a stop text, "length" where the room was used up."""

    text: str
    reason: str


def choose_engine(engine: str = "auto") -> str:
    """``"vllm"`` if it is installed and there is a GPU, else ``"transformers"``; a named engine is taken as it is.

    Raises:
        ValueError: unknown, or vLLM is asked for and not installed.
    """
    if engine not in ("auto", "vllm", "transformers"):
        raise ValueError(f"engine={engine!r} is not known; allowed: auto, vllm, transformers")
    there = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not there:
        raise ValueError("engine='vllm' is not installed; allowed: transformers, or pip install vllm")
    if engine == "auto":
        return "vllm" if there and torch.cuda.is_available() else "transformers"
    return engine


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    rules: StopRules,
    *,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Answers in the order of ``prompts``, with transformers. Prompts of like length share a batch, padded on the left.

    Args:
        temperature: 0 is greedy.
        seed: of the sampling; nothing else is drawn from the global generator.
    """
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else rules.eos_token_ids[0]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    if rules.texts:
        sampling |= {"stop_strings": list(rules.texts), "tokenizer": tokenizer}
    found: dict[int, Answer] = {}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {k: v.to(model.device) for k, v in pad_left([ids[i] for i in chosen], pad).items()}
            made = model.generate(
                **batch,
                **sampling,
                max_new_tokens=rules.max_new_tokens,
                use_cache=True,
                pad_token_id=pad,
                eos_token_id=list(rules.eos_token_ids),
            )
            for row, new in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                found[row] = read_answer(new, tokenizer, rules)
    model.train(was_training)
    return [found[i] for i in range(len(prompts))]


def read_answer(new: Sequence[int], tokenizer: Any, rules: StopRules) -> Answer:
    """New token ids, perhaps with padding behind, as an answer: the same for both engines."""
    ends = [place for place, token in enumerate(new) if token in rules.eos_token_ids]
    text = tokenizer.decode(list(new[: ends[0]] if ends else new), skip_special_tokens=True)
    text, was_cut = rules.cut(text)
    return Answer(text, "stop" if ends or was_cut else "length")


def generate_with_vllm(
    path: str, tokenizer: Any, prompts: Sequence[str], rules: StopRules, temperature: float = 0.0, seed: int = 0
) -> list[Answer]:
    """The same with vLLM: the same token ids go in, the same rules stop it."""
    from vllm import LLM, SamplingParams

    settings = SamplingParams(
        temperature=temperature,
        max_tokens=rules.max_new_tokens,
        stop_token_ids=list(rules.eos_token_ids),
        stop=list(rules.texts) or None,
        seed=seed,
    )
    ids = [{"prompt_token_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts]
    outputs = LLM(model=path, seed=seed).generate(ids, settings, use_tqdm=False)
    return [read_answer(o.outputs[0].token_ids, tokenizer, rules) for o in outputs]


def load(path: str, adapter: str | None = None) -> tuple[Any, Any]:
    """``(model, tokenizer)``; an adapter folder is merged into the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    folder = adapter if adapter and (Path(adapter) / "tokenizer_config.json").is_file() else path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer


def score(answers: Sequence[Answer], references: Sequence[str]) -> dict[str, float]:
    """Exact match and mean ROUGE-L (stripped texts), and the share of answers that ended by themselves."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = [(answer.text.strip(), reference.strip()) for answer, reference in zip(answers, references, strict=True)]
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs]
    count = max(len(pairs), 1)
    return {
        "exact_match": sum(text == reference for text, reference in pairs) / count,
        "rouge_l": sum(rouge) / count,
        "stops": sum(answer.reason == "stop" for answer in answers) / count,
    }


def load_encoder(path: str) -> tuple[Any, Any]:
    """The encoder at ``path`` and its tokenizer, for BERTScore."""
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Write one JSON line per prompt, print the scores where there are references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--adapter", help="a folder with a LoRA adapter for it")
    parser.add_argument("--file", required=True, help="JSON lines with prompt and, to be scored, completion")
    parser.add_argument("--out", required=True, help="JSON lines with prompt, answer and reason")
    parser.add_argument("--engine", default="auto", help="auto, vllm or transformers")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--stop", nargs="*", default=[], help="texts that end an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--bert_score_model", help="an encoder, a folder or a hub name: BERTScore among the scores")
    options = parser.parse_args(arguments)
    try:
        engine = choose_engine(options.engine)
        lines = Path(options.file).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line]
        encoder = load_encoder(options.bert_score_model) if options.bert_score_model else None
        model, tokenizer = load(options.model, options.adapter)
        rules = StopRules((tokenizer.eos_token_id,), options.max_new_tokens, tuple(options.stop))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    prompts = [row["prompt"] for row in rows]
    if engine == "vllm":
        folder = options.model
        if options.adapter:  # vLLM reads a folder: the merged model gets one
            folder = f"{options.out}.merged"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        answers = generate_with_vllm(folder, tokenizer, prompts, rules, options.temperature)
    else:
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        answers = generate(
            model, tokenizer, prompts, rules, batch_size=options.batch_size, temperature=options.temperature
        )
    with Path(options.out).open("w", encoding="utf-8") as stream:
        for prompt, answer in zip(prompts, answers, strict=True):
            stream.write(json.dumps({"prompt": prompt, "answer": answer.text, "reason": answer.reason}) + "\n")
    found = {}
    if all("completion" in row for row in rows):
        references = [row["completion"] for row in rows]
        found = score(answers, references)
        if encoder:
            scored = bert_scores(*encoder, [answer.text for answer in answers], references)
            found["bert_score"] = sum(one.f1 for one in scored) / max(len(scored), 1)
    print(" ".join([engine, *(f"{name} {value:.3f}" for name, value in found.items())]))
    return found


if __name__ == "__main__":
    main()
