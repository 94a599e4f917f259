"""Time: how a cell runs over a sequence, forward and backward. The public function is in `unroll.py`."""
