"""Checks of meshes and of the names of their axes."""

from typing import Any

from jax.sharding import AxisType, Mesh

from jaxrnn import _checks


def axis_of(where: str, name: str, mesh: Any, axis: Any) -> int:
    """The number of devices along an axis of a mesh."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{where}: mesh expected a Mesh, as of jax.make_mesh, got {_checks.describe(mesh)}")
    if axis not in mesh.axis_names:
        raise ValueError(f"{where}: {name} expected an axis of the mesh, {', '.join(mesh.axis_names)}; got {axis!r}")
    return mesh.shape[axis]


def automatic(where: str, mesh: Mesh) -> None:
    """Raises unless the compiler decides the sharding on all axes of the mesh."""
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"{where}: mesh expected axes of AxisType.Auto, got {mesh.axis_types}; "
            "make it with axis_types=(AxisType.Auto,) * number of axes"
        )
