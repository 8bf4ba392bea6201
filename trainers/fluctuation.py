"""Measures how noisy the hypergradients of single inner steps are, as in the paper's Figure 2.

    python -m trainers.fluctuation --config=configs/digits.py --config.network=mlp \
        --seeds=50 --horizon=250 --workdir=runs/figure_2

Every seed trains the config's network from new weights on batches in another order, in float64, and
takes the hypergradient of every inner step. Beside it stands the greedy hypergradient of that step:
of the validation loss right after it. The validation examples are drawn from the training split,
once for all seeds; the test split is not read. The schedules are the paper's: the learning rate is
a cosine decay from --learning_rate, the momentum is --momentum, all others have the config's start
values; or those of a search, --at_schedules.

The folder --workdir then holds seeds/ (one file per seed), settings.json, figure_2.csv (the mean
squared error of sharing against the number of steps), figure_2.json (noise, drift, correlation) and
figure_2.png. The same command after an interrupt measures only the seeds that are missing; more
--seeds add to those there are.
"""

import contextlib
import csv
import json
import pathlib

from absl import flags

from trainers import experiment, workdirs
from trainers.seeds import SEEDS

REQUIRED = ("config", "workdir")
_HORIZON = flags.DEFINE_integer("horizon", 250, "Inner steps of each seed.", 2)
_SCHEDULES = flags.DEFINE_string("at_schedules", None, "The schedules.json of a search.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "Where the cosine decay begins.")
_MOMENTUM = flags.DEFINE_float("momentum", 0.9, "The momentum of all steps.")
flags.adopt_module_key_flags(experiment)
flags.declare_key_flag("seeds")

_STEP = 1e-5  # Of the central differences of an update, in coordinates; float64.


def paper_schedules(config, horizon, learning_rate=0.01, momentum=0.9):
    """The schedules at which the paper measures, for the hyperparameters of a config.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`.
        horizon: Inner steps; the learning rate has a bucket for each.
        learning_rate: Where the cosine decay begins. Defaults to `0.01`.
        momentum: Defaults to `0.9`.

    Returns:
        `{name: keras_fds.BucketedSchedule}`. Hyperparameters other than these two have the config's
        start values.

    Example:

    >>> paper_schedules(configs.digits.get_config(), 250)["learning_rate"].num_buckets
    250
    """
    import numpy as np

    import keras_fds

    cosine = learning_rate * (1 + np.cos(np.pi * np.arange(horizon) / horizon)) / 2
    found = {"learning_rate": cosine, "momentum": [momentum]}
    for each in config.hyperparameters:
        initial = np.ravel(each.get("initial", 0.0))
        found.setdefault(each["name"], initial)
    names = [each["name"] for each in config.hyperparameters]
    return {name: keras_fds.BucketedSchedule(found[name], horizon) for name in names}


class Fluctuation:
    """The inner loop of a config, to be differentiated with one seed after the other.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`.
        schedules: `{name: keras_fds.BucketedSchedule}`.
        horizon: Inner steps.

    Raises:
        ValueError: Something in the config is unknown or does not fit, or a batch is larger than
            the training data.
    """

    def __init__(self, config, schedules, horizon):
        import numpy as np
        import tensorflow as tf

        experiment.check_config(config)
        arrays = experiment.load_arrays(config, "train")
        order = np.random.default_rng(config.seed).permutation(len(arrays.x))
        held_out = int(len(order) * config.validation_split)
        x, y = arrays.x.astype("float64")[order], arrays.y[order]
        self.validation, self.training = (x[:held_out], y[:held_out]), (x[held_out:], y[held_out:])
        self.config, self.horizon, self.arrays = config, horizon, arrays
        self.schedules = schedules
        self.batches_a_pass = (len(order) - held_out) // config.batch_size
        if not held_out or not self.batches_a_pass:
            raise ValueError(
                "There must be validation examples, and at least one whole batch of training "
                f"examples. Received: {held_out} validation and {len(order) - held_out} training "
                f"examples, batch_size={config.batch_size}"
            )
        self.model = experiment.make_model(config, arrays, schedules)
        self.model.optimizer.build(self.model.trainable_variables)
        self.names = self.model.optimizer.names
        # What is learned of the model itself acts on the gradients, not on the update.
        self.greedy_names = [n for n in self.names if n not in self.model.optimizer.model_names]
        self._step = tf.function(self._greedy_step)

    def draw(self, seed):
        """Puts new weights into the model and returns the seed's batches, `(x, y)`.

        Both are arrays `[horizon, batch_size, …]`. The rest of a pass that fills no batch is left
        out, so all batches are alike.
        """
        import keras
        import numpy as np

        keras.utils.set_random_seed(self.config.seed + 1 + seed)
        fresh = experiment.make_model(self.config, self.arrays, self.schedules)
        self.model.set_weights(fresh.get_weights())
        generator = np.random.default_rng([self.config.seed, seed])
        x, y = self.training
        size, passes = self.config.batch_size, -(-self.horizon // self.batches_a_pass)
        used = self.batches_a_pass * size
        order = np.concatenate([generator.permutation(len(x))[:used] for _ in range(passes)])
        order = order.reshape(-1, size)[: self.horizon]
        return x[order], y[order]

    def measure(self, seed):
        """The hypergradients of every inner step with one seed.

        Returns:
            `{"learning_rate": …, "greedy/learning_rate": …, …}`, float64 arrays `[horizon]`;
            derivatives by the hyperparameters' coordinates.
        """
        import numpy as np
        import tensorflow as tf

        import keras_fds

        x, y = self.draw(seed)
        batches = tf.data.Dataset.from_tensor_slices((x, y))
        validation = tf.data.Dataset.from_tensor_slices(self.validation)
        found = keras_fds.hypergradients(
            self.model,
            batches,
            validation.batch(self.config.validation_batch_size),
            validation_training=self.config.validation_training,
            reverse_memory=self.config.reverse_memory,
            per_step=True,
        )
        optimizer = self.model.optimizer
        optimizer.reset_slots()
        optimizer.begin_schedules(self.horizon)
        greedy = np.stack([self._step(*batch).numpy() for batch in zip(x, y)], axis=1)
        return found | {f"greedy/{n}": each for n, each in zip(self.greedy_names, greedy)}

    def _greedy_step(self, x, y):
        """Trains for a step; d(validation loss after it)/d(its hyperparameters).

        The update's derivatives are central differences. No other step depends on them, so the
        loss's gradient is all that they meet.
        """
        import tensorflow as tf

        model, optimizer = self.model, self.model.optimizer
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True)) + sum(model.losses)
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        state = [*weights, *optimizer.variables]
        before = [tf.identity(variable.value) for variable in state]

        def restore():
            for variable, value in zip(state, before):
                variable.assign(value)

        def after(shift):
            coordinates = optimizer.schedule_variables[0]
            coordinates.assign(coordinates.value + shift)
            optimizer.apply(gradients, weights)
            found = [tf.identity(weight.value) for weight in weights]
            restore()
            return found

        tangents = []
        for name in self.greedy_names:
            parts = {
                h.name: tf.ones(h.num_buckets, "float64") * (_STEP if h.name == name else 0.0)
                for h in optimizer.hyperparameters
            }
            shift = tf.concat([parts[each] for each in self.names], axis=0)
            up, down = after(shift), after(-shift)
            tangents.append([(u - d) / (2 * _STEP) for u, d in zip(up, down)])
        optimizer.apply(gradients, weights)
        with tf.GradientTape() as tape:
            x, y = self.validation
            loss = model.loss(y, model(x, training=self.config.validation_training))
        cotangents = tape.gradient(loss, [weight.value for weight in weights])
        return tf.stack(
            [
                tf.add_n([tf.reduce_sum(c * t) for c, t in zip(cotangents, tangent)])
                for tangent in tangents
            ]
        )


@contextlib.contextmanager
def float64():
    """Keras computes in float64 for the length of a `with` block."""
    import keras

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def fluctuation(config, output, seeds=50, horizon=250, schedules=None, tell=print):
    """Measures what is missing, and writes the results of all seeds that are there.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`.
        output: Folder, made when it does not exist.
        seeds: Number of seeds; at least three are needed. Defaults to `50`.
        horizon: Inner steps. Defaults to `250`.
        schedules: `{name: keras_fds.BucketedSchedule}`. Defaults to `paper_schedules`.
        tell: Called with a line of text after each seed. Defaults to `print`.

    Returns:
        `{hyperparameter: {"noise": …, "drift": …, …}}`, as in figure_2.json.

    Raises:
        ValueError: The folder holds a measurement with other settings, fewer than three seeds have
            finite hypergradients, or the config does not fit.

    Example:

    >>> found = fluctuation(configs.digits.get_config(), "runs/figure_2", seeds=50)
    >>> found["learning_rate"]["best_num_buckets"]
    """
    from keras_fds import files

    experiment.check_config(config)
    schedules = schedules or paper_schedules(config, horizon)
    if seeds < 3:
        raise ValueError(f"At least three seeds are needed. Received: seeds={seeds}")
    output = files.writable_directory(output, "output")
    _check_settings(output, config, schedules, horizon)
    folder = files.writable_directory(output / "seeds", "output")
    missing = [seed for seed in range(seeds) if not _path(folder, seed).exists()]
    if missing:
        _measure(config, schedules, horizon, folder, missing, tell)
    hypergradients, broken = _read(folder)
    summary, rows = summarise(hypergradients)
    if broken:
        tell(f"Left out, as their training broke down: seeds {broken}.")
    content = {"broken_seeds": broken, "hyperparameters": summary}
    workdirs.write_json(output / "figure_2.json", content)
    with files.replacement(output / "figure_2.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with files.replacement(output / "figure_2.png") as path:
        draw(hypergradients, summary, rows).savefig(path, dpi=110)
    return summary


def summarise(hypergradients):
    """What the hypergradients of all seeds tell.

    Args:
        hypergradients: `{"learning_rate": …, "greedy/learning_rate": …, …}`, arrays
            `[seeds, horizon]`.

    Returns:
        `(summary, rows)`. The summary is `{hyperparameter: {quantity: number}}`; `rows` are
        `[{column: value}, …]`, one for each hyperparameter and number of buckets. Errors are mean
        squared errors, in squared units of the hypergradient.

    Raises:
        ValueError: There are fewer than three seeds.
    """
    from keras_fds import noise

    summary, rows = {}, []
    for name, each in hypergradients.items():
        if name.startswith("greedy/"):
            continue
        estimate = noise.estimate(each)
        sharing = noise.measure_sharing(each)
        best = sharing.num_buckets.tolist().index(sharing.best)
        theory = noise.best_steps(estimate.noise, estimate.drift, estimate.correlation)
        summary[name] = {
            "seeds": estimate.seeds,
            "horizon": estimate.horizon,
            "mean": float(each.mean()),
            "noise": estimate.noise,
            "drift": estimate.drift,
            "largest_drift": estimate.largest_drift,
            "correlation": estimate.correlation,
            "mean_correlation": estimate.mean_correlation,
            "error_unshared": float(sharing.errors[-1]),
            "error_all_shared": float(sharing.errors[0]),
            "least_error": float(sharing.errors[best]),
            "least_error_standard_error": float(sharing.standard_errors[best]),
            "best_num_buckets": sharing.best,
            "fewest_num_buckets": sharing.fewest,
            "best_steps": float(sharing.steps[best]),
            "best_steps_by_theorem": min(theory, float(estimate.horizon)),
        }
        if f"greedy/{name}" in hypergradients:
            error, standard_error = noise.error_of(hypergradients[f"greedy/{name}"], each)
            summary[name] |= {"greedy_error": error, "greedy_error_standard_error": standard_error}
        for k, count in enumerate(sharing.num_buckets.tolist()):
            rows.append(
                {
                    "hyperparameter": name,
                    "num_buckets": count,
                    "steps": float(sharing.steps[k]),
                    "error": float(sharing.errors[k]),
                    "standard_error": float(sharing.standard_errors[k]),
                    "bound": estimate.bound(count),
                }
            )
    return summary, rows


def table(summary):
    """A text table of a summary; errors are relative to those without sharing."""
    lines = [
        f"{'':<16}{'noise':>10}{'drift':>10}{'corr.':>7}{'least error':>13}{'at steps':>10}"
        f"{'all shared':>12}{'greedy':>10}"
    ]
    for name, each in summary.items():
        unshared = each["error_unshared"]
        greedy = each.get("greedy_error", float("nan")) / unshared
        lines.append(
            f"{name:<16}{each['noise']:>10.3g}{each['drift']:>10.3g}{each['correlation']:>7.2f}"
            f"{each['least_error'] / unshared:>13.3f}{each['best_steps']:>10.1f}"
            f"{each['error_all_shared'] / unshared:>12.3f}{greedy:>10.3g}"
        )
    return "\n".join(lines)


def draw(hypergradients, summary, rows):
    """A `matplotlib.figure.Figure`: a column of two panels for each hyperparameter.

    Above, the mean hypergradient of each inner step and its noise; below, the mean squared error
    against the number of steps shared over. Arguments as in `summarise` and what it returns.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(summary), 6.4), layout="constrained")
    panels = figure.subplots(2, len(summary), squeeze=False)
    for (name, found), (above, below) in zip(summary.items(), panels.T):
        each = hypergradients[name]
        mean, deviation = each.mean(0), each.std(0, ddof=1)
        above.plot(each[0], color="#c0392b", linewidth=0.7, label="one seed")
        above.plot(mean, color="#1f5fa8", label=f"mean of {found['seeds']} seeds")
        steps = np.arange(found["horizon"])
        above.fill_between(steps, mean - deviation, mean + deviation, color="#1f5fa8", alpha=0.2)
        above.axhline(0, color="black", linewidth=0.6)
        above.set(title=name, xlabel="inner step", ylabel="hypergradient")
        own = [row for row in rows if row["hyperparameter"] == name]
        steps, errors, half, bounds = (
            np.array([row[key] for row in own])
            for key in ("steps", "error", "standard_error", "bound")
        )
        below.errorbar(steps, errors, half, color="#1f5fa8", marker="o", ms=3, label="measured")
        below.plot(steps, bounds, "--", color="grey", label="Theorem 4.1")
        if "greedy_error" in found:
            below.axhline(found["greedy_error"], color="#1e8449", linestyle=":", label="greedy")
        below.set(xscale="log", yscale="log", xlabel="steps shared over", ylabel="squared error")
        for panel in (above, below):
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize=8)
    return figure


def draw_results(results):
    """The figure of the measurement in a folder, a `pathlib.Path`.

    Raises:
        ValueError: The folder holds no measurement.
    """
    hypergradients, _ = _read(results / "seeds")
    return draw(hypergradients, *summarise(hypergradients))


def _measure(config, schedules, horizon, folder, missing, tell):
    import numpy as np

    from keras_fds import files

    with float64():
        loop = Fluctuation(config, schedules, horizon)
        for left, seed in zip(reversed(range(len(missing))), missing):
            found = loop.measure(seed)
            with files.replacement(_path(folder, seed)) as path:
                np.savez_compressed(path, **found)
            tell(f"Seed {seed} is measured; {left} to go.")


def _path(folder, seed):
    return folder / f"{seed:04d}.npz"


def _check_settings(output, config, schedules, horizon):
    """Writes the settings of a new measurement; refuses to add to one with others."""
    fields = workdirs.fields_of(config)
    for name in ("data_dir", "budget", "outer_steps", "epochs", "train_epochs", "train_seeds"):
        del fields[name]  # They change nothing here.
    settings = {
        "horizon": horizon,
        "schedules": {name: schedule.get_config() for name, schedule in schedules.items()},
        "config": fields,
    }
    settings = json.loads(json.dumps(settings))
    path = output / "settings.json"
    if not path.exists():
        workdirs.write_json(path, settings)
        return
    if json.loads(path.read_text()) != settings:
        raise ValueError(
            "The folder holds a measurement with another config, horizon or schedules. Choose "
            f"another folder. Received: output={str(output)!r}"
        )


def _read(folder):
    """`({name: [seeds, horizon]}, seeds left out)` from the files of all seeds."""
    import numpy as np

    found, broken = {}, []
    for path in sorted(folder.glob("[0-9]*[0-9].npz")):
        with np.load(path) as arrays:
            of_seed = dict(arrays)
        if all(np.isfinite(each).all() for each in of_seed.values()):
            for name, each in of_seed.items():
                found.setdefault(name, []).append(each)
        else:
            broken.append(int(path.stem))
    if not found and not broken:
        raise ValueError(f"There is no measurement in {folder}. Run trainers.fluctuation first.")
    if not found:
        raise ValueError(
            "No seed has finite hypergradients. Choose a smaller learning rate, or clip gradients. "
            f"Received: seeds={broken}"
        )
    return {name: np.stack(each) for name, each in found.items()}, broken


def main():
    """The program."""
    import keras_fds

    config, output = experiment.CONFIG.value, pathlib.Path(experiment.WORKDIR.value)
    horizon = _HORIZON.value
    if _SCHEDULES.value is None:
        experiment.check_config(config)
        schedules = paper_schedules(config, horizon, _LEARNING_RATE.value, _MOMENTUM.value)
    else:
        schedules = keras_fds.load_schedules(_SCHEDULES.value)
    try:
        summary = fluctuation(config, output, SEEDS.value or 50, horizon, schedules)
    except KeyboardInterrupt:
        print(f"\nInterrupted. The same command measures the seeds that {output} lacks.")
        return 130
    print(f"\nMean squared errors relative to those without sharing:\n\n{table(summary)}\n")
    print(f"Picture: {output / 'figure_2.png'}")
    return 0


if __name__ == "__main__":
    experiment.run(main, required=REQUIRED)
