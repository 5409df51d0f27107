"""Configurations as tutorials show them, with the settings of their time, and what must be found in each."""

FSDP1 = """\
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_cpu_ram_efficient_loading: true
  fsdp_sync_module_states: true
  fsdp_use_orig_params: true
"""
BLOCKS = {
    "deepspeed_only.py": ('TrainingArguments(\n    deepspeed="ds_config_stage2.json",\n)\n', {}),
    "relevance.py": (
        """\
TrainingArguments(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    bf16=True,
    fsdp="full_shard auto_wrap",
    gradient_checkpointing=True,
    learning_rate=1e-4,
    warmup_ratio=0.1,
    lr_scheduler_type="cosine",
)
""",
        {
            "fsdp-string": "fsdp=True",
            "deprecated-argument": "activation_checkpointing",
            "renamed-argument": "warmup_steps",
        },
    ),
    "comprehensive.py": (
        """\
training_args = TrainingArguments(
    output_dir="./results",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=32,
    learning_rate=2e-5,
    weight_decay=0.01,
    warmup_ratio=0.1,
    lr_scheduler_type="cosine",
    gradient_accumulation_steps=4,
    bf16=True,
    eval_strategy="steps",
    eval_steps=500,
    logging_steps=100,
    save_strategy="steps",
    save_steps=500,
    save_total_limit=3,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    seed=42,
    push_to_hub=False,
    report_to="tensorboard",
)
""",
        {"renamed-argument": "warmup_steps"},
    ),
    "sst2.py": (
        """\
training_args = TrainingArguments(
    output_dir="./sst2-distilbert", num_train_epochs=3, per_device_train_batch_size=32,
    per_device_eval_batch_size=64, eval_strategy="epoch", save_strategy="epoch", learning_rate=2e-5,
    load_best_model_at_end=True, metric_for_best_model="accuracy", bf16=True,
)
trainer = Trainer(model=model, args=training_args, train_dataset=tokenized["train"], tokenizer=tokenizer)
""",
        {"tokenizer-argument": "processing_class"},
    ),
    "points.py": (
        """\
training_args = TrainingArguments(
    output_dir="./outputs", per_device_train_batch_size=8, per_device_eval_batch_size=8, num_train_epochs=3,
    learning_rate=1e-3, eval_strategy="epoch", save_strategy="epoch", logging_strategy="steps", logging_steps=10,
    fp16=True, remove_unused_columns=False, report_to="none",
)
""",
        {},
    ),
    "ds_user.py": (
        """\
training_args = TrainingArguments(
    output_dir="./output", deepspeed="ds_config.json", per_device_train_batch_size=4,
    gradient_accumulation_steps=8, bf16=True, num_train_epochs=3,
)
""",
        {},
    ),
    "ds_config.json": (
        """\
{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "allgather_bucket_size": 5e8,
 "reduce_bucket_size": 5e8}, "bf16": {"enabled": true}, "train_micro_batch_size_per_gpu": 4,
 "gradient_accumulation_steps": 8}
""",
        {},
    ),
    "launch.sh": (
        "accelerate launch --num_processes 4 train.py\ntorchrun --nproc_per_node 4 train_with_trainer.py\n",
        {},
    ),
    "callback.py": (
        """\
training_args = TrainingArguments(
    output_dir=config.output_dir, save_strategy="no", save_total_limit=2, max_steps=config.max_steps,
    per_device_train_batch_size=config.per_device_train_batch_size,
    gradient_accumulation_steps=config.gradient_accumulation_steps, learning_rate=config.learning_rate,
    weight_decay=config.weight_decay, warmup_steps=config.warmup_steps, max_grad_norm=config.max_grad_norm,
    bf16=True, logging_steps=config.logging_steps, logging_dir=f"{config.output_dir}/logs",
    report_to=["tensorboard"], eval_strategy="steps", eval_steps=config.eval_steps,
    metric_for_best_model="eval_loss", greater_is_better=False, dataloader_num_workers=config.num_workers,
    remove_unused_columns=False, dataloader_drop_last=False, seed=config.seed,
)
model.save_pretrained(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"), safe_serialization=True)
""",
        {
            "removed-argument": "TENSORBOARD_LOGGING_DIR",
            "nothing-saved": "save_steps",
            "no-effect": "save_total_limit",
            "keyword-gone": "safe_serialization",
        },
    ),
    "short.yaml": (
        "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: FULL_SHARD\n"
        "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n",
        {"yaml-no-processes": "num_processes"},
    ),
    "complete.yaml": (
        "compute_environment: LOCAL_MACHINE\ndebug: false\ndistributed_type: FSDP\nmixed_precision: bf16\n"
        "num_machines: 1\nnum_processes: 8\nmachine_rank: 0\nmain_process_ip: localhost\nmain_process_port: 29500\n"
        f"fsdp_config:\n{FSDP1}  fsdp_forward_prefetch: false\n  fsdp_offload_params: false\n"
        "  fsdp_state_dict_type: SHARDED_STATE_DICT\n  fsdp_activation_checkpointing: false\n",
        {},
    ),
    "four_machines.yaml": (
        "num_machines: 4\nnum_processes: 32\nmachine_rank: 0\nmain_process_ip: 10.0.0.1\nmain_process_port: 29500\n",
        {"tool-refuses": "distributed_type"},
    ),
    "sagemaker.yaml": (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_machines: 1\n"
        "num_processes: 8\nmain_process_ip: null\nmain_process_port: null\n"
        f"fsdp_config:\n{FSDP1}  fsdp_state_dict_type: FULL_STATE_DICT\n",
        {},
    ),
    "estimator.py": (
        "estimator = PyTorch(\n    instance_count=4,\n    instance_type='ml.p4d.24xlarge',\n"
        "    distribution={'torch_distributed': {'enabled': True}},\n)\n",
        {"sagemaker-time-limit": "max_run"},
    ),
    "override.sh": (
        "accelerate launch --config_file accelerate_config.yaml peft_accelerate.py\naccelerate launch \\\n"
        "  --config_file accelerate_config.yaml \\\n  --num_processes 4 \\\n"
        '  peft_accelerate.py --hf_model_id "meta-llama/Llama-3-8B"\n'
        "accelerate launch --config_file accelerate_config.yaml peft_accelerate.py \\\n"
        '  --hfdc_dataset_name "databricks/databricks-dolly-15k" \\\n'
        '  --hfdc_input_template "Q: {instruction}\\n" \\\n  --hfdc_output_template "A: {response}"\n',
        {},
    ),
}
