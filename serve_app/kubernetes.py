"""The application that a RayService imports: `import_path: serve_app.kubernetes:app` in ops/kubernetes/serving.yaml.

The manifest replaces the recorded desired state: KubeRay redeploys it whenever it changes or a cluster is replaced, and
nothing is written under the storage root.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve

from detect_ai.core.compose import load_config
from detect_ai.core.errors import ConfigError, first_problem
from detect_ai.core.storage import Storage
from serve_app.auth.api_keys import checked_keys
from serve_app.deploy import checked_version, require_known_domains, runtime_env
from serve_app.deployment import build
from serve_app.desired_state import State


class Arguments(BaseModel):
    """`args` of the application in `serveConfigV2`."""

    model_config = ConfigDict(extra="forbid")

    overrides: list[str]  # of the configuration: serve=cluster, serve.version=… (empty: the champion), monitoring.…


def app(args: dict[str, Any]) -> serve.Application:
    """The application of a published version.

    Raises ConfigError (arguments, no API keys, a configuration for loopback), RegistryError (no such version, no
    champion) or BundleError (damaged); KubeRay shows them in the status of the RayService.
    """
    try:
        overrides = Arguments.model_validate(args).overrides
    except ValidationError as error:
        raise ConfigError(f"args: {first_problem(error)}; expected overrides: [serve=cluster, key=value, …]") from error
    config = load_config(overrides)
    if config.serve.is_local:  # would need no API keys, but the proxies listen on all interfaces of their pods
        raise ConfigError(f"serve.host={config.serve.host}: expected serve=cluster among the overrides")
    storage = Storage(config.storage.root)
    version, keys = checked_version(config.serve, storage), checked_keys(config.serve, storage)
    require_known_domains(config.serve, storage)
    return build(State.of(config, version, keys, status="live"), storage.root, runtime_env())
