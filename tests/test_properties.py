"""What has to hold for any input: a mask for each case or one sentence, and round trips that lose nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, SaveImaged

from scripts.data import ClassesToValuesd, LoadImageCased, ValuesToClassesd, name_by_case
from scripts.data.cases import case_of, find_cases, mask_of
from scripts.data.labels import LABEL_CONVENTIONS, classes_to_values, values_to_classes
from scripts.errors import InputError
from scripts.inference import AtomicNibabelWriter, MaskLayout

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=24)
FILE_NAMES = st.text("abcT1.-_ 09", min_size=1, max_size=16).filter(lambda name: name[0] != ".")


@QUICK
@given(NAMES)
@example("..")
@example("site.01")
@example("a/b")
def test_an_id_has_a_mask_in_the_folder_or_is_refused(case_id):
    try:
        path = mask_of("masks", case_id)
    except InputError:
        return
    assert path.parent == Path("masks")
    assert path.name == f"{case_id}_seg.nii.gz"


@QUICK
@given(FILE_NAMES)
@example("site.01")
@example("a_t1")
@example("1.2.840.113619")
def test_a_mask_is_found_under_the_id_of_its_scan(case_id):
    with tempfile.TemporaryDirectory() as folder:
        scan, mask = Path(folder, "scans", f"{case_id}_flair.nii.gz"), mask_of(Path(folder, "masks"), case_id)
        for path in (scan, mask):
            path.parent.mkdir()
            path.touch()
        assert case_of(scan).case_id == case_id
        assert [case.case_id for case in find_cases(mask.parent)] == [case_id]
        assert find_cases(mask.parent)[0].file("seg") == mask


@QUICK
@given(st.sampled_from([name for name in LABEL_CONVENTIONS if 0 not in LABEL_CONVENTIONS[name].values()]), st.data())
def test_values_of_labels_come_back(convention, data):
    values = st.sampled_from([0, *LABEL_CONVENTIONS[convention]])
    label = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=12)), dtype=torch.uint8)
    assert classes_to_values(values_to_classes(label, convention), convention).tolist() == label.tolist()


@st.composite
def affines(draw) -> np.ndarray:
    """Any order and direction of axes, spacing from 0.5 to 3 mm, a turn of up to 20 degrees, any origin."""
    order = draw(st.permutations(range(3)))
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    spacing = [draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])) for _ in range(3)]
    angle = draw(st.floats(-0.35, 0.35))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[list(order)] @ np.diag(np.multiply(signs, spacing))
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return affine


@settings(QUICK, max_examples=25)
@given(affines(), st.lists(st.integers(2, 7), min_size=3, max_size=3), st.sampled_from(["brats2018", "brats_ped"]))
def test_a_label_that_is_predicted_is_the_file_it_was(affine, shape, convention):
    """Load, classes, RAS; and the way back: the same voxels at the same place."""
    values = np.array([0, *LABEL_CONVENTIONS[convention]], np.uint8)
    generator = np.random.default_rng(sum(shape))
    label = generator.choice(values, shape)
    with tempfile.TemporaryDirectory() as folder:
        for name, volume in (("t1", generator.integers(1, 99, shape).astype(np.int16)), ("seg", label)):
            nib.save(nib.Nifti1Image(volume, affine), Path(folder, f"a.1_{name}.nii.gz"))
        before = Compose(
            [
                LoadImageCased(["image", "label"], ["t1"]),
                ValuesToClassesd("label", convention),
                Orientationd(["image", "label"], axcodes="RAS", labels=None),
            ]
        )
        save = SaveImaged(
            "pred",
            output_dtype="uint8",
            resample=False,
            print_log=False,
            writer=AtomicNibabelWriter,
            output_name_formatter=name_by_case,
            folder_layout=MaskLayout(str(Path(folder, "masks"))),
        )
        item = before(
            {name: str(Path(folder, f"a.1_{key}.nii.gz")) for name, key in (("image", "t1"), ("label", "seg"))}
        )
        item["pred"] = MetaTensor(item["label"].as_tensor(), meta=item["image"].meta)
        Compose(
            [
                Invertd("pred", before, orig_keys="image", nearest_interp=True),
                ClassesToValuesd("pred", convention),
                save,
            ]
        )(item)
        mask = nib.load(Path(folder, "masks", "a.1_seg.nii.gz"))
        np.testing.assert_array_equal(mask.dataobj, label)
        np.testing.assert_allclose(mask.affine, nib.load(Path(folder, "a.1_t1.nii.gz")).affine, atol=1e-4)
