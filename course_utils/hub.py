"""The public data sets and models behind ``source="hub"``, loaded through the ordinary clients.

Without a network those clients retry for up to four minutes before they give up. ``require_hub`` asks first, waits
three seconds at most, and says what to do. Nothing here runs code from the hub: ``trust_remote_code`` is never set.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from torch import nn
    from transformers import PreTrainedTokenizerBase

HUB_NAMES = {
    "classification": "stanfordnlp/sst2",  # 67,349 + 872 sentences of film reviews, negative or positive
    "glue": "nyu-mll/glue",  # the same rows as configuration "sst2" of the GLUE benchmark
    "instructions": "databricks/databricks-dolly-15k",  # 15,011 instructions with answers written by people
    "encoder": "distilbert/distilbert-base-uncased",  # 67M parameters
    "causal_lm": "Qwen/Qwen3-0.6B",  # 596M parameters, stored in bfloat16
}

WHAT_TO_DO = (
    'use source="local", or connect to a network, or set HF_ENDPOINT to a mirror you can reach, '
    "or download once elsewhere and start Python with HF_HUB_OFFLINE=1"
)


def require_hub(timeout: float = 3.0) -> None:
    """Return if the hub answers a HEAD request within ``timeout`` seconds, or if ``HF_HUB_OFFLINE=1`` is set.

    The request goes to ``HF_ENDPOINT`` through the client's own session, so proxies and certificates are those of the
    later downloads. It runs in a daemon thread: name resolution has no time limit of its own.

    Raises:
        ConnectionError: no usable answer; one sentence with the reason and what to do.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    answer: dict[str, Any] = {"status": None, "reason": f"no answer within {timeout:g} s"}
    thread = threading.Thread(target=_probe, args=(constants.ENDPOINT, timeout, answer), daemon=True)
    thread.start()
    thread.join(timeout)
    status = answer["status"]
    if status is None or status >= 500 or status == 407:  # 407: a proxy wants credentials
        place = _without_credentials(constants.ENDPOINT)
        raise ConnectionError(f"The hub at {place} is not reachable ({answer['reason']}); {WHAT_TO_DO}.")


def _probe(endpoint: str, timeout: float, answer: dict[str, Any]) -> None:
    """Fill ``answer`` with the HTTP status, or with the reason why there is none."""
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=timeout).status_code
    except Exception as error:  # an answer or none: the kind of failure only goes into the sentence
        answer["reason"] = " ".join(str(error).split()) or type(error).__name__
    else:
        answer["reason"] = f"HTTP status {status}"
        answer["status"] = status


def _without_credentials(url: str) -> str:
    """``https://user:password@host/path`` -> ``https://host/path``, fit for a message."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def _from_hub(name: str, kind: str) -> Iterator[None]:
    """Probe, check what was downloaded, and turn whatever the clients raise while loading ``name`` into one sentence.

    Args:
        kind: ``"model"`` or ``"dataset"``.

    Raises:
        ConnectionError: the hub is out of reach, or ``name`` could not be loaded from it (or, offline, from the cache).
    """
    require_hub()
    error: Exception | None = None
    try:
        yield
    except (TypeError, MemoryError):
        raise  # the caller's mistake, or the machine's limit: not the hub's
    except Exception as caught:
        error = caught
    if damaged := _drop_damaged(name, kind):
        raise ConnectionError(
            f"{name}: {', '.join(damaged)} arrived damaged (wrong checksum) and left the cache again; load it anew."
        ) from error
    if error is not None:
        from huggingface_hub import constants

        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        place = "the local cache (HF_HUB_OFFLINE=1)" if constants.is_offline_mode() else "the hub"
        raise ConnectionError(
            f'{name} could not be loaded from {place}: {reason}; try again, or use source="local".'
        ) from error


def _drop_damaged(name: str, kind: str) -> list[str]:
    """Remove the cached files of ``name`` whose content is not what their checksum says; return their names.

    The client compares sizes, not content. A cached file is named by its entity tag: SHA-256 for a large file, git's
    blob id for a small one. What was derived from a damaged data file, the Arrow copy, goes too.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    blobs = {blob for blob in repo.glob("blobs/*") if _checksum(blob) not in (None, blob.name)}
    names = {blob.name for blob in blobs}
    links = [link for link in repo.glob("snapshots/*/**/*") if link.is_symlink() and link.readlink().name in names]
    for path in (*links, *blobs):
        path.unlink(missing_ok=True)
    if blobs and kind == "dataset":
        import datasets

        shutil.rmtree(Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___"), ignore_errors=True)
    return sorted(link.name for link in links) or sorted(blob.name for blob in blobs)


def _checksum(blob: Path) -> str | None:
    """The checksum of the kind that ``blob``'s name is, or None if its name is none (a file being downloaded)."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return None
    with blob.open("rb") as stream:
        if len(blob.name) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        start = hashlib.sha1(b"blob %d\0" % blob.stat().st_size)  # git's object header
        return hashlib.file_digest(stream, lambda: start).hexdigest()


def load_hub_classification(name: str = HUB_NAMES["classification"]) -> DatasetDict:
    """SST-2 (Socher et al. 2013, "Recursive Deep Models for Semantic Compositionality"): is the sentence positive?

    SST-2's own test split has no labels (all -1), so its validation split is divided in two halves by a hash of the
    sentence: ``validation`` and ``test``. Splits and columns have the local data's names.

    Args:
        name: ``HUB_NAMES["classification"]`` or ``HUB_NAMES["glue"]`` (the same rows).

    Returns:
        Splits train/validation/test; columns ``text`` (str) and ``label`` (ClassLabel: negative, positive).

    Raises:
        ValueError: unknown ``name``.
        ConnectionError: see ``require_hub``.
    """
    allowed = (HUB_NAMES["classification"], HUB_NAMES["glue"])
    if name not in allowed:
        raise ValueError(f"name={name!r} is not a classification data set of the course; allowed: {', '.join(allowed)}")
    with _from_hub(name, "dataset"):
        from datasets import DatasetDict, load_dataset

        raw = load_dataset(name, "sst2" if name == HUB_NAMES["glue"] else None)
        raw = raw.rename_column("sentence", "text").select_columns(["text", "label"])
        halves = _split_by_hash(raw["validation"], lambda row: row["text"], {"validation": 0.5, "test": 1.0})
        return DatasetDict(train=raw["train"], **halves)


def load_hub_instructions() -> DatasetDict:
    """Dolly 15k (Databricks 2023): instructions, some with a passage to work on, answered by people.

    Rows that share a passage stay in one split: the split is a hash of the passage, or of the instruction without one.

    Returns:
        Splits train/validation/test (about 80/10/10); columns ``instruction``, ``input`` (may be empty), ``output``.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with _from_hub(HUB_NAMES["instructions"], "dataset"):
        from datasets import DatasetDict, load_dataset

        rows = load_dataset(HUB_NAMES["instructions"], split="train")
        rows = rows.rename_columns({"context": "input", "response": "output"})
        rows = rows.select_columns(["instruction", "input", "output"])
        bounds = {"train": 0.8, "validation": 0.9, "test": 1.0}
        return DatasetDict(_split_by_hash(rows, lambda row: row["input"].strip() or row["instruction"], bounds))


def load_hub_text() -> DatasetDict:
    """Dolly 15k as running text for language modelling: one row an example, its non-empty parts as paragraphs.

    Returns:
        Splits train/validation/test as in ``load_hub_instructions``; column ``text``.

    Raises:
        ConnectionError: see ``require_hub``.
    """

    def join(row: dict[str, str]) -> dict[str, str]:
        parts = (row["instruction"], row["input"], row["output"])
        return {"text": "\n\n".join(part.strip() for part in parts if part.strip())}

    rows = load_hub_instructions()
    return rows.map(join, remove_columns=["instruction", "input", "output"])


def _split_by_hash(rows: Dataset, key: Callable[[dict[str, Any]], str], bounds: dict[str, float]) -> dict[str, Dataset]:
    """Deal ``rows`` into splits by SHA-256 of ``key(row)``: the same on every machine, and equal keys stay together.

    Args:
        bounds: split name -> upper end of its share of the unit interval, ascending, the last one 1.0.
    """
    members: dict[str, list[int]] = {name: [] for name in bounds}
    for index, row in enumerate(rows):
        digest = hashlib.sha256(key(row).encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        members[next(name for name, bound in bounds.items() if point < bound or bound == 1.0)].append(index)
    return {name: rows.select(indices) for name, indices in members.items()}


def load_hub_tokenizer(name: str = HUB_NAMES["encoder"]) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to model ``name``.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with _from_hub(name, "model"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name)


def load_hub_classifier(name: str = HUB_NAMES["encoder"], num_labels: int = 2, **config_overrides: Any) -> nn.Module:
    """The pretrained encoder ``name`` with a new classification head of ``num_labels`` outputs, in float32.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with _from_hub(name, "model"):
        import torch
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=num_labels, dtype=torch.float32, **config_overrides
        )


def load_hub_masked_lm(name: str = HUB_NAMES["encoder"], **config_overrides: Any) -> nn.Module:
    """The pretrained encoder ``name`` with its masked-language-model head, in float32.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with _from_hub(name, "model"):
        import torch
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, **config_overrides)


def load_hub_causal_lm(name: str = HUB_NAMES["causal_lm"], dtype: str = "float32") -> nn.Module:
    """The pretrained causal language model ``name``.

    Args:
        dtype: of the weights. transformers 5 would keep the checkpoint's own (bfloat16 for Qwen3), in which AdamW's
            small updates are lost to rounding: float32 is the default here.

    Raises:
        ConnectionError: see ``require_hub``.
    """
    with _from_hub(name, "model"):
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
