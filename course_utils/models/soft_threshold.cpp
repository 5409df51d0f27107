// Soft threshold for the CPU, registered as operators of course_cpp: built by soft_threshold_native.py (lesson 07).
// ATen/ATen.h and torch/library.h alone compile in a third of the time that torch/extension.h takes.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

namespace {

constexpr int64_t kGrain = 32768;  // elements a thread takes at least

// x (...), threshold broadcastable to it -> sign(x) * max(|x| - threshold, 0), shape of x
at::Tensor soft_threshold(const at::Tensor& x, const at::Tensor& threshold) {
  const auto values = x.contiguous();
  const auto limits = threshold.to(x.scalar_type()).expand(x.sizes()).contiguous();
  auto out = at::empty_like(values);
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "soft_threshold", [&] {
    const auto* v = values.const_data_ptr<scalar_t>();
    const auto* t = limits.const_data_ptr<scalar_t>();
    auto* o = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, values.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const scalar_t excess = std::abs(v[i]) - t[i];
        o[i] = excess > 0 ? std::copysign(excess, v[i]) : scalar_t(0);
      }
    });
  });
  return out;
}

// gradient of the output -> gradients of x (its shape) and of the threshold (the threshold's shape)
std::tuple<at::Tensor, at::Tensor> soft_threshold_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& threshold) {
  const auto outside = x.abs() > threshold;
  const auto through = at::where(outside, grad, at::zeros_like(grad));
  return {through, (-through * x.sign()).sum_to_size(threshold.sizes())};
}

}  // namespace

TORCH_LIBRARY(course_cpp, library) {
  library.def("soft_threshold(Tensor x, Tensor threshold) -> Tensor");
  library.def("soft_threshold_backward(Tensor grad, Tensor x, Tensor threshold) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(course_cpp, CPU, library) {
  library.impl("soft_threshold", &soft_threshold);
  library.impl("soft_threshold_backward", &soft_threshold_backward);
}
