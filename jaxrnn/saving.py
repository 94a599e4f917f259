"""A network and its parameters in one file."""
