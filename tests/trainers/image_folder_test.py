"""Folders of images: what is read, what is refused, and when the cache is used."""

import contextlib
import errno
import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from trainers import image_folder

CACHE = ".keras_fds_images.npz"


def draw(path, size=(6, 4), mode="RGB", seed=0):
    """Writes one image of random pixels, and returns them."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = rng.integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def draw_all(folder, mode="RGB", splits=("train", "test"), classes=("cat", "dog"), count=3):
    """Writes a folder of small images, and returns `{"split/class/file": pixels}`."""
    paths = [f"{s}/{c}/{n}.png" for s in splits for c in classes for n in range(count)]
    return {
        path: draw(folder / path, mode=mode, seed=seed) for seed, path in enumerate(sorted(paths))
    }


@pytest.fixture
def decoded(monkeypatch):
    """The folders that were decoded, oldest first."""
    folders = []

    def decode(folder, listing, original=image_folder._decode):
        folders.append(folder)
        return original(folder, listing)

    monkeypatch.setattr(image_folder, "_decode", decode)
    return folders


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def refused(folder, message):
    """A ValueError of one line that leaves nothing behind."""
    before = contents(folder)
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert "\n" not in str(error.value)
    assert contents(folder) == before


# --------------------------------------------------------------------------------- what is read
def test_reads_what_tfds_reads_in_its_order(tmp_path):
    draw_all(tmp_path, count=5)
    splits, names = image_folder.read(tmp_path)
    builder = tfds.ImageFolder(str(tmp_path))
    assert names == builder.info.features["label"].names == ["cat", "dog"]
    assert set(splits) == set(builder.info.splits) == {"train", "test"}
    for split, (images, labels) in splits.items():
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        expected = tfds.as_numpy(builder.as_dataset(split=split, as_supervised=True))
        for image, label, (other, other_label) in zip(images, labels, expected, strict=True):
            np.testing.assert_array_equal(image, other)
            assert label == other_label


def test_every_pixel_and_label_is_there(tmp_path):
    drawn = draw_all(tmp_path)
    splits, names = image_folder.read(tmp_path)
    for split, (images, labels) in splits.items():
        found = {(image.tobytes(), names[label]) for image, label in zip(images, labels)}
        expected = {
            (pixels.tobytes(), path.split("/")[1])
            for path, pixels in drawn.items()
            if path.startswith(split)
        }
        assert found == expected and images.shape == (6, 4, 6, 3)


def test_gray_images_have_one_channel_unless_some_have_colour(tmp_path):
    drawn = draw_all(tmp_path, mode="L")
    images = image_folder.read(tmp_path)[0]["train"][0]
    assert images.shape == (6, 4, 6, 1)
    draw(tmp_path / "train/cat/colour.png", mode="RGBA")
    images, _ = image_folder.read(tmp_path)[0]["train"]
    assert images.shape == (7, 4, 6, 3)
    gray = np.stack([drawn["train/cat/0.png"]] * 3, axis=-1)
    assert any(np.array_equal(image, gray) for image in images)


def test_jpeg_in_capital_letters_and_other_files(tmp_path):
    draw_all(tmp_path)
    draw(tmp_path / "train/cat/photo.JPG")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "README").write_text("not a split")
    (tmp_path / "papers").mkdir()
    splits, _ = image_folder.read(tmp_path)
    assert set(splits) == {"train", "test"}
    assert len(splits["train"][0]) == 7


# ------------------------------------------------------------------------------ what is refused
def test_missing_folder(tmp_path):
    with refused(tmp_path, r"does not exist. Received: data_dir='.*/nowhere'"):
        image_folder.read(tmp_path / "nowhere")


def test_folder_without_splits(tmp_path):
    draw(tmp_path / "cat" / "0.png")
    draw(tmp_path / "dog" / "0.png")
    with refused(
        tmp_path, "has classes, but no splits.*move the folders of the classes into .*/tr"
    ):
        image_folder.read(tmp_path)
    draw_all(tmp_path / "pets")
    with refused(tmp_path, "has no splits. Pass the folder that holds it: .*/pets$"):
        image_folder.read(tmp_path / "pets" / "train")


def test_empty_folder_and_folder_without_train(tmp_path):
    with refused(tmp_path, "has no splits. Expected .*/train/CLASS/IMAGE"):
        image_folder.read(tmp_path)
    draw_all(tmp_path, splits=("test", "val"))
    with refused(tmp_path, "has no split 'train'.*found only test, val"):
        image_folder.read(tmp_path)


def test_classes_that_differ_between_splits(tmp_path):
    draw_all(tmp_path)
    draw(tmp_path / "test" / "bird" / "0.png")
    with refused(tmp_path, "same classes: these are in only one of train and test: bird. Rec"):
        image_folder.read(tmp_path)


def test_a_single_class(tmp_path):
    draw_all(tmp_path, classes=("cat",))
    with refused(tmp_path, "at least two classes, found only 'cat'"):
        image_folder.read(tmp_path)


def test_class_without_images(tmp_path):
    draw_all(tmp_path)
    shutil.rmtree(tmp_path / "test/dog")
    (tmp_path / "test/dog").mkdir()
    with refused(tmp_path, r"1 class has no .jpg, .jpeg, .png files: test/dog\."):
        image_folder.read(tmp_path)


def test_images_of_other_formats_are_not_left_out_silently(tmp_path):
    draw_all(tmp_path)
    draw(tmp_path / "train/dog/a.bmp")
    draw(tmp_path / "train/dog/b.gif", mode="L")
    with refused(tmp_path, "2 images are neither JPEG nor PNG in .*dog: a.bmp, b.gif. Convert"):
        image_folder.read(tmp_path)


def test_images_of_other_sizes(tmp_path):
    draw_all(tmp_path)
    draw(tmp_path / "train/cat/wide.png", size=(9, 4))
    draw(tmp_path / "test/dog/high.png", size=(6, 5))
    message = r"Most are 6x4, 2 are not in .*: test/dog/high.png \(6x5\), train/cat/wide.png \(9x4"
    with refused(tmp_path, message):
        image_folder.read(tmp_path)


def test_unreadable_images_are_counted_and_named(tmp_path):
    draw_all(tmp_path)
    whole = (tmp_path / "train/cat/0.png").read_bytes()
    for n in range(4):
        (tmp_path / f"train/dog/cut{n}.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "test/cat/text.jpg").write_text("not an image")
    (tmp_path / "test/cat/empty.jpg").touch()
    (tmp_path / "test/cat/gone.png").symlink_to(tmp_path / "nowhere")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "train/cat/deep.png")
    with refused(tmp_path, "8 images cannot be read in .*: test/cat/empty.jpg .*and 5 more") as _:
        image_folder.read(tmp_path)


def test_a_disk_without_room_is_told_before_anything_is_decoded(tmp_path, decoded, monkeypatch):
    draw_all(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with refused(tmp_path, "take 0 MB, and 0 MB are free in .* choose another disk with cache_dir"):
        image_folder.read(tmp_path)
    assert decoded == []


def test_a_disk_that_fills_up_leaves_no_half_a_cache(tmp_path, monkeypatch):
    draw_all(tmp_path)

    def fill(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, refused(tmp_path, "choose another disk with cache_dir"):
        patch.setattr(np, "savez", fill)
        image_folder.read(tmp_path)
    image_folder.read(tmp_path)


def test_more_than_the_memory_holds(tmp_path, decoded, monkeypatch):
    draw_all(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with refused(tmp_path, "12 images of this size take 0.0 GB in memory; this machine has 0.0"):
        image_folder.read(tmp_path)
    assert decoded == []


# --------------------------------------------------------------------------------------- cache
def assert_same(one, other):
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    for split in one[0]:
        for array, again in zip(one[0][split], other[0][split], strict=True):
            np.testing.assert_array_equal(array, again)
            assert array.dtype == again.dtype


def test_decodes_once(tmp_path, decoded):
    draw_all(tmp_path)
    first = image_folder.read(tmp_path)
    assert_same(first, image_folder.read(tmp_path))
    assert len(decoded) == 1
    assert (tmp_path / CACHE).exists()
    # TFDS still sees the images only.
    assert set(tfds.ImageFolder(str(tmp_path)).info.splits) == {"train", "test"}


def add(folder):
    draw(folder / "train/cat/new.png", seed=99)


def remove(folder):
    (folder / "train/cat/0.png").unlink()


def replace(folder):
    path = folder / "train/cat/0.png"
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def rename_a_class(folder):
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "zebra")


def damage(folder):
    path = folder / CACHE
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("change", [add, remove, replace, rename_a_class, damage])
def test_a_stale_or_damaged_cache_is_made_anew(change, tmp_path, decoded):
    draw_all(tmp_path)
    image_folder.read(tmp_path)
    change(tmp_path)
    again = image_folder.read(tmp_path)
    assert len(decoded) == 2
    assert_same(again, image_folder.read(tmp_path))
    assert len(decoded) == 2


def test_cache_dir_leaves_the_folder_alone(tmp_path, decoded):
    for name in ("one", "two"):
        draw_all(tmp_path / name / "images")
    before = contents(tmp_path / "one")
    for name in ("one", "two", "one", "two"):
        image_folder.read(tmp_path / name / "images", tmp_path / "cache")
    assert contents(tmp_path / "one") == before
    assert len(list((tmp_path / "cache").glob("images-*.npz"))) == len(decoded) == 2
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`cache_dir` must be a directory that can be made"):
        image_folder.read(tmp_path / "one" / "images", tmp_path / "file" / "cache")


def test_a_folder_that_cannot_be_written_to_is_read_without_a_cache(tmp_path, decoded, monkeypatch):
    draw_all(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_same(image_folder.read(tmp_path), image_folder.read(tmp_path))
    assert len(decoded) == 2 and not (tmp_path / CACHE).exists()


def test_two_programs_at_once_decode_once(tmp_path, decoded):
    draw_all(tmp_path)
    threads = [threading.Thread(target=image_folder.read, args=[tmp_path]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1
