"""NumPy files: their names, what is read, and what is refused."""

import numpy as np
import pytest

from trainers import numpy_files


def arrays(**changes):
    """A small dataset by the names of its arrays; `None` leaves one out."""
    rng = np.random.default_rng(0)
    content = {
        "train_x": rng.integers(0, 256, (6, 4, 5, 3), np.uint8),
        "train_y": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_x": rng.integers(0, 256, (2, 4, 5, 3), np.uint8),
        "test_y": np.array([2, 0]),
        **changes,
    }
    return {name: array for name, array in content.items() if array is not None}


def write(folder, content):
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_folder_and_npz_hold_the_same(tmp_path):
    content = arrays()
    write(tmp_path, content)
    np.savez(tmp_path / "all.npz", **content)
    for path in (tmp_path, str(tmp_path / "all.npz")):
        splits, num_classes = numpy_files.read(path)
        assert num_classes == 3 and set(splits) == {"train", "test"}
        for split, (x, y) in splits.items():
            np.testing.assert_array_equal(x, content[f"{split}_x"])
            np.testing.assert_array_equal(y, content[f"{split}_y"])
            assert y.dtype == np.int64


def test_the_names_of_keras_gray_images_and_labels_in_a_column(tmp_path):
    content = arrays()
    path = tmp_path / "mnist.npz"
    np.savez(
        path,
        x_train=content["train_x"][..., 0],
        y_train=content["train_y"][:, np.newaxis],
        notes=np.zeros(3),
    )
    splits, _ = numpy_files.read(path)
    assert splits["train"][0].shape == (6, 4, 5, 1)
    assert splits["train"][1].tolist() == [0, 1, 2, 0, 1, 2]


def floats(value=0.5):
    x = np.full((6, 4, 5, 3), 0.5, np.float32)
    x[4, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_y": None}, "The array train_y is missing. Expected train_x, train_y, and test_x"),
        ({"train_x": None}, "The array train_x is missing"),
        ({"test_y": None}, "The array test_y is missing"),
        ({"train_x": np.zeros((6, 4), np.uint8)}, r"train_x must be uint8 .*shape \(6, 4\), uint8"),
        ({"train_x": np.zeros((6, 4, 5, 3), int)}, "train_x must be uint8 or float .*int64"),
        ({"train_x": floats(np.nan)}, "NaN or infinite, in 1 images, the first of them number 4"),
        ({"train_y": np.arange(5) % 3}, r"one per image of train_x \(6\). Received: shape \(5,\)"),
        ({"train_y": np.eye(3)[[0, 1, 2] * 2]}, "train_y must be whole numbers"),
        ({"train_y": np.array([0, 1, 2, 0, 1, -1])}, "train_y has labels below 0. Received: -1"),
        ({"train_y": np.array([1, 2, 3] * 2)}, "Missing: 0; the greatest is 3"),
        ({"train_y": np.zeros(6, int)}, "two classes or more. Missing: 1"),
        ({"train_y": np.array([0, 1, 10**12] * 2)}, "Missing: 2; the greatest is 1000000000000"),
        ({"test_y": np.array([0, 3])}, "test_y has labels that train_y lacks. Received: 3"),
        ({"test_x": np.zeros((2, 4, 6, 3), np.uint8)}, r"alike. Received: images of \(4, 6, 3\)"),
        ({"test_x": floats()[:2]}, "test_x and train_x must be alike. .*float32"),
        ({"train_x": np.array([None])}, "train_x.npy cannot be read as a NumPy file of numbers"),
    ],
)
def test_arrays_that_do_not_fit(changes, message, tmp_path):
    write(tmp_path, arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        numpy_files.read(tmp_path)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match="There are no such files. Received: data_dir='.*nowhere'"):
        numpy_files.read(tmp_path / "nowhere")
    path = tmp_path / "all.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="all.npz cannot be read as a NumPy file"):
        numpy_files.read(path)
    path.write_text("text")
    with pytest.raises(ValueError, match="all.npz cannot be read as a NumPy file"):
        numpy_files.read(path)
