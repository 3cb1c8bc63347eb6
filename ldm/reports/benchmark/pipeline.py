"""`run_benchmark`: all stages of all private runs and baselines of a benchmark, in order."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import UserError
from ldm.reports.benchmark.config import BenchmarkConfig, require_files
from ldm.reports.benchmark.options import ALONE, BASELINES, BenchmarkOptions
from ldm.reports.benchmark.private_run import PrivateRun
from ldm.reports.benchmark.settings import keep_settings
from ldm.reports.benchmark.shared import Shared
from ldm.reports.benchmark.stages import run_stages
from ldm.reports.benchmark.statistics_run import StatisticsRun


def run_benchmark(options: BenchmarkOptions) -> Path:
    """Run every unfinished stage; returns the folder with the results. Raises UserError.

    Folders in a benchmark file are relative to the working directory, as for every command.
    """
    config = BenchmarkConfig.read(options.config, options.quick)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: give 1 or more private runs")
    require_files(config)
    if options.rehearse:
        config.stand_in("train"), config.stand_in("test")
    unknown = [name for name in options.baselines if name not in BASELINES]
    if unknown:
        raise UserError(f"--baselines {unknown[0]}: unknown; choose from {', '.join(BASELINES)}")
    kind = ("-quick" if options.quick else "") + ("-rehearsal" if options.rehearse else "")
    folder = Path(options.output) / f"{config.path.stem}{kind}"
    shared = Shared(config, options, folder / "shared")
    groups: list[Shared | StatisticsRun | PrivateRun] = []
    for epsilon in options.epsilons:
        for number in range(options.repeat):
            place = folder / f"eps{epsilon}"
            if options.statistics_only or options.draws_only:
                groups.append(StatisticsRun(config, options, shared, epsilon, place / f"stats{number}"))
            else:
                groups.append(PrivateRun(config, options, shared, epsilon, place / f"run{number}", number == 0))
    groups.append(shared)
    stages = [stage for group in groups for stage in group.stages()]
    if options.only_baselines:
        stages = [stage for stage in stages if stage.key in ALONE]
    for group in groups:
        keep_settings(group.folder, group.settings)
    run_stages(stages)
    return folder
