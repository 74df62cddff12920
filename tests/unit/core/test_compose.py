import pytest

from detect_ai.core.compose import CONFIG_DIR, load_config
from detect_ai.core.config import Config, TrainConfig
from detect_ai.core.errors import ConfigError

EMULATOR = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:9023&scheme=http"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("DETECT_AI_STORAGE_ROOT", "DETECT_AI_DATA"):
        monkeypatch.delenv(name, raising=False)


def refusal(*overrides, config_dir=None):
    with pytest.raises(ConfigError) as error:
        load_config(overrides, config_dir)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("override", ["nosuch=1", "train.lrr=1", "corpus.sources.0.colour=x", "+serve.nosuch=1"])
def test_unknown_key_is_refused(override):
    assert override.partition("=")[0].lstrip("+") in refusal(override)


def test_unknown_key_lists_allowed_keys():
    assert all(name in refusal("nosuch=1") for name in Config.model_fields)
    assert all(name in refusal("train.lrr=1") for name in TrainConfig.model_fields)


@pytest.mark.parametrize(
    "override",
    [
        "corpus.split.dev=0.1",
        "train.lr=abc",
        "train.lr=0",
        "train.lr=nan",
        "train.epochs=1.5",
        "train.use_gpu=maybe",
        "train.num_workers=[2,1]",
        "train.microbatch_size=17",
        "train.shortest_span=999",
        "seed=true",
        "model.stride=255",
        "run=../x",
        "storage.root=",
        "score.labels.human=none",
        "corpus.split.test=0.9",
        "calibration.verdict_lengths=[128,64]",
        "calibration.default_target_fpr=0.02",
        "serve.port=65536",
        "serve.min_replicas=9",
        "monitoring.drift.false_alarms=0.0002",
        "monitoring.drift.reference=yesterday",
        "monitoring.drift.reference=2026-11-14/2026-11-01",
    ],
)
def test_impossible_value_names_key_and_value(override):
    key, _, value = override.partition("=")
    message = refusal(override)
    assert message.startswith("config: ")
    assert key.split(".")[1 if "." in key else 0] in message
    assert value.strip("[]")[:1] in message


@pytest.mark.parametrize("override", ["train.lr", "train.lr=1=2", "train.lr=(", "corpus.sources.5.path=x"])
def test_malformed_override_is_quoted(override):
    assert override.partition("=")[0] in refusal(override)


def test_malformed_group_is_refused():
    assert refusal("train=null")


def test_unknown_option_lists_options(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.yaml").write_text("lr: 7e-5\n")
    assert "default gpu mine" in refusal("train=none", config_dir=str(tmp_path))


@pytest.mark.parametrize("with_cause", ["0", "1"])
def test_missing_path_is_required(with_cause, monkeypatch):
    monkeypatch.setenv("OC_CAUSE", with_cause)  # OmegaConf chains exceptions under a debugger or coverage
    assert "corpus.sources.0.path=" in refusal("corpus=csv")


@pytest.mark.parametrize("value", ["4e21", "2e3", "1_000", "true", "null", "0x1", "88e118", ".5"])
def test_version_like_text_stays_text(value):
    config = load_config([f"bundle={value}", f"serve.canary={value}", f"compare.bundles=[{value}, b]"])
    assert (config.bundle, config.serve.canary, config.compare.bundles) == (value, value, [value, "b"])


@pytest.mark.parametrize("value", ["x (1).csv", 'it\'s "x".csv', "~a&b;c?.csv", "ä[1],{2}=3.csv", "a\\b\\", EMULATOR])
def test_path_characters_are_literal(value):
    config = load_config([f"data={value}", f"corpus.sources.0.path={value}", f"+score.columns.text={value}"])
    assert (config.data, config.corpus.sources[0].path, config.score.columns["text"]) == (value, value, value)


def test_hydra_quotes_and_carriage_returns_are_removed():
    assert load_config(["data='x (1).csv'"]).data == "x (1).csv"
    assert load_config(["data=x.csv\r"]).data == "x.csv"


@pytest.mark.parametrize("name", ["mine", "it's my dir=x, (1) [2]"])
def test_config_dir_adds_options(tmp_path, name):
    (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / name / "train/mine.yaml").write_text("lr: 7e-5\n")
    config = load_config(["train=mine", "train.epochs=9"], str(tmp_path / name))
    assert (config.train.lr, config.train.epochs, config.model.name) == (7e-5, 9, "minilm")


@pytest.mark.parametrize(
    ("group", "content", "where"),
    [
        ("train", "lrr: 1\n", "train.lrr"),
        ("train", "lr: 0\n", "train.lr"),
        ("train", "lr: [1\nb: 2\n", "line 1"),
        ("model", "revision: 4e21\n", "model.revision"),  # a number instead of a string
    ],
)
def test_user_file_is_validated(tmp_path, group, content, where):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(content)
    assert where in refusal(f"{group}=mine", config_dir=str(tmp_path))


def test_missing_config_dir_is_refused(tmp_path):
    assert str(tmp_path / "no") in refusal(config_dir=str(tmp_path / "no"))


def test_override_beats_environment(monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", EMULATOR)
    assert load_config().storage.root == EMULATOR
    assert load_config(["storage.root=/x"]).storage.root == "/x"
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", "")
    assert "storage.root" in refusal()


# `sources` is not a group: `fetch` reads it.
OPTIONS = sorted((p.parent.name, p.stem) for p in CONFIG_DIR.glob("*/*.yaml") if p.parent.name != "sources")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_shipped_option_is_valid(group, option):
    given = ["corpus.sources.0.path=/x.csv"] if option == "csv" else []
    load_config([f"{group}={option}", *given])


def test_sample_has_a_target_that_it_supports():
    assert load_config().calibration.default_target_fpr == 0.05
    assert load_config(["corpus=csv", "corpus.sources.0.path=x"]).calibration.default_target_fpr == 0.01
