"""What the documents say can be followed: links, commands, the reference, the Python."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import pytest
import torch
from matplotlib.image import imread

from scripts.__main__ import COMMANDS, main
from scripts.networks import MISSU
from scripts.sources.phantom import write_phantoms

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    BUNDLE / "docs" / "README.md",
    *(ROOT / "docs").rglob("*.md"),
]
# Of its own runner.
MONAI = {"config_file", "bundle_root", "args_file", "meta_file", "logging_file", "workflow_type"}
MONAI |= {"tracking", "tracking_uri", "experiment_name"}


def names(documents: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in documents]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(document):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if link.startswith(("http://", "https://")):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_a_document_is_short(document):
    if document.parent.name == "reference":
        return  # to be searched, not read
    assert len(document.read_text().splitlines()) <= 300


def commands(document: Path) -> list[list[str]]:
    """The words of each command of this bundle in the code of a document, from ``-m`` on."""
    fenced = re.findall(r"```(\w*)\n(.*?)```", document.read_text(), re.DOTALL)
    blocks = [text for language, text in fenced if language in ("", "bash")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line[line.index(" -m ") :] for line in lines if re.search(r" -m (monai\.bundle|scripts) ", line)]
    return [shlex.split(line, comments=True)[1:] for line in found]


def help_of(command: str, words: list[str]) -> str:
    """The help of a command; that of ``segment`` depends on the weights, which the bundle has."""
    text, weights = io.StringIO(), []
    if "--checkpoint" in words and (BUNDLE / words[words.index("--checkpoint") + 1]).is_file():
        weights = ["--checkpoint", str(BUNDLE / words[words.index("--checkpoint") + 1])]
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([command, *weights, "--help"])
    return text.getvalue()


def knows(content: object, path: list[str]) -> bool:
    """Whether a config has what a knob or a path with ``#`` sets; the path may end at an argument left out so far."""
    for step in path[: len(path) - 1 or 1]:
        if isinstance(content, list):
            content = content[int(step)]
        elif isinstance(content, dict) and step in content:
            content = content[step]
        else:
            return False
    return True


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words))
        for document in DOCUMENTS
        if document.parent.name != "reference"  # made of the commands' own help
        for words in commands(document)
    ],
)
def test_commands_have_what_they_name(words):
    module, command, *rest = words
    flags = [word.removeprefix("--").partition("=")[0] for word in rest if word.startswith("--")]
    if module == "scripts":
        assert command in COMMANDS
        own = rest[: rest.index("--")] if "--" in rest else rest
        known = set(re.findall(r"--(\w+)", help_of(command, own)))
        # A scan by its modality, which hangs on the weights: they may be those of another training.
        scans = [word for word, value in pairwise(own) if command == "segment" and value.endswith("scan.nii.gz")]
        assert {word.removeprefix("--") for word in own if word.startswith("--") and word not in scans} <= known
    elif command == "run":
        configs = re.findall(r"configs/\w+\.json", rest[rest.index("--config_file") + 1])
        content: dict = {}
        for config in configs:
            content |= json.loads((BUNDLE / config).read_text())
        assert configs
        assert rest[0].startswith("--") or rest[0] in content
        assert [flag for flag in flags if flag not in MONAI and not knows(content, flag.split("#"))] == []
    else:
        assert command in ("ckpt_export", "download_large_files")


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["knobs.md", "commands.md", "errors.md"])
def test_the_reference_is_up_to_date(reference, page):
    # Spaces aside: each Python breaks the lines of a help in its own way.
    there, wanted = (ROOT / "docs" / "reference" / page).read_text(), reference.PAGES[page]()
    assert there.split() == wanted.split(), "make reference brings it up to date"


def test_each_meaning_and_each_advice_has_its_place(reference):
    knobs = {name for path in reference.CONFIGS.glob("*.json") for name in json.loads(path.read_text())}
    assert set(reference.MEANING) <= knobs
    errors = reference.errors()
    assert [piece for piece in reference.ADVICE if piece not in errors] == []


def test_a_sentence_is_read_from_the_code(reference, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "raise InputError(f\"Case {self.case_id}: got {', '.join(map(str, values))}, \" f'not {table[0]:.1f}.')\n"
        "raise InputError(f'Case {case_id}: {error}')\n"
        "raise InputError('\\n'.join([f'{len(lines)} fault(s).', *lines]))\n"
        "raise KeyError('not for people')\n"
    )
    assert list(reference.sentences(file)) == ["Case {case_id}: got {values}, not {table}.", "{lines} fault(s)."]


@pytest.mark.clients
def test_the_python_of_the_documents(tmp_path):
    section = (ROOT / "docs" / "segment.md").read_text().partition("\n## Python\n")[2].partition("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.+?)```", section, re.DOTALL))
    assert code.count("/data/my_cases") == 2
    cases = tmp_path / "my_cases"
    write_phantoms(cases, 1, (64, 72, 56))
    for path in (cases / "phantom_000").iterdir():
        path.rename(path.with_name(path.name.replace("phantom_000", "p1")))
    (cases / "phantom_000").rename(cases / "p1")

    bundle = tmp_path / "bundle"
    left_out = shutil.ignore_patterns("demo", "eval", "*.pt", "model.json", "synthetic.json")
    shutil.copytree(BUNDLE, bundle, ignore=left_out)
    torch.manual_seed(0)
    torch.save(MISSU(img_size=128).state_dict(), bundle / "models" / "model.pt")

    script = code.replace("/data/my_cases", str(cases)) + "\nassert network.training is False\n"
    env = os.environ | {"PYTHONPATH": str(bundle)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=bundle, env=env, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    assert nib.load(bundle / "eval" / "p1_seg.nii.gz").shape == (64, 72, 56)
    assert imread(bundle / "p1.png").shape[1] == 1600
