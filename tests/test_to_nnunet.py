"""Our cases as nnU-Net's raw folder, and that folder read as cases: the same voxels, values and split."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main
from scripts.data.cases import list_cases
from scripts.data.datalist import load_datalist, make_datalist
from scripts.data.labels import class_names, regions
from scripts.data.loading import LoadImageCased
from scripts.data.to_nnunet import dataset_json, write_raw_folder
from scripts.data.transforms import ValuesToClassesd
from scripts.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")


def loaded(entry: dict, convention: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    case = LoadImageCased(["image", "label"], MODALITIES)(entry)
    case = ValuesToClassesd("label", convention)(case)
    return case["image"].numpy(), case["label"].numpy(), case["image"].affine.numpy()


def test_there_and_back(tiny_cases, tmp_path, capsys):
    output = tmp_path / "Dataset001_Tiny"
    arguments = ["--dataset_dir", str(tiny_cases), "--output_dir", str(output), "--label_convention", "brats2018"]
    assert main(["to_nnunet", *arguments]) is None
    assert "copy" in capsys.readouterr().out
    ours = make_datalist(tiny_cases, MODALITIES)
    [split] = json.loads((output / "splits_final.json").read_text())
    for theirs, name in (("train", "training"), ("val", "validation")):
        assert split[theirs] == [entry["case_id"] for entry in ours[name]]
    content = json.loads((output / "dataset.json").read_text())
    assert content == {
        "channel_names": {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"},
        "labels": {"background": 0, "wt": [1, 2, 3], "tc": [1, 3], "et": 3},
        "regions_class_order": [2, 1, 3],
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    assert regions(content) == regions("brats2018")
    tested = [entry["case_id"] for entry in ours["testing"]]
    assert [path.name for path in (output / "labelsTs").iterdir()] == [f"{name}.nii.gz" for name in tested]
    assert len(list((output / "imagesTr").iterdir())) == 12

    back = {case.case_id: case for case in list_cases(output)}
    for name in ("training", "validation", "testing"):
        for entry in load_datalist(tiny_cases, name, MODALITIES):
            case = back[entry["case_id"]]
            read = {"case_id": case.case_id, "image": case.image(MODALITIES), "label": case.file("seg")}
            for one, other in zip(loaded(entry, "brats2018"), loaded(read, output / "dataset.json"), strict=True):
                np.testing.assert_array_equal(one, other)

    # And once more: what was read as nnU-Net's is written as nnU-Net's.
    again = tmp_path / "Dataset002_Again"
    write_raw_folder(output, again, MODALITIES, output / "dataset.json")
    for name in ("dataset.json", "splits_final.json"):
        assert json.loads((again / name).read_text()) == json.loads((output / name).read_text())
    for folder in ("labelsTr", "labelsTs"):
        assert sorted(path.name for path in (again / folder).iterdir()) == sorted(
            path.name for path in (output / folder).iterdir()
        )


def test_cases_set_aside_for_testing_stay_so(tiny_cases, tmp_path):
    """Whoever chose them, and by which seed."""
    datalist = make_datalist(tiny_cases, MODALITIES)
    datalist["training"][0], datalist["testing"][0] = datalist["testing"][0], datalist["training"][0]
    (tmp_path / "list.json").write_text(json.dumps(datalist))
    output = tmp_path / "Dataset004_Chosen"
    write_raw_folder(tiny_cases, output, MODALITIES, "brats2018", tmp_path / "list.json")
    back = make_datalist(output, MODALITIES)["testing"]
    assert [entry["case_id"] for entry in back] == [entry["case_id"] for entry in datalist["testing"]]


def test_folds_and_one_file_of_all_channels(tmp_path):
    """The Decathlon's layout, with the channels in another order, and a label whose values leave a gap."""
    root = tmp_path / "Task"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        voxels = np.stack([np.full((4, 5, 6), 10 * channel + number + 1, np.int16) for channel in range(2)], axis=-1)
        voxels[2], voxels[3] = 50, 0
        label = np.zeros((4, 5, 6), np.uint8)
        label[0], label[1] = 2, 5
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / "imagesTr" / f"case_{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), root / "labelsTr" / f"case_{number}.nii.gz")
    labels = {"0": "background", "2": "left", "5": "right"}
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "ADC"}, "labels": labels}))
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(make_datalist(root, ["adc", "t2"], testing_fraction=0, folds=2)))
    output = tmp_path / "Dataset003_Task"
    write_raw_folder(root, output, ["adc", "t2"], root / "dataset.json", datalist)
    splits = json.loads((output / "splits_final.json").read_text())
    assert [len(split["val"]) for split in splits] == [2, 2]
    assert sorted(splits[0]["val"] + splits[1]["val"]) == [f"case_{number}" for number in range(4)]
    assert np.unique(nib.load(output / "imagesTr" / "case_3_0000.nii.gz").dataobj).tolist() == [0, 14, 50]
    assert nib.load(output / "imagesTr" / "case_3_0001.nii.gz").shape == (4, 5, 6)
    written = json.loads((output / "dataset.json").read_text())
    assert written["labels"] == {"background": 0, "left": 1, "right": 2}
    assert class_names(written) == ["background", "left", "right"]
    assert np.unique(nib.load(output / "labelsTr" / "case_0.nii.gz").dataobj).tolist() == [0, 1, 2]


def test_what_is_wrong_leaves_nothing_behind(tiny_cases, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(InputError, match=r"^Case case_\d: .* label_convention brats2023 allows the values"):
        write_raw_folder(tiny_cases, output, MODALITIES, "brats2023")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    with pytest.raises(InputError, match="output_dir should lie outside of dataset_dir"):
        write_raw_folder(tiny_cases, tiny_cases / "out", MODALITIES, "brats2018")
    Path(output).mkdir()
    with pytest.raises(InputError, match="output_dir should be a new folder"):
        write_raw_folder(tiny_cases, output, MODALITIES, "brats2018")


def test_classes_that_do_not_overlap_are_no_regions():
    liver = {"labels": {"background": [0, 2], "liver": 1}}
    assert dataset_json(["ct"], liver, 2)["labels"] == {"background": 0, "liver": 1}
    assert "regions_class_order" not in dataset_json(["ct"], liver, 2)


def test_a_dataset_json_says_what_the_commands_need(tmp_path, capsys):
    """Channels and values of two contrasts, without a flag; and the sentence where nothing tells."""
    root, predicted = tmp_path / "Dataset005_Prostate", tmp_path / "predicted"
    for folder in (root / "imagesTr", root / "labelsTr", predicted):
        folder.mkdir(parents=True)
    for number in range(3):
        label = np.zeros((8, 9, 10), np.uint8)
        label[:4], label[4:6] = 1, 5
        for channel in range(2):
            noise = np.random.default_rng(10 * number + channel).normal(100, 1, label.shape)
            image = nib.Nifti1Image((label + noise).astype(np.float32), np.eye(4))
            nib.save(image, root / f"imagesTr/p{number}_{channel:04d}.nii.gz")
        for path in (root / f"labelsTr/p{number}.nii.gz", predicted / f"p{number}.nii.gz"):
            nib.save(nib.Nifti1Image(label, np.eye(4)), path)
    content = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "TZ": "5"}}
    (root / "dataset.json").write_text(json.dumps(content))
    given = ["--dataset_dir", str(root)]
    assert main(["datalist", *given, "--output", str(tmp_path / "list.json")]) is None
    assert json.loads((tmp_path / "list.json").read_text())["modalities"] == ["t2", "adc"]
    assert main(["preflight", *given, "--deep"]) == 0
    assert main(["to_nnunet", *given, "--output_dir", str(tmp_path / "Dataset006_Again")]) is None
    written = json.loads((tmp_path / "Dataset006_Again" / "dataset.json").read_text())
    assert written["channel_names"] == {"0": "t2", "1": "adc"}
    assert written["labels"] == {"background": 0, "pz": 1, "tz": 2}
    scoring = ["score", *given, "--prediction_dir", str(predicted), "--metrics", "['dice']"]
    assert main([*scoring, "--output_dir", str(tmp_path / "eval")]) is None
    assert "PZ dice" in capsys.readouterr().out
    (root / "dataset.json").unlink()
    assert "What the values of labels mean is not guessed" in str(main([*scoring, "--output_dir", str(tmp_path)]))


def prostate(root: Path) -> None:
    """Four cases of one file with two channels each."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        voxels = np.random.default_rng(number).normal(100, 10, (8, 9, 10, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / f"imagesTr/p{number}.nii.gz")
        nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.uint8), np.eye(4)), root / f"labelsTr/p{number}.nii.gz")
    content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "prostate"}}
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("imagesTr", lambda voxels: voxels[..., 0], "should be 3D with 2 channel"),
        ("imagesTr", lambda voxels: np.concatenate([voxels, voxels], -1), "should be 3D with 2 channel"),
        ("imagesTr", lambda voxels: np.where(voxels > 120, np.nan, voxels), "should be finite"),
        ("labelsTr", lambda voxels: voxels[:-1], "the files should have one shape"),
    ],
    ids=["3D", "four channels", "NaN", "label of another shape"],
)
def test_scans_that_do_not_fit_are_not_handed_on(tmp_path, file, change, sentence):
    root = tmp_path / "Task"
    prostate(root)
    path = root / file / "p2.nii.gz"
    nib.save(nib.Nifti1Image(change(np.asarray(nib.load(path).dataobj)), np.eye(4)), path)
    with pytest.raises(InputError, match=rf"^Case p2: .*{sentence}"):
        write_raw_folder(root, tmp_path / "out", ["t2", "adc"], root / "dataset.json")
    assert [path.name for path in tmp_path.iterdir()] == ["Task"]


def test_whole_numbers_of_64_bits_are_written_as_they_are(tmp_path):
    root = tmp_path / "Task"
    prostate(root)
    path = root / "imagesTr" / "p1.nii.gz"
    voxels = np.arange(1, 1441).reshape(8, 9, 10, 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4), dtype=np.int64), path)
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps(make_datalist(root, ["t2", "adc"], testing_fraction=0)))
    write_raw_folder(root, tmp_path / "out", ["t2", "adc"], root / "dataset.json", datalist)
    written = nib.load(tmp_path / "out" / "imagesTr" / "p1_0001.nii.gz")
    assert written.get_data_dtype() == np.int64
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels[..., 1])
