from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import yaml

from detect_ai.core.config import CONFIG_DIR, Config, load_config
from detect_ai.core.errors import ConfigError

GROUPS = ("corpus", "experiment", "model", "serve", "sweep", "train")
GIVEN = {("corpus", "csv"): ["corpus.sources.0.path=/x.csv"]}  # what an option leaves to its user
EMULATOR = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:9023&scheme=http"
TRAIN_KEYS = (
    "lr, from_sweep, epochs, max_steps, batch_size, microbatch_size, shortest_span, warmup, decay, weight_decay, "
    "max_grad_norm, label_smoothing, adversarial, class_weights, attack_weight, frozen, precision, compile, "
    "compiled_lengths, gradient_checkpointing, num_workers, resize_every_s, cpus_per_worker, threads_per_worker, "
    "use_gpu, patience, stop_on, checkpoint_every, max_failures, log_every, keep_checkpoints, profile"
)
ALL_KEYS = (
    "run, bundle, data, seed, storage, corpus, model, train, sweep, calibration, score, evaluation, compare, gate, "
    "export, serve, tracking"
)
SOURCE_KEYS = (
    "kind, path, preset, name, licence, text, label, id, group, domain, generator, language, split, attack, "
    "labels, splits, weight, limit, subset, hub_split, revision, streaming"
)
QUOTE = "expected key=value; quote a value that holds '=', ',' or brackets"


@pytest.fixture(autouse=True)
def _nothing_from_the_environment(monkeypatch):
    for name in ("DETECT_AI_STORAGE_ROOT", "DETECT_AI_DATA", "DETECT_AI_DATA_PROSE"):
        monkeypatch.delenv(name, raising=False)


def refusal(*overrides, config_dir=None):
    with pytest.raises(ConfigError) as refused:
        load_config(overrides, config_dir)
    return str(refused.value)


# What is given and what is allowed


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.lrr=1", f"config: train.lrr=1: no key 'lrr'; allowed here: {TRAIN_KEYS}"),
        ("nosuch=1", f"config: nosuch=1: no key 'nosuch'; allowed here: {ALL_KEYS}"),
        ("+train.lrr=1", f"config: +train.lrr=1: no key 'lrr'; allowed here: {TRAIN_KEYS}"),
        ("+nosuch=1", f"config: +nosuch=1: no key 'nosuch'; allowed here: {ALL_KEYS}"),
        (
            "corpus.sources.0.colour=x",
            f"config: corpus.sources.0.colour=x: no key 'colour'; allowed here: {SOURCE_KEYS}",
        ),
        (
            "corpus.split.dev=0.1",
            "config: corpus.split.dev=0.1: no key 'dev'; allowed here: train, validation, calibration, test",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_keys_that_there_are(override, text):
    assert refusal(override) == text


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.lr=abc", "Value 'abc' of type 'str' could not be converted to Float"),
        ("train.lr=", "Value '' of type 'str' could not be converted to Float"),
        ("train.lr=null", "field 'train.lr' is not Optional"),
        ("train.epochs=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
        ("train.use_gpu=maybe", "Value 'maybe' is not a valid bool (type str)"),
        ("seed=true", "Value 'True' of type 'bool' could not be converted to Integer"),
        ("train.class_weights=1", "Invalid value assigned: int is not a ListConfig, list or tuple."),
        ("+score.labels.human=none", "Value 'none' of type 'str' could not be converted to Integer"),
        ("evaluation.baseline=maybe", "Value 'maybe' is not a valid bool (type str)"),
        ("corpus.split.test=much", "Value 'much' of type 'str' could not be converted to Float"),
    ],
)
def test_a_wrong_type_is_refused_with_the_one_expected(override, reason):
    assert refusal("run=other", override) == f"config: {override}: {reason}"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "calibration.length_edges=[64.5]",
            "calibration.length_edges.0: Value '64.5' of type 'float' could not be converted to Integer",
        ),
        (
            "+calibration.registers.essays=mine",
            "essays: Invalid value assigned: str is not a ListConfig, list or tuple.",
        ),
    ],
)
def test_a_wrong_type_inside_a_list_is_refused_with_its_place(override, text):
    assert refusal(override) == f"config: {text}"


@pytest.mark.parametrize("override", ["train.lr", "train.lr=1=2", f"storage.root={EMULATOR}"])
def test_what_is_no_override_is_refused_with_the_form_expected(override):
    assert refusal("seed=1", override) == f"config: {override}: {QUOTE}"


@pytest.mark.parametrize(
    ("group", "options"),
    [("train", "default, gpu"), ("model", "distilbert, minilm, mpnet"), ("experiment", "essays, essays_large")],
)
def test_an_unknown_option_of_a_group_is_refused_with_the_options_that_there_are(group, options):
    assert refusal("run=train", f"{group}=none") == f"config: {group}=none: expected one of {options}"


def test_no_option_of_a_group_is_refused():
    expected = "config: train=null: Config group override must be a string or a list. Got NoneType"
    assert refusal("train=null") == expected


def test_an_impossible_value_stops_a_configuration_while_it_is_composed():
    assert refusal("corpus=csv") == "config: corpus.sources[0].path=: expected a file or a folder"


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.lr", "run=x"],
        ["train=none"],
        ["train.lrr=1"],
        ["corpus.sources=abc"],
        ["train.lr=${x}"],
        ["~train.lr"],
        ["train.lr=abc"],
        ["corpus.sources.5.path=x"],
    ],
)
def test_an_error_is_one_line(overrides):
    assert len(refusal(*overrides).splitlines()) == 1


# A user's own directory


@pytest.mark.parametrize("name", ["mine", "it's my dir=x, (1) [2]"])
def test_a_directory_of_the_users_own_adds_options_to_the_groups(tmp_path, name):
    (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / name / "train/mine.yaml").write_text("lr: 7e-5\n")
    config = load_config(["train=mine", "train.epochs=9"], str(tmp_path / name))
    assert (config.train.lr, config.train.epochs, config.model.name) == (7e-5, 9, "minilm")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("lrr: 1\n", f"config: train.lrr: no key 'lrr'; allowed here: {TRAIN_KEYS}"),
        ("lr: abc\n", "config: train.lr: Value 'abc' of type 'str' could not be converted to Float"),
        ("lr: 0\n", "config: train.lr=0.0: expected a finite number above 0"),
    ],
)
def test_a_file_of_the_users_own_is_checked_like_ours(tmp_path, content, text):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.yaml").write_text(content)
    assert refusal("train=mine", config_dir=str(tmp_path)) == text


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/mine.yaml"
    path.write_text("lr: [1\nepochs: 2\n")
    assert refusal("train=mine", config_dir=str(tmp_path)) == (
        f'config: while parsing a flow sequence in "{path}", line 1, column 5 '
        f"expected ',' or ']', but got ':' in \"{path}\", line 2, column 7"
    )


def test_options_of_the_users_own_stand_among_those_that_there_are(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.yaml").write_text("lr: 7e-5\n")
    expected = "config: train=none: expected one of default, gpu, mine"
    assert refusal("train=none", config_dir=str(tmp_path)) == expected


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    assert refusal(config_dir=str(tmp_path / "no")) == f"--config-dir {tmp_path / 'no'}: no such directory"


# The storage root


def test_the_root_comes_from_the_environment_whatever_characters_it_holds(monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", EMULATOR)
    assert load_config().storage.root == EMULATOR


def test_an_override_decides_over_the_environment(monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", "/from/the/environment")
    assert load_config(["storage.root=/from/the/line"]).storage.root == "/from/the/line"


def test_an_empty_root_in_the_environment_is_refused_instead_of_meaning_the_working_directory(monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", "")
    assert refusal() == "config: storage.root=: expected a path or a URI such as gs://bucket/folder"


def test_the_default_root_lies_in_the_home_directory():
    assert load_config().storage.root == "~/.local/share/detect_ai"


# The files in configs/


def options():
    return sorted((path.parent.name, path.stem) for path in CONFIG_DIR.glob("*/*.yaml"))


def test_the_groups_are_those_of_the_design():
    assert sorted({group for group, _ in options()}) == sorted(GROUPS)


def content(group, option):
    """What a file of a group sets, by the keys of `Config`. An experiment sets keys of several groups."""
    written = yaml.safe_load((CONFIG_DIR / group / f"{option}.yaml").read_text())
    return {k: v for k, v in written.items() if k != "defaults"} if group == "experiment" else {group: written}


def check_values(written, composed):
    """Every value of a file stands in what was composed; paths may come from the environment."""
    if isinstance(written, dict):
        for key, value in written.items():
            check_values(value, composed[key])
    elif isinstance(written, list):
        assert len(written) == len(composed)
        for value, found in zip(written, composed, strict=True):
            check_values(value, found)
    elif "${" not in str(written):
        assert composed == (float(written) if isinstance(composed, float) else written)


@pytest.mark.parametrize(("group", "option"), options())
def test_every_file_composes_and_sets_what_it_says(group, option):
    given = GIVEN.get((group, option), [])
    written = content(group, option)
    for override in given:
        written[group]["sources"][0]["path"] = override.partition("=")[2]
    check_values(written, load_config([f"{group}={option}", *given]).to_dict())


def test_an_experiment_is_written_from_the_root_and_chooses_options_of_the_groups():
    for path in CONFIG_DIR.glob("experiment/*.yaml"):
        assert path.read_text().startswith("# @package _global_\n")
    config = load_config(["experiment=essays"])
    assert config.corpus.name == "essays-balanced"
    assert set(config.calibration.registers) == {"essays", "prose"}


def test_an_override_decides_over_an_experiment():
    config = load_config(["experiment=essays", "train.lr=1e-5", "corpus=sample", "calibration.length_edges=[]"])
    assert (config.train.lr, config.corpus.name, config.calibration.length_edges) == (1e-5, "sample", [])


def test_the_registers_of_an_experiment_gather_sources_of_its_corpus():
    for path in CONFIG_DIR.glob("experiment/*.yaml"):
        config = load_config([f"experiment={path.stem}"])
        gathered = {source for sources in config.calibration.registers.values() for source in sources}
        assert gathered <= {source.name for source in config.corpus.sources}


def test_the_corpora_of_essays_lie_below_one_folder(monkeypatch):
    monkeypatch.setenv("DETECT_AI_DATA", "/data")
    for corpus in ("essays", "essays_balanced"):
        paths = [source.path for source in load_config([f"corpus={corpus}"]).corpus.sources]
        assert all(path.startswith(("/data/essays", "/data/mixed")) for path in paths)


def test_every_key_in_configs_is_a_field_of_config_py():
    kinds = get_type_hints(Config)
    for group, option in options():
        for key, value in content(group, option).items():
            assert set(value) <= {f.name for f in fields(kinds[key])}, (group, option)


def test_every_field_has_a_type_that_is_checked():
    def leaves(cls):
        for name, kind in get_type_hints(cls).items():
            inner = [kind, *get_args(kind)]
            for nested in filter(is_dataclass, inner):
                yield from leaves(nested)
            if not any(map(is_dataclass, inner)) and name not in {"num_workers", "space"}:  # rules check these two
                yield name, kind

    checked = {str, int, float, bool, list[float], list[int], list[str]}
    checked |= {dict[str, float], dict[str, int], dict[str, str], dict[str, list[str]]}
    assert {kind for _, kind in leaves(Config)} <= checked


def test_a_list_in_the_place_of_a_range_is_refused_with_what_works():
    with pytest.raises(ConfigError) as refused:
        load_config(["sweep=random", "sweep.space.lr=[1e-5,1e-4]"])
    advice = "a list and a range cannot be merged: remove the old one, as ~sweep.space.lr +sweep.space.lr=..."
    assert str(refused.value) == f"config: sweep.space.lr=[1e-5,1e-4]: {advice}"
    assert load_config(["sweep=random", "~sweep.space.lr", "+sweep.space.lr=[1e-5]"]).sweep.space == {"lr": [1e-5]}


def test_overrides_decide_over_files_in_their_order():
    assert load_config(["train=gpu", "train.lr=1e-5", "train.lr=2e-5"]).train.lr == 2e-5


def test_the_dictionary_of_a_configuration_holds_everything():
    config = load_config(["model=distilbert", "seed=3"])
    plain = config.to_dict()
    assert (plain["model"]["revision"], plain["seed"]) == (config.model.revision, 3)
    assert set(plain) == {f.name for f in fields(Config)}
