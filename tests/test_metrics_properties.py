"""Metrics of random masks: against independent code, and the same wherever both lie and however they are turned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from scripts.evaluation.lesions import find_lesions, lesion_scores
from scripts.evaluation.metrics import CHAOS_METRICS, METRICS, score_region
from scripts.evaluation.surfaces import hd95_mm, surface_dice, symmetric_distances_mm

SHAPE = (9, 8, 7)
NAMES = (*METRICS, *CHAOS_METRICS)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the references
quick = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def masks(draw):
    """Two masks, from single voxels to nearly all, in blobs or scattered; either may be empty."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smooth = draw(st.sampled_from([0, 0.7, 1.2]))
    result = []
    for share in (draw(st.sampled_from([0.0, 0.005, 0.05, 0.3, 0.9])), draw(st.sampled_from([0.0, 0.02, 0.3, 0.6]))):
        noise = ndimage.gaussian_filter(generator.normal(size=SHAPE), smooth)
        result.append(noise > np.quantile(noise, 1 - share) if share else np.zeros(SHAPE, bool))
    return result


spacings = st.tuples(*[st.sampled_from([0.7, 1.0, 1.25, 3.0])] * 3)


def scores_of(prediction, truth, spacing_mm):
    scores, _ = score_region(prediction, truth, spacing_mm, NAMES, lesion_min_mm3=2.0, lesion_dilations=1)
    return scores


@quick
@given(masks(), spacings)
def test_surfaces_are_those_of_surface_distance(pair, spacing_mm):
    reference = pytest.importorskip("surface_distance")
    prediction, truth = pair
    if not (prediction.any() and truth.any()):
        return
    distances = reference.compute_surface_distances(truth, prediction, spacing_mm)
    assert hd95_mm(prediction, truth, spacing_mm) == pytest.approx(
        reference.compute_robust_hausdorff(distances, 95), rel=1e-4
    )
    expected = reference.compute_surface_dice_at_tolerance(distances, 1.1)
    assert surface_dice(prediction, truth, spacing_mm, 1.1) == pytest.approx(expected, rel=1e-4)


@quick
@given(masks(), spacings)
def test_symmetric_distances_are_those_of_all_pairs(pair, spacing_mm):
    if not all(mask.any() for mask in pair):
        return
    borders = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing_mm for mask in pair]
    between = cdist(*borders)
    each = np.concatenate([between.min(axis=0), between.min(axis=1)])
    assert symmetric_distances_mm(*pair, spacing_mm) == pytest.approx((each.mean(), each.max()), rel=1e-4)


@quick
@given(masks())
def test_overlap_is_that_of_simpleitk(pair):
    sitk = pytest.importorskip("SimpleITK")
    prediction, truth = pair
    if not (prediction.any() and truth.any()):
        return
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, truth)))
    scores = scores_of(prediction, truth, (1, 1, 1))
    assert scores["dice"] == pytest.approx(overlap.GetDiceCoefficient(1))
    assert 1 - scores["sensitivity"] == pytest.approx(overlap.GetFalseNegativeError(1))


@quick
@given(masks())
def test_lesions_are_the_components_of_cc3d(pair):
    cc3d = pytest.importorskip("cc3d")
    prediction, truth = pair
    lesions = find_lesions(prediction, truth, (1, 1, 1), dilations=1)
    reach = ndimage.binary_dilation(truth, ndimage.generate_binary_structure(3, 2))
    num_true = cc3d.connected_components(reach, connectivity=26).max()
    components = cc3d.connected_components(prediction, connectivity=26)
    num_false = len(set(np.unique(components)) - set(np.unique(components[reach])) - {0})
    assert sum(lesion.kind != "false" for lesion in lesions) == num_true
    assert sum(lesion.kind == "false" for lesion in lesions) == num_false
    assert 0 <= lesion_scores(lesions)[0] <= 1


@quick
@given(masks(), spacings, st.tuples(*[st.integers(0, 3)] * 3), st.permutations([0, 1, 2]), st.integers(0, 7))
def test_nothing_changes_where_both_are_moved_flipped_or_turned(pair, spacing_mm, offset, axes, flips):
    flipped = [axis for axis in range(3) if flips >> axis & 1]

    def moved(mask):
        padded = np.pad(mask, [(before, 3 - before) for before in offset])
        return np.flip(padded, flipped).transpose(axes).copy()

    # With air around in both, so that the accuracy counts as many voxels.
    before = scores_of(*(np.pad(mask, [(1, 2)] * 3) for mask in pair), spacing_mm)
    after = scores_of(*map(moved, pair), [spacing_mm[axis] for axis in axes])
    assert after == pytest.approx(before, rel=1e-4, abs=1e-6)


@quick
@given(masks(), spacings)
def test_each_score_is_within_its_bounds_and_right_for_itself(pair, spacing_mm):
    prediction, truth = pair
    scores = scores_of(prediction, truth, spacing_mm)
    assert np.isfinite(list(scores.values())).all()
    shares = ("dice", "nsd_1mm", "sensitivity", "specificity", "accuracy", "lesion_dice")
    assert all(0 <= scores[name] <= 1 + 1e-9 for name in shares)
    swapped = scores_of(truth, prediction, spacing_mm)
    both_ways = ("dice", "hd95_mm", "nsd_1mm", "accuracy", "assd_mm", "mssd_mm")
    assert {name: swapped[name] for name in both_ways} == pytest.approx({name: scores[name] for name in both_ways})
    itself = scores_of(truth, truth, spacing_mm)
    assert all(itself[name] == 1 for name in shares)
    assert (itself["hd95_mm"], itself["mssd_mm"], itself["rvd_percent"], itself["lesion_hd95_mm"]) == (0, 0, 0, 0)
