"""Attention in the recurrence, around any cell: Bahdanau's and Luong's decoders.

The equations and their derivatives are in `_attention.py` (scores, weights, context) and `_attend_rule.py`
(the step and its rule).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrnn import _checks, initializers
from jaxrnn._bound import Bound
from jaxrnn._describe import cut
from jaxrnn._types import CELL_TYPES, Cell, CellConfig, Params, PlacedCell, PyTree, Rule, State, format_call
from jaxrnn.cells import _algebra as alg
from jaxrnn.cells import _attend_rule as rules
from jaxrnn.cells._attend_rule import AttendParams, AttendState, Plan
from jaxrnn.cells._attention import SCORES, Memory
from jaxrnn.cells._step import cast_floating, check_dtype_of_state, vary_over_batch
from jaxrnn.cells.gru import GRUConfig
from jaxrnn.cells.indrnn import IndRNNConfig
from jaxrnn.cells.lstm import LSTMConfig
from jaxrnn.cells.mgu import MGUConfig
from jaxrnn.cells.regularize import RegularizeConfig, Zoned
from jaxrnn.cells.rnn import RNNConfig
from jaxrnn.cells.slstm import SLSTMConfig
from jaxrnn.initializers import Initializer, draw

AFFINE_INPUT = (RNNConfig, LSTMConfig, GRUConfig, MGUConfig, SLSTMConfig, IndRNNConfig)  # x W_x + b, without a norm
QUERIES = ("previous", "current")


@dataclasses.dataclass(frozen=True, repr=False)
class AttendConfig(CellConfig):
    """The options of :func:`attend`, and how its cell was made."""

    factory: ClassVar[str] = "attend"
    cell: CellConfig
    memory_size: int
    score: str
    query: str
    score_size: int | None
    attention_size: int | None
    input_feeding: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The options of an attending cell and the sizes that follow from them; a part of its functions."""

    name: str
    memory_size: int
    hidden_size: int  # of the output of the cell inside
    score: str
    query: str
    score_size: int | None
    attention_size: int | None
    input_feeding: bool

    @property
    def fed(self) -> int:
        """The features that the cell inside reads beside x."""
        if self.query == "previous":
            return self.memory_size
        return (self.attention_size or 0) if self.input_feeding else 0

    @property
    def output_size(self) -> int:
        """The features of the output."""
        return self.attention_size or self.memory_size + self.hidden_size

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of the parameters beside those of the cell inside; `None` for what there is not."""
        m, h, a = self.memory_size, self.hidden_size, self.score_size
        additive = self.score == "additive" and a is not None
        return {
            "w_q": (h, a) if additive else None,
            "w_k": (m, a) if additive else (m, h) if self.score == "general" else None,
            "v": (a,) if additive else None,
            "w_c": (m + h, self.attention_size) if self.attention_size else None,
        }  # fmt: skip


def _init(inside: Any, sizes: Sizes, kernel_init: Initializer, key: Array, input_size: int, dtype: Any = None):
    where = "attend.init"
    input_size = _checks.size(where, "input_size", input_size)
    dtype = _checks.float_dtype(where, "dtype", dtype)
    names = list(sizes.shapes)
    of_cell, *keys = jax.random.split(_checks.key(where, "key", key), 1 + len(names))
    at = f"{where}: kernel_init"

    def drawn(key: Array, shape: tuple[int, ...] | None) -> Any:
        if shape is None:
            return None
        as_matrix = shape if len(shape) == 2 else (*shape, 1)
        return draw(at, kernel_init, key, as_matrix, dtype).reshape(shape)

    own = {name: drawn(k, sizes.shapes[name]) for name, k in zip(names, keys, strict=True)}
    return AttendParams(cell=inside(of_cell, input_size + sizes.fed, dtype), **own)


def _initial_state(inside: Any, sizes: Sizes, carries: bool, batch_shape: tuple[int, ...] = (), dtype: Any = None):
    where = "attend.initial_state"
    batch_shape = _checks.batch_shape(where, batch_shape)
    dtype = _checks.float_dtype(where, "dtype", dtype)

    def zeros(size: int) -> Array:
        return vary_over_batch(jnp.zeros((*batch_shape, size), jnp.result_type(float) if dtype is None else dtype))

    output = zeros(sizes.attention_size) if sizes.attention_size else None
    return AttendState(inside(batch_shape, dtype), output, zeros(sizes.hidden_size) if carries else None)


def _check(inside: Any, sizes: Sizes, where: str, params: Any, input_shape: tuple[int, ...]) -> None:
    """Raises unless `params` are those of the cell with a memory for inputs of that shape."""
    check_unbound(sizes, where, params)
    w_x: Any = getattr(params.cell, "w_x", None)
    is_library = inside is not None and _checks.is_array(w_x) and w_x.ndim == 2 and input_shape
    if is_library and w_x.shape[0] != input_shape[-1] + sizes.fed:
        raise ValueError(
            f"{where}: the input has last axis {input_shape[-1]}, params.cell.w_x expects {w_x.shape[0] - sizes.fed} "
            f"and {sizes.fed} that {sizes.name} adds; is it batch-major, or of another input_size?"
        )
    if inside is not None:
        inside(where, params.cell, (*input_shape[:-1], input_shape[-1] + sizes.fed))
    _check_memory(sizes, where, params.memory, input_shape)


def check_unbound(sizes: Sizes, where: str, params: Any) -> None:
    """Raises unless `params` are those of the cell, but for the parameters of the cell inside and the memory."""
    _checks.params_record(where, params, AttendParams)
    _checks.params_presence(where, params, {name: shape is not None for name, shape in sizes.shapes.items()})
    _checks.params_shapes(where, params, {name: shape for name, shape in sizes.shapes.items() if shape is not None})


def _check_memory(sizes: Sizes, where: str, memory: Any, input_shape: tuple[int, ...]) -> None:
    if not isinstance(memory, Memory):
        raise ValueError(
            f"{where}: params of {cut(sizes.name, 100)} expected a memory, got {_checks.describe(memory)}; "
            "bind one for this call: params = jaxrnn.with_memory(cell, params, memory, lengths=...)"
        )
    shape = memory.values.shape
    is_step = where.endswith("step") or where in ("generate", "beam_search")
    batch = input_shape[:-1] if is_step else input_shape[1:-1]
    own = shape[:-2]
    if len(own) > len(batch) or batch[len(batch) - len(own) :] != own:
        raise ValueError(
            f"{where}: the memory expected batch axes that are the last of {batch}, those of the inputs, got {own} of "
            f"shape {shape}; a memory is (*B, S, M)"
        )


def _step(where: str, check: Any, expected_state: Any, plan: Plan, params: Params, state: State, x: PyTree):
    is_sampled = isinstance(x, Zoned) or any(
        isinstance(leaf, alg.Dropped)
        for leaf in jax.tree.leaves(params, is_leaf=lambda part: isinstance(part, alg.Dropped))
    )
    if not is_sampled:
        x = _checks.floating(where, "x", x)
        check(where, params, x.shape)
        _checks.state_like(where, "state", state, jax.eval_shape(lambda: expected_state(x.shape[:-1])), "x")
        floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        dtype = jnp.result_type(x, *floats)
        check_dtype_of_state(where, state, dtype, "params and x")
        params, state, x = cast_floating(jax.tree.map(jnp.asarray, (params, state, x)), dtype)
    if plan.rule is None:
        return rules.step(plan, params, state, x)
    rule = rules.rule_of(plan)
    assert rule is not None
    state, y, _ = rule.forward(params, state, rule.project(params, x))
    return state, y


def _sample(inside: Any, key: Array, params: AttendParams, xs: Array) -> tuple[Params, PyTree]:
    """The noise of the cell inside; what it is fed beside x is not dropped."""
    cell, xs = inside(key, params.cell, xs)
    return params._replace(cell=cell), xs


def _output_of(cell: Cell) -> tuple[int, int | None]:
    """The size of a cell's output, and which leaf of its state that is, if it is one."""

    def shapes(key: Array) -> Any:
        return cell.init(key, 1), cell.initial_state()

    def run(params: Params, state: State, x: Array) -> Any:
        if not isinstance(cell.rule, Rule):
            return cell.step(params, state, x)
        return cell.rule.forward(params, state, cell.rule.project(params, x))[:2]

    try:
        params, state = jax.eval_shape(shapes, jax.random.key(0))
        dtype = jnp.result_type(float)
        traced, (_, y) = jax.make_jaxpr(run, return_shape=True)(params, state, jax.ShapeDtypeStruct((1,), dtype))
        (size,) = y.shape
    except Exception as error:  # functions of the user's may raise anything
        raise ValueError(
            f"attend: cell expected one whose output is an array (*B, H), got {_checks.describe(cell)}, which for an "
            f"input of size 1 raised {type(error).__name__}: {cut(str(error), 150)}"
        ) from error
    *leaves, output = traced.jaxpr.outvars
    return size, next((k for k, leaf in enumerate(leaves) if leaf is output), None)


def _has_affine_input(config: CellConfig | None) -> bool:
    """Whether the cell is known to read its input by x W_x + b."""
    while isinstance(config, RegularizeConfig):
        config = config.cell
    return isinstance(config, AFFINE_INPUT) and not getattr(config, "layer_norm", False)


def _checked_sizes(cell: Cell, memory_size: Any, options: dict[str, Any], hidden_size: int) -> Sizes:
    """The options with the papers' values for those that are `None`."""
    where = "attend"
    memory_size = _checks.size(where, "memory_size", memory_size)
    score, query = options["score"], options["query"]
    _checks.one_of(where, "score", score, SCORES)
    papers = "previous" if score == "additive" else "current"
    if query is not None:
        _checks.one_of(where, "query", query, QUERIES)
    query = papers if query is None else query
    given = {
        name: None if options[name] is None else _checks.size(where, name, options[name])
        for name in ("score_size", "attention_size")
    }
    score_size, attention_size = given["score_size"], given["attention_size"]
    if score_size is not None and score != "additive":
        raise ValueError(f"{where}: score_size expected None for score={score!r}, which has no layer, got {score_size}")
    if score in ("dot", "scaled_dot") and memory_size != hidden_size:
        raise ValueError(
            f"{where}: memory_size expected {hidden_size}, the size of the cell's output, for score={score!r}, got "
            f"{memory_size}; score='general' multiplies the memory by a matrix first"
        )
    feeding = options["input_feeding"]
    feeding = query == "current" if feeding is None else _checks.boolean(where, "input_feeding", feeding)
    if feeding and query == "previous":
        raise ValueError(f"{where}: input_feeding expected False for query='previous': the context is fed, not h̃")
    if score == "additive" and score_size is None:
        score_size = hidden_size
    if query == "current" and attention_size is None:
        attention_size = hidden_size
    defaults = {
        "score": "additive", "query": papers, "attention_size": hidden_size if query == "current" else None,
        "score_size": hidden_size if score == "additive" else None, "input_feeding": query == "current",
    }  # fmt: skip
    options = dict(zip(options, (score, query, score_size, attention_size, feeding), strict=True))
    name = format_call("attend", {"cell": cell, "memory_size": memory_size, **options}, defaults)
    return Sizes(name, memory_size, hidden_size, **options)


def attend(
    cell: Cell,
    memory_size: int,
    *,
    score: str = "additive",
    query: str | None = None,
    score_size: int | None = None,
    attention_size: int | None = None,
    input_feeding: bool | None = None,
    kernel_init: Initializer = initializers.glorot_uniform(),
) -> Cell:
    """A cell that attends to a memory at every step, such as the outputs of an encoder.

    α_t = softmax over s of score(q_t, m_s)    c_t = Σ_s α_ts m_s

    query="previous" (Bahdanau):  q_t = h_{t-1}    h_t = cell(h_{t-1}, [x_t; c_t])       y_t = [c_t; h_t]
    query="current" (Luong):      h_t = cell(h_{t-1}, [x_t; h̃_{t-1}])    q_t = h_t       y_t = h̃_t
    h̃_t = tanh([c_t; h_t] W_c)

    The memory and its lengths are bound for one call by :func:`with_memory`, which projects the keys once;
    :func:`attention_weights` gives α.

    Args:
        cell: any cell, with its noise, its heads and its rule. Its input is x_t and what is fed beside it.
            If it has a rule, so has the cell returned. Of the library's cells, `rnn`, `lstm`, `gru`, `mgu`,
            `slstm` and `indrnn` without layer normalisation project x for all steps at once; any other cell
            projects [x; what is fed] in the loop.
        memory_size: M, the features of the memory.
        score: "additive", v · tanh(q W_q + m W_k); "dot", q · m; "scaled_dot", q · m / √M; "general",
            q · (m W_k).
        query: what asks: "previous", the cell's output before the step, so that the context enters its input; or
            "current", its output after the step. `None` is that of the score's paper: "previous" for
            "additive", "current" for the others.
        score_size: A, the units of the additive score; `None` is H.
        attention_size: N, the size of h̃. `None` is H for query="current"; for "previous" the output is
            then [c_t; h_t].
        input_feeding: whether h̃_t enters the input of step t + 1. `None` is `True` for query="current"; it is
            for that alone.
        kernel_init: draws `w_q`, `w_k`, `w_c`, and `v` as a matrix of one column.

    Returns:
        A :class:`Cell` with :class:`AttendParams`, whose state is an :class:`AttendState`: that of the cell
        inside, and h̃ if the output is h̃. To start from an encoder, replace the first:
        `cell.initial_state((B,))._replace(cell=encoder_state)`. Of noise in the cell inside, input dropout
        drops x alone, not what is fed.

    Raises:
        TypeError, ValueError: for something that is not a cell, wrong sizes, an unknown score or query, or
            options that do not go together.
        NotImplementedError: for a cell that attends already, or one whose units are sharded.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.attend(jaxrnn.gru(16), memory_size=8)
        >>> params = cell.init(jax.random.key(0), 5)
        >>> memory = jax.random.normal(jax.random.key(1), (4, 7, 8))  # (B, S, M)
        >>> bound = jaxrnn.with_memory(cell, params, memory, lengths=jnp.array([7, 3, 1, 0]))
        >>> final, ys = jaxrnn.unroll(cell, bound, jnp.ones((10, 4, 5)))
        >>> ys.shape, final.cell.shape  # y is [c; h]
        ((10, 4, 24), (4, 16))

    References:
        Bahdanau, Cho & Bengio 2014, arXiv:1409.0473: c_i and α_ij are equations 5 and 6, the additive score
        is that of appendix A.1.2; its output layer reads s_i and c_i (A.2.2). Luong, Pham & Manning 2015,
        arXiv:1508.04025: h̃ is equation 5, α equation 7, dot and general are of equation 8, input feeding is
        section 3.3. The scaling is that of Vaswani et al. 2017, arXiv:1706.03762, equation 1.

    Differs from:
        1. tfa.seq2seq's AttentionWrapper: its cell reads [x_t; attention_{t-1}] and asks with h_t with either
           score, which is query="current" here; the memory is an argument of the call, not of the constructor;
           the weights are in no state.
        2. Keras: `Attention` and `AdditiveAttention` attend for all steps at once, after the recurrence. With
           `AdditiveAttention` W_q and W_k are layers of one's own.
        3. PyTorch has no such layer. The decoder of its tutorial is query="previous" with the embedding first
           and the context last in the input, as here, and biases in its three linear layers.
    """
    if not isinstance(cell, CELL_TYPES):
        raise TypeError(f"attend: cell expected a jaxrnn.Cell, got {_checks.describe(cell)}")
    if isinstance(cell, PlacedCell):
        raise NotImplementedError(f"attend: cell {cell!r} is sharded by units, which attention does not support")
    if sizes_of(cell) is not None:
        raise NotImplementedError(f"attend: cell expected one that does not attend yet, got {_checks.describe(cell)}")
    hidden_size, place = _output_of(cell)
    options = {
        "score": score, "query": query, "score_size": score_size, "attention_size": attention_size,
        "input_feeding": input_feeding,
    }  # fmt: skip
    sizes = _checked_sizes(cell, memory_size, options, hidden_size)
    _checks.function("attend", "kernel_init", kernel_init, "such as those of jaxrnn.initializers")
    asks_before = sizes.query == "previous"
    rule = cell.rule if isinstance(cell.rule, Rule) else None
    plan = Plan(
        cell.step, rule, place, score, asks_before, sizes.attention_size is not None, sizes.fed,
        is_affine=_has_affine_input(cell.config),
    )  # fmt: skip
    check = Bound(_check, cell.check, sizes)
    initial_state = Bound(_initial_state, cell.initial_state, sizes, asks_before and place is None)
    chosen = {name: getattr(sizes, name) for name in options}
    return Cell(
        init=Bound(_init, cell.init, sizes, kernel_init),
        initial_state=initial_state,
        step=Bound(_step, "attend step", check, initial_state, plan),
        rule=rules.rule_of(plan),
        check=check,
        sample=None if cell.sample is None else Bound(_sample, cell.sample),
        name=sizes.name,
        config=None if cell.config is None else AttendConfig(cell.config, sizes.memory_size, **chosen),
        output_size=sizes.output_size,
    )


def sizes_of(cell: Any) -> Sizes | None:
    """The sizes of an attending cell; `None` for any other."""
    check = getattr(cell, "check", None)
    return check.args[1] if isinstance(check, Bound) and check.func is _check else None


def plan_of(cell: Cell) -> Plan:
    """The plan of an attending cell."""
    assert isinstance(cell.step, Bound)
    return cell.step.args[3]
