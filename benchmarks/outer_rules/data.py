"""Small real data sets that need no network.

Every data set has a pool and test examples. A search trains on a part of the pool and validates on
the rest; no search sees the test examples. Labels are replaced in the whole pool, as they would be
in practice; test labels are clean.
"""

import gzip
import pathlib
import subprocess
from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs and their labels, arrays with a first axis of the same length."""

    inputs: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """A data set.

    Args:
        pool: The examples for training and validation.
        test: The examples for reported results; they are never used to choose.
        num_classes: Labels are whole numbers below it.
    """

    pool: Examples
    test: Examples
    num_classes: int


def fashion_mnist(size=12000, pixels=14, replaced=0.0):
    """Fashion-MNIST from Debian's package `dataset-fashion-mnist`, with fewer pixels.

    Args:
        size: Images in the pool. Defaults to `12000`.
        pixels: Rows and columns, a divisor of 28. Defaults to `14`.
        replaced: Part of the pool's labels that are replaced by random ones. Defaults to `0.0`.
    """
    chosen = np.random.default_rng(0).permutation(60000)[:size]
    images, labels = _fashion_mnist_images("train", pixels), _fashion_mnist_labels("train")
    images, labels = images[chosen], labels[chosen]
    mean, deviation = images.mean(axis=0), images.std(axis=0) + 0.01
    test_images = (_fashion_mnist_images("t10k", pixels) - mean) / deviation
    pool = Examples((images - mean) / deviation, _partly_replaced(labels, replaced, 10))
    return Data(pool, Examples(test_images, _fashion_mnist_labels("t10k")), 10)


def _fashion_mnist_images(part, pixels):
    raw = np.frombuffer(_fashion_mnist_file(f"{part}-images"), "uint8", offset=16)
    block = 28 // pixels
    blocks = raw.reshape(-1, pixels, block, pixels, block).astype("float32") / 255
    return blocks.mean(axis=(2, 4))


def _fashion_mnist_labels(part):
    raw = np.frombuffer(_fashion_mnist_file(f"{part}-labels"), "uint8", offset=8)
    return raw.astype("int32")


def _fashion_mnist_file(name):
    command = ["dpkg", "-L", "dataset-fashion-mnist"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    paths = [path for path in listed if name in path]
    if not paths:
        raise FileNotFoundError(
            "Fashion-MNIST is not installed. Install Debian's package: "
            "apt-get install dataset-fashion-mnist"
        )
    return gzip.decompress(pathlib.Path(paths[0]).read_bytes())


def digits(replaced=0.0):
    """scikit-learn's 1797 handwritten digits of 8 by 8 pixels; 497 of them are for the test."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    order = np.random.default_rng(0).permutation(len(bundled.images))
    images = ((bundled.images / 16 - 0.3) * 3).astype("float32")[order]
    labels = bundled.target.astype("int32")[order]
    pool = Examples(images[497:], _partly_replaced(labels[497:], replaced, 10))
    return Data(pool, Examples(images[:497], labels[:497]), 10)


def python_topics(length=16, size=12000, num_characters=48):
    """Characters of Python's own help texts; the label of a character is the next one.

    Args:
        length: Characters in an example. Defaults to `16`.
        size: Examples in the pool. Defaults to `12000`.
        num_characters: Number of classes: the most frequent characters, and one for all others.
            Defaults to `48`.
    """
    from pydoc_data.topics import topics

    texts = [" ".join(topics[name].lower().split()) for name in sorted(topics)]
    held_out = set(range(0, len(texts), 6))
    pool_text = " ".join(text for i, text in enumerate(texts) if i not in held_out)
    test_text = " ".join(texts[i] for i in sorted(held_out))
    characters, counts = np.unique(list(pool_text), return_counts=True)
    frequent = characters[np.argsort(-counts, kind="stable")][: num_characters - 1]
    number = {character: 1 + i for i, character in enumerate(frequent)}
    pool = _windows([number.get(each, 0) for each in pool_text], length)
    test = _windows([number.get(each, 0) for each in test_text], length)
    chosen = np.random.default_rng(0).permutation(len(pool.inputs))[:size]
    of_test = np.random.default_rng(1).permutation(len(test.inputs))[:1000]
    return Data(
        Examples(pool.inputs[chosen], pool.labels[chosen]),
        Examples(test.inputs[of_test], test.labels[of_test]),
        num_characters,
    )


def _windows(text, length):
    text = np.array(text, "int32")
    whole = (len(text) - 1) // length * length
    return Examples(text[:whole].reshape(-1, length), text[1 : whole + 1].reshape(-1, length))


def _partly_replaced(labels, part, num_classes):
    generator = np.random.default_rng(2)
    is_replaced = generator.random(len(labels)) < part
    drawn = generator.integers(0, num_classes, len(labels), dtype="int32")
    return np.where(is_replaced, drawn, labels)
