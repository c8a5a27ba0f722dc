"""What this machine can and cannot watch, how fast it is at most, how noisy it is, what measuring costs on it."""
