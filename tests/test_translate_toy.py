"""Translation between sequences: what is drawn, that encoder and decoder see what they may, and that a small run learns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _translation as translation
from experiments import translate_toy
from tests.test_experiments import optax_promotes


@pytest.mark.parametrize(("name", "size"), [("addition", 3), ("reversal", 7)])
@pytest.mark.parametrize("test", [False, True])
def test_pairs_are_right_and_of_one_part(name, size, test):
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
    jax.tree.map(np.testing.assert_array_equal, pairs, again)
    other = translation.draw_pairs(language, size, 300, (1, 3), test=test)
    assert (pairs.sources != other.sources).any()


def made(cell="gru"):
    config = translate_toy.Config(task="addition", size=2, cell=cell, hidden_size=5, embedding=3)
    model = translate_toy.model_of(config)
    return config, model, model.init(jax.random.key(0))


def test_the_decoder_is_given_the_last_states_of_each_source():
    _, model, params = made("lstm")
    pairs = translation.draw_pairs(translation.LANGUAGES["addition"], 2, 6, (0,))
    bound = model.bind(params)
    states = bound.read(jnp.asarray(pairs.sources.T), jnp.asarray(pairs.lengths))
    for k, length in enumerate(pairs.lengths):
        alone = bound.encoder(bound.embedding(jnp.asarray(pairs.sources[k, :length, None])))[1]
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(a[:, k], b[:, 0], rtol=1e-5, atol=1e-6), states, alone
        )


def test_loss_and_accuracy_by_hand():
    config, model, params = made()
    pairs = translation.draw_pairs(translation.LANGUAGES["addition"], 2, 8, (0,))
    bound, total, count, right = model.bind(params), 0.0, 0, 0
    for source, length, target in zip(*pairs, strict=True):
        states = bound.read(jnp.asarray(source[:, None]), jnp.asarray([length]))
        written, greedy, previous, own = [], states, translation.BEGIN, translation.BEGIN
        for symbol in target[: int((target != translation.PAD).sum())]:
            logits, states = bound.write(states, jnp.asarray([[previous]]))
            odds = np.asarray(logits[0, 0], np.float64)
            total += np.log(np.exp(odds).sum()) - odds[symbol]
            previous, count = int(symbol), count + 1
            logits, greedy = bound.write(greedy, jnp.asarray([[own]]))
            own = int(np.argmax(logits[0, 0]))
            written.append(own == symbol)
        right += all(written)
    np.testing.assert_allclose(translate_toy.loss_of(bound, jax.tree.map(jnp.asarray, pairs)), total / count, rtol=1e-5)
    found = translate_toy.accuracy_of(model, pairs)(jax.tree.map(lambda leaf: leaf[None], params))
    np.testing.assert_allclose(found["right"], [right / 8])
    np.testing.assert_allclose(found["test loss"], [total / count], rtol=1e-5)
    del config


def test_a_small_run_learns_to_reverse(tmp_path):
    options = {
        "task": "reversal",
        "size": 2,
        "steps": 200,
        "evaluate-every": 100,
        "hidden-size": 32,
        "batch-size": 32,
        "cell": "gru",
    }
    with optax_promotes():
        assert translate_toy.main([*(f"--{name}={value}" for name, value in options.items()), f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert record["right"][0] > 0.9
    assert record["steps"] == [100, 200]
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
        ("--cell mamba", "--cell expected rnn, lstm, gru; got mamba"),
        ("--size 0", "--size expected a positive number, got 0"),
        ("--evaluate-every -5", "--evaluate-every expected a positive number, got -5"),
        ("--seeds 0", "--seeds"),
        ("--seed -1", "--seed expected a number that is not negative, got -1"),
        ("--save-every 0", "--save-every"),
        ("--resume", "--resume expected checkpoints in"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(translate_toy, "train", lambda *_: pytest.fail("trained"))
    assert translate_toy.main([*arguments.split(), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"translate_toy: {complaint}")
    assert not (tmp_path / "out").exists()
