"""Time: how a cell runs over a sequence, forward and backward. The door is `unroll.py`, above `jaxrnn.backends`."""
