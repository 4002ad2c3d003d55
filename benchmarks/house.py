"""Draw the package from its imports, and print the figures that keep it readable.

    python benchmarks/house.py                     # figures as a table
    python benchmarks/house.py --picture FILE.svg  # and a picture: layers from top to bottom

An arrow is an import, those inside functions included. Every arrow should point down.
Needs import-linter, which tests/requirements.txt installs.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGE = "vits_prune"
LAYERS = (
    ("ui", "cli"),
    ("studio",),
    ("ship",),
    ("study",),
    ("measure",),
    ("healing",),
    ("pruning",),
    ("synthesis",),
    ("voices",),
    ("files", "caches", "threads", "progress", "fields", "errors"),
)


def python_files(room: str = "") -> list[Path]:
    """Return the Python files of the package, or of one of its folders or modules."""
    home = ROOT / PACKAGE / room
    return sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]


def count_lines(files: list[Path]) -> int:
    """Return the number of lines of these files."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in files)


def arrows() -> Counter[tuple[str, str]]:
    """Return how many imports lead from one room to another."""
    graph = grimp.build_graph(PACKAGE)
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            here, there = (name.split(".")[1:2] for name in (module, other))
            if here and there and here != there:
                found[here[0], there[0]] += 1
    return found


def cycles() -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not (Tarjan 1972)."""
    graph = grimp.build_graph(PACKAGE)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        path.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in order:
                visit(other)
            if other in path:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                found.append(group)

    for module in sorted(graph.modules):
        if module not in order:
            visit(module)
    return found


def private_uses() -> list[str]:
    """Return where one module imports a private name of another."""
    found = []
    for path in (*python_files(), *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                private = [name for name in names if name.startswith("_") and name[1:2] != "_"]
                found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in private]
    return found


def repeated_stems() -> list[str]:
    """Return the file names that stand in the package more than once."""
    stems = Counter(path.stem for path in python_files() if not path.stem.startswith("__"))
    return sorted(stem for stem, times in stems.items() if times > 1)


def figures() -> dict[str, object]:
    """Return the figures of the house by name."""
    from vits_prune import heal

    files = python_files()
    return {
        "lines in vits_prune/": f"{count_lines(files):,}",
        "files in vits_prune/": len(files),
        "longest file, lines": max(count_lines([path]) for path in files),
        "import cycles": cycles() or 0,
        "private names imported elsewhere": private_uses() or 0,
        "arrows that point up": [edge for edge in arrows() if _floor(edge[0]) > _floor(edge[1])]
        or 0,
        "stems that repeat": repeated_stems() or 0,
        "parameters of heal": len(inspect.signature(heal).parameters),
        "lines in README.md": count_lines([ROOT / "README.md"]),
    }


def _floor(room: str) -> int:
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), -1)


def draw(path: Path) -> None:
    """Draw the rooms floor by floor, and the imports among them; all stand on the ground floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    axis = figure.add_subplot()
    floors = [[room for room in rooms if python_files(room)[0].exists()] for rooms in LAYERS[:-1]]
    floors = [rooms for rooms in floors if rooms]
    places = {
        room: (2 * column - len(rooms) + 1 + (0.6 if floor % 2 else -0.6), -floor)
        for floor, rooms in enumerate(floors)
        for column, room in enumerate(rooms)
    }
    for (here, there), count in sorted(arrows().items()):
        if here not in places or there not in places:
            continue
        drop = places[here][1] - places[there][1]
        style = {
            "arrowstyle": "-|>",
            "color": "#7f8c8d" if drop > 0 else "#c0392b",
            "alpha": 0.6 if drop > 0 else 1.0,
            "linewidth": 0.5 + min(count, 30) / 15,
            "shrinkA": 20,
            "shrinkB": 20,
            "connectionstyle": f"arc3,rad={0.05 * (drop - 1) * (-1 if places[here][0] > 0 else 1)}",
        }
        axis.annotate("", places[there], places[here], arrowprops=style)
    places["\n".join(LAYERS[-1])] = (0, -len(floors))
    for room, place in places.items():
        files = [file for one in room.split() for file in python_files(one) if file.exists()]
        label = f"{', '.join(room.split())}\n{len(files)} files, {count_lines(files):,} lines"
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#fdf6e3", "edgecolor": "#2c3e50"}
        axis.annotate(label, place, ha="center", va="center", fontsize=9, bbox=box)
    axis.set(xlim=(-3.2, 3.2), ylim=(-len(floors) - 0.4, 0.4))
    axis.axis("off")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Print the figures; draw the picture if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw to this .svg or .png")
    options = parser.parse_args()
    for name, value in figures().items():
        print(f"{name:34} {value}")
    for room in (room for rooms in LAYERS for room in rooms):
        files = [path for path in python_files(room) if path.exists()]
        print(f"  {room:32} {len(files):3} files {count_lines(files):7,} lines")
    if options.picture:
        draw(options.picture)


if __name__ == "__main__":
    main()
