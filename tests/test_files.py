"""A file is there whole or not at all, after a power cut, too."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from scripts.files import unwound_by_sigterm, whole_file


def test_the_content_is_on_the_disk_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    flushed: list[str] = []
    target = tmp_path / "mask.nii.gz"

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append(f"{'folder' if path == tmp_path else path.read_text()}, {target.exists()}")

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(target) as temporary:
        temporary.write_text("mask")
    assert flushed == ["mask, False", "folder, True"]


def test_what_was_there_stays_where_a_write_fails(tmp_path):
    target = tmp_path / "mask.nii.gz"
    target.write_text("old")

    def fail() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mask.nii.gz", "old")]


def test_temporary_files_go_with_a_process_that_is_ended():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, unwound_by_sigterm(), tempfile.TemporaryDirectory() as folder:
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
    assert not Path(folder).exists()
    assert signal.getsignal(signal.SIGTERM) is before
