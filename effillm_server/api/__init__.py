"""REST over the ledger: routes, problem documents, the event stream, the reaper of expired leases."""
