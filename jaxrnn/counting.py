"""The number of parameters of a network."""

import jax

from jaxrnn import _checks
from jaxrnn._describe import cut
from jaxrnn._types import CELL_TYPES, Params
from jaxrnn.cells._attention import memories
from jaxrnn.network import Network


def count_params(params: Params) -> int:
    """The number of parameters: the entries of all arrays of any pytree, but for a memory of :func:`with_memory`.

    RNN H(I + H + 1), LSTM 4 times that, GRU 3 times that and H for `b_hn`; with N heads
    H(I + H/N + 1), and so on; LSTM with projection 4H(I + P + 1) + HP. PyTorch also has a second
    bias for each layer and direction: H, 4H, and for the GRU 2H more than here.

    Args:
        params: any pytree of arrays, such as those of a cell or a network.

    Returns:
        A Python integer.

    Raises:
        TypeError: naming the leaf, if one is no array of numbers, as random keys are none.

    Example:
        >>> import jax, jaxrnn
        >>> jaxrnn.count_params(jaxrnn.lstm(256).init(jax.random.key(0), 128))
        394240
    """
    where, total = "count_params", 0
    for path, leaf in _checks.leaves_with_path(where, "params", params):
        size = _checks.size_of(leaf)
        if size is None:
            at = f"params{cut(jax.tree_util.keystr(path), 80)}"
            hint = "; give the params, such as `init` returns" if isinstance(params, (Network, *CELL_TYPES)) else ""
            hint = (
                "; of a module count its `.params`" if isinstance(_checks.attribute(params, "params"), tuple) else hint
            )
            raise TypeError(f"{where}: {at} expected an array of numbers, got {_checks.describe(leaf)}{hint}")
        total += size
    return total - sum(leaf.size for memory in memories(params) for leaf in jax.tree.leaves(memory))
