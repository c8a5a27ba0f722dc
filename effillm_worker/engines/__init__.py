"""Engines: what loads a model and generates tokens, all behind `base.Engine`."""
