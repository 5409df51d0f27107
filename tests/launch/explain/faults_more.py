"""Faults of newer kinds (variables, warnings, requeues, logs, limits, imports), and what only looks like one."""

TWO_NODES = "set -euo pipefail\nexport SRUN"
ENDPOINT = "--rdzv-backend=c10d"
JOB = "#SBATCH --time=12:00:00\n"
FAULTS = {
    "a debugging switch": (
        "two_nodes.sbatch",
        TWO_NODES,
        "export NCCL_P2P_DISABLE=1\nexport SRUN",
        {"variable-slow"},
    ),
    "InfiniBand off": ("two_nodes.sbatch", TWO_NODES, "export NCCL_IB_DISABLE=1\nexport SRUN", {"variable-slow"}),
    "a switch before the command": (
        "one_node.sh",
        "torchrun --stand",
        "CUDA_LAUNCH_BLOCKING=1 torchrun --stand",
        {"variable-slow"},
    ),
    "a switch given by srun": (
        "two_nodes.sbatch",
        "srun torchrun",
        "srun --export=ALL,NCCL_DEBUG=TRACE torchrun",
        {"variable-noisy"},
    ),
    "NCCL's log": ("one_node.sh", "export OMP", "export NCCL_DEBUG=INFO\nexport OMP", {"variable-noisy"}),
    "NCCL's log in a pod": (
        "trainjob.yaml",
        "    numNodes: 2\n",
        "    numNodes: 2\n    env: [{name: NCCL_DEBUG, value: INFO}]\n",
        {"variable-noisy"},
    ),
    "NCCL's log in a task": ("sky.yaml", '  EPOCHS: "3"', '  EPOCHS: "3"\n  NCCL_DEBUG: INFO', {"variable-noisy"}),
    "a switch in Python": (
        "classify.py",
        "training_args =",
        'os.environ["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL"\ntraining_args =',
        {"variable-slow"},
    ),
    "a switch in SageMaker": (
        "sagemaker_old.py",
        "max_run=",
        'environment={"CUDA_LAUNCH_BLOCKING": "1"}, max_run=',
        {"variable-slow"},
    ),
    "a hang that stays": (
        "one_node.sh",
        "export OMP",
        "export TORCH_NCCL_ASYNC_ERROR_HANDLING=0\nexport OMP",
        {"variable-off"},
    ),
    "the flight recorder's old name": (
        "one_node.sh",
        "export OMP",
        "export TORCH_NCCL_TRACE_BUFFER_SIZE=2000\nexport OMP",
        {"variable-renamed"},
    ),
    "no export": ("one_node.sh", "export OMP", "OMP", {"variable-not-exported"}),
    "a log that is cut": ("inside.sbatch", "#SBATCH --open-mode=append\n", "", {"requeue-truncates"}),
    "a warning that kills": ("inside.sbatch", "trap 'kill -USR1 \"$srun\"' USR1\n", "", {"signal-untrapped"}),
    "a trap for another signal": ("inside.sbatch", "' USR1", "' TERM", {"signal-untrapped"}),
    "a trap that waits": ("inside.sbatch", "train.py' &", "train.py'", {"trap-too-late"}),
    "folders without logs": ("one_node.sh", "--standalone", "--standalone --log-dir=logs", {"log-dir-empty"}),
    "logs on no console": ("one_node.sh", "--standalone", "--standalone -r 3", {"logs-in-tmp"}),
    "a rank that accelerate makes 0": ("inside.sbatch", "--machine_rank $SLURM_PROCID", "", {"constant-rank"}),
    "days of waiting": ("one_node.sh", "--bf16 True", "--bf16 True --ddp_timeout 180000000", {"timeout-too-long"}),
    "no limit": ("arguments.yaml", "save_total_limit: 3", "save_total_limit: 0", {"no-limit"}),
    "FSDP2's word without a version": (
        "fsdp2.yaml",
        "  fsdp_version: 2\n",
        "",
        {"fsdp-version-missing"},
    ),
    "TRL's prompts": ("sft.yaml", "packing: true", "beta: 0.1\nmax_prompt_length: 512", {"removed-argument"}),
    "TRL's type": ("sft.yaml", "lora_r: 16", "torch_dtype: bfloat16", {"renamed-argument"}),
    "a class that is gone": ("classify.py", "import AutoModel", "import TFAutoModel, AutoModel", {"import-gone"}),
    "DeepSpeed inside Python": (
        "sft.py",
        "packing=True,",
        'packing=True, deepspeed={"zero_optimization": {"stage": 2, "overlap_com": True}},',
        {"zero-unknown-key", "contradiction"},  # it shards by FSDP, too
    ),
    "two precisions in one file": (
        "classify.py",
        "training_args =",
        'accelerator = Accelerator(mixed_precision="fp16")\ntraining_args =',
        {"contradiction"},
    ),
    "python with options": (
        "one_node.sh",
        "torchrun --standalone",
        "python -u -X faulthandler -m torch.distributed.launch",
        {"launch-module-gone"},
    ),
}
RIGHT = {  # (file, old, new): none of these is a fault
    "InfiniBand off on one machine": ("one_node.sh", "export OMP", "export NCCL_IB_DISABLE=1\nexport OMP"),
    "InfiniBand off where EFA is": (
        "two_nodes.sbatch",
        TWO_NODES,
        "export NCCL_IB_DISABLE=1 FI_PROVIDER=efa\nexport SRUN",
    ),
    "a switch that is off": ("two_nodes.sbatch", TWO_NODES, "export NCCL_P2P_DISABLE=0\nexport SRUN"),
    "a commented switch": ("two_nodes.sbatch", TWO_NODES, "# export NCCL_DEBUG=INFO\nexport SRUN"),
    "exported later": ("one_node.sh", "export OMP_NUM_THREADS=8", "OMP_NUM_THREADS=8\nexport OMP_NUM_THREADS"),
    "all exported": ("one_node.sh", "export OMP", "set -a\nOMP"),
    "used by the script": ("variables.sh", "NUM_GPUS=8", "HF_MODEL=a\nNUM_GPUS=8\necho $HF_MODEL"),
    "a trap elsewhere": ("inside.sbatch", "trap 'kill -USR1 \"$srun\"' USR1\n", "source traps.sh\n"),
    "a warning to the ranks": ("inside.sbatch", "B:USR1", "USR1"),
    "a rank that nobody reads": (
        "two_nodes.sbatch",
        "srun torchrun",
        "srun accelerate launch --num_machines=2 --num_processes=16 --rdzv_backend=c10d "
        "--machine_rank=$SLURM_PROCID --main_process_ip=$head_node x.py\nsrun torchrun",
    ),
    "groups over all ranks": (
        "sft.py",
        "SFTConfig(",
        'GRPOConfig("g", num_generations=8, per_device_train_batch_size=1)\nconfig = SFTConfig(',
    ),
    "ready for a gap": (
        "classify.py",
        "from transformers import AutoModel",
        "try:\n    from transformers import AdamW\nexcept ImportError:\n    pass\nfrom transformers import AutoModel",
    ),
    "machines on sbatch's command line": ("two_nodes.sbatch", "#SBATCH --nodes=2\n", ""),
    "restarts and logs": ("one_node.sh", "--standalone", "--standalone --max-restarts=3 --log-dir=logs --tee=3"),
}
