import subprocess
import sys

import pytest


@pytest.mark.parametrize("program", ["long_horizon", "quality", "worker"])
def test_flags_do_not_clash_with_those_of_the_trainers(program):
    subprocess.run(
        [sys.executable, "-c", f"import benchmarks.{program}, trainers.search, trainers.train"],
        check=True,
        capture_output=True,
        timeout=120,
    )
