"""Fixtures every test may ask for."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.postgres import database_url, empty_database_url, postgres_url, template_database

# A busy machine is no counterexample, and what failed once must fail again: the same examples in every run.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

__all__ = ["database_url", "empty_database_url", "postgres_url", "template_database"]
