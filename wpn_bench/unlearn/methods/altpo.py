"""AltPO (alternate preference optimisation): prefers alternative answers to the ones that are forgotten."""

from __future__ import annotations

from wpn_bench.unlearn.methods.dpo import DPO


class AltPO(DPO):
    """L = -(2 / beta) log sigmoid(beta (r(y+) - r(y-))) + alpha * CE(retain), r(y) = log p_theta(y | x) - log p_ref(y | x).

    log p is summed over the response tokens. This is the loss and these are the defaults of the released code
    (`forget_loss=subdpo`). The preference term is 2 / beta times that of `dpo`, so it counts twenty times more
    against the retain term. Where p_theta = p_ref, its gradient is that of -log p(y+) + log p(y-).

    The authors let the base model write several plausible, wrong answers for y+, because their data have only the answers to
    forget. The forget set here has harmless responses, and these are y+. One of them is drawn for each step.
    """

    name = "altpo"
    title = "AltPO"
    paper = "Mekala et al. 2024, Alternate Preference Optimization for Unlearning Factual Knowledge, arXiv:2409.13474"

    @property
    def scale(self) -> float:
        return 2 / self.config.beta
