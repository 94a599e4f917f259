"""Every cotangent of the hand-written backward pass, against derivatives by JAX and recursions in NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import LRUParams, analysis
from tests.support.opened import cell_and_operands, gates_of, opened
from tests.support.registry import (
    CELLS,
    COMPLEX,
    FAMILIES,
    LENGTHS,
    SCENARIOS,
    B,
    H,
    I,
    T,
    bits,
    make,
    of_cell,
    random_like,
    weighed,
)

BOUND = 1e-11  # relative to the largest entry of each array; measured at most 1e-14


def loss(final, ys):
    return weighed((final, ys))


def close(got, wanted):
    chex.assert_trees_all_equal_shapes_and_dtypes(got, wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=BOUND * max(np.abs(b).max(), 1e-3))


def scenario_of(name):
    options = SCENARIOS[name]
    mask = options.get("mask")
    if "lengths" in options:
        mask = np.arange(T)[:, None] < options["lengths"]
    return options, mask, options.get("resets")


def columns(name, gate, params):
    """The part of a gate, by the columns that the documentation gives it."""
    gates = gates_of(name)
    at = slice(gates.index(gate) * H, (gates.index(gate) + 1) * H)
    seen = [g for g in "ifo" if g in gates]
    found = {}
    for field, value in params._asdict().items():
        if value is None or field in ("w_proj", "w_gates", "b_gates", "decay", *LRUParams._fields[1:]):
            found[field] = None
        elif field == "norm":
            parts = {key: leaf[at] if key in ("scale_x", "scale_h") else None for key, leaf in value._asdict().items()}
            found[field] = type(value)(**parts)
        elif field == "peephole":
            found[field] = value[seen.index(gate)] if gate in seen else None
        elif field == "b_hn":
            found[field] = value if gate == "n" else None
        elif field == "w_h" and value.ndim == 3:  # the gates of a head side by side
            found[field] = value.reshape(*value.shape[:2], len(gates), value.shape[1])[..., gates.index(gate), :]
        else:
            found[field] = value[..., at]
    return type(params)(**found)


CASES = [of_cell(name, scenario) for name in CELLS for scenario in ("plain", "mask-resets")]
CASES += [of_cell(name, "lengths") for name in FAMILIES]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_every_cotangent_equals_the_derivative_by_what_is_added_there(name, scenario, reverse, x64):
    cell, operands = cell_and_operands(name, make)
    params, xs, state, reset_state = operands
    options, mask, resets = scenario_of(scenario)
    given = {**options, "reverse": reverse} | ({} if resets is None else {"reset_state": reset_state})
    poisoned = xs if mask is None else jnp.where(mask[..., None], xs, jnp.nan)
    found = analysis.backward_pass(cell, params, poisoned, loss, state, contributions=True, **given)
    wanted = opened(name, operands, loss, mask, resets, reverse)
    if resets is None:
        wanted["reset_state"] = None
    for field, value in wanted.items():
        close(getattr(found, field), value)
    whole = jax.tree.map(lambda leaf: leaf.sum(0), wanted["contributions"])
    close(found.weights, whole)
    assert list(found.by_gate) == (["im", "re"] if name in COMPLEX else list(gates_of(name)))
    for gate, part in found.by_gate.items():
        close(part, columns(name, gate, whole))


@pytest.mark.parametrize("name", [of_cell("lstm"), of_cell("gru"), of_cell("rnn-tanh")])
def test_windows_and_clipping_are_those_of_unroll(name, x64):
    cell, operands = cell_and_operands(name, make)
    params, xs, state, _ = operands
    found = analysis.backward_pass(
        cell, params, xs, loss, state, truncate=2, clip_gradient=0.1, contributions=True, reverse=True
    )
    wanted = opened(name, operands, loss, reverse=True, truncate=2, clip_gradient=0.1)
    for field in ("loss", "states", "cell_state", "pre_activations", "inputs", "initial_state", "contributions"):
        close(getattr(found, field), wanted[field])
    plain = analysis.backward_pass(cell, params, xs, loss, state, reverse=True)
    assert np.abs(np.asarray(plain.inputs) - np.asarray(found.inputs)).max() > 1e-3


def test_cell_state_follows_the_recursion_of_the_documents(x64):
    """δ_C^(T) = δ_h ⊙ o ⊙ (1 - tanh²(C)), δ_C^(t) = that + f^(t+1) ⊙ δ_C^(t+1), in NumPy, step by step."""
    case = make("lstm", (), seed=3)
    params, xs, weight = case.params, case.xs, np.asarray(random_like(8, case.state.h, jnp.float64))
    found = analysis.backward_pass(case.cell, params, xs, lambda final, ys: jnp.sum(final.h * weight), case.state)
    w_x, w_h, b = map(np.asarray, params[:3])
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    steps, h, c = [], *map(np.asarray, case.state)
    for x in np.asarray(xs):
        i, f, g, o = np.split(x @ w_x + h @ w_h + b, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        before, c = (h, c), f * c + i * g
        h = o * np.tanh(c)
        steps.append((x, *before, i, f, g, o, c))
    delta_h, carry = weight, np.zeros(H)
    dw_f, dw_h = np.zeros((I, H)), np.zeros((H, 4 * H))
    for t in reversed(range(T)):
        x, h_before, c_before, i, f, g, o, c = steps[t]
        np.testing.assert_allclose(found.states.h[t], delta_h, rtol=0, atol=1e-13)
        np.testing.assert_allclose(found.states.c[t], carry, rtol=0, atol=1e-13)
        delta_c = delta_h * o * (1 - np.tanh(c) ** 2) + carry
        np.testing.assert_allclose(found.cell_state[t], delta_c, rtol=0, atol=1e-13)
        gates = {
            "i": delta_c * g * i * (1 - i),
            "f": delta_c * c_before * f * (1 - f),
            "g": delta_c * i * (1 - g**2),
            "o": delta_h * np.tanh(c) * o * (1 - o),
        }
        for gate, delta in gates.items():
            np.testing.assert_allclose(found.pre_activations[gate][t], delta, rtol=0, atol=1e-13)
        together = np.concatenate(list(gates.values()))
        np.testing.assert_allclose(found.inputs[t], together @ w_x.T, rtol=0, atol=1e-13)
        dw_f += np.outer(x, gates["f"])
        dw_h += np.outer(h_before, together)
        delta_h, carry = together @ w_h.T, f * delta_c
    np.testing.assert_allclose(found.by_gate["f"].w_x, dw_f, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.weights.w_h, dw_h, rtol=0, atol=1e-13)


def test_carry_of_the_memory_is_what_gradient_flow_measures(x64):
    case = make("lstm")
    read_h = lambda final, ys: jnp.sum(ys[-1] ** 2)  # noqa: E731
    found = analysis.backward_pass(case.cell, case.params, case.xs, read_h)
    flow = analysis.gradient_flow(case.cell, case.params, case.xs, read_h)
    norms = jax.tree.map(lambda leaf: np.linalg.norm(leaf, axis=-1), found.states)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(flow.log_state_norms.h, np.log(norms.h), rtol=1e-9)
        np.testing.assert_allclose(flow.log_state_norms.c, np.log(norms.c), rtol=1e-9)
    assert (np.asarray(flow.log_state_norms.c[-1]) == -np.inf).all()
    assert (np.linalg.norm(found.cell_state[-1], axis=-1) > 0.01).all()


@pytest.mark.parametrize("merge", ["concat", "mul"])
def test_layers_and_directions_pass_their_errors_down(merge, x64):
    """Gradients of a network, the errors between its layers among them, equal those by JAX."""
    pair = jaxrnn.Bidirectional(jaxrnn.gru(H), jaxrnn.lstm(H))
    top = jaxrnn.Bidirectional(jaxrnn.rnn(2 * H if merge == "concat" else H), jaxrnn.mgu(H))
    top = pair if merge == "mul" else top
    net = jaxrnn.stack([pair, top], merge=merge, residual=merge == "mul", dropout=0.3)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = jax.tree.map(lambda p: 0.6 * p, random_like(0, shapes, jnp.float64))
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    states = random_like(2, jax.eval_shape(lambda: net.initial_state((B,))), jnp.float64)
    options = {"mask": bits(4, (T, B), 0.6), "resets": bits(5, (T, B), 0.4)}

    def run(params, xs, states, error):
        """Layer by layer, with a number added to what the second one reads."""
        first = jaxrnn.stack(net.layers[:1], merge=merge)
        below, ys = first.unroll(params[:1], xs, states[:1], key=None, **options)
        second = jaxrnn.stack(net.layers[1:], merge=merge)
        above, read = second.unroll(params[1:], ys + error, states[1:], key=None, **options)
        return weighed(((*below, *above), read + ys if merge == "mul" else read))

    error = jnp.zeros((T, B, H if merge == "mul" else 2 * H))
    wanted = jax.jit(jax.grad(run, (0, 1, 2, 3)))(params, xs, states, error)
    found = analysis.backward_pass(net, params, xs, loss, states, contributions=True, **options)
    close(found.weights, wanted[0])
    jax.tree.map(lambda parts, total: close(parts.sum(0), total), found.contributions, wanted[0])
    close(sum(found.inputs[0]), wanted[1])
    close(found.initial_state, wanted[2])
    close(sum(found.inputs[1]), wanted[3])
    assert found.cell_state[0].forward is None
    assert found.cell_state[0].backward.shape == (T, B, H)
    assert list(found.pre_activations[0].forward) == ["r", "z", "n", "q"]


def test_one_direction_may_read_in_reverse(x64):
    net = jaxrnn.stack([jaxrnn.lstm(H), jaxrnn.gru(H)])
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = random_like(0, shapes, jnp.float64)
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    options = {"lengths": LENGTHS, "reverse": True, "truncate": 4}
    wanted = jax.grad(lambda params: loss(*net.unroll(params, xs, implementation="scan", **options)))(params)
    found = analysis.backward_pass(net, params, xs, loss, **options)
    close(found.weights, wanted)


def scaling(*, sign):
    """A cell of one's own with a rule: s_t = a ⊙ s_{t-1} + x_t, whose δ is called delta."""

    return jaxrnn.Cell(
        init=lambda key, size, dtype=None: {"a": jnp.full(size, 0.5, dtype)},
        initial_state=lambda batch_shape=(), dtype=None: jnp.zeros((*batch_shape, I), dtype),
        step=lambda params, s, x: (params["a"][None] * s + x,) * 2,
        rule=jaxrnn.Rule(
            project=lambda params, xs: xs,
            forward=lambda params, s, z: (*(params["a"][None] * s + z,) * 2, ()),
            backward=lambda params, tape, ds, dy: (params["a"][None] * (ds + dy), {"delta": sign * (ds + dy)}),
            accumulate=lambda params, xs, tape, d: ({"a": jnp.sum(d["delta"] * tape.before, (0, 1))}, d["delta"]),
        ),
    )


def test_rule_of_ones_own_is_run_as_it_is(x64):
    """What its `backward` returns is returned, a wrong sign too."""
    xs = random_like(1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    for sign in (1, -1):
        cell = scaling(sign=sign)
        params = cell.init(jax.random.key(0), I)
        found = analysis.backward_pass(cell, params, xs, loss, contributions=True)
        right = jax.grad(lambda p, cell=cell: loss(*jaxrnn.unroll(cell, p, xs, implementation="scan")))(params)
        close(found.weights, jax.tree.map(lambda leaf, sign=sign: sign * leaf, right))
        close(found.contributions["a"].sum(0), found.weights["a"])
        assert list(found.pre_activations) == ["delta"]
        assert found.by_gate is None
        assert found.cell_state is None


def test_delta_of_a_rule_with_an_accumulate_of_ones_own_has_no_gates(x64):
    """Only that function knows what it means, whatever the parameters are."""
    case = make("lstm")
    rule = case.cell.rule

    def backward(*given):
        before, delta = rule.backward(*given)
        return before, {"mine": delta}

    own = rule._replace(backward=backward, accumulate=lambda *given: rule.accumulate(*given[:3], given[3]["mine"]))
    found = analysis.backward_pass(case.cell._replace(rule=own), case.params, case.xs, loss)
    wanted = analysis.backward_pass(case.cell, case.params, case.xs, loss)
    close(found.weights, wanted.weights)
    assert list(found.pre_activations) == ["mine"]
    assert found.by_gate is None


def test_it_can_be_jitted_and_does_not_trace_twice(x64):
    case = make("gru")
    run = functools.partial(analysis.backward_pass, case.cell, loss=loss)
    plain, jitted = run(case.params, case.xs), jax.jit(run)(case.params, case.xs)
    close(jax.tree.leaves(plain.weights), jax.tree.leaves(jitted.weights))
    loops = chex.assert_max_traces(lambda params, xs: run(params, xs).inputs, n=1)
    again = jax.jit(loops)
    again(case.params, case.xs)
    again(case.params, case.xs + 1)


def test_zero_steps_and_an_empty_batch_have_gradients_of_zero():
    cell = jaxrnn.lstm(H)
    params = cell.init(jax.random.key(0), I)
    for shape in ((0, B, I), (T, 0, I)):
        found = analysis.backward_pass(cell, params, jnp.zeros(shape), lambda f, ys: jnp.sum(f.h), contributions=True)
        assert found.states.h.shape == (*shape[:-1], H)
        assert not np.asarray(found.weights.w_h).any()
        assert found.contributions.w_h.shape == (shape[0], H, 4 * H)


def test_what_cannot_be_opened_is_refused_by_name():
    case = make("lstm")
    call = functools.partial(analysis.backward_pass, case.cell, case.params, case.xs, loss)
    with pytest.raises(NotImplementedError, match=r"^backward_pass: cell expected one with a rule"):
        analysis.backward_pass(case.cell._replace(rule=None), case.params, case.xs, loss)
    with pytest.raises(TypeError, match=r"^backward_pass: loss expected to return a floating-point scalar, got"):
        analysis.backward_pass(case.cell, case.params, case.xs, lambda final, ys: ys)
    with pytest.raises(ValueError, match=r"^backward_pass: lengths and mask were both given"):
        call(lengths=LENGTHS, mask=np.ones((T, B), bool))
    with pytest.raises(ValueError, match=r"^backward_pass: reset_state expected None without resets"):
        call(reset_state=case.state)
    with pytest.raises(TypeError, match=r"^backward_pass: reverse expected"):
        call(reverse="yes")
    net = jaxrnn.stack([case.cell], bidirectional=True)
    params = net.init(jax.random.key(0), I)
    with pytest.raises(ValueError, match=r"^backward_pass: reverse expected False for a bidirectional network"):
        analysis.backward_pass(net, params, case.xs, loss, reverse=True)
    scale = jnp.ones(H)

    def of_closure(scale):
        cell = jaxrnn.rnn(H, activation=lambda a: scale[0] * a)
        own = cell.init(jax.random.key(0), I)
        return analysis.backward_pass(cell, own, case.xs.astype(jnp.float32), lambda f, ys: jnp.sum(ys)).loss

    with pytest.raises(NotImplementedError, match=r"^backward_pass: this call of rnn.* is not supported; a function"):
        jax.grad(of_closure)(scale)
