"""The application of a RayService: what it serves, and what it rejects."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve

from detect_ai.core.errors import ConfigError, RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app import kubernetes
from serve_app.auth.api_keys import ENVIRONMENT, KeyStore, create_key
from serve_app.desired_state import DesiredState, State


@pytest.fixture
def version(storage: Storage, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A published version, which is not the champion, and an API key."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(kubernetes, "runtime_env", dict)  # asks Ray
    KeyStore(storage).put(create_key("one")[1])
    return Registry(storage).add(tiny_bundle)


def application(storage: Storage, *overrides: str) -> serve.Application:
    return kubernetes.app({"overrides": ["serve=cluster", f"storage.root={storage.root}", *overrides]})


def state(app: serve.Application) -> State:
    found: State = app._bound_deployment.init_args[0]
    return found


def test_the_named_version_is_served_with_the_settings(storage: Storage, version: str) -> None:
    app = application(storage, f"serve.version={version}", "serve.max_replicas=3", "serve.max_texts=7")
    assert state(app).version == version
    assert state(app).sections["serve"].max_texts == 7
    assert state(app).keys == ""
    assert app._bound_deployment.name == "Detector"
    assert app._bound_deployment._deployment_config.autoscaling_config.max_replicas == 3
    assert app._bound_deployment.init_args[1] == storage.root


def test_the_champion_is_served_by_default(storage: Storage, version: str) -> None:
    with pytest.raises(RegistryError):
        application(storage)
    Registry(storage).set_champion(version)
    assert state(application(storage)).version == version


def test_nothing_is_recorded(storage: Storage, version: str) -> None:
    application(storage, f"serve.version={version}")
    assert DesiredState(storage).read() == (0, None)


def test_a_configuration_for_loopback_is_refused(storage: Storage, version: str) -> None:
    with pytest.raises(ConfigError, match="serve=cluster"):
        application(storage, f"serve.version={version}", "serve.host=127.0.0.1")


def test_a_service_without_keys_is_refused(storage: Storage, version: str) -> None:
    storage.delete("auth")
    with pytest.raises(ConfigError, match="no API keys"):
        application(storage, f"serve.version={version}")


@pytest.mark.parametrize("args", [{}, {"overrides": "serve=cluster"}, {"overrides": [], "version": "1"}])
def test_other_arguments_are_refused(args: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="overrides"):
        kubernetes.app(args)
