"""Cells that attend: values against NumPy, gradients against a plain loop, padding, and all that runs a cell."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn.testing import check_cell
from tests.support import in_numpy
from tests.support.registry import assert_close, numpy_of, quick_jit, random_like

I, H, M, S, T, B = 3, 4, 4, 5, 6, 3  # noqa: E741
LENGTHS = np.asarray([S, 2, 0], np.int32)
STEPS = np.asarray([T, 4, 1], np.int32)
LRU = functools.partial(jaxrnn.lru, H, output_size=M)
DENSE_GRU = jaxrnn.gru(H)
# By name the cell inside, the name of its step in NumPy, and the options.
CASES = {
    "bahdanau": (DENSE_GRU, "gru", {}),
    "bahdanau-mixed": (jaxrnn.lstm(H), "lstm", {"score_size": 3, "attention_size": 2}),
    "luong": (jaxrnn.lstm(H), "lstm", {"score": "general", "attention_size": 5}),
    "luong-dot": (DENSE_GRU, "gru", {"score": "dot", "input_feeding": False}),
    "scaled-dot-previous": (jaxrnn.mgu(H), "mgu", {"score": "scaled_dot", "query": "previous"}),
    "additive-current": (jaxrnn.rnn(H), "rnn-tanh", {"query": "current"}),
    "heads": (jaxrnn.slstm(H, num_heads=2), "slstm-heads", {"score": "general"}),
    "layer-norm": (jaxrnn.gru(H, layer_norm=True), "gru-layer-norm", {}),
    "gates-of-the-input": (jaxrnn.min_gru(H), "min_gru", {"score": "general"}),
    "complex-state": (LRU(), "lru", {}),
    "complex-state-current": (LRU(), "lru", {"score": "general"}),
}


def made(name, dtype=None):
    """A cell, its parameters, and a memory, inputs and an initial state."""
    inside, _, options = CASES[name]
    cell = jaxrnn.attend(inside, M, **options)
    dtype = jnp.result_type(float) if dtype is None else dtype
    shapes = jax.eval_shape(lambda key: cell.init(key, I, jnp.float32), jax.random.key(0))
    arrays = {"memory": (B, S, M), "xs": (T, B, I)}
    params = random_like(0, shapes, dtype, 0.6)
    rest = {n: random_like(k, jax.ShapeDtypeStruct(s, dtype), dtype) for k, (n, s) in enumerate(arrays.items(), 1)}
    state = random_like(3, jax.eval_shape(lambda: cell.initial_state((B,))), dtype)
    return cell, params, rest["memory"], rest["xs"], state


def softmax_in_numpy(scores, lengths):
    shares = np.exp(scores - scores.max(-1, keepdims=True)) * (np.arange(scores.shape[-1]) < lengths[:, None])
    return shares / np.maximum(shares.sum(-1, keepdims=True), 1e-300)


def loop_in_numpy(name, params, memory, xs, state):
    """The papers' equations, step by step: outputs, weights and the last state of the cell inside."""
    _, step, options = CASES[name]
    p, (memory, xs, state) = numpy_of(params), numpy_of((memory, xs, state))
    score = options.get("score", "additive")
    before = options.get("query", "previous" if score == "additive" else "current") == "previous"
    feeds = options.get("input_feeding", not before)

    def attended(h):
        if score == "additive":
            e = np.tanh((h @ p.w_q)[:, None] + memory @ p.w_k) @ p.v
        else:
            e = np.einsum("bsk,bk->bs", memory if p.w_k is None else memory @ p.w_k, h)
        alpha = softmax_in_numpy(e / np.sqrt(M) if score == "scaled_dot" else e, LENGTHS)
        return alpha, np.einsum("bs,bsm->bm", alpha, memory)

    cell, ys, alphas, fed = state.cell, [], [], state.output
    h = state.query if state.query is not None else jax.tree.leaves(cell)[0]
    for x in xs:
        alpha, context = attended(h)
        extra = [context] if before else [fed] if feeds else []
        cell, h = in_numpy.step(step, p.cell, cell, np.concatenate([x, *extra], -1))
        alpha, context = (alpha, context) if before else attended(h)
        y = np.concatenate([context, h], -1)
        fed = y = y if p.w_c is None else np.tanh(y @ p.w_c)
        ys.append(y)
        alphas.append(alpha)
    return np.stack(ys), np.stack(alphas), cell


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_weights_equal_the_papers_equations_in_numpy(name, x64):
    cell, params, memory, xs, state = made(name)
    bound = jaxrnn.with_memory(cell, params, memory, lengths=LENGTHS)
    final, ys = quick_jit(lambda *given: jaxrnn.unroll(cell, *given))(bound, xs, state)
    alphas = quick_jit(lambda *given: jaxrnn.attention_weights(cell, *given))(bound, xs, state)
    wanted = loop_in_numpy(name, params, memory, xs, state)
    assert_close((ys, alphas, final.cell), wanted)
    assert ys.shape[-1] == cell.output_size
    np.testing.assert_array_equal(np.asarray(alphas)[:, 2], 0.0)  # the memory of length 0


def loss_of(cell, implementation, lengths, memory_lengths, **options):
    def loss(params, memory, xs, state):
        bound = jaxrnn.with_memory(cell, params, memory, lengths=memory_lengths)
        found = jaxrnn.unroll(cell, bound, xs, state, lengths=lengths, implementation=implementation, **options)
        final, ys = found[:2]
        shown = final.cell.h if "slstm" in cell.name else final  # whose n and m are no outputs
        return sum(jnp.sum(jnp.sin(jnp.abs(leaf))) for leaf in jax.tree.leaves((shown, ys))) + jnp.sum(ys[1:] * ys[:-1])

    return quick_jit(jax.grad(loss, (0, 1, 2, 3)))


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_hand_equal_a_plain_loop_differentiated_by_jax(name, x64):
    """By parameters, memory, inputs and initial state; "reference" is a Python loop over the step."""
    cell, *operands = made(name)
    by_hand, by_jax = (loss_of(cell, i, STEPS, LENGTHS)(*operands) for i in ("bptt", "reference"))
    assert_close(by_hand, by_jax)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(by_hand[:3]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("bahdanau", {"checkpoint": "gates"}), ("luong", {"checkpoint": 2}), ("bahdanau-mixed", {"reverse": True}),
     ("luong", {"truncate": 2, "clip_gradient": 0.1}), ("gates-of-the-input", {"checkpoint": "gates"}),
     ("bahdanau", {"resets": np.asarray([[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]], bool)})],
)  # fmt: skip
def test_options_of_unroll_have_the_gradients_of_the_plain_scan(name, options, x64):
    cell, *operands = made(name)
    by_scan = {"checkpoint": 3} if options.get("checkpoint") == "gates" else options
    by_hand = loss_of(cell, "bptt", STEPS, LENGTHS, **options)(*operands)
    assert_close(by_hand, loss_of(cell, "scan", STEPS, LENGTHS, **by_scan)(*operands))


@pytest.mark.parametrize("name", ["bahdanau", "luong"])
def test_padding_of_the_memory_is_not_read(name, x64):
    """NaN there changes neither values nor gradients; a memory of length 0 has a finite gradient, which is 0."""
    cell, params, memory, xs, state = made(name)
    outside = np.arange(S) >= LENGTHS[:, None]
    spoilt = jnp.where(outside[..., None], jnp.nan, memory)
    clean, dirty = (loss_of(cell, None, None, LENGTHS)(params, each, xs, state) for each in (memory, spoilt))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(dirty))
    np.testing.assert_array_equal(np.asarray(dirty[1])[outside], 0.0)
    mask = jaxrnn.with_memory(cell, params, spoilt, mask=~outside).memory
    for a, b in zip(mask, jaxrnn.with_memory(cell, params, spoilt, lengths=LENGTHS).memory, strict=True):
        np.testing.assert_array_equal(a, b)
    short = jaxrnn.with_memory(cell, params, memory[1:2, :2])  # as if there were no padding
    long = jaxrnn.with_memory(cell, params, spoilt[1:2], lengths=LENGTHS[1:2])
    one = jax.tree.map(lambda leaf: leaf[1:2], state)
    assert_close(*(jaxrnn.unroll(cell, bound, xs[:, 1:2], one)[1] for bound in (short, long)))


def test_a_memory_without_positions_gives_a_context_of_zero():
    cell, params, _, xs, state = made("bahdanau", jnp.float32)
    _, ys = jaxrnn.unroll(cell, jaxrnn.with_memory(cell, params, jnp.zeros((B, 0, M))), xs, state)
    np.testing.assert_array_equal(ys[..., :M], 0.0)
    assert np.isfinite(ys).all()


@pytest.mark.parametrize("name", ["luong", "gates-of-the-input"])
def test_the_rule_keeps_the_contract_of_a_cell(name):
    cell, params, memory, *_ = made(name, jnp.float32)
    report = check_cell(cell, I, params=jaxrnn.with_memory(cell, params, memory[0]))
    assert report.passed[-3:] == ("rule.matrices", "unroll", "dtypes")
    assert report.notes == ()


def test_noise_of_the_cell_inside_is_drawn_and_has_the_gradients_of_the_plain_scan(x64):
    _, _, memory, xs, _ = made("bahdanau")
    noisy = (
        jaxrnn.regularize(jaxrnn.lstm(H), input_dropout=0.3, recurrent_dropout=0.3, dropconnect=0.2, zoneout=0.3),
        jaxrnn.regularize(jaxrnn.gru(H, layer_norm=True), zoneout=0.3),  # which projects in the loop
    )
    key = jax.random.key(3, impl="unsafe_rbg")
    for cell in (jaxrnn.attend(inside, M) for inside in noisy):
        params = random_like(5, jax.eval_shape(lambda key, c=cell: c.init(key, I), jax.random.key(0)), jnp.float64, 0.6)
        given = (params, memory, xs, cell.initial_state((B,), jnp.float64))
        by_hand, by_scan = (loss_of(cell, each, STEPS, LENGTHS, key=key)(*given) for each in ("bptt", "scan"))
        assert_close(by_hand, by_scan)
        silent = loss_of(cell, "bptt", STEPS, LENGTHS, key=None)(*given)
        assert np.abs(np.asarray(silent[1]) - np.asarray(by_hand[1])).max() > 1e-3


def test_a_cell_without_a_rule_attends_by_automatic_differentiation(x64):
    cell, *operands = made("luong")
    plain = jaxrnn.attend(jaxrnn.lstm(H)._replace(rule=None), M, **CASES["luong"][2])
    assert plain.rule is None
    assert_close(*(loss_of(each, None, STEPS, LENGTHS)(*operands) for each in (plain, cell)))
    bound = jaxrnn.with_memory(cell, operands[0], operands[1], lengths=LENGTHS)
    assert_close(*(jaxrnn.attention_weights(each, bound, *operands[2:]) for each in (plain, cell)))


def test_step_and_generate_equal_unroll_and_beams_share_a_memory(x64):
    cell, params, memory, xs, state = made("luong")
    bound = jaxrnn.with_memory(cell, params, memory, lengths=LENGTHS)
    step, after = quick_jit(cell.step), state
    found = []
    for x in xs:
        after, y = step(bound, after, x)
        found.append(y)
    final, ys = jaxrnn.unroll(cell, bound, xs, state)
    assert_close((after, jnp.stack(found)), (final, ys))
    _, free, inputs = jaxrnn.generate(cell, bound, state, xs[0], lambda y, key: y[:, :I], T, return_inputs=True)
    again = jnp.concatenate([xs[:1], inputs[:-1]])
    assert_close(free, jaxrnn.unroll(cell, bound, again, state)[1])
    beams = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), (state, xs[0]))
    by_beam = step(bound, *beams)
    for k in range(2):
        one = step(bound, *jax.tree.map(lambda leaf, k=k: leaf[k], beams))
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], by_beam), one)


def test_weights_follow_masks_resets_and_the_direction_of_reading(x64):
    """Each equals the weights of the run that it stands for."""
    cell, params, memory, xs, state = made("bahdanau")
    bound = jaxrnn.with_memory(cell, params, memory, lengths=LENGTHS)
    plain = jaxrnn.attention_weights(cell, bound, xs, state)
    masked = jaxrnn.attention_weights(cell, bound, xs.at[5:].set(jnp.nan), state, lengths=np.asarray([4, 4, 0]))
    assert_close(masked[:4, :2], plain[:4, :2])
    np.testing.assert_array_equal(masked[4:], 0.0)
    np.testing.assert_array_equal(masked[:, 2], 0.0)
    resets = np.zeros((T, B), bool)
    resets[3] = True
    reset = jaxrnn.attention_weights(cell, bound, xs, state, resets=resets)
    assert_close(reset, jnp.concatenate([plain[:3], jaxrnn.attention_weights(cell, bound, xs[3:])]))
    back = jaxrnn.attention_weights(cell, bound, xs, state, reverse=True)
    assert_close(back, jaxrnn.attention_weights(cell, bound, xs[::-1], state)[::-1])


class Counted(NamedTuple):
    h: Any
    steps: Any  # integers, in the last place


def test_weights_of_a_cell_that_counts_its_steps_are_those_of_its_floating_state(x64):
    def step(params, state, x):
        h = jnp.tanh(x @ params["w"] * params["scale"] + state.h)
        return Counted(h, state.steps + 1), h

    def init(key, size, dtype=None):
        return {"w": jnp.linspace(-1, 1, size * H).reshape(size, H), "scale": 1.0}

    def initial(batch_shape=(), dtype=None):
        return Counted(jnp.zeros((*batch_shape, H), dtype), jnp.zeros(batch_shape, jnp.int32))

    cell = jaxrnn.attend(jaxrnn.Cell(init, initial, step), M)
    _, _, memory, xs, _ = made("bahdanau")
    params = cell.init(jax.random.key(0), I, jnp.float64)
    bound = jaxrnn.with_memory(cell, params, memory, lengths=LENGTHS)
    alphas, ys = jaxrnn.attention_weights(cell, bound, xs), jaxrnn.unroll(cell, bound, xs)[1]
    own, hs, inside = numpy_of(params), numpy_of(ys)[:-1, :, M:], numpy_of(memory)
    queries = np.concatenate([np.zeros((1, B, H)), hs]) @ own.w_q
    scores = np.tanh(queries[:, :, None] + inside @ own.w_k) @ own.v
    assert_close(alphas, np.stack([softmax_in_numpy(e, LENGTHS) for e in scores]))
    assert_close(cell.step(bound, cell.initial_state((B,), jnp.float64), xs[0])[1], ys[0])


def test_a_stack_binds_the_memory_to_its_layers_that_attend():
    net = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.attend(jaxrnn.gru(H), M), jaxrnn.gru(2)])
    params = net.init(jax.random.key(0), I)
    _, _, memory, xs, _ = made("bahdanau", jnp.float32)
    bound = jaxrnn.with_memory(net, params, memory, lengths=LENGTHS)
    _, ys = net.unroll(bound, xs)
    first = jaxrnn.unroll(net.layers[0], params[0], xs)[1]
    own = jaxrnn.with_memory(net.layers[1], params[1], memory, lengths=LENGTHS)
    second = jaxrnn.unroll(net.layers[1], own, first)[1]
    assert_close(ys, jaxrnn.unroll(net.layers[2], params[2], second)[1], "float32")
    none, alpha, last = jaxrnn.attention_weights(net, bound, xs)
    assert (none, last) == (None, None)
    assert_close(alpha, jaxrnn.attention_weights(net.layers[1], own, first), "float32")
    assert params[2].w_x.shape[0] == M + H
    assert jaxrnn.count_params(bound) == jaxrnn.count_params(params)


@pytest.mark.parametrize("name", ["bahdanau", "luong"])
def test_products_are_in_the_compute_dtype(name):
    """Every product with a weight, the memory or its keys has operands in bfloat16 and accumulates in float32."""
    cell, params, memory, xs, state = made(name, jnp.float32)
    bound = jaxrnn.with_memory(cell, params, memory, compute_dtype=jnp.bfloat16)

    def run(dtype):
        return jaxrnn.unroll(cell, bound, xs, state, compute_dtype=dtype)[1]

    operands = products_in(jax.make_jaxpr(functools.partial(run, jnp.bfloat16))().jaxpr)
    assert len(operands) > 3
    assert set(operands) == {("bfloat16", "bfloat16", "float32")}
    assert 1e-5 < np.abs(run(None) - run(jnp.bfloat16)).max() < 0.05


def test_a_rule_of_the_users_own_inside_has_products_in_the_compute_dtype():
    """It has the functions of a GRU, under other names, so that what it multiplies is read off its traces."""
    gru = jaxrnn.gru(H)
    parts = {name: functools.partial(getattr(gru.rule, name)) for name in ("project", "forward")}
    parts = {name: (lambda *args, f=part: f(*args)) for name, part in parts.items()}
    cell, plain = (jaxrnn.attend(each, M) for each in (gru._replace(rule=gru.rule._replace(**parts)), gru))
    _, params, memory, xs, state = made("bahdanau", jnp.float32)

    def loss(cell, memory):
        bound = jaxrnn.with_memory(cell, params, memory, compute_dtype=jnp.bfloat16)
        return jnp.sum(jaxrnn.unroll(cell, bound, xs, state, compute_dtype=jnp.bfloat16)[1] ** 2)

    assert_close(*(jax.grad(functools.partial(loss, each))(memory) for each in (cell, plain)), "float32")


def products_in(jaxpr):
    """The dtypes of operands and result of every product, in inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        for each in inner:
            found += products_in(getattr(each, "jaxpr", each))
        if equation.primitive.name == "dot_general":
            found.append(tuple(atom.aval.dtype.name for atom in (*equation.invars, *equation.outvars)))
    return found


def test_nothing_of_the_size_of_the_tanh_is_kept_for_a_step():
    """What the backward pass keeps has at most S numbers a step beside those of the cell inside and the output."""
    cell, params, memory, xs, state = made("bahdanau-mixed", jnp.float32)

    def kept(cell, params, xs, state):
        _, pull = jax.vjp(lambda xs: jaxrnn.unroll(cell, params, xs, state)[1], xs)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if leaf.shape[:1] == (T,))

    bound = jaxrnn.with_memory(cell, params, memory)
    inside = CASES["bahdanau-mixed"][0]
    wide = jnp.concatenate([xs, jnp.zeros((T, B, M))], -1)
    assert kept(cell, bound, xs, state) <= kept(inside, params.cell, wide, state.cell) + T * B * (S + 2 - M)


# Values, files and refusals


def test_cells_of_equal_options_are_equal_and_are_saved(tmp_path):
    one, two = jaxrnn.attend(jaxrnn.gru(H), M), jaxrnn.attend(jaxrnn.gru(H), M, query="previous", score_size=H)
    assert one == two == pickle.loads(pickle.dumps(one))
    assert repr(one) == "attend(gru(4), 4)"
    assert one != jaxrnn.attend(jaxrnn.gru(H), M, score_size=3)
    net = jaxrnn.stack(
        [jaxrnn.attend(jaxrnn.regularize(jaxrnn.lstm(H), zoneout=0.1), M, score="general"), jaxrnn.gru(2)]
    )
    params = net.init(jax.random.key(0), I)
    jaxrnn.save(tmp_path / "net.safetensors", net, params)
    again, loaded = jaxrnn.load(tmp_path / "net.safetensors")
    assert again == net
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    bound = jaxrnn.with_memory(net, params, jnp.ones((B, S, M)))
    with pytest.raises(ValueError, match="save: params.*a memory is bound for one call and not saved"):
        jaxrnn.save(tmp_path / "bound.safetensors", net, bound)


def refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert len(str(caught.value)) <= 500


def test_bad_options_are_refused(unhooked):
    gru, attend = jaxrnn.gru(H), jaxrnn.attend
    refused(TypeError, "attend: cell expected a jaxrnn.Cell", lambda: attend(4, M))
    refused(TypeError, "memory_size expected a positive integer", lambda: attend(gru, 2.0))
    refused(ValueError, "score expected one of 'additive', 'dot'", lambda: attend(gru, M, score="concat"))
    refused(ValueError, "query expected one of 'previous', 'current'", lambda: attend(gru, M, query="next"))
    refused(ValueError, "memory_size expected 4.*'general' multiplies", lambda: attend(gru, 3, score="dot"))
    refused(ValueError, "score_size expected None for score='dot'", lambda: attend(gru, M, score="dot", score_size=2))
    refused(ValueError, "input_feeding expected False for query='previous'", lambda: attend(gru, M, input_feeding=True))
    refused(TypeError, "kernel_init expected a function", lambda: attend(gru, M, kernel_init=3))
    refused(NotImplementedError, "does not attend yet", lambda: attend(attend(gru, M), M))
    mesh = jax.make_mesh((1,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    refused(
        NotImplementedError, "does not attend", lambda: jaxrnn.pipeline(attend(gru, M), mesh, axis="layers", chunk=2)
    )
    refused(NotImplementedError, "got attend", lambda: jaxrnn.model_parallel(attend(gru, M), mesh, "layers"))
    refused(NotImplementedError, "a parameter w_h, got attend", lambda: jaxrnn.regularize(attend(gru, M), zoneout=0.1))


def test_a_missing_or_wrong_memory_is_refused(unhooked):
    cell, params, memory, xs, state = made("bahdanau", jnp.float32)
    bind = functools.partial(jaxrnn.with_memory, cell, params)
    unroll = functools.partial(jaxrnn.unroll, cell)
    words = "expected a memory, got None; bind one for this call"
    refused(ValueError, f"unroll: params of .* {words}", lambda: unroll(params, xs))
    refused(ValueError, words, lambda: cell.step(params, state, xs[0]))
    refused(ValueError, words, lambda: jaxrnn.generate(cell, params, state, xs[0], lambda y, key: y, 2))
    refused(ValueError, words, lambda: jaxrnn.attention_weights(cell, params, xs))
    refused(ValueError, "batch axes that are the last of", lambda: unroll(bind(memory[:2]), xs))
    refused(ValueError, r"last axis 2, params.cell.w_x expects 3 and 4", lambda: unroll(bind(memory), xs[..., :2]))
    refused(ValueError, "memory expected last axis 4", lambda: bind(memory[..., :3]))
    refused(ValueError, r"memory expected shape \(\*B, S, M\)", lambda: bind(memory[0, 0]))
    refused(TypeError, "memory expected a floating-point array", lambda: bind(jnp.ones((B, S, M), jnp.int32)))
    refused(ValueError, "lengths expected values from 0 to S = 5, got 6", lambda: bind(memory, lengths=LENGTHS + 1))
    refused(ValueError, "lengths expected values from 0 to S = 5, got -1", lambda: bind(memory, lengths=LENGTHS - 1))
    refused(TypeError, "lengths expected integers", lambda: bind(memory, lengths=np.ones(B, np.float32)))
    refused(ValueError, "lengths expected the batch shape", lambda: bind(memory, lengths=LENGTHS[:2]))
    refused(TypeError, "mask expected booleans", lambda: bind(memory, mask=jnp.ones((B, S))))
    refused(ValueError, r"mask expected shape \(\*B, S\)", lambda: bind(memory, mask=jnp.ones((S, B), bool)))
    refused(ValueError, "both given", lambda: bind(memory, lengths=LENGTHS, mask=jnp.ones((B, S), bool)))
    refused(
        TypeError, "model expected a cell from jaxrnn.attend", lambda: jaxrnn.with_memory(DENSE_GRU, params, memory)
    )
    refused(TypeError, "params expected AttendParams", lambda: jaxrnn.with_memory(cell, params.cell, memory))
    net = jaxrnn.stack([DENSE_GRU])
    none = net.init(jax.random.key(0), I)
    refused(ValueError, "a layer from jaxrnn.attend", lambda: jaxrnn.with_memory(net, none, memory))
    refused(TypeError, "a layer from jaxrnn.attend", lambda: jaxrnn.attention_weights(net, none, xs))
    refused(
        NotImplementedError,
        "one memory .* for all sequences",
        lambda: jaxrnn.analysis.state_jacobians(cell, bind(memory), xs),
    )
    assert jaxrnn.analysis.state_jacobians(cell, bind(memory[0]), xs).shape == (T, B, H, H)
