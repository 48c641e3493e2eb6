"""Label conventions: classes in, values out, and nothing but what a convention defines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from scripts.data.labels import (
    LABEL_CONVENTIONS,
    class_names,
    classes_to_regions,
    classes_to_values,
    convention_table,
    num_classes,
    painting_order,
    recorded_convention,
    regions,
    regions_to_classes,
    values_to_classes,
)

# The values of background, NCR/NET, ED, ET and, where the convention has one, of its fourth class.
VALUES = {
    "brats2018": [0, 1, 2, 4],
    "brats2023": [0, 1, 2, 3],
    "brats2024_gli": [0, 1, 2, 3, 4],
    "brats_ped": [0, 2, 4, 1, 3],
    "decathlon": [0, 2, 1, 3],
    "nnunet": [0, 2, 1, 3],
}
# As the Decathlon, CHAOS's liver against the rest, and nnU-Net with regions have it.
HIPPOCAMPUS = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
LIVER = {"labels": {"background": [0, 2, 3, 4], "liver": 1}}
NESTED = {
    "labels": {"background": 0, "whole tumor": [1, 2, 4], "tumor_core": [2, 4], "Enhancing tumor": 4},
    "regions_class_order": [1, 2, 4],
}
CONVENTIONS = pytest.mark.parametrize(("convention", "values"), VALUES.items(), ids=VALUES)
MAKERS = pytest.mark.parametrize(
    "make",
    [
        lambda values: np.array([values], np.uint8),
        lambda values: torch.tensor([values], dtype=torch.float32),
        lambda values: torch.tensor([values], dtype=torch.uint8),
    ],
    ids=["numpy", "float tensor", "uint8 tensor"],
)


@CONVENTIONS
@MAKERS
def test_values_and_classes_both_ways(convention, values, make):
    stored, classes = make(values), make(list(range(len(values))))
    for result, expected in (
        (values_to_classes(stored, convention), classes),
        (classes_to_values(classes, convention), stored),
    ):
        assert type(result) is type(expected)
        assert result.dtype == expected.dtype
        assert result.tolist() == expected.tolist()
    # The arguments stay as they are.
    assert (stored.tolist(), classes.tolist()) == ([values], [list(range(len(values)))])


@pytest.mark.parametrize(
    ("convention", "value", "sentence"),
    [
        ("brats2018", 3, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 3."),
        ("brats2023", 4, "label_convention brats2023 allows the values 0, 1, 2, 3, the label holds 4."),
        ("brats2024_gli", 5, "label_convention brats2024_gli allows the values 0, 1, 2, 3, 4, the label holds 5."),
        ("brats_ped", 5, "label_convention brats_ped allows the values 0, 1, 2, 3, 4, the label holds 5."),
        ("decathlon", 4, "label_convention decathlon allows the values 0, 1, 2, 3, the label holds 4."),
        ("nnunet", 4, "label_convention nnunet allows the values 0, 1, 2, 3, the label holds 4."),
        ("brats2018", -1, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds -1."),
        ("brats2018", 1.5, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 1.5."),
        (
            "brats2018",
            0.9999999,
            "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 0.9999998807907104.",
        ),
        ("brats2018", np.nan, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds nan."),
        (
            "brats2020",
            1,
            "label_convention should be one of brats2018, brats2023, brats2024_gli, brats_ped, decathlon, nnunet, "
            "or the path of a dataset.json, got brats2020.",
        ),
    ],
    ids=[
        "3 in 2018",
        "4 in 2023",
        "5 in 2024",
        "5 in PED",
        "4 in decathlon",
        "4 in nnunet",
        "negative",
        "between",
        "nearly",
        "NaN",
        "unknown convention",
    ],
)
def test_a_value_outside_the_convention(convention, value, sentence):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is compared
        values_to_classes(np.array([0, 1, 2, value], np.float32), convention)
    assert str(raised.value) == sentence


def test_an_unknown_convention_on_the_way_out():
    with pytest.raises(ValueError, match=r"label_convention should be one of brats2018, .*, got none"):
        classes_to_values(np.zeros(2), "none")


def test_a_class_without_a_value_is_not_dropped():
    """A cavity that a network of five classes found, written by a convention that has no cavity."""
    with pytest.raises(ValueError, match=r"label_convention brats2018 has no value for class 4\."):
        classes_to_values(np.array([0, 1, 4]), "brats2018")


@pytest.mark.parametrize("convention", LABEL_CONVENTIONS)
def test_a_network_has_a_channel_per_class(convention):
    assert num_classes(convention) == len(VALUES[convention])


# Which voxels of a label that holds each value once, in the order of VALUES, belong to the region.
USUAL = {"tc": [0, 1, 0, 1], "wt": [0, 1, 1, 1], "et": [0, 0, 0, 1]}
REGIONS = {
    **dict.fromkeys(("brats2018", "brats2023", "decathlon", "nnunet"), USUAL),
    "brats2024_gli": {"tc": [0, 1, 0, 1, 0], "wt": [0, 1, 1, 1, 0], "et": [0, 0, 0, 1, 0], "rc": [0, 0, 0, 0, 1]},
    "brats_ped": {"tc": [0, 1, 0, 1, 1], "wt": [0, 1, 1, 1, 1], "et": [0, 0, 0, 1, 0], "cc": [0, 0, 0, 0, 1]},
}


@CONVENTIONS
def test_regions(convention, values):
    label = torch.tensor(values, dtype=torch.uint8).reshape(1, -1, 1, 1)
    masks = classes_to_regions(values_to_classes(label, convention), convention)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).int().tolist() == list(REGIONS[convention].values())


@CONVENTIONS
def test_regions_back_to_classes(convention, values):
    classes = torch.arange(len(values)).reshape(1, 1, 1, -1)
    assert regions_to_classes(classes_to_regions(classes, convention), convention).flatten().tolist() == list(
        range(len(values))
    )


def test_regions_that_contradict_each_other_count_as_the_smaller_one():
    # Channels TC, WT, ET of five voxels: ET outside of the others, TC outside of WT, ET in WT alone, WT, nothing.
    masks = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 1, 0, 0]]).reshape(3, 1, 1, 5)
    assert regions_to_classes(masks, "brats2023").flatten().tolist() == [3, 1, 3, 2, 0]


@pytest.mark.parametrize(
    ("convention", "names"),
    [
        ("brats2018", ["background", "ncr", "ed", "et"]),
        ("brats2024_gli", ["background", "ncr", "ed", "et", "rc"]),
        ("brats_ped", ["background", "ncr", "ed", "et", "cc"]),
        (HIPPOCAMPUS, ["background", "anterior", "posterior"]),
        (LIVER, ["background", "liver"]),
        (NESTED, ["background", "whole-tumor-1", "tumor-core-2", "enhancing-tumor"]),
    ],
)
def test_names_of_classes(convention, names):
    assert class_names(convention) == names
    assert len(names) == num_classes(convention)


@pytest.mark.parametrize(
    ("content", "table", "of"),
    [
        (HIPPOCAMPUS, {1: 1, 2: 2}, {"anterior": (1,), "posterior": (2,)}),
        (LIVER, {1: 1, 2: 0, 3: 0, 4: 0}, {"liver": (1,)}),
        (NESTED, {1: 1, 2: 2, 4: 3}, {"whole-tumor": (1, 2, 3), "tumor-core": (2, 3), "enhancing-tumor": (3,)}),
        ({"labels": {"0": "air", "7": "bone"}}, {7: 1}, {"bone": (1,)}),
    ],
    ids=["decathlon", "against the rest", "regions", "a background of another name"],
)
def test_a_task_is_data(content, table, of, tmp_path):
    """By the content or by the path of a dataset.json; what the record of weights carries means the same."""
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    for convention in (content, path, str(path), json.loads(json.dumps(recorded_convention(path)))):
        assert convention_table(convention) == table
        assert list(regions(convention).items()) == list(of.items())
        assert class_names(convention) == class_names(content)


def test_a_name_is_recorded_as_it_is():
    assert recorded_convention("brats2023") == "brats2023"


def test_the_liver_against_the_rest():
    assert values_to_classes(np.array([0, 1, 2, 3, 4]), LIVER).tolist() == [0, 1, 0, 0, 0]
    assert classes_to_values(np.array([0, 1]), LIVER).tolist() == [0, 1]


def test_regions_are_painted_in_the_order_of_the_data_set():
    assert painting_order(NESTED) == {"whole-tumor": 1, "tumor-core": 2, "enhancing-tumor": 3}
    classes = torch.arange(4).reshape(1, 1, 1, 4)
    assert regions_to_classes(classes_to_regions(classes, NESTED), NESTED).flatten().tolist() == [0, 1, 2, 3]
    # Without it, one region of two classes cannot be taken apart.
    kidneys = {"labels": {"background": 0, "kidneys": [1, 2]}}
    with pytest.raises(ValueError, match="the region kidneys has 2 classes that no region inside of it has"):
        painting_order(kidneys)
    assert painting_order(kidneys | {"regions_class_order": [1]}) == {"kidneys": 1}
    assert painting_order({"labels": {"background": "0", "kidneys": [1, "2"]}, "regions_class_order": ["2"]}) == {
        "kidneys": 2
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, 'label_convention should have labels such as {"background": 0, "liver": 1}, it has None.'),
        (
            {"labels": {"background": 0, "liver": 1, "Liver ": 2}},
            "label_convention should name each label once, it names liver twice.",
        ),
        (
            {"labels": {"background": 0, "liver": "one"}},
            "label_convention should have whole numbers for liver, it has one.",
        ),
        ({"labels": {"background": 0, "liver": -1}}, "label_convention should have values from 0 on, it has -1"),
        (
            {"labels": {"background": 0, "liver": 300}},
            "label_convention should have values up to 255, as masks have, it has 300 for liver.",
        ),
        ({"labels": {"background": 1, "liver": 2}}, "label_convention should have the background as 0, it has it as"),
        (
            {"labels": {"background": 0, "tumor": 1, "cysts": []}},
            "label_convention names the region cysts, which no class covers: its values are [].",
        ),
        (
            {"labels": {"background": [0, 2], "liver": 1, "vessels": 2}},
            "label_convention names the region vessels, which no class covers: its values are [2].",
        ),
        (
            {"labels": {"background": 0, "wt": [1, 2], "et": 2}, "regions_class_order": [1, 3]},
            "label_convention should have regions_class_order with a value of labels for each of the 2 regions",
        ),
        (
            {"labels": {"background": 0, "liver": 1.7}},
            "label_convention should have whole numbers for liver, it has 1.7.",
        ),
        (
            {"labels": {"background": 0, "liver": True}},
            "label_convention should have whole numbers for liver, it has True.",
        ),
        (
            {"labels": {"background": 0, "liver": 1, "cancer": 1}},
            "label_convention has the values [1] for cancer and for liver, they would be one.",
        ),
        (
            {"labels": {"background": 0, "et": 3, "tc": [2, 3], "wt": [1, 2, 3]}, "regions_class_order": [3, 2, 1]},
            "label_convention should name tc before et, which lies in it",
        ),
        (
            {"labels": {"background": 0, "wt": [1, 2, 3], "tc": [2, 3], "et": 3}, "regions_class_order": [3, 1, 2]},
            "label_convention should have a value of its own for each region in regions_class_order, of wt 1, it has 3",
        ),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": [1, 3]}, "regions_class_order": [1, 1]},
            "label_convention should have a value of its own for each region in regions_class_order, of b 3, it has 1",
        ),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "label_convention has the label ignore, 2, which"),
        (
            {"labels": {"background": 0, "$__import__('os')": 1}},
            "label_convention should name labels by letters and digits, it names one \"$__import__('os')\".",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_dataset_json(content, sentence):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the sentence is compared
        num_classes(content)
    assert str(raised.value).startswith(sentence)


def test_a_dataset_json_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read, it should be a dataset\.json: No such file"):
        num_classes(tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="should hold an object with labels, it holds a list"):
        num_classes(str(tmp_path / "list.json"))


def test_a_value_beyond_labels():
    with pytest.raises(ValueError, match=r"label_convention allows the values 0, 1, 2, the label holds 3\."):
        values_to_classes(np.array([0, 3]), HIPPOCAMPUS)
