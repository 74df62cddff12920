"""Deployments that overlap or fail: the live version is the one whose command succeeded."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from detect_ai.calibration.domains import calibrate_population
from detect_ai.core import audit_log
from detect_ai.core.config import Config, ServeConfig, TrainConfig
from detect_ai.core.errors import ConfigError, ConflictError, InputError, RegistryError, ResourceError
from detect_ai.core.pointer import Pointer
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import read_spec, write_spec
from detect_ai.detector.registry import Registry
from detect_ai.release.export import make
from serve_app import deploy as module
from serve_app import restore as restore_module
from serve_app.auth.api_keys import ENVIRONMENT, KeyStore, create_key
from serve_app.deploy import (
    abstain,
    checked_keys,
    checked_version,
    deploy,
    deploy_to_cluster,
    rollback_service,
    runtime_env,
)
from serve_app.desired_state import KEY, DesiredState, State
from serve_app.restore import restore
from tests.fixtures import tiny_models


class FakeServe:
    """Serve's contract: it follows the last target; its replicas answer once they are released, unless broken."""

    def __init__(self) -> None:
        self.targets: list[State] = []
        self.stops: list[str] = []
        self.live: str | None = None
        self.released: set[str] = set()
        self.broken: set[str] = set()
        self.lock = threading.Lock()

    def apply(self, state: State, root: str) -> None:
        with self.lock:
            self.targets.append(state)

    def is_answering(self, config: ServeConfig, version: str) -> bool:
        with self.lock:
            target = self.targets[-1].version
            if target in self.broken:
                raise ResourceError(f"version {version} did not start: OSError")
            if target in self.released:
                self.live = target
            return self.live == version

    def is_deployed(self) -> bool:
        return self.live is not None or bool(self.targets)

    def stop(self, app: bool = False, serve_too: bool = False) -> None:
        self.stops += ["app"] * app + ["serve"] * serve_too
        self.live, self.targets = None, []

    def settle(self) -> str | None:
        """The live version when Serve has caught up with its target."""
        self.released.add(self.targets[-1].version)
        self.is_answering(ServeConfig(), "")
        return self.live


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    serve = FakeServe()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    values: dict[str, Any] = {
        "connect": lambda _: None,
        "require_resources": lambda *_: None,
        "start_serve": lambda _: False,
        "is_deployed": serve.is_deployed,
        "served_version": lambda _: serve.live,
        "checked_version": lambda config, _: config.version,
        "stop": serve.stop,
        "stop_limiters": lambda keep: None,
        "apply": serve.apply,
        "is_answering": serve.is_answering,
        "POLL_S": 0.005,
    }
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    for name in ("connect", "is_deployed", "served_version", "start_serve"):
        monkeypatch.setattr(restore_module, name, values[name])
    return serve


def config(version: str, **settings: Any) -> Config:
    return Config(serve=ServeConfig().model_copy(update={"version": version, **settings}))


def started(fake: FakeServe, run: Callable[[], Any], pool: ThreadPoolExecutor) -> Future[Any]:
    """A command that has deployed its version on Serve."""
    targets, deadline = len(fake.targets), time.monotonic() + 20
    future = pool.submit(run)
    while len(fake.targets) == targets and not future.done():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return future


def test_a_failed_deployment_returns_to_the_last_one(fake: FakeServe, storage: Storage) -> None:
    fake.released, fake.broken = {"v1"}, {"v2"}
    deploy(config("v1", max_texts=7), storage)
    with pytest.raises(ResourceError, match="version v2 did not start"):
        deploy(config("v2"), storage)
    assert (fake.settle(), fake.targets[-1].sections["serve"].max_texts) == ("v1", 7)
    assert DesiredState(storage).read()[1] == fake.targets[-1]


def test_deployments_are_audited(fake: FakeServe, storage: Storage) -> None:
    fake.released, fake.broken = {"v1"}, {"v2"}
    deploy(config("v1"), storage)
    with pytest.raises(ResourceError):
        deploy(config("v2"), storage)
    events = [{k: v for k, v in event.items() if k not in ("by", "when")} for event in audit_log.events(storage)]
    assert events == [
        {"action": "deploy", "version": "v1", "before": None},
        {"action": "deploy-failed", "version": "v2", "before": "v1", "reason": "ResourceError"},
    ]


@pytest.mark.parametrize(("started", "stops"), [(False, ["app"]), (True, ["app", "serve"])])
def test_a_failed_first_deployment_leaves_nothing(
    started: bool, stops: list[str], fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "start_serve", lambda _: started)
    fake.broken = {"v1"}
    with pytest.raises(ResourceError):
        deploy(config("v1"), storage)
    assert (fake.stops, fake.is_deployed()) == (stops, False)


def test_a_failed_first_deployment_leaves_a_newer_one(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.broken, fake.released = {"v1"}, {"v2"}

    def overtaken(**what: bool) -> None:
        monkeypatch.setattr(module, "stop", fake.stop)
        deploy(config("v2"), storage)
        fake.stop(**what)

    monkeypatch.setattr(module, "stop", overtaken)
    monkeypatch.setattr(module, "start_serve", lambda _: True)
    with pytest.raises(ResourceError):
        deploy(config("v1"), storage)
    assert (fake.stops, fake.settle()) == (["app"], "v2")


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "rollback"])))
@pytest.mark.parametrize("finish", ["first", "last"])
def test_the_live_version_is_that_of_the_successful_command(
    order: tuple[str, ...], finish: str, fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deployments and a rollback overlap, in all orders; replicas start in this order or in reverse."""
    monkeypatch.setattr(module, "rollback", lambda *_: {"champion": "v0", "before": "vX"})
    fake.released = {"v1"}
    deploy(config("v1", max_texts=7), storage)
    commands: dict[str, Callable[[], Any]] = {
        "a": lambda: deploy(config("va"), storage),
        "b": lambda: deploy(config("vb"), storage),
        "rollback": lambda: rollback_service(config(""), storage)["deploy"],
    }
    versions = {"a": "va", "b": "vb", "rollback": "v0"}
    with ThreadPoolExecutor(3) as pool:
        futures = {name: started(fake, commands[name], pool) for name in order}
        for name in order if finish == "first" else reversed(order):
            fake.released.add(versions[name])
            time.sleep(0.02)
        errors = {name: future.exception(20) for name, future in futures.items()}
    succeeded = [name for name, error in errors.items() if error is None]
    assert succeeded == [order[-1]]
    winner = versions[order[-1]]
    assert (fake.settle(), fake.targets[-1].version) == (winner, winner)
    for error in filter(None, errors.values()):
        assert isinstance(error, ConflictError)
        assert re.fullmatch(r"version v\S+ was deployed meanwhile, by .+", str(error))


def test_a_late_hand_over_does_not_displace_a_newer_deployment(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.released = {"v1", "v2", "v3"}
    deploy(config("v1"), storage)

    def overtaken(state: State, root: str) -> None:
        if state.version == "v2":
            monkeypatch.setattr(module, "apply", fake.apply)
            deploy(config("v3"), storage)
        fake.apply(state, root)

    monkeypatch.setattr(module, "apply", overtaken)
    with pytest.raises(ConflictError, match="version v3"):
        deploy(config("v2"), storage)
    assert fake.settle() == "v3"


def test_rollback_keeps_the_settings_of_the_service(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.released = {"v1", "v2"}
    key = json.dumps({"keys": [create_key("one")[1].model_dump(mode="json", exclude_none=True)]})
    monkeypatch.setenv(ENVIRONMENT, key)
    settings = {"host": "0.0.0.0", "port": 8080, "max_texts": 7, "max_replicas": 3}
    deploy(config("v2", **settings), storage)
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setattr(module, "rollback", lambda *_: {"champion": "v1", "before": "vX"})
    result = rollback_service(config(""), storage)
    state = fake.targets[-1]
    assert (result["champion"], result["deploy"]["model_version"]) == ("v1", "v1")
    assert (state.version, state.keys) == ("v1", key)
    assert state.sections["serve"] == config("v1", **settings).serve


def test_abstaining_changes_one_setting_and_no_replica(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[list[str]] = []
    cpus: list[float] = []
    monkeypatch.setattr(module, "require_resources", lambda _, needed, gpus: cpus.append(needed))
    monkeypatch.setattr(module, "require_known_domains", lambda settings, _: known.append(settings.abstain_domains))
    monkeypatch.setattr(module, "rollback", lambda *_: {"champion": "v0", "before": "vX"})
    fake.released = {"v0", "v1"}
    deploy(config("v1", max_texts=7), storage)
    assert abstain(config("", abstain_domains=["news"], max_texts=9), storage)["abstain_domains"] == ["news"]
    first, second = fake.targets
    assert second.sections["serve"] == config("v1", max_texts=7, abstain_domains=["news"]).serve
    assert (second.version, second.replicas) == ("v1", first.replicas)
    assert DesiredState(storage).last_live() == second.model_copy(update={"status": "live"})
    rollback_service(config(""), storage)
    assert fake.targets[-1].sections["serve"].abstain_domains == ["news"]
    assert fake.targets[-1].replicas != first.replicas != ""
    abstain(config(""), storage)
    assert (fake.targets[-1].version, fake.targets[-1].sections["serve"].abstain_domains) == ("v0", [])
    assert known == [["news"], []]
    assert cpus == [1, 0, 1, 0]  # CPUs of replicas that start


def test_a_deployment_does_not_end_a_pause(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "require_known_domains", lambda *_: None)
    fake.released = {"v1", "v2"}
    own = config("v1", abstain_domains=["news"])
    own.monitoring.log = True
    deploy_to_cluster(own, storage)
    deploy_to_cluster(config("v2"), storage)
    assert (fake.targets[-1].version, fake.targets[-1].sections["serve"].abstain_domains) == ("v2", ["news"])
    assert "serve.abstain_domains" in caplog.text
    assert "monitoring.log=false" in caplog.text
    abstain(config(""), storage)
    caplog.clear()
    deploy_to_cluster(config("v1"), storage)
    assert fake.targets[-1].sections["serve"].abstain_domains == []
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def lose_head(fake: FakeServe) -> None:
    """Serve and all replicas are gone; the storage stays."""
    fake.live, fake.targets = None, []


def test_the_last_live_state_is_restored_unchanged(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.released = {"v1"}
    key = json.dumps({"keys": [create_key("one")[1].model_dump(mode="json", exclude_none=True)]})
    deploy(config("v1", max_texts=7, abstain_domains=["news"]), storage, keys=key)
    before = DesiredState(storage).read()
    lose_head(fake)
    monkeypatch.setattr(module, "require_resources", None)  # nodes may still have to be added
    result = restore(config("other"), storage)
    assert (result["model_version"], result["restored"]) == ("v1", True)
    assert DesiredState(storage).read() == before
    assert fake.targets == [before[1]]
    assert [event["action"] for event in audit_log.events(storage)] == ["deploy", "restore"]


def test_a_service_that_answers_is_not_restored(fake: FakeServe, storage: Storage) -> None:
    fake.released = {"v1"}
    deploy(config("v1"), storage)
    before = DesiredState(storage).read()
    assert [restore(config(""), storage)["restored"] for _ in range(2)] == [False, False]
    assert DesiredState(storage).read() == before
    assert {state.replicas for state in fake.targets} == {before[1].replicas if before[1] else None}
    assert [event["action"] for event in audit_log.events(storage)] == ["deploy"]


def test_an_interrupted_deployment_is_not_continued(fake: FakeServe, storage: Storage) -> None:
    fake.released = {"v1", "v2"}
    deploy(config("v1"), storage)
    number, live = DesiredState(storage).read()
    assert live is not None
    DesiredState(storage).advance(live.model_copy(update={"status": "starting", "version": "v2"}), after=number)
    lose_head(fake)
    assert restore(config(""), storage)["model_version"] == "v1"
    assert (fake.settle(), DesiredState(storage).read()[1]) == ("v1", live)


def test_a_deployment_during_the_restore_wins(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.released = {"v1", "v2"}
    deploy(config("v1"), storage)
    lose_head(fake)

    def overtaken(state: State, root: str) -> None:
        monkeypatch.setattr(module, "apply", fake.apply)
        deploy(config("v2"), storage)
        fake.apply(state, root)

    monkeypatch.setattr(module, "apply", overtaken)
    assert restore(config(""), storage)["restored"] is False
    assert fake.settle() == "v2"


def test_without_a_deployment_nothing_is_restored(fake: FakeServe, storage: Storage) -> None:
    assert restore(config("v1"), storage) == {"model_version": None, "restored": False}
    assert fake.targets == []


def test_nodes_get_time_to_start(fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEPLOY_TIMEOUT_S", -1)
    with pytest.raises(ResourceError):
        deploy(config("v1"), storage)
    monkeypatch.setattr(module, "can_grow", lambda: True)
    with ThreadPoolExecutor(1) as pool:
        future = started(fake, lambda: deploy(config("v2"), storage), pool)
        fake.released = {"v2"}
        assert future.result(20)["model_version"] == "v2"


def test_abstaining_does_not_revert_a_newer_deployment(
    fake: FakeServe, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.released = {"v1", "v2"}
    deploy(config("v1"), storage)
    monkeypatch.setattr(module, "require_known_domains", lambda *_: deploy(config("v2"), storage))
    with pytest.raises(ConflictError, match="version v2 was deployed meanwhile"):
        abstain(config("", abstain_domains=["news"]), storage)
    assert fake.settle() == "v2"


def test_abstaining_needs_a_service(fake: FakeServe, storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"jobs/deploy\.py"):
        abstain(config("", abstain_domains=["*"]), storage)
    assert fake.targets == []


@pytest.mark.parametrize("command", [deploy_to_cluster, abstain])
def test_unknown_domains_are_refused_with_the_known_ones(
    command: Callable[[Config, Storage], Any],
    fake: FakeServe,
    storage: Storage,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "letters"))
    spec = read_spec(folder)
    human = spec.calibration.domains[0].human
    write_spec(folder, replace(spec, calibration=calibrate_population(spec.calibration, human, "letters", [0.05])))
    version = Registry(storage).add(folder)
    fake.released = {version}
    deploy(config(version), storage)
    with pytest.raises(ConfigError, match=r"abstain_domains=news: expected one of \*, letters"):
        command(config(version, abstain_domains=["letters", "news"]), storage)
    assert len(fake.targets) == 1
    command(config(version, abstain_domains=["letters", "*"]), storage)
    assert fake.targets[-1].sections["serve"].abstain_domains == ["letters", "*"]


def test_rollback_without_stored_settings_changes_nothing(fake: FakeServe, storage: Storage) -> None:
    fake.live = "v1"  # deployed by a release that stored none
    with pytest.raises(ConfigError, match=r"run jobs/deploy\.py once"):
        rollback_service(config(""), storage)
    assert fake.targets == []


def test_rollback_to_a_damaged_bundle_changes_nothing(
    fake: FakeServe, storage: Storage, tiny_bundle: Path, encoder: Path, tmp_path: Path
) -> None:
    registry = Registry(storage)
    tiny_models.make_bundle(tmp_path / "next", encoder, seed=1)
    first, second = registry.add(tiny_bundle), registry.add(tmp_path / "next")
    for version in (first, second):
        registry.set_champion(version)
    weights = tmp_path / f"registry/versions/{first}/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    fake.released = {second}
    deploy(config(second), storage)
    with pytest.raises(RegistryError, match=first):
        rollback_service(config(""), storage)
    assert (registry.champion(), [state.version for state in fake.targets]) == (second, [second])


def test_malformed_state_is_refused_without_its_keys(storage: Storage) -> None:
    Pointer(storage, KEY).advance({"version": "a", "keys": "secret"}, after=0)
    desired = DesiredState(storage)
    for read in (desired.read, desired.last_live, lambda: desired.require(0)):
        with pytest.raises(InputError, match=r"serve/desired/000001\.json: status") as error:
            read()
        assert "secret" not in str(error.value)


def test_settings_of_another_release_are_refused() -> None:
    state = State(status="live", version="v1", settings={"no_such_key": 1}, keys=None)
    with pytest.raises(ConfigError, match="of another release"):
        _ = state.sections


def test_other_machines_need_keys(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    public = ServeConfig().model_copy(update={"host": "0.0.0.0"})
    assert checked_keys(ServeConfig(), storage) is None
    with pytest.raises(ConfigError, match=r"serve\.host=0\.0\.0\.0"):
        checked_keys(public, storage)
    KeyStore(storage).put(create_key("one")[1])
    assert checked_keys(public, storage) == ""


def test_pipeline_checks_keys_before_the_training(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    job = importlib.import_module("jobs.pipeline")
    monkeypatch.setattr(job, "connect", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"serve\.host=0\.0\.0\.0"):
        job.pipeline(config("", host="0.0.0.0"), storage)
    assert storage.list("runs") == []


@pytest.mark.parametrize(("deploys", "last"), [(True, "deploy"), (False, "publish")])
def test_a_pipeline_deploys_unless_told_otherwise(
    deploys: bool, last: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(module, "require_place", lambda *_: None)
    job, _ = fake_pipeline(monkeypatch)
    assert list(job.pipeline(config("", deploy=deploys), storage))[-1] == last


@pytest.mark.parametrize(
    ("section", "has_dashboard"),
    [({"from_sweep": True}, True), ({"num_workers": 2}, True), ({"from_sweep": False}, False)],
)
def test_a_pipeline_starts_ray_as_its_last_stage_needs_it(
    section: dict[str, Any], has_dashboard: bool, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that needs the dashboard would otherwise restart Ray under the pipeline's lock."""
    job, calls = fake_pipeline(monkeypatch)
    job.pipeline(Config(train=TrainConfig(**section)), storage)
    assert calls == [has_dashboard]


def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[bool]]:
    """The pipeline without work: it returns its stages. Also whether it asked for the dashboard, by call."""
    job, calls = importlib.import_module("jobs.pipeline"), list[bool]()
    monkeypatch.setattr(job, "connect", lambda _, dashboard: calls.append(dashboard))
    monkeypatch.setattr(job, "run_stage", lambda *_: {"corpus": "texts"})
    monkeypatch.setattr(job, "require_enough_texts", lambda *_: None)
    monkeypatch.setattr(job.Corpus, "of_run", lambda *_: None)
    monkeypatch.setattr(job, "run_stages", lambda _, __, ___, stages, ____: stages)
    return job, calls


@pytest.mark.parametrize("role", ["version", "canary"])
def test_a_version_for_cpus_is_refused_on_gpus(role: str, tiny_bundle: Path, storage: Storage, tmp_path: Path) -> None:
    registry = Registry(storage)
    parent = registry.add(tiny_bundle)
    make("torch-int8", tiny_bundle, tmp_path / "child")
    versions = {"version": parent, role: registry.add(tmp_path / "child")}
    assert checked_version(ServeConfig(**versions), storage) == versions["version"]
    with pytest.raises(ConfigError, match=rf"for CPUs only: set serve\.use_gpu=false, or use its parent, {parent}"):
        checked_version(ServeConfig(use_gpu=True, **versions), storage)


def test_replicas_get_no_other_secret_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"AWS_REGION": "eu", "DETECT_AI_FEEDBACK_PASSWORD": "s"}
    given = {"WANDB_API_KEY": "s", "HF_TOKEN": "s", "DETECT_AI_API_KEYS": "{}", **kept}
    context = SimpleNamespace(runtime_env={"working_dir": "gcs://package.zip", "env_vars": given})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    env = runtime_env()
    assert env["working_dir"] == "gcs://package.zip"
    assert {name: env["env_vars"][name] for name in given} == dict.fromkeys(given, "") | kept
