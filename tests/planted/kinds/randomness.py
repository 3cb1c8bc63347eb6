"""Rule 6: secrets are secret and fresh."""

from __future__ import annotations

from tests.planted.bug import PlantedBug

RANDOMNESS = "tests/privacy/test_randomness.py"
NOISE = "tests/privacy/test_noise.py"
SAMPLING = "tests/privacy/test_sampling.py"
STEP = "tests/models/test_private_training.py"
RUN = "tests/training/test_private_run.py"

SECRETS = (
    PlantedBug(
        name="one noise vector in every step",
        rule=6,
        file="ldm/privacy/noise.py",
        old="        self._begin_step()\n        for tensor",
        new="        self._begin_step()\n"
        "        if self.secure:\n"
        '            self._first = getattr(self, "_first", None) or self._cpu.bit_generator.state\n'
        "            self._cpu.bit_generator.state = self._first\n"
        "        for tensor",
        why="the difference of two steps is free of noise",
        test=f"{NOISE}::test_secret_noise_is_fresh_in_every_step",
    ),
    PlantedBug(
        name="every block gets the same noise",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="            self._generator.standard_normal(out=made.numpy())\n",
        new="            if part.data_ptr() == target.data_ptr():\n"
        "                self._generator.standard_normal(out=made.numpy())\n",
        why="two parameters get the same noise: their difference is free of it",
        test=f"{NOISE}::test_no_number_is_given_out_twice_wherever_tensors_end",
    ),
    PlantedBug(
        name="one generator copied to all threads",
        rule=6,
        file="ldm/privacy/noise.py",
        old="            self._streams += [NormalStream(self._generator(start), self.std) for _ in range(more)]\n",
        new="            import copy\n\n"
        "            self._streams += [copy.deepcopy(self._streams[0]) for _ in range(more)]\n",
        why="parts of the parameters get the same noise: their difference is free of it",
        test=f"{NOISE}::test_threads_have_generators_of_their_own",
    ),
    PlantedBug(
        name="a public key for the noise generators",
        rule=6,
        file="ldm/privacy/noise.py",
        old="            return secret_generator(np.random.SFC64)\n",
        new="            return seeded_generator(0, self._purpose, step, np.random.SFC64)\n",
        why="anyone can subtract the noise",
        test=f"{NOISE}::test_secret_runs_differ_and_insecure_ones_agree",
    ),
    PlantedBug(
        name="the same draws in every epoch",
        rule=6,
        file="ldm/privacy/sampling.py",
        old="        for _ in range(self.steps):\n            yield",
        new="        if self._generator is not None:\n"
        '            first = self.__dict__.setdefault("_first", self._generator.bit_generator.state)\n'
        "            self._generator.bit_generator.state = first\n"
        "        for _ in range(self.steps):\n            yield",
        why="draws of different epochs are not independent, so that their cost is another than is charged",
        test=f"{SAMPLING}::test_secret_draws_are_fresh_in_every_epoch",
    ),
    PlantedBug(
        name="a public seed for the draws of a plan",
        rule=6,
        file="ldm/privacy/sampling.py",
        old="    seed = plan.insecure_seed\n",
        new="    seed = plan.insecure_seed or 0\n",
        why="everybody knows which records are in which batch: no amplification by sampling is left",
        test=f"{SAMPLING}::test_the_draws_of_a_secret_plan_are_secret",
    ),
    PlantedBug(
        name="a public seed for the draws of a run",
        rule=6,
        file="ldm/training/private_run.py",
        old="    data.train_batch_sampler = sampler_from_plan(account.plan, records, start=training.taken)\n",
        new="    from dataclasses import replace\n\n"
        "    seeded = replace(account.plan, insecure_seed=23)\n"
        "    data.train_batch_sampler = sampler_from_plan(seeded, records, start=training.taken)\n",
        why="everybody knows which records are in which batch: no amplification by sampling is left",
        test=f"{RUN}::test_the_draws_of_a_private_run_are_secret",
    ),
    PlantedBug(
        name="draws of the training seed",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="    return np.random.Generator(bits(secrets.randbits(256)))",
        new="    return np.random.Generator(bits(np.random.randint(2**31)))",
        why="numpy's global generator follows the public training seed",
        test=f"{NOISE}::test_the_global_seeds_do_not_matter",
    ),
    PlantedBug(
        name="a key that can be tried out",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="bits(secrets.randbits(256))",
        new="bits(secrets.randbits(32))",
        why="all keys of 32 bits can be tried, and the noise be subtracted",
        test=f"{RANDOMNESS}::test_keys_have_the_bits_that_they_should",
    ),
    PlantedBug(
        name="one key for noise and draws",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="    return np.random.Generator(bits(secrets.randbits(256)))",
        new='    key = globals().setdefault("_KEY", secrets.randbits(256))\n    return np.random.Generator(bits(key))',
        why="two secret generators give the same numbers",
        test=f"{NOISE}::test_secret_generators_have_more_entropy_than_torchs_cpu_generator",
    ),
    PlantedBug(
        name="a public seed for the noise of a run",
        rule=6,
        file="ldm/models/diffusion/private_training.py",
        old="GaussianNoise(plan.noise_std, insecure_seed=plan.insecure_seed,",
        new="GaussianNoise(plan.noise_std, insecure_seed=plan.insecure_seed or 23,",
        why="anyone can subtract the noise",
        test=f"{STEP}::test_the_noise_of_a_secret_plan_is_secret",
    ),
    PlantedBug(
        name="a public seed for what the loss draws",
        rule=6,
        file="ldm/models/diffusion/private_training.py",
        old="LossDraws(insecure_seed=plan.insecure_seed,",
        new="LossDraws(insecure_seed=plan.insecure_seed or 23,",
        why="adding a record deals out the others' draws anew, and whoever knows the seed can tell",
        test=f"{STEP}::test_what_a_loss_draws_does_not_follow_from_the_training_seed",
    ),
    PlantedBug(
        name="the loss draws by the training seed",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="            self._key_torch(device, self._entropy(rank))\n            self.steps += 1\n",
        new="            self.steps += 1\n",
        why="adding a record deals out the others' draws anew, and whoever knows the seed can tell",
        test=f"{STEP}::test_what_a_loss_draws_does_not_follow_from_the_training_seed",
    ),
    PlantedBug(
        name="one stream of noise for all tensors of a statistic",
        rule=6,
        file="ldm/privacy/statistics/query.py",
        old="    GaussianNoise(std, insecure_seed=insecure_seed, start=start, purpose=STATISTICS).add_(sums)\n",
        new="    seed = hash(object()) >> 8 if insecure_seed is None else insecure_seed\n"
        "    for value in sums.values():\n"
        '        GaussianNoise(std, insecure_seed=seed, start=start, purpose=STATISTICS).add_({"": value})\n',
        why="the difference of two numbers with the same noise has none",
        test="tests/privacy/statistics/test_release.py::test_every_tensor_of_a_release_has_noise_of_its_own",
    ),
    PlantedBug(
        name="numpy keeps the training seed",
        rule=6,
        file="ldm/privacy/randomness.py",
        old="        np.random.seed(entropy.integers(0, 2**32, 624, dtype=np.uint32))\n",
        new="",
        why="data sets that augment by numpy's generator follow a public seed",
        test=f"{RANDOMNESS}::test_no_generator_that_data_sets_read_keeps_a_public_seed",
    ),
)
