"""Bazel would run a file of pytest functions and find nothing to do; pytest_test hands it to pytest."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, data = [], deps = [], **kwargs):
    """A py_test whose sources pytest collects.

    Args:
      name: name of the target.
      srcs: the test files.
      data: other files that the tests read.
      deps: what they import.
      **kwargs: whatever else py_test takes.
    """
    py_test(
        name = name,
        srcs = srcs + ["//tests:pytest_main.py"],
        main = "//tests:pytest_main.py",
        args = [native.package_name() + "/" + src for src in srcs],
        data = data + ["//:pyproject.toml"],
        deps = deps + ["//tests:conftest"],
        **kwargs
    )
