"""A cache on disk from which a crop reads what it covers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import RandomizableTrait, Transform

from ..files import whole_file
from .cases import case_id_of, case_of
from .seeded import Seeded

__all__ = ["MappedDataset"]


class MappedDataset(Seeded, Dataset):
    """Cases whose transforms up to the first random one are done once, and kept as ``.npy`` files.

    They are mapped to memory: a crop reads its own voxels, no file is decompressed, no pickle opened, and processes
    share what they read. MONAI's ``PersistentDataset`` reads a whole case for each crop.

    A case is prepared anew when one of its files, the names of its channels or ``settings`` has changed. Whoever edits
    the transforms themselves has to take another folder.

    Args:
        data: the cases, of ``image`` and ``label``.
        transform: a ``Compose`` of all transforms.
        cache_dir: the folder, made where it is missing.
        settings: what the transforms before the first random one depend on.
    """

    keys = ("image", "label")

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable, cache_dir: str, settings: Mapping[str, Any]
    ) -> None:
        super().__init__(data, transform)
        self.cache_dir = Path(cache_dir)
        self.settings = dict(settings)
        self.first_random = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )

    def name_of(self, item: Mapping[str, Any]) -> str:
        """Stem of the files of a case: its ID, and what its content hangs on."""
        image = item["image"]
        if isinstance(image, Mapping):
            named, channels = [*image.items()], tuple[str, ...]()
        else:
            case = case_of(image)  # its siblings are read, too, and dataset.json gives the order of its channels
            named = [(name, file) for name, files in sorted(case.files.items()) for file in files]
            channels = case.channels
        states = [(name, *state_of(Path(file))) for name, file in [*named, ("label", item["label"])]]
        digest = hashlib.sha256(json.dumps([states, channels, self.settings]).encode()).hexdigest()
        return f"{case_id_of(item)}-{digest[:16]}"

    def _transform(self, index: int) -> Any:
        item = dict(self.data[index])
        name = self.name_of(item)
        files = {key: self.cache_dir / f"{name}-{key}.npy" for key in self.keys}
        if not all(file.is_file() for file in files.values()):
            prepared = self.transform(item, end=self.first_random)
            for key, file in files.items():
                with whole_file(file) as temporary:
                    np.save(temporary, prepared[key].numpy())
        # Copy on write: a transform that works in place does not reach the file.
        item |= {key: torch.from_numpy(np.load(file, mmap_mode="c")) for key, file in files.items()}
        return self.transform(item, start=self.first_random)


def state_of(file: Path) -> tuple[str, int, int]:
    """The name of a file, its size and time; zeros where it is not there, which the transforms will say."""
    if not file.exists():
        return str(file), 0, 0
    return str(file), file.stat().st_size, file.stat().st_mtime_ns
