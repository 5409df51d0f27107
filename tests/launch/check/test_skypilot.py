"""skypilot.yaml: its script reaches the machines, and a bucket for the output can be switched on."""

import re

import pytest
import yaml

from course_utils.launch import Spec, write
from course_utils.launch.check.cloud import skypilot


def different(spec, folder):
    return {row.field for row in skypilot(spec, folder) if not row.same}


FAULTS = {
    "left to workdir, which .gitignore may thin out": ("file_mounts:\n  ", "file_mounts: {}\n  # "),
    "uploaded to another place": ('file_mounts:\n  "', 'file_mounts:\n  "/elsewhere'),
    "another folder uploaded": ('launch"  # these', '"  # these'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_script_that_does_not_arrive_is_seen(fault, tmp_path):
    write(Spec(), tmp_path / "launch")
    assert different(Spec(), tmp_path / "launch") == set()
    path = tmp_path / "launch" / "skypilot.yaml"
    old, new = FAULTS[fault]
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    assert different(Spec(), tmp_path / "launch") == {"script is uploaded"}


@pytest.mark.parametrize("folder", ["launch", "deep/er/launch files"])
def test_a_folder_named_from_the_projects_root_arrives_under_the_same_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Spec(), folder)
    assert yaml.safe_load((tmp_path / folder / "skypilot.yaml").read_text())["file_mounts"] == {folder: folder}
    assert different(Spec(), tmp_path / folder) == set()


@pytest.mark.parametrize(("nodes", "warning"), [(1, "on the machine's disk"), (2, "Every machine saves its shards")])
def test_a_bucket_for_the_output_is_a_comment_away(nodes, warning, tmp_path):
    spec = Spec(nodes=nodes, output_dir="my: runs")
    write(spec, tmp_path / "launch")
    path = tmp_path / "launch" / "skypilot.yaml"
    text = path.read_text()
    assert warning in text
    path.write_text(re.sub('  # ("my: runs":|  source:|  mode:)', r"  \1", text))
    mounts = yaml.safe_load(path.read_text())["file_mounts"]
    assert mounts["my: runs"] == {"source": "s3://BUCKET/FOLDER", "mode": "MOUNT_CACHED"}
    assert different(spec, tmp_path / "launch") == set()
