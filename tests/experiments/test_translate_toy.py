"""Translation between sequences: its pairs, encoder and decoder, loss and accuracy, a small run, and refusals."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import translate_toy
from experiments.datasets import translation
from tests.support.training import filled, optax_promotes


@pytest.mark.parametrize(("name", "size"), [("addition", 3), ("reversal", 7)])
@pytest.mark.parametrize("test", [False, True])
def test_pairs_are_correct_and_stay_in_one_part(name, size, test):
    language = translation.LANGUAGES[name]
    pairs = translation.draw_pairs(language, size, 300, (1, 2), test=test)
    for source, length, target in zip(*pairs, strict=True):
        text, wanted = translation.decode(language, source[:length]), translation.decode(language, target)
        assert wanted == (text[::-1] if name == "reversal" else str(sum(map(int, text.split("+")))))
        assert translation.held_out(text) == test
        assert not source[length:].any()
        assert target[len(wanted)] == translation.END
        assert not target[len(wanted) + 1 :].any()
    assert len(set(pairs.lengths.tolist())) > 3
    again = translation.draw_pairs(language, size, 300, (1, 2), test=test)
    chex.assert_trees_all_equal(pairs, again)
    other = translation.draw_pairs(language, size, 300, (1, 3), test=test)
    assert (pairs.sources != other.sources).any()


def made(cell="gru"):
    model = translate_toy.model_of(translate_toy.Config(size=2, cell=cell, hidden_size=5, embedding=3))
    return model, filled(model)


def test_decoder_starts_from_the_last_states_of_each_source():
    model, params = made("lstm")
    pairs = translation.draw_pairs(translation.LANGUAGES["addition"], 2, 6, (0,))
    bound = model.bind(params)
    states = bound.read(jnp.asarray(pairs.sources.T), jnp.asarray(pairs.lengths))
    step = jax.jit(lambda states, symbol: bound.encoder(bound.embedding(symbol), states)[1])
    alone, seen = jax.tree.map(jnp.zeros_like, states), []
    for symbols in pairs.sources.T[:, None]:
        alone = step(alone, jnp.asarray(symbols))
        seen.append(alone)
    for k, length in enumerate(pairs.lengths):
        pick = lambda a, b, k=k: np.testing.assert_allclose(a[:, k], b[:, k], rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(pick, states, seen[length - 1])


def test_loss_and_accuracy_equal_hand_computation():
    model, params = made()
    bound = model.bind(params)
    bound.readout.c[...] = jnp.zeros(14).at[translation.PAD].set(-99)  # padding is never written
    params = nnx.state(bound, nnx.Param)
    pairs = translation.draw_pairs(translation.LANGUAGES["addition"], 2, 8, (0,))
    read, write = jax.jit(bound.read), jax.jit(bound.write)
    begun = read(jnp.asarray(pairs.sources.T), jnp.asarray(pairs.lengths))
    states, symbol, own = begun, np.full((1, 8), translation.BEGIN), []
    for _ in range(4):
        logits, states = write(states, jnp.asarray(symbol, jnp.int32))
        symbol = np.argmax(logits, -1)
        own.append(symbol[0])
    targets, own = np.stack(own, 1), np.stack(own, 1)
    targets[1, 3] = 3 + (targets[1, 3] == 3)  # the last symbol differs from the one it writes
    targets[2, 0] = 3 + (targets[2, 0] == 3)  # so does the first
    targets[3, 2:] = translation.PAD  # later symbols are not compared
    targets[4] = [3 + (own[4, 0] == 3), translation.PAD, translation.PAD, translation.PAD]
    targets[5:] = pairs.targets[5:]
    pairs = pairs._replace(targets=targets.astype(np.int32))
    states, symbol, nats = begun, np.full((1, 8), translation.BEGIN), []
    for wanted in targets.T:
        logits, states = write(states, jnp.asarray(symbol, jnp.int32))
        odds = np.exp(np.asarray(logits[0], np.float64))
        nats += [-np.log(odds[k, s] / odds[k].sum()) for k, s in enumerate(wanted) if s != translation.PAD]
        symbol = wanted[None]
    found = translate_toy.accuracy_of(model, pairs, "cpu")(jax.tree.map(lambda leaf: leaf[None], params))
    right = ((own == targets) | (targets == translation.PAD)).all(1)
    assert right.tolist()[:5] == [True, False, False, True, False]
    np.testing.assert_allclose(found["right"], [right.mean()])
    np.testing.assert_allclose(found["test loss"], [np.mean(nats)], rtol=1e-5)


def test_small_run_learns_to_reverse(tmp_path, monkeypatch):
    monkeypatch.setattr(translate_toy, "TEST_PAIRS", 200)
    options = {
        "task": "reversal",
        "size": 2,
        "steps": 150,
        "evaluate-every": 75,
        "hidden-size": 32,
        "batch-size": 32,
        "learning-rate": 0.02,
        "cell": "gru",
    }
    with optax_promotes():
        assert translate_toy.main([*(f"--{name}={value}" for name, value in options.items()), f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert record["right"][0] > 0.9
    assert record["steps"] == [75, 150]
    for example in record["examples"]:
        assert example["target"] == example["source"][::-1]
    shares = [json.loads(line)["right"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(shares, record["right_by_evaluation"], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "learning_curves.png",
        "learning_curves.svg",
        "log.jsonl",
        "results.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--task sorting", "--task expected reversal, addition; got sorting"),
        ("--cell mamba", "--cell expected rnn, lstm, gru, min_gru, min_lstm, rg_lru, lru, slstm; got mamba"),
        ("--size 0", "--size expected a positive number, got 0"),
        ("--task reversal --size 1", "--size of reversal expected 2 to 1000, got 1"),  # no pair would be held out
        ("--size 19", "--size of addition expected 1 to 18, got 19"),  # the limit of 64 bits
        ("--evaluate-every -5", "--evaluate-every expected a positive number, got -5"),
        ("--seeds 0", "--seeds"),
        ("--seed -1", "--seed expected a number that is not negative, got -1"),
        ("--save-every 0", "--save-every"),
        ("--resume", "--resume expected checkpoints in"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(translate_toy, "train", lambda *_: pytest.fail("trained"))
    assert translate_toy.main([*arguments.split(), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"translate_toy: {complaint}")
    assert not (tmp_path / "out").exists()
