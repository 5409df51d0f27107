"""What one forward pass leaves in memory for the backward pass, in bytes (lesson 15).

Derived from what autograd saves under torch 2.13 and transformers 5.23 with SDPA attention, tensor by tensor, and
tested against ``torch.distributed._tools.mem_tracker.MemTracker`` on real models. The classic sum for a GPT in 16 bit,
``s b h (34 + 5 a s / h)`` bytes a layer (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
Transformer Models", equation 1), differs in four ways: SDPA keeps no score matrix, most models have no dropout, a
gated MLP keeps four wide tensors, and autocast keeps one 16-bit copy of an input per linear layer that reads it. What
a family has instead of these (eager attention, four norms, dropout) stands in its ``ModelShape``.
"""

from __future__ import annotations

from typing import NamedTuple

from course_utils.launch.spec import Spec
from course_utils.models.shapes import ModelShape, linears

FP32 = 4  # bytes
LOG_SUM_EXP = 4  # bytes per token and head that flash attention keeps instead of the scores


class Kept(NamedTuple):
    """How intermediate results are kept.

    ``compute``: bytes of a number in matrix multiplications; ``residual``: of one in the sum that runs through the
    layers; ``cast``: bytes of the copy that each linear layer makes of its input, 0 where all share one.
    """

    compute: int
    residual: int
    cast: int


def kept(spec: Spec) -> Kept:
    """Bytes per number under the spec's precision and strategy.

    Plain DDP runs bf16 and fp16 as autocast over fp32 weights: the embedding's fp32 numbers run through all layers and
    each linear layer casts its input anew. FSDP (``MixedPrecisionPolicy(param_dtype=bf16)``) and DeepSpeed hand the
    layers 16-bit weights, so that everything between them is 16-bit too.
    """
    if spec.precision == "fp32":
        return Kept(FP32, FP32, 0)
    if spec.strategy == "ddp" and spec.precision != "bf16_weights":
        return Kept(2, FP32, 2)
    # peft keeps adapters of 16-bit models in fp32 (autocast_adapter_dtype=True) and casts each input to it, except
    # where FSDP's policy or DeepSpeed casts the adapters themselves to 16 bit.
    fp32_adapters = spec.lora_rank > 0 and spec.precision == "bf16_weights" and not spec.is_deepspeed
    return Kept(2, 2, FP32 if fp32_adapters else 0)


def norm(width: int, how: Kept, shape: ModelShape, trained: bool = True, of_matrix: bool = False) -> int:
    """Bytes per token that a norm keeps; ``of_matrix``: it reads a matrix's result, not the sum through the layers.

    ``nn.LayerNorm`` keeps its input. transformers' RMSNorm is written out in Python: it keeps its input in fp32 (a
    copy, where the input is 16-bit) and, for the gradient of its weight, the normalised input.
    """
    source = how.compute if of_matrix else how.residual
    normalised = {"rms": source, "rms32": FP32, "mean32": FP32}.get(shape.norm, 0) if trained else 0
    once = {"layer": source, "mean32": 2 * FP32}.get(shape.norm, FP32)  # Cohere's: its input and that less the mean
    return width * (once + normalised)


def norms(shape: ModelShape, how: Kept, trained: bool = True) -> int:
    """Bytes per token of a layer's norms as wide as its input."""
    before = shape.norms - shape.post_norms
    each = (norm(shape.hidden_size, how, shape, trained, of_matrix) for of_matrix in (False, True))
    return sum(count * size for count, size in zip((before, shape.post_norms), each, strict=True))


def attention(shape: ModelShape, how: Kept, trained: bool = True, tp: int = 1, masked: bool = False) -> int:
    """Bytes per token between the projections: queries, keys, values, the output, and a sum per head.

    FlashAttention recomputes the scores (Dao et al. 2022, algorithm 4), so nothing grows with the square of the
    sequence length. Rotated queries and keys are new tensors; the fused matrix they were cut from stays for the values.
    With a mask transformers repeats the key-value heads (``use_gqa_in_sdpa``), and so does eager attention.
    """
    q, kv = shape.query_size, shape.key_value_size
    one_for_all = shape.fused_projections and shape.num_key_value_heads == 1  # expanded without a copy
    repeated = kv < q and (shape.attention.startswith("eager") or masked and not one_for_all)
    wide = how.compute * (2 * q + 2 * (q if repeated else kv))
    if shape.attention == "sdpa":
        wide += LOG_SUM_EXP * shape.num_attention_heads + (how.compute * q if shape.reordered else 0)
    elif shape.attention == "eager32" and not how.cast:
        wide += (FP32 - how.compute) * 2 * q
    elif shape.attention == "math":
        return (FP32 * (q + 2 * (q if masked else kv)) + how.compute * q) // tp
    if shape.fused_projections and shape.rotary and not repeated:
        wide += how.compute * (q + kv)
    if shape.qk_norm and not (shape.norm == "layer" and shape.fused_projections):
        wide += norm(q + kv, how, shape, trained, of_matrix=True)
    return wide // tp


def scores(spec: Spec, shape: ModelShape) -> int:
    """Bytes per token that eager attention keeps for T scores per head: what SDPA was made to avoid.

    ``softmax`` keeps its fp32 result and the values' matrix multiplication a copy in the computation's type; the tanh
    of soft-capping keeps its result, dropout a mask of a byte and what it lets through.
    """
    if shape.attention == "sdpa":
        return 0
    compute = kept(spec).compute
    copies = 0 if shape.attention == "math" else compute if shape.attention_dropout or compute != FP32 else 0
    a_score = FP32 + copies + (1 if shape.attention_dropout else 0) + (compute if shape.soft_capping else 0)
    return _scores(spec, shape) * a_score


def _scores(spec: Spec, shape: ModelShape) -> int:
    return shape.num_attention_heads * spec.sequence_length // spec.tensor_parallel


def masked_layers(spec: Spec, shape: ModelShape) -> int:
    """Layers that keep a mask: all where a batch is padded, else those with a window shorter than a sequence.

    Eager attention adds one mask to its scores, which keeps nothing.
    """
    if shape.attention != "sdpa":
        return 0
    if is_padded(spec):
        return shape.num_hidden_layers
    return shape.sliding_layers if spec.sequence_length > shape.sliding_window else 0


def is_padded(spec: Spec) -> bool:
    """A batch of several sequences is taken to be padded: the safe side. A single one needs no mask."""
    return spec.micro_batch > 1 and spec.context_parallel == 1


def mlp(shape: ModelShape, how: Kept, trained: bool = True, tp: int = 1) -> int:
    """Bytes per token of the wide tensors: gate, up, activated gate, and their product; ungated: before and after.

    GPT-2's ``gelu_new`` is written out in Python and keeps five; ``relu`` its result only. The last one is the input of
    the down projection, which frozen weights do not need (their adapter keeps its own copy, see ``inputs``).
    """
    tensors = 4 if shape.gated_mlp else {"gelu_new": 5, "relu": 1}.get(shape.activation, 2)
    return how.compute * shape.intermediate_size * (tensors - (0 if trained or not how.cast else 1)) // tp


def inputs(shape: ModelShape, how: Kept, lora_rank: int = 0, tp: int = 1) -> int:
    """Bytes per token of the inputs of the linear layers that are not counted elsewhere.

    Under autocast every linear layer keeps a 16-bit copy of its own; otherwise those that read the same tensor share
    it, and the inputs of the output and down projections are attention's and the MLP's results.
    """
    rank = lora_rank * len(linears(shape)) * (how.cast or how.compute)
    if not how.cast:
        return min(shape.norms, 2) * shape.hidden_size * how.compute + rank
    of_norms = sum(width for width, _ in _readers_of_norms(shape)) * how.cast
    if not lora_rank:
        return of_norms
    return of_norms + (shape.query_size + shape.intermediate_size) * how.cast // tp + rank


def _readers_of_norms(shape: ModelShape) -> list[tuple[int, int]]:
    """Linear layers that read a norm's output: all but the output and the down projection."""
    matrices = linears(shape)
    attention_matrices = 1 if shape.fused_projections else 3
    return matrices[:attention_matrices] + matrices[attention_matrices + 1 : -1]


def layer(spec: Spec, shape: ModelShape, masked: bool) -> int:
    """Bytes per token that one layer keeps without checkpointing; tensor parallel ranks divide heads and MLP.

    A mask, (B, 1, T, T), becomes numbers of the computation's type in every layer that uses it, and SDPA keeps it.
    """
    how, trained, tp = kept(spec), not spec.lora_rank, spec.tensor_parallel
    return (
        norms(shape, how, trained)
        + shape.dropouts * shape.hidden_size
        + inputs(shape, how, spec.lora_rank, tp)
        + attention(shape, how, trained, tp, masked or shape.attention == "math" and is_padded(spec))
        + scores(spec, shape)
        + mlp(shape, how, trained, tp)
        + (how.compute * spec.sequence_length if masked else 0)
    )


def tokens(spec: Spec) -> int:
    """Tokens that one GPU holds in a forward pass; context parallel ranks share a sequence."""
    return spec.micro_batch * spec.sequence_length // spec.context_parallel


def stored(spec: Spec, shape: ModelShape) -> int:
    """Bytes of activations at the end of the forward pass.

    With checkpointing only each layer's input is left (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
    Cost", with every layer as a segment). The final norm and the input of the output layer are kept once.
    """
    how = kept(spec)
    masked, count = masked_layers(spec, shape), shape.num_hidden_layers
    layers = masked * layer(spec, shape, True) + (count - masked) * layer(spec, shape, False)
    if spec.checkpointing:
        layers = count * how.residual * shape.hidden_size
    if not shape.vocab_size:  # a stage of a pipeline that is not the last one
        return tokens(spec) * layers
    rows = shape.hidden_size * (how.compute if not spec.lora_rank else 0) if shape.lm_head else 0
    last = norm(shape.hidden_size, how, shape, not spec.lora_rank) + rows
    return tokens(spec) * (layers + last)


def live_layer(spec: Spec, shape: ModelShape) -> int:
    """Bytes of the one layer whose backward pass runs: its activations and the gradients of its widest tensors.

    Of a gated MLP that are two more than its own, of a plain one with a fused activation one, or with autocast's
    copies two. Where attention is not fused the scores' gradient may be wider: ``softmax`` reads one in fp32 and writes
    one, when the MLP's tensors and the copy of the scores are gone.
    """
    how = kept(spec)
    wide = 1 if shape.activation == "function" and not shape.gated_mlp and not how.cast else 2
    gradients = how.compute * shape.intermediate_size * wide // spec.tensor_parallel
    if shape.attention != "sdpa":
        copy = 0 if shape.attention == "math" else how.compute
        of_scores = (2 * FP32 - copy) * _scores(spec, shape)
        gradients = max(gradients, of_scores - mlp(shape, how, not spec.lora_rank, spec.tensor_parallel))
    gradients += how.residual * shape.hidden_size
    return tokens(spec) * (layer(spec, shape, masked_layers(spec, shape) > 0) + gradients)


def logits(spec: Spec, shape: ModelShape) -> int:
    """Bytes of the scores over the vocabulary when the loss is differentiated: three fp32 tensors.

    transformers' ``ForCausalLMLoss`` upcasts to fp32. ``log_softmax`` keeps its result; its backward pass holds that,
    the gradient that comes in and the one that goes out: 12 bytes a score, and the tanh's result where they are capped.
    """
    a_score = 3 * FP32 + (kept(spec).compute if shape.logit_capping else 0)
    return tokens(spec) * shape.vocab_size * a_score if shape.lm_head else 0


def forward_logits(spec: Spec, shape: ModelShape) -> int:
    """Bytes of the scores when the loss is computed: as they come, upcast to fp32, and ``log_softmax``'s result."""
    compute = kept(spec).compute
    a_score = 2 * FP32 + (2 if compute == 2 else 0) + (compute if shape.logit_capping else 0)
    return tokens(spec) * shape.vocab_size * a_score if shape.lm_head else 0
