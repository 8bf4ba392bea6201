"""Searches on the tasks, one JSON line for every task, searcher and seed.

Existing results are not run again.
"""

import functools
import itertools
import json
import time

import jax
import numpy as np

from benchmarks.outer_rules.black_boxes import BlackBox, gaussian_process, tpe
from benchmarks.outer_rules.grids import Grid
from benchmarks.outer_rules.rules import RuleSearcher
from benchmarks.outer_rules.searchers import Observation
from keras_fds.outer import BayesianOptimization

COSTS = (2, 4, 8, 12, 20, 40)  # In plain trainings; answers are tested at these costs.
TEST_TRAININGS = 4  # Number per answer, from different initial weights.

# Every searcher is a function of the optimizer's name, the horizon and the seed.
COMPARED = {
    "rule_7": functools.partial(RuleSearcher, num_values=(5, 1, 1)),
    "rule_15": functools.partial(RuleSearcher, num_values=(9, 3, 3)),
    "tpe_3": functools.partial(BlackBox, sampler=tpe),
    "tpe_15": functools.partial(BlackBox, sampler=tpe, num_values=(9, 3, 3)),
    "gp_3": functools.partial(BlackBox, sampler=gaussian_process),
    "gp_15": functools.partial(BlackBox, sampler=gaussian_process, num_values=(9, 3, 3)),
    "grid_cosine": functools.partial(Grid, shape="cosine"),
    "grid_linear": functools.partial(Grid, shape="linear"),
}
_rule_15 = functools.partial(RuleSearcher, num_values=(9, 3, 3))
# What each part of the rule is worth, beside `rule_15`; and twice as many values.
ABLATIONS = {
    "buckets": functools.partial(_rule_15, interpolation="constant"),
    "never_hypergradients": functools.partial(_rule_15, cost=np.inf),
    "caution_0": functools.partial(_rule_15, rule=BayesianOptimization(caution=0.0)),
    "caution_2": functools.partial(_rule_15, rule=BayesianOptimization(caution=2.0)),
    "rule_30": functools.partial(RuleSearcher, num_values=(18, 6, 6)),
    "tpe_30": functools.partial(BlackBox, sampler=tpe, num_values=(18, 6, 6)),
    "rounds_of_4": functools.partial(_rule_15, workers=4),
}
SEARCHERS = COMPARED | ABLATIONS


def search(inner_loop, searcher, seed, budget):
    """Runs a search until it ends or its budget is spent.

    Args:
        inner_loop: An `InnerLoop`.
        searcher: A `Searcher`.
        seed: What the split, initial weights and orders of all its trainings derive from.
        budget: In plain trainings; an observation that would exceed it is not made.

    Yields:
        `(cost so far, observations, answer)` after every observation.
    """
    split, key = inner_loop.split(seed), jax.random.PRNGKey(seed)
    observations = []
    cost = 0.0
    proposal = searcher.propose(observations)
    while proposal is not None:
        cost += proposal.cost(inner_loop.horizon)
        if cost > budget + 1e-9:
            return
        measure = (
            inner_loop.measure_with_hypergradients
            if proposal.with_hypergradients
            else inner_loop.measure
        )
        # As in `fit`, every training has weights and orders of its own.
        measured = measure(proposal.schedule, jax.random.fold_in(key, len(observations)), split)
        observations.append(Observation(proposal, measured))
        proposal = searcher.propose(observations)
        yield cost, observations, searcher.answer(observations)


def test(inner_loop, schedule, seed):
    """Means over trainings with an answer, which are the same for all searchers of a seed."""
    keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), 10**6), TEST_TRAININGS)
    tested = inner_loop.test(schedule, keys, inner_loop.split(seed))
    # A loss above that of a uniform guess means that training has diverged.
    is_worse = ~(tested.validation_loss < np.log(inner_loop.data.num_classes))
    finite = np.where(np.isfinite(tested.validation_loss), tested.validation_loss, 10.0)
    return {
        "validation_loss": round(float(np.minimum(finite, 10.0).mean()), 5),
        "test_accuracy": round(float(tested.test_accuracy.mean()), 5),
        "diverged": int(is_worse.sum()),
    }


def answers_at(costs, steps):
    """The answer at each cost: the last one that cost no more, `None` before there is one.

    Args:
        costs: Increasing.
        steps: `(cost so far, answer)` of every observation.
    """
    return [
        next((answer for cost, answer in reversed(steps) if cost <= limit + 1e-9), None)
        for limit in costs
    ]


def run_seed(task, inner_loop, name, seed, costs=COSTS):
    """The record of a search and its answers' tests."""
    start = time.monotonic()
    searcher = SEARCHERS[name](task.optimizer, inner_loop.horizon, seed)
    steps = []
    observations = []
    for cost, observations, answer in search(inner_loop, searcher, seed, max(costs)):  # noqa: B007
        steps.append((cost, answer))
    searched = time.monotonic()
    tests = {}
    marks = {}
    for limit, answer in zip(costs, answers_at(costs, steps)):
        if answer is None:
            marks[str(limit)] = None
            continue
        content = answer.tobytes()
        if content not in tests:
            tests[content] = test(inner_loop, answer, seed)
        marks[str(limit)] = tests[content]
    return {
        "seed": seed,
        "fingerprint": task.fingerprint,
        "cost": round(steps[-1][0], 3) if steps else 0.0,
        "waited": searcher.waited and round(searcher.waited, 3),
        "at": marks,
        "losses": [
            None if each.measured.broke_down else round(each.measured.loss, 4)
            for each in observations
        ],
        "search_seconds": round(searched - start, 2),
        "test_seconds": round(time.monotonic() - searched, 2),
    }


def path_of(folder, task_name, searcher_name):
    return folder / f"{task_name}.{searcher_name}.jsonl"


def read(folder, task_name, task, searcher_name):
    """`{seed: record}` of a task as it is now."""
    path = path_of(folder, task_name, searcher_name)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # A line that was being written when the program was killed.
            continue
    return {each["seed"]: each for each in records if each["fingerprint"] == task.fingerprint}


def run(folder, tasks, searchers, seeds):
    """Runs the missing searches.

    Args:
        folder: Of the results, a path.
        tasks: `{name: Task}`.
        searchers: Names.
        seeds: Whole numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build = functools.cache(lambda name: tasks[name].build())
    # Seed by seed: when the run is stopped, all searchers have equally many seeds.
    for seed, task_name, searcher_name in itertools.product(seeds, tasks, searchers):
        task = tasks[task_name]
        if seed in read(folder, task_name, task, searcher_name):
            continue
        record = run_seed(task, build(task_name), searcher_name, seed)
        append(path_of(folder, task_name, searcher_name), record)
        searched, tested = record["search_seconds"], record["test_seconds"]
        print(
            f"{task_name} {searcher_name} {seed}: searched {searched} s, tested {tested} s",
            flush=True,
        )


def append(path, record):
    """Appends a line, also after a line that was cut short."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("a", encoding="utf-8") as file:
        if before and not before.endswith("\n"):
            file.write("\n")
        file.write(json.dumps(record) + "\n")
