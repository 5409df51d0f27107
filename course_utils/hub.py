"""Is the hub there, and did what it sent arrive whole? The ground under every loader of ``source="hub"``.

Without a network those clients retry for up to four minutes before they give up. ``require_hub`` asks first, waits
three seconds at most, and says what to do. Nothing here runs code from the hub: ``trust_remote_code`` is never set.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCES = ("local", "hub")
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


def check_source(source: str) -> None:
    """Raise ``ValueError`` for a ``source`` that is not one of ``SOURCES``."""
    if source not in SOURCES:
        raise ValueError(f"source={source!r} is not known; allowed: {', '.join(map(repr, SOURCES))}")


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
def from_hub(name: str, kind: str) -> Iterator[None]:
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
