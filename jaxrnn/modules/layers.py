"""`RNN`, `LSTM` and `GRU`: PyTorch's names, arguments, shapes and return order; `SLSTM` likewise."""

from typing import Unpack

from jaxrnn.cells import gru, lstm, rnn
from jaxrnn.cells._activation import AnyActivation
from jaxrnn.modules._base import LayerOptions, Recurrent
from jaxrnn.modules._variants import gru_options, lstm_options, rnn_options, slstm_factory


class LSTM(Recurrent):
    """Layers of long short-term memory, with the arguments, shapes and return order of `torch.nn.LSTM`.

    The equations are those of :func:`jaxrnn.lstm_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start as PyTorch's do, at U(±1/√H), but peepholes at 0
    and the scales of layer normalisation at 1.

    Args:
        input_size: I, the features of the input.
        hidden_size: H, the units of each layer and direction.
        num_layers: L, each layer reading the outputs of the one below.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are `(*B, T, ·)`; `mask` and `resets` are then
            `(*B, T)`. States are `(L*D, *B, ·)` always.
        dropout: the rate in [0, 1) at which outputs of every layer but the last are dropped.
        bidirectional: whether every layer reads both ways; D is then 2, otherwise 1.
        proj_size: P < H, the entries of a projected output; 0 is no projection.
        peephole, coupled, layer_norm: the variants of :func:`jaxrnn.lstm`.
        num_heads: N, which divides H. The recurrent matrix of each layer and direction is block-diagonal:
            `w_h (N, H/N, 4H/N)`. Not with a projection.
        activation, recurrent_activation: those of :func:`jaxrnn.lstm`. PyTorch has tanh and the sigmoid alone.
        checkpoint, implementation, compute_dtype: those of :func:`jaxrnn.unroll`.
        param_dtype: the dtype of the parameters.
        kernel_init, recurrent_init, bias_init: draw `w_x`; `w_h` and `w_proj`; `b`. As in
            :func:`jaxrnn.lstm`, but `None` is U(±1/√H), and for `w_h` with heads U(±1/√(H/N)): in both
            the bound is that of as many units as one reads. Metadata that they return, such as
            that of `nnx.with_partitioning`, is set on `w_x`, `w_h` and `b`.
        kernel_metadata, recurrent_metadata, bias_metadata: metadata of `w_x`, `w_h` and `b`,
            such as `{"out_sharding": (None, "model")}`; `w_h` with heads has three axes. For other parameters call
            `set_metadata`.
        deterministic: whether dropout is off at first; `train()` and `eval()` set it.
        rngs: parameters are drawn from its stream "params", dropout from a fork of "dropout".

    Raises:
        TypeError, ValueError: for sizes that are not positive integers, a projection that is
            not smaller than H, heads that do not divide H, a rate outside [0, 1), options that are not booleans.

    Warns:
        UserWarning: if there is dropout and only one layer, as in PyTorch.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> lstm = jaxrnn.modules.LSTM(8, 16, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = lstm(jnp.ones((20, 4, 8)), lengths=jnp.array([20, 7, 1, 0]))
        >>> output.shape, h_n.shape, lstm.layers[1].backward.w_x.shape
        ((20, 4, 32), (4, 4, 16), (32, 64))

    Differs from:
        1. PyTorch: lengths, masks and resets, with no packing; variants of the cell.
        2. PyTorch: one bias, of half the variance of the sum of PyTorch's two. It has no heads;
           `to_torch` writes the block-diagonal matrix with its zeros, `load_torch` reads it.
        3. PyTorch: any number of batch axes; dropout 1 is refused.
        4. Flax: layers, directions and time in one module, where `nnx.RNN` wraps a cell.
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
        proj_size: int = 0,
        *,
        peephole: bool = False,
        coupled: bool = False,
        layer_norm: bool = False,
        num_heads: int = 1,
        activation: AnyActivation = "tanh",
        recurrent_activation: AnyActivation = "sigmoid",
        **options: Unpack[LayerOptions],
    ):
        variants = {"peephole": peephole, "coupled": coupled, "layer_norm": layer_norm}
        phis = {"activation": activation, "recurrent_activation": recurrent_activation}
        super().__init__(
            lstm, lstm_options("LSTM", hidden_size, num_heads, proj_size, **phis, **variants),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip
        self.proj_size = proj_size


class GRU(Recurrent):
    """Layers of gated recurrent units, with the arguments, shapes and return order of `torch.nn.GRU`.

    The equations are those of :func:`jaxrnn.gru_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start as PyTorch's do, at U(±1/√H), but the scales of
    layer normalisation at 1.

    Args:
        reset_after, layer_norm: the variants of :func:`jaxrnn.gru`. PyTorch's is reset-after.
        num_heads: N, which divides H; `w_h` is `(N, H/N, 3H/N)`, as in :class:`LSTM`.
        activation, recurrent_activation: those of :func:`jaxrnn.gru`.
        kernel_init, recurrent_init, bias_init: draw `w_x`; `w_h`; `b` and `b_hn`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            recurrent_metadata, bias_metadata, deterministic, rngs: as in :class:`LSTM`.

    Raises:
        TypeError, ValueError: as :class:`LSTM`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.modules.GRU(8, 16, batch_first=True, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((4, 20, 8)), jnp.zeros((1, 4, 16)))
        >>> output.shape, h_n.shape
        ((4, 20, 16), (1, 4, 16))

    Differs from:
        1. PyTorch and Flax as :class:`LSTM`. PyTorch's two biases of r and z are one here;
           `b_n` and `b_hn` stay two.
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
        reset_after: bool = True,
        layer_norm: bool = False,
        num_heads: int = 1,
        activation: AnyActivation = "tanh",
        recurrent_activation: AnyActivation = "sigmoid",
        **options: Unpack[LayerOptions],
    ):
        variants = {"reset_after": reset_after, "layer_norm": layer_norm}
        phis = {"activation": activation, "recurrent_activation": recurrent_activation}
        super().__init__(
            gru, gru_options("GRU", hidden_size, num_heads, **phis, **variants),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip


class RNN(Recurrent):
    """Layers of simple recurrent units, with the arguments, shapes and return order of `torch.nn.RNN`.

    h_t = φ(x_t W_x + h_{t-1} W_h + b). The network is that of :func:`jaxrnn.stack`. Parameters
    start as PyTorch's do, at U(±1/√H).

    Args:
        nonlinearity: φ, an activation as in :func:`jaxrnn.rnn`. PyTorch's state dict does not hold it.
        num_heads: N, which divides H; `w_h` is `(N, H/N, H/N)`, as in :class:`LSTM`.
        kernel_init, recurrent_init, bias_init: draw `w_x`; `w_h`; `b`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            recurrent_metadata, bias_metadata, deterministic, rngs: as in :class:`LSTM`.

    Raises:
        TypeError, ValueError: as :class:`LSTM`; for an unknown nonlinearity.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> rnn = jaxrnn.modules.RNN(8, 16, nonlinearity="relu", rngs=nnx.Rngs(0))
        >>> output, h_n = rnn(jnp.ones((20, 8)))
        >>> output.shape, h_n.shape
        ((20, 16), (1, 16))

    Differs from:
        1. PyTorch and Flax as :class:`LSTM`; PyTorch knows only "tanh" and "relu".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: AnyActivation = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        num_heads: int = 1,
        **options: Unpack[LayerOptions],
    ):
        super().__init__(
            rnn, rnn_options("RNN", hidden_size, num_heads, nonlinearity),
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class SLSTM(Recurrent):
    """Layers of LSTMs with scalar memory, exponential gates and a normaliser, used as :class:`LSTM`.

    The equations are those of :func:`jaxrnn.slstm_step`, the network is that of
    :func:`jaxrnn.stack`. Parameters start as those of :func:`jaxrnn.slstm`. States are an
    :class:`jaxrnn.SLSTMState`, `(h_n, c_n, n_n, m_n)`.

    Args:
        num_heads, forget_gate: as in :func:`jaxrnn.slstm`.
        kernel_init, recurrent_init, bias_init: draw `w_x`; `w_h`; `b`. `None` is as in :func:`jaxrnn.slstm`.
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            checkpoint, implementation, compute_dtype, param_dtype, kernel_metadata,
            recurrent_metadata, bias_metadata, deterministic, rngs: as in :class:`LSTM`.

    Raises:
        TypeError, ValueError: as :class:`LSTM`; as :func:`jaxrnn.slstm`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> net = jaxrnn.modules.SLSTM(8, 16, num_heads=4, rngs=nnx.Rngs(0))
        >>> output, state = net(jnp.ones((20, 4, 8)))
        >>> output.shape, state.n.shape
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
        num_heads: int = 1,
        forget_gate: str = "sigmoid",
        **options: Unpack[LayerOptions],
    ):
        super().__init__(
            slstm_factory(options), {"num_heads": num_heads, "forget_gate": forget_gate},
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, **options,
        )  # fmt: skip
        self.forget_gate = forget_gate
