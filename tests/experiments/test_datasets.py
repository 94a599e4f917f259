"""Data sets are found in their folders, read as published, and refused if damaged."""

import doctest
import gzip
import importlib
import io
import os
import pkgutil
import random
import re
import shlex
import struct
from pathlib import Path

import chex
import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits

import experiments.datasets
from experiments.datasets import (
    MissingData,
    __main__,
    _files,
    _table,
    airline,
    data_folder,
    images,
    music,
    text,
    vowels,
)
from tests.support.dataset_files import CONTENTS, GZIPPED, set_of, write

MODULES = [m.name for m in pkgutil.iter_modules(experiments.datasets.__path__) if m.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(f"experiments.datasets.{name}")).failed == 0


# Folders


def test_data_folder_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "variable"))
    monkeypatch.setattr(_files.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder(None) == tmp_path / "variable"
    monkeypatch.setenv("JAXRNN_DATA", "")
    assert data_folder(None) == tmp_path / "cache" / "jaxrnn"
    monkeypatch.delenv("JAXRNN_DATA")
    assert data_folder(None) == tmp_path / "cache" / "jaxrnn"


@pytest.mark.parametrize("place", [".", "small"])
@pytest.mark.parametrize("gz", [False, True])
def test_files_are_found_in_the_folder_its_subfolder_and_gzipped(tmp_path, place, gz):
    write(tmp_path / place, {f"{k}.gz": gzip.compress(v) for k, v in CONTENTS.items()} if gz else CONTENTS)
    assert _files.read_files(set_of(CONTENTS), tmp_path) == CONTENTS


def test_subfolder_of_the_set_comes_first(tmp_path):
    write(tmp_path, {"a.txt": b"of another set, whose files have the same names", "b.txt": b""})
    write(tmp_path / "small", CONTENTS)
    assert _files.read_files(set_of(CONTENTS), tmp_path) == CONTENTS


def test_given_folder_is_not_replaced_by_another(monkeypatch, tmp_path):
    write(tmp_path / "variable", CONTENTS)
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "variable"))
    assert _files.read_files(set_of(CONTENTS), None) == CONTENTS
    with pytest.raises(MissingData):
        _files.read_files(set_of(CONTENTS), tmp_path / "given")


def test_missing_set_is_reported_with_the_command(monkeypatch, tmp_path):
    folder = tmp_path / "my data"
    for name, source in _table.SETS.items():
        if source.files:
            with pytest.raises(FileNotFoundError) as error:
                _table.check(source, folder)
            command = f"python -m experiments.datasets get {name} --data-dir {shlex.quote(str(folder))}"
            assert str(error.value).endswith(f"get it with: {command}")
            assert source.files[0].name in str(error.value)
            assert "\n" not in str(error.value)
    monkeypatch.setenv("JAXRNN_DATA", str(folder))
    with pytest.raises(MissingData, match=r"get it with: python -m experiments.datasets get jsb$"):
        music.load_music(music.JSB)


def test_incomplete_set_names_the_missing_file(tmp_path):
    write(tmp_path, {"a.txt": CONTENTS["a.txt"]})
    with pytest.raises(MissingData, match="no b.txt in"):
        _files.read_files(set_of(CONTENTS), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("b.txt", b"", "not the published b.txt: 0 bytes"),
        ("b.txt", b"beta", "4 bytes with sha256 f44e64e75f3948e9…, expected "),
        ("b.txt", b"bets\n", "5 bytes with sha256"),
        ("b.txt.gz", GZIPPED[:-9], "damaged gzip file"),
        ("b.txt.gz", GZIPPED[:12] + b"\xff" * 4 + GZIPPED[16:], "damaged gzip file"),
        ("b.txt.gz", b"plain" + GZIPPED, "not the published b.txt"),
    ],
    ids=["empty", "short", "another letter", "short gzip", "damaged gzip", "no gzip"],
)
def test_damaged_file_is_reported_with_the_command(tmp_path, name, content, complaint):
    write(tmp_path, {"a.txt": CONTENTS["a.txt"], name: content})
    with pytest.raises(ValueError, match=complaint) as error:
        _files.read_files(set_of(CONTENTS), tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert str(error.value).endswith(
        f"; get it again with: python -m experiments.datasets get small --data-dir {tmp_path}"
    )
    assert "\n" not in str(error.value)


# Images


def as_idx(array):
    """The bytes of an idx file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_idx_set_is_read(tmp_path):
    arrays = {
        "train-images": np.arange(3 * 2 * 2).reshape(3, 2, 2) * 20,
        "train-labels": np.array([2, 0, 1]),
        "test-images": np.array([[[255, 0], [51, 102]], [[0, 0], [0, 1]]]),
        "test-labels": np.array([1, 2]),
    }
    contents = {name: as_idx(array) for name, array in arrays.items()}
    write(tmp_path, contents)
    found = images.load_idx(set_of(contents), tmp_path)
    np.testing.assert_array_equal(found.train_labels, [2, 0, 1])
    np.testing.assert_array_equal(found.test_labels, [1, 2])
    np.testing.assert_allclose(found.train_images[2], np.array([[160, 180], [200, 220]]) / 255, rtol=1e-6)
    np.testing.assert_allclose(found.test_images[0], [[1, 0], [0.2, 0.4]], rtol=1e-6)
    assert found.train_images.dtype == np.float32
    assert found.train_labels.dtype == np.int32


GOOD = as_idx(np.array([3, 1, 2]))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (GOOD[:-1], "10 bytes; its shape (3,) needs 11"),
        (GOOD + b"\0", "12 bytes; its shape (3,) needs 11"),
        (GOOD[:5], "begins with 0000080100"),
        (b"", "begins with nothing"),
        (b"\0\0\x08\x03" + GOOD[4:], "begins with 00000803"),
        (b"\0\0\x0d\x01" + GOOD[4:], "not an idx file of unsigned bytes"),
    ],
    ids=["short", "long", "half a header", "empty", "of images", "of floats"],
)
def test_damaged_idx_content_is_refused(content, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        images.parse_idx(content)


def test_image_sets_read_their_own_subfolder(tmp_path):
    """The two sets have files of the same names."""
    for name in ("mnist", "fashion-mnist"):
        write(tmp_path / name, {"train-images-idx3-ubyte": GOOD, "train-labels-idx1-ubyte": GOOD})
        write(tmp_path / name, {"t10k-images-idx3-ubyte": GOOD, "t10k-labels-idx1-ubyte": GOOD})
        with pytest.raises(ValueError, match=f"{name}/train-images-idx3-ubyte: not the published .* get {name} "):
            images.DATASETS[name].load(tmp_path)


def test_digits_are_split_evenly_within_each_class():
    first, again = (images.DATASETS["digits"].load(None) for _ in range(2))
    chex.assert_trees_all_equal(first, again)

    digits = load_digits()
    for label in range(10):
        of_class = digits.images[digits.target == label] / 16
        test = first.test_images[first.test_labels == label]
        train = first.train_images[first.train_labels == label]
        np.testing.assert_array_equal(test, of_class[4::5])
        np.testing.assert_array_equal(train, np.delete(of_class, np.s_[4::5], axis=0))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert (first.train_images.min(), first.train_images.max()) == (0, 1)


def test_mnist_1d_is_drawn_as_published_without_global_random_state(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    found = images.DATASETS["mnist-1d"].load(None)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    assert [part.shape for part in found] == [(4000, 40, 1), (4000,), (1000, 40, 1), (1000,)]
    assert (found.train_images.dtype, found.train_labels.dtype) == (np.float32, np.int32)
    # Of the 5,000 sequences, 500 are of each class, and all numbers together have mean 0 and variance 1.
    labels = np.concatenate([found.train_labels, found.test_labels])
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)
    xs = np.concatenate([found.train_images, found.test_images]).astype(np.float64)
    np.testing.assert_allclose([xs.mean(), xs.var()], [0, 1], atol=1e-6)
    # These depend on the order of all draws.
    np.testing.assert_array_equal(found.train_labels[:10], [2, 6, 4, 5, 6, 6, 6, 0, 3, 1])
    np.testing.assert_allclose(found.train_images[0, :3, 0], [-0.332006, -0.471910, -0.778697], atol=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", [None, "0.0.3"])
def test_missing_or_other_mnist1d_version_is_refused(monkeypatch, capsys, found):
    def version(name):
        if found is None:
            raise images.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(images.metadata, "version", version)
    with pytest.raises(MissingData, match=r"get it with: pip install mnist1d==0.0.2.post1$"):
        images.load_mnist_1d()
    assert __main__.main(["get", "mnist-1d"]) == 2
    assert capsys.readouterr().err.startswith("datasets: mnist-1d: ")


# Vowels


def as_ts(sequences, labels, classes="1 2 3"):
    lines = ["#About", "@problemName Made", "@timeStamps false", f"@classLabel true {classes}", "@data"]
    for sequence, label in zip(sequences, labels, strict=True):
        lines.append(":".join([*(",".join(f"{x:.3f}" for x in channel) for channel in sequence.T), label]))
    return "\n".join(lines) + "\n"


SEQUENCES = [np.array([[0.5, 1.0], [-2.25, 3.0], [4.0, 5.0]]), np.array([[6.0, 7.5]])]


def test_vowels_are_padded_to_the_longest_of_both_parts(tmp_path):
    contents = {
        "train.ts": as_ts(SEQUENCES, ["3", "1"]).encode(),
        "test.ts": as_ts([np.arange(8.0).reshape(4, 2)], ["2"]).encode(),
    }
    write(tmp_path, contents)
    found = vowels.load_vowels(tmp_path, set_of(contents))
    assert found.train.xs.shape == (2, 4, 2)
    np.testing.assert_array_equal(found.train.xs[0], [[0.5, 1.0], [-2.25, 3.0], [4.0, 5.0], [0, 0]])
    np.testing.assert_array_equal(found.train.xs[1], [[6.0, 7.5], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(found.train.lengths, [3, 1])
    np.testing.assert_array_equal(found.train.labels, [2, 0])
    np.testing.assert_array_equal(found.test.xs[0], np.arange(8).reshape(4, 2))
    assert (found.train.xs.dtype, found.train.labels.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("6.000:7.500:1", "6.000:1", "line 7: 1 channels"),
        ("6.000:7.500:1", "6.000:7.500,1:1", "line 7: "),
        ("6.000:7.500:1", "6.000:a:1", "line 7: .*'a'"),
        ("6.000:7.500:1", "6.000:7.500:4", "line 7: .*4"),
        ("6.000:7.500:1", "1", "line 7: "),
        ("@data", "@date", "no sequences"),
    ],
)
def test_malformed_ts_files_are_refused(old, new, complaint):
    whole = as_ts(SEQUENCES, ["3", "1"])
    assert whole.count(old) == 1
    with pytest.raises(ValueError, match=f"^small.ts.*{complaint}"):
        vowels.parse_ts(whole.replace(old, new), "small.ts")


# Music


def as_mat(parts, **options):
    cells = {}
    for name, pieces in parts.items():
        cells[name] = np.empty((1, len(pieces)), object)
        for k, piece in enumerate(pieces):
            cells[name][0, k] = piece
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, cells, **options)
    return buffer.getvalue()


def rolls(*lengths):
    rng = np.random.default_rng(len(lengths))
    return [(rng.random((length, 88)) < 0.1).astype(np.uint8) for length in lengths]


ROLLS = {"traindata": rolls(5, 3, 1), "validdata": rolls(2, 2), "testdata": rolls(4)}


@pytest.mark.parametrize("compressed", [False, True])
def test_music_is_read_into_three_parts(tmp_path, compressed):
    contents = {"tunes.mat": as_mat(ROLLS, do_compression=compressed)}
    write(tmp_path, contents)
    found = music.load_music(set_of(contents), tmp_path)
    for part, expected in zip(found, ROLLS.values(), strict=True):
        assert len(part) == len(expected)
        for piece, roll in zip(part, expected, strict=True):
            np.testing.assert_array_equal(piece, roll)
            assert piece.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a MATLAB file"),
        (b"text " * 100, "not a MATLAB file"),
        (as_mat({"traindata": rolls(3), "validdata": rolls(2, 3)}), "no testdata in it"),
        (as_mat({**ROLLS, "testdata": [np.zeros((4, 87), np.uint8)]}), "a piece of testdata is not a piano roll"),
        (as_mat({**ROLLS, "validdata": [np.full((4, 88), 2, np.uint8)]}), "a piece of validdata is not a piano roll"),
    ],
    ids=["empty", "text", "a part missing", "87 keys", "a two"],
)
def test_mat_files_without_music_are_refused(content, complaint):
    with pytest.raises(ValueError, match=f"^tunes.mat: {complaint}"):
        music.parse_mat(content, "tunes.mat")


# Text


def test_text_is_split_nine_to_one_with_the_alphabet_of_its_training_part(tmp_path):
    path = tmp_path / "song.txt"
    path.write_bytes("\ufeff".encode() + ("žab 𝄞ba" * 10).encode())
    song = text.load_text(path, None, 5)
    assert (song.name, song.alphabet) == ("song.txt", " abž𝄞")
    assert (len(song.training), len(song.validation)) == (63, 7)
    assert text.decode(song.alphabet, song.training[:7]) == "žab 𝄞ba"
    np.testing.assert_array_equal(song.validation, [3, 1, 2, 0, 4, 2, 1])
    np.testing.assert_array_equal(text.encode(song.alphabet, "𝄞 a"), [4, 0, 1])
    assert song.training.dtype == np.int32


@pytest.mark.parametrize(
    ("content", "window", "complaint"),
    [
        (b"", 5, "t.txt: the text is empty"),
        (b"\xef\xbb\xbf", 5, "t.txt: the text is empty"),
        (b"ab" * 20, 4, "t.txt: 40 characters leave 4 for validation, and a window of 4 takes 5"),
        (b"a", 1, "t.txt: 1 characters leave 1 for validation"),
        (b"ab\xff" * 20, 2, "t.txt: not UTF-8 at byte 2; convert it first"),
        ("ab" * 18 + "eéeé", 2, None),
    ],
    ids=["empty", "mark only", "short", "one", "not utf-8", "unseen"],
)
def test_unusable_texts_are_refused_in_one_line(tmp_path, content, window, complaint):
    path = tmp_path / "t.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if complaint is None:
        complaint = (
            "t.txt, last tenth: 4 of 4 characters do not occur in the training text, 2 different ones: 'e', 'é'; "
        )
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        text.load_text(path, None, window)
    assert "\n" not in str(error.value)
    assert len(text.as_numbers("long enough", "ab" * 20, 3).validation) == 4


def test_unseen_characters_of_a_prompt_are_counted_and_named():
    with pytest.raises(ValueError, match=r"3 of 5 .*, 2 different ones: 'x', '😀'$"):
        text.encode("abc", "xa😀bx")
    with pytest.raises(ValueError, match=r"6 of 6 .*: 'e', 'f', 'g', 'h', 'i', …$"):
        text.encode("abc", "efghij")


def test_missing_texts_are_refused_and_shakespeare_is_the_default(monkeypatch, tmp_path):
    with pytest.raises(OSError, match=r"cannot read the text .*none.txt: No such file"):
        text.load_text(tmp_path / "none.txt", None, 5)
    with pytest.raises(MissingData, match="get tiny-shakespeare"):
        text.load_text(None, tmp_path, 5)
    write(tmp_path, {"tinyshakespeare.txt": b"To be, or not"})
    with pytest.raises(ValueError, match="not the published tinyshakespeare.txt: 13 bytes"):
        text.load_text(None, tmp_path, 5)
    monkeypatch.setattr(text, "SHAKESPEARE", set_of({"tinyshakespeare.txt": b"ab" * 20}, name="tiny-shakespeare"))
    write(tmp_path, {"tinyshakespeare.txt": b"ab" * 20})
    small = text.load_text(None, tmp_path, 3)
    assert (small.name, small.alphabet, len(small.training)) == ("tiny-shakespeare", "ab", 36)


def test_text_that_is_no_file_is_refused(tmp_path):
    """A pipe gives its content once, and a device may not end."""
    os.mkfifo(tmp_path / "pipe")
    for path, complaint in (
        (tmp_path / "pipe", "it is no file"),
        (tmp_path, "it is no file"),
        (Path("/dev/zero"), "it is no file"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(OSError, match=f"cannot read the text .*{complaint}"):
            text.load_text(path, None, 1)


def test_windows_pair_inputs_with_the_next_symbols():
    read, said = text.windows(np.arange(10), np.array([0, 6]), 3)
    np.testing.assert_array_equal(read, [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(said, read + 1)
    for length, expected in ((10, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]), (9, [[1, 2, 3], [4, 5, 6]])):
        np.testing.assert_array_equal(text.side_by_side_windows(np.arange(length), 3)[1], expected)


# Airline

MONTHS = "Date,Passengers\n1949-11,112\n1949-12,118.5\n1950-01,132\n"


def test_months_are_read_and_split_chronologically(tmp_path):
    write(tmp_path, {"m.csv": MONTHS.encode()})
    series = airline.load_airline(tmp_path, set_of({"m.csv": MONTHS.encode()}))
    np.testing.assert_array_equal(series.values, np.float32([112, 118.5, 132]))
    assert [str(month) for month in series.months] == ["1949-11", "1949-12", "1950-01"]
    parts = airline.chronological(series, 1, 1)
    assert [str(part.months[0]) for part in parts] == ["1949-11", "1949-12", "1950-01"]
    assert [len(part.values) for part in airline.chronological(series, 0, 0)] == [3, 0, 0]
    for validation, test in ((1, 2), (3, 0), (-1, 1)):
        with pytest.raises(ValueError, match="3 months leave none for training"):
            airline.chronological(series, validation, test)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("1949-12,118.5", "1949-12;118.5", "line 3: expected a month and a number, got '1949-12;118.5'"),
        ("118.5", "many", "line 3: expected a month and a number"),
        ("1949-12", "1949-13", "line 3: expected a month and a number"),
        ("1949-12", "1950-12", "line 3: 1950-12 does not follow 1949-11"),
        (MONTHS, "Date,Passengers\n", "no months in it"),
    ],
)
def test_malformed_series_are_refused(old, new, complaint):
    with pytest.raises(ValueError, match=f"^m.csv.*{complaint}"):
        airline.parse_months(MONTHS.replace(old, new), "m.csv")
