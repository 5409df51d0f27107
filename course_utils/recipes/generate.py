"""Answer many prompts with a fine-tuned model, in batches: with vLLM where it is installed, else with transformers.

    python -m course_utils.recipes.generate --model runs/four --file data/which/test.jsonl --out answers.jsonl
    python -m course_utils.recipes.generate --model Qwen/Qwen3-0.6B --adapter runs/lora --file data/which/test.jsonl \\
        --out answers.jsonl --max_new_tokens 64 --stop $'\\n\\n'

Both engines get the same token ids and the same rules for stopping: the end token, one of --stop, or --max_new_tokens.
Greedy unless --temperature is above 0. Rows with ``completion`` are scored: exact match and ROUGE-L, and BERTScore with
--bert_score_model, an encoder such as distilbert/distilbert-base-uncased. An adapter is merged into the model first.
vLLM needs a GPU and its own versions of torch; its branch has not been run here. --out appears whole or not at all;
what cannot be used, a flag or a row, ends the program before any work, with one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from course_utils.data.instructions import pad_left
from course_utils.recipes.command_line import (
    Parser,
    adapter_folder,
    file_of_rows,
    file_to_write,
    from_folder_or_hub,
    from_to,
    model_name,
    refuse,
    refusing,
)
from course_utils.recipes.json_lines import rows_of, whole_file
from course_utils.training.bert_score import bert_scores

COLUMNS = ({"prompt", "completion"}, {"prompt"})
COLDEST = 0.01  # below it logits divided by the temperature overflow; vLLM stops there too


@dataclass(frozen=True)
class StopRules:
    """When an answer ends: at an end token, at one of ``texts`` (which is cut off), or after ``max_new_tokens``."""

    eos_token_ids: tuple[int, ...]
    max_new_tokens: int = 64
    texts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} is out of range; allowed: a whole number >= 1")
        if "" in self.texts:
            raise ValueError("stop='' is empty and would end every answer; allowed: a text")

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

    Raises:
        ValueError: a prompt without a token.
    """
    ids = token_ids(tokenizer, prompts)
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


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Each prompt's token ids.

    Raises:
        ValueError: a prompt has none; the sentence counts from 1.
    """
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    if empty := [number for number, row in enumerate(ids, 1) if not row]:
        raise ValueError(f"prompt {empty[0]} of {len(ids)} has no token; allowed: at least one to go on from")
    return ids


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
    ids = [{"prompt_token_ids": row} for row in token_ids(tokenizer, prompts)]
    outputs = LLM(model=path, seed=seed).generate(ids, settings, use_tqdm=False)
    return [read_answer(o.outputs[0].token_ids, tokenizer, rules) for o in outputs]


def load(path: str, adapter: str | None = None) -> tuple[Any, Any]:
    """``(model, tokenizer)``; an adapter folder is merged into the model.

    Raises:
        ConnectionError: a hub name, and the hub is out of reach.
        ValueError, OSError: a folder's files are damaged, or do not belong together.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with from_folder_or_hub(path, "model"):
        model = AutoModelForCausalLM.from_pretrained(path)
    if adapter:
        from peft import PeftModel

        with from_folder_or_hub(adapter, "model"):
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    folder = adapter if adapter and (Path(adapter) / "tokenizer_config.json").is_file() else path
    with from_folder_or_hub(folder, "model"):
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

    with from_folder_or_hub(path, "model"):
        return AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def read_settings(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; one that cannot be used ends the program."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", type=model_name, required=True, help="a folder or a hub name")
    add("--adapter", type=adapter_folder, help="a folder with a LoRA adapter for it")
    add("--file", type=file_of_rows, required=True, help="JSON lines with prompt and, to be scored, completion")
    add("--out", type=file_to_write, required=True, help="JSON lines with prompt, answer and reason")
    add("--engine", default="auto", choices=("auto", "vllm", "transformers"))
    add("--batch_size", type=from_to(1), default=32)
    add("--max_new_tokens", type=from_to(1), default=64)
    add("--stop", nargs="*", default=[], help="texts that end an answer")
    add("--temperature", type=from_to(0, kind=float), default=0.0, help=f"0: greedy; else at least {COLDEST}")
    add("--bert_score_model", type=model_name, help="an encoder, a folder or a hub name: BERTScore among the scores")
    options = parser.parse_args(arguments)
    if 0 < options.temperature < COLDEST:
        refuse(f"argument --temperature: {options.temperature} is out of range; allowed: 0, or at least {COLDEST}")
    return options


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Write one JSON line per prompt, print the scores where there are references."""
    options = read_settings(arguments)
    with refusing():
        engine = choose_engine(options.engine)
        rules = StopRules((), options.max_new_tokens, tuple(options.stop))
        rows = list(rows_of(options.file, "file", COLUMNS))
        if options.bert_score_model and "completion" not in rows[0]:
            refuse("argument --bert_score_model: without completions there is nothing to score; allowed: none")
        encoder = load_encoder(options.bert_score_model) if options.bert_score_model else None
        model, tokenizer = load(options.model, options.adapter)
        if tokenizer.eos_token_id is None:
            refuse(f"argument --model: {options.model!r} has no end token; allowed: a model whose tokenizer has one")
        rules = replace(rules, eos_token_ids=(tokenizer.eos_token_id,))
        prompts = [row["prompt"] for row in rows]
        token_ids(tokenizer, prompts)  # an empty one is said before any answer
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
    with refusing(), whole_file(options.out) as stream:
        for prompt, answer in zip(prompts, answers, strict=True):
            stream.write(json.dumps({"prompt": prompt, "answer": answer.text, "reason": answer.reason}) + "\n")
    found = {}
    if "completion" in rows[0]:
        references = [row["completion"] for row in rows]
        found = score(answers, references)
        if encoder:
            scored = bert_scores(*encoder, [answer.text for answer in answers], references)
            found["bert_score"] = sum(one.f1 for one in scored) / max(len(scored), 1)
    print(" ".join([engine, *(f"{name} {value:.3f}" for name, value in found.items())]))
    return found


if __name__ == "__main__":
    main()
