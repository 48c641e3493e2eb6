"""Hausdorff distance as the BraTS challenge counts it, by hand, and the report of an evaluation."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.metrics import BratsHausdorffDistanceMetric, EvaluationReport

pytestmark = [
    pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class . is all 0"),  # which is what we test
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges"),  # MONAI's own deprecation
]

MISSED = 373.13
SHAPE = (12, 12, 12)


def mask(*voxels: tuple[int, int, int], spacing: tuple[float, float, float] = (1, 1, 1)) -> MetaTensor:
    """One channel (1, H, W, D) in which the voxels named are true."""
    array = torch.zeros(1, *SHAPE, dtype=torch.bool)
    for voxel in voxels:
        array[(0, *voxel)] = True
    return MetaTensor(array, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def hd95_mm(predictions: list[MetaTensor], labels: list[MetaTensor]) -> float:
    metric = BratsHausdorffDistanceMetric()
    metric(predictions, labels)
    return metric.aggregate().item()


LINE = [(2, 2, depth) for depth in range(10)]


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        (mask(), mask(), 0.0),
        (mask(), mask((3, 3, 3)), MISSED),
        (mask((3, 3, 3)), mask(), MISSED),
        (mask((3, 3, 3)), mask((3, 3, 3)), 0.0),
        (mask((1, 2, 3)), mask((4, 6, 3)), 5.0),  # sqrt(3^2 + 4^2)
        # 3 voxels of 2 mm, 4 of 0.5 mm, 1 of 3 mm: sqrt(6^2 + 2^2 + 3^2)
        (mask((1, 2, 3)), mask((4, 6, 4), spacing=(2, 0.5, 3)), 7.0),
        # Of 10 voxels 9 are 0 mm away and one is 8: the 95th percentile lies at rank 8.55 of 0..9, 0.55 * 8;
        # the other way all 9 are 0 mm away.
        (mask(*LINE[:9], (10, 2, 8)), mask(*LINE[:9]), 4.4),
    ],
    ids=["both empty", "missed", "false alarm", "perfect", "3-4-5", "anisotropic", "95th percentile"],
)
def test_distance(prediction, label, expected):
    assert hd95_mm([prediction], [label]) == pytest.approx(expected, abs=1e-3)


def test_spacing_is_that_of_a_turned_affine_too():
    label = mask((4, 2, 3))
    label.affine = torch.tensor([[0.0, -3, 0, 9], [-2, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])  # H has 2 mm, W 3 mm
    assert hd95_mm([mask((1, 2, 3))], [label]) == pytest.approx(6)


def test_a_missed_tumor_counts_in_the_mean():
    # (0 + 373.13) / 2
    labels = [mask((3, 3, 3)), mask((5, 5, 5))]
    assert hd95_mm([mask((3, 3, 3)), mask()], labels) == pytest.approx(186.565, abs=1e-3)


def test_each_region_by_itself():
    prediction = MetaTensor(torch.cat([mask((1, 1, 1)), mask(), mask()]))
    label = MetaTensor(torch.cat([mask((1, 1, 3)), mask((2, 2, 2)), mask()]))
    metric = BratsHausdorffDistanceMetric()
    assert metric([prediction], [label])[0].tolist() == pytest.approx([2, MISSED, 0])


class TestEvaluationReport:
    @pytest.fixture
    def engine(self):
        """Three batches of one case each, as an evaluator leaves them."""
        engine = Engine(lambda *_: None)
        engine.state.metric_details = {}
        return engine

    @staticmethod
    def batches(*case_ids: str) -> list[list[dict[str, MetaTensor]]]:
        return [[{"image": MetaTensor(torch.zeros(1, 2, 2, 2), meta={"case_id": case_id})}] for case_id in case_ids]

    def test_csv_and_table(self, engine, tmp_path, capsys):
        path = tmp_path / "new" / "metrics.csv"
        EvaluationReport(str(path), ["wt", "et"]).attach(engine)
        engine.state.metric_details = {
            "dice": torch.tensor([[0.5, 1.0], [0.9, 0.25]]),
            "hd95_mm": torch.tensor([[3.0, 373.13], [1.0, 0.0]]),
        }
        engine.run(self.batches("case_b", "case_a"))
        assert path.read_text() == (
            "case,dice_wt,dice_et,hd95_mm_wt,hd95_mm_et\n"
            "case_a,0.9000,0.2500,1.0000,0.0000\n"
            "case_b,0.5000,1.0000,3.0000,373.1300\n"
        )
        assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            ["2", "cases", "dice", "hd95_mm"],
            ["WT", "0.700", "+-", "0.200", "2.000", "+-", "1.000"],  # (0.5 + 0.9) / 2, and 0.2 from it each
            ["ET", "0.625", "+-", "0.375", "186.565", "+-", "186.565"],
            ["Each", "case:", str(path)],
        ]

    def test_a_case_that_fills_up_a_batch_counts_once(self, engine, tmp_path, capsys):
        path = tmp_path / "metrics.csv"
        EvaluationReport(str(path), ["wt"]).attach(engine)
        engine.state.metric_details = {"dice": torch.tensor([[0.5], [0.75], [0.5]])}
        engine.run(self.batches("a", "b", "a"))
        assert path.read_text() == "case,dice_wt\na,0.5000\nb,0.7500\n"
        assert "0.625 +- 0.125" in capsys.readouterr().out

    def test_a_second_run_begins_anew(self, engine, tmp_path, capsys):
        path = tmp_path / "metrics.csv"
        EvaluationReport(str(path), ["wt"]).attach(engine)
        for case_id, dice in (("a", 0.5), ("b", 0.75)):
            engine.state.metric_details = {"dice": torch.tensor([[dice]])}
            engine.run(self.batches(case_id))
        assert path.read_text() == "case,dice_wt\nb,0.7500\n"
