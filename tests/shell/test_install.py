"""shell/lib/install.sh in a throwaway repository whose requirements need no network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import metadata

import pytest

ENSURE = "set -euo pipefail; source shell/lib/common.sh; source shell/lib/install.sh; ensure_python; echo $PYTHON"


@pytest.fixture
def bare_repo(repo, tmp_path):
    root = tmp_path / "bare repo"
    shutil.copytree(repo / "shell/lib", root / "shell/lib")
    (root / "requirements.txt").write_text("# nothing\n")
    return root


def ensure(root, environment, script=ENSURE, **settings):
    settings = {"INTERNVL_SKIP_INSTALL": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": "", **settings}
    path = settings.pop("PATH", f"{sys.base_prefix}/bin:{os.environ['PATH']}")
    return subprocess.run(
        [shutil.which("bash"), "-c", script],
        cwd=root,
        env=environment(**settings, PATH=path),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not importlib.util.find_spec("ensurepip"), reason="this Python cannot make environments")
def test_installs_once(bare_repo, environment):
    venv = bare_repo / ".venv"
    first = ensure(bare_repo, environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{venv}/bin/python\n"
    assert "Installing requirements.txt" in first.stderr
    assert (venv / ".internvl-installed").read_text().startswith("requirements ")
    log = (venv / "install.log").read_text()

    start = time.monotonic()
    second = ensure(bare_repo, environment)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert (venv / "install.log").read_text() == log, "pip is not called again"
    assert time.monotonic() - start < 2

    # Changed requirements are installed; a failure shows the log's end and leaves no stamp for them.
    (bare_repo / "requirements.txt").write_text("./not-there\n")
    failed = ensure(bare_repo, environment)
    assert failed.returncode == 2
    assert "not-there" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("pip install -r requirements.txt: failed")
    assert ensure(bare_repo, environment).returncode == 2

    # Two launchers at once: one installs, the other waits and finds it done.
    (bare_repo / "requirements.txt").write_text("# other\n")
    both = ensure(bare_repo, environment, script=f"({ENSURE}) & ({ENSURE}) & wait -n && wait -n")
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("Installing requirements.txt") == (1 if shutil.which("flock") else 2)


def test_skip_uses_the_active_python(bare_repo, environment):
    done = ensure(bare_repo, environment, INTERNVL_SKIP_INSTALL="1", VIRTUAL_ENV=sys.prefix)
    assert done.stdout == f"{sys.prefix}/bin/python\n"
    assert not (bare_repo / ".venv").exists()


def test_broken_environment(bare_repo, environment):
    done = ensure(bare_repo, environment, VIRTUAL_ENV="/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("VIRTUAL_ENV: /nowhere has no bin/python.")


def test_the_oldest_python_is_what_the_pins_need(repo):
    """One number, in the installer, the README and the linter's settings."""
    install = (repo / "shell/lib/install.sh").read_text()
    oldest = re.search(r"^OLDEST_PYTHON=(\S+)$", install, re.MULTILINE)[1]
    needed = (0, 0)
    for line in (repo / "requirements.txt").read_text().splitlines():
        if line.startswith("-e"):
            continue  # this project itself, which says so in pyproject.toml
        name = re.match(r"[A-Za-z0-9_-]+", line)
        requires = metadata(name[0])["Requires-Python"] if name else None
        for bound in re.findall(r">=\s*(\d+)\.(\d+)", requires or ""):
            needed = max(needed, tuple(map(int, bound)))
    assert tuple(map(int, oldest.split("."))) == needed
    versions = re.search(r"^PYTHON_VERSIONS=\((.*)\)$", install, re.MULTILINE)[1].split()
    assert versions[-1] == oldest and f"sys.version_info < ({oldest.replace('.', ', ')})" in install
    assert f"Python {oldest} or newer, nothing else" in (repo / "README.md").read_text()
    assert f'target-version = "py{oldest.replace(".", "")}"' in (repo / "pyproject.toml").read_text()


@pytest.mark.skipif(not importlib.util.find_spec("ensurepip"), reason="this Python cannot make environments")
def test_an_environment_of_a_python_that_is_too_old_is_made_anew(bare_repo, environment):
    """It stands in for .venv made by 3.10: it fails the check of the version, and says 3.10 of itself."""
    python = bare_repo / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *print*) echo 3.10;; esac\nexit 1\n')
    python.chmod(0o755)
    done = ensure(bare_repo, environment)
    assert done.returncode == 0, done.stderr
    assert "Making a virtual environment" in done.stderr and python.resolve() != python
    told = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True
    )
    assert told.stdout == "True\n"


def test_an_active_environment_of_an_older_python_is_refused_before_pip_runs(bare_repo, environment, tmp_path):
    python = tmp_path / "old/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3.10\n")
    python.chmod(0o755)
    done = ensure(bare_repo, environment, VIRTUAL_ENV=str(tmp_path / "old"))
    assert done.returncode == 2
    assert (
        done.stderr.count("\n") == 1
        and "this is Python 3.10, and the packages of requirements.txt need 3.11" in done.stderr
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('[ "$1" = -V ] && echo "Python 3.8.2"; exit 1', ["this is Python 3.8.2", "Install Python 3.11"]),
        (
            'case "$*" in *ensurepip*) exit 1;; *print*) echo python3.12;; esac',
            ["cannot make virtual environments", "apt install python3.12-venv"],
        ),
        (None, ["python3: not found", "Install Python 3.11"]),
    ],
)
def test_no_usable_python(bare_repo, environment, tmp_path, body, words):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "mkdir", "flock", "rm", "cat"):
        if shutil.which(name):
            (tools / name).symlink_to(shutil.which(name))
    if body is not None:
        (tools / "python3").write_text(f"#!/bin/sh\n{body}\n")
        (tools / "python3").chmod(0o755)
    done = ensure(bare_repo, environment, PATH=str(tools))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
