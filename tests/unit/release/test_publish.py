"""Publishing through the gate, with compare-and-swap, and rolling back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detect_ai.core import audit_log
from detect_ai.core.config import Config
from detect_ai.core.errors import BundleError, ConfigError, ConflictError, GateError, RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from detect_ai.release import publish as publish_module
from detect_ai.release.promotion_gate import TEST
from detect_ai.release.publish import publish, rollback

METRICS = {
    "auroc": 0.9,
    "default_target": 0.05,
    "fpr_at_target": 0.04,
    "cleared_ai_fraction": 0.2,
    "abstained_fraction": 0.1,
    "n_human": 45,
    "n_ai": 45,
    "test_fingerprint": "test",
}


@pytest.fixture(autouse=True)
def _short_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model card needs all metrics of an evaluation; it has tests of its own."""
    monkeypatch.setattr(publish_module, "model_card", lambda info, metrics, others: f"{metrics['auroc']} {[*others]}")


@pytest.fixture
def storage(tmp_path: Path, tiny_bundle: Path) -> Storage:
    """A run whose candidate is the tiny bundle, evaluated."""
    storage = Storage(str(tmp_path / "store"))
    add_candidate(storage, tiny_bundle)
    return storage


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.tracking.mode = "disabled"
    return config


def add_candidate(storage: Storage, folder: Path, run: str = "default") -> None:
    storage.upload(folder, f"runs/{run}/candidate-1")
    candidate = {"bundle": f"runs/{run}/candidate-1", "version": bundle.read_spec(folder).version}
    storage.write_json(f"runs/{run}/calibrate.json", {"result": candidate})
    storage.write_json(
        f"runs/{run}/evaluate.json", {"result": {**METRICS, **candidate, "data": "/home/ada/store/test"}}
    )


def change(storage: Storage, file: str = "evaluate", run: str = "default", **values: Any) -> None:
    """Change metrics of an evaluation, or add an evaluation of other data."""
    result = {**storage.read_json(f"runs/{run}/evaluate.json")["result"], **values}
    storage.write_json(f"runs/{run}/{file}.json", {"result": result, "config": Config().model_dump()})


def test_a_candidate_that_passes_becomes_champion(config: Config, storage: Storage, tiny_bundle: Path) -> None:
    change(storage, "evaluate-others", test_fingerprint="others", auroc=0.85)
    change(storage, "evaluate-stale", test_fingerprint="stale", version="of another candidate")
    result = publish(config, storage)
    registry = Registry(storage)
    assert registry.champion() == result["champion"] != bundle.read_spec(tiny_bundle).version
    assert (result["before"], result["warnings"]) == (None, [])
    with registry.folder(result["champion"]) as folder:
        bundle.read_spec(folder)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert (folder / "MODEL_CARD.md").read_text() == "0.9 ['others']"
    assert metrics == {TEST: METRICS, "others": {**METRICS, "test_fingerprint": "others", "auroc": 0.85}}
    candidate = Path(storage.path("runs/default/candidate-1"))
    assert {p.name: p.read_bytes() for p in candidate.iterdir()} == {
        p.name: p.read_bytes() for p in tiny_bundle.iterdir()
    }


def test_publishing_again_changes_nothing(config: Config, storage: Storage) -> None:
    first = publish(config, storage)
    assert publish(config, storage) == {**first, "before": first["champion"]}
    assert len(Registry(storage).history()) == 1


@pytest.mark.parametrize(
    "worse", [{"auroc": 0.7}, {"fpr_at_target": 0.09}, {"cleared_ai_fraction": 0.3}, {"abstained_fraction": 0.9}]
)
@pytest.mark.parametrize("file", ["evaluate", "evaluate-others"])
def test_a_worse_candidate_is_refused(config: Config, storage: Storage, worse: dict[str, float], file: str) -> None:
    change(storage, "evaluate-others", test_fingerprint="others")
    champion = publish(config, storage)["champion"]
    texts = {} if file == "evaluate" else {"test_fingerprint": "others"}
    change(storage, file, **worse, **texts)
    with pytest.raises(GateError) as error:
        publish(config, storage)
    assert champion in str(error.value)
    registry = Registry(storage)
    assert (registry.champion(), registry.versions()) == (champion, [champion])


def test_publications_refusals_and_rollbacks_are_audited(config: Config, storage: Storage) -> None:
    change(storage, "evaluate-others", test_fingerprint="others", auroc=0.85)
    first = publish(config, storage)["champion"]
    change(storage, auroc=0.95)
    second = publish(config, storage)["champion"]
    change(storage, auroc=0.5)
    with pytest.raises(GateError):
        publish(config, storage)
    rollback(config, storage)
    events = list(audit_log.events(storage))
    candidate = storage.read_json("runs/default/calibrate.json")["result"]["version"]
    assert [(event["action"], event["version"], event["before"]) for event in events] == [
        ("publish", first, None),
        ("publish", second, first),
        ("publish-refused", candidate, second),
        ("rollback", first, second),
    ]
    numbers = {name: value for name, value in METRICS.items() if name != "test_fingerprint"}
    assert events[0]["metrics"] == {TEST: numbers, "others": {**numbers, "auroc": 0.85}}
    assert events[2]["metrics"][TEST]["auroc"] == 0.5
    assert any("min_auroc" in reason or "0.5" in reason for reason in events[2]["reasons"])
    assert "/home/ada" not in str(events)


def test_a_failed_audit_does_not_undo_a_publication(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = storage.create

    def full(key: str, data: bytes) -> bool:
        if key.startswith("audit/"):
            raise OSError("No space left on device")
        return create(key, data)

    monkeypatch.setattr(storage, "create", full)
    version = publish(config, storage)["champion"]
    assert Registry(storage).champion() == version
    assert any(version in message and "No space left" in message for message in caplog.messages)


def test_a_comparison_that_was_not_possible_is_reported(
    config: Config, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    champion = publish(config, storage)["champion"]
    change(storage, auroc=0.85, test_fingerprint="another test split")
    result = publish(config, storage)
    assert result["before"] == champion != result["champion"]
    assert len(result["warnings"]) == 1
    assert result["warnings"][0] in caplog.messages


def test_texts_that_the_champion_lacks_are_scored_once(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read with the columns of the candidate's evaluation, not those of this command."""
    champion = publish(config, storage)["champion"]
    own = Config()
    own.score.columns = {"text": "essay"}
    change(storage, "evaluate-others", auroc=0.85, test_fingerprint="others", data="/data/others")
    record = storage.read_json("runs/default/evaluate-others.json")
    storage.write_json("runs/default/evaluate-others.json", {**record, "config": own.model_dump()})
    scored: list[Any] = []

    def evaluate_overall(data: str, place: tuple[Storage, str], scoring: Any, scratch: Any) -> dict[str, Any]:
        scored.append((data, place[1], scoring.columns))
        return {**METRICS, "test_fingerprint": "others"}

    monkeypatch.setattr(publish_module, "evaluate_overall", evaluate_overall)
    for _ in range(2):
        with pytest.raises(GateError, match="max_auroc_drop"):
            publish(config, storage)
    assert scored == [("/data/others", f"registry/versions/{champion}", {"text": "essay"})]


def recalibrated(champion: str, parent: str) -> Callable[[Storage, str], Any]:
    """`spec_of` with a champion that was recalibrated for a population."""
    spec_of = publish_module.spec_of
    spec = SimpleNamespace(calibration=SimpleNamespace(population="ours"), parent=parent)
    return lambda where, key: spec if key.endswith(champion) else spec_of(where, key)


def test_the_parent_stands_for_a_champion_of_one_population(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = publish(config, storage)["champion"]
    change(storage, auroc=0.92)
    champion = publish(config, storage)["champion"]
    change(storage, "evaluate-others", test_fingerprint="others")
    scored = []
    monkeypatch.setattr(publish_module, "spec_of", recalibrated(champion, parent))
    monkeypatch.setattr(publish_module, "evaluate_overall", lambda data, place, *_: scored.append(place[1]) or METRICS)
    publish(config, storage)
    assert scored == [f"registry/versions/{parent}"]


def test_what_the_parent_was_evaluated_on_is_not_scored(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = publish(config, storage)["champion"]
    change(storage, auroc=0.92, test_fingerprint="recalibrated-1")
    champion = publish(config, storage)["champion"]
    change(storage, auroc=0.85, test_fingerprint="test")
    monkeypatch.setattr(publish_module, "spec_of", recalibrated(champion, parent))
    with pytest.raises(GateError, match="max_auroc_drop"):
        publish(config, storage)


def test_texts_that_have_changed_are_not_compared(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(config, storage)
    change(storage, "evaluate-others", auroc=0.85, test_fingerprint="others")
    changed = {**METRICS, "test_fingerprint": "edited"}
    monkeypatch.setattr(publish_module, "evaluate_overall", lambda *_: changed)
    assert len(publish(config, storage)["warnings"]) == 1
    assert storage.list("runs/default/champion") == []


def test_a_recalibrated_candidate_is_compared_with_its_parent(config: Config, storage: Storage) -> None:
    champion = publish(config, storage)["champion"]
    parent = {"version": champion, "auroc": 0.95, "fpr_at_target": 0.0, "cleared_ai_fraction": 0.2}
    change(storage, auroc=0.92, test_fingerprint="recalibrated-1", parent=parent)
    with pytest.raises(GateError, match="max_auroc_drop") as refused:
        publish(config, storage)
    assert "max_fpr_increase" not in str(refused.value)  # its FPR is at the target by design
    change(storage, auroc=0.92, test_fingerprint="recalibrated-1", parent={**parent, "version": "another"})
    assert len(publish(config, storage)["warnings"]) == 1


def test_a_champion_that_moved_meanwhile_is_not_replaced(
    config: Config, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another publisher wins between the comparison with the champion and the move."""
    publish(config, storage)
    change(storage, auroc=0.92)
    add_version = publish_module.add_version

    def add_and_lose(*arguments: Any) -> str:
        version = add_version(*arguments)
        monkeypatch.undo()
        monkeypatch.setattr(publish_module, "model_card", lambda info, metrics, others: "another card")
        change(storage, auroc=0.95)
        winner.append(publish(config, storage)["champion"])
        return version

    winner: list[str] = []
    monkeypatch.setattr(publish_module, "add_version", add_and_lose)
    with pytest.raises(ConflictError, match="wrote it first") as error:
        publish(config, storage)
    assert winner[0] in str(error.value)
    assert Registry(storage).champion() == winner[0]


def test_without_its_own_evaluation_the_command_is_named(config: Config, storage: Storage) -> None:
    change(storage, version="other")
    with pytest.raises(ConfigError, match=r"jobs/evaluate\.py"):
        publish(config, storage)
    storage.delete("runs/default/evaluate.json")
    with pytest.raises(ConfigError, match=r"jobs/evaluate\.py"):
        publish(config, storage)


def test_an_altered_candidate_is_not_published(config: Config, storage: Storage) -> None:
    storage.write_bytes("runs/default/candidate-1/config.json", b"{}")
    with pytest.raises(BundleError):
        publish(config, storage)
    assert Registry(storage).champion() is None


def test_a_version_of_the_registry_is_published_through_the_gate(config: Config, storage: Storage) -> None:
    first = publish(config, storage)["champion"]
    change(storage, auroc=0.95)
    second = publish(config, storage)["champion"]
    by_name = config.model_copy(update={"bundle": first[:8]})
    with pytest.raises(GateError, match="max_auroc_drop"):
        publish(by_name, storage)
    allowed = by_name.model_copy(update={"gate": config.gate.model_copy(update={"max_auroc_drop": 0.06})})
    result = publish(allowed, storage)
    assert (result["champion"], result["before"], result["auroc"]) == (first, second, 0.9)
    change(storage, "evaluate-others", version=first, fpr_at_target=0.5, test_fingerprint="others")
    with pytest.raises(GateError, match="others"):
        publish(allowed, storage)


def test_unknown_and_unevaluated_versions_are_refused(config: Config, storage: Storage, tiny_bundle: Path) -> None:
    with pytest.raises(RegistryError, match="4f2a"):
        publish(config.model_copy(update={"bundle": "4f2a"}), storage)
    version = Registry(storage).add(tiny_bundle)
    with pytest.raises(RegistryError, match="metrics"):
        publish(config.model_copy(update={"bundle": version}), storage)


def test_rollback_returns_to_the_champion_before(config: Config, storage: Storage) -> None:
    first = publish(config, storage)["champion"]
    change(storage, accuracy=0.5)
    second = publish(config, storage)["champion"]
    assert rollback(config, storage) == {"champion": first, "before": second}
