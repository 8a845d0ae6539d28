"""Data workers with little shared memory or few open files: fewer of them, or one sentence; never a wait."""

import resource
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from internvl.errors import UserError
from internvl.train import data_workers
from internvl.train.data_workers import end_on_lost_batch, fit_workers, raise_lost_batch


def settings(workers: int = 4, prefetch: int | None = None, persistent: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=prefetch,
        dataloader_persistent_workers=persistent,
    )


@pytest.mark.parametrize(
    ("free", "files", "workers", "prefetch"),
    [
        (1 << 40, 1 << 20, 4, None),  # room for all: nothing is touched
        (64 << 20, 1 << 20, 4, 1),  # Docker's 64 MB: four batches of 10 MB, and the one in use
        (40 << 20, 1 << 20, 2, 1),
        (10 << 20, 1 << 20, 0, None),
        (1 << 40, 256, 4, 1),  # 128 of 256 files are left for batches of 20
    ],
)
def test_prefetching_then_workers_are_lowered_until_the_waiting_batches_fit(
    monkeypatch, free, files, workers, prefetch
):
    monkeypatch.setattr(data_workers, "allow_open_files", lambda: files)
    mine = settings()
    fit_workers(mine, batch_bytes=10_000_000, batch_tensors=20, free=free)
    assert (mine.dataloader_num_workers, mine.dataloader_prefetch_factor) == (workers, prefetch)
    waiting = workers * (prefetch or data_workers.PREFETCH) + 1
    assert not workers or waiting * 10_000_000 <= free and waiting * 20 <= files


def test_a_lowered_number_is_said_with_the_way_out(caplog):
    fit_workers(settings(persistent=True), batch_bytes=10_000_000, batch_tensors=8, free=1 << 20)
    assert "Data workers: 0" in caplog.text and "--shm-size 8g" in caplog.text


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(data_workers, "allow_open_files", lambda: 1 << 20)
    alone, shared = settings(), settings()
    fit_workers(alone, batch_bytes=10_000_000, batch_tensors=8, free=150 << 20)
    fit_workers(shared, batch_bytes=10_000_000, batch_tensors=8, free=150 << 20, processes=4)
    assert alone.dataloader_num_workers == 4 and shared.dataloader_num_workers == 2


def few_files(worker: int) -> None:
    """Leave a data worker too few files to hand over its batch."""
    end_on_lost_batch(worker)
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return [torch.zeros(1000) for _ in range(64)]


def test_a_worker_that_cannot_hand_over_its_batch_ends_the_run_in_one_sentence():
    """By default the training would wait for that batch for ever."""
    loader = DataLoader(Rows(), batch_size=None, num_workers=1, worker_init_fn=few_files)
    with pytest.raises(UserError, match="could not hand over its batch .*--dataloader_num_workers 0"):
        try:
            list(loader)
        except RuntimeError as error:
            raise_lost_batch(error)
            raise


def test_other_errors_are_not_taken_for_a_lost_batch():
    raise_lost_batch(RuntimeError("CUDA error: out of memory"))
    raise_lost_batch(RuntimeError("Caught UserError in DataLoader worker process 0."))
