"""Print secrets of Secret Manager as VARIABLE=value lines: fetch_secrets.py PROJECT VARIABLE=SECRET VARIABLE=OPTIONAL?.

Runs on a machine of Google Cloud before any package is installed: standard library only, Python 3.10.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request

METADATA = "http://" + os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
SERVICE = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "https://secretmanager.googleapis.com/")
TRIES, PAUSE_S = 6, 5.0  # the network of a starting machine may not be ready


def get(url: str, headers: dict[str, str]) -> dict[str, object]:
    """The JSON object at a URL. Retries all errors except HTTP statuses below 500."""
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code < 500 or not left:
                raise
        except OSError:
            if not left:
                raise
        time.sleep(PAUSE_S)
    raise AssertionError


def main(project: str, *wanted: str) -> int:
    """Print all secrets or none. Returns the exit status."""
    account = f"{METADATA}/computeMetadata/v1/instance/service-accounts/default/token"
    lines = []
    try:
        token = get(account, {"Metadata-Flavor": "Google"})["access_token"]
        for one in wanted:
            variable, _, secret = one.removesuffix("?").partition("=")
            url = f"{SERVICE}v1/projects/{project}/secrets/{secret}/versions/latest:access"
            try:
                payload = get(url, {"Authorization": f"Bearer {token}"})["payload"]
            except urllib.error.HTTPError as error:
                if error.code not in (403, 404):
                    raise
                if one.endswith("?"):
                    print(f"secret {secret}: {error.code}, {variable} is not set", file=sys.stderr)
                    continue
                problem = "it does not exist" if error.code == 404 else "this machine's account may not read it"
                print(f"error: secret {secret}: {problem}: run ops/gcp/setup.sh", file=sys.stderr)
                return 1
            value = base64.b64decode(payload["data"]).decode().strip()  # type: ignore[index]
            if "\n" in value:
                print(f"error: secret {secret}: expected one line", file=sys.stderr)
                return 1
            lines.append(f"{variable}={value}")
    except OSError as error:
        print(f"error: {project}: no answer from Google: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
