"""Samples whose order and augmentation depend on the seed and their place in the training alone.

Neither the processes that load data nor a stop change what is drawn, and no random state of theirs has to be kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from monai.data import CacheDataset, Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import DistributedSampler

from ..errors import InputError, one_sentence
from ..memory import free_memory, gib, size_of

__all__ = ["CheckedDataset", "Seeded", "SeededDataset", "SeededSampler"]


class Sample(NamedTuple):
    """A case by its place in the data set, and the seed of its augmentation."""

    case: int
    seed: int


class SeededSampler(DistributedSampler):
    """Shuffles the cases anew for each pass over them, and gives each sample a seed of its own.

    Of several processes each takes its share of a pass; where the cases do not divide evenly, some are taken twice.

    Args:
        dataset: a :class:`SeededDataset`.
        seed: of the order and of the augmentation.
    """

    def __init__(self, dataset: TorchDataset, seed: int) -> None:
        several = dist.is_available() and dist.is_initialized()
        world_size, rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)
        super().__init__(dataset, world_size, rank, shuffle=True, seed=seed)
        self.start_at(0, 0)

    def start_at(self, num_passes: int, num_samples: int) -> None:
        """Lets the next iteration begin after so many passes, and so many samples of this process in its pass."""
        self.num_passes, self.num_samples_done = num_passes, num_samples

    def __iter__(self) -> Iterator[Sample]:
        self.set_epoch(self.num_passes)
        done = self.num_samples_done
        self.start_at(self.num_passes + 1, 0)
        for place, case in list(enumerate(super().__iter__()))[done:]:
            entropy = (self.seed, self.epoch, place * self.num_replicas + self.rank)
            yield Sample(int(case), int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class Checked:
    """Of a MONAI data set: what is wrong with a case is said in one sentence, from a worker process, too."""

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)  # type: ignore[misc]
        except Exception as error:
            # As such, since a worker process hands over the text of the whole chain otherwise, which is logged.
            sentence = one_sentence(error)
            if sentence is None or isinstance(error, InputError):
                raise
            raise InputError(sentence) from error


class CheckedDataset(Checked, Dataset):
    """MONAI's ``Dataset``, whose faults are sentences."""


class Seeded(Checked):
    """Of a MONAI data set: its random transforms draw from the seed of a :class:`SeededSampler`'s sample."""

    transform: Any

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, Sample):
            self.transform.set_random_state(seed=index.seed)
            index = index.case
        return super().__getitem__(index)


class SeededDataset(Seeded, CacheDataset):
    """MONAI's ``CacheDataset``, seeded by the sample.

    Raises:
        InputError: when the cache would not fit, by the size of the first case.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        num_cases = self.cache_num if indices is None else len(indices)
        free = free_memory()
        if num_cases > 1 and free is not None:
            size = max(1, size_of(self._load_cache_item(0)))  # of a case that is drawn, nothing is kept
            num_fitting = int(free / int(os.environ.get("LOCAL_WORLD_SIZE", 1)) / size)  # each process has its own
            if num_cases > num_fitting:
                rate = math.floor(100 * num_fitting / len(self.data)) / 100
                raise InputError(
                    f"cache_rate keeps {num_cases} cases of {size / 2**20:.0f} MiB each in memory, {gib(free)} are "
                    f"free: {num_fitting} would fit, by cache_rate {rate}."
                )
        return super()._fill_cache(indices)
