"""`dp-ldm audit`: measure what your model and plan leak, beside the claim; exit code 1 when the claim is exceeded.

dp-ldm audit logs/RUN                          canaries through all steps of a finished run's plan
dp-ldm audit my-images.yaml                    the same before training
dp-ldm audit logs/RUN --sensitivity            neighbouring data sets through your layers, in a minute
dp-ldm audit logs/RUN --method pairs           many small data sets: finds batches that are no independent draws
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, pick_device, split_settings, typed
from ldm.reports.flags import add_device_flag

METHODS = ("gaussian", "f_dp", "one_run", "pairs")


def build_parser(prog: str = "dp-ldm audit") -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Further arguments key.path=value change a YAML file. Records are made up; no private image is read.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("subject", type=Path, metavar="RUN|YAML", help="run directory, or configuration of a private run")
    add("--sensitivity", action="store_true", help="measure how far one record moves the clipped sum, and no more")
    add("--method", choices=METHODS, default="", help="the bound; the tightest that covers the plan without it")
    add("--canaries", type=int, default=2000, help="records that are in or out by a coin (pairs: small data sets)")
    add("--records", type=int, default=16, help="made-up records that go through your model beside them")
    add("--confidence", type=float, default=0.95, help="of the lower bound")
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "dp-ldm audit") -> None:
    """Parse the command line, measure, print the verdicts and keep them in the run directory."""
    settings, words = split_settings(sys.argv[1:] if argv is None else argv)
    args = build_parser(prog).parse_args(words)

    from tqdm import tqdm

    from ldm.numbers import rounded_up
    from ldm.reports.audit import AuditRequest, Subject, run_audit, save_audit

    subject = Subject.find(args.subject, settings, pick_device(args.device))
    plan = subject.plan
    print(
        f"audited     {plan.steps} steps at rate {plan.sample_rate:.4g}, noise multiplier {plan.noise_multiplier:.4g}, "
        f"C {plan.max_grad_norm:g}, K {plan.noise_multiplicity}, delta {rounded_up(plan.delta, 6)}"
    )
    print("            canaries and records are made up; no private image is read")
    if subject.stated_epsilon is not None:
        print(f"card        epsilon {rounded_up(subject.stated_epsilon)}, with everything that the run has released")
    with tqdm(
        total=plan.steps, unit="step", desc="auditing", disable=args.sensitivity or args.method == "pairs"
    ) as bar:
        request = AuditRequest(
            canaries=args.canaries,
            records=args.records,
            method=args.method,
            confidence=args.confidence,
            sensitivity=args.sensitivity,
            progress=lambda steps: bar.update(steps - bar.n) and None,
        )
        found = run_audit(subject, request)
    for part in found.parts:
        print(part.verdict())
    kept = save_audit(subject, found)
    if kept is not None:
        print(f"written to {kept}")
    if found.exceeded:
        print("the claim is exceeded: do not publish")
        sys.exit(1)
    if kept is not None:
        print(f"next: dp-ldm release {typed(args.subject)} NEW_FOLDER  # puts it on the card")
    elif subject.stated_epsilon is not None:
        print(f"nothing was written: {args.subject} is a release, and stays as it is")
        print("next: audit the run before its release, to have the result on the card")
    else:
        print(f"next: dp-ldm train {typed(args.subject)}")
