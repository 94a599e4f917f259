"""Time: the driver of cells, and of their hand-written derivatives."""

from jaxrnn.sequence.unroll import unroll

__all__ = ["unroll"]
