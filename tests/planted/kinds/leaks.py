"""Rule 5: nothing that is computed from private images leaves except through the mechanism."""

from __future__ import annotations

from tests.planted.bug import PlantedBug

STEP = "tests/models/test_private_training.py"
RUN = "tests/training/test_private_run.py"
CLOCK = "tests/callbacks/test_step_clock.py"
RELEASE = "tests/privacy/statistics/test_release.py"

LEAKS = (
    PlantedBug(
        name="sums without noise in the average",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old="            sums = self.clipped_sums(model, batch)\n        self.ranks.check()\n",
        new="            sums = self.clipped_sums(model, batch)\n"
        '        average = getattr(model, "model_ema", None)\n'
        "        for name in sums if average is not None else ():\n"
        '            shadow = average.m_name2s_name.get(name.removeprefix("model."))\n'
        "            if shadow is not None:\n"
        "                average.get_buffer(shadow).sub_(1e-2 * sums[name])\n"
        "        self.ranks.check()\n",
        why="the averages, which are what is published, hold gradients without noise",
        test=f"{STEP}::test_the_average_follows_the_noised_weights_alone",
    ),
    PlantedBug(
        name="sums without noise in the optimizer",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old="        optimizer.step()\n        scheduler = model.lr_schedulers()\n",
        new="        optimizer.step()\n"
        "        exact = self.clipped_sums(model, batch)\n"
        "        for name, parameter in self.selection.parameters.items():\n"
        '            optimizer.state[parameter]["sum"] = exact[name]\n'
        "        scheduler = model.lr_schedulers()\n",
        why="checkpoints hold the optimizer's state, and with it the exact sum of the last draw",
        test=f"{STEP}::test_the_optimizer_remembers_noised_gradients_alone",
    ),
    PlantedBug(
        name="moments of gradients without noise",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old="        optimizer.step()\n        scheduler = model.lr_schedulers()\n",
        new="        optimizer.step()\n"
        "        exact = self.clipped_sums(model, batch)\n"
        "        for name, parameter in self.selection.parameters.items():\n"
        '            optimizer.state[parameter]["exp_avg"].add_(exact[name], alpha=0.1)\n'
        "        scheduler = model.lr_schedulers()\n",
        why="Adam's moments, which checkpoints hold, follow the exact sums",
        test=f"{STEP}::test_the_optimizer_remembers_noised_gradients_alone",
    ),
    PlantedBug(
        name="batch sizes on the console",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old="        self.noised_gradients(model, batch)\n        self.ledger.record(",
        new='        logger.info("step %d: %d records", self.taken, len(next(iter(batch.values()))))\n'
        "        self.noised_gradients(model, batch)\n        self.ledger.record(",
        why="the number of records of a draw is private",
        test=f"{STEP}::test_a_step_says_and_keeps_nothing",
    ),
    PlantedBug(
        name="exact losses on the console",
        rule=5,
        file="ldm/models/diffusion/latent_denoiser.py",
        old='        return self.loss_terms(examples["z"], examples["t"], examples["noise"], condition)["loss"]',
        new='        losses = self.loss_terms(examples["z"], examples["t"], examples["noise"], condition)["loss"]\n'
        '        print(f"loss {float(losses.mean()):.4f}")\n'
        "        return losses",
        why="the loss of private records is printed without noise",
        test=f"{STEP}::test_a_step_says_and_keeps_nothing",
    ),
    PlantedBug(
        name="skipped records on the console",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old="                return self.clipper.pop_sums()\n",
        new='                logger.warning("%d records were skipped", self.clipper.skipped)\n'
        "                return self.clipper.pop_sums()\n",
        why="how many records have no finite gradient is a private number",
        test=f"{STEP}::test_a_step_says_and_keeps_nothing",
    ),
    PlantedBug(
        name="skipped records in the checkpoint",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old='        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict()}',
        new='        own = {"skipped": self.clipper.skipped}\n'
        '        return {"plan": self.plan.to_dict(), "ledger": self.ledger.to_dict(), **own}',
        why="how many records have no finite gradient is a private number",
        test=f"{STEP}::test_a_checkpoint_is_released_and_carries_the_account",
    ),
    PlantedBug(
        name="the last batch size in a buffer",
        rule=5,
        file="ldm/models/diffusion/ddpm.py",
        old="        self.private.step(self, batch)\n        return None\n",
        new="        self.private.step(self, batch)\n"
        '        self.register_buffer("records_seen", torch.tensor(len(next(iter(batch.values())))))\n'
        "        return None\n",
        why="buffers are saved with the weights: the size of the last draw is in every checkpoint",
        test=f"{STEP}::test_a_step_says_and_keeps_nothing",
    ),
    PlantedBug(
        name="the state of the noise in the checkpoint",
        rule=5,
        file="ldm/models/diffusion/private_training.py",
        old='"ledger": self.ledger.to_dict()}',
        new='"ledger": self.ledger.to_dict(), "generator": self.noise._cpu.bit_generator.state}',
        why="whoever has the generator's state knows all noise that is still to come, and past noise too",
        test=f"{STEP}::test_a_checkpoint_is_released_and_carries_the_account",
    ),
    PlantedBug(
        name="batch sizes in the metrics",
        rule=5,
        file="callbacks/privacy_callback.py",
        old="        if self.training.spent:\n            trainer.should_stop = True\n\n    def on_train_end",
        new='        pl_module.log("privacy/records", float(len(next(iter(batch.values())))), batch_size=1)\n'
        "        if self.training.spent:\n            trainer.should_stop = True\n\n    def on_train_end",
        why="the number of records of a draw is private",
        test=f"{RUN}::test_the_metrics_are_epsilon_and_the_learning_rate_and_epsilon_rises_to_the_target",
    ),
    PlantedBug(
        name="the latent scale from the first batch",
        rule=5,
        file="ldm/models/diffusion/latent_scale.py",
        old="        if self.dp_config.enabled:  # the driver refuses this earlier",
        new="        if self.dp_config.enabled and not self.training:  # the driver refuses this earlier",
        why="a statistic of private images goes into every checkpoint without noise",
        test=f"{STEP}::test_the_latent_scale_is_not_measured_on_private_images",
    ),
    PlantedBug(
        name="a private run without a latent scale",
        rule=5,
        file="ldm/training/private_checks.py",
        old="    if not model.scale_is_known:\n",
        new="    if model.scale_is_known is None:\n",
        why="the scale would be measured on the first batch of private images",
        test=f"{RUN}::test_the_latent_scale_is_never_taken_from_private_images",
    ),
    PlantedBug(
        name="the latent scale from a private image",
        rule=5,
        file="ldm/training/private_run.py",
        old="    selection = model.select_trainable()\n    require_same_selection",
        new='    first = data.datasets["train"][0]["image"]\n'
        '    model.scale_factor = 1.0 / float(first.std()) if "image" in data.datasets["train"][0] else 1.0\n'
        "    selection = model.select_trainable()\n    require_same_selection",
        why="a constant of the model, which every file carries, is computed from a record",
        test=f"{RUN}::test_a_private_run_takes_no_constant_from_its_records",
    ),
    PlantedBug(
        name="private images beside the samples",
        rule=5,
        file="ldm/models/diffusion/log_images.py",
        old="    if not private:\n        small",
        new='    if not private or "image" in batch:\n        small',
        why="training images are written as they are",
        test=f"{STEP}::test_images_of_a_private_run_follow_from_nothing_in_the_batch",
    ),
    PlantedBug(
        name="as many samples as records",
        rule=5,
        file="ldm/models/diffusion/log_images.py",
        old="    count = min(count, count_records(batch)) if not private else count\n",
        new="    count = max(1, min(count, count_records(batch)))\n",
        why="the number of samples tells the size of the draw",
        test=f"{STEP}::test_images_of_a_private_run_follow_from_nothing_in_the_batch",
    ),
    PlantedBug(
        name="the image logger takes no notice of privacy",
        rule=5,
        file="callbacks/image_logger.py",
        old='"private": training is not None}',
        new='"private": False}',
        why="inputs and reconstructions of training images are written",
        test="tests/callbacks/test_image_logger.py::test_a_private_run_is_charged_before_its_samples_are_written",
    ),
    PlantedBug(
        name="losses on private validation images",
        rule=5,
        file="ldm/training/private_run.py",
        old='            "limit_val_batches": 0,\n',
        new='            "limit_val_batches": 1.0,\n',
        why="exact losses of private images are logged, and checkpoints chosen by them",
        test=f"{RUN}::test_the_trainer_neither_samples_nor_looks_at_private_images",
    ),
    PlantedBug(
        name="scores on private test images",
        rule=5,
        file="ldm/training/private_run.py",
        old='            "limit_test_batches": 0,\n',
        new='            "limit_test_batches": 1.0,\n',
        why="exact losses of private images are logged",
        test=f"{RUN}::test_the_trainer_neither_samples_nor_looks_at_private_images",
    ),
    PlantedBug(
        name="checkpoints chosen by a metric",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old='    if private and params.get("monitor"):\n',
        new='    if private and params.get("monitor") is False:\n',
        why="which checkpoint is best on private images is a query that nothing charges",
        test=f"{RUN}::test_selecting_by_a_metric_is_refused_before_anything_is_written",
    ),
    PlantedBug(
        name="training stopped by a metric",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old='    if getattr(callback, "monitor", None):\n',
        new='    if getattr(callback, "monitored", None):\n',
        why="when the loss of private images stops to fall is a query that nothing charges",
        test=f"{RUN}::test_selecting_by_a_metric_is_refused_before_anything_is_written",
    ),
    PlantedBug(
        name="a clock that shows the time",
        rule=5,
        file="callbacks/step_clock.py",
        old="        return self.start + SECONDS_A_STEP * step\n",
        new="        return time.time()\n",
        why="a step takes as long as its draw is large",
        test=f"{CLOCK}::test_the_clock",
    ),
    PlantedBug(
        name="times beside the metrics",
        rule=5,
        file="callbacks/step_clock.py",
        old="                self.experiment.add_scalar(name, value, step, walltime=when)\n",
        new="                self.experiment.add_scalar(name, value, step)\n",
        why="TensorBoard's times tell the sizes of the draws",
        test=f"{CLOCK}::test_times_of_a_run_are_one_second_a_step_however_long_the_steps_take",
    ),
    PlantedBug(
        name="times of checkpoints",
        rule=5,
        file="callbacks/safe_checkpoint.py",
        old="        if self.clock is not None:\n",
        new="        if self.clock is not None and self.account:\n",
        why="the times of files tell the sizes of the draws",
        test=f"{CLOCK}::test_times_of_a_run_are_one_second_a_step_however_long_the_steps_take",
    ),
    PlantedBug(
        name="times of images",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old="            built[-1].clock = clock\n",
        new="            built[-1].clock = None\n",
        why="the times of files tell the sizes of the draws",
        test=f"{CLOCK}::test_times_of_a_run_are_one_second_a_step_however_long_the_steps_take",
    ),
    PlantedBug(
        name="a progress bar with a rate",
        rule=5,
        file="callbacks/progress.py",
        old='BAR_FORMAT = "{desc} {bar}"',
        new='BAR_FORMAT = "{desc} {bar} {rate_fmt}"',
        why="steps a second tell the sizes of the draws",
        test="tests/callbacks/test_progress.py::test_a_run_without_a_number_of_epochs_names_none",
    ),
    PlantedBug(
        name="seconds of an epoch",
        rule=5,
        file="callbacks/cuda_callback.py",
        old='        if getattr(pl_module, "private", None) is not None:\n            return\n',
        new="",
        why="an epoch may be one draw, and takes as long as that is large",
        test=f"{CLOCK}::test_epochs_of_a_private_run_are_not_timed",
    ),
    PlantedBug(
        name="a run that ends by the clock",
        rule=5,
        file="ldm/training/private_checks.py",
        old='    for name, what in (("profiler", "writes"), ("max_time", "ends the run by")):',
        new='    for name, what in (("profiler", "writes"),):',
        why="a run that ends by the clock tells how long its steps took",
        test=f"{RUN}::test_settings_that_measure_time_are_refused",
    ),
    PlantedBug(
        name="a callback that measures time",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old='    Timer: "the plan says how long the run is",\n',
        new="",
        why="a run that ends by the clock tells how long its steps took",
        test=f"{CLOCK}::test_callbacks_that_reveal_the_draws_are_refused",
    ),
    PlantedBug(
        name="another logger is not said",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old="isinstance(logger, (StepTimedTensorBoard, AfterTraining, CSVLogger))\n",
        new="isinstance(logger, (TensorBoardLogger, AfterTraining, CSVLogger))\n",
        why="a logger with times of its own is taken for one without",
        test=f"{CLOCK}::test_another_logger_is_not_covered",
    ),
    PlantedBug(
        name="checkpoints by the clock",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old="    if plan is None:\n        callback.pause_seconds",
        new="    if plan is None or True:\n        callback.pause_seconds",
        why="which epochs have a checkpoint tells how long the draws took",
        test="tests/callbacks/test_run_checkpoint.py::test_private_runs_count_steps_and_never_look_at_the_clock",
    ),
    PlantedBug(
        name="latents that others may read",
        rule=5,
        file="ldm/data/latent_cache.py",
        old="                path.chmod(0o600)\n",
        new="                path.chmod(0o644)\n",
        why="latents are as private as the images that they can be decoded to",
        test="tests/data/test_latent_cache.py::test_only_the_owner_may_read",
    ),
    PlantedBug(
        name="the latents of another data set",
        rule=5,
        file="ldm/data/latent_cache.py",
        old="        self.key = digest(VERSION, key, dataset.fingerprint(), str(dtype))",
        new="        self.key = digest(VERSION, key, len(dataset), str(dtype))",
        why="a run on one data set reads the latents of another, private one",
        test="tests/data/test_latent_cache.py::test_anything_that_matters_changes_the_key",
    ),
    PlantedBug(
        name="the count of records without noise",
        rule=5,
        file="ldm/privacy/statistics/query.py",
        old="purpose=STATISTICS).add_(sums)\n",
        new="purpose=STATISTICS).add_(\n"
        '        {name: value for name, value in sums.items() if name != "count"}\n    )\n',
        why="how many records a class has is released as it is",
        test=f"{RELEASE}::test_the_noise_has_the_size_that_the_ledger_says",
    ),
    PlantedBug(
        name="the last bits of released numbers",
        rule=5,
        file="ldm/privacy/statistics/query.py",
        old="    sums = {name: on_grid(value, std) for name, value in sums.items()}\n",
        new="",
        why="a float64 sum and its noise show which sums are possible, such as that of an empty class",
        test=f"{RELEASE}::test_released_numbers_do_not_show_the_last_bits_of_the_noise",
    ),
    PlantedBug(
        name="cells of the private records themselves",
        rule=5,
        file="ldm/training/warm_up.py",
        old="        query = statistics.query(index, frame, mixture)\n        if index",
        new="        query = statistics.query(index, frame, mixture)\n"
        "        if query.anchors is not None:\n"
        "            shift = 0 * query.anchors + frame.project(latents.flatten(1)).mean(dim=0)\n"
        '            query = type(query)(**{**vars(query), "anchors": shift})\n'
        "        if index",
        why="the centres are a statistic of the records that nobody charges",
        test="tests/training/test_warm_up.py::test_cells_and_norms_follow_from_releases_alone",
    ),
    PlantedBug(
        name="latents centred by themselves",
        rule=5,
        file="ldm/training/warm_up.py",
        old="    return latents, torch.from_numpy(dataset.labels)\n",
        new="    return latents - latents.mean(0), torch.from_numpy(dataset.labels)\n",
        why="the centre is a statistic of the records: every contribution depends on all of them",
        test="tests/training/test_warm_up.py::test_latents_are_taken_as_they_are",
    ),
    PlantedBug(
        name="times in the log of a private run",
        rule=5,
        file="callbacks/progress.py",
        old='        stamp = "" if self.training is not None else time.strftime("%Y-%m-%d %H:%M:%S ")\n',
        new='        stamp = time.strftime("%Y-%m-%d %H:%M:%S ")\n',
        why="the time between two lines follows the number of records that were drawn",
        test="tests/callbacks/test_progress.py::test_a_private_log_has_lines_at_fixed_steps_and_the_times_of_the_clock",
    ),
    PlantedBug(
        name="a service notes the steps of a private run as they happen",
        rule=5,
        file="ldm/training/trainer_parts.py",
        old="        first = build() if clock is None else AfterTraining(build, kind)\n",
        new="        first = build()\n",
        why="the times that the service notes follow the sizes of the draws",
        test="tests/callbacks/test_after_training.py::test_one_word_names_a_logger",
    ),
)
