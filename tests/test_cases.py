"""Which files make a case: by name alone, whatever else lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.data.cases import case_of, find_cases, folder_of, split_file_name
from scripts.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> dict[str, dict[str, list[str]]]:
    """The files of each case by modality, relative to the root."""
    return {
        case.case_id: {name: [str(path.relative_to(root)) for path in paths] for name, paths in case.files.items()}
        for case in find_cases(root)
    }


@pytest.mark.parametrize(
    ("names", "case_id"),
    [
        ("HGG/Brats18_X_1_1/Brats18_X_1_1_{t1,t1ce,t2,flair,seg}.nii.gz", "Brats18_X_1_1"),
        ("LGG/BraTS19_X_1_1/BraTS19_X_1_1_{t1,t1ce,t2,flair,seg}.nii", "BraTS19_X_1_1"),
        ("BraTS20_Training_001/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii.gz", "BraTS20_Training_001"),
        ("BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz", "BraTS2021_00000"),
        ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz", "BraTS-GLI-00000-000"),
        ("a_t1_first/a_t1_first_{t1,t1ce,t2,flair,seg}.nii.gz", "a_t1_first"),
        ("case_7_{T1,T1CE,T2,FLAIR,Seg}.NII.GZ", "case_7"),
    ],
    ids=["2018", "2019", "2020", "2021 flat", "2023", "t1 inside the ID", "capitals"],
)
def test_names(tmp_path, names, case_id):
    before, rest = names.split("{")
    suffixes, after = rest.split("}")
    paths = [f"{before}{suffix}{after}" for suffix in suffixes.split(",")]
    touch(tmp_path, *paths)
    assert found(tmp_path) == {case_id: {name: [path] for name, path in zip((*MODALITIES, "seg"), paths)}}
    for path in paths:
        case = case_of(tmp_path / path)
        assert case.case_id == case_id
        assert case.image(["flair", "t1"]) == {"flair": tmp_path / paths[3], "t1": tmp_path / paths[0]}


def test_cases_of_one_folder_and_mixed_extensions(tmp_path):
    touch(tmp_path, "b_t2.nii", "a_t1.nii.gz", "b_t1.nii.gz", "a_t2.nii", "sub/c_t1.nii")
    assert found(tmp_path) == {
        "a": {"t1": ["a_t1.nii.gz"], "t2": ["a_t2.nii"]},
        "b": {"t1": ["b_t1.nii.gz"], "t2": ["b_t2.nii"]},
        "c": {"t1": ["sub/c_t1.nii"]},
    }


def test_one_id_that_begins_another(tmp_path):
    touch(tmp_path, "case_t1.nii", "case_1_t1.nii", "case_t1_t1.nii")
    assert {case_of(tmp_path / "case_t1.nii").file("t1").name} == {"case_t1.nii"}
    assert sorted(found(tmp_path)) == ["case", "case_1", "case_t1"]


def test_what_is_no_case_is_left_alone(tmp_path):
    others = (
        "atlas.nii.gz",
        "a_brainmask.nii.gz",
        "survival_data.csv",
        "a_t1.json",
        "._a_t1.nii.gz",
        ".cache/b_t1.nii",
    )
    touch(tmp_path, "a_t1.nii.gz", *others)
    assert found(tmp_path) == {"a": {"t1": ["a_t1.nii.gz"]}}


def test_a_hidden_folder_above_the_dataset_does_not_matter(tmp_path):
    touch(tmp_path / ".data", "a_t1.nii.gz")
    assert sorted(found(tmp_path / ".data")) == ["a"]


def test_files_of_all_modalities(tmp_path):
    touch(tmp_path, "BRATS_001.nii.gz", "sub/BRATS_002.nii")
    assert found(tmp_path) == {
        "BRATS_001": {"image": ["BRATS_001.nii.gz"]},
        "BRATS_002": {"image": ["sub/BRATS_002.nii"]},
    }
    assert case_of(tmp_path / "BRATS_001.nii.gz").image(MODALITIES) == tmp_path / "BRATS_001.nii.gz"


def write_dataset_json(root: Path, **content: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


DECATHLON = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


def test_the_file_that_brats_2020_misnamed(tmp_path):
    stem = "BraTS20_Training_355/BraTS20_Training_355"
    scans = [f"{stem}_{name}.nii" for name in MODALITIES]
    touch(tmp_path, *scans, "BraTS20_Training_355/W39_1998.09.19_Segm.nii", "elsewhere/W39_1998.09.19_Segm.nii")
    files = {name: [path] for name, path in zip(MODALITIES, scans)}
    files["seg"] = ["BraTS20_Training_355/W39_1998.09.19_Segm.nii"]
    assert found(tmp_path) == {"BraTS20_Training_355": files}
    assert case_of(tmp_path / scans[0]).file("seg").name == "W39_1998.09.19_Segm.nii"
    touch(tmp_path, f"{stem}_seg.nii")  # as some have renamed it
    with pytest.raises(InputError, match="seg is doubled"):
        case_of(tmp_path / scans[0]).file("seg")


def test_decathlon(tmp_path):
    root = tmp_path / "Task01_BrainTumour"
    write_dataset_json(root, modality=DECATHLON)
    touch(root, "imagesTr/BRATS_001.nii.gz", "imagesTr/._BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
    touch(root, "imagesTs/BRATS_485.nii.gz")
    assert found(root) == {
        "BRATS_001": {"image": ["imagesTr/BRATS_001.nii.gz"], "seg": ["labelsTr/BRATS_001.nii.gz"]},
        "BRATS_485": {"image": ["imagesTs/BRATS_485.nii.gz"]},
    }
    for case in (*find_cases(root), case_of(root / "imagesTr" / "BRATS_001.nii.gz")):
        assert case.channels == ("flair", "t1", "t1ce", "t2")
    touch(tmp_path, "other/a_t1.nii")  # a BraTS case beside it
    assert sorted(found(tmp_path)) == ["BRATS_001", "BRATS_485", "a"]


def test_nnunet(tmp_path):
    write_dataset_json(tmp_path, channel_names={"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"})
    touch(tmp_path, *(f"imagesTr/BRATS_001_000{index}.nii.gz" for index in range(4)), "labelsTr/BRATS_001.nii.gz")
    touch(tmp_path, *(f"imagesTs/a_1_000{index}.nii.gz" for index in (0, 1, 3)))
    files = {name: [f"imagesTr/BRATS_001_000{index}.nii.gz"] for index, name in enumerate(MODALITIES)}
    assert found(tmp_path)["BRATS_001"] == {**files, "seg": ["labelsTr/BRATS_001.nii.gz"]}
    case = case_of(tmp_path / "imagesTr" / "BRATS_001_0002.nii.gz")
    assert case.case_id == "BRATS_001"
    assert case.file("seg") == tmp_path / "labelsTr" / "BRATS_001.nii.gz"
    assert case.image(["flair"]) == {"flair": tmp_path / "imagesTr" / "BRATS_001_0003.nii.gz"}
    with pytest.raises(InputError, match=r"Case a_1: t2 is missing, there is no .*/imagesTs/a_1_0002\.nii\.gz\."):
        find_cases(tmp_path)[1].image(MODALITIES)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "should name it, it names 0"),
        ({"channel_names": {"0": "T1"}}, "is channel 1, .*dataset.json should name it, it names 1"),
        ({"channel_names": {"0": "T1", "1": "T1w"}}, "should name each channel once, it names t1, t1"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "should name the channels as"),
        ({"channel_names": {"0": "T1", "1": ""}}, "should name the channels as"),
        ({"channel_names": {"a": "T1"}}, "should name the channels as"),
        ({"channel_names": ["T1"]}, "should name the channels as"),
        ({"channel_names": {"0": "CT", "1": "seg"}}, "should name channels other than seg and image.* names one seg"),
        ({"channel_names": {"0": "CT", "1": "T2, b"}}, "without a comma, it names one t2, b"),
    ],
    ids=["none", "too few", "one twice", "a gap", "no name", "no number", "a list", "a label", "a comma"],
)
def test_channels_without_a_name_are_refused(tmp_path, content, rule):
    if content is not None:
        write_dataset_json(tmp_path, **content)
    touch(tmp_path, "imagesTr/a_0001.nii.gz")
    with pytest.raises(InputError, match=rule):
        find_cases(tmp_path)


def test_an_id_may_end_as_a_modality_does(tmp_path):
    """The label is none of its scans, nor is one file of all channels the scan of one."""
    write_dataset_json(tmp_path / "nnunet", channel_names={"0": "CT"})
    touch(tmp_path / "nnunet", "imagesTr/case_004_ct_0000.nii.gz", "labelsTr/case_004_ct.nii.gz")
    assert found(tmp_path / "nnunet") == {
        "case_004_ct": {"ct": ["imagesTr/case_004_ct_0000.nii.gz"], "seg": ["labelsTr/case_004_ct.nii.gz"]}
    }
    write_dataset_json(tmp_path / "decathlon", modality=DECATHLON)
    touch(tmp_path / "decathlon", "imagesTr/sub00_flair.nii.gz", "labelsTr/sub00_flair.nii.gz")
    assert found(tmp_path / "decathlon") == {
        "sub00_flair": {"image": ["imagesTr/sub00_flair.nii.gz"], "seg": ["labelsTr/sub00_flair.nii.gz"]}
    }
    for path in ("imagesTr/sub00_flair.nii.gz", "labelsTr/sub00_flair.nii.gz"):
        assert case_of(tmp_path / "decathlon" / path).case_id == "sub00_flair"


def test_a_number_may_belong_to_the_id(tmp_path):
    """As in AMOS: four digits, a label of the same name, or more than there are channels."""
    write_dataset_json(tmp_path, modality={"0": "CT"})
    touch(tmp_path, "imagesTr/amos_0000.nii.gz", "labelsTr/amos_0000.nii.gz", "imagesTs/amos_0100.nii.gz")
    touch(tmp_path, "imagesTr/old_1_0000.nii.gz", "labelsTr/old_1.nii.gz")  # nnU-Net v1
    assert {case_id: sorted(files) for case_id, files in found(tmp_path).items()} == {
        "amos_0000": ["image", "seg"],
        "amos_0100": ["image"],
        "old_1": ["ct", "seg"],
    }


SUFFIXES = {"T1w": "t1", "ce-gadolinium_T1w": "t1ce", "T2w": "t2", "FLAIR": "flair", "dseg": "seg"}


def test_bids_by_suffixes(tmp_path):
    """Labels lie in a folder of their own; what no suffix names, a brain mask or a second T1w, is in no case."""
    scans = [f"sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")]
    touch(tmp_path, *scans, "derivatives/masks/sub-01/anat/sub-01_dseg.nii.gz", "sub-01/anat/sub-01_mask.nii.gz")
    [case] = find_cases(tmp_path, suffixes=SUFFIXES)
    assert case.case_id == "sub-01"
    assert case.image(MODALITIES) == dict(zip(MODALITIES, (tmp_path / scan for scan in scans)))
    assert case.file("seg").name == "sub-01_dseg.nii.gz"


def test_ucsf_by_suffixes(tmp_path):
    """Of two files per contrast the map takes one; its names replace those that are known here."""
    touch(tmp_path, *(f"UCSF-PDGM-0004_{name}.nii.gz" for name in ("T1", "T1_bias", "tumor_segmentation", "T2")))
    suffixes = {"T1_bias": "t1", "tumor_segmentation": "seg"}
    [case] = find_cases(tmp_path, suffixes=suffixes)
    assert case.case_id == "UCSF-PDGM-0004"
    assert {name: path.name for name, [path] in case.files.items()} == {
        "t1": "UCSF-PDGM-0004_T1_bias.nii.gz",
        "seg": "UCSF-PDGM-0004_tumor_segmentation.nii.gz",
    }
    with pytest.raises(InputError, match=r"should hold NIfTI files such as <case>_T1GD\.nii\.gz"):
        find_cases(tmp_path, suffixes={"T1GD": "t1ce"})


def test_a_modality_in_two_files_of_one_case_is_doubled(tmp_path):
    touch(tmp_path, "site1/sub-01_T1w.nii.gz", "site2/sub-01_T1w.nii.gz")
    [case] = find_cases(tmp_path, suffixes=SUFFIXES)
    with pytest.raises(InputError, match="t1 is doubled"):
        case.file("t1")


def test_order_is_that_of_the_ids(tmp_path, monkeypatch):
    touch(tmp_path, "z/a_t1.nii", "y/b_t1.nii", "x/c_t1.nii", "x/c_t1.nii.gz")
    forwards = found(tmp_path)
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    assert list(found(tmp_path).items()) == list(forwards.items())
    assert list(forwards) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("files", "modality", "parts"),
    [
        (["a_t1.nii.gz"], "flair", ["Case a: flair is missing", "a_flair.nii.gz", "{root}"]),
        (["a_t1.nii", "a_t1.nii.gz"], "t1", ["Case a: t1 is doubled", "{root}/a_t1.nii", "{root}/a_t1.nii.gz"]),
        (["a-t1n.nii.gz", "a_t1.nii.gz"], "t1", ["Case a: t1 is doubled", "{root}/a-t1n.nii.gz", "{root}/a_t1.nii.gz"]),
    ],
    ids=["missing", "two extensions", "two names"],
)
def test_a_file_missing_or_doubled(tmp_path, files, modality, parts):
    touch(tmp_path, *files)
    for case in (find_cases(tmp_path)[0], case_of(tmp_path / files[0])):
        with pytest.raises(InputError) as raised:
            case.image([modality])
        for part in parts:
            assert part.format(root=tmp_path) in str(raised.value)


def test_an_id_in_two_folders(tmp_path):
    touch(tmp_path, "HGG/a/a_t1.nii.gz", "LGG/a/a_t1.nii.gz")
    with pytest.raises(InputError) as raised:
        find_cases(tmp_path)
    assert str(raised.value) == (f"Case a is doubled, one folder is allowed: {tmp_path}/HGG/a and {tmp_path}/LGG/a.")


@pytest.mark.parametrize(
    ("dataset_dir", "rule"),
    [
        ("none", "dataset_dir should be a folder of cases"),
        ("notes.txt", "dataset_dir should be a folder of cases"),
        ("empty", "dataset_dir should hold NIfTI files such as <case>_flair.nii.gz"),
    ],
)
def test_no_folder_of_cases(tmp_path, dataset_dir, rule):
    touch(tmp_path, "notes.txt", "empty/readme.md")
    with pytest.raises(InputError, match=rule) as raised:
        find_cases(tmp_path / dataset_dir)
    assert str(tmp_path / dataset_dir) in str(raised.value)


@pytest.mark.parametrize(
    ("folder", "number", "modalities"),
    [("brats", 2, MODALITIES), ("brats2013", 4, ("flair", "t1ce"))],
    ids=["four modalities", "two"],
)
def test_real_folders(real_data, folder, number, modalities):
    cases = find_cases(real_data / folder)
    assert len(cases) == number
    for case in cases:
        assert case.file("seg").name.startswith(case.case_id)
        assert list(case.image(modalities)) == list(modalities)


@pytest.mark.parametrize(
    "path",
    ["data/imagesTr/BRATS_001.nii.gz", "data/BRATS_001_t1.nii.gz", "data/patient.nii.gz", "data/patient.mha"],
)
def test_folder_of_a_case(path):
    assert folder_of(path) == Path("data")


def test_of_many_cases_in_one_folder_few_names_are_taken_apart(tmp_path, monkeypatch):
    """Each case asks for its files, of a thousand in one folder."""
    for number in range(60):
        touch(tmp_path, *(f"case_{number:02d}_{name}.nii.gz" for name in ("t1", "t2", "seg")))
    asked = []

    def counted(path: Path, *more: Any) -> Any:
        asked.append(path)
        return split_file_name(path, *more)

    monkeypatch.setattr("scripts.data.cases.split_file_name", counted)
    assert set(case_of(tmp_path / "case_07_t1.nii.gz").files) == {"t1", "t2", "seg"}
    assert len(asked) < 10


def test_the_case_of_a_folder(tmp_path):
    touch(tmp_path, "a/p1_t1.nii.gz", "a/p1_flair.nii.gz")
    case = case_of(tmp_path / "a")
    assert (case.case_id, set(case.files)) == ("p1", {"t1", "flair"})
    touch(tmp_path, "a/p2_t1.nii.gz")
    with pytest.raises(InputError, match=r"a should hold one case, it holds p1, p2\.$"):
        case_of(tmp_path / "a")
