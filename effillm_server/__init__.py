"""The control plane: what a lab talks to. Imports neither Ray nor torch."""
