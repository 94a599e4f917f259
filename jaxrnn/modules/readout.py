"""`Readout`: a linear layer, ψ, and the loss that belongs to it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxrnn import _checks, readouts
from jaxrnn._types import AnyArray
from jaxrnn.initializers import Initializer, draw
from jaxrnn.interop import _mappings as maps
from jaxrnn.modules import _weights
from jaxrnn.readouts import ReadoutParams


class Readout(nnx.Module):
    """What reads the outputs of a network, ŷ = ψ(h V + c), with the loss that belongs to ψ.

    Args:
        input_size: H, the size of the outputs that it reads.
        output_size: O, the number of outputs.
        activation: ψ: "identity", "sigmoid" or "softmax".
        bias: whether there is a `c`.
        param_dtype: of the parameters.
        kernel_init: draws `v`; by default U(±1/√H), as `torch.nn.Linear`.
        bias_init: draws `c`; by default the same.
        kernel_metadata, bias_metadata: of the `nnx.Param`s, such as `{"out_sharding": (None, "units")}`.
        rngs: its stream "params" draws `v`, then `c`.

    Attributes:
        v, c: the `nnx.Param`s, `(H, O)` and `(O,)`; `c` is `None` without bias.
        readout: the functional :class:`jaxrnn.Readout`.

    Raises:
        TypeError, ValueError: as :func:`jaxrnn.readout`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> lstm = jaxrnn.modules.LSTM(8, 16, rngs=nnx.Rngs(0))
        >>> read = jaxrnn.modules.Readout(16, 10, activation="softmax", rngs=nnx.Rngs(1))
        >>> ys, _ = lstm(jnp.ones((20, 4, 8)))
        >>> read(ys).shape, read.loss(ys[-1], jnp.array([3, 1, 4, 1])).shape
        ((20, 4, 10), (4,))

    Differs from:
        1. Flax: `nnx.Linear` draws from LeCun's normal distribution, and has neither ψ nor a loss.
        2. PyTorch: `torch.nn.Linear` stores (out, in).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        activation: str = "identity",
        bias: bool = True,
        *,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        kernel_metadata: Mapping[str, Any] | None = None,
        bias_metadata: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        where = type(self).__name__
        self.input_size = _checks.size(where, "input_size", input_size)
        self.output_size = _checks.size(where, "output_size", output_size)
        readouts.check_activation(where, activation, self.output_size)
        self.activation = activation
        self.bias = _checks.boolean(where, "bias", bias)
        self.param_dtype = _checks.float_dtype(where, "param_dtype", param_dtype)
        bound = 1.0 / math.sqrt(self.input_size)

        def uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        def init(key: Array, *, kernel_init: Any, bias_init: Any, **_: Any) -> ReadoutParams:
            shape, dtype = (self.input_size, self.output_size), self.param_dtype
            v = draw(f"{where}: kernel_init", kernel_init, key, shape, dtype)
            c = draw(f"{where}: bias_init", bias_init, rngs.params(), shape[1:], dtype) if self.bias else None
            return ReadoutParams(v, c)

        drawing = {
            "kernel_init": kernel_init,
            "bias_init": uniform if bias_init is None else bias_init,
            "kernel_metadata": kernel_metadata,
            "bias_metadata": bias_metadata,
        }
        params, make_param = _weights.draw(where, rngs, self.input_size, init, drawing)
        _weights.attach(self, params, make_param)

    @property
    def readout(self) -> readouts.Readout:
        """The functional read-out."""
        return readouts.readout(self.output_size, activation=self.activation, use_bias=self.bias)

    @property
    def params(self) -> ReadoutParams:
        """The parameters in the form of the functional API, for `self.readout`."""
        return _weights.detach(self)

    def __call__(self, h: Float[AnyArray, "*B H"]) -> Float[Array, "*B O"]:
        """ŷ of outputs `(*B, H)`."""
        return self.readout.predict(self.params, _weights.values(h))

    def logits(self, h: Float[AnyArray, "*B H"]) -> Float[Array, "*B O"]:
        """h V + c, without ψ."""
        return self.readout.logits(self.params, _weights.values(h))

    def loss(self, h: Float[AnyArray, "*B H"], targets: AnyArray) -> Float[Array, "*B"]:
        """The loss of each position, as :func:`jaxrnn.readout_loss` of the logits."""
        return self.readout.loss(self.params, *_weights.values((h, targets)))

    def load(self, params: ReadoutParams) -> None:
        """Replaces the parameters by functional ones, cast to the dtype of the module.

        Raises:
            TypeError, ValueError: if an entry is missing, unexpected or of another shape. The module is
                then unchanged.
        """
        params = _weights.values(params)
        _weights.check_like(f"{type(self).__name__}.load", "params", params, self.params)
        _weights.put(self, params)

    def load_torch(self, state_dict: Mapping[str, Any], prefix: str = "") -> None:
        """Replaces the parameters by those of a `torch.nn.Linear`.

        Args:
            state_dict: names to arrays, from its `state_dict()`.
            prefix: the path of the module in the state dict of a larger model, such as "head".

        Raises:
            TypeError, ValueError: if an entry is missing, unexpected or of another shape. The module is
                then unchanged.
        """
        where = f"{type(self).__name__}.load_torch"
        entries = maps.read_mapping(where, "state_dict", state_dict, prefix, ".")
        maps.check_names(entries, ("weight", "bias") if self.bias else ("weight",))
        found = {name: maps.entry(entries, name) for name in entries.values}
        shapes = {"weight": (self.output_size, self.input_size), "bias": (self.output_size,)}
        for name, array in found.items():
            maps.check_shape(where, entries.label(name), array, shapes[name])
        c = jnp.asarray(found["bias"]) if self.bias else None
        self.load(ReadoutParams(jnp.asarray(found["weight"].T), c))

    def to_torch(self, prefix: str = "") -> dict[str, Any]:
        """The state dict of a `torch.nn.Linear`, as NumPy arrays.

        Args:
            prefix: the path of the module in the state dict of a larger model.
        """
        path = maps.join_prefix(f"{type(self).__name__}.to_torch", prefix, ".")
        v, c = self.params
        weight = {f"{path}weight": maps.to_numpy(np.asarray(v).T)}
        return weight if c is None else weight | {f"{path}bias": maps.to_numpy(np.asarray(c))}
