"""Under `vmap` with shared weights the loop gets another batch axis; its weight gradient is one, not one for each element."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.sequence import arguments
from tests.support.registry import assert_close, quick_jit

N, T, B, H = 3, 6, 2, 5
I = 4  # noqa: E741
CELLS = {
    "gru": jaxrnn.gru(H),
    "lstm": jaxrnn.lstm(H, projection_size=3, peephole=True),
    "gru of heads": jaxrnn.gru(6, num_heads=2),
}
# The axes of parameters, inputs, state, resets and lengths that `vmap` maps over.
AXES = [
    (None, 1, 0, 2, 0),
    (None, 0, None, None, None),
    (None, None, 0, None, None),
    (None, 0, None, 0, None),
    (0, 0, 0, 0, 0),
]


def draw(cell, axes):
    """Operands with an axis of N where `axes` has one, in float64."""
    rng = np.random.default_rng(0)
    params = cell.init(jax.random.key(0), I, jnp.float64)
    state = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape)), cell.initial_state((B,), jnp.float64))
    alone = (
        params,
        jnp.asarray(rng.standard_normal((T, B, I))),
        state,
        jnp.asarray(rng.random((T, B)) < 0.3),
        jnp.array([6, 3]),
    )

    def several(part, axis):
        scales = 1.0, 0.5, -0.7
        if axis is None:
            return part
        of = lambda leaf, k: leaf * scales[k] if leaf.dtype == float else jnp.roll(leaf, k, -1)  # noqa: E731
        return jax.tree.map(lambda leaf: jnp.stack([of(leaf, k) for k in range(N)], axis), part)

    return tuple(map(several, alone, axes))


def loss(cell, params, xs, state, resets, lengths):
    outcome = jaxrnn.unroll(cell, params, xs, state, resets=resets, lengths=lengths, return_states=True)
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outcome))


def member(operands, axes, k):
    return tuple(
        part if axis is None else jax.tree.map(functools.partial(jnp.take, indices=k, axis=axis), part)
        for part, axis in zip(operands, axes, strict=True)
    )


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_gradients_equal_those_of_each_member(name, axes, x64):
    cell = CELLS[name]
    operands = draw(cell, axes)
    floats, rest = operands[:3], operands[3:]
    each = quick_jit(jax.value_and_grad(lambda *own: loss(cell, *own), (0, 1, 2)))
    found = [each(*member(operands, axes, k)) for k in range(N)]
    mapped = jax.vmap(lambda *own: loss(cell, *own), axes)
    total, gradients = quick_jit(jax.value_and_grad(lambda *own: mapped(*own, *rest).sum(), (0, 1, 2)))(*floats)
    assert_close(total, sum(value for value, _ in found))
    for gradient, axis, own in zip(gradients, axes, zip(*(g for _, g in found), strict=True), strict=False):
        put = lambda *leaves, axis=axis: sum(leaves) if axis is None else jnp.stack(leaves, axis)  # noqa: E731
        assert_close(gradient, jax.tree.map(put, *own))
    by_member = quick_jit(jax.vmap(jax.grad(lambda *own: loss(cell, *own), (0, 1, 2)), axes))(*operands)
    assert_close(by_member, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(g for _, g in found)))


def test_two_vmaps_and_second_derivatives_equal_batch_axes(x64):
    cell = CELLS["gru"]
    params, xs, *_ = draw(cell, (None, 0, None, None, None))  # (N, T, B, I)

    def alone(params, xs):
        return jnp.sin(jaxrnn.unroll(cell, params, xs)[1]).sum()

    one = lambda p: jax.vmap(jax.vmap(alone, (None, 0)), (None, 2))(p, xs).sum()  # noqa: E731
    other = lambda p: alone(p, jnp.moveaxis(xs, 0, 1))  # noqa: E731
    along = jax.tree.map(jnp.ones_like, params)
    for f in (jax.grad, lambda f: lambda p: jax.jvp(jax.grad(f), (p,), (along,))[1]):
        assert_close(quick_jit(f(one))(params), quick_jit(f(other))(params))


def largest_beside_the_batch(f, *operands):
    """How often the text of a program has an array with the shape of N times `w_h`."""
    return len(re.findall(rf"tensor<{N}x{H}x{3 * H}xf32>", jax.jit(f).lower(*operands).as_text()))


def test_no_weight_gradient_of_each_member_is_made(monkeypatch):
    cell = CELLS["gru"]
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((N, T, I))
    f = jax.grad(lambda p: jax.vmap(lambda x: jaxrnn.unroll(cell, p, x)[1].sum())(xs).sum())
    assert largest_beside_the_batch(f, params) == 0
    monkeypatch.setattr(arguments, "_takes_batch_axes", lambda *_: False)
    jax.clear_caches()
    assert largest_beside_the_batch(f, params) > 0
    jax.clear_caches()


@pytest.mark.parametrize("cell", [jaxrnn.gru(H), jaxrnn.lstm(H, peephole=True), jaxrnn.mgu(H)], ids=repr)
@pytest.mark.parametrize("option", ["plain", "resets", "lengths", "reverse", "gates"])
def test_without_vmap_the_program_is_the_same(cell, option, monkeypatch):
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((T, B, I))
    options = {
        "plain": {}, "resets": {"resets": jnp.zeros((T, B), bool)}, "lengths": {"lengths": jnp.array([6, 3])},
        "reverse": {"reverse": True, "return_states": True}, "gates": {"checkpoint": "gates"},
    }[option]  # fmt: skip

    def texts():
        def outcome(params, xs):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jaxrnn.unroll(cell, params, xs, **options)))

        return [jax.jit(f).lower(params, xs).as_text() for f in (outcome, jax.value_and_grad(outcome, (0, 1)))]

    found = texts()
    monkeypatch.setattr(arguments, "_takes_batch_axes", lambda *_: False)
    assert texts() == found


def test_a_precision_inside_of_the_mapped_function_is_kept():
    cell = CELLS["gru"]
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((N, T, B, I))

    def precise(x):
        with jax.default_matmul_precision("highest"):
            return jaxrnn.unroll(cell, params, x)[1]

    for f in (precise, jax.jit(precise), jax.checkpoint(precise)):
        text = str(jax.make_jaxpr(jax.vmap(f))(xs))
        assert text.count("dot_general") * 2 == text.count("HIGHEST") > 0


@pytest.mark.parametrize("ordered", [False, True], ids=["callback", "ordered callback"])
def test_an_activation_with_an_effect_has_it_once_a_step(ordered):
    seen = []

    def watched(a):
        jax.debug.callback(lambda a: seen.append(a.shape), a, ordered=ordered)
        return jnp.tanh(a)

    cell, plain = jaxrnn.rnn(H, activation=watched), jaxrnn.rnn(H)
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((T, I))
    assert_close(jaxrnn.unroll(cell, params, xs), jaxrnn.unroll(plain, params, xs), "float32")
    jax.effects_barrier()
    assert seen == [(H,)] * T


def test_an_activation_may_read_the_other_elements_by_the_name_of_the_axis():
    cell = jaxrnn.rnn(H, activation=lambda a: jnp.tanh(a - jax.lax.pmean(a, "agents")))
    params, xs = cell.init(jax.random.key(0), I), jax.random.normal(jax.random.key(1), (N, T, I))
    found = jax.vmap(lambda x: jaxrnn.unroll(cell, params, x)[1], axis_name="agents")(xs)
    params, xs, h = *jax.tree.map(np.asarray, (params, xs)), np.zeros((N, H))
    for t in range(T):
        a = xs[:, t] @ params.w_x + h @ params.w_h + params.b
        h = np.tanh(a - a.mean(0))
        np.testing.assert_allclose(found[:, t], h, atol=1e-5)


def test_a_rule_put_in_the_place_of_the_librarys_sees_the_batch_of_the_call():
    cell, seen = CELLS["gru"], []

    def accumulate(params, xs, tape, deltas):
        seen.append(xs.ndim)
        return cell.rule.accumulate(params, xs, tape, deltas)

    own = cell._replace(rule=cell.rule._replace(accumulate=accumulate))
    params, xs = cell.init(jax.random.key(0), I), jnp.ones((N, T, B, I))
    jax.eval_shape(jax.grad(lambda p: jax.vmap(lambda x: jaxrnn.unroll(own, p, x)[1].sum())(xs).sum()), params)
    assert set(seen) == {3}
