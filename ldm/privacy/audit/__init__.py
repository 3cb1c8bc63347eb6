"""Lower bounds on the leak of a private run, measured with canaries through the real mechanism.

A proof bounds the leak from above; an audit bounds it from below and finds assumptions of the proof that the program
breaks. No trainer, diffusion model or configuration file is needed:

* `audit`: canaries in all steps of a plan (``canaries``), judged by one of three bounds (``gaussian``, ``f_dp``,
  ``one_run``); `observe` and `judge` are its two halves
* `audit_pairs`: many small pairs of neighbouring data sets, which show how batches are drawn
* `audit_draws`: whether the draws of an observed run are independent
* `audit_sensitivity`: how far one record moves the clipped sum, on the user's own layers
* `Mechanism`: the sampler, clipper, noise and ledger that are audited

No audit here covers parts of a program that these calls do not run (a training loop that skips them), or data that
leaves a run by another way than its noised sums.
"""

from __future__ import annotations

from ldm.privacy.audit.canaries import Signals, observe
from ldm.privacy.audit.draws import DrawsResult, audit_draws
from ldm.privacy.audit.mechanism import Mechanism, PerExampleLoss
from ldm.privacy.audit.pairs import audit_pairs
from ldm.privacy.audit.result import AuditResult
from ldm.privacy.audit.run import METHODS, audit, judge
from ldm.privacy.audit.sensitivity import SensitivityResult, audit_sensitivity

__all__ = [
    "METHODS",
    "AuditResult",
    "DrawsResult",
    "Mechanism",
    "PerExampleLoss",
    "SensitivityResult",
    "Signals",
    "audit",
    "audit_draws",
    "audit_pairs",
    "audit_sensitivity",
    "judge",
    "observe",
]
