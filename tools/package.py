"""The bundle as one zip file, the same bytes for the same content, with its sha256 beside it.

python tools/package.py            # needs bundle/models/model.pt
python tools/package.py --weights none
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "missu_brats_mri_segmentation"
FOLDERS = ("configs", "docs", "scripts")
NOT_SHIPPED = {"__pycache__", "datalist.json"}
WEIGHTS = ("model.pt", "model.json")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def shipped(bundle: Path, with_weights: bool) -> Iterator[Path]:
    """The files of a bundle that belong to the package: nothing that a run has written, but the weights."""
    yield bundle / "LICENSE"
    for folder in FOLDERS:
        for path in bundle.joinpath(folder).rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(bundle).parts)
            if path.is_file() and not hidden and not NOT_SHIPPED & set(path.parts):
                yield path
    yield bundle / "models" / ".gitkeep"
    if with_weights:
        yield from (path for name in WEIGHTS if (path := bundle / "models" / name).is_file())


def package(bundle: Path, output_dir: Path, with_weights: bool = True) -> Path:
    """Writes ``<name>_v<version>.zip`` and ``.zip.sha256``.

    Raises:
        FileNotFoundError: when there are no weights, though they are wanted.
    """
    if with_weights and not (bundle / "models" / "model.pt").is_file():
        raise FileNotFoundError(f"{bundle}/models/model.pt is not there: train first, or package with WEIGHTS=none.")
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{NAME}_v{version}.zip"
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for path in sorted(shipped(bundle, with_weights)):
                entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(bundle).as_posix()}", EPOCH)
                entry.external_attr = 0o100644 << 16  # a regular file, whatever its mode is here
                entry.create_system = 3  # Unix, whatever system this is
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
        digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n")
    return target


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundle")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist")
    parser.add_argument("--weights", choices=["required", "none"], default="required")
    args = parser.parse_args(argv)
    try:
        print(package(args.bundle, args.output_dir, args.weights == "required"))
    except FileNotFoundError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
