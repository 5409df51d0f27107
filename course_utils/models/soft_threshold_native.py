"""Soft threshold in C++ and in CUDA: built on the learner's machine, once (lesson 07).

The libraries lie in the course's cache, keyed by their source and by torch's version. References: PyTorch's pages
"Custom C++ and CUDA operators" and ``torch.utils.cpp_extension``; NVIDIA's "CUDA C++ Programming Guide" for the kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from course_utils.data.cache import cached_folder

_HERE = Path(__file__).resolve().parent
_CPP, _CUDA = _HERE / "soft_threshold.cpp", _HERE / "soft_threshold.cu"
_NAME = "soft_threshold"


class NoCompiler(RuntimeError):
    """What is needed to build is not on this machine; the message is one sentence that says what to do."""


def cpp_operator() -> Callable[[Tensor, Tensor], Tensor]:
    """``torch.ops.course_cpp.soft_threshold`` with its gradient, built if it never was (10 to 20 seconds).

    Raises:
        NoCompiler: no C++ compiler or no ninja.
        OSError: the cache cannot be written.
    """
    if not _is_registered():
        made_from = {"source": _digest(_CPP), "torch": torch.__version__, "machine": platform.platform()}
        folder = cached_folder("soft-threshold-cpp", made_from, _build_cpp)
        if not _is_registered():  # a fresh build has loaded it
            torch.ops.load_library(str(folder / f"{_NAME}.so"))
        _teach_torch_its_gradient()
    return torch.ops.course_cpp.soft_threshold.default


def _is_registered() -> bool:
    return hasattr(torch.ops.course_cpp, "soft_threshold")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _build_cpp(folder: Path) -> None:
    from torch.utils import cpp_extension

    if not (compiler := shutil.which(os.environ.get("CXX", "c++"))):
        raise NoCompiler(
            "No C++ compiler was found, so the Python version is used; to build the C++ one: apt-get install g++"
        )
    path = os.environ.get("PATH", "")
    try:
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"  # pip puts ninja beside python
        if not cpp_extension.is_ninja_available():
            raise NoCompiler(
                "ninja was not found, so the Python version is used; to build the C++ one: pip install ninja"
            )
        cpp_extension.load(
            _NAME,
            [str(_CPP)],
            extra_cflags=["-O3"],
            build_directory=str(folder),
            is_python_module=False,
            verbose=False,
        )
    except RuntimeError as error:
        if isinstance(error, NoCompiler):
            raise
        raise NoCompiler(f"{compiler} could not build the operator, so the Python version is used: {error}") from error
    finally:
        os.environ["PATH"] = path
    for leftover in folder.iterdir():
        if leftover.suffix != ".so":
            leftover.unlink()


def _teach_torch_its_gradient() -> None:
    """Shapes for the compiler and the formula for autograd; both are Python, whatever the operator is written in."""
    name = "course_cpp::soft_threshold"
    torch.library.register_fake(name, lambda x, threshold: torch.empty_like(x))
    torch.library.register_fake(
        f"{name}_backward", lambda grad, x, threshold: (torch.empty_like(x), torch.empty_like(threshold))
    )

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad):
        return torch.ops.course_cpp.soft_threshold_backward(grad, *ctx.saved_tensors)

    torch.library.register_autograd(name, backward, setup_context=save)
    torch.library.register_autocast(name, "cpu", torch.float32)


def cuda_library() -> ctypes.CDLL:
    """The kernels behind their C interface, compiled with nvcc if they never were (a few seconds; no GPU needed).

    Raises:
        NoCompiler: no nvcc.
        OSError: the cache cannot be written.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    made_from = {"source": _digest(_CUDA), "machine": platform.platform()}

    def compile_it(folder: Path) -> None:
        if not nvcc:
            raise NoCompiler("nvcc was not found, so the CUDA kernel is not built; it comes with NVIDIA's CUDA toolkit")
        # sm_80 (A100) as machine code, and its PTX, which newer GPUs' drivers compile when they load it.
        options = ["-O3", "-shared", "-Xcompiler", "-fPIC", "-arch=sm_80"]
        done = subprocess.run(
            [nvcc, *options, str(_CUDA), "-o", str(folder / f"{_NAME}.so")], capture_output=True, text=True
        )
        if done.returncode:
            raise NoCompiler(f"nvcc could not build the kernel: {done.stderr.strip()}")

    library = ctypes.CDLL(str(cached_folder("soft-threshold-cuda", made_from, compile_it) / f"{_NAME}.so"))
    pointer, whole = ctypes.c_void_p, ctypes.c_longlong
    library.soft_threshold_forward.argtypes = [*[pointer] * 3, whole, whole, pointer]
    library.soft_threshold_backward.argtypes = [*[pointer] * 5, whole, whole, pointer]
    return library


class CudaSoftThreshold(torch.autograd.Function):
    """``CudaSoftThreshold.apply(x, threshold)`` on an NVIDIA GPU: float32; threshold has the shape of x's last axes."""

    @staticmethod
    def forward(ctx, x: Tensor, threshold: Tensor) -> Tensor:
        x, threshold = _ready(x), _ready(threshold)
        if x.shape[x.ndim - threshold.ndim :] != threshold.shape:
            raise ValueError(
                f"threshold has shape {tuple(threshold.shape)}; allowed: the last axes of {tuple(x.shape)}"
            )
        ctx.save_for_backward(x, threshold)
        out = torch.empty_like(x)
        _call("forward", x, threshold, out, count=x.numel(), period=threshold.numel())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, threshold = ctx.saved_tensors
        grad_x, grad_threshold = torch.empty_like(x), torch.zeros_like(threshold)
        tensors = (_ready(grad), x, threshold, grad_x, grad_threshold)
        _call("backward", *tensors, count=x.numel(), period=threshold.numel())
        return grad_x, grad_threshold


def _ready(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda" or tensor.dtype != torch.float32:
        raise ValueError(f"a tensor is {tensor.dtype} on {tensor.device}; allowed: torch.float32 on a CUDA device")
    return tensor.contiguous()


def _call(name: str, *tensors: Tensor, count: int, period: int) -> None:
    """Launch a kernel on the current stream of the tensors' device.

    Raises:
        RuntimeError: the launch returned a CUDA error.
    """
    with torch.cuda.device(tensors[0].device):
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [tensor.data_ptr() for tensor in tensors]
        code = getattr(cuda_library(), f"soft_threshold_{name}")(*pointers, count, period, stream)
    if code:
        raise RuntimeError(f"soft_threshold_{name} returned CUDA error {code}")
