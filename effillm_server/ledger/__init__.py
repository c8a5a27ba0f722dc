"""The rows that are the truth: schema, every write, every read."""
