"""The scaling benchmark: counts in program text, its model of time, and its record."""

import json

import jax
import pytest

from experiments.benchmarks import _scaling_paper as paper
from experiments.benchmarks import scaling
from experiments.benchmarks._collectives import Collective, Counts, collectives, counted
from experiments.benchmarks._problem import Shape
from experiments.benchmarks._scaling_counts import count, grown

PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %g = f32[2,3]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={1}
}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = (bf16[8]{0}, f32[]) all-reduce(%y, %z), to_apply=%sum
  %w = (s32[], f32[2,3]) while(%t), condition=%condition, body=%inner_body, backend_config={"known_trip_count":{"n":"5"}}
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%unreached (p: f32[4]) -> f32[4] {
  %no = f32[4]{0} all-reduce(%p), to_apply=%sum
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %l = (s32[], f32[4]) while(%t), condition=%condition, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), dimensions={0}
  %alone = f32[4]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%sum
  %done = f32[16]{0} all-gather-done(%start)
  ROOT %q = f32[4]{0} add(%p, %p)
}
"""


def test_collectives_of_a_program_are_counted():
    assert collectives(PROGRAM) == [
        Collective("all-reduce", 20, 1, 3),
        Collective("all-gather", 24, 2, 15),
        Collective("all-gather", 64, 0, 1),
    ]
    assert counted(PROGRAM) == Counts(outside=1, inside=2, executed=19, bytes=60 + 360 + 64)
    unknown = PROGRAM.replace('{"known_trip_count":{"n":"5"}}', "{}")
    assert counted(unknown) == Counts(outside=1, inside=2, executed=None, bytes=None)


def test_weak_scaling_grows_the_shape():
    shape = Shape(16, 8, 4, 8)
    assert grown("jit", shape, 4, weak=False) == shape
    assert grown("jit", shape, 4, weak=True) == Shape(16, 32, 4, 8)
    assert grown("model_parallel", shape, 4, weak=True) == Shape(16, 8, 4, 32)
    assert [grown("pipeline", shape, 4, weak).features for weak in (False, True)] == [8, 4]


CHIP = paper.Accelerator("round", 1e12, 1e9, 1e11, 4, 1e9, 1e8, 1e-6, 1e-5, "none")


def test_collective_times_equal_hand_computation():
    """4e6 bytes are reduced over 4 near and 2 far chips."""
    assert paper.collective(CHIP, 1, 4e6) == 0
    near = paper.CALL + 2 * 3 * (1e-6 + 1e6 / 1e9)
    far = paper.CALL + 2 * 1 * (1e-5 + 0.5e6 / 1e8)
    assert paper.collective(CHIP, 4, 4e6) == pytest.approx(near)
    assert paper.collective(CHIP, 8, 4e6) == pytest.approx(near + far)
    assert paper.collective(CHIP, 4, 4e6, passes=1) == pytest.approx(paper.CALL + 3 * (1e-6 + 1e-3))


def test_train_step_times_equal_hand_computation():
    work = paper.Work(steps=10, features=50, hidden=100, layers=2)
    assert work.weights == 2 * 150 * 400
    weights = 2 * 100 * 400 / 1e11  # reading weights dominates the product of one sequence
    assert paper.step(CHIP, work, 1) == pytest.approx(paper.OVERHEAD + weights)
    assert paper.step(CHIP, work, 1000) == pytest.approx(paper.OVERHEAD + 2 * 1000 * 100 * 400 / 0.4e12)
    assert paper.step(CHIP, work, 1, shares=4) == pytest.approx(paper.OVERHEAD + weights / 4)
    at_once = 2 * 10 * (3 * 50 + 100) * 400 / 0.4e12
    one = 2 * (20 * (paper.OVERHEAD + weights) + at_once)
    assert paper.computing(CHIP, work, 1) == pytest.approx(one)
    found = paper.data_parallel(CHIP, work, 4, 1)
    reduce = paper.collective(CHIP, 4, 4 * work.weights)
    assert found["efficiency"] == pytest.approx(one / (one + reduce))
    assert found["sequences_per_s"] == pytest.approx(4 / (one + reduce))
    assert found["in_the_loop_ms"] == pytest.approx(20e3 * paper.collective(CHIP, 4, 4 * 100 * 400))
    assert paper.model_parallel(CHIP, work, 1, 1)["speedup"] == 1
    assert paper.pipeline_efficiency(4, 13) == 13 / 16


@pytest.mark.devices
@pytest.mark.processes
def test_quick_run_counts_and_times_programs(tmp_path, capsys, monkeypatch):
    """Small programs are counted, and two processes are timed."""
    jax.devices()  # starts JAX with the devices of these tests
    monkeypatch.setattr(scaling, "DEVICES", (8,))
    monkeypatch.setattr(scaling, "WAYS", [way for way in scaling.WAYS if way != "data_parallel"])
    monkeypatch.setattr(scaling, "SETTINGS", {"1 device": scaling.Setting(1, 1), "2 devices": scaling.Setting(2, 2)})
    assert scaling.main(["--quick", "--cell", "rnn", "--json", str(tmp_path / "scaling.json")]) == 0
    record = json.loads((tmp_path / "scaling.json").read_text())
    rows = {(r["way"], r["scaling"], r["devices"]): r for r in record["counted"]}
    assert count("rnn", "data_parallel", Shape(16, 8, 4, 8), 1)["executed"] == {}
    assert rows["jit", "strong", 8]["executed"] == rows["jit", "weak", 8]["executed"] == {"all-reduce": 1}
    assert rows["jit of a plain scan", "strong", 8]["executed"]["all-reduce"] > 16
    assert rows["model_parallel", "strong", 8]["executed"]["reduce-scatter"] == 16
    assert rows["pipeline", "strong", 8]["executed"]["collective-permute"] >= 2 * (16 + 8 - 1)
    one, two = sorted(record["timed"], key=lambda row: row["setting"])
    assert two["two_devices"] == 1
    assert one["two_devices"] == pytest.approx(one["median_ms"] / two["median_ms"])  # one round
    assert one["calls"] >= 2
    assert one["min_ms"] <= one["median_ms"]
    assert set(record["paper"]) == {"H100 SXM", "H200 SXM", "TPU v5p"}
    assert "| jit | strong | 8 | 16, 8, 4, 8 | 0 | 1 all-reduce |" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--shape", "16,6,4,8"], "scaling: --shape expected a B that 8 devices divide, got 6"),
    (["--cell", "elman"], "scaling: --cells expected lstm, gru, rnn, gru-before, rnn-relu; got elman"),
    (["--timed", "lstm:16,3,4,8"], "scaling: --timed expected an even batch, got 16,3,4,8"),
    (["--timed", "mgu:16,2,4,8"], "scaling: --timed expected lstm, gru, rnn, gru-before, rnn-relu; got mgu"),
])  # fmt: skip
def test_bad_options_are_refused(arguments, message, capsys):
    assert scaling.main(arguments) == 2
    assert capsys.readouterr().err.strip() == message
