"""`ops/`: rules, dashboards and their series, the runbook, inhibition, and the compose file."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.fixtures.monitoring import OPS, OTHERS, OURS, RAYS, dashboards, load, require, rules, series

DOCS = OPS.parent / "docs"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
READ_BY_RULES = {name for rule in rules() for name in series(rule["expr"])}
ON_DASHBOARDS = {name for queries in dashboards().values() for query in queries for name in series(query)}


def output(program: str, *arguments: str) -> str:
    """What a program of Prometheus prints; the test fails where it fails."""
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
    "command", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
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


def test_files_that_the_compose_file_mounts_exist() -> None:
    services = load("compose.yaml")["services"]
    sources = {mount.split(":")[0] for service in services.values() for mount in service["volumes"]}
    files = {source for source in sources if source.startswith(".")}
    assert len(files) == 6
    assert all((OPS / source).exists() for source in files)
    copied = re.search(r"cp -r (.*?) /app ", services["service"]["command"][2])
    assert copied
    assert all((OPS.parent / name).exists() for name in copied[1].split())
    discovered = load("prometheus.yml")["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert {str(Path(path).parent) for path in discovered} == {"/tmp/ray"}
