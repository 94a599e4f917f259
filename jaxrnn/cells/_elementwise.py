"""Whether a function works on every entry of an array by itself, read off its trace."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jaxtyping import Array

# Primitives whose entry of the result depends on the same entry of each operand alone.
ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div",
    "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igammac", "imag",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "nextafter", "not", "optimization_barrier", "or", "pow", "real", "reduce_precision", "rem", "round", "rsqrt",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor",
})  # fmt: skip


def is_elementwise(f: Callable[[Array], Array], x: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether entry k of `f(x)` depends on entry k of `x` alone.

    False also for a function whose trace does not show it, such as one with a loop. Constants of
    the function may have an entry for each of `x`.
    """
    jaxpr = jax.make_jaxpr(f)(jax.ShapeDtypeStruct(x.shape, x.dtype)).jaxpr
    return _keeps_entries(jaxpr, [True] * len(jaxpr.invars))[0]


def _keeps_entries(jaxpr: Any, depends: Sequence[bool]) -> tuple[bool, list[bool]]:
    """Whether every equation on what depends on the input is elementwise, and which results depend on it."""
    dependent = {v for v, is_so in zip(jaxpr.invars, depends, strict=True) if is_so}

    def reads(atom: Any) -> bool:
        return not hasattr(atom, "val") and atom in dependent

    for equation in jaxpr.eqns:
        read = [reads(atom) for atom in equation.invars]
        if not any(read):
            continue
        results = [True] * len(equation.outvars)
        if equation.primitive.name not in ELEMENTWISE:
            inner = list(_inner(equation.params))
            if len(inner) != 1 or len(inner[0].invars) != len(read) or "length" in equation.params:
                return False, []
            is_so, results = _keeps_entries(inner[0], read)
            if not is_so:
                return False, []
        dependent.update(v for v, is_so in zip(equation.outvars, results, strict=True) if is_so)
    return True, [reads(atom) for atom in jaxpr.outvars]


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The functions that a call such as `jit` or `custom_jvp` runs once."""
    for name in ("jaxpr", "call_jaxpr"):
        found = params.get(name)
        if found is not None:
            yield getattr(found, "jaxpr", found)
