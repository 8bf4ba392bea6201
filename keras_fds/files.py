"""Files that are complete or absent: written beside their place, then moved in one step."""

import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def replacement(path):
    """A path to write to. Its file becomes `path` in one move once it is on the disk.

    When the writing is interrupted, `path` keeps the older file. The path to write to has the
    ending of `path`.

    Example:

    >>> with replacement("history.csv") as partial:
    ...     partial.write_text("outer_step\\n")
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def writable_directory(directory, argument):
    """The directory as a `pathlib.Path`, made when it does not exist.

    Raises:
        ValueError: It cannot be made or written to. The message calls it `argument`.
    """
    path = pathlib.Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}` must be a directory that can be made and written to: "
            f"{error.strerror}. Received: {argument}={str(directory)!r}"
        ) from error
    return path
