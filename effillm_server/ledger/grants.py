"""What each role may do in the database: privileges by table, and for a node's login the rows of its own devices only."""

from __future__ import annotations

from collections.abc import Mapping

API, FLEET, WORKER = "effillm_api", "effillm_fleet", "effillm_worker"
ROLES = (API, FLEET, WORKER)
# The login of a node is named after it, and the name cannot be changed from within a session as a setting could.
NODE_LOGIN = "effillm_node:"

READ, WRITE = "SELECT", "SELECT, INSERT, UPDATE"
# Columns of a job that a lease or its end moves. Axes, sweep and priority are not among them.
_MOVED = (
    "state, reason, message, implied_by, faults, remeasures, fresh_child, avoid_device, not_before, fence, result_fence, "
    "device_id, boot_id, leased_at, lease_expires_at, lease_ttl_s, finished_at"
)
_SWEEP = "SELECT (id, definition, priority, isolation, created_at, finished_at), UPDATE (finished_at)"

# The API serves every table, except that what is audited stays audited. Tables not named for a role are closed to it, new ones
# too: whoever adds a table decides here who needs it.
GRANTS: Mapping[str, Mapping[str, str]] = {
    FLEET: {
        "alembic_version": READ, "sweep": _SWEEP, "job": f"SELECT, UPDATE ({_MOVED})", "device": "SELECT, UPDATE",
        "lease_device": "SELECT, INSERT, DELETE", "attempt": WRITE, "sweep_counter": WRITE, "event": "INSERT",
    },
    WORKER: {
        "alembic_version": READ, "sweep": _SWEEP, "job": f"SELECT, UPDATE ({_MOVED})", "device": WRITE,
        "lease_device": "SELECT, INSERT, DELETE", "attempt": WRITE, "sweep_counter": WRITE, "event": "INSERT",
        "fingerprint": "SELECT, INSERT", "child": WRITE, "measurement": "INSERT", "sample": "INSERT",
        "rejected_outcome": WRITE,
    },
}  # fmt: skip
API_AUDIT = "SELECT, INSERT"

# Rows with a device: all of them for the API and the fleet, a node's own for its login. What a node may see of other devices is
# what the claim needs (who else is of its class, and what they have loaded).
_OWNED = ("lease_device", "attempt", "child", "measurement", "rejected_outcome")
_WHOLE = f"TO {API}, {FLEET} USING (true) WITH CHECK (true)"

FUNCTIONS = f"""
CREATE OR REPLACE FUNCTION effillm_serves(node text) RETURNS boolean LANGUAGE sql STABLE
SET search_path FROM CURRENT AS $$
    SELECT CASE WHEN left(session_user::text, {len(NODE_LOGIN)}) <> '{NODE_LOGIN}' THEN false
        WHEN right(session_user::text, 1) = '*'
            THEN starts_with(node, rtrim(substr(session_user::text, {len(NODE_LOGIN) + 1}), '*'))
        ELSE node = substr(session_user::text, {len(NODE_LOGIN) + 1}) END
$$;
CREATE OR REPLACE FUNCTION effillm_owns(device text) RETURNS boolean LANGUAGE sql STABLE
SET search_path FROM CURRENT AS $$
    SELECT EXISTS (SELECT FROM device d WHERE d.id = $1 AND effillm_serves(d.node))
$$;
-- Row-level security on `job` itself would keep the claim from its index; a row is looked at when it is changed instead.
CREATE OR REPLACE FUNCTION effillm_guard_job() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF left(session_user::text, {len(NODE_LOGIN)}) = '{NODE_LOGIN}'
        AND NOT ((OLD.device_id IS NULL OR effillm_owns(OLD.device_id))
            AND (NEW.device_id IS NULL OR effillm_owns(NEW.device_id))) THEN
        RAISE insufficient_privilege USING MESSAGE = format('job %s is leased to a device of another node', OLD.id);
    END IF;
    RETURN NEW;
END $$;
-- COPY cannot check rows one by one; the statement is refused as a whole.
CREATE OR REPLACE FUNCTION effillm_guard_sample() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
BEGIN
    IF left(session_user::text, {len(NODE_LOGIN)}) = '{NODE_LOGIN}' AND EXISTS (
        SELECT FROM fresh f JOIN measurement m USING (job_id, fence) WHERE NOT effillm_owns(m.device_id)
    ) THEN
        RAISE insufficient_privilege USING MESSAGE = 'samples belong to a measurement of another node';
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS effillm_guard ON job;
CREATE TRIGGER effillm_guard BEFORE UPDATE ON job FOR EACH ROW
    WHEN (OLD.device_id IS NOT NULL OR NEW.device_id IS NOT NULL) EXECUTE FUNCTION effillm_guard_job();
DROP TRIGGER IF EXISTS effillm_guard ON sample;
CREATE TRIGGER effillm_guard AFTER INSERT ON sample REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION effillm_guard_sample();
"""


def statements(database: str) -> list[str]:
    """SQL that gives the roles what they need and takes everything else. `database` is quoted already; may be run again."""
    everybody = ", ".join(ROLES)
    return [
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {database} TO {everybody}",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE ON SCHEMA public TO {everybody}",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, {everybody}",
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, {everybody}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {API}",
        f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {API}",
        f"REVOKE ALL ON audit FROM {API}",
        f"GRANT {API_AUDIT} ON audit TO {API}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {API}",
        # The writer of an event looks at the next number before it takes one.
        f"GRANT SELECT ON SEQUENCE event_id_seq TO {FLEET}, {WORKER}",
        *(f"GRANT {what} ON {table} TO {role}" for role, tables in GRANTS.items() for table, what in tables.items()),
        FUNCTIONS,
        *_policies(),
    ]


def _policies() -> list[str]:
    own_device = "effillm_serves(node)"
    made = {
        "device": [
            f"CREATE POLICY whole ON device {_WHOLE}",
            f"CREATE POLICY seen ON device FOR SELECT TO {WORKER} USING (true)",
            f"CREATE POLICY joining ON device FOR INSERT TO {WORKER} WITH CHECK ({own_device})",
            f"CREATE POLICY own ON device FOR UPDATE TO {WORKER} USING ({own_device}) WITH CHECK ({own_device})",
        ],
    }
    for table in _OWNED:
        made[table] = [
            f"CREATE POLICY whole ON {table} {_WHOLE}",
            f"CREATE POLICY own ON {table} TO {WORKER} USING (effillm_owns(device_id)) WITH CHECK (effillm_owns(device_id))",
        ]
    done = []
    for table, policies in made.items():
        done.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        done += [f"DROP POLICY IF EXISTS {policy.split()[2]} ON {table}" for policy in policies]
        done += policies
    return done
