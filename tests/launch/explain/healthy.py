"""Files of public style with nothing wrong: no finding may be made about them."""

from tests.launch.explain.healthy_scripts import SCRIPTS

FILES = {
    "fsdp2.yaml": """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_activation_checkpointing: false
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_version: 2
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
""",
    "fsdp1.yaml": """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 1
num_processes: 8
machine_rank: 0
main_process_ip: localhost
main_process_port: 29500
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_forward_prefetch: false
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_sync_module_states: true
  fsdp_use_orig_params: true
""",
    "ddp.yaml": """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: fp16
num_machines: 1
num_processes: 4
use_cpu: false
""",
    "zero3.yaml": """\
compute_environment: LOCAL_MACHINE
deepspeed_config:
  deepspeed_multinode_launcher: standard
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3
distributed_type: DEEPSPEED
machine_rank: 0
main_process_ip: 10.0.0.1
main_process_port: 29500
mixed_precision: bf16
num_machines: 2
num_processes: 16
""",
    "hsdp.yaml": """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 2
num_processes: 16
machine_rank: 0
main_process_ip: 10.0.0.1
main_process_port: 29500
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: false
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
parallelism_config:
  parallelism_config_dp_replicate_size: 2
  parallelism_config_dp_shard_size: 8
""",
    "zero2_auto.json": """\
{
  "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
           "hysteresis": 2, "min_loss_scale": 1},
  "bf16": {"enabled": "auto"},
  "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
  "scheduler": {"type": "WarmupLR",
                "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
  "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": true},
    "allgather_partitions": true, "allgather_bucket_size": 2e8, "overlap_comm": true, "reduce_scatter": true,
    "reduce_bucket_size": 2e8, "contiguous_gradients": true},
  "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
  "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false
}
""",
    "zero3_auto.json": """\
{
  "bf16": {"enabled": "auto"},
  "zero_optimization": {"stage": 3, "overlap_comm": true, "contiguous_gradients": true, "sub_group_size": 1e9,
    "offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"},
    "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": true},
  "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
  "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"
}
""",
    "zero1_numbers.json": """\
{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2,
 "gradient_clipping": 1.0, "bf16": {"enabled": true}, "zero_optimization": {"stage": 1}}
""",
    **SCRIPTS,
    "arguments.yaml": """\
output_dir: runs/sft
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
learning_rate: 2.0e-5
num_train_epochs: 3
lr_scheduler_type: cosine
warmup_steps: 100
bf16: true
logging_steps: 10
save_strategy: steps
save_steps: 200
save_total_limit: 3
eval_strategy: steps
eval_steps: 200
load_best_model_at_end: true
report_to: tensorboard
seed: 42
""",
    "sft.yaml": """\
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/Capybara
output_dir: out
max_length: 2048
packing: true
per_device_train_batch_size: 2
activation_checkpointing: true
learning_rate: 2.0e-4
lora_r: 16
""",
    "arguments.json": """\
{"output_dir": "out", "per_device_train_batch_size": 8, "learning_rate": 5e-05, "fp16": true, "max_steps": 1000,
 "save_steps": 250, "logging_steps": 20, "optim": "adamw_torch"}
""",
    "fsdp.json": """\
{"version": 2, "reshard_after_forward": true, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "cpu_offload": false,
 "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer", "state_dict_type": "SHARDED_STATE_DICT",
 "activation_checkpointing": true}
""",
    "classify.py": """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

tokenizer = AutoTokenizer.from_pretrained("distilbert-base-uncased")
model = AutoModelForSequenceClassification.from_pretrained("distilbert-base-uncased", num_labels=2)
training_args = TrainingArguments(
    output_dir="./sst2",
    num_train_epochs=3,
    per_device_train_batch_size=32,
    per_device_eval_batch_size=64,
    eval_strategy="epoch",
    save_strategy="epoch",
    learning_rate=2e-5,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    bf16=True,
)
trainer = Trainer(model=model, args=training_args, train_dataset=rows["train"], processing_class=tokenizer)
trainer.train()
""",
    "sft.py": """\
from trl import SFTConfig, SFTTrainer

BATCH = 4
config = SFTConfig("out", per_device_train_batch_size=BATCH, max_length=1024, packing=True, max_steps=args.steps,
                   fsdp=True, fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"})
trainer = SFTTrainer(model="Qwen/Qwen3-0.6B", args=config, train_dataset=dataset)
""",
    "sagemaker_new.py": """\
from sagemaker.core.training.configs import Compute, SourceCode, StoppingCondition
from sagemaker.train import ModelTrainer
from sagemaker.train.distributed import Torchrun

trainer = ModelTrainer(
    training_image=IMAGE,
    source_code=SourceCode(source_dir="src", entry_script="train.py"),
    compute=Compute(instance_type="ml.p4d.24xlarge", instance_count=2),
    distributed=Torchrun(process_count_per_node=8),
    hyperparameters={"epochs": 3, "lr": 1e-4},
    stopping_condition=StoppingCondition(max_runtime_in_seconds=86400),
)
trainer.train()
""",
    "sagemaker_old.py": """\
from sagemaker.huggingface import HuggingFace

estimator = HuggingFace(
    entry_point="train.py", source_dir="src", role=role, instance_type="ml.p4d.24xlarge", instance_count=4,
    py_version="py310", distribution={"torch_distributed": {"enabled": True}}, max_run=86400,
    checkpoint_s3_uri="s3://bucket/x", use_spot_instances=True, max_wait=172800,
)
estimator.fit({"training": "s3://bucket/data"})
""",
    "sky.yaml": """\
name: train
num_nodes: 2
workdir: .
resources:
  accelerators: H100:8
  infra: aws
envs:
  EPOCHS: "3"
setup: |
  pip install -r requirements.txt
run: |
  MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n1)
  torchrun --nnodes=$SKYPILOT_NUM_NODES --nproc-per-node=$SKYPILOT_NUM_GPUS_PER_NODE \\
    --node-rank=$SKYPILOT_NODE_RANK --master-addr=$MASTER_ADDR --master-port=8008 train.py --epochs $EPOCHS
""",
    "trainjob.yaml": """\
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: train
spec:
  runtimeRef:
    name: torch-distributed
  trainer:
    image: registry.io/me/train:1.2
    numNodes: 2
    numProcPerNode: 8
    command: [torchrun, train.py]
    resourcesPerNode:
      limits:
        nvidia.com/gpu: 8
""",
}
