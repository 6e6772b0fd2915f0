"""The source tree keeps its rules, and the check of the rules finds what breaks them."""

from pathlib import Path

import pytest
from support.structure import import_circles, imports_of, modules_in, problems_of

ROOT = Path(__file__).parents[2]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.slow
def test_the_tree_keeps_its_rules() -> None:
    assert problems_of(ROOT) == []


def test_there_is_no_import_circle() -> None:
    modules = modules_in(ROOT)
    assert len(modules) > 300
    assert import_circles(imports_of(modules)) == []


def test_an_import_circle_is_found_also_inside_functions(tmp_path: Path) -> None:
    files = {
        "services/tuneloop/a.py": "from tuneloop import b\n",
        "services/tuneloop/b.py": "from tuneloop.c import thing\n",
        "services/tuneloop/c.py": "def thing():\n    from tuneloop import a\n",
        "learner/tuneloop/learner/d.py": "import tuneloop.a\n",
    }
    graph = imports_of(modules_in(write_tree(tmp_path, files)))
    assert import_circles(graph) == [["tuneloop.a", "tuneloop.b", "tuneloop.c"]]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {f"services/tuneloop/bus/m{i}.py": "x = 1\n" * 40 for i in range(15)},
            "services/tuneloop/bus: 15 modules, at most 14",
        ),
        (
            {"learner/tuneloop/learner/long.py": "x = 1\n" * 351},
            "learner/tuneloop/learner/long.py: 351 lines, at most 350",
        ),
        (
            {"services/tuneloop/f.py": "def f():\n" + "    x = 1\n" * 60},
            "services/tuneloop/f.py:1: f has 61 lines, at most 60",
        ),
        (
            {"docs/page.md": "It is\nstarted anew.\n"},
            "docs/page.md:2: write 'anew' in plainer words",
        ),
    ],
)
def test_what_breaks_a_rule_is_named(files: dict[str, str], problem: str, tmp_path: Path) -> None:
    assert problem in problems_of(write_tree(tmp_path, files))


def test_small_modules_are_named_when_there_are_many(tmp_path: Path) -> None:
    files = {f"services/tuneloop/p{i}/m.py": "x = 1\n" for i in range(14)}
    assert problems_of(write_tree(tmp_path, files)) == []
    files["services/tuneloop/p14/m.py"] = "x = 1\n"
    [problem] = problems_of(write_tree(tmp_path, files))
    assert problem.startswith("15 modules have fewer than 40 lines, at most 14 may: ")
