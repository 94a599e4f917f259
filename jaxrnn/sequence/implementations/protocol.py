"""What an implementation is: a name, what it supports, and a function that runs a request.

To add one, write a frozen dataclass with these members in a file of its own, and list it in
`registry.py`. `unroll(..., implementation=Mine())` also accepts one that is not listed.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxrnn._types import AnyCell
from jaxrnn.sequence.request import COMPLEX, FEATURES, SYMBOLIC_BATCH, SYMBOLIC_TIME, Inputs, Options, Outcome, Request

GRAD, SECOND, FORWARD_MODE, VMAP = "`grad`", "`hessian`, reverse over reverse", "`jvp`, `jacfwd`", "`vmap`"
TRANSFORMATIONS = (GRAD, SECOND, FORWARD_MODE, VMAP)
BY_HAND = "the derivative is written by hand for reverse mode; 'scan' supports it"
HEADS = (
    "it multiplies by one dense w_h, not by the blocks of a block-diagonal one; jaxrnn.merge_heads(params) writes "
    "them as one matrix, for the cell with num_heads=1"
)
UNSEEN = (
    "its gradient would miss their part: give them as parameters of a cell of your own; 'scan' supports it, and "
    "differentiates with respect to them"
)
# Why an implementation does not support a feature, if it has no reason of its own.
REASONS = {
    SYMBOLIC_TIME: "its program is made for a number of steps; 'bptt' and 'scan' support a symbol",
    SYMBOLIC_BATCH: "its program is made for a number of sequences; 'bptt' and 'scan' support a symbol",
    COMPLEX: "it computes with real states alone; 'associative', 'bptt' and 'scan' support complex ones",
}


class Implementation(abc.ABC):
    """One way to run a cell over time.

    A subclass is a frozen dataclass: equal instances share every compiled program.

    Attributes:
        name: what users call it.
        supports: the features of a request that it can run, names of `FEATURES`. It refuses every
            other one.
        reasons: why it refuses a feature, for messages and the table.
        refused_transformations: the transformations of JAX that it does not support, and why.
            JAX itself refuses them.
        is_eager: whether it runs step by step in Python, so that compiling it would unroll the loop.
    """

    name: ClassVar[str]
    supports: ClassVar[frozenset[str]]
    reasons: ClassVar[Mapping[str, str]] = {}
    refused_transformations: ClassVar[Mapping[str, str]] = {}
    is_eager: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, options: Options, inputs: Inputs) -> Outcome:
        """Final state, outputs and, with `options.return_states`, the states after each step.

        Outputs at masked steps may be anything: `unroll` sets them to zero, and their cotangents.
        """

    def unsupported_cell(self, request: Request) -> str | None:
        """Why it cannot run this cell at these sizes, which the rule and the arrays tell; `None` if it can."""
        return None

    def supports_layers(self, layers: Sequence[tuple[AnyCell, ...]]) -> bool:
        """Whether it runs these layers, the outputs of two directions side by side, in one call."""
        return False

    def refuses(self, feature: str) -> str | None:
        """Why it does not support a feature; `None` if it does."""
        why = {**REASONS, **self.reasons}
        return None if feature in self.supports else why.get(feature, "it does not support that")

    def unsupported(self, request: Request) -> str | None:
        """Why it cannot run the request, in words; `None` if it can."""
        asked = [feature for feature in FEATURES if feature in request.features]
        asked += sorted(request.features - set(FEATURES))
        for feature in asked:
            reason = self.refuses(feature)
            if reason is not None:
                return f"{feature}: {reason}"
        return self.unsupported_cell(request)
