"""Checks of a cell of one's own against the contract that the library's cells keep."""

from jaxrnn.testing.check import CellFault, Fault, Report, check_cell

__all__ = ["CellFault", "Fault", "Report", "check_cell"]
