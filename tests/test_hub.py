"""``source="hub"`` against a hub on loopback, in fresh processes: the clients read ``HF_ENDPOINT`` at import."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from course_utils import hub
from course_utils.data import hub_data
from course_utils.data.hub_data import load_hub_classification, split_by_hash
from course_utils.hub import HUB_NAMES, _without_credentials
from course_utils.models import hub_models
from tests.hub_files import DOLLY, GLUE, SST2, dolly_rows, sst2_rows, write_datasets, write_models
from tests.hub_server import HubServer, commit_of

ENCODER, CAUSAL_LM = HUB_NAMES["encoder"], HUB_NAMES["causal_lm"]
SECONDS = 10  # the promise: without a network, an answer within this time


def run(code: str, home: Path, **environment: str) -> tuple[str, float]:
    """Execute ``code`` after importing every loader; an exception is printed as ``Kind: message``.

    Returns:
        standard output, and the seconds ``code`` took; imports, which a busy machine makes long, come before them.
    """
    program = "from course_utils.data.hub_data import *\nfrom course_utils.models.hub_models import *\n"
    program += "import hashlib, json, sys, time, torch, datasets\n"
    program += "from transformers import AutoModel, AutoTokenizer\nbegin = time.perf_counter()\ntry:\n"
    program += "".join(f"    {line}\n" for line in code.strip().splitlines())
    program += "except Exception as error: print(f'{type(error).__name__}: {error}')\n"
    program += "print(time.perf_counter() - begin, file=sys.stderr)\n"
    drop = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HTTP_PROXY", "http_proxy")
    clean = {name: value for name, value in os.environ.items() if name not in drop}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "HF_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, float(done.stderr.splitlines()[-1])


def one_by_one(*calls: str) -> str:
    """Code for ``run`` that prints one line for each of ``calls``: "loaded", or the sentence of its error."""
    attempt = "try: {}\nexcept ConnectionError as error: print(error)\nelse: print('loaded')"
    return "\n".join(map(attempt.format, calls))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The folder the hub serves."""
    folder = tmp_path_factory.mktemp("hub")
    write_datasets(folder)
    write_models(folder)
    return folder


ALL_LOADERS = f"""
sst2 = load_hub_classification()
glue = load_hub_classification("{GLUE}")
for rows in (sst2, glue):
    print(json.dumps({{split: [rows[split]["text"][:], rows[split]["label"][:]] for split in rows}}))
print(json.dumps([sst2["test"].column_names, sst2["test"].features["label"].names]))
dolly = load_hub_instructions()
print(json.dumps({{split: dolly[split].to_list() for split in dolly}}))
text = load_hub_text()
print(json.dumps({{split: text[split]["text"][:] for split in text}}))
tokenizer = load_hub_tokenizer()
print(json.dumps(tokenizer("a good film")["input_ids"]))
def digest(tensor): return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
encoder = load_hub_classifier(num_labels=3)
masked = load_hub_masked_lm()
causal = load_hub_causal_lm()
print(json.dumps([digest(encoder.distilbert.embeddings.word_embeddings.weight),
    digest(masked.vocab_transform.weight),
    digest(causal.model.embed_tokens.weight), str(causal.dtype), encoder.config.num_labels]))
"""


@pytest.fixture(scope="module")
def loaded(root, tmp_path_factory) -> dict:
    """Everything loaded once through a hub, and once more offline from the cache it left."""
    home = tmp_path_factory.mktemp("home")
    with HubServer(root) as hub:
        first, _ = run(ALL_LOADERS, home, HF_ENDPOINT=hub.url)
        requests = list(hub.requests)
        second, _ = run(ALL_LOADERS, home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        offline_requests = hub.requests[len(requests) :]
    keys = ("sst2", "glue", "columns", "dolly", "text", "ids", "models")
    values = [json.loads(line) for line in first.splitlines() if line[:1] in "[{"]
    assert len(values) == len(keys), first
    return {
        **dict(zip(keys, values, strict=True)),
        "hub": requests,
        "again": (first, second),
        "offline": offline_requests,
    }


def test_classification_arrives_exactly_and_its_test_split_has_labels(loaded):
    assert loaded["columns"] == [["text", "label"], ["negative", "positive"]]
    splits = loaded["sst2"]
    assert loaded["glue"] == splits
    assert splits["train"] == [[row[column] for row in sst2_rows("train")] for column in ("sentence", "label")]
    halves = {text: label for split in ("validation", "test") for text, label in zip(*splits[split], strict=True)}
    assert halves == {row["sentence"]: row["label"] for row in sst2_rows("validation")}
    assert len(splits["validation"][0]) + len(splits["test"][0]) == 40 and min(map(len, splits["test"])) > 5


def test_instructions_arrive_exactly_and_a_passage_stays_in_one_split(loaded):
    rows = [(split, row) for split, members in loaded["dolly"].items() for row in members]
    expected = [(row["instruction"], row["context"], row["response"]) for row in dolly_rows()]
    assert sorted((row["instruction"], row["input"], row["output"]) for _, row in rows) == sorted(expected)
    assert set(loaded["dolly"]) == {"train", "validation", "test"}
    for passage in {row["context"] for row in dolly_rows()} - {""}:
        assert len({split for split, row in rows if row["input"] == passage}) == 1


def test_text_is_the_instructions_rows_in_the_same_splits(loaded):
    assert {split: len(rows) for split, rows in loaded["text"].items()} == {
        split: len(rows) for split, rows in loaded["dolly"].items()
    }
    row = loaded["dolly"]["train"][0]
    parts = [row["instruction"], row["input"], row["output"]]
    assert loaded["text"]["train"][0] == "\n\n".join(part for part in parts if part)


def test_models_and_tokenizer_arrive_exactly(loaded, root):
    import torch
    from safetensors.torch import load_file

    assert loaded["ids"] == [2, 5, 6, 7, 3]
    weights = {name: load_file(root / "models" / name / "model.safetensors") for name in (ENCODER, CAUSAL_LM)}
    tensors = [
        weights[ENCODER]["distilbert.embeddings.word_embeddings.weight"],
        weights[ENCODER]["vocab_transform.weight"],
        weights[CAUSAL_LM]["model.embed_tokens.weight"].to(torch.float32),
    ]
    expected = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors]
    assert loaded["models"] == [*expected, "torch.float32", 3]


def test_every_file_came_from_the_hub_and_no_code_was_asked_to_run(loaded, root):
    asked = loaded["hub"]
    for kind, name, file in (
        ("datasets/", SST2, "data/train-00000-of-00001.parquet"),
        ("datasets/", GLUE, "sst2/validation-00000-of-00001.parquet"),
        ("datasets/", DOLLY, "databricks-dolly-15k.jsonl"),
        ("", ENCODER, "model.safetensors"),
        ("", ENCODER, "tokenizer.json"),
        ("", CAUSAL_LM, "model.safetensors"),
    ):
        commit = commit_of(root / (kind or "models") / name)
        assert ("HEAD", f"/{kind}{name}/resolve/{commit}/{file}") in asked
    digest = hashlib.sha256((root / "models" / ENCODER / "model.safetensors").read_bytes()).hexdigest()
    assert asked.count(("GET", f"/large/{digest}")) == 1
    assert not [path for method, path in asked if method == "GET" and path.endswith(".py")]


def test_offline_mode_serves_the_same_from_the_cache_without_a_request(loaded):
    first, second = loaded["again"]
    assert second == first
    assert loaded["offline"] == []


@pytest.fixture(params=["no name", "refused", "silent", "status 503", "dead proxy"])
def no_hub(request):
    """The environment of a machine that cannot reach the hub, and what the sentence must say."""
    if request.param == "no name":
        yield {"HF_ENDPOINT": "http://hub.invalid"}, "hub.invalid"
    elif request.param == "dead proxy":
        yield {"HF_ENDPOINT": "http://hub.invalid", "http_proxy": "http://127.0.0.1:9"}, "refused"
    elif request.param == "status 503":
        with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            server.RequestHandlerClass = type(
                "Broken", (BaseHTTPRequestHandler,), {"do_HEAD": lambda h: h.send_error(503)}
            )
            Thread(target=server.serve_forever, daemon=True).start()
            yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}, "HTTP status 503"
            server.shutdown()
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if request.param == "silent":
                listener.listen()  # the kernel accepts; nobody ever answers
            said = "3 s" if request.param == "silent" else "refused"
            yield {"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}"}, said


def test_without_a_hub_one_sentence_within_ten_seconds(no_hub, tmp_path):
    """A data set and a model's tokenizer, both within the time that each may take."""
    environment, said = no_hub
    output, seconds = run(one_by_one("load_hub_classification()", "load_hub_tokenizer()"), tmp_path, **environment)
    assert seconds < SECONDS
    assert output.count("\n") == 2
    for sentence in output.splitlines():
        assert sentence.startswith("The hub at http://")
        assert said in sentence and 'source="local"' in sentence and "HF_HUB_OFFLINE=1" in sentence
    assert not list(tmp_path.rglob("*.incomplete"))


def test_every_loader_asks_first(tmp_path):
    loaders = [name for module in (hub_data, hub_models) for name in vars(module) if name.startswith("load_hub_")]
    assert len(loaders) == 7
    output, seconds = run(one_by_one(*(f"{name}()" for name in loaders)), tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert ["is not reachable" in line for line in output.splitlines()] == [True] * 7 and seconds < SECONDS


def test_offline_with_an_empty_cache_is_one_sentence_too(tmp_path):
    code = one_by_one("load_hub_classification()", "load_hub_causal_lm()")
    output, seconds = run(code, tmp_path, HF_HUB_OFFLINE="1")
    assert output.count("could not be loaded from the local cache") == output.count("\n") == 2 and seconds < SECONDS


DAMAGED = "damaged (wrong checksum)"
FAULTS = {  # what the server does to files -> call, name and words of its error
    "a bit": (
        {".parquet": "flipped", ".jsonl": "flipped", ".safetensors": "flipped"},
        [
            ("load_hub_classification()", SST2, DAMAGED),
            ("load_hub_instructions()", DOLLY, DAMAGED),  # still valid JSON: the client makes an Arrow copy of it
            ("load_hub_classifier()", ENCODER, DAMAGED),
        ],
    ),
    "the end, and a bit": (
        {".parquet": "truncated", ".json": "flipped"},
        [
            ("load_hub_classification()", SST2, "could not be loaded from the hub"),
            ("load_hub_tokenizer()", ENCODER, DAMAGED),
        ],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_download_is_an_error_and_leaves_no_broken_cache(fault, root, tmp_path):
    files, cases = FAULTS[fault]
    code = one_by_one(*(call for call, _, _ in cases))
    with HubServer(root, files) as hub:
        output, _ = run(code, tmp_path, HF_ENDPOINT=hub.url)
    for sentence, (_, name, said) in zip(output.splitlines(), cases, strict=True):
        assert sentence.startswith(name) and said in sentence
    assert not list(tmp_path.rglob("*.incomplete")) and not list(tmp_path.rglob("*.arrow"))
    for blob in tmp_path.glob("hub/*/blobs/*"):
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        assert blob.name in (git, hashlib.sha256(content).hexdigest())
    with HubServer(root) as hub:  # the fault is gone: the same cache folder works
        output, _ = run(code, tmp_path, HF_ENDPOINT=hub.url)
    assert output.splitlines() == ["loaded"] * len(cases)


def test_a_missing_repository_and_a_missing_file_are_one_sentence_each(root, tmp_path):
    weights = root / "models" / ENCODER / "model.safetensors"
    moved = weights.rename(root / "moved")
    code = "try: load_hub_classifier('course/absent')\nexcept ConnectionError as error: print(error)\n"
    code += "load_hub_classifier()"
    try:
        with HubServer(root) as hub:
            output, _ = run(code, tmp_path, HF_ENDPOINT=hub.url)
    finally:
        moved.rename(weights)
    no_repository, no_file = output.splitlines()
    assert no_repository.startswith("course/absent could not be loaded from the hub")
    assert (
        no_file.startswith(f"ConnectionError: {ENCODER} could not be loaded from the hub") and weights.name in no_file
    )


def test_an_unknown_classification_name_is_refused_before_any_request(monkeypatch):
    monkeypatch.setattr(hub, "require_hub", lambda: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=f"name='imdb' .*allowed: {SST2}, {GLUE}"):
        load_hub_classification("imdb")


def test_split_by_hash_keeps_equal_keys_together_and_depends_on_nothing_else():
    from datasets import Dataset

    bounds = {"train": 0.8, "validation": 0.9, "test": 1.0}
    rows = Dataset.from_dict({"key": [f"{index % 500}" for index in range(1000)]})
    splits = split_by_hash(rows, lambda row: row["key"], bounds)
    keys = [set(split["key"]) for split in splits.values()]
    assert sum(map(len, keys)) == 500 and sum(map(len, splits.values())) == 1000
    assert [len(part) for part in keys] == [414, 47, 39]  # SHA-256 is the same everywhere
    shuffled = split_by_hash(rows.shuffle(seed=1), lambda row: row["key"], bounds)
    assert [set(split["key"]) for split in shuffled.values()] == keys


def test_messages_never_carry_the_endpoints_password():
    assert _without_credentials("https://user:secret@mirror.example/hub") == "https://mirror.example/hub"
