"""The GPU benchmark on a CPU: contestants, checks, floors, records and refusals."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import _floors, _gpu_checks, _gpu_contestants, _peers, _problem, _turns, gpu
from experiments.benchmarks._contestants import Contestant
from experiments.benchmarks._floors import Speeds
from experiments.benchmarks._gpu_checks import TOLERANCE, Check
from experiments.benchmarks._problem import Shape
from tests.experiments.test_benchmarks import as_peers_are_used, peer

pytestmark = pytest.mark.peers

TINY = Shape(5, 4, 3, 6)
SPEEDS = Speeds(flops=1e12, bytes=1e11)


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Starts JAX before a script asks for other devices."""
    return jax.devices()


@pytest.fixture(autouse=True)
def quick_speeds(monkeypatch):
    """Replaces the large products, which are slow on a CPU, and restores the environment after each test."""
    monkeypatch.setattr(gpu, "measure_speeds", lambda dtype, size, megabytes: SPEEDS)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def test_gpu_benchmark_checks_and_times_on_a_cpu(tmp_path, capsys):
    path, figure = tmp_path / "gpu.json", tmp_path / "gpu.png"
    files = ["--json", str(path), "--plot", str(figure)]
    asked = ["--cells", "rnn", "--dtypes", "float32", "bf16", "--peers", "--unrolls", "2", *files]
    assert gpu.main(["--device", "cpu", *asked]) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    checked = [(c["dtype"], c["options"], c["contestant"]) for c in record["checks"]]
    varied = [("lengths", "bptt"), ("lengths, reverse", "bptt")]
    assert checked == [
        *[("float32", *row) for row in [("", "bptt"), ("", "scan x2"), *varied]],
        *[("bf16", *row) for row in [("", "bptt"), *varied]],
    ]
    for row in record["checks"]:
        assert row["identical"]
        assert 0 < row["difference"] < TOLERANCE[row["dtype"]]
        assert (row["difference"] > 1e-4) == (row["dtype"] == "bf16")  # products are computed in bf16
    timed = [(t["dtype"], t["task"], t["contestant"]) for t in record["timings"]]
    assert timed == [
        *[("float32", task, name) for task in _turns.TASKS for name in ("bptt", "scan x2")],
        *[("bf16", task, "bptt") for task in _turns.TASKS],
    ]
    for row in record["timings"]:
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["compile_s"] > 0
        base = next(r for r in record["timings"] if (r["dtype"], r["task"]) == (row["dtype"], row["task"]))
        assert row["ratio"] == pytest.approx(row["min_ms"] / base["min_ms"])
        assert row["operations_ms"] == 1e3 * _problem.operations("rnn", Shape(12, 4, 8, 8), row["task"]) / 1e12
    assert record["speeds"] == dict.fromkeys(("float32", "bf16"), SPEEDS._asdict())
    assert record["machine"]["device"] == jax.devices()[0].device_kind
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    printed = capsys.readouterr().out
    assert "cudnn is left out, a CPU: cuDNN runs on NVIDIA's GPUs" in printed
    assert "scan x2 is left out, the plain scan has no products in bf16" in printed
    assert printed.count("right: rnn 7,3,5,8") == 7


def test_wrong_contestant_is_named_and_not_timed(monkeypatch, capsys, tmp_path):
    honest = _gpu_contestants.unrolled

    def damaged(problem, **options):
        return honest(problem, **options)._replace(as_jaxrnn=lambda tree: jax.tree.map(lambda g: 1.01 * g, tree))

    monkeypatch.setattr(_gpu_contestants, "unrolled", damaged)
    monkeypatch.setattr(_gpu_checks, "variants", lambda shape: {"": {}})
    path = tmp_path / "gpu.json"
    asked = ["--cells", "rnn", "--dtypes", "float32", "--peers", "--json", str(path)]
    assert gpu.main(["--device", "cpu", *asked]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("gpu: rnn 7,3,5,8 float32: bptt differs by 1.0e-02, 1e-04 is allowed\n")
    assert "rnn 12,4,8,8 float32: bptt is left out, it was wrong where it was checked" in printed.out
    assert json.loads(path.read_text(encoding="utf-8"))["timings"] == []


def test_calls_that_differ_from_each_other_are_detected(monkeypatch):
    problem = _problem.make_problem("rnn", TINY)
    expected = jnp.zeros((5, 4, 6)), 1.0, problem.params
    ticks = iter(range(100))

    def prepare(task):
        wavering = lambda: expected[0] + (1e-9 if next(ticks) > 1 else 0)  # noqa: E731
        return _turns.Program(wavering if task == "forward" else lambda: expected[1:])

    found = _gpu_checks.examine(Contestant(prepare), expected)
    assert found[1] is False
    steady = _gpu_checks.examine(
        Contestant(lambda t: _turns.Program(lambda: expected[0] if t == "forward" else expected[1:])), expected
    )
    assert steady == (0, True)
    check = Check("rnn", "5,4,3,6", "float32", "", "pallas", 1e-6, False)
    assert not check.right
    assert check.complaint().endswith("its calls differ from each other")
    assert check._replace(contestant="torch").right
    assert check._replace(identical=True).right
    assert not check._replace(identical=True, difference=float("nan")).right


@pytest.mark.parametrize("name", ["flax", "torch"])
def test_peers_compute_in_bf16(name):
    peer(name)
    problem = _problem.make_problem("lstm", TINY)
    with as_peers_are_used(), _gpu_contestants.precision("bf16", (name,)):
        field = _gpu_contestants.field_of(problem, "bf16", "cpu", (), (name,))
        difference, _ = _gpu_checks.examine(field.contestants[name], _gpu_checks.in_float64(problem, {}))
    assert 1e-4 < difference < 0.02  # measured 4e-3 to 7e-3


def test_precision_is_set_for_jax_and_torch():
    peer("torch")
    cudnn = _peers.load("torch").backends.cudnn
    before = cudnn.allow_tf32
    for dtype, allowed in (("float32", False), ("tf32", True)):
        with _gpu_contestants.precision(dtype, ("torch",)):
            assert cudnn.allow_tf32 is allowed
            assert jax.config.jax_default_matmul_precision == _gpu_contestants.PRECISIONS[dtype]
    cudnn.allow_tf32 = before


def test_absent_contestants_give_a_reason(monkeypatch):
    monkeypatch.setattr(_gpu_contestants, "OWN", ("bptt", "cudnn", "nonesuch"))
    field = _gpu_contestants.field_of(_problem.make_problem("lstm", TINY), "float32", "cpu", (), ())
    assert list(field.contestants) == ["bptt"]
    assert field.absent["cudnn"] == "a CPU: cuDNN runs on NVIDIA's GPUs"
    assert "no implementation of this name" in field.absent["nonesuch"]
    peer("torch")
    with pytest.raises(NotImplementedError, match="this PyTorch sees no GPU"):
        _gpu_contestants._torch(_problem.make_problem("lstm", TINY), "float32", "gpu")


def test_contestant_out_of_memory_is_left_out(monkeypatch, capsys):
    def out_of_memory(task):
        raise RuntimeError("RESOURCE_EXHAUSTED: 99 GiB\nmore")

    good = jnp.zeros((5, 4, 6)), (jnp.zeros(()), _problem.make_problem("rnn", TINY).params)
    ok = Contestant(lambda task: _turns.Program(lambda: good[0] if task == "forward" else good[1]))
    apart = ok._replace(as_time_first=lambda ys: ys + 1)
    field = _gpu_contestants.Field({"huge": Contestant(out_of_memory), "bptt": ok, "apart": apart}, {"x": "a reason"})
    monkeypatch.setattr(gpu, "field_of", lambda *_: field)
    programs = gpu.ready(_problem.make_problem("rnn", TINY), "float32", gpu.Config(), (), set())
    assert list(programs) == ["bptt"]
    said = capsys.readouterr().out
    assert "huge is left out, RESOURCE_EXHAUSTED: 99 GiB\n" in said
    assert "apart is left out, it differs by" in said
    assert "x is left out, a reason" in said


def test_floors_count_operations_bytes_and_steps():
    shape = Shape(2, 3, 4, 5)  # T, B, I, H
    weights = (4 + 5) * 4 * 5
    forward = 2 * 3 * (4 + 5) + weights
    assert _floors.traffic("lstm", shape, "forward", 4) == 4 * forward
    assert _floors.traffic("lstm", shape, "train", 2) == 2 * (2 * forward + 2 * 2 * 3 * 6 * 5 + weights)
    floor = _floors.floor_of("lstm", shape, "train", "bf16", SPEEDS)
    assert floor.operations_ms == pytest.approx(1e3 * 6 * 2 * 3 * 9 * 20 / 1e12)
    assert floor.bytes_ms == pytest.approx(1e3 * _floors.traffic("lstm", shape, "train", 2) / 1e11)
    assert floor.steps_ms == pytest.approx(2 * 2 * 2e-3)
    assert _floors.floor_of("lstm", shape, "forward", "tf32", SPEEDS).steps_ms == pytest.approx(2 * 2e-3)


def test_speeds_are_measured_by_a_product_and_a_copy(monkeypatch):
    asked = []

    def turns(calls, count):
        asked.append({name: call().dtype.name for name, call in calls.items()})
        return {"product": [4.0, 2.0], "copy": [8.0, 4.0]}

    monkeypatch.setattr(_floors, "take_turns", turns)
    speeds = _floors.measure_speeds("bf16", 8, 1)
    assert speeds == Speeds(2 * 8**3 / 2e-3, 2 * 2**20 / 4e-3)
    assert asked == [{"product": "bfloat16", "copy": "float32"}]


def test_lengths_range_from_zero_to_all_steps():
    lengths = _gpu_checks.variants(Shape(7, 3, 5, 8))["lengths, reverse"]["lengths"]
    np.testing.assert_array_equal(lengths, [0, 3, 7])


def test_xla_flags_are_appended_and_the_time_limit_is_kept(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setattr(gpu, "check_all", lambda *_, **__: [])
    monkeypatch.setattr(gpu, "timed", lambda *_: pytest.fail("begun"))
    asked = ["--cells", "rnn", "--dtypes", "float32", "--peers", "--minutes", "0"]
    assert gpu.main(["--device", "cpu", *asked, "--xla-flags=--xla_b=2"]) == 0
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_b=2"
    assert "rnn 12,4,8,8 float32 is left out: no time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "JAX sees no GPU, its devices are cpu; --device cpu tries the script here"),
        ("--quick", "JAX sees no GPU"),
        ("--device tpu", "--device expected gpu, cpu; got tpu"),
        ("--cells mgu", "--cells expected lstm, gru, rnn; got mgu"),
        ("--dtypes", "--dtypes expected float32, tf32, bf16; got nothing"),
        ("--dtypes float64", "got float64"),
        ("--shapes 3,2,4", "--shapes expected T,B,I,H"),
        ("--checked 3,2,4", "--checked expected T,B,I,H"),
        ("--peers keras", "--peers expected flax, torch; got keras"),
        ("--unrolls 3", "--unrolls expected 1, 2, 4, 8, 16; got 3"),
        ("--repeats 0", "--repeats expected a positive number"),
        ("--json .", "is a folder"),
        ("--plot file/gpu.png", "cannot write into file"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("begun"))
    assert gpu.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpu: ")
    assert complaint in err
    assert err.count("\n") == 1
