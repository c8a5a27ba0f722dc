"""Fetch the page's libraries from npm into the tree, at the versions that versions.json names: `make web-assets`.

To move to another version, change it in versions.json and run this again; the checksums are written anew.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDERS = (ROOT / "effillm_server/web/static/vendor", ROOT / "tests/browser/vendor")


def main() -> None:
    """Writes every file of every package, and its checksum."""
    for folder in FOLDERS:
        packages = json.loads((folder / "versions.json").read_text())
        for name, package in packages.items():
            package["sha256"] = fetched(name, package, folder)
            print(f"{name} {package['version']}: {', '.join(package['files'].values())}")
        (folder / "versions.json").write_text(json.dumps(packages, indent=2) + "\n")


def fetched(name: str, package: dict[str, Any], folder: Path) -> dict[str, str]:
    """Checksums of the package's files, now in `folder`."""
    sums = {}
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{package['version']}"], cwd=work, check=True, stdout=subprocess.DEVNULL
        )
        (archive,) = Path(work).glob("*.tgz")
        with tarfile.open(archive) as tar:
            for source, target in package["files"].items():
                member = tar.extractfile(f"package/{source}")
                if member is None:
                    raise SystemExit(f"{name} {package['version']} has no file {source}")
                content = member.read()
                (folder / target).write_bytes(content)
                sums[target] = hashlib.sha256(content).hexdigest()
    return sums


if __name__ == "__main__":
    main()
