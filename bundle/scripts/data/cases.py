"""What the files of a case are called, and which of them belong together."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..files import read_json

__all__ = ["Case", "case_id_of", "case_of", "cases_of_batch", "find_cases", "first_file", "list_cases", "mask_of"]

logger = logging.getLogger(__name__)

NIFTI_EXTENSIONS = (".nii.gz", ".nii")

MODALITIES = ("t1", "t1ce", "t2", "flair")  # of BraTS, in the order of the network's channels

# The last part of a file's name: BraTS 2018 to 2021 (``<case>_t1ce.nii.gz``), 2023 and later (``<case>-t1c.nii.gz``).
MODALITY_OF_SUFFIX = {
    **{name: name for name in (*MODALITIES, "seg")},
    **{"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},
    **{name: name for name in ("t1in", "t1out", "t2spir", "ct")},  # CHAOS, as scripts.chaos names them
}
# What a dataset.json calls a channel, where it is none of these; the Decathlon says FLAIR, T1w, t1gd, T2w.
MODALITY_OF_CHANNEL = {**MODALITY_OF_SUFFIX, "t1w": "t1", "t1gd": "t1ce"}
# The one file that BraTS 2020 itself misnamed, as it stands in the copies of that year.
MISNAMED = {("BraTS20_Training_355", "W39_1998.09.19_Segm"): "seg"}
FOLDERS_OF_MISNAMED = {folder for folder, _ in MISNAMED}

# Folders of the Decathlon (one 4D file per case) and of nnU-Net (``<case>_0000.nii.gz`` ..), beside a dataset.json.
IMAGE_FOLDERS, LABEL_FOLDERS = ("imagesTr", "imagesTs"), ("labelsTr", "labelsTs")
LABEL = "seg"
WHOLE = "image"  # one file that holds all modalities of a case as channels
LONGEST_NAME = 255 - len(".4194304.")  # of a file, in bytes, less what it is called while it is written


@dataclass
class Case:
    """The files of one case.

    ``files[name]`` are those found for a modality's name, for ``seg``, or for ``image``: one 4D file of all modalities.
    ``channels`` are the names in a ``dataset.json``, by their number there, which is the order of a 4D file.
    """

    case_id: str
    folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    def file(self, name: str) -> Path:
        """The one file of a modality name.

        Raises:
            InputError: when it is missing or doubled.
        """
        found = self.files.get(name, [])
        if not found:
            raise InputError(f"Case {self.case_id}: {name} is missing, there is no {self.looked_for(name)}.")
        if len(found) > 1:
            raise InputError(
                f"Case {self.case_id}: {name} is doubled, one file is allowed: {' and '.join(map(str, found))}."
            )
        return found[0]

    def looked_for(self, name: str) -> Path:
        """What the file of a modality name would be called, beside the case's other files."""
        folders = [paths[0].parent for key, paths in sorted(self.files.items()) if (key == LABEL) == (name == LABEL)]
        folder = folders[0] if folders else self.folder
        numbered = name in self.channels and self.folder != folder
        ending = f"_{self.channels.index(name):04d}" if numbered else "" if name == WHOLE else f"_{name}"
        return folder / f"{self.case_id}{ending}{NIFTI_EXTENSIONS[0]}"

    def lies_in(self, *names: str) -> bool:
        """Whether a file of the case lies in a folder of one of the names."""
        return any(path.parent.name in names for paths in self.files.values() for path in paths)

    def image(self, modalities: Sequence[str]) -> Path | dict[str, Path]:
        """The file of each modality by name, in the order given, or the one 4D file."""
        if WHOLE in self.files:
            return self.file(WHOLE)
        return {name: self.file(name) for name in modalities}


class FileName(NamedTuple):
    """What a file's name and folder say: the folder of its case, the case's ID, and the modality."""

    folder: Path
    case_id: str
    modality: str


def split_file_name(path: Path, suffixes: Mapping[str, str] | None = None) -> FileName | None:
    """What a NIfTI file is, by its name and folder alone; ``None`` for any other file.

    Args:
        path: of the file.
        suffixes: what the names of a foreign data set end with, and the modality or ``seg`` that it means, in place of
            the names known here: ``{"T1w": "t1", "ce-gadolinium_T1w": "t1ce", "dseg": "seg"}``. The longest counts.
    """
    folder, stem = path.parent, nifti_stem(path)
    if stem is None:
        return None
    if suffixes:
        for suffix in sorted(suffixes, key=len, reverse=True):
            if re.search(f"[_-]{re.escape(suffix)}$", stem, re.IGNORECASE) and len(stem) > len(suffix) + 1:
                return FileName(folder, stem[: -len(suffix) - 1], suffixes[suffix])
        return None
    if modality := MISNAMED.get((folder.name, stem)):
        return FileName(folder, folder.name, modality)
    # Their names end with a number, or with the case's ID, whatever that ends with.
    if folder.name in LABEL_FOLDERS:
        return FileName(folder.parent, re.sub(f"[_-]{LABEL}$", "", stem), LABEL)
    is_image = folder.name in IMAGE_FOLDERS
    cut = max(stem.rfind("_"), stem.rfind("-"))
    modality = MODALITY_OF_SUFFIX.get(stem[cut + 1 :].lower())
    if cut > 0 and modality and not (is_image and channel_names(folder.parent)):
        return FileName(folder, stem[:cut], modality)
    if is_image:
        return numbered_channel(path, stem) or FileName(folder.parent, stem, WHOLE)
    return FileName(folder, stem, WHOLE)


def nifti_stem(path: Path) -> str | None:
    """The name of a NIfTI file without its extension; ``None`` for any other file, and for a hidden one."""
    extension = next((end for end in NIFTI_EXTENSIONS if path.name.lower().endswith(end)), None)
    return None if extension is None or path.name.startswith(".") else path.name[: -len(extension)]


def numbered_channel(path: Path, stem: str) -> FileName | None:
    """What ``imagesTr/<case>_0000.nii.gz`` is: one channel of a case; none where the number belongs to the ID.

    nnU-Net v2 (``channel_names``) numbers each file. Of a ``dataset.json`` with ``modality``, which nnU-Net v1 has
    and the Decathlon, a file with a label of its own name, or a number that no channel has, is a whole case.
    """
    numbered = re.fullmatch(r"(.+)_(\d{4})", stem)
    if numbered is None:
        return None
    root = path.parent.parent
    names, index = channel_names(root), int(numbered[2])
    if names and "channel_names" not in read_dataset_json(root):
        labels = (root / folder / f"{stem}{end}" for folder in LABEL_FOLDERS for end in NIFTI_EXTENSIONS)
        if index >= len(names) or any(map(Path.is_file, labels)):
            return None
    if index >= len(names):
        raise InputError(f"{path} is channel {index}, {root / 'dataset.json'} should name it, it names {len(names)}.")
    return FileName(root, numbered[1], names[index])


@lru_cache
def read_dataset_json(root: Path) -> Mapping[str, Any]:
    """The content of the ``dataset.json`` of a folder; nothing without that file.

    Raises:
        InputError: when it cannot be read, or holds something else.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    return read_json(path, "The description of the data set")


def channel_names(root: Path) -> tuple[str, ...]:
    """The channels that the ``dataset.json`` of a folder names, by our names of modalities; none without that file.

    Raises:
        InputError: when it cannot be read, or names a channel twice.
    """
    content = read_dataset_json(root)
    if not content:
        return ()
    path = root / "dataset.json"
    try:
        named = content.get("channel_names") or content.get("modality") or {}  # nnU-Net's word and the Decathlon's
        if not isinstance(named, Mapping):
            raise ValueError(f"it has {json.dumps(named)}")
        names = [str(named[key]).lower() for key in sorted(named, key=int)]
        if sorted(map(int, named)) != list(range(len(names))) or not all(names):
            raise ValueError(f"it has {json.dumps(named)}, where a number or a name is missing")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path} should name the channels as {{"0": "FLAIR", ..}}, it does not: {error}.') from error
    channels = tuple(MODALITY_OF_CHANNEL.get(name, name) for name in names)
    if len(set(channels)) < len(channels):
        raise InputError(f"{path} should name each channel once, it names {', '.join(channels)}.")
    if unclear := [name for name in channels if name in (LABEL, WHOLE) or "," in name]:
        raise InputError(
            f"{path} should name channels other than {LABEL} and {WHOLE}, which stand for a label and a file of all "
            f"channels, and without a comma, it names one {unclear[0]}."
        )
    return channels


def modalities_of(dataset_dir: str | Path) -> list[str]:
    """The channels that the ``dataset.json`` of a folder names, else the modalities of BraTS."""
    return list(channel_names(Path(dataset_dir)) or MODALITIES)


def group(paths: Sequence[Path], suffixes: Mapping[str, str] | None = None, known: Collection[str] = ()) -> list[Case]:
    """Cases from files, sorted by case ID: files of one folder with the same case ID belong together.

    Files without a modality in their name count as cases (4D) only in the folders of the Decathlon, or where no file
    has one: beside BraTS cases they are something else, an atlas or a brain mask. With ``suffixes`` the files of a case
    may lie in several folders, as BIDS keeps labels apart. A file that is called as a ``known`` case is all of it,
    whatever the ID ends with.
    """

    def named_as(path: Path) -> FileName | None:
        stem = nifti_stem(path)
        return FileName(path.parent, stem, WHOLE) if stem in known and stem else split_file_name(path, suffixes)

    named = [(path, name) for path in sorted(paths) if (name := named_as(path))]
    if any(name.modality not in (WHOLE, LABEL) for _, name in named):
        named = [
            (path, name)
            for path, name in named
            if name.modality != WHOLE or path.parent.name in IMAGE_FOLDERS or name.case_id in known
        ]
    cases: dict[tuple[str, Path | None], Case] = {}
    for path, (folder, case_id, modality) in named:
        case = cases.setdefault((case_id, None if suffixes else folder), Case(case_id, folder))
        case.files.setdefault(modality, []).append(path)
        if path.parent != folder:
            case.channels = channel_names(folder)
    return sorted(cases.values(), key=lambda case: (case.case_id, case.folder))


def list_cases(
    dataset_dir: str | Path,
    knob: str = "dataset_dir",
    suffixes: Mapping[str, str] | None = None,
    known: Collection[str] = (),
) -> list[Case]:
    """All cases of a folder and its subfolders, sorted by case ID; an ID may be there more than once.

    NIfTI files that belong to no case are counted in a warning: a label with another name would be missed else.

    Args:
        dataset_dir: the folder.
        knob: what the user calls it.
        suffixes: see :func:`split_file_name`.
        known: IDs of the cases that masks or probabilities of the folder, ``<case>.nii.gz``, are of.

    Raises:
        InputError: when the folder does not exist, cannot be read or holds no case.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise InputError(f"{knob} should be a folder of cases, {root} is not there.")
    paths = list(files_below(root))
    cases = group(paths, suffixes, known)
    if not cases:
        example = f"<case>_{next(iter(suffixes or ['flair']))}.nii.gz"
        raise InputError(f"{knob} should hold NIfTI files such as {example}, {root} holds none.")
    used = {path for case in cases for files in case.files.values() for path in files}
    others = sorted(path for path in paths if path.name.lower().endswith(NIFTI_EXTENSIONS) and path not in used)
    if others:
        logger.warning(
            f"{len(others)} NIfTI file(s) of {root} belong to no case by their names, such as {others[0]}: "
            f"a label is called <case>_{LABEL}.nii.gz, and suffixes says what other names mean."
        )
    return cases


def files_below(root: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders but hidden ones; links to folders are followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error

    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield from (
            path for name in sorted(names) if not name.startswith(".") and (path := Path(folder, name)).is_file()
        )


def find_cases(
    dataset_dir: str | Path,
    knob: str = "dataset_dir",
    suffixes: Mapping[str, str] | None = None,
    known: Collection[str] = (),
) -> list[Case]:
    """All cases of a folder and its subfolders, sorted by case ID.

    Raises:
        InputError: when the folder does not exist or holds no case, or two folders hold the same case ID.
    """
    cases = list_cases(dataset_dir, knob, suffixes, known)
    for case, other in pairwise(cases):
        if case.case_id == other.case_id:
            raise InputError(
                f"Case {case.case_id} is doubled, one folder is allowed: {case.folder} and {other.folder}."
            )
    return cases


def case_of(path: str | Path) -> Case:
    """The case that a file belongs to, with its siblings; or the one case of a folder.

    Raises:
        InputError: when a folder holds another number of cases than one.
    """
    path = Path(path)
    if path.is_dir():
        cases = find_cases(path)
        if len(cases) > 1:
            raise InputError(f"{path} should hold one case, it holds {', '.join(case.case_id for case in cases)}.")
        return cases[0]
    name = split_file_name(path)
    if name is None:  # a file of another format: only its last suffix is none of its name
        return Case(path.stem, path.parent, {WHOLE: [path]})
    if name.modality == WHOLE:
        channels = channel_names(name.folder) if path.parent != name.folder else ()
        twins = (path.with_name(name.case_id + extension) for extension in NIFTI_EXTENSIONS)
        return Case(name.case_id, name.folder, {WHOLE: sorted({path, *filter(Path.is_file, twins)})}, channels)
    folders = {path.parent, *(name.folder / folder for folder in (*IMAGE_FOLDERS, *LABEL_FOLDERS))}
    siblings = [
        sibling
        for folder in folders
        for entry in names_in(folder)
        # All cases may lie in one folder, thousands of files: most are told by how their names begin.
        if (entry.startswith(name.case_id) or folder.name in FOLDERS_OF_MISNAMED)
        and is_of(sibling := folder / entry, name)
    ]
    return group(siblings)[0] if siblings else Case(name.case_id, name.folder)


def names_in(folder: Path) -> list[str]:
    """What a folder holds; nothing where there is none."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from error


def first_file(entry: Mapping[str, Any]) -> str:
    """A file of an entry's image, which is one file or a mapping from modality to file."""
    image = entry["image"]
    return str(next(iter(image.values())) if isinstance(image, Mapping) else image)


def case_id_of(entry: Mapping[str, Any]) -> str:
    """The case of a datalist's entry: as the entry names it, else as its files do."""
    if entry.get("case_id"):
        return str(entry["case_id"])
    path = Path(first_file(entry))
    name = None if path.is_dir() else split_file_name(path)
    return name.case_id if name else case_of(path).case_id


def mask_of(output_dir: str | Path, case_id: str) -> Path:
    """Where the mask of a case is written, ``<case>_seg.nii.gz``: the one place that says so.

    Raises:
        InputError: when the ID cannot be a part of a file's name, or would hide the file.
    """
    name = f"{case_id}_{LABEL}.nii.gz"
    if not case_id or case_id.startswith(".") or re.search(r"[/\\\x00-\x1f]", case_id):
        raise InputError(
            f"Case {case_id!r}: an ID should be a file's name, without slashes and without a dot at its start."
        )
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise InputError(f"Case {case_id}: an ID should be shorter, {name} has {len(os.fsencode(name))} bytes.")
    return Path(output_dir) / name


def mask_record_of(mask: Path) -> Path:
    """The file of the record of a mask: ``p1_seg.json`` of ``p1_seg.nii.gz``."""
    return mask.with_name(mask.name.removesuffix(NIFTI_EXTENSIONS[0]) + ".json")


def cases_of_batch(batch: Mapping[str, Any]) -> list[str]:
    """The cases of a batch, sorted: as its entries name them, else as the loader did."""
    return sorted(set(batch["case_id"] if "case_id" in batch else batch["image"].meta["case_id"]))


def folder_of(path: str | Path) -> Path:
    """The folder of a file's case: its own, or above ``imagesTr`` and the like where all cases share them."""
    name = split_file_name(Path(path))
    return Path(path).parent if name is None else name.folder


def is_of(path: Path, name: FileName) -> bool:
    other = split_file_name(path)
    return other is not None and (other.folder, other.case_id) == (name.folder, name.case_id)
