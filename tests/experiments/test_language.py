"""The language model: its loss over windows and over the whole text, its states, and the text that it writes."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxrnn
from experiments.models import language, saved
from experiments.models.cells import AFFINE, HEADED, check_heads, label_of
from experiments.training.loop import begin, make_optimiser, training
from tests.support.training import filled, optax_promotes

V, B, WINDOW = 5, 3, 4
TEXT = np.random.default_rng(0).integers(0, V, 50)


@functools.cache
def model_of(cell="gru", layers=2, dropout=0.0):
    """A model, its params, and its compiled call."""
    model = language.language_model(V, cell=cell, embedding=3, hidden_size=6, layers=layers, dropout=dropout)
    call = jax.jit(lambda params, *given: model.bind(params)(*given))
    return model, filled(model), call


def nats_of(logits, tokens):
    """Nats of `(T, B)` tokens under logits."""
    logits = np.asarray(logits, np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logits, tokens[..., None], -1)[..., 0]


@pytest.mark.parametrize("streams", [1, 3])
def test_text_loss_equals_the_loss_of_its_streams(streams):
    model, params, call = model_of()
    found = language.text_loss(model, TEXT, streams, WINDOW, "cpu")(jax.tree.map(lambda leaf: leaf[None], params))
    length = len(TEXT) // streams
    parts = np.stack([TEXT[k * length : (k + 1) * length] for k in range(streams)], 1)
    logits, _ = call(params, jnp.asarray(parts[:-1], jnp.int32))
    np.testing.assert_allclose(found, [nats_of(logits, parts[1:]).mean()], rtol=1e-5)


def test_consecutive_windows_pass_on_their_states():
    model, params, call = model_of("lstm")
    task = language.text_task(model, TEXT, B, WINDOW)
    streams = TEXT[:48].reshape(B, 16).T
    inputs, targets, fresh = zip(*(task.batch(7, step) for step in range(3)), strict=True)
    assert language.steps_an_epoch(TEXT, B, WINDOW) == 3
    assert [list(f) for f in fresh] == [[True] * B, [False] * B, [False] * B]
    whole = np.concatenate(inputs, 1).T
    first = next(k for k in range(4) if (streams[k : k + 12] == whole).all())
    np.testing.assert_array_equal(np.concatenate(targets, 1).T, streams[first + 1 : first + 13])
    assert task.batch(7, 3)[2].all()
    assert all(leaf.shape[task.carry_axis] == task.examples == B for leaf in jax.tree.leaves(task.carry))
    starts = {tuple(task.batch(seed, 3 * epoch)[0][:, 0]) for seed in range(3) for epoch in range(6)}
    assert len(starts) > 1  # epochs start at different symbols
    states = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9.0), task.carry)  # states of the previous epoch
    losses, loss = [], jax.jit(lambda *given: task.loss(*given, None))
    for k in range(3):
        value, states = loss(params, states, tuple(map(jnp.asarray, (inputs[k], targets[k], fresh[k]))))
        losses.append(value)
    logits, _ = call(params, jnp.asarray(whole))
    each = nats_of(logits, np.concatenate(targets, 1).T)
    np.testing.assert_allclose(losses, each.reshape(3, -1).mean(-1), rtol=1e-5)


def test_first_states_of_a_huge_model_take_no_memory():
    """Its memory is checked before anything is allocated."""
    model = language.language_model(V, cell="lstm", embedding=3, hidden_size=2**31 - 1, layers=1, dropout=0.0)
    for leaf in jax.tree.leaves(language.text_task(model, TEXT, B, WINDOW).carry):
        assert leaf.shape == (1, B, 2**31 - 1)
        assert leaf.strides == (0, 0, 0)
        assert leaf[0, 0, 7] == 0


def test_model_learns_a_repeating_text():
    text = np.tile([0, 1, 2, 1, 3, 4], 40)
    model = model_of(layers=1)[0]
    task = language.text_task(model, text, B, 8)._replace(init=lambda key: filled(model))
    optimiser = make_optimiser(0.03)
    with optax_promotes():
        state, run = begin(task, optimiser, [0]), training(task, optimiser, "cpu")
        batches = [task.batch(0, step) for step in range(60)]
        stacked = [np.stack([batch[k] for batch in batches])[:, None] for k in range(3)]
        state, losses = run(state, tuple(stacked))
    assert losses[0, 0] > 1.5
    assert losses[-1, 0] < 0.3
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    free = jnp.full((7, 2), -1).at[2, 1].set(3)  # one symbol of the second text is given
    prompt = jnp.asarray([[0, 0], [1, 1], [2, 2]])
    written = language.write(model, params, prompt, free, jnp.float32(0.01), jax.random.key(0))
    assert written[:, 0].tolist() == [1, 3, 4, 0, 1, 2, 1]
    assert written[:4, 1].tolist() == [1, 3, 3, 4]


def test_written_symbols_follow_the_probabilities_of_the_model():
    model, params, call = model_of(layers=1)
    prompt, free = jnp.zeros((1, 4000), int), jnp.full((2, 4000), -1)
    first = np.asarray(call(params, prompt[:, :1])[0][0, 0], np.float64)
    second = np.asarray(call(params, jnp.asarray([[0], [2]]))[0][1, 0], np.float64)  # after a 2
    for temperature in (1.0, 0.5):
        drawn = language.write(model, params, prompt, free, jnp.float32(temperature), jax.random.key(1), banned=(1, 3))
        drawn = np.asarray(drawn)
        for logits, tokens in ((first, drawn[0]), (second, drawn[1][drawn[0] == 2])):
            odds = np.exp(logits / temperature) * [1, 0, 1, 0, 1]
            shares = np.bincount(tokens, minlength=V) / len(tokens)
            np.testing.assert_allclose(shares, odds / odds.sum(), atol=0.04)
            assert shares[1] == shares[3] == 0


def test_dropout_keeps_the_mean_and_needs_a_key():
    model, params, call = model_of(layers=1, dropout=0.4)
    bound = model.bind(params)
    ones = jnp.ones((200, 50, 6))
    dropped = np.asarray(bound._dropped(ones, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.6], rtol=1e-6)
    np.testing.assert_allclose((dropped == 0).mean(), 0.4, atol=0.01)
    tokens = jnp.asarray(TEXT[:12].reshape(4, 3))
    plain, noisy, other = (call(params, tokens, None, key)[0] for key in (None, jax.random.key(0), jax.random.key(1)))
    assert not np.allclose(plain, noisy)
    assert not np.allclose(noisy, other)
    np.testing.assert_array_equal(noisy, call(params, tokens, None, jax.random.key(0))[0])


def test_every_cell_by_name_makes_a_model_with_its_parameters():
    """Two layers of 4 units on 3 features, beside an embedding of 5 symbols and a read-out."""
    affine = {"min_gru": 2, "min_lstm": 3}
    layers = {
        "rnn": [4 * (n + 5) for n in (3, 4)],
        "lstm": [16 * (n + 5) for n in (3, 4)],
        "gru": [12 * (n + 5) + 4 for n in (3, 4)],
        "slstm": [16 * (n + 5) for n in (3, 4)],
        **{cell: [gates * 4 * (n + 1) for n in (3, 4)] for cell, gates in affine.items()},
        "rg_lru": [4 * (n + 1) + 8 * (4 + 1) + 4 for n in (3, 4)],
        "lru": [4 * (2 * n + 2 * 4 + 3) + 4 * n for n in (3, 4)],
    }
    assert set(layers) == set(language.LAYERS)
    for cell, counts in layers.items():
        model = language.language_model(5, cell=cell, embedding=3, hidden_size=4, layers=2, dropout=0.0)
        params = jax.eval_shape(model.init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(counts) + 5 * 3 + 5 * (4 + 1), cell


@pytest.mark.parametrize("cell", HEADED)
def test_heads_shrink_the_recurrent_matrices_alone(cell):
    counts = []
    for heads in (1, 2, 4):
        options = {"embedding": 3, "hidden_size": 8, "layers": 2, "dropout": 0.0, "num_heads": heads}
        params = jax.eval_shape(language.language_model(5, cell=cell, **options).init, jax.random.key(0))
        counts.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    gates = {"rnn": 1, "lstm": 4, "gru": 3, "slstm": 4}[cell]
    assert [counts[0] - fewer for fewer in counts[1:]] == [2 * gates * (8 * 8 - 8 * d) for d in (4, 2)]


def test_saved_models_hold_their_heads_and_older_ones_have_none(tmp_path):
    given = {"cell": "gru", "embedding": 2, "hidden_size": 4, "layers": 1, "dropout": 0.0, "num_heads": 2}
    params = jax.tree.map(lambda leaf: leaf[None], filled(saved.model_of(3, given)))
    assert (1, 2, 2, 6) in {leaf.shape for leaf in jax.tree.leaves(params)}  # the blocks, of one seed
    saved.save_model(tmp_path, "char_lm", given, ("a", "b", "c"), params)
    found = saved.load_model(tmp_path, "char_lm")
    for own, leaf in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(own, leaf[0])
    tokens, free = jnp.zeros((2, 1), int), jnp.full((3, 1), -1)
    written = language.write(found.model, found.params, tokens, free, jnp.float32(1.0), jax.random.key(0))
    assert written.shape == (3, 1)
    networks, trained, about = jaxrnn.load(tmp_path / saved.FILE, return_metadata=True)
    assert repr(networks) == "{'net': stack([gru(4, num_heads=2)]), 'read_out': readout(3, activation='softmax')}"
    assert about == {"script": "char_lm", "symbols": ["a", "b", "c"], **given}
    xs = trained["embedding"][jnp.array([[0], [2], [1]])]  # by hand what the model computes
    logits = networks["read_out"].logits(trained["read_out"], networks["net"].unroll(trained["net"], xs)[1])
    theirs = found.model.bind(found.params)(jnp.array([[0], [2], [1]]))[0]
    np.testing.assert_allclose(logits, theirs, rtol=1e-6)
    older = {name: value for name, value in given.items() if name != "num_heads"}
    shapes = [
        jax.eval_shape(saved.model_of(3, own).init, jax.random.key(0)) for own in (older, {**given, "num_heads": 1})
    ]
    assert shapes[0] == shapes[1]


def test_models_of_earlier_versions_are_read(tmp_path):
    about = {"symbols": ["a", "b"], "cell": "rnn", "embedding": 2, "hidden_size": 3, "layers": 1, "dropout": 0.0}
    params = filled(saved.model_of(2, about))
    arrays = {name: np.asarray(leaf) for name, leaf in saved._named(params).items()}
    assert sorted(arrays)[0] == "embedding.embedding.value"
    for script, digest in (("char_lm", saved._digest(about, arrays)), ("char_lm", "other"), ("poems", "other")):
        save_file(arrays, tmp_path / saved.FILE, {script: json.dumps({**about, "digest": digest})})
        if digest == "other":
            with pytest.raises(ValueError, match="is damaged, or not of this script"):
                saved.load_model(tmp_path, "char_lm")
        else:
            chex.assert_trees_all_equal(saved.load_model(tmp_path, "char_lm").params, params)


def test_heads_are_checked_by_cell_and_units():
    check_heads("min_gru", 6, 1)
    check_heads("gru", 6, 3)
    with pytest.raises(
        ValueError, match="--num-heads expected 1 with rg_lru, which has no heads, got 2; cells with heads: rnn, "
    ):
        check_heads("rg_lru", 6, 2)
    with pytest.raises(ValueError, match="--num-heads expected a number that divides --hidden-size 6, got 4"):
        check_heads("lstm", 6, 4)
    assert set(HEADED) | set(AFFINE) == set(language.LAYERS)
    assert (label_of("gru"), label_of("gru", 4)) == ("GRU", "GRU, 4 heads")
