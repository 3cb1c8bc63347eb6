"""Class-conditional or unconditional latent diffusion as a pipeline of the diffusers library.

pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
images = pipeline([0, 1, 2]).images
images = pipeline([0, 1, 2], source="draws").images    # of the released statistics, where the folder has them
"""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class LatentDiffusionPipeline(DiffusionPipeline):
    """Latents of a class to images by the autoencoder; latents by DDIM from noise, or draws of released statistics.

    ``class_names``: public names of the classes. ``null_class``: the class that stands for no condition in guidance.
    ``source``: where latents come from by default, "model" or "draws".
    """

    _optional_components = ["draws"]  # noqa: RUF012 - read by the library

    def __init__(self, unet, vae, scheduler, draws=None, class_names=None, null_class=None, source="model"):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, draws=draws)
        self.register_to_config(class_names=class_names, null_class=null_class, source=source)

    @torch.no_grad()
    def __call__(
        self,
        classes=None,
        num_images=None,
        num_inference_steps=None,
        eta=None,
        guidance_scale=None,
        generator=None,
        latents=None,
        output_type="pil",
        source=None,
    ):
        """Draw an image for each of ``classes`` (numbers or names), or ``num_images`` without classes.

        ``num_inference_steps`` (200 without it) should divide 1000; ``eta`` is 1 without it, and ``guidance_scale`` 1,
        which is none. ``latents`` (N, C, h, w) is the noise to start from. ``source``: "model", which these four
        arguments ask for, too, or "draws" of the released statistics, which takes no step; else the folder's own.
        ``output_type``: "pil", "np" (N, H, W, C) in [0, 1], or "pt" (N, C, H, W) in [-1, 1].
        """
        steps = {"num_inference_steps": num_inference_steps, "eta": eta, "guidance_scale": guidance_scale}
        given = [name for name, value in {**steps, "latents": latents}.items() if value is not None]
        if self._source(source, given) == "draws":
            latents = self._drawn(classes, generator)
        else:
            latents = self._denoised(
                num_images or 1 if classes is None else len(classes),
                classes,
                latents,
                generator,
                200 if num_inference_steps is None else num_inference_steps,
                1.0 if eta is None else eta,
                1.0 if guidance_scale is None else guidance_scale,
            )
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)
        if output_type != "pt":
            images = (images / 2 + 0.5).cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images)

    def _source(self, asked, given):
        """The source of latents; ``given`` are the names of arguments of the sampler."""
        if asked not in (None, "model", "draws"):
            raise ValueError(f"source={asked!r} is unknown; choose 'model' or 'draws'")
        if asked == "draws" and self.draws is None:
            raise ValueError("this release has no statistics to draw from; leave source='draws' out")
        if asked == "draws" and given:
            raise ValueError(f"draws take no diffusion step; leave {given[0]} out, or give source='model'")
        return asked or ("model" if given or self.draws is None else self.config.source)

    def _drawn(self, classes, generator):
        """Latents drawn from the statistics of ``classes``."""
        number = self.draws.config.classes
        if classes is None:
            raise ValueError(f"name classes from 0 to {number - 1}")
        labels = self._labels(classes)
        if not all(0 <= label < number for label in labels):
            raise ValueError(f"statistics of {number} classes were released; name classes from 0 to {number - 1}")
        return self.draws.draw(labels, generator).to(self._execution_device, self.vae.dtype)

    def _denoised(self, count, classes, latents, generator, steps, eta, guidance_scale):
        """Latents of the diffusion model, by DDIM."""
        config, device = self.unet.config, self._execution_device
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        latents = latents.to(device, self.unet.dtype)
        condition = self._condition(classes)
        unconditional = None
        if guidance_scale != 1.0:
            if self.config.null_class is None:
                raise ValueError("this model has no class that stands for no condition; leave guidance_scale at 1")
            unconditional = self._condition([self.config.null_class] * count)
        self.scheduler.set_timesteps(steps, device=device)
        for time in self.progress_bar(self.scheduler.timesteps):
            noise = self._predict(latents, time, condition)
            if unconditional is not None:
                without = self._predict(latents, time, unconditional)
                noise = without + guidance_scale * (noise - without)
            latents = self.scheduler.step(noise, time, latents, eta=eta, generator=generator).prev_sample
        return latents

    def _labels(self, classes):
        """Numbers of classes given by number or name."""
        names = list(self.config.class_names or [])
        return [names.index(each) if isinstance(each, str) else int(each) for each in classes]

    def _condition(self, classes):
        """One token of one-hot classes (N, 1, classes); None for a model without classes."""
        number = self.unet.config.get("encoder_hid_dim")
        if number is None:
            return None
        if classes is None:
            raise ValueError(f"name classes from 0 to {number - 1}")
        one_hot = torch.nn.functional.one_hot(
            torch.tensor(self._labels(classes), device=self._execution_device), number
        )
        return one_hot[:, None, :].to(self.unet.dtype)

    def _predict(self, latents, time, condition):
        if condition is None:
            return self.unet(latents, time).sample
        return self.unet(latents, time, encoder_hidden_states=condition).sample
