"""The bundle as one zip file, the same bytes for the same content, with its sha256 beside it.

python tools/package.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "missu_brats_mri_segmentation"
FOLDERS = ("configs", "docs", "scripts")
LARGE = 25e6  # bytes; the zoo wants larger files in large_files.yml
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def shipped(bundle: Path) -> Iterator[Path]:
    """The files of a bundle that belong to the package: nothing that a run has written, but the weights."""
    yield bundle / "LICENSE"
    for folder in FOLDERS:
        for path in bundle.joinpath(folder).rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(bundle).parts)
            if path.is_file() and not hidden and "__pycache__" not in path.parts and not is_datalist(path):
                yield path
    for weights in weights_of(bundle):
        yield from (weights, weights.with_suffix(".json"))
        if weights.with_suffix(".LICENSE").is_file():  # of data that has other terms than the bundle
            yield weights.with_suffix(".LICENSE")


def weights_of(bundle: Path) -> list[Path]:
    """The weights that have a record, ``model.pt`` among them; not those that a training has set aside."""
    return sorted(path for path in (bundle / "models").glob("*.pt") if path.with_suffix(".json").is_file())


def is_datalist(path: Path) -> bool:
    """Whether a file of ``configs`` names patients: each config of ours says first, by ``_desc_``, what it is for."""
    is_json = path.parent.name == "configs" and path.suffix == ".json" and path.name != "metadata.json"
    return is_json and '"_desc_"' not in path.read_text()


def large_files(content: Mapping[str, bytes]) -> str:
    """The zoo's list of large files; ``monai.bundle.download_large_files`` checks those that are there by it."""
    lines = ["# In this package already. Who publishes them elsewhere gives the address.", "large_files:"]
    for name, data in content.items():
        if len(data) > LARGE:
            lines += [f'  - path: "{name}"', '    url: ""']
            lines += [f'    hash_val: "{hashlib.sha256(data).hexdigest()}"', '    hash_type: "sha256"']
    return "\n".join(lines) + "\n"


def check_weights(bundle: Path) -> None:
    weights = weights_of(bundle)
    default = bundle / "models" / "model.pt"
    if default not in weights:
        raise ValueError(f"{default} and its record {default.with_suffix('.json').name} should be there, they are not.")
    for path in weights:
        record = path.with_suffix(".json")
        if f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"' not in record.read_text():
            raise ValueError(f"{path} is not what {record} tells of, the sha256 differs: restore it.")


def package(bundle: Path, output_dir: Path) -> Path:
    """Writes ``<name>_v<version>.zip`` and ``.zip.sha256``.

    Raises:
        ValueError: when the default weights are missing, or a record is that of others.
    """
    check_weights(bundle)
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{NAME}_v{version}.zip"
    content = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in shipped(bundle)}
    if any(len(data) > LARGE for data in content.values()):
        content["large_files.yml"] = large_files(content).encode()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for name, data in sorted(content.items()):
                entry = zipfile.ZipInfo(f"{NAME}/{name}", EPOCH)
                entry.external_attr = 0o100644 << 16  # a regular file, whatever its mode is here
                entry.create_system = 3  # Unix, whatever system this is
                archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)
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
    args = parser.parse_args(argv)
    try:
        print(package(args.bundle, args.output_dir))
    except ValueError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
