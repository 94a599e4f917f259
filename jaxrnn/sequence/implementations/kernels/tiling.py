"""How the units of a cell are tiled, and how many tiles of its recurrent weights one multiprocessor holds.

W_h is G J² blocks of N x N weights, of G gates, J blocks of units and b bytes a weight. They
stay in shared memory from the first step to the last if they fit there, G (J N)² b bytes,
beside what a step needs for R sequences: one accumulator and the operands of a product, of
all blocks of units or, backward, of all gates: R N (4 + max(G, J) b) bytes. With the 227 KB of
Hopper and R = 16, the largest H whose weights stay:

    b                                  RNN     GRU     LSTM
    2  bfloat16, float16               256     192     128
    4  float32, products in TF32       192     128     96
    8  float32 itself, split in two    128     64      64

Of a larger W_h, as many blocks stay as fit beside two more; the others are read again at
every step from the second-level cache, some 64 bytes a clock, or 100 KB a microsecond. That
goes up to H = 256. Beyond, a step is better spread over all multiprocessors, as cuDNN's
kernels and a loop of large products do.
"""

from typing import NamedTuple

import jax

from jaxrnn.sequence.implementations.kernels.blocks import AHEAD

ROWS = 16  # sequences of a program: the fewest rows that a product of tensor cores takes
WIDTHS = (16, 32, 64, 128)  # units of a block
MOST_BLOCKS = 4  # of units: the J² G products of a step are written out one by one
WIDTH_READ_AGAIN = 64  # where not all blocks stay
MOST_UNITS = 256

# Bytes of shared memory a program may ask for, by compute capability (CUDA programming guide).
SHARED_MEMORY = {"8.0": 166912, "8.7": 166912, "9.0": 232448, "10.0": 232448, "10.3": 232448}
LEAST_SHARED_MEMORY = 101376  # of every other since 8.0


class Tiling(NamedTuple):
    """How the units are tiled, and what stays on the chip."""

    width: int  # N
    blocks: int  # J
    resident: int  # of the G J² blocks of weights
    warps: int

    def is_resident(self, gates: int) -> bool:
        """Whether nothing is read twice."""
        return self.resident == gates * self.blocks**2


def shared_memory() -> int:
    """Bytes that a program may have on this machine's GPU; without one, on Hopper."""
    if jax.default_backend() != "gpu":
        return SHARED_MEMORY["9.0"]
    return SHARED_MEMORY.get(str(getattr(jax.devices()[0], "compute_capability", "")), LEAST_SHARED_MEMORY)


def _resident(gates: int, width: int, blocks: int, bytes_each: int, memory: int) -> int:
    """How many blocks of weights stay."""
    block, count = width * width * bytes_each, gates * blocks**2
    step = ROWS * width * (4 + max(gates, blocks) * bytes_each)
    if step + count * block <= memory:
        return count
    return max(0, (memory - step) // block - (AHEAD + 1))


def tiling(gates: int, hidden: int, bytes_each: int, memory: int) -> Tiling | None:
    """The tiling of a cell; `None` if it has too many units.

    The fewest blocks of which all weights stay, or else blocks of a middle width.
    """

    def of_width(width: int) -> Tiling:
        blocks = -(-hidden // width)
        resident = _resident(gates, width, blocks, bytes_each, memory)
        return Tiling(width, blocks, resident, 4 if blocks * width <= 64 else 8)

    if hidden > MOST_UNITS:
        return None
    tilings = [each for each in map(of_width, WIDTHS) if each.blocks <= MOST_BLOCKS and each.is_resident(gates)]
    return min(tilings, key=lambda each: (each.blocks, each.width), default=of_width(WIDTH_READ_AGAIN))
