"""The names by which `jax.export` writes records of parameters and states into an artifact.

An artifact that takes or returns such a record is read by a process that has imported jaxrnn. One
that other processes read takes and returns tuples, lists and dictionaries: `tuple(params)` is one.
"""

from jax import export

from jaxrnn import cells
from jaxrnn.layers import Bidirectional
from jaxrnn.readouts import ReadoutParams

RECORDS = (
    Bidirectional,
    ReadoutParams,
    cells.Memory,
    *(getattr(cells, name) for name in cells.__all__ if name.endswith(("Norm", "Params", "State"))),
)

for _record in RECORDS:
    export.register_namedtuple_serialization(_record, serialized_name=f"jaxrnn.{_record.__name__}")
