"""Cases to train on that are not there, by the folders of a data set and by what its ``dataset.json`` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .cases import IMAGE_FOLDERS, LABEL, LABEL_FOLDERS, Case, nifti_stem, read_dataset_json

__all__ = ["cases_not_there", "cases_without_label"]

IMAGES, LABELS = IMAGE_FOLDERS[0], LABEL_FOLDERS[0]


def cases_without_label(cases: Iterable[Case]) -> list[Case]:
    """The cases of ``imagesTr`` that lack a label, where the data set has labels or says that it has cases to train on.

    Scans to segment may lie there, too.
    """

    def has_labels(root: Path) -> bool:
        content = read_dataset_json(root)
        return (root / LABELS).is_dir() or bool(content.get("training") or content.get("numTraining"))

    return [case for case in cases if LABEL not in case.files and case.lies_in(IMAGES) and has_labels(case.folder)]


def cases_not_there(cases: Iterable[Case]) -> list[str]:
    """What each ``dataset.json`` says of more cases to train on, by its list, else by its number."""
    case_ids: dict[Path, set[str]] = defaultdict(set)
    for case in cases:
        if case.lies_in(IMAGES):
            case_ids[case.folder].add(case.case_id)
    sentences = []
    for root, there in sorted(case_ids.items()):
        content, path = read_dataset_json(root), root / "dataset.json"
        number = content.get("numTraining")
        if gone := [
            file
            for file in listed_images(content)
            if nifti_stem(Path(file)) not in there and not (root / file).exists()
        ]:
            sentences.append(f"{path} lists {len(gone)} case(s) for training that are not there, such as {gone[0]}")
        elif type(number) is int and number > len(there):
            sentences.append(f"{path} has numTraining {number}, {len(there)} case(s) are there in {IMAGES}")
    return sentences


def listed_images(content: Any) -> list[str]:
    """The images of ``training``, as the Decathlon and nnU-Net v1 list them; of any other form none.

    nnU-Net v1 lists them without the number of a channel, which the files have.
    """
    listed = content.get("training")
    entries: Sequence[Any] = listed if isinstance(listed, list) else []
    images = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    return [image for image in images if isinstance(image, str)]
