"""Attacks. One on prompts maps a prompt set to a harder one, which is then measured like any other set; one on weights maps
a model to a model; one by gradients searches, against each model, for what makes it begin its harmful answer.

A template attack is one YAML file in `tasks/attacks/`; an attack that needs code is one file here and one line below;
`--attack-file` reads templates of a user's own.
"""

from __future__ import annotations

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.attacks.own import own_attacks
from wpn_bench.attacks.registry import GRADIENT, all_names, attacked, get_attack, names

__all__ = ["GRADIENT", "Attack", "AttackContext", "all_names", "attacked", "get_attack", "names", "own_attacks"]
