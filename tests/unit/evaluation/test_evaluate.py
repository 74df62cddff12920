"""Notes of an evaluation about the guarantee of the thresholds."""

from types import SimpleNamespace

import pytest

from detect_ai.calibration.conformal import Threshold
from detect_ai.evaluation.evaluate import _notes


@pytest.mark.parametrize(("low", "noted"), [(0.02, False), (0.06, True)])
def test_a_rate_is_noted_beyond_what_the_draw_of_calibration_texts_explains(low, noted):
    """With 125 human texts a threshold for 1% may have an FPR of up to 2.4%."""
    spec = SimpleNamespace(calibration=SimpleNamespace(thresholds={0.01: Threshold(2.0, 0.024, 0.95)}))
    task = SimpleNamespace(corpus=None, spec=spec)
    overall = {"fpr_at_target_1": 0.07, "fpr_at_target_1_low": low}
    assert bool(_notes(task, SimpleNamespace(), overall)) == noted
