"""Pages of cases: what they say against numbers worked by hand, and that they ask nothing of a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.data.labels import outermost
from scripts.pictures.case_report import find_pieces, plane_of
from scripts.pictures.picture import ShownCase
from scripts.pictures.viewer import viewer_of

PICTURES = Path(__file__).parents[1] / "bundle" / "scripts" / "pictures"
VOXEL_ML = 1.5 * 1.25 * 2 / 1000


def write_mask(files: dict[str, Path], folder: Path, case_id: str = "case_1") -> None:
    """The truth without its enhancing slab (36 x 6 mm^3 of 1 and 2 stay), and a speck of edema elsewhere."""
    folder.mkdir(exist_ok=True)
    truth = nib.load(files["seg"])
    mask = np.asarray(truth.dataobj).astype(np.uint8)
    mask[mask == 4] = 0
    mask[14, 18, 4] = 2
    nib.save(nib.Nifti1Image(mask, truth.affine), folder / f"{case_id}_seg.nii.gz")


class Page(HTMLParser):
    """The text of a page, and all that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.links = "", []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset", "action", "data")]


@pytest.fixture
def report(tiny_case, tmp_path) -> Path:
    """The folder of the pages of one case."""
    write_mask(tiny_case, tmp_path / "masks")
    arguments = ["--dataset_dir", tiny_case["t1"].parent, "--prediction_dir", tmp_path / "masks"]
    assert main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]) is None
    return tmp_path / "pages"


def test_numbers(report):
    content = json.loads((report / "case_1.json").read_text())
    slab = 6 * 4 * VOXEL_ML  # of a class, a slice of it
    truth, prediction = content["volumes"]["truth"], content["volumes"]["prediction"]
    assert truth["classes_ml"] == pytest.approx({"ncr": 2 * slab, "ed": slab, "et": slab})
    assert truth["regions_ml"] == pytest.approx({"tc": 3 * slab, "wt": 4 * slab, "et": slab})
    assert prediction["regions_ml"] == pytest.approx({"tc": 2 * slab, "wt": 3 * slab + VOXEL_ML, "et": 0})
    assert (truth["num_pieces"], prediction["num_pieces"]) == ({"wt": 1}, {"wt": 2})
    assert content["dice"] == pytest.approx({"tc": 4 / 5, "wt": 2 * 72 / (96 + 73), "et": 0})
    first, second = content["pieces"]
    assert (first["title"], second["title"]) == ("WT lesion 1", "WT lesion 2")
    assert (first["kind"], first["truth_ml"], first["prediction_ml"]) == (
        "found",
        pytest.approx(4 * slab),
        pytest.approx(3 * slab),
    )
    assert (second["kind"], second["prediction_ml"]) == ("false", pytest.approx(VOXEL_ML))
    # The file's first two axes run to the left and to the back, the report's to the right and to the front.
    assert second["slices"] == {"axial": 4, "coronal": 24 - 1 - 18, "sagittal": 20 - 1 - 14}
    assert content["spacing_mm"] == [1.5, 1.25, 2]
    assert content["seconds"] is None
    assert "same voxels" not in {warning["fault"] for warning in content["warnings"]}
    assert "spacing" in {warning["fault"] for warning in content["warnings"]}


def test_a_page_asks_nothing_of_a_network_and_says_the_same(report):
    text = (report / "case_1.html").read_text()
    page = Page(text)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert len(page.links) == 2 * 3 * 4  # lesions, planes, modalities
    assert not re.search(r"https?:|@import|url\(", text)
    assert "research only" in page.text
    assert "far from 1" in page.text  # preflight's
    assert "0.852" in page.text  # the Dice of WT
    picture = imread(BytesIO(base64.b64decode(page.links[0].partition(",")[2])), format="jpg")
    assert picture.shape[:2] == (17 + 4, 12 + 4)  # the box that is not zero, and a margin of 2


def test_the_index_leads_to_each_page(tiny_cases, tmp_path):
    for number in (0, 1):
        files = {"seg": tiny_cases / f"case_{number}" / f"case_{number}_seg.nii.gz"}
        write_mask(files, tmp_path / "masks", f"case_{number}")
    arguments = [
        "--dataset_dir",
        tiny_cases,
        "--prediction_dir",
        tmp_path / "masks",
        "--output_dir",
        tmp_path / "pages",
    ]
    assert main(["report", *map(str, arguments)]) is None
    page = Page((tmp_path / "pages" / "index.html").read_text())
    assert page.links == ["case_0.html", "case_1.html"]
    assert all((tmp_path / "pages" / link).is_file() for link in page.links)
    assert "holds files" in str(main(["report", *map(str, arguments)]))  # nothing is replaced


def test_names_cannot_run_in_the_page(write_case, tmp_path):
    case_id = "<img src=x onerror=alert(1)>"
    files = write_case(tmp_path / "case", case_id)
    write_mask(files, tmp_path / "masks", case_id)
    arguments = ["--dataset_dir", tmp_path / "case", "--prediction_dir", tmp_path / "masks"]
    assert main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]) is None
    for page in (tmp_path / "pages").glob("*.html"):
        assert "<img" not in page.read_text()


def test_a_case_without_truth_or_lesion(write_case, tmp_path):
    files = write_case(tmp_path / "case", "new", ("t1", "t1ce", "t2", "flair"))
    scan = nib.load(files["t1"])
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(np.zeros(scan.shape, np.uint8), scan.affine), tmp_path / "masks" / "new_seg.nii.gz")
    arguments = ["--dataset_dir", tmp_path / "case", "--prediction_dir", tmp_path / "masks"]
    assert main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]) is None
    content = json.loads((tmp_path / "pages" / "new.json").read_text())
    assert (content["dice"], content["pieces"]) == (None, [])
    assert "Nothing found" in Page((tmp_path / "pages" / "new.html").read_text()).text


def test_what_the_record_of_a_mask_warns_of(tiny_case, tmp_path):
    write_mask(tiny_case, tmp_path / "masks")
    record = {"warnings": ["Case case_1: 12 of 13 piece(s) of wt are left out."]}
    (tmp_path / "masks" / "case_1_seg.json").write_text(json.dumps(record))
    arguments = ["--dataset_dir", tiny_case["t1"].parent, "--prediction_dir", tmp_path / "masks"]
    assert main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]) is None
    assert record["warnings"][0] in Page((tmp_path / "pages" / "case_1.html").read_text()).text
    assert json.loads((tmp_path / "pages" / "case_1.json").read_text())["mask"] == record


def pages_of(case: dict[str, Path], tmp_path: Path, *more: object) -> str | int | None:
    arguments = ["--dataset_dir", case["t1"].parent, "--prediction_dir", tmp_path / "masks", *more]
    return main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")])


def test_the_record_of_a_mask_says_what_its_values_mean(tiny_case, tmp_path):
    """Also where the record lies in a report that is called as the mask is."""
    tiny_case["seg"].unlink()
    write_mask_of_liver(tiny_case, tmp_path / "masks")
    assert pages_of(tiny_case, tmp_path) is None
    volumes = json.loads((tmp_path / "pages" / "case_1.json").read_text())["volumes"]["prediction"]
    assert list(volumes["classes_ml"]) == ["liver"]
    shutil.rmtree(tmp_path / "pages")
    message = str(pages_of(tiny_case, tmp_path, "--prediction_convention", "brats2023"))
    assert "Case case_1: prediction_convention should be {'labels'" in message
    assert not (tmp_path / "pages").exists()


def write_mask_of_liver(case: dict[str, Path], folder: Path) -> None:
    folder.mkdir()
    scan = nib.load(case["t1"])
    nib.save(nib.Nifti1Image(np.ones(scan.shape, np.uint8), scan.affine), folder / "case_1_seg.nii.gz")
    settings = {"label_convention": {"labels": {"background": 0, "liver": 1}}}
    record = {"settings": settings, "weights": [{"file": "liver.pt", "sha256": "0" * 64}], "warnings": ["Look."]}
    (folder / "case_1_seg.json").write_text(json.dumps({"case_id": "case_1", "warnings": [], "mask": record}))


def test_weights_that_did_not_make_the_mask_are_refused(tiny_case, tmp_path):
    tiny_case["seg"].unlink()
    write_mask_of_liver(tiny_case, tmp_path / "masks")
    (tmp_path / "other.pt").write_bytes(b"other weights")
    message = str(pages_of(tiny_case, tmp_path, "--checkpoint", tmp_path / "other.pt"))
    assert message.startswith("Error: checkpoint should be liver.pt, by which ")
    assert not list((tmp_path / "pages").glob("*"))


def test_a_bad_case_does_not_stop_the_others(tiny_cases, tmp_path, caplog):
    for number in (0, 1):
        files = {"seg": tiny_cases / f"case_{number}" / f"case_{number}_seg.nii.gz"}
        write_mask(files, tmp_path / "masks", f"case_{number}")
    mask = nib.load(tmp_path / "masks" / "case_0_seg.nii.gz")
    nib.save(mask.slicer[:-1], tmp_path / "masks" / "case_0_seg.nii.gz")
    shutil.copy(tmp_path / "masks" / "case_1_seg.nii.gz", tmp_path / "masks" / "stranger_seg.nii.gz")
    case = {"t1": tiny_cases / "t1"}  # all cases of the folder
    first, *others = str(pages_of(case, tmp_path)).splitlines()
    assert first == "Error: 1 of 2 cases failed."
    assert [line.partition(":")[0] for line in others] == ["Case case_0"]
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"case_1.html", "case_1.json", "index.html"}
    assert "3 case(s) have no mask and no page, such as case_2." in caplog.text
    assert "1 mask(s) have no case and no page, such as stranger." in caplog.text


def test_no_mask_of_a_case(tiny_case, tmp_path):
    write_mask(tiny_case, tmp_path / "masks", "another")
    arguments = ["--dataset_dir", tiny_case["t1"].parent, "--prediction_dir", tmp_path / "masks"]
    message = str(main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]))
    assert message.startswith("Error: No case of")
    assert not (tmp_path / "pages").exists()


def test_a_case_whose_page_would_be_that_of_all_cases(tiny_case, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    for name, file in tiny_case.items():
        shutil.copy(file, folder / f"index_{name}.nii.gz")
    write_mask(tiny_case, tmp_path / "masks", "index")
    arguments = ["--dataset_dir", folder, "--prediction_dir", tmp_path / "masks"]
    message = str(main(["report", *map(str, arguments), "--output_dir", str(tmp_path / "pages")]))
    assert message.startswith("Error: Case index: its page would be that of all cases")


def test_planes_are_radiological():
    volume = np.arange(8).reshape(2, 2, 2)  # 4 for right, 2 for anterior, 1 for superior
    assert plane_of(volume, "axial", 0).tolist() == [[6, 2], [4, 0]]
    assert plane_of(volume, "coronal", 0).tolist() == [[5, 1], [4, 0]]
    assert plane_of(volume, "sagittal", 0).tolist() == [[3, 1], [2, 0]]


def test_organs_are_pieces_of_their_own():
    of_regions = {"liver": (1,), "spleen": (2,), "liver-tumor": (3,)}
    assert outermost(of_regions) == of_regions
    mask = np.zeros((4, 4, 8), np.uint8)
    mask[:2], mask[2:] = 1, 2  # they touch
    mask[:, :, 4:6], mask[0, 0, 6], mask[0, 0, 5] = 0, 3, 3
    case = ShownCase("1", {"ct": mask}, {"prediction": mask}, {1: "liver", 2: "spleen", 3: "liver-tumor"})
    found = [(each["title"], each["prediction_ml"]) for each in find_pieces(case, of_regions)]
    assert found[0] == ("liver, piece 1", 0.032)
    assert {title for title, _ in found} == {
        *("liver, piece 1", "liver, piece 2", "spleen, piece 1", "spleen, piece 2", "liver-tumor lesion 1")
    }
    whole = ShownCase("1", {"ct": mask}, {"prediction": np.ones_like(mask)}, {1: "liver"})
    assert [piece["title"] for piece in find_pieces(whole, {"liver": (1,)})] == ["liver"]


def test_the_viewer_has_the_volumes(report):
    text = (report / "case_1.html").read_text()
    hidden = dict(re.findall(r'<script type="text/plain" id="(\w+)">([^<]*)</script>', text))
    assert list(hidden) == ["niivue", "image0", "image1", "image2", "image3", "mask_truth", "mask_prediction"]
    unpacked = {name: gzip.decompress(base64.b64decode(content)) for name, content in hidden.items()}
    license_text = (PICTURES / "niivue.LICENSE").read_text()
    assert hashlib.sha256(unpacked["niivue"]).hexdigest() in license_text
    truth, image = (nib.Nifti1Image.from_bytes(unpacked[name]) for name in ("mask_truth", "image3"))
    assert np.bincount(np.asarray(truth.dataobj).ravel())[1:].tolist() == [2 * 24, 24, 24]
    assert truth.shape == image.shape == (12 + 4, 17 + 4, 11 + 4)  # the box that is not zero, and a margin of 2
    assert nib.aff2axcodes(truth.affine) == ("R", "A", "S")
    assert truth.header.get_zooms() == pytest.approx((1.5, 1.25, 2))
    assert np.asarray(image.dataobj).max() == 255


def test_large_volumes_are_made_small_for_the_viewer():
    grey = np.zeros((200, 200, 200), np.float32)
    grey[100:] = 1
    case = ShownCase("1", {"t1": grey}, {}, {}, (1.0, 2.0, 0.5))
    [image] = viewer_of(case, {"t1": grey}, [slice(0, 200)] * 3)["images"]
    small = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(image)))
    assert small.shape == (159, 159, 159)
    assert np.multiply(small.shape, small.header.get_zooms()) == pytest.approx([200, 400, 100])
    assert small.get_fdata().mean() == pytest.approx(127.5, abs=1)
