"""All that names a version names the same one: setup.py, README.md, both locks, CHANGELOG.md."""

import pathlib
import re
import runpy

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import keras_fds

ROOT = pathlib.Path(__file__).parents[1]


def read(file):
    return (ROOT / file).read_text(encoding="utf-8")


def pins(lock):
    return dict(re.findall(r"^([\w-]+)==(\S+)$", read(lock), re.MULTILINE))


OLDEST, NEWEST = pins("requirements-oldest.lock"), pins("requirements.lock")


@pytest.fixture
def requirements(monkeypatch):
    """All that setup.py asks for, extras included."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    lists = [given["install_requires"], *given["extras_require"].values()]
    return [Requirement(each) for requirements in lists for each in requirements]


@pytest.mark.parametrize("package", ["keras", "tensorboard", "tensorflow"])
def test_ranges_reach_from_the_oldest_lock_to_the_newest(package, requirements):
    oldest, newest = Version(OLDEST[package]), Version(NEWEST[package])
    lower = f">={oldest.major}.{oldest.minor}"
    upper = f"<{newest.major}.{newest.minor + 1}"
    ranges = {each.specifier for each in requirements if each.name == package}
    assert ranges == {SpecifierSet(f"{lower},{upper}")}


@pytest.mark.parametrize("lock", [OLDEST, NEWEST], ids=["oldest", "newest"])
def test_locks_pin_what_setup_asks_for(lock, requirements):
    wrong = [
        str(each)
        for each in requirements
        if not each.specifier.contains(lock[canonicalize_name(each.name)])
    ]
    assert wrong == []


def test_readme_names_the_versions_of_the_locks():
    rows = re.findall(r"^\| (TensorFlow|Keras) \| (\S+) \| (\S+) \|$", read("README.md"), re.M)
    packages = ("TensorFlow", "Keras")
    assert rows == [(each, OLDEST[each.lower()], NEWEST[each.lower()]) for each in packages]


def test_the_release_is_in_the_changelog_and_can_be_cited():
    newest = re.search(r"^## \[(.+)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    citation = yaml.safe_load(read("CITATION.cff"))
    assert newest.groups() == (keras_fds.__version__, str(citation["date-released"]))
    assert str(citation["version"]) == keras_fds.__version__
