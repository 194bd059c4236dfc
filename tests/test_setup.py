"""What `make` relies on: a Python that works, environments that are whole, and pins that have hashes and name no
host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
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


class Setup:
    """tools/environment.py in a folder of its own. `commands` are what it would have run; they make the folder they
    name."""

    def __init__(self, root):
        spec = importlib.util.spec_from_file_location("environment", ROOT / "tools/environment.py")
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.commands, self.interrupt = [], False
        (root / "requirements").mkdir()
        for name in ("requirements/uv.txt", "requirements/dev.txt", "pyproject.toml"):
            (root / name).touch()
        self.module.run = self._run
        self.move(root)

    def move(self, root):
        self.root = self.module.ROOT = root
        self.module.CACHE, self.module.UV, self.module.UV_PINS = (
            root / name for name in (".cache", ".cache/uv", "requirements/uv.txt")
        )

    def _run(self, *command):
        time.sleep(0.001)  # so that another thread may come in between
        self.commands.append(" ".join(map(str, command)))
        if "venv" in command:
            (command[-1] / "bin").mkdir(parents=True)
            (command[-1] / "bin/python").touch()
        elif "sync" in command and self.interrupt:
            raise KeyboardInterrupt

    def make(self):
        """Run it as `make environment` does; what it ran."""
        before = len(self.commands)
        assert self.module.main([".venv=requirements/dev.txt"]) == 0
        return self.commands[before:]


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def test_an_environment_that_is_up_to_date_costs_no_command(setup):
    assert len(setup.make()) == 5  # an environment for uv, uv, the environment, the pins, the project
    assert setup.make() == []


@pytest.mark.parametrize("name", ["requirements/dev.txt", "pyproject.toml"])
def test_what_an_environment_was_made_of_is_remembered_by_its_contents(setup, name):
    """Not by its date, which git changes at every checkout; and what is there is not thrown away."""
    setup.make()
    (setup.root / name).touch()
    assert setup.make() == []
    (setup.root / name).write_text("another")
    again = setup.make()
    assert any(" sync " in command for command in again)
    assert not any(command.endswith("/.venv") for command in again)


def test_an_environment_whose_installation_was_interrupted_is_made_from_nothing(setup):
    """Ctrl-C at any moment: what is half there is not trusted."""
    setup.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        setup.make()
    (setup.root / ".venv/half").touch()
    setup.interrupt = False
    assert any(command.endswith("/.venv") for command in setup.make())
    assert not (setup.root / ".venv/half").exists()


def test_an_environment_whose_python_is_gone_is_made_from_nothing(setup):
    setup.make()
    (setup.root / ".venv/bin/python").unlink()
    (setup.root / ".venv/bin/python").symlink_to("gone")
    assert any(command.endswith("/.venv") for command in setup.make())


def test_a_tree_that_was_moved_is_set_up_anew(setup):
    """Scripts and the project's place are in the environment as absolute paths."""
    setup.make()
    moved = setup.root.rename(setup.root.with_name("moved"))
    setup.move(moved)
    assert any(command.endswith("/.venv") for command in setup.make())


def test_two_runs_at_once_install_once(setup):
    threads = [threading.Thread(target=setup.make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(setup.commands) == 5


def test_everything_is_installed_by_hash(setup):
    """But the project itself, which is the tree."""
    setup.make()
    installs = [command for command in setup.commands if " install " in command or " sync " in command]
    assert [command for command in installs if "--require-hashes" not in command] == installs[-1:]
    assert installs[-1].endswith(f"--editable {setup.root}")


@pytest.mark.parametrize("file", PINS, ids=lambda file: file.stem)
def test_requirements_are_pins_with_hashes(file):
    """A name and a version, perhaps a marker, and what its files hash to: no address, nothing that belongs to one
    network."""
    plain = re.compile(
        r"[a-z0-9-]+==[0-9a-z.]+( ; \(*[a-z_]+ (==|!=|<|>=) '[^']+'( and .*| or .*)?)?( --hash=sha256:[0-9a-f]{64})+"
    )
    pins = re.sub(r" \\\n +", " ", file.read_text()).splitlines()
    assert pins
    assert [line for line in pins if not plain.fullmatch(line)] == []


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_what_is_shown_and_measured_is_what_is_tested(name):
    """No package has another version there than in the tests."""

    def versions(name):
        pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE)
        return dict(pins)

    tested = versions("dev")
    assert {name: version for name, version in versions(name).items() if tested.get(name, version) != version} == {}
