"""Everything that runs inside the Ray cluster, down to the measuring child."""
