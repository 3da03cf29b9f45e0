"""Prompt attacks, weight attacks and gradient attacks.

A prompt attack rewrites a prompt set, which is then measured like any other set. A weight attack changes the model. A
gradient attack optimises, for each model, an input that makes the model begin its harmful answer.

A template attack is a YAML file in `tasks/attacks/`. An attack that needs code is a module of this package and a line
in `registry.py`. `--attack-file` reads templates of the user.
"""

from __future__ import annotations

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.attacks.own import own_attacks
from wpn_bench.attacks.registry import GRADIENT, all_names, attacked, chosen_by_stage, get_attack, names

__all__ = [
    "GRADIENT",
    "Attack",
    "AttackContext",
    "all_names",
    "attacked",
    "chosen_by_stage",
    "get_attack",
    "names",
    "own_attacks",
]
