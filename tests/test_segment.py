"""Four files in, one mask out, by ``configs/inference.json``."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.__main__ import main
from scripts.errors import InputError
from scripts.inference.segment import copy_all
from scripts.networks import MISSU
from scripts.weights.checkpoints import save_weights
from scripts.weights.record import arguments_of, sha256

MODALITIES = ["flair", "t1ce"]


def write_weights(path: Path, **more: float) -> Path:
    """Of two modalities, at 3 mm, with their record."""
    torch.manual_seed(0)
    network = MISSU(2, 4, 16, init_filters=8, hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2)
    settings = {"modalities": MODALITIES, "spacing_mm": [3, 3, 3], "roi_size": [16, 16, 16], "invert_logits": True}
    record = {"settings": {**settings, "label_convention": "brats2018", "network": arguments_of(network), **more}}
    save_weights(network, path, {**record, "cases": [], "metrics": {}, "dataset": "phantoms", "epoch": 1})
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights.pt")


def flags(files: dict[str, Path], *names: str) -> list[str]:
    return [argument for name in names for argument in (f"--{name}", str(files[name]))]


def test_a_mask_from_files_of_any_name(weights, tiny_case, tmp_path):
    files = {name: tiny_case[name].rename(tmp_path / f"scan {i}.nii.gz") for i, name in enumerate(MODALITIES)}
    output = tmp_path / "masks" / "a.b.nii.gz"
    knobs = ["--", "--label_convention", "brats2018"]
    arguments = ["--checkpoint", str(weights), *flags(files, *MODALITIES), "--output", str(output)]
    assert main(["segment", *arguments, *knobs]) is None
    mask, scan = nib.load(output), nib.load(files["flair"])
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
    assert {path.name for path in output.parent.iterdir()} == {"a.b.nii.gz", "a.b.json"}  # nothing else stays
    record = json.loads((output.parent / "a.b.json").read_text())
    assert record["image"] == {name: str(file) for name, file in files.items()}
    assert [each["sha256"] for each in record["weights"]] == [sha256(weights)]
    assert "exists" in str(main(["segment", *arguments]))


def test_a_page_and_a_picture_come_with_the_mask(weights, tiny_case, tmp_path, capsys):
    out = tmp_path / "out"
    written = {"--output": out / "p1.nii.gz", "--report": out / "p1.html", "--picture": out / "p1.png"}
    arguments = ["--checkpoint", str(weights), *flags(tiny_case, *MODALITIES)]
    arguments += [str(each) for pair in written.items() for each in pair]
    assert main(["segment", *arguments]) is None
    assert {path.name for path in out.iterdir()} == {"p1.nii.gz", "p1.html", "p1.json", "p1.png"}
    assert capsys.readouterr().out.split()[-3:] == [str(path) for path in written.values()]
    content = json.loads((out / "p1.json").read_text())
    assert content["weights"]["sha256"] == sha256(weights)
    assert content["weights"]["record"]["dataset"] == "phantoms"
    assert content["seconds"] > 0
    assert content["mask"]["settings"]["overlap"] == 0.5
    mask = nib.load(out / "p1.nii.gz")
    voxels = np.count_nonzero(np.asarray(mask.dataobj))
    assert content["volumes"]["prediction"]["regions_ml"]["wt"] == pytest.approx(voxels * 1.5 * 1.25 * 2 / 1000)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--report": "page.pdf"}, "report should end with .html"),
        ({"--picture": "picture.jpg"}, "picture should end with .png"),
        ({"--output": "mask.nrrd"}, "output should end with .nii.gz"),
        ({"--flair": "nowhere.nii.gz"}, "flair should be a file, nowhere.nii.gz is not there"),
        ({"--flair": __file__}, "flair should be a NIfTI file, .nii.gz or .nii, it is"),
        ({"--": "--modalites"}, "Knobs should be pairs of --name and value"),
        ({"--": "--overlapp", "0.9": None}, "--overlapp is no knob of"),
        ({"--": "--overlap=0.1", "--stretch=1": None}, "--overlap=0.1 is no knob of"),
        ({"--": "--output_dir", "elsewhere": None}, "--output_dir belongs to this command itself"),
        ({"--checkpoint": "nowhere.pt"}, "checkpoint should be a file of weights, nowhere.pt is not there"),
    ],
)
def test_bad_input_ends_in_a_sentence_and_leaves_nothing(weights, tiny_case, tmp_path, change, sentence):
    given = {f"--{name}": str(tiny_case[name]) for name in MODALITIES}
    given |= {"--checkpoint": str(weights), "--output": str(tmp_path / "out" / "mask.nii.gz")} | change
    result = str(main(["segment", *(each for pair in given.items() for each in pair if each)]))
    assert result.startswith("Error: ")
    assert sentence in result
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_one_scan_is_not_two_modalities(weights, tiny_case, tmp_path):
    tiny_case["t1ce"] = tiny_case["flair"]
    output = tmp_path / "out" / "mask.nii.gz"
    result = main(["segment", "--checkpoint", str(weights), *flags(tiny_case, *MODALITIES), "--output", str(output)])
    assert "flair and t1ce should be two files, both are" in str(result)
    assert not output.parent.exists()


def test_a_damaged_scan_ends_in_a_sentence_and_leaves_nothing(weights, tiny_case, tmp_path):
    tiny_case["t1ce"].write_bytes(b"no scan")
    output = tmp_path / "out" / "mask.nii.gz"
    result = main(["segment", "--checkpoint", str(weights), *flags(tiny_case, *MODALITIES), "--output", str(output)])
    assert "cannot be read as an image" in str(result)
    assert list(output.parent.iterdir()) == []


def test_each_modality_of_the_weights_is_asked_for(weights, tiny_case, tmp_path, capsys):
    arguments = ["segment", "--checkpoint", str(weights), "--output", str(tmp_path / "mask.nii.gz")]
    with pytest.raises(SystemExit) as end:
        main([*arguments, *flags(tiny_case, "flair")])
    assert end.value.code == 2
    assert "--t1ce" in capsys.readouterr().err


def test_a_modality_may_be_left_out_where_the_training_did(tiny_case, tmp_path, capsys):
    weights = write_weights(tmp_path / "weights.pt", modality_dropout=0.5)
    output = tmp_path / "masks" / "mask.nii.gz"
    arguments = ["segment", "--checkpoint", str(weights), "--output", str(output)]
    assert main([*arguments, *flags(tiny_case, "flair")]) is None
    assert nib.load(output).header["descrip"] == b"without t1ce"
    with pytest.raises(SystemExit):
        main(arguments)
    assert "give a scan by one or more of --flair, --t1ce" in capsys.readouterr().err


def test_a_modality_is_not_taken_by_the_beginning_of_its_name(weights, tiny_case, tmp_path, capsys):
    """A T1 is none after contrast, though --t1 begins as --t1ce does."""
    arguments = ["--checkpoint", str(weights), "--output", str(tmp_path / "mask.nii.gz"), "--t1", str(tiny_case["t1"])]
    with pytest.raises(SystemExit):
        main(["segment", *arguments, *flags(tiny_case, "flair")])
    assert "--t1ce" in capsys.readouterr().err
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_channel_that_is_called_as_a_flag(tmp_path):
    weights = write_weights(tmp_path / "weights.pt", modalities=["flair", "report"])
    said = str(main(["segment", "--checkpoint", str(weights), "--output", str(tmp_path / "mask.nii.gz")]))
    assert "has a channel report, and --report means something else here: take configs/inference.json" in said


@pytest.mark.parametrize("given", ["t1ce", "seg"])
def test_a_file_that_is_called_otherwise_is_told(weights, tiny_case, tmp_path, caplog, given):
    """A label or another modality is no T1ce, and looks like one to the network."""
    case = tiny_case["flair"].with_name(f"case_1_{given}.nii.gz")
    swapped = {"flair": tiny_case["t2"], "t1ce": tiny_case["t1ce"].rename(case)}
    output = tmp_path / "mask.nii.gz"
    assert (
        main(["segment", "--checkpoint", str(weights), *flags(swapped, *MODALITIES), "--output", str(output)]) is None
    )
    told = json.loads((tmp_path / "mask.json").read_text())["warnings"]
    names = [("flair", "t2"), *([("t1ce", "seg")] if given == "seg" else [])]
    expected = [f"{name} is given as {swapped[name]}, which is called as {of} is: look again." for name, of in names]
    assert [sentence for sentence in told if "is given as" in sentence] == expected
    assert set(expected) <= {record.getMessage() for record in caplog.records}


def test_one_file_is_written_once_however_it_is_called(weights, tiny_case, tmp_path):
    output = tmp_path / "out" / "mask.nii.gz"
    given = ["--output", str(output), "--probabilities", str(tmp_path / "out" / ".." / "out" / "mask.nii.gz")]
    result = main(["segment", "--checkpoint", str(weights), *flags(tiny_case, *MODALITIES), *given])
    assert "Each file to write should have a name of its own" in str(result)


def test_all_files_are_there_or_none(tmp_path, monkeypatch):
    made = {tmp_path / "out" / name: tmp_path / f"unfinished {name}" for name in ("mask.nii.gz", "mask.json")}
    for path in made.values():
        path.write_text(path.name)
    copy = shutil.copyfile

    def full(source, target):
        if "json" in source.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        copy_all(made)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out" / "mask.nii.gz").write_text("of another run")
    with pytest.raises(InputError, match=r"mask\.nii\.gz should be a new file, it came since the start"):
        copy_all(made)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["of another run"]
    (tmp_path / "out" / "mask.nii.gz").unlink()
    copy_all(made)
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {path.name for path in made.values()}
