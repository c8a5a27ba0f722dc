"""From raw samples to decisions: pure functions on records, rows and arrays."""
