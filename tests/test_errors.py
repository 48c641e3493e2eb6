"""Bad input ends with its sentence, however deep it lies; other errors keep their traceback."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Lambda

from scripts.data.seeded import CheckedDataset, SeededDataset
from scripts.errors import InputError, flag, one_sentence, show_one_sentence
from scripts.evaluation.metrics import score_region
from scripts.networks import MISSU

BUNDLE = Path(__file__).parents[1] / "bundle"
SENTENCE = "Case a: t1 is missing: there is none."


def fail(_):
    raise InputError(SENTENCE)


def caught(function, *arguments) -> BaseException:
    try:
        function(*arguments)
    except Exception as error:
        return error.with_traceback(None)  # lets go of the data loader, whose worker ends then
    raise AssertionError("no error was raised")


def wrap():
    try:
        try:
            fail(None)
        except InputError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as error:
        raise KeyError("config") from error


def wrap_without_saying_so():
    try:
        fail(None)
    except InputError:
        raise RuntimeError("while handling")  # noqa: B904 - as libraries do


def raise_from_other():
    raise InputError(SENTENCE) from OSError("No such file or directory")


def other():
    raise ValueError("a bug") from KeyError("InputError")


def of_our_own_code():
    score_region(*[np.zeros((side, 1, 1), bool) for side in (3, 4)], (1.0, 1.0, 1.0), ["dice"])


@pytest.mark.parametrize(
    ("raiser", "expected"),
    [
        (lambda: fail(None), SENTENCE),
        (wrap, SENTENCE),
        (wrap_without_saying_so, SENTENCE),
        (raise_from_other, SENTENCE),
        (lambda: Compose([Lambda(fail)])(0), SENTENCE),
        (lambda: next(iter(DataLoader(Dataset([0], Lambda(fail)), num_workers=0))), SENTENCE),
        (lambda: next(iter(DataLoader(Dataset([0], Lambda(fail)), num_workers=1))), SENTENCE),
        (other, None),
        (of_our_own_code, None),
        (lambda: MISSU(img_size=20), "img_size should be a positive multiple of 8 on each axis, H is 20."),
    ],
    ids=[
        "itself",
        "chain",
        "context",
        "from another",
        "MONAI transform",
        "data loader",
        "worker process",
        "a bug",
        "a bug of ours",
        "a knob",
    ],
)
def test_one_sentence(raiser, expected):
    assert one_sentence(caught(raiser)) == expected


@pytest.mark.parametrize(
    ("statement", "last_line", "has_traceback"),
    [
        ("raise InputError('Case a: bad.')", "Error: Case a: bad.", False),
        ("raise RuntimeError('wrapped') from InputError('Case a: bad.')", "Error: Case a: bad.", False),
        ("raise RuntimeError('a bug')", "RuntimeError: a bug", True),
    ],
    ids=["bad input", "wrapped", "a bug"],
)
def test_what_a_user_sees(statement, last_line, has_traceback):
    program = "import sys, types\n__spec__ = types.SimpleNamespace(name='monai.bundle.__main__')\n"
    script = f"{program}from scripts.errors import InputError, show_one_sentence\nshow_one_sentence()\n{statement}"
    done = subprocess.run([sys.executable, "-c", script], cwd=BUNDLE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == last_line
    assert ("Traceback" in done.stderr) is has_traceback


def test_another_program_keeps_its_hook():
    before = sys.excepthook
    show_one_sentence()
    assert sys.excepthook is before


@pytest.mark.parametrize("kind", [partial(SeededDataset, cache_rate=0.0, progress=False), CheckedDataset])
def test_a_worker_hands_over_the_sentence_alone(kind):
    """Of a training case and of one of the validation. Its text is logged by ignite, twice."""
    dataset = kind([0], Compose([Lambda(fail)]))
    error = caught(lambda: next(iter(DataLoader(dataset, num_workers=1))))
    assert str(error) == SENTENCE


@pytest.mark.parametrize(
    ("value", "meant"),
    [(True, True), (False, False), ("true", True), ("false", False), ("False", False), ("auto", "auto")],
)
def test_words_of_the_command_line(value, meant):
    assert flag("resume", value, "auto") is meant


@pytest.mark.parametrize("value", ["no", "", 2, None, "auto"])
def test_other_words_are_refused(value):
    with pytest.raises(InputError, match="skip_existing should be true or false, got"):
        flag("skip_existing", value)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(28, "No space left on device", "/data/model.pt"), "/data/model.pt cannot be written: No space left"),
        (PermissionError(13, "Permission denied", "/data"), "/data cannot be written: Permission denied"),
        (RuntimeError("unable to write to file </torch_12_3_4>: No space left on device (28)"), "/dev/shm) is full"),
        (
            RuntimeError(
                "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            "/dev/shm) is full",
        ),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "A process that loads data died"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "A process that loads data died"),
    ],
)
def test_what_the_machine_lacks(error, part):
    sentence = one_sentence(error)
    assert sentence is not None
    assert part in sentence
    assert sentence.count("\n") == 0


def test_other_errors_of_the_system_keep_their_traceback():
    assert one_sentence(FileNotFoundError(2, "No such file or directory", "x")) is None
