"""Only modules of `ledger/` write to its tables."""

import ast
from pathlib import Path

import tuneloop.learner.ledger
from tuneloop.learner.ledger.schema import metadata

LEDGER = Path(next(iter(tuneloop.learner.ledger.__path__)))
LEARNER = LEDGER.parent
TABLES = set(metadata.tables)
WRITES = {"insert", "update", "delete"}


def schema_names(tree: ast.Module) -> set[str]:
    """Names by which a module knows tables of the schema, aliases included."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "tuneloop.learner.ledger.schema"
        for alias in node.names
        if alias.name in TABLES
    }


def sql_names(tree: ast.Module) -> set[str]:
    """Names by which a module knows SQLAlchemy's insert, update and delete."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
        if alias.name in WRITES
    }


def is_table(node: ast.expr, tables: set[str]) -> bool:
    """Whether an expression is a table: `samples`, or `schema.samples`."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "schema"
    return isinstance(node, ast.Name) and node.id in tables


def writes_of(source: str) -> list[int]:
    """Lines that write to a table or open a transaction that may."""
    tree = ast.parse(source)
    tables, functions = schema_names(tree), sql_names(tree)
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name):
            found = called.id in functions
        elif isinstance(called, ast.Attribute):
            of = called.value
            name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
            found = (called.attr in WRITES and is_table(of, tables)) or (
                called.attr == "write" and "database" in name
            )
        else:
            found = False
        if found:
            lines.append(node.lineno)
    return sorted(lines)


def test_only_the_ledger_writes_to_its_tables() -> None:
    found = {
        f"{path.relative_to(LEARNER)}:{line}"
        for path in LEARNER.rglob("*.py")
        if LEDGER not in path.parents
        for line in writes_of(path.read_text())
    }
    assert found == set()


def test_writes_are_recognised() -> None:
    head = (
        "from tuneloop.learner.ledger.schema import samples as s\nfrom sqlalchemy import update\n"
    )
    assert writes_of(head + "s.insert()\ns.delete().where()\nupdate(s)\n") == [3, 4, 5]
    assert writes_of("with self._database.write() as c: pass\ndatabase.write()") == [1, 2]
    assert writes_of(head + "s.select()\n{}.update()\nfile.write()") == []
