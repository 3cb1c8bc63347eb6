"""Every planted bug, in the order of the rules that they break."""

from __future__ import annotations

from tests.planted.bug import PlantedBug
from tests.planted.kinds.accounts import ACCOUNTS
from tests.planted.kinds.draws import DRAWS
from tests.planted.kinds.leaks import LEAKS
from tests.planted.kinds.plans import PLANS
from tests.planted.kinds.randomness import SECRETS
from tests.planted.kinds.sensitivity import SENSITIVITY

BUGS: tuple[PlantedBug, ...] = (*DRAWS, *SENSITIVITY, *PLANS, *ACCOUNTS, *LEAKS, *SECRETS)
