"""The soft threshold in Python: values, gradients, and what torch asks of an operator."""

import pytest
import torch

from course_utils.models.soft_threshold import Denoiser, SoftThreshold, cosine_basis, soft_threshold

WAYS = {"function": SoftThreshold.apply, "custom_op": soft_threshold}


@pytest.fixture(params=WAYS, ids=list(WAYS))
def operator(request):
    return WAYS[request.param]


def inputs(shape=(5, 4), threshold=(4,), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.rand(threshold, generator=generator, dtype=dtype).requires_grad_()


def test_values_are_those_of_softshrink(operator):
    x, _ = inputs((1000,))
    for constant in (0.0, 0.3, 5.0):
        ours = operator(x, torch.tensor(constant, dtype=x.dtype))
        assert torch.allclose(ours, torch.nn.functional.softshrink(x, constant), atol=1e-12)


@pytest.mark.parametrize("threshold", [(4,), (1,), (5, 1), (5, 4), ()])
def test_gradcheck_with_every_way_to_broadcast(operator, threshold):
    assert torch.autograd.gradcheck(operator, inputs(threshold=threshold))


def test_gradients_are_autograds_own(operator):
    x, threshold = inputs()
    weights = torch.randn(5, 4, dtype=torch.float64)
    plain = torch.sign(x) * (x.abs() - threshold).clamp_min(0)
    ours = torch.autograd.grad((operator(x, threshold) * weights).sum(), (x, threshold))
    for a, b in zip(ours, torch.autograd.grad((plain * weights).sum(), (x, threshold)), strict=True):
        assert torch.allclose(a, b)


def test_opcheck():
    found = torch.library.opcheck(soft_threshold, inputs(dtype=torch.float32))
    assert len(found) == 4 and set(found.values()) == {"SUCCESS"}


def test_opcheck_notices_a_wrong_shape_and_a_missing_gradient():
    @torch.library.custom_op("course_test::flat", mutates_args=())
    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    flat.register_fake(lambda x: x.new_empty(x.numel()))
    with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
        torch.library.opcheck(flat, (torch.randn(3, 2),))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(operator, backend):
    x, threshold = inputs()
    compiled = torch.compile(operator, fullgraph=True, backend=backend)
    assert torch.equal(compiled(x, threshold), operator(x, threshold))
    wanted = torch.autograd.grad(operator(x, threshold).square().sum(), (x, threshold))
    found = torch.autograd.grad(compiled(x, threshold).square().sum(), (x, threshold))
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_it_computes_in_float32(operator, dtype):
    x = torch.full((100_000,), 2.0, dtype=dtype, requires_grad=True)
    threshold = torch.ones(1, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out = operator(x, threshold)
    out.sum().backward()
    assert out.dtype == torch.float32 and threshold.grad.item() == -100_000 and x.grad.dtype == dtype


def test_in_half_precision_the_thresholds_gradient_overflows():
    x = torch.full((100_000,), 2.0, dtype=torch.float16, requires_grad=True)
    threshold = torch.ones(1, dtype=torch.float16, requires_grad=True)
    soft_threshold(x, threshold).sum().backward()
    assert threshold.grad.item() == -torch.inf


def test_cosine_basis_is_orthonormal_and_scipys():
    from scipy.fft import dct

    basis = cosine_basis(8)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-6)
    x = torch.randn(8)
    assert torch.allclose(basis @ x, torch.from_numpy(dct(x.numpy(), norm="ortho")), atol=1e-5)


def test_a_denoiser_without_thresholds_is_the_identity():
    noisy = torch.randn(3, 8, 8)
    output = Denoiser(start=0.0)(noisy, labels=noisy)
    assert torch.allclose(output["logits"], noisy, atol=1e-5) and list(output) == ["loss", "logits"]
    assert output["loss"] < 1e-10 and list(Denoiser()(noisy)) == ["logits"]
