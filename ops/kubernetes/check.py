"""Validate the manifests with kubeconform, against the resource definitions of a pinned KubeRay: `make kube-check`.

Arguments are passed to kubeconform, which must be on PATH. Definitions are downloaded once, into build/kuberay.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any
from urllib.request import urlopen

import yaml

FOLDER = Path(__file__).parent
BUILD = FOLDER.parents[1] / "build" / "kuberay"
URL = "https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases"
DEFINITIONS = {
    "ray.io_rayclusters.yaml": "c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1",
    "ray.io_rayjobs.yaml": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
    "ray.io_rayservices.yaml": "0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab",
}
KUBERNETES = "1.33.0"
IMAGE = f"example.org/detect-ai@sha256:{'0' * 64}"


def definition(name: str) -> Any:
    """A resource definition of KubeRay, checked by its SHA-256."""
    path = BUILD / name
    if not path.exists():
        with urlopen(f"{URL}/{name}", timeout=60) as response:
            path.write_bytes(response.read())
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != DEFINITIONS[name]:
        path.unlink()
        sys.exit(f"{name}: expected SHA-256 {DEFINITIONS[name]}, found {found}")
    return yaml.load(data, yaml.CSafeLoader)["spec"]


def strict(schema: Any) -> Any:
    """A schema that refuses unknown keys, as the API server does with strict field validation."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", bool(closed.get("x-kubernetes-preserve-unknown-fields")))
    return closed


def main() -> int:
    """Write schemas and manifests with an example image to build/kuberay, and run kubeconform on them."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in DEFINITIONS:
        spec = definition(name)
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            target = f"{spec['names']['kind'].lower()}-{spec['group'].partition('.')[0]}-{version['name']}.json"
            (BUILD / target).write_text(json.dumps(schema))
    manifests = []
    for path in sorted(FOLDER.glob("*.yaml")):
        text = Template(path.read_text(encoding="utf-8"))
        manifests.append(BUILD / f"manifest-{path.name}")
        manifests[-1].write_text(text.safe_substitute(IMAGE=IMAGE, GPU_IMAGE=IMAGE, REDIS_IMAGE=IMAGE))
    local = str(BUILD / "{{.ResourceKind}}{{.KindSuffix}}.json")
    options = ["-strict", "-summary", "-kubernetes-version", KUBERNETES, "-schema-location", local]
    core = [] if "-schema-location" in sys.argv else ["-schema-location", "default"]
    return subprocess.run(["kubeconform", *options, *core, *sys.argv[1:], *manifests], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
