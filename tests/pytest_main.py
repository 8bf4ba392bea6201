"""What Bazel runs as a test: pytest, on the files named as arguments."""

import sys

import pytest

if __name__ == "__main__":
    code = pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]])
    # All tests of a file may be long sweeps, which are left out.
    sys.exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
