"""Notes of an evaluation about the guarantee of the thresholds."""

from types import SimpleNamespace

import numpy as np
import pytest

from detect_ai.calibration.calibration import calibrate
from detect_ai.evaluation.evaluate import _notes


@pytest.mark.parametrize(("low", "noted"), [(0.02, False), (0.06, True)])
def test_a_rate_is_noted_beyond_what_the_draw_of_calibration_texts_explains(low, noted):
    """With 125 human texts a threshold for 1% may have an FPR of up to 2.4%."""
    calibration = calibrate([0] * 125 + [1], np.arange(126.0), [0.01])
    spec = SimpleNamespace(calibration=calibration, domains=[])
    verdicts = SimpleNamespace(columns={"compared_with": np.asarray([""])})
    task = SimpleNamespace(corpus=None, spec=spec)
    overall = {"fpr_at_target_1": 0.07, "fpr_at_target_1_low": low}
    assert bool(_notes(task, verdicts, overall)) == noted
