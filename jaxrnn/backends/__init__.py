"""The ways to run a cell over time: what each serves, which is taken, and those that are not a scan."""

from jaxrnn.backends.calls import Call, device_of
from jaxrnn.backends.capability import IMPLEMENTATIONS, reason_against, table
from jaxrnn.backends.choice import choose

__all__ = ["IMPLEMENTATIONS", "Call", "choose", "device_of", "reason_against", "table"]
