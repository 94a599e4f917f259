"""Checks of meshes and of the names of their axes."""

from typing import Any

from jax.sharding import AxisType, Mesh

from jaxrnn import _checks
from jaxrnn._describe import listed


def axis_of(where: str, name: str, mesh: Any, axis: Any) -> int:
    """The number of devices along an axis of a mesh."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{where}: mesh expected a Mesh, as of jax.make_mesh, got {_checks.describe(mesh)}")
    if not any(axis is each or (isinstance(axis, (str, type(each))) and axis == each) for each in mesh.axis_names):
        raise ValueError(
            f"{where}: {name} expected an axis of the mesh, {listed(mesh.axis_names)}; got {_checks.quote(axis)}"
        )
    return mesh.shape[axis]


def batch_axis_of(where: str, mesh: Mesh, axis: Any, taken: str, what: str) -> None:
    """Raises unless `axis` is `None`, or an axis of the mesh other than `taken`, which is that of `what`."""
    if axis is None:
        return
    axis_of(where, "batch_axis", mesh, axis)
    if axis == taken:
        raise ValueError(f"{where}: batch_axis expected another axis than that of the {what}, got {axis!r} for both")


def automatic(where: str, mesh: Mesh) -> None:
    """Raises unless the compiler decides the sharding on all axes of the mesh."""
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"{where}: mesh expected axes of AxisType.Auto, got {mesh.axis_types}; "
            "make it with axis_types=(AxisType.Auto,) * number of axes"
        )
