"""Facts about a detector: thresholds of the whole and of each domain."""

from dataclasses import replace

import numpy as np

from detect_ai.calibration.calibration import GroupCalibration
from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.model_info import model_info


def test_thresholds_of_all_texts(tiny_bundle):
    spec = read_spec(tiny_bundle)
    info = model_info(spec, {"max_texts": 3})
    assert [threshold.target_fpr for threshold in info.thresholds] == [0.05, 0.1]
    assert info.thresholds[0].fpr_upper_bound == spec.calibration.thresholds[0.05].fpr_bound
    assert info.thresholds[0].domains == []
    assert (info.model_version, info.num_human, info.limits) == (spec.version, 40, {"max_texts": 3})


def test_of_several_domains_the_highest_values_are_stated(tiny_bundle):
    spec = read_spec(tiny_bundle)
    human = np.asarray(spec.calibration.human_scores)
    essays, prose = (
        GroupCalibration(
            temperature=1.0,
            midpoint=0.0,
            human_scores=tuple(scores.tolist()),
            thresholds={target: conformal_threshold(scores, target) for target in spec.calibration.thresholds},
            domain=name,
            min_tokens={0.05: 64} if name == "prose" else {},
        )
        for name, scores in {"essays": human, "prose": human[:21] + 1}.items()
    )
    info = model_info(replace(spec, calibration=replace(spec.calibration, domains=(essays, prose))), {})
    for threshold in info.thresholds:
        own = prose.thresholds[threshold.target_fpr]
        assert [(d.name, d.num_human) for d in threshold.domains] == [("essays", 40), ("prose", 21)]
        assert threshold.fpr_upper_bound == threshold.domains[1].fpr_upper_bound == own.fpr_bound
        assert threshold.probability == prose.probability(prose.bounds(threshold.target_fpr)[1])
    assert [d.min_tokens for d in info.thresholds[0].domains] == [10, 64]
    assert [threshold.min_tokens for threshold in info.thresholds] == [64, 10]
