"""A clock for searches that are compared: what an outer step had cost in seconds when it ended."""

import contextlib
import json
import time

import keras

from trainers import workdirs


class Stopwatch(keras.callbacks.Callback):
    """Writes the seconds up to the end of every epoch into a file, and ends training by a limit.

    It starts when it is made, so tracing counts. A training that is resumed goes on with the
    seconds of the file. What an epoch costs is known when it has ended: the limit may be exceeded
    by a part of one.

    Args:
        folder: Where `seconds.json` is written, a `pathlib.Path`.
        limit: In seconds. Defaults to `None`, no limit.

    Example:

    >>> keras_fds.fit(model, x, y, callbacks=[Stopwatch(pathlib.Path("run"), limit=60.0)])
    """

    def __init__(self, folder, limit=None):
        super().__init__()
        self.folder, self.limit = folder, limit
        self.start, self.ends, self.earlier = time.monotonic(), None, 0.0

    def elapsed(self):
        """The seconds so far, with those of the training that this one goes on with."""
        return self.earlier + time.monotonic() - self.start

    def on_epoch_begin(self, epoch, logs=None):
        if self.ends is None:
            self.ends = read_seconds(self.folder)[:epoch]
            self.earlier = self.ends[-1] if self.ends else 0.0

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(round(self.elapsed(), 3))
        workdirs.write_json(self.folder / workdirs.SECONDS, self.ends)
        if self.limit is not None and self.ends[-1] >= self.limit:
            self.model.stop_training = True


def read_seconds(folder):
    """What a `Stopwatch` wrote, a list of seconds; none where there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((folder / workdirs.SECONDS).read_text())
    return []
