// Soft threshold for NVIDIA GPUs behind a C interface: built by soft_threshold_native.py with nvcc alone (lesson 07).
// No torch header is needed, so the same library serves every torch; pointers and the stream come from Python.
#include <cuda_runtime.h>

namespace {

// One thread an element. The threshold repeats: element i has threshold[i % period].
__global__ void forward(const float* x, const float* threshold, float* out, long long count, long long period) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < count) {
    const float excess = fabsf(x[i]) - threshold[i % period];
    out[i] = excess > 0.f ? copysignf(excess, x[i]) : 0.f;
  }
}

// Each thread's share of the threshold's gradient is added atomically: the order, and so the last digits, vary.
__global__ void backward(const float* grad, const float* x, const float* threshold, float* grad_x,
                         float* grad_threshold, long long count, long long period) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < count) {
    const bool outside = fabsf(x[i]) > threshold[i % period];
    grad_x[i] = outside ? grad[i] : 0.f;
    if (outside) atomicAdd(grad_threshold + i % period, x[i] > 0.f ? -grad[i] : grad[i]);
  }
}

unsigned int blocks(long long count) { return (unsigned int)((count + 255) / 256); }

}  // namespace

// Each returns a cudaError_t as an int: 0 is success. All pointers are to memory of the current device.
extern "C" int soft_threshold_forward(const float* x, const float* threshold, float* out, long long count,
                                      long long period, void* stream) {
  if (count > 0) forward<<<blocks(count), 256, 0, (cudaStream_t)stream>>>(x, threshold, out, count, period);
  return (int)cudaGetLastError();
}

// grad_threshold must hold zeros.
extern "C" int soft_threshold_backward(const float* grad, const float* x, const float* threshold, float* grad_x,
                                       float* grad_threshold, long long count, long long period, void* stream) {
  if (count > 0)
    backward<<<blocks(count), 256, 0, (cudaStream_t)stream>>>(grad, x, threshold, grad_x, grad_threshold, count,
                                                              period);
  return (int)cudaGetLastError();
}

// How many devices there are; a negative number is a cudaError_t with its sign changed (-100: none found).
extern "C" int soft_threshold_devices() {
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  return error == cudaSuccess ? found : -(int)error;
}
