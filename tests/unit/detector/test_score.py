import numpy as np
import pytest

from detect_ai.core.config import ScoreConfig
from detect_ai.core.errors import InputError
from detect_ai.detector.dataset import Text
from detect_ai.detector.score import JudgePart

TARGET = 0.1


class Broken:
    """A detector with damaged weights."""

    version, targets = "abc123", [TARGET]

    def check_target(self, target):
        return TARGET

    def read(self, texts):
        return [type("Document", (), {"input_ids": [1]}) for _ in texts]

    def score(self, texts):
        return np.asarray([0.0, np.nan, np.inf])


def test_a_score_that_is_not_finite_names_the_bundle_the_row_and_the_way_out():
    part = JudgePart.__new__(JudgePart)
    part._detector, part._config = Broken(), ScoreConfig(precision="bf16")
    texts = [Text(f"0-{i}", f"id{i}", f"secret {i}", None, {}) for i in range(3)]
    with pytest.raises(InputError) as refused:
        part.judge(texts)
    assert str(refused.value) == (
        "bundle abc123: the score of 2 of 3 texts is not finite, first of row 0-1: its weights are damaged, or "
        "score.precision=bf16 overflows: try score.precision=fp32"
    )
