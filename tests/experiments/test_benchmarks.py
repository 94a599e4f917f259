"""Benchmarks: contestants compute the same, wrong contestants are detected, results are written and printed."""

import contextlib
import json
import os
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments.benchmarks import (
    _contestants,
    _heads,
    _options,
    _peers,
    _plots,
    _problem,
    _streams,
    _summary,
    _tables,
    _turns,
    latency,
    memory,
    speed,
)
from experiments.benchmarks._problem import Shape

pytestmark = pytest.mark.peers

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported, or it looks for TensorFlow

TINY = Shape(5, 4, 3, 6)
PAIRS = [(form, name) for name, peer in _peers.PEERS.items() for form in peer.forms]


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Starts JAX before a script asks for other devices."""
    return jax.devices()


@contextlib.contextmanager
def as_peers_are_used():
    """Peers do not run under the strict promotion of these tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def peer(name):
    """Skips the test if a peer is missing; with JAXRNN_REQUIRE_PEERS=1 it fails instead."""
    if _peers.installed_version(name) is None:
        assert os.environ.get("JAXRNN_REQUIRE_PEERS") != "1", f"{name} is required"
        pytest.skip(f"{name} is not installed")


@pytest.fixture
def quick_peak(monkeypatch):
    """Replaces the large product, which is slow on a CPU."""
    monkeypatch.setattr(speed, "matrix_product_peak", lambda: 1e11)


@pytest.fixture(scope="module")
def reference():
    """Problem, contestant and compiled programs of jaxrnn's default, once for each form."""
    outcomes = {}

    def of(form):
        if form not in outcomes:
            problem = _problem.make_problem(form, TINY)
            contestant = _contestants.unrolled(problem)
            programs = {task: contestant.prepare(task) for task in _turns.TASKS}
            outcomes[form] = problem, contestant, programs
        return outcomes[form]

    return of


# The contestants


@pytest.mark.parametrize(("form", "name"), PAIRS)
def test_peers_compute_the_same(form, name, reference):
    peer(name)
    problem, own, programs = reference(form)
    with as_peers_are_used():
        contestants = {"default": own, name: _peers.PEERS[name].build(problem)}
        found = _contestants.differences(
            contestants, {"default": programs, **_contestants.prepare({name: contestants[name]})}, "default"
        )
    assert found["default"] == 0
    assert found[name] < 2e-6  # measured 5e-8 to 4e-7
    assert contestants[name].without == (("b_hn",) if (form, name) == ("gru", "flax") else ())


@pytest.mark.devices
def test_batch_is_sharded_over_the_devices():
    problem = _problem.make_problem("gru", TINY._replace(batch=8))
    contestants = {"default": _contestants.unrolled(problem), "sharded": _contestants.sharded(problem)}
    programs = _contestants.prepare(contestants)
    assert _contestants.differences(contestants, programs, "default")["sharded"] < 5e-6
    ys = programs["sharded"]["forward"].call()
    assert {shard.data.shape for shard in ys.addressable_shards} == {(5, 1, 6)}
    assert len(ys.sharding.device_set) == 8
    assert len(programs["default"]["forward"].call().sharding.device_set) == 1
    assert _contestants.sharded(_problem.make_problem("gru", TINY._replace(batch=6))) is None


@pytest.mark.parametrize("field", ["outputs", "loss", "w_x", "b_hn", "nan"])
def test_every_output_and_gradient_is_compared(field, reference):
    problem, own, programs = reference("gru")

    def damaged(task):
        call = programs[task].call
        if task == "forward":
            return _turns.Program(lambda: call().at[2, 1, 3].add(1e-3 if field == "outputs" else 0.0))
        loss, gradients = call()
        if field in gradients._fields:
            gradients = gradients._replace(**{field: 1.001 * getattr(gradients, field)})
        if field == "nan":
            gradients = gradients._replace(b=gradients.b.at[0].set(jnp.nan))
        return _turns.Program(lambda: ((1.001 if field == "loss" else 1.0) * loss, gradients))

    broken = own._replace(prepare=damaged)
    every = {"default": programs, "broken": {task: damaged(task) for task in _turns.TASKS}}
    found = _contestants.differences({"default": own, "broken": broken}, every, "default")
    assert found["default"] == 0
    assert np.isnan(found["broken"]) if field == "nan" else 1e-4 < found["broken"] < 2e-3
    without = broken._replace(without=("b_hn",))
    found = _contestants.differences({"default": own, "broken": without}, every, "default")
    assert (found["broken"] == 0) == (field == "b_hn")
    assert problem.params.b_hn is not None


def test_difference_covers_every_leaf_and_nan():
    a = {"x": jnp.array([1.0, -4.0]), "y": jnp.array([2.0])}
    assert _problem.difference(a, a) == 0
    assert _problem.difference({**a, "x": jnp.array([1.5, -4.0])}, a) == 0.125
    assert _problem.difference({**a, "y": jnp.array([1.0])}, a) == 0.5
    assert np.isnan(_problem.difference({**a, "x": jnp.array([jnp.nan, -4.0])}, a))
    assert np.isnan(_problem.difference({**a, "x": jnp.array([[1.0, -4.0]])}, a))


def test_duplicated_bias_counts_once():
    np.testing.assert_array_equal(_peers.once("lstm", np.ones(4)), [0, 0, 0, 0])
    np.testing.assert_array_equal(_peers.once("gru", np.arange(1, 7)), [0, 0, 0, 0, 5, 6])
    found = _peers.linear(lambda tree: {"b": 2 * tree["a"] + 1e6}, {"a": np.float32([1e-3, 0])})
    np.testing.assert_allclose(found["b"], [2e-3, 0], rtol=1e-6)


def test_problem_biases_are_nonzero_where_every_peer_has_them():
    params = _problem.make_problem("gru", TINY).params
    assert np.all(np.asarray(params.b) != 0)
    assert np.all(np.asarray(params.b_hn) == 0)


def test_operations_count_the_matrix_products():
    assert _problem.operations("lstm", Shape(2, 3, 4, 5), "train") == 6 * 2 * 3 * (4 + 5) * 4 * 5
    assert _problem.operations("rnn", Shape(2, 3, 4, 5), "forward") == 2 * 2 * 3 * (4 + 5) * 5


# Turns


def test_contestants_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    taken = _turns.take_turns(calls, 5, turn_ms=0)
    rounds = ["".join(order[k : k + 3]) for k in range(0, 15, 3)]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(ms) for name, ms in taken.items()} == {"a": 5, "b": 5, "c": 5}


def test_quick_call_is_repeated_within_its_turn(monkeypatch):
    clock = iter(np.arange(1000) * 1e-3)  # each reading advances a millisecond
    monkeypatch.setattr(_turns.time, "perf_counter", lambda: float(next(clock)))
    taken = _turns.take_turns({"quick": lambda: None}, 2, turn_ms=6)
    np.testing.assert_allclose(taken["quick"], 1.0)
    assert len(taken["quick"]) == 6


def test_compiled_program_reports_time_and_memory():
    a = jnp.ones((64, 64))
    program = _turns.compiled(lambda a: jnp.sum(jnp.cumsum(a @ a, 0) @ a), a)
    assert program.call() == pytest.approx(64 * 64 * sum(range(1, 65)) * 64)
    assert program.compile_s > 0
    assert 64 * 64 * 4 <= program.temporary_bytes < 64 * 64 * 40


def test_peak_is_measured_by_a_matrix_product(monkeypatch):
    monkeypatch.setattr(_turns, "take_turns", lambda calls, rounds: {"product": [4.0, 2.0, 3.0]})
    assert _turns.matrix_product_peak(8) == 2 * 8**3 / 2e-3


# Summaries


def timing(task, contestant, min_ms, shape="10,16,8,256"):
    return _turns.Timing("lstm", shape, task, contestant, None, min_ms, 2 * min_ms)


def test_summary_takes_the_best_peer_of_each_shape():
    small = "10,8,8,64"
    timings = [
        *(timing("train", *row) for row in [("default", 2), ("sharded", 1), ("flax", 6), ("haiku", 4), ("torch", 3)]),
        *(timing("train", *row, small) for row in [("default", 1), ("sharded", 1), ("flax", 8), ("torch", 1)]),
        timing("forward", "default", 1),
        timing("forward", "torch", 9),
    ]
    found = {(m.task, m.what): m for m in _summary.summarise(timings, peak=1e12)}
    best = found["train", "best JAX peer / default"]
    assert (best.mean, best.least, best.least_at, best.shapes) == (pytest.approx(4.0), 2.0, "10,16,8,256", 2)
    split = found["train", "torch / sharded, B >= 16"]
    assert (split.mean, split.shapes) == (pytest.approx(3.0), 1)
    of_peak = found["train", "sharded, of the peak, H >= 256"]
    assert of_peak.mean == pytest.approx(6 * 10 * 16 * (8 + 256) * 4 * 256 / 1e-3 / 1e12)
    assert len(found) == 3
    assert _summary.ratios(timings) == [1, 0.5, 3, 2, 1.5, 1, 1, 8, 1, 1, 9]
    assert "2.00 at 10,16,8,256" in _summary.summary_lines([best])[0]


# The scripts


@pytest.mark.usefixtures("quick_peak")
def test_speed_compares_contestants_and_writes_a_record(tmp_path, capsys):
    path, figure = tmp_path / "speed.json", tmp_path / "speed.png"
    files = ["--json", str(path), "--plot", str(figure)]
    arguments = ["--shapes", "3,8,4,5", "1,1,1,2", "--cells", "rnn", "--repeats", "3", "--peers", *files]
    assert speed.main(arguments) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["repeats"], record["dtype"]) == (3, "float32")
    expected = {"3,8,4,5": ("default", "scan", "sharded"), "1,1,1,2": ("default", "scan")}
    keys = [(t["cell"], t["shape"], t["task"], t["contestant"]) for t in record["timings"]]
    assert keys == [("rnn", s, task, c) for s in expected for task in ("forward", "train") for c in expected[s]]
    for t in record["timings"]:
        assert 0 < t["min_ms"] <= t["median_ms"]
        assert t["compile_s"] > 0
        base = next(b for b in record["timings"] if (b["shape"], b["task"]) == (t["shape"], t["task"]))
        np.testing.assert_allclose(t["ratio"], t["min_ms"] / base["min_ms"], rtol=1e-12)
        work = _problem.operations("rnn", _problem.parse_shape("", t["shape"]), t["task"])
        np.testing.assert_allclose(t["of_peak"], work / (1e-3 * t["min_ms"]) / record["peak_flops"], rtol=1e-9)
    assert len(record["differences"]) == 5
    assert all(0 <= d["difference"] < speed.TOLERANCE for d in record["differences"])
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    printed = capsys.readouterr().out
    assert f"jax {jax.__version__}" in printed
    assert printed.count("scan") == 4
    assert "1,1,1,2: not taking part: sharded" in printed


@pytest.mark.usefixtures("quick_peak")
def test_speed_runs_cells_together_and_counts_the_products_of_affine_ones(tmp_path, monkeypatch):
    """All contestants of a shape take turns in one round."""
    turns = []
    take_turns = speed.take_turns
    monkeypatch.setattr(
        speed, "take_turns", lambda calls, rounds: turns.append(set(calls)) or take_turns(calls, rounds)
    )
    path = tmp_path / "speed.json"
    arguments = ["--shapes", "3,2,4,5", "--cells", "gru", "min_gru", "--repeats", "1", "--peers", "--json", str(path)]
    assert speed.main([*arguments, "--together", "--parallel", "associative", "newton"]) == 0
    expected = {("gru", "newton"), ("min_gru", "associative")}
    expected |= {(cell, name) for cell in ("gru", "min_gru") for name in ("default", "scan")}
    assert turns == [expected, expected]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {(d["cell"], d["contestant"]) for d in record["differences"]} == expected
    assert max(d["difference"] for d in record["differences"]) < speed.TOLERANCE
    shape = _problem.parse_shape("", "3,2,4,5")
    assert _problem.operations("min_gru", shape, "forward") == 2 * 3 * 2 * 4 * (2 * 5)
    assert _problem.operations("rg_lru", shape, "forward") == 2 * 3 * 2 * (4 * 5 + 5 * 10)
    assert set(_tables.of_affine(record)) == {"train", "forward"}


def test_blocks_are_those_of_the_dense_matrix():
    params = _problem.make_problem("lstm-heads2", TINY).params
    dense = jaxrnn.merge_heads(params).w_h
    between = jnp.where(dense == 0, 9.0, dense)  # whatever is there
    np.testing.assert_array_equal(_heads.blocks(between, 2), params.w_h)


def test_every_form_of_heads_is_benchmarked():
    every = {cell for table in (_heads.SHAPES, _heads.QUICK) for cells in table.values() for cell in cells}
    assert every <= set(_problem.HEADED)
    assert set(_heads.SHAPES) == {"64,32,128,512", "64,16,1024,1024"}
    shape = Shape(2, 3, 4, 8)
    assert _problem.operations("gru-heads2", shape, "forward") == 2 * 2 * 3 * (4 * 24 + 2 * 4 * 12)


@pytest.mark.usefixtures("quick_peak")
def test_speed_compares_heads_with_the_dense_cell(tmp_path, monkeypatch, capsys):
    """All contestants return the values and the gradients of the dense cell's blocks; a loop that skips a head does not."""
    monkeypatch.setattr(_heads, "QUICK", {"3,2,4,4": ("lstm-heads2", "gru-heads2")})
    skips = lambda h, w_h: _heads.loop(h, w_h.at[0].set(0.0))  # noqa: E731
    monkeypatch.setitem(_heads.BUILDERS, "skips", lambda problem: _heads.scanned(skips, problem))
    path = tmp_path / "speed.json"
    assert speed.main(["--heads", "--quick", "--json", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == err.count("skips differs by") == 2
    assert "ratio is that of the minimum to dense's" in out
    record = json.loads(path.read_text(encoding="utf-8"))
    right = ("dense", "heads", "zeros", "cells", "batched", "loop")
    cells = ("lstm-heads2", "gru-heads2")
    expected = [(cell, task, name) for task in ("forward", "train") for cell in cells for name in right]
    assert [(t["cell"], t["task"], t["contestant"]) for t in record["timings"]] == expected
    assert all(d["difference"] < 3e-6 for d in record["differences"] if d["contestant"] != "skips")
    assert all(len(f"{t['min_ms']:.10g}".replace(".", "").strip("0")) <= 4 for t in record["timings"])
    made = _tables.of_heads({"timings": [t for t in record["timings"] if t["contestant"] != "cells"]})
    assert list(made) == ["train", "forward"]
    assert made["train"].splitlines()[0] == f"| cell | T, B, I, H | {' | '.join(_tables.HEADS)} |"
    assert made["train"].splitlines()[2].startswith("| lstm-heads2 | 3, 2, 4, 4 | ")


@pytest.mark.usefixtures("quick_peak")
@pytest.mark.parametrize(("factor", "said"), [(1.01, "1.0e-02"), (float("nan"), "nan")])
def test_speed_does_not_time_a_wrong_contestant(factor, said, monkeypatch, capsys, tmp_path):
    def damaged(problem):
        honest = _contestants.unrolled(problem)
        return honest._replace(as_jaxrnn=lambda gradients: jax.tree.map(lambda g: factor * g, gradients))

    monkeypatch.delitem(_contestants.OWN, "scan")
    monkeypatch.delitem(_contestants.OWN, "sharded")
    monkeypatch.setitem(_contestants.OWN, "damaged", damaged)
    path = tmp_path / "speed.json"
    arguments = ["--cells", "rnn", "--shapes", "3,2,4,5", "--repeats", "1", "--peers", "--json", str(path)]
    assert speed.main(arguments) == 1
    out, err = capsys.readouterr()
    assert err == f"speed: rnn 3,2,4,5: damaged differs by {said}, more than 3e-05; not timed\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert {t["contestant"] for t in record["timings"]} == {"default"}
    assert [d["contestant"] for d in record["differences"]] == ["default", "damaged"]
    assert "damaged" not in out


def test_missing_peer_is_named_as_skipped(monkeypatch, capsys):
    absent = _peers.Peer("no-such-package", tuple(_problem.FORMS), lambda _: pytest.fail("built"))
    monkeypatch.setitem(_peers.PEERS, "absent", absent)
    assert _options.here(("absent", "flax", "flax")) == ("flax",)
    assert capsys.readouterr().out == "skipped, not installed: absent (no-such-package)\n"
    assert _options.about(("flax",))["versions"]["flax"] == metadata.version("flax")


def test_memory_compares_the_settings_of_checkpoint(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "resident", lambda form, shape: None)
    for name in ("gates", "16"):
        monkeypatch.delitem(memory.OWN, name)
    path, figure = tmp_path / "memory.json", tmp_path / "memory.png"
    sizes = ["--steps", "4", "64", "--batch", "4", "--features", "2", "--hidden", "8"]
    with as_peers_are_used():
        files = ["--json", str(path), "--plot", str(figure)]
        assert memory.main([*sizes, "--cells", "rnn", "--peers", "flax", "torch", *files]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["measured"]
    by_name = {name: [r["bytes"] for r in rows if r["contestant"] == name] for name in [r["contestant"] for r in rows]}
    assert list(by_name) == ["None", "sqrt", "scan", "flax", *_if_installed("torch")]
    assert by_name["None"][1] > 10 * by_name["None"][0]
    assert by_name["sqrt"][1] < 0.7 * by_name["None"][1]
    for row in rows:
        base = by_name["None"][row["shape"] == "64,4,2,8"]
        assert row["ratio"] == (row["bytes"] / base if row["bytes"] is not None else None)
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    printed = capsys.readouterr().out
    assert "(1.00)" in printed
    assert printed.count("not measured") == 2 * len(_if_installed("torch"))


def test_memory_of_a_loss_of_the_final_state(tmp_path):
    """Less than for all outputs, and the settings of jaxrnn alone."""
    sizes = ["--steps", "64", "--batch", "4", "--features", "2", "--hidden", "8", "--cells", "lstm"]
    found = {}
    for options in ([], ["--final"]):
        path = tmp_path / "memory.json"
        with as_peers_are_used():
            assert (
                memory.main([*sizes, "--peers", *(["flax"] if not options else []), *options, "--json", str(path)]) == 0
            )
        record = json.loads(path.read_text(encoding="utf-8"))
        found[record["loss_reads"]] = {row["contestant"]: row["bytes"] for row in record["measured"]}
    assert set(found["final state"]) == set(memory.OWN) == set(found["outputs"]) - {"flax"}
    outputs = 4 * 64 * 4 * 8
    assert found["final state"]["sqrt"] < min(found["outputs"]["sqrt"] - outputs, found["final state"]["None"])


def _if_installed(name):
    return [name] if _peers.installed_version(name) else []


@pytest.mark.processes
def test_torch_memory_is_measured_in_a_separate_process(monkeypatch):
    peer("torch")
    state = 4 * 200 * 64 * 128  # bytes of one (T, B, H) array; the layer keeps several, and the gates
    assert 2 * state < memory.resident("lstm", Shape(200, 64, 8, 128)) < 40 * state
    monkeypatch.setattr(memory.sys, "executable", "false")
    assert memory.resident("lstm", TINY) is None


@pytest.mark.parametrize("form", latency.CELLS)
def test_streams_keep_their_state_between_calls(form):
    problem = _problem.make_problem(form, TINY._replace(steps=3))
    peers = tuple(name for name in _streams.OTHERS if _if_installed(name))
    with as_peers_are_used():
        streams = _streams.streams_of(problem, peers)
        first, second = ({n: np.stack([call() for _ in range(3)]) for n, call in streams.items()} for _ in range(2))
    final, ys = jaxrnn.unroll(problem.cell, problem.params, problem.xs)
    _, again = jaxrnn.unroll(problem.cell, problem.params, problem.xs, final)  # the stream repeats its inputs
    for name in streams:
        np.testing.assert_allclose(first[name], ys, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(second[name], again, atol=2e-6, err_msg=name)
    own = {"cell", "network"}
    assert set(streams) - own == {name for name in peers if form in _peers.PEERS[name].forms}
    assert set(streams) >= own


def test_latency_times_steps_and_sequences(monkeypatch, capsys, tmp_path):
    def forgetful(problem):
        step = lambda params, h, x: (h, problem.cell.step(params, h, x)[1])  # noqa: E731
        return _streams.streaming(step, problem.params, problem.cell.initial_state((1,)), problem.xs)

    monkeypatch.setitem(_streams.OWN, "forgetful", forgetful)
    path, figure = tmp_path / "latency.json", tmp_path / "latency.png"
    sizes = ["--hidden", "5", "3", "--sequences", "20,1,2,4", "--repeats", "2"]
    assert latency.main([*sizes, "--cells", "rnn", "--peers", "--json", str(path), "--plot", str(figure)]) == 1
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    steps = [("step", shape, name) for shape in ("8,1,3,3", "8,1,5,5") for name in ("cell", "network", "forgetful")]
    sequences = [("sequence", "20,1,2,4", name) for name in ("default", "scan")]
    assert [(r["what"], r["shape"], r["contestant"]) for r in rows] == [*steps, *sequences]
    for row in rows:
        assert ("min_us" in row) == (row["contestant"] != "forgetful") == (row["difference"] < speed.TOLERANCE)
        assert ("min_us" not in row) or 0 < row["min_us"] <= row["median_us"]
    assert [row["ratio"] for row in rows if row["contestant"] in ("cell", "default")] == [1, 1, 1]
    assert all(row["temporary_bytes"] >= 0 for row in rows if row["what"] == "sequence")
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert capsys.readouterr().err.count("forgetful differs by") == 2


def test_sequence_time_is_reported_per_step(monkeypatch):
    monkeypatch.setattr(latency, "take_turns", lambda calls, repeats: {"a": [2.0, 3.0]})
    assert latency.timed({"a": lambda: None}, {"a": jnp.ones(3)}, 2, steps=4).microseconds == {"a": [500.0, 750.0]}


def test_every_contestant_has_a_unique_colour_and_marker():
    looks = _plots.LOOKS
    assert set(looks) == {*_contestants.OWN, *_peers.PEERS}
    assert len({colour for colour, _ in looks.values()}) == len({marker for _, marker in looks.values()}) == len(looks)
    for beside in (memory.OWN, _streams.OWN):
        every = [_plots._look(name) for name in (*beside, *_peers.PEERS)]
        assert len(set(every)) == len(every)
