"""The soft threshold in C++ (built here) and in CUDA (built where nvcc is, run where a GPU is)."""

import shutil

import pytest
import torch

from course_utils.models import soft_threshold_native as native
from course_utils.models.soft_threshold import soft_threshold

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
needs_nvcc = pytest.mark.skipif(not NVCC, reason="needs nvcc")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available() or not NVCC, reason="needs an NVIDIA GPU and nvcc")


@pytest.fixture(scope="module")
def operator():
    return native.cpp_operator()


def inputs(dtype=torch.float32, threshold=(4,)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.rand(threshold, generator=generator, dtype=dtype).requires_grad_()


@needs_compiler
@pytest.mark.parametrize("threshold", [(4,), (1,), (5, 1), ()])
def test_cpp_equals_python_with_gradients(operator, threshold):
    x, t = inputs(torch.float64, threshold)
    assert torch.equal(operator(x, t), soft_threshold(x, t))
    assert torch.autograd.gradcheck(operator, (x, t))


@needs_compiler
def test_cpp_on_a_transposed_input(operator):
    x, t = inputs(threshold=(5,))
    assert torch.equal(operator(x.T, t), soft_threshold(x.T, t))


@needs_compiler
def test_cpp_passes_opcheck_compiles_and_runs_under_autocast(operator):
    assert set(torch.library.opcheck(operator, inputs()).values()) == {"SUCCESS"}
    x, t = inputs()
    assert torch.equal(torch.compile(operator, fullgraph=True, backend="aot_eager")(x, t), operator(x, t))
    with torch.autocast("cpu", dtype=torch.float16):
        assert operator(x.half(), t).dtype == torch.float32


@needs_compiler
def test_built_once(operator, monkeypatch):
    monkeypatch.setattr(native, "_build_cpp", lambda folder: pytest.fail("built again"))
    assert native.cpp_operator() is operator
    monkeypatch.setattr(native, "_is_registered", lambda: False)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(native, "_teach_torch_its_gradient", lambda: None)
    assert native.cpp_operator() is operator  # as in a new process: from the cache


def test_without_a_compiler_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(native, "_is_registered", lambda: False)
    with pytest.raises(native.NoCompiler, match="so the Python version is used; to build the C\\+\\+ one"):
        native.cpp_operator()
    monkeypatch.setattr(native.shutil, "which", lambda name, path=None: None)
    with pytest.raises(native.NoCompiler, match="nvcc was not found"):
        native.cuda_library()
    assert not list(tmp_path.glob("soft*/")), "nothing half-built stays"


@needs_nvcc
def test_the_kernel_compiles_and_without_a_gpu_returns_an_error():
    library = native.cuda_library()
    if torch.cuda.is_available():
        assert library.soft_threshold_devices() == torch.cuda.device_count()
    else:
        assert library.soft_threshold_devices() < 0
        assert library.soft_threshold_forward(None, None, None, 1, 1, None) != 0


def test_the_kernel_wants_float32_on_a_gpu():
    with pytest.raises(ValueError, match="on a CUDA device"):
        native.CudaSoftThreshold.apply(*inputs())


@needs_gpu
def test_the_kernel_equals_python():
    x, t = (tensor.detach().cuda().requires_grad_() for tensor in inputs())
    found, wanted = native.CudaSoftThreshold.apply(x, t), soft_threshold(x, t)
    assert torch.equal(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), (x, t)),
        torch.autograd.grad(wanted.square().sum(), (x, t)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5)
