"""Generation with tokens and an end, and beam search, against loops in Python and a search of all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.support.registry import assert_close, assert_equal, gap, random_like

V, END, B = 4, 2, 3


def model(layers=None, seed=0, batch=(B,), sharpness=3.0, dtype=jnp.float64):
    """A network, parameters, states, a first input, and read-out and embedding with weights of their own."""
    net = jaxrnn.stack([jaxrnn.lstm(5), jaxrnn.gru(6)] if layers is None else layers)
    params = random_like(seed, jax.eval_shape(lambda key: net.init(key, 2), jax.random.key(0)), dtype, scale=0.9)
    states = random_like(seed + 1, jax.eval_shape(lambda: net.initial_state(batch)), dtype)
    draw = np.random.default_rng(seed)
    v, vectors = (jnp.asarray(draw.normal(size=shape), dtype) for shape in ((6, V), (V, 2)))
    return net, params, states, jnp.ones((*batch, 2), dtype), lambda y: sharpness * y @ v, lambda token: vectors[token]


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def penalty(n, alpha):
    return ((5 + n) / 6) ** alpha


def all_sequences(net, params, states, start, logits, embed, length):
    """Of each sequence of the batch, every hypothesis with its log p, by one unroll over all V^length sequences."""
    every = np.array(list(itertools.product(range(V), repeat=length)))  # (S, N)
    count, size = len(every), start.shape[0]
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, 0), states)  # (S, B, ·)
    read = jnp.concatenate(
        [jnp.repeat(start[None, None], count, 1), jnp.repeat(embed(every.T[:-1])[:, :, None], size, 2)]
    )
    log_p = log_softmax(logits(net.unroll(params, read, wide)[1]))  # (N, S, B, V)
    found = [{} for _ in range(size)]
    for (s, sequence), b in itertools.product(enumerate(every.tolist()), range(size)):
        n = sequence.index(END) + 1 if END in sequence else length
        found[b][tuple(sequence[:n])] = sum(log_p[t, s, b, sequence[t]] for t in range(n))
    return found


def hypotheses(beams, *place):
    """The sequences of one example as tuples, best first, with their log p."""
    tokens, lengths, log_probs = (np.asarray(leaf) for leaf in beams[:3])
    return [
        (tuple(tokens[(slice(lengths[(*place, k)]), *place, k)].tolist()), log_probs[(*place, k)])
        for k in range(tokens.shape[-1])
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_a_beam_of_all_prefixes_finds_what_a_search_of_all_sequences_finds(x64, alpha):
    case, length = model(), 4
    beam_size = (V - 1) ** (length - 1)
    search = jax.jit(
        lambda p, s, x: jaxrnn.beam_search(
            case[0], p, s, x, *case[4:], length, beam_size=beam_size, end=END, length_penalty=alpha
        )
    )
    found = search(*case[1:4])
    assert found.log_probs.dtype == jnp.float64
    for b, every in enumerate(all_sequences(*case, length)):
        ranked = sorted(every, key=lambda own: -every[own] / penalty(len(own), alpha))[:beam_size]
        assert [own for own, _ in hypotheses(found, b)] == ranked
        assert_close(found.log_probs[b], np.array([every[own] for own in ranked]))
        assert_close(found.scores[b], np.array([every[own] / penalty(len(own), alpha) for own in ranked]))
    assert {1, length} <= set(np.asarray(found.lengths).ravel().tolist())  # all lengths compete


def in_python(step, logits, embed, state, x, length, k, alpha):
    """Beam search of one sequence with lists."""
    going, ended = [((), 0.0, state, x)], []
    for _ in range(length):
        more = []
        for own, log_p, state, x in going:
            after, y = step(state, x)
            log_ps = log_softmax(logits(y))
            ended.append(((*own, END), log_p + log_ps[END]))
            more += [((*own, w), log_p + log_ps[w], after, embed(w)) for w in range(V) if w != END]
        going = sorted(more, key=lambda item: -item[1])[:k]
        ended = sorted(ended, key=lambda item: -item[1] / penalty(len(item[0]), alpha))[:k]
    ended += [item[:2] for item in going]
    return sorted(ended, key=lambda item: -item[1] / penalty(len(item[0]), alpha))[:k]


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_small_beam_equals_a_loop_in_python(x64, alpha):
    """Two batch axes; each sequence is also searched by itself, with lists of hypotheses."""
    batch, k, length = (2, 2), 3, 7
    case = model(seed=5, batch=batch, sharpness=1.5)
    net, params, states, start, logits, embed = case
    found = jaxrnn.beam_search(*case, length, beam_size=k, end=END, length_penalty=alpha)
    step = jax.jit(lambda state, x: net.step(params, state, x))
    for place in np.ndindex(batch):
        own = jax.tree.map(lambda leaf: leaf[place], states)  # noqa: B023
        wanted = in_python(step, logits, embed, own, start[place], length, k, alpha)
        assert [sequence for sequence, _ in hypotheses(found, *place)] == [sequence for sequence, _ in wanted]
        assert_close(found.log_probs[place], np.array([log_p for _, log_p in wanted]))
    assert gap(found.scores, found.log_probs) > 0 or alpha == 0


def test_hypotheses_of_a_sequence_share_its_memory(x64):
    """The memory of a cell that attends lies in the parameters, with the batch but without beams."""

    def step(params, state, x):
        weights = jax.nn.softmax(jnp.einsum("bh,bsh->bs", state["h"], params["memory"]), -1)
        h = jnp.tanh(x @ params["w"] + state["h"] + jnp.einsum("bs,bsh->bh", weights, params["memory"]))
        return {"h": h, "count": state["count"] + 1}, h

    cell = jaxrnn.Cell(lambda key, size: None, lambda shape: None, step)
    draw = np.random.default_rng(3)
    w, memory, v = draw.normal(size=(2, 5)), draw.normal(size=(B, 7, 5)), draw.normal(size=(5, V))
    vectors = jnp.asarray(draw.normal(size=(V, 2)))

    def search(memory):
        size = len(memory)
        params = {"w": jnp.asarray(w), "memory": jnp.asarray(memory)}
        state = {"h": jnp.zeros((size, 5)), "count": jnp.zeros(size, jnp.int32)}
        return jaxrnn.beam_search(
            cell,
            params,
            state,
            jnp.zeros((size, 2)),
            lambda y: y @ v,
            lambda token: vectors[token],
            6,
            beam_size=3,
            end=END,
        )

    together, alone = search(memory), [search(memory[b : b + 1]) for b in range(B)]
    for b, own in enumerate(alone):
        assert hypotheses(together, b)[0][0] == hypotheses(own, 0)[0][0]
        assert_close(together.log_probs[b], own.log_probs[0])
        assert (together.tokens[:, b] == own.tokens[:, 0]).all()
    assert gap(together.log_probs[0], together.log_probs[1]) > 1e-3


def of_logits(rows, k, length, end=END, alpha=0.0):
    """A search whose logits at a step depend on the step and the sequence alone: rows (N, B, V)."""
    rows = jnp.asarray(rows)
    cell = jaxrnn.Cell(lambda key, size: None, lambda shape: None, lambda params, state, x: (state + 1, state))
    size = rows.shape[1]
    logits = lambda t: jnp.take_along_axis(jnp.moveaxis(rows, 1, 0), t[:, None, None], 1)[:, 0]  # noqa: E731
    state, x = jnp.zeros(size, jnp.int32), jnp.zeros(size)
    return jaxrnn.beam_search(
        cell,
        (),
        state,
        x,
        logits,
        lambda token: token.astype(jnp.float32),
        length,
        beam_size=k,
        end=end,
        length_penalty=alpha,
    )


def test_of_equal_scores_the_first_to_end_then_the_better_parent_then_the_smaller_token_comes_first():
    found = of_logits(np.zeros((2, 1, 3), np.float32), 6, 2, end=1)
    assert [own for own, _ in hypotheses(found, 0)] == [(1,), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0)]
    assert_close(found.log_probs[0], np.float32(-np.log(3)) * np.array([1, 2, 2, 2, 2, 2], np.float32), "float32")


def test_a_forbidden_token_is_never_written_and_places_without_a_hypothesis_are_empty():
    rows = np.zeros((2, 1, 3), np.float32)
    rows[:, 0, 0] = -np.inf
    found = of_logits(rows, 5, 2, end=1)
    assert [own for own, _ in hypotheses(found, 0)] == [(1,), (2, 1), (2, 2), (), ()]
    assert_close(found.log_probs[0, :3], np.float32(-np.log(2)) * np.array([1, 2, 2], np.float32), "float32")
    assert (found.log_probs[0, 3:] == -np.inf).all()
    assert (found.scores[0, 3:] == -np.inf).all()
    assert (found.tokens[:, 0, 3:] == 1).all()


def test_nan_comes_first_and_stays_in_its_sequence():
    rows = np.random.default_rng(0).normal(size=(4, 2, V)).astype(np.float32)
    right = of_logits(rows[:, 1:], 3, 4)
    for value, where in ((np.nan, (1, 0, 3)), (-np.inf, (1, 0))):  # one logit, or all of a step
        broken = rows.copy()
        broken[where] = value
        found = of_logits(broken, 3, 4)
        assert np.isnan(found.log_probs[0, 0])
        assert np.isnan(found.scores[0, 0])
        assert_equal(
            *(jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[..., k, :], own) for k, own in ((1, found), (0, right)))
        )


def test_a_hypothesis_that_is_not_possible_stays_so():
    """After the forbidden token 0 all logits are -inf; an empty place that reads it is no NaN among the found."""
    allowed = jnp.log(jnp.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]], jnp.float32))  # by the token before; 2 ends
    cell = jaxrnn.Cell(lambda key, size: None, lambda shape: None, lambda params, state, x: (state, x))
    found = jaxrnn.beam_search(
        cell,
        (),
        jnp.zeros(1),
        jnp.ones(1),
        lambda y: allowed[y.astype(int)],
        lambda token: token.astype(jnp.float32),
        3,
        beam_size=5,
        end=2,
    )
    assert [own for own, _ in hypotheses(found, 0)] == [(2,), (1, 2), (1, 1, 2), (1, 1, 1), ()]
    wanted = np.log(np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8], np.float32))
    assert_close(found.log_probs[0, :4], wanted, "float32")


def test_a_batch_without_sequences_has_no_hypotheses():
    net, params, states, start, logits, embed = model(batch=(0,), dtype=jnp.float32)
    found = jaxrnn.beam_search(net, params, states, start, logits, embed, 3, beam_size=2, end=END)
    assert (found.tokens.shape, found.scores.shape) == ((3, 0, 2), (0, 2))
    chosen = jaxrnn.next_token(logits, embed)
    assert jaxrnn.generate(net, params, states, start, chosen, 3, end=END).tokens.shape == (3, 0)


@pytest.mark.parametrize("k", [1, 7])
def test_an_end_that_is_never_reached_gives_sequences_of_all_steps(k):
    rows = np.random.default_rng(1).normal(size=(3, 2, V)).astype(np.float32)
    rows[..., END] = -np.inf
    found = of_logits(rows, k, 3)
    assert (found.lengths == 3).all()
    assert not (found.tokens == END).any()
    best = np.asarray(found.tokens)[..., 0]
    np.testing.assert_array_equal(best, rows.argmax(-1))


def test_a_vocabulary_of_the_end_alone_has_one_hypothesis():
    found = of_logits(np.zeros((5, 2, 1), np.float32), 3, 5, end=0)
    assert found.lengths.tolist() == [[1, 0, 0]] * 2
    assert found.log_probs[:, 0].tolist() == [0, 0]


def counted(seen):
    def embed(token):
        jax.debug.callback(lambda _: seen.append(1), token)
        return token.astype(jnp.float32)

    return embed


def test_the_search_stops_when_nothing_can_change():
    """Each step has one callback for each beam; after the second one all ended hypotheses beat the open ones."""
    seen, rows = [], np.zeros((50, 1, 2), np.float32)
    rows[:, :, 1] = 9
    cell = jaxrnn.Cell(lambda key, size: None, lambda shape: None, lambda params, state, x: (state, x[..., None] * 0))
    found = jaxrnn.beam_search(
        cell,
        (),
        jnp.zeros(1),
        jnp.zeros(1),
        lambda y: y + jnp.array([[0.0, 9.0]]),
        counted(seen),
        50,
        beam_size=2,
        end=1,
    )
    jax.effects_barrier()
    assert found.lengths.tolist() == [[1, 2]]
    assert len(seen) == 2 * 2


def test_a_second_call_does_not_trace_again_and_float32_stays():
    traced, (net, params, states, start, logits, embed) = [], model(dtype=jnp.float32)

    @jax.jit
    def search(params, states, start):
        traced.append(1)
        return jaxrnn.beam_search(net, params, states, start, logits, embed, 5, beam_size=2, end=END)

    first = search(params, states, start)
    again = search(params, jax.tree.map(lambda leaf: leaf + 1, states), start)
    assert len(traced) == 1
    assert first.log_probs.dtype == again.scores.dtype == jnp.float32
    assert gap(first.log_probs, again.log_probs) > 1e-3
    assert_equal(first, search(params, states, start))


# Generation


@pytest.mark.parametrize("key", [None, 7])
@pytest.mark.parametrize("end", [None, END])
def test_tokens_equal_a_loop_in_python_over_single_sequences(x64, end, key):
    net, params, states, start, logits, embed = model(seed=3)
    key, length = None if key is None else jax.random.key(key), 9
    choose = jaxrnn.next_token(logits, embed, temperature=1.3)
    found = jax.jit(
        lambda p, s, x: jaxrnn.generate(
            net, p, s, x, choose, length, key, end=end, return_tokens=True, return_inputs=True
        )
    )(params, states, start)
    found = jax.tree.map(np.asarray, found)
    state, x, ended, step, keys = states, start, np.zeros(B, bool), jax.jit(net.step), key
    for t in range(length):
        keys, key_t = (None, None) if keys is None else jax.random.split(keys)
        after, y = step(params, state, x)
        log_p = log_softmax(logits(y) / 1.3)
        token = log_p.argmax(-1) if key_t is None else np.asarray(jax.random.categorical(key_t, jnp.asarray(log_p)))
        for b in range(B):
            if ended[b]:
                assert (found.tokens[t, b], found.log_probs[t, b]) == (END, 0)
                assert not np.asarray(found.ys[t, b]).any()
                continue
            assert found.tokens[t, b] == token[b]
            assert_close(
                (found.log_probs[t, b], found.ys[t, b], found.inputs[t, b]), (log_p[b, token[b]], y[b], embed(token)[b])
            )
        state = jax.tree.map(lambda new, old: jnp.where(jnp.asarray(ended)[:, None], old, new), after, state)  # noqa: B023
        x = jnp.where(jnp.asarray(ended)[:, None], x, embed(token))
        ended = ended | ((token == END) if end is not None else False)
    assert_close(found.states, state)
    tokens = np.asarray(found.tokens).T.tolist()
    assert found.lengths.tolist() == [
        own.index(END) + 1 if end is not None and END in own else length for own in tokens
    ]
    if end is not None:
        assert min(found.lengths) < max(found.lengths)


def test_steps_after_all_ends_compute_nothing_and_gradients_flow(x64):
    """Of 40 steps so many run as the longest sequence has."""
    seen, key, (net, params, states, start, logits, embed) = [], jax.random.key(2), model(seed=3, sharpness=0.5)
    choose = jaxrnn.next_token(logits, embed)

    def watched(y, key):
        jax.debug.callback(lambda _: seen.append(1), y)
        return choose(y, key)

    longest = max(jaxrnn.generate(net, params, states, start, watched, 40, key, end=END).lengths.tolist())
    jax.effects_barrier()
    assert len(seen) == longest
    assert 2 < longest < 30

    def total(params, length):
        return jnp.sum(jaxrnn.generate(net, params, states, start, choose, length, key, end=END).log_probs)

    whole, exact = jax.grad(total)(params, 40), jax.grad(total)(params, longest)
    assert_close(whole, exact)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 1e-2


def test_outputs_of_several_arrays_are_zero_after_the_end():
    cell = jaxrnn.Cell(lambda key, size: None, lambda shape: None, lambda params, state, x: (state + 1, (state, x)))
    ended = lambda y, key: (y[1], jnp.array([1, 0, 0]), y[0])  # noqa: E731
    count, ones = jaxrnn.generate(cell, (), jnp.arange(3.0), jnp.ones(3), ended, 2, end=1).ys
    assert count.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert ones.tolist() == [[1, 1, 1], [0, 1, 1]]


# Refused


def search_with(**changes):
    net, params, states, start, logits, embed = model(dtype=jnp.float32)
    given = {
        "net_or_cell": net,
        "params": params,
        "states": states,
        "first_input": start,
        "logits": logits,
        "embed": embed,
    }
    return jaxrnn.beam_search(**{**given, "length": 3, "beam_size": 2, "end": END, **changes})


def generate_with(next_input, **changes):
    net, params, states, start, _, _ = model(dtype=jnp.float32)
    return jaxrnn.generate(net, params, states, start, next_input, 3, **{"end": 1, **changes})


X, TOKEN, LOG_P = jnp.ones((B, 2)), jnp.zeros(B, jnp.int32), jnp.zeros(B)
OWN = jaxrnn.Cell(lambda key, size: None, lambda shape: None, lambda params, state, x: (state, x))
SCALAR = OWN._replace(step=lambda params, state, x: (state, jnp.float32(1)))
REFUSED = {
    "beam_size": (lambda: search_with(beam_size=0), ValueError, "beam_search: beam_size expected a positive integer, got 0"),
    "length": (lambda: search_with(length=2.0), TypeError, "beam_search: length expected a positive integer"),
    "end": (lambda: search_with(end=V), ValueError, "beam_search: end expected a token of the logits, 0 to 3, got 4"),
    "end below": (lambda: search_with(end=-1), ValueError, "beam_search: end expected a token, 0 to .*, got -1"),
    "no end": (lambda: search_with(end=None), TypeError, "beam_search: end expected a token, an integer, got None"),
    "penalty": (lambda: search_with(length_penalty=-1), ValueError, "beam_search: length_penalty expected a number from 0 to 10, got -1"),
    "nan": (lambda: search_with(length_penalty=float("nan")), ValueError, "length_penalty expected a number from 0 to 10, got nan"),
    "logits": (lambda: search_with(logits=None), TypeError, "beam_search: logits expected a function of y"),
    "logits dtype": (lambda: search_with(logits=lambda y: y > 0), TypeError, r"beam_search: logits\(y\) expected a floating"),
    "embed": (lambda: search_with(embed=lambda token: jnp.ones((B, 3))), ValueError, r"beam_search: embed\(tokens\) expected what first_input is, float32\[3, ?2\]; got float32\[3, ?3\]"),
    "both ways": (lambda: search_with(net_or_cell=jaxrnn.stack([jaxrnn.gru(2)], bidirectional=True)), ValueError, "beam_search: net_or_cell expected a unidirectional"),
    "states": (lambda: search_with(net_or_cell=OWN, states=jnp.zeros(7), logits=lambda y: y, end=1), ValueError, r"beam_search: states expected arrays whose first axes are those of the tokens, \(3,\), got float32\[7\]"),
    "x alone": (lambda: generate_with(lambda y, key: X), TypeError, r"generate: next_input\(y, key\) expected \(x, token, log_prob\) with tokens, got float32"),
    "token": (lambda: generate_with(lambda y, key: (X, LOG_P, LOG_P)), TypeError, r"generate: next_input\(y, key\)\[1\] expected integers"),
    "log_prob": (lambda: generate_with(lambda y, key: (X, TOKEN, TOKEN)), TypeError, r"next_input\(y, key\)\[2\] expected a floating"),
    "log_probs": (lambda: generate_with(lambda y, key: (X, TOKEN, LOG_P[:1])), ValueError, "expected one log-probability for each token"),
    "x": (lambda: generate_with(lambda y, key: (X[:1], TOKEN, LOG_P)), ValueError, r"next_input\(y, key\)\[0\] expected what first_input is"),
    "end of generate": (lambda: generate_with(lambda y, key: X, end=1.5), TypeError, "generate: end expected a token, an integer"),
    "outputs": (lambda: jaxrnn.generate(SCALAR, (), LOG_P, X, lambda y, key: (X, TOKEN, LOG_P), 3, end=1), ValueError, r"generate: outputs expected arrays whose first axes are those of the tokens, \(3,\), got float32\[\]"),
    "narrow tokens": (lambda: generate_with(lambda y, key: (X, TOKEN.astype(jnp.int8), LOG_P), end=128), ValueError, r"generate: end expected a number that the tokens' dtype int8 holds, got 128"),
    "batch": (lambda: jaxrnn.generate(OWN, (), jnp.zeros(7), X, lambda y, key: (X, TOKEN, LOG_P), 3, end=1), ValueError, "generate: states expected arrays whose first axes"),
    "temperature": (lambda: jaxrnn.next_token(jnp.sin, jnp.cos, 0), ValueError, "next_token: temperature expected a positive number, got 0"),
    "read-out": (lambda: jaxrnn.next_token(None, jnp.cos), TypeError, "next_token: logits expected a function"),
    "scalar": (lambda: jaxrnn.next_token(jnp.sum, jnp.cos)(X, None), ValueError, r"next_token: logits\(y\) expected shape \(\*B, V\), got a scalar"),
}  # fmt: skip


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_by_name(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as raised:
        call()
    assert len(str(raised.value)) <= 500
