"""DICOM SEG: the same voxels at the same place by readers that are not ours. Skipped where highdicom is missing."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_files import AXIAL, OBLIQUE, write_series

from scripts.__main__ import main

highdicom = pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
pydicom = pytest.importorskip("pydicom")

BUNDLE = Path(__file__).parents[1] / "bundle"
SHAPE = (5, 6, 8)  # slices, rows, columns
REVERSED = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # slices and rows run against the patient's axes
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def complete(series: Path, **changes: object) -> None:
    """Adds what a scanner says of patient and study."""
    for file in series.glob("*.dcm"):
        slice_ = pydicom.dcmread(file)
        said = {
            **{"PatientID": "P1", "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "", "StudyID": "1"},
            **{"StudyDate": "20200101", "StudyTime": "", "AccessionNumber": "", "StudyInstanceUID": "2.25.7"},
            **{"FrameOfReferenceUID": "2.25.8", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"},
        }
        for name, value in (said | changes).items():
            if value is None and name in slice_:
                del slice_[name]
            elif value is not None:
                setattr(slice_, name, value)
        slice_.save_as(file)


def write_mask(series: Path, path: Path) -> SimpleITK.Image:
    """A mask of the classes 1, 2 and 3 on the grid of a series; given as SimpleITK has it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    scan = reader.Execute()
    voxels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    voxels[0] = 0  # no frame of it in the file
    mask = SimpleITK.GetImageFromArray(voxels)
    mask.CopyInformation(scan)
    SimpleITK.WriteImage(mask, str(path))
    return mask


def voxel_places(seg: Path) -> dict[int, set[tuple[float, ...]]]:
    """The places in mm of the voxels of each segment, worked out from the attributes of each frame alone."""
    content = pydicom.dcmread(seg)
    places: dict[int, set[tuple[float, ...]]] = {}
    shared = content.SharedFunctionalGroupsSequence[0]
    along, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    for pixels, frame in zip(content.pixel_array, content.PerFrameFunctionalGroupsSequence):
        origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for row, column in zip(*np.nonzero(pixels)):
            place = origin + down * row * row_mm + along * column * column_mm
            places.setdefault(number, set()).add(tuple((place.round(2) + 0.0).tolist()))
    return places


def dcmqi(program: str, *arguments: str | Path) -> None:
    pytest.importorskip("dcmqi", reason="pip install -r requirements-optional.txt")
    command = [Path(sys.executable).with_name(program), *arguments]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def by_dcmqi(seg: Path, folder: Path) -> dict[int, set[tuple[float, ...]]]:
    """The places in mm of the voxels of each segment, as dcmqi reads them."""
    folder.mkdir()
    where = ("--outputDirectory", folder, "--prefix", "x", "--outputType", "nifti")
    dcmqi("segimage2itkimage", "--inputDICOM", seg, *where)
    places = {}
    for number in (1, 2, 3):
        image = SimpleITK.ReadImage(str(folder / f"x-{number}.nii.gz"))
        voxels = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1].tolist()
        places[number] = {place_of(image, voxel) for voxel in voxels}
    return places


def place_of(image: SimpleITK.Image, voxel: list[int]) -> tuple[float, ...]:
    return tuple((np.array(image.TransformIndexToPhysicalPoint(voxel)).round(1) + 0.0).tolist())


def flags(series: Path, mask: Path, output: Path) -> list[str]:
    return ["dicom_seg", "--source", str(series), "--mask", str(mask), "--output", str(output)]


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, REVERSED, CORONAL], ids=["axial", "oblique", "rev", "coronal"])
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned"])
def test_the_same_voxels_at_the_same_place(tmp_path, orientation, turned):
    series, path, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE), orientation, names=["c", "a", "e", "b", "d"])
    complete(series)
    mask = write_mask(series, path)
    if turned:
        nib.save(nib.as_closest_canonical(nib.load(path)), path)
    assert main(flags(series, path, output)) is None

    voxels = SimpleITK.GetArrayFromImage(mask)
    expected = {
        number: {
            tuple((np.array(mask.TransformIndexToPhysicalPoint(index)).round(2) + 0.0).tolist())
            for index in (tuple(map(int, place[::-1])) for place in np.argwhere(voxels == number))
        }
        for number in (1, 2, 3)
    }
    assert voxel_places(output) == expected
    volume = highdicom.seg.segread(output).get_volume(combine_segments=True)
    assert np.bincount(volume.array.ravel(), minlength=4)[1:].tolist() == [
        len(expected[number]) for number in (1, 2, 3)
    ]
    rounded = {
        number: {place_of(mask, voxel) for voxel in np.argwhere(voxels == number)[:, ::-1].tolist()}
        for number in (1, 2, 3)
    }
    assert by_dcmqi(output, tmp_path / "dcmqi") == rounded
    # SimpleITK knows no segments, and gives a slice for each frame.
    by_simpleitk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(output)))
    assert np.count_nonzero(by_simpleitk) == np.count_nonzero(voxels)


def test_what_it_says_of_itself(tmp_path):
    series, mask, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series)
    write_mask(series, mask)
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert main([*flags(series, mask, output), "--checkpoint", str(weights)]) is None
    content = pydicom.dcmread(output)
    sources = {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in series.glob("*.dcm")}
    referenced = {
        each.ReferencedSOPInstanceUID for each in content.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert (content.Modality, content.PatientID, content.StudyInstanceUID) == ("SEG", "P1", "2.25.7")
    assert content.FrameOfReferenceUID == "2.25.8"
    assert referenced <= sources
    segments = content.SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["ncr", "ed", "et"]
    codes = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in segments]
    assert codes == ["6574001", "79654002", "C113842"]
    algorithm = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert digest in algorithm.AlgorithmParameters


def test_a_mask_is_what_its_record_says(tmp_path):
    series, mask, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series)
    SimpleITK.WriteImage(write_mask(series, mask) > 0, str(mask))
    record = {"settings": {"label_convention": {"labels": {"background": 0, "liver": 1}}}}
    record["weights"] = [{"file": "liver.pt", "sha256": "5" * 64}]
    mask.with_name("mask.json").write_text(json.dumps(record))
    assert main(flags(series, mask, output)) is None
    [segment] = pydicom.dcmread(output).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert "5" * 64 in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    other = tmp_path / "other.pt"
    other.write_bytes(b"other weights")
    again = flags(series, mask, tmp_path / "again.dcm")
    assert "checkpoint should be liver.pt, by which" in str(main([*again, "--checkpoint", str(other)]))
    assert "label_convention should be {'labels'" in str(main([*again, "--label_convention", "brats2023"]))
    assert not (tmp_path / "again.dcm").exists()


def test_a_mask_that_nothing_tells_of_is_warned_of(tmp_path, caplog):
    series, mask = tmp_path / "series", tmp_path / "mask.nii.gz"
    write_series(series, np.ones(SHAPE))
    complete(series)
    write_mask(series, mask)
    assert main(flags(series, mask, tmp_path / "mask.dcm")) is None
    assert "they are taken for those of brats2023, ncr, ed, et" in caplog.text


def measured_ml(report: Path) -> dict[str, tuple[str, float]]:
    """Of each group of measurements of a TID 1500: the type of the finding, and its volume, by the tracking ID."""
    content = highdicom.sr.srread(report).content
    found = {}
    for group in content.get_volumetric_roi_measurement_groups():
        [size] = group.get_measurements()
        assert (size.name.value, size.unit.value) == ("118565006", "mL")
        found[group.tracking_identifier] = (group.finding_type.value, size.value)
    return found


def test_volumes_as_a_structured_report(tmp_path):
    series, path, output, report = (tmp_path / name for name in ("series", "mask.nii.gz", "mask.dcm", "volumes.dcm"))
    write_series(series, np.ones(SHAPE), OBLIQUE)
    complete(series)
    mask = write_mask(series, path)
    voxels = SimpleITK.GetArrayFromImage(mask)
    voxels[voxels == 3] = 0  # a segment that is empty has a volume, too
    changed = SimpleITK.GetImageFromArray(voxels)
    changed.CopyInformation(mask)
    SimpleITK.WriteImage(changed, str(path))
    assert main([*flags(series, path, output), "--sr", str(report)]) is None
    sizes = {number: np.count_nonzero(voxels == number) * 1.5 * 1.5 * 3 / 1000 for number in (1, 2, 3)}
    assert measured_ml(report) == {
        "ncr": ("6574001", pytest.approx(sizes[1])),
        "ed": ("79654002", pytest.approx(sizes[2])),
        "et": ("C113842", 0),
    }
    by_dcmqi = tmp_path / "volumes.json"
    dcmqi("tid1500reader", "--inputDICOM", report, "--outputMetadata", by_dcmqi)
    groups = json.loads(by_dcmqi.read_text())["Measurements"]
    assert [float(group["measurementItems"][0]["value"]) for group in groups] == pytest.approx(
        [*list(sizes.values())[:2], 0], abs=1e-3
    )
    content = pydicom.dcmread(report)
    assert (content.PatientID, content.StudyInstanceUID, content.Modality) == ("P1", "2.25.7", "SR")
    uid = pydicom.dcmread(output).SOPInstanceUID
    evidence = content.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {each.ReferencedSOPInstanceUID for one in evidence for each in one.ReferencedSOPSequence}
    assert uid in named


def test_a_mask_of_nothing(tmp_path):
    series, path, output, report = (tmp_path / name for name in ("series", "mask.nii.gz", "mask.dcm", "volumes.dcm"))
    write_series(series, np.ones(SHAPE))
    complete(series)
    mask = write_mask(series, path)
    SimpleITK.WriteImage(mask * 0, str(path))
    assert main([*flags(series, path, output), "--sr", str(report)]) is None
    assert {volume for _, volume in measured_ml(report).values()} == {0}
    assert not pydicom.dcmread(output).pixel_array.any()
    assert "two files" in str(main([*flags(series, path, tmp_path / "x.dcm"), "--sr", str(tmp_path / "x.dcm")]))


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
    ids=["Japanese", "German", "Chinese"],
)
def test_names_in_any_characters(tmp_path, characters, name):
    series, mask, output, report = (tmp_path / each for each in ("series", "mask.nii.gz", "mask.dcm", "volumes.dcm"))
    write_series(series, np.ones(SHAPE))
    complete(series, SpecificCharacterSet=characters, PatientName=name)
    write_mask(series, mask)
    assert main([*flags(series, mask, output), "--sr", str(report)]) is None
    assert {str(pydicom.dcmread(file).PatientName) for file in (output, report)} == {name}


def test_cosines_that_are_not_at_right_angles_are_refused(tmp_path):
    series, mask, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series)
    write_mask(series, mask)
    complete(series, ImageOrientationPatient=[1, 0, 0, 0.05, 0.99875, 0])
    message = str(main(flags(series, mask, output)))
    assert "should say where a SEG lies, it does not" in message
    assert "\n" not in message
    assert not output.exists()


@pytest.mark.parametrize("emptied", ["FrameOfReferenceUID", "SOPClassUID"])
def test_an_identifier_that_is_empty_is_missing(tmp_path, emptied):
    series, mask, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series, **{emptied: ""})
    write_mask(series, mask)
    assert f"it lacks {emptied}" in str(main(flags(series, mask, output)))
    assert not output.exists()


@pytest.mark.parametrize("missing", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_without_patient_or_study_is_refused(tmp_path, missing):
    series, mask, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series, **{missing: None})
    write_mask(series, mask)
    message = str(main(flags(series, mask, output)))
    assert "should say to which patient and study it belongs" in message
    assert missing in message
    assert not output.exists()


def other_size(mask: SimpleITK.Image) -> SimpleITK.Image:
    return mask[:-1]


def other_spacing(mask: SimpleITK.Image) -> SimpleITK.Image:
    mask.SetSpacing([size / 2 for size in mask.GetSpacing()])
    return mask


def other_place(mask: SimpleITK.Image) -> SimpleITK.Image:
    mask.SetOrigin([place + 1.5 for place in mask.GetOrigin()])
    return mask


@pytest.mark.parametrize("change", [other_size, other_spacing, other_place])
def test_a_mask_on_another_grid_is_refused(tmp_path, change):
    series, path, output = tmp_path / "series", tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    write_series(series, np.ones(SHAPE))
    complete(series)
    SimpleITK.WriteImage(change(write_mask(series, path)), str(path))
    message = str(main(flags(series, path, output)))
    assert "should lie on the grid of the series" in message
    assert not output.exists()


@pytest.mark.parametrize("folder", ["dicom/t1post", "dicom/chaos_ct/1/DICOM_anon"])
def test_real_series(real_data, tmp_path, folder):
    scan, mask, output = (tmp_path / name for name in ("scan.nii.gz", "mask.nii.gz", "mask.dcm"))
    assert main(["dicom", "--source", str(real_data / folder), "--output", str(scan)]) is None
    image = nib.load(scan)
    voxels = np.zeros(image.shape, np.uint8)
    voxels[40:60, 50:90, 3:7] = 2
    nib.save(nib.Nifti1Image(voxels, image.affine), mask)
    assert main(flags(real_data / folder, mask, output)) is None
    lps = image.affine * np.array([[-1], [-1], [1], [1]])
    corners = [lps @ [*corner, 1] for corner in itertools.product((40, 59), (50, 89), (3, 6))]
    places = np.array(sorted(voxel_places(output)[2]))
    assert len(places) == 20 * 40 * 4
    for corner in corners:
        assert np.abs(places - corner[:3]).max(axis=1).min() < 0.02
