"""The stand-in child that measures for 2.5 s, as a module without arguments: for an actor that starts its children itself."""

from __future__ import annotations

import sys

from tests.support.children.play import main

if __name__ == "__main__":
    sys.exit(main("measure_long"))
