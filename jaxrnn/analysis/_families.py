"""The families of cells, as the analysis sees them: the names and places of the gates, without the equations."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks
from jaxrnn._bound import Bound
from jaxrnn._types import CELL_TYPES, Gates, Params, Rule
from jaxrnn.cells import (
    FAMILIES,
    GRUParams,
    IndRNNParams,
    LSTMParams,
    MGUParams,
    MinGRUParams,
    MinLSTMParams,
    RGLRUParams,
    SLSTMParams,
)
from jaxrnn.cells._activation import GatePhis, phis_of
from jaxrnn.cells._family import FamilyConfig
from jaxrnn.cells.gru import GATES as GRU_GATES
from jaxrnn.cells.lstm import COUPLED_GATES
from jaxrnn.cells.lstm import GATES as LSTM_GATES
from jaxrnn.cells.mgu import GATES as MGU_GATES
from jaxrnn.cells.regularize import ZonedResidual
from jaxrnn.cells.slstm import GATES as SLSTM_GATES
from jaxrnn.sequence.inspection import is_own

Values = dict[str, Array]

# Of a cell whose step is a_t ⊙ s_{t-1} + b_t: what `Affine.coefficients` keeps, by name, the gates, and the one
# that sets what a step keeps.
AFFINE: dict[type, tuple[tuple[str, ...], tuple[str, ...], tuple[str, bool]]] = {
    MinGRUParams: (("z", "n"), ("z",), ("z", True)),
    MinLSTMParams: (("f", "i", "n"), ("i", "f"), ("f", False)),
    RGLRUParams: (("u", "r", "i", "a"), ("r", "i", "a"), ("a", False)),
}

CONFIGS = {type(family.config(1).shapes(1)): family.config for family in FAMILIES}  # by the record of the parameters


def _lstm_values(residual: Any) -> Values:
    i = 1 - residual.f if residual.i is None else residual.i  # coupled
    return {"i": i, "f": residual.f, "g": residual.g, "o": residual.o}


def _first(names: tuple[str, ...], residual: Any) -> Values:
    """The first entries of a residual, by name."""
    return dict(zip(names, residual, strict=False))


def _kept(names: tuple[str, ...], residual: Any) -> Values:
    """The first entries of what the coefficients keep, by name."""
    return _first(names, residual[1])


def _lstm_deltas(blocks: tuple[str, ...], delta: Any) -> Values:
    return _blocks(blocks, delta.a)


def _deltas(names: tuple[str, ...], delta: Any) -> Any:
    """δa by name, where they lie side by side or are a tuple."""
    if isinstance(delta, tuple) and len(delta) == len(names):
        return dict(zip(names, delta, strict=True))
    return _blocks(names, delta) if isinstance(delta, jax.Array) else delta


def _gru_deltas(deltas: Any) -> Values:
    """δa_r, δa_z, δa_n, and in the reset-after form δq, of q = h_{t-1} W_hn + b_hn."""
    recurrent, da_n = deltas
    names = ("r", "z", "q")[: recurrent.shape[-1] // da_n.shape[-1]]
    found = _blocks(names, recurrent) | {"n": da_n}
    return {name: found[name] for name in ("r", "z", "n", "q") if name in found}


def _blocks(names: tuple[str, ...], array: Array) -> Values:
    """Blocks that lie side by side, by name."""
    return dict(zip(names, jnp.split(array, len(names), axis=-1), strict=True))


def _gates(params: Any) -> Gates | None:
    """The gates of a cell of this library, by its parameters."""
    if isinstance(params, LSTMParams):
        blocks = COUPLED_GATES if params.w_x.shape[-1] == len(COUPLED_GATES) * _units(params) else LSTM_GATES
        return Gates(blocks, ("i", "f", "o"), _lstm_values, Bound(_lstm_deltas, blocks), ("f", False))
    if isinstance(params, GRUParams):
        return Gates(GRU_GATES, ("r", "z"), Bound(_first, GRU_GATES), _gru_deltas, ("z", False))
    if isinstance(params, MGUParams):
        return Gates(MGU_GATES, ("f",), Bound(_first, MGU_GATES), Bound(_first, MGU_GATES), ("f", True))
    if isinstance(params, SLSTMParams):
        return Gates(SLSTM_GATES, ("i", "f", "o"), Bound(_first, SLSTM_GATES), Bound(_deltas, SLSTM_GATES), None)
    if type(params) in CONFIGS:
        gates = CONFIGS[type(params)].gates
        if type(params) in AFFINE:
            names, seen, kept = AFFINE[type(params)]
            return Gates(gates, seen, Bound(_kept, names), Bound(_deltas, gates), kept)
        return Gates(gates, (), Bound(_first, ()), Bound(_deltas, gates), None)
    return None


def _units(params: Any) -> int:
    """H, from the rows of what reads all units."""
    w = params.w_h if getattr(params, "w_proj", None) is None else params.w_proj
    return w.shape[0] * w.shape[1] if w.ndim == 3 else w.shape[0]


def gates_of_params(where: str, params: Any, cell: Any = None) -> Gates:
    """The gates that a cell declares, or else those that its `params` have."""
    declared = declared_gates(where, cell)
    if declared is not None:
        return declared
    _check_record(where, params)
    config = getattr(cell, "config", None)
    if isinstance(config, FamilyConfig) and type(config.shapes(1)) is not type(params):
        raise TypeError(f"{where}: params expected those of {_checks.describe(cell)}, got {type(params).__name__}")
    if isinstance(params, LSTMParams):  # whose shapes say whether it is coupled
        _array(where, params, "w_h", 2, 3)
        if params.w_proj is not None:
            _array(where, params, "w_proj", 2)
        _array(where, params, "w_x", 2)
    gates = _gates(params)
    assert gates is not None
    return gates


def gates_of_rule(params: Any, rule: Any, declared: Gates | None) -> Gates | None:
    """The gates that a cell declares, or else those of the library's `accumulate` of these parameters."""
    if declared is not None:
        return declared
    return None if has_own_equations(rule.accumulate) else _gates(params)


def deltas_of(gates: Gates, delta: Any) -> Any:
    """δa by name, from what `Rule.backward` returns for `Rule.accumulate`."""
    return _deltas(gates.blocks, delta) if gates.deltas is None else gates.deltas(delta)


def own_deltas(where: str, gates: Gates, delta: Any, shape: tuple[int, ...]) -> Values:
    """`deltas_of` of a cell of the user's own; raises unless all blocks are there, of shape `(*shape, H)`."""
    is_uneven = gates.deltas is None and isinstance(delta, jax.Array) and delta.shape[-1] % len(gates.blocks)
    found: Any = delta if is_uneven else deltas_of(gates, delta)
    values: list[Any] = [found.get(name) for name in gates.blocks] if isinstance(found, dict) else [None]
    if not all(_checks.is_array(value) and value.shape[:-1] == shape for value in values):
        expected = f"{', '.join(gates.blocks)} of shape ({', '.join(map(str, shape))}, H)"
        raise TypeError(
            f"{where}: cell.gates.deltas expected a function to a dictionary with {expected}, or None where "
            f"rule.backward gives the blocks side by side or as a tuple, got {_checks.describe(found)}"
        )
    return found


def declared_gates(where: str, cell: Any) -> Gates | None:
    """The gates that a cell of the user's own declares; raises unless they are a record of names and functions."""
    gates = getattr(cell, "gates", None)
    if gates is None:
        return None
    if not isinstance(gates, Gates):
        raise TypeError(f"{where}: cell.gates expected a jaxrnn.Gates, got {_checks.describe(gates)}")
    for field in ("blocks", "gates"):
        names = getattr(gates, field)
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"{where}: cell.gates.{field} expected a tuple of names, got {_checks.describe(names)}")
    if len(set(gates.blocks)) < len(gates.blocks):
        raise ValueError(f"{where}: cell.gates.blocks expected different names, got {gates.blocks}")
    for field in ("values", "deltas"):
        if field == "values" or gates.deltas is not None:
            _checks.function(where, f"cell.gates.{field}", getattr(gates, field), "of what the rule returns")
    is_pair = isinstance(gates.kept, tuple) and len(gates.kept) == 2 and isinstance(gates.kept[1], bool)
    if gates.kept is not None and not (is_pair and gates.kept[0] in gates.gates):
        raise ValueError(
            f"{where}: cell.gates.kept expected None, or (one of {', '.join(gates.gates)}, whether it keeps 1 - gate), "
            f"got {_checks.describe(gates.kept)}"
        )
    return gates


def values_of(where: str, gates: Gates, residual: Any, shape: tuple[int, ...]) -> Values:
    """Gates and candidate by name; raises unless all gates are there, of shape `(*shape, H)`."""
    values = gates.values(own_residual(residual))
    missing = [name for name in gates.gates if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(
            f"{where}: cell.gates.values expected to return a dictionary with {', '.join(missing)}, "
            f"got {_checks.describe(values)}"
        )
    for name, value in values.items():
        if jnp.shape(value)[:-1] != shape:
            expected = f"({', '.join(map(str, shape))}, H)"
            raise ValueError(
                f"{where}: cell.gates.values expected {name} of shape {expected}, got {_checks.describe(value)}"
            )
    return values


def has_own_equations(functions: Any) -> bool:
    """Whether a rule, or functions of one, are not the library's; activations may be the user's."""
    return is_own(functions, besides=(GatePhis,))


def part_of_gate(family: Gates, gate: str, tree: Any) -> Any:
    """A record of parameters with only what belongs to one gate: its columns, its row of peepholes; else `None`."""
    k, count = family.blocks.index(gate), len(family.blocks)
    seen = [name for name in family.blocks if name in family.gates]

    def part(name: str, value: Any) -> Any:
        if value is None or hasattr(value, "_fields"):
            return value if value is None else type(value)(*map(part, value._fields, value))
        if name in ("w_x", "w_h", "b", "scale_x", "scale_h"):
            return jnp.split(value, count, axis=-1)[k]
        if name == "peephole" and gate in seen:
            return value[..., seen.index(gate), :]
        return value if name == "b_hn" and gate == "n" else None

    return type(tree)(*map(part, tree._fields, tree))


def _check_record(where: str, params: Any) -> None:
    if type(params) not in CONFIGS:
        got = type(params).__name__ if hasattr(params, "_fields") else _checks.describe(params)
        raise TypeError(
            f"{where}: params expected those of one of this library's cells, got {got}; "
            "of a network, give those of one layer in one direction"
        )


def recurrent_matrices(where: str, params: Any, gates: Gates) -> tuple[Array, Array | None]:
    """W_h, with heads its blocks, and W_p if there is one, of the parameters of a cell with these gates.

    Raises unless their shapes fit.
    """
    if type(params) not in CONFIGS:
        return _own_matrix(where, params, len(gates.blocks)), None
    if not hasattr(params, "w_h"):
        raise NotImplementedError(
            f"{where}: params expected those of a cell with a recurrent matrix, got {type(params).__name__}, "
            "of a cell whose step is a_t ⊙ s_{t-1} + b_t: its Jacobian is diag(a_t)"
        )
    w_h = _array(where, params, "w_h", *((1,) if isinstance(params, IndRNNParams) else (2, 3)))
    w_proj = None if getattr(params, "w_proj", None) is None else _array(where, params, "w_proj", 2)
    hidden = _units(params)
    _array(where, params, "w_x", 2)  # that of several layers has three axes, as the blocks of heads have
    count = len(gates.blocks)
    expected = (hidden, count * hidden)[: w_h.ndim]
    if w_h.ndim == 3:
        heads, size, _ = w_h.shape
        expected = (heads, size, count * size) if w_proj is None else (w_proj.shape[1], count * hidden)
    elif w_proj is not None:
        expected = (w_proj.shape[1], *expected[1:])
    if w_h.shape != expected:
        raise ValueError(f"{where}: params.w_h expected shape {expected}, got {w_h.shape}")
    return w_h, w_proj


def _own_matrix(where: str, params: Any, count: int) -> Array:
    """W_h of a cell of the user's own, `(H, G*H)`, or blocks of heads `(N, D, G*D)`."""
    if getattr(params, "w_h", None) is None:
        raise NotImplementedError(
            f"{where}: params expected a field w_h, the recurrent matrix, got {_checks.describe(params)}"
        )
    w_h = _array(where, params, "w_h", 2, 3)
    if w_h.shape[-1] != count * w_h.shape[-2]:
        raise ValueError(
            f"{where}: params.w_h expected the columns of {count} gates for {w_h.shape[-2]} units, got {w_h.shape}"
        )
    return w_h


def _array(where: str, params: Any, name: str, *axes: int) -> Array:
    value = _checks.floating(where, f"params.{name}", getattr(params, name))
    if value.ndim not in axes:
        expected = f"{' or '.join(map(str, axes))} {'axis' if axes == (1,) else 'axes'}"
        raise ValueError(
            f"{where}: params.{name} expected {expected}, got shape {value.shape}; "
            "of several layers, give the params of one"
        )
    return value


def gates_of_cell(where: str, cell: Any, by_state: bool = False) -> tuple[Gates, Params]:
    """The gates of a cell, and its parameters' shapes; `by_state`: gates σ(a) that read the state."""
    shapes = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0)) if isinstance(cell, CELL_TYPES) else None
    rule = cell.rule if isinstance(cell, CELL_TYPES) else None
    declared = declared_gates(where, cell)
    if declared is not None and isinstance(rule, Rule):
        return declared, shapes
    gates = _gates(shapes)
    is_other = by_state and (type(shapes) in (*AFFINE, SLSTMParams) or not _has_sigmoids(rule))
    if gates is None or not gates.gates or rule is None or has_own_equations(rule.forward) or is_other:
        expected = "an LSTM, GRU, MGU, sLSTM, minGRU, minLSTM or RG-LRU, which have gates"
        if by_state:
            expected = "an LSTM, GRU or MGU, which have gates that read the state and are σ(a)"
        raise NotImplementedError(
            f"{where}: cell expected {expected}, with the library's rule, or one of your own with a rule that declares "
            f"its gates; got {_checks.describe(cell)}"
        )
    return gates, shapes


def _has_sigmoids(rule: Any) -> bool:
    """Whether the gates are σ(a), as they are in cells that have no option for them."""
    phis = phis_of(rule)
    return phis is None or phis.gate.activation == "sigmoid"


def own_residual(residual: Any) -> Any:
    """The cell's own residual, without that of zoneout around it."""
    return residual.own if isinstance(residual, ZonedResidual) else residual
