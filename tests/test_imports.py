"""The house: eight rooms, imports that go downwards only, and no circle between files."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import lth_scale

PACKAGE = Path(lth_scale.__file__).parent
ROOMS = (  # top down
    *("shipping", "training", "science", "tracking"),
    *("tasks", "pruning", "distributed", "config"),
)


def name_of(path: Path) -> str:
    """The dotted name of a module of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """The modules of the package that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {each for each in found if each in MODULES} - {name, "lth_scale"}


def references(name: str) -> set[str]:
    """The modules that a file names in a string, such as "lth_scale.tasks.glue:load_glue"."""
    texts = (node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant))
    named = (text.partition(":") for text in texts if isinstance(text, str))
    return {module for module, colon, _ in named if colon} & {*MODULES} - {name, "lth_scale"}


def floor(name: str) -> int:
    """0 for a door, else the place of a module's room, from the top."""
    room = name.split(".")[1] if "." in name else ""
    return ROOMS.index(room) + 1 if room in ROOMS else 0


def test_no_import_goes_up():
    upwards = [
        f"{name} -> {other}"
        for name in MODULES
        for other in imports(name) | references(name)
        if floor(other) < floor(name)
    ]
    assert not upwards, "\n".join(sorted(upwards))


def test_no_circle_between_files():
    try:
        TopologicalSorter({name: imports(name) for name in MODULES}).prepare()
    except CycleError as problem:
        raise AssertionError(f"a circle: {' -> '.join(problem.args[1])}") from None


def test_the_doors_are_few():
    assert len([*PACKAGE.glob("*.py")]) <= 14
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ROOMS}
