"""The measurement protocol: load, warm up, measure, release. Runs in the measuring child only."""
