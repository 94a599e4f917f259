"""Every script refuses odd values of every option, before any work, in one line of at most 500 characters."""

import dataclasses
import doctest
import importlib
import os
import re
import typing
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import experiments
from experiments import __main__ as listing
from experiments import mnist_1d
from experiments.command import memory, messages, options
from experiments.command.messages import LONGEST, one_line, shown
from experiments.command.script import files_of
from experiments.datasets.images import Images
from experiments.models import saved
from experiments.training import sizes
from tests.support.training import filled

ROOT = Path(experiments.__file__).parent
PACKAGES = (
    "forecast",
    "bptt_by_hand",
    "g2p",
    "gradient_flow",
    "memory_tasks",
    "gates",
    "lstm_vs_gru",
    "parallel_in_time",
    "recurrent_ppo",
    "real_models",
    "datasets",
)
BEGUN = {  # what a script calls when it begins to work, if that is not `run`
    "benchmarks.gpu": "compared",
    "benchmarks.scaling": "timed start",  # the first only if something is to be timed
    "datasets": "get",
    "char_lm sample": "written",
    "poems write": "written",
}
COMMANDS = {
    "char_lm sample": "SampleConfig",
    "poems write": "WriteConfig",
    "g2p say": "SayConfig",
}  # beside the trainings
TRAINED = [row.name for row in listing.SCRIPTS if row.name != "datasets"]


class Begun(BaseException):
    pass


def begun(*_, **__):
    raise Begun


def module_of(script):
    name = script.split()[0]
    return importlib.import_module(f"experiments.{name}{'.__main__' if name in PACKAGES else ''}")


@pytest.fixture
def refusal(monkeypatch, tmp_path, capsys):
    """A function of a script and arguments: what it says before any work, which is one line; None if it begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXRNN_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # scripts set it; it is restored after the test
    monkeypatch.setattr(sizes, "kept_bytes", lambda *_: 0)  # test_sizes.py has it; tracing takes a while
    images = Images(np.zeros((4000, 40, 1), np.float32), np.arange(4000) % 10, None, None)  # as does drawing them
    monkeypatch.setattr(mnist_1d, "load", lambda config: images)

    def call(script, *arguments):
        module, command = module_of(script), script.split()[1:]
        for name in BEGUN.get(script, "run").split():
            monkeypatch.setattr(module, name, begun)
        before = sorted(path.name for path in tmp_path.iterdir())
        try:
            code = module.main([*command, *arguments])
        except SystemExit as stop:
            code = stop.code
        except Begun:
            return None
        out, err = capsys.readouterr()
        assert (code, out, err[-1:], err.count("\n")) == (2, "", "\n", 1), arguments
        assert len(err) <= LONGEST + 1
        assert err.startswith(f"{script.split()[0].rpartition('.')[2]}: ")
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return err

    return call


def fields_of(script):
    """The options of a script, and the kinds of their values."""
    config = getattr(module_of(script), COMMANDS.get(script, "Config"))
    return {options.option(name): options.kind_of(hint) for name, hint in typing.get_type_hints(config).items()}


@pytest.mark.parametrize("script", [*TRAINED, *COMMANDS])
def test_numbers_that_cannot_be_are_named(script, refusal):
    """None of these needs data, or takes memory."""
    digits = "1" + "0" * 39
    for name, kind in fields_of(script).items():
        if kind.plain is int:
            assert f"{name} expected at most" in refusal(script, name, digits)
            assert digits in refusal(script, name, digits)
            for text in ("abc", "1e30", "nan", "a\nb", "9" * 5000, ""):
                assert refusal(script, name, text).partition(": ")[2].startswith(f"{name} expected a whole number, got")
        if kind.plain is float:
            assert refusal(script, name, "a\nb").partition(": ")[2] == f"{name} expected a number, got 'a\\nb'\n"
            for number in ("nan", "-1e300"):
                assert name in refusal(script, name, number)
            if name != "--minutes":  # which may be infinite
                for number in ("1e300", "inf"):
                    assert name in refusal(script, name, number)
            if name not in ("--minutes", "--noise", "--dropout", "--length-penalty"):
                for number in ("1e-300", "0"):
                    assert name in refusal(script, name, number)


@pytest.mark.parametrize("script", [*TRAINED, *COMMANDS])
def test_odd_words_give_one_line(script, refusal):
    for name, kind in fields_of(script).items():
        if kind.plain is bool:
            assert f"{name} takes no value, got yes" in refusal(script, f"{name}=yes")
            continue
        for word in ("a\nb\x1b[31m", "x" * 10_000, "\ud800"):
            refusal(script, name, word)
        if kind.many:
            refusal(script, name)
        else:
            assert f"{name} expected a value, got nothing" in refusal(script, name)
    assert "there is no option --colour" in refusal(script, "--colour", "red")
    expected = "words of letters a to z and apostrophes" if script == "g2p say" else "an option"
    assert f"expected {expected}, got 'a\\nb'" in refusal(script, "a\nb")


def test_commands_with_odd_words_give_one_line(refusal, capsys):
    for word in ("a\nb", "x" * 10_000, "\ud800"):
        for arguments in (["get", word], [word], ["get", "jsb", word], ["--data-dir"]):
            refusal("datasets", *arguments)
        assert listing.main([word]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert len(err) <= LONGEST + 1


def test_unknown_option_is_answered_by_the_nearest(refusal):
    assert "there is no option --epoch; did you mean --epochs?" in refusal("sequential_images", "--epoch", "3")
    assert "expected an option, got 2" in refusal("sequential_images", "--seed", "1", "2")


def test_seeds_that_would_repeat_others_are_refused(refusal):
    """JAX keeps 32 bits of a seed."""
    assert (jax.random.key_data(jax.random.key(2**32 + 5)) == jax.random.key_data(jax.random.key(5))).all()
    assert "--seed expected at most 4,294,967,295, got 4294967296" in refusal("sequential_images", "--seed", str(2**32))
    for script in ("sequential_images", "memory_tasks", "gradient_flow"):
        last = str(2**32 - 2)
        found = refusal(script, "--seed", last, "--seeds", "3")
        assert "--seed 4294967294 and 3 --seeds end beyond 4,294,967,295, the last seed" in found
    options.check_seeds(mnist_1d.Config(seed=2**32 - 1, seeds=1))
    with pytest.raises(ValueError, match="end beyond"):
        options.check_seeds(mnist_1d.Config(seed=2**32 - 1, seeds=1), more=1)


def test_messages_are_printable_and_short():
    assert doctest.testmod(messages).failed == 0
    assert one_line("a\tb\r\nc\x00\u2028d") == "a\\tb\\r\\nc\\x00\\u2028d"
    assert one_line("白日 é") == "白日 é"
    long = one_line("begin" + "x" * 10**6 + "end")
    assert len(long) == LONGEST
    assert (long[:5], long[-3:]) == ("begin", "end")
    assert (shown(""), shown("a b"), shown("gru"), shown(12)) == ("''", "'a b'", "gru", "12")
    assert len(shown("y" * 1000)) == 80


def test_total_of_steps_is_limited():
    options.check_total("--epochs", 2**31 - 1, 1)
    with pytest.raises(ValueError, match="--epochs expected at most 214,748,364, of 10 steps each; got 214748365"):
        options.check_total("--epochs", 214748365, 10)


# ---- what stands where a file or a folder is to be written


def names_of(*files):
    return [f"{name}{end}" for name in files for end in ("", ".partial")]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "song.txt"
    path.write_text("to be, or not to be. " * 400)
    return ["--text", str(path), "--window", "20", "--batch-size", "8"]


@pytest.mark.parametrize(
    "name", names_of("results.json", "learning_curves.png", "learning_curves.svg", "model.safetensors", "log.jsonl")
)
def test_folder_in_the_place_of_a_file_is_refused_before_work(name, texts, tmp_path, refusal):
    folder = tmp_path / "out" / name
    folder.mkdir(parents=True)
    (folder / "mine").write_text("mine")
    said = refusal("char_lm", *texts, "--out", "out")
    assert f"out/{name} is a folder, and a file is to be written there; move it away, or give another --out" in said
    assert (folder / "mine").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_file_in_the_place_of_a_folder_is_refused_before_work(texts, tmp_path, refusal, monkeypatch):
    (tmp_path / "out").mkdir()
    for name in ("checkpoints", "tensorboard", "file"):
        (tmp_path / "out" / name).write_text("mine")
    assert "cannot write into out/checkpoints: Not a directory" in refusal("char_lm", *texts, "--out", "out")
    (tmp_path / "out" / "checkpoints").unlink()
    (tmp_path / "out" / "checkpoints").symlink_to("nowhere")
    assert "cannot write into out/checkpoints: File exists" in refusal("char_lm", *texts, "--out", "out")
    (tmp_path / "out" / "checkpoints").unlink()
    assert refusal("char_lm", *texts, "--out", "out") is None
    monkeypatch.setattr("experiments.training.runs.check_tensorboard", lambda: None)
    said = refusal("char_lm", *texts, "--out", "out", "--tensorboard")
    assert "cannot write into out/tensorboard: Not a directory" in said
    for script in TRAINED:
        if "--out" in fields_of(script):
            assert "cannot write into out/file/x/y: Not a directory" in refusal(script, "--out", "out/file/x/y")
    (tmp_path / "out" / "link").symlink_to("nowhere")
    assert "cannot write into out/link: File exists" in refusal("sequential_images", "--out", "out/link")
    assert "cannot write into" in refusal("sequential_images", "--out", "a\0b")
    assert "cannot write into" in refusal("sequential_images", "--out", "x" * 300)
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_folder_of_a_single_run_is_checked_too(tmp_path, refusal):
    (tmp_path / "out" / "rows-gru" / "log.jsonl").mkdir(parents=True)
    (tmp_path / "out" / "rows-rnn").write_text("mine")
    said = refusal("sequential_images", "--out", "out", "--readings", "rows", "--cells", "gru")
    assert "out/rows-gru/log.jsonl is a folder" in said
    said = refusal("sequential_images", "--out", "out", "--readings", "rows", "--cells", "rnn")
    assert "cannot write into out/rows-rnn: Not a directory" in said


@pytest.mark.parametrize("script", [script for script in TRAINED if "--out" in fields_of(script)])
def test_every_script_checks_the_place_of_its_results(script, tmp_path, refusal):
    (tmp_path / "out" / "results.json.partial").mkdir(parents=True)
    assert "results.json.partial is a folder" in refusal(script, "--out", "out")


@pytest.mark.parametrize("script", [script for script in TRAINED if "--json" in fields_of(script)])
def test_benchmarks_check_the_places_of_their_files(script, tmp_path, refusal):
    for name in names_of("found.json"):
        (tmp_path / name).mkdir()
        assert f"{name} is a folder, and a file is to be written there" in refusal(script, "--json", "found.json")
        (tmp_path / name).rmdir()
    if "--plot" in fields_of(script):  # no folder is made for a file if another is refused
        (tmp_path / "found.png").mkdir()
        assert "or give another --plot" in refusal(script, "--json", "new/found.json", "--plot", "found.png")


@pytest.mark.parametrize("script", [script for script in TRAINED if "--out" in fields_of(script)])
def test_declared_files_are_those_that_the_script_writes(script, monkeypatch):
    """In the source, they are what follows `config.out /`, and the model."""
    module, told = module_of(script), []
    folder = Path(module.__file__).parent if script in PACKAGES else None
    source = "".join(path.read_text() for path in (folder.glob("*.py") if folder else [Path(module.__file__)]))
    written = {name for name in re.findall(r'config\.out / "([\w.]+)"', source) if name != "results.json"}
    if "save_model(config.out" in source:
        written.add("model.safetensors")
    if script == "long_sequence":
        assert not written
        return
    monkeypatch.setattr(module, "run_script", lambda *_, writes=(), **__: told.append(writes))
    module.main([])
    assert set(told[0]) == written
    assert {f"{name}.svg" for name in written if "." not in name} <= set(files_of(told[0]))


# ---- models


def test_damaged_models_and_samples_beyond_the_memory_are_refused(tmp_path, refusal, monkeypatch):
    given = {"cell": "gru", "embedding": 2, "hidden_size": 3, "layers": 1, "dropout": 0.0}
    model = saved.model_of(3, given)
    params = jax.tree.map(lambda leaf: leaf[None], filled(model))
    saved.save_model(tmp_path, "char_lm", given, ("a", "b", "c"), params)
    found = saved.load_model(tmp_path, "char_lm")
    chex.assert_trees_all_equal(found.params, jax.tree.map(lambda leaf: leaf[0], params))
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    symbol = content.index(b'\\"a\\"') + 2
    for place in (
        len(content) - 1,
        symbol,
        content.index(b"gru"),
        content.index(b"checksums"),
    ):  # the first is of a weight
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        said = refusal("char_lm sample", "--model", str(tmp_path), "--prompt", "abc")
        assert "is damaged, or not of this script" in said
    path.write_bytes(content)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10_000)
    sample = ["char_lm sample", "--model", str(tmp_path), "--prompt", "abc"]
    assert refusal(*sample, "--length", "500") is None
    for length, samples in ((1000, 1), (400, 5)):
        said = refusal(*sample, "--length", str(length), "--samples", str(samples))
        symbols, logits = 3 * 4 * (3 + length) * samples, 4 * 3 * samples
        assert f"this needs at least {symbols + logits:,} bytes of memory, {symbols:,} of them for symbols" in said
        assert "and the machine has 10,000; give a smaller --length or --samples or --prompt" in said


def test_fields_of_every_script_are_of_known_kinds():
    """So that the tests above miss none."""
    for script in [*TRAINED, *COMMANDS]:
        config = getattr(module_of(script), COMMANDS.get(script, "Config"))
        kinds = fields_of(script)
        assert len(kinds) == len(dataclasses.fields(config))
        assert {kind.plain for kind in kinds.values()} <= {int, float, str, bool, Path}
