"""Gates, their ablation, the four terms of ∂c_t/∂c_{t-1} and spectra equal the equations written in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import LSTMState, analysis
from tests.support import in_numpy, opened
from tests.support.analysis import TOLERANCE, assert_logs, close
from tests.support.registry import AFFINE, CELLS, LENGTHS, B, H, T, assert_close, loss_of, make

LSTMS = [name for name in CELLS if name.startswith("lstm") and name != "lstm-regularized"]
GATED = [name for name in CELLS if name.startswith(("lstm", "gru", "mgu"))]

# ---- equations of every variant in NumPy; `fixed` holds the gates that are not computed


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def normal(a):
    return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)


def product(a, w, scale):
    return a @ w if scale is None else normal(a @ w) * scale


def read_out(p, o, c, xp=np, phi=np.tanh):
    """Computes h from c and o."""
    u = c
    if p.norm is not None:
        by_head = c.reshape(*c.shape[:-1], -1, p.w_h.shape[1] if p.w_h.ndim == 3 else c.shape[-1])
        centred = by_head - by_head.mean(-1, keepdims=True)
        u = (centred / xp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(c.shape)
        u = u * p.norm.scale_c + p.norm.offset_c
    m = o * phi(u)
    return m if p.w_proj is None else m @ p.w_proj


def lstm_step(p, state, x, fixed, sigma=sigmoid, phi=np.tanh):
    scale_x, scale_h = (None, None) if p.norm is None else p.norm[:2]
    a = product(x, p.w_x, scale_x) + product(state.h, p.w_h, scale_h) + (0 if p.b is None else p.b)
    *a_i, a_f, a_g, a_o = np.split(a, a.shape[-1] // state.c.shape[-1], axis=-1)
    *p_i, p_f, p_o = [0.0] * (len(a_i) + 2) if p.peephole is None else p.peephole
    f = fixed.get("f", sigma(a_f + p_f * state.c))
    i = fixed.get("i", sigma(a_i[0] + p_i[0] * state.c) if a_i else 1 - f)
    g = phi(a_g)
    c = f * state.c + i * g
    o = fixed.get("o", sigma(a_o + p_o * c))
    return LSTMState(read_out(p, o, c, phi=phi), c), {"i": i, "f": f, "g": g, "o": o}


def gru_step(reset_after, p, h, x, fixed, sigma=sigmoid, phi=np.tanh):
    scale_x, scale_h = (None, None) if p.norm is None else p.norm
    both = 2 * h.shape[-1]
    x_r, x_z, x_n = np.split(product(x, p.w_x, scale_x) + (0 if p.b is None else p.b), 3, axis=-1)
    if reset_after:
        h_r, h_z, h_n = np.split(product(h, p.w_h, scale_h), 3, axis=-1)
    else:
        h_r, h_z = np.split(product(h, p.w_h[:, :both], None if scale_h is None else scale_h[:both]), 2, axis=-1)
    r, z = fixed.get("r", sigma(x_r + h_r)), fixed.get("z", sigma(x_z + h_z))
    if reset_after:
        n = phi(x_n + r * (h_n + (0 if p.b_hn is None else p.b_hn)))
    else:
        n = phi(x_n + product(r * h, p.w_h[:, both:], None if scale_h is None else scale_h[both:]))
    return (1 - z) * n + z * h, {"r": r, "z": z, "n": n}


def mgu_step(p, h, x, fixed, sigma=sigmoid, phi=np.tanh):
    (x_f, x_n), (w_f, w_n) = np.split(x @ p.w_x + p.b, 2, axis=-1), np.split(p.w_h, 2, axis=-1)
    f = fixed.get("f", sigma(x_f + h @ w_f))
    n = phi(x_n + (f * h) @ w_n)
    return (1 - f) * h + f * n, {"f": f, "n": n}


def by_hand(name, case, fixed=None):
    """States after each step, and gates, with leaves `(T, B, ·)`."""
    step = {"lstm": lstm_step, "gru": functools.partial(gru_step, "before" not in name), "mgu": mgu_step}[
        name[:4].strip("-")
    ]
    step = functools.partial(step, **dict(zip(("sigma", "phi"), in_numpy.activations(name), strict=True)))
    if "heads" in name:
        one_head = step
        step = lambda p, s, x, fixed: in_numpy.by_head(lambda _, *own: one_head(*own, fixed), name, p, s, x)  # noqa: E731
    p, state, xs = jax.tree.map(np.asarray, (case.params, case.state, case.xs))
    zoneout = 0.3 if name == "lstm-regularized" else 0.0
    states, gates = [], []
    for x in xs:
        after, found = step(p, state, x, fixed or {})
        state = jax.tree.map(lambda old, new: zoneout * old + (1 - zoneout) * new, state, after)
        states.append(state)
        gates.append(found)
    stacked = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
    return stacked(states), stacked(gates)


case_of = functools.cache(make)


# ---- gates


@pytest.mark.parametrize("name", GATED)
def test_gate_values_follow_the_equations(name, x64):
    case = case_of(name)
    _, gates = by_hand(name, case)
    found = analysis.gate_values(case.cell, case.params, case.xs, case.state)
    assert "".join(found) == {"l": "ifgo", "g": "rzn", "m": "fn"}[name[0]]
    jax.tree.map(close, dict(found), gates)
    statistics = analysis.gate_statistics(case.cell, case.params, case.xs, case.state)
    assert set(statistics) == set(gates) - {"g", "n"}
    for gate, got in statistics.items():
        rows = gates[gate].reshape(-1, H)
        close(got.mean, rows.mean(0))
        close([got.below, got.above], [(rows < 0.1).mean(0), (rows > 0.9).mean(0)])
        np.testing.assert_array_equal(got.histogram, [np.histogram(unit, 20, (0, 1))[0] for unit in rows.T])
        if gate == ("z" if name.startswith("gru") else "f"):
            with np.errstate(divide="ignore"):  # a hard sigmoid is 0
                close(got.retention_time, -1 / np.log(1 - rows if name.startswith("mgu") else rows).mean(0))
        else:
            assert got.retention_time is None


def affine_gates(name, p, xs):
    """The gates of a cell whose step is affine in the state, and the log of what a step keeps."""
    a = xs @ p.w_x + p.b
    if name == "min_gru":
        z, n = np.split(a, 2, -1)
        return {"z": sigmoid(z), "n": n}, np.log(1 - sigmoid(z))
    if name == "min_lstm":
        i, f, n = np.split(a, 3, -1)
        total = sigmoid(i) + sigmoid(f)
        return {"i": sigmoid(i) / total, "f": sigmoid(f) / total, "n": n}, np.log(sigmoid(f) / total)
    blocks = zip(np.split(a, len(p.w_gates), -1), p.w_gates, strict=True)
    r, i = (np.concatenate(part, -1) for part in zip(*(np.split(u @ w, 2, -1) for u, w in blocks), strict=True))
    r, i = (sigmoid(part + b) for part, b in zip((r, i), np.split(p.b_gates, 2), strict=True))
    log_a = -8 * r * np.log1p(np.exp(p.decay))
    return {"i": i, "r": r, "a": np.exp(log_a)}, log_a


@pytest.mark.parametrize(("name", "kept"), [("min_gru", "z"), ("min_lstm", "f"), ("rg_lru", "a")])
def test_gates_of_affine_cells_equal_numpy(name, kept, x64):
    case, valid = case_of(name), np.arange(T)[:, None] < LENGTHS
    gates, log_kept = affine_gates(name, jax.tree.map(np.asarray, case.params), np.asarray(case.xs))
    found = analysis.gate_values(case.cell, case.params, case.xs, case.state, lengths=LENGTHS)
    assert list(found) == list(gates)
    jax.tree.map(close, dict(found), {gate: np.where(valid[..., None], v, 0) for gate, v in gates.items()})
    statistics = analysis.gate_statistics(case.cell, case.params, case.xs, case.state, lengths=LENGTHS)
    assert set(statistics) == set(gates) - {"n"}
    for gate, got in statistics.items():
        close(got.mean, gates[gate][valid].mean(0))
        if gate == kept:
            close(got.retention_time, -1 / log_kept[valid].mean(0))
        else:
            assert got.retention_time is None
    with pytest.raises(NotImplementedError, match="ablate_gates: cell expected .* that read the state"):
        analysis.ablate_gates(case.cell, "z", 0.5)


def test_gates_of_an_slstm_equal_numpy(x64):
    case = case_of("slstm")
    p, state, xs = jax.tree.map(np.asarray, (case.params, case.state, case.xs))
    wanted = []
    for x in xs:
        a_i, a_f, a_z, a_o = np.split(x @ p.w_x + state.h @ p.w_h + p.b, 4, -1)
        kept = np.log(sigmoid(a_f)) + state.m
        state = in_numpy.step("slstm", p, state, x)[0]
        gates = {"i": np.exp(a_i - state.m), "f": np.exp(kept - state.m), "z": np.tanh(a_z), "o": sigmoid(a_o)}
        wanted.append(gates)
    gates = {gate: np.stack([step[gate] for step in wanted]) for gate in "ifzo"}
    found = analysis.gate_values(case.cell, case.params, case.xs, case.state)
    assert list(found) == list(gates)
    jax.tree.map(close, dict(found), gates)
    np.testing.assert_array_equal(np.maximum(found["i"], found["f"]), 1)
    statistics = analysis.gate_statistics(case.cell, case.params, case.xs, case.state)
    assert list(statistics) == ["i", "f", "o"]
    for gate, got in statistics.items():
        close(got.mean, gates[gate].mean((0, 1)))
        assert got.retention_time is None
    with pytest.raises(NotImplementedError, match="ablate_gates: cell expected .* are σ"):
        analysis.ablate_gates(case.cell, "f", 0.5)


@pytest.mark.parametrize(("name", "kept"), [("lstm", "f"), ("gru", "z"), ("mgu", "f")])
def test_gate_statistics_of_padded_sequences_equal_numpy(name, kept, x64):
    case = case_of(name)
    case = case._replace(params=jax.tree.map(lambda p: 3 * p, case.params))
    _, gates = by_hand(name, case)
    poisoned = jnp.where((np.arange(T)[:, None] < LENGTHS)[..., None], case.xs, jnp.nan)
    found = analysis.gate_statistics(
        case.cell, case.params, poisoned, case.state, lengths=LENGTHS, low=0.2, high=0.7, bins=8
    )
    values = analysis.gate_values(case.cell, case.params, poisoned, case.state, lengths=LENGTHS)
    assert not any(np.asarray(value)[np.arange(T)[:, None] >= LENGTHS].any() for value in values.values())
    assert set(found) == set(gates) - {"g", "n"}
    for gate, got in found.items():
        rows = gates[gate][np.arange(T)[:, None] < LENGTHS]
        assert rows.shape == (LENGTHS.sum(), H)
        close(got.mean, rows.mean(0))
        close(got.below, (rows < 0.2).mean(0))
        close(got.above, (rows > 0.7).mean(0))
        np.testing.assert_array_equal(got.histogram, [np.histogram(unit, 8, (0, 1))[0] for unit in rows.T])
        if gate == kept:
            close(got.retention_time, -1 / np.log(1 - rows if name == "mgu" else rows).mean(0))
        else:
            assert got.retention_time is None
    nothing = analysis.gate_statistics(case.cell, case.params, case.xs, lengths=np.zeros(B, np.int32))
    assert np.isnan(nothing[kept].mean).all()
    assert not nothing[kept].histogram.any()


def test_constant_gates_have_exact_statistics(x64):
    case = case_of("lstm")
    for value, time in ((1.0, np.inf), (0.0, 0.0), (np.exp(-0.1), 10.0)):
        cell = analysis.ablate_gates(case.cell, "f", value)
        found = analysis.gate_statistics(cell, case.params, case.xs)["f"]
        np.testing.assert_allclose(found.retention_time, np.full(H, time), rtol=1e-12)
        assert (np.asarray(found.above) == float(value > 0.9)).all()
        assert found.histogram[0].tolist() == [T * B * (k == min(int(value * 20), 19)) for k in range(20)]
    mean = analysis.gate_statistics(case.cell, case.params, case.xs)["f"].mean
    at_its_mean = analysis.gate_values(analysis.ablate_gates(case.cell, "f", mean), case.params, case.xs)["f"]
    np.testing.assert_allclose(at_its_mean, np.broadcast_to(mean, (T, B, H)), rtol=1e-12)


# ---- ablation

ABLATED = [
    ("lstm", "f", 1.0), ("lstm", "i", 0.25), ("lstm", "o", 0.0), ("lstm-projection", "f", 0.0),
    ("lstm-peephole", "i", 0.7), ("lstm-peephole", "o", 1.0), ("lstm-coupled", "f", 0.3), ("lstm-layer-norm", "i", 0.6),
    ("lstm-all", "o", 0.4), ("gru", "r", 1.0), ("gru", "z", 0.2), ("gru-reset-before", "r", 0.3),
    ("gru-layer-norm", "z", 0.0), ("gru-reset-before-layer-norm", "r", 0.5), ("mgu", "f", 0.8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gate", "value"), ABLATED)
def test_ablated_cell_follows_the_equations_with_the_gate_fixed(name, gate, value, x64):
    case = case_of(name)
    units = np.clip(value + np.linspace(0, 0.2, H), 0, 1) if 0 < value < 1 else value  # one value per unit
    states, _ = by_hand(name, case, {gate: np.broadcast_to(units, (B, H))})
    cell = analysis.ablate_gates(case.cell, gate, units)
    _, ys, found = jaxrnn.unroll(cell, case.params, case.xs, case.state, return_states=True)
    jax.tree.map(close, found, states)
    close(ys, jax.tree.leaves(states)[0])


def gradients(case, **options):
    """Gradients of the hand-written rule, after a check that automatic differentiation gives the same."""
    operands = (case.params, case.xs, case.state)
    ways = [jax.jit(jax.grad(loss_of(case, way, **options), (0, 1, 2)))(*operands) for way in ("bptt", "scan")]
    assert_close(*ways)
    return ways[0][0]


def test_ablated_gates_receive_no_gradient(x64):
    """No gradient reaches params that only the ablated gate reads."""
    case = case_of("lstm-peephole")
    found = gradients(case._replace(cell=analysis.ablate_gates(case.cell, "i", 0.7)), lengths=LENGTHS)
    for leaf in (found.w_x, found.w_h, found.b, found.peephole.reshape(-1)):
        assert not leaf[..., :H].any()
        assert leaf[..., H:].all()
    case = case_of("gru-reset-before-layer-norm")
    found = gradients(case._replace(cell=analysis.ablate_gates(case.cell, "r", 0.3)))
    for leaf in (found.norm.scale_x, found.norm.scale_h, found.b):
        assert not leaf[:H].any()
        assert leaf[H:].all()
    assert found.w_h.all()  # through the mean over all entries
    case = case_of("lstm-heads")
    found = gradients(case._replace(cell=analysis.ablate_gates(case.cell, "f", 0.3)), lengths=LENGTHS)
    by_gate = np.asarray(found.w_h).reshape(2, H // 2, 4, H // 2)
    assert [bool(by_gate[:, :, k].any()) for k in range(4)] == [True, False, True, True]
    assert by_gate[:, :, [0, 2, 3]].all()
    cells, params = (case.cell, jaxrnn.lstm(H)), (case.params, jaxrnn.merge_heads(case.params))
    close(
        *(jaxrnn.unroll(analysis.ablate_gates(c, "f", 0.3), p, case.xs)[1] for c, p in zip(cells, params, strict=True))
    )


def test_ablated_cells_compose(x64):
    """Two gates of one cell are ablated, in a stack, in mixed precision, and with noise."""
    case = case_of("lstm-coupled")
    both = analysis.ablate_gates(analysis.ablate_gates(case.cell, "f", 0.3), "o", 1.0)
    states, _ = by_hand("lstm-coupled", case, {"f": np.full((B, H), 0.3), "o": np.ones((B, H))})
    net = jaxrnn.stack([both])
    close(net.unroll((case.params,), case.xs, (case.state,))[1], states.h)
    low = jaxrnn.unroll(both, case.params, case.xs, case.state, compute_dtype=jnp.bfloat16)[1]
    assert 0 < np.abs(low - states.h).max() < 0.05
    noisy = jaxrnn.regularize(both, recurrent_dropout=0.5)
    close(jaxrnn.unroll(noisy, case.params, case.xs, case.state, key=None)[1], states.h)
    found = gradients(case._replace(cell=noisy), key=jax.random.key(0))
    assert not found.w_h[:, :H].any()
    assert found.w_h[:, H : 2 * H].any()


# ---- the four terms


@pytest.mark.parametrize("name", LSTMS)
def test_four_terms_sum_to_the_derivative(name, x64):
    case = case_of(name)
    states, gates = by_hand(name, case)
    p, c, o = case.params, states.c[:-1], gates["o"][:-1]
    terms = analysis.cell_state_jacobian_terms(case.cell, p, case.xs, case.state)

    def memory(c, o, x):
        return case.cell.step(p, LSTMState(read_out(p, o, c, jnp, opened.activations(name)[1]), c), x)[0].c

    exact = jax.jit(jax.vmap(jax.vmap(jax.jacobian(memory))))(jnp.asarray(c), jnp.asarray(o), case.xs[1:])
    close(sum(terms), exact)
    f, i, g = (gates[k][1:] for k in "fig")
    units = np.eye(H)
    close(terms.highway, f[..., None] * units)
    if name in ("lstm", "lstm-peephole", "lstm-projection"):  # each term by its formula
        slope = o * (1 - np.tanh(c) ** 2)
        weights = {
            k: w if p.w_proj is None else p.w_proj @ w for k, w in zip("ifgo", np.split(p.w_h, 4, 1), strict=True)
        }
        peep = dict.fromkeys("ifgo", 0.0) if p.peephole is None else dict(zip("ifo", p.peephole, strict=True), g=0.0)
        factors = {"f": c * f * (1 - f), "i": g * i * (1 - i), "g": i * (1 - g**2)}
        for gate, term in zip("fig", (terms.forget, terms.input, terms.candidate), strict=True):
            inner = np.asarray(weights[gate]).T * slope[..., None, :] + np.asarray(peep[gate]) * units
            close(term, factors[gate][..., None] * inner)
    if name == "lstm-coupled":
        close(terms.forget / c[..., None], -terms.input / g[..., None])


def test_terms_support_padding_noise_ablation_and_reduce(x64):
    case = case_of("lstm")
    operands = (case.params, case.xs, case.state)
    whole = analysis.cell_state_jacobian_terms(case.cell, *operands)
    padded = analysis.cell_state_jacobian_terms(case.cell, *operands, lengths=LENGTHS)
    for k, length in enumerate(LENGTHS):
        valid = max(length - 1, 0)
        jax.tree.map(lambda a, b, k=k, n=valid: np.testing.assert_array_equal(a[:n, k], b[:n, k]), padded, whole)
        assert (np.asarray(sum(padded))[valid:, k] == np.eye(H)).all()
        assert (np.asarray(padded.highway)[valid:, k] == np.eye(H)).all()
    quiet = jaxrnn.regularize(case.cell, recurrent_dropout=0.5)
    jax.tree.map(close, analysis.cell_state_jacobian_terms(quiet, *operands), whole)
    ablated = analysis.cell_state_jacobian_terms(analysis.ablate_gates(case.cell, "f", 1.0), *operands)
    assert not ablated.forget.any()
    assert (np.asarray(ablated.highway) == np.eye(H)).all()
    squares = analysis.cell_state_jacobian_terms(case.cell, *operands, reduce=lambda term: jnp.sum(term**2))
    close(squares.candidate, (np.asarray(whole.candidate) ** 2).sum((-1, -2)))
    for time in (0, 1):
        none = analysis.cell_state_jacobian_terms(case.cell, case.params, case.xs[:time], case.state)
        assert none.forget.shape == (0, B, H, H)


# ---- spectra


@pytest.mark.parametrize("name", [name for name in CELLS if name not in AFFINE])
def test_recurrent_spectrum_equals_numpy(name, x64):
    case = case_of(name)
    found = analysis.recurrent_spectrum(case.params, powers=3)
    w_h, names = np.asarray(case.params.w_h), list(found)
    lstm = "fgo" if name in opened.COUPLED else "ifgo"
    known = {"gru": "rzn", "mgu": "fn", "lstm": lstm, "rnn": "h", "indrnn": "h"}.get(name.split("-")[0])
    assert names == list(known or case.cell.config.gates)
    w_proj = getattr(case.params, "w_proj", None)
    rank = w_h.shape[-2:][0] if w_proj is None else w_proj.shape[1]
    matrices = [np.diag(w_h)] if w_h.ndim == 1 else np.split(w_h, len(names), axis=-1)
    by_gate = list(found.values())
    if w_h.ndim == 3:  # one spectrum for each head
        by_gate = [jax.tree.map(lambda leaf, n=n: leaf[n], got) for got in by_gate for n in range(len(w_h))]
        matrices = [w for blocks in matrices for w in blocks]
    for got, w in zip(by_gate, matrices, strict=True):
        moduli = np.abs(got.eigenvalues)
        if w_proj is not None:
            inner = np.sort(np.abs(np.linalg.eigvals(w @ np.asarray(w_proj))))[::-1]
            np.testing.assert_allclose(moduli[:rank], inner, rtol=TOLERANCE)
            assert (moduli[rank:] < 1e-12).all()
            w = np.asarray(w_proj) @ w
        assert (np.asarray(got.log_power_singular_values)[:, rank:] == -np.inf).all()
        for k in range(3):
            power = np.linalg.svd(np.linalg.matrix_power(w, k + 1), compute_uv=False)[:rank]
            assert_logs(got.log_power_singular_values[k, :rank], np.log(power))
        close(got.singular_values, np.linalg.svd(w, compute_uv=False))
        close(np.poly(np.asarray(got.eigenvalues)).real, np.poly(w))
        assert (np.diff(moduli) <= 1e-12).all()
    without = analysis.recurrent_spectrum(case.params)[names[0]].log_power_singular_values
    assert without.shape == (*w_h.shape[:-2], 0, w.shape[0])


@pytest.mark.parametrize("size", [1, 2])
def test_powers_of_the_smallest_matrices_equal_numpy(size, x64):
    w = np.random.default_rng(0).standard_normal((size, size))
    found = analysis.recurrent_spectrum(jaxrnn.RNNParams(jnp.ones((1, size)), jnp.asarray(w)), powers=3)["h"]
    powers = [np.linalg.svd(np.linalg.matrix_power(w, k), compute_uv=False) for k in (1, 2, 3)]
    assert_logs(found.log_power_singular_values, np.log(powers))


# ---- tracing and bfloat16


@pytest.mark.parametrize("name", ["lstm-all", "gru"])
def test_every_function_can_be_traced(name):
    """Params, inputs and lengths are all traced; nothing is compiled."""
    case = make(name, dtype=jnp.float32)
    ablated = analysis.ablate_gates(case.cell, "o" if name == "lstm-all" else "z", 0.5)
    net = jaxrnn.stack([jaxrnn.Bidirectional(case.cell, ablated)], merge="sum")

    def everything(params, xs, state, lengths):
        operands, both = (case.cell, params, xs, state), jaxrnn.Bidirectional(params, params)
        terms = analysis.cell_state_jacobian_terms(*operands, lengths=lengths) if name == "lstm-all" else None
        return (
            terms,
            analysis.state_jacobians(*operands, lengths=lengths),
            analysis.cotangent_norms(*operands, cotangent=state, lengths=lengths),
            analysis.gate_statistics(ablated, params, xs, state, lengths=lengths),
            analysis.gradient_flow(net, (both,), xs, lambda finals, ys: jnp.sum(ys), lengths=lengths),
            analysis.recurrent_spectrum(params, powers=2),
        )

    made = jax.eval_shape(everything, case.params, case.xs, case.state, jnp.asarray(LENGTHS))
    assert all(leaf.dtype in (jnp.float32, jnp.int32, jnp.complex64) for leaf in jax.tree.leaves(made))
    assert jax.tree.leaves(made[4].log_state_norms[0].backward)[0].shape == (T, B)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_of_many_half_precision_values_equal_numpy(dtype):
    """More steps than float16 can count."""
    cell = jaxrnn.gru(2)
    params = cell.init(jax.random.key(0), 2, dtype)
    xs = jax.random.normal(jax.random.key(1), (300, 300, 2), dtype)
    found = analysis.gate_statistics(cell, params, xs)["z"]
    z = np.asarray(analysis.gate_values(cell, params, xs)["z"], np.float64).reshape(-1, 2)
    for got, wanted in zip(
        (found.mean, found.below, found.above, found.retention_time),
        (z.mean(0), (z < 0.1).mean(0), (z > 0.9).mean(0), -1 / np.log(z).mean(0)),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3)
    histogram = np.stack([np.histogram(unit, 20, (0, 1))[0] for unit in z.T])
    np.testing.assert_array_equal(found.histogram, histogram)


def test_bfloat16_is_factorised_in_float32():
    case = make("gru", (), dtype=jnp.bfloat16)
    single = jax.tree.map(lambda p: p.astype(jnp.float32), case.params)
    for got, wanted in zip(*(analysis.recurrent_spectrum(p).values() for p in (case.params, single)), strict=True):
        np.testing.assert_array_equal(got.singular_values, wanted.singular_values)
    growth = analysis.lyapunov_exponents(case.cell, case.params, case.xs, case.state).growth
    jacobians = np.asarray(analysis.state_jacobians(case.cell, case.params, case.xs, case.state), np.float64)
    np.testing.assert_allclose(growth.sum(-1), np.linalg.slogdet(jacobians)[1], atol=0.1)
