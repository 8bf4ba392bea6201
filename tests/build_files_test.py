"""BUILD files name every source file and test once, with the files that it imports."""

import pathlib

import pytest

from tests import build_files

EXPECTED = build_files.build_files()


@pytest.mark.parametrize("path", EXPECTED, ids=str)
def test_a_build_file_is_as_its_folder(path):
    written = (build_files.ROOT / path).read_text(encoding="utf-8")
    assert written == EXPECTED[path], "Run: python -m tests.build_files"


def test_there_is_no_other_build_file():
    found = {
        path.relative_to(build_files.ROOT)
        for folder in build_files.FOLDERS
        for path in (build_files.ROOT / folder).rglob("BUILD")
    }
    assert found == set(EXPECTED) - {pathlib.Path("BUILD")}
