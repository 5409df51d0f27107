"""Files as public projects write them: what is started must be found, and other tools' files must not be judged."""

import json

import pytest

from course_utils.errors import SpecError
from course_utils.launch.explain.explain import explain

HEAD = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --gres=gpu:8
#SBATCH --time 2:00:00
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)
"""
SCRIPTS = {  # the launcher stands in a variable, of which a part is open
    "a command in quotes": """\
LAUNCHER="python -u -m torch.distributed.run --nproc_per_node 8 --nnodes $SLURM_NNODES \\
    --rdzv_endpoint $MASTER_ADDR:6000 --rdzv_backend c10d --role `hostname -s`: --tee 3 "
srun --wait=60 bash -c "$LAUNCHER train.py --lr 1e-4" 2>&1 | tee -a log.txt
""",
    "a command without quotes": """\
export LAUNCHER="accelerate launch --num_processes $((SLURM_NNODES * 8)) --num_machines $SLURM_NNODES \\
    --rdzv_backend c10d --main_process_ip $MASTER_ADDR --main_process_port 29500 "
CMD="$LAUNCHER ${SCRIPT:-train.py} --output_dir out"
srun $CMD
""",
    "an interpreter in a variable": """\
PYTHON=${PYTHON:-/opt/venv/bin/python3.11}
srun $PYTHON -X dev -m torch.distributed.run --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d \\
    --rdzv_endpoint $MASTER_ADDR:6000 train.py
""",
}


def told(folder, name, text):
    path = folder / name
    path.write_text(text)
    return explain([path])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_launcher_in_a_variable_is_found(name, tmp_path):
    found = told(tmp_path, "job.slurm", HEAD + SCRIPTS[name])
    assert found.findings == []
    rows = {row.name.partition(": ")[2]: row for row in found.settings}
    assert rows["program"].resolved == "train.py"
    assert {str(rows[key].resolved) for key in ("--num_machines", "--nnodes") if key in rows} == {"2"}


def test_machines_that_sbatchs_command_line_gives_are_open(tmp_path):
    script = HEAD.replace("#SBATCH --nodes=2\n", "") + SCRIPTS["a command without quotes"]
    rows = {row.name: row.resolved for row in told(tmp_path, "job.slurm", script).settings}
    assert rows["accelerate launch: --num_machines"] == "open: SLURM_NNODES is set by SLURM"


AXOLOTL = "base_model: a/b\nsequence_len: 2048\ngradient_checkpointing: true\nwarmup_ratio: 0.1\nfsdp_config: {}\n"
TORCHTUNE = "output_dir: /tmp\nseed: 1\noptimizer:\n  _component_: torch.optim.AdamW\nmax_steps: 3\n"


@pytest.mark.parametrize(("tool", "text"), [("axolotl", AXOLOTL), ("torchtune", TORCHTUNE)])
def test_another_tools_file_is_refused(tool, text, tmp_path):
    with pytest.raises(SpecError, match=f"is for {tool}, which has its own names; allowed"):
        told(tmp_path, "config.yaml", text)


def test_a_recipe_is_judged_by_the_class_that_has_its_names(tmp_path):
    recipes = {"DPOConfig": "beta: 0.1\nloss_type: sigmoid\n", "GRPOConfig": "beta: 0.1\nnum_generations: 8\n"}
    for kind, lines in recipes.items():
        text = f"model_name_or_path: a/b\ntrust_remote_code: false\noutput_dir: out\nlearning_rate: 1.0e-6\n{lines}"
        found = told(tmp_path, "recipe.yaml", text)
        assert (list(found.kinds.values()), found.findings) == ([kind], [])


def test_an_old_name_that_is_still_read_is_not_called_gone(tmp_path):
    """transformers 5.23 keeps ``torch_dtype``; its relatives end in a TypeError."""
    from transformers import AutoModel, BertConfig

    model = AutoModel.from_config(BertConfig(num_hidden_layers=1, hidden_size=12), torch_dtype="bfloat16")
    assert str(model.dtype) == "torch.bfloat16"
    found = told(tmp_path, "a.py", "AutoModel.from_pretrained('a', torch_dtype='auto')\n")
    assert ["is the old spelling, still read" in one.sentence for one in found.findings] == [True]


@pytest.mark.parametrize(
    "text",
    ["torchrun " + "a" * 100_000, "#SBATCH --signal=B:USR1@3\n" + "\n" * 50_000 + ". ", "a=b" * 30_000, "$(" * 9_000],
    ids=["word", "lines", "assignments", "open"],
)
def test_a_large_file_takes_no_square_of_its_size(text, tmp_path):
    """The first two took minutes; hardly anything can be said about any of them."""
    assert len(told(tmp_path, "a.sh", text).findings) <= 3


def test_zero_is_a_strategy(tmp_path):
    paths = [tmp_path / "ds.json", tmp_path / "accelerate.yaml"]
    paths[0].write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    assert explain(paths[:1], {"strategy": "zero2"}).findings == []
    assert [one.name for one in explain(paths[:1], {"strategy": "zero3"}).findings] == ["not-as-asked"]
    paths[1].write_text("distributed_type: FSDP\nnum_processes: 8\nfsdp_config: {fsdp_version: 2}\n")
    assert [one.name for one in explain(paths).findings] == ["contradiction"]


def test_stages_of_one_file_need_not_agree(tmp_path):
    text = "a = SFTConfig('a', per_device_train_batch_size=4)\nb = DPOConfig('b', per_device_train_batch_size=1)\n"
    assert told(tmp_path, "a.py", text).findings == []
