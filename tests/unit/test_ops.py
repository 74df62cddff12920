"""`ops/`: rules, dashboards and their series, the runbook, inhibition, the compose file, the TLS front and systemd."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from detect_ai.core.config import Config
from detect_ai.core.ray_runtime import free_port
from tests.fixtures.monitoring import OPS, OTHERS, OURS, RAYS, dashboards, load, rules, series
from tests.fixtures.programs import cannot_run, require

DOCS = OPS.parent / "docs"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
READ_BY_RULES = {name for rule in rules() for name in series(rule["expr"])}
ON_DASHBOARDS = {name for queries in dashboards().values() for query in queries for name in series(query)}


def output(program: str, *arguments: str) -> str:
    """The output of a program; the test fails if the program fails."""
    done = subprocess.run([require(program), *arguments], cwd=OPS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dashboards_and_rules_read_known_series() -> None:
    assert (READ_BY_RULES | ON_DASHBOARDS) - OTHERS - RECORDED - OURS == RAYS


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    metrics = {re.sub("_(bucket|count|sum)$", "", name) for name in OURS}
    assert metrics == {re.sub("_(bucket|count|sum)$", "", name) for name in (ON_DASHBOARDS | READ_BY_RULES) & OURS}


def test_promtool_parses_the_queries_of_dashboards(tmp_path: Path) -> None:
    queries = [re.sub(r"\$__\w+", "5m", query) for queries in dashboards().values() for query in queries]
    assert len(queries) > 20
    named = [{"record": f"query_{i}", "expr": query} for i, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": named}]}))
    output("promtool", "check", "rules", str(tmp_path / "rules.yml"))


def test_the_runbook_names_existing_panels() -> None:
    text = (DOCS / "RUNBOOK.md").read_text(encoding="utf-8")
    files = [json.loads(path.read_text(encoding="utf-8")) for path in OPS.glob("grafana/dashboards/*.json")]
    titles = {entry["title"] for file in files for entry in (file, *file["panels"])}
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text))
    assert len(named) > 5
    assert named - {"Status, Targets"} <= titles


def test_the_docs_list_every_metric() -> None:
    table = re.findall(r"^\| `(ray_detect_ai_\w+)` \|", (DOCS / "SERVING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted({re.sub("_(bucket|count|sum)$", "", name) for name in OURS})


def test_every_alert_has_a_runbook_entry() -> None:
    headings = re.findall("^## (.*)", (DOCS / "RUNBOOK.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook_url"].endswith(f"/docs/RUNBOOK.md#{name.lower()}")


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    cases = {
        (check["alertname"], bool(check["exp_alerts"]))
        for test in load("rules_test.yml")["tests"]
        for check in test["alert_rule_test"]
    }
    assert cases == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize(
    "command",
    [
        *("check config prometheus.yml", "check config prometheus-serve.yml"),
        *("check rules rules.yml", "test rules rules_test.yml"),
    ],
)
def test_promtool_accepts(command: str) -> None:
    output("promtool", *command.split())


def test_alerts_reach_the_receiver_of_their_severity() -> None:
    output("amtool", "check-config", "alertmanager.yml")
    for severity, receiver in (("page", "page"), ("ticket", "ticket"), ("none", "nobody")):
        routed = output("amtool", "config", "routes", "test", "--config.file=alertmanager.yml", f"severity={severity}")
        assert routed.split() == [receiver]


def test_alerts_on_verdicts_are_inhibited_without_traffic() -> None:
    inhibitions = load("alertmanager.yml")["inhibit_rules"]
    assert {"source_matchers": ['alertname="DetectAINoTraffic"'], "target_matchers": ['needs="traffic"']} in inhibitions
    of_texts = re.compile("ray_detect_ai_(texts|drift)")
    of_verdicts = {name for name, alert in ALERTS.items() if of_texts.search(alert["expr"])}
    assert of_verdicts - {"DetectAINoTraffic"} == {
        name for name, alert in ALERTS.items() if alert["labels"].get("needs") == "traffic"
    }


def test_inhibition_names_existing_alerts() -> None:
    text = (OPS / "alertmanager.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"DetectAI\w+", text)) <= {*ALERTS, "DetectAI"}
    assert {alert["labels"]["severity"] for alert in ALERTS.values()} == {"page", "ticket", "none"}


def test_panels_do_not_overlap() -> None:
    for path in OPS.glob("grafana/dashboards/*.json"):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        assert len(places) == len(set(places))
        assert dashboard["uid"] == f"detect-ai-{path.stem}"


class Exporter(BaseHTTPRequestHandler):
    """Serves metrics as a one-process service exports them."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(
            b'detect_ai_requests_total{route="/v1/detect",status="503"} 7\n'
            b'detect_ai_loaded{role="main",model_version="1"} 1\n'
        )

    def log_message(self, *_: object) -> None:
        pass


def test_one_process_has_the_series_of_a_cluster(tmp_path: Path) -> None:
    exporter, address = ThreadingHTTPServer(("127.0.0.1", 0), Exporter), f"127.0.0.1:{free_port()}"
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    config = (OPS / "prometheus-serve.yml").read_text(encoding="utf-8").replace(": 10s", ": 1s")
    (tmp_path / "prometheus.yml").write_text(config.replace("127.0.0.1:9464", f"127.0.0.1:{exporter.server_port}"))
    shutil.copy(OPS / "rules.yml", tmp_path)
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("wb") as log:
        prometheus = subprocess.Popen([require("prometheus"), *options], cwd=tmp_path, stdout=log, stderr=log)

    def found(query: str) -> list[dict[str, str]]:
        with suppress(httpx.TransportError):
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": query})
            if answer.status_code == 200:
                return [entry["metric"] for entry in answer.json()["data"]["result"]]
        return []

    try:
        deadline = time.monotonic() + 120
        while not found("ray_serve_num_http_requests_total") or not found("ray_detect_ai_loaded"):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        [requests] = found('ray_serve_num_http_requests_total{application="detect_ai"}')
        assert (requests["route"], requests["status_code"]) == ("/v1/detect", "503")
        assert len(found('ray_detect_ai_loaded{job="ray"}')) == len(found("{__name__=~'ray_detect_ai_loaded'}")) == 1
        assert len(found('up{job="ray"} == 1')) == 1
    finally:
        prometheus.terminate()
        prometheus.wait(30)
        exporter.shutdown()


def test_files_that_the_compose_file_mounts_exist() -> None:
    services = load("compose.yaml")["services"]
    sources = {mount.split(":")[0] for service in services.values() for mount in service["volumes"]}
    files = {source for source in sources if source.startswith(".")}
    assert len(files) == 6
    assert all((OPS / source).exists() for source in files)
    build = services["service"]["build"]
    assert (OPS / build["context"] / build["dockerfile"]).is_file()
    discovered = load("prometheus.yml")["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert {str(Path(path).parent) for path in discovered} == {"/tmp/ray"}


def test_docker_compose_accepts_the_compose_file() -> None:
    docker = require("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        cannot_run("docker", "docker has no compose plugin")
    command = [docker, "compose", "--file", "compose.yaml", "config", "--quiet"]
    environment = {**os.environ, "BUNDLE": "/bundle"}
    done = subprocess.run(command, cwd=OPS, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_containers_are_read_only_and_pinned() -> None:
    services = load("compose.yaml")["services"]
    for name, service in services.items():
        assert service["read_only"], name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert name == "service" or re.fullmatch(r"[\w/]+:v?[\d.]+@sha256:[0-9a-f]{64}", service["image"])
    assert {name for name, service in services.items() if "cap_add" in service} == {"front"}
    assert all(
        port.startswith("127.0.0.1:")
        for name in services
        for port in services[name].get("ports", [])
        if name != "front"
    )


def test_caddy_accepts_the_front() -> None:
    output("caddy", "validate", "--config", "Caddyfile", "--adapter", "caddyfile")
    assert output("caddy", "fmt", "Caddyfile") == (OPS / "Caddyfile").read_text(encoding="utf-8")


def test_the_front_has_the_limits_of_the_service() -> None:
    adapted = json.loads(output("caddy", "adapt", "--config", "Caddyfile"))
    [server] = adapted["apps"]["http"]["servers"].values()
    [site] = [route["handle"][0]["routes"] for route in server["routes"]]
    sizes = [
        handler["max_size"] for route in site for handler in route["handle"] if handler["handler"] == "request_body"
    ]
    defaults = Config().serve
    assert sizes == [defaults.max_upload_bytes, defaults.max_body_bytes]
    answer_s = (server["write_timeout"] - server["read_timeout"]) / 1e9
    assert answer_s > defaults.request_timeout_s + defaults.max_wait_s


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (OPS / "systemd/detect-ai.service").read_text(encoding="utf-8")
    path = tmp_path / "detect-ai.service"
    path.write_text(unit.replace("/opt/detect-ai/bin/detect-ai", "/bin/true"))  # which must exist
    analyze = require("systemd-analyze")
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if path.name in line]  # others are about units of the machine
    assert (done.returncode, about_it) == (0, [])
    exposure = [analyze, "security", "--offline=true", "--threshold=20", path]
    subprocess.run(exposure, capture_output=True, text=True, check=True)


def test_the_environment_file_has_what_the_unit_reads() -> None:
    unit = (OPS / "systemd/detect-ai.service").read_text(encoding="utf-8")
    [command] = re.findall("^ExecStart=(.*)", unit, re.MULTILINE)
    given = re.findall(r"^(\w+)=", (OPS / "systemd/environment").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\$\{?(\w+)", command)) == set(given)
