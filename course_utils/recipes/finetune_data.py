"""Rows for ``finetune``: the course's data, JSON lines, or a hub data set, as token ids with labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.data import load_classification, load_language_modelling
from course_utils.parallel.shared_folder import seen_by_all
from course_utils.recipes.command_line import from_folder_or_hub
from course_utils.recipes.json_lines import NO_ROOM, read_table, words_for

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase, TrainingArguments

COLUMNS = {"classification": ({"text", "label"},), "causal_lm": ({"prompt", "completion"}, {"text"})}
MARGIN = 64  # tokens behind a cut that may be other ones than in the whole text; measured: 1 or 2


def has_one_cache(args: TrainingArguments) -> bool:
    """Whether all ranks prepare data in one folder; ``args`` has brought them together."""
    from datasets import config

    return args.world_size == 1 or seen_by_all(config.HF_DATASETS_CACHE)


def load_rows(config: Any) -> DatasetDict:
    """Splits ``train`` and, where there is one, ``validation``, with the columns of ``COLUMNS[config.task]``.

    Raises:
        ValueError: missing columns, an empty or unreadable file, a row that cannot be used.
        ConnectionError: a hub data set without a network.
    """
    from datasets import ClassLabel, DatasetDict

    if config.train_file:
        files = {"train": ("train_file", config.train_file)}
        files |= {"validation": ("eval_file", config.eval_file)} if config.eval_file else {}
        columns = COLUMNS[config.task]
        splits = DatasetDict({split: read_table(path, name, columns) for split, (name, path) in files.items()})
    elif config.dataset_name:
        splits = _named_splits(config)
    else:
        load = load_classification if config.task == "classification" else load_language_modelling
        splits = load(config.source)
        splits = DatasetDict({name: splits[name] for name in ("train", "validation")})
    for split, rows in splits.items():
        _check(rows, split, config.task)
    if config.task == "classification" and not isinstance(splits["train"].features["label"], ClassLabel):
        splits = _name_classes(splits)
    return splits


def _named_splits(config: Any) -> DatasetDict:
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetGenerationError

    is_folder = Path(config.dataset_name).is_dir()
    try:
        with from_folder_or_hub(config.dataset_name, "dataset"):
            splits = load_dataset(config.dataset_name, config.dataset_config)
    except MemoryError:
        raise
    except Exception as error:  # whatever reads csv, JSON or parquet raises: StopIteration for an empty file
        if not is_folder and not isinstance(error, DatasetGenerationError):
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:300] or "an empty file"
        raise ValueError(
            f"dataset_name={config.dataset_name!r} cannot be read ({reason}); allowed: whole files, UTF-8"
        ) from error
    wanted = {"train": config.dataset_train_split, "validation": config.dataset_test_split}
    if wanted["train"] not in splits:
        raise ValueError(f"dataset_train_split={wanted['train']!r} is not known; allowed: {', '.join(splits)}")
    return DatasetDict({name: splits[split] for name, split in wanted.items() if split in splits})


def _check(rows: Dataset, split: str, task: str) -> None:
    """Raise ``ValueError`` for columns that are missing, of another type, or have empty places."""
    from datasets import ClassLabel

    needed = next((needed for needed in COLUMNS[task] if needed <= set(rows.column_names)), None)
    if needed is None:
        has, allowed = sorted(rows.column_names), words_for(COLUMNS[task])
        raise ValueError(f"the {split} split has the columns {has}; allowed for {task}: {allowed}")
    if not len(rows):
        raise ValueError(f"the {split} split has no rows; allowed: at least one")
    for name in sorted(needed):
        feature = rows.features[name]
        kinds = ("string", "large_string") + (("int8", "int32", "int64", "bool") if name == "label" else ())
        if not isinstance(feature, ClassLabel) and getattr(feature, "dtype", None) not in kinds:
            raise ValueError(f"the {split} split's {name} is of type {feature}; allowed: {', '.join(kinds)}")
        column = rows.data.column(name)
        if column.null_count or isinstance(feature, ClassLabel):
            values = rows.with_format(None)[name]
            bad = (i for i, v in enumerate(values) if v is None or (isinstance(feature, ClassLabel) and v < 0))
            if (row := next(bad, None)) is not None:
                raise ValueError(f"the {split} split, row {row + 1}, has {name}={values[row]}; allowed: a value")


def _name_classes(splits: DatasetDict) -> DatasetDict:
    from datasets import ClassLabel

    names = sorted({str(label) for split in splits.values() for label in split.unique("label")})
    if len(names) < 2:
        raise ValueError(f"the train split has one class only, {names[0]!r}; allowed: at least two labels")
    splits = _mapped(splits, _label_as_text)
    features = splits["train"].features.copy()
    features["label"] = ClassLabel(names=names)
    return _mapped(splits, _label_as_number, fn_kwargs={"names": names}, features=features)


def _label_as_text(row: dict[str, Any]) -> dict[str, str]:
    return {"label": str(row["label"])}


def _label_as_number(row: dict[str, Any], names: list[str]) -> dict[str, int]:
    return {"label": names.index(row["label"])}


def _mapped(splits: DatasetDict, function: Any, **options: Any) -> DatasetDict:
    """``splits.map``, whose result lies beside the table it was called on; in memory where that cannot be written."""
    try:
        return splits.map(function, **options)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return splits.map(function, **options, keep_in_memory=True, load_from_cache_file=False)


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, config: Any) -> DatasetDict:
    """``splits`` as ``input_ids``, ``attention_mask`` and ``labels``, cut to ``config.max_length`` tokens.

    A row of a causal model ends with one end token; the labels of a prompt are -100, so that only the completion is
    learnt. Prompt and completion are tokenised together, and the completion begins where the ids are no longer those
    of the prompt alone (TRL's columns and rule). Rows without a target, because the prompt fills the room, are dropped.

    Raises:
        ValueError: no row has a target.
    """
    encode = _encode_classes if config.task == "classification" else _encode_text
    done = _mapped(
        splits,
        encode,
        fn_kwargs={"tokenizer": tokenizer, "max_length": config.max_length},
        remove_columns=splits["train"].column_names,
        desc="tokenise",
    )
    if config.task == "causal_lm":
        try:
            done = done.filter(_has_target, input_columns="labels")
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            done = done.filter(_has_target, input_columns="labels", keep_in_memory=True, load_from_cache_file=False)
    for split in done:
        if not len(done[split]):
            raise ValueError(
                f"max_length={config.max_length} leaves no row of the {split} split with a target; allowed: longer "
                "than a prompt"
            )
    return done


def _has_target(labels: list[int]) -> bool:
    return any(label >= 0 for label in labels[1:])  # nothing is predicted at position 0


def _encode_classes(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    text = _beginning(row["text"], tokenizer, max_length)
    encoded = tokenizer(text, truncation=True, max_length=max_length)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")} | {"labels": row["label"]}


def _beginning(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """As much of a long ``text`` as its first ``max_length`` tokens need: megabytes would be tokenised for nothing."""
    length = 64 * (max_length + MARGIN)
    while length < len(text) and tokenizer.truncation_side == "right":
        if len(tokenizer(text[:length], add_special_tokens=False)["input_ids"]) >= max_length + MARGIN:
            return text[:length]
        length *= 4
    return text


def _encode_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    prompt, whole = (row["prompt"], row["prompt"] + row["completion"]) if "prompt" in row else ("", row["text"])
    ids, end = tokenizer(_beginning(whole, tokenizer, max_length))["input_ids"], tokenizer.eos_token_id
    if end is not None:
        while ids and ids[-1] == end:  # one that the tokenizer added, or the text's own
            ids = ids[:-1]
        ids = [*ids, end]
    alone = tokenizer(_beginning(prompt, tokenizer, max_length))["input_ids"] if "prompt" in row else []
    masked = _common(alone, ids if end is None else ids[:-1])
    labels = [-100] * masked + ids[masked:]
    ids, labels = ids[:max_length], labels[:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _common(first: list[int], second: list[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def fingerprint(rows: Dataset) -> str:
    """SHA-256 of all token ids and labels in their order: what a run was trained on, whatever the files were called."""
    seen = hashlib.sha256(str(len(rows)).encode())
    columns = [name for name in ("input_ids", "labels") if name in rows.column_names]
    for table in rows.with_format("arrow").iter(batch_size=5_000):
        for name in columns:
            column = table.column(name).combine_chunks()
            if hasattr(column, "flatten") and hasattr(column, "value_lengths"):
                seen.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                column = column.flatten()
            seen.update(column.to_numpy(zero_copy_only=False).tobytes())
    return seen.hexdigest()[:16]
