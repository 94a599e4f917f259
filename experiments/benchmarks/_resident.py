"""The memory of a train step of PyTorch: `python -m experiments.benchmarks._resident lstm T B I H`, on Linux.

It prints by how many bytes the peak of resident memory rises above the resident memory before the step. It imports
only PyTorch and draws its own weights, because memory does not depend on their values.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

KINDS = {"lstm": ("LSTM", {}), "gru": ("GRU", {}), "rnn": ("RNN", {}), "rnn-relu": ("RNN", {"nonlinearity": "relu"})}


def kilobytes(field: str) -> int:
    """What the kernel says of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])


def train(torch: Any, module: Any, xs: Any, target: Any) -> Any:
    """The step that `_peers.torch` times."""
    return torch.autograd.grad(torch.nn.functional.mse_loss(module(xs)[0], target), list(module.parameters()))


def main(form: str, *sizes: str) -> None:
    torch: Any = importlib.import_module("torch")
    steps, batch, features, hidden = map(int, sizes)
    name, options = KINDS[form]
    module = getattr(torch.nn, name)(features, hidden, **options)
    xs, target = torch.randn(steps, batch, features), torch.randn(steps, batch, hidden)
    train(torch, module, xs[:2], target[:2])  # what the library allocates once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    gradients = train(torch, module, xs, target)
    print(1024 * (kilobytes("VmHWM") - before))
    del gradients


if __name__ == "__main__":
    main(*sys.argv[1:])
