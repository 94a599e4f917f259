"""Networks on top of jaxrnn that several scripts train, and the real tasks for them."""
