"""Which room may import which: from the foundation to the workflows, never back. And the one door to the commands."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import COMMANDS, main

SCRIPTS = Path(__file__).parents[1] / "bundle" / "scripts"
MAY_IMPORT = {
    "networks": set(),
    "data": set(),
    "checks": {"data"},
    "sources": {"data"},
    "weights": {"networks", "data"},
    "inference": {"weights", "networks", "data", "checks", "sources", "pictures"},
    "evaluation": {"data", "weights"},
    "training": {"networks", "data", "checks", "sources", "weights", "inference", "evaluation"},
    "pictures": {"data", "checks", "weights", "evaluation"},
}


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports relatively, at whatever depth; its own included."""
    package = file.relative_to(SCRIPTS).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            rooms |= {name for name in [*base, *(node.module or "").split(".")][:1] if name in MAY_IMPORT}
    return rooms


def test_every_room_is_named():
    assert {path.parent.name for path in SCRIPTS.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", [*MAY_IMPORT, None], ids=str)
def test_rooms_import_downwards_only(room):
    if room is None:  # the foundation; the door opens rooms by name, when they are asked for
        files, allowed = list(SCRIPTS.glob("*.py")), set()
    else:
        files, allowed = list((SCRIPTS / room).rglob("*.py")), MAY_IMPORT[room] | {room}
    assert files
    assert {file.name: rooms for file in files if (rooms := imported_rooms(file) - allowed)} == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"python -m scripts {command}" in capsys.readouterr().out


def test_the_door_lists_all_commands_and_refuses_others():
    done = subprocess.run([sys.executable, "-m", "scripts"], cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(f"  {command} " in done.stdout for command in COMMANDS)
    assert str(main(["segmnt"])).startswith("Error: there is no command segmnt.")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("[1,2]", "should be a list of 3 int"), ("['a','b','c']", "should be a list of 3 int"), ("[", "list of 3 int")],
)
def test_a_list_that_is_none_is_refused(argument, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(["phantom", "--output_dir", "nowhere", "--shape", argument])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
