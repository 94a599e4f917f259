"""The functional API with and without `jit`, with arguments on a device and in NumPy: chex's variants of each call.

Every variant returns arrays of JAX in float64, which equal the equations in NumPy.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxrnn
from tests.support import in_numpy
from tests.support.registry import FAMILIES, LENGTHS, SCENARIOS, B, H, T, assert_close, make, random_like

variants = chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
VALID = np.arange(T)[:, None] < LENGTHS


def assert_equals(got, expected):
    """Asserts that these are arrays of JAX, which have the expected values."""
    chex.assert_tree_is_on_device(got, platform=jax.default_backend())
    assert_close(got, expected)


def case_of_stack(**options):
    """Two layers, their parameters, inputs and states."""
    net, xs = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.gru(H)], **options), make("gru").xs
    shapes = jax.eval_shape(lambda key: (net.init(key, xs.shape[-1]), net.initial_state((B,))), jax.random.key(0))
    return net, xs, *random_like(0, shapes, jnp.float64, scale=0.6)


@pytest.mark.usefixtures("x64")
class VariantsTest(chex.TestCase):
    @variants
    @parameterized.parameters("rnn", "lstm", "gru", "mgu", "indrnn")
    def test_step(self, kind):
        case = make({"rnn": "rnn-tanh"}.get(kind, kind))
        step = self.variant(getattr(jaxrnn, f"{kind}_step"))
        expected = in_numpy.step("indrnn-relu" if kind == "indrnn" else kind, case.params, case.state, case.xs[0])
        assert_equals(step(case.params, case.state, case.xs[0]), expected)

    @variants
    @parameterized.parameters(*FAMILIES)
    def test_unroll_with_lengths(self, name):
        case = make(name)

        def unroll(params, xs, state, lengths):
            return jaxrnn.unroll(case.cell, params, xs, state, lengths=lengths, reverse=True)

        expected = in_numpy.unroll(name, case.params, case.xs, case.state, mask=VALID, reverse=True)
        got = self.variant(unroll)(case.params, case.xs, case.state, jnp.asarray(LENGTHS))
        assert_equals(got, expected[:2])

    @variants
    @parameterized.parameters("bptt", "scan", "reference")
    def test_unroll_with_mask_and_resets(self, implementation):
        case, reset_state = make("gru"), make("gru", seed=7).state

        def unroll(params, xs, state, reset_state, masks):
            options = {"return_states": True, "implementation": implementation}
            return jaxrnn.unroll(case.cell, params, xs, state, reset_state=reset_state, **masks, **options)

        masks = SCENARIOS["mask-resets"]
        got = self.variant(unroll)(case.params, case.xs, case.state, reset_state, jax.tree.map(jnp.asarray, masks))
        expected = in_numpy.unroll("gru", case.params, case.xs, case.state, reset_state=reset_state, **masks)
        assert_equals(got, expected)

    @variants
    def test_stack_unroll(self):
        net, xs, params, states = case_of_stack(bidirectional=True, merge="sum")
        out, finals = xs, []
        for own, state in zip(params, states, strict=True):
            ways = [in_numpy.unroll("gru", own[k], out, state[k], mask=VALID, reverse=bool(k)) for k in range(2)]
            out = ways[0][1] + ways[1][1]
            finals.append(jaxrnn.Bidirectional(*(way[0] for way in ways)))
        unroll = self.variant(lambda params, xs, states, lengths: net.unroll(params, xs, states, lengths=lengths))
        assert_equals(unroll(params, xs, states, jnp.asarray(LENGTHS)), (tuple(finals), out))

    @variants
    def test_stack_step(self):
        net, xs, params, states = case_of_stack()
        first, y = in_numpy.step("gru", params[0], states[0], xs[0])
        second, y = in_numpy.step("gru", params[1], states[1], y)
        assert_equals(self.variant(net.step)(params, states, xs[0]), ((first, second), y))

    @variants
    def test_generate(self):
        case = make("rnn-tanh")

        def generate(params, state, x):
            next_input = lambda y, key: jnp.sin(y[:, : x.shape[-1]])  # noqa: E731
            return jaxrnn.generate(case.cell, params, state, x, next_input, 4, return_inputs=True)

        state, x, ys, inputs = case.state, np.asarray(case.xs[0]), [], []
        for _ in range(4):
            state, y = in_numpy.step("rnn-tanh", case.params, state, x)
            x = np.sin(y[:, : x.shape[-1]])
            ys.append(y)
            inputs.append(x)
        expected = (state, np.stack(ys), np.stack(inputs))
        assert_equals(self.variant(generate)(case.params, case.state, case.xs[0]), expected)

    @variants
    def test_last_output(self):
        ys = make("gru").xs
        expected = [ys[n - 1, k] if n else np.zeros(ys.shape[-1]) for k, n in enumerate(LENGTHS)]
        assert_equals(self.variant(jaxrnn.last_output)(ys, jnp.asarray(LENGTHS)), np.stack(expected))

    @variants
    def test_gradients(self):
        """Those by hand equal those of JAX."""
        case = make("lstm")

        def gradients(implementation, params, xs):
            return jax.grad(lambda *given: jnp.sum(jnp.sin(
                jaxrnn.unroll(case.cell, *given, lengths=LENGTHS, implementation=implementation)[1]
            )), (0, 1))(params, xs)  # fmt: skip

        expected = gradients("scan", case.params, case.xs)
        got = self.variant(lambda params, xs: gradients("bptt", params, xs))(case.params, case.xs)
        assert_equals(got, expected)
