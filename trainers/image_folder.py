"""A folder of images, FOLDER/split/class/image, as arrays; decoded once, then read from a cache.

The layout is that of `tfds.ImageFolder`, and so is the order of the examples.
"""

import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import random
import shutil
import zipfile

import numpy as np

_CACHE = ".keras_fds_images.npz"
_FORM = 1  # Of the cache; another number makes older caches stale.
_ENDINGS = (".jpg", ".jpeg", ".png")
_OTHER_ENDINGS = (".bmp", ".gif", ".tif", ".tiff", ".webp")
_GRAY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "CMYK", "YCbCr")
_SHOWN = 3  # Names of files in a message.


def read(folder, cache_dir=None):
    """Reads all images of a folder, from its cache if no file has changed since that was written.

    Images are gray (one channel) if all of them are, else RGB.

    Args:
        folder: Holds `train` and other splits; each has one folder per class, with images.
        cache_dir: Folder for the cache. Defaults to `folder` itself, where the cache is one hidden
            file. If nothing can be written there, images are decoded anew each time.

    Returns:
        `{split: (images, labels)}` and the names of the classes in the order of the labels. Images
        are `uint8` of shape [examples, height, width, channels], labels `int64`.

    Raises:
        ValueError: The layout is another one, classes differ between splits, images differ in size
            or cannot be read, or there is no room for them.

    Example:

    >>> splits, names = read("pets")
    >>> splits["train"][0].shape, names
    ((200, 32, 32, 3), ['cat', 'dog'])
    """
    folder = pathlib.Path(folder).expanduser()
    listing, names = _list(folder)
    fingerprint = _fingerprint(listing, names)
    cache = _cache_path(folder, cache_dir)
    with _alone(cache.parent):  # Of two programs, the second waits and finds the cache.
        splits = _read_cache(cache, fingerprint)
        if splits is None:
            writable = os.access(cache.parent, os.W_OK)
            _check_room(folder, listing, cache.parent if writable else None)
            splits = _decode(folder, listing)
            if writable:
                _write_cache(cache, fingerprint, splits)
    return splits, names


# ------------------------------------------------------------------------------------ the layout
def _list(folder):
    """`{split: [(path below the folder, label, size, time), …]}` and the names of the classes."""
    if not folder.is_dir():
        raise ValueError(f"The folder of images does not exist. Received: data_dir={str(folder)!r}")
    found = {split: _list_split(folder / split) for split in _subfolders(folder)}
    # Folders without folders, such as one for notes, are no splits.
    found = {split: classes for split, classes in found.items() if classes}
    if "train" not in found:
        raise ValueError(_explain_layout(folder, found))
    names = sorted(found["train"])
    for split, classes in found.items():
        if differing := sorted(set(names) ^ set(classes)):
            raise ValueError(
                "Every split must have the same classes: these are in only one of train and "
                f"{split}: {_some(differing)}. Received: data_dir={str(folder)!r}"
            )
    if len(names) < 2:
        raise ValueError(
            f"There must be at least two classes, found only {names[0]!r} in {folder / 'train'}."
        )
    wrong = [f"{split}/{name}" for split in found for name in names if not found[split][name]]
    if wrong:
        raise ValueError(
            f"{_count(wrong, 'class has', 'classes have')} no {', '.join(_ENDINGS)} files: "
            f"{_some(wrong)}. Received: data_dir={str(folder)!r}"
        )
    listing = {}
    for split, classes in found.items():
        listing[split] = [
            (f"{split}/{name}/{file}", label, *state)
            for label, name in enumerate(names)
            for file, *state in classes[name]
        ]
        random.Random(split).shuffle(listing[split])  # The order of tfds.ImageFolder.
    return listing, names


def _subfolders(folder):
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if each.is_dir() and each.name[0] != ".")


def _list_split(folder):
    """`{class: [(file, size, time), …]}`, the files sorted by name."""
    return {name: _list_class(folder / name) for name in _subfolders(folder)}


def _list_class(folder):
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in _OTHER_ENDINGS:
                others.append(entry.name)
            elif ending in _ENDINGS:
                state = _state(entry)
                images.append((entry.name, *state))
    if others:
        raise ValueError(
            f"{_count(others, 'image is', 'images are')} neither JPEG nor PNG in {folder}: "
            f"{_some(sorted(others))}. Convert or remove them."
        )
    return sorted(images)


def _state(entry):
    """Size and time of a file; of a broken link none, to be told later as unreadable."""
    with contextlib.suppress(FileNotFoundError):
        state = entry.stat()
        return state.st_size, state.st_mtime_ns
    return -1, -1


def _explain_layout(folder, found):
    wanted = f"Expected {folder}/train/CLASS/IMAGE and {folder}/test/CLASS/IMAGE"
    if found:
        return f"The folder has no split 'train'. {wanted}; found only {_some(sorted(found))}."
    if folder.name == "train":
        return f"The folder has no splits. Pass the folder that holds it: {folder.parent}"
    if any(path.suffix.lower() in _ENDINGS for path in folder.glob("*/*")):
        return (
            f"The folder has classes, but no splits. {wanted}: move the folders of the "
            f"classes into {folder / 'train'}."
        )
    return f"The folder has no splits. {wanted}."


# -------------------------------------------------------------------------------------- decoding
def _decode(folder, listing):
    """Decodes all images, or raises a ValueError that counts and names those that are wrong."""
    from PIL import Image

    def load(path):
        try:
            with Image.open(folder / path) as image:
                if image.mode not in _GRAY + _COLOUR:
                    return f"pixels of the kind {image.mode!r}"
                mode = "L" if image.mode in _GRAY else "RGB"
                return np.asarray(image if image.mode == mode else image.convert(mode))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return str(error).replace(repr(str(folder / path)), "it")

    loaded, unreadable, shapes = {}, {}, collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for split, rows in listing.items():
            paths = [row[0] for row in rows]
            loaded[split] = dict(zip(paths, pool.map(load, paths), strict=True))
            for path, image in loaded[split].items():
                if isinstance(image, str):
                    unreadable[path] = image
                else:
                    shapes[image.shape[:2]].append(path)
    if unreadable:
        reasons = [f"{path} ({reason})" for path, reason in sorted(unreadable.items())]
        raise ValueError(
            f"{_count(unreadable, 'image', 'images')} cannot be read in {folder}: "
            f"{_some(reasons)}. Replace or remove them."
        )
    if len(shapes) > 1:
        raise ValueError(_explain_sizes(folder, shapes))
    images = [image for each in loaded.values() for image in each.values()]
    colour = any(image.ndim == 3 for image in images)
    return {
        split: (
            np.stack([_with_channels(image, colour) for image in loaded[split].values()]),
            np.array([row[1] for row in rows], np.int64),
        )
        for split, rows in listing.items()
    }


def _with_channels(image, colour):
    if image.ndim == 3:
        return image
    return np.stack([image] * 3, axis=-1) if colour else image[..., np.newaxis]


def _explain_sizes(folder, shapes):
    usual = max(shapes, key=lambda shape: len(shapes[shape]))
    others = [
        f"{path} ({width}x{height})"
        for (height, width), paths in shapes.items()
        if (height, width) != usual
        for path in paths
    ]
    return (
        f"All images must have one size. Most are {usual[1]}x{usual[0]}, "
        f"{_count(others, 'is', 'are')} not in {folder}: {_some(sorted(others))}. "
        "Resize or remove them."
    )


def _check_room(folder, listing, cache_folder):
    """Raises a ValueError if the images fit neither into memory nor onto the disk."""
    from PIL import Image

    rows = [row for split in listing.values() for row in split]
    size = None
    for path, *_ in rows[:100]:  # Unreadable ones are counted later.
        with contextlib.suppress(OSError), Image.open(folder / path) as image:
            size = image.width * image.height * (1 if image.mode in _GRAY else 3)
            break
    if size is None:
        return
    needed = len(rows) * size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 5 * needed > memory:  # A byte decoded, four as float32.
        raise ValueError(
            f"{len(rows)} images of this size take {5 * needed / 1e9:.1f} GB in memory; this "
            f"machine has {memory / 1e9:.1f} GB. Use smaller or fewer ones. "
            f"Received: data_dir={str(folder)!r}"
        )
    if cache_folder is not None:
        free = shutil.disk_usage(cache_folder).free
        if needed > free:
            raise ValueError(_explain_room(cache_folder, needed, free))


def _explain_room(cache_folder, needed, free):
    return (
        f"The decoded images take {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free in "
        f"{cache_folder}. Make room there, or choose another disk with cache_dir."
    )


# ----------------------------------------------------------------------------------------- cache
def _cache_path(folder, cache_dir):
    if cache_dir is None:
        return folder / _CACHE
    from keras_fds import files  # Imports TensorFlow, which takes seconds.

    cache_dir = files.writable_directory(pathlib.Path(cache_dir).expanduser(), "cache_dir")
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return cache_dir / f"{folder.resolve().name}-{place}.npz"


def _fingerprint(listing, names):
    """A text that changes when an image is added, removed or written anew."""
    content = json.dumps([_FORM, names, listing])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _alone(folder):
    """Waits for other programs that do the same with a folder, where its disk can tell."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_cache(path, fingerprint):
    """The decoded images, or `None` if the cache is missing, stale or damaged."""
    try:
        with np.load(path, allow_pickle=False) as cache:
            if str(cache["fingerprint"]) != fingerprint:
                return None
            splits = [key.removesuffix("/images") for key in cache if key.endswith("/images")]
            return {each: (cache[f"{each}/images"], cache[f"{each}/labels"]) for each in splits}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(path, fingerprint, splits):
    from keras_fds import files

    arrays = {"fingerprint": np.array(fingerprint)}
    for split, (images, labels) in splits.items():
        arrays |= {f"{split}/images": images, f"{split}/labels": labels}
    try:
        with files.replacement(path) as partial:
            np.savez(partial, **arrays)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(path.parent).free
        raise ValueError(_explain_room(path.parent, needed, free)) from error


# -------------------------------------------------------------------------------------- messages
def _count(things, one, many):
    return f"{len(things)} {one if len(things) == 1 else many}"


def _some(things):
    """The first few of a list, and how many more there are."""
    shown = ", ".join(things[:_SHOWN])
    return f"{shown} and {len(things) - _SHOWN} more" if len(things) > _SHOWN else shown
