"""Runs several methods with several seeds, and writes one table of what they reach and cost.

    python -m trainers.compare --config=configs/figure_3_mnist.py --workdir=runs/figure_3_mnist
    python -m trainers.compare --config=… --workdir=… --methods=shared,cosine --seeds=3

`config.methods` is a dict: for every method the fields of the config that it changes. A method
learns with every seed (`trainers.search`), then trains with them on the whole training
split and tests (`trainers.train`), with the same training seeds for all methods. Nothing is chosen
by the test split.

The folder --workdir then holds METHOD/SEED/search and METHOD/SEED/train, results.json (a record for
every method and seed) and results.md (the table); `python -m trainers.figures --figure=cost` draws
accuracy against cost. The same command after an interrupt resumes;
finished records are not run again, so methods and seeds can be added.
"""

import json
import pathlib
import time

from absl import flags

from trainers import experiment, report, workdirs
from trainers.search import learn
from trainers.train import train

_METHODS = flags.DEFINE_list("methods", None, "Which of the config's methods; None: all.")
flags.adopt_module_key_flags(experiment)


def compare(config, workdir, methods=None, seeds=5, tell=print):
    """Runs what is missing, and writes the results of all that is there.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`, with `methods`.
        workdir: Folder, made when it does not exist.
        methods: Names. Defaults to all of the config.
        seeds: Number of seeds, from `config.seed`. Defaults to `5`.
        tell: Called with a line of text after each record. Defaults to `print`.

    Returns:
        The records, `[{"method", "seed", "accuracies", …}, …]`.

    Raises:
        ValueError: Before any training, when a method is unknown or its config does not fit, or the
            folder holds a comparison of another config.

    Example:

    >>> compare(configs.figure_3_mnist.get_config(), "runs/figure_3", methods=["shared"], seeds=1)
    """
    experiment.check_config(config)
    known = list(config.get("methods", {}))
    methods = known if methods is None else methods
    if not known or set(methods) - set(known):
        raise ValueError(
            "The methods must be among those of `config.methods`: "
            f"{', '.join(known) or 'there are none'}. Received: methods={methods}"
        )
    for method in methods:
        changed = of_method(config, method)
        experiment.check_config(changed)
        experiment.lengths(changed)
        experiment.make_optimizer(changed)
    workdir = pathlib.Path(workdir)
    records = _begun(workdir, config)
    # Seed by seed: when the run is stopped, all methods have equally many seeds.
    for seed in range(config.seed, config.seed + seeds):
        for method in methods:
            if any((each["method"], each["seed"]) == (method, seed) for each in records):
                continue
            record = _run(of_method(config, method), method, seed, workdir / method / str(seed))
            records.append(record)
            records.sort(key=lambda each: (known.index(each["method"]), each["seed"]))
            _write(workdir, config, records)
            accuracies = ", ".join(f"{each:.2%}" for each in record["accuracies"])
            tell(f"{method}, seed {seed}: test accuracy {accuracies}")
    _write(workdir, config, records)
    return records


def of_method(config, method):
    """The config of a method: a copy with the fields that it changes, and without `methods`."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for name, value in config.methods[method].items():
            setattr(changed, name, value)
        del changed.methods
    return changed


def _run(config, method, seed, folder):
    """The record of a method with a seed."""
    config.seed = seed
    start = time.monotonic()
    learn(config, folder / "search", verbose=0)
    searched = time.monotonic()
    rows = workdirs.read_history(folder / "search")
    schedules = folder / "search" / "schedules.json"
    if not schedules.exists():
        raise ValueError(
            f"The method {method!r} with seed {seed} learned nothing: no outer step had a finite "
            "validation loss. Start from smaller values, or clip gradients."
        )
    config.seed = 1000 + config.train_seeds * seed
    results = train(config, schedules, folder / "train", overwrite=True, verbose=0)["seeds"]
    best = workdirs.best_row(rows)
    return {
        "method": method,
        "seed": seed,
        "accuracies": [each["accuracy"] for each in results],
        "losses": [each["loss"] for each in results],
        "validation_accuracy": best and best["val_accuracy"],
        "plain_trainings": rows[-1].get("spent"),
        "course": _course(rows),
        "search_seconds": round(searched - start, 1),
        "train_seconds": round(time.monotonic() - searched, 1),
        "schedules": json.loads(schedules.read_text()),
    }


def _course(rows):
    """`[[plain trainings spent, validation accuracy], …]` of what went over the whole horizon."""
    longest = max(row.get("horizon", 0.0) for row in rows)
    return [
        [row["spent"], row["val_accuracy"]]
        for row in rows
        if row.get("horizon", 0.0) == longest and "spent" in row and "val_accuracy" in row
    ]


def _begun(workdir, config):
    """The records that a folder holds; it is begun when it holds none."""
    from keras_fds import files

    files.writable_directory(workdir, "workdir")
    content = json.loads(json.dumps(config.to_dict()))
    path = workdir / "results.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    moving = ("methods", "seed", "data_dir", "cache_dir")
    before, now = (
        {name: value for name, value in each.items() if name not in moving}
        for each in (found["config"], content)
    )
    if before != now:
        differing = sorted(name for name in before | now if before.get(name) != now.get(name))
        raise ValueError(
            "The workdir holds a comparison with another config, which differs in "
            f"{', '.join(differing)}. Choose another workdir. Received: workdir={workdir}"
        )
    return found["records"]


def _write(workdir, config, records):
    content = {"config": config.to_dict(), "machine": report.machine(), "records": records}
    workdirs.write_json(workdir / "results.json", content)
    workdirs.write_text(workdir / "results.md", table(records) + "\n")


def table(records):
    """The results as a table in Markdown: means and 95% intervals over seeds.

    Differences are to the cosine decay, or, where there is none, to the first method; seed by seed.

    Args:
        records: As `compare` returns them.
    """
    found = by_method(records)
    baseline = "cosine" if "cosine" in found else next(iter(found), "")
    lines = [
        f"| method | test accuracy | above {baseline} | seeds | plain trainings | seconds |",
        "|---|---|---|---|---|---|",
    ]
    theirs = accuracies(found.get(baseline, {}))
    for method, of_seeds in found.items():
        own = accuracies(of_seeds)
        differences = [own[seed] - theirs[seed] for seed in own if seed in theirs]
        apart = "" if method == baseline else _cell(differences, "+")
        spent = [each["plain_trainings"] for each in of_seeds.values() if each["plain_trainings"]]
        seconds = [each["search_seconds"] for each in of_seeds.values()]
        lines.append(
            f"| {method} | {_cell(list(own.values()))} | {apart} | {len(own)} | "
            f"{f'{sum(spent) / len(spent):.1f}' if spent else ''} | "
            f"{sum(seconds) / len(seconds):.0f} |"
        )
    return "\n".join(lines)


def by_method(records):
    """`{method: {seed: record}}`."""
    found = {}
    for each in records:
        found.setdefault(each["method"], {})[each["seed"]] = each
    return found


def accuracies(of_seeds):
    """`{seed: mean test accuracy in percent}` of `{seed: record}`."""
    return {
        seed: 100 * sum(each["accuracies"]) / len(each["accuracies"])
        for seed, each in of_seeds.items()
    }


def _cell(values, sign=""):
    import numpy as np
    from scipy import stats

    if not values:
        return ""
    text = f"{np.mean(values):{sign}.2f}"
    if len(values) < 2:
        return text
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{text} ± {half:.2f}"


def main():
    """The program."""
    workdir = pathlib.Path(experiment.WORKDIR.value)
    try:
        records = compare(
            experiment.CONFIG.value, workdir, _METHODS.value, experiment.SEEDS.value or 5
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. The same command runs what {workdir} lacks.")
        return 130
    print(f"\n{table(records)}\n\nRecords: {workdir / 'results.json'}")
    return 0


if __name__ == "__main__":
    experiment.run(main)
