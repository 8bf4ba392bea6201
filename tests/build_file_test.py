"""BUILD names every source file and test exactly once, and nothing else."""

import ast
import collections
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("keras_fds", "trainers", "configs", "benchmarks", "examples", "tests")
RULES = ("py_library", "py_binary", "pytest_test")


def python_targets():
    """Yields name, srcs and deps of every target in BUILD that has Python sources."""
    for statement in ast.parse((ROOT / "BUILD").read_text(encoding="utf-8")).body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and call.func.id in RULES:
            yield {
                keyword.arg: ast.literal_eval(keyword.value)
                for keyword in call.keywords
                if keyword.arg in ("name", "srcs", "deps")
            }


def python_files():
    return sorted(
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    )


def test_every_file_has_exactly_one_target():
    counts = collections.Counter(source for target in python_targets() for source in target["srcs"])
    assert {file: counts[file] for file in python_files()} == dict.fromkeys(python_files(), 1)


def test_every_named_source_exists():
    named = {source for target in python_targets() for source in target["srcs"]}
    assert sorted(named - set(python_files())) == []


@pytest.mark.parametrize("target", python_targets(), ids=lambda target: target["name"])
def test_target_is_named_like_its_one_file(target):
    assert target["srcs"] == [target["name"] + ".py"]


def test_every_dependency_is_a_target():
    targets = list(python_targets())
    labels = {":" + target["name"] for target in targets}
    missing = {label for target in targets for label in target.get("deps", [])} - labels
    assert sorted(missing) == []
