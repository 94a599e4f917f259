"""`checkpoint`: gradients stay equal, and memory falls as documented."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.programs import (
    TOLERANCE_OF_SLOPE,
    by_hand,
    cotangents_of,
    differentiated,
    operands_of,
    program,
    slope,
    windowed,
)
from tests.support.registry import (
    SCENARIOS,
    T,
    assert_close,
    cell_of,
    gap,
    make,
    numpy_of,
    of_cell,
    quick_jit,
    random_like,
    run,
    weighed,
)

ARGUMENTS = sys.modules["jaxrnn.sequence.arguments"]
CHOICES = ["gates", "sqrt", 1, 4, T, T + 3]
MASKED = SCENARIOS["mask-resets"]


# Every cell whose backward pass reads another kind of residual.
@pytest.mark.parametrize("checkpoint", ["gates", 4])
@pytest.mark.parametrize(("name", "reverse"), [
    of_cell("rnn-callable", True), of_cell("lstm-all", False), of_cell("gru-layer-norm", True),
    of_cell("lstm-regularized", False),
])  # fmt: skip
def test_gradients_equal_windowed_autodiff(name, reverse, checkpoint, x64, monkeypatch):
    """Six steps are a segment of 4 and a rest of 2, with masks, resets, windows and noise."""
    monkeypatch.setattr(ARGUMENTS, "segment_length", lambda time, rows: 4)
    operands, cotangents = operands_of(name), cotangents_of(name)
    key = jax.random.key(1) if cell_of(name).sample else None
    compiled = differentiated(cell_of(name), None, checkpoint=checkpoint, reverse=reverse, truncate=3)
    got = compiled(operands, *MASKED.values(), cotangents, key)
    assert_close(got, windowed(name, 3, operands, cotangents, **MASKED, reverse=reverse, key=key))


@pytest.mark.xdist_group("gru")
@pytest.mark.parametrize("checkpoint", CHOICES)
def test_every_checkpoint_keeps_values_and_gradients(checkpoint, x64):
    operands, cotangents = operands_of("gru"), cotangents_of("gru")
    values, gradients = program("gru", None, checkpoint=checkpoint)(operands, *MASKED.values(), cotangents)
    assert_close((values, gradients), by_hand("gru", operands, cotangents, **MASKED))
    if checkpoint == 4:  # values of a call without gradients
        options = {**MASKED, "reset_state": operands[3], "return_states": True}
        assert_close(run(make("gru"), checkpoint=checkpoint, **options), values)


@pytest.mark.xdist_group("gru")
def test_gates_are_recomputed_without_a_loop_and_segments_run_again(x64):
    """One loop reads the sequence, and one goes back."""

    def loops(checkpoint):
        operands, cotangents = operands_of("gru"), cotangents_of("gru")
        compiled = differentiated(cell_of("gru"), None, checkpoint=checkpoint)
        return compiled.lower(operands, *MASKED.values(), cotangents).as_text().count("stablehlo.while")

    assert loops(None) == loops("gates") == 2
    assert loops(3) > 2


@pytest.mark.xdist_group("rnn-tanh")
@pytest.mark.parametrize(("implementation", "checkpoint"), [("scan", 4), ("scan", "sqrt"), ("reference", "gates")])
def test_other_implementations_support_checkpoint(implementation, checkpoint, x64):
    operands, cotangents = operands_of("rnn-tanh"), cotangents_of("rnn-tanh")
    got = program("rnn-tanh", implementation, checkpoint=checkpoint)(operands, *MASKED.values(), cotangents)
    assert_close(got, by_hand("rnn-tanh", operands, cotangents, **MASKED))


@pytest.mark.xdist_group("lstm")
@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("checkpoint", ["gates", "sqrt", 3])
def test_short_sequences_equal_those_without_checkpoint(time, checkpoint, x64):
    asked = ((*make("lstm", time=time)[1:4], None), None, None)
    dfinal, *over_time = numpy_of(cotangents_of("lstm"))
    cotangents = (dfinal, *jax.tree.map(lambda d: d[:time], over_time))
    got = program("lstm", None, checkpoint=checkpoint)(*asked, cotangents)
    assert_close(got, program("lstm", None)(*asked, cotangents))


@pytest.mark.xdist_group("gru")
@pytest.mark.parametrize("checkpoint", ["gates", 4])
def test_second_derivatives_equal_finite_differences(checkpoint, x64):
    """The second derivatives are forward over reverse, the differences those of the gradient."""
    (params, xs, *states), cotangents = operands_of("gru"), cotangents_of("gru")
    v = np.random.default_rng(5).standard_normal(xs.shape)

    run_back = differentiated(cell_of("gru"), None, jit=lambda f: f, checkpoint=checkpoint)
    gradient = lambda xs: run_back((params, xs, *states), *MASKED.values(), cotangents)[1][1]  # noqa: E731
    product = quick_jit(lambda xs: jax.jvp(gradient, (xs,), (v,))[1])(xs)
    moved = lambda h: by_hand("gru", (params, xs + h * v, *states), cotangents, **MASKED)[1][1]  # noqa: E731
    assert gap(product, slope(lambda h: np.asarray(moved(h)))) <= TOLERANCE_OF_SLOPE


def test_stack_passes_checkpoint_to_its_layers(x64):
    net = jaxrnn.stack([jaxrnn.rnn(3)], bidirectional=True)
    xs = make("gru", (2,)).xs
    shapes = jax.eval_shape(lambda key: net.init(key, xs.shape[-1]), jax.random.key(0))
    params = random_like(0, shapes, xs.dtype)

    def loss(params, checkpoint):
        return weighed(net.unroll(params, xs, lengths=np.asarray([6, 3]), checkpoint=checkpoint))

    assert_close(*(quick_jit(jax.grad(loss), static_argnums=1)(params, checkpoint) for checkpoint in (4, None)))
    text = lambda checkpoint: jax.jit(loss, static_argnums=1).lower(params, checkpoint).as_text()  # noqa: E731
    assert text(4) != text(None)


def temporary_memory(checkpoint):
    """Bytes of a training step beyond its operands and results, counted by the compiler."""
    cell, xs = jaxrnn.lstm(32), jax.ShapeDtypeStruct((2048, 8, 16), jnp.float32)
    params = jax.eval_shape(lambda key: cell.init(key, 16), jax.random.key(0))

    def loss(params, xs):
        final, _ = jaxrnn.unroll(cell, params, xs, checkpoint=checkpoint)
        return jnp.mean(final.h**2)

    compiled = jax.jit(jax.grad(loss)).lower(params, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_checkpoint_saves_the_documented_memory():
    """T is 2048. The loss reads the final state alone, so that outputs and their cotangents take no memory."""
    everything = temporary_memory(None)
    assert temporary_memory("gates") <= 0.6 * everything
    assert temporary_memory("sqrt") <= 0.15 * everything
    assert temporary_memory(64) <= 0.15 * everything


@pytest.mark.parametrize(("checkpoint", "error", "message"), [
    ("all", ValueError, "unroll: checkpoint expected None, 'gates', 'sqrt' or a number of steps; got 'all'"),
    (0, ValueError, "unroll: checkpoint expected a positive integer, got 0"),
    (2.0, TypeError, "unroll: checkpoint expected a positive integer, got float"),
    (True, TypeError, "unroll: checkpoint expected a positive integer, got bool"),
])  # fmt: skip
def test_bad_checkpoints_are_refused(checkpoint, error, message, unhooked):
    with pytest.raises(error, match=message):
        run(make("gru"), checkpoint=checkpoint)


def test_checkpoint_of_gates_without_a_rule_is_refused(unhooked):
    with pytest.raises(
        NotImplementedError, match="implementation 'scan' does not support .*checkpoint=\"gates\": only a rule knows"
    ):
        run(make("gru"), checkpoint="gates", implementation="scan")
