"""What is trained: the settings of every task, chosen with seeds that are not reported, and the networks."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.recurrent_ppo.environments import REMEMBERED
from experiments.recurrent_ppo.network import CELLS, LABELS
from experiments.recurrent_ppo.ppo import Settings

SETTINGS = {
    "cart_pole": Settings(
        updates=64, episodes=32, steps=128, discount=0.99, learning_rate=2e-3, entropy=0.01, reward_scale=0.05
    ),
    "chain": Settings(updates=64, episodes=64, steps=101, discount=0.99, learning_rate=2e-3, entropy=0.01),
    "bandit": Settings(updates=320, episodes=512, steps=10, discount=1.0, learning_rate=5e-3, entropy=0.01),
    "repeat_previous": Settings(
        updates=96, episodes=64, steps=52, discount=0.9, learning_rate=3e-3, entropy=0.01, reward_scale=10
    ),
}
GATED = ("gru", "lstm")  # of which the chain is tried with the usual biases too


class Run(NamedTuple):
    """One network on one task; all seeds are trained together."""

    environment: str
    cell: str
    remembered: int | None  # steps, of chrono initialisation; None for the usual biases

    @property
    def label(self) -> str:
        chrono = "" if self.remembered is None else f", chrono({self.remembered})"
        return f"{LABELS[self.cell]}{chrono}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.environment, self.cell, *([] if self.remembered is None else ["chrono"])])


def planned(environments: Sequence[str], cells: Sequence[str]) -> list[Run]:
    """Every cell on every task. On the chain cells remember by chrono biases; GRU and LSTM without them too."""
    runs = []
    for environment in dict.fromkeys(environments):
        for cell in (cell for cell in CELLS if cell in cells):
            if environment == "chain" and cell != "memoryless":
                runs += [Run(environment, cell, REMEMBERED + 1)]
            if environment != "chain" or cell in ("memoryless", *GATED):
                runs.append(Run(environment, cell, None))
    return runs


def settings_of(environment: str, updates: int | None) -> Settings:
    """The settings of a task, with another number of updates if one is given."""
    found = SETTINGS[environment]
    return found if updates is None else found._replace(updates=updates)
