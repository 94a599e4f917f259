"""How the arrays of a training are placed on devices: parameters are replicated, batches are split.

The same step is compiled for one device and for several, and its results differ by rounding alone: a mean
over a batch is a mean over all devices, and noise is drawn for the whole batch.
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
    """A mesh of one axis, along which the examples of a batch are split."""

    mesh: Mesh

    @property
    def whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def shared(self, axis: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def put_whole(self, tree: Any) -> Any:
        """Replicates arrays on every device; each process has a copy of them."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.whole), tree)

    def put_shared(self, tree: Any, axis: int) -> Any:
        """Splits arrays over the devices along an axis; each process has all of each array."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.shared(axis)), tree)

    def _put(self, leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._put(jax.random.key_data(leaf), sharding))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    def fetched(self, tree: Any) -> Any:
        """Gathers arrays from all devices onto the first device of this process."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), _gather(self.mesh, tree))


def _gather(mesh: Mesh, tree: Any) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def placing(devices: Sequence[Any], batch_size: int) -> Placing | None:
    """Places on the largest number of the devices that divides a batch; returns None if that is one.

    Raises:
        CannotRun: if there are several processes, which must use all their devices, and these do not divide the batch.
    """
    most = max(n for n in range(1, max(len(devices), 1) + 1) if batch_size % n == 0)
    if jax.process_count() > 1 and most < len(devices):
        raise CannotRun(f"--batch-size expected a number that {len(devices)} devices divide, got {batch_size}")
    return None if most == 1 else Placing(Mesh(np.asarray(devices[:most]), (AXIS,)))
