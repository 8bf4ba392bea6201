"""Checkpoints from which a search goes on."""

import json
import pathlib
import warnings

import h5py
import keras

from keras_fds._checks import check_searching
from keras_fds._data import whole_number
from keras_fds._files import replacement, writable_directory

_ENTRY = "keras_fds_checkpoint"
_VERSION = 1
_SUFFIX = ".weights.h5"
_KEPT = 2


class Checkpoint(keras.callbacks.Callback):
    """Keeps a search so that it can go on after any interrupt; for `keras_fds.fit`.

    At the end of an outer step it writes the model, its optimizer and the whole search into one
    file, in one move. A `fit` that is called again with a model and data made as before goes on
    after the newest of them, and ends as if it had not been interrupted: with the same history,
    schedules and weights. (On a GPU, as far as its operations are deterministic.) A damaged file is
    passed over, with a warning, in favour of the one before. A finished search is left as it is, or
    goes on when there are more `outer_steps` now. When a file cannot be written, as on a full disk,
    it warns, and the search goes on.

    Args:
        directory: Made when it does not exist. The last two checkpoints stay there, also at the
            end of the search.
        config: What the search depends on, such that JSON can hold it: a checkpoint of another
            `config` is refused. Defaults to `None`.
        every: Outer steps from one checkpoint to the next. Defaults to `1`.

    Raises:
        ValueError: When `every` is not a whole number of at least 1; at the beginning of training,
            when `directory` cannot be written to, the model's optimizer is no `HyperOptimizer`, or
            the checkpoint is of another `config` or model.

    Example:

    >>> checkpoint = keras_fds.callbacks.Checkpoint("checkpoints")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, seed=0, callbacks=[checkpoint])
    """

    def __init__(self, directory, config=None, every=1):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.config = json.loads(json.dumps(config, default=str))
        self.every = whole_number("every", every)

    def on_train_begin(self, logs=None):
        check_searching(self)
        writable_directory(self.directory, "directory")
        for partial in self.directory.glob(f"*.partial{_SUFFIX}"):
            partial.unlink()
        for path in reversed(self._files()):
            try:
                description = _read(path)
            except (OSError, KeyError, ValueError) as error:
                warnings.warn(
                    f"The checkpoint {str(path)!r} is damaged, and the one before it is tried. "
                    f"Reason: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._restore(path, description)
                break

    def on_epoch_end(self, epoch, logs=None):
        done = len(self.model.optimizer.search.records)
        if done % self.every:
            return
        description = {"version": _VERSION, "config": self.config}
        try:
            with replacement(self.directory / f"outer_step_{done:06d}{_SUFFIX}", _SUFFIX) as path:
                self.model.save_weights(path)
                with h5py.File(path, "r+") as file:
                    file[_ENTRY] = json.dumps(description)
            for path in self._files()[:-_KEPT]:
                path.unlink()
        except (OSError, RuntimeError) as error:  # The latter from HDF5, when it closes a file.
            warnings.warn(
                f"No checkpoint could be written to {str(self.directory)!r}, and the search goes "
                f"on; the one before it stays. Reason: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _files(self):
        return sorted(self.directory.glob(f"outer_step_??????{_SUFFIX}"))

    def _restore(self, path, description):
        if description["version"] > _VERSION:
            raise ValueError(
                f"The checkpoint {str(path)!r} has version {description['version']}; this "
                f"keras_fds reads versions up to {_VERSION}. Install a newer keras_fds."
            )
        if description["config"] != self.config:
            raise ValueError(
                f"The checkpoint {str(path)!r} is of another config. Choose another directory, or "
                f"remove the checkpoints in this one. Received: config={self.config}, the "
                f"checkpoint's is {description['config']}"
            )
        try:
            self.model.load_weights(path)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint {str(path)!r} is of another model or of other hyperparameters. "
                f"Choose another directory, or remove the checkpoints in this one. Reason: {error}"
            ) from error


def _read(path):
    """The description in a checkpoint, all of which is read, so that damage shows.

    Raises:
        OSError, KeyError, ValueError: The file is damaged.
    """

    def read(name, item):
        if isinstance(item, h5py.Dataset):
            item[()]

    with h5py.File(path, "r") as file:
        file.visititems(read)
        return json.loads(file[_ENTRY][()])
