import random

from detect_ai.core.config import ScoreConfig
from detect_ai.core.storage import Storage
from detect_ai.evaluation.contamination import count_contaminated
from tests.fixtures import corpora, tiny_models
from tests.unit.conftest import write
from tests.unit.evaluation.conftest import verdicts_of


def test_near_duplicates_of_fitted_splits_are_counted(tmp_path):
    train, validation, calibration, test, new = (tiny_models.text("human", random.Random(i)) for i in range(5))
    splits = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    rows = {split: [corpora.row(0, 0, text)] for split, text in splits.items()}
    corpus = corpora.write_corpus(Storage(str(tmp_path / "store")), "corpora/x", rows)
    texts = (new, train, validation.upper(), f"{calibration} More.", test, train)
    data = write(tmp_path / "data.jsonl", *({"text": text} for text in texts))
    verdicts = verdicts_of([0] * 5, [0.0] * 5)  # none for the last text
    assert count_contaminated(corpus, str(data), ScoreConfig(), verdicts) == 3
