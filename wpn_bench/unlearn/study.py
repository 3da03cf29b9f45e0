"""Optuna's study of one method: it proposes the options of trials, and prunes trials by successive halving.

The study is kept in memory only. A tuning that is repeated asks and tells the same again, from measurements that are in the
store, so it makes the same proposals and prunes the same trials. Optuna's own storage keeps neither the state of the sampler
nor the pruner, so that a resumed study would go on differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wpn_bench.errors import UserError
from wpn_bench.unlearn import tuning
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.search import Choice, Drawn, Log, Range

SEED = 0  # seed of the sampler, the same for every method
# Trial 0 and three random trials are made before the estimator is used. This number does not depend on the number of all
# trials. So `--tune 20` begins with the trials of `--tune 8`, which may already be in the store.
STARTUP = 4


def require_optuna() -> Any:
    """Import and return Optuna. If it is not installed, the `UserError` names the extra that installs it."""
    try:
        import optuna
    except ImportError as e:
        raise UserError("--tune needs Optuna, which is not installed", "pip install 'wpn-bench[tune]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """The trials of one method, as Optuna sees them.

    Args:
        name: `method` or `method:label`.
        options: Its options in the configuration.
        width: Hidden size of the model.
        pruning: Whether trials are pruned.
    """

    def __init__(self, name: str, options: Mapping[str, Any], width: int, *, pruning: bool) -> None:
        self._optuna = require_optuna()
        self._kind = method_of(name)
        self._given = dict(options)
        self._width = width
        self._space = tuning.space(self._kind, options)
        self._distributions = {name: self._distribution(one) for name, one in self._space.items()}
        sampler = self._optuna.samplers.TPESampler(seed=SEED, n_startup_trials=STARTUP)
        # Rungs are counted in units of the first one, so rung k is at FACTOR ** k. `bootstrap_count` stays 0, because Optuna
        # prunes the trials that it counts (optuna issue 3330).
        pruner = (
            self._optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=tuning.FACTOR)
            if pruning
            else self._optuna.pruners.NopPruner()
        )
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._trial: Any = None

    @property
    def configured_steps(self) -> int:
        """Return the number of steps without tuning."""
        return self._kind.Config(**self._given).steps

    def ask(self, number: int) -> Drawn:
        """Begin a trial. Returns its drawn point; that of trial 0 changes nothing."""
        if number == 0:
            start = tuning.start(self._kind, self._given)
            # The configuration may set values outside the ranges, which the sampler cannot use.
            known = all(start[name] in one for name, one in self._space.items())
            if known:
                self._study.enqueue_trial(start)
            self._trial = self._study.ask(self._distributions if known else None)
            return start
        self._trial = self._study.ask(self._distributions)
        return dict(self._trial.params)

    def prunes(self, value: float, rung: int) -> bool:
        """Return whether the present trial is pruned.

        Args:
            value: Its value at a rung.
            rung: Number of the rung, counted from 0.

        Returns:
            Whether it is neither among the best third of the trials at this rung so far nor the best of them.
        """
        self._trial.report(value, tuning.FACTOR**rung)
        return bool(self._trial.should_prune())

    def tell(self, value: float | None, *, pruned: bool) -> None:
        """End the present trial.

        Args:
            value: Its value at the end; None if it failed.
            pruned: Whether it was pruned.
        """
        states = self._optuna.trial.TrialState
        # Failed trials are reported as pruned, because the sampler ranks these below all measured trials. It would ignore
        # trials in the state "failed" and could sample the same point again.
        if pruned or value is None:
            self._study.tell(self._trial, state=states.PRUNED)
        else:
            self._study.tell(self._trial, value, state=states.COMPLETE)

    def options(self, drawn: Drawn) -> tuning.Options:
        """Return the options of a drawn point."""
        return tuning.configured(self._kind, self._given, drawn, self._width)

    def steps(self, options: tuning.Options) -> int:
        """Return the number of steps of a trial with these options."""
        return self._kind.Config(**options).steps

    def searched(self, options: tuning.Options) -> tuning.Options:
        """Return the values of the searched options for results and reports. The learning rate is always a number."""
        config = self._kind.Config(**options)
        values = {name: getattr(config, name) for name in self._space}
        return values | ({"lr": config.peak_lr(self._width)} if "lr" in values else {})

    def _distribution(self, one: Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(one, Choice):
            return kinds.CategoricalDistribution(one.options)
        return kinds.FloatDistribution(one.low, one.high, log=isinstance(one, Log))
