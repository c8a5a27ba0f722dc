"""Sweeps, jobs, devices and the lease between them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sweep_id", sa.Text(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("data", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_sweep_id_id", "event", ["sweep_id", "id"], unique=False)
    op.create_table(
        "fingerprint",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("record", postgresql.JSONB(), nullable=False),
        sa.Column(
            "first_seen", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_fingerprint")),
    )
    op.create_table(
        "sweep",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", postgresql.JSONB(), nullable=False),
        sa.Column("facts", postgresql.JSONB(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("visibility", sa.Text(), nullable=False),
        sa.Column("isolation", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("isolation IN ('group', 'cell')", name=op.f("ck_sweep_isolation")),
        sa.CheckConstraint("visibility IN ('lab', 'private')", name=op.f("ck_sweep_visibility")),
        sa.CheckConstraint("priority BETWEEN -100 AND 100", name=op.f("ck_sweep_priority")),
        sa.CheckConstraint("total >= 0", name=op.f("ck_sweep_total")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweep")),
    )
    op.create_index(
        "ix_sweep_created_at_id",
        "sweep",
        [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "ix_sweep_unfinished", "sweep", ["id"], unique=False, postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index(
        "uq_sweep_owner_idempotency_key",
        "sweep",
        [sa.literal_column("coalesce(owner, '')"), "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hardware_class", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("host_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("has_gpu", sa.Boolean(), nullable=False),
        sa.Column("declaration", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("boot_id", sa.Text(), nullable=True),
        sa.Column("load_group", sa.Text(), nullable=True),
        sa.Column("load_sweep", sa.Text(), nullable=True),
        sa.Column("load_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fingerprint_digest", sa.Text(), nullable=True),
        sa.Column("ceiling", postgresql.JSONB(), nullable=True),
        sa.Column(
            "registered_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "state_since", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "NOT (state = 'free' AND draining) AND NOT (state = 'draining' AND NOT draining)",
            name=op.f("ck_device_draining"),
        ),
        sa.CheckConstraint(
            "state IN ('free', 'leased', 'releasing', 'quarantined', 'draining', 'lost')", name=op.f("ck_device_state")
        ),
        sa.CheckConstraint(
            "state NOT IN ('free', 'leased', 'releasing', 'draining') OR boot_id IS NOT NULL",
            name=op.f("ck_device_boot"),
        ),
        sa.CheckConstraint("memory_bytes > 0 AND host_memory_bytes > 0", name=op.f("ck_device_memory")),
        sa.ForeignKeyConstraint(
            ["fingerprint_digest"], ["fingerprint.digest"], name=op.f("fk_device_fingerprint_digest")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_device_hardware_class", "device", ["hardware_class"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sweep_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("sequence_length", sa.Integer(), nullable=True),
        sa.Column("workload", sa.Text(), nullable=False),
        sa.Column("generate_tokens", sa.Integer(), nullable=False),
        sa.Column("repeat", sa.SmallInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("load_group", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("implied_by", sa.BigInteger(), nullable=True),
        sa.Column("faults", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("remeasures", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("fresh_child", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("avoid_device", sa.Text(), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("result_fence", sa.Integer(), nullable=True),
        sa.Column("device_id", sa.Text(), nullable=True),
        sa.Column("boot_id", sa.Text(), nullable=True),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_ttl_s", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'leased') = (device_id IS NOT NULL)", name=op.f("ck_job_lease_iff_leased")),
        sa.CheckConstraint(
            "(state IN ('measured', 'infeasible', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_job_finished_iff_terminal"),
        ),
        sa.CheckConstraint(
            "implied_by IS NULL OR (state = 'infeasible' AND reason = 'implied')", name=op.f("ck_job_implied")
        ),
        sa.CheckConstraint(
            "state <> 'infeasible' OR (reason IS NOT NULL AND reason IN ('context_window', "
            "'unsupported', 'implied', 'out_of_device_memory', 'out_of_host_memory', 'time_limit'))",
            name=op.f("ck_job_infeasible_reason"),
        ),
        sa.CheckConstraint("state <> 'measured' OR result_fence IS NOT NULL", name=op.f("ck_job_measured_has_result")),
        sa.CheckConstraint(
            "state IN ('pending', 'leased', 'measured', 'infeasible', 'failed', 'cancelled')", name=op.f("ck_job_state")
        ),
        sa.CheckConstraint(
            "batch_size >= 1 AND generate_tokens >= 1 AND repeat >= 1 AND size >= 0", name=op.f("ck_job_axes")
        ),
        sa.CheckConstraint(
            "num_nonnulls(device_id, boot_id, leased_at, lease_expires_at, lease_ttl_s) IN (0, 5)",
            name=op.f("ck_job_lease_is_whole"),
        ),
        sa.CheckConstraint(
            "result_fence IS NULL OR result_fence BETWEEN 1 AND fence", name=op.f("ck_job_result_of_a_lease")
        ),
        sa.ForeignKeyConstraint(["implied_by"], ["job.id"], name=op.f("fk_job_implied_by"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep.id"], name=op.f("fk_job_sweep_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        postgresql_with={"fillfactor": "90"},
    )
    op.create_index(
        "ix_job_claim",
        "job",
        ["sweep_id", "hardware", sa.literal_column("priority DESC"), "load_group", "size", "ordinal"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_job_claim_simulated",
        "job",
        ["sweep_id", "hardware", sa.literal_column("priority DESC"), "load_group", "size", "ordinal"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND engine = 'simulated'"),
    )
    op.create_index("ix_job_leased", "job", ["device_id"], unique=False, postgresql_where=sa.text("state = 'leased'"))
    op.create_index("ix_job_sweep_id_state_ordinal", "job", ["sweep_id", "state", "ordinal"], unique=False)
    op.create_index("uq_job_sweep_id_ordinal", "job", ["sweep_id", "ordinal"], unique=True)
    op.create_table(
        "sweep_counter",
        sa.Column("sweep_id", sa.Text(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("pending", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("leased", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("measured", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("infeasible", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("context_window", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("unsupported", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("implied", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("out_of_device_memory", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("out_of_host_memory", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("time_limit", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("served_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("leased_since_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep.id"], name=op.f("fk_sweep_counter_sweep_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sweep_id", "hardware", "shard", name=op.f("pk_sweep_counter")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "lease_device",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_lease_device_device_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_lease_device_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_lease_device")),
    )
    op.create_index("ix_lease_device_job_id", "lease_device", ["job_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_lease_device_job_id", table_name="lease_device")
    op.drop_table("lease_device")
    op.drop_table("sweep_counter")
    op.drop_index("uq_job_sweep_id_ordinal", table_name="job")
    op.drop_index("ix_job_sweep_id_state_ordinal", table_name="job")
    op.drop_index("ix_job_leased", table_name="job", postgresql_where=sa.text("state = 'leased'"))
    op.drop_index(
        "ix_job_claim_simulated",
        table_name="job",
        postgresql_where=sa.text("state = 'pending' AND engine = 'simulated'"),
    )
    op.drop_index("ix_job_claim", table_name="job", postgresql_where=sa.text("state = 'pending'"))
    op.drop_table("job")
    op.drop_index("ix_device_hardware_class", table_name="device")
    op.drop_table("device")
    op.drop_index(
        "uq_sweep_owner_idempotency_key", table_name="sweep", postgresql_where=sa.text("idempotency_key IS NOT NULL")
    )
    op.drop_index("ix_sweep_unfinished", table_name="sweep", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_index("ix_sweep_created_at_id", table_name="sweep")
    op.drop_table("sweep")
    op.drop_table("fingerprint")
    op.drop_index("ix_event_sweep_id_id", table_name="event")
    op.drop_table("event")
