"""A training that is stopped anywhere ends at the weights of one that is not, or says why it cannot go on."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, Identityd, RandGaussianNoised
from monai.utils import set_determinism
from torch import nn

from scripts.data.seeded import SeededDataset, SeededSampler
from scripts.errors import InputError
from scripts.progress import ProgressBar
from scripts.training.state import TrainingState

NUM_CASES, BATCH_SIZE, EPOCHS = 5, 2, 3
METRICS = (0.5, 0.75, 0.6)  # of the validations after each epoch
STEPS = 9  # 3 epochs of 5 cases in batches of 2


class Validation:
    """A validation as MONAI's evaluator is one, which draws a random number and notes when it ran."""

    def __init__(self, network: nn.Module, cases: list[Any]) -> None:
        self.network = network
        self.data_loader = SimpleNamespace(dataset=cases)
        self.state = SimpleNamespace(best_metric=-1.0, best_metric_epoch=-1)
        self.epochs: list[int] = []
        self.fails_in: int | None = None

    def run(self, epoch: int) -> None:
        self.epochs.append(epoch)
        torch.rand(1)
        if epoch == self.fails_in:
            raise ZeroDivisionError
        if METRICS[epoch - 1] > self.state.best_metric:
            self.state.best_metric, self.state.best_metric_epoch = METRICS[epoch - 1], epoch

    @property
    def best(self) -> tuple[float, int]:
        return self.state.best_metric, self.state.best_metric_epoch


def trainer(folder: Path, resume: bool | str = False, **changes: Any) -> SupervisedTrainer:
    """A training whose every part draws random numbers: order, augmentation, dropout, and a validation each epoch."""
    settings = {"width": 3, "num_cases": NUM_CASES, "interval": 1, "val_interval": 1, "fold": 0, **changes}
    set_determinism(0)
    cases = [
        {"case_id": f"case_{i}", "image": torch.full((1, 2, 2, 2), float(i)), "label": torch.ones(1, 2, 2, 2)}
        for i in range(settings["num_cases"])
    ]
    dataset = SeededDataset(cases, Compose([RandGaussianNoised("image", prob=0.5)]), progress=False)
    loader = DataLoader(
        dataset, batch_size=BATCH_SIZE, sampler=SeededSampler(dataset, seed=0), generator=torch.Generator()
    )
    width = settings["width"]
    network = nn.Sequential(nn.Conv3d(1, width, 1), nn.Dropout(), nn.Conv3d(width, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS, power=0.9)
    evaluator = Validation(network, settings.get("validation_cases", cases))
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.L1Loss(),
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            TrainingState(
                ckpt_dir=str(folder),
                resume=resume,
                interval=settings["interval"],
                objects={"network": network, "optimizer": optimizer, "lr_scheduler": schedule},
                evaluator=evaluator,
                val_interval=settings["val_interval"],
                settings={"fold": settings["fold"]},
                data={"training": cases},
            ),
        ],
        decollate=False,
    )
    engine.add_event_handler(
        Events.EPOCH_COMPLETED(every=settings["val_interval"]), lambda e: evaluator.run(e.state.epoch)
    )
    engine.evaluator = evaluator
    return engine


def at(engine: SupervisedTrainer, step: int, action: Callable[[Any], None]) -> None:
    engine.add_event_handler(Events.ITERATION_STARTED(once=step - engine.state.iteration), lambda _: action(engine))


def weights(engine: SupervisedTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in engine.network.parameters()])


def send(number: int) -> Callable[[Any], None]:
    return lambda _: os.kill(os.getpid(), number)


def die(_: Any) -> None:
    raise ZeroDivisionError  # as a kill, it leaves no time to save


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> torch.Tensor:
    engine = trainer(tmp_path_factory.mktemp("undisturbed"))
    engine.run()
    assert engine.state.iteration == STEPS
    return weights(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_asked_to_end_after_any_step(tmp_path, undisturbed, step, number):
    engine = trainer(tmp_path)
    at(engine, step, send(number))
    with pytest.raises(SystemExit) as ended:
        engine.run()
    assert ended.value.code == 128 + number
    assert f"checkpoint_iteration={step}.pt" in checkpoints(tmp_path)
    engine = trainer(tmp_path, resume=True)
    steps = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: steps.append(engine.state.iteration))
    engine.run()
    assert steps == list(range(step + 1, STEPS + 1))
    assert torch.equal(weights(engine), undisturbed)
    assert engine.evaluator.best == (0.75, 2)


@pytest.mark.parametrize("interval", [1, 2])
def test_killed_in_each_run(tmp_path, undisturbed, interval):
    """Three times: before the first checkpoint, in the second and in the third epoch."""
    for step in (2, 5, 8):
        engine = trainer(tmp_path, resume="auto", interval=interval)
        at(engine, step, die)
        with pytest.raises(ZeroDivisionError):
            engine.run()
    engine = trainer(tmp_path, resume="auto", interval=interval)
    engine.run()
    assert torch.equal(weights(engine), undisturbed)
    assert engine.evaluator.best == (0.75, 2)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_validation_that_fails_loses_nothing(tmp_path, undisturbed, epoch):
    engine = trainer(tmp_path, interval=1000)
    engine.evaluator.fails_in = epoch
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert f"checkpoint_iteration={3 * epoch}.pt" in checkpoints(tmp_path)
    engine = trainer(tmp_path, resume=True, interval=1000)
    engine.run()
    assert engine.evaluator.epochs == list(range(epoch, EPOCHS + 1))  # the one that failed first
    assert engine.evaluator.best == (0.75, 2)
    assert torch.equal(weights(engine), undisturbed)


class Unreadable:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise InputError("Case a: it cannot be read.")


def test_a_validation_case_that_cannot_be_read_ends_the_run_before_the_first_step(tmp_path):
    engine = trainer(tmp_path, validation_cases=Unreadable())
    with pytest.raises(InputError, match="Case a: it cannot be read"):
        engine.run()
    assert engine.state.iteration == 0
    trainer(tmp_path, validation_cases=[]).run()  # as MONAI Label makes it of two labels


def test_a_second_interrupt_ends_at_once(tmp_path):
    engine = trainer(tmp_path)
    at(engine, 5, lambda _: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert checkpoints(tmp_path) == ["checkpoint_iteration=3.pt"]


def handlers_of_signals() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_signals_are_given_back(tmp_path):
    before = handlers_of_signals()
    trainer(tmp_path).run()
    assert handlers_of_signals() == before


@pytest.mark.parametrize(
    "event", [Events.STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED]
)
def test_signals_are_given_back_after_an_error(tmp_path, event):
    """Whatever handlers come after: a bar that knows errors, too, and one that fails."""
    before = handlers_of_signals()
    engine = trainer(tmp_path)
    ProgressBar("training").attach(engine)
    engine.add_event_handler(event, fail)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert handlers_of_signals() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_was_asked_to_end_is_not_ended_otherwise(tmp_path, number):
    before = handlers_of_signals()
    engine = trainer(tmp_path)
    at(engine, 2, send(number))
    with pytest.raises(SystemExit):
        engine.run()
    of_sigterm, of_sigint = handlers_of_signals()
    signal.signal(signal.SIGTERM, before[0])
    assert of_sigint == before[1]  # a notebook goes on
    assert of_sigterm == signal.SIG_IGN  # until the process has ended


def test_the_last_two_are_kept(tmp_path):
    trainer(tmp_path).run()
    assert checkpoints(tmp_path) == ["checkpoint_iteration=6.pt", "checkpoint_iteration=9.pt"]


def test_a_training_that_was_done_stays_so(tmp_path, undisturbed):
    trainer(tmp_path).run()
    engine = trainer(tmp_path, resume=True)
    engine.run()
    assert engine.state.iteration == STEPS
    assert torch.equal(weights(engine), undisturbed)


@pytest.mark.parametrize("resume", [False, "auto"])
def test_what_another_training_left_is_not_replaced(tmp_path, resume):
    name = "checkpoint_iteration=6.pt"
    (tmp_path / name).write_text("weeks of work")
    engine = trainer(tmp_path, resume=resume)
    match = "cannot be read" if resume else f"holds {name} of another .* --resume true"
    with pytest.raises(InputError, match=match):
        engine.run()
    assert engine.state.iteration == 0
    assert (tmp_path / name).read_text() == "weeks of work"
    assert checkpoints(tmp_path) == [name]


@pytest.mark.parametrize("resume", [False, "auto"])
def test_weights_alone_are_set_aside_with_their_record(tmp_path, resume, caplog):
    (tmp_path / "model.pt").write_text("shipped")
    (tmp_path / "model.json").write_text("their record")
    trainer(tmp_path, resume=resume).run()
    digest = hashlib.sha256(b"shipped").hexdigest()[:8]
    assert (tmp_path / f"model-{digest}.pt").read_text() == "shipped"
    assert (tmp_path / f"model-{digest}.json").read_text() == "their record"
    assert not (tmp_path / "model.json").exists()
    assert f"kept as model-{digest}.pt" in caplog.text


def test_weights_that_a_training_begins_with_are_its_own_to_replace(tmp_path):
    """As MONAI Label trains: from ``model.pt``, to ``model.pt``, again and again."""
    for _ in range(2):
        engine = trainer(tmp_path)
        torch.save(engine.network.state_dict(), tmp_path / "model.pt")
        engine.run()
    assert checkpoints(tmp_path) == ["checkpoint_iteration=6.pt", "checkpoint_iteration=9.pt", "model.pt"]


def test_a_second_run_of_one_trainer_goes_on_in_its_folder(tmp_path):
    """As MONAI FL trains, round after round."""
    engine = trainer(tmp_path)
    engine.run()
    torch.save(engine.network.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        engine.network[0].weight.zero_()
    engine.state.max_epochs = 4
    engine.evaluator.run = lambda _: None
    engine.run()
    assert checkpoints(tmp_path) == ["checkpoint_iteration=12.pt", "checkpoint_iteration=9.pt", "model.pt"]


def test_the_newest_is_the_one_of_the_most_steps(tmp_path, undisturbed):
    """Not the one that was written last: a copy has other times."""
    trainer(tmp_path).run()
    shutil.copy(tmp_path / "checkpoint_iteration=6.pt", tmp_path / "checkpoint_iteration=last.pt")
    os.utime(tmp_path / "checkpoint_iteration=9.pt", (0, 0))
    engine = trainer(tmp_path, resume=True)
    steps = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: steps.append(engine.state.iteration))
    engine.run()
    assert not steps
    assert torch.equal(weights(engine), undisturbed)


def test_a_checkpoint_of_another_name_is_passed_over(tmp_path, undisturbed, caplog):
    engine = trainer(tmp_path)
    at(engine, 8, die)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    shutil.copy(tmp_path / "checkpoint_iteration=3.pt", tmp_path / "checkpoint_iteration=10.pt")
    engine = trainer(tmp_path, resume=True)
    engine.run()
    assert "checkpoint_iteration=10.pt should be the checkpoint that its name says, it holds 3" in caplog.text
    assert torch.equal(weights(engine), undisturbed)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, caplog):
    engine = trainer(tmp_path)
    at(engine, 8, die)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    newest = tmp_path / "checkpoint_iteration=6.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    engine = trainer(tmp_path, resume=True)
    engine.run()
    assert "checkpoint_iteration=6.pt cannot be read" in caplog.text
    assert torch.equal(weights(engine), undisturbed)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("of"), "should be a checkpoint of a training, it lacks of"),
        (lambda state: state.pop("optimizer"), "lacks the state of optimizer, this training has one"),
        (lambda state: state["of"].pop("settings"), "is of a training with fold None, this one has 0"),
    ],
)
def test_a_checkpoint_that_lacks_a_part(tmp_path, change, sentence):
    trainer(tmp_path).run()
    (tmp_path / "checkpoint_iteration=6.pt").unlink()
    path = tmp_path / "checkpoint_iteration=9.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(InputError, match=sentence):
        trainer(tmp_path, resume=True).run()


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"of": RunsCode(tmp_path / "owned")}, tmp_path / "checkpoint_iteration=3.pt", pickle_module=pickle)
    with pytest.raises(InputError, match=r"checkpoint_iteration=3\.pt cannot be read"):
        trainer(tmp_path, resume=True).run()
    assert not (tmp_path / "owned").exists()


def test_the_best_metric_is_taken_up(tmp_path):
    trainer(tmp_path).run()
    engine = trainer(tmp_path, resume=True)
    engine.run()
    assert engine.evaluator.best == (0.75, 2)
    assert engine.evaluator.epochs == [3]  # not of more than the last epoch


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fold": 1}, "is of a training with fold 0, this one has 1"),
        ({"num_cases": 6}, "is of a training with other training cases, case_5 is new in this one"),
        ({"num_cases": 4}, "is of a training with other training cases, case_4 is not in this one"),
        ({"width": 4}, r"is of another network, 0.weight is \[3, 1, 1, 1, 1\] in it and \[4, 1, 1, 1, 1\] in this one"),
    ],
)
def test_another_training_is_refused(tmp_path, changes, sentence):
    trainer(tmp_path).run()
    engine = trainer(tmp_path, resume=True, **changes)
    before = weights(engine).clone()
    with pytest.raises(InputError, match=sentence):
        engine.run()
    assert torch.equal(weights(engine), before)
    assert checkpoints(tmp_path) == ["checkpoint_iteration=6.pt", "checkpoint_iteration=9.pt"]


def test_nothing_to_go_on_from(tmp_path):
    with pytest.raises(InputError, match=r"resume needs a checkpoint_iteration=\*.pt"):
        trainer(tmp_path, resume=True).run()
    trainer(tmp_path, resume="auto").run()
    assert len(checkpoints(tmp_path)) == 2


def test_what_resume_may_be(tmp_path):
    """The command line gives words."""
    trainer(tmp_path, resume="false").run()
    trainer(tmp_path, resume="true").run()
    with pytest.raises(InputError, match="resume should be true or false or auto, got yes"):
        trainer(tmp_path, resume="yes")


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on the size of a file fails as a full disk does, in the middle of a write."""
    engine = trainer(tmp_path, width=500)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    at(engine, 5, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1])))
    try:
        with pytest.raises(InputError, match=r"checkpoint_iteration=6.pt cannot be written: File too large"):
            engine.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_iteration=3.pt"]
    trainer(tmp_path, resume=True, width=500).run()


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("mine")
    engine = trainer(tmp_path / "file" / "models")
    with pytest.raises(InputError, match=r"ckpt_dir .* cannot be written to: Not a directory"):
        engine.run()
    assert engine.state.iteration == 0


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / ".4711.checkpoint_iteration=3.pt").write_bytes(b"half")
    (tmp_path / ".hidden.pt").write_bytes(b"mine")
    trainer(tmp_path).run()
    assert not (tmp_path / ".4711.checkpoint_iteration=3.pt").exists()
    assert (tmp_path / ".hidden.pt").exists()


def in_process(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world_size)


def test_each_pass_has_each_case_once_in_an_order_of_its_own():
    sampler = SeededSampler(list(range(20)), seed=0)
    passes = [list(sampler) for _ in range(3)]
    orders = [[sample.case for sample in samples] for samples in passes]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert len({sample.seed for samples in passes for sample in samples}) == 60
    assert list(SeededSampler(list(range(20)), seed=0)) == passes[0]
    assert list(SeededSampler(list(range(20)), seed=1)) != passes[0]


def test_a_pass_can_begin_in_its_midst():
    sampler = SeededSampler(list(range(20)), seed=0)
    passes = [list(sampler) for _ in range(3)]
    sampler.start_at(1, 15)
    assert list(sampler) == passes[1][15:]
    assert list(sampler) == passes[2]


def test_processes_share_a_pass(monkeypatch):
    """The samples of one process, each at its turn, so that the number of processes does not change them."""
    alone = list(SeededSampler(list(range(20)), seed=0))
    shares = []
    for rank in range(2):
        in_process(monkeypatch, rank, 2)
        shares.append(list(SeededSampler(list(range(20)), seed=0)))
    assert [sample for pair in zip(*shares) for sample in pair] == alone


def test_a_sample_is_the_same_whatever_came_before():
    cases = [{"image": torch.zeros(1, 8, 8, 8)} for _ in range(2)]
    dataset = SeededDataset(cases, Compose([RandGaussianNoised("image", prob=1.0)]), progress=False)
    first, second = list(SeededSampler(dataset, seed=0))
    image = dataset[first]["image"].clone()
    assert not torch.equal(dataset[second]["image"], image)
    assert torch.equal(dataset[first]["image"], image)


def test_a_cache_that_does_not_fit_is_refused(monkeypatch):
    """Ten cases of 1 MiB, 4.5 MiB free."""
    cases = [{"image": torch.zeros(2**18)} for _ in range(10)]
    monkeypatch.setattr("scripts.data.seeded.free_memory", lambda: int(4.5 * 2**20))
    transforms = Compose([Identityd("image"), RandGaussianNoised("image")])
    with pytest.raises(InputError, match=r"10 cases of 1 MiB each .*: 4 would fit, by cache_rate 0.4\."):
        SeededDataset(cases, transforms, cache_rate=1.0, progress=False)
    SeededDataset(cases, transforms, cache_rate=0.4, progress=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes, each with a cache of its own
    with pytest.raises(InputError, match="2 would fit"):
        SeededDataset(cases, transforms, cache_rate=0.4, progress=False)
