"""Trials: trainings of an experiment with one schedule after the other, without hypergradients.

What black boxes spend their budget on (`trainers.black_box`). A trial costs what the same training
costs in a search of this library: an epoch of Keras's own training steps is one compiled call, and
nothing is compiled again.
"""

import random
import time

import numpy as np

from trainers import experiment

KNOTS = 20  # Of a decay's learning rate.


class CompiledLoop:
    """Epochs of a compiled Keras model's training steps, and validations, each in one call.

    Args:
        model: A compiled `keras.Model`, built.
        training: Arrays `(x, y)` or `(x, y, sample_weight)`, all of the training data.
        validation: Arrays `(x, y)`.
        batch_size, validation_batch_size: The last batch may be smaller.

    Example:

    >>> loop = CompiledLoop(model, (x, y), (x_held_out, y_held_out), 128, 500)
    >>> loop.epoch(np.random.permutation(len(x)))
    >>> loop.validate()["val_loss"]
    """

    def __init__(self, model, training, validation, batch_size, validation_batch_size):
        import tensorflow as tf

        self.model = model
        # It makes the metrics, and lets the model's steps use learned numbers.
        model.evaluate(*(part[:1] for part in validation), verbose=0)
        model.optimizer.build(model.trainable_variables)
        self.parts = [tf.Variable(part, trainable=False) for part in training]
        held_out = [tf.convert_to_tensor(part) for part in validation]
        self._epoch = _passes(model.train_step, self.parts, batch_size)
        self._validation = _passes(model.test_step, held_out, validation_batch_size)
        self._in_order = np.arange(len(validation[0]), dtype="int32")

    def weigh(self, sample_weight):
        """Sets the weights of all training examples, where the loop was made with such."""
        self.parts[2].assign(sample_weight)

    def epoch(self, order):
        """Trains with all examples in an order, and returns the mean loss."""
        self.model.reset_metrics()
        self._epoch(np.asarray(order, "int32"))
        return float(self.model.get_metrics_result()["loss"])

    def validate(self):
        """`{"val_loss": …, …}`."""
        self.model.reset_metrics()
        self._validation(self._in_order)
        found = self.model.get_metrics_result()
        return {f"val_{name}": float(value) for name, value in found.items()}


def _passes(step, parts, batch_size):
    """A compiled function that makes a step with every batch of the examples in an order."""
    import tensorflow as tf

    def batch_from(start, order):
        numbers = order[start : start + batch_size]
        step(tuple(tf.gather(part, numbers) for part in parts))
        return start + batch_size

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(parts[0].shape[:1], tf.int32)])
    def run(order):
        tf.while_loop(
            lambda start: start < tf.size(order), lambda start: [batch_from(start, order)], [0]
        )

    return run


class Trials:
    """The inner loop of a config, to be run with one schedule after the other.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`; its lengths are `epochs` and
            `budget`. With `space="decay"` the learning rate has knots, and everything else one
            value.

    Raises:
        ValueError: Something in the config is unknown or does not fit.
    """

    def __init__(self, config):
        experiment.check_config(config)
        lengths = experiment.lengths(config)
        if "budget" not in lengths:
            raise ValueError(
                "A black box searches within a `budget`, over one number of `epochs`. "
                f"Received: outer_steps={config.outer_steps}, epochs={config.epochs}"
            )
        self.budget = lengths["budget"]
        if lengths["epochs"] != int(lengths["epochs"]):
            raise ValueError(
                f"A black box trains for whole epochs. Received: epochs={lengths['epochs']}"
            )
        self.epochs, self.space = int(lengths["epochs"]), experiment.option(config, "space")
        self.config = config = with_knots(config) if self.space == "decay" else config
        self.arrays = experiment.load_arrays(config, "train")
        self.training, self.validation = self._split()
        self.horizon = -(-len(self.training[0]) // config.batch_size) * self.epochs
        self.model = experiment.make_model(config, self.arrays)
        unknown = [each.name for each in self.hyperparameters if not each.is_settled]
        if unknown:
            raise ValueError(
                f"A black box must know how many values it chooses. Of {', '.join(unknown)} that "
                "is known only in a search of this library: give `shape` or `groups`, or leave it "
                "out."
            )
        weighted = any(each.name == "sample_weight" for each in self.hyperparameters)
        ones = [np.ones(len(self.training[0]), "float32")] if weighted else []
        self.loop = CompiledLoop(
            self.model,
            (*self.training, *ones),
            self.validation,
            config.batch_size,
            config.validation_batch_size,
        )

    def _split(self):
        """Pairs `(x, y)` for training and for validation."""
        config, x, y = self.config, self.arrays.x, self.arrays.y
        given = experiment.validation_of(config)
        if "validation_data" in given:
            return (x, y), given["validation_data"]
        order = np.random.default_rng(config.seed).permutation(len(x))
        held_out, rest = np.split(order, [int(config.validation_split * len(order))])
        if not len(held_out):
            raise ValueError(
                "A black box chooses by held-out examples. "
                f"Received: validation_split={config.validation_split}"
            )
        return (x[rest], y[rest]), (x[held_out], y[held_out])

    @property
    def hyperparameters(self):
        return self.model.optimizer.hyperparameters

    def schedules(self, values):
        """`{name: keras_fds.BucketedSchedule}` of bucket values."""
        import keras_fds

        return {
            h.name: keras_fds.BucketedSchedule(values[h.name], self.horizon, h.interpolation)
            for h in self.hyperparameters
        }

    def train(self, values, seed, pruning=None):
        """Trains from new weights.

        A training whose loss is not finite ends at the end of the epoch.

        Args:
            values: `{name: float64 [num_buckets, *shape]}`.
            seed: Of initial weights and orders.
            pruning: `{"epochs": when, "call": f}`: `f(epoch, logs)` is called with the validation
                after these numbers of epochs, and may raise to end the training. Defaults to
                `None`.

        Returns:
            `({"val_loss": …, "val_accuracy": …}, part)`: the validation's logs, and which part of
            the training was made.
        """
        self._begin(self.schedules(values), seed)
        rng, epoch = np.random.default_rng(seed), 0
        for epoch in range(1, self.epochs + 1):
            loss = self.loop.epoch(rng.permutation(len(self.training[0])))
            if not np.isfinite(loss):
                break
            if pruning and epoch in pruning["epochs"] and epoch < self.epochs:
                pruning["call"](epoch, self.loop.validate())
        return self.loop.validate(), epoch / self.epochs

    def _begin(self, schedules, seed):
        """New weights, slots at their start, and schedules."""
        # Keras draws weights by these. Its `set_random_seed` would drop what is compiled.
        random.seed(seed)
        np.random.seed(seed)
        fresh = experiment.make_network(self.config, self.arrays)
        for mine, new in zip(self.model.variables, fresh.variables, strict=True):
            mine.assign(new)
        optimizer = self.model.optimizer
        optimizer.reset_slots()
        optimizer.schedules = schedules
        optimizer.begin_schedules(self.horizon)
        weights = experiment.example_weights(self.config, schedules, len(self.training[0]))
        if weights is not None:
            self.loop.weigh(weights)


def with_knots(config):
    """The config with knots of the learning rate and one number of everything else."""
    config = config.copy_and_resolve_references()
    found = []
    for each in config.hyperparameters:
        own = {
            name: value
            for name, value in each.items()
            if name not in ("num_buckets", "interpolation", "initial", "step_size")
        }
        if own["name"] == "learning_rate":
            own |= {"num_buckets": KNOTS, "interpolation": "linear"}
        found.append(own)
    with config.unlocked():
        config.hyperparameters = found
    return config


def seconds_a_training(config):
    """What a plain training of a config takes on this machine, without what is done only once.

    Args:
        config: See `Trials`; its method does not matter.
    """
    trials = Trials(config)
    middle = {
        each.name: each.initial_values
        if each.is_vector
        else np.full(each.num_buckets, each.from_searched(np.mean(each.searched[1:])))
        for each in trials.hyperparameters
    }
    for _ in range(2):  # The first one traces.
        start = time.monotonic()
        trials.train(middle, config.seed)
    return time.monotonic() - start
