"""The bundle as a repository of Hugging Face, where the model zoo's bundles live: its files, and a page to show.

    python tools/hugging_face.py
    hf upload <organization>/missu_brats_mri_segmentation dist/hugging_face . --commit-message "Version 0.2.0"

Makes ``dist/hugging_face`` of what ``make package`` packed. The page is the bundle's card, with what the site reads
(license, tags, scores) before it; the second command asks for a token and publishes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from package import NAME, ROOT, package


def front_matter(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What Hugging Face reads of a page: https://huggingface.co/docs/hub/model-cards."""
    results = []
    for name, scores in metadata["eval_metrics"].items():
        metrics = [{"type": "dice", "name": metric, "value": value} for metric, value in scores.items()]
        # The site wants an ID of a data set, and takes what is none for text.
        results.append(
            {"task": {"type": "image-segmentation"}, "dataset": {"name": name, "type": "other"}, "metrics": metrics}
        )
    return {
        "license": "other",
        "license_name": "apache-2.0-and-terms-of-the-data",
        "license_link": "docs/data_license.txt",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "mri", "brain-tumor", "glioma", "liver", "3d"],
        "model-index": [{"name": metadata["name"], "results": results}],
    }


def write(bundle: Path, output_dir: Path) -> Path:
    """The folder to upload, made anew."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    archive = package(bundle, output_dir)
    target = output_dir / "hugging_face"
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(output_dir)
    (output_dir / NAME).rename(target)
    card = (target / "docs" / "README.md").read_text()
    head = json.dumps(front_matter(metadata), indent=2)  # which is YAML, too
    (target / "README.md").write_text(f"---\n{head}\n---\n\n{card}")
    return target


def main(argv: Sequence[str] | None = None) -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundle")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args(argv)
    try:
        print(write(arguments.bundle, arguments.output_dir))
    except ValueError as error:
        return f"Error: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
