"""Prints what a search will cost, then the remaining time."""

import time

import keras

from keras_fds.search import cost_of, cost_table, duration, measure_seconds


class SearchProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar of an outer step, under a line with the remaining time.

    Before the first outer step it measures a few steps and prints what the search will cost. The
    remaining time is estimated from that at first, then from the last outer step. (The first outer
    step does not count: it includes compilation.)

    `batches` are `(train, validation)` batches like those of the search. `begin` is when `fit` was
    called, by `time.monotonic`.
    """

    acts_between_calls = True

    def __init__(
        self,
        mode,
        reason,
        batches,
        horizons,
        steps_per_epoch,
        validation_training=False,
        begin=None,
    ):
        super().__init__()
        self.mode, self.reason, self.batches = mode, reason, batches
        self.horizons, self.steps_per_epoch = horizons, steps_per_epoch
        self.validation_training = validation_training
        self.begin = time.monotonic() if begin is None else begin

    def set_params(self, params):
        super().set_params(params)
        self.epochs = 1  # Keras's own line is not printed.

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        to_come = self.horizons[len(self.model.optimizer.search.records) :]
        if to_come:
            seconds = measure_seconds(
                self.model, self.mode, self.batches, max(self.horizons), self.validation_training
            )
            cost = cost_of(self.mode, self.reason, to_come, self.steps_per_epoch, seconds)
            print(cost_table(cost._replace(tracing=time.monotonic() - self.begin)))
            self.seconds_a_step = seconds.of_outer_step(max(self.horizons)) / max(self.horizons)
            self.finished = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.monotonic()
        left = duration(self.seconds_a_step * sum(self.horizons[epoch:]))
        print(f"Outer step {epoch + 1}/{len(self.horizons)}, about {left} left", flush=True)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.finished and self.seen == self.horizons[epoch]:
            self.seconds_a_step = (time.monotonic() - self.start) / self.seen
        self.finished += 1
