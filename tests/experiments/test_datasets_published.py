"""Published facts about the data sets, checked for each set that the data folder has."""

import numpy as np
import onnx
import pytest

from experiments.datasets import (
    MissingData,
    _table,
    airline,
    batching,
    cmudict,
    data_folder,
    images,
    music,
    poems,
    pretrained,
    text,
    vowels,
    weather,
)
from experiments.datasets._sources import Package
from experiments.real_models import g2p


def known(source, check):
    """Runs the check of a set; if the data folder does not have the set, the check raises MissingData."""
    archives = [way.archive for way in source.ways if isinstance(way, Package)]
    places, names = (data_folder(None), data_folder(None) / source.name), (f"{source.files[0].name}*", *archives)
    if any(any(place.glob(name)) for place in places for name in names):
        check()
    else:
        with pytest.raises(MissingData):
            check()


def transitions(pieces):
    """Counts for each key how often it is off or on at a step and off or on at the next: `(2, 2, 88)`."""
    before = np.concatenate([piece[:-1] for piece in pieces]).astype(bool)
    after = np.concatenate([piece[1:] for piece in pieces]).astype(bool)
    both, began, stayed = (np.count_nonzero(a, 0) for a in (before & after, before, after))
    return np.array([[len(before) - began - stayed + both, stayed - both], [began - both, both]])


def baselines(found):
    """Nats per step of the test pieces after the first step, by frequencies of keys and by first-order frequencies."""
    on = sum(np.sum(piece, 0, dtype=int) for piece in found.train) + 1
    steps = sum(map(len, found.train)) + 2
    marginal = np.array([steps - on, on]) / steps
    seen, tested = transitions(found.train) + 1, transitions(found.test)
    first_order = seen / seen.sum(1, keepdims=True)
    count = tested.sum((0, 1))[0]
    return [-np.sum(tested * np.log(p)) / count for p in (marginal[None], first_order)]


def test_chorales_match_the_papers():
    def check():
        found = music.load_music(music.JSB)
        assert [len(part) for part in found] == [229, 76, 77]
        assert [sum(map(len, part)) for part in found] == [13807, 4602, 4725]
        np.testing.assert_allclose(baselines(found), [11.0925, 10.4919], atol=1e-3)
        lengths = np.array([len(piece) for piece in found.train])
        np.testing.assert_allclose([batching.padded_share(lengths, k) for k in (1, 4)], [0.53, 0.19], atol=0.005)

    known(music.JSB, check)


def test_nottingham_matches_the_papers():
    def check():
        found = music.load_music(music.NOTTINGHAM)
        assert [len(part) for part in found] == [694, 173, 170]
        np.testing.assert_allclose(baselines(found)[1], 5.1532, atol=1e-3)
        lengths = np.array([len(piece) for piece in found.train])
        np.testing.assert_allclose([batching.padded_share(lengths, k) for k in (1, 4)], [0.86, 0.59], atol=0.005)

    known(music.NOTTINGHAM, check)


def test_shakespeare_has_65_symbols():
    def check():
        found = text.load_text(None, None, 64)
        assert len(found.alphabet) == 65
        assert (len(found.training), len(found.validation)) == (1003854, 111540)
        assert text.decode(found.alphabet, found.training[:14]) == "First Citizen:"

    known(text.SHAKESPEARE, check)


def test_tang_poems_have_correct_form():
    def check():
        both, five, seven = (poems.load_poems(None, sizes) for sizes in ((5, 7), (5,), (7,)))
        assert [len(part) for part in both] == [12760, 686, 690]
        assert [sum(map(len, found)) for found in (five, seven)] == [3790, 10346]
        assert [(*a, *b) for a, b in zip(five, seven, strict=True)] == list(both)
        assert {poems.form(poems.written(poem)) for part in five for poem in part} == {5}
        assert {poems.form(poems.written(poem)) for part in seven for poem in part} == {7}
        training, others = (
            {line for poem in part for line in poem.lines} for part in (both.train, (*both[1], *both[2]))
        )
        assert not training & others
        own = poems.vocabulary(both.train)
        assert len(own.symbols) == 5254
        assert all(poems.decode(own, poems.encode(own, poem)) == poems.written(poem) for poem in both.train[::50])

    known(poems.QUATRAINS, check)


def test_vowels_match_the_papers():
    def check():
        train, test = vowels.load_vowels()
        assert (train.xs.shape, test.xs.shape) == ((270, 29, 12), (370, 29, 12))
        assert (train.lengths.min(), train.lengths.max(), test.lengths.min(), test.lengths.max()) == (7, 26, 7, 29)
        np.testing.assert_array_equal(np.bincount(train.labels), [30] * 9)
        np.testing.assert_array_equal(np.bincount(test.labels), [31, 35, 88, 44, 29, 24, 40, 50, 29])
        np.testing.assert_allclose([batching.padded_share(train.lengths, k) for k in (1, 4)], [0.39, 0.12], atol=0.005)

    known(vowels.VOWELS, check)


def test_airline_persistence_matches_the_tutorials():
    def check():
        values = airline.load_airline().values
        assert (len(values), values[0], values[-1]) == (144, 112, 432)
        error = [np.sqrt(np.mean((values[97:143] - values[97 - k : 143 - k]) ** 2)) for k in (1, 12)]
        np.testing.assert_allclose(error, [48.66, 42.32], atol=0.01)

    known(airline.AIRLINE, check)


def test_weather_has_the_hours_and_the_gaps_of_its_year():
    def check():
        found = weather.load_weather()
        assert [str(hour) for hour in found.hours[[0, -1]]] == ["2013-01-01T06", "2013-12-30T23"]
        assert found.values.shape == (8730, 3, 8)
        assert np.isnan(found.column("temp")).sum(0).tolist() == [28, 24, 24]
        np.testing.assert_allclose(np.nanmax(found.column("temp"), axis=0), [100.04, 98.06, 98.96])
        assert np.nanmax(found.column("wind_speed")) < 50

    known(weather.WEATHER, check)


def test_the_dictionary_has_the_graphemes_and_phonemes_of_the_papers():
    def check():
        by_stem, by_word = (cmudict.load_cmudict(by) for by in ("stem", "word"))
        assert [len(part) for part in by_stem] == [109929, 2769, 12228]
        assert [len(part) for part in by_word] == [109636, 2720, 12570]
        words = {word: found for part in by_stem for word, found in part.items()}
        assert (len(words), sum(map(len, words.values()))) == (124926, 133667)
        assert len(set("".join(words))) == 27
        assert len({phoneme for found in words.values() for own in found for phoneme in own}) == 39
        assert words["running"] == [("R", "AH", "N", "IH", "NG")]
        trained = {cmudict.stem(word) for word in by_word.train}
        share = np.mean([cmudict.stem(word) in trained for word in by_word.test])
        np.testing.assert_allclose(share, 0.47, atol=0.005)  # as the page says

    known(cmudict.CMUDICT, check)


def test_published_network_spells_as_its_page_shows():
    def check():
        weights = pretrained.load_g2p()
        assert {name: weights[name].shape for name in ("enc_emb", "enc_w_hh", "dec_emb", "fc_w")} == {
            "enc_emb": (29, 256), "enc_w_hh": (768, 256), "dec_emb": (74, 256), "fc_w": (74, 256),
        }  # fmt: skip
        answer = g2p.answer_of(g2p.logits_by_numpy(weights, list(g2p.PUBLISHED)))
        assert answer.decisions == list(g2p.PUBLISHED.values())

    known(pretrained.G2P, check)


@pytest.mark.parametrize("source", [pretrained.SILERO, pretrained.NSNET2], ids=lambda source: source.name)
def test_published_models_are_onnx(source):
    def check():
        onnx.checker.check_model(onnx.load_model_from_string(pretrained.load_model(source)))

    known(source, check)


@pytest.mark.parametrize(("name", "means"), [("mnist", [0.1307, 4.4539]), ("fashion-mnist", [0.2860, 4.5])])
def test_large_images_match_the_papers(name, means):
    def check():
        found = images.DATASETS[name].load(None)
        assert [part.shape for part in found] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
        np.testing.assert_allclose([found.train_images.mean(), found.train_labels.mean()], means, atol=1e-4)

    known(_table.SETS[name], check)
