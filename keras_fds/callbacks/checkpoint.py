"""Checkpoints from which a search is resumed."""

import json
import os
import pathlib
import re
import time
import warnings
import zipfile
import zlib
from typing import Any

import keras
import numpy as np

from keras_fds.differentiation import Replicas
from keras_fds.files import replacement, writable_directory
from keras_fds.numbers import number
from keras_fds.search import SEARCH_ENTRY, Search, check_searching

_KEPT = 2
_NAME = re.compile(r"outer_step_\d{6}(_inner_step_\d{9})?\.npz")
# What NumPy and its archives raise when they read a damaged file.
DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


class Checkpoint(keras.callbacks.Callback):
    """Saves a search so that it can be resumed after any interrupt; for `keras_fds.fit`.

    After an outer step, and within a long one, it writes the model, its optimizer and the whole
    search into one file, in one move. To resume, call `fit` again with a model and data made as
    before: the search continues from the newest file and ends with the same history, schedules and
    weights as without the interrupt. (On a GPU, as far as its operations are deterministic.) A
    damaged file is skipped with a warning, and the one before it is used. A finished search
    continues when `outer_steps` or `budget` is greater now. Of several workers the chief writes and
    all read, so the folder must be one that all of them see. When a file cannot be written, as on a
    full disk, the callback warns and the search continues.

    Args:
        directory: Folder for the checkpoints; made when it does not exist. The last two
            checkpoints stay there, also after the search.
        config: What else the search depends on; JSON must be able to hold it. A checkpoint of
            another `config` is refused. Defaults to `None`.
        every: Outer steps from one checkpoint to the next. Defaults to `1`. (Where workers make
            outer steps in rounds, checkpoints are written at their ends.)
        minutes: Minutes from one checkpoint to the next within an outer step, in forward mode,
            where a checkpoint also holds the tangents, and in plain trainings. (Reverse mode runs
            an interrupted outer step again.) `None` writes none within an outer step. Defaults to
            `10.0`.

    Raises:
        ValueError: When `every` is not a whole number of at least 1, or `minutes` is not a number
            of at least 0; at the beginning of training, when `directory` cannot be written to, the
            model's optimizer is not a `HyperOptimizer`, or the checkpoint is of another search.

    Example:

    >>> checkpoint = keras_fds.callbacks.Checkpoint("checkpoints")
    >>> keras_fds.fit(model, x, y, validation_split=0.05, seed=0, callbacks=[checkpoint])
    """

    acts_between_calls = saves_search = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Any = None,
        every: int = 1,
        minutes: float | None = 10.0,
    ) -> None:
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.config = json.loads(json.dumps(config, default=str))
        self.every = number("every", every, least=1, whole=True)
        self.minutes = number("minutes", minutes, least=0, optional=True)
        self._good: list[pathlib.Path] = []  # Those that were read or written here, oldest first.
        self._is_due = False  # Half a round of outer steps is never written.

    def on_train_begin(self, logs=None):
        check_searching(self)
        self.model.optimizer.search.settings["config"] = self.config
        if Replicas.of(self.model).is_chief:
            writable_directory(self.directory, "directory")
            for partial in self.directory.glob("*.partial*"):
                partial.unlink()
        for path in reversed(self._files()):
            try:
                entries = _read(path)
            except DAMAGE as error:
                warnings.warn(
                    f"The checkpoint {str(path)!r} is damaged. The search resumes from the one "
                    f"before it, or starts over when there is none. Reason: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._restore(path, entries)
                self._good = [path]
                break

    def on_epoch_begin(self, epoch, logs=None):
        self._written = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        search = self.model.optimizer.search
        if search.partial is None or self.minutes is None:
            return
        if time.monotonic() - self._written >= 60 * self.minutes:
            self._write(f"_inner_step_{search.position.inner_step:09d}")

    def on_epoch_end(self, epoch, logs=None):
        search = self.model.optimizer.search
        self._is_due |= len(search.records) % self.every == 0
        if self._is_due and search.before_round is None:
            self._write()
            self._is_due = False

    def _write(self, within=""):
        if not Replicas.of(self.model).is_chief:
            return
        search = self.model.optimizer.search
        entries = {f"variable_{i}": v.numpy() for i, v in enumerate(self._variables())}
        entries.update(search.to_arrays())
        # NumPy's files have no bfloat16; float32 holds the same numbers.
        entries = {k: a.astype("float32") if a.dtype.kind == "V" else a for k, a in entries.items()}
        try:
            path = self.directory / f"outer_step_{len(search.records):06d}{within}.npz"
            with replacement(path) as partial, open(partial, "wb") as file:
                np.savez(file, **entries)
            self._good = [*(each for each in self._good if each != path), path][-_KEPT:]
            for each in set(self._files()) - {*self._good}:
                each.unlink()
        except OSError as error:
            warnings.warn(
                f"No checkpoint could be written to {str(self.directory)!r}. The search "
                f"continues, and the last checkpoint stays. Reason: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        self._written = time.monotonic()

    def _files(self):
        return sorted(p for p in self.directory.glob("*") if _NAME.fullmatch(p.name))

    def _variables(self):
        metrics = {id(variable) for variable in self.model.metrics_variables}
        of_model = [v for v in self.model.variables if id(v) not in metrics]
        return of_model + self.model.optimizer.variables

    def _restore(self, path, entries):
        """Takes over the search of a checkpoint; a `ValueError` when it is another search."""
        search, now = Search.taken_out_of(entries), self.model.optimizer.search
        try:
            search.check_same(now)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint {str(path)!r} is of another search. {error}"
            ) from error
        for i, variable in enumerate(self._variables()):
            variable.assign(entries[f"variable_{i}"])
        self.model.optimizer.search = search


def _read(path):
    """The entries of a checkpoint, `{name: array}`; raises one of `DAMAGE`."""
    with np.load(path) as file:  # The archive holds a checksum of every entry.
        entries = dict(file)
    if SEARCH_ENTRY not in entries:
        raise ValueError("It holds no search.")
    return entries
