"""Own AdamW against torch.optim.AdamW: three versions, two precisions, states that travel, no compiling per step."""

import copy

import pytest
import torch

from course_utils.training import optim
from course_utils.training.optim import AdamW, CompiledAdamW, ForeachAdamW, compiler_available, parameter_groups

needs_compiler = pytest.mark.skipif(not compiler_available(), reason="no C++ compiler: torch.compile cannot run")
VERSIONS = [AdamW, ForeachAdamW, pytest.param(CompiledAdamW, marks=needs_compiler)]
SHAPES = [(7, 5), (11,), (3, 4, 2)]


def make_params(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def make_groups(params):
    return [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "weight_decay": 0.0}]


def run(cls, dtype, steps, skip_second_at=(), **options):
    """The same gradients and the same changing learning rate for every optimizer; returns the final weights."""
    params = make_params(dtype)
    optimizer = cls(make_groups(params), lr=1e-2, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for index, p in enumerate(params):
            gradient = torch.randn(p.shape, generator=generator, dtype=dtype) * 10.0 ** (index - 1)
            p.grad = None if index == 1 and step in skip_second_at else gradient
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
    return params


def worst(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("cls", VERSIONS)
def test_equals_torch_in_float64(cls):
    assert worst(run(cls, torch.float64, 200), run(torch.optim.AdamW, torch.float64, 200, foreach=False)) <= 1e-12


@pytest.mark.parametrize("cls", VERSIONS)
@pytest.mark.parametrize("torch_version", [{"foreach": False}, {"fused": True}])
def test_equals_torch_in_float32_on_the_same_gradients(cls, torch_version):
    assert worst(run(cls, torch.float32, 200), run(torch.optim.AdamW, torch.float32, 200, **torch_version)) <= 1e-6


@pytest.mark.parametrize("cls", [AdamW, ForeachAdamW])
def test_a_parameter_without_gradient_keeps_its_own_step_count(cls):
    options = {"skip_second_at": {0, 1, 2, 7}}
    expected = run(torch.optim.AdamW, torch.float64, 20, **options)
    assert worst(run(cls, torch.float64, 20, **options), expected) <= 1e-12


@needs_compiler
def test_compiled_groups_parameters_by_their_step_count():
    options = {"skip_second_at": {2}}
    expected = run(torch.optim.AdamW, torch.float64, 5, **options)
    assert worst(run(CompiledAdamW, torch.float64, 5, **options), expected) <= 1e-12


def test_tiny_gradients_make_eps_visible():
    """With eps inside the root the step would be sqrt(1e-8) = 1e-4 of the right one's scale."""

    def one_step(cls):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad = torch.full_like(p, 1e-8)
        cls([p], lr=1.0, weight_decay=0.0).step()
        return p.item()

    assert one_step(AdamW) == pytest.approx(-0.5, rel=1e-6) == one_step(ForeachAdamW)


def test_decay_does_not_pass_through_the_moments():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    optimizer = AdamW([p], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.allclose(p, torch.full((3,), 0.95))  # shrunk by lr * weight_decay, not by the sign of a gradient
    assert optimizer.state[p]["exp_avg"].abs().max() == 0


@pytest.mark.parametrize("cls", [AdamW, ForeachAdamW])
def test_state_travels_to_torch_and_back(cls):
    params = make_params(torch.float64)
    ours = cls(make_groups(params), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    gradients = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(6)]

    def go(optimizer, params, part):
        for step in part:
            for p, g in zip(params, gradients[step], strict=True):
                p.grad = g.clone()
            optimizer.step()

    go(ours, params, range(3))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    theirs = torch.optim.AdamW(make_groups(copies), lr=1e-2)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    go(theirs, copies, range(3, 6))
    back_params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    back = cls(make_groups(back_params), lr=1e-2)
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    go(back, back_params, range(3, 6))
    assert worst(copies, back_params) <= 1e-12
    assert {k: type(v) for k, v in back.state[back_params[0]].items()} == {
        k: type(v) for k, v in theirs.state[copies[0]].items()
    }


def mixed_run(cls, skip=lambda step, index: False, steps=4, **options):
    """One group of every kind of tensor: no dimension, no number, two types, strides that are not the usual ones.

    torch.compile lost what was written into a tensor without a dimension: its moments stayed 0.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [((), torch.float64), ((), torch.float32), ((5,), torch.float32), ((3, 4), torch.float64), ((0,), None)]
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape, dtype in shapes]
    params = [torch.nn.Parameter(value) for value in (*values, values[3].clone().t())]
    optimizer = cls(params, lr=0.1, **options)
    for step in range(steps):
        for index, p in enumerate(params):
            gradient = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = None if skip(step, index) else gradient
        optimizer.step()
    return params, [optimizer.state[p]["exp_avg"] for p in params if p in optimizer.state]


@pytest.mark.parametrize("cls", VERSIONS)
def test_every_kind_of_tensor_in_one_group_equals_torch(cls):
    (ours, moments), (theirs, wanted) = mixed_run(cls), mixed_run(torch.optim.AdamW, foreach=False)
    for found, right in zip(ours + moments, theirs + wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-14 if found.dtype == torch.float64 else 1e-6)


@needs_compiler
def test_gradients_that_come_and_go_do_not_exhaust_the_compiler(monkeypatch):
    """Each new set of layers would be one more kernel; after a few of them the uncompiled version takes over."""
    monkeypatch.setattr(optim, "MOST_KERNELS", 1)
    options = {"skip": lambda step, index: (step >> index) & 1, "steps": 12}
    (ours, moments), (theirs, wanted) = (mixed_run(cls, **options) for cls in (CompiledAdamW, torch.optim.AdamW))
    for found, right in zip(ours + moments, theirs + wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-14 if found.dtype == torch.float64 else 1e-6)


@needs_compiler
def test_more_patterns_of_gradients_than_torch_compiles_change_nothing(monkeypatch):
    """Seven sets of layers, and a compiler that makes two kernels and then raises: torch's own limit, set low."""
    few = torch.compile(optim._adamw_lists, fullgraph=True, dynamic=False, recompile_limit=2)
    refusals = []

    def count(*lists):
        try:
            few(*lists)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            refusals.append(1)
            raise

    monkeypatch.setattr(optim, "_compiled_update", lambda: count)
    sets = [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}]
    weights = []
    for cls in (CompiledAdamW, torch.optim.AdamW):
        params = make_params(torch.float64)
        optimizer = cls(params, lr=1e-2)
        for step in range(14):
            for index, p in enumerate(params):
                p.grad = torch.full_like(p, step - 6.5) if index in sets[step % 7] else None
            optimizer.step()
        weights.append(params)
    assert refusals and worst(*weights) <= 1e-12


@needs_compiler
def test_a_compiler_that_has_had_enough_changes_nothing(monkeypatch):
    """torch counts the kernels of all optimizers together and then refuses; the step is still taken, once."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def refuse(*_):
        raise FailOnRecompileLimitHit("recompile_limit reached")

    monkeypatch.setattr(optim, "_compiled_update", lambda: refuse)
    ours, theirs = run(CompiledAdamW, torch.float64, 5), run(torch.optim.AdamW, torch.float64, 5)
    assert worst(ours, theirs) <= 1e-12


@needs_compiler
def test_compiled_version_compiles_once():
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = CompiledAdamW([p], lr=1e-2)
    for step in range(6):
        p.grad = torch.ones(5)
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            optimizer.step()


def test_compiled_version_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(optim, "compiler_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler .* install g\\+\\+"):
        CompiledAdamW([torch.nn.Parameter(torch.ones(1))])


def test_compiler_lookup_reads_cxx():
    import torch._inductor.config as inductor

    with inductor.patch("cpp.cxx", ("/nowhere/c++",)):  # monkeypatch would leave the setting hidden behind it
        assert not compiler_available()
    assert inductor.cpp.cxx


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -0.1}], ids=lambda bad: next(iter(bad))
)
def test_bad_arguments(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*allowed: "):
        AdamW([torch.nn.Parameter(torch.ones(1))], **bad)


def test_step_returns_the_closures_loss():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([p])

    def closure():
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert optimizer.state[p]["step"] == 1


def small_models():
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        ModernBertConfig,
        ModernBertForSequenceClassification,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    size = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    yield BertForSequenceClassification(BertConfig(**size, num_attention_heads=2))
    yield ModernBertForSequenceClassification(ModernBertConfig(**size, **tokens, num_attention_heads=2))
    yield Qwen3ForCausalLM(Qwen3Config(**size, num_attention_heads=2, num_key_value_heads=1, head_dim=4))


def test_parameter_groups_equal_trainers(tmp_path):
    from transformers import Trainer, TrainingArguments

    for model in small_models():
        trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
        decayed = {id(p) for n, p in model.named_parameters() if n in trainer.get_decay_parameter_names(model)}
        groups = parameter_groups(model, 0.1)
        assert {id(p) for p in groups[0]["params"]} == decayed, type(model).__name__
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
        assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


def test_parameter_groups_leave_out_frozen_and_empty():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model[0].weight.requires_grad_(False)
    (only,) = parameter_groups(model, 0.1)
    assert only["weight_decay"] == 0.0 and len(only["params"]) == 3
    with pytest.raises(ValueError, match="weight_decay=-1 .*allowed"):
        parameter_groups(model, -1)
