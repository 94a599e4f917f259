"""What each implementation serves, and why not what it does not: one table, for errors and for readers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrnn.backends import cudnn, pallas
from jaxrnn.backends.calls import FEATURES, Call
from jaxrnn.sequence.bptt import bptt
from jaxrnn.sequence.loops import reference, scan
from jaxrnn.sequence.plan import Inputs, Plan


class Implementation(NamedTuple):
    """One way to run a plan."""

    run: Callable[[Plan, Inputs], Any]  # (plan, inputs) -> (final state, outputs, states)
    refuses: Mapping[str, str] = {}  # features it cannot serve, and why
    limit: Callable[[Call], str | None] = lambda call: None  # why not these sizes, if not
    transformations: Mapping[str, str] = {}  # of JAX, those it cannot take part in, and why: JAX refuses them


BY_HAND = "the derivative is written by hand for reverse mode; 'scan' can serve"
OF_LIBRARY = "jax.experimental.rnn does not take part in this transformation"
TRANSFORMATIONS = ("`grad`", "`hessian`, reverse over reverse", "`jvp`, `jacfwd`", "`vmap`")

IMPLEMENTATIONS: dict[str, Implementation] = {
    "bptt": Implementation(
        bptt,
        {
            "a cell without a rule": "the hand-written backward pass is the rule's; 'scan' can serve",
            "a state that is not floating-point throughout": "the hand-written backward pass is of "
            "floating-point states; 'scan' can serve",
        },
        transformations={"`jvp`, `jacfwd`": BY_HAND},
    ),
    "scan": Implementation(
        scan,
        {'`checkpoint="gates"`': "only a rule knows which of its values are gates; an integer or 'sqrt' can serve"},
    ),
    "reference": Implementation(reference),
    "cudnn": Implementation(
        cudnn.cudnn,
        cudnn.REFUSES,
        transformations={"`jvp`, `jacfwd`": BY_HAND}
        | {"`hessian`, reverse over reverse": OF_LIBRARY, "`vmap`": OF_LIBRARY},
    ),
    "pallas": Implementation(
        pallas.pallas, pallas.REFUSES | pallas.ON_CUDA, pallas.limit, transformations={"`jvp`, `jacfwd`": BY_HAND}
    ),
    "pallas_interpret": Implementation(
        pallas.pallas_interpret, pallas.REFUSES, pallas.limit, transformations={"`jvp`, `jacfwd`": BY_HAND}
    ),
}


def reason_against(name: str, call: Call) -> str | None:
    """Why the implementation cannot serve the call, in words; `None` if it can. JAX's transformations are not seen."""
    implementation = IMPLEMENTATIONS[name]
    for feature, reason in implementation.refuses.items():
        if FEATURES[feature](call):
            return f"{feature.replace('`', '')}: {reason}"
    return implementation.limit(call)


def table() -> str:
    """All of it in Markdown: what may be asked, who serves it, and the reasons of those who do not, by number.

    Example:
        >>> from jaxrnn import backends
        >>> print(backends.table().splitlines()[2][:22])
        | `lstm` | yes | yes |
    """
    reasons: list[str] = []
    lines = [["", *(f'`"{name}"`' for name in IMPLEMENTATIONS)], ["---"] * (1 + len(IMPLEMENTATIONS))]
    for feature in (*FEATURES, *TRANSFORMATIONS):
        line = [feature]
        for each in IMPLEMENTATIONS.values():
            reason = {**each.refuses, **each.transformations}.get(feature)
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            line.append("yes" if reason is None else f"no ({1 + reasons.index(reason)})")
        lines.append(line)
    numbered = [f"{k}. {reason}." for k, reason in enumerate(reasons, start=1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *numbered])
