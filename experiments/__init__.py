"""Scripts that a person runs: `python -m experiments.<name>`. They use only the public API of `jaxrnn`."""
