"""The preflight in the launch scripts, and what is said about the network, each where it belongs."""

import os
import subprocess

import pytest
import yaml

from course_utils.errors import SpecError
from course_utils.launch import Spec, render, write
from course_utils.launch.check.folder import check
from course_utils.launch.files import preflight

STUB = """#!/usr/bin/env bash
for word; do [[ $word != */preflight.py ]] || { echo "preflight $*" >> "$NOTES"; exit "$WRONG"; }; done
echo "${0##*/} $*" >> "$NOTES"
"""
SCRIPTS = ("torchrun.sh", "accelerate.sh", "deepspeed.sh")


def started(spec, script, tmp_path, wrong):
    """Exit code of a script, and what it started, with launchers whose preflight ends with ``wrong``."""
    write(spec, tmp_path / "launch", overwrite=True)
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir(exist_ok=True)
    for name in ("torchrun", "accelerate", "deepspeed"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes), "WRONG": str(wrong)}
    command = ["bash", tmp_path / "launch" / script, "--output_dir=elsewhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, notes.read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_machine_stops_training_where_that_was_asked(script, tmp_path):
    code, lines = started(Spec(strategy="zero2", preflight="stop"), script, tmp_path, wrong=3)
    assert code == 3 and len(lines) == 1 and lines[0].startswith("preflight ")
    assert "--mode=stop" in lines[0] and lines[0].endswith("--program --output_dir=elsewhere")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_warning_does_not_stop_training(script, tmp_path):
    code, lines = started(Spec(strategy="zero2"), script, tmp_path, wrong=1)
    assert code == 0
    assert [line.split()[0] for line in lines] == ["preflight", script.removesuffix(".sh")]


@pytest.mark.parametrize("fields", [{"preflight": "off"}, {"gpus_per_node": 1}])
def test_none_where_it_is_off_or_there_is_one_gpu(fields, tmp_path):
    texts = render(Spec(strategy="ddp", **fields))
    assert "preflight.py" not in texts and not any("preflight.py" in text for text in texts.values())


def test_it_is_told_what_the_plan_takes_for_granted():
    spec = Spec(strategy="ddp", nodes=2, network_kind="infiniband", save_total_limit=2)
    words = ["--output_dir=runs/finetune", "--mode=warn", "--disk=22", "--gpus=8", "--expect=400"]
    assert preflight.words(spec) == [*words, "--network=infiniband"]  # 3 checkpoints of 7.2 GB
    assert preflight.bandwidth(spec.but(network=12.5)) == 12.5 and preflight.bandwidth(spec.but(nodes=1)) == 450
    assert not any(word.startswith("--disk") for word in preflight.words(spec.but(model="somebody/unknown")))


def test_its_file_needs_nothing_of_the_course(tmp_path):
    write(Spec(), tmp_path / "launch")
    text = (tmp_path / "launch" / "preflight.py").read_text()
    assert text == preflight.source() and "course_utils" not in text
    made = {}
    exec(compile(text, "preflight.py", "exec"), made | {"__name__": "preflight"}, made)
    assert {"problems", "slow_links", "SLOW", "main"} <= made.keys()  # both files of the recipe are in it


def test_a_planted_fault_turns_the_preflights_row_red(tmp_path):
    write(Spec(strategy="ddp"), tmp_path / "launch")
    script = tmp_path / "launch" / "torchrun.sh"
    script.write_text(script.read_text().replace("--gpus=8", "--gpus=4", 1))
    assert {(row.file, row.field) for row in check(tmp_path / "launch") if not row.same} == {
        ("torchrun.sh", "preflight")
    }


def test_a_short_spec_asks_for_no_preflight_and_no_network(tmp_path):
    """Somebody's own script beside a spec of a few lines: what the spec leaves out is as they like."""
    write(Spec(strategy="ddp", nodes=2, preflight="off", interface="eth0", logging_steps=3), tmp_path / "launch")
    (tmp_path / "launch" / "spec.yaml").write_text("strategy: ddp\nnodes: 2\n")
    assert [row for row in check(tmp_path / "launch") if not row.same] == []
    (tmp_path / "launch" / "spec.yaml").write_text("strategy: ddp\nnodes: 2\npreflight: stop\n")
    assert {row.field for row in check(tmp_path / "launch") if not row.same} == {"preflight"}


NETWORKS = {
    "any": {},
    "ethernet": {"NCCL_NET": "Socket"},
    "infiniband": {"NCCL_NET": "IB"},
    "roce": {"NCCL_NET": "IB"},
    "efa": {"FI_PROVIDER": "efa"},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_is_named_where_it_belongs(kind, tmp_path):
    spec = Spec(strategy="ddp", nodes=2, network_kind=kind, interface="=ib0,ib1")
    texts = render(spec)
    for name, value in (NETWORKS[kind] | {"GLOO_SOCKET_IFNAME": "=ib0,ib1"}).items():
        assert f"export {name}={value}  # " in texts["torchrun.sh"].replace("'", "")
        assert f"'{name}': '{value}',  # " in texts["ray_train.py"]
    fast = kind in ("infiniband", "roce", "efa")
    assert yaml.safe_load(texts["skypilot.yaml"])["resources"].get("network_tier") == ("best" if fast else None)
    assert ("IPC_LOCK" in texts["trainjob.yaml"]) == fast


def test_the_network_survives_the_check(tmp_path):
    write(Spec(strategy="ddp", nodes=2, network_kind="efa", interface="eth0"), tmp_path / "launch")
    assert [row for row in check(tmp_path / "launch") if not row.same] == []
    for name, old, new in (
        ("accelerate.sh", "FI_PROVIDER=efa", "FI_PROVIDER=tcp"),
        ("trainjob.yaml", "[IPC_LOCK]", "[SYS_ADMIN]"),
        ("skypilot.yaml", "network_tier: best", "network_tier: standard"),
    ):
        path = tmp_path / "launch" / name
        path.write_text(path.read_text().replace(old, new))
    different = {(row.file, row.field) for row in check(tmp_path / "launch") if not row.same}
    wanted = {("accelerate.sh", "network"), ("trainjob.yaml", "memory may be locked")}
    assert different == wanted | {("skypilot.yaml", "network between machines")}


def test_one_machine_is_told_nothing_about_a_network():
    assert "NCCL" not in render(Spec(network_kind="infiniband", interface="eth0"))["torchrun.sh"]


@pytest.mark.parametrize("interface", ["eth0; touch x", "$(x)", "eth 0", "-x", "é", "a" * 200])
def test_an_interface_that_is_none(interface):
    with pytest.raises(SpecError, match="is not allowed; allowed: "):
        Spec(interface=interface)
