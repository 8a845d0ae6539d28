"""The package as pip installs it, and scripts of another checkout than the one that is installed."""

import shutil
import subprocess
import sys
import tomllib

import pytest

from internvl.errors import ends_on_user_error
from internvl.repository import REPOSITORY, foreign_checkout

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_pip_installs_the_package_with_its_data_and_commands(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(REPOSITORY / "internvl", source / "internvl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--prefix", tmp_path / "there", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [site] = (tmp_path / "there").rglob("site-packages")
    installed = {file.relative_to(site / "internvl") for file in (site / "internvl").rglob("*.*")}
    expected = {
        file.relative_to(REPOSITORY / "internvl")
        for file in (REPOSITORY / "internvl").rglob("*.*")
        if file.suffix in (".py", ".jinja", ".txt")
    }
    assert expected <= installed
    for name in PROJECT["scripts"]:
        assert (tmp_path / "there" / "bin" / name).is_file()
    code = "import internvl; print(internvl.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(site / "internvl" / "__init__.py")


@pytest.mark.parametrize(("name", "target"), PROJECT["scripts"].items())
def test_each_command_is_there(name, target):
    module, function = target.split(":")
    file = REPOSITORY / (module.replace(".", "/") + ".py")
    assert f"\ndef {function}(" in file.read_text(encoding="utf-8")


def test_a_script_of_another_checkout_is_refused(tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    (other / "internvl").mkdir(parents=True)
    (other / "tools").mkdir()
    shutil.copy(REPOSITORY / "internvl" / "repository.py", other / "internvl")
    script = shutil.copy(REPOSITORY / "tools" / "merge_lora.py", other / "tools")
    assert foreign_checkout(REPOSITORY / "tools" / "merge_lora.py") is None
    assert foreign_checkout(sys.executable) is None and foreign_checkout(tmp_path / "my_script.py") is None
    monkeypatch.setattr(sys, "argv", [script])
    with pytest.raises(SystemExit) as ended:
        ends_on_user_error(lambda: None)()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"{script}: belongs to {other}" in told and f"pip install -e {other} (or set PYTHONPATH={other})" in told
    # What the message says, followed.
    followed = subprocess.run(
        [sys.executable, "-c", "import internvl.repository as r; print(r.foreign_checkout(" + repr(script) + "))"],
        cwd=tmp_path, env={"PYTHONPATH": str(other)}, capture_output=True, text=True,
    )  # fmt: skip
    assert followed.stdout.strip() == "None", followed.stderr
