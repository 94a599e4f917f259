"""Bad options of the benchmarks are refused in one line, before any work."""

import jax
import pytest

from experiments.benchmarks import latency, memory, speed


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Starts JAX before a script asks for other devices."""
    return jax.devices()


SCRIPTS = {"speed": speed, "memory": memory, "latency": latency}


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        (
            "speed",
            "--cells cnn",
            "--cells expected lstm, gru, rnn, gru-before, rnn-relu, min_gru, min_lstm, rg_lru; got cnn",
        ),
        (
            "speed",
            "--cells",
            "--cells expected lstm, gru, rnn, gru-before, rnn-relu, min_gru, min_lstm, rg_lru; got nothing",
        ),
        ("speed", "--parallel lstm", "--parallel expected associative, newton; got lstm"),
        ("speed", "--shapes", "got nothing"),
        ("speed", "--shapes 3,2,4", "got '3,2,4'"),
        ("speed", "--shapes 3,2,4,x", "got '3,2,4,x'"),
        ("speed", "--shapes 3,0,4,5", "positive sizes, got '3,0,4,5'"),
        ("speed", "--peers jax", "--peers expected flax, haiku, keras, equinox, torch; got jax"),
        ("speed", "--cells gru-heads8", "rg_lru; got gru-heads8"),
        ("speed", "--heads --plot plot.png", "--plot expected no file with --heads"),
        ("speed", "--heads --repeats 0", "--repeats expected a positive number, got 0"),
        ("speed", "--repeats 0", "--repeats expected a positive number, got 0"),
        ("speed", "--json file/speed.json", "cannot write into file"),
        ("speed", "--plot .", "is a folder"),
        ("memory", "--cells mamba", "got mamba"),
        ("memory", "--steps", "--steps expected numbers of steps in rising order; got nothing"),
        ("memory", "--steps 8 4", "--steps expected rising numbers, got 8 4"),
        ("memory", "--steps 0 4", "--steps expected a positive number, got 0"),
        ("memory", "--hidden -1", "--hidden expected a positive number, got -1"),
        ("memory", "--peers jax", "got jax"),
        ("memory", "--json .", "is a folder"),
        ("latency", "--cells gru-before", "--cells expected lstm, gru, rnn; got gru-before"),
        ("latency", "--hidden 0", "--hidden expected a positive number, got 0"),
        ("latency", "--sequences 3,2,4", "--sequences expected T,B,I,H"),
        ("latency", "--repeats 0", "--repeats"),
        ("latency", "--peers jax", "got jax"),
        ("latency", "--plot file/plot.png", "cannot write into file"),
    ],
)
def test_bad_options_are_refused_in_one_line(script, arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(SCRIPTS[script], "make_problem", lambda *_: pytest.fail("begun"))
    assert SCRIPTS[script].main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{script}: ")
    assert complaint in err
    assert err.count("\n") == 1
