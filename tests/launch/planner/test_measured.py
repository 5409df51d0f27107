"""The planner against the truth: real models, every allocation of a step counted by torch's memory trackers.

Model states within 1 %, everything else that a step holds at its peak within 10 %, and the peak itself within 5 %.
"""

import pytest
from transformers import BertConfig, GPT2Config, LlamaConfig, ModernBertConfig, Qwen2Config, Qwen3Config

from course_utils.launch.planner.measured import measured_shard, measured_step
from course_utils.launch.planner.plan import plan
from course_utils.launch.spec import Spec
from course_utils.models.configs import meta_model, shape_of, shape_of_config
from course_utils.models.shapes import builtin, parameter_count

SIZES = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
GPT2_SIZES = {"n_embd": 256, "n_layer": 3, "n_head": 4, "vocab_size": 4096, "n_positions": 2048}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def llama(vocab_size=4096):
    return LlamaConfig(**SIZES | {"vocab_size": vocab_size}, **HEADS)


def qwen2():
    return Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=True)


def qwen3():
    return Qwen3Config(**SIZES, **HEADS, head_dim=96, tie_word_embeddings=True)


def gpt2():
    return GPT2Config(**GPT2_SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)


def modernbert(architecture="ModernBertForMaskedLM"):
    return ModernBertConfig(**SIZES, **TOKENS, num_attention_heads=4, architectures=[architecture])


def bert():
    no_dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    return BertConfig(**SIZES, **no_dropout, num_attention_heads=4)


def one_gpu(**fields):
    return {"strategy": "ddp", "gpus_per_node": 1, "sequence_length": 512} | fields


def fsdp(**fields):
    return {"strategy": "fsdp2", "gpus_per_node": 8, "sequence_length": 512} | fields


# name: config, fields of the spec
CASES = {
    "llama, autocast": (llama, one_gpu()),
    "llama, padded batch": (llama, one_gpu(micro_batch=4, sequence_length=256)),
    "llama, fp32": (llama, one_gpu(precision="fp32")),
    "llama, bf16 weights, long": (llama, one_gpu(precision="bf16_weights", sequence_length=4096)),
    "qwen2, autocast": (qwen2, one_gpu(sequence_length=1024)),
    "qwen3, checkpointing": (qwen3, one_gpu(checkpointing=True, sequence_length=1024)),
    "qwen3, bf16 weights, checkpointing": (
        qwen3,
        one_gpu(checkpointing=True, precision="bf16_weights", sequence_length=2048),
    ),
    "llama, checkpointing, short": (llama, one_gpu(checkpointing=True, sequence_length=256)),
    "qwen3, LoRA": (qwen3, one_gpu(lora_rank=16)),
    "llama, LoRA, bf16 weights": (llama, one_gpu(lora_rank=8, precision="bf16_weights")),
    "llama, LoRA, checkpointing": (llama, one_gpu(lora_rank=16, checkpointing=True, sequence_length=1024)),
    "gpt2, autocast": (gpt2, one_gpu()),
    "modernbert, masked words": (modernbert, one_gpu(micro_batch=2)),
    "modernbert, classes": (lambda: modernbert("ModernBertForSequenceClassification"), one_gpu(micro_batch=2)),
    "bert, classes": (bert, one_gpu(micro_batch=4, sequence_length=256, precision="fp32")),
    "fsdp, 8 ranks": (qwen3, fsdp()),
    "fsdp, 16 ranks": (llama, fsdp(nodes=2)),
    "fsdp, no reshard": (qwen3, fsdp(reshard_after_forward=False)),
    "fsdp, 2 replicas": (llama, fsdp(replicas=2, precision="fp32")),
    "fsdp, large vocabulary": (lambda: llama(65536), fsdp(sequence_length=64)),
    "fsdp, checkpointing": (qwen3, fsdp(checkpointing=True, sequence_length=2048)),
    "fsdp, accumulation": (qwen3, fsdp(accumulation=2)),
    "fsdp, LoRA, bf16 weights": (
        lambda: llama(65536),
        fsdp(lora_rank=16, precision="bf16_weights", sequence_length=64),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_the_real_model(name):
    config, fields = CASES[name]
    spec = Spec(model=shape_of_config(config()), **fields)
    found, ours = (measured_shard if spec.is_fsdp else measured_step)(spec, config()), plan(spec)
    assert found.shape == ours.shape
    for state in ("weights", "gradients", "optimizer"):
        assert ours.moments["step"][state] == pytest.approx(getattr(found, state), rel=0.01), state
    kept = {name: size for name, size in ours.memory.items() if name not in ("margin", "buckets")}
    working = sum(size for name, size in kept.items() if name not in ("weights", "gradients", "optimizer"))
    assert working == pytest.approx(found.working, rel=0.10)
    assert sum(kept.values()) == pytest.approx(found.peak, rel=0.05)


@pytest.mark.parametrize("name", builtin())
def test_builtin_shapes_have_the_parameters_of_their_models(name):
    """The formula's matrices and layers, against a model built from the shape's sizes on the meta device."""
    shape = shape_of(name)
    config = config_of(shape)
    assert parameter_count(shape) == meta_model(config).num_parameters()
    assert shape_of_config(config) == shape


def config_of(shape):
    """The transformers config of a built-in shape."""
    from transformers import MistralConfig

    sizes = shape.model_dump(
        include={"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"}
    )
    if shape.layer_class == "GPT2Block":
        own = {"n_embd": shape.hidden_size, "n_layer": shape.num_hidden_layers, "n_head": shape.num_attention_heads}
        return GPT2Config(**own)
    families = {"LlamaDecoderLayer": LlamaConfig, "MistralDecoderLayer": MistralConfig}
    families |= {"Qwen2DecoderLayer": Qwen2Config, "Qwen3DecoderLayer": Qwen3Config}
    heads = shape.model_dump(include={"num_attention_heads", "num_key_value_heads", "tie_word_embeddings"})
    return families[shape.layer_class](**sizes, **heads)
