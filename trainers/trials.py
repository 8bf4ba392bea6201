"""Trials: trainings of an experiment with one schedule after the other, without hypergradients.

What black boxes spend their budget on (`trainers.black_box`). A trial costs what the same training
costs in a search of this library: stock `model.fit` runs all batches of an epoch in one compiled
call, and the whole training as one epoch of Keras's, as each of these would cost a tenth of a
second more.
"""

import time

from trainers import experiment

KNOTS = 20  # Of a decay's learning rate.


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
        self.steps = -(-len(self.training[0]) // config.batch_size)
        self.model = experiment.make_model(config, self.arrays)
        self.model.steps_per_execution = self.steps
        self.model.optimizer.build(self.model.trainable_variables)
        unknown = [each.name for each in self.hyperparameters if not each.is_settled]
        if unknown:
            raise ValueError(
                f"A black box must know how many values it chooses. Of {', '.join(unknown)} that "
                "is known only in a search of this library: give `shape` or `groups`, or leave it "
                "out."
            )

    def _split(self):
        """Pairs `(x, y)` for training and for validation."""
        import numpy as np

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

        horizon = self.steps * self.epochs
        return {
            h.name: keras_fds.BucketedSchedule(values[h.name], horizon, h.interpolation)
            for h in self.hyperparameters
        }

    def train(self, values, seed, pruning=None):
        """Trains, and returns the validation's logs and which part of the training was made.

        A training whose loss is not finite ends at the end of the epoch.

        Args:
            values: `{name: float64 [num_buckets, *shape]}`.
            seed: Of initial weights and orders.
            pruning: `{"epochs": when, "call": f}`: `f(epoch, logs)` is called with the validation
                after these numbers of epochs, and may raise to end the training. Defaults to
                `None`.

        Returns:
            `({"val_loss": …, "val_accuracy": …}, part)`.
        """
        import keras

        keras.utils.set_random_seed(seed)
        fresh = experiment.make_model(self.config, self.arrays)
        schedules = self.schedules(values)
        self.model.set_weights(fresh.get_weights())
        self.model.optimizer.reset_slots()
        self.model.optimizer.schedules = schedules
        horizon = self.steps * self.epochs
        self.model.fit(
            self._batches(schedules, seed),
            steps_per_epoch=horizon,
            shuffle=False,
            callbacks=[
                keras.callbacks.TerminateOnNaN(),
                *([_AfterEpochs(self, **pruning)] if pruning else []),
            ],
            verbose=0,
        )
        return self.validate(), int(self.model.optimizer.iterations) / horizon

    def validate(self):
        """The Keras logs of a validation."""
        found = self.model.evaluate(
            *self.validation,
            batch_size=self.config.validation_batch_size,
            verbose=0,
            return_dict=True,
        )
        return {f"val_{name}": value for name, value in found.items()}

    def _batches(self, schedules, seed):
        weights = experiment.example_weights(self.config, schedules, len(self.training[0]))
        parts = self.training if weights is None else (*self.training, weights.astype("float32"))
        return shuffled_batches(parts, self.config.batch_size, self.epochs, seed)


def shuffled_batches(parts, batch_size, epochs, seed):
    """The batches of several epochs, each in another order, a `tf.data.Dataset`.

    Args:
        parts: Arrays of equal length, a tuple.
        batch_size: The last batch of an epoch may be smaller.
        epochs: Their number.
        seed: Of the orders.
    """
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(part) for part in parts]
    examples = len(parts[0])

    def numbers(epoch):
        seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(examples), seed=seeds)
        batches = tf.data.Dataset.range(-(-examples // batch_size), output_type=tf.int32)
        return batches.map(lambda k: order[k * batch_size : (k + 1) * batch_size])

    return (
        tf.data.Dataset.range(epochs)
        .flat_map(numbers)
        .map(lambda batch: tuple(tf.gather(tensor, batch) for tensor in tensors))
        .prefetch(tf.data.AUTOTUNE)
    )


def _AfterEpochs(trials, epochs, call):
    """A callback that validates after some numbers of epochs."""
    import keras

    class AfterEpochs(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            done = (batch + 1) // trials.steps
            if done in epochs and done < trials.epochs:
                call(done, trials.validate())

    return AfterEpochs()


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
    import numpy as np

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
