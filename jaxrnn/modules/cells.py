"""One step each of a layer, for `nnx.RNN` and `nnx.Bidirectional`: `RNNCell`, `LSTMCell`, `GRUCell` and `SLSTMCell`."""

from typing import Unpack

from jaxrnn.cells import gru, lstm, rnn
from jaxrnn.cells._activation import AnyActivation
from jaxrnn.modules._cell import RecurrentCell
from jaxrnn.modules._variants import gru_options, lstm_options, rnn_options, slstm_factory
from jaxrnn.modules._weights import DrawingOptions


class LSTMCell(RecurrentCell):
    """One step of a long short-term memory, with the arguments of `torch.nn.LSTMCell`.

    It computes :func:`jaxrnn.lstm_step`, for use in `nnx.RNN` and `nnx.Bidirectional`.
    :class:`LSTM` is faster than `nnx.RNN(LSTMCell(...))`: it computes the input products outside
    the loop, and its backward pass is the hand-written one.

    Args:
        input_size, hidden_size, bias, proj_size, peephole, coupled, layer_norm, num_heads, activation,
            recurrent_activation, param_dtype, kernel_init, recurrent_init, bias_init, kernel_metadata,
            recurrent_metadata, bias_metadata, rngs: as in :class:`LSTM`.

    Raises:
        TypeError, ValueError: as :class:`LSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> layer = nnx.RNN(jaxrnn.modules.LSTMCell(8, 16, rngs=nnx.Rngs(0)), return_carry=True)
        >>> state, ys = layer(jnp.ones((4, 20, 8)))
        >>> ys.shape, state.c.shape
        ((4, 20, 16), (4, 16))

    Differs from:
        1. Flax: the carry is a :class:`LSTMState` with the fields h and c, not a tuple (c, h).
        2. PyTorch: takes and returns (state, x) and (state, y), the order of `jax.lax.scan`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        proj_size: int = 0,
        peephole: bool = False,
        coupled: bool = False,
        layer_norm: bool = False,
        num_heads: int = 1,
        activation: AnyActivation = "tanh",
        recurrent_activation: AnyActivation = "sigmoid",
        **options: Unpack[DrawingOptions],
    ):
        variants = {"peephole": peephole, "coupled": coupled, "layer_norm": layer_norm}
        phis = {"activation": activation, "recurrent_activation": recurrent_activation}
        super().__init__(
            lstm, lstm_options("LSTMCell", hidden_size, num_heads, proj_size, **phis, **variants),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip
        self.proj_size = proj_size


class GRUCell(RecurrentCell):
    """One step of a gated recurrent unit, with the arguments of `torch.nn.GRUCell`.

    It computes :func:`jaxrnn.gru_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, reset_after, layer_norm, num_heads, activation, recurrent_activation,
            param_dtype, kernel_init, recurrent_init, bias_init, kernel_metadata, recurrent_metadata,
            bias_metadata, rngs: as in :class:`GRU`.

    Raises:
        TypeError, ValueError: as :class:`GRU`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.GRUCell(8, 16, rngs=nnx.Rngs(0))
        >>> h, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> h.shape
        (4, 16)

    Differs from:
        1. Flax: its GRUCell has no place for `b_hn`, the bias inside the reset.
        2. PyTorch: as :class:`LSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        num_heads: int = 1,
        activation: AnyActivation = "tanh",
        recurrent_activation: AnyActivation = "sigmoid",
        **options: Unpack[DrawingOptions],
    ):
        variants = {"reset_after": reset_after, "layer_norm": layer_norm}
        phis = {"activation": activation, "recurrent_activation": recurrent_activation}
        super().__init__(
            gru, gru_options("GRUCell", hidden_size, num_heads, **phis, **variants),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip


class RNNCell(RecurrentCell):
    """One step of a simple recurrent unit, with the arguments of `torch.nn.RNNCell`.

    It computes :func:`jaxrnn.rnn_step`; it is used as :class:`LSTMCell` is.

    Args:
        input_size, hidden_size, bias, nonlinearity, num_heads, param_dtype, kernel_init, recurrent_init,
            bias_init, kernel_metadata, recurrent_metadata, bias_metadata, rngs: as in
            :class:`RNN`.

    Raises:
        TypeError, ValueError: as :class:`RNN`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> both = (nnx.RNN(jaxrnn.modules.RNNCell(8, 16, rngs=nnx.Rngs(seed))) for seed in range(2))
        >>> nnx.Bidirectional(*both)(jnp.ones((4, 20, 8))).shape
        (4, 20, 32)

    Differs from:
        1. Flax, PyTorch: as :class:`LSTMCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: AnyActivation = "tanh",
        *,
        num_heads: int = 1,
        **options: Unpack[DrawingOptions],
    ):
        super().__init__(
            rnn, rnn_options("RNNCell", hidden_size, num_heads, nonlinearity),
            input_size, hidden_size, bias, **options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class SLSTMCell(RecurrentCell):
    """One step of an LSTM with scalar memory, exponential gates and a normaliser.

    It computes :func:`jaxrnn.slstm_step`; it is used as :class:`LSTMCell` is. Its carry is a
    :class:`jaxrnn.SLSTMState`.

    Args:
        input_size, hidden_size, bias, num_heads, forget_gate, param_dtype, kernel_init,
            recurrent_init, bias_init, kernel_metadata, recurrent_metadata, bias_metadata,
            rngs: as in :class:`SLSTM`.

    Raises:
        TypeError, ValueError: as :class:`SLSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.modules.SLSTMCell(8, 16, num_heads=4, rngs=nnx.Rngs(0))
        >>> state, y = cell(cell.initialize_carry((4, 8)), jnp.ones((4, 8)))
        >>> y.shape, state.m.shape
        ((4, 16), (4, 16))

    Differs from:
        1. PyTorch and Flax have none.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        num_heads: int = 1,
        forget_gate: str = "sigmoid",
        **options: Unpack[DrawingOptions],
    ):
        variants = {"num_heads": num_heads, "forget_gate": forget_gate}
        super().__init__(slstm_factory(options), variants, input_size, hidden_size, bias, **options)
        self.forget_gate = forget_gate
