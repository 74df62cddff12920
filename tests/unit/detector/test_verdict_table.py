"""Verdict tables: written in several files and read back as columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from detect_ai.core.storage import Storage
from detect_ai.detector.verdict_table import VERDICT_SCHEMA, Verdicts, verdict_folder, write_verdicts
from detect_ai.schemas import Verdict

LABELS = [("human", "human"), ("ai", "uncertain"), ("uncertain", "uncertain"), ("ai", "ai")]
REASONS = [[], ["too_short"], ["other_script"], ["too_short"]]


def row(number, **changes):
    at_5, at_10 = LABELS[number]
    return {
        "row": f"0-{number}",
        "id": f"id{number}",
        "digest": f"d{number}",
        "label": number % 2,
        "domain": "news" if number else None,
        "score": number / 2,
        "probability": number / 4,
        "p_value": 1 - number / 4,
        "num_tokens": 10 * number,
        "reasons": REASONS[number],
        "compared_with": "",
        "verdicts": f'{{"0.05": "{at_5}", "0.1": "{at_10}"}}',
        "spans": None,
    } | changes


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


def written(storage, rows, key="verdicts"):
    with verdict_folder(storage, key):
        for number in range(0, len(rows), 2):
            assert write_verdicts(storage, f"{key}/{number:03d}", rows[number : number + 2], "parquet")
    return Verdicts.read(storage, key)


def test_every_field_of_a_verdict_is_a_column():
    assert (set(Verdict.model_fields) - {"label"}) | {"verdict"} <= set(VERDICT_SCHEMA.names)


def test_several_files_are_read_in_order(storage):
    verdicts = written(storage, [row(i) for i in range(4)])
    assert len(verdicts) == 4
    assert verdicts.rows.tolist() == ["0-0", "0-1", "0-2", "0-3"]
    assert verdicts.ids.tolist() == ["id0", "id1", "id2", "id3"]
    assert verdicts.labels.tolist() == [0, 1, 0, 1]
    assert verdicts.scores.tolist() == [0, 0.5, 1, 1.5]
    assert verdicts.probabilities.tolist() == [0, 0.25, 0.5, 0.75]
    assert verdicts.p_values.tolist() == [1, 0.75, 0.5, 0.25]
    assert verdicts.num_tokens.tolist() == [0, 10, 20, 30]
    assert verdicts.columns["domain"].tolist() == ["", "news", "news", "news"]
    assert verdicts.reasons.tolist() == [(), ("too_short",), ("other_script",), ("too_short",)]
    assert verdicts.predictions[0.05].tolist() == [0, 1, -1, 1]
    assert verdicts.predictions[0.1].tolist() == [0, -1, -1, 1]


@pytest.mark.parametrize("reasons", [[[], []], [["too_short"], ["other_script"]]])
def test_reasons_and_spans_stay_objects(storage, reasons):
    spans = ['[{"start": 0}]', '[{"start": 5}]']
    verdicts = written(storage, [row(i, reasons=reasons[i], spans=spans[i]) for i in range(2)])
    assert verdicts.reasons.tolist() == [tuple(names) for names in reasons]
    assert verdicts.spans.tolist() == [[{"start": 0}], [{"start": 5}]]


def test_texts_without_a_label_are_not_labelled(storage):
    verdicts = written(storage, [row(0, label=None), row(1)])
    assert verdicts.labelled.tolist() == [False, True]
    assert verdicts[verdicts.labelled].labels.tolist() == [1]


def test_selecting_keeps_columns_aligned(storage):
    verdicts = written(storage, [row(i) for i in range(4)])
    for chosen in (np.asarray([3, 1]), verdicts.labels == 1):
        some = verdicts[chosen]
        order = np.arange(4)[chosen].tolist()
        assert some.ids.tolist() == [f"id{i}" for i in order]
        assert some.scores.tolist() == [i / 2 for i in order]
        assert some.predictions[0.05].tolist() == [1, 1]
        assert some.columns["domain"].tolist() == ["news", "news"]
        assert some.reasons.tolist() == [("too_short",), ("too_short",)]


def test_the_fingerprint_ignores_order_and_scores(storage):
    first = written(storage, [row(i) for i in range(4)], "first").fingerprint
    turned = [row(i, row=f"9-{i}", id="", score=7.0) for i in (2, 0, 3, 1)]
    assert written(storage, turned, "turned").fingerprint == first
    others = [row(i, digest="other") if i == 2 else row(i) for i in range(4)]
    assert written(storage, others, "others").fingerprint != first
    relabelled = [row(i, label=1) if i == 2 else row(i) for i in range(4)]
    assert written(storage, relabelled, "relabelled").fingerprint != first


def test_nothing_is_written_into_an_abandoned_folder(storage):
    assert not write_verdicts(storage, "out/1", [row(0)], "parquet")
    assert not storage.exists("out")


def test_the_schema_does_not_depend_on_the_values(storage):
    written(storage, [row(0, label=None, domain=None)])
    file = storage.filesystem.open_input_file(storage.path("verdicts/000.parquet"))
    assert pa.parquet.read_schema(file).equals(VERDICT_SCHEMA)
