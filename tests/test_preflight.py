"""Preflight: each fault planted once is found once, in its case, and none is invented."""

from __future__ import annotations

import json
import shutil
import time
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main
from scripts.checks import preflight as module
from scripts.checks.preflight import check_before_run, preflight
from scripts.data.cases import list_cases
from scripts.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")
SHAPE = (20, 24, 16)
LPS = np.diag([-1.0, -1, 1, 1])


def write(path: Path, volume: np.ndarray, affine: np.ndarray = LPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


def write_sound_case(root: Path, case_id: str, seed: int) -> None:
    """A box of brain in air, 1 mm; no two alike."""
    generator = np.random.default_rng(seed)
    for name in MODALITIES:
        volume = np.zeros(SHAPE, np.int16)
        volume[3:15, 4:21, 2:13] = generator.integers(50, 500, (12, 17, 11))
        write(root / case_id / f"{case_id}_{name}.nii.gz", volume)
    label = np.zeros(SHAPE, np.uint8)
    label[6:12, 8:12, 6:8], label[6:12, 8:12, 8], label[6:12, 8:12, 9] = 1, 2, 4
    write(root / case_id / f"{case_id}_seg.nii.gz", label)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(5):
        write_sound_case(tmp_path / "data", f"case_{number}", seed=number)
    return tmp_path / "data"


def file(folder: Path, name: str, case: str = "case_2") -> Path:
    return folder / case / f"{case}_{name}.nii.gz"


def change(path: Path, function=np.asarray, affine: np.ndarray | None = None) -> None:
    """Another array or affine in a file that is there."""
    old = nib.load(path)
    write(path, function(np.asarray(old.dataobj).copy()), old.affine if affine is None else affine)


def change_all(folder: Path, affine: np.ndarray) -> None:
    for path in (folder / "case_2").iterdir():
        change(path, affine=affine)


def missing(folder):
    file(folder, "t2").unlink()


def doubled(folder):
    nib.save(nib.load(file(folder, "t2")), folder / "case_2" / "case_2_t2.nii")


def doubled_case(folder):
    write_sound_case(folder / "again", "case_2", seed=99)


def unreadable(folder):
    file(folder, "t2").write_bytes(b"no image")


def shapes(folder):
    change(file(folder, "t2"), lambda volume: volume[:-1])


def affines(folder):
    change(file(folder, "t2"), affine=np.diag([-1.0, -1, 1.01, 1]))


def a_4d_file(folder):
    change(file(folder, "t2"), lambda volume: np.stack([volume] * 2, axis=-1))


def singular(folder):
    for path in (folder / "case_2").iterdir():
        image = nib.load(path)
        image.header.set_sform(np.diag([0.0, 0, 0, 1]), code=1)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def turned(folder):
    change_all(folder, np.eye(4))


def oblique(folder):
    angle = np.radians(30)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    change_all(folder, rotation @ LPS)


def spacing(folder):
    change_all(folder, LPS * [1, 1, 3, 1])


def truncated(folder):
    path = file(folder, "t2")
    path.write_bytes(path.read_bytes()[:2000])


def skull(folder):
    change(file(folder, "t2"), lambda volume: volume + np.random.default_rng(0).integers(1, 9, SHAPE, np.int16))


def nan(folder):
    def plant(volume):
        volume = volume.astype(np.float32)
        volume[9, 9, 9] = np.nan
        return volume

    change(file(folder, "t2"), plant)


def zero(folder):
    change(file(folder, "t2"), np.zeros_like)


def label_values(folder):
    change(file(folder, "seg"), lambda label: np.where(label == 4, 3, label))


def same_scan(folder):
    for name in MODALITIES:  # as float32, so the files differ
        change(file(folder, name), lambda volume: volume.astype(np.float32))
        shutil.copy(file(folder, name), file(folder, name, "case_3"))


def same_modality(folder):
    shutil.copy(file(folder, "t2"), file(folder, "flair"))


def same_patient(folder):
    write_sound_case(folder, "Brats18_CBICA_AAB_1", seed=7)
    write_sound_case(folder, "BraTS19_CBICA_AAB_1", seed=8)


def same_patient_by_the_table(folder):
    write_sound_case(folder, "BraTS19_CBICA_AAB_1", seed=7)
    write_sound_case(folder, "BraTS20_Training_001", seed=8)
    (folder / "name_mapping.csv").write_text("HGG,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n")


HEADERS = [
    (missing, "case_2", "missing modality", "t2"),
    (doubled, "case_2", "doubled file", "case_2_t2.nii and "),
    (doubled_case, "case_2", "doubled case", "again"),
    (unreadable, "case_2", "unreadable", "case_2_t2.nii.gz"),
    (shapes, "case_2", "shapes differ", "case_2_t2.nii.gz [19, 24, 16], "),
    (affines, "case_2", "affines differ", "case_2_t1.nii.gz are 0."),
    (a_4d_file, "case_2", "channels", "[20, 24, 16, 2]"),
    (singular, "case_2", "no affine", "singular"),
    (turned, "case_2", "orientation", "RAS, where most cases are LPS"),
    (oblique, "case_2", "orientation", "oblique by 30 degrees"),
    (spacing, "case_2", "spacing", "1 x 1 x 3 mm"),
    (same_patient, "BraTS19_CBICA_AAB_1, Brats18_CBICA_AAB_1", "same patient", "CBICA_AAB"),
    (same_patient_by_the_table, "BraTS19_CBICA_AAB_1, BraTS20_Training_001", "same patient", "CBICA_AAB"),
]
VOXELS = [
    (truncated, "case_2", "unreadable", "case_2_t2.nii.gz"),
    (skull, "case_2", "not skull-stripped", "t2 has 0% air"),
    (nan, "case_2", "NaN or infinity", "t2"),
    (zero, "case_2", "zero everywhere", "t2"),
    (label_values, "case_2", "label values", "brats2018 allows the values 0, 1, 2, 4, the label holds 3"),
    (same_scan, "case_2, case_3", "same voxels", "t1, t1ce, t2, flair"),
    (same_modality, "case_2", "same voxels", "t2 and flair"),
]


def ids(plants):
    return [plant.__name__ for plant, *_ in plants]


@pytest.mark.parametrize("deep", [False, True], ids=["headers", "deep"])
def test_a_sound_folder_has_no_fault(folder, deep, capsys):
    assert main(["preflight", "--dataset_dir", str(folder), *["--deep"] * deep]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "5 cases, no fault(s)."
    assert "Fault " not in out


def check_one(folder: Path, arguments: list[str], case: str, fault: str, detail: str, capsys) -> None:
    report = folder.parent / "out" / "faults.json"
    assert main(["preflight", "--dataset_dir", str(folder), "--json", str(report), *arguments]) == 1
    [found] = json.loads(report.read_text())["faults"]
    assert (found["case"], found["fault"]) == (case, fault)
    assert detail in found["detail"]
    header, row, _, count = capsys.readouterr().out.splitlines()
    assert header.split() == ["Case", "Fault", "Detail"]
    assert all(part in row for part in (case, fault, detail))
    assert "1 fault(s)" in count


def test_a_wrong_check_sum_is_a_fault_of_the_deep_part(folder, capsys):
    """The voxels can be unpacked all the same, by nibabel alone: training refuses them."""
    path = file(folder, "t2", "case_2")
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the check sum, which stands before the four bytes of the length
    path.write_bytes(content)
    check_one(folder, ["--deep"], "case_2", "unreadable", "case_2_t2.nii.gz", capsys)


@pytest.mark.parametrize(("plant", "case", "fault", "detail"), HEADERS, ids=ids(HEADERS))
def test_a_fault_in_the_headers_is_found_once(folder, plant, case, fault, detail, capsys):
    plant(folder)
    check_one(folder, [], case, fault, detail, capsys)
    if plant not in (unreadable, singular):
        check_one(folder, ["--deep"], case, fault, detail, capsys)


@pytest.mark.parametrize(("plant", "case", "fault", "detail"), VOXELS, ids=ids(VOXELS))
def test_a_fault_in_the_voxels_is_found_once_and_only_by_deep(folder, plant, case, fault, detail, capsys):
    plant(folder)
    assert main(["preflight", "--dataset_dir", str(folder)]) == 0
    capsys.readouterr()
    check_one(folder, ["--deep"], case, fault, detail, capsys)


def test_all_faults_at_once_are_each_found_in_their_case(tmp_path):
    plants = [plant for plant in (*HEADERS, *VOXELS) if plant[1] == "case_2"]
    root = tmp_path / "data"
    for number in range(40):
        write_sound_case(root, f"case_{number:03d}", seed=number)
    expected = set()
    for number, (plant, _, fault, _) in enumerate(plants):
        folder = tmp_path / "one"
        write_sound_case(folder, "case_2", seed=100 + number)
        plant(folder)
        name = f"planted_{number:02d}"
        for path in sorted(folder.rglob("*.nii*")):
            target = root / path.parent.relative_to(folder).with_name(name) / path.name.replace("case_2", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        shutil.rmtree(folder)
        expected.add((name, fault))
    result = preflight(list_cases(root), MODALITIES, label_convention="brats2018")
    found = [(fault.case, fault.fault) for fault in result.faults]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_the_convention_is_that_of_the_option(folder):
    arguments = ["--dataset_dir", str(folder), "--deep", "--label_convention"]
    assert main(["preflight", *arguments, "brats2024_gli"]) == 0
    assert main(["preflight", *arguments, "brats2023"]) == 1


def test_what_is_the_same_everywhere_is_said_once(folder):
    for number in range(5):
        file(folder, "t1", f"case_{number}").unlink()
    [fault] = preflight(list_cases(folder), MODALITIES).faults
    assert (fault.case, fault.fault, fault.detail) == ("all", "missing modality", "t1")
    assert main(["preflight", "--dataset_dir", str(folder), "--modalities", "['t1ce','flair']"]) == 0


def test_memory_for_the_cache(folder, monkeypatch):
    # 5 cases of 20 x 24 x 16 voxels, 4 modalities of 4 bytes and a label of 1
    needed = 5 * 7680 * 17
    monkeypatch.setattr(module, "free_memory", lambda: needed - 1)
    cases = list_cases(folder)
    assert preflight(cases, MODALITIES).cache_bytes == needed
    assert preflight(cases, MODALITIES).faults == []
    [fault] = preflight(cases, MODALITIES, cache_rate=1.0).faults
    assert (fault.case, fault.fault) == ("all", "memory")
    assert preflight(cases, MODALITIES, cache_rate=0.5).faults == []


def test_free_disk_is_said(folder, monkeypatch, capsys):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(3 * 2**30))
    assert main(["preflight", "--dataset_dir", str(folder)]) == 0
    assert "disk (3.0 GiB free)" in capsys.readouterr().out


def test_one_4d_file_per_case(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}')
    for number in range(3):
        volumes = np.zeros((*SHAPE, 4 if number else 3), np.int16)
        volumes[3:15, 4:21, 2:13] = np.random.default_rng(number).integers(50, 500, (12, 17, 11, volumes.shape[3]))
        write(tmp_path / "imagesTr" / f"BRATS_{number:03d}.nii.gz", volumes)
        write(tmp_path / "labelsTr" / f"BRATS_{number:03d}.nii.gz", np.ones(SHAPE, np.uint8))
    [fault] = preflight(list_cases(tmp_path), MODALITIES, label_convention="decathlon").faults
    assert (fault.case, fault.fault) == ("BRATS_000", "channels")


def test_axes_that_are_missing(tmp_path):
    """One channel where several are named, and a slice where there should be a volume."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T2", "1": "ADC"}}')
    noise = np.random.default_rng(0).integers(50, 500, (*SHAPE, 2)).astype(np.int16)
    for name, volumes in (("a", noise), ("b", noise[..., 0]), ("c", noise[..., :1]), ("d", noise[:, :, 0, 0])):
        write(tmp_path / "imagesTr" / f"{name}.nii.gz", volumes)
    faults = preflight(list_cases(tmp_path), ["t2", "adc"]).faults
    assert [(fault.case, fault.fault) for fault in faults] == [(name, "channels") for name in "bcd"]
    one = [case for case in list_cases(tmp_path) if case.case_id in "bd"]
    for case in one:
        case.channels = ("t2",)
    assert [(fault.case, fault.fault) for fault in preflight(one, ["t2"]).faults] == [("d", "channels")]


def test_cases_to_train_on_that_are_not_there(tmp_path, caplog):
    for number in range(3):
        noise = np.random.default_rng(number).integers(50, 500, SHAPE).astype(np.int16)
        write(tmp_path / "imagesTr" / f"p{number}_0000.nii.gz", noise)
        write(tmp_path / "labelsTr" / f"p{number}.nii.gz", np.ones(SHAPE, np.uint8))
    (tmp_path / "labelsTr" / "p1.nii.gz").unlink()
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "MRI"}, "numTraining": 5}')
    report = tmp_path / "faults.json"
    assert main(["preflight", "--dataset_dir", str(tmp_path), "--json", str(report)]) == 1
    assert [tuple(fault.values()) for fault in json.loads(report.read_text())["faults"]] == [
        ("all", "missing cases", f"{tmp_path}/dataset.json has numTraining 5, 3 case(s) are there in imagesTr"),
        ("p1", "missing label", "none in labelsTr"),
    ]
    entry = {"case_id": "p1", "image": str(tmp_path / "imagesTr" / "p1_0000.nii.gz")}
    caplog.clear()
    check_before_run([entry], ["mri"])  # a scan to segment needs none
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_channels_of_a_4d_file_that_nobody_names(tmp_path):
    volumes = np.zeros((*SHAPE, 4), np.int16)
    volumes[3:15, 4:21, 2:13] = np.random.default_rng(0).integers(50, 500, (12, 17, 11, 4))
    write(tmp_path / "p1.nii.gz", volumes)
    [fault] = preflight(list_cases(tmp_path), MODALITIES).faults
    assert (fault.fault, fault.stops) == ("channel order", False)
    assert "t1, t1ce, t2, flair" in fault.detail
    assert not preflight(list_cases(tmp_path), MODALITIES, channel_order=MODALITIES).faults


def test_no_folder(tmp_path, capsys):
    assert "is not there" in str(main(["preflight", "--dataset_dir", str(tmp_path / "none")]))


def test_headers_of_300_cases_are_read_in_less_than_a_minute(folder, tmp_path):
    write_sound_case(tmp_path / "one", "a", seed=0)
    many = tmp_path / "many"
    for number in range(300):
        case = many / f"case_{number:03d}"
        case.mkdir(parents=True)
        for path in (tmp_path / "one" / "a").iterdir():
            shutil.copy(path, case / path.name.replace("a_", f"{case.name}_", 1))
    start = time.perf_counter()
    assert main(["preflight", "--dataset_dir", str(many)]) == 0
    assert time.perf_counter() - start < 60


class TestBeforeARun:
    @staticmethod
    def entries(folder: Path) -> list[dict]:
        return [
            {
                "case_id": case.name,
                "image": {name: str(file(folder, name, case.name)) for name in MODALITIES},
                "label": str(file(folder, "seg", case.name)),
            }
            for case in sorted(folder.iterdir())
        ]

    def test_cases_that_cannot_be_used_end_it(self, folder):
        shapes(folder)
        missing_file = file(folder, "flair", "case_4")
        missing_file.unlink()
        with pytest.raises(InputError) as raised:
            check_before_run(self.entries(folder), MODALITIES)
        assert str(raised.value).splitlines() == [
            "2 fault(s) in 5 cases.",
            f"Case case_2: shapes differ: {file(folder, 't2', 'case_2')} [19, 24, 16], "
            f"{file(folder, 't1', 'case_2')} [20, 24, 16].",
            "Case case_4: missing modality: flair.",
        ]

    def test_others_are_logged(self, folder, caplog):
        spacing(folder)
        check_before_run(self.entries(folder), MODALITIES, splits=["training", "validation"])
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert record.message.startswith("Preflight of training and validation (no other split is looked at):")
        assert "case_2  spacing  1 x 1 x 3 mm, far from 1" in record.message

    def test_inference_goes_on(self, folder, caplog):
        shapes(folder)
        entries = [{"image": str(file(folder, "flair", case.name))} for case in sorted(folder.iterdir())]
        check_before_run(entries, MODALITIES, stop=False)
        assert "case_2  shapes differ" in caplog.text
