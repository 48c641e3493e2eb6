"""Loading by modality name, every bad input named, and the preprocessing of the configs as the paper describes it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Identityd,
    Invertd,
    NormalizeIntensity,
    Orientationd,
    RandAxisFlipd,
    RandFlipd,
    Spacing,
    SpatialResample,
)

from scripts.data.datalist import make_datalist
from scripts.data.loading import LoadImageCased
from scripts.data.transforms import (
    AxisResample,
    ClassesToValuesd,
    InvertRestd,
    LargestLogitd,
    NormalizeChannelsd,
    RandModalityDropoutd,
    RemoveSmallPiecesd,
    SpacingOfKeysd,
    ValuesToClassesd,
    ZeroMissingd,
    flip_axes,
    is_nonzero,
    name_by_case,
)
from scripts.errors import InputError

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
MODALITIES = ("t1", "t1ce", "t2", "flair")
BRAIN = (slice(3, 15), slice(4, 21), slice(2, 13))  # box around that of a tiny case, of 20 x 24 x 16 voxels


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def rewrite(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    """Another array or affine in a file that is there."""
    old = nib.load(path)
    nib.save(
        nib.Nifti1Image(np.asarray(old.dataobj) if array is None else array, old.affine if affine is None else affine),
        path,
    )


def images(files: dict[str, Path]) -> dict[str, str]:
    return {name: str(files[name]) for name in MODALITIES}


def levels(image: torch.Tensor) -> list[int]:
    """The level of the brain in each channel, in hundreds: its modality, counted from 1."""
    return [round(channel[BRAIN].mean().item() / 100) for channel in image]


def write_decathlon(root: Path, files: dict[str, Path], order: tuple[str, ...], names: tuple[str, ...]) -> str:
    """A tiny case as one 4D file with a dataset.json that names its channels."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    volumes, affine = np.stack([read(files[name]) for name in order], axis=-1), nib.load(files["t1"]).affine
    nib.save(nib.Nifti1Image(volumes, affine), root / "imagesTr" / "BRATS_001.nii.gz")
    nib.save(nib.Nifti1Image(read(files["seg"]), affine), root / "labelsTr" / "BRATS_001.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"modality": dict(enumerate(names))}))
    return str(root / "imagesTr" / "BRATS_001.nii.gz")


@pytest.mark.parametrize(
    ("modalities", "expected"), [(MODALITIES, [1, 2, 3, 4]), (("flair", "t1ce"), [4, 2])], ids=["four", "two"]
)
def test_channels_of_the_decathlon_are_taken_by_name(tiny_case, tmp_path, modalities, expected):
    order, names = ("flair", "t1", "t1ce", "t2"), ("FLAIR", "T1w", "t1gd", "T2w")
    path = write_decathlon(tmp_path / "Task01", tiny_case, order, names)
    item = LoadImageCased("image", modalities)({"image": path})
    assert levels(item["image"]) == expected
    assert item["image"].meta["case_id"] == "BRATS_001"
    [entry] = make_datalist(tmp_path / "Task01", modalities)["training"]
    assert entry == {
        "case_id": "BRATS_001",
        "patient": "BRATS_001",
        "image": "imagesTr/BRATS_001.nii.gz",
        "label": "labelsTr/BRATS_001.nii.gz",
    }


def test_a_channel_that_is_not_in_the_decathlons_file(tiny_case, tmp_path):
    path = write_decathlon(tmp_path / "Task01", tiny_case, ("flair", "t1"), ("FLAIR", "T1w"))
    with pytest.raises(InputError) as raised:
        LoadImageCased("image", MODALITIES)({"image": path})
    assert str(raised.value) == f"Case BRATS_001: t1ce is missing, {path} has the channels flair, t1."
    item = LoadImageCased("image", ("t1", "flair"), channel_order=("t1", "flair"))({"image": path})
    assert levels(item["image"]) == [4, 1]  # the knob is obeyed, even against the dataset.json


@pytest.mark.parametrize("order", [("t1", "t1ce", "t2"), ("t1", "t1", "t1ce", "t2", "flair")], ids=["short", "twice"])
def test_an_order_names_each_channel_once(order):
    with pytest.raises(InputError, match="channel_order should name each of t1, t1ce, t2, flair once"):
        LoadImageCased("image", MODALITIES, order)


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [(MODALITIES, [1, 2, 3, 4]), (("flair", "t1ce"), [4, 2])],
    ids=["four", "two, in an order of their own"],
)
def test_channels_are_in_the_order_of_the_names(tiny_case, modalities, expected):
    shuffled = {name: str(tiny_case[name]) for name in ("flair", "t2", "t1", "t1ce")}
    item = LoadImageCased("image", modalities)({"image": shuffled, "case_id": "mine"})
    assert item["image"].shape == (len(modalities), 20, 24, 16)
    assert item["image"].dtype == torch.float32
    assert levels(item["image"]) == expected
    assert item["image"].meta["case_id"] == "mine"
    for channel, name in zip(item["image"], modalities):
        np.testing.assert_array_equal(channel, read(tiny_case[name]))
    np.testing.assert_allclose(item["image"].affine, nib.load(tiny_case["t1"]).affine)


@pytest.mark.parametrize("suffix", [*MODALITIES, "seg"])
def test_siblings_are_found_from_any_file_of_a_case(tiny_case, write_case, suffix):
    write_case(tiny_case["t1"].parent, "case_12", extension=".nii")  # beside it
    image = LoadImageCased("image", MODALITIES)({"image": str(tiny_case[suffix])})["image"]
    assert levels(image) == [1, 2, 3, 4]
    assert image.meta["case_id"] == "case_1"


def test_a_file_of_all_modalities(tiny_case, tmp_path):
    whole = np.stack([read(tiny_case[name]) for name in MODALITIES], axis=-1)
    path = tmp_path / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(whole, nib.load(tiny_case["t1"]).affine), path)
    item = {"image": str(path), "label": str(tiny_case["seg"])}
    item = LoadImageCased(["image", "label"], MODALITIES)(item)
    assert item["image"].shape == (4, 20, 24, 16)
    assert levels(item["image"]) == [1, 2, 3, 4]
    assert item["image"].meta["case_id"] == item["label"].meta["case_id"] == "BRATS_001"


def test_label_beside_the_image(tiny_case):
    item = {"image": images(tiny_case), "label": str(tiny_case["seg"])}
    loaded = LoadImageCased(["image", "label"], MODALITIES)(item)
    assert item["label"] == str(tiny_case["seg"])  # the dataset's own entry stays as it is
    np.testing.assert_array_equal(loaded["label"][0], read(tiny_case["seg"]))


@pytest.mark.parametrize("constant", [-3.5, 250])
def test_air_at_a_constant_becomes_zero(tiny_case, constant):
    plain = read(tiny_case["t2"]).astype(np.float32)
    rewrite(tiny_case["t2"], plain + np.float32(constant))
    image = LoadImageCased("image", MODALITIES)({"image": images(tiny_case)})["image"]
    np.testing.assert_array_equal(image[2], plain)


def test_a_brain_that_fills_a_corner_stays_as_it_is(tiny_case):
    plain = read(tiny_case["t2"]).copy()
    plain[0, 0, 0] = 77
    rewrite(tiny_case["t2"], plain)
    image = LoadImageCased("image", MODALITIES)({"image": images(tiny_case)})["image"]
    np.testing.assert_array_equal(image[2], plain)


def truncate(files):
    files["flair"].write_bytes(files["flair"].read_bytes()[:2000])


def truncate_plain(files):
    files["flair"].with_suffix("").write_bytes(gzip.decompress(files["flair"].read_bytes())[:2000])
    files["flair"].unlink()
    files["flair"] = files["flair"].with_suffix("")


def write_text(files):
    files["flair"].write_text("this is no image\n")


def empty(files):
    files["flair"].write_bytes(b"")


def make_folder(files):
    files["flair"].unlink()
    files["flair"].mkdir()


def crop(files):
    rewrite(files["flair"], read(files["flair"])[:, :-1])


def shift(files):
    affine = nib.load(files["flair"]).affine.copy()
    affine[0, 3] += 0.5
    rewrite(files["flair"], affine=affine)


def shift_label(files):
    affine = nib.load(files["seg"]).affine.copy()
    affine[2, 2] = -affine[2, 2]  # 2 becomes -2
    rewrite(files["seg"], affine=affine)


def blacken(files):
    rewrite(files["flair"], np.zeros((20, 24, 16), np.int16))


def flatten(files):
    rewrite(files["flair"], np.full((20, 24, 16), 9, np.int16))


def make_mask(files):
    rewrite(files["flair"], 7 * (read(files["flair"]) > 0).astype(np.int16))


def take_much_from_air(files):
    volume = read(files["flair"]).astype(np.float32)
    rewrite(files["flair"], np.where(volume > 0, volume, np.finfo(np.float32).min))


def copy(files):
    rewrite(files["flair"], read(files["t1ce"]))


def spoil(value):
    def change(files):
        volume = read(files["flair"]).astype(np.float32)
        volume[8, 9, 10] = value
        rewrite(files["flair"], volume)

    return change


def stack(files):
    rewrite(files["flair"], np.stack([read(files["flair"])] * 3, axis=-1))


def slice_label(files):
    rewrite(files["seg"], read(files["seg"])[:, :, 0])


def make_complex(files):
    rewrite(files["flair"], read(files["flair"]).astype(np.complex64))


def crop_label(files):
    rewrite(files["seg"], read(files["seg"])[:-2])


@pytest.mark.parametrize(
    ("change", "file", "parts"),
    [
        (truncate, "flair", ["cannot be read as an image"]),
        (truncate_plain, "flair", ["cannot be read as an image"]),
        (write_text, "flair", ["cannot be read as an image"]),
        (empty, "flair", ["cannot be read as an image"]),
        (make_folder, "flair", ["is not there"]),
        (lambda files: files["flair"].unlink(), "flair", ["is not there"]),
        (crop, "flair", ["should have one shape", "[20, 23, 16]", "[20, 24, 16]", "case_1_t1.nii.gz"]),
        (shift, "flair", ["should have one affine", "differ by 0.5", "case_1_t1.nii.gz"]),
        (blacken, "flair", ["flair should show something", "is zero everywhere"]),
        (flatten, "flair", ["flair should show something"]),
        (make_mask, "flair", ["flair should be a scan", "has no value but 0 and 7"]),
        (take_much_from_air, "flair", ["flair should be a scan", "has no value but -3.40282e+38 and"]),
        (copy, "flair", ["t1ce and flair should be two scans", "their voxels are the same", "case_1_t1ce.nii.gz and "]),
        (spoil(np.nan), "flair", ["flair should be finite", "holds NaN or infinity"]),
        (spoil(-np.inf), "flair", ["flair should be finite", "holds NaN or infinity"]),
        (make_complex, "flair", ["cannot be read as an image: it holds complex numbers"]),
        (stack, "flair", ["should be 3D with 1 channel(s) (flair)", "3 channel(s) of shape [20, 24, 16]"]),
        (slice_label, "seg", ["should be 3D with 1 channel(s) (label)", "[20, 24]"]),
        (crop_label, "seg", ["should have one shape", "[18, 24, 16]", "[20, 24, 16]"]),
        (shift_label, "seg", ["should have one affine", "differ by 60 mm at a corner"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_input(tiny_case, change, file, parts):
    change(tiny_case)
    item = {"image": images(tiny_case), "label": str(tiny_case["seg"])}
    with pytest.raises(InputError) as raised:
        LoadImageCased(["image", "label"], MODALITIES)(item)
    sentence = str(raised.value)
    assert sentence.startswith("Case case_1: ")
    assert "\n" not in sentence
    for part in (str(tiny_case[file]), *parts):
        assert part in sentence


def test_wrong_channels_of_a_file_of_all_modalities(tmp_path):
    path = tmp_path / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 3), np.int16), np.eye(4)), path)
    with pytest.raises(InputError) as raised:
        LoadImageCased("image", MODALITIES)({"image": str(path)})
    assert str(raised.value) == (
        f"Case BRATS_001: {path} should be 3D with 4 channel(s) (t1, t1ce, t2, flair), "
        "it has 3 channel(s) of shape [8, 8, 8]."
    )


def test_two_channels_of_one_file_are_two_scans(tmp_path, tiny_case):
    path = tmp_path / "BRATS_001.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([read(tiny_case[name]) for name in ("t1", "t2", "t1")], -1), np.eye(4)), path)
    with pytest.raises(InputError, match=rf"t1 and t2 should be two scans, their voxels are the same: {path}\."):
        LoadImageCased("image", ["t1", "t1ce", "t2"])({"image": str(path)})


@pytest.mark.parametrize("air", [-1000, 0])
def test_a_ct_of_two_values_keeps_them(tmp_path, air):
    volume = np.full((8, 8, 8), air, np.int16)
    volume[2:6, 2:6, 2:6] = 40
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a_ct.nii.gz")
    image = LoadImageCased("image", ["ct"])({"image": {"ct": str(tmp_path / "a_ct.nii.gz")}, "case_id": "a"})["image"]
    assert torch.equal(image[0].as_tensor(), torch.from_numpy(volume).float())


def test_a_rounded_affine_is_no_fault(tiny_case):
    rewrite(tiny_case["flair"], affine=nib.load(tiny_case["flair"]).affine + 5e-4)
    LoadImageCased("image", MODALITIES)({"image": images(tiny_case)})


@pytest.mark.parametrize(("convention", "value"), [("brats2018", 3), ("brats2023", 4)])
def test_a_label_outside_the_convention(tiny_case, convention, value):
    label = read(tiny_case["seg"]).copy()
    label[label == 4] = value
    rewrite(tiny_case["seg"], label)
    item = LoadImageCased(["image", "label"], MODALITIES)({"image": images(tiny_case), "label": str(tiny_case["seg"])})
    with pytest.raises(InputError) as raised:
        ValuesToClassesd("label", convention)(item)
    assert str(raised.value).startswith(f"Case case_1: {tiny_case['seg']}: label_convention {convention} allows ")
    assert str(raised.value).endswith(f"the label holds {value}.")


def test_values_of_a_mask():
    mask = torch.tensor([[0, 1, 2, 3]])
    assert ClassesToValuesd("pred", "brats2018")({"pred": mask})["pred"].tolist() == [[0, 1, 2, 4]]
    assert ClassesToValuesd("pred", "brats2023")({"pred": mask})["pred"].tolist() == [[0, 1, 2, 3]]


def test_an_entry_beside_the_image_stays_as_it_is(tiny_case):
    """MONAI Label adds ``image_path``, which MONAI's own ``Spacingd`` takes for a dictionary."""
    entry = {"image": str(tiny_case["flair"]), "image_path": "a path"}
    load, spacing = LoadImageCased("image", ["flair"]), SpacingOfKeysd("image", pixdim=(3, -1, -1))
    done = spacing(load(entry))
    assert done["image_path"] == "a path"
    assert done["image"].shape == (1, 10, 24, 16)  # 20 voxels of 1.5 mm
    assert spacing.inverse(done)["image"].shape == (1, 20, 24, 16)


def test_larger_voxels_are_means_of_the_smaller_ones() -> None:
    column = torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 8.0, 8.0])
    volume = column.reshape(1, 8, 1, 1).expand(1, 8, 4, 3)
    item = {key: MetaTensor(volume.clone(), affine=torch.eye(4)) for key in ("image", "label")}
    done = SpacingOfKeysd(["image", "label"], pixdim=(2, -1, 1.005), mode=["bilinear", "nearest"])(item)
    # Of 1 mm voxels at 0, 2, 4 and 6 mm: a half, and a quarter of the one before and after.
    assert done["image"][0, :, 1, 1].tolist() == pytest.approx([0, 2, 0, 6])
    assert done["label"][0, :, 1, 1].tolist() == [0, 4, 0, 8]
    assert done["image"].shape == (1, 4, 4, 3)
    smaller = SpacingOfKeysd("image", pixdim=(0.5, -1, -1))(item)["image"]
    assert smaller[0, 4, 0, 0] == 4  # nothing is smoothed where voxels get smaller


TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("voxel_mm", "sentence"),
    [
        (
            100.0,
            "Case a: at spacing_mm 2 x 2 x 2 it would have 2.7e+10 voxels, 125000 times as many as in its file, whose",
        ),
        (
            1e-3,
            "Case a: it should be larger than 4 voxels of spacing_mm 2 x 2 x 2, the header of its file makes it 0.06",
        ),
    ],
)
def test_a_header_in_another_unit_than_mm(voxel_mm, sentence) -> None:
    affine = torch.diag(torch.tensor([voxel_mm, voxel_mm, voxel_mm, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 60, 60, 60), affine=affine, meta={"case_id": "a"})
    with pytest.raises(InputError) as raised:
        SpacingOfKeysd("image", [2, 2, 2])({"image": image})
    assert str(raised.value).startswith(sentence)
    kept = SpacingOfKeysd("image", [-1, -1, -1])({"image": image})["image"]
    assert kept.shape == image.shape


@pytest.mark.parametrize(
    "axes",
    [
        np.diag([1.0, 1, 1]),
        np.diag([-0.9, 0.9, 3.3]),
        TURN @ np.diag([0.9, -0.9, 3.3]),
        TURN + 0.1 * np.eye(3)[[1, 2, 0]],
    ],
    ids=["1 mm", "thick slices", "oblique", "sheared"],
)
@pytest.mark.parametrize("spacing_mm", [(0.6, 0.8, 0.9), (0.7, -1, 0.9)])
def test_another_spacing_and_back_is_that_of_monai(axes, spacing_mm) -> None:
    """Where nothing is smoothed. What is exactly zero there is so here: it is no brain when it is normalized."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3], affine[:3, 3] = torch.from_numpy(axes), torch.tensor([3.0, -20, 7])
    brain = torch.rand(2, 23, 18, 15, generator=torch.Generator().manual_seed(0)) + 1
    brain[:, 12:, 9:] = 0
    images = []
    for resample in (AxisResample(), SpatialResample(mode="bilinear")):
        spacing = Spacing(spacing_mm, mode="bilinear")
        spacing.sp_resample = resample
        there = spacing(MetaTensor(brain.clone(), affine=affine), mode="bilinear")
        images.append([there, spacing.inverse(there)])
    for image, expected in zip(*images, strict=True):
        torch.testing.assert_close(image.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6)
        torch.testing.assert_close(image.affine, expected.affine)
        assert torch.equal(image.as_tensor() == 0, expected.as_tensor() == 0)


def test_a_mask_comes_back_in_two_steps_as_in_one(tiny_case) -> None:
    crop = CropForegroundd("image", "image", select_fn=is_nonzero, allow_smaller=True)
    turn, spacing = Orientationd("image", "RAS", labels=None), SpacingOfKeysd("image", (2, -1, 3))
    before = Compose([LoadImageCased("image", ["flair"]), crop, turn, spacing])
    item = before({"image": {"flair": str(tiny_case["flair"])}, "case_id": "case"})
    item["pred"] = (item["image"] > item["image"].mean()).to(torch.uint8)
    at_once = Invertd("pred", before, "image")(item)["pred"]
    rest = InvertRestd("pred", Compose([crop, turn]), "image")
    in_steps = rest(Invertd("pred", spacing, "image")(item))["pred"]
    assert at_once.any()
    assert torch.equal(at_once.as_tensor(), in_steps.as_tensor())
    assert torch.equal(at_once.affine, in_steps.affine)
    with pytest.raises(TypeError, match="should be a MetaTensor"):
        rest(item | {"pred": at_once.as_tensor()})


def test_normalizing_is_that_of_monai() -> None:
    generator = torch.Generator().manual_seed(0)
    image = 1e4 + 30 * torch.randn(4, 9, 8, 7, generator=generator)
    image *= torch.rand(4, 9, 8, 7, generator=generator) > 0.5
    image[1] *= -1
    image[2] = 5.0
    image[3] = 0.0
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(image.clone())
    item = {"image": MetaTensor(image.clone(), affine=2 * torch.eye(4))}
    normalized = NormalizeChannelsd("image", MODALITIES, {})(item)["image"]
    assert normalized.shape == image.shape
    assert normalized.affine[0, 0] == 2
    assert torch.allclose(normalized.as_tensor(), torch.as_tensor(expected), atol=1e-5)
    assert expected[0].std() > 0.5


def test_a_ct_is_clipped_and_normalized_by_the_numbers_of_the_data_set():
    image = torch.tensor([[-1000.0, 0.0, 60.0, 3000.0], [0.0, 1.0, 3.0, 0.0]]).reshape(2, 4, 1, 1)
    ct = {"ct": {"low": -40, "high": 160.0, "mean": 60.0, "std": 50.0}}
    done = NormalizeChannelsd("image", ["ct", "pet"], ct)({"image": MetaTensor(image)})["image"]
    assert done[0].flatten().tolist() == [-2.0, -1.2000000476837158, 0.0, 2.0]
    assert done[1].flatten().tolist() == [0.0, -1.0, 1.0, 0.0]  # mean 2, deviation 1 over what is not zero


@pytest.mark.parametrize(
    ("intensities", "sentence"),
    [
        ({"pet": {}}, "intensities should name channels of ct, it names pet."),
        ({"ct": {"low": 0, "high": 1, "mean": 0.5}}, "intensities should have low, high, mean, std of ct, low below"),
        ({"ct": {"low": 0, "high": 0, "mean": 0, "std": 1}}, "low below high and std above 0, it has {'low': 0,"),
    ],
)
def test_intensities_that_say_nothing(intensities, sentence):
    with pytest.raises(InputError) as raised:
        NormalizeChannelsd("image", ["ct"], intensities)
    assert sentence in str(raised.value)


def test_hounsfield_units_stay_where_the_air_is_no_zero(tmp_path):
    """Of two scans one has air in its corners: both keep their units."""
    for name, corner in (("a", -1024), ("b", 37)):
        volume = np.full((8, 8, 8), -1024, np.int16)
        volume[2:6, 2:6, 2:6], volume[0, 0, 0] = 60, corner
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}_ct.nii.gz")
        image = LoadImageCased("image", ["ct"])({"image": str(tmp_path / f"{name}_ct.nii.gz")})["image"]
        assert image[0, 3, 3, 3] == 60
        assert image[0, 7, 7, 7] == -1024


@pytest.mark.parametrize(
    ("modalities", "channels"),
    [
        (["t1", "t1ce", "t2", "flair"], [1, 2, 3, 4]),
        (["flair", "t2", "t1ce", "t1"], [4, 3, 2, 1]),
        (["flair", "t1ce"], [0, 2, 0, 1]),
    ],
    ids=["as they are", "all in another order", "two in another order"],
)
def test_channels_go_to_their_places_in_the_network(modalities, channels):
    image = MetaTensor(torch.arange(1.0, len(modalities) + 1).reshape(-1, 1, 1, 1), affine=2 * torch.eye(4))
    found = ZeroMissingd("image", modalities, MODALITIES)({"image": image})["image"]
    assert found.flatten().tolist() == channels
    assert found.affine.diag().tolist() == [2, 2, 2, 2]


def test_the_largest_logit_and_the_first_of_equals():
    logits = torch.tensor([[1.0, -2.0, 0.0], [3.0, -1.0, 0.0], [2.0, -3.0, 0.0]]).reshape(3, 3, 1, 1)
    classes = LargestLogitd("pred")({"pred": MetaTensor(logits, affine=2 * torch.eye(4))})["pred"]
    assert classes.flatten().tolist() == [1, 1, 0]
    assert classes.shape == (1, 3, 1, 1)
    assert classes.dtype == torch.uint8
    assert classes.affine.diag().tolist() == [2, 2, 2, 2]


def test_foreground_keeps_negative_voxels():
    assert is_nonzero(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [True, False, True]


def test_a_mask_is_named_after_its_case():
    assert name_by_case({"case_id": "a.b_1", "filename_or_obj": "x.nii"}, None) == {"case_id": "a.b_1"}


class TestConfigs:
    """The transforms as the configs list them, on a tiny case whose files are in LPS."""

    @pytest.fixture
    def item(self, tiny_case):
        return {"case_id": "case_1", "image": images(tiny_case), "label": str(tiny_case["seg"])}

    @staticmethod
    def transforms(config: str, key: str, roi_size: int = 16) -> Compose:
        parser = ConfigParser()
        parser.read_config(CONFIGS / config)
        parser["roi_size"] = [roi_size] * 3
        content = parser.get_parsed_content(key)
        return content if isinstance(content, Compose) else Compose(content)

    @staticmethod
    def z_scored(path: Path) -> np.ndarray:
        """The box around the brain, from LPS to RAS."""
        volume = read(path)[BRAIN][::-1, ::-1].astype(float)
        brain = volume != 0
        return np.where(brain, (volume - volume[brain].mean()) / volume[brain].std(), 0)

    @staticmethod
    def assert_z_scored(image: torch.Tensor, brain: torch.Tensor) -> None:
        for channel in image:
            assert channel[brain].mean().item() == pytest.approx(0, abs=1e-4)
            assert channel[brain].std(correction=0).item() == pytest.approx(1, abs=1e-4)
            assert not channel[~brain].any()

    def test_training_before_chance(self, item, tiny_case):
        done = self.transforms("train.json", "train#deterministic_transforms", roi_size=24)(item)
        image, label = done["image"].as_tensor(), done["label"].as_tensor()
        # Padded from 20 x 24 x 16 to 24^3, two voxels before and after on H and four on D; LPS -> RAS turns H and W.
        assert image.shape == (4, 24, 24, 24)
        assert label.shape == (1, 24, 24, 24)
        brain = torch.zeros(24, 24, 24, dtype=torch.bool)
        brain[7:19, 3:20, 6:17] = True  # H 3:15 of 20 turned is 5:17, W 4:21 of 24 turned is 3:20
        brain[16:19, 16:20, 6:10] = False  # the corner
        self.assert_z_scored(image, brain)
        np.testing.assert_allclose(image[0, 7:19, 3:20, 6:17], self.z_scored(tiny_case["t1"]), atol=1e-5)
        expected = torch.zeros(24, 24, 24, dtype=torch.uint8)
        expected[10:16, 12:16, 10:12], expected[10:16, 12:16, 12], expected[10:16, 12:16, 13] = 1, 2, 3
        assert torch.equal(label[0], expected)

    def test_random_crop(self, item):
        transforms = self.transforms("train.json", "train#preprocessing")
        transforms.set_random_state(0)
        shapes, starts = set(), set()
        for _ in range(8):
            done = transforms(item)
            shapes |= {tuple(done["image"].shape), tuple(done["label"].shape)}
            starts.add(tuple(done["image"].affine[:3, 3].tolist()))
        assert shapes == {(4, 16, 16, 16), (1, 16, 16, 16)}
        assert len(starts) > 4  # another place, or turned

    def test_random_intensity(self, item):
        before = self.transforms("train.json", "train#deterministic_transforms", roi_size=24)(item)["image"].as_tensor()
        transforms = self.transforms("train.json", "train#preprocessing", roi_size=24)
        scales, shifts, turned = [], [], set()
        transforms.set_random_state(0)
        for _ in range(12):
            done = transforms(item)
            after = done["image"].as_tensor()
            turned.add(tuple(done["image"].affine.diagonal()[:3].sign().tolist()))
            for x, y in zip(before, after):
                scale = ((y.max() - y.min()) / (x.max() - x.min())).item()
                shift = (y.min() - scale * x.min()).item()
                # The same voxels, turned at most, each of them scaled and shifted by the same numbers.
                torch.testing.assert_close(
                    y.flatten().sort()[0], scale * x.flatten().sort()[0] + shift, atol=1e-3, rtol=0
                )
                scales.append(scale)
                shifts.append(shift)
            tumor = done["label"][0] == 3  # bright or dark, image and label turn together: it stays inside the brain
            assert (after[0][tumor] != after[0][0, 0, 0]).all()
        assert len({round(scale, 4) for scale in scales}) > 40  # of 48: each modality has its own
        assert 0.9 - 1e-3 <= min(scales) < 0.95
        assert 1.05 < max(scales) <= 1.1 + 1e-3
        assert -0.1 - 1e-3 <= min(shifts) < -0.05
        assert 0.05 < max(shifts) <= 0.1 + 1e-3
        assert len(turned) > 4  # of the eight that three flips make
        assert {sign[axis] for sign in turned for axis in range(3)} == {-1.0, 1.0}

    @pytest.mark.parametrize(
        ("config", "key"),
        [("inference.json", "preprocessing"), ("train.json", "validate#preprocessing")],
        ids=["inference", "validation"],
    )
    def test_only_the_brain_is_computed(self, item, tiny_case, config, key):
        image = self.transforms(config, key)(item)["image"].as_tensor()
        assert image.shape == (4, 12, 17, 11)
        brain = torch.ones(12, 17, 11, dtype=torch.bool)
        brain[9:12, 13:17, :4] = False  # the corner
        self.assert_z_scored(image, brain)
        np.testing.assert_allclose(image[2], self.z_scored(tiny_case["t2"]), atol=1e-5)

    def test_validation_keeps_the_label_as_it_is_in_the_file(self, item, tiny_case):
        label = self.transforms("train.json", "validate#preprocessing")(item)["label"]
        stored = read(tiny_case["seg"])
        np.testing.assert_array_equal(label[0], np.where(stored == 4, 3, stored))


def test_a_real_case(real_data):
    [flair] = (real_data / "brats" / "LGG" / "TCGA-DU-7294").glob("*_flair.nii.gz")
    done = TestConfigs.transforms("inference.json", "preprocessing")({"image": str(flair)})["image"].as_tensor()
    assert done.shape[0] == 4
    assert all(100 < side < 240 for side in done.shape[1:])  # a head, cropped
    for channel in done:
        brain = channel[channel != 0]
        assert brain.mean().item() == pytest.approx(0, abs=1e-3)
        assert brain.std().item() == pytest.approx(1, abs=1e-3)


def dropped(prob: float, seed: int, keys: tuple[str, ...] = ("image",)) -> list[bool]:
    transform = RandModalityDropoutd(keys, prob).set_random_state(seed=seed)
    result = transform({key: torch.ones(4, 2, 2, 2) for key in keys})
    for key in keys:
        assert torch.equal(result[key], result[keys[0]])
    volumes = result[keys[0]].flatten(1)
    assert bool(((volumes == 0) | (volumes == 1)).all())
    assert torch.equal(volumes.amin(1), volumes.amax(1))  # a modality is there, or is not
    return [bool(volume) for volume in volumes[:, 0]]


def test_each_subset_of_the_modalities_is_as_likely_but_the_empty_one():
    subsets = [tuple(dropped(1.0, seed)) for seed in range(600)]
    counts = Counter(subsets)
    assert len(counts) == 15
    assert (False,) * 4 not in counts
    assert min(counts.values()) > 15  # 40 +- 6.1
    assert max(counts.values()) < 75


def test_modalities_are_dropped_as_often_as_asked_for():
    assert all(all(dropped(0.0, seed)) for seed in range(5))
    share = np.mean([all(dropped(0.5, seed)) for seed in range(400)])
    assert share == pytest.approx(0.5 + 0.5 / 15, abs=0.08)


def test_images_lose_the_same_modalities_and_a_seed_says_which():
    assert [dropped(0.9, seed, ("image", "complete")) for seed in range(8)] == [dropped(0.9, seed) for seed in range(8)]


def test_what_is_dropped_is_not_dropped_in_the_cache():
    image = torch.ones(4, 2, 2, 2)
    transform = RandModalityDropoutd("image", 1.0).set_random_state(seed=0)
    assert any(not bool(transform({"image": image})["image"].all()) for _ in range(5))
    assert bool(image.all())


def pieces(*boxes: tuple[int, int, int]) -> MetaTensor:
    """Classes (1, 12, 4, 4) of 2 mm voxels: from a first to a last row, each row of 16 voxels, of one class."""
    classes = torch.zeros(1, 12, 4, 4, dtype=torch.uint8)
    for first, last, number in boxes:
        classes[0, first:last] = number
    return MetaTensor(classes, affine=torch.diag(torch.tensor([2.0, 2, 2, 1])), meta={"case_id": "p1"})


@pytest.mark.parametrize(
    ("min_piece", "kept"),
    [(0.0, 16 * 7), (0.2, 16 * 7), (0.3, 16 * 6), (0.5, 16 * 6), (0.6, 16 * 4), (1.0, 16 * 4)],
)
def test_pieces_below_a_share_of_the_largest_are_left_out(min_piece, kept, caplog):
    """A tumor of 3 rows of edema and 1 of core, apart from it 2 rows of core and 1 of edema: 64, 32 and 16 voxels."""
    before = pieces((0, 3, 2), (3, 4, 3), (6, 8, 1), (10, 11, 2))
    after = RemoveSmallPiecesd("pred", "brats2023", min_piece)({"pred": before})["pred"]
    assert int((after > 0).sum()) == kept
    assert torch.equal(after[0, :4], before[0, :4]), "the largest stays, with all of its classes"
    assert int((before > 0).sum()) == 16 * 7
    said = [record.getMessage() for record in caplog.records]
    if kept == 16 * 7:
        assert said == []
    else:
        count, ml = (1, 0.13) if kept == 16 * 6 else (2, 0.38)  # 16 and 48 voxels of 8 mm3
        [sentence] = said
        assert sentence.startswith(f"Case p1: {count} of 3 piece(s) of wt are left out, {ml} ml together")


def test_pieces_touch_by_corners_and_each_organ_has_its_largest():
    classes = torch.zeros(1, 6, 6, 6, dtype=torch.uint8)
    classes[0, :2, :2, :2] = 1
    classes[0, 2, 2, 2] = 1  # by a corner: the same piece
    classes[0, 5, 5, 5] = 2  # small, but all of its organ there is
    organs = {"labels": {"background": 0, "liver": 1, "spleen": 2}}
    after = RemoveSmallPiecesd("pred", organs, 1.0)({"pred": MetaTensor(classes)})["pred"]
    assert torch.equal(after.as_tensor(), classes)
    empty = RemoveSmallPiecesd("pred", organs, 1.0)({"pred": MetaTensor(torch.zeros_like(classes))})["pred"]
    assert not empty.any()


def test_a_share_is_from_0_to_1():
    with pytest.raises(InputError, match=r"min_piece should be from 0 to 1, got 1\.5"):
        RemoveSmallPiecesd("pred", "brats2023", 1.5)


def test_the_axes_that_a_training_flips():
    """What test-time flips may mirror; an axis with no chance of a flip, or another transform in its place, is none."""
    keys = ["image"]
    transforms = [
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandFlipd(keys, prob=0.0, spatial_axis=1),
        RandFlipd(keys, prob=0.1, spatial_axis=[-1]),
        Identityd(keys),
    ]
    assert flip_axes(transforms) == [0, 2]
    assert flip_axes(transforms[1:2]) == []
    assert flip_axes([RandFlipd(keys, prob=0.5)]) == flip_axes([RandAxisFlipd(keys, prob=0.5)]) == [0, 1, 2]


@pytest.mark.parametrize(("modality", "warned"), [("ct", True), ("CT arterial", True), ("octane", False)])
def test_a_ct_without_its_numbers_is_told(modality, warned, caplog):
    NormalizeChannelsd("image", [modality], {})
    assert (f"{modality} has units, of which 0 is water" in caplog.text) == warned
    caplog.clear()
    NormalizeChannelsd("image", [modality], {modality: {"low": 0, "high": 1, "mean": 0.5, "std": 1}})
    assert not caplog.text
