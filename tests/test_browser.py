"""Pages in Chromium: controls are clicked, the viewer scrolls, and no request leaves the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main

pytestmark = pytest.mark.clients
playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-optional.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE_GL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
NO_GL = ["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--disable-3d-apis"]
PATIENCE_MS = 240_000


@pytest.fixture
def pages(tiny_cases, tmp_path) -> Path:
    """Pages of two cases and their index; the mask of the second is larger."""
    (tmp_path / "masks").mkdir()
    for number in (0, 1):
        truth = nib.load(tiny_cases / f"case_{number}" / f"case_{number}_seg.nii.gz")
        mask = np.asarray(truth.dataobj).astype(np.uint8)
        mask[mask == 4] = 3
        if number:
            mask[6:12, 8:12, 3:6] = 2
        nib.save(nib.Nifti1Image(mask, truth.affine), tmp_path / "masks" / f"case_{number}_seg.nii.gz")
    arguments = [
        "--dataset_dir",
        tiny_cases,
        "--prediction_dir",
        tmp_path / "masks",
        "--output_dir",
        tmp_path / "pages",
    ]
    assert main(["report", *map(str, arguments)]) is None
    return tmp_path / "pages"


def opened(browser, url: str, requests: list[str], **settings: object):
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(url)
    return page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_controls_and_viewer(pages):
    requests: list[str] = []
    url = (pages / "case_1.html").as_uri()
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        page = opened(browser, url, requests, viewport={"width": 1280, "height": 900})
        lines = page.locator("svg path.prediction.class2")
        assert lines.first.is_visible()
        page.uncheck("#class2")
        assert not lines.first.is_visible()
        page.check("#modality1")
        assert page.locator("svg image.modality1").first.is_visible()
        page.click("#open")
        page.locator("#place", has_text="axial").wait_for()
        page.locator(".find").first.click()
        sagittal, coronal, axial = (
            int(at) + 1 for at in page.locator(".find").first.get_attribute("data-voxel").split()
        )
        page.locator("#place", has_text=f"axial {axial}, coronal {coronal}, sagittal {sagittal};").wait_for()
        narrow = opened(browser, url, requests, viewport={"width": 390, "height": 844})
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert {request for request in requests if not request.startswith(("data:", "blob:"))} == {url}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_without_webgl_the_pictures_stay_and_the_index_sorts(pages):
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=NO_GL)
        page = opened(browser, (pages / "case_0.html").as_uri(), [])
        assert not page.locator("#viewer").is_visible()
        assert page.locator("svg").first.is_visible()
        index = opened(browser, (pages / "index.html").as_uri(), [])
        volume = index.locator("th button", has_text="WT, ml")
        first = index.locator("tbody tr a").first
        volume.click()
        assert first.text_content() == "case_0"
        volume.click()
        assert first.text_content() == "case_1"
        first.click()
        assert index.url.endswith("/case_1.html")
        browser.close()
