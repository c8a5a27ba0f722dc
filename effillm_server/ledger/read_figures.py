"""Figures for whoever watches the service."""

from __future__ import annotations

from sqlalchemy import Connection, text

_QUEUE_AGE = text("""
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(s.created_at)), 0)::double precision
FROM sweep s WHERE s.finished_at IS NULL
    AND EXISTS (SELECT FROM sweep_counter k WHERE k.sweep_id = s.id HAVING sum(k.pending) > 0)
""")


def queue_age_s(c: Connection) -> float:
    """Seconds since the oldest sweep with a pending job was submitted; 0 when nothing is pending."""
    return float(c.execute(_QUEUE_AGE).scalar_one())


_DEVICE_SECONDS = text("""
SELECT hardware, (sum(served_ms) / 1000.0)::double precision AS seconds FROM sweep_counter GROUP BY hardware ORDER BY hardware
""")


def device_seconds(c: Connection) -> dict[str, float]:
    """Device time that leases which have ended took, by hardware class."""
    return {row.hardware: float(row.seconds) for row in c.execute(_DEVICE_SECONDS)}
