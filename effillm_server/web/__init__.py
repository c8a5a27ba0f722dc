"""The pages: rendered here, read through the same functions as the REST routes."""
