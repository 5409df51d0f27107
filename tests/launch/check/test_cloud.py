"""The files for SageMaker, Kubernetes, SkyPilot and Ray: same run everywhere, planted faults seen, nothing executed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from course_utils.launch.check import cloud as check_cloud
from course_utils.launch.check import stand_ins
from course_utils.launch.check.launchers import arriving
from course_utils.launch.files import cloud
from course_utils.launch.files.write import render, write
from course_utils.launch.spec import Spec

HOSTILE = (
    "$(touch pwned)",
    "`touch pwned`",
    "a b",
    'it\'s "q"',
    "two\nlines",
    "é😀",
    "$HOME",
    "$$",
    "--x=$(PET_NODE_RANK)",
)
SPECS = {
    "ddp": {"strategy": "ddp", "gpu": "L4-24GB", "gpus_per_node": 4, "accumulation": 3},
    "fsdp1": {"strategy": "fsdp1", "nodes": 2, "replicas": 2, "arguments": HOSTILE},
    "fsdp2": {"strategy": "fsdp2", "nodes": 4, "tensor_parallel": 2, "global_batch": 64},
    "zero2": {"strategy": "zero2", "precision": "fp16", "micro_batch": 2, "gpus_per_node": 3},
    "zero3": {"strategy": "zero3", "offload": "all", "device": "cpu", "gpus_per_node": 2, "image": ""},
    "plain": {"program": "-my train.py", "trainer_flags": False, "strategy": "fsdp2", "arguments": HOSTILE},
}


@pytest.fixture(params=SPECS)
def written(request, tmp_path):
    spec = Spec(**SPECS[request.param])
    write(spec, tmp_path / "my launch")
    return spec, tmp_path / "my launch"


def rows_of(spec, folder):
    return {(row.file, row.field): row for row in check_cloud.rows(spec, folder)}


def different(spec, folder):
    return {key for key, row in rows_of(spec, folder).items() if not row.same}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_file_resolves_to_the_spec(written):
    spec, folder = written
    rows = rows_of(spec, folder)
    assert {key: (row.asked, row.resolved) for key, row in rows.items() if not row.same} == {}
    tools = {file: rows[file, "resolved by"].resolved for file in ("trainjob.yaml", "skypilot.yaml", "ray_train.py")}
    print(tools)
    assert tools["trainjob.yaml"].startswith("kubeflow-trainer-api ")
    batches = {key: row.resolved for key, row in rows.items() if key[1].startswith("effective batch")}
    assert len(batches) == (7 if spec.trainer_flags else 0)  # SageMaker's entry point: per SDK, with and without SM_HPS
    assert set(batches.values()) <= {spec.effective_batch}
    strategies = {row.resolved for key, row in rows.items() if key[1] == "strategy"}
    assert strategies == {spec.strategy}


def test_one_set_of_arguments(written):
    """What Ray's workers and SageMaker's ranks run is what torchrun.sh runs, but for SageMaker's output folder."""
    spec, folder = written
    ray = stand_ins.record(folder / "ray_train.py")["program"]["arguments"]
    machines = json.dumps([str(number) for number in range(spec.nodes)])
    ranks = {"SM_HOSTS": machines, "WORLD_SIZE": str(spec.world_size), "SM_MODEL_DIR": str(folder), "RANK": "1"}
    entry = stand_ins.record(folder / "sagemaker_entry.py", environment=ranks)["program"]["arguments"]
    torchrun = arriving(check_cloud.resolve(folder / "torchrun.sh", NODE_RANK="0").arguments)

    def plain(words):
        return [re.sub("^--output_dir=.*", "--output_dir", word) for word in words]

    assert plain(entry) == plain(ray)
    assert plain(torchrun)[-len(ray) :] == plain(ray) != []
    if spec.trainer_flags:
        assert f"--output_dir={cloud.SAGEMAKER_CHECKPOINTS}" in entry


FAULTS = {
    "workers": ("ray_train.py", "num_workers=16", "num_workers=8", ("ray_train.py", "workers")),
    "backend": ("ray_train.py", "backend='nccl'", "backend='gloo'", ("ray_train.py", "backend")),
    "unknown keyword": ("ray_train.py", "num_workers=", "num_worker=", ("ray_train.py", "can be resolved")),
    "no strategy": ("ray_train.py", '"--fsdp",', "", ("ray_train.py", "strategy")),
    "one hour": ("sagemaker_v3.py", "max_runtime_in_seconds=86400", "max_runtime_in_seconds=3600",
                 ("sagemaker_v3.py", "time limit [s]")),
    "misspelt field": ("sagemaker_v3.py", "Compute(", "Compute(instance_typ=1,",
                       ("sagemaker_v3.py", "can be resolved")),
    "other instance": ("sagemaker_v2.py", "ml.p5.48xlarge", "ml.p3.16xlarge", ("sagemaker_v2.py", "instance type")),
    "one process": ("sagemaker_v2.py", '{"enabled": True}', '{"enabled": False}',
                    ("sagemaker_v2.py", "started by torchrun")),
    "tuned batch": ("sagemaker_v3.py", "'per_device_train_batch_size': 1", "'per_device_train_batch_size': 2",
                    ("sagemaker_entry.py from sagemaker_v3", "effective batch with SM_HPS")),
    "text for SM_HPS": ("sagemaker_v3.py", "'max_steps': 1000", "'max_steps': \"'$(touch pwned)'\"",
                        ("sagemaker_v3.py", "hyperparameters that are text")),
    "fewer steps": ("sagemaker_v2.py", "'max_steps': 1000", "'max_steps': 10",
                    ("sagemaker_entry.py from sagemaker_v2", "optimizer steps with SM_HPS")),
    "entry without accumulation": ("sagemaker_entry.py", "'--gradient_accumulation_steps=3'", "'--seed=1'",
                                   ("sagemaker_entry.py from sagemaker_v2", "accumulation")),
    "processes": ("trainjob.yaml", "numProcPerNode: 8", "numProcPerNode: 4", ("trainjob.yaml", "processes per node")),
    "dropped key": ("trainjob.yaml", "numNodes: 2", "numNode: 2", ("trainjob.yaml", "keys that nobody reads")),
    "wrong type": ("trainjob.yaml", "numNodes: 2", "numNodes: two", ("trainjob.yaml", "can be resolved")),
    "rendezvous": ("trainjob.yaml", "NODE_RANK=$PET_NODE_RANK", "NODE_RANK=0",
                   ("trainjob.yaml", "starts what torchrun.sh starts")),
    "rank": ("skypilot.yaml", "$SKYPILOT_NODE_RANK", "0", ("skypilot.yaml", "starts what torchrun.sh starts")),
    "GPU": ("skypilot.yaml", "H100:8", "A100:8", ("skypilot.yaml", "accelerators per node")),
    "unknown task key": ("skypilot.yaml", "num_nodes: 2", "num_nodes: 2\nnodes: 2",
                         ("skypilot.yaml", "can be resolved")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_turn_a_row(fault, tmp_path):
    spec = Spec(nodes=2, accumulation=3)
    write(spec, tmp_path / "launch")
    assert different(spec, tmp_path / "launch") == set()
    file, old, new, expected = FAULTS[fault]
    edit(tmp_path / "launch" / file, old, new)
    assert expected in different(spec, tmp_path / "launch")


def test_a_machine_sagemaker_does_not_offer_is_one_sentence(tmp_path):
    spec = Spec(gpu="T4-16GB", precision="fp16", gpus_per_node=8)
    assert {"sagemaker_v3.py", "trainjob.yaml", "ray_train.py"} <= {
        path.name for path in write(spec, tmp_path / "launch")
    }
    needed = ("--image", "i", "--role", "r", "--checkpoints", "s3://b/c")
    for file in ("sagemaker_v3.py", "sagemaker_v2.py"):
        with pytest.raises(RuntimeError, match=r"gpus_per_node=8 is not offered.*'T4-16GB'; allowed: 1 or 4"):
            stand_ins.record(tmp_path / "launch" / file, *needed)
        found = stand_ins.record(tmp_path / "launch" / file, *needed, "--instance-type", "ml.mine")
        assert "ml.mine" in json.dumps(found)
    assert different(spec, tmp_path / "launch") == set()


@pytest.mark.parametrize("name", ["A", "0", "My.Job_1", "a" * 63, "9" + "-_." * 20 + "x", "x" + "." * 60])
def test_names_are_what_each_service_accepts(name):
    spec = Spec(name=name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,39}[a-z0-9])?", cloud.job_name(spec))
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,47}", cloud.job_name(spec))  # + 15 for SageMaker's time stamp
    assert re.fullmatch(r"[a-zA-Z0-9]+(?:[._-]{1,2}[a-zA-Z0-9]+)*", cloud.sky_name(spec))


def entry_of(tmp_path, program: str, **changes):
    """A written entry point whose program is ``program``, and the environment of SageMaker's only rank."""
    (tmp_path / "train.py").write_text(program)
    (tmp_path / "model").mkdir()
    (tmp_path / "channel" / "data").mkdir(parents=True)
    (tmp_path / "channel" / "data" / "rows.jsonl").touch()
    fields = {"program": "train.py", "strategy": "ddp", "device": "cpu", "gpus_per_node": 1} | changes
    write(Spec(**fields), tmp_path / "launch")
    sagemaker = {
        "SM_HOSTS": '["algo-1"]',
        "SM_NUM_GPUS": "0",
        "SM_MODEL_DIR": str(tmp_path / "model"),
        "SM_CHANNEL_TRAINING": str(tmp_path / "channel"),
        "SM_HPS": json.dumps({"output_dir": "out", "max_steps": 7, "_tuning": 1, "sagemaker_region": "x"}),
        "WORLD_SIZE": "1",
    }
    return [sys.executable, "launch/sagemaker_entry.py"], os.environ | sagemaker


SAVES = """
import os, sys, json, pathlib
import neighbour
out = pathlib.Path([word for word in sys.argv if word.startswith("--output_dir=")][-1].split("=")[1])
(out / "checkpoint-3").mkdir(parents=True)
(out / "model.safetensors").write_text("weights")
(out / "seen.json").write_text(json.dumps([sys.argv, os.environ["ACCELERATE_USE_CPU"], __name__, os.getpid()]))
sys.exit(0)
"""


def test_the_entry_point_runs_the_program_and_hands_over_the_model(tmp_path):
    (tmp_path / "neighbour.py").touch()
    command, environment = entry_of(tmp_path, SAVES, arguments=("--train_file", "data/rows.jsonl", *HOSTILE))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.safetensors", "seen.json"]
    words, cpu, name, _ = json.loads((tmp_path / "model" / "seen.json").read_text())
    assert (words[0], cpu, name) == ("train.py", "true", "__main__")
    assert words[-2:] == ["--output_dir=out", "--max_steps=7"]  # SM_HPS wins; SageMaker's own entries are left out
    assert words[-2 - len(HOSTILE) : -2] == list(HOSTILE)
    assert words[words.index("--train_file") + 1] == str(tmp_path / "channel" / "data/rows.jsonl")
    assert not list(tmp_path.rglob("pwned"))


def test_the_entry_point_refuses_other_machines_and_passes_failures_on(tmp_path):
    command, environment = entry_of(tmp_path, "import sys; sys.exit(3)")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    other = environment | {"WORLD_SIZE": "4"}
    done = subprocess.run(command, cwd=tmp_path, env=other, capture_output=True, text=True)
    assert done.returncode == 1 and "4 ranks on 1 machines" in done.stderr and "1 x 1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_entry_point_stops_in_time_to_save(tmp_path):
    wait = (
        "import signal, time, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\ntime.sleep(60); sys.exit(9)"
    )
    command, environment = entry_of(tmp_path, wait)
    edit(tmp_path / "launch" / "sagemaker_entry.py", "STOP_AFTER = 86280", "STOP_AFTER = 0.2")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_sdk_2_uploads_a_copy_without_what_stays_at_home(tmp_path, monkeypatch):
    for name in (".git", ".venv", "runs", "data"):
        (tmp_path / name).mkdir()
    write(Spec(), tmp_path / "launch")
    package = tmp_path / "fake" / "sagemaker"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "huggingface.py").write_text(
        "import os\nclass HuggingFace:\n"
        "    def __init__(self, source_dir, entry_point, **others):\n"
        "        print(sorted(os.listdir(source_dir)), os.path.exists(source_dir + '/' + entry_point))\n"
        "    def fit(self, *a, **k): pass\n"
    )
    command = [sys.executable, "launch/sagemaker_v2.py", "--image", "i", "--role", "r", "--checkpoints", "s3://b/c"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "fake")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['data', 'fake', 'launch'] True", done.stderr


def test_a_name_for_kubernetes_is_not_expanded(tmp_path):
    folder = tmp_path / "$(HOME) $$ $x"
    spec = Spec(nodes=2)
    write(spec, folder)
    assert {key for key in different(spec, folder) if key[0] in ("trainjob.yaml", "skypilot.yaml")} == set()
    args = yaml.safe_load((folder / "trainjob.yaml").read_text())["spec"]["trainer"]["args"]
    assert check_cloud.expanded(args[0]) == str(folder / "torchrun.sh")
    assert check_cloud.expanded("$(A)$$(B) $x") == "$(B) $x"


def test_no_account_and_no_token_in_any_file(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    text = "\n".join(render(Spec(nodes=2)).values())
    assert "hf_secret" not in text
    assert not re.search(r"arn:aws|\b\d{12}\b|AKIA|BEGIN [A-Z ]*PRIVATE KEY", text)


def test_stand_ins_know_the_real_keywords(tmp_path):
    """Where a service's package is installed, no keyword is accepted that the real class refuses."""
    checked = []
    for full_name, words in stand_ins.ACCEPTED.items():
        package, (place, _, short) = full_name.split(".")[0], full_name.rpartition(".")
        try:
            version = importlib.metadata.version(package)
            real = getattr(__import__(place, fromlist=[short]), short)
        except (ImportError, AttributeError):  # not installed, or the other generation of SageMaker's SDK
            continue
        import inspect

        known = set(getattr(real, "model_fields", None) or inspect.signature(real).parameters)
        if "kwargs" not in known:
            assert set(words.split()) <= known, (full_name, version)
            checked.append(f"{short} {version}")
    if not checked:
        pytest.skip("neither sagemaker nor ray is installed here: the stand-ins' keywords were read from their sources")
    print(checked)
