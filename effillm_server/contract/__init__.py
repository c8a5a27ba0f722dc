"""The language both sides speak: pydantic and the standard library, and PyYAML in `parse` alone."""
