"""Stacks, streams, generation, truncation and clipping, against loops in NumPy and Python."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import Bidirectional
from tests.support import in_numpy
from tests.support.programs import by_hand, cotangents_of, operands_of, program, windowed
from tests.support.registry import (
    LENGTHS,
    SCENARIOS,
    B,
    T,
    assert_close,
    assert_equal,
    bits,
    gap,
    make,
    numpy_of,
    of_cell,
    quick_jit,
    random_like,
    run,
    weighed,
)

I = 3  # noqa: E741
# One list for all tests, so that they share compiled programs.
MIXED = [jaxrnn.lstm(4, projection_size=2), jaxrnn.gru(3), jaxrnn.rnn(5)]
VALID = np.arange(T)[:, None] < LENGTHS


def built(cells, seed=0, **options):
    net = jaxrnn.stack(cells, **options)
    shapes = jax.eval_shape(lambda key: net.init(key, I), jax.random.key(0))
    params = random_like(seed, shapes, jnp.float64, scale=0.6)
    xs = random_like(seed + 1, jax.ShapeDtypeStruct((T, B, I), jnp.float64), jnp.float64)
    states = random_like(seed + 2, jax.eval_shape(lambda: net.initial_state((B,))), jnp.float64)
    return net, params, xs, states


def one_after_another(net, params, xs, states, residual=False, **options):
    """A stack in NumPy: final states, outputs, and the states of all layers."""
    outcomes, out = [], numpy_of(xs)
    for k, layer in enumerate(net.layers):
        outcomes.append(in_numpy.unroll(layer.name.split("(")[0], params[k], out, states[k], **options))
        out = outcomes[-1][1] + out if residual and k else outcomes[-1][1]
    finals, _, every = zip(*outcomes, strict=True)
    return finals, out, every


def test_stack_equals_its_layers_one_after_another(x64):
    net, params, xs, states = built(MIXED)
    resets = bits(1, (T, B), 0.3)
    got = net.unroll(params, xs, states, lengths=LENGTHS, resets=resets, return_states=True)
    assert_close(got, one_after_another(net, params, xs, states, mask=VALID, resets=resets))


def test_default_states_are_zeros_and_reverse_reads_from_the_end(x64):
    net, params, xs, _ = built(MIXED)
    zeros = net.initial_state((B,), jnp.float64)
    assert_equal(net.unroll(params, xs), net.unroll(params, xs, zeros))
    assert_close(net.unroll(params, xs, reverse=True), one_after_another(net, params, xs, zeros, reverse=True)[:2])


BIDIRECTIONAL = [jaxrnn.gru(4), jaxrnn.lstm(4)]


@pytest.mark.xdist_group("bidirectional")
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "average", "callable"])
def test_bidirectional_stack_equals_merged_unrolls(merge, x64):
    f = {
        "concat": lambda a, b: np.concatenate([a, b], -1), "sum": lambda a, b: a + b, "mul": lambda a, b: a * b,
        "average": lambda a, b: (a + b) / 2, "callable": lambda a, b: a - 2 * b,
    }[merge]  # fmt: skip
    net, params, xs, states = built(BIDIRECTIONAL, bidirectional=True, merge=f if merge == "callable" else merge)
    finals, ys = net.unroll(params, xs, states, lengths=LENGTHS)
    out = numpy_of(xs)
    for k, kind in enumerate(("gru", "lstm")):
        ahead, back = (
            in_numpy.unroll(kind, params[k][direction], out, states[k][direction], mask=VALID, reverse=bool(direction))
            for direction in (0, 1)
        )
        out = f(ahead[1], back[1])
        assert_close(finals[k], Bidirectional(ahead[0], back[0]))
    assert_close(ys, out)


@pytest.mark.xdist_group("bidirectional")
def test_backward_direction_starts_at_the_end_of_each_sequence(x64):
    net, params, xs, states = built(BIDIRECTIONAL[:1], bidirectional=True)
    _, ys = numpy_of(net.unroll(params, xs, states, lengths=LENGTHS))
    for k, length in enumerate(LENGTHS):
        for direction, halves in enumerate(np.split(ys, 2, -1)):
            start = np.asarray(states[0][direction])[k]
            _, alone, _ = in_numpy.unroll("gru", params[0][direction], xs[:length, k], start, reverse=bool(direction))
            assert_close(halves[:length, k], alone)


def test_directions_may_have_different_cells(x64):
    net, params, xs, _ = built([Bidirectional(jaxrnn.gru(4), jaxrnn.lstm(2)), jaxrnn.rnn(3)])
    chex.assert_shape([params[1].w_x, net.unroll(params, xs)[1]], [(6, 3), (T, B, 3)])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_a_stack_equal_autodiff(bidirectional, x64):
    """All options of a stack together, over small cells."""
    net, params, xs, states = built([jaxrnn.rnn(4), jaxrnn.indrnn(4)], bidirectional=bidirectional, merge="sum",
                                    residual=True, dropout=0.4)  # fmt: skip
    options = {"lengths": LENGTHS, "resets": bits(2, (T, B), 0.3), "return_states": True, "key": jax.random.key(1)}

    def loss(implementation, params, xs, states):
        return weighed(net.unroll(params, xs, states, implementation=implementation, **options))

    grads = [
        jit(jax.value_and_grad(functools.partial(loss, name), (0, 1, 2)))(params, xs, states)
        for name, jit in (("bptt", jax.jit), ("scan", quick_jit))
    ]
    assert_close(*grads)


def test_residual_adds_inputs_from_the_second_layer_on(x64):
    net, params, xs, states = built([jaxrnn.gru(4)] * 3, residual=True)
    _, expected, _ = one_after_another(net, params, xs, states, residual=True)
    assert_close(net.unroll(params, xs, states)[1], expected)
    step, y = jax.jit(net.step), None
    for x in numpy_of(xs):
        states, y = step(params, states, x)
    assert_close(y, expected[-1])


def test_dropout_draws_anew_each_step_keeps_the_mean_and_spares_the_last_layer():
    constant = jaxrnn.rnn(1, activation=lambda a: a, use_bias=False)
    sees = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    net = jaxrnn.stack([constant, constant], dropout=0.25)
    _, ys = net.unroll((sees, sees), jnp.ones((6, 20_000, 1)), key=jax.random.key(0))
    ys = np.asarray(ys[..., 0])
    assert set(np.unique(ys)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_allclose(ys.mean(1), 1.0, atol=0.02)
    assert abs(np.corrcoef(ys[0], ys[1])[0, 1]) < 0.03
    _, off = net.unroll((sees, sees), jnp.ones((6, 10, 1)))
    assert (np.asarray(off) == 1).all()
    _, single = jaxrnn.stack([constant], dropout=0.25).unroll((sees,), jnp.ones((6, 10, 1)), key=jax.random.key(0))
    assert (np.asarray(single) == 1).all()


def test_noise_of_regularised_layers_follows_the_key(x64):
    net, params, xs, _ = built([jaxrnn.regularize(jaxrnn.rnn(4), recurrent_dropout=0.4)] * 2)
    once, twice, other = (net.unroll(params, xs, key=jax.random.key(k)) for k in (0, 0, 1))
    assert_equal(once, twice)
    assert gap(other, once) > 1e-3
    assert gap(once, net.unroll(params, xs)) > 1e-3


def test_chunks_of_a_stream_equal_one_long_unroll(x64):
    net, params, xs, states = built(MIXED)
    whole, ys, _ = one_after_another(net, params, xs, states)
    pieces = []
    for chunk in np.split(xs, 3):
        states, y = net.unroll(params, chunk, states)
        pieces.append(y)
    assert_close((states, np.concatenate(pieces)), (whole, ys))


def test_streamed_steps_equal_one_unroll(x64):
    net, params, xs, states = built(MIXED)
    whole, ys, _ = one_after_another(net, params, xs, states)
    step = jax.jit(net.step)
    for x, expected in zip(numpy_of(xs), ys, strict=True):
        states, y = step(params, states, x)
        assert_close(y, expected)
    assert_close(states, whole)


# Generation and outputs


def test_generation_equals_a_python_loop(x64):
    net, params, _, _ = built([jaxrnn.lstm(4), jaxrnn.gru(I)])
    states, x = net.initial_state((B,), jnp.float64), jnp.zeros((B, I), jnp.float64)

    @jax.jit
    def sample(y, key):
        return jax.nn.one_hot(jax.random.categorical(key, 5 * y), I, dtype=jnp.float64)

    key = jax.random.key(7)
    got = jax.jit(lambda p, s, x: jaxrnn.generate(net, p, s, x, sample, 6, key, return_inputs=True))(params, states, x)
    step, ys, inputs = jax.jit(net.step), [], []
    for _ in range(6):
        key, key_t = jax.random.split(key)
        states, y = step(params, states, x)
        x = sample(y, key_t)
        ys.append(y)
        inputs.append(x)
    assert_close(got, (states, np.stack(ys), np.stack(inputs)))
    assert len(np.unique(np.argmax(np.asarray(inputs), -1))) == I


def test_generation_without_a_key_passes_none_and_can_be_continued(x64):
    case = make("gru")
    params = case.params._replace(w_x=jnp.ones((4, 12)))
    seen = []

    def next_input(y, key):
        seen.append(key)
        return 2 * y

    start = jnp.zeros((B, 4))
    states, ys, inputs = jaxrnn.generate(case.cell, params, case.state, start, next_input, 5, return_inputs=True)
    assert set(seen) == {None}
    assert_close(inputs, 2 * np.asarray(ys))
    half, first = jaxrnn.generate(case.cell, params, case.state, start, next_input, 2)
    end, second = jaxrnn.generate(case.cell, params, half, 2 * np.asarray(first)[-1], next_input, 3)
    assert_close((end, np.concatenate([first, second])), (states, ys))


def test_last_output_is_read_at_each_length():
    ys = np.arange(1.0, 1 + T * B, dtype=np.float32).reshape(T, B, 1)
    last, some = jax.jit(jaxrnn.last_output), LENGTHS > 0
    expected = [[ys[n - 1, k, 0] if n else 0] for k, n in enumerate(LENGTHS)]
    np.testing.assert_array_equal(jaxrnn.last_output(ys, LENGTHS), expected)
    np.testing.assert_array_equal(last(ys, LENGTHS + 100 * (LENGTHS == T)), expected)
    np.testing.assert_array_equal(jaxrnn.last_output(ys), ys[-1])
    assert not np.asarray(jaxrnn.last_output(ys[:0])).any()
    case = make("lstm")
    final, outputs = run(case, lengths=LENGTHS)
    assert_close(np.asarray(last(outputs, LENGTHS))[some], np.asarray(final.h)[some], "float32")
    gradient = jax.jit(jax.grad(lambda ys: jaxrnn.last_output(ys, LENGTHS).sum()))(ys)
    np.testing.assert_array_equal(np.sum(gradient, (0, 2)), 1.0 * some)


# Truncation and clipping inside time


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", ["bptt", "scan", "reference"])
@pytest.mark.parametrize("name", [of_cell("lstm"), of_cell("gru-reset-before")])
def test_truncated_gradients_equal_separate_windows(name, implementation, reverse, x64):
    """Windows of 4 and 2 steps, with masks and resets, equal two unrolls that exchange no gradient."""
    asked = (operands_of(name), *SCENARIOS["mask-resets"].values(), cotangents_of(name))
    got = program(name, implementation, truncate=4, reverse=reverse)(*asked)
    assert_close(got, windowed(name, 4, asked[0], asked[3], **SCENARIOS["mask-resets"], reverse=reverse))


def test_truncated_gradients_stay_within_their_window(x64):
    """The output of step t has gradients for the inputs up to t of its own window alone."""
    case = make("gru", ())
    jacobian = quick_jit(jax.jacrev(lambda xs: run(case._replace(xs=xs), truncate=2)[1].sum(-1)))(case.xs)
    reached = np.abs(np.asarray(jacobian)).max(-1) > 0
    expected = [[s <= t and s // 2 == t // 2 for s in range(T)] for t in range(T)]
    np.testing.assert_array_equal(reached, expected)


def test_window_of_the_whole_sequence_is_the_program_of_full_bptt(x64):
    """Values equal those of full BPTT for any window."""
    asked = (operands_of("lstm"), *SCENARIOS["mask-resets"].values(), cotangents_of("lstm"))
    text = lambda **options: program("lstm", None, **options).lower(*asked).as_text()  # noqa: E731

    assert text(truncate=T) == text(truncate=T + 5) == text() != text(truncate=T - 1)
    case = make("lstm")
    assert_equal(run(case, truncate=2), run(case))


def test_gradients_summed_over_chunks_equal_truncated_ones(x64):
    """A chunk starts from the states of the last one, without their gradients. Resets are at any step."""
    net, params, xs, _ = built([jaxrnn.lstm(4), jaxrnn.gru(3)])
    resets = bits(5, (T, B), 0.3)

    def loss(params, xs, states, resets, truncate=None):
        states, ys = net.unroll(params, xs, states, resets=resets, truncate=truncate)
        return jnp.sum(jnp.sin(ys)), states

    gradient_of = quick_jit(jax.grad(loss, has_aux=True), static_argnums=4)
    states, total = net.initial_state((B,), jnp.float64), jax.tree.map(np.zeros_like, params)
    whole, _ = gradient_of(params, xs, states, resets, 3)
    for chunk, resets_here in zip(np.split(xs, 2), np.split(resets, 2), strict=True):
        gradient, states = gradient_of(params, chunk, states, resets_here)
        total = jax.tree.map(np.add, total, gradient)
    assert_close(whole, total)


def test_clipping_limits_the_cotangent_of_every_step():
    """h_t = 2 h_{t-1} + x_t: the cotangent doubles each step, to at most 3."""
    cell = jaxrnn.rnn(1, activation=lambda a: a, use_bias=False)
    params = jaxrnn.RNNParams(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    for implementation in ("bptt", "scan", "reference"):
        f = lambda xs, h: jaxrnn.unroll(cell, params, xs, h, clip_gradient=3.0, implementation=implementation)[0].sum()  # noqa: B023, E731
        dxs, dh = quick_jit(jax.grad(f, (0, 1)))(jnp.zeros((5, 1)), jnp.zeros(1))
        np.testing.assert_array_equal(dxs, [[3], [3], [3], [2], [1]])
        np.testing.assert_array_equal(dh, [3])


@pytest.mark.parametrize("name", [of_cell("lstm"), of_cell("rnn-tanh")])
def test_clipping_equals_autodiff_with_masks_and_resets(name, x64):
    operands, masks, cotangents = operands_of(name), SCENARIOS["mask-resets"], cotangents_of(name)
    clipped, by_scan = (
        program(name, implementation, clip_gradient=0.2)(operands, *masks.values(), cotangents)
        for implementation in ("bptt", "scan")
    )
    assert_close(clipped, by_scan)
    _, unclipped = by_hand(name, operands, cotangents, **masks)
    assert gap(clipped[1], unclipped) > 1e-2
    # Small cotangents are not clipped.
    small = jax.tree.map(lambda d: 1e-6 * np.asarray(d), cotangents)
    _, gradients = program(name, "bptt", clip_gradient=0.2)(operands, *masks.values(), small)
    assert_close(gradients, jax.tree.map(lambda d: 1e-6 * np.asarray(d), unclipped))


# Counts


@pytest.mark.parametrize(("cell", "formula"), [
    (jaxrnn.rnn(7), 7 * (3 + 7 + 1)), (jaxrnn.lstm(7), 4 * 7 * (3 + 7 + 1)), (jaxrnn.gru(7), 3 * 7 * (3 + 7 + 1) + 7),
    (jaxrnn.gru(7, reset_after=False), 3 * 7 * (3 + 7 + 1)), (jaxrnn.lstm(7, projection_size=2), 4 * 7 * (3 + 2 + 1) + 7 * 2),
    (jaxrnn.lstm(7, coupled=True), 3 * 7 * (3 + 7 + 1)), (jaxrnn.lstm(7, peephole=True), 4 * 7 * (3 + 7 + 1) + 3 * 7),
    (jaxrnn.mgu(7), 2 * 7 * (3 + 7 + 1)), (jaxrnn.indrnn(7), 7 * (3 + 2)),
], ids=repr)  # fmt: skip
def test_parameter_counts_equal_their_formulas(cell, formula):
    params = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    assert jaxrnn.count_params(params) == formula


def test_parameter_counts_are_those_of_any_arrays():
    """An array without axes is one parameter, one with an axis of no entries is none."""
    tree = {
        "scalars": (jnp.float32(2), np.float64(3), np.ones(()), jax.ShapeDtypeStruct((), jnp.float32)),
        "none": [np.ones((0, 4)), None, ()],
        "matrix": np.ones((2, 3)),
    }
    assert jaxrnn.count_params(tree) == 4 + 0 + 6
    assert jaxrnn.count_params(jnp.float32(2)) == 1
    assert jaxrnn.count_params(()) == 0
    assert jax.jit(lambda x: jnp.full((), jaxrnn.count_params(x)))(jnp.ones((2, 2))) == 4
    module = jaxrnn.modules.GRU(I, 2, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    assert jaxrnn.count_params(nnx.state(module, nnx.Param)) == jaxrnn.count_params(module.params) == 38 + 32


# Refusals

GRU, LSTM = jaxrnn.gru(4), jaxrnn.lstm(3)
KEY = jax.random.key(0)


def zeros_of(cell, input_size=3):
    return jax.tree.map(
        lambda p: np.zeros(p.shape, p.dtype), jax.eval_shape(lambda key: cell.init(key, input_size), KEY)
    )


def two(**options):
    net = jaxrnn.stack([GRU, GRU], **options)
    return net, zeros_of(net)


REFUSED = {
    "no layers": (lambda: jaxrnn.stack([]), ValueError, "stack: cells expected at least one"),
    "one cell": (lambda: jaxrnn.stack(GRU), TypeError, "stack: cells expected a sequence of cells, got Cell.*; wrap one"),
    "not cells": (lambda: jaxrnn.stack([GRU, 4]), TypeError, r"stack: cells\[1\] expected a Cell"),
    "merge": (lambda: jaxrnn.stack([GRU], merge="max"), ValueError, "stack: merge expected one of 'concat', 'sum'"),
    "merge sizes": (lambda: jaxrnn.stack([Bidirectional(GRU, LSTM)], merge="sum"), ValueError,
                    "stack: merge expected directions of equal sizes, got 4 and 3"),
    "dropout 1": (lambda: jaxrnn.stack([GRU], dropout=1.0), ValueError, r"stack: dropout expected a rate in \[0, 1\), got 1.0"),
    "dropout str": (lambda: jaxrnn.stack([GRU], dropout="0.5"), TypeError, "stack: dropout expected a number"),
    "residual sizes": (lambda: jaxrnn.stack([GRU, LSTM], residual=True), ValueError,
                       "stack: residual expected layers of equal sizes, got 4 below and 3 at layer 1"),
    "residual type": (lambda: jaxrnn.stack([GRU], residual="yes"), TypeError, "stack: residual expected True or False"),
    "bidirectional type": (lambda: jaxrnn.stack([GRU], bidirectional=2), TypeError, "stack: bidirectional expected True"),
    "bidirectional step": (lambda: (lambda net, p: net.step(p, net.initial_state(), jnp.ones(3)))(*two(bidirectional=True)),
                           ValueError, "stack.step: expected a unidirectional network"),
    "bidirectional reverse": (lambda: (lambda net, p: net.unroll(p, jnp.ones((2, 3)), reverse=True))(*two(bidirectional=True)),
                              ValueError, "stack.unroll: reverse expected False for a bidirectional"),
    "params of a cell": (lambda: jaxrnn.stack([GRU]).unroll(zeros_of(GRU), jnp.ones((2, 3))), TypeError,
                         "stack.unroll: params expected a tuple over 1 layers, got GRUParams"),
    "params of one direction": (lambda: jaxrnn.stack([GRU], bidirectional=True).unroll((zeros_of(GRU),), jnp.ones((2, 3))),
                                TypeError, r"stack.unroll: params\[0\] expected a Bidirectional"),
    "states": (lambda: (lambda net, p: net.unroll(p, jnp.ones((2, 3)), (jnp.ones(4),)))(*two()), TypeError,
               "stack.unroll: states expected a tuple over 2 layers"),
    "input size": (lambda: jaxrnn.stack([GRU]).init(KEY, 0), ValueError, "stack.init: input_size expected"),
    "features": (lambda: (lambda net, p: net.unroll(p, jnp.ones((2, 5))))(*two()), ValueError, "xs has last axis 5"),
    "truncate 0": (lambda: run(make("gru"), truncate=0), ValueError, "unroll: truncate expected a positive integer, got 0"),
    "truncate 1.5": (lambda: run(make("gru"), truncate=1.5), TypeError, "unroll: truncate expected a positive integer"),
    "clip 0": (lambda: run(make("gru"), clip_gradient=0), ValueError, "unroll: clip_gradient expected a positive number, got 0"),
    "clip str": (lambda: run(make("gru"), clip_gradient="1"), TypeError, "unroll: clip_gradient expected a positive number"),
    "length": (lambda: jaxrnn.generate(GRU, zeros_of(GRU, 4), jnp.ones(4), jnp.ones(4), lambda y, k: y, 0), ValueError,
               "generate: length expected a positive integer, got 0"),
    "next_input": (lambda: jaxrnn.generate(GRU, zeros_of(GRU, 4), jnp.ones(4), jnp.ones(4), None, 3), TypeError,
                   "generate: next_input expected a callable"),
    "next_input shape": (lambda: jaxrnn.generate(GRU, zeros_of(GRU, 4), jnp.ones(4), jnp.ones(4), lambda y, k: y[:2], 3),
                         ValueError, r"generate: next_input\(y, key\) expected what first_input is, float32\[4\]; got float32\[2\]"),
    "last_output rank": (lambda: jaxrnn.last_output(jnp.ones(3)), ValueError, "last_output: ys expected shape"),
    "last_output lengths": (lambda: jaxrnn.last_output(jnp.ones((3, 2, 1)), np.asarray([4, 0])), ValueError,
                            "last_output: lengths expected values from 0 to T = 3, got 4"),
    "count of keys": (lambda: jaxrnn.count_params(jaxrnn.modules.GRU(3, 2, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))), TypeError,
                      r"count_params: params.rngs.key.* expected an array of numbers, got key.*; of a module count its `.params`"),
    "count of a network": (lambda: jaxrnn.count_params(jaxrnn.stack([GRU])), TypeError,
                           "count_params: params.init expected an array of numbers, got Bound.*; give the params, such as `init` returns"),
    "count of strings": (lambda: jaxrnn.count_params([np.array(["a"])]), TypeError,
                         r"count_params: params\[0\] expected an array of numbers, got <U1\[1\]"),
    "count of numbers": (lambda: jaxrnn.count_params((1.0,)), TypeError, r"count_params: params\[0\] expected an array of numbers"),
    "count of mixed names": (lambda: jaxrnn.count_params({1: np.ones(1), "a": np.ones(1)}), TypeError,
                             "count_params: params expected a tree that JAX can flatten"),
    "count": (lambda: jaxrnn.count_params({"a": "b"}), TypeError, r"count_params: params\['a'\] expected an array of numbers, got str 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case, unhooked):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_lengths_of_narrow_dtypes_index_long_sequences(dtype, unhooked):
    """An index of eight bits cannot count 300 steps."""
    cell = jaxrnn.rnn(2)
    params, xs = cell.init(jax.random.key(0), 1), jnp.ones((300, 2, 1))
    lengths = np.array([100, 5], dtype)
    state, ys = jaxrnn.unroll(cell, params, xs, lengths=lengths)
    assert (np.asarray(ys).any(-1).sum(0) == lengths).all()
    np.testing.assert_array_equal(state, [ys[99, 0], ys[4, 1]])
    np.testing.assert_array_equal(jaxrnn.last_output(ys, lengths), state)
