"""Many devices: a batch, the units of a layer, or the layers of a network shared out over them."""

from jaxrnn.parallel.data import data_parallel

__all__ = ["data_parallel"]
