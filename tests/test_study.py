"""A DICOM study in, a mask out: which series is which, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from dicom_files import OBLIQUE, write_series

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.inference.segment import same_grid
from scripts.networks import MISSU
from scripts.sources.dicom import read_slices, sorted_slices
from scripts.sources.study import choose_series, decoded, describe_choice, modality_of, read_study
from scripts.weights.checkpoints import save_weights
from scripts.weights.record import arguments_of

BUNDLE = Path(__file__).parents[1] / "bundle"
MODALITIES = ["t1", "t1ce", "t2", "flair"]
SHAPE = (16, 24, 20)  # slices, rows, columns
NUMBER, DESCRIPTION, STUDY, FRAME, AGENT = "0020|0011", "0008|103e", "0020|000d", "0020|0052", "0018|0010"
PROTOCOL, CHARACTERS = "0018|1030", "0008|0005"


def brain(seed: int) -> np.ndarray:
    """A box of noise in air: half of the volume is empty."""
    voxels = np.zeros(SHAPE)
    voxels[2:-2, 4:-4, 3:-3] = np.random.default_rng(seed).integers(100, 200, (12, 16, 14))
    return voxels


def add(study: Path, number: int, description: str, voxels: np.ndarray | None = None, **tags: str) -> Path:
    """A series in a folder of its own, its files named as a PACS does; ``tags`` by the names above."""
    folder = study / f"S{number}"
    write_series(folder, brain(number) if voxels is None else voxels, OBLIQUE)
    said = {"NUMBER": str(number), "DESCRIPTION": description, "STUDY": "2.25.1", "FRAME": "2.25.2"} | tags
    for file in sorted(folder.glob("*.dcm")):
        slice_ = SimpleITK.ReadImage(str(file))
        for name, value in said.items():
            slice_.SetMetaData(globals().get(name, name), value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(slice_)
        file.rename(file.with_name(f"IM{file.stem}.1"))
    return folder


@pytest.fixture
def study(tmp_path) -> Path:
    """Four series of a brain, oblique, on one grid; a localizer, a diffusion and a shorter T2 beside them."""
    folder = tmp_path / "study"
    add(folder, 1, "localizer 3 plane")
    add(folder, 2, "ax t1 se")
    add(folder, 3, "AX T2 TSE")
    add(folder, 4, "ep2d_diff_t2 ADC")
    add(folder, 5, "t2_tirm_tra_dark-fluid")
    add(folder, 6, "ax T1 se +C")
    add(folder, 7, "COR T2", brain(7)[:10])
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    """Of four modalities, with their record."""
    torch.manual_seed(0)
    network = MISSU(4, 4, 16, init_filters=8, hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2)
    settings = {"modalities": MODALITIES, "spacing_mm": [3, 3, 3], "roi_size": [16, 16, 16], "invert_logits": True}
    record = {"settings": {**settings, "label_convention": "brats2018", "network": arguments_of(network)}}
    path = tmp_path / "weights.pt"
    save_weights(network, path, {**record, "cases": [], "metrics": {}, "dataset": "phantoms", "epoch": 1})
    return path


def test_which_series_is_which(study):
    found = read_study(study)
    chosen = choose_series(found, MODALITIES, {})
    assert {name: series.attributes["number"] for name, series in chosen.items()} == {
        **{"t1": "2", "t1ce": "6", "t2": "3", "flair": "5"},
    }
    assert [file.name for file in chosen["t1"].files] == [f"IM{index}.1" for index in range(SHAPE[0])]
    assert describe_choice(found, chosen).splitlines() == [
        "t1: series 2 (ax t1 se, MR, 16 slices)",
        "t1ce: series 6 (ax T1 se +C, MR, 16 slices)",
        "t2: series 3 (AX T2 TSE, MR, 16 slices)",
        "flair: series 5 (t2_tirm_tra_dark-fluid, MR, 16 slices)",
        "left out: series 1 (localizer 3 plane, MR, 16 slices), a localizer",
        "left out: series 4 (ep2d_diff_t2 ADC, MR, 16 slices), another kind of picture",
        "left out: series 7 (COR T2, MR, 10 slices), t2 with fewer slices",
    ]
    chosen = choose_series(read_study(study), ["t2"], {"t2": "7"})
    assert chosen["t2"].num_slices == 10


@pytest.mark.parametrize(
    ("description", "tags", "modality"),
    [
        ("T1 FLAIR", {}, "t1"),
        ("Ax T2 FLAIR", {}, "flair"),
        ("T1post", {}, "t1ce"),
        ("MPRAGE", {AGENT: "Gadovist"}, "t1ce"),
        ("MPRAGE pre", {AGENT: "Gadovist"}, "t1"),
        ("t1 without contrast", {}, "t1"),
        ("t1_mprage_C+", {}, "t1ce"),
        ("T1 enhanced", {}, "t1ce"),
        ("T1 mit KM", {}, "t1ce"),
        ("T1 ohne KM", {}, "t1"),
        ("T1 sans gado", {}, "t1"),
        ("T1 sin contraste", {}, "t1"),
        ("T1 precontrast", {}, "t1"),
        ("T1 PREGAD", {}, "t1"),
        ("AX T1 WO CONTRAST", {}, "t1"),
        ("T1 posterior fossa", {}, "t1"),
        ("T1 post op", {}, "t1"),
        ("AX T1", {PROTOCOL: "BRAIN W/WO CONTRAST"}, "t1"),
        ("AX T1 POST", {PROTOCOL: "BRAIN W WO CONTRAST"}, "t1ce"),
        ("AX T1 PRE", {PROTOCOL: "BRAIN WITH CONTRAST"}, "t1"),
        ("MPRAGE", {AGENT: "NONE"}, "t1"),
        ("MPRAGE", {AGENT: "No IV contrast"}, "t1"),
        ("T1 post-pre", {}, None),
        ("T1 MAP", {}, None),
        ("T2*", {}, None),
        ("perfusion T1 DCE", {}, None),
        ("brain", {"0018|0080": "500", "0018|0081": "9.5"}, "t1"),
        ("brain", {"0018|0080": "9000", "0018|0081": "120", "0018|0082": "2500"}, "flair"),
        ("brain", {"0018|0080": "5000", "0018|0081": "100"}, "t2"),
        ("brain", {}, None),
        ("", {"0008|0060": "CT"}, "ct"),
    ],
)
def test_modality_by_what_a_series_says(tmp_path, description, tags, modality):
    add(tmp_path, 1, description, np.ones((2, 4, 4)), **tags)
    [series] = read_study(tmp_path)
    assert modality_of(series) == modality


@pytest.mark.parametrize(
    ("characters", "description", "said"),
    [
        ("ISO_IR 100", "Schädel T1".encode("latin-1"), "Schädel T1"),
        ("ISO_IR 192", "Schädel T1".encode(), "Schädel T1"),
        ("GB18030", "头 T1".encode("gb18030"), "头 T1"),
        ("\\ISO 2022 IR 87", "脳 T1".encode("iso2022_jp"), "脳 T1"),
        ("", "Schädel T1".encode("latin-1"), "Sch\ufffddel T1"),
        ("", b"T1\n\x1b[31mred", "T1  [31mred"),
    ],
)
def test_descriptions_can_be_printed(characters, description, said):
    text = decoded(description.decode("utf-8", "surrogateescape"), characters)
    assert text.encode() == said.encode()


def test_a_description_in_another_character_set(tmp_path, capsys):
    folder = add(tmp_path, 1, "Sch?del T1", **{CHARACTERS: "ISO_IR 100"})
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"Sch?del", b"Sch\xe4del"))
    study = read_study(tmp_path)
    assert describe_choice(study, choose_series(study, ["t1"], {})) == "t1: series 1 (Schädel T1, MR, 16 slices)"


INSTANCE = b"\x08\x00\x18\x00"  # the tag; then come four bytes of length and the UID


def test_slices_without_a_uid_are_all_there(tmp_path):
    for file in add(tmp_path, 1, "T1").iterdir():
        file.write_bytes(file.read_bytes().replace(INSTANCE, b"\x08\x00\x17\x00"))
    [series] = read_study(tmp_path)
    assert series.num_slices == SHAPE[0]


def test_slices_that_share_a_uid_are_refused(tmp_path):
    for file in add(tmp_path, 1, "T1").iterdir():
        before, content = file.read_bytes().split(INSTANCE)
        uid = b"2.25.1".ljust(content[0], b"\0")
        file.write_bytes(before + INSTANCE + content[:4] + uid + content[4 + content[0] :])
    with pytest.raises(InputError, match=r"Each slice should have a UID of its own, .*IM0.1 and .*IM1.1 have one"):
        read_study(tmp_path)


def test_a_series_that_is_named_is_no_other_modality(study):
    """Series 6 says that it is T1ce: who names it as T1 knows better."""
    with pytest.raises(InputError, match="t1 and t1ce should be two series, both are series 6"):
        choose_series(read_study(study), MODALITIES, {"t1": "6", "t1ce": "6"})
    with pytest.raises(InputError, match=r"No series is t1ce by what it says.*3 plane, MR, 16 slices\), a loc"):
        choose_series(read_study(study), MODALITIES, {"t1": "6"})


def test_a_file_that_is_there_twice_counts_once(study):
    (study / "again").mkdir()
    (study / "again" / "x").write_bytes((study / "S2" / "IM3.1").read_bytes())
    assert choose_series(read_study(study), ["t1"], {})["t1"].num_slices == SHAPE[0]


def test_study_in_mask_and_page_out(study, weights, tmp_path, capsys):
    output, page = tmp_path / "out" / "mask.nii.gz", tmp_path / "out" / "page.html"
    arguments = ["--checkpoint", weights, "--dicom", study, "--output", output, "--report", page]
    (study / "S2" / "README").write_text("no picture")
    assert main(["segment", *map(str, arguments)]) is None
    assert "t1ce: series 6 (ax T1 se +C, MR, 16 slices)" in capsys.readouterr().out
    record = json.loads(output.with_name("mask.json").read_text())
    assert record["series"]["t1ce"].startswith("series 6 (ax T1 se +C, MR, 16 slices), 2.25.")
    left_out = f"1 file(s) of {study} are no pictures that can be read, and are left out, such as S2/README."
    assert record["warnings"][0] == left_out
    assert left_out in page.read_text(encoding="utf-8")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(study / "S2" / f"IM{index}.1") for index in range(SHAPE[0])])
    scan, mask = reader.Execute(), SimpleITK.ReadImage(str(output))
    assert mask.GetSize() == scan.GetSize()
    for index in ((0, 0, 0), (19, 23, 15)):
        place = scan.TransformIndexToPhysicalPoint(index)
        assert mask.TransformIndexToPhysicalPoint(index) == pytest.approx(place, abs=1e-3)
    assert page.is_file()


def test_seg_of_a_study(study, weights, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pip install -r requirements-dicom.txt")
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    for file in study.glob("*/*"):
        slice_ = pydicom.dcmread(file)
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"):
            setattr(slice_, name, "")
        slice_.StudyTime = slice_.AccessionNumber = ""
        slice_.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        slice_.save_as(file)
    output, seg, sr = tmp_path / "mask.nii.gz", tmp_path / "mask.dcm", tmp_path / "volumes.dcm"
    arguments = ["--checkpoint", weights, "--dicom", study, "--output", output, "--seg", seg, "--sr", sr]
    assert main(["segment", *map(str, arguments)]) is None
    assert pydicom.dcmread(sr).StudyInstanceUID == "2.25.1"
    content = pydicom.dcmread(seg)
    assert content.StudyInstanceUID == "2.25.1"
    assert np.count_nonzero(content.pixel_array) == np.count_nonzero(nib.load(output).dataobj)


def without_study(study: Path) -> None:
    """Gives the UID of the study another tag: what writes DICOM does not leave it out."""
    file = study / "S6" / "IM4.1"
    content = file.read_bytes()
    assert content.count(b"\x20\x00\x0d\x00") == 1
    file.write_bytes(content.replace(b"\x20\x00\x0d\x00", b"\x20\x00\x0c\x00"))


def with_skull() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 50, SHAPE)


FAULTS = {
    "two studies": (lambda study: add(study, 9, "T1", STUDY="2.25.9"), "are of two studies"),
    "two patients": (lambda study: add(study, 9, "T1", **{"0010|0020": "other"}), "are of two patients"),
    "no study": (without_study, "should say of which study and series it is"),
    "two frames": (lambda study: add(study, 2, "ax t1 se", FRAME="2.25.9"), "should lie in one frame of reference"),
    "no flair": (
        lambda study: [file.unlink() for file in (study / "S5").iterdir()],
        "No series is flair by what it says: name it by --flair <number>",
    ),
    "two of them": (lambda study: add(study, 9, "T1 sag"), "Several series may be t1, series 2"),
    "a gap": (lambda study: (study / "S6" / "IM7.1").unlink(), "should hold slices at one distance"),
    "two grids": (
        lambda study: add(study, 2, "ax t1 se", np.pad(brain(2), ((0, 1), (0, 0), (0, 0)))),
        "t1 and t1ce lie on two grids",
    ),
    "a skull": (lambda study: add(study, 2, "ax t1 se", with_skull()), "The brain has its skull, t1 has 0% air"),
    "nothing": (lambda study: [file.unlink() for file in study.glob("*/*")], "holds no DICOM picture"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(study, weights, tmp_path, monkeypatch, fault):
    monkeypatch.setitem(sys.modules, "brainles_preprocessing.preprocessor", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "brainles_preprocessing", None)
    if fault in ("two frames", "two grids", "a skull"):
        for file in (study / "S2").iterdir():
            file.unlink()
    plant, sentence = FAULTS[fault]
    plant(study)
    output = tmp_path / "out" / "mask.nii.gz"
    message = str(main(["segment", "--checkpoint", str(weights), "--dicom", str(study), "--output", str(output)]))
    assert message.startswith("Error: ")
    assert sentence in message
    assert "\n" not in message
    assert not output.exists()


def test_a_seg_of_files_without_patient_is_refused(study, weights, tmp_path):
    """As an anonymizer may leave them: before minutes of work, and nothing is written."""
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    pydicom = pytest.importorskip("pydicom")
    for file in (study / "S2").iterdir():
        slice_ = pydicom.dcmread(file)
        del slice_.PatientID, slice_.PatientName
        slice_.save_as(file)
    output, seg = tmp_path / "out" / "mask.nii.gz", tmp_path / "out" / "mask.dcm"
    arguments = ["--checkpoint", weights, "--dicom", study, "--output", output, "--seg", seg]
    message = str(main(["segment", *map(str, arguments)]))
    assert "should say to which patient and study it belongs, it lacks PatientID, PatientName" in message
    assert "\n" not in message
    assert not output.parent.exists()


STAND_IN = """
import nibabel as nib
import numpy as np
from pathlib import Path

class Modality:
    def __init__(self, modality_name, input_path, raw_bet_output_path, atlas_correction):
        self.name, self.input, self.output = modality_name, Path(input_path), Path(raw_bet_output_path)

class CenterModality(Modality):
    pass

class NativeSpacePreprocessor:
    def __init__(self, center_modality, moving_modalities, temp_folder, use_gpu):
        assert type(center_modality) is CenterModality
        self.parts, self.temp_folder = [center_modality, *moving_modalities], temp_folder

    def run(self, log_file):
        if {fails}:
            raise OSError("no network\\nto get the weights of HD-BET.")
        center = nib.load(self.parts[0].input)
        for number, part in enumerate(self.parts):
            brain = np.zeros(center.shape, np.float32)
            inside = tuple(slice(side // 4, -(side // 4)) for side in center.shape)
            brain[inside] = np.random.default_rng(number).integers(100, 200, brain[inside].shape)
            nib.save(nib.Nifti1Image(brain, center.affine), part.output)
"""


def prepare_with_stand_in(study: Path, weights: Path, tmp_path: Path, fails: bool) -> subprocess.CompletedProcess[str]:
    """The command in a process that finds a stand-in of brainles-preprocessing, as its 0.6.14 documents its API."""
    package = tmp_path / "site" / "brainles_preprocessing"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "modality.py").write_text(STAND_IN.replace("{fails}", str(fails)))
    (package / "preprocessor.py").write_text("from .modality import NativeSpacePreprocessor\n")
    about = tmp_path / "site" / "brainles_preprocessing-0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brainles-preprocessing\nVersion: 0.0\n")
    arguments = ["--checkpoint", weights, "--dicom", study, "--output", tmp_path / "out" / "mask.nii.gz"]
    command = [sys.executable, "-m", "scripts", "segment", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    return subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True)


def with_skull_on_two_grids(study: Path) -> None:
    for file in (study / "S2").iterdir():
        file.unlink()
    add(study, 2, "ax t1 se", np.pad(with_skull(), ((0, 1), (0, 0), (0, 0)), mode="edge"))


def test_a_brain_is_prepared_where_that_is_installed(study, weights, tmp_path):
    with_skull_on_two_grids(study)
    done = prepare_with_stand_in(study, weights, tmp_path, fails=False)
    assert done.returncode == 0, done.stderr
    assert "brainles-preprocessing 0.0 registers the series to t1ce and strips the skull" in done.stdout + done.stderr
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(study / "S6" / f"IM{index}.1") for index in range(SHAPE[0])])
    assert SimpleITK.ReadImage(str(tmp_path / "out" / "mask.nii.gz")).GetSize() == reader.Execute().GetSize()


def test_a_preparation_that_fails_ends_in_a_sentence(study, weights, tmp_path):
    with_skull_on_two_grids(study)
    done = prepare_with_stand_in(study, weights, tmp_path, fails=True)
    assert done.returncode == 1
    assert "Error: brainles-preprocessing could not prepare the brain: to get the weights of HD-BET." in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_seg_needs_dicom(weights, tiny_case, tmp_path):
    files = [each for name in MODALITIES for each in (f"--{name}", str(tiny_case[name]))]
    arguments = ["--checkpoint", str(weights), "--output", str(tmp_path / "m.nii.gz"), "--seg", str(tmp_path / "m.dcm")]
    assert "--seg needs --dicom" in str(main(["segment", *files, *arguments]))


def test_weights_that_may_miss_a_modality_take_what_is_there(study):
    found = [series for series in read_study(study) if series.attributes["number"] not in ("2", "5")]
    assert list(choose_series(found, MODALITIES, {}, may_miss=True)) == ["t1ce", "t2"]
    with pytest.raises(InputError, match="No series is flair"):
        choose_series([], MODALITIES, {}, may_miss=True)


def test_a_number_that_no_series_has(study):
    with pytest.raises(InputError, match="t1 should be the number or UID of one series, 99 is of 0"):
        choose_series(read_study(study), ["t1"], {"t1": "99"})


def test_a_tilted_gantry_is_refused(tmp_path):
    folder = add(tmp_path, 1, "T1", np.ones((9, 4, 4)))
    for index, file in enumerate(sorted(folder.iterdir())):
        slice_ = SimpleITK.ReadImage(str(file))
        along = np.array(OBLIQUE[:3])
        place = np.array(slice_.GetOrigin()) + along * index
        slice_.SetOrigin(place.tolist())
        slice_.SetMetaData("0020|0032", "\\".join(f"{value:.4f}" for value in place))
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file.with_name(f"{index}.dcm")))
        writer.Execute(slice_)
        file.unlink()
    with pytest.raises(InputError, match=r"shifted by 1\.00 mm within its plane"):
        choose_series(read_study(tmp_path), ["t1"], {})


def write_frames(slices: Path, folder: Path) -> Any:
    """A series as newer scanners write it, one file of many frames, made of one slice by slice by highdicom."""
    highdicom = pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    pydicom = pytest.importorskip("pydicom")
    headers = [pydicom.dcmread(file) for file in sorted(slices.iterdir())]
    for header in headers:
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
            setattr(header, name, "")
        header.AccessionNumber = header.Manufacturer = ""
        header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        header.SliceThickness, header.ImageType = 3, ["ORIGINAL", "PRIMARY", "OTHER"]
    number, description = headers[0].SeriesNumber, headers[0].SeriesDescription
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(headers, f"2.25.31{number}", number, f"2.25.32{number}", 1)
    whole.SeriesDescription = description
    folder.mkdir(parents=True)
    whole.save_as(folder / "IM1")
    return whole


def test_a_file_of_many_frames(tmp_path):
    folder = add(tmp_path / "slices", 3, "T1 post")
    by_slices = read_slices(choose_series(read_study(folder), ["t1ce"], {})["t1ce"].files, folder)
    whole = write_frames(folder, tmp_path / "whole")
    [series] = read_study(tmp_path / "whole")
    assert (modality_of(series), series.num_slices) == ("t1ce", SHAPE[0])
    by_frames = read_slices(choose_series([series], ["t1ce"], {})["t1ce"].files, tmp_path)
    with pytest.raises(InputError, match=f"IM1 should hold one slice, it holds {SHAPE[0]}"):
        sorted_slices(tmp_path / "whole")
    # Its frames are in the opposite order; it is the same scan all the same.
    turned = itk.flip_image_filter(by_frames, flip_axes=(False, False, True), flip_about_origin=False)
    assert same_grid(turned, by_slices)
    assert (itk.array_from_image(turned) == itk.array_from_image(by_slices)).all()
    whole.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    whole.save_as(tmp_path / "whole" / "IM1")
    with pytest.raises(InputError, match="should hold one stack of frames"):
        choose_series(read_study(tmp_path / "whole"), ["t1ce"], {})


def test_a_study_of_files_of_many_frames(study, weights, tmp_path):
    """The mask, and the SEG, lie where they lie by slices."""
    whole = tmp_path / "whole"
    for number in (2, 3, 5, 6):
        write_frames(study / f"S{number}", whole / str(number))
    places = {}
    for name, folder in (("slices", study), ("frames", whole)):
        output, seg = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.dcm"
        arguments = ["--checkpoint", weights, "--dicom", folder, "--output", output]
        assert main(["segment", *map(str, arguments), *([] if name == "slices" else ["--seg", str(seg)])]) is None
        mask = nib.load(output)
        voxels = np.argwhere(np.asarray(mask.dataobj))
        places[name] = {tuple(place) for place in nib.affines.apply_affine(mask.affine, voxels).round(1).tolist()}
    assert places["slices"] == places["frames"]
    highdicom = pytest.importorskip("highdicom")
    volume = highdicom.seg.segread(tmp_path / "frames.dcm").get_volume(combine_segments=True)
    by_seg = volume.map_indices_to_reference(np.argwhere(volume.array)) * [-1, -1, 1]
    assert {tuple(place) for place in by_seg.round(1).tolist()} == places["frames"]


def test_the_series_of_a_liver(tmp_path):
    add(tmp_path, 1, "T1 DUAL")
    add(tmp_path, 2, "T2W TSE")
    add(tmp_path, 3, "T2W SPIR")
    assert choose_series(read_study(tmp_path), ["t2spir"], {})["t2spir"].attributes["number"] == "3"
    assert choose_series(read_study(tmp_path), ["t2spir"], {"t2spir": "2"})["t2spir"].attributes["number"] == "2"


def test_a_ct_is_no_mr_whoever_says_so(tmp_path):
    add(tmp_path, 1, "abdomen", **{"0008|0060": "CT"})
    with pytest.raises(
        InputError, match=r"t2spir should be a series of MR, series 1 \(abdomen, CT, 16 slices\) is not"
    ):
        choose_series(read_study(tmp_path), ["t2spir"], {"t2spir": "1"})


@pytest.mark.parametrize(
    ("folder", "weights_file", "sentence"),
    [
        ("dicom/t1post", "model.pt", "The brain has its skull, t1ce has"),
        ("dicom/chaos_ct/1", "model.pt", "No series is flair by what it says: name it by --flair <number>. There are"),
        (
            "dicom/chaos_ct/1",
            "liver.pt",
            "No series is t2spir by what it says: name it by --t2spir <number>. There are",
        ),
    ],
)
def test_real_studies_are_refused_for_what_they_lack(real_data, tmp_path, monkeypatch, folder, weights_file, sentence):
    monkeypatch.setitem(sys.modules, "brainles_preprocessing", None)
    output = tmp_path / "out" / "mask.nii.gz"
    arguments = ["--checkpoint", BUNDLE / "models" / weights_file, "--dicom", real_data / folder, "--output", output]
    assert sentence in str(main(["segment", *map(str, arguments)]))
    assert not output.parent.exists()


@pytest.mark.parametrize(("folder", "modality"), [("dicom/t1post", "t1ce"), ("dicom/chaos_ct/1/DICOM_anon", "ct")])
def test_real_series(real_data, folder, modality):
    [series] = read_study(real_data / folder)
    assert modality_of(series) == modality
    assert len(choose_series([series], [modality], {})[modality].files) == series.num_slices
