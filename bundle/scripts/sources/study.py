"""A DICOM study: which of its series is which modality, by what they say of themselves."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import itk
import numpy as np

from ..data.cases import files_below
from ..errors import InputError
from .dicom import GAP_TOLERANCE, is_dicom, sort_slices

__all__ = ["Series", "choose_series", "describe_choice", "read_study"]

logger = logging.getLogger(__name__)

TAGS = {
    "study": "0020|000d",
    "uid": "0020|000e",
    "frame": "0020|0052",
    "instance": "0008|0018",
    "place": "0020|0032",
    "characters": "0008|0005",
    "patient": "0010|0020",
    "number": "0020|0011",
    "kind": "0008|0060",
    "description": "0008|103e",
    "protocol": "0018|1030",
    "sequence": "0018|0024",
    "image_type": "0008|0008",
    "agent": "0018|0010",
    "repetition_ms": "0018|0080",
    "echo_ms": "0018|0081",
    "inversion_ms": "0018|0082",
}
# Python's names of what DICOM calls character sets; those with escape sequences by the last one that is named.
CODECS = {
    **{f"ISO_IR {number}": f"iso8859_{part}" for number, part in zip((100, 101, 109, 110, 144), range(1, 6))},
    **{"ISO_IR 127": "iso8859_6", "ISO_IR 126": "iso8859_7", "ISO_IR 138": "iso8859_8", "ISO_IR 148": "iso8859_9"},
    **{"ISO_IR 13": "shift_jis", "ISO_IR 87": "iso2022_jp", "ISO_IR 159": "iso2022_jp_2", "ISO_IR 149": "euc_kr"},
    **{"ISO_IR 58": "gb2312", "ISO_IR 166": "tis_620", "ISO_IR 203": "iso8859_15"},
    **{"GB18030": "gb18030", "GBK": "gbk"},
}
LEAST_SLICES = 8  # fewer are a localizer, a calibration, a single picture
LOCALIZER = re.compile(r"locali[sz]|scout|survey|topogram|\bloc\b|plan scan")
# Neither anatomy by T1 nor by T2: diffusion, perfusion, blood, vessels, and what was computed of others.
OTHER = re.compile(
    r"dwi|adc|dti|diff|trace|ep2d|perf|dsc|dce|rcbv|swi|swan|t2\s?\*|t2 ?star|hemo|\btof\b|mra\b|angio|fmri|bold|"
    r"subtr|\bsub\b|phase|\bmip\b|projection|b0 ?map|field ?map|\bmap|t[12]map|"
    r"post ?- ?pre|spectro"
)
CONTRAST = re.compile(
    r"\+ ?c\b|\bc ?\+|\bt?1?ce\b|t1c\b|post(?!er|[ -]?op)|gad|\bgd|gd\b|[ck]ontrast|\bkm\b|enhanced|\+ ?km"
)
NO_CONTRAST = re.compile(
    r"pre\b|pre[ -]?(?=gad|gd|con|kon|km)|without|w/o|\bwo\b|\bnativ|\b(no|ohne|sans|sin|senza)\b|\bnon|unenhanced|"
    r"\bc-(?!\w)"
)
# Of the whole study, not of a series.
BOTH = re.compile(r"\bw(ith)? ?(/|&|\+|and)? ?(w/?o|without)\b( ?(iv )?[ck]ontrast| gad\w*| km)?")
NO_AGENT = re.compile(r"no|non|none|n/?a|not applicable|unknown|false|0|-|((no|without|w/?o)\b.*)", re.IGNORECASE)

# What weights may ask for beside the four of a brain: the modality that a series is, and what it says besides.
NARROWER = {"t2spir": ("t2", re.compile(r"spir|spair|fat.?sat|\bfs\b"))}
OF_MR = ("t1", "t1ce", "t2", "flair", *NARROWER)


@dataclass
class Series:
    """A series of a study: its files, one for each slice or one of many frames, and its attributes as text.

    ``left_out`` says why it is no candidate.
    """

    folder: Path
    attributes: dict[str, str]
    num_slices: int = 0
    files: list[Path] = field(default_factory=list)
    in_color: bool = False
    left_out: str | None = None

    @property
    def texts(self) -> list[str]:
        """What a series is called, what says most of it first."""
        return [self.attributes[name].lower().replace("_", " ") for name in ("description", "protocol", "sequence")]

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def __str__(self) -> str:
        number, description = self.attributes["number"] or "?", self.attributes["description"] or "no description"
        return f"series {number} ({description}, {self.attributes['kind']}, {self.num_slices} slices)"

    def milliseconds(self, name: str) -> float:
        try:
            return float(self.attributes[name])
        except ValueError:
            return 0.0


def read_study(folder: Path) -> list[Series]:
    """The series of a study, by their numbers; files may lie in subfolders, and be called anything.

    A file that is there twice, by its own UID, counts once; one that is no picture is counted in the log.

    Raises:
        InputError: when there is no picture, or pictures are of several studies or patients, do not say of which, or
            lie at two places with one UID.
    """
    if not folder.is_dir():
        raise InputError(f"dicom should be the folder of a study, {folder} is not there.")
    found: dict[str, Series] = {}
    owners: dict[str, dict[str, Path]] = defaultdict(dict)
    instances: dict[str, tuple[Path, str]] = {}
    others = []
    for file in files_below(folder):
        if file.name.upper() == "DICOMDIR" or not is_dicom(file):
            continue
        attributes, frames, in_color = read_attributes(file)
        if attributes is None:
            others.append(file)
            continue
        if not attributes["study"] or not attributes["uid"]:
            raise InputError(f"{file} should say of which study and series it is, it does not.")
        for name in ("study", "patient"):
            owners[name].setdefault(attributes[name], file)
        first, place = instances.setdefault(attributes["instance"] or str(file), (file, attributes["place"]))
        if place != attributes["place"]:
            raise InputError(f"Each slice should have a UID of its own, {first} and {file} have one and two positions.")
        if first != file:
            continue
        series = found.setdefault(attributes["uid"], Series(file.parent, attributes))
        series.files.append(file)
        series.num_slices += frames
        series.in_color |= in_color
    if not found:
        raise InputError(f"dicom should be the folder of a study, {folder} holds no DICOM picture.")
    for name, files in owners.items():
        if len(files) > 1:
            one, other = list(files.values())[:2]
            several = "patients" if name == "patient" else "studies"
            raise InputError(f"{folder} should hold one study, {one} and {other} are of two {several}.")
    if others:
        logger.warning(
            f"{len(others)} file(s) of {folder} are no pictures that can be read, and are left out, such as "
            f"{others[0].relative_to(folder)}."
        )
    for series in found.values():
        image_type = series.attributes["image_type"].upper()
        if "LOCALIZER" in image_type or LOCALIZER.search(series.text):
            series.left_out = "a localizer"
        elif series.num_slices < LEAST_SLICES:
            series.left_out = "too few slices"
        elif series.attributes["kind"] not in ("MR", "CT"):
            series.left_out = "neither MR nor CT"
        elif series.in_color:
            series.left_out = "in color"
    return sorted(found.values(), key=lambda series: (int_of(series.attributes["number"]), series.attributes["uid"]))


def int_of(text: str) -> int:
    return int(text) if text.isdigit() else -1


def read_attributes(file: Path) -> tuple[dict[str, str] | None, int, bool]:
    """What a file says of itself, empty where it does not, its frames, and whether it is in color.

    There are no attributes where it is no picture.
    """
    io = itk.GDCMImageIO.New(FileName=str(file))
    try:
        io.ReadImageInformation()
    except RuntimeError:
        return None, 0, False
    tags = io.GetMetaDataDictionary()
    # GDCM fills up a text of odd length with a blank or a zero.
    attributes = {name: str(tags[tag]).strip(" \0") if tags.HasKey(tag) else "" for name, tag in TAGS.items()}
    attributes = {name: decoded(text, attributes["characters"]) for name, text in attributes.items()}
    return attributes, int(io.GetDimensions(2)), io.GetNumberOfComponents() != 1


def decoded(text: str, characters: str) -> str:
    """A text as ITK gives it, its bytes taken for UTF-8, by the character sets that the file names; for one line."""
    last = re.sub(r"^ISO 2022 IR", "ISO_IR", characters.split("\\")[-1].strip())
    content = text.encode("utf-8", "surrogateescape")
    said = content.decode(CODECS.get(last, "utf-8"), "replace")
    return "".join(letter if letter.isprintable() else " " for letter in re.sub(r"\x1b[$()]+[A-Z@]", "", said))


def modality_of(series: Series) -> str | None:
    """``ct``, ``t1``, ``t1ce``, ``t2`` or ``flair``, by description first, by the timing of the sequence else."""
    if series.attributes["kind"] == "CT":
        return "ct"
    text = series.text
    if OTHER.search(text) or "PROJECTION" in series.attributes["image_type"].upper():
        return None
    is_t1, is_t2 = bool(re.search(r"t1|mp ?rage|bravo|spgr", text)), "t2" in text
    is_flair = bool(re.search(r"flair|dark.?fluid|tirm", text))
    if not (is_t1 or is_t2 or is_flair):
        echo_ms, inversion_ms = series.milliseconds("echo_ms"), series.milliseconds("inversion_ms")
        is_flair = inversion_ms > 1500 and echo_ms > 60
        is_t2 = not is_flair and echo_ms > 70
        is_t1 = 0 < echo_ms < 30 and 0 < series.milliseconds("repetition_ms") < 1000
    if is_flair and not (is_t1 and not is_t2):  # there is a FLAIR of T1, too
        return "flair"
    if is_t2 and not is_t1:
        return "t2"
    if is_t1 and not is_t2:
        return "t1ce" if has_agent(series) else "t1"
    return None


def has_agent(series: Series) -> bool:
    """Whether a contrast agent was given: by the first of its names that says so, or that there was none."""
    for text in series.texts:
        of_series = BOTH.sub(" ", text)
        if NO_CONTRAST.search(of_series):
            return False
        if CONTRAST.search(of_series):
            return True
    agent = series.attributes["agent"]
    return bool(agent) and not NO_AGENT.fullmatch(agent)


def fits(series: Series, name: str) -> bool:
    """Whether a series is a modality, by what it says."""
    found = modality_of(series)
    if found is None or name not in NARROWER:
        return found == name
    base, said = NARROWER[name]
    return found == base and said.search(series.text) is not None


def choose_series(
    study: Sequence[Series], modalities: Sequence[str], given: Mapping[str, str | None], may_miss: bool = False
) -> dict[str, Series]:
    """The series of each modality, its files sorted.

    Of several that fit, the one with most slices is taken.

    Args:
        study: from :func:`read_study`.
        modalities: those that are wanted.
        given: the number or UID of the series of a modality, where it is known.
        may_miss: whether a modality that no series fits is left out, but for the last.

    Raises:
        InputError: when none fits, two fit as well, a given one is not there or given twice, they lie in different
            frames of reference, or one is not whole.
    """
    there = "; ".join(f"{each}, {each.left_out}" if each.left_out else str(each) for each in study)
    named = {name: series_named(study, name, given[name], there) for name in modalities if given.get(name)}
    for name, series in named.items():
        if twice := [other for other in named if other != name and named[other] is series]:
            raise InputError(f"{name} and {twice[0]} should be two series, both are {series}.")
    chosen: dict[str, Series] = {}
    for name in modalities:
        if name in named:
            chosen[name] = named[name]
            continue
        free = [each for each in study if all(each is not other for other in named.values())]
        fitting = [each for each in free if each.left_out is None and fits(each, name)]
        if not fitting and may_miss and (chosen or name != modalities[-1]):
            continue
        if not fitting:
            raise InputError(f"No series is {name} by what it says: name it by --{name} <number>. There are {there}.")
        most = max(each.num_slices for each in fitting)
        longest = [each for each in fitting if each.num_slices == most]
        if len(longest) > 1:
            raise InputError(
                f"Several series may be {name}, {' and '.join(map(str, longest))}: name one by --{name} <number>."
            )
        for other in fitting:
            if other is not longest[0]:
                other.left_out = f"{name} with fewer slices"
        chosen[name] = longest[0]
    reference = next(iter(chosen))
    for name, series in chosen.items():
        if series.attributes["frame"] != chosen[reference].attributes["frame"]:
            raise InputError(
                f"All series should lie in one frame of reference, {reference}, {chosen[reference]}, and {name}, "
                f"{series}, do not: the patient was moved between them, register them first."
            )
    if len(chosen) > 1 and not chosen[reference].attributes["frame"]:
        logger.warning("No series says in which frame of reference it lies: they are taken to lie in one.")
    for series in chosen.values():
        if len(series.files) > 1:
            series.files = sort_slices(series.files, series.folder)
        elif series.num_slices > 1:
            check_frames(series.files[0])
    return chosen


def series_named(study: Sequence[Series], name: str, wanted: str | None, there: str) -> Series:
    """The series of a modality that is named by its number or UID; ``there`` names all for a sentence.

    Raises:
        InputError: when it is not one, or of another kind.
    """
    fitting = [each for each in study if wanted in (each.attributes["number"], each.attributes["uid"])]
    if len(fitting) != 1:
        raise InputError(f"{name} should be the number or UID of one series, {wanted} is of {len(fitting)}: {there}.")
    kind = "CT" if name == "ct" else "MR" if name in OF_MR else None
    if kind is not None and fitting[0].attributes["kind"] != kind:
        raise InputError(f"{name} should be a series of {kind}, {fitting[0]} is not.")
    return fitting[0]


def check_frames(file: Path) -> None:
    """Refuses a file of many frames that are not one stack in its order, as ITK takes any for one.

    Raises:
        InputError: when they are not, or pydicom, which reads where each lies, is missing.
    """
    try:
        pydicom = import_module("pydicom")
    except ImportError as error:
        raise InputError(
            f"{file} holds many frames, to see where they lie needs pydicom: pip install -r requirements-dicom.txt."
        ) from error
    header = pydicom.dcmread(file, stop_before_pixels=True)
    try:
        shared = header.SharedFunctionalGroupsSequence[0]
        frames = [(frame, shared) for frame in header.PerFrameFunctionalGroupsSequence]
        places, axes = [], []
        for groups in frames:
            place, orientation = (
                next(group[name] for group in groups if name in group).value[0]
                for name in ("PlanePositionSequence", "PlaneOrientationSequence")
            )
            places.append(np.array(place.ImagePositionPatient, float))
            axes.append(np.array(orientation.ImageOrientationPatient, float))
    except (AttributeError, StopIteration, IndexError) as error:
        raise InputError(f"{file} holds many frames and should say where each lies.") from error
    normal = np.cross(axes[0][:3], axes[0][3:])
    steps = np.diff(places, axis=0)
    step_mm = abs(float(normal @ steps[0]))
    even = np.abs(steps - steps[0]).max() <= GAP_TOLERANCE * step_mm
    upright = np.linalg.norm(steps[0] - normal * (normal @ steps[0])) <= GAP_TOLERANCE * step_mm
    if step_mm == 0 or not (even and upright and np.allclose(axes, axes[0], atol=1e-3)):
        raise InputError(f"{file} should hold one stack of frames at one distance, one above the other, it does not.")


def describe_choice(study: Sequence[Series], chosen: Mapping[str, Series]) -> str:
    """Which series was taken for what, and which was left out and why, a line each."""
    lines = [f"{name}: {series}" for name, series in chosen.items()]
    for series in study:
        if all(series is not other for other in chosen.values()):
            lines.append(f"left out: {series}, {series.left_out or modality_of(series) or 'another kind of picture'}")
    return "\n".join(lines)
