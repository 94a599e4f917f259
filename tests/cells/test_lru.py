"""The linear recurrent unit: its initial eigenvalues, its complex state, and what refuses it, in words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis, interop
from tests.support import in_numpy
from tests.support.programs import operands_of
from tests.support.registry import (
    SCENARIOS,
    B,
    H,
    I,
    T,
    assert_close,
    cell_of,
    make,
    numpy_of,
    output_of,
    quick_jit,
    run,
)

MASKED = SCENARIOS["mask-resets"]
KEY = jax.random.key(0)


def drawn(model, size, dtype=jnp.float32):
    return quick_jit(lambda key: model.init(key, size, dtype))(KEY)


@pytest.mark.parametrize(("r_min", "r_max", "phase"), [(0.0, 1.0, 2 * math.pi), (0.9, 0.999, 0.3), (0.999, 1.0, 1.0)])
def test_eigenvalues_start_on_the_ring(r_min, r_max, phase):
    """Uniform in area: |λ|² is uniform from r_min² to r_max². γ is √(1 - |λ|²) to the last digits, where 1 - |λ|² is small too."""
    params = jaxrnn.lru(4096, r_min=r_min, r_max=r_max, max_phase=phase).init(KEY, 1)
    nu, theta, gamma = (np.asarray(p, np.float64) for p in (params.nu, params.theta, params.gamma_log))
    radius, angle = np.exp(-np.exp(nu)), np.exp(theta)
    assert r_min - 1e-6 <= radius.min() <= radius.max() < 1
    assert radius.max() <= r_max + 1e-6
    assert angle.min() > 0
    assert 0.99 * phase < angle.max() <= phase * (1 + 1e-6)
    share = (radius**2 - r_min**2) / (r_max**2 - r_min**2)
    for found in (share, angle / phase):
        np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    np.testing.assert_allclose(np.exp(2 * gamma), -np.expm1(-2 * np.exp(nu)), rtol=1e-5)


def test_parameters_start_with_the_variances_of_the_paper():
    params = numpy_of(drawn(jaxrnn.lru(64, output_size=48), 32))
    b_re, b_im = np.split(params.w_x, 2, -1)
    c_re, c_im = np.split(params.w_y, 2)
    for part, variance in ((b_re, 1 / 64), (b_im, 1 / 64), (c_re, 1 / 64), (c_im, 1 / 64), (params.d, 1 / 32)):
        np.testing.assert_allclose(part.var(), variance, rtol=0.12)
    assert (params.w_y.shape, params.d.shape) == ((128, 48), (32, 48))
    assert jaxrnn.count_params(params) == 64 * (2 * 32 + 2 * 48 + 3) + 32 * 48
    assert drawn(jaxrnn.lru(5), 3).d.shape == (3, 5)


def test_initial_states_keep_their_size():
    """With white noise as input, γ keeps the mean of |s|² near that of |x B|²."""
    cell = jaxrnn.lru(64, r_min=0.5, r_max=0.99)
    params = drawn(cell, 8)
    xs = np.random.default_rng(0).standard_normal((400, 8, 8)).astype(np.float32)
    states = quick_jit(lambda *given: jaxrnn.unroll(cell, *given, return_states=True)[2])(params, xs)
    assert 0.8 < np.mean(np.abs(states[200:]) ** 2) < 1.2


def test_complex_dtypes_follow_the_real_ones(x64):
    cell, case = cell_of("lru"), make("lru", dtype=jnp.float32)
    for dtype, wanted in ((jnp.float32, jnp.complex64), (jnp.float64, jnp.complex128)):
        for state in (None, case.state.astype(jnp.complex64), case.state.astype(jnp.complex128)):
            final, ys = jax.eval_shape(
                lambda xs, params, state=state: jaxrnn.unroll(cell, params, xs, state),
                case.xs.astype(dtype),
                jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), case.params),
            )
            assert (final.dtype, ys.dtype) == (wanted, dtype)
        assert cell.initial_state((2,), dtype).dtype == wanted


def test_networks_read_the_real_output_and_stream_it(x64):
    """Two layers in both directions equal NumPy; steps and `generate` equal `unroll`."""
    net = jaxrnn.stack([jaxrnn.lru(H, output_size=2), jaxrnn.lru(3)], bidirectional=True)
    params, xs = drawn(net, I, jnp.float64), make("lru").xs
    _, ys = quick_jit(net.unroll)(params, xs)
    below = np.asarray(xs)
    for k, size in enumerate((H, 3)):
        ways = zip(params[k], (False, True), strict=True)
        zeros = np.zeros((B, size), complex)
        below = np.concatenate([in_numpy.unroll("lru", own, below, zeros, reverse=way)[1] for own, way in ways], -1)
    assert_close(ys, below)

    cell = jaxrnn.lru(H, output_size=I)
    params, state = drawn(cell, I, jnp.float64), make("lru").state
    states, ys, inputs = jaxrnn.generate(cell, params, state, xs[0], lambda y, _: jnp.sin(y), T, return_inputs=True)
    read = np.concatenate([np.asarray(xs)[:1], inputs[:-1]])
    assert_close((states, ys), in_numpy.unroll("lru", params, read, state)[:2])


def test_saved_cells_are_loaded(tmp_path):
    cell = jaxrnn.lru(H, output_size=2, r_min=0.5, max_phase=1.0)
    params = drawn(cell, I)
    jaxrnn.save(tmp_path / "lru.safetensors", cell, params)
    again, loaded = jaxrnn.load(tmp_path / "lru.safetensors")
    assert again.config == cell.config
    assert_close(loaded, params)
    net, _ = jaxrnn.load(tmp_path / "lru.safetensors", network=jaxrnn.lru(H, output_size=2))  # drawn from another ring
    assert net.config.r_min == 0.0


def complex_params(name):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), make(name, dtype=jnp.float32).params)


def refused(call, error, words):
    return pytest.param(call, error, words, id=words[:50])


@pytest.mark.parametrize(("call", "error", "words"), [
    refused(lambda: cell_of("lru").init(KEY, I, jnp.bfloat16), TypeError, "lru.init: dtype expected float32 or float64 for a complex state, got bfloat16"),
    refused(lambda: cell_of("lru").initial_state((2,), jnp.float16), TypeError, "lru.initial_state: dtype expected float32 or float64 for a complex state, got float16"),
    refused(lambda: run(make("lru")._replace(xs=jnp.ones((T, B, I), jnp.bfloat16), params=jax.tree.map(jnp.bfloat16, make("lru").params))), TypeError,
            "unroll: params and xs expected float32 or float64 for a complex state, got bfloat16"),
    refused(lambda: run(make("lru")._replace(state=jnp.zeros((B, H)))), TypeError, r"unroll: state expected complex arrays, got float32\[5, 4\]; add 0j"),
    refused(lambda: run(make("rg_lru")._replace(state=jnp.zeros((B, H), complex))), TypeError, "unroll: state expected floating-point arrays, got complex64"),
    refused(lambda: run(make("lru"), resets=MASKED["resets"], reset_state=jnp.zeros((B, H))), TypeError, "unroll: reset_state expected complex arrays, got float32"),
    refused(lambda: run(make("lru")._replace(params=complex_params("lru"))), TypeError, "unroll: params.w_x expected floating-point numbers, got complex64"),
    refused(lambda: run(make("gru")._replace(params=complex_params("gru"))), TypeError, "unroll: params.w_x expected floating-point numbers, got complex64"),
    refused(lambda: run(make("lru")._replace(xs=jnp.ones((T, B, I), complex))), TypeError, "unroll: xs expected a floating-point array, got complex64.*split them"),
    refused(lambda: run(make("lru"), clip_gradient=1.0), NotImplementedError, "unroll: clip_gradient expected None for lru.*, whose state is complex, got 1.0"),
    *(refused(lambda name=name: run(make("lru"), implementation=name), NotImplementedError, f"'{name}' does not support this call of lru.*; a complex state: it")
      for name in ("newton", "cudnn", "pallas", "pallas_interpret")),
    refused(lambda: interop.to_onnx(cell_of("lru"), make("lru").params), ValueError, "to_onnx: params expected a cell of rnn, lstm or gru, got lru.*; ONNX has no operator"),
    refused(lambda: jaxrnn.regularize(cell_of("lru"), zoneout=0.1), NotImplementedError, "regularize: cell expected one with a rule and a parameter w_h, got lru"),
    refused(lambda: jaxrnn.model_parallel(cell_of("lru"), jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))), NotImplementedError,
            "model_parallel: model expected a cell of rnn"),
    *(refused(lambda f=f: f(cell_of("lru"), *make("lru")[1:3]), NotImplementedError, f"{f.__name__}: cell expected one whose state is real, got lru")
      for f in (analysis.state_jacobians, analysis.jacobian_products, analysis.lyapunov_exponents)),
    *(refused(lambda f=f: f(cell_of("lru"), *make("lru")[1:3], key=KEY), NotImplementedError, f"{f.__name__}: cell expected one whose state is real, got lru")
      for f in (analysis.tangent_norms, analysis.cotangent_norms)),
    refused(lambda: analysis.gradient_flow(cell_of("lru"), *make("lru")[1:3], lambda final, ys: ys.sum()), NotImplementedError, "gradient_flow: cell expected one whose"),
    refused(lambda: analysis.newton_convergence(cell_of("lru"), *make("lru")[1:3]), NotImplementedError, "newton_convergence: 'newton' does not support .*; a complex state"),
    refused(lambda: analysis.gate_values(cell_of("lru"), *make("lru")[1:3]), NotImplementedError, "gate_values: cell expected"),
    refused(lambda: analysis.ablate_gates(cell_of("lru"), "f", 0.0), NotImplementedError, "ablate_gates: cell expected"),
    refused(lambda: analysis.recurrent_spectrum(make("lru").params), NotImplementedError, "recurrent_spectrum: .*its Jacobian is diag"),
    refused(lambda: analysis.cell_state_jacobian_terms(cell_of("lru"), *make("lru")[1:3]), NotImplementedError, "cell_state_jacobian_terms: cell expected an LSTM"),
    refused(lambda: jaxrnn.lru(4, r_min=1.0), ValueError, r"lru: r_min expected a number in \[0, 1\), got 1.0"),
    refused(lambda: jaxrnn.lru(4, r_min=0.5, r_max=0.4), ValueError, "lru: r_max expected a number above 0, from r_min = 0.5 to 1, got 0.4"),
    refused(lambda: jaxrnn.lru(4, max_phase=7.0), ValueError, r"lru: max_phase expected an angle in \(0, 2π\], got 7.0"),
])  # fmt: skip
@pytest.mark.usefixtures("unhooked")
def test_it_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words) as raised:
        call()
    assert len(str(raised.value)) <= 500


def test_own_cells_with_complex_states_are_refused_in_words_for_narrow_dtypes():
    own = cell_of("lru")._replace(check=None, config=None, name="mine")
    params, xs = jax.tree.map(jnp.bfloat16, (make("lru").params, make("lru").xs))
    with pytest.raises(
        TypeError, match="unroll: params and xs expected float32 or float64 for a complex state, got bfloat16"
    ):
        jaxrnn.unroll(own, params, xs)
    assert output_of(make("lru")).dtype == jnp.float32
    assert operands_of("lru")[2].dtype == jnp.complex64
