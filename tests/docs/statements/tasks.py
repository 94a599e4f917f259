"""What experiments/README.md says of `forecast`, `g2p` and `recurrent_ppo`."""

import dataclasses
import re

import numpy as np

from experiments.datasets import airline, cmudict, weather
from experiments.forecast import __main__ as weather_script
from experiments.forecast import airline as forecast_airline
from experiments.forecast import series
from experiments.forecast.tables import best_rule
from experiments.g2p import __main__ as spelling
from experiments.g2p.examples import LONGEST as LONGEST_WORD
from experiments.recurrent_ppo import planning
from experiments.recurrent_ppo.environments import ARMS, BACK, CARDS, LONGEST, PULLS, REMEMBERED
from experiments.recurrent_ppo.plan import SETTINGS
from tests.docs.statements import WORDS, record, says

PAGE = "experiments/README.md"

# Forecast and spelling


@says("experiments/forecast/airline.py")
def harmonics():
    year = airline.Series(np.arange("1949-01", "1951-01", dtype="datetime64[M]"), np.arange(1.0, 25.0))
    features = forecast_airline.prepare(year, 12).xs.shape[1]
    return f"and {WORDS[(features - 1) // 2]} harmonics of the year"


@says(PAGE)
def months_that_are_tested():
    months = record("forecast_airline")["months"]
    assert sum(months.values()) == 3 * months["test"] == 3 * forecast_airline.Config.test_months
    return "The last third of the series is never trained on."


@says(PAGE)
def forecast_is_beaten():
    naive = record("forecast_airline")["naive_rmse"]
    better = [name for name, error in naive.items() if error < record("forecast_airline")["test_rmse_mean"]]
    assert len(better) == 1
    return f"There a forecast without a network, `{better[0]}`, is better."


@says(PAGE)
def hours_of_the_weather():
    config = record("forecast")["config"]
    names = ("temp", "dewp", "humid", "pressure", "visib", "precip", "wind_dir", "wind_speed")
    assert sorted(names) == sorted(weather.COLUMNS)
    return f"""reads {config["history"]} hours of weather at {WORDS[len(weather.AIRPORTS)]} airports of New York and forecasts their temperatures in
    the next {config["horizon"]} hours, in °F"""


@says(PAGE)
def blocks_of_the_weather():
    found = record("forecast")["windows"]
    hours = 8730
    blocks = series.blocks_of(hours)
    assert {name: len(series.begins_of(part, 72, 24)) for name, part in blocks.items()} == found
    train, validation, test = series.DAYS.values()
    times = WORDS[len(blocks["test"])]
    return f"blocks of {train} days for training, {validation} for validation and {test} for testing follow each other {times} times"


@says(PAGE)
def early_stopping_of_the_weather():
    config = weather_script.Config()
    waits = config.patience * weather_script.EVALUATE_EVERY
    return (
        f"Training ends after {config.steps} updates, or after {waits} without a smaller error on the validation hours"
    )


@says(PAGE)
def average_on_the_validation_hours():
    found = record("forecast")
    alone, both = ([seed["validation_rmse"] for seed in found[kind]] for kind in ("network", "both"))
    assert all(average < network for average, network in zip(both, alone, strict=True))
    return "and it too was better on the validation hours"


@says(PAGE)
def network_and_regression():
    found = record("forecast")
    best, regression = best_rule(found)
    assert best == "linear regression"
    rules = [entry["rmse"] for name, entry in found["baselines"].items() if name != best]
    alone, both = ([seed["rmse"] for seed in found[kind]] for kind in ("network", "both"))
    assert max(alone) < min(rules)
    assert min(alone) > regression["rmse"] > max(both)
    seeds = len(found["seeds"])
    return f"""The GRU is ahead of every rule in {seeds} of {seeds} seeds. It is behind linear regression of the same inputs, with the penalty that is best
    on the validation hours. "GRU, regression" is the average of the two means, with the GRU's deviations: it is ahead of both in {seeds} of {seeds} seeds."""


@says(PAGE)
def words_of_the_dictionary():
    (words,) = re.findall(r"of ([\d,]+) English words", cmudict.CMUDICT.about)  # test_datasets_published.py counts
    graphemes, phonemes = len(cmudict.GRAPHEMES), len(cmudict.PHONEMES)
    return f"{words} of them, stress left out: {graphemes} graphemes\nand {phonemes} phonemes."


@says(PAGE)
def lengths_of_words():
    return f"All pronunciations of at most {LONGEST_WORD} letters and {LONGEST_WORD - 1} phonemes are trained on."


@says(PAGE)
def parts_of_the_dictionary():
    every, test, validation = cmudict.SHARES
    assert every == 10 * test
    return f"A tenth of the words is for testing and {100 * validation / every:.1f} % for validation, by a hash."


@says(PAGE)
def splits_of_the_dictionary():
    assert cmudict.stem("running") == cmudict.stem("runs") != cmudict.stem("went")
    assert spelling.Config.split == "stem"
    return '`--split stem`, the default, hashes a stem, so that "running" is not tested where "runs" was trained on.'


@says(PAGE)
def words_to_say():
    assert {"best", "beam_size"} <= {field.name for field in dataclasses.fields(spelling.SayConfig)}
    return "python -m experiments.g2p say recurrent networks --best 3"


# Agents


@says(PAGE)
def values_of_the_bandit():
    found = planning.values(ARMS, PULLS)
    assert (ARMS, PULLS) == (5, 10)
    return f"The best plan on average gives {found.optimal:.3f} and pulling the likeliest arm {found.greedy:.3f}"


@says(PAGE)
def lengths_of_the_tasks():
    assert (BACK, CARDS - BACK) == (4, 48)
    return f"An episode has at most {LONGEST} steps, each rewarded by 1. - **Memory chain**: a cue at the first step is to be chosen {REMEMBERED} steps later"


@says(PAGE)
def settings_of_the_agents():
    shared = {(s.clip_norm, s.epochs, s.minibatches, s.trace, s.clip, s.entropy) for s in SETTINGS.values()}
    ((norm, epochs, minibatches, trace, clip, entropy),) = shared
    return f"""norm {norm}, {epochs} epochs of {minibatches} minibatches, λ {trace}, clip {clip} without clipping of values, entropy
    {entropy}."""


@says(PAGE)
def scale_of_rewards():
    return f"On CartPole rewards are scaled by {SETTINGS['cart_pole'].reward_scale}"
