"""The language both sides speak: pydantic and the standard library only."""
