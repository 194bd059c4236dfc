"""What `make` relies on before there is an environment: a Python that works, and pins that agree and name no host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINS = sorted((ROOT / "requirements").glob("*.txt"))


def find_python(*folders):
    """What the script prints when PATH has these folders."""
    path = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [ROOT / "tools/find_python.sh"], env={"PATH": path}, capture_output=True, text=True, check=False
    )


def put(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_python_that_is_only_a_name_is_passed_over(tmp_path):
    """A version manager's shim for a version that is switched off stands first on PATH, and fails."""
    put(tmp_path / "shims", "python3.13", "exit 127")
    put(tmp_path / "real", "python3", f'exec "{sys.executable}" "$@"')
    found = find_python(tmp_path / "shims", tmp_path / "real")
    assert found.stdout.strip() == str(tmp_path / "real" / "python3")


def test_no_python_is_one_clear_line(tmp_path):
    put(tmp_path / "old", "python3", "exit 1")
    found = find_python(tmp_path / "old")
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("penstock: no Python 3.11 or newer with venv and ensurepip on PATH")
    assert found.stderr.count("\n") == 1


def test_a_python_that_is_asked_for_is_the_one_or_none(tmp_path):
    """Another one, silently, would test what nobody asked for."""
    put(tmp_path / "old", "python3", "exit 1")
    asked = [ROOT / "tools/find_python.sh", tmp_path / "old" / "python3"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith(f"penstock: {tmp_path}/old/python3 is not a Python 3.11 or newer")


def test_a_python_may_be_in_a_folder_with_a_space(tmp_path):
    """`make PYTHON=` passes it on as one word."""
    put(tmp_path / "my tools", "python3", "exit 1")
    asked = ["make", "--no-print-directory", "-C", ROOT, "environment", f"PYTHON={tmp_path}/my tools/python3"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"penstock: {tmp_path}/my tools/python3 is not a Python 3.11 or newer" in done.stderr


def test_half_a_fetched_file_is_none(tmp_path, monkeypatch):
    """Ctrl-C while it is copied: the next `make` fetches it again, and does not trust what is there."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools/environment.py")
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)

    def install(command):
        (Path(command[command.index("--target") + 1]) / "ranks").write_text("all of it")

    def interrupted(_, target):
        Path(target).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(environment, "_run", install)
    copy = environment.shutil.copy
    monkeypatch.setattr(environment.shutil, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment._fetch(tmp_path, "wheel==1", ["ranks"], tmp_path / "there")
    monkeypatch.setattr(environment.shutil, "copy", copy)
    environment._fetch(tmp_path, "wheel==1", ["ranks"], tmp_path / "there")
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["ranks"]
    assert (tmp_path / "there/ranks").read_text() == "all of it"


@pytest.mark.parametrize("file", PINS, ids=lambda file: file.stem)
def test_requirements_are_plain_pins(file):
    """A name and a version, perhaps a marker: no address, no option, nothing that belongs to one network."""
    plain = re.compile(r"[a-z0-9-]+==[0-9a-z.]+( ; \(*[a-z_]+ (==|!=|<|>=) '[^']+'( and .*| or .*)?)?")
    assert [line for line in file.read_text().splitlines() if not plain.fullmatch(line)] == []


def test_what_shares_an_environment_agrees():
    """`make demo`, `make test` and `make bench` fill one environment, in any order."""
    dev, demo, bench = (
        {line.partition(" ;")[0] for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()}
        for name in ("dev", "demo", "bench")
    )
    assert demo <= dev

    def names(pins):
        return {pin.partition("==")[0] for pin in pins}

    assert names(bench - dev) & names(dev) == set()
