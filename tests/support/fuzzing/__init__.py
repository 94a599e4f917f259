"""Random faults of what `jaxrnn.interop` reads and writes, and what an answer to them has to keep.

`python -m tests.support.fuzzing SEED COUNT [KIND ...]` counts the answers; `tests/interop/test_fuzz.py` tries a few.
"""
