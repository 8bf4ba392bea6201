"""Searches on a made-up loss with a cliff at high rates, where trainings die by chance.

    python -m benchmarks.cliffs --cliffs=0.006,0.003 --searches=10

Thirteen numbers, as of `configs/several_tasks.py`: AdamW's learning rate, beta_1 and weight decay,
weights of three losses, and a factor on the rate of each of three layers. A training dies, and its
loss is that of an untrained model, log 10, where the rates exceed a random end of their range: a
number of `--cliffs` times the exponential of a normal of deviation 0.8. For every search the mean
logarithm of the loss of 40 trainings with its answer is printed, and how many of them died. There
is no network: a search takes some ten seconds.

Measured: docs/research_log.md, "Cliffs".
"""

import math

import keras
import numpy as np
from absl import app, flags

import keras_fds
from keras_fds.outer import BayesianOptimization, Observation, Problem

_CLIFFS = flags.DEFINE_list("cliffs", ["0.006", "0.003"], "Rates at which half of trainings die.")
_SEARCHES = flags.DEFINE_integer("searches", 10, "Searches for each cliff.", lower_bound=2)
_TRAININGS = flags.DEFINE_float("trainings", 20.0, "Budget of a search.", lower_bound=2.0)

HORIZON = 450
UNTRAINED = math.log(math.log(10))  # The logarithm of the loss.
SPREAD = 0.8  # Of the logarithm of the rate at which a training dies.
GOOD_RATES = np.log([0.02, 0.012, 0.008]) - 0.5  # Of three layers.
NOISE = 0.05
STEP = 1e-4  # Of finite differences.


def make_problem(seed, budget):
    """The `Problem` of a search."""
    rate = keras_fds.Hyperparameter("learning_rate", 5, interpolation="linear", max_value=0.1)
    weights = (
        keras_fds.Hyperparameter(f"loss.{k}", initial=1.0, min_value=0.05, max_value=20.0)
        for k in range(3)
    )
    factors = (keras_fds.Hyperparameter(f"layer_{k}.learning_rate_multiplier") for k in range(3))
    others = map(keras_fds.Hyperparameter, ("beta_1", "weight_decay"))
    hyperparameters = [rate, *others, *weights, *factors]
    optimizer = keras_fds.HyperOptimizer(keras.optimizers.AdamW(), hyperparameters)
    return Problem(optimizer.buckets, optimizer.coordinates, HORIZON, budget=budget, seed=seed)


def log_loss(problem, coordinates, horizon, cliff, chance):
    """The logarithm of the loss of one training, and whether it died.

    Args:
        problem, coordinates, horizon: What is trained with.
        cliff: The rate at which half of the trainings die.
        chance: Two normal numbers, that of the cliff and that of the noise.
    """
    values = problem.buckets.values(coordinates)
    logs = {name: np.log(np.maximum(each, 1e-9)) for name, each in values.items()}
    rate, decay = logs["learning_rate"], logs["weight_decay"][0]
    weights = np.array([logs[f"loss.{k}"][0] for k in range(3)])
    factors = np.array([logs[f"layer_{k}.learning_rate_multiplier"][0] for k in range(3)])
    if rate.max() + 0.5 * factors.max() + 0.2 * factors.sum() > np.log(cliff) + SPREAD * chance[0]:
        return UNTRAINED, True
    off = 0.02 * np.square(np.minimum(rate.mean() + factors - GOOD_RATES, 3)).sum()
    off += 0.05 * np.square(rate - rate.mean() - np.linspace(0.5, -1, len(rate))).mean()
    off += 0.05 * np.square(-np.log(1 - values["beta_1"][0]) - 2)
    off += 0.01 * np.square(decay + 2) + 0.02 * np.square(weights - weights.mean()).sum()
    fall = max(1.6 + 0.35 * np.log(horizon / HORIZON), 0.2)
    return UNTRAINED - fall / (1 + off) + NOISE * chance[1], False


def observe(problem, proposal, cliff, chance):
    """The `Observation` of an outer step; hypergradients by finite differences."""

    def loss(coordinates):
        if proposal.horizon == 1:
            return UNTRAINED
        return log_loss(problem, coordinates, proposal.horizon, cliff, chance)[0]

    found, hypergradients = math.exp(loss(proposal.coordinates)), None
    if proposal.with_hypergradients:
        ends = proposal.coordinates + STEP * np.eye(len(proposal.coordinates))
        hypergradients = np.array([(math.exp(loss(end)) - found) / STEP for end in ends])
    return Observation(proposal.coordinates, proposal.horizon, found, hypergradients=hypergradients)


def search(cliff, seed, budget):
    """One search: `(mean logarithm of the loss, part that died)` of 40 trainings."""
    problem, rule = make_problem(seed, budget), BayesianOptimization()
    rng, observations, best = np.random.default_rng(1000 + seed), [], None
    while (proposal := rule.propose(observations, problem)) is not None:
        observations.append(observe(problem, proposal, cliff, rng.standard_normal(2)))
        if rule.is_best(observations, best, problem):
            best = len(observations) - 1
    answer = observations[best]
    coordinates = rule.over_whole(answer.coordinates, answer.horizon, problem)
    draws = np.random.default_rng(5).standard_normal((40, 2))
    found = [log_loss(problem, coordinates, HORIZON, cliff, chance) for chance in draws]
    return np.mean(found, axis=0)


def main(argv):
    print("| cliff | log loss | died |\n|---|---|---|")
    for cliff in map(float, _CLIFFS.value):
        found = [search(cliff, seed, _TRAININGS.value) for seed in range(_SEARCHES.value)]
        losses, died = np.transpose(found)
        interval = 1.96 * losses.std(ddof=1) / math.sqrt(len(losses))
        print(f"| {cliff} | {losses.mean():.3f} ± {interval:.3f} | {died.mean():.0%} |")


if __name__ == "__main__":
    app.run(main)
