"""The schema. CHECKs hold the invariants of the lease and of what may be stored as a measurement; the migrations equal it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    desc,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from effillm_server.contract.outcome import InfeasibleReason, Phase, StopReason, Verdict
from effillm_server.contract.sweep import Isolation, Visibility
from effillm_server.lifecycle import DeviceState, JobState

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

TERMINAL = tuple(state for state in JobState if state.is_terminal)
OUTCOMES = ("measured", "infeasible", "fault", "cancelled")
SCOPES = ("read", "submit", "admin")


def _one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _time(name: str, *, now: bool = False) -> Column[Any]:
    if now:
        return Column(name, DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp())
    return Column(name, DateTime(timezone=True))


def _count(name: str, kind: Any = BigInteger) -> Column[Any]:
    return Column(name, kind, nullable=False, server_default=text("0"))


def _text(name: str, *, required: bool = True) -> Column[Any]:
    return Column(name, Text, nullable=not required)


sweep = Table(
    "sweep",
    metadata,
    Column("id", Text, primary_key=True),
    _text("name"),
    Column("definition", JSONB, nullable=False),
    Column("facts", JSONB, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    _text("owner", required=False),
    _text("visibility"),
    _text("isolation"),
    _text("idempotency_key", required=False),
    _count("total"),
    _time("created_at", now=True),
    _time("cancelled_at"),
    _time("finished_at"),
    CheckConstraint(_one_of("visibility", Visibility), "visibility"),
    CheckConstraint(_one_of("isolation", Isolation), "isolation"),
    CheckConstraint("priority BETWEEN -100 AND 100", "priority"),
    CheckConstraint("total >= 0", "total"),
    Index(
        "uq_sweep_owner_idempotency_key",
        text("coalesce(owner, '')"),
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("ix_sweep_created_at_id", desc("created_at"), desc("id")),
    # The claim looks at unfinished sweeps only; there are few, however many have ended.
    Index("ix_sweep_unfinished", "id", postgresql_where=text("finished_at IS NULL")),
)

_CLAIM_ORDER: tuple[Any, ...] = ("sweep_id", "hardware", desc("priority"), "load_group", "size", "ordinal")

job = Table(
    "job",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("sweep_id", Text, ForeignKey("sweep.id", ondelete="CASCADE"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    _text("digest"),
    _text("model"),
    _text("weights"),
    _text("revision", required=False),
    _text("quantization"),
    _text("dtype"),
    _text("engine"),
    _text("runtime"),
    _text("hardware"),
    Column("batch_size", Integer, nullable=False),
    Column("sequence_length", Integer),
    _text("workload"),
    Column("generate_tokens", Integer, nullable=False),
    Column("repeat", SmallInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    _text("load_group"),
    Column("priority", SmallInteger, nullable=False),
    _text("state"),
    _text("reason", required=False),
    _text("message", required=False),
    Column("implied_by", BigInteger, ForeignKey("job.id", ondelete="SET NULL")),
    _count("faults", SmallInteger),
    _count("remeasures", SmallInteger),
    Column("fresh_child", Boolean, nullable=False, server_default=text("false")),
    _text("avoid_device", required=False),
    _time("not_before"),
    _count("fence", Integer),
    Column("result_fence", Integer),
    _text("device_id", required=False),
    _text("boot_id", required=False),
    _time("leased_at"),
    _time("lease_expires_at"),
    Column("lease_ttl_s", Double),
    _time("finished_at"),
    CheckConstraint(_one_of("state", JobState), "state"),
    CheckConstraint("(state = 'leased') = (device_id IS NOT NULL)", "lease_iff_leased"),
    CheckConstraint(
        "num_nonnulls(device_id, boot_id, leased_at, lease_expires_at, lease_ttl_s) IN (0, 5)", "lease_is_whole"
    ),
    CheckConstraint(f"({_one_of('state', TERMINAL)}) = (finished_at IS NOT NULL)", "finished_iff_terminal"),
    CheckConstraint("state <> 'measured' OR result_fence IS NOT NULL", "measured_has_result"),
    CheckConstraint("result_fence IS NULL OR result_fence BETWEEN 1 AND fence", "result_of_a_lease"),
    CheckConstraint(
        f"state <> 'infeasible' OR (reason IS NOT NULL AND {_one_of('reason', InfeasibleReason)})", "infeasible_reason"
    ),
    CheckConstraint("implied_by IS NULL OR (state = 'infeasible' AND reason = 'implied')", "implied"),
    CheckConstraint("batch_size >= 1 AND generate_tokens >= 1 AND repeat >= 1 AND size >= 0", "axes"),
    Index("uq_job_sweep_id_ordinal", "sweep_id", "ordinal", unique=True),
    Index("ix_job_claim", *_CLAIM_ORDER, postgresql_where=text("state = 'pending'")),
    # A declared device may only take simulated cells: it must not wade through a sweep's real ones to find them.
    Index(
        "ix_job_claim_simulated",
        *_CLAIM_ORDER,
        postgresql_where=text("state = 'pending' AND engine = 'simulated'"),
    ),
    # Not on lease_expires_at: a renewal must stay a heap-only update.
    Index("ix_job_leased", "device_id", postgresql_where=text("state = 'leased'")),
    Index("ix_job_sweep_id_state_ordinal", "sweep_id", "state", "ordinal"),
    postgresql_with={"fillfactor": "90"},
)

device = Table(
    "device",
    metadata,
    Column("id", Text, primary_key=True),
    _text("hardware_class"),
    _text("node"),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("host_memory_bytes", BigInteger, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("has_gpu", Boolean, nullable=False),
    Column("declaration", JSONB, nullable=False),
    _text("state"),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    _text("reason", required=False),
    _text("boot_id", required=False),
    # The load group it measures or measured last, of which sweep, and since when by this database's clock.
    _text("load_group", required=False),
    _text("load_sweep", required=False),
    _time("load_since"),
    Column("fingerprint_digest", Text, ForeignKey("fingerprint.digest")),
    Column("ceiling", JSONB),
    _time("registered_at", now=True),
    _time("state_since", now=True),
    _time("last_seen"),
    CheckConstraint(_one_of("state", DeviceState), "state"),
    CheckConstraint("state NOT IN ('free', 'leased', 'releasing', 'draining') OR boot_id IS NOT NULL", "boot"),
    CheckConstraint("NOT (state = 'free' AND draining) AND NOT (state = 'draining' AND NOT draining)", "draining"),
    CheckConstraint("memory_bytes > 0 AND host_memory_bytes > 0", "memory"),
    Index("ix_device_hardware_class", "hardware_class"),
    postgresql_with={"fillfactor": "70"},
)

lease_device = Table(
    "lease_device",
    metadata,
    # The key is the device: two leases of one device cannot both be committed.
    Column("device_id", Text, ForeignKey("device.id"), primary_key=True),
    Column("job_id", BigInteger, ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("fence", Integer, nullable=False),
    _text("boot_id"),
    Index("ix_lease_device_job_id", "job_id"),
)

child = Table(
    "child",
    metadata,
    Column("id", Text, primary_key=True),
    Column("device_id", Text, ForeignKey("device.id"), nullable=False),
    _text("boot_id"),
    _text("load_group"),
    Column("pid", BigInteger, nullable=False),
    _text("started_at"),
    Column("load_s", Double),
    Column("baseline", JSONB),
    Column("loaded", JSONB),
    Column("released", JSONB),
    _count("cells_measured", Integer),
    Column("loaded_model", JSONB),
    _time("recorded_at", now=True),
)

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", BigInteger, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("device_id", Text, ForeignKey("device.id"), nullable=False),
    _text("node"),
    _text("boot_id"),
    Column("child_id", Text, ForeignKey("child.id")),
    _time("started_at", now=True),
    _time("ended_at"),
    # `reported`: the actor itself told the outcome; a reaped attempt has an outcome nobody reported.
    Column("reported", Boolean, nullable=False, server_default=text("false")),
    _text("outcome", required=False),
    _text("outcome_digest", required=False),
    _text("reason", required=False),
    _text("message", required=False),
    _text("followed_by", required=False),
    Column("exit_code", Integer),
    _text("signal", required=False),
    Column("log_tail", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("clocks", JSONB),
    _text("code_version", required=False),
    CheckConstraint(f"outcome IS NULL OR {_one_of('outcome', OUTCOMES)}", "outcome"),
    CheckConstraint(f"followed_by IS NULL OR {_one_of('followed_by', JobState)}", "followed_by"),
    CheckConstraint(
        "num_nonnulls(outcome, ended_at, followed_by) IN (0, 3) AND (NOT reported OR outcome IS NOT NULL)", "ended"
    ),
    CheckConstraint("fence >= 1", "fence"),
)

fingerprint = Table(
    "fingerprint",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("record", JSONB, nullable=False),
    _time("first_seen", now=True),
)

measurement = Table(
    "measurement",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("device_id", Text, ForeignKey("device.id"), nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("child_id", Text, ForeignKey("child.id"), nullable=False),
    Column("fingerprint_digest", Text, ForeignKey("fingerprint.digest"), nullable=False),
    _text("verdict"),
    Column("reasons", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    _text("stop_reason"),
    Column("iterations", Integer, nullable=False),
    Column("warmup_iterations", Integer, nullable=False),
    Column("throughput_tok_s", Double),
    Column("ttft_s", Double),
    Column("e2e_s", Double),
    Column("peak_ram_bytes", BigInteger),
    Column("peak_vram_bytes", BigInteger),
    Column("energy_j", Double),
    Column("record", JSONB, nullable=False),
    _time("recorded_at", now=True),
    ForeignKeyConstraint(["job_id", "fence"], ["attempt.job_id", "attempt.fence"], ondelete="CASCADE"),
    CheckConstraint(_one_of("verdict", Verdict), "verdict"),
    CheckConstraint(_one_of("stop_reason", StopReason), "stop_reason"),
    CheckConstraint("NOT declared OR simulated", "declared_is_simulated"),
)

sample = Table(
    "sample",
    metadata,
    Column("job_id", BigInteger, primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("iteration", Integer, nullable=False),
    _text("phase"),
    Column("prompt_tokens", Integer, nullable=False),
    Column("timestamps_ns", ARRAY(BigInteger), nullable=False),
    Column("outlier", Boolean, nullable=False, server_default=text("false")),
    ForeignKeyConstraint(["job_id", "fence"], ["measurement.job_id", "measurement.fence"], ondelete="CASCADE"),
    CheckConstraint(_one_of("phase", Phase), "phase"),
    CheckConstraint("cardinality(timestamps_ns) >= 2", "timeline"),
)

# One row per sweep, class and shard. A device always counts on its own shard, so that finishing devices do not queue
# up behind one row. `leased_since_ms` is the sum of the lease times of what is leased now: with `leased` it gives the
# device time in flight without looking at a job. `recent_ms` is device time that fades, as it stood at `recent_at_ms`.
sweep_counter = Table(
    "sweep_counter",
    metadata,
    Column("sweep_id", Text, ForeignKey("sweep.id", ondelete="CASCADE"), primary_key=True),
    Column("hardware", Text, primary_key=True),
    Column("shard", SmallInteger, primary_key=True),
    *(_count(str(state)) for state in JobState),
    *(_count(str(reason)) for reason in InfeasibleReason),
    _count("served_ms"),
    _count("leased_since_ms"),
    _count("recent_ms", Double),
    _count("recent_at_ms"),
    postgresql_with={"fillfactor": "50"},
)

event = Table(
    "event",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("sweep_id", required=False),
    Column("job_id", BigInteger),
    _text("kind"),
    _time("at", now=True),
    Column("data", JSONB, nullable=False, server_default=text("'{}'")),
    Index("ix_event_sweep_id_id", "sweep_id", "id"),
)

# No foreign keys: what a superseded or unknown writer sent is kept whatever it refers to. A refused renewal stands here too,
# without an outcome, under the digest `renewal`.
rejected_outcome = Table(
    "rejected_outcome",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    Column("fence", Integer, nullable=False),
    _text("device_id"),
    _text("boot_id"),
    _text("outcome_digest"),
    Column("outcome", JSONB, nullable=False),
    _text("why"),
    Column("times", Integer, nullable=False, server_default=text("1")),
    _time("received_at", now=True),
    Index("uq_rejected_outcome_writer", "job_id", "fence", "device_id", "boot_id", "outcome_digest", unique=True),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("owner"),
    _text("prefix"),
    Column("hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    _time("created_at", now=True),
    _time("expires_at"),
    _time("revoked_at"),
    _time("last_used_at"),
    CheckConstraint(f"scopes <@ ARRAY[{', '.join(map(repr, SCOPES))}] AND cardinality(scopes) >= 1", "scopes"),
    Index("uq_api_key_hash", "hash", unique=True),
    Index("ix_api_key_prefix", "prefix"),
)

session = Table(
    "session",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    # None: the local admin of a server that asks for no keys.
    Column("api_key_id", BigInteger, ForeignKey("api_key.id", ondelete="CASCADE")),
    _time("created_at", now=True),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _time("at", now=True),
    _text("actor", required=False),
    _text("action"),
    _text("subject", required=False),
    _text("request_id", required=False),
    Column("data", JSONB, nullable=False, server_default=text("'{}'")),
)
