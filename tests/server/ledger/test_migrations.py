"""Within a minor version migrations only add: actors of the version before go on working while the schema goes forward."""

from __future__ import annotations

import ast

import pytest

from effillm_server.ledger.engine import HERE

VERSIONS = sorted((HERE / "migrations/versions").glob("[0-9]*.py"))
# Written before anybody had a database to upgrade; what they change stays as it is.
EXISTING = ("0001", "0002", "0003", "0004", "0005")
# What `op` may do; anything else takes something away, changes it, or hides in SQL what it does.
ADDS = {"add_column", "create_table", "create_index", "f", "bulk_insert"}
CHANGING = ("drop", "alter", "truncate", "rename", "delete")


def takes_away(source: str) -> list[str]:
    """What the migration's `upgrade` does beyond adding, by line."""
    (upgrade,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
    )
    found = []
    for node in ast.walk(upgrade):
        if isinstance(node, ast.Call) and "Column" in ast.unparse(node.func):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("nullable") == "False" and "server_default" not in given and _is_of_add_column(upgrade, node):
                found.append(f"{node.lineno}: a column that rows of the version before leave empty")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "op":
            if node.attr not in ADDS | {"execute"}:
                found.append(f"{node.lineno}: op.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.lower().split()
            found += [f"{node.lineno}: {word}" for word in CHANGING if word in words]
    return found


def _is_of_add_column(upgrade: ast.FunctionDef, column: ast.Call) -> bool:
    calls = (node for node in ast.walk(upgrade) if isinstance(node, ast.Call))
    return any(ast.unparse(call.func) == "op.add_column" and column in call.args for call in calls)


def test_the_existing_revisions_are_the_ones_that_are_let_off() -> None:
    names = [file.stem.partition("_")[0] for file in VERSIONS]
    assert tuple(names[: len(EXISTING)]) == EXISTING
    assert names == sorted(set(names))


def test_every_later_revision_only_adds() -> None:
    found = {file.stem: gone for file in VERSIONS[len(EXISTING) :] if (gone := takes_away(file.read_text()))}
    assert found == {}, "an actor of the version before may still use it: see Upgrade in docs/operations.md"


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("op.drop_column('job', 'reason')", ["2: op.drop_column"]),
        ("op.alter_column('job', 'size', nullable=False)", ["2: op.alter_column"]),
        ("op.execute('ALTER TABLE job DROP COLUMN reason')", ["2: drop", "2: alter"]),
        ("op.add_column('job', sa.Column('note', sa.Text()))", []),
        (
            "op.add_column('job', sa.Column('note', sa.Text(), nullable=False))",
            ["2: a column that rows of the version before leave empty"],
        ),
        ("op.add_column('job', sa.Column('n', sa.Text(), nullable=False, server_default=sa.text('0')))", []),
        ("op.create_table('note', sa.Column('n', sa.Text(), nullable=False))", []),
        ("op.create_index('ix_job_note', 'job', ['note'])", []),
    ],
)
def test_the_check_finds_what_takes_away_and_lets_through_what_adds(does: str, found: list[str]) -> None:
    assert (
        takes_away(f"def upgrade() -> None:\n    {does}\n\ndef downgrade() -> None:\n    op.drop_table('x')\n") == found
    )
