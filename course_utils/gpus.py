"""The GPUs the planner knows: one row each, with everything that any part of the course asks of a GPU.

Numbers are the makers' data sheets: H200, H100 SXM, A100 SXM, L40S, A10G, L4, V100 SXM2, T4. To add a GPU, add a row:
no field has a default, so that none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class GpuKind(NamedTuple):
    """One kind of GPU and the machines it is rented in."""

    memory: float  # GiB as the driver reports it
    peak: float  # TFLOP/s of matrix multiplications in 16 bit, dense
    peak_fp32: float  # TFLOP/s in fp32 without tensor cores: torch's default for fp32 matrices
    bandwidth: float  # GB/s between the GPU and its memory
    link: float  # GB/s between two GPUs of a machine, one direction: NVLink, or PCIe where there is none
    network: float  # GB/s of a machine, one direction, as usually rented
    bf16: bool  # tensor cores compute in bf16
    instances: Mapping[int, str]  # GPUs of one machine -> the cheapest SageMaker training instance with exactly so many
    accelerator: str  # SkyPilot's name, which its catalogues of all clouds share (`sky show-gpus`)


# Networks: DGX H100 and p5 (8 x 400 Gb/s), DGX A100 (8 x 200 Gb/s), p4d and g6e (400 Gb/s), g5, g6, p3dn and g4dn
# (100 Gb/s). Instances: the API's TrainingInstanceType; GPUs per instance: https://aws.amazon.com/sagemaker/ai/pricing/
# ("accelerated computing").
GPUS: dict[str, GpuKind] = {
    "H200-141GB": GpuKind(140.0, 989, 67, 4800, 450, 400, True, {8: "ml.p5en.48xlarge"}, "H200"),
    "H100-80GB": GpuKind(79.6, 989, 67, 3350, 450, 400, True, {1: "ml.p5.4xlarge", 8: "ml.p5.48xlarge"}, "H100"),
    "A100-80GB": GpuKind(79.3, 312, 19.5, 2039, 300, 200, True, {8: "ml.p4de.24xlarge"}, "A100-80GB"),
    "A100-40GB": GpuKind(39.4, 312, 19.5, 1555, 300, 50, True, {8: "ml.p4d.24xlarge"}, "A100"),
    "L40S-48GB": GpuKind(
        44.4, 362, 91.6, 864, 32, 50, True,
        {1: "ml.g6e.2xlarge", 4: "ml.g6e.12xlarge", 8: "ml.g6e.48xlarge"}, "L40S",
    ),
    "A10G-24GB": GpuKind(
        22.0, 70, 31.5, 600, 32, 12.5, True,
        {1: "ml.g5.2xlarge", 4: "ml.g5.12xlarge", 8: "ml.g5.48xlarge"}, "A10G",
    ),
    "L4-24GB": GpuKind(
        22.0, 121, 30.3, 300, 32, 12.5, True,
        {1: "ml.g6.2xlarge", 4: "ml.g6.12xlarge", 8: "ml.g6.48xlarge"}, "L4",
    ),
    "V100-16GB": GpuKind(
        15.8, 125, 15.7, 900, 150, 12.5, False,
        {1: "ml.p3.2xlarge", 4: "ml.p3.8xlarge", 8: "ml.p3.16xlarge"}, "V100",
    ),
    "T4-16GB": GpuKind(14.6, 65, 8.1, 320, 16, 12.5, False, {1: "ml.g4dn.2xlarge", 4: "ml.g4dn.12xlarge"}, "T4"),
}  # fmt: skip
Gpu = Literal[tuple(GPUS)]  # the names, as a type that pydantic checks
