"""The implementations by name: which one runs a request, and the table of what each supports.

Without a name, a request runs with the implementation that `MEASURED` gives as the fastest for its
device, rule, dtype and sizes, if that one supports it. Else a cell whose step is affine in the
state runs with "associative" on an accelerator, in sequences of `PARALLEL_FROM` steps or more.
Every other request runs with "bptt", or with "scan" for a cell without a rule. A row of `MEASURED`
needs figures in `experiments/benchmarks/results/`. There are none for any GPU yet.

The choice is made while tracing, for the device of concrete inputs or else the default device of
the process. It must support every transformation of JAX that the default supports, because nobody
can see from inside which will come: no row may name "cudnn".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import _checks
from jaxrnn._types import Cell, Rule
from jaxrnn.cells import variants
from jaxrnn.cells._step import cast_floating, is_complex
from jaxrnn.sequence.implementations.associative import Associative
from jaxrnn.sequence.implementations.bptt import Bptt
from jaxrnn.sequence.implementations.cudnn import Cudnn
from jaxrnn.sequence.implementations.newton import Newton
from jaxrnn.sequence.implementations.pallas import Pallas, PallasInterpret
from jaxrnn.sequence.implementations.protocol import TRANSFORMATIONS, Implementation
from jaxrnn.sequence.implementations.reference import Reference
from jaxrnn.sequence.implementations.scan import Scan
from jaxrnn.sequence.masking import only
from jaxrnn.sequence.request import CLOSURES, COMPLEX, FEATURES, Device, Inputs, Options, Outcome, Request
from jaxrnn.sequence.segments import Checkpointed, Runs, is_symbolic
from jaxrnn.sequence.sharding import OnMesh

IMPLEMENTATIONS: dict[str, Implementation] = {
    each.name: each
    for each in (Bptt(), Scan(), Reference(), Associative(), Cudnn(), Pallas(), PallasInterpret(), Newton())
}

ANY = 2**62

# The fewest steps that "associative" is chosen for on an accelerator. It is a guess: no figure is committed yet.
PARALLEL_FROM = 256


class Measured(NamedTuple):
    """An implementation, and where it was measured to be faster than "bptt"; bounds are inclusive."""

    implementation: str
    device: str  # part of the device's kind, such as "H200"
    rule: Rule
    dtype: str  # such as "float32"
    record: str  # the file of figures
    steps: tuple[int, int] = (1, ANY)
    sequences: tuple[int, int] = (1, ANY)
    hidden: tuple[int, int] = (1, ANY)


MEASURED: tuple[Measured, ...] = ()


def named(where: str, implementation: Any) -> Implementation | None:
    """The implementation of a name, one that is given itself, or `None`."""
    if implementation is None or isinstance(implementation, Implementation):
        return implementation
    _checks.one_of(where, "implementation", implementation, (None, *IMPLEMENTATIONS))
    return IMPLEMENTATIONS[implementation]


def choose(request: Request, implementation: Any = None, measured: Sequence[Measured] | None = None) -> Implementation:
    """The implementation that runs the request.

    Raises:
        NotImplementedError: if one was named that does not support the request.
    """
    found = named("unroll", implementation)
    if found is None:
        rows = MEASURED if measured is None else measured
        fastest = [IMPLEMENTATIONS[row.implementation] for row in rows if _applies(row, request)]
        default = IMPLEMENTATIONS["scan" if IMPLEMENTATIONS["bptt"].unsupported(request) else "bptt"]
        if request.device.platform != "cpu" and _within(request.inputs.time, PARALLEL_FROM, ANY):
            fastest.append(IMPLEMENTATIONS["associative"])
        found = next((each for each in fastest if each.unsupported(request) is None), default)
    reason = found.unsupported(request)
    if reason is not None:
        raise NotImplementedError(
            f"unroll: implementation {found.name!r} does not support this call of {request.name}; {reason}"
        )
    return found


def _applies(row: Measured, request: Request) -> bool:
    dtype = request.options.compute_dtype or request.dtype
    sizes = (request.inputs.time, request.sequences, request.hidden_size)
    return (
        row.device in request.device.kind
        and row.rule == request.rule
        and jnp.dtype(dtype) == jnp.dtype(row.dtype)
        and all(_within(size, low, high) for (low, high), size in zip(row[5:], sizes, strict=True))
    )


def _within(size: Any, low: int, high: int) -> bool:
    """Whether a size is in the range; a symbol is if every size is."""
    return (low, high) == (1, ANY) if is_symbolic(size) else low <= size <= high


def run(implementation: Implementation, request: Request) -> Outcome:
    """The outcome of the request, compiled unless the implementation is a Python loop."""
    runs: Runs = implementation
    if request.options.checkpoint not in (None, "gates") and not implementation.is_eager:
        runs = Checkpointed(runs)
    if request.options.placement is not None:
        runs = OnMesh(runs)
    # A program that closes over traced values is good for this one call.
    f = _run if implementation.is_eager or CLOSURES in request.features else _run_compiled
    return f(runs, request.options, request.inputs)


def _run(runs: Runs, options: Options, inputs: Inputs) -> Outcome:
    """Masked steps are selected before and after the loop: their derivatives are JAX's."""
    final, ys, states = runs.run(options, inputs._replace(xs=only(inputs.mask, inputs.xs)))
    return final, cast_floating(only(inputs.mask, ys), options.output_dtype), states


# Compiled here so that a call outside jit does not trace its loop every time.
_run_compiled = jax.jit(_run, static_argnums=(0, 1))


# The table


def _examples() -> dict[str, Request]:
    """A request for each kind of cell."""
    cells = variants()
    lstm = cells["`lstm`"]
    assert lstm.rule is not None
    cells |= {
        "a cell of your own with a rule": lstm._replace(rule=lstm.rule._replace(pointwise=None)),
        "a cell of your own without a rule": lstm._replace(rule=None),
        "a state that is not floating-point throughout": lstm._replace(
            initial_state=lambda batch_shape: jax.tree.map(jnp.int32, lstm.initial_state(batch_shape))
        ),
    }
    return {name: _example(cell) for name, cell in cells.items()}


def _example(cell: Cell) -> Request:
    """A request to run the cell for two steps, that asks for nothing else."""
    params, state = jax.eval_shape(lambda key: (cell.init(key, 2), cell.initial_state((2,))), jax.random.key(0))
    inputs = Inputs(params, jax.ShapeDtypeStruct((2, 2, 2), jnp.float32), state, None, None, None, None)
    features = frozenset({COMPLEX} if is_complex(state) else ())
    return Request(Options(cell.equations), inputs, features, Device("", ""), cell.name)


def _refusal(implementation: Implementation, request: Request) -> str | None:
    """Why it cannot run the request, without the name of the feature; `None` if it can."""
    reasons = (implementation.refuses(feature) for feature in request.features)
    return next(filter(None, reasons), None) or implementation.unsupported_cell(request)


def table(implementations: Mapping[str, Implementation] = IMPLEMENTATIONS) -> str:
    """What each implementation supports, in Markdown, with the reasons of those that do not, by number.

    Example:
        >>> from jaxrnn.sequence import registry
        >>> print(registry.table().splitlines()[2][:21])
        | `rnn` | yes | yes |
    """
    reasons: list[str] = []

    def mark(reason: str | None) -> str:
        if reason is not None and reason not in reasons:
            reasons.append(reason)
        return "yes" if reason is None else f"no ({1 + reasons.index(reason)})"

    every = implementations.values()
    lines = [["", *(f'`"{each.name}"`' for each in every)], ["---"] * (1 + len(every))]
    for name, request in _examples().items():
        lines.append([name, *(mark(_refusal(each, request)) for each in every)])
    for feature in FEATURES:
        lines.append([feature, *(mark(each.refuses(feature)) for each in every)])
    for transformation in TRANSFORMATIONS:
        lines.append([transformation, *(mark(each.refused_transformations.get(transformation)) for each in every)])
    numbered = [f"{k}. {reason}." for k, reason in enumerate(reasons, start=1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *numbered])
