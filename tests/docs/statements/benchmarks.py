"""What the pages of the benchmarks say beside their tables."""

from experiments.benchmarks import _floors, _gpu_checks, _scaling_paper, _summary, _tables, memory, scaling, speed
from jaxrnn.sequence import registry, request
from tests.docs.statements import record, says, span

README, SCALING = "experiments/benchmarks/README.md", "experiments/benchmarks/SCALING.md"


def means(name, what):
    """Geometric means by cell and task, of one figure."""
    return {(m["cell"], m["task"]): m["mean"] for m in record(f"benchmarks/{name}")["summary"] if what in m["what"]}


def ratios(what):
    """Least microseconds of each peer, divided by those of the first contestant, by cell and hidden units."""
    first: dict = {}
    found: dict = {}
    for row in record("benchmarks/latency")["rows"]:
        if row["what"] == what:
            place = row["cell"], int(row["shape"].rpartition(",")[2])
            first.setdefault(place, row["min_us"])
            found[*place, row["contestant"]] = row["min_us"] / first[place]
    return found


@says(README)
def tolerance():
    return f"must return the same outputs and gradients ({speed.TOLERANCE:.0e} of the largest entry)".replace(
        "e-0", "e-"
    )


@says(README)
def versions_and_machine():
    found = record("benchmarks/speed")
    versions, machine = found["versions"], found["machine"]
    torch = record("benchmarks/speed_two_devices")["versions"]["torch"].partition("+")[0]
    libraries = [f"{name} {versions[name]}" for name in ("jax", "flax", "dm-haiku")]
    assert {record(f"benchmarks/{name}")["date"][:10] for name in ("speed_two_devices", "memory")} == {
        found["date"][:10]
    }
    return f"""Speed and memory were measured on {found["date"][:10]}: {("", "one", "two")[machine["cores"]]} shared cores of an
    {machine["processor"]}, Python {versions["python"]}, {", ".join(libraries)}, keras {versions["keras"]} on JAX, equinox
    {versions["equinox"]}, torch {torch} on the CPU with both threads; {found["dtype"]}."""


@says(README)
def peak():
    found = record("benchmarks/speed")
    return f"The largest float32 product ran at {found['peak_flops'] / 1e9:.0f} GFLOP/s."


@says(README)
def turns():
    one, two = (record(f"benchmarks/{name}")["repeats"] for name in ("speed", "speed_two_devices"))
    return f"minimum of {one} turns ({two} on all cores)"


@says(README)
def shapes_of_the_means():
    shapes = {m["shapes"] for m in record("benchmarks/speed")["summary"]}
    assert shapes == {len(speed.SHAPES)} == {8}
    return "Means over the eight shapes"


@says(README)
def aims_of_speed():
    """1.6 for training, 1.3 forward, and nothing below 1: only the RNN's train step."""
    rows = record("benchmarks/speed")["summary"]
    aims = {"train": 1.6, "forward": 1.3}
    met = [(m["cell"], m["task"]) for m in rows if m["mean"] >= aims[m["task"]] and m["least"] >= 1]
    assert met == [("rnn", "train")]
    found = means("speed", "best JAX peer")
    forward = span(value for (_, task), value in found.items() if task == "forward")
    return f"""Only the RNN's train step meets it. LSTM and GRU reach {found["lstm", "train"]:.2f} and
    {found["gru", "train"]:.2f}, and forward passes are {forward} times as fast as the best peer."""


@says(README)
def min_gru_beside_the_gru():
    found: dict = {}
    for timing in record("benchmarks/speed_affine")["timings"]:
        if (timing["task"], timing["contestant"]) == ("train", "default"):
            found.setdefault(timing["shape"], {})[timing["cell"]] = timing["min_ms"]
    ratios = [ms["gru"] / ms["min_gru"] for shape, ms in found.items() if int(shape.rpartition(",")[2]) >= 128]
    assert min(ratios) >= 2
    return f"""From 128 units on, a train step of the minGRU is {min(ratios):.1f} to {max(ratios):.1f} times as fast as the GRU's;
    the aim was 2."""


@says(README)
def peers_of_pytorch():
    found = means("speed_two_devices", "torch")
    gru, rnn, lstm = (f"{found[cell, 'train']:.1f}" for cell in ("gru", "rnn", "lstm"))
    assert gru == rnn
    return f"""GRU and RNN are {gru} times as fast as PyTorch. The LSTM, for which PyTorch has a fused kernel, is {lstm} times as
    fast on average"""


@says(README)
def least_of_all_cores():
    least = {m["least_at"] for m in record("benchmarks/speed_two_devices")["summary"] if m["task"] == "train"}
    assert least == {"20,16,512,1024"}
    mib = 4 * (512 + 1024) * 4 * 1024 / 2**20
    return f"At 20,16,512,1024 each device streams {mib:.0f} MiB of weights through the shared cache for {16 // 2} sequences"


@says(README)
def smallest_batches_and_widths():
    what = {m["what"] for m in record("benchmarks/speed_two_devices")["summary"]}
    assert what == {
        f"torch / sharded, B >= {_summary.LEAST_BATCH}",
        f"sharded, of the peak, H >= {_summary.LEAST_HIDDEN}",
    }
    return f"and 0.7 of the peak from {_summary.LEAST_HIDDEN} units on"


def largest_in_memory():
    """T, B, I, H with the most steps."""
    return max(tuple(map(int, row["shape"].split(","))) for row in record("benchmarks/memory")["measured"])


@says(README)
def outputs_in_memory():
    steps, batch, features, hidden = largest_in_memory()
    return f"Temporary MiB of a train step over all outputs at T = {steps:,}, B = {batch}, I = {features}, H = {hidden} (`results/memory.json`):"


@says(README)
def outputs_and_their_cotangent():
    steps, batch, _, hidden = largest_in_memory()
    return f"Each figure includes {2 * 4 * steps * batch * hidden / 2**20:.0f} MiB of outputs and their cotangent."


@says(README)
def small_memory():
    found = record("benchmarks/memory_final")
    assert found["loss_reads"] == "final state"
    ratio = {row["contestant"]: row["ratio"] for row in found["measured"]}
    assert {row["shape"] for row in found["measured"]} == {"2048,8,16,32"}
    assert list(ratio) == list(memory.OWN)
    return f""""gates" takes {ratio["gates"]:.2f} of the default, "sqrt" {ratio["sqrt"]:.2f}, and plain autodiff {ratio["scan"]:.2f}"""


@says(README)
def about_latency():
    found = record("benchmarks/latency")
    same = ("jax", "flax", "equinox", "python")
    assert [found["versions"][name] for name in same] == [record("benchmarks/speed")["versions"][name] for name in same]
    processor = "Intel Xeon" if "Intel" in found["machine"]["processor"] else found["machine"]["processor"]
    return f"""was measured on {found["date"][:10]} on {("", "one", "two")[found["machine"]["cores"]]} shared cores of an
    {processor}, with the same versions: the least of {found["repeats"]} turns"""


@says(README)
def latency_of_a_step():
    others = {place: ratio for place, ratio in ratios("step").items() if place[2] in _tables.LIBRARIES}
    assert min(ratio for (_, units, _), ratio in others.items() if units <= 256) > 1
    large = [ratio for (_, units, _), ratio in others.items() if units >= 512]
    return f"""Up to 256 units a step of jaxrnn takes less time than one of any other library here. With 512 and 1,024 units the
    others take {span(large)} of its time."""


@says(README)
def latency_of_sequences():
    faster = {place: f"{ratio:.2f}" for place, ratio in ratios("sequence").items() if ratio < 1}
    assert set(faster) == {("rnn", 64, "scan"), ("rnn", 64, "flax"), ("lstm", 256, "torch")}
    return f"""all others are slower, except with the RNN of 64 units, where plain `scan` takes {faster["rnn", 64, "scan"]}
    of the time and Flax {faster["rnn", 64, "flax"]}, and with the LSTM of 256, where PyTorch takes {faster["lstm", 256, "torch"]}."""


@says(README)
def tolerances_on_a_gpu():
    float32, tf32, bf16 = (f"{value:.0e}".replace("e-0", "e-") for value in _gpu_checks.TOLERANCE.values())
    return f"float32 {float32}, TF32 {tf32}, bf16 {bf16}). It runs jaxrnn's own also with lengths 0 to T and in reverse"


@says(README)
def repeated_calls_on_a_gpu():
    return f"checks that {('', 'one', 'two', 'three', 'four', 'five')[1 + _gpu_checks.AGAIN]} calls give the same bits"


@says(README)
def floor_of_a_step():
    return f"and {_floors.STEP_US:.0f} us for each step that ends with a barrier over the chip"


# SCALING.md


def counted(way, scaling="strong", devices=2):
    (found,) = [
        r
        for r in record("benchmarks/scaling")["counted"]
        if (r["way"], r["scaling"], r["devices"]) == (way, scaling, devices)
    ]
    return found


@says(SCALING)
def collectives_of_one_device():
    alone = [r["executed"] for r in record("benchmarks/scaling")["counted"] if r["devices"] == 1]
    assert alone == [{}] * 10
    return "One device has no collectives."


@says(SCALING)
def bytes_of_the_gradients():
    parameters = 4 * 256 * (128 + 256 + 1)
    assert counted("data_parallel")["bytes"] == 4 * (parameters + 1)
    return f"exchanges the gradient and the loss, 4 ({parameters:,} + 1) bytes, for every T"


@says(SCALING)
def bytes_of_a_plain_scan():
    times = counted("jit of a plain scan")["bytes"] / counted("jit")["bytes"]
    assert counted("jit of a plain scan")["executed"] == {"all-reduce": 129}
    return f"reduces the gradient of W_h at every step, {times:.0f} times as much."


@says(SCALING)
def collectives_of_model_parallel():
    executed = counted("model_parallel")["executed"]
    assert executed["reduce-scatter"] == 128
    assert 128 <= executed["all-gather"] < 2 * 128
    return "`model_parallel` has one all-gather per step forward and one reduce-scatter per step backward."


@says(SCALING)
def permutes_of_the_pipeline():
    for devices in (2, 4, 8):
        permutes = counted("pipeline", devices=devices)["executed"]["collective-permute"]
        assert permutes - 2 * (16 + devices - 1) == 2, "the others are two for the outputs and their cotangent"
    return "two permutes per tick, one forward and one backward, in chunks + n - 1 ticks"


@says(SCALING)
def rounds():
    found = record("benchmarks/scaling")
    assert (found["rounds"], found["seconds"]) == (scaling.Config.rounds, scaling.Config.seconds) == (15, 0.5)
    return f"There were {found['rounds']} rounds of half a second"


def throughput(setting):
    return {r["step"]: r["two_devices"] for r in record("benchmarks/scaling")["timed"] if r["setting"] == setting}


@says(SCALING)
def throughput_of_two_devices():
    one_core = throughput("1 device, 1 core")
    gated = [value for name, value in one_core.items() if not name.startswith("rnn")]
    (tanh,) = [value for name, value in one_core.items() if name.startswith("rnn")]
    least = {r["setting"]: r["min_ms"] for r in record("benchmarks/scaling")["timed"] if r["step"].startswith("rnn")}
    return f"""two devices on two cores have {span(gated)} times the throughput for LSTM and GRU, and {tanh:.2f} for the
    tanh network ({least["1 device, 1 core"] / least["2 devices"]:.2f} by the minima)"""


@says(SCALING)
def throughput_beside_both_cores():
    return f"Compared with one device with threads on both cores it is {span(throughput('1 device, threads on 2 cores').values())}"


@says(SCALING)
def data_sheets():
    h100, v5p = _scaling_paper.H100, _scaling_paper.V5P
    return f"""H100 SXM {h100.peak / 1e12:.0f} TFLOP/s in dense bfloat16, {h100.memory_rate / 1e12:.2f} TB/s, NVLink
    {h100.near_rate / 1e9:.0f} GB/s in one direction among {h100.near}, and one adapter of {h100.far_rate / 1e9:.0f} GB/s each
    between nodes; H200 the same with {_scaling_paper.H200.memory_rate / 1e12:.1f} TB/s; TPU v5p {v5p.peak / 1e12:.0f} TFLOP/s,
    {v5p.memory_rate / 1e12:.3f} TB/s, a ring over one axis of its torus {v5p.near_rate / 1e9:.0f} GB/s."""


@says(SCALING)
def assumptions():
    overhead, call = 1e6 * _scaling_paper.OVERHEAD, 1e6 * _scaling_paper.CALL
    near, far = 1e6 * _scaling_paper.H100.near_hop, 1e6 * _scaling_paper.H100.far_hop
    return f"""products reach {_scaling_paper.USED} of the peak, a step of a loop costs {overhead:.0f} us more than its product (about three
    kernels), a collective costs {call:.0f} us and {near:.0f} us per hop, {far:.0f} us between nodes."""


@says(SCALING)
def weights_on_paper():
    weights = _scaling_paper.LANGUAGE.weights
    return f"{weights / 1e6:.0f} million weights, {4 * weights / 1e6:.0f} MB of gradients."


@says(SCALING)
def share_of_the_all_reduce():
    h100, work = _scaling_paper.H100, _scaling_paper.LANGUAGE
    share, longer = (
        1 - _scaling_paper.data_parallel(h100, work._replace(steps=T), 1024, 64)["efficiency"] for T in (512, 4096)
    )
    assert longer < share
    return f"The all-reduce is {100 * share:.0f} % of a step at T = {work.steps}, and less for a larger T."


@says(SCALING)
def gain_of_more_devices():
    rates = {
        n: row["sequences_per_s"] for n, row in record("benchmarks/scaling")["paper"]["H100 SXM"]["strong"].items()
    }
    work = _scaling_paper.LANGUAGE
    size = 2 * work.hidden * work.gates * work.hidden
    return f"""one reading of W_h ({size / 1e6:.0f} MB, {1e6 * size / _scaling_paper.H100.memory_rate:.0f} us on an H100) however few
    sequences it has, so 1,024 devices have {rates["1024"] / rates["64"]:.1f} times the throughput of 64."""


@says(SCALING)
def time_does_not_parallelise():
    work = _scaling_paper.LANGUAGE
    steps = 2 * work.layers * work.steps
    return f"{work.steps} steps of two layers, forward and backward, are {steps:,} steps one after the other, {1e3 * steps * _scaling_paper.OVERHEAD:.0f} ms at 10 us."


@says(SCALING)
def efficiency_of_a_pipeline():
    short, long = (_scaling_paper.pipeline_efficiency(8, chunks) for chunks in (16, 64))
    return f"{short:.2f} for 8 devices and 16 chunks, {long:.2f} for 64."


@says(SCALING)
def gather_beyond_a_node():
    h100, work = _scaling_paper.H100, _scaling_paper.WIDE
    gather = 1e6 * _scaling_paper.collective(h100, 64, 2 * 64 * work.hidden, passes=1)
    step = 1e6 * _scaling_paper.step(h100, work, 64, 64)
    return f"the gather of every step takes {gather:.0f} us, mostly latency, and the step itself {step:.0f}, so 64 devices have 12.7."


@says(SCALING)
def bytes_of_states_and_gates():
    total = 2 * 512 * 64 * 2048 * 6 * 4
    return f"2 x 512 x 64 x 2,048 x 6 x 4 = {total / 1e9:.1f} GB"


# Deployment


@says("docs/deploy.md")
def call_of_one_step_beside_many():
    def least(what, shape, contestant):
        rows = record("benchmarks/latency")["rows"]
        chosen = {"what": what, "cell": "lstm", "shape": shape, "contestant": contestant}
        (row,) = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
        return row["min_us"]

    one, many = least("step", "8,1,64,64", "cell"), least("sequence", "10000,1,64,64", "default")
    return f"An LSTM with 64 units took {one:.1f} µs in a call of one step, and {many:.1f} µs a step in one call of 10,000 steps"


@says("docs/deploy.md")
def implementations_with_symbols():
    every = registry.IMPLEMENTATIONS.values()
    time, batch = (
        {each.name for each in every if feature in each.supports}
        for feature in (request.SYMBOLIC_TIME, request.SYMBOLIC_BATCH)
    )
    assert time == {"bptt", "scan"}
    assert batch - time == {"associative", "reference"}
    return """Implementations "bptt" and "scan" support a symbolic number of steps; "associative" and "reference" support a symbolic
    batch alone; the others support neither, and refuse it"""
