"""Every code block of README.md and of the pages in docs/ runs, or can be run as it stands.

Python blocks of one page run in order in one namespace, in an empty folder. Commands are parsed by
the programs themselves; those of the quickstart also run, for one outer step.
"""

import argparse
import importlib
import linecache
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/index.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if path.name not in ("index.md", "design.md")
    ),
]
# The one kind of block that is shown and not run is what a program prints.
LANGUAGES = {"python", "py", "bash", "json", "text"}
FENCE = re.compile(r"^```(.*)\n(?s:(.*?))^```$", re.MULTILINE)


def blocks(page, language):
    """Yields `(number of lines in front of it, code)` of every block of a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)), match[2]


def pages_with(language):
    return [page for page in PAGES if any(blocks(page, language))]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {match[1] for match in FENCE.finditer(text)} <= LANGUAGES


# ---------------------------------------------------------------------------------------- Python
def readme_names():
    """The model and the data that README.md begins with."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, activation="softmax")])
    return {"model": model, "x": x, "y": (x.sum(axis=1) > 0).astype("int32")}


def run(page, language, names, only=None):
    """Runs blocks such that errors, and whoever looks for source code, find their lines."""
    for before, code in blocks(page, language):
        if only is None or code == only:
            source, file = "\n" * before + code, f"<{page}:{before + 1}>"
            linecache.cache[file] = len(source), None, source.splitlines(True), file
            exec(compile(source, file, "exec"), names)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def schedules_file(empty_folder):
    ((_, content),) = blocks("docs/schedules.md", "json")
    (empty_folder / "schedules.json").write_text(content)


@pytest.mark.sweep("README.md", "docs/how_to/own_model.md")
@pytest.mark.parametrize("page", pages_with("python"))
@pytest.mark.filterwarnings(
    "error::UserWarning",
    "error::RuntimeWarning",
    "ignore:The layer .* defines its own gradient",  # docs/how_to/verify.md does so on purpose.
)
def test_python_blocks_run(page, schedules_file, capsys):
    names = {"__name__": "page"} | (readme_names() if page == "README.md" else {})
    run(page, "python", names)


def blocks_with_needs():
    """`(packages, code)` of the blocks in docs/schedules.md for other frameworks."""
    text = (ROOT / "docs/schedules.md").read_text(encoding="utf-8")
    found = re.findall(r"^<!-- needs: (.*) -->\n\n```py\n(?s:(.*?))^```$", text, re.MULTILINE)
    assert len(found) == len(list(blocks("docs/schedules.md", "py"))) == 2
    return found


@pytest.mark.parametrize("packages, code", blocks_with_needs(), ids=lambda each: each[:8])
def test_blocks_for_other_frameworks_run(packages, code, schedules_file):
    compile(code, "docs/schedules.md", "exec")
    for package in packages.split(", "):
        pytest.importorskip(package, reason="The locks have no other frameworks.")
    names = {"__name__": "page"}
    run("docs/schedules.md", "python", names)
    run("docs/schedules.md", "py", names, only=code)


# -------------------------------------------------------------------------------------- commands
PARSE = """
import importlib, sys
from absl import flags
importlib.import_module(sys.argv[1])
flags.FLAGS(sys.argv[1:])
has_config = "config" in flags.FLAGS and flags.FLAGS["config"].present
if has_config and sys.argv[1] != "trainers.theorem_4_1":
    from trainers import experiment
    if "hyperparameters" in experiment.CONFIG.value:  # Others are no searches.
        experiment.check_config(experiment.CONFIG.value)
"""


def commands(page):
    """Every command of a page as a list of words, without comments."""
    return [
        words
        for _, code in blocks(page, "bash")
        for line in code.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def make_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def check_program(module, arguments):
    """That a program of this repository takes these arguments."""
    parsed = subprocess.run(
        [sys.executable, "-c", PARSE, module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert parsed.returncode == 0, parsed.stderr


def check_tensorboard(arguments):
    plugin = importlib.import_module("tensorboard.plugins.core.core_plugin")
    parser = argparse.ArgumentParser(exit_on_error=False)
    plugin.CorePluginLoader().define_flags(parser)
    parser.parse_args(arguments)


def all_commands():
    return {shlex.join(words): words for page in PAGES for words in commands(page)}


@pytest.mark.parametrize("words", all_commands().values(), ids=all_commands())
def test_command_is_known(words):
    match words:
        case ["make", *targets]:
            assert set(targets) <= make_targets()
        case ["python" | ".venv/bin/python", "-m", "pytest", *files]:
            assert all((ROOT / file).exists() for file in files)
        case ["python", "-m", module, *arguments]:
            check_program(module, arguments)
        case ["tensorboard", *arguments]:
            check_tensorboard(arguments)
        case _:
            pytest.fail("This test does not know the command yet.")


def test_quickstart_is_the_two_commands_of_the_page():
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = re.search(r"^quickstart:.*\n((?:\t.*\n)+)", text, re.MULTILINE)[1]
    typed = re.findall(r"-m (trainers\.\w+ [^;]*)", recipe.replace("$$run", "runs/digits"))
    search, train = commands("docs/how_to/command_line.md")[:2]
    assert [each.split() for each in typed] == [search[2:], train[2:]]
    assert ["make", "quickstart"] in commands("README.md")
