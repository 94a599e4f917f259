"""Back-propagation through time by hand, beside what JAX computes, step by step and gate by gate."""
