"""Aliases for targets of old configurations, and their parameters that have no counterpart here."""

from __future__ import annotations

from ldm.errors import UserError, nearest

#: Current locations of the classes that old configurations name in ``main``.
MAIN_ALIASES: dict[str, str] = {
    "main.DataModuleFromConfig": "ldm.data.module.DataModuleFromConfig",
    "main.WrappedDataset": "ldm.data.module.WrappedDataset",
    "main.ImageLogger": "callbacks.image_logger.ImageLogger",
    "main.SetupCallback": "callbacks.setup_callback.SetupCallback",
    "main.CUDACallback": "callbacks.cuda_callback.CUDACallback",
    "main.DPCallback": "callbacks.differential_privacy.DPCallback",
    "main.RankSchedulerCallback": "callbacks.rank_scheduler.RankSchedulerCallback",
}

#: Replacements for classes of the taming package in old configurations of quantising autoencoders.
TAMING_ALIASES: dict[str, str] = {
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": (
        "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"
    ),
    "taming.modules.losses.vqperceptual.DummyLoss": "torch.nn.Identity",
    "taming.modules.losses.lpips.LPIPS": "ldm.modules.losses.lpips.LPIPS",
    "taming.modules.vqvae.quantize.VectorQuantizer2": "ldm.modules.vqvae.quantize.VectorQuantizer2",
}

#: Replacements for classes that newer releases of Lightning no longer have.
LIGHTNING_ALIASES: dict[str, str] = {
    "pytorch_lightning.loggers.TestTubeLogger": "pytorch_lightning.loggers.TensorBoardLogger",
    "pytorch_lightning.loggers.test_tube.TestTubeLogger": "pytorch_lightning.loggers.TensorBoardLogger",
}

#: The classes with the same parameters and tensors for programs that do not train: importing them needs no Lightning,
#: which takes longer to import than torch.
NETWORKS: dict[str, str] = {
    "ldm.models.diffusion.ddpm.DDPM": "ldm.models.diffusion.denoiser.Denoiser",
    "ldm.models.diffusion.ddpm_base.DDPM": "ldm.models.diffusion.denoiser.Denoiser",
    "ldm.models.diffusion.ddpm.LatentDiffusion": "ldm.models.diffusion.latent_denoiser.LatentDenoiser",
    "ldm.models.autoencoder.AutoencoderKL": "ldm.models.autoencoder_networks.AutoencoderKLNetworks",
    "ldm.models.autoencoder.IdentityFirstStage": "ldm.models.vq_networks.IdentityFirstStage",
    "ldm.models.autoencoder.VQModel": "ldm.models.vq_networks.VQModelNetworks",
    "ldm.models.autoencoder.VQModelInterface": "ldm.models.vq_networks.VQModelInterfaceNetworks",
}

_NEVER_USED = "it was stored and never used"

#: Parameters of old configurations without a counterpart here: target -> parameter -> why it can be ignored.
#: An entry has no effect once the class accepts a parameter of that name.
RETIRED: dict[str, dict[str, str]] = {
    "ldm.models.diffusion.ddpm.DDPM": {"use_positional_encodings": _NEVER_USED},
    "ldm.models.diffusion.ddpm.LatentDiffusion": {
        "condition_mask": _NEVER_USED,
        "diffusion_mask": _NEVER_USED,
        "use_positional_encodings": _NEVER_USED,
        "clip_denoised": "a latent has no fixed range to clip to",
    },
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": {"use_fp16": "the Trainer's precision decides"},
    "pytorch_lightning.loggers.TensorBoardLogger": {
        "debug": "it was an option of test-tube",
        "create_git_tag": "it was an option of test-tube",
        "description": "it was an option of test-tube",
    },
    "callbacks.image_logger.ImageLogger": {
        "increase_log_steps": "images are made every batch_frequency steps",
        "log_on_batch_idx": "images are counted by logical steps",
        "rescale": "images are always scaled from [-1, 1]",
        "log_images_kwargs": "set 'steps' for the number of sampling steps",
    },
}


def canonical_target(target: str) -> str:
    """The current dotted name of an object; ``main.*`` names and aliases are translated."""
    for aliases in (TAMING_ALIASES, LIGHTNING_ALIASES):
        if target in aliases:
            return aliases[target]
    if target.partition(".")[0] != "main":
        return target
    if target not in MAIN_ALIASES:
        hint = nearest(target, MAIN_ALIASES) or f"; it has {', '.join(sorted(MAIN_ALIASES))}"
        raise UserError(f"target '{target}' does not exist{hint}")
    return MAIN_ALIASES[target]
