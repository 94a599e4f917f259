"""Images as sequences, the frame of all scripts, the list of experiments, figures and files."""

import contextlib
import dataclasses
import errno
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import __main__ as listing
from experiments import _summary as summary
from experiments import char_lm, poems, sequential_images
from experiments.command import figures, options, report, script
from experiments.command.devices import DeviceOptions
from experiments.command.stopping import STOP
from experiments.datasets.batching import shuffled
from experiments.datasets.images import Images
from experiments.g2p import __main__ as g2p
from experiments.models.readout import init_readout
from tests.support.training import optax_promotes

# Sequential images


def tiny_images(train=24, test=10):
    """Images of 3 x 2 pixels, in two classes that differ in the last row."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 0.2, (train + test, 3, 2)).astype(np.float32)
    labels = np.arange(train + test, dtype=np.int32) % 2
    images[labels == 1, 2] += 0.8
    return Images(images[:train], labels[:train], images[train:], labels[train:])


def test_pixels_are_read_row_by_row_or_in_one_permutation():
    images = tiny_images(2, 1)
    xs = sequential_images.as_sequences(images.train_images, "pixels")
    np.testing.assert_array_equal(xs[1, :, 0], [images.train_images[1, t // 2, t % 2] for t in range(6)])
    rows = sequential_images.as_sequences(images.train_images, "rows")
    np.testing.assert_array_equal(rows[1, 2], images.train_images[1, 2])
    mixed = sequential_images.as_sequences(images.train_images, "permuted")
    order = [xs[0, :, 0].tolist().index(value) for value in mixed[0, :, 0]]
    assert sorted(order) == list(range(6)) != order
    np.testing.assert_array_equal(mixed[1], xs[1][order])


def test_batch_pairs_sequences_with_their_labels():
    images = tiny_images()
    config = sequential_images.Config(batch_size=5)
    task = sequential_images.task_of(jaxrnn.rnn(4), config, images, "rows")
    xs, labels = task.batch(3, 2)
    chosen = shuffled(24, 5, 3, 2)
    np.testing.assert_array_equal(xs, images.train_images[chosen])
    np.testing.assert_array_equal(labels, images.train_labels[chosen])
    np.testing.assert_array_equal(labels, xs[:, 2, 0] > 0.5)


def test_accuracy_equals_that_of_single_images(monkeypatch):
    monkeypatch.setattr(sequential_images, "TEST_BATCH", 4)  # 4 does not divide ten
    cell, images = jaxrnn.rnn(3), tiny_images()
    models = jax.vmap(lambda key: init_readout(cell, 3, 2, 2, key))(jax.random.split(jax.random.key(0), 5))
    found = sequential_images.accuracy_of(cell, images.test_images, images.test_labels, "cpu")(models)["test accuracy"]
    expected, step = [], jax.jit(cell.step)
    for seed in range(5):
        model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], models)
        right = 0
        for x, label in zip(jnp.asarray(images.test_images), images.test_labels, strict=True):
            state = cell.initial_state()
            for row in x:
                state, y = step(model.cell, state, row)
            right += int(np.argmax(np.asarray(y) @ np.asarray(model.v) + np.asarray(model.c)) == label)
        expected.append(right / 10)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(set(expected)) > 1


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Runs the script, and returns its folder and its record."""
    out = tmp_path_factory.mktemp("run") / "results"
    options = {"readings": "rows", "cells": "gru", "hidden-size": 16, "epochs": 8, "seeds": 2, "limit": 640, "out": out}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with optax_promotes():
        assert sequential_images.main(arguments) == 0
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_small_run_learns(learned):
    _, record = learned
    (run,) = record["runs"]
    loss, accuracy = np.array(run["train_loss_by_epoch"]), np.array(run["test_accuracy_by_epoch"])
    assert loss.shape == accuracy.shape == (8, 2)
    assert np.all(loss[0] < 2.5)
    assert np.all(loss[-1] < 0.5 * loss[0])
    assert np.all(accuracy[-1] > 0.7)  # chance is 0.1


def test_first_losses_of_a_run_match_recorded_values(learned):
    """The losses change only if cells, initial values, batches, optimiser or noise change."""
    _, record = learned
    (run,) = record["runs"]
    np.testing.assert_allclose(run["train_loss_by_epoch"][:2], FIRST_LOSSES, rtol=2e-3)


FIRST_LOSSES = [[2.16330, 2.18893], [1.69745, 1.64178]]  # jax 0.10.2, x86-64 with AVX-512


def test_small_run_writes_its_results(learned):
    out, record = learned
    (run,) = record["runs"]
    np.testing.assert_allclose(run["test_accuracy"], run["test_accuracy_by_epoch"][-1], atol=1e-5)
    np.testing.assert_allclose(run["test_accuracy_mean"], np.mean(run["test_accuracy"]), rtol=1e-6)
    np.testing.assert_allclose(run["test_accuracy_std"], np.std(run["test_accuracy"], ddof=1), rtol=1e-5)
    assert run["parameters"] == 3 * 16 * (8 + 16 + 1) + 16 + 16 * 10 + 10  # 16 of them are b_hn
    assert (run["cell"], run["reading"], run["seeds"], run["learning_rate"]) == ("gru", "rows", [0, 1], 0.01)
    assert record["images"] == {"train": 640, "test": 355}
    assert 0.8 < record["logistic_regression"]["accuracy"] < 1
    assert record["logistic_regression"]["parameters"] == 650
    assert record["versions"]["jax"] == jax.__version__
    assert record["config"]["limit"] == 640
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "<svg" in (out / "learning_curves.svg").read_text(encoding="utf-8")
    names = ["learning_curves.png", "learning_curves.svg", "results.json", "rows-gru"]
    assert sorted(path.name for path in out.iterdir()) == names
    lines = [json.loads(line) for line in (out / "rows-gru" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    np.testing.assert_allclose([line["test accuracy"] for line in lines], run["test_accuracy_by_epoch"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--hidden-size 0", "--hidden-size expected a positive number, got 0"),
        ("--epochs -1", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--seeds 0", "--seeds"),
        ("--seed -3", "--seed"),
        ("--limit 0", "--limit"),
        ("--learning-rate nan", "--learning-rate"),
        ("--clip-norm 0", "--clip-norm"),
        ("--dataset letters", "--dataset expected digits, mnist, fashion-mnist, mnist-1d; got letters"),
        ("--readings columns", "--readings expected rows, pixels, permuted; got columns"),
        ("--cells gru mamba", "--cells expected rnn"),
        ("--cells", "got nothing"),
        ("--limit 3 --batch-size 1", "--limit 3 leaves a class without an image"),
        ("--limit 30", "--batch-size 32 is more than the 30 training images"),
        ("--dataset mnist --data-dir nowhere", "python -m experiments.datasets get mnist"),
        ("--resume", "--resume expected checkpoints in results/sequential_images, found none"),
        ("--out file/results", "cannot write into file/results"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sequential_images, "run", lambda *_: pytest.fail("trained"))
    assert sequential_images.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sequential_images: ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_unknown_option_is_refused_with_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stop:
        sequential_images.main(["--epoch", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.processes
def test_exit_code_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "experiments.sequential_images", "--seeds", "0", "--out", str(tmp_path / "out")]
    root = Path(sequential_images.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2
    assert done.stderr == "sequential_images: --seeds expected a positive number, got 0\n"
    assert not (tmp_path / "out").exists()


@dataclasses.dataclass(frozen=True)
class Options(DeviceOptions):
    """Options of an imaginary script."""

    out: Path = Path("results")
    steps: int = 100
    rate: float = 0.5
    cells: tuple[str, ...] = ("gru", "lstm")
    save_every: int | None = None
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Resumable(Options):
    resume: bool = False


def test_given_options_override_quick(tmp_path):
    seen = []
    own = dataclasses.make_dataclass("Own", [("out", Path, tmp_path)], bases=(Options,), frozen=True)

    def run(config):
        seen.append((config.steps, config.rate, config.cells))
        return {"loss": np.nan * 1}, lambda: None

    for arguments in ("", "--quick", "--quick --steps 100 --cells gru lstm", "--quick --rate 0.1 --steps 7"):
        quick = {"steps": 2, "cells": ("gru",)}
        assert script.run_script("own", own, run, quick=quick, arguments=arguments.split()) == 0
    both = ("gru", "lstm")
    assert seen == [(100, 0.5, both), (2, 0.5, ("gru",)), (100, 0.5, both), (7, 0.1, ("gru",))]
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (record["experiment"], record["loss"]) == ("own", None)
    assert record["config"] == {
        "steps": 7,
        "rate": 0.1,
        "cells": ["gru"],
        "save_every": None,
        "quick": True,
        "devices": None,
        "out": str(tmp_path),
    }


def test_stopped_and_failing_scripts_report_in_one_line(tmp_path, capsys):
    def ends_with(error, *arguments, config_type=Options, kept=False):
        def run(config):
            STOP.on_stop(lambda: kept)
            raise error

        code = script.run_script("own", config_type, run, arguments=[f"--out={tmp_path}", *arguments])
        return code, *capsys.readouterr()

    assert ends_with(KeyboardInterrupt()) == (130, "", "own: stopped\n")
    nothing = "own: stopped before the first evaluation; nothing is kept\n"
    assert ends_with(KeyboardInterrupt(), config_type=Resumable) == (130, "", nothing)
    kept = f"own: stopped; go on with: python -m experiments.own --out={tmp_path} --save-every=2 --resume\n"
    assert ends_with(KeyboardInterrupt(), "--save-every=2", config_type=Resumable, kept=True) == (130, "", kept)
    assert ends_with(report.CannotRun("no rate will do")) == (2, "", "own: no rate will do\n")
    full = f"own: {tmp_path}: No space left on device; what was written before is whole\n"
    assert ends_with(OSError(errno.ENOSPC, "No space left on device", "log.jsonl")) == (2, "", full)
    with pytest.raises(OSError, match="Broken"):
        ends_with(OSError(errno.EPIPE, "Broken pipe"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "own: stopped\n"),
        (
            MemoryError("Unable to allocate 3 TiB"),
            2,
            "own: out of memory: Unable to allocate 3 TiB; give smaller sizes\n",
        ),
        (MemoryError(), 2, "own: out of memory: no more is given; give smaller sizes\n"),
        (ValueError("a\nb"), 2, "own: a\\nb\n"),
        (report.CannotRun("no"), 2, "own: no\n"),
    ],
)
def test_what_ends_the_checks_is_reported_in_one_line(error, code, said, tmp_path, capsys):
    def check(config):
        raise error

    out = tmp_path / "out"
    run = lambda config: pytest.fail("begun")  # noqa: E731
    assert script.run_script("own", Options, run, check=check, arguments=[f"--out={out}"]) == code
    assert capsys.readouterr() == ("", said)
    assert not out.exists()


def test_record_is_written_before_figures_are_drawn(tmp_path):
    def draw():
        assert json.loads((tmp_path / "results.json").read_text())["loss"] == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        script.run_script("own", Options, lambda config: ({"loss": 1}, draw), arguments=[f"--out={tmp_path}"])


def test_option_checks_refuse_values_out_of_range():
    config = types.SimpleNamespace(a=0.0, b=1.0, c=float("nan"), d=None, e=(1, float("inf")), word="z")
    options.share(config, "a")
    options.positive(config, "b", "d")
    for name in ("b", "c"):
        with pytest.raises(ValueError, match=f"--{name} expected a share in \\[0, 1\\), got"):
            options.share(config, name)
    for name in ("a", "c", "e"):
        with pytest.raises(ValueError, match=f"--{name} expected a positive number, got"):
            options.positive(config, "b", name)
    options.among(config, "word", ["y", "z"])
    with pytest.raises(ValueError, match="--word expected x, y; got z"):
        options.among(config, "word", ["x", "y"])


# The list of experiments


def test_every_script_is_listed_once(capsys):
    assert listing.main([]) == 0
    shown = capsys.readouterr().out
    folder = Path(sequential_images.__file__).parent
    scripts = {path.stem for path in folder.glob("[!_]*.py")}
    packages = {path.parent.name for path in folder.glob("*/__main__.py")}
    benchmarks = {f"benchmarks.{path.stem}" for path in folder.glob("benchmarks/[!_]*.py")}
    names = [row.name for row in listing.SCRIPTS]
    assert sorted(names) == sorted(scripts | packages | benchmarks)
    for row in listing.SCRIPTS:
        assert row.name in shown
    for given in (["--help"], ["-h"]):
        assert listing.main(given) == 0
        assert capsys.readouterr().out == shown
    for command in ("char_lm sample", "poems write", "g2p say"):  # where a person looks for what reads a trained model
        assert f"python -m experiments.{command} --help" in shown
        with pytest.raises(SystemExit):
            {"char_lm": char_lm, "poems": poems, "g2p": g2p}[command.split()[0]].main(["--help"])
        assert f"python -m experiments.{command}" in " ".join(capsys.readouterr().out.split())
    assert listing.main(["gates"]) == 2
    assert "got gates; run one as python -m experiments.NAME" in capsys.readouterr().err


def test_readme_sample_matches_the_record():
    record = json.loads((summary.FOLDER / "results" / "char_lm.json").read_text(encoding="utf-8"))
    text = (summary.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert text.partition("```text\n")[2].partition("```")[0] in record["sample"]
    assert f"{record['validation_nats'][0]:.2f} nats a character" in text


def test_summary_replaces_only_the_tables(tmp_path, monkeypatch):
    texts = {name: (summary.FOLDER / name).read_text(encoding="utf-8") for name in summary.PAGES}
    folder = tmp_path / "experiments"
    for name in texts:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        emptied = summary.MARKED.sub(r"<!-- table: \1/\2 -->\n| no |\n<!-- end -->", text)
        assert emptied != text
        emptied = summary.with_table(emptied, "| no |") if summary.BEGIN in text else emptied
        (folder / name).write_text(emptied, encoding="utf-8")
    monkeypatch.setattr(summary, "FOLDER", folder)
    assert listing.main(["summary"]) == 0
    for name, text in texts.items():
        assert (folder / name).read_text(encoding="utf-8") == text


def test_rows_of_a_record_are_made_by_its_script():
    for name, rows in summary.ROWS.items():
        record = json.loads((summary.FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert rows.__module__.split(".")[:2] == ["experiments", record["experiment"].split()[0]]


def test_every_record_has_a_row(tmp_path):
    record = {"experiment": "mnist_1d", "test_accuracy": [0.5, 0.7], "parameters": 5110, "seconds": 90}
    (tmp_path / "mnist_1d.json").write_text(json.dumps(record))
    *_, row = summary.table(tmp_path).splitlines()
    assert row.startswith("| `mnist_1d` | test accuracy, % | 5,110 | 1.5 | 60.0 ± 14.1, 2 seeds | 89.1 to 91.0")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"experiment": "mnist_1d", "test_accuracy": []}'])
def test_broken_record_is_named_in_one_line(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "mnist_1d.json").write_text(content)
    with pytest.raises(ValueError, match="mnist_1d.json is no record of a run: "):
        summary.table(tmp_path)
    monkeypatch.setattr(summary, "write", lambda: summary.table(tmp_path))
    assert listing.main(["summary"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# Figures and files


def test_labels_are_spread_out_in_order():
    placed = figures.spread_out([0.5, 0.9, 0.51, 0.52], 0.06)
    assert placed[0] < placed[2] < placed[3] < placed[1]
    np.testing.assert_allclose(np.diff([placed[0], placed[2], placed[3]]), 0.06, atol=1e-3)
    np.testing.assert_allclose(np.mean([placed[0], placed[2], placed[3]]), 0.51, atol=1e-9)
    assert placed[1] == 0.9


def test_failed_writes_leave_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    report.write_json(path, {"loss": [1.0, float("nan")], "of": {"x": float("inf")}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": [1.0, None], "of": {"x": None}}
    with pytest.raises(TypeError):
        report.write_json(path, {"loss": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["loss"] == [1.0, None]
    with contextlib.suppress(RuntimeError), report.whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8"))["loss"] == [1.0, None]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
