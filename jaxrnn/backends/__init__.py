"""Whole sequences in one launch on an accelerator, as an alternative to the loops of :mod:`jaxrnn.sequence`."""
