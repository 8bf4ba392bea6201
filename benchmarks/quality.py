"""Learned schedules against a tuned cosine decay: `python -m benchmarks.quality`.

    python -m benchmarks.quality --dataset=fashion_mnist --part=search --seeds=10
    python -m benchmarks.quality --dataset=fashion_mnist --part=cosine --seeds=10
    python -m benchmarks.quality --dataset=fashion_mnist --part=one_epoch --seeds=3
    python -m benchmarks.quality --dataset=digits --part=good_start --seeds=5
    python -m benchmarks.quality

`search` searches with a config and a seed, trains with the learned schedules on the whole training
split, and tests. `cosine` chooses the best of a grid of cosine decays on a held-out part of the
training split, then trains and tests in the same way, from the same initial weights and for the
same number of epochs. `one_epoch` searches over a horizon of one epoch. `good_start` begins with a
cosine decay in buckets, and tests its first and its last schedules. Every finished seed is written
to `--output` and not run again; an interrupted search is resumed. Without `--part`, the results are
compared.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from benchmarks.report import machine
from trainers.seeds import SEEDS

_DATASET = flags.DEFINE_enum("dataset", None, ["digits", "mnist", "fashion_mnist"], "Which data.")
_PART = flags.DEFINE_enum(
    "part", None, ["search", "cosine", "one_epoch", "good_start"], "What to run; None: compare."
)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/quality", "Folder for the results.")
_SEARCHES = flags.DEFINE_string("searches", "runs/quality", "Folder for the searches.")

CONFIGS = {"digits": "digits", "mnist": "mnist_lenet", "fashion_mnist": "fashion_mnist_lenet"}
RATES = (0.01, 0.03, 0.1, 0.3)
DECAYS = (0.0, 5e-4, 1e-3)
MOMENTUM = 0.9
GRID_SEEDS = 100, 101
# Number of trainings and tests per seed: the test split of digits has only 360 examples, and
# trainings on MNIST differ the least.
TRAININGS = {"digits": 6, "mnist": 2, "fashion_mnist": 4}
# A training with a lower test accuracy has diverged.
DIVERGED = 0.5


def load_config(dataset):
    import importlib

    return importlib.import_module(f"configs.{CONFIGS[dataset]}").get_config()


def search(dataset, seed):
    """A search and a training with what it learned."""
    config = load_config(dataset)
    folder, result = searched(config, dataset, seed, "search")
    return {**result, "test_accuracies": tested(config, folder / "schedules.json", seed)}


def one_epoch(dataset, seed):
    """A search over one epoch."""
    config = load_config(dataset)
    config.epochs = (1,)
    return searched(config, dataset, seed, "one_epoch")[1]


def good_start(dataset, seed):
    """A search from a cosine decay, and trainings with its first and its last schedules."""
    import keras_fds

    config = load_config(dataset)
    num_buckets = config.hyperparameters[0]["num_buckets"]
    rates = 0.05 * (1 + np.cos(np.pi * (np.arange(num_buckets) + 0.5) / num_buckets))
    start = {"learning_rate": rates.tolist(), "momentum": MOMENTUM, "weight_decay": 0.0}
    config.hyperparameters = [
        {**each, "initial": start[each["name"]]} for each in config.hyperparameters
    ]
    folder, result = searched(config, dataset, seed, "good_start")
    schedules = {
        name: keras_fds.BucketedSchedule(np.atleast_1d(each), 1) for name, each in start.items()
    }
    keras_fds.save_schedules(folder / "start.json", schedules)
    for name in ("start", "schedules"):
        result[f"{name}_accuracies"] = tested(config, folder / f"{name}.json", seed)
    return result


def searched(config, dataset, seed, part):
    """`(folder, what the search found)`."""
    import keras_fds
    from trainers import workdirs
    from trainers.search import search

    config.seed = seed
    folder = pathlib.Path(_SEARCHES.value) / dataset / f"{part}_{seed}"
    search(config, folder, verbose=0)
    rows = workdirs.read_history(folder)
    schedules = keras_fds.load_schedules(folder / "schedules.json")
    columns = ("val_loss", "val_accuracy", "horizon", "spent", "accepted", "best")
    return folder, {
        **{column: [float(row[column]) for row in rows] for column in columns},
        "schedules": {name: each.values.tolist() for name, each in schedules.items()},
        "plain_epochs": config.epochs[-1] * rows[-1]["spent"],
    }


def tested(config, schedules, seed):
    """The test accuracies after trainings with a file's schedules."""
    from trainers.train import train

    seeds = training_seeds(config.dataset, seed)
    config.seed, config.train_seeds = seeds[0], len(seeds)
    folder = schedules.parent.with_name(f"{schedules.parent.name}_{schedules.stem}_train")
    results = train(config, schedules, folder, overwrite=True, verbose=0)["seeds"]
    return [each["accuracy"] for each in results]


def training_seeds(dataset, seed):
    first = 1000 + TRAININGS[dataset] * seed
    return range(first, first + TRAININGS[dataset])


def cosine(dataset, seed):
    """Trainings with the best cosine decay on held-out data; the first seed runs the grid."""
    config, (x, y), test = load_config(dataset), *arrays(dataset)
    path = pathlib.Path(_OUTPUT.value) / f"{dataset}_grid.json"
    if not path.exists():
        order = np.random.default_rng(0).permutation(len(x))
        held_out, rest = np.split(order, [round(config.validation_split * len(x))])
        grid = {
            f"{rate:g}, {decay:g}": [
                trained(
                    config, rate, decay, grid_seed, (x[rest], y[rest]), (x[held_out], y[held_out])
                )
                for grid_seed in GRID_SEEDS
            ]
            for rate in RATES
            for decay in DECAYS
        }
        write(path, grid)
    grid = json.loads(path.read_text())
    chosen = max(grid, key=lambda key: np.mean(grid[key]))
    rate, decay = map(float, chosen.split(", "))
    return {
        "learning_rate": rate,
        "weight_decay": decay,
        "test_accuracies": [
            trained(config, rate, decay, each, (x, y), test)
            for each in training_seeds(dataset, seed)
        ],
        "plain_epochs": config.train_epochs * sum(map(len, grid.values())),
    }


def arrays(dataset):
    from trainers import data

    return [(a.x, a.y) for a in (data.load_arrays(dataset, split) for split in ("train", "test"))]


def trained(config, rate, decay, seed, data, held_out):
    """The accuracy on held-out data after training with a cosine decay."""
    import keras

    import keras_fds
    from trainers import networks

    keras.utils.set_random_seed(seed)
    x, y = data
    horizon = -(-len(x) // config.batch_size) * config.train_epochs
    arguments = {k: v for k, v in config.optimizer.items() if k != "name"}
    optimizer = keras_fds.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(rate, horizon), MOMENTUM, decay, **arguments
    )
    model = networks.build(config.network, x.shape[1:], 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=config.batch_size, epochs=config.train_epochs, verbose=0)
    return model.evaluate(*held_out, batch_size=500, verbose=0, return_dict=True)["accuracy"]


PARTS = {each.__name__: each for each in (search, cosine, one_epoch, good_start)}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def run(dataset, part, num_seeds):
    """Runs the missing ones of the first seeds."""
    path = pathlib.Path(_OUTPUT.value) / f"{dataset}_{part}.json"
    for seed in map(str, range(num_seeds)):
        results = json.loads(path.read_text()) if path.exists() else {"machine": machine()}
        if seed not in results:
            results[seed] = PARTS[part](dataset, int(seed))
            write(path, results)
            print(dataset, part, seed, flush=True)


def results_of(dataset, part):
    """`{seed: results}` of a part, or nothing."""
    path = pathlib.Path(_OUTPUT.value) / f"{dataset}_{part}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    return {seed: each for seed, each in results.items() if seed != "machine"}


def differences(learned, tuned):
    """`(seeds, differences of the mean test accuracies in points)` of the seeds that both have."""
    seeds = [seed for seed in learned if seed in tuned]
    accuracies = [
        [np.mean(results[seed]["test_accuracies"]) for seed in seeds]
        for results in (learned, tuned)
    ]
    return seeds, 100 * np.subtract(*accuracies)


def mean_and_half(differences):
    """A mean and half its 95% interval, by Student's t."""
    from scipy import stats

    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return np.mean(differences), half


def interval(differences):
    """A mean and its 95% interval as text."""
    mean, half = mean_and_half(differences)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def compared(dataset):
    """A row of the comparison with the cosine decay."""
    learned, tuned = (results_of(dataset, part) for part in ("search", "cosine"))
    seeds, points = differences(learned, tuned)
    means = [
        100 * np.mean([each[seed]["test_accuracies"] for seed in seeds])
        for each in (learned, tuned)
    ]
    diverged = sum(min(each["test_accuracies"]) < DIVERGED for each in learned.values())
    cost = np.mean([each["plain_epochs"] for each in learned.values()])
    trainings = len(learned[seeds[0]]["test_accuracies"])
    return (
        f"| {dataset} | {means[0]:.2f} | {means[1]:.2f} | {interval(points)} "
        f"| {len(seeds)} x {trainings} | {diverged} of {len(learned)} | {cost:.0f} "
        f"| {tuned[seeds[0]]['plain_epochs']} |"
    )


def told_of_good_start(dataset):
    results = results_of(dataset, "good_start").values()
    start, end = (
        100 * np.array([np.mean(each[f"{name}_accuracies"]) for each in results])
        for name in ("start", "schedules")
    )
    return (
        f"{dataset} from a good start: {start.mean():.2f}, at the end {end.mean():.2f}, "
        f"difference {interval(end - start)}, {len(start)} seeds"
    )


def told_of_one_epoch(dataset):
    each = [100 * np.array(r["val_accuracy"]) for r in results_of(dataset, "one_epoch").values()]
    needed = [int(np.argmax(accuracies >= accuracies.max() - 0.3)) + 1 for accuracies in each]
    best = ", ".join(f"{accuracies.max():.2f}" for accuracies in each)
    return f"{dataset} over one epoch: best {best}; within 0.3 points after outer steps {needed}"


def main(_):
    if _PART.value:
        run(_DATASET.value, _PART.value, SEEDS.value or 5)
        return
    print(
        "| data | learned | tuned cosine | difference (95%) | seeds x trainings | diverged "
        "| search, plain epochs | grid, plain epochs |\n|---|---|---|---|---|---|---|---|"
    )
    for part, tell in (
        ("cosine", compared),
        ("good_start", told_of_good_start),
        ("one_epoch", told_of_one_epoch),
    ):
        for dataset in CONFIGS:
            if results_of(dataset, part):
                print(tell(dataset))


if __name__ == "__main__":
    app.run(main)
