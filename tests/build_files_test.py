"""BUILD files name every source file and test once, with the files that it imports."""

import pathlib
import re

import pytest

from tests import build_files

ROOT = pathlib.Path(__file__).parents[1]
EXPECTED = build_files.build_files()


@pytest.mark.parametrize("path", EXPECTED, ids=str)
def test_a_build_file_is_as_its_folder(path):
    written = (ROOT / path).read_text(encoding="utf-8")
    assert written == EXPECTED[path], "Run: python -m tests.build_files"


@pytest.mark.parametrize("path", EXPECTED, ids=str)
def test_no_two_targets_have_one_name(path):
    names = re.findall(r'^    name = "(.*)",$', EXPECTED[path], re.MULTILINE)
    assert sorted(names) == sorted(set(names))


def test_there_is_no_other_build_file():
    found = {
        path.relative_to(ROOT)
        for folder in build_files.FOLDERS
        for path in (ROOT / folder).rglob("BUILD")
    }
    assert found == set(EXPECTED) - {pathlib.Path("BUILD")}
