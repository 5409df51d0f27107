"""Shell and sbatch scripts of public style with nothing wrong (see healthy.py)."""

SCRIPTS = {
    "one_node.sh": """\
#!/usr/bin/env bash
set -euo pipefail
export OMP_NUM_THREADS=8
torchrun --standalone --nproc-per-node=8 train.py \\
    --model_name_or_path Qwen/Qwen3-0.6B \\
    --output_dir runs/one --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \\
    --bf16 True --save_steps 500 --logging_steps 10 --learning_rate 2e-5 --num_train_epochs 3
""",
    "variables.sh": """\
#!/bin/bash
MODEL=${MODEL:-Qwen/Qwen3-8B}
NUM_GPUS=8
MICRO=2
ACC=$((64 / (NUM_GPUS * MICRO)))
ARGS="--output_dir out --bf16 True --save_steps 100"
if [ ! -d data ]; then mkdir data; fi
for f in data/*.jsonl; do echo "$f"; done
torchrun --nproc_per_node "$NUM_GPUS" train.py --model_name_or_path "$MODEL" $ARGS \\
  --per_device_train_batch_size $MICRO --gradient_accumulation_steps $ACC 2>&1 | tee log.txt
""",
    "accelerate.sh": """\
#!/bin/bash
accelerate launch --config_file configs/fsdp2.yaml --num_processes 8 train.py --output_dir out --bf16 True --lr 1e-4
""",
    "deepspeed.sh": """\
#!/bin/bash
# two machines
deepspeed --hostfile hostfile --num_nodes 2 --num_gpus 8 --master_port 29501 \\
    train.py --deepspeed ds.json --output_dir out --per_device_train_batch_size 2 --bf16 True
""",
    "several.sh": """\
#!/bin/bash
torchrun --standalone --nproc-per-node=4 first.py --config a.yaml
torchrun --standalone --nproc-per-node=8 second.py --config b.yaml
""",
    "static.sh": """\
#!/bin/bash
# the same line on both machines, with its own NODE_RANK
torchrun --nnodes=2 --nproc-per-node=8 --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port=2950 train.py
""",
    "two_nodes.sbatch": """\
#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export OMP_NUM_THREADS=8
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=8 --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d \\
    --rdzv-endpoint="$head_node:29500" train.py --epochs 3
""",
    "inside.sbatch": """\
#!/bin/bash
#SBATCH -J accelerate
#SBATCH -N 4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH -c 32
#SBATCH -t 1-00:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
trap 'kill -USR1 "$srun"' USR1
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
srun --cpus-per-task=$SLURM_CPUS_PER_TASK bash -c 'accelerate launch --config_file multi.yaml --num_machines 4 \\
  --num_processes 32 --machine_rank $SLURM_PROCID --main_process_ip $MASTER_ADDR --main_process_port 29500 train.py' &
srun=$!
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done
""",
}
