"""The `effillm` command: a REST client, and `up`/`run`, which start everything on one box as child processes."""
