"""One measuring method per file; those used by the parent read everything from outside the child."""
