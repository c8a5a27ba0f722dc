"""Columns of a job row as a cell: the one place that knows how the two correspond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping

from effillm_server.contract.job import Cell

CELL_COLUMNS = tuple(Cell.model_fields)


def cell_columns(alias: str) -> str:
    """The cell's columns of the job table known as `alias`, for a SELECT list."""
    return ", ".join(f"{alias}.{name}" for name in CELL_COLUMNS)


def cell_of(row: Mapping[str, Any] | RowMapping) -> Cell:
    """The cell stored in a job row."""
    return Cell.model_validate({name: row[name] for name in CELL_COLUMNS})
