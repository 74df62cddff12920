import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.corpus.clean import add_normalised, keep
from detect_ai.errors import CorpusError

# (text, label): few texts, so that most draws hold duplicates and conflicts. The empty one is empty.
ROWS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(0, 1)), max_size=30)


def index_of(rows, ids=None):
    ids = ids or [f"id-{number:02d}" for number in range(len(rows))]
    index = pd.DataFrame(
        [
            {"id": i, "digest": text, "label": label, "empty": not text}
            for i, (text, label) in zip(ids, rows, strict=True)
        ],
        columns=["id", "digest", "label", "empty"],
    )
    return index.astype({"empty": bool})


@given(ROWS)
def test_what_stays_and_what_falls_add_up_to_what_was_read(rows):
    kept = keep(index_of(rows))
    assert kept.mask.sum() + sum(kept.dropped.values()) == len(rows)
    assert set(kept.dropped) == {"empty", "both_labels", "duplicate"}


@given(ROWS)
def test_every_text_with_one_label_stays_exactly_once_and_no_other(rows):
    kept = keep(index_of(rows))
    stayed = [row for row, mask in zip(rows, kept.mask, strict=True) if mask]
    labels = {text: {label for other, label in rows if other == text} for text, _ in rows}
    assert sorted(stayed) == sorted((text, min(found)) for text, found in labels.items() if text and len(found) == 1)


@given(ROWS)
def test_each_row_falls_for_the_reason_that_is_told(rows):
    dropped = keep(index_of(rows)).dropped
    labels = {text: {label for other, label in rows if other == text} for text, _ in rows}
    empty = sum(not text for text, _ in rows)
    conflict = sum(bool(text) and len(labels[text]) == 2 for text, _ in rows)
    single = [text for text, _ in rows if text and len(labels[text]) == 1]
    assert dropped == {"empty": empty, "both_labels": conflict, "duplicate": len(single) - len(set(single))}


@given(ROWS, st.randoms(use_true_random=False))
def test_the_choice_does_not_hang_on_the_order_of_the_rows(rows, random):
    ids = [f"id-{number:02d}" for number in range(len(rows))]
    order = list(range(len(rows)))
    random.shuffle(order)
    first = keep(index_of(rows, ids))
    second = keep(index_of([rows[i] for i in order], [ids[i] for i in order]))
    assert first.dropped == second.dropped
    assert {i for i, mask in zip(ids, first.mask, strict=True) if mask} == {
        ids[i] for i, mask in zip(order, second.mask, strict=True) if mask
    }


def test_of_duplicates_the_smallest_id_stays():
    kept = keep(index_of([("a", 0), ("a", 0), ("a", 0)], ids=["z", "b", "m"]))
    assert kept.mask.tolist() == [False, True, False]


def test_the_same_row_twice_stays_once():
    kept = keep(index_of([("a", 0), ("a", 0)], ids=["x", "x"]))
    assert (kept.mask.sum(), kept.dropped["duplicate"]) == (1, 1)


def test_different_texts_with_one_id_are_refused():
    with pytest.raises(CorpusError) as refused:
        keep(index_of([("a", 0), ("b", 1), ("c", 1)], ids=["x", "y", "x"]))
    assert str(refused.value) == "two different texts have the id 'x': expected ids that are unique over all sources"


def test_no_rows_stay_of_none():
    kept = keep(index_of([]))
    assert (len(kept.mask), sum(kept.dropped.values())) == (0, 0)


def test_texts_that_differ_in_what_nobody_sees_or_in_case_have_one_digest():
    table = add_normalised(
        pa.table({"text": ["The  cat’s here", "the cat's\u200b HERE", "The cat's there", "Straße", "STRASSE"]})
    )
    digests = table["digest"].to_pylist()
    assert digests[0] == digests[1]
    assert digests[3] == digests[4]
    assert len(set(digests)) == 3
    assert table["normalised"].to_pylist()[:2] == ["The cat's here", "the cat's HERE"]


def test_a_text_that_is_missing_or_only_white_space_normalises_to_nothing():
    table = add_normalised(pa.table({"text": ["", None, " \u200b\n"]}))
    assert table["normalised"].to_pylist() == ["", "", ""]
    assert table["text"].to_pylist() == ["", None, " \u200b\n"]
