"""Class-conditional or unconditional latent diffusion as a pipeline of the diffusers library.

pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
images = pipeline([0, 1, 2]).images
"""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class LatentDiffusionPipeline(DiffusionPipeline):
    """Noise to latents by DDIM under a class, latents to images by the autoencoder.

    ``class_names``: public names of the classes. ``null_class``: the class that stands for no condition in guidance.
    """

    def __init__(self, unet, vae, scheduler, class_names=None, null_class=None):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(class_names=class_names, null_class=null_class)

    @torch.no_grad()
    def __call__(
        self,
        classes=None,
        num_images=None,
        num_inference_steps=200,
        eta=1.0,
        guidance_scale=1.0,
        generator=None,
        latents=None,
        output_type="pil",
    ):
        """Draw an image for each of ``classes`` (numbers or names), or ``num_images`` without classes.

        ``num_inference_steps`` should divide 1000. ``latents`` (N, C, h, w) is the noise to start from.
        ``output_type``: "pil", "np" (N, H, W, C) in [0, 1], or "pt" (N, C, H, W) in [-1, 1].
        """
        count = num_images or 1 if classes is None else len(classes)
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
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for time in self.progress_bar(self.scheduler.timesteps):
            noise = self._predict(latents, time, condition)
            if unconditional is not None:
                without = self._predict(latents, time, unconditional)
                noise = without + guidance_scale * (noise - without)
            latents = self.scheduler.step(noise, time, latents, eta=eta, generator=generator).prev_sample
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)
        if output_type != "pt":
            images = (images / 2 + 0.5).cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images)

    def _condition(self, classes):
        """One token of one-hot classes (N, 1, classes); None for a model without classes."""
        number = self.unet.config.get("encoder_hid_dim")
        if number is None:
            return None
        if classes is None:
            raise ValueError(f"name classes from 0 to {number - 1}")
        names = list(self.config.class_names or [])
        labels = [names.index(each) if isinstance(each, str) else int(each) for each in classes]
        one_hot = torch.nn.functional.one_hot(torch.tensor(labels, device=self._execution_device), number)
        return one_hot[:, None, :].to(self.unet.dtype)

    def _predict(self, latents, time, condition):
        if condition is None:
            return self.unet(latents, time).sample
        return self.unet(latents, time, encoder_hidden_states=condition).sample
