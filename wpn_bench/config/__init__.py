"""The settings of a run, built from three sources.

A preset from `tasks/presets/` gives the first values. The user's YAML file overrides the preset, and the options of the
command line override both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wpn_bench.config.checks import MAX_SEEDS, split_candidate
from wpn_bench.config.settings import STAGES, RunConfig, Stage
from wpn_bench.core.paths import tasks_dir
from wpn_bench.core.registry import unknown_name
from wpn_bench.core.validation import as_user_error
from wpn_bench.core.yaml_files import read_yaml
from wpn_bench.harmless.judges import spec as judge_spec
from wpn_bench.step_settings import Relearn

__all__ = [
    "MAX_SEEDS",
    "STAGES",
    "RunConfig",
    "Stage",
    "attack_settings",
    "build",
    "check_names",
    "from_settings",
    "presets",
    "read_preset",
    "split_candidate",
]


def presets() -> dict[str, Path]:
    """Return the file of each preset by its name."""
    return {p.stem: p for p in sorted((tasks_dir() / "presets").glob("*.yaml"))}


def read_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset. They override those of the preset that it names in `extends`."""
    known = presets()
    if name not in known:
        raise unknown_name("preset", name, known)
    raw = read_yaml(known[name])
    extended = raw.pop("extends", None)
    return raw if extended is None else read_preset(extended) | raw


def build(preset: str, config_file: Path | None = None) -> RunConfig:
    """Build the configuration of a run from a preset and a file of the user.

    Args:
        preset: Name of the preset.
        config_file: YAML file of the user, whose settings override those of the preset.

    Returns:
        The validated configuration.

    Raises:
        UserError: The preset is unknown, the file cannot be read, or a setting is invalid.
    """
    raw = {**read_preset(preset), "preset": preset}
    if config_file:
        own = read_yaml(config_file)
        if own.get("forget", raw["forget"]) != raw["forget"]:  # the preset's other sets do not match this forget set
            raw |= {"in_domain": (), "validation": None}
        raw |= own
    if isinstance(raw.get("methods"), dict):  # the validation below reports any other type
        raw["methods"] = {name: options or {} for name, options in raw["methods"].items()}
    return from_settings(raw)


def from_settings(raw: Mapping[str, Any]) -> RunConfig:
    """Return the validated configuration of plain values. A `UserError` names the setting that is invalid."""
    examples = "see tasks/presets/ for examples"
    with as_user_error("", examples, noun="setting", unknown_kind="setting", known=RunConfig.model_fields):
        config = RunConfig.model_validate(_attacks_by_kind(raw))
    check_names(config)
    return config


def attack_settings(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that choose the named attacks and no others.

    Args:
        names: Names of attacks of any kind.
        settings: All settings of a run. The options that they give to a chosen attack are kept.

    Returns:
        The settings `attacks`, `gradient_attacks`, `quantise`, `relearn`, `relearn_search`, and those of attacks that a stage makes.
    """
    from wpn_bench.attacks.quantise import SCHEMES
    from wpn_bench.attacks.registry import GRADIENT, RELEARN, RELEARN_SEARCH, by_stage
    from wpn_bench.attacks.relearn_search import RelearnSearch

    staged = by_stage()
    others = {*GRADIENT, *SCHEMES, *staged, RELEARN, RELEARN_SEARCH}
    return {
        "attacks": tuple(n for n in names if n not in others),
        "gradient_attacks": {n: settings["gradient_attacks"].get(n, {}) for n in names if n in GRADIENT},
        "quantise": tuple(n for n in names if n in SCHEMES),
        "relearn": (settings["relearn"] or Relearn().model_dump()) if RELEARN in names else None,
        RELEARN_SEARCH: (settings[RELEARN_SEARCH] or RelearnSearch().model_dump()) if RELEARN_SEARCH in names else None,
        **{n: (settings[n] or one.Settings().model_dump()) if n in names else None for n, one in staged.items()},
    }


def _attacks_by_kind(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move the attacks that change no prompts from `attacks` to the settings of their kind, as `--attacks` does.

    Values of a wrong type stay as they are: the validation of the settings reports them.
    """
    from wpn_bench.attacks.quantise import SCHEMES
    from wpn_bench.attacks.registry import GRADIENT, RELEARN, RELEARN_SEARCH, by_stage

    found, names = dict(settings), settings.get("attacks")
    if not isinstance(names, list | tuple):
        return found
    with_fields = {*by_stage(), RELEARN, RELEARN_SEARCH}
    moved = [n for n in names if isinstance(n, str) and n in {*GRADIENT, *SCHEMES, *with_fields}]
    found["attacks"] = tuple(n for n in names if n not in moved)
    for name in moved:
        if name in with_fields:
            found[name] = {} if found.get(name) is None else found[name]
        elif name in GRADIENT and isinstance(before := found.get("gradient_attacks") or {}, Mapping):
            found["gradient_attacks"] = {name: {}} | dict(before)
        elif name in SCHEMES and isinstance(before := found.get("quantise") or (), list | tuple):
            found["quantise"] = tuple(dict.fromkeys((*before, name)))
    return found


def check_names(config: RunConfig) -> None:
    """Raise `UserError` for an unknown method, option, attack or judge, before any data or model is loaded."""
    from wpn_bench import attacks
    from wpn_bench.attacks.quantise import get_scheme
    from wpn_bench.unlearn.methods import method_of
    from wpn_bench.unlearn.methods.base import MethodConfig

    with as_user_error(
        "training", "see docs/training.md", unknown_kind="training option", known=MethodConfig.model_fields
    ):
        MethodConfig(**config.training)
    for name in config.methods:
        kind = method_of(name)
        with as_user_error(
            f"method {name}",
            f"see `wpn-bench list {kind.name}`",
            unknown_kind=f"option of method {name}",
            known=kind.Config.model_fields,
        ):
            config.method_config(name)
    own = attacks.own_attacks(config.attack_files)
    for name in config.attacks:
        attacks.get_attack(name, own)
    for name in config.gradient_attacks:
        attack = attacks.GRADIENT.get(name)
        with as_user_error(
            f"attack {name}",
            "see docs/attacks.md",
            unknown_kind=f"option of attack {name}",
            known=attack.Config.model_fields,
        ):
            config.gradient_config(name)
    for name in config.quantise:
        get_scheme(name)
    for judge in (config.judge, *config.judges):
        judge_spec.check(judge)
