"""What the files of a case are called, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from .errors import InputError

__all__ = ["Case", "case_of", "find_cases"]

NIFTI_EXTENSIONS = (".nii.gz", ".nii")

MODALITIES = ("t1", "t1ce", "t2", "flair")  # of BraTS, in the order of the network's channels

# The last part of a file's name: BraTS 2018 to 2021 (``<case>_t1ce.nii.gz``), 2023 and later (``<case>-t1c.nii.gz``).
MODALITY_OF_SUFFIX = {
    **{name: name for name in (*MODALITIES, "seg")},
    **{"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},
}
LABEL = "seg"
WHOLE = "image"  # one file that holds all modalities of a case as channels


@dataclass
class Case:
    """The files of one case.

    ``files[name]`` are those found for a modality's name, for ``seg``, or for ``image``: one 4D file of all modalities.
    """

    case_id: str
    folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """The one file of a modality name.

        Raises:
            InputError: when it is missing or doubled.
        """
        found = self.files.get(name, [])
        if not found:
            raise InputError(
                f"Case {self.case_id}: {name} is missing, there is no {self.case_id}_{name}.nii.gz in {self.folder}."
            )
        if len(found) > 1:
            raise InputError(
                f"Case {self.case_id}: {name} is doubled, one file is allowed: {' and '.join(map(str, found))}."
            )
        return found[0]

    def image(self, modalities: Sequence[str]) -> Path | dict[str, Path]:
        """The file of each modality by name, in the order given, or the one 4D file."""
        if WHOLE in self.files:
            return self.file(WHOLE)
        return {name: self.file(name) for name in modalities}


def split_file_name(path: Path) -> tuple[str, str] | None:
    """Case ID and modality name of a NIfTI file, by its name; ``None`` for any other file."""
    name = path.name
    for extension in NIFTI_EXTENSIONS:
        if name.lower().endswith(extension) and not name.startswith("."):
            stem = name[: -len(extension)]
            cut = max(stem.rfind("_"), stem.rfind("-"))
            modality = MODALITY_OF_SUFFIX.get(stem[cut + 1 :].lower())
            return (stem, WHOLE) if modality is None or cut < 1 else (stem[:cut], modality)
    return None


def group(paths: Sequence[Path]) -> list[Case]:
    """Cases from files, sorted by case ID: files of one folder with the same case ID belong together.

    Files without a modality in their name count as cases of their own (4D) only where no file has one: beside
    BraTS cases they are something else, an atlas or a brain mask.
    """
    named = [(path, *parts) for path in sorted(paths) if (parts := split_file_name(path))]
    if any(modality != WHOLE for _, _, modality in named):
        named = [entry for entry in named if entry[2] != WHOLE]
    cases: dict[tuple[str, Path], Case] = {}
    for path, case_id, modality in named:
        case = cases.setdefault((case_id, path.parent), Case(case_id, path.parent))
        case.files.setdefault(modality, []).append(path)
    return sorted(cases.values(), key=lambda case: (case.case_id, case.folder))


def find_cases(dataset_dir: str | Path) -> list[Case]:
    """All cases of a folder and its subfolders, sorted by case ID.

    Raises:
        InputError: when the folder does not exist or holds no case, or two folders hold the same case ID.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise InputError(f"dataset_dir should be a folder of cases, {root} is not there.")
    paths = [path for path in root.rglob("*") if path.is_file()]
    cases = group([path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)])
    if not cases:
        raise InputError(f"dataset_dir should hold NIfTI files such as <case>_flair.nii.gz, {root} holds none.")
    for case, other in pairwise(cases):
        if case.case_id == other.case_id:
            raise InputError(
                f"Case {case.case_id} is doubled, one folder is allowed: {case.folder} and {other.folder}."
            )
    return cases


def case_of(path: str | Path) -> Case:
    """The case that a file belongs to, with its siblings in the same folder."""
    path = Path(path)
    parts = split_file_name(path)
    if parts is None or parts[1] == WHOLE:
        return Case(path.name.split(".")[0] if parts is None else parts[0], path.parent, {WHOLE: [path]})
    siblings = [entry for entry in path.parent.glob("*") if (split_file_name(entry) or ("", ""))[0] == parts[0]]
    return group(siblings)[0] if siblings else Case(parts[0], path.parent)
