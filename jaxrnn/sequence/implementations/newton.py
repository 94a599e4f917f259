"""Newton's method for the states of all steps at once, with an exact gradient.

The equations of T steps are one system, f(s_{t-1}, x_t) - s_t = 0 for every t. An iteration replaces the loop over
time by an associative scan, of log T levels. `newton_solve.py` has the forward pass, `newton_back.py` the gradient.

The sequence is solved window after window, each so short that the Jacobians of its steps stay within
`newton_solve.MEMORY`. A window that does not converge is run step by step, as is one whose values are not finite. So
the result is that of the loop, and slow where the dynamics expand: nearby states diverge there, and Newton's method
needs as many iterations as there are steps. NaN is returned where the loop returns it.

A second derivative is that of "bptt", step by step.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrnn import _checks
from jaxrnn._types import Rule
from jaxrnn.sequence.implementations.bptt import bptt_backward, bptt_forward, run_forward
from jaxrnn.sequence.implementations.newton_back import pull_back
from jaxrnn.sequence.implementations.newton_solve import Progress, Settings, solve
from jaxrnn.sequence.implementations.protocol import BY_HAND, FORWARD_MODE, UNSEEN, Implementation
from jaxrnn.sequence.request import CLOSURES, Inputs, Options, Outcome, Request
from jaxrnn.sequence.structure import check_backward

JACOBIANS = ("full", "diagonal")
_NARROW = "its tolerance is for float32 and float64; compute_dtype gives products in less"
_MESHES = "it has not been tried on a mesh; 'bptt' supports it"


@dataclasses.dataclass(frozen=True)
class Newton(Implementation):
    """All steps of a sequence at once by Newton's method, for `unroll(..., implementation=Newton(...))`.

    r_t = f(s_{t-1}, x_t) - s_t    d_t = J_t d_{t-1} + r_t    S += damping ⊙ d, until r is small

    It supports cells that have a rule and a state that is floating-point throughout. The result is
    that of the loop: a window of steps that does not converge is run step by step. The gradient is
    exact, whatever Jacobian the iteration uses.

    An iteration costs D passes of the rule's `backward` over all steps, and with the full Jacobian
    a scan over (D, D) matrices, O(T B D³). For Z entries of `rule.project`, a step of a window takes
    D (Z + 2D) numbers a sequence beside inputs, states and outputs; with the diagonal 7 Z. The gradient
    takes D (Z + 2D) with either, in windows of the same memory; where D is above 128 it is that of
    "bptt", step by step. Under `vmap` every window is run step by step too: give
    sequences as batch axes.

    Args:
        jacobian: "full", or "diagonal" for its diagonal alone. That has a cheaper scan and needs less
            memory, O(T B D) for O(T B D²), but more iterations unless the cell is diagonal, such as
            :func:`indrnn`. Its passes are made one after another.
        tolerance: the largest residual, relative to the largest entry of the sequence's states in
            the window, of each part of the state by itself; by default 16 times the epsilon of
            the dtype, and with a narrower `compute_dtype` the epsilon of that.
        max_iterations: of a window, before it is run step by step.
        window: the steps that are solved at once; by default as many as fit into 64 MiB, at
            least 16.
        damping: the step length ω, above 0 and at most 1.

    Raises:
        TypeError, ValueError: for an option of a wrong type or out of its range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.gru(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (100, 2, 3))
        >>> _, ys = jaxrnn.unroll(cell, params, xs, implementation=jaxrnn.Newton(max_iterations=10))
        >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-5))
        True

    References:
        Lim, Zhu, Selfridge & Kasim 2023, arXiv:2309.12252 (DEER). Gonzalez, Warrington, Smith &
        Linderman 2024, arXiv:2407.19115 (the diagonal, stability). Danieli et al. 2025,
        arXiv:2510.21450 (ParaRNN). docs/mathematics.md, equations (66) to (69).

    Differs from:
        1. DEER: a window that does not converge is run step by step, so the result is always right.
        2. ELK has a trust region, here there is damping alone; quasi-DEER is the diagonal.
        3. ParaRNN makes cells whose Jacobian is diagonal or block-diagonal; here the cells are as they are.
    """

    name: ClassVar[str] = "newton"
    supports: ClassVar = frozenset({
        "lengths", "mask", "resets", "reverse", "return_states", 'checkpoint="gates"', "checkpoint=K",
        "compute_dtype", "truncate", "clip_gradient", "float32", "float64",
        "a CPU", "an NVIDIA GPU", "an AMD GPU", "a TPU",
    })  # fmt: skip
    reasons: ClassVar = {
        CLOSURES: UNSEEN,
        "bfloat16, float16": _NARROW,
        "shard_map with its checks": _MESHES,
        "model_parallel": _MESHES,
        "a batch on an explicit mesh": _MESHES,
    }
    refused_transformations: ClassVar = {FORWARD_MODE: BY_HAND}
    jacobian: str = "full"
    tolerance: float | None = None
    max_iterations: int = 20
    window: int | None = None
    damping: float = 1.0

    def __post_init__(self) -> None:
        _checks.one_of("Newton", "jacobian", self.jacobian, JACOBIANS)
        checked: dict[str, Any] = {}
        checked["max_iterations"] = _checks.positive_int("Newton", "max_iterations", self.max_iterations)
        if self.tolerance is not None:
            checked["tolerance"] = _checks.positive_float("Newton", "tolerance", self.tolerance)
        if self.window is not None:
            checked["window"] = _checks.positive_int("Newton", "window", self.window)
        damping = checked["damping"] = _checks.positive_float("Newton", "damping", self.damping)
        if damping > 1:
            raise ValueError(f"Newton: damping expected a number above 0 and at most 1, got {damping}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def settings(self) -> Settings:
        """The options, as the solver reads them."""
        return Settings(self.jacobian, self.tolerance, self.max_iterations, self.window, self.damping)

    def unsupported_cell(self, request: Request) -> str | None:
        if not isinstance(request.rule, Rule):
            return "Jacobians are those of a rule's hand-written backward pass, which the cell does not have"
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(request.inputs.state)):
            return "Newton's method needs a state that is floating-point throughout"
        return None

    def run(self, options: Options, inputs: Inputs) -> Outcome:
        check_backward("unroll", options, inputs)
        return newton(self.settings, options, *inputs)


def precise(f: Any) -> Any:
    """`f` with float32 products in float32: with TF32, the default on NVIDIA's cards, r stays above the tolerance."""

    @functools.wraps(f)
    def traced(settings: Settings, options: Options, *args: Any) -> Any:
        if options.compute_dtype is not None:
            return f(settings, options, *args)
        with jax.default_matmul_precision("highest"):
            return f(settings, options, *args)

    return traced


def _recomputing(options: Options) -> Options:
    """What "bptt" needs to keep states alone, as is done here."""
    return options._replace(checkpoint="gates")


@precise
def _run(settings: Settings, options: Options, inputs: Inputs) -> tuple[Outcome, Any]:
    """What `Implementation.run` returns, and the states."""
    if not inputs.time:
        final, ys, states, _ = run_forward(options, inputs, True, False)
    else:
        final, ys, states, _ = solve(settings, options, inputs)
    return (final, ys, states if options.return_states else None), states


@functools.partial(jax.jit, static_argnums=(0, 1))
def progress_of(settings: Settings, options: Options, inputs: Inputs) -> Progress:
    """How the iteration goes, of inputs with at least one step."""
    return precise(solve)(settings, options, inputs)[3]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _forward(settings: Settings, options: Options, inputs: Inputs) -> Any:
    return _run(settings, options, inputs)


@_forward.defjvp
def _forward_jvp(settings: Settings, options: Options, primals: Any, tangents: Any) -> Any:
    def plain(inputs: Inputs) -> Any:
        outcome, (_, states, _) = bptt_forward(_recomputing(options), *inputs)
        return outcome, states

    return jax.jvp(plain, primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _backward(settings: Settings, options: Options, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    inputs, states = saved
    if not inputs.time:
        return bptt_backward(_recomputing(options), (inputs, states, None), cotangents)
    return precise(pull_back)(settings, options, inputs, states, cotangents)


@_backward.defjvp
def _backward_jvp(settings: Settings, options: Options, primals: Any, tangents: Any) -> Any:
    def plain(saved: Any, cotangents: Any) -> Any:
        return bptt_backward(_recomputing(options), (*saved, None), cotangents)

    return jax.jvp(plain, primals, tangents)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def newton(settings: Settings, options: Options, *arrays: Any) -> Outcome:
    """What `Implementation.run` returns, of the fields of `Inputs` one by one."""
    return _run(settings, options, Inputs(*arrays))[0]


def _newton_forward(settings: Settings, options: Options, *arrays: Any) -> tuple[Any, Any]:
    inputs = Inputs(*arrays)
    outcome, states = _forward(settings, options, inputs)
    return outcome, (inputs, states)


newton.defvjp(_newton_forward, _backward)
