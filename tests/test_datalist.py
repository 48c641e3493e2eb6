"""Datalists: split by patient, the same again, written once; and what is wrong with a list is said in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.__main__ import main
from scripts.data.cases import read_dataset_json
from scripts.data.datalist import inference_cases, load_datalist, make_datalist
from scripts.data.loading import LoadImageCased
from scripts.errors import InputError

BUNDLE = Path(__file__).parents[1] / "bundle"
MODALITIES = ["t1", "t1ce", "t2", "flair"]
SPLITS = ("training", "validation", "testing")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty patients, the first ten of them examined twice; empty files, as a split reads names alone."""
    root = tmp_path / "data"
    for patient in range(20):
        for examination in (1, 2) if patient < 10 else (1,):
            case = root / "HGG" / f"BraTS19_X_{patient}_{examination}"
            case.mkdir(parents=True)
            for suffix in (*MODALITIES, "seg"):
                (case / f"{case.name}_{suffix}.nii.gz").touch()
    return root


def ids(entries: list[dict]) -> list[str]:
    return [entry["case_id"] for entry in entries]


def patients(entries: list[dict]) -> set[str]:
    """Of this folder: the ID without its last part."""
    return {entry["case_id"].rsplit("_", 1)[0] for entry in entries}


def test_split_by_patient(folder):
    datalist = make_datalist(folder, seed=7, validation_fraction=0.2, testing_fraction=0.1)
    assert [len(patients(datalist[split])) for split in SPLITS] == [14, 4, 2]
    assert sum(len(datalist[split]) for split in SPLITS) == 30
    assert len(set().union(*(patients(datalist[split]) for split in SPLITS))) == 20  # none in two of them
    assert (datalist["seed"], datalist["modalities"], datalist["inference"]) == (7, MODALITIES, [])
    first = datalist["training"][0]
    path = f"HGG/{first['case_id']}/{first['case_id']}"
    assert first["image"] == {name: f"{path}_{name}.nii.gz" for name in MODALITIES}
    assert first["label"] == f"{path}_seg.nii.gz"


def test_a_patient_whom_a_table_tells_is_not_split(folder):
    """BraTS 2020 names of the ten patients that were examined twice; only the table knows who they are."""
    rows = ["Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID"]
    for number, case in enumerate(sorted(folder.glob("HGG/*"))):
        name = f"BraTS20_Training_{number:03d}"
        rows.append(f"HGG,{case.name},{name}")
        for path in case.iterdir():
            path.rename(path.with_name(path.name.replace(case.name, name)))
        case.rename(case.with_name(name))
    (folder / "name_mapping.csv").write_text("\n".join(rows) + "\n")
    datalist = make_datalist(folder, validation_fraction=0.3, testing_fraction=0.3)
    patient = {row.split(",")[2]: row.split(",")[1].rsplit("_", 1)[0] for row in rows[1:]}
    splits = [{patient[case_id] for case_id in ids(datalist[split])} for split in SPLITS]
    assert [len(split) for split in splits] == [8, 6, 6]
    assert len(set().union(*splits)) == 20


def test_the_same_again_and_otherwise_with_another_seed(folder, monkeypatch):
    datalist = make_datalist(folder)
    real = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    assert json.dumps(make_datalist(folder)) == json.dumps(datalist)
    assert {tuple(ids(make_datalist(folder, seed=seed)["testing"])) for seed in range(5)} != {
        tuple(ids(datalist["testing"]))
    }


def test_a_split_does_not_depend_on_where_the_folder_lies(folder):
    elsewhere = folder.rename(folder.with_name("moved")) / ".." / "moved"
    assert make_datalist(elsewhere)["training"] == make_datalist(folder.with_name("moved"))["training"]


@pytest.mark.parametrize(
    ("number", "sizes"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (10, [8, 1, 1])], ids=str
)
def test_few_patients(tmp_path, number, sizes):
    for i in range(number):
        for suffix in (*MODALITIES, "seg"):
            (tmp_path / f"case{i}_{suffix}.nii").touch()
    assert [len(make_datalist(tmp_path)[split]) for split in SPLITS] == sizes


def test_folds_share_out_the_patients(folder):
    datalist = make_datalist(folder, folds=3, testing_fraction=0.1)
    assert "validation" not in datalist
    of_fold = [[entry for entry in datalist["training"] if entry["fold"] == fold] for fold in range(3)]
    assert sorted(len(patients(entries)) for entries in of_fold) == [6, 6, 6]  # 20 less 2 for testing
    assert len(set().union(*map(patients, [*of_fold, datalist["testing"]]))) == 20
    output = folder.parent / "list.json"
    output.write_text(json.dumps(datalist))
    for file in MODALITIES:
        assert file in datalist["training"][0]["image"]
    for fold in range(3):
        training, validation = (load_datalist(folder, split, MODALITIES, output, fold) for split in SPLITS[:2])
        assert ids(validation) == ids(of_fold[fold])
        assert sorted(ids(training) + ids(validation)) == sorted(ids(datalist["training"]))


@pytest.mark.parametrize("folds", [1, 19], ids=str)
def test_too_many_or_too_few_folds(folder, folds):
    with pytest.raises(InputError, match=f"folds should be from 2 to .* 18, got {folds}"):
        make_datalist(folder, folds=folds)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 7])
@pytest.mark.parametrize("name", ["testing_fraction", "validation_fraction"])
def test_bad_fractions(folder, name, fraction):
    with pytest.raises(InputError, match=f"{name} should be from 0 to 1, got {fraction}"):
        make_datalist(folder, **{name: fraction})


@pytest.mark.parametrize(("validation", "testing"), [(0.5, 0.5), (0.7, 0.6), (1.0, 0.1)])
def test_nobody_is_left_to_train_on(folder, validation, testing):
    with pytest.raises(InputError, match="should leave patients to train on"):
        make_datalist(folder, validation_fraction=validation, testing_fraction=testing)


def test_a_data_set_that_is_only_tested_on(folder):
    datalist = make_datalist(folder, testing_fraction=1)
    assert [len(datalist[split]) for split in SPLITS] == [0, 0, 30]


def test_cases_left_out(folder):
    left_out = ["BraTS19_X_0_1", "BraTS19_X_3_2"]
    (folder / "HGG" / left_out[0] / f"{left_out[0]}_t1.nii.gz").unlink()
    datalist = make_datalist(folder, exclude=left_out)
    found = {entry["case_id"] for split in SPLITS for entry in datalist[split]}
    assert len(found) == 28
    assert found.isdisjoint(left_out)
    with pytest.raises(InputError, match=r"exclude should name cases of dataset_dir, .* has no nobody\."):
        make_datalist(folder, exclude=["nobody"])


class TestOwnTestCases:
    """Labelled cases of ``imagesTs``, as nnU-Net and our own ``to_nnunet`` set them aside."""

    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        """Ten cases to train on and four to test on."""
        root = tmp_path / "raw"
        for end, numbers in (("Tr", range(10)), ("Ts", range(10, 14))):
            for folder in (f"images{end}", f"labels{end}"):
                (root / folder).mkdir(parents=True)
            for number in numbers:
                (root / f"images{end}" / f"p{number}_0000.nii.gz").touch()
                (root / f"labels{end}" / f"p{number}.nii.gz").touch()
        (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {}}))
        return root

    OWN = ("p10", "p11", "p12", "p13")

    def test_they_are_tested_on_and_no_other(self, raw):
        datalist = make_datalist(raw, ["ct"])
        assert ids(datalist["testing"]) == list(self.OWN)
        assert [len(datalist[split]) for split in SPLITS] == [9, 1, 4]

    def test_in_folds_too(self, raw):
        datalist = make_datalist(raw, ["ct"], folds=5)
        assert ids(datalist["testing"]) == list(self.OWN)
        assert len(datalist["training"]) == 10
        assert {entry["fold"] for entry in datalist["training"]} == set(range(5))

    @pytest.mark.parametrize(("fraction", "sizes"), [(0.3, [6, 1, 7]), (0, [9, 1, 4]), (1, [0, 0, 14])], ids=str)
    def test_a_given_share_is_taken_of_the_others(self, raw, tmp_path, fraction, sizes):
        output = tmp_path / "list.json"
        given = ["--dataset_dir", str(raw), "--output", str(output), "--testing_fraction", str(fraction)]
        assert main(["datalist", *given]) is None
        datalist = json.loads(output.read_text())
        assert [len(datalist[split]) for split in SPLITS] == sizes
        assert set(self.OWN) <= set(ids(datalist["testing"]))

    def test_a_test_case_without_a_label_takes_no_other_out(self, raw):
        for path in (raw / "labelsTs").iterdir():
            path.unlink()
        datalist = make_datalist(raw, ["ct"])
        assert ids(datalist["inference"]) == list(self.OWN)
        assert [len(datalist[split]) for split in SPLITS] == [8, 1, 1]

    def test_a_patient_on_both_sides_is_refused(self, raw, tmp_path):
        table = tmp_path / "patients.csv"
        table.write_text("case,patient\n" + "".join(f"p{number},{number % 12}\n" for number in range(14)))
        with pytest.raises(InputError) as raised:
            make_datalist(raw, ["ct"], patients=table)
        assert str(raised.value) == (
            f"Patient 0 should be trained on or tested on, {raw} has case p0 to train on and p12 in imagesTs, and 1 "
            "more such patient(s): leave cases out by --exclude, or say by --patients who is who."
        )
        assert ids(make_datalist(raw, ["ct"], patients=table, exclude=["p0", "p1"])["testing"]) == list(self.OWN)


class TestCasesThatAreNotThere:
    """What leaves the training by a lost file is told once, whatever says that it should be there."""

    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        """Four labelled cases, the layout and list of nnU-Net v1: files have a channel's number, the list has none."""
        root = tmp_path / "raw"
        for number in range(4):
            for name in (f"imagesTr/p{number}_0000.nii.gz", f"labelsTr/p{number}.nii.gz"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
        self.describe(root, 4, numTraining=4)
        return root

    @staticmethod
    def describe(root: Path, listed: int, **more: Any) -> None:
        training = [
            {"image": f"./imagesTr/p{number}.nii.gz", "label": f"./labelsTr/p{number}.nii.gz"}
            for number in range(listed)
        ]
        content = {"modality": {"0": "CT"}, **({"training": training} if listed else {}), **more}
        (root / "dataset.json").write_text(json.dumps(content))
        read_dataset_json.cache_clear()

    @pytest.mark.parametrize(
        ("listed", "more", "unlabelled", "sentence"),
        [
            (4, {"numTraining": 4}, (), None),
            (0, {}, (), None),
            (0, {"numTraining": 3}, (), None),
            (0, {}, (1, 3), "2 case(s) of imagesTr have no label in labelsTr and leave the training, such as p1."),
            (4, {"numTraining": 4}, (3,), "1 case(s) of imagesTr have no label in labelsTr and leave the training, s"),
            (
                6,
                {"numTraining": 6},
                (),
                "lists 2 case(s) for training that are not there, such as ./imagesTr/p4.nii.gz.",
            ),
            (0, {"numTraining": 40}, (), "has numTraining 40, 4 case(s) are there in imagesTr."),
        ],
        ids=["all", "nothing said", "more than said", "no labels", "a label of a list", "a list", "a number"],
    )
    def test_in_one_warning(self, raw, caplog, listed, more, unlabelled, sentence):
        self.describe(raw, listed, **more)
        for number in unlabelled:
            (raw / "labelsTr" / f"p{number}.nii.gz").unlink()
        datalist = make_datalist(raw, ["ct"])
        assert ids(datalist["inference"]) == [f"p{number}" for number in unlabelled]
        warnings = [record.message for record in caplog.records]
        assert [sentence in warning for warning in warnings] == ([] if sentence is None else [True])

    def test_cases_left_out_are_not_missed(self, raw, caplog):
        (raw / "labelsTr" / "p2.nii.gz").unlink()
        make_datalist(raw, ["ct"], exclude=["p2"])
        assert caplog.text == ""

    def test_scans_to_segment_have_no_label(self, tmp_path, caplog):
        """Neither those of ``imagesTs``, nor where the data set knows of no labels."""
        (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
        for name in ("imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        make_datalist(tmp_path, ["ct"])
        assert caplog.text == ""


class TestPatients:
    def test_a_table_of_patients(self, tiny_cases, tmp_path):
        table = tmp_path / "patients.csv"
        table.write_text("case,age,patient\ncase_0,50,A\ncase_1,51,B\ncase_2,50,A\ncase_3,52,C\nnew,1,D\nother,1,E\n")
        for seed in range(4):
            datalist = make_datalist(tiny_cases, patients=table, seed=seed)
            split_of = {entry["case_id"]: split for split in SPLITS for entry in datalist[split]}
            assert split_of["case_0"] == split_of["case_2"]
            patients = {entry["case_id"]: entry["patient"] for split in SPLITS for entry in datalist[split]}
            assert patients == {"case_0": "A", "case_1": "B", "case_2": "A", "case_3": "C"}

    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            (None, "cannot be read"),
            ("id,patient\ncase_0,A\n", "should have the columns case and patient"),
            ("case,patient\ncase_0,A\n", "Case case_1: its patient is missing"),
            ("case,patient\ncase_0,A\ncase_0,B\n", "Case case_0: patients should name one patient"),
            ("case,patient\ncase_0,\n", "Case case_0: patients should name one patient"),
        ],
    )
    def test_a_bad_table(self, tiny_cases, tmp_path, text, rule):
        table = tmp_path / "patients.csv"
        if text:
            table.write_text(text)
        with pytest.raises(InputError, match=rule):
            make_datalist(tiny_cases, patients=table)

    @pytest.mark.parametrize(
        ("patients", "indices", "said"),
        [
            (["A", "B"], [0, 1], None),
            (["A", "A"], [0, 1], "patient A should be in training or in testing, it is in both"),
            (["A", "B"], [0, 0], "case case_0 should be in training or in testing, it is in both"),
        ],
    )
    @pytest.mark.parametrize("folds", [False, True])
    def test_a_list_that_trains_and_tests_on_one_patient(self, tiny_cases, tmp_path, patients, indices, said, folds):
        path = tmp_path / "list.json"
        entries = [
            {
                "patient": patient,
                "image": f"case_{index}/case_{index}_t1.nii.gz",
                "label": f"case_{index}/case_{index}_seg.nii.gz",
            }
            for index, patient in zip(indices, patients)
        ]
        split, fold = ("validation", 1) if folds else ("testing", None)
        content: dict[str, Any] = {"training": entries[:1], "testing": entries[1:]}
        if folds:
            content = {"folds": 2, "training": [{**entry, "fold": fold} for fold, entry in enumerate(entries)]}
        path.write_text(json.dumps(content))
        if said is None:
            [entry] = load_datalist(tiny_cases, split, ["t1"], path, fold)
            assert (entry["case_id"], entry["patient"]) == ("case_1", patients[1])
        else:
            with pytest.raises(InputError, match=said.replace("testing", split)):
                load_datalist(tiny_cases, split, ["t1"], path, fold)

    def test_a_scan_under_two_names_is_not_trained_and_tested_on(self, tiny_cases, tmp_path):
        entry = {"image": "case_0/case_0_t1.nii.gz", "label": "case_0/case_0_seg.nii.gz"}
        named = [{**entry, "case_id": name} for name in "ab"]
        (tmp_path / "list.json").write_text(json.dumps({"training": named[:1], "testing": named[1:]}))
        with pytest.raises(InputError, match=r"scan .*case_0_t1\.nii\.gz should be in training or in testing"):
            load_datalist(tiny_cases, "training", ["t1"], tmp_path / "list.json")

    def test_names_that_no_rule_knows_are_warned_of(self, tmp_path, caplog):
        for patient, visit in [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "a")]:
            for suffix in ("t1", "seg"):
                (tmp_path / f"P{patient:03}_{visit}_{suffix}.nii").touch()
        make_datalist(tmp_path, ["t1"])
        assert "Cases P001_a and P001_b look like one patient" in caplog.text


def test_files_that_belong_to_no_case_are_counted(tiny_cases, caplog):
    make_datalist(tiny_cases)
    assert caplog.text == ""
    other = tiny_cases / "new" / "new_label.nii.gz"
    other.touch()
    make_datalist(tiny_cases)
    assert f"1 NIfTI file(s) of {tiny_cases} belong to no case by their names, such as {other}" in caplog.text


def test_unlabelled_cases_are_for_inference(tiny_cases):
    datalist = make_datalist(tiny_cases)
    assert ids(datalist["inference"]) == ["new"]
    assert "label" not in datalist["inference"][0]
    assert sorted(entry["case_id"] for split in SPLITS for entry in datalist[split]) == [f"case_{i}" for i in range(4)]


def test_a_subset_of_modalities(tiny_cases):
    (tiny_cases / "case_0" / "case_0_t2.nii.gz").unlink()
    datalist = make_datalist(tiny_cases, ["flair", "t1ce"])
    assert datalist["modalities"] == ["flair", "t1ce"]
    assert list(datalist["training"][0]["image"]) == ["flair", "t1ce"]


class TestCommand:
    def test_written_once(self, tiny_cases, tmp_path, capsys):
        output = tmp_path / "datalist.json"
        arguments = ["--dataset_dir", str(tiny_cases), "--output", str(output), "--seed", "3"]
        assert not main(["datalist", *arguments])
        assert capsys.readouterr().out == f"{output}: 2 training, 1 validation, 1 testing, 1 inference\n"
        written = output.read_text()
        assert json.loads(written) == json.loads(json.dumps(make_datalist(tiny_cases, seed=3)))
        assert (
            main(["datalist", *arguments[:-1], "4"])
            == f"Error: output should be a new file, {output} exists: a split is made once."
        )
        assert output.read_text() == written
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["datalist.json"]

    def test_every_faulty_case_is_named_and_nothing_written(self, tiny_cases, tmp_path):
        gone = tiny_cases / "case_1" / "case_1_t1ce.nii.gz"
        gone.unlink()
        for suffix, case in (("flair", "case_2"), ("seg", "case_3")):
            (tiny_cases / case / f"{case}_{suffix}.nii").touch()
        error = main(["datalist", "--dataset_dir", str(tiny_cases), "--output", str(tmp_path / "list.json")])
        assert f"Case case_1: t1ce is missing, there is no {gone}." in error
        assert "Case case_2: flair is doubled" in error
        assert f"{tiny_cases}/case_2/case_2_flair.nii and {tiny_cases}/case_2/case_2_flair.nii.gz" in error
        assert "Case case_3: seg is doubled" in error
        assert "case_0" not in error
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_exit_codes(self, tiny_cases, tmp_path):
        command = [sys.executable, "-m", "scripts", "datalist", "--dataset_dir", str(tiny_cases)]
        command += [
            "--output",
            str(tmp_path / "list.json"),
            "--modalities",
            "['flair','t1ce']",
            "--testing_fraction",
            "0",
        ]
        for code in (0, 1):  # the second time the file exists
            done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=60)
            assert done.returncode == code
            assert done.stderr.count("\n") == code  # one sentence, no traceback
        assert json.loads((tmp_path / "list.json").read_text())["testing"] == []

    def test_file_systems_without_links(self, tiny_cases, tmp_path, monkeypatch):
        monkeypatch.delattr("os.link")
        output = tmp_path / "list.json"
        assert not main(["datalist", "--dataset_dir", str(tiny_cases), "--output", str(output)])
        assert json.loads(output.read_text())["training"]

    def test_output_in_no_folder(self, tiny_cases, tmp_path):
        error = main(["datalist", "--dataset_dir", str(tiny_cases), "--output", str(tmp_path / "no" / "list.json")])
        assert error == f"Error: output should lie in a folder that exists, {tmp_path}/no does not."


class TestLoading:
    @pytest.fixture
    def listed(self, tiny_cases, tmp_path):
        """Loads the training split of a list of one case after a change to its entry."""

        def load(change=lambda entry: None, modalities=("t1", "flair"), split="training", **more):
            image = {name: f"case_0/case_0_{name}.nii.gz" for name in ("t1", "flair")}
            entry = {"case_id": "case_0", "image": image, "label": "case_0/case_0_seg.nii.gz"}
            change(entry)
            path = tmp_path / "list.json"
            path.write_text(json.dumps({"training": [entry]}))
            return load_datalist(tiny_cases, split, modalities, path, **more)

        return load

    def test_absolute_paths_in_the_order_asked_for(self, listed, tiny_cases):
        case = tiny_cases / "case_0"
        [entry] = listed(modalities=("flair", "t1"))
        assert list(entry["image"].items()) == [
            ("flair", str(case / "case_0_flair.nii.gz")),
            ("t1", str(case / "case_0_t1.nii.gz")),
        ]
        assert (entry["case_id"], entry["label"]) == ("case_0", str(case / "case_0_seg.nii.gz"))

    def test_all_labelled_cases(self, tiny_cases, caplog):
        caplog.set_level("INFO")
        assert all("label" in entry for entry in load_datalist(tiny_cases, "all", MODALITIES))
        assert sorted(ids(load_datalist(tiny_cases, "all", MODALITIES))) == [f"case_{index}" for index in range(4)]
        assert "all: 4 of the 4 labelled cases of the split of dataset_dir" in caplog.text
        load_datalist(tiny_cases, "testing", MODALITIES)
        assert [(record.levelname, record.message) for record in caplog.records][-1] == (
            "WARNING",
            f"testing: 1 of the 4 labelled cases of the split of dataset_dir {tiny_cases}; "
            "--split all takes all of them.",
        )

    def test_a_case_is_in_a_split_once(self, tiny_cases, tmp_path):
        path = tmp_path / "list.json"
        entry = {"image": "case_0/case_0_t1.nii.gz", "label": "case_0/case_0_seg.nii.gz"}
        path.write_text(json.dumps({"training": [entry, {"case_id": "case_0", **entry}]}))
        with pytest.raises(InputError, match=r"Case case_0 should be in training once, .*list.json has it 2 times"):
            load_datalist(tiny_cases, "training", ["t1"], path)

    def test_without_a_list_the_folder_is_split(self, tiny_cases):
        loaded = [load_datalist(tiny_cases, split, MODALITIES) for split in (*SPLITS, "inference")]
        assert [len(entries) for entries in loaded] == [2, 1, 1, 1]
        assert ids(loaded[0]) == ids(make_datalist(tiny_cases)["training"])

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (lambda e: e["image"].pop("flair"), ["Case case_0: flair is missing in the datalist"]),
            (lambda e: e.pop("label"), ["Case case_0: label is missing in the datalist"]),
            (lambda e: e.pop("image"), ["Case case_0: image is missing in the datalist"]),
            (lambda e: e["image"].update(t1="case_0/gone.nii"), ["case_0: t1", "is not there", "case_0/gone.nii"]),
            (lambda e: e.update(label="case_0"), ["case_0: label", "is not there"]),
            (lambda e: e.update(label="../secret.nii"), ["case_0: label should lie in dataset_dir", "../secret.nii"]),
            (lambda e: e["image"].update(t1="/etc/hostname"), ["t1 should lie in dataset_dir", "/etc/hostname"]),
        ],
        ids=["no modality", "no label", "no image", "gone", "a folder", "out of dataset_dir", "absolute"],
    )
    def test_a_bad_entry(self, listed, tmp_path, change, parts):
        (tmp_path / "secret.nii").touch()
        with pytest.raises(InputError) as raised:
            listed(change)
        for part in parts:
            assert part in str(raised.value)

    @pytest.mark.parametrize("split", ["validation", "testing", "nonsense"])
    def test_an_empty_split(self, listed, tmp_path, split):
        with pytest.raises(InputError, match=f"at least one case for {split}, {tmp_path}/list.json has none"):
            listed(split=split)

    @pytest.mark.parametrize("fold", [None, -1, 2], ids=str)
    def test_no_such_fold(self, tiny_cases, tmp_path, fold):
        path = tmp_path / "list.json"
        path.write_text(json.dumps(make_datalist(tiny_cases, folds=2)))
        with pytest.raises(InputError, match=f"fold should be from 0 to 1, as {path} has folds, got {fold}"):
            load_datalist(tiny_cases, "training", MODALITIES, path, fold)

    @pytest.mark.parametrize(
        ("text", "rule"),
        [(None, "should be a datalist, .* is not there"), ("{'training'", "should be JSON, .* is not")],
    )
    def test_no_list(self, tiny_cases, tmp_path, text, rule):
        path = tmp_path / "list.json"
        if text:
            path.write_text(text)
        with pytest.raises(InputError, match=rule) as raised:
            load_datalist(tiny_cases, "training", MODALITIES, path)
        assert str(path) in str(raised.value)

    def test_no_dataset_dir(self, tmp_path):
        with pytest.raises(InputError, match=f"dataset_dir should be a folder of cases, {tmp_path}/no is not there"):
            load_datalist(tmp_path / "no", "training", MODALITIES)


class TestInference:
    def test_every_case_of_a_folder_with_its_files(self, tiny_cases):
        cases = inference_cases(tiny_cases, MODALITIES, "eval")
        assert ids(cases) == ["case_0", "case_1", "case_2", "case_3", "new"]
        for case in cases:
            assert set(case) == {"case_id", "image"}
            folder = tiny_cases / case["case_id"]
            assert case["image"] == {name: str(folder / f"{folder.name}_{name}.nii.gz") for name in MODALITIES}

    def test_a_label_is_no_image(self, tmp_path):
        for name in ("a_flair.nii", "a_seg.nii", "b_seg.nii"):
            (tmp_path / name).touch()
        assert inference_cases(tmp_path, ["flair"], "eval") == [
            {"case_id": "a", "image": {"flair": str(tmp_path / "a_flair.nii")}}
        ]

    def test_an_incomplete_case_does_not_hide_the_others(self, tiny_cases):
        (tiny_cases / "case_1" / "case_1_flair.nii.gz").unlink()
        cases = inference_cases(tiny_cases, MODALITIES, "eval")
        assert len(cases) == 5
        assert cases[1]["image"] == str(tiny_cases / "case_1" / "case_1_t1.nii.gz")

    def test_a_split_of_a_list_without_its_labels(self, tiny_cases, tmp_path):
        path = tmp_path / "list.json"
        path.write_text(json.dumps(make_datalist(tiny_cases)))
        assert ids(inference_cases(tiny_cases, MODALITIES, "eval", path)) == ["new"]
        testing = inference_cases(tiny_cases, MODALITIES, "eval", path, split="testing")
        assert ids(testing) == ids(make_datalist(tiny_cases)["testing"])
        assert "label" not in testing[0]

    def test_a_lost_file_is_left_to_the_loader_which_names_it(self, tiny_cases, tmp_path):
        path = tmp_path / "list.json"
        path.write_text(json.dumps(make_datalist(tiny_cases)))
        (tiny_cases / "new" / "new_t2.nii.gz").unlink()
        assert ids(inference_cases(tiny_cases, MODALITIES, "eval", path)) == ["new"]

    @pytest.mark.parametrize("folder", [".", "case_2", "masks", "case_2/masks", "../link"])
    def test_masks_are_not_written_among_the_cases(self, tiny_cases, folder):
        (tiny_cases.parent / "link").symlink_to(tiny_cases)
        with pytest.raises(InputError, match="output_dir should lie outside of dataset_dir"):
            inference_cases(tiny_cases, MODALITIES, tiny_cases / folder)

    def test_masks_are_not_written_beside_scans_that_are_linked(self, tiny_cases, tmp_path):
        linked = tmp_path / "linked"
        linked.mkdir()
        (linked / "case_2").symlink_to(tiny_cases / "case_2")
        with pytest.raises(InputError, match=r"output_dir should not be a folder of scans, .* holds case case_2"):
            inference_cases(linked, MODALITIES, tiny_cases / "case_2" / "masks")

    def test_probabilities_do_not_replace_scans(self, tiny_cases, tmp_path):
        """In the layout of the Decathlon both are called ``<case>.nii.gz``."""
        with pytest.raises(InputError, match="probabilities_dir should lie outside of dataset_dir"):
            inference_cases(tiny_cases, MODALITIES, "eval", probabilities_dir=tiny_cases / "case_2")
        assert inference_cases(tiny_cases, MODALITIES, "eval", probabilities_dir=tmp_path / "probabilities")

    def test_labels_alone_are_nothing_to_segment(self, tmp_path):
        (tmp_path / "a_seg.nii").touch()
        with pytest.raises(InputError, match="holds labels only"):
            inference_cases(tmp_path, MODALITIES, "eval")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"training": None}, "training should be a list of cases, it is null"),
        ({"validation": {"a": 1}}, "validation should be a list of cases"),
        ({"testing": [3]}, "testing should hold cases such as .*, it holds 3"),
        ({"training": [{"image": ["a.nii.gz"]}]}, "training should hold cases such as"),
        ({"training": [{"image": {"t1": 3}}]}, "training should hold cases such as"),
        ({"training": [{"image": "a.nii.gz", "label": 3}]}, "training should hold cases such as"),
        ({"training": [{"image": "a.nii.gz", "case_id": ["a"]}]}, "training should hold cases such as"),
        ({"folds": "2"}, 'folds should be a whole number, it is "2"'),
        ({"folds": 2, "training": [{"image": "a.nii.gz"}]}, "fold should be from 0 to 1 .*, a has None"),
        ({"folds": 2, "training": [{"image": "a.nii.gz", "fold": 7}]}, "fold should be from 0 to 1 .*, a has 7"),
    ],
)
def test_a_list_of_another_form_is_refused(tiny_cases, tmp_path, change, sentence):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(make_datalist(tiny_cases) | change))
    with pytest.raises(InputError, match=sentence):
        load_datalist(tiny_cases, "training", MODALITIES, path, fold=0)


def test_the_test_cases_of_the_decathlon(tmp_path):
    """Its ``dataset.json`` lists them by their scans alone."""
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], "test": ["./imagesTs/hippocampus_002.nii.gz"]}))
    [entry] = inference_cases(tmp_path, ["mri"], "eval", tmp_path / "dataset.json", split="test")
    assert entry["case_id"] == "hippocampus_002"


def test_real_patients_with_two_modalities(real_data):
    datalist = make_datalist(real_data / "brats2013", ["flair", "t1ce"], validation_fraction=0)
    assert [len(datalist[split]) for split in SPLITS] == [3, 0, 1]
    assert load_datalist(real_data / "brats2013", "testing", ["flair", "t1ce"])


def test_foreign_names_by_suffixes(tmp_path, write_case):
    """As BIDS names them: a split, a list that needs no map any more, and a case that lacks a file."""
    root = tmp_path / "bids"
    for number in range(3):
        for name, path in write_case(root / f"sub-{number}" / "anat", f"sub-{number}", ["t1", "flair", "seg"]).items():
            path.rename(path.with_name(path.name.replace(name, {"t1": "T1w", "flair": "FLAIR", "seg": "dseg"}[name])))
    suffixes = {"T1w": "t1", "FLAIR": "flair", "dseg": "seg"}
    output = tmp_path / "list.json"
    arguments = ["--dataset_dir", str(root), "--output", str(output), "--modalities", "['t1','flair']"]
    assert main(["datalist", *arguments, "--suffixes", str(suffixes)]) is None
    for path in (output, None):
        [entry] = load_datalist(root, "testing", ["t1", "flair"], path, suffixes=suffixes)
        assert Path(entry["image"]["t1"]).name == f"{entry['case_id']}_T1w.nii.gz"
        assert Path(entry["label"]).name == f"{entry['case_id']}_dseg.nii.gz"
    next(root.glob("sub-1/anat/*_T1w.nii.gz")).unlink()
    entry = inference_cases(root, ["t1"], "eval", suffixes=suffixes)[1]
    with pytest.raises(
        InputError, match=r"Case sub-1: t1 is missing or doubled, its other files are .*_FLAIR\.nii\.gz"
    ):
        LoadImageCased("image", ["t1"])(entry)
