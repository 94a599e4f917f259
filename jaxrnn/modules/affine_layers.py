"""`MinGRU`, `MinLSTM`, `RGLRU` and `LRU`: layers of cells whose step is affine in the state."""

import math
from typing import Unpack

from jaxrnn.cells import min_gru, min_lstm
from jaxrnn.modules._base import LayerOptions, Recurrent
from jaxrnn.modules._variants import lru_factory, rg_lru_factory, without_recurrent


class MinGRU(Recurrent):
    """Layers of minimal GRUs, whose step is affine in the state, used as :class:`GRU`.

    The equations are those of :func:`jaxrnn.min_gru_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start at U(±1/√H). `implementation="associative"` runs all
    steps in parallel.

    Args:
        kernel_init, bias_init: draw `w_x`; `b`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            bias_metadata, deterministic, rngs: as in :class:`LSTM`.
        recurrent_init, recurrent_metadata: `None`; the cell has no recurrent weight.

    Raises:
        TypeError, ValueError: as :class:`LSTM`; for a `recurrent_init` or `recurrent_metadata`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> net = jaxrnn.modules.MinGRU(8, 16, num_layers=2, implementation="associative", rngs=nnx.Rngs(0))
        >>> output, h_n = net(jnp.ones((20, 4, 8)))
        >>> output.shape, h_n.shape
        ((20, 4, 16), (2, 4, 16))

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Unpack[LayerOptions],
    ):
        super().__init__(
            without_recurrent("MinGRU", min_gru, options), {},
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip


class MinLSTM(Recurrent):
    """Layers of minimal LSTMs, whose step is affine in the state, used as :class:`GRU`: it has no cell state.

    The equations are those of :func:`jaxrnn.min_lstm_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start at U(±1/√H). `implementation="associative"` runs all
    steps in parallel.

    Args:
        kernel_init, bias_init: draw `w_x`; `b`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            bias_metadata, deterministic, rngs: as in :class:`LSTM`.
        recurrent_init, recurrent_metadata: `None`; the cell has no recurrent weight.

    Raises:
        TypeError, ValueError: as :class:`LSTM`; for a `recurrent_init` or `recurrent_metadata`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> net = jaxrnn.modules.MinLSTM(8, 16, num_layers=2, implementation="associative", rngs=nnx.Rngs(0))
        >>> output, h_n = net(jnp.ones((20, 4, 8)))
        >>> output.shape, h_n.shape
        ((20, 4, 16), (2, 4, 16))

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Unpack[LayerOptions],
    ):
        super().__init__(
            without_recurrent("MinLSTM", min_lstm, options), {},
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip


class RGLRU(Recurrent):
    """Layers of real-gated linear recurrent units, whose step is affine in the state, used as :class:`GRU`.

    The equations are those of :func:`jaxrnn.rg_lru_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start at U(±1/√H), but Λ as in :func:`jaxrnn.rg_lru`.
    `implementation="associative"` runs all steps in parallel.

    Args:
        num_blocks: N, the blocks of the gates' matrices; it divides H.
        kernel_init, bias_init: draw `w_x` and the blocks of `w_gates`; `b` and `b_gates`. Metadata
            are those of `w_x` and `b`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            bias_metadata, deterministic, rngs: as in :class:`LSTM`.
        recurrent_init, recurrent_metadata: `None`; the cell has no recurrent weight.

    Raises:
        TypeError, ValueError: as :class:`MinGRU`; for a `num_blocks` that does not divide H.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> net = jaxrnn.modules.RGLRU(8, 16, num_blocks=4, rngs=nnx.Rngs(0))
        >>> output, h_n = net(jnp.ones((20, 4, 8)))
        >>> output.shape, h_n.shape
        ((20, 4, 16), (1, 4, 16))

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        num_blocks: int = 1,
        **options: Unpack[LayerOptions],
    ):
        super().__init__(
            rg_lru_factory("RGLRU", options), {"num_blocks": num_blocks},
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip
        self.num_blocks = num_blocks


class LRU(Recurrent):
    """Layers of linear recurrent units, whose state is complex and whose output is real.

    The equations are those of :func:`jaxrnn.lru_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start as those of :func:`jaxrnn.lru`.
    `implementation="associative"` runs all steps in parallel. States are complex64 for float32
    and complex128 for float64; there are none for 16-bit dtypes.

    Args:
        output_size, r_min, r_max, max_phase: as in :func:`jaxrnn.lru`.
        kernel_init: draws `w_x`, `w_y` and `d`. Its metadata are those of `w_x`.
        input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, checkpoint,
            implementation, compute_dtype, param_dtype, kernel_metadata, deterministic, rngs: as
            in :class:`LSTM`.
        recurrent_init, recurrent_metadata, bias_init, bias_metadata: `None`; the cell has no
            recurrent weight and no bias.

    Raises:
        TypeError, ValueError: as :class:`LSTM`; for a ring outside the unit disk, or an
            initialiser or metadata of what the cell does not have.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> net = jaxrnn.modules.LRU(8, 16, 2, output_size=8, r_min=0.9, rngs=nnx.Rngs(0))
        >>> output, h_n = net(jnp.ones((20, 4, 8)))
        >>> output.shape, h_n.shape, h_n.dtype.name
        ((20, 4, 8), (2, 4, 16), 'complex64')

    Differs from:
        1. PyTorch and Flax have none. `hx` is complex, and there is no `bias`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        output_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        **options: Unpack[LayerOptions],
    ):
        ring = {"r_min": r_min, "r_max": r_max, "max_phase": max_phase}
        super().__init__(
            lru_factory("LRU", options), {"output_size": output_size, **ring},
            input_size, hidden_size, num_layers, False, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip
        self.output_size = hidden_size if output_size is None else output_size
