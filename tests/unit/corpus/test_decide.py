import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import SPLITS, CorpusConfig, HoldoutConfig, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus import decide
from detect_ai.corpus.decide import Counts, Rows
from detect_ai.corpus.dedup import clusters

NAMES = ("source", "domain", "generator", "group", "language", "split", "attack", "problem")
TEST = SPLITS.index("test")


def frame(rows):
    """An index as a scan leaves it: rows in the corpus's order, each like the one before but for what is given."""
    made = [
        {
            **{"id": f"r{i}", "digest": 1000 + i, "label": i % 2, "group": f"g{i}", "source": "made", "domain": "news"},
            **{"generator": "gpt" if i % 2 else "", "language": "en", "split": "", "attack": "none", "problem": ""},
            **{"num_words": 100, "weight": 1.0, "against": False, "file": 0, "row": i, "arrival": i, **row},
        }
        for i, row in enumerate(rows)
    ]
    return pd.DataFrame(made).astype(dict.fromkeys(NAMES, "category"))


def rows_of(rows, **corpus):
    return Rows(frame(rows), CorpusConfig(**{"sources": [SourceConfig(name="made")], **corpus}))


def near(rows, *pairs):
    """The cluster of each row, from pairs."""
    return clusters(len(rows.reason), np.asarray(pairs, np.int64).reshape(-1, 2))


def reasons(rows):
    return rows.reason.tolist()


def split_names(rows):
    return [SPLITS[i] for i in rows.split]


# Exact duplicates


def test_of_equal_texts_the_first_stays_and_is_named():
    rows = rows_of([{"label": 0, "digest": 7}, {"label": 0}, {"label": 0, "digest": 7}])
    decide.drop_exact(rows)
    assert reasons(rows) == ["", "", "duplicate"]
    assert rows.twin.tolist() == [-1, -1, 0]


def test_a_text_with_both_labels_goes_altogether():
    rows = rows_of([{"label": 0, "digest": 7}, {"label": 1, "digest": 7}, {"label": 1}])
    decide.drop_exact(rows)
    assert reasons(rows) == ["both_labels", "both_labels", ""]


def test_of_equal_texts_the_one_for_the_test_stays():
    source = SourceConfig(name="made", splits={"train": ["train"], "test": ["test"]})
    given = [{"label": 0, "digest": 7, "split": "train"}, {"label": 0, "digest": 7, "split": "test"}]
    rows = rows_of(given, sources=[source])
    decide.drop_exact(rows)
    assert reasons(rows) == ["duplicate", ""]


def test_a_row_with_a_problem_duplicates_nothing():
    rows = rows_of([{"label": 0, "digest": 7, "problem": "language"}, {"label": 0, "digest": 7}])
    decide.drop_exact(rows)
    assert reasons(rows) == ["language", ""]


def test_an_evaluation_set_neither_drops_exact_duplicates_nor_loses_any():
    rows = rows_of([{"label": 0, "digest": 7, "against": True}, {"label": 0, "digest": 7}])
    decide.drop_exact(rows)
    assert reasons(rows) == ["", ""]


# Near duplicates


def test_near_duplicates_stay_unless_they_are_to_be_dropped():
    rows = rows_of([{}] * 3)
    decide.drop_near(rows, near(rows, (0, 2)))
    assert reasons(rows) == ["", "", ""]


def test_of_near_duplicates_one_stays():
    rows = rows_of([{}] * 4, near_duplicates="drop")
    decide.drop_near(rows, near(rows, (0, 2), (3, 0)))
    assert reasons(rows) == ["", "", "near_duplicate", "near_duplicate"]
    assert rows.twin.tolist() == [-1, -1, 0, 0]


@pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
def test_what_an_evaluation_set_holds_too_is_dropped(pair):
    rows = rows_of([{"against": True, "label": -1}, {}])
    decide.drop_near(rows, near(rows, pair))
    assert reasons(rows) == ["", "contaminated"]
    assert rows.twin.tolist() == [-1, 0]


def test_contamination_may_stay():
    rows = rows_of([{"against": True}, {}], contamination="keep")
    decide.drop_near(rows, near(rows, (0, 1)))
    assert reasons(rows) == ["", ""]


# Limits


def test_a_limit_takes_whole_groups_in_order():
    given = [{"group": group} for group in "aabbbcc"]
    rows = rows_of(given, sources=[SourceConfig(name="made", limit=3)])
    decide.drop_over_limit(rows)
    assert reasons(rows) == ["", "", "", "", "", "over_limit", "over_limit"]


def test_a_limit_is_of_one_source():
    given = [{"source": "made"}, {"source": "made"}, {"source": "other"}, {"source": "other"}]
    rows = rows_of(given, sources=[SourceConfig(name="made", limit=1), SourceConfig(name="other")])
    decide.drop_over_limit(rows)
    assert reasons(rows) == ["", "over_limit", "", ""]


# Splits


def fixed(**splits):
    return [SourceConfig(name="made", splits=splits)]


def test_fixed_splits_of_a_source_are_kept():
    names = ["train", "val", "val", "test", "train", "val"] * 10
    rows = rows_of(
        [{"split": name} for name in names],
        sources=fixed(train=["train"], val=["validation", "calibration"], test=["test"]),
    )
    decide.split(rows, near(rows), 0)
    found = split_names(rows)
    assert {"train": {"train"}, "val": {"validation", "calibration"}, "test": {"test"}} == {
        name: {found[i] for i in range(60) if names[i] == name} for name in set(names)
    }


def test_a_star_fixes_every_row_of_a_source():
    rows = rows_of([{}] * 8, sources=fixed(**{"*": ["test"]}))
    decide.split(rows, near(rows), 0)
    assert set(split_names(rows)) == {"test"}


def test_a_group_in_training_and_test_goes_to_the_test_and_leaks_nothing():
    given = [{"group": "a", "split": "train"}, {"group": "a", "split": "test"}, {"split": "train"}]
    rows = rows_of(given, sources=fixed(train=["train"], test=["test"]))
    decide.split(rows, near(rows), 0)
    assert reasons(rows) == ["leak", "", ""]
    assert split_names(rows)[1:] == ["test", "train"]


def test_a_training_text_like_a_test_text_is_dropped():
    given = [{"split": "train"}, {"split": "test"}, {"split": "train"}]
    rows = rows_of(given, sources=fixed(train=["train"], test=["test"]))
    decide.split(rows, near(rows, (0, 1)), 0)
    assert reasons(rows) == ["leak", "", ""]
    assert rows.twin.tolist() == [1, -1, -1]


def test_near_duplicates_go_to_one_split():
    rows = rows_of([{}] * 200)
    decide.split(rows, near(rows, *((i, i + 1) for i in range(0, 200, 2))), 0)
    assert reasons(rows) == [""] * 200
    assert (rows.split[0::2] == rows.split[1::2]).all()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "train", "test"])), min_size=2, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=60),
)
def test_nothing_stands_in_two_splits_whatever_groups_and_near_duplicates_there_are(members, pairs):
    count = len(members)
    given = [{"group": f"g{group}", "split": name} for group, name in members]
    rows = rows_of(given, sources=fixed(train=["train"], test=["test"]))
    found = near(rows, *((a % count, b % count) for a, b in pairs))
    decide.split(rows, found, 0)
    stays = rows.stays
    for group in range(6):
        mine = [i for i, (g, _) in enumerate(members) if g == group and stays[i]]
        assert len({rows.split[i] for i in mine}) <= 1
    assert all(len(set(rows.split[stays & (found == code)])) <= 1 for code in found)
    assert all(SPLITS[rows.split[i]] == name for i, (_, name) in enumerate(members) if name and stays[i])


# Leaving out


@pytest.mark.parametrize("column", ["domain", "group"])
def test_what_is_left_out_stands_in_the_test_split_alone(column):
    given = [{column: "x" if i % 4 < 2 else f"y{i % 3}"} for i in range(40)]
    rows = rows_of(given, holdout=HoldoutConfig(column=column, values=["x"]))
    decide.split(rows, near(rows), 0)
    is_left_out = np.asarray([row[column] == "x" for row in given])
    assert ((rows.split == TEST) == is_left_out).all()


def test_a_generator_left_out_is_tested_against_the_human_texts_of_the_test_split():
    given = [
        {"group": f"g{i // 3}", "label": int(i % 3 > 0), "generator": ("", "old", "new")[i % 3]} for i in range(120)
    ]
    rows = rows_of(given, holdout=HoldoutConfig(column="generator", values=["new"]))
    decide.split(rows, near(rows), 0)
    names = rows.index["generator"].astype(str).to_numpy()
    assert set(names[rows.stays & (rows.split == TEST)]) == {"", "new"}
    assert set(names[rows.stays & (rows.split != TEST)]) == {"", "old"}
    assert set(np.asarray(rows.reason)[~rows.stays]) == {"held_out"}


def test_a_row_that_its_source_fixes_to_training_and_that_is_left_out_is_dropped():
    rows = rows_of(
        [{"split": "train", "domain": "x"}, {"split": "train"}],
        sources=fixed(train=["train"]),
        holdout=HoldoutConfig(column="domain", values=["x"]),
    )
    decide.split(rows, near(rows), 0)
    assert reasons(rows) == ["held_out", ""]


def test_a_value_to_leave_out_that_is_not_there_is_refused():
    with pytest.raises(CorpusError) as refused:
        rows_of([{"domain": "a"}, {"domain": "b"}], holdout=HoldoutConfig(column="domain", values=["c"]))
    assert str(refused.value) == "corpus.holdout.values: no domain 'c' in the sources; found 'a', 'b'"


# Balance and counts


def test_only_the_training_split_is_balanced():
    given = [{"split": "train" if i < 40 else "test", "label": int(i % 4 == 0)} for i in range(80)]
    rows = rows_of(given, sources=fixed(train=["train"], test=["test"]), balance="weight")
    decide.split(rows, near(rows), 0)
    decide.weigh(rows)
    train = rows.split == 0
    assert rows.weight[~train].tolist() == [1.0] * 40
    assert np.isclose(rows.weight[train & (rows.labels == 1)].sum(), rows.weight[train & (rows.labels == 0)].sum())


def test_dropping_for_balance_says_so():
    given = [{"split": "train", "label": int(i % 4 == 0)} for i in range(40)]
    rows = rows_of(given, sources=fixed(train=["train"]), balance="drop")
    decide.split(rows, near(rows), 0)
    decide.weigh(rows)
    assert Counts.of(rows).dropped == {"balance": 20}


def test_the_counts_add_up_to_the_rows_of_the_corpus():
    given = [{"problem": "empty"}, {"label": 0, "digest": 7}, {"label": 0, "digest": 7}, {"against": True}, {}]
    rows = rows_of(given)
    decide.drop_exact(rows)
    counts = Counts.of(rows)
    assert (counts.rows_read, counts.dropped) == (4, {"duplicate": 1, "empty": 1})
    assert rows.stays.sum() + sum(counts.dropped.values()) == counts.rows_read


def test_rows_weigh_what_their_source_says():
    assert rows_of([{"weight": 2.5}, {}]).weight.tolist() == [2.5, 1.0]


def test_two_texts_with_one_id_are_refused():
    with pytest.raises(CorpusError, match=r"^two different texts have the id 'r1': expected ids that are unique"):
        decide.require_unique_ids(rows_of([{}, {}, {"id": "r1"}]))


def test_a_dropped_text_may_have_the_id_of_another():
    decide.require_unique_ids(rows_of([{}, {"problem": "empty"}, {"id": "r1"}]))
