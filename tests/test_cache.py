"""The cache on disk gives what the transforms give, reads no scan twice, and knows when a case has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Lambdad, RandSpatialCropd

from scripts.data.cache import MappedDataset
from scripts.data.cases import read_dataset_json

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"


class Case:
    """A case whose files are read by a transform that counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reads = 0
        self.item = {"case_id": "p1"}
        for key in ("image", "label"):
            path = folder / f"{key}.txt"
            path.write_text("1 2 3 4 5 6 7 8")
            self.item[key] = str(path)

    def read(self, path: str) -> torch.Tensor:
        self.reads += 1
        return torch.tensor([[[float(value)] for value in Path(path).read_text().split()]]).unsqueeze(-1)

    def dataset(self, **settings) -> MappedDataset:
        steps = [
            Lambdad(["image", "label"], self.read),
            RandSpatialCropd(["image", "label"], roi_size=(2, 1, 1), random_size=False),
            Lambdad("image", lambda crop: crop.mul_(10)),  # in place
        ]
        return MappedDataset([self.item], Compose(steps), str(self.folder / "cache"), settings)


@pytest.fixture
def case(tmp_path) -> Case:
    return Case(tmp_path)


def test_crops_of_a_case_that_is_read_once(case):
    dataset = case.dataset()
    starts = set()
    for _ in range(40):
        item = dataset[0]
        image, label = item["image"].flatten().tolist(), item["label"].flatten().tolist()
        assert image == [10 * value for value in label]  # by transforms in place, too: the files stay as they are
        assert label[1] == label[0] + 1
        starts.add(label[0])
    assert starts == {1, 2, 3, 4, 5, 6, 7}
    assert case.reads == 2  # the image and the label
    assert case.dataset()[0]["case_id"] == "p1"
    assert case.reads == 2


def test_a_changed_file_or_setting_is_read_anew(case):
    case.dataset(spacing_mm=1)[0]
    case.dataset(spacing_mm=2)[0]
    assert case.reads == 4
    Path(case.item["image"]).write_text("9 9 9 9 9 9 9 9")
    os.utime(case.item["image"], ns=(0, 0))
    assert case.dataset(spacing_mm=2)[0]["image"].flatten().tolist() == [90, 90]
    assert case.reads == 6


def name_of(item: dict[str, object]) -> str:
    read_dataset_json.cache_clear()  # a training reads it once
    return MappedDataset([item], Compose([]), "cache", {}).name_of(item)


def test_a_replaced_sibling_is_noticed(tiny_case):
    """An image by one of its files; the others are found by their names."""
    item = {"case_id": "case_1", "image": str(tiny_case["flair"]), "label": str(tiny_case["seg"])}
    before = name_of(item)
    assert name_of(item) == before
    os.utime(tiny_case["t2"], ns=(0, 0))
    assert name_of(item) != before


def test_other_names_of_channels_are_noticed(tmp_path, write_case):
    files = write_case(tmp_path / "imagesTr", "a", ["flair", "seg"])
    image = files["flair"].rename(tmp_path / "imagesTr" / "a.nii.gz")
    item = {"case_id": "a", "image": str(image), "label": str(files["seg"].rename(tmp_path / "seg.nii.gz"))}
    names = set()
    for channels in (["FLAIR", "T2w"], ["T2w", "FLAIR"]):
        (tmp_path / "dataset.json").write_text(json.dumps({"modality": dict(enumerate(channels))}))
        names.add(name_of(item))
    assert len(names) == 2


def test_files_given_to_other_modalities_are_noticed(tiny_case):
    t1, t2 = str(tiny_case["t1"]), str(tiny_case["t2"])
    items = [{"case_id": "a", "image": {one: t1, two: t2}, "label": t1} for one, two in (("t1", "t2"), ("t2", "t1"))]
    assert name_of(items[0]) != name_of(items[1])


def test_half_a_cache_is_made_whole(case):
    case.dataset()[0]
    [label] = (case.folder / "cache").glob("*-label.npy")
    label.unlink()
    case.dataset()[0]
    assert label.is_file()


def test_the_overlay_gives_what_train_json_gives(tiny_cases, tmp_path):
    items = {}
    for names in (["train.json"], ["train.json", "cache.json"]):
        parser = ConfigParser()
        parser.read_config([CONFIGS / name for name in names])
        parser.update({"dataset_dir": str(tiny_cases), "roi_size": [16] * 3, "num_workers": 0})
        if len(names) == 2:
            parser["cache_dir"] = str(tmp_path / "cache")
        transforms = parser.get_parsed_content("train#preprocessing").set_random_state(seed=3)
        dataset = parser.get_parsed_content("train#dataset")
        assert dataset.transform is transforms
        items[len(names)] = dataset[0]
    for key in ("image", "label"):
        np.testing.assert_array_equal(items[1][key], items[2][key])
        assert items[1][key].dtype == items[2][key].dtype
