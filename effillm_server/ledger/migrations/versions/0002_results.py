"""Attempts, measuring processes, measurements with their samples, and what was refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rejected_outcome",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("outcome_digest", sa.Text(), nullable=False),
        sa.Column("outcome", postgresql.JSONB(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejected_outcome")),
    )
    op.create_index(
        "uq_rejected_outcome_writer",
        "rejected_outcome",
        ["job_id", "fence", "device_id", "boot_id", "outcome_digest"],
        unique=True,
    )
    op.create_table(
        "child",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("load_group", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=False),
        sa.Column("load_s", sa.Double(), nullable=True),
        sa.Column("baseline", postgresql.JSONB(), nullable=True),
        sa.Column("loaded", postgresql.JSONB(), nullable=True),
        sa.Column("released", postgresql.JSONB(), nullable=True),
        sa.Column("cells_measured", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("loaded_model", postgresql.JSONB(), nullable=True),
        sa.Column(
            "recorded_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_child_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_child")),
    )
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("child_id", sa.Text(), nullable=True),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("outcome_digest", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("followed_by", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("clocks", postgresql.JSONB(), nullable=True),
        sa.Column("code_version", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "followed_by IS NULL OR followed_by IN ('pending', 'leased', 'measured', "
            "'infeasible', 'failed', 'cancelled')",
            name=op.f("ck_attempt_followed_by"),
        ),
        sa.CheckConstraint(
            "outcome IS NULL OR outcome IN ('measured', 'infeasible', 'fault', 'cancelled')",
            name=op.f("ck_attempt_outcome"),
        ),
        sa.CheckConstraint("fence >= 1", name=op.f("ck_attempt_fence")),
        sa.CheckConstraint(
            "num_nonnulls(outcome, ended_at, followed_by) IN (0, 3) AND (NOT reported OR outcome IS NOT NULL)",
            name=op.f("ck_attempt_ended"),
        ),
        sa.ForeignKeyConstraint(["child_id"], ["child.id"], name=op.f("fk_attempt_child_id")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_attempt_device_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_attempt")),
    )
    op.create_table(
        "measurement",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("child_id", sa.Text(), nullable=False),
        sa.Column("fingerprint_digest", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reasons", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("warmup_iterations", sa.Integer(), nullable=False),
        sa.Column("throughput_tok_s", sa.Double(), nullable=True),
        sa.Column("ttft_s", sa.Double(), nullable=True),
        sa.Column("e2e_s", sa.Double(), nullable=True),
        sa.Column("peak_ram_bytes", sa.BigInteger(), nullable=True),
        sa.Column("peak_vram_bytes", sa.BigInteger(), nullable=True),
        sa.Column("energy_j", sa.Double(), nullable=True),
        sa.Column("record", postgresql.JSONB(), nullable=False),
        sa.Column(
            "recorded_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "stop_reason IN ('converged', 'max_iterations', 'time_budget')", name=op.f("ck_measurement_stop_reason")
        ),
        sa.CheckConstraint("verdict IN ('valid', 'suspect', 'invalid')", name=op.f("ck_measurement_verdict")),
        sa.CheckConstraint("NOT declared OR simulated", name=op.f("ck_measurement_declared_is_simulated")),
        sa.ForeignKeyConstraint(["child_id"], ["child.id"], name=op.f("fk_measurement_child_id")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_measurement_device_id")),
        sa.ForeignKeyConstraint(
            ["fingerprint_digest"], ["fingerprint.digest"], name=op.f("fk_measurement_fingerprint_digest")
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "fence"],
            ["attempt.job_id", "attempt.fence"],
            name=op.f("fk_measurement_job_id_fence"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "fence", name=op.f("pk_measurement")),
    )
    op.create_table(
        "sample",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("timestamps_ns", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("outlier", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("phase IN ('warmup', 'measured', 'ttft', 'memory')", name=op.f("ck_sample_phase")),
        sa.CheckConstraint("cardinality(timestamps_ns) >= 2", name=op.f("ck_sample_timeline")),
        sa.ForeignKeyConstraint(
            ["job_id", "fence"],
            ["measurement.job_id", "measurement.fence"],
            name=op.f("fk_sample_job_id_fence"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "fence", "position", name=op.f("pk_sample")),
    )


def downgrade() -> None:
    op.drop_table("sample")
    op.drop_table("measurement")
    op.drop_table("attempt")
    op.drop_table("child")
    op.drop_index("uq_rejected_outcome_writer", table_name="rejected_outcome")
    op.drop_table("rejected_outcome")
