import numpy as np
import pytest

from detect_ai.evaluation import raid_format


def texts(*rows):
    """(label, probability, domain, generator, attack) as columns."""
    labels, probabilities, domains, generators, attacks = zip(*rows, strict=True)
    return (
        np.asarray(labels, np.int64),
        np.asarray(probabilities),
        np.asarray(domains, str),
        np.asarray(generators, str),
        np.asarray(attacks, str),
    )


def humans(count, domain="news", scale=1.0):
    return [(0, scale * i / count, domain, "", "none") for i in range(count)]


def accuracy(found, **where):
    wanted = {"domain": "all", "model": "all", "attack": "all"} | where
    (row,) = [row for row in found["scores"] if all(row[name] == value for name, value in wanted.items())]
    return row["tp"], row["fn"], row["accuracy"]


@pytest.mark.parametrize(("count", "allowed"), [(19, 0), (20, 1), (40, 2)])
def test_threshold_allows_five_percent_of_human_texts(count, allowed):
    found = raid_format.results(*texts(*humans(count), (1, 0.99, "news", "gpt", "none")))
    assert found["fpr"] == {"news": allowed / count}


def test_equal_scores_are_predicted_together():
    rows = [(0, 0.5, "news", "", "none")] * 20
    found = raid_format.results(*texts(*rows, (1, 0.5, "news", "gpt", "none"), (1, 0.6, "news", "gpt", "none")))
    assert found["fpr"] == {"news": 0.0}
    assert accuracy(found) == (1, 1, 0.5)


def test_each_domain_has_its_own_threshold():
    rows = [*humans(20), *humans(20, "poetry", scale=0.1)]
    rows += [(1, 0.5, domain, "gpt", "none") for domain in ("news", "poetry")]
    found = raid_format.results(*texts(*rows))
    assert found["thresholds"]["poetry"] < 0.1 < found["thresholds"]["news"]
    assert accuracy(found, domain="news") == (0, 1, 0.0)
    assert accuracy(found, domain="poetry") == (1, 0, 1.0)
    assert accuracy(found) == (1, 1, 0.5)


def test_attacked_human_texts_set_no_threshold():
    attacked = [(0, 1.0, "news", "", "homoglyph")] * 20
    ai = (1, 0.97, "news", "gpt", "none")
    assert accuracy(raid_format.results(*texts(*humans(20), *attacked, ai))) == (1, 0, 1.0)


def test_rates_are_by_generator_and_attack():
    rows = [
        *humans(20),
        (1, 0.99, "news", "gpt", "none"),
        (1, 0.10, "news", "gpt", "homoglyph"),
        (1, 0.10, "news", "llama", "none"),
    ]
    found = raid_format.results(*texts(*rows))
    assert accuracy(found, model="gpt") == (1, 1, 0.5)
    assert accuracy(found, model="gpt", attack="homoglyph") == (0, 1, 0.0)
    assert accuracy(found, attack="none") == (1, 1, 0.5)
    assert not [row for row in found["scores"] if (row["model"], row["attack"]) == ("llama", "homoglyph")]
    assert all(row["decoding"] == row["repetition_penalty"] == "all" for row in found["scores"])


@pytest.mark.parametrize("rows", [humans(3), [(1, 0.9, "news", "gpt", "none")]], ids=["human", "ai"])
def test_one_class_has_no_rates(rows):
    assert raid_format.results(*texts(*rows))["scores"] == []
