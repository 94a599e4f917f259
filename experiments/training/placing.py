"""Where a training's arrays lie: parameters whole on every device, of each batch a share.

The step is compiled for such arrays as it is for one device, and what it computes is the same but
for rounding: a mean over a batch is one over all devices, noise is drawn as if for the whole batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.command.report import CannotRun

AXIS = "batch"


class Placing(NamedTuple):
    """A mesh of one axis, along which the examples of a batch are shared out."""

    mesh: Mesh

    @property
    def whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def shared(self, axis: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def put_whole(self, tree: Any) -> Any:
        """The same on every device, from a copy that each process has."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.whole), tree)

    def put_shared(self, tree: Any, axis: int) -> Any:
        """Of arrays that each process has whole, on each device its share along an axis."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.shared(axis)), tree)

    def _put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._put(jax.random.key_data(leaf), sharding))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    def fetched(self, tree: Any) -> Any:
        """Whole arrays of this process, on its first device, from wherever their parts lie."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), _gather(self.mesh, tree))


def _gather(mesh: Mesh, tree: Any) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def placing(devices: Sequence[Any], batch_size: int) -> Placing | None:
    """On as many of the devices as divide a batch; None for one.

    Raises:
        CannotRun: if the devices are of several processes, which cannot do without any of them, and do not divide it.
    """
    most = max(n for n in range(1, max(len(devices), 1) + 1) if batch_size % n == 0)
    if jax.process_count() > 1 and most < len(devices):
        raise CannotRun(f"--batch-size expected a number that {len(devices)} devices divide, got {batch_size}")
    return None if most == 1 else Placing(Mesh(np.asarray(devices[:most]), (AXIS,)))
