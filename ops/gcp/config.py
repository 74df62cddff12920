"""Variables of the cluster on Google Cloud: python -m ops.gcp.config writes my-cluster.yaml from gcp.env.

For a cluster other than the default it writes my-cluster-NAME.yaml, so as not to overwrite a running cluster's file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from detect_ai.core.errors import ConfigError, DetectAIError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CLUSTER = "detect-ai"
# Formats that Google accepts, for variables where a mistake is likely.
PATTERNS = {
    "PROJECT": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "the id of a project, as `gcloud projects list` shows it"),
    "BUCKET": (r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", "the name of a bucket, without gs:// and folder"),
    "REGION": (r"[a-z]+-[a-z]+\d+", "a region such as europe-west4"),
    "ZONE": (r"[a-z]+-[a-z]+\d+-[a-z]", "a zone such as europe-west4-a"),
    "CLUSTER": (r"[a-z][a-z0-9-]{0,39}", "at most 40 of a-z, 0-9 and -"),
}

# Numbers of nodes: the variable, and the variable that it may not exceed.
LIMITS = (
    ("MIN_SERVING_NODES", "SERVING_NODES"),
    ("SERVING_NODES", "MAX_WORKERS"),
    ("SPOT_GPU_WORKERS", "MAX_WORKERS"),
    ("ON_DEMAND_GPU_WORKERS", "MAX_WORKERS"),
)


def read_variables(path: Path) -> dict[str, str]:
    """The variables of a file. Raises ConfigError for a missing file, an unknown or missing name, or a wrong value."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file: run `cp ops/gcp/variables.env {path}` and fill it in")
    values, known = _parse(path), _parse(ROOT / "ops/gcp/variables.env")
    for name in known | values:
        if (name in known) == (name in values):
            continue
        state = "missing" if name in known else "unknown"
        raise ConfigError(f"{path}: {name} is {state}: compare with ops/gcp/variables.env")
    for name, (pattern, expected) in PATTERNS.items():
        if not re.fullmatch(pattern, values[name]):
            raise ConfigError(f"{path}: {name}={values[name]}: expected {expected}")
    if not values["ZONE"].startswith(values["REGION"] + "-"):
        raise ConfigError(f"{path}: ZONE={values['ZONE']}: expected a zone of REGION={values['REGION']}")
    values["STORAGE_ROOT"] = render(values["STORAGE_ROOT"], {"BUCKET": values["BUCKET"]})
    # Accounts have roles on this bucket only.
    if not re.fullmatch(rf"gs://{re.escape(values['BUCKET'])}(/[\w.-]+)+", values["STORAGE_ROOT"]):
        raise ConfigError(f"{path}: STORAGE_ROOT={values['STORAGE_ROOT']}: expected a folder gs://{values['BUCKET']}/…")
    _check_numbers(path, values)
    return values


def _check_numbers(path: Path, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if name.endswith(("WORKERS", "NODES")) and not value.isdigit():
            raise ConfigError(f"{path}: {name}={value}: expected a number of machines")
    for name, limit in LIMITS:
        if int(values[name]) > int(values[limit]):
            raise ConfigError(f"{path}: {name}={values[name]}: expected at most {limit}={values[limit]}")


def _parse(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    for name, mark, value in pairs:
        if not mark or not re.fullmatch(r"[A-Z_]+", name) or re.search(r"[\s'\"`]|\$(?!\{BUCKET\})", value):
            raise ConfigError(f"{path}: {name}: expected lines NAME=value without quotes and spaces")
    return {name: value for name, _, value in pairs}


def render(text: str, variables: Mapping[str, str]) -> str:
    """Replace the ${VARIABLES} in a text with their values. Raises ConfigError for a variable without a value."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in variables:
            raise ConfigError(f"${{{found[1]}}}: expected one of {', '.join(variables)}")
        return variables[found[1]]

    return re.sub(r"\$\{([A-Z_]+)\}", value, text)


def main(path: str = "gcp.env") -> int:
    """Write the cluster's file. Returns the exit status."""
    try:
        variables = read_variables(Path(path))
        text = render((ROOT / "cluster.yaml").read_text(encoding="utf-8"), variables)
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = variables["CLUSTER"]
    output = "my-cluster.yaml" if name == DEFAULT_CLUSTER else f"my-cluster-{name}.yaml"
    Path(output).write_text(
        f"# Written by `make cluster-config` from cluster.yaml and {path}.\n{text}", encoding="utf-8"
    )
    print(f"Wrote {output}. Next: make cluster-check" + ("" if path == "gcp.env" else f" ARGS={path}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
