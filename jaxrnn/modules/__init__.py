"""Flax NNX modules over the functional API."""
