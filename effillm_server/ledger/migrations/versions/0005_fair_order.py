"""Device time that fades, by which the ledger decides whose turn it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sweep_counter", sa.Column("recent_ms", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "sweep_counter", sa.Column("recent_at_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    # What was served before counts as if it had been served now: half of it is forgotten within the hour.
    op.execute(
        "UPDATE sweep_counter SET recent_ms = served_ms,"
        " recent_at_ms = (extract(epoch FROM clock_timestamp()) * 1000)::bigint WHERE served_ms > 0"
    )


def downgrade() -> None:
    op.drop_column("sweep_counter", "recent_at_ms")
    op.drop_column("sweep_counter", "recent_ms")
