"""The wheel and the sdist are complete, and the quickstart runs from an installed wheel."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import keras_fds

ROOT = pathlib.Path(__file__).parents[1]
FILES = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml", "setup.py")
PACKAGES = ("keras_fds", "trainers", "configs")
NAME = f"keras_fds-{keras_fds.__version__}"


def run(*command, cwd):
    """Runs a command without this repository on Python's path; what it printed."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONPATH", None)
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(folder):
    """The Python files, templates and marker of a package."""
    found = [path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".typed")]
    return {path.relative_to(folder.parent).as_posix() for path in found}


EXPECTED = set().union(*(files_of(ROOT / package) for package in PACKAGES))


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with the sdist, and the wheel that was built from it."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*FILES, "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    return dist


@pytest.fixture(scope="module")
def wheel(dist):
    return dist / f"{NAME}-py3-none-any.whl"


def test_wheel_holds_the_packages_with_configs_and_templates(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == EXPECTED


def test_sdist_holds_what_the_wheel_is_built_from(dist):
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names.issuperset({*EXPECTED, *FILES})
    assert not any(name.startswith(("tests", "benchmarks", "runs")) for name in names)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Python of a new environment: the wheel is installed there, all else comes from this one."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = pathlib.Path(run(python, "-c", code, cwd=environment).strip())
    options = ["--quiet", "--no-deps", "--no-index", "--target", packages]
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=environment)
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return python


def test_version_is_told(python, tmp_path):
    told = run(python, "-m", "keras_fds", "--version", cwd=tmp_path)
    assert told.startswith(f"keras_fds {keras_fds.__version__} (Keras ")


@pytest.mark.sweep()
def test_quickstart_runs_outside_of_the_repository(python, tmp_path):
    options = ["--config=configs/digits.py", f"--config.data_dir={tmp_path / 'data'}"]
    search = ["-m", "trainers.search", *options, "--workdir=digits", "--config.budget=2"]
    run(python, *search, "--config.epochs=(1,)", cwd=tmp_path)
    train = ["-m", "trainers.train", *options, "--workdir=digits-train"]
    shorter = ["--config.train_seeds=1", "--config.train_epochs=1"]
    told = run(python, *train, *shorter, "--schedules=digits/schedules.json", cwd=tmp_path)
    assert "Test accuracy" in told
    for folder in ("digits", "digits-train"):
        report = (tmp_path / folder / "report.html").read_text(encoding="utf-8")
        assert keras_fds.__version__ in report
    page = (ROOT / "docs" / "how_to" / "command_line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)/?` \|(.*)\|(.*)\|$", page, re.MULTILINE)
    for folder, column in (("digits", 1), ("digits-train", 2)):
        left = {path.name for path in (tmp_path / folder).iterdir()}
        assert left == {row[0] for row in rows if row[column].strip()}
    assert json.loads((tmp_path / "digits-train" / "test.json").read_text())["seeds"]
