"""Row selection, splits by group, and balancing weights."""

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import SPLITS, CorpusConfig, HoldoutConfig, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.splits import (
    ANY,
    MAX_JOINED_FRACTION,
    MAX_WEIGHT,
    MIN_WEIGHT,
    TEST,
    Rows,
    assign_splits,
    balance_classes,
    check_rows,
    drop_contaminated,
    drop_exact_duplicates,
    join_groups,
    shuffle_key,
    split_rows,
)

NAMES = ("source", "domain", "generator", "group", "language", "split", "attack", "problem")
FRACTIONS = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}
TRAIN_ONLY, EVALUATION = 1, 0b0110  # masks: the training split; validation and calibration


def rows_of(changes, **corpus):
    """Rows as a scan returns them, each equal to the previous one except for the given changes."""
    rows = [
        {
            **{"id": f"r{i}", "digest": 1000 + i, "label": i % 2, "group": f"g{i}", "source": "mine", "domain": "news"},
            **{"generator": "gpt" if i % 2 else "", "language": "en", "split": "", "attack": "none", "problem": ""},
            **{"num_words": 100, "weight": 1.0, "against": False, "file": 0, "row": i, "arrival": i, **row},
        }
        for i, row in enumerate(changes)
    ]
    index = pd.DataFrame(rows).astype(dict.fromkeys(NAMES, "category"))
    return Rows(index, CorpusConfig(**{"sources": [SourceConfig(name="mine")], **corpus}))


def clusters_of(count, pairs):
    """For each row, the smallest row that can be reached through the pairs."""
    labels = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            labels[a] = labels[b] = min(labels[a], labels[b])
    return np.asarray(labels)


def near(rows, *pairs):
    return clusters_of(len(rows.reason), pairs)


def fixed(**splits):
    return [SourceConfig(name="mine", splits=splits)]


def test_exact_duplicates_are_dropped():
    rows = rows_of(
        [
            {"label": 0, "digest": 7, "problem": "language"},
            {"label": 0, "digest": 7, "against": True},
            {"label": 0, "digest": 7},
            {"label": 0, "digest": 7},
            {"label": 0, "digest": 8},
            {"label": 1, "digest": 8},
        ]
    )
    drop_exact_duplicates(rows)
    assert rows.reason.tolist() == ["language", "", "", "duplicate", "both_labels", "both_labels"]
    assert rows.duplicate_of.tolist() == [-1, -1, -1, 2, 5, 4]
    assert rows.dropped == {"both_labels": 2, "duplicate": 1, "language": 1}


def test_duplicate_in_the_test_split_stays():
    changes = [{"label": 0, "digest": 7, "split": "train"}, {"label": 0, "digest": 7, "split": "test"}]
    rows = rows_of(changes, sources=fixed(train=["train"], test=["test"]))
    drop_exact_duplicates(rows)
    assert rows.reason.tolist() == ["duplicate", ""]


def test_contaminated_rows_are_dropped():
    rows = rows_of([{"against": True, "label": -1}, {}, {}])
    drop_contaminated(rows, near(rows, (1, 0)))
    assert rows.reason.tolist() == ["", "contaminated", ""]
    assert rows.duplicate_of.tolist() == [-1, 0, -1]


def test_split_without_a_class_is_refused_with_what_was_dropped():
    rows = rows_of([{}] * 8 + [{"problem": "bad_row"}] * 3)
    rows.split[:8] = np.repeat(np.arange(4), 2)
    check_rows(rows)
    rows.drop(np.asarray([3]), "duplicate")
    with pytest.raises(CorpusError, match=r"'validation' has 1 human and 0 AI .*'bad_row': 3, 'duplicate': 1"):
        check_rows(rows)


def test_repeated_ids_are_refused():
    rows = rows_of([{}] * 8 + [{"id": "r1", "problem": "empty"}, {"id": "r1"}])
    rows.split[:8] = np.repeat(np.arange(4), 2)
    with pytest.raises(CorpusError, match="'r1'"):
        check_rows(rows)
    rows.drop(np.asarray([9]), "duplicate")
    check_rows(rows)


def test_fixed_splits_are_kept():
    names = ["train", "val", "val", "test", "train", "val"] * 10
    sources = fixed(train=["train"], val=["validation", "calibration"], test=["test"])
    rows = rows_of([{"split": name} for name in names], sources=sources)
    split_rows(rows, near(rows), 0)
    splits = {name: {SPLITS[i] for i, own in zip(rows.split, names, strict=True) if own == name} for name in set(names)}
    assert splits == {"train": {"train"}, "val": {"validation", "calibration"}, "test": {"test"}}
    rows = rows_of([{}] * 8, sources=fixed(**{"*": ["test"]}))
    split_rows(rows, near(rows), 0)
    assert set(rows.split) == {SPLITS.index("test")}


def test_training_rows_that_leak_into_the_test_are_dropped():
    sources = fixed(train=["train"], test=["test"])
    rows = rows_of([{"group": "a", "split": "train"}, {"group": "a", "split": "test"}], sources=sources)
    split_rows(rows, near(rows), 0)
    assert rows.reason.tolist() == ["leak", ""]
    rows = rows_of([{"split": "train"}, {"split": "test"}], sources=sources)
    split_rows(rows, near(rows, (0, 1)), 0)
    assert rows.reason.tolist() == ["leak", ""]
    assert rows.duplicate_of.tolist() == [1, -1]


def test_near_duplicates_share_a_split():
    rows = rows_of([{}] * 200)
    split_rows(rows, clusters_of(200, [])[np.arange(200) // 2 * 2], 0)
    assert rows.reason.tolist() == [""] * 200
    assert (rows.split[0::2] == rows.split[1::2]).all()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "train", "test"])), min_size=2, max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=60),
)
def test_no_group_or_cluster_is_in_two_splits(members, pairs):
    count = len(members)
    changes = [{"group": f"g{group}", "split": name} for group, name in members]
    rows = rows_of(changes, sources=fixed(train=["train"], test=["test"]))
    clusters = near(rows, *((a % count, b % count) for a, b in pairs))
    split_rows(rows, clusters, 0)
    stays = rows.stays
    for group in range(6):
        assert len({rows.split[i] for i, (g, _) in enumerate(members) if g == group and stays[i]}) <= 1
    assert all(len(set(rows.split[stays & (clusters == code)])) <= 1 for code in clusters)
    assert all(SPLITS[rows.split[i]] == name for i, (_, name) in enumerate(members) if name and stays[i])


@pytest.mark.parametrize("column", ["domain", "group"])
def test_holdout_is_the_test_split(column):
    changes = [{column: "x" if i % 4 < 2 else f"y{i % 3}"} for i in range(40)]
    rows = rows_of(changes, holdout=HoldoutConfig(column=column, values=["x"]))
    split_rows(rows, near(rows), 0)
    assert ((rows.split == SPLITS.index("test")) == np.asarray([row[column] == "x" for row in changes])).all()
    with pytest.raises(CorpusError, match="'z'"):
        rows_of(changes, holdout=HoldoutConfig(column=column, values=["z"]))


@pytest.mark.parametrize("column", ["source", "domain", "group"])
def test_rows_for_calibration_only_are_in_no_other_split(column):
    changes = [{column: "x" if i % 4 < 2 else f"y{i % 3}", "label": i % 2} for i in range(40)]
    rows = rows_of(changes, calibrate_only={column: ["x"]})
    split_rows(rows, near(rows), 0)
    in_calibration = rows.split == SPLITS.index("calibration")
    assert in_calibration[[row[column] == "x" for row in changes]].all()
    assert (~in_calibration).any()
    with pytest.raises(CorpusError, match=f"calibrate_only.{column}: no {column} 'z'"):
        rows_of(changes, calibrate_only={column: ["z"]})


def test_rows_for_calibration_only_leave_the_split_of_their_source():
    changes = [{"split": "train", "domain": "x"}, {"split": "train"}]
    rows = rows_of(changes, sources=fixed(train=["train"]), calibrate_only={"domain": ["x"]})
    split_rows(rows, near(rows), 0)
    assert [SPLITS[split] for split in rows.split] == ["calibration", "train"]


@pytest.mark.parametrize("column", ["source", "domain", "group", "generator"])
def test_excluded_values_are_dropped(column):
    changes = [{column: "x" if i % 4 < 2 else f"y{i % 3}", "label": i % 2} for i in range(40)]
    rows = rows_of(changes, exclude={column: ["x"]})
    assert (rows.stays == np.asarray([row[column] != "x" for row in changes])).all()
    assert rows.dropped == {"excluded": 20}
    with pytest.raises(CorpusError, match=f"exclude.{column}: no {column} 'z'"):
        rows_of(changes, exclude={column: ["z"]})


def test_held_out_generator_is_tested_against_humans():
    changes = [
        {"group": f"g{i // 3}", "label": int(i % 3 > 0), "generator": ("", "old", "new")[i % 3]} for i in range(120)
    ]
    rows = rows_of(changes, holdout=HoldoutConfig(column="generator", values=["new"]))
    split_rows(rows, near(rows), 0)
    names, is_test = rows.index["generator"].astype(str).to_numpy(), rows.split == SPLITS.index("test")
    assert set(names[rows.stays & is_test]) == {"", "new"}
    assert set(names[rows.stays & ~is_test]) == {"", "old"}
    assert set(rows.dropped) == {"held_out"}


def test_held_out_training_row_is_dropped():
    changes = [{"split": "train", "domain": "x"}, {"split": "train"}]
    holdout = HoldoutConfig(column="domain", values=["x"])
    rows = rows_of(changes, sources=fixed(train=["train"]), holdout=holdout)
    split_rows(rows, near(rows), 0)
    assert rows.reason.tolist() == ["held_out", ""]


def assign(groups, strata=None, masks=None, seed=0):
    groups = np.asarray(groups, np.int64)
    strata = np.zeros_like(groups) if strata is None else np.asarray(strata, np.int64)
    masks = np.full_like(groups, ANY) if masks is None else np.asarray(masks, np.int64)
    names = [f"g{i}" for i in range(int(groups.max()) + 1)]
    return assign_splits(groups, names, strata, masks, FRACTIONS, seed)


def sizes(splits):
    return np.bincount(splits, minlength=4).tolist()


@pytest.mark.parametrize("pairs", [20, 293, 1000])
def test_splits_have_their_fractions(pairs):
    target = [2 * pairs * fraction for fraction in FRACTIONS.values()]
    assert np.abs(np.subtract(sizes(assign(np.repeat(np.arange(pairs), 2))), target)).max() <= 4


def test_strata_have_their_fractions():
    strata = np.random.default_rng(0).choice(4, 2000, p=[0.7, 0.2, 0.08, 0.02])
    splits = assign(np.arange(2000), strata)
    for stratum in range(4):
        total = (strata == stratum).sum()
        fractions = np.bincount(splits[strata == stratum], minlength=4) / total
        assert np.abs(fractions - list(FRACTIONS.values())).max() <= 2 / total


def test_large_group_goes_where_it_fits():
    splits = assign([0] * 500 + list(range(1, 501)))
    assert splits[0] == SPLITS.index("train")
    assert np.abs(np.subtract(sizes(splits), [600, 100, 150, 150])).max() <= 2


def test_assignment_depends_on_the_seed_and_not_on_row_order():
    groups = np.asarray([random.Random(1).randrange(60) for _ in range(300)])
    order = np.random.default_rng(0).permutation(300)
    assert (assign(groups[order], groups[order] % 3) == assign(groups, groups % 3)[order]).all()
    groups = np.repeat(np.arange(50), 2)
    assert (assign(groups, seed=0) != assign(groups, seed=1)).any()
    assert len({shuffle_key(seed, name) for seed in (0, 1) for name in ("a", "b", "\ud800")}) == 6


def test_masks_are_respected():
    groups = np.arange(400)
    masks = np.select([groups < 100, groups < 200, groups < 300], [TEST, EVALUATION, TRAIN_ONLY], ANY)
    splits = assign(groups, masks=masks)
    assert sizes(splits[:100]) == [0, 0, 0, 100]
    assert sizes(splits[100:200]) == [0, 40, 60, 0]  # 0.1 to 0.15
    assert sizes(splits[200:300]) == [100, 0, 0, 0]
    assert sizes(splits[300:]) == [60, 10, 15, 15]
    assert assign([0, 0, 1], masks=[TRAIN_ONLY, TEST, ANY])[:2].tolist() == [3, 3]


def joined(count, pairs, masks=None):
    masks = np.full(count, ANY) if masks is None else np.asarray(masks)
    return join_groups(np.arange(count), masks, clusters_of(count, pairs)).tolist()


def test_groups_of_near_duplicates_are_joined():
    codes = joined(400, [(0, 1), (1, 2), (7, 9)])
    assert (codes[:3], codes[7], codes[9], len(set(codes))) == ([0, 0, 0], 7, 7, 397)
    chain = np.zeros(1000, np.int64)
    codes = join_groups(np.arange(1000), np.full(1000, ANY), chain)
    assert np.unique(codes, return_counts=True)[1].max() <= MAX_JOINED_FRACTION * 1000


def test_groups_without_a_common_split_are_not_joined():
    assert joined(400, [(0, 1), (0, 2)], [ANY, TRAIN_ONLY, TEST, *[ANY] * 397])[:3] == [0, 0, 2]


def balanced(labels, num_words=None, domains=None, weight=1.0, splits=0):
    """Weights of rows after balancing."""
    names, lengths = domains or ["news"] * len(labels), num_words or [100] * len(labels)
    cells = zip(labels, lengths, names, strict=True)
    rows = rows_of([{"label": y, "num_words": n, "domain": name, "weight": weight} for y, n, name in cells])
    rows.split[:] = splits
    balance_classes(rows)
    return rows.weight


def test_classes_of_a_cell_weigh_the_same():
    weights = balanced([0] * 7 + [1] * 3 + [0] * 4, None, ["news"] * 10 + ["law"] * 4, weight=2.0)
    assert np.isclose(weights[:7].sum(), weights[7:10].sum())
    assert np.isclose(weights.mean(), 2)
    assert len(set(weights[10:].tolist())) == 1  # nothing to balance with


def test_balancing_weights_are_bounded():
    weights = balanced([0] * 1000 + [1])
    assert weights.max() / weights.min() <= MAX_WEIGHT / MIN_WEIGHT * (1 + 1e-6)


def test_lengths_are_balanced_separately():
    weights = balanced([0, 1, 0, 0, 1], [100, 105, 300, 310, 305])
    assert np.isclose(weights[0], weights[1])
    assert np.isclose(weights[2] + weights[3], weights[4])


def test_only_the_training_split_is_balanced():
    weights = balanced([0, 0, 1] * 2, splits=[0, 0, 0, 3, 3, 3])
    assert weights[0] < 1.0 < weights[2]
    assert weights[3:].tolist() == [1.0] * 3
