"""What a process of a data loader does before its first case."""

from __future__ import annotations

import os
import signal
from multiprocessing import parent_process
from threading import Thread

from monai.data.utils import worker_init_fn

__all__ = ["init_worker"]


def init_worker(worker_id: int) -> None:
    """``worker_init_fn`` of a ``DataLoader``: MONAI's, and the process ends with the run, not before.

    Clusters, ``torchrun`` and a terminal ask all processes to end at once. The main one still needs the others then:
    it finishes a step, and saves.
    """
    worker_init_fn(worker_id)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=end_by_parent, args=(parent.pid,), daemon=True).start()


def end_by_parent(parent: int) -> None:
    """Ends this process at the SIGTERM of its parent, and at no other's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
