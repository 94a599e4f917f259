"""Networks on top of jaxrnn that several scripts train, and the problems on which cells are compared."""
