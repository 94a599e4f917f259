"""One step each, affine in the state: `MinGRUCell`, `MinLSTMCell`, `RGLRUCell` and `LRUCell`."""

import math
from typing import Unpack

from jaxrnn.cells import min_gru, min_lstm
from jaxrnn.modules._cell import RecurrentCell
from jaxrnn.modules._variants import lru_factory, rg_lru_factory, without_recurrent
from jaxrnn.modules._weights import DrawingOptions


class MinGRUCell(RecurrentCell):
    """One step of a minimal GRU.

    It computes :func:`jaxrnn.min_gru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, param_dtype, kernel_init, bias_init, kernel_metadata,
            bias_metadata, rngs: as in :class:`MinGRU`.

    Raises:
        TypeError, ValueError: as :class:`MinGRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.MinGRUCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Unpack[DrawingOptions]):
        factory = without_recurrent("MinGRUCell", min_gru, options)
        super().__init__(factory, {}, input_size, hidden_size, bias, **options)


class MinLSTMCell(RecurrentCell):
    """One step of a minimal LSTM.

    It computes :func:`jaxrnn.min_lstm_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, param_dtype, kernel_init, bias_init, kernel_metadata,
            bias_metadata, rngs: as in :class:`MinLSTM`.

    Raises:
        TypeError, ValueError: as :class:`MinLSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.MinLSTMCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Unpack[DrawingOptions]):
        factory = without_recurrent("MinLSTMCell", min_lstm, options)
        super().__init__(factory, {}, input_size, hidden_size, bias, **options)


class RGLRUCell(RecurrentCell):
    """One step of a real-gated linear recurrent unit.

    It computes :func:`jaxrnn.rg_lru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, num_blocks, param_dtype, kernel_init, bias_init,
            kernel_metadata, bias_metadata, rngs: as in :class:`RGLRU`.

    Raises:
        TypeError, ValueError: as :class:`RGLRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.RGLRUCell(8, 16, num_blocks=4, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_blocks: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        factory = rg_lru_factory("RGLRUCell", options)
        super().__init__(factory, {"num_blocks": num_blocks}, input_size, hidden_size, bias, **options)
        self.num_blocks = num_blocks


class LRUCell(RecurrentCell):
    """One step of a linear recurrent unit, whose state is complex and whose output is real.

    It computes :func:`jaxrnn.lru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, output_size, r_min, r_max, max_phase, param_dtype, kernel_init,
            kernel_metadata, rngs: as in :class:`LRU`.

    Raises:
        TypeError, ValueError: as :class:`LRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.LRUCell(8, 16, output_size=8, rngs=nnx.Rngs(0))
        >>> s, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> s.shape, s.dtype.name, y.shape
        ((4, 16), 'complex64', (4, 8))

    Differs from:
        1. PyTorch and Flax have none. There is no `bias`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        output_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        **options: Unpack[DrawingOptions],
    ):
        own = {"output_size": output_size, "r_min": r_min, "r_max": r_max, "max_phase": max_phase}
        super().__init__(lru_factory("LRUCell", options), own, input_size, hidden_size, False, **options)
        self.output_size = hidden_size if output_size is None else output_size
