"""Label conventions: classes in, values out, and nothing but what a convention defines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.labels import classes_to_values, values_to_classes

CONVENTIONS = pytest.mark.parametrize(
    ("convention", "values"), [("brats2018", [0, 1, 2, 4]), ("brats2023", [0, 1, 2, 3])], ids=["2018", "2023"]
)
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
def test_values_and_classes(convention, values, make):
    stored, classes = make(values), make([0, 1, 2, 3])
    for result, expected in (
        (values_to_classes(stored, convention), classes),
        (classes_to_values(classes, convention), stored),
    ):
        assert type(result) is type(expected)
        assert result.dtype == expected.dtype
        assert result.tolist() == expected.tolist()
    assert (stored.tolist(), classes.tolist()) == ([values], [[0, 1, 2, 3]])  # the arguments stay as they are


@pytest.mark.parametrize(
    ("convention", "value", "sentence"),
    [
        ("brats2018", 3, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 3."),
        ("brats2023", 4, "label_convention brats2023 allows the values 0, 1, 2, 3, the label holds 4."),
        ("brats2018", -1, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds -1."),
        ("brats2018", 1.5, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds 1.5."),
        ("brats2018", np.nan, "label_convention brats2018 allows the values 0, 1, 2, 4, the label holds nan."),
        ("brats2020", 1, "label_convention should be one of brats2018, brats2023, got brats2020."),
    ],
    ids=["3 in 2018", "4 in 2023", "negative", "between", "NaN", "unknown convention"],
)
def test_a_value_outside_the_convention(convention, value, sentence):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole sentence is compared
        values_to_classes(np.array([0, 1, 2, value], np.float32), convention)
    assert str(raised.value) == sentence


def test_an_unknown_convention_on_the_way_out():
    with pytest.raises(ValueError, match="label_convention should be one of brats2018, brats2023, got none"):
        classes_to_values(np.zeros(2), "none")
