"""A browser signed in by the local admin, who has no key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("session", "api_key_id", existing_type=sa.BigInteger(), nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM session WHERE api_key_id IS NULL")
    op.alter_column("session", "api_key_id", existing_type=sa.BigInteger(), nullable=False)
