"""Rows for ``finetune``: the course's data, JSON lines, or a hub data set, as token ids with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.data import load_classification, load_language_modelling
from course_utils.hub import require_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

COLUMNS = {"classification": ({"text", "label"},), "causal_lm": ({"text"}, {"prompt", "completion"})}


def check_files(config: Any) -> None:
    """Raise ``ValueError``, one sentence, where ``config`` (``finetune.Config``) names data that is not there."""
    if config.train_file and config.dataset_name:
        raise ValueError(
            f"train_file={config.train_file!r} contradicts dataset_name={config.dataset_name!r}; allowed: one of them"
        )
    if config.eval_file and not config.train_file:
        raise ValueError(f"eval_file={config.eval_file!r} needs --train_file; allowed: both or none")
    for name in ("train_file", "eval_file"):
        path = getattr(config, name)
        if path and not (Path(path).is_file() and Path(path).suffix in (".json", ".jsonl")):
            raise ValueError(f"{name}={path!r} is no such file; allowed: a file of JSON lines (.jsonl, .json)")


def load_rows(config: Any) -> DatasetDict:
    """Splits ``train`` and, where there is one, ``validation``, with the columns of ``COLUMNS[config.task]``.

    Raises:
        ValueError: missing columns, an empty or unreadable file.
        ConnectionError: a hub data set without a network.
    """
    from datasets import ClassLabel, DatasetDict

    if config.train_file or config.dataset_name:
        splits = _own_splits(config)
    else:
        load = load_classification if config.task == "classification" else load_language_modelling
        splits = load(config.source)
        splits = DatasetDict({name: splits[name] for name in ("train", "validation")})
    columns = set(splits["train"].column_names)
    if not any(needed <= columns for needed in COLUMNS[config.task]):
        allowed = " or ".join(" + ".join(sorted(needed, reverse=True)) for needed in COLUMNS[config.task])
        raise ValueError(f"the training data has the columns {sorted(columns)}; allowed for {config.task}: {allowed}")
    if not len(splits["train"]):
        raise ValueError("the training data has no rows; allowed: at least one")
    if config.task == "classification" and not isinstance(splits["train"].features["label"], ClassLabel):
        names = sorted({str(label) for split in splits.values() for label in split["label"]})
        splits = splits.map(lambda row: {"label": str(row["label"])}).cast_column("label", ClassLabel(names=names))
    return splits


def _own_splits(config: Any) -> DatasetDict:
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetGenerationError

    if config.train_file:
        files = {"train": config.train_file} | ({"validation": config.eval_file} if config.eval_file else {})
        try:
            return DatasetDict.from_json(files)  # load_dataset("json") would report the use to a counter on the network
        except (DatasetGenerationError, StopIteration, ValueError) as error:  # the last two: no rows
            reason = error.__cause__ or str(error) or "it holds no rows"
            raise ValueError(f"train_file={config.train_file!r} cannot be read: {reason}") from error
    if not Path(config.dataset_name).is_dir():
        require_hub()
    splits = load_dataset(config.dataset_name, config.dataset_config)
    wanted = {"train": config.dataset_train_split, "validation": config.dataset_test_split}
    if wanted["train"] not in splits:
        raise ValueError(f"dataset_train_split={wanted['train']!r} is not known; allowed: {', '.join(splits)}")
    return DatasetDict({name: splits[split] for name, split in wanted.items() if split in splits})


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, config: Any) -> DatasetDict:
    """``splits`` as ``input_ids``, ``attention_mask`` and ``labels``, cut to ``config.max_length`` tokens.

    A row of a causal model ends with the end token; the labels of a prompt are -100, so that only the completion is
    learnt (TRL's columns and rule). Rows without a target, because the prompt fills all the room, are dropped.

    Raises:
        ValueError: no row has a target.
    """
    encode = _encode_classes if config.task == "classification" else _encode_text
    done = splits.map(
        encode,
        fn_kwargs={"tokenizer": tokenizer, "max_length": config.max_length},
        remove_columns=splits["train"].column_names,
        desc="tokenise",
    )
    if config.task == "causal_lm":
        done = done.filter(_has_target, input_columns="labels")
    _check_not_empty(done["train"], config.max_length)
    return done


def _check_not_empty(rows: Dataset, max_length: int) -> None:
    if not len(rows):
        raise ValueError(f"max_length={max_length} leaves no row with a target; allowed: longer than a prompt")


def _has_target(labels: list[int]) -> bool:
    return any(label >= 0 for label in labels[1:])  # nothing is predicted at position 0


def _encode_classes(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    encoded = tokenizer(row["text"], truncation=True, max_length=max_length)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")} | {"labels": row["label"]}


def _encode_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
    text = row["completion"] if "prompt" in row else row["text"]
    answer = tokenizer(text, add_special_tokens="prompt" not in row)["input_ids"]
    if tokenizer.eos_token_id is not None and answer[-1:] != [tokenizer.eos_token_id]:
        answer = answer + [tokenizer.eos_token_id]
    ids = (prompt + answer)[:max_length]
    labels = ([-100] * len(prompt) + answer)[:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
