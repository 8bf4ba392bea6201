"""Files are whole or not there."""

import pytest

from keras_fds.files import replacement, writable_directory


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with replacement(path) as partial:
        partial.write_text("new")
        assert partial.name == "result.partial.txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_older_file_alone(tmp_path, error):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacement(path) as partial:
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_directories_are_made_or_refused(tmp_path):
    assert writable_directory(str(tmp_path / "a" / "b"), "directory").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`log_dir` must be a directory.*log_dir='.*file"):
        writable_directory(tmp_path / "file", "log_dir")
