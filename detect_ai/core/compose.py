"""Composes the configuration with Hydra and validates it: `configs/`, a user's own directory, and overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel it is inside the package, in a checkout next to it.
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def load_config(overrides: Sequence[str] = (), config_dir: str | None = None) -> Config:
    """Compose the configuration from `configs/`, a user's own directory and overrides, and validate it.

    Args:
        overrides: Hydra overrides such as `train.lr=3e-5` or `model=distilbert`. Values of text keys are literal and
            need no quotes: `bundle=4e21`, `data=my texts (1).csv`.
        config_dir: a directory with more options for the groups.

    Raises ConfigError with one line: the key, its value and what is allowed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such directory")
    ConfigStore.instance().store(name="schema", node=Config().model_dump())
    search = [f"hydra.searchpath=[{_quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = compose("config", overrides=[*map(_literal, overrides), *search])
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = re.sub(r"\[(\d+)\]", r".\1", error.full_key or "")
        raise ConfigError(f"config: {key}: required, give {key}=…") from error
    except OverrideParseException as error:
        advice = """expected key=value; quote for the shell and Hydra, such as "key={a: 'x (1)'}\""""
        raise ConfigError(f"config: {error.override.removeprefix('++')}: {advice}") from error
    except (HydraException, OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        message = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ConfigError(f"config: {message.partition('Config search path')[0]}") from error
    return parse_config(values)


def _literal(override: str) -> str:
    """An override with the values of text keys quoted, so that Hydra neither parses nor converts them."""
    override = override.rstrip("\r\n")
    match = re.fullmatch(r"\+{0,2}([\w.]+)=(.*)", override, re.DOTALL)
    if not match or match[1] == "experiment":  # the only group of `configs/` that is not a section
        return override
    key, value = match.groups()
    kind = _kind_of(key)
    if hasattr(kind, "model_fields"):  # a section
        return override
    if kind is str and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        value = _quoted(value)
    elif kind == list[str] and re.fullmatch(r"\[[^'\"]+\]", value):
        value = f"[{','.join(_quoted(item.strip()) for item in value[1:-1].split(','))}]"
    return f"++{key}={value}"  # ++: also for keys of a source that its file omits, and new keys of a mapping


def _quoted(value: str) -> str:
    """A value in the quotes of Hydra's grammar, where a backslash is special only before a quote."""
    return "'" + re.sub(r"\\+(?='|$)", lambda m: m[0] * 2, value).replace("'", "\\'") + "'"


def _kind_of(key: str) -> Any:
    """The type of a key, without its constraints; None if there is no such key."""
    kind: Any = Config
    for part in key.split(".") if key else []:
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]
        else:
            field = getattr(kind, "model_fields", {}).get(part)
            kind = field and field.annotation
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
    return kind


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate plain values. Raises ConfigError with one line: the first wrong key, its value and what is allowed."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # Without the names that pydantic gives to the alternatives of a union and to keys of a mapping.
        key = ".".join(str(part) for part in first["loc"] if not re.search(r"constrained|\[", str(part)))
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        value = first["input"] if isinstance(first["input"], str) else json.dumps(first["input"], default=str)
        if first["type"] == "extra_forbidden":
            parent = _kind_of(key.rpartition(".")[0])
            message = f"{key}: no such key; allowed here: {', '.join(parent.model_fields)}"
        elif first["type"] != "value_error":  # a rule about several keys names its own
            message = f"{key}={value}: {message}" + (": quote it" if first["type"] == "string_type" else "")
        raise ConfigError(f"config: {message}") from error
