"""Measures everything that docs/benchmarks.md reports; `make benchmarks`.

    python -m benchmarks.run --sections=equality,peers_lenet --output=runs/benchmarks

Sections are measured one after the other. Each finished section is added to `results.json`. Then
`results.md` and the pictures are made from all sections.
"""

import json
import pathlib

import numpy as np
from absl import app, flags, logging

from benchmarks import report, turns

_OUTPUT = flags.DEFINE_string("output", "benchmarks/results", "Folder for the results.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Number of rounds in which every kind of step is timed."
)

KERAS_FDS = ("forward", "reverse")
MODES = (*KERAS_FDS, "checkpoints")
LENET = {"network": "lenet", "batch": 128, "horizon": 140, "steps_a_call": 10}
WIDE_RESNET = {"network": "wrn_16_1", "batch": 64, "horizon": 28, "steps_a_call": 2}
SMALL = {"batch": 8, "horizon": 9, "steps_a_call": 3}


def equality():
    """The greatest relative difference to forward mode's hypergradients, in float64."""
    rows = {}
    for network in ("lenet", "wrn_16_1"):
        found = {}
        for engine in (*MODES, "pytorch", "jax"):
            found[engine] = turns.ask(
                **SMALL, network=network, engine=engine, measure="hypergradients"
            )
        for engine in found:
            rows[f"{network}, {engine}"] = max(
                np.abs(np.subtract(found[engine][name], values)).max() / np.abs(values).max()
                for name, values in found["forward"].items()
            )
        assert all(error < 1e-8 for error in rows.values()), rows
    return rows


def timed(kinds, rounds=None):
    return turns.medians_and_ratios(turns.alternate(kinds, rounds or _ROUNDS.value), "plain")


def peers(problem, *engines):
    """Every engine, nine tangents."""
    return timed({e: {**problem, "engine": e} for e in ("plain", "stock", *MODES, *engines)})


def peers_lenet():
    return peers(LENET, "pytorch", "jax")


def peers_wide_resnet():
    # Without JAX: on a CPU it takes minutes to compile, with `vmap` or with a loop.
    return peers(WIDE_RESNET, "pytorch")


def compared(problems, rounds=3):
    """`{label: {engine: ...}}` for `{label: (problem, engines)}`, plain steps among each."""
    return {
        label: timed({e: {**problem, "engine": e} for e in ("plain", *engines)}, rounds)
        for label, (problem, engines) in problems.items()
    }


def tangents():
    """Against the number of tangents, LeNet."""
    problems = {}
    for number in (3, 9, 27, 81):
        # As many calls with every bucket open, however short the buckets are.
        horizon = 10 * 2 * max(number - 2, 5)
        problem = {**LENET, "num_rate_buckets": number - 2, "horizon": horizon}
        problems[number] = problem, KERAS_FDS if number < 81 else ("reverse",)
    horizon = {"horizon": 900, "num_rate_buckets": 898}
    problems[900] = {**LENET, **horizon}, ("reverse",)
    return compared(problems)


def batches():
    """Against the batch size, LeNet, nine tangents."""
    return compared({b: ({**LENET, "batch": b}, KERAS_FDS) for b in (32, 128, 512)})


def networks():
    """Against the network, nine tangents; LeNet and WRN-16-1 are among the peers."""
    wrn_10_1 = {**WIDE_RESNET, "network": "wrn_10_1"}
    problems = ({**LENET, "network": "mlp"}, wrn_10_1)
    return compared({problem["network"]: (problem, KERAS_FDS) for problem in problems})


def horizons():
    """Against the horizon, LeNet with batches of 32, nine tangents."""
    problems = {}
    for horizon in (100, 1000):
        problem = {**LENET, "batch": 32, "horizon": 100, "passes": horizon // 100}
        problems[horizon] = problem, MODES
    return compared(problems, rounds=1)


def start():
    """Seconds from the call of `fit` to the end of its first compiled call."""
    return {
        problem["network"]: {
            engine: turns.ask(**problem, engine=engine, measure="start")
            for engine in ("plain", *KERAS_FDS)
        }
        for problem in (LENET, WIDE_RESNET)
    }


def memory_horizons():
    """Peak megabytes of a process that does one outer step, against the horizon; LeNet."""
    problem = {**LENET, "batch": 32, "horizon": 100, "measure": "peak"}
    return {
        horizon: {
            engine: turns.ask(**problem, engine=engine, passes=horizon // 100)
            for engine in ("plain", *MODES)
            # All states of the longest horizons would need more than reverse mode may keep.
            if engine != "reverse" or horizon <= 1000
        }
        for horizon in (100, 300, 1000, 3000, 10000)
    }


def memory_tangents():
    """Peak megabytes against the number of tangents; LeNet."""
    problem = {**LENET, "horizon": 100, "measure": "peak"}
    return {
        number: {
            engine: turns.ask(**problem, engine=engine, num_rate_buckets=number - 2)
            for engine in KERAS_FDS
        }
        for number in (3, 9, 27, 81)
    }


# Copies of the state that reverse mode may keep, by horizon: all, 2 √T, fewer, and the fewest.
STATES = {1000: (1000, 64, 24, 7)}


def states():
    """Reverse mode against the states it keeps, LeNet with batches of 32: time and peak memory."""
    rows = {}
    for horizon, numbers in STATES.items():
        problem = {**LENET, "batch": 32, "horizon": 100, "passes": horizon // 100}
        kinds = {"plain": {**problem, "engine": "plain", "whole": True}}
        for number in numbers:
            kinds[f"{number} states"] = {**problem, "engine": "checkpoints", "states": number}
        times = timed(kinds, rounds=2)
        for name, arguments in kinds.items():
            peak = turns.ask(**arguments, measure="peak")
            rows[f"{horizon} steps, {name}"] = {**times[name], "megabytes": peak}
    return rows


def compilers():
    """With XLA and without, in float32 and in bfloat16; nine tangents, on whatever device there is.

    Ratios are to plain steps without XLA in float32.
    """
    rows = {}
    for problem in (LENET, WIDE_RESNET):
        kinds = {}
        for policy in ("float32", "mixed_bfloat16"):
            for jit_compile in (False, True):
                for engine in ("plain", *KERAS_FDS):
                    label = engine + (", XLA" if jit_compile else "")
                    label += ", bfloat16" if policy == "mixed_bfloat16" else ""
                    options = {"by_xla": jit_compile, "dtype_policy": policy}
                    kinds[label] = {**problem, **options, "engine": engine}
        rows[problem["network"]] = timed(kinds, rounds=3)
    return rows


def strategies():
    """Under a `tf.distribute` strategy of one device; ratios are to steps without a strategy."""
    rows = {}
    for engine in ("plain", *KERAS_FDS):
        kinds = {
            each: {**LENET, "engine": engine, "distribution": each, "whole": True}
            for each in ("none", "one_device", "mirrored")
        }
        rows[engine] = turns.medians_and_ratios(turns.alternate(kinds, _ROUNDS.value), "none")
    return rows


def trials():
    """A black box's whole training against one of `keras_fds.fit`, ten epochs."""
    whole = {"passes": 10, "whole": True}
    small = {"network": "digits_cnn", "batch": 128, "horizon": 12, "steps_a_call": 12}
    problems = {"lenet": {**LENET, **whole}, "digits_cnn": {**small, **whole, "passes": 30}}
    return compared({name: (each, ("trial",)) for name, each in problems.items()}, _ROUNDS.value)


def vectors():
    """Reverse mode against the number of learned weights; LeNet."""
    return compared(
        {
            number: ({**LENET, "num_weights": number, "whole": True}, ("reverse",))
            for number in (1, 100, 10**4, 10**5)
        }
    )


SECTIONS = {
    "equality": equality,
    "peers_lenet": peers_lenet,
    "peers_wide_resnet": peers_wide_resnet,
    "tangents": tangents,
    "batches": batches,
    "networks": networks,
    "horizons": horizons,
    "start": start,
    "memory_horizons": memory_horizons,
    "memory_tangents": memory_tangents,
    "states": states,
    "compilers": compilers,
    "strategies": strategies,
    "trials": trials,
    "vectors": vectors,
}
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Which sections to measure.")


def main(_):
    unknown = set(_SECTIONS.value) - SECTIONS.keys()
    if unknown:
        raise app.UsageError(
            f"Unknown sections. There are {', '.join(SECTIONS)}. "
            f"Received: {', '.join(sorted(unknown))}"
        )
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in _SECTIONS.value:
        logging.info("Measuring %s", name)
        results[name] = SECTIONS[name]()
        results["machine"] = report.machine()
        path.write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, folder)
    print((folder / "results.md").read_text())


if __name__ == "__main__":
    app.run(main)
