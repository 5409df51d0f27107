"""Random specs with hostile text: each is one clear error, or files that parse, resolve, and execute nothing.

`make test` draws a hundred, `make test-long` a thousand.
"""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from course_utils.errors import SpecError
from course_utils.gpus import GPUS
from course_utils.launch.check.cloud import expanded, lost
from course_utils.launch.check.folder import check
from course_utils.launch.check.launchers import arriving
from course_utils.launch.check.scripts import resolve
from course_utils.launch.files import cloud
from course_utils.launch.files.write import render, write
from course_utils.launch.spec import Spec
from course_utils.launch.spec.arguments import program, program_arguments
from course_utils.launch.spec.read import read_spec

SIZES = [100, pytest.param(1000, marks=pytest.mark.long)]
EXECUTED, CHECKED_EVERY = 50, 20
FOLDER = "launch"

HOSTILE = st.sampled_from(
    (
        "$(touch pwned)", "`touch pwned`", "; touch pwned", "|| touch pwned", "\n touch pwned\n", "' touch pwned '",
        '" ; touch pwned ; "', "'; import os; os.mkdir('pwned') #", '"""', "''' + 1 + '''", "{{ 7 * 7 }}", "{% raw %}",
        "a b", "--flag", "-", "--", "-c", "~", "*", "#", ": x", "- x", "!!python/object:os.system", "&a", "%",
        "\\", "\\n", "\r", "\t", "é", "😀", "日本語", "\u2028", "\u202e", "\x7f", "\x85", "\x1b[31m", "\ufeff",
        "$HOME", "${PATH}", "$$", "$(PET_NODE_RANK)", "!!", "0x10", "null", "yes", "1e3", "'", '"', "=", "--x=y", "a,b",
    )
)  # fmt: skip
TEXT = st.one_of(HOSTILE, st.builds("".join, st.lists(HOSTILE, min_size=1, max_size=3)), st.text(max_size=12))
WORD = st.sampled_from(("job", "My.Job_1", "9-a", "a" * 63, "x", "A--b..c__d"))
MOSTLY = st.integers(0, 9)


@st.composite
def rarely(draw, usual, otherwise):
    """A value of ``usual``, one time in ten of ``otherwise``."""
    return draw(otherwise if draw(MOSTLY) == 9 else usual)


@st.composite
def fields(draw):
    """Fields of a spec; most of them fit together, and any text may be hostile."""
    strategy = draw(st.sampled_from(("ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3")))
    nodes, gpus = draw(st.sampled_from((1, 1, 2, 3, 4))), draw(st.sampled_from((1, 2, 4, 8)))
    offloads = {"ddp": ("none",), "fsdp1": ("none", "all"), "fsdp2": ("none", "all")}
    found = {
        "strategy": strategy,
        "nodes": nodes,
        "gpus_per_node": gpus,
        "offload": draw(rarely(st.sampled_from(offloads.get(strategy, ("none", "optimizer"))), st.just("all"))),
        "precision": draw(st.sampled_from(("fp32", "bf16", "bf16", "bf16_weights", "fp16"))),
        "arguments": tuple(draw(st.lists(TEXT, max_size=4))),
        "program": draw(
            st.sampled_from(("course_utils.recipes.finetune", "trl.scripts.sft")) | TEXT.map("{}.py".format)
        ),
        "output_dir": draw(TEXT),
        "model": draw(st.just("Qwen/Qwen3-0.6B") | TEXT),
        "trainer_flags": draw(rarely(st.just(True), st.just(False))),
        "gpu": draw(rarely(st.sampled_from(("H100-80GB", "L4-24GB", "A100-40GB")), st.sampled_from(tuple(GPUS)))),
        "micro_batch": draw(st.integers(1, 9)),
        "accumulation": draw(st.none() | st.integers(1, 9)),
        "sequence_length": draw(st.integers(1, 99)) * 16,
        "checkpointing": draw(st.booleans()),
        "lora_rank": draw(st.sampled_from((0, 0, 8))),
        "time_limit": draw(st.integers(5, 9999)),
        "port": draw(rarely(st.integers(1024, 65535), st.integers(0, 99999))),
        "name": draw(rarely(WORD, TEXT)),
        "partition": draw(rarely(st.sampled_from(("", "gpu", "a@b:c")), TEXT)),
        "account": draw(rarely(st.just("me"), TEXT)),
        "image": draw(rarely(st.sampled_from(("", "a/b:1", "r.io/x@sha256:0")), TEXT)),
        "hosts": draw(rarely(st.just(()), st.lists(TEXT | WORD, min_size=nodes, max_size=nodes).map(tuple))),
    }
    found |= {
        "warning": draw(rarely(st.just(120), st.integers(30, 900))),
        "log_dir": draw(rarely(st.just(""), TEXT)),
        "interface": draw(rarely(st.sampled_from(("", "eth0", "=ib0,ib1")), TEXT)),
        "network_kind": draw(st.sampled_from(("any", "ethernet", "infiniband", "roce", "efa"))),
        "preflight": draw(st.sampled_from(("warn", "stop", "off"))),
        "max_restarts": draw(st.sampled_from((0, 0, 3))),
        "learning_rate": draw(st.none() | st.floats(1e-6, 1.0)),
        "save_total_limit": draw(st.none() | st.integers(1, 9)),
        "exclusive": draw(st.booleans()),
        "numa": draw(st.sampled_from(("", "", "node", "core-complex"))),
        "container": draw(st.sampled_from(("none", "none", "pyxis", "apptainer"))),
        "network_devices": draw(rarely(st.sampled_from(((), ("rdma/hca=8",))), st.tuples(TEXT))),
        "ddp_timeout": draw(st.integers(60, 9999)),
    }
    if strategy == "fsdp2" and draw(st.booleans()):
        found |= {"replicas": draw(st.sampled_from((1, 2))), "tensor_parallel": draw(st.sampled_from((1, 2)))}
    if draw(MOSTLY) == 0:
        found["device"] = "cpu"
    return found


def draw_specs(number: int) -> list[dict]:
    """The same ``number`` sets of fields in every run."""
    found = []

    @settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(fields())
    def collect(values):
        found.append(values)

    collect()
    return found


@pytest.fixture(scope="module", params=SIZES, ids="{} specs".format)
def rendered(request):
    """Of each set of fields either the spec with its files' texts, or the error."""
    good, refused = [], []
    for values in draw_specs(request.param):
        try:
            spec = Spec(**values)
            good.append((spec, render(spec, FOLDER)))
        except SpecError as error:
            refused.append(str(error))
    assert len(good) + len(refused) >= request.param
    print(f"\n{len(good)} specs valid, {len(refused)} refused; {sum(len(texts) for _, texts in good)} files")
    return good, refused


def test_each_spec_is_written_or_refused_in_one_line(rendered):
    good, refused = rendered
    assert len(good) >= 0.4 * (len(good) + len(refused))
    reasons = Counter(message.split("=")[0] for message in refused)
    print(reasons.most_common(8))
    assert len(reasons) >= 5  # the refusals are no single rule
    for message in refused:
        assert message.isprintable() and "allowed" in message, message


def test_every_file_parses_and_holds_the_spec(rendered):
    good, _ = rendered
    for spec, texts in good:
        for name, text in texts.items():
            if name.endswith(".yaml"):
                assert isinstance(yaml.safe_load(text), dict), name
            elif name.endswith(".json"):
                assert isinstance(json.loads(text), dict), name
            elif name.endswith(".py"):
                compile(text, name, "exec")
        assert Spec(**yaml.safe_load(texts["spec.yaml"])) == spec


def constants(text: str) -> dict:
    """Literal assignments at the top of a Python file; names of settings files, which are not literal, are left out."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            if isinstance(value, ast.List):
                value.elts = [element for element in value.elts if isinstance(element, ast.Constant)]
            try:
                found[node.targets[0].id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def test_the_cloud_files_of_every_spec_say_the_same(rendered):
    """The program's words and batch numbers in the Python files; names, machines and scripts in the YAML files."""
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    good, _ = rendered
    for spec, texts in good:
        asked = [
            word
            for word in program_arguments(spec, folder=FOLDER)
            if not word.endswith((f"{FOLDER}/fsdp.json", f"{FOLDER}/deepspeed.json"))
        ]
        ray, entry = constants(texts["ray_train.py"]), constants(texts["sagemaker_entry.py"])
        assert (ray["PROGRAM"], ray["ARGUMENTS"]) == (program(spec), asked)
        assert entry["ARGUMENTS"][bool(spec.trainer_flags) :] == asked[bool(spec.trainer_flags) :]
        assert constants(texts["sagemaker_v3.py"])["HYPERPARAMETERS"] == cloud.hyperparameters(spec)
        job = yaml.safe_load(texts["trainjob.yaml"])
        assert list(lost(job, TrainerV1alpha1TrainJob.from_dict(job).to_dict())) == []
        assert expanded(job["spec"]["trainer"]["args"][0]) == f"{FOLDER}/torchrun.sh"
        task = yaml.safe_load(texts["skypilot.yaml"])
        assert task["name"] == cloud.sky_name(spec)
        assert (task["num_nodes"], job["spec"]["trainer"]["numNodes"]) == (spec.nodes, spec.nodes)


def test_shell_scripts_pass_bash_and_shellcheck(rendered, tmp_path):
    """All scripts of all specs, many to a call; equal texts once."""
    good, _ = rendered
    scripts = {}
    for _, texts in good:
        scripts |= {text: name for name, text in texts.items() if name.endswith((".sh", ".sbatch"))}
        task = yaml.safe_load(texts["skypilot.yaml"])
        scripts |= {f"#!/bin/bash\n{task[part]}": "skypilot.sh" for part in ("setup", "run")}
    for number, (text, name) in enumerate(scripts.items()):
        (tmp_path / f"{number}-{name.replace('.sbatch', '.sh')}").write_text(text, encoding="utf-8")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > len(good)
    loop = 'for f; do bash -n "$f" || echo "bad: $f"; done'
    done = subprocess.run(["bash", "-c", loop, "loop", *names], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    linter = Path(sys.executable).with_name("shellcheck")
    if not linter.exists():
        pytest.skip("shellcheck is not installed")
    halves = [names[0::2], names[1::2]]
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    command = [linter, "--format=gcc", "--shell=bash"]
    started = [
        subprocess.Popen([*command, *half], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for half in halves
    ]
    complaints = [line for one in started for line in one.communicate()[0].splitlines()]
    print(f"{len(names)} different scripts")
    assert complaints == []
    assert [one.returncode for one in started] == [0, 0]


def test_scripts_hand_hostile_words_on_and_execute_none(rendered, tmp_path, monkeypatch):
    """The scripts of 50 specs, run with stand-ins for the launchers: words arrive as they are, nothing is made."""
    good, _ = rendered
    monkeypatch.chdir(tmp_path)
    hostile = 0
    executed = good[:: max(1, len(good) // EXECUTED)]
    for spec, _ in executed:
        write(spec, FOLDER, overwrite=True)
        started = arriving(resolve(Path(FOLDER, "torchrun.sh"), NODE_RANK="0").arguments)
        words = list(spec.arguments)
        assert started[len(started) - len(words) :] == words
        assert program(spec) in started
        if spec.trainer_flags:
            assert f"--output_dir={spec.output_dir}" in started
        hostile += any("touch pwned" in word for word in (*words, spec.output_dir, spec.program))
        assert sorted(os.listdir(tmp_path)) == [FOLDER]
        assert not list(tmp_path.rglob("*pwned*"))
    print(f"{hostile} of {len(executed)} executed specs held a command")
    assert hostile >= 5


def test_every_twentieth_spec_passes_the_whole_check(rendered, tmp_path, monkeypatch):
    good, _ = rendered
    monkeypatch.chdir(tmp_path)
    number = 0
    for spec, _ in good[::CHECKED_EVERY]:
        write(spec, FOLDER, overwrite=True)
        assert read_spec(Path(FOLDER, "spec.yaml")) == spec
        rows = check(FOLDER)
        number += len(rows)
        assert [row for row in rows if not row.same] == [], spec
        assert sorted(os.listdir(tmp_path)) == [FOLDER]
    print(f"{len(good[::CHECKED_EVERY])} folders checked, {number} rows")
    assert number > 0
