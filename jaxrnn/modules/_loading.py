"""Loads weights of functional networks and of PyTorch into a module, and exports them."""

import abc
from collections.abc import Mapping
from typing import Any

from jaxrnn import interop
from jaxrnn._types import Params
from jaxrnn.layers import Layer
from jaxrnn.modules import _weights
from jaxrnn.modules._signature import spelled_out
from jaxrnn.modules._variants import check_torch_has


class Loading:
    """The base of layers and cells: parameters that can be replaced as a whole."""

    num_heads: int  # of the recurrent weights

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__signature__ = spelled_out(cls)

    @property
    @abc.abstractmethod
    def params(self) -> Params:
        """The parameters in the form of the functional API."""

    @abc.abstractmethod
    def _parts(self) -> tuple[Layer, list[Any]]:
        """The first layer, and the modules that hold the `nnx.Param`s of each entry of `params`."""

    def load(self, params: Params) -> None:
        """Replaces the parameters by functional ones.

        Args:
            params: of the structure and the shapes of `self.params`; cast to its dtype.

        Raises:
            TypeError, ValueError: if an entry is missing, unexpected or of another shape. The
                module is then unchanged.
        """
        params = _weights.values(params)
        _weights.check_like(f"{type(self).__name__}.load", "params", params, self.params)
        _, holders = self._parts()
        records = [params] if hasattr(params, "_fields") else params
        for holder, record in zip(holders, records, strict=True):
            _weights.put(holder, record)

    def load_torch(self, state_dict: Mapping[str, Any], prefix: str = "") -> None:
        """Replaces the parameters by those of a `torch.nn` module of the same name and configuration.

        With heads the entries between units of different heads are exactly zero.

        Args:
            state_dict: names to arrays, from its `state_dict()`.
            prefix: the path of the module in the state dict of a larger model, such as
                "encoder.rnn".

        Raises:
            TypeError, ValueError: if an entry is missing, unexpected or of another shape. The
                module is then unchanged.
        """
        check_torch_has(f"{type(self).__name__}.load_torch", self._parts()[0])
        self.load(interop.from_torch(state_dict, prefix, num_heads=self.num_heads))

    def to_torch(self, prefix: str = "") -> dict[str, Any]:
        """The state dict of a `torch.nn` module of the same name and configuration, as NumPy arrays.

        Heads are written as the block-diagonal matrix of the same function, zeros included.

        Args:
            prefix: the path of the module in the state dict of a larger model.

        Raises:
            ValueError: for a variant that PyTorch does not have.
        """
        check_torch_has(f"{type(self).__name__}.to_torch", self._parts()[0])
        return interop.to_torch(self.params, prefix)
