"""Scaling on paper: the computed cost of a train step on accelerators, from their data sheets.

Per layer, with u of the peak for products and everything in numbers of the stated width:

    a step of a loop   = OVERHEAD + max(2 B H GH / (u peak), bytes of W_h / memory bandwidth)
    a layer            = 2 T steps, forward and backward, + 2 T B (3 I + H) GH / (u peak), products of all steps at once
    ring of n          = CALL + 2 (n-1) (HOP + bytes / n / bandwidth), an all-reduce; a gather has n-1 of them
    all-reduce of n    = ring of a node's 8, then of the nodes, each with an eighth of the bytes

The estimate leaves out pointwise work, the optimizer and the input pipeline, and assumes no overlap.
"""

from typing import NamedTuple

OVERHEAD = 10e-6  # s, assumed: about three kernels in each step of a loop; a persistent kernel takes about 2e-6
USED = 0.4  # assumed: the share of the peak that large products reach
CALL = 10e-6  # s, assumed: to start a collective


class Accelerator(NamedTuple):
    """Public figures of one chip; bytes and operations a second, dense bfloat16, bandwidths in one direction."""

    name: str
    peak: float
    memory: float  # bytes
    memory_rate: float
    near: int  # chips that are joined by the fast links
    near_rate: float  # of a ring over them
    far_rate: float  # of a ring beyond
    near_hop: float  # s, assumed
    far_hop: float  # s, assumed
    source: str


H100 = Accelerator(
    "H100 SXM", 989e12, 80e9, 3.35e12, 8, 450e9, 50e9, 1e-6, 5e-6,
    "NVIDIA H100 data sheet (NVLink 900 GB/s both ways), DGX H100 data sheet (8 adapters of 400 Gb/s)",
)  # fmt: skip
H200 = H100._replace(
    name="H200 SXM", memory=141e9, memory_rate=4.8e12, source="NVIDIA H200 data sheet; network as DGX H100"
)
V5P = Accelerator(
    "TPU v5p", 459e12, 95e9, 2.765e12, 8960, 200e9, 200e9, 1e-6, 1e-6,
    "Google Cloud, TPU v5p (1,200 GB/s both ways over six links, of which a ring takes two)",
)  # fmt: skip
ACCELERATORS = (H100, H200, V5P)


class Work(NamedTuple):
    """A network of equal layers."""

    steps: int
    features: int
    hidden: int
    layers: int
    gates: int = 4

    @property
    def weights(self) -> int:
        """The entries of all matrices."""
        return self.layers * (self.features + self.hidden) * self.gates * self.hidden


LANGUAGE = Work(steps=512, features=2048, hidden=2048, layers=2)
WIDE = Work(steps=512, features=16384, hidden=16384, layers=1)


def ring(size: int, numbers: float, hop: float, rate: float, passes: int = 2) -> float:
    """Seconds of a ring: two passes are an all-reduce of so many bytes, one a gather or a scatter."""
    return 0.0 if size == 1 else CALL + passes * (size - 1) * (hop + numbers / size / rate)


def collective(chip: Accelerator, devices: int, size: float, passes: int = 2) -> float:
    """Seconds of an all-reduce of `size` bytes, or with one pass of a gather: within nodes, then between them."""
    inside = min(devices, chip.near)
    outside = -(-devices // inside)
    near = ring(inside, size, chip.near_hop, chip.near_rate, passes)
    return near + ring(outside, size / inside, chip.far_hop, chip.far_rate, passes)


def step(chip: Accelerator, work: Work, batch: float, shares: int = 1) -> float:
    """Seconds of a step of a loop over time, with its weights sharded over so many devices."""
    columns = work.gates * work.hidden / shares
    product = 2 * batch * work.hidden * columns / (USED * chip.peak)
    return OVERHEAD + max(product, 2 * work.hidden * columns / chip.memory_rate)


def computing(chip: Accelerator, work: Work, batch: float, shares: int = 1) -> float:
    """Seconds of a train step without any collective."""
    columns = work.gates * work.hidden / shares
    at_once = 2 * work.steps * batch * (3 * work.features + work.hidden) * columns / (USED * chip.peak)
    return work.layers * (2 * work.steps * step(chip, work, batch, shares) + at_once)


def data_parallel(chip: Accelerator, work: Work, devices: int, batch: float) -> dict[str, float]:
    """Milliseconds of a train step with `batch` sequences on each device; "in the loop" is one all-reduce a step."""
    compute, reduce = computing(chip, work, batch), collective(chip, devices, 4.0 * work.weights)
    of_recurrent = collective(chip, devices, 4.0 * work.hidden * work.gates * work.hidden)
    in_loop = work.steps * work.layers * of_recurrent
    return {
        "compute_ms": 1e3 * compute,
        "all_reduce_ms": 1e3 * reduce,
        "in_the_loop_ms": 1e3 * in_loop,
        "efficiency": compute / (compute + reduce),
        "sequences_per_s": devices * batch / (compute + reduce),
    }


def model_parallel(chip: Accelerator, work: Work, devices: int, batch: float) -> dict[str, float]:
    """Milliseconds of a train step with the units over `devices`: a gather a step forward, a scatter backward."""
    compute = computing(chip, work, batch, devices)
    a_step = collective(chip, devices, 2.0 * batch * work.hidden, passes=1)
    at_once = collective(chip, devices, 2.0 * work.steps * batch * work.hidden, passes=1)
    exchange = work.layers * (2 * work.steps * a_step + at_once)
    return {
        "compute_ms": 1e3 * compute,
        "exchange_ms": 1e3 * exchange,
        "weights_gb": 1e-9 * 16 * work.weights / devices,  # float32: weights, gradients, two moments
        "speedup": computing(chip, work, batch) / (compute + exchange),
    }


def pipeline_efficiency(devices: int, chunks: int) -> float:
    """The share of ticks in which a device has a chunk."""
    return chunks / (chunks + devices - 1)
