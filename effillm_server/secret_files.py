"""`python -m effillm_server.secret_files FILE…`: a fresh secret into every file that is not there yet. Prints none of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from effillm_server.errors import BadInput

BYTES = 32
OWNER_ONLY, READABLE = 0o400, 0o444


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every file is there, 2 when one cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m effillm_server.secret_files", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--readable",
        action="store_true",
        help="for readers that are another user: what guards it is who has the volume",
    )
    options = parser.parse_args(arguments)
    try:
        for file in options.files:
            made = write_secret(file, secrets.token_hex(BYTES), READABLE if options.readable else OWNER_ONLY)
            print(f"{file}: {'made' if made else 'kept'}")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_secret(file: Path, secret: str, mode: int = OWNER_ONLY, *, replace: bool = False) -> bool:
    """Whether the secret was written: a file that is there is kept unless told otherwise. Raises BadInput.

    Complete or not there at all, whatever happens in between, and never readable by more than `mode` says.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if not replace and file.exists():
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(secret)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise BadInput(
            f"{file} cannot be written ({error.strerror}): its folder or volume must belong to user {os.getuid()}, "
            f"`chown -R {os.getuid()} {file.parent}`"
        ) from None
    return True


if __name__ == "__main__":
    sys.exit(main())
