"""Several devices: a batch, the units of a layer, or the layers of a network sharded over them."""

from jaxrnn.parallel.data import data_parallel
from jaxrnn.parallel.model import model_parallel, param_shardings
from jaxrnn.parallel.pipeline import pipeline

__all__ = ["data_parallel", "model_parallel", "param_shardings", "pipeline"]
