"""Scripts for real tasks: models of published sizes, metrics against hand computations, runs and refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import char_lm, japanese_vowels, mnist_1d, poems, polyphonic_music
from experiments.datasets import poems as quatrains
from experiments.datasets.airline import Series
from experiments.datasets.vowels import Utterances
from experiments.forecast import __main__ as forecast
from experiments.forecast import airline
from experiments.models.language import language_model
from experiments.training.accuracy import accuracy_record, print_accuracy
from experiments.training.loop import Course, Evaluation, TrainState
from tests.support.training import filled, optax_promotes

SCRIPTS = {
    "char_lm": char_lm,
    "forecast": forecast,
    "japanese_vowels": japanese_vowels,
    "mnist_1d": mnist_1d,
    "poems": poems,
    "polyphonic_music": polyphonic_music,
}
KEY = jax.random.key(0)


def called(model, params):
    """The compiled call of a model."""
    return jax.jit(lambda *given: model.bind(params)(*given))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def of_one(params):
    """A population of one."""
    return jax.tree.map(lambda leaf: leaf[None], params)


# ---- MNIST-1D


def test_mnist_1d_model_matches_the_published_one():
    """The published one has 5,134 parameters; 24 of them are PyTorch's second biases of r and z."""
    model = mnist_1d.model_of(mnist_1d.Config(), 40)
    params = filled(model)
    assert count(params) == 5134 - 2 * 2 * 6
    xs = jnp.asarray(np.random.default_rng(0).standard_normal((3, 40, 1), np.float32))
    bound = model.bind(params)
    ys, _ = jax.jit(bound.layer)(xs)
    assert ys.shape == (3, 40, 12)
    wanted = np.asarray(ys).reshape(3, -1) @ np.asarray(bound.readout.v[...]) + np.asarray(bound.readout.c[...])
    np.testing.assert_allclose(called(model, params)(xs), wanted, rtol=1e-5, atol=1e-5)


def test_mnist_1d_batches_follow_the_order_of_the_file():
    images = mnist_1d.load(mnist_1d.Config())
    task = mnist_1d.task_of(mnist_1d.model_of(mnist_1d.Config(), 40), images, 100)
    for step, first in ((0, 0), (39, 3900), (40, 0), (41, 100)):
        xs, labels = task.batch(7, step)
        np.testing.assert_array_equal(xs, images.train_images[first : first + 100])
        np.testing.assert_array_equal(labels, images.train_labels[first : first + 100])


# ---- Japanese vowels


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_vowel_class_is_read_from_both_ends_of_a_sequence(cell):
    rng = np.random.default_rng(0)
    xs, lengths = rng.standard_normal((3, 6, 2), np.float32), np.array([6, 2, 4], np.int32)
    xs[1, 2:] = np.nan  # padding is ignored
    config = japanese_vowels.Config(cell=cell, hidden_size=4)
    part = Utterances(xs, lengths, np.array([0, 1, 2], np.int32))
    model = japanese_vowels.model_of(config, japanese_vowels.Vowels(part, part))
    params = filled(model)
    bound, found = model.bind(params), called(model, params)(jnp.asarray(xs), jnp.asarray(lengths))
    layer = jax.jit(lambda xs: bound.layer(xs)[0])
    for k, length in enumerate(lengths):
        alone = np.zeros((2, 6, 2), np.float32)  # zeros follow its end, and precede its start
        alone[0, :length], alone[1, -length:] = xs[k, :length], xs[k, :length]
        ys = layer(jnp.asarray(alone.swapaxes(0, 1)))
        ends = np.concatenate([ys[length - 1, 0, :4], ys[-length, 1, 4:]])
        wanted = ends @ np.asarray(bound.readout.v[...]) + np.asarray(bound.readout.c[...])
        np.testing.assert_allclose(found[k], wanted, rtol=1e-4, atol=1e-6)


def test_vowel_batches_are_sorted_by_length():
    lengths = np.random.default_rng(0).integers(7, 30, 54).astype(np.int32)
    train = Utterances(np.arange(54.0)[:, None, None], lengths, np.arange(54, dtype=np.int32))
    model = japanese_vowels.model_of(japanese_vowels.Config(), japanese_vowels.Vowels(train, train))
    task = japanese_vowels.task_of(japanese_vowels.Config(), model, train)
    with_order = [task.batch(0, step) for step in (0, 1, 2)]
    assert with_order[0].lengths.max() <= with_order[1].lengths.min()
    np.testing.assert_array_equal(with_order[0].labels, with_order[2].labels)
    for batch in with_order:
        np.testing.assert_array_equal(batch.xs[:, 0, 0], batch.labels)
        np.testing.assert_array_equal(batch.lengths, lengths[batch.labels])
    mixed = japanese_vowels.task_of(japanese_vowels.Config(sort=False), model, train)
    assert sorted(np.concatenate([mixed.batch(0, step).labels for step in (0, 1)])) == list(range(54))


# ---- polyphonic music


@pytest.mark.parametrize("group", [32, 3, 1])
def test_music_nats_equal_hand_computation(group, monkeypatch):
    """The mean is over all steps, however the pieces are grouped."""
    monkeypatch.setattr(polyphonic_music, "BATCH", group)
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 2, (length, 88)).astype(np.uint8) for length in (5, 2, 9, 3)]
    model = polyphonic_music.functional(lambda rngs: polyphonic_music.Composer("gru", 4, 0.5, rngs))
    params = filled(model)
    call, total, steps = called(model, params), 0, 0
    for piece in pieces:
        padded = np.float32(np.pad(piece[:-1], ((0, 9 - len(piece)), (0, 0))))[:, None]  # later steps change nothing
        odds = 1 / (1 + np.exp(-np.float64(call(padded, jnp.array([8])))[: len(piece) - 1, 0]))
        total -= np.sum(np.where(piece[1:] == 1, np.log(odds), np.log(1 - odds)))
        steps += len(piece) - 1
    np.testing.assert_allclose(
        polyphonic_music.evaluation(model, pieces, "cpu")(of_one(params)), [total / steps], rtol=1e-5
    )


@pytest.mark.parametrize("cell", list(polyphonic_music.LAYERS))
def test_hidden_size_meets_its_budget(cell):
    for budget in (1_000, 20_000):
        size = polyphonic_music.hidden_size_of(cell, budget)
        sizes = [
            count(
                jax.eval_shape(
                    polyphonic_music.functional(lambda rngs, h=h: polyphonic_music.Composer(cell, h, 0.0, rngs)).init,
                    KEY,
                )
            )
            for h in (size, size + 1)
        ]
        assert sizes[0] <= budget < sizes[1]


def test_music_windows_come_from_one_piece():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 2, (length, 88)).astype(np.uint8) for length in (5, 20, 9, 30)]
    task = polyphonic_music.task_of(
        polyphonic_music.Config(batch_size=2, window=8),
        polyphonic_music.functional(lambda rngs: polyphonic_music.Composer("rnn", 2, 0.0, rngs)),
        pieces,
    )
    starts = set()
    for step in range(300):
        batch = task.batch(1, step)
        assert batch.notes.shape == (2, 8, 88)
        for notes, length in zip(*batch, strict=True):
            where = [
                (k, t)
                for k, piece in enumerate(pieces)
                for t in range(len(piece) - length + 1)
                if (piece[t : t + length] == notes[:length]).all()
            ]
            assert len(where) == 1
            assert length == min(8, len(pieces[where[0][0]]))
            assert not notes[length:].any()
            starts.add(where[0])
    assert {k for k, _ in starts} == {0, 1, 2, 3}
    assert {t for k, t in starts if k == 1} >= {0, 12}  # windows reach both ends of a piece


# ---- forecasts


def test_naive_forecasts_and_errors_equal_hand_computation():
    months = np.arange("1950-03", "1953-03", dtype="datetime64[M]")
    values = np.float32(100 + 10 * np.arange(36) + 5 * np.sin(np.arange(36)))
    found = airline.naive(values)
    for t in (13, 20, 35):
        assert found["last month"][t] == values[t - 1]
        assert found["a year before"][t] == values[t - 12]
        growth = values[t - 12] / values[t - 13]
        np.testing.assert_allclose(found["last month, growing as a year before"][t], values[t - 1] * growth, rtol=1e-6)
    np.testing.assert_allclose(airline.rmse(np.array([1.0, 2.0]), np.array([4.0, 6.0])), np.sqrt(12.5))
    prepared = airline.prepare(Series(months, values), 24)
    np.testing.assert_allclose(airline.forecasts(prepared, prepared.changes), values[1:], rtol=1e-5)
    logs = np.log(values)
    np.testing.assert_allclose(prepared.xs[:, 0], ((logs - logs[:24].mean()) / logs[:24].std())[:-1], rtol=1e-4)
    january = [t for t in range(35) if str(months[t + 1]).endswith("-01")]
    np.testing.assert_allclose(prepared.xs[january, 1:], [[0, 0, 0, 1, 1, 1]] * len(january), atol=1e-6)
    task = airline.task_of(airline.Config(window=6, batch_size=50, noise=0.0), None, prepared, 24)
    xs, changes = task.batch(0, 0)
    assert xs.shape == (50, 6, 7)
    assert set(np.unique(changes)) <= set(prepared.changes[:23])  # no held-out month occurs
    for k in range(50):
        first = np.flatnonzero(prepared.xs[:, 0] == xs[k, 0, 0])[0]
        np.testing.assert_array_equal(changes[k], prepared.changes[first : first + 6])


def test_networks_use_the_best_rate_and_the_dropout_of_their_size():
    config = polyphonic_music.Config(cells=("gru",))
    nan = float("nan")
    assert polyphonic_music.best_rate(config, {1e-3: 9.0, 3e-3: 8.5, 1e-2: nan}) == 3e-3
    assert polyphonic_music.best_rate(config, {1e-3: nan, 3e-3: nan, 1e-2: 9.9}) == 1e-2
    assert polyphonic_music.rates_to_try(config) == (1e-3, 3e-3, 1e-2)
    one = dataclasses.replace(config, learning_rates=(0.02,))
    assert polyphonic_music.rates_to_try(one) == ()
    assert polyphonic_music.best_rate(one, {}) == 0.02
    assert [network.dropout for network in polyphonic_music.networks_of(config)] == [0.0, 0.2]
    given = dataclasses.replace(config, dropout=0.1)
    assert [network.dropout for network in polyphonic_music.networks_of(given)] == [0.1, 0.1]


def test_forecast_loss_covers_every_month(monkeypatch):
    """The network answers a quarter of its input, which is the month's index."""
    monkeypatch.setattr(airline, "many_to_many", lambda cell, model, xs: xs[..., :1] / 4)
    months = np.arange("1950-03", "1953-03", dtype="datetime64[M]")
    prepared = airline.prepare(Series(months, np.arange(100, 136, dtype=np.float32)), 24)
    task = airline.task_of(airline.Config(window=3, batch_size=2), None, prepared, 24)
    xs = np.float32([[[0], [1], [2]], [[3], [4], [5]]])  # (B, T, I)
    changes = np.float32([[0.0, 0.25, 0.5], [0.75, 1.0, 1.5]]) * airline.SCALE
    found, _ = task.loss(None, (), (xs, changes), None)
    np.testing.assert_allclose(found, (100 * 0.25 * airline.SCALE) ** 2 / 6, rtol=1e-5)


def test_accuracy_record_holds_every_seed_and_evaluation(capsys):
    def at(step, *values):
        return Evaluation(step, 1.0, np.zeros(2), {"test accuracy": np.float64(values)})

    state = TrainState(None, None, {"w": np.zeros((2, 5))}, None, None)
    course = Course(state, None, [at(10, 0.1, 0.2), at(20, 0.75, 0.85)])
    record = accuracy_record(course, [3, 4])
    assert record["test_accuracy"] == [0.75, 0.85]
    assert (record["test_accuracy_mean"], record["parameters"], record["steps"]) == (pytest.approx(0.8), 5, [10, 20])
    assert record["test_accuracy_by_evaluation"] == [[0.1, 0.2], [0.75, 0.85]]
    print_accuracy("accuracy", course, "90")
    assert "75.0 85.0 │ 80.0 │        90 │          5" in capsys.readouterr().out


# ---- poems


LINES = ("白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓")


@pytest.mark.parametrize("part", [256, 2, 1])
def test_poem_nats_equal_hand_computation(part, monkeypatch):
    """The mean is over all symbols, in however many parts the poems are read."""
    monkeypatch.setattr(poems, "BATCH", part)
    poem, other = quatrains.Poem(LINES, "，。，。"), quatrains.Poem(tuple(line + "山河" for line in LINES), "，。，。")
    own = quatrains.vocabulary([poem])
    encoded, lengths = quatrains.encode_all(own, [poem, other, poem])
    model = language_model(len(own.symbols), cell="gru", embedding=3, hidden_size=4, layers=1, dropout=0.5)
    params = filled(model)
    call, total, symbols = called(model, params), 0, 0
    for row, length in zip(encoded, lengths, strict=True):
        logits = np.asarray(call(jnp.asarray(row[:, None]))[0][: length - 1, 0], np.float64)
        total += np.sum(np.log(np.exp(logits).sum(-1)) - logits[np.arange(length - 1), row[1:length]])
        symbols += length - 1
    assert symbols == 2 * 25 + 33
    np.testing.assert_allclose(
        poems.nats_of(model, encoded, lengths, "cpu")(of_one(params)), [total / symbols], rtol=1e-5
    )
    shares = np.bincount(encoded[0, 1:26], minlength=len(own.symbols)) + 1
    wanted = -np.log(shares / shares.sum())[encoded[1, 1 : lengths[1]]].mean()
    found = poems.unigram_nats((encoded[:1], lengths[:1]), (encoded[1:2], lengths[1:2]), len(own.symbols))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_written_poems_keep_a_first_line_and_an_acrostic():
    own = quatrains.vocabulary([quatrains.Poem(LINES, "，。，。")])
    model = language_model(len(own.symbols), cell="rnn", embedding=3, hidden_size=4, layers=1, dropout=0.0)
    saved = poems.Saved(model, filled(model), own.symbols)
    options = {"samples": 4, "temperature": 1.0, "seed": 0}
    for text in poems.written(saved, 5, first="白日依", acrostic="白黃欲更", **options):
        assert text[:3] == "白日依"
        assert text[6:7] in ("黃", "")
        assert "<" not in text
    forced = poems.places_of(7, "白日", "白黃欲更")
    assert forced == {0: "白", 1: "日", 8: "黃", 16: "欲", 24: "更"}


# ---- runs


@pytest.fixture(scope="module")
def small_text(tmp_path_factory):
    """A repeating text, and a model that has learned it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "song.txt").write_text("to be, or not to be. " * 400, encoding="utf-8")
    options = {
        "text": folder / "song.txt",
        "hidden-size": 32,
        "embedding": 8,
        "epochs": 6,
        "batch-size": 8,
        "window": 20,
        "learning-rate": 0.02,
        "dropout": 0.1,
        "out": folder / "out",
    }
    with optax_promotes():
        assert char_lm.main([f"--{name}={value}" for name, value in options.items()]) == 0
    return folder


def test_language_model_learns_saves_and_continues_a_prompt(small_text, capsys):
    record = json.loads((small_text / "out" / "results.json").read_text(encoding="utf-8"))
    assert record["validation_nats"][0] < 0.15
    np.testing.assert_allclose(record["validation_bits"][0], record["validation_nats"][0] / np.log(2))
    assert record["parameters"] == 9 * 8 + 4 * 32 * (8 + 32 + 1) + 32 * 9 + 9  # nine characters
    sample = ["sample", "--model", str(small_text / "out"), "--length", "21", "--temperature", "0.1"]
    assert char_lm.main([*sample, "--prompt", "to be, or"]) == 0
    assert capsys.readouterr().out == "to be, or not to be. to be, or\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--prompt quit", "--prompt expected characters of the text that was learned, got 'i'"),
        ("--prompt=", "got nothing"),
        ("--length 0", "--length expected a positive number"),
        ("--temperature 0", "--temperature"),
        (
            "--model nowhere",
            "--model nowhere holds no model.safetensors; train one with: python -m experiments.char_lm",
        ),
    ],
)
def test_bad_sample_options_are_refused(arguments, complaint, small_text, capsys):
    assert char_lm.main(["sample", "--model", str(small_text / "out"), *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert complaint in err


def test_damaged_models_and_models_of_other_scripts_are_refused(small_text, tmp_path, capsys):
    assert poems.main(["write", "--model", str(small_text / "out")]) == 2
    assert "damaged, or not of this script" in capsys.readouterr().err
    content = (small_text / "out" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert char_lm.main(["sample", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_existing_run_is_kept_and_resumes_only_with_its_options(small_text, capsys):
    again = [f"--text={small_text / 'song.txt'}", f"--out={small_text / 'out'}"]
    options = json.loads((small_text / "out" / "results.json").read_text(encoding="utf-8"))["config"]
    own = {**options, "text": small_text / "song.txt", "out": small_text / "out", "data_dir": None, "resume": True}
    char_lm.check(char_lm.Config(**own))
    with pytest.raises(ValueError, match="has dropout 0.1, this one 0.2; give the same settings"):
        char_lm.check(char_lm.Config(**{**own, "dropout": 0.2}))
    before = {path: path.read_bytes() for path in (small_text / "out").rglob("*") if path.is_file()}
    assert char_lm.main([*again, "--window=20", "--batch-size=8"]) == 2
    assert "holds checkpoints of an earlier run" in capsys.readouterr().err
    assert char_lm.main([*again, "--window=20", "--batch-size=8", "--resume"]) == 2
    assert "give the same settings, or another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (small_text / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        ("char_lm", "--text empty.txt", "empty.txt: the text is empty"),
        ("char_lm", "--text latin.txt", "UTF-8"),
        ("char_lm", "--text short.txt", "give a longer text or a smaller --window"),
        ("char_lm", "--text strange.txt --window 2 --batch-size 2", "do not occur in the training text"),
        ("char_lm", "--text nowhere.txt", "cannot read the text nowhere.txt"),
        ("char_lm", "--data-dir nowhere", "python -m experiments.datasets get tiny-shakespeare"),
        ("char_lm", "--text long.txt --batch-size 500", "--window 64 is more than the text has"),
        ("char_lm", "--text long.txt --num-heads 0", "--num-heads expected a positive number, got 0"),
        (
            "char_lm",
            "--text long.txt --num-heads 3",
            "--num-heads expected a number that divides --hidden-size 256, got 3",
        ),
        (
            "char_lm",
            "--text long.txt --cell min_gru --num-heads 2",
            "--num-heads expected 1 with min_gru, which has no heads, got 2; cells with heads: rnn, lstm, gru, slstm",
        ),
        ("char_lm", "--text long.txt --dropout 1", "--dropout expected a share in [0, 1), got 1"),
        (
            "char_lm",
            "--text long.txt --cell mamba",
            "--cell expected rnn, lstm, gru, min_gru, min_lstm, rg_lru, lru, slstm; got mamba",
        ),
        ("char_lm", "--data-dir wrong", "get it again with: python -m experiments.datasets get tiny-shakespeare"),
        ("poems", "--data-dir nowhere", "python -m experiments.datasets get poems"),
        ("poems", "--hidden-size -1", "--hidden-size expected a positive number, got -1"),
        ("poems", "write --form 6", "--form expected 5, 7; got 6"),
        ("poems", "write --first 白日依山盡黃河入", "--first expected at most 7 characters, got 8"),
        ("poems", "write --acrostic 春夏秋", "--acrostic expected 4 characters, one for each line, got 3"),
        ("poems", "write --first 白 --acrostic 春夏秋冬", "begin differently"),
        ("polyphonic_music", "--dataset bach", "--dataset expected jsb, nottingham; got bach"),
        ("polyphonic_music", "--data-dir nowhere", "python -m experiments.datasets get jsb"),
        ("polyphonic_music", "--window 1", "--window expected at least 2 steps"),
        ("polyphonic_music", "--budgets 100", "--budgets 100 is too little for one unit of rnn"),
        ("japanese_vowels", "--data-dir nowhere", "python -m experiments.datasets get japanese-vowels"),
        ("polyphonic_music", "--learning-rates 0 1", "--learning-rates expected a positive number, got 0"),
        (
            "japanese_vowels",
            "--cell mamba",
            "--cell expected rnn, lstm, gru, min_gru, min_lstm, rg_lru, slstm; got mamba",
        ),
        ("japanese_vowels", "--epochs 0", "--epochs expected a positive number, got 0"),
        ("mnist_1d", "--batch-size 300", "--batch-size 300 does not divide the 4,000 sequences"),
        ("mnist_1d", "--cell mamba", "--cell expected"),
        ("mnist_1d", "--hidden-size -1", "--hidden-size expected a positive number, got -1"),
        ("forecast", "--cell mamba", "--cell expected"),
        ("forecast", "--devices 0", "--devices expected a positive number, got 0"),
        ("forecast", "--processes 2", "--processes expected --coordinator beside it"),
        ("forecast", "--data-dir nowhere", "python -m experiments.datasets get nyc-weather"),
        ("forecast", "airline --data-dir nowhere", "python -m experiments.datasets get airline"),
        ("forecast", "airline --noise -1", "--noise expected a number that is not negative, got -1"),
        ("forecast", "--horizon 300", "--horizon expected at most 216"),
        ("forecast", "--history 200", "--history and --horizon expected 216 hours at most, got 224"),
        ("forecast", "--dropout 1", "--dropout expected a share in [0, 1), got 1"),
        ("forecast", "--noise -1", "--noise expected a number that is not negative, got -1"),
    ],
)
def test_bad_options_are_refused_in_one_line(script, arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "tinyshakespeare.txt").write_text("to be")
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 1000)
    (tmp_path / "short.txt").write_text("to be")
    (tmp_path / "strange.txt").write_text("to be, or not to be. " * 20 + "§", encoding="utf-8")
    (tmp_path / "long.txt").write_text("to be, or not to be. " * 1000)
    monkeypatch.setattr(SCRIPTS[script], "run", lambda *_: pytest.fail("trained"))
    assert SCRIPTS[script].main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"{script}: ")
    assert complaint in err
    assert not (tmp_path / "results").exists()
