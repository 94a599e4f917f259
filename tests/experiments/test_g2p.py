"""Spelling to phonemes: the dictionary and its split, batches, the network against single words, errors, and a small run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.datasets import cmudict
from experiments.g2p import __main__ as g2p
from experiments.g2p import examples, model, scores
from tests.support.dataset_files import set_of, write
from tests.support.training import optax_promotes

FEW = """\
'bout B AW1 T
a AH0
a(2) EY1
a(3) EY0
a.d. EY2 D IY1
naïve N AY2 IY1 V
aalto AA1 L T OW2 # name, finnish
"""


def test_the_dictionary_is_read_without_stress_marks_and_other_signs():
    assert cmudict.parse(FEW, "few") == {
        "'bout": [("B", "AW", "T")],
        "a": [("AH",), ("EY",)],
        "aalto": [("AA", "L", "T", "OW")],
    }
    for line in ("word", "", "word B 7", "word b"):
        with pytest.raises(ValueError, match="^few, line 8: expected a word and phonemes, got "):
            cmudict.parse(FEW + line + "\n", "few")


@pytest.mark.parametrize("words", [
    "make makes making maker made's", "run runs running runner run's runs'", "carry carries carried carrying carrier",
    "box boxes boxed boxing box's", "pass passes passed passing", "horse horses horse's", "wide wider widest",
])  # fmt: skip
def test_inflections_have_one_stem(words):
    one, *others = (cmudict.stem(word) for word in words.split() if word != "made's")
    assert set(others) == {one}


def test_a_stem_is_in_one_part_and_a_word_in_every_split_once():
    """The parts have about their shares; a part does not depend on the other words."""
    letters = ["".join(own) for own in itertools.product("bdkmprt", "aeiou", "bdkmprt", "aeo")]
    words = {word + ending: [("AH",)] for word in letters for ending in ("", "s", "'s", "ing", "ed")}
    for by in ("stem", "word"):
        parts = cmudict.split(words, by)
        assert sorted(word for part in parts for word in part) == sorted(words)
        shares = [len(part) / len(words) for part in parts]
        np.testing.assert_allclose(shares, [0.878, 0.022, 0.1], atol=0.03)
        half = cmudict.split(dict(list(words.items())[::2]), by)
        assert all(set(some) <= set(every) for some, every in zip(half, parts, strict=True))
        stems = [{cmudict.stem(word) for word in part} for part in parts]
        assert bool(stems[0] & stems[2]) == (by == "word")
    assert by == "word"


def test_the_dictionary_is_read_from_its_folder(tmp_path):
    contents = {"cmudict.dict": FEW.encode()}
    write(tmp_path, contents)
    parts = cmudict.load_cmudict("word", tmp_path, set_of(contents))
    assert {word for part in parts for word in part} == {"'bout", "a", "aalto"}


# ---- batches

PAIRS = [(("ab" * 13)[:size], ("B", "IY")[: 1 + size % 2]) for size in (*range(1, 20), *range(1, 20), 25)]


def test_words_and_phonemes_are_encoded_and_decoded():
    own = examples.encoded([("it's", ("IH", "T", "S")), ("a", ("AH",))])
    assert own.lengths.tolist() == [4, 1]
    assert own.target_lengths.tolist() == [4, 2]
    assert own.sources.tolist() == [[9, 20, 0, 19], [1, 0, 0, 0]]
    assert [examples.decoded(row) for row in own.targets.tolist()] == [("IH", "T", "S"), ("AH",)]
    assert examples.decoded([1, 2]) == ("AA", "AE")  # without an end


@pytest.mark.parametrize(
    ("most", "tops"), [(8, [5, 6, 7, 8, 9, 10, 12, 20]), (4, [6, 8, 10, 20]), (2, [8, 20]), (1, [20])]
)
def test_buckets_have_all_pairs_but_the_longest(most, tops):
    buckets = examples.in_buckets(PAIRS, most)
    assert [own.sources.shape[1] for own in buckets] == [own.targets.shape[1] for own in buckets] == tops
    sizes = [np.maximum(own.lengths, own.target_lengths) for own in buckets]
    assert sum(map(len, sizes)) == len(PAIRS) - 1
    assert all(below < own.min() and own.max() <= top for below, top, own in zip([0, *tops], tops, sizes, strict=False))


def test_an_epoch_has_every_pair_at_most_once_and_blocks_of_one_shape():
    pairs = [("".join(own)[:size], ("AH",)) for own in itertools.product("abc", repeat=4) for size in (4, 4, 4)]
    pairs += [(word * 2, ("AH",)) for word, _ in pairs]
    buckets = examples.in_buckets([(f"{word}{'z' * (k % 2)}", own) for k, (word, own) in enumerate(pairs)])
    steps, size = examples.steps_per_epoch(buckets, 6), 6
    assert steps == examples.BLOCK * sum(len(own.lengths) // (examples.BLOCK * size) for own in buckets)
    for epoch in (0, 1):
        seen = [examples.batch_of(buckets, size, 3, epoch * steps + k) for k in range(steps)]
        other = [examples.batch_of(buckets, size, 4, epoch * steps + k) for k in range(steps)]
        shapes = [own.sources.shape for own in seen]
        assert shapes == [own.sources.shape for own in other]
        assert all(len(set(shapes[k : k + examples.BLOCK])) == 1 for k in range(0, steps, examples.BLOCK))
        assert len(set(shapes)) == len(buckets)
        assert not all(np.array_equal(a.sources, b.sources) for a, b in zip(seen, other, strict=True))
    numbered = [own._replace(lengths=np.arange(len(own.lengths))) for own in buckets]
    drawn = [
        (own.sources.shape[1], int(k))
        for s in range(steps)
        for own in [examples.batch_of(numbered, size, 0, s)]
        for k in own.lengths
    ]
    assert len(set(drawn)) == len(drawn) == steps * size


# ---- errors


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_edits_equal_a_recursion(own, wanted):
    def fewest(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1, fewest(a[1:], b[1:]) + (a[0] != b[0]))

    assert scores.edits(own, wanted) == fewest(own, wanted) == scores.edits(wanted, own)


# ---- the network

OPTIONS = {"cell": "lstm", "hidden_size": 8, "embedding": 5, "dropout": 0.4}
WORDS = [("cat", ("K", "AE", "T")), ("ought", ("AO", "T")), ("a", ("EY",))]


@pytest.fixture(scope="module")
def speller():
    own = model.model_of(OPTIONS)
    params = model.init(own, jax.random.key(3))
    return own, params | {"read_out": jax.tree.map(lambda leaf: 4 * leaf, params["read_out"])}


def test_the_loss_of_a_padded_batch_is_that_of_single_words_read_step_by_step(speller):
    own, params = speller
    total, count = model.loss_of(own, params, examples.encoded(WORDS, 9))
    wanted = 0.0
    for pair in WORDS:
        one = examples.encoded([pair])
        begun = model.read(own, params, one.sources, one.lengths)
        states, x = begun.states, begun.begin
        for symbol in one.targets[0]:
            states, y = own.decoder.step(begun.decoder, states, x)
            logits = np.asarray(own.read_out.logits(params["read_out"], y), np.float64)[0]
            wanted -= logits[symbol] - np.log(np.exp(logits).sum())
            x = params["phonemes"][symbol][None]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert count == sum(len(pronunciation) + 1 for _, pronunciation in WORDS)


def test_what_the_search_finds_has_the_probability_that_the_loss_gives_it_and_none_is_likelier(speller):
    own, params = speller
    words = [word for word, _ in WORDS]
    read = examples.encoded_words(words, 7)
    tokens, log_probs = model.beams(own, params, *read, 4, 0.0)
    greedy = model.greedy(own, params, *read)
    for k, word in enumerate(words):
        for row, value in ((tokens[k, 0], log_probs[k, 0]), (tokens[k, 3], log_probs[k, 3]), (greedy[k], None)):
            pair = examples.encoded([(word, examples.decoded(np.asarray(row).tolist()))])
            if pair.target_lengths[0] > model.MOST_PHONEMES:  # it never ended
                continue
            nats = model.loss_of(own, params, pair)[0]
            if value is None:
                assert -nats <= log_probs[k, 0] + 1e-4
            else:
                np.testing.assert_allclose(value, -nats, rtol=1e-4)


def test_attention_weights_are_of_the_letters_alone(speller):
    own, params = speller
    batch = examples.encoded(WORDS)
    alpha = np.asarray(model.weights(own, params, batch))
    assert alpha.shape == (3, 4, 5)
    np.testing.assert_allclose(alpha.sum(-1), 1, rtol=1e-5)
    assert not alpha[0, :, 3:].any()
    assert not alpha[2, :, 1:].any()
    single = np.asarray(model.weights(own, params, examples.encoded(WORDS[:1])))
    np.testing.assert_allclose(alpha[0, :, :3], single[0], atol=1e-6)


def test_dropout_acts_with_a_key_alone(speller):
    own, params = speller
    batch = examples.encoded(WORDS)
    still, again = (model.loss_of(own, params, batch)[0] for _ in range(2))
    noisy = [model.loss_of(own, params, batch, jax.random.key(k))[0] for k in range(2)]
    assert still == again
    assert len({float(value) for value in (still, *noisy)}) == 3
    never = model.model_of(OPTIONS | {"dropout": 0.0})
    assert model.loss_of(never, params, batch, jax.random.key(0))[0] == still


# ---- the script

SOUNDS = {"b": "B", "d": "D", "k": "K", "a": "AE", "e": "EH", "o": "OW"}


def alphabet():
    """Words whose letters have one sound each."""
    words = ["".join(own) for size in (2, 3, 4) for own in itertools.product("bdkaeo", repeat=size)]
    spoken = {word: [tuple(SOUNDS[letter] for letter in word)] for word in words[::2]}
    return cmudict.split(spoken, "word")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(g2p, "load_cmudict", lambda by, data_dir: alphabet())
    monkeypatch.setattr(g2p, "BATCH", 64)
    monkeypatch.setattr(g2p, "SHOWN", ("bake", "do"))


def test_small_run_learns_the_sounds_of_letters_and_says_them(small, tmp_path, capsys):
    options = {"hidden-size": 32, "embedding": 16, "batch-size": 16, "buckets": 1, "epochs": 8, "learning-rate": 0.01}
    options |= {"dropout": 0.0, "beam-size": 3, "cell": "gru", "devices": 1, "seeds": 2}
    with optax_promotes():
        assert g2p.main([*(f"--{name}={value}" for name, value in options.items()), f"--out={tmp_path}"]) == 0
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert max(record["beam"]["phoneme_errors"]) < 0.05
    assert len(record["greedy"]["word_errors"]) == 2
    assert np.shape(record["validation_word_errors_by_epoch"]) == (8, 2)
    names = ("attention.png", "attention.svg", "checkpoints", "learning_curves.png", "learning_curves.svg", "log.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors", "results.json"]
    capsys.readouterr()
    word, other = [word for word in alphabet().train if len(word) == 3][:2]
    assert g2p.main(["say", word.upper(), other, "--best=2", f"--model={tmp_path}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [word, word, other, other]
    for spelling, first, second in ((word, *lines[:2]), (other, *lines[2:])):
        assert first[1:-1] == [SOUNDS[letter] for letter in spelling]
        assert 1 >= float(first[-1]) > float(second[-1]) >= 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--cell rnn", "--cell expected lstm, gru; got rnn"),
        ("--split letters", "--split expected stem, word; got letters"),
        ("--hidden-size 7", "--hidden-size expected an even number"),
        ("--batch-size 9999", "--batch-size expected at most"),
        ("--beam-size 0", "--beam-size expected a positive number, got 0"),
        ("--length-penalty -1", "--length-penalty expected a number from 0 to 10, got -1"),
        ("--dropout 1", "--dropout expected a share in [0, 1), got 1"),
        ("--limit 0", "--limit expected a positive number, got 0"),
        ("--resume --batch-size 9", "--resume expected checkpoints in"),
    ],
)
def test_bad_options_are_refused_in_one_line(small, arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(g2p, "train", lambda *_: pytest.fail("trained"))
    assert g2p.main([*arguments.split(), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"g2p: {complaint}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "expected a word, got nothing"),
        (["naïve"], "expected words of letters a to z and apostrophes, got naïve"),
        ([""], "expected words of letters a to z and apostrophes, got ''"),
        (["a" * 41], "expected words of at most 40 letters"),
        (["word", "--best", "6"], "--best expected at most 5"),
        (["word", "--beam-size", "9999"], "--beam-size expected at most 1,600"),
        (["word", "--model", "nowhere"], "--model nowhere holds no model.safetensors; train one with: python -m"),
    ],
)
def test_words_that_cannot_be_said_are_refused_in_one_line(arguments, complaint, capsys):
    assert g2p.main(["say", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"g2p: {complaint}")


def test_a_model_of_another_script_or_damaged_is_refused(tmp_path, speller, capsys):
    from experiments.g2p import saved

    own, params = speller
    saved.save_model(tmp_path, OPTIONS, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params))
    loaded, found = saved.load_model(tmp_path)
    assert loaded == own
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True))
    content = (tmp_path / saved.FILE).read_bytes()
    for broken in (content[:-9], content.replace(b"g2p", b"g2q")):
        (tmp_path / saved.FILE).write_bytes(broken)
        assert g2p.main(["say", "word", f"--model={tmp_path}"]) == 2
        assert "is damaged, or not of this script" in capsys.readouterr().err
