"""Attacked texts against the same texts unchanged."""

import numpy as np
import pytest

from detect_ai.evaluation import robustness, slices
from tests.unit.evaluation.conftest import TARGET, verdicts_of


@pytest.mark.parametrize(("flipped", "significant"), [(8, True), (1, False)])
def test_attacked_texts_are_paired_with_the_clean_ones(flipped, significant):
    labels = np.repeat([0, 1], 20)
    clean = verdicts_of(labels, np.zeros(40), predictions=labels)
    attacked = verdicts_of(labels, np.zeros(40), predictions=np.where(np.arange(40) < flipped, 1, labels))
    attacked.ids[:] = clean.rows
    shuffled = robustness.aligned(attacked[np.random.default_rng(0).permutation(40)], clean)
    assert shuffled.ids.tolist() == clean.rows.tolist()
    differences = slices.differences(shuffled, clean, TARGET)
    assert differences["fpr_difference"] == flipped / 20
    assert (differences["fpr_difference_low"] > 0) is significant
    assert differences["tpr_difference"] == 0
