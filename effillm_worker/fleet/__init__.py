"""The Ray driver: one active fleet puts an actor on every device and hands it the leases Postgres grants."""
