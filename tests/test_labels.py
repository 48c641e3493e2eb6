"""Label conventions: classes in, values out, and nothing but what a convention defines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.data.labels import (
    LABEL_CONVENTIONS,
    class_names,
    classes_to_regions,
    classes_to_values,
    num_classes,
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
    "hippocampus": [0, 1, 2],
    "chaos_organs": [0, 1, 2, 3, 4],
    "chaos_liver": [0, 1],
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
        ("brats2018", np.nan, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds nan."),
        (
            "brats2020",
            1,
            "label_convention should be one of brats2018, brats2023, brats2024_gli, brats_ped, decathlon, nnunet, "
            "hippocampus, chaos_organs, chaos_liver, got brats2020.",
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
    "hippocampus": {"anterior": [0, 1, 0], "posterior": [0, 0, 1]},
    "chaos_organs": {organ: [0, *(int(i == j) for j in range(4))] for i, organ in enumerate("abcd")},
    "chaos_liver": {"liver": [0, 1]},
}


@CONVENTIONS
def test_regions(convention, values):
    label = torch.tensor(values, dtype=torch.uint8).reshape(1, -1, 1, 1)
    masks = classes_to_regions(values_to_classes(label, convention), convention)
    assert masks.dtype == torch.bool
    assert masks.flatten(1).int().tolist() == list(REGIONS[convention].values())


def test_the_liver_against_the_rest():
    label = np.array([0, 1, 2, 3, 4])
    assert values_to_classes(label, "chaos_liver").tolist() == [0, 1, 0, 0, 0]
    assert classes_to_values(np.array([0, 1]), "chaos_liver").tolist() == [0, 1]


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
        ("hippocampus", ["background", "anterior", "posterior"]),
        ("chaos_liver", ["background", "liver"]),
    ],
)
def test_names_of_classes(convention, names):
    assert class_names(convention) == names
    assert len(names) == num_classes(convention)
