"""`check_cell`: the contract of a cell as one function."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from jaxrnn import _checks
from jaxrnn._types import Cell, Params, Rule
from jaxrnn.testing import parts, sequences
from jaxrnn.testing.faults import Failed, Fault
from jaxrnn.testing.numbers import case_of

MOST_FAULTS = 12


class CellFault(AssertionError):
    """A cell does not keep the contract.

    Attributes:
        faults: each a :class:`Fault`, of the first check that found any.
    """

    def __init__(self, name: str, faults: tuple[Fault, ...]):
        shown = [f"- {fault}" for fault in faults[:MOST_FAULTS]]
        more = f"\n- and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        super().__init__(f"check_cell: {name} has faults:\n" + "\n".join(shown) + more)
        self.faults = faults


class Report(NamedTuple):
    """What was checked of a cell that keeps the contract."""

    cell: str
    passed: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what the cell does not support, without being wrong

    def __str__(self) -> str:
        return "\n- ".join([f"{self.cell} passes: {'; '.join(self.passed)}", *self.notes])


def check_cell(cell: Cell, input_size: int, *, params: Params | None = None, tolerance: float = 1e-9) -> Report:
    """Checks a cell of your own: its step, its rule, its hand-written gradient, and both over time.

    The checks run in float64, in this order. The first that finds faults ends the run, since a
    fault of one part shows in all that follow.

    1. `init` and `initial_state`: shapes that start with the batch axes, and the dtype asked for.
    2. `step`: the state keeps its structure; no sequence of a batch reads another.
    3. `rule.project` and `rule.forward`: the same as `step`, for any leading axes.
    4. `rule.backward`: the derivative of `rule.forward` by the state, linear in the cotangents.
    5. `rule.accumulate`: the derivative by parameters and inputs, summed over segments. What it
       reads, `delta`, is made by `rule.backward`: a wrong delta is named here.
    6. `rule.matrices`: all parameters that enter matrix products.
    7. `unroll` by "scan", "bptt" and "associative", where the cell has what they need, against a
       Python loop over `step`, values and gradients: masks with NaN behind them, resets, lengths,
       `reverse`, segments, states.
    8. dtypes of outputs and gradients in float32 and bfloat16.

    Args:
        cell: a :class:`jaxrnn.Cell`. Without a `rule` the checks 3 to 6 are left out. Noise of a
            `sample` is off.
        input_size: I, the features of the inputs.
        params: parameters to check with; `None` draws them by `cell.init`, and moves them by
            random numbers, so that a bias of 0 or a scale of 1 hides nothing.
        tolerance: the largest difference that passes, relative to the largest entry of an array.

    Returns:
        A :class:`Report`, whose text names what was checked, and what the cell does not support.

    Raises:
        CellFault: an `AssertionError` that names the part, such as `rule.accumulate`, and the leaf,
            such as `w_h`, of every fault of the first check that found any.
        TypeError, ValueError: for something that is not a cell, or a size that is not a positive integer.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.testing import check_cell
        >>> cell = jaxrnn.gru(4)
        >>> check_cell(cell, 3).passed[:2]
        ('init and initial_state', 'step')
        >>> forgetful = cell._replace(rule=cell.rule._replace(matrices=("w_x",), pointwise=None))
        >>> try:
        ...     check_cell(forgetful, 3)
        ... except jaxrnn.testing.CellFault as error:
        ...     print(error.faults[0].part, error.faults[0].leaf)
        rule.matrices w_h

    Differs from:
        1. `jax.test_util.check_grads` compares a derivative with finite differences; here with JAX's
           own derivative of `step`, which says more exactly where it is wrong.
    """
    where = "check_cell"
    if not isinstance(cell, Cell):
        raise TypeError(f"{where}: cell expected a jaxrnn.Cell, got {_checks.describe(cell)}")
    input_size = _checks.size(where, "input_size", input_size)
    tolerance = _checks.positive_float(where, "tolerance", tolerance)
    passed: list[str] = []

    def check(name: str, faults: Callable[[], Iterator[Fault]]) -> None:
        try:
            found = tuple(faults())
        except Failed as error:
            found = (error.fault,)
        if found:
            raise CellFault(cell.name, found)
        passed.append(name)

    with jax.enable_x64(True):
        check("init and initial_state", lambda: parts.making_faults(cell, input_size))
        try:
            case = case_of(cell, input_size, params)
        except Failed as error:
            raise CellFault(cell.name, (error.fault,)) from error
        check("step", lambda: parts.step_faults(case, tolerance))
        if isinstance(cell.rule, Rule):
            check("rule.project and rule.forward", lambda: parts.forward_faults(case, tolerance))
            check("rule.backward", lambda: parts.backward_faults(case, tolerance))
            check("rule.accumulate", lambda: parts.accumulate_faults(case, tolerance))
            check("rule.matrices", lambda: parts.matrices_faults(case))
        check("unroll", lambda: sequences.sequence_faults(case, tolerance))
        check("dtypes", lambda: sequences.dtype_faults(case))
        return Report(cell.name, tuple(passed), tuple(sequences.notes(case)))
