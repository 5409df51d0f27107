"""What two real CPU processes hold after two optimizer steps; run by ``run_ranks``, so imports stay inside."""

SENT = {}  # collective: numbers handed to it


def tiny():
    """A Llama whose matrices divide evenly by two."""
    from transformers import LlamaConfig

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, use_cache=False)


def held(cases):
    """Bytes of this rank by kind for each case (strategy, precision), counted from its tensors."""
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    dist.init_process_group("gloo")
    count_sent()
    ids, found = torch.arange(32).reshape(1, 32), {}
    for strategy, precision in cases:
        dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
        model = AutoModelForCausalLM.from_config(tiny(), dtype=dtype)
        held_by = {"ddp": in_ddp, "fsdp2": in_fsdp}.get(strategy, in_zero)
        bytes_of = held_by(model, ids, strategy, precision)
        found[f"{strategy} {precision}"] = {"world": dist.get_world_size(), **bytes_of}
    return found


def count_sent():
    """Let torch's collectives note in SENT what is handed to them; DeepSpeed calls these, and remembers some.

    DDP and FSDP2 call theirs in C++, where nothing here sees them.
    """
    import torch.distributed as dist

    def counting(name, original):
        def call(*args, **kwargs):
            tensors = [value for value in (*args, *kwargs.values()) if hasattr(value, "numel")]
            SENT[name] = SENT.get(name, 0) + max(tensor.numel() for tensor in tensors)
            return original(*args, **kwargs)

        return call

    for name in ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(dist, name, counting(name, getattr(dist, name)))


def size(tensors):
    """Bytes of the local parts."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


def moments(optimizer):
    import torch

    return [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]


def _train(model, optimizer, ids, precision):
    """Two steps; the bytes of the gradients after the last backward pass."""
    import torch

    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    return size(p.grad for p in model.parameters())


def in_ddp(model, ids, strategy, precision):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters())
    gradients = _train(wrapped, optimizer, ids, precision)
    data = wrapped._get_ddp_logging_data()
    sizes = data.get("rebuilt_bucket_sizes", data["bucket_sizes"])  # what the reducer says that it allocated
    buckets = sum(int(number) for number in sizes.split(","))
    assert not data["gradient_as_bucket_view"], "buckets and gradients would share memory"
    found = {"gradients": gradients, "weights": size(model.parameters()), "optimizer": size(moments(optimizer))}
    return found | {"wrapper": type(wrapped).__name__, "buckets": buckets}


def in_fsdp(model, ids, strategy, precision):
    """As accelerate shards: a bf16 policy over fp32 weights; and what ``no_sync`` lets wait."""
    import copy

    import torch

    low = torch.bfloat16 if precision == "bf16" else None
    again = copy.deepcopy(model)
    model = _sharded(model, low, low)
    optimizer = torch.optim.AdamW(model.parameters())
    gradients = _train(model, optimizer, ids, "policy")
    optimizer.zero_grad()
    found = {"gradients": gradients, "weights": size(model.parameters()), "optimizer": size(moments(optimizer))}
    found |= {"wrapper": type(model).__name__, "unsharded gradients": _unsharded(model, ids)}
    if low is not None:
        found["unsharded gradients, fp32 reduction"] = _unsharded(_sharded(again, low, torch.float32), ids)
    return found


def _sharded(model, low, reduced):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=reduced)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def _unsharded(model, ids):
    """Bytes of whole gradients after two backward passes without a reduction."""
    model.set_requires_gradient_sync(False)  # what no_sync does
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
    groups = [m._get_fsdp_state()._fsdp_param_group for m in model.modules() if hasattr(m, "_get_fsdp_state")]
    return size(_waiting(parameter) for group in groups for parameter in group.fsdp_params)


def _waiting(parameter):
    """The whole gradient that one sharded parameter keeps until it may be reduced."""
    kept = parameter.unsharded_accumulated_grad
    return kept if kept is not None else parameter.unsharded_param.grad


def in_zero(model, ids, strategy, precision):
    """With the JSON that the launch files carry, accumulation 2."""
    import deepspeed
    import torch

    from course_utils.launch import Spec
    from course_utils.launch.spec.settings import deepspeed_config

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no minute of compiling
    spec = Spec(strategy=strategy, precision=precision, gpus_per_node=2, accumulation=2, device="cpu")
    config = deepspeed_config(spec) | {"zero_allow_untested_optimizer": True}
    own = torch.optim.AdamW(model.parameters())
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=own, config=config)
    numbers = sum(parameter.ds_numel if strategy == "zero3" else parameter.numel() for parameter in model.parameters())
    for _ in range(2):
        SENT.clear()  # the second step is like all that follow
        for _ in range(spec.accumulation_steps):
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
    if strategy == "zero3":
        weights = [p.ds_tensor for p in engine.module.parameters()]
        masters, gradients = optimizer.fp32_partitioned_groups_flat, size([optimizer.grad_partitions_flat_buffer])
    else:
        weights = list(engine.module.parameters())
        masters, gradients = optimizer.single_partition_of_fp32_groups, None
    return {
        "wrapper": type(optimizer).__name__,
        # Numbers per parameter; norms and checks for overflow send single ones.
        "sent": {name: round(total / numbers, 2) for name, total in SENT.items() if total > 100},
        "weights": size(weights),
        "gradients": gradients,
        "optimizer": size(moments(optimizer.optimizer)),
        "master copies": size(masters),
    }
