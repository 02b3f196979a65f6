"""Other people's networks on Fashion-MNIST, trained and sampled as their own examples do it, from their own packages.

Each `Peer` trains for a number of processor seconds and then draws. Their batches come by index from one tensor, as
ours do, not through their slower loaders; what else differs from the example stands in its docstring. A package is
imported where its peer is built, so that one can be measured where the others are not installed.
"""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmdiff_helpers.data import to_model

BATCH_SIZE = 128


def batches_for(seconds: float, images: Tensor, labels: Tensor, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in [-1, 1], each image flipped or not where `flip`, until the process has worked for `seconds`."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        index = torch.randint(len(images), (BATCH_SIZE,))
        x0 = to_model(images[index])
        if flip:
            x0 = torch.where(torch.rand(BATCH_SIZE, 1, 1, 1) < 0.5, x0.flip(3), x0)
        yield x0, labels[index]


class SmallDiffusion:
    """A network of smalldiffusion and its training: AdamW, averaged weights, images flipped; 20 steps of its sampler.

    The batch is 128 in place of 1,024, of which it would see only a handful in a few minutes of one core.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor, network: nn.Module, schedule: object, lr: float, decay: float):
        self.images, self.labels, self.network, self.schedule = images, labels, network, schedule
        self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=lr)

    def networks(self) -> list[nn.Module]:
        """Return what it trains."""
        return [self.network]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds and return how many images were seen."""
        from smalldiffusion.diffusion import generate_train_sample

        seen = 0
        self.network.train()
        for x0, _ in batches_for(seconds, self.images, self.labels, flip=True):
            x0, sigma, eps, _ = generate_train_sample(x0, self.schedule)
            self.optimizer.zero_grad()
            self.network.get_loss(x0, sigma, eps).backward()
            self.optimizer.step()
            self.averaged.update_parameters(self.network)
            seen += len(x0)
        return seen

    def draw(self, n: int, seed: int) -> tuple[Tensor, None]:
        """Return n images (n, 1, 28, 28) in [-1, 1]; it takes no labels."""
        from smalldiffusion import samples

        parts, noise = [], torch.randn((n, 1, 28, 28), generator=torch.Generator().manual_seed(seed))
        sigmas = self.schedule.sample_sigmas(self.evaluations)
        for part in noise.split(250):
            *_, x0 = samples(self.averaged.module, sigmas, gam=1.6, xt=part * sigmas[0])
            parts.append(x0.clamp(-1, 1))
        return torch.cat(parts), None


def small_unet(images: Tensor, labels: Tensor) -> SmallDiffusion:
    """Return smalldiffusion's U-Net of examples/fashion_mnist_unet.py."""
    from smalldiffusion import Scaled, ScheduleLogLinear, Unet

    network = Scaled(Unet)(28, 1, 1, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(14,))
    schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
    return SmallDiffusion(images, labels, network, schedule, lr=7e-4, decay=0.999)


def small_dit(images: Tensor, labels: Tensor) -> SmallDiffusion:
    """Return smalldiffusion's transformer of examples/fashion_mnist_dit.py."""
    from smalldiffusion import DiT, ScheduleDDPM

    network = DiT(in_dim=28, channels=1, patch_size=2, depth=6, head_dim=32, num_heads=6, mlp_ratio=4.0)
    return SmallDiffusion(images, labels, network, ScheduleDDPM(), lr=1e-3, decay=0.99)


class CourseUNet:
    """The U-Net of diffusers as unit 2 of the Hugging Face course sets it up, told the label by four more channels.

    T = 1000 squared-cosine betas, MSE of the noise, Adam at 1e-3, batch 128. The course draws with all 1000 steps;
    here it is DDIM with 20.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor, lr: float = 1e-3):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        self.images, self.labels = images, labels
        betas = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
        self.noising, self.ddim = DDPMScheduler(**betas), DDIMScheduler(**betas)
        self.embed = nn.Embedding(10, 4)
        self.network = UNet2DModel(
            sample_size=28,
            in_channels=5,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.optimizer = torch.optim.Adam([*self.network.parameters(), *self.embed.parameters()], lr=lr)

    def networks(self) -> list[nn.Module]:
        """Return what it trains."""
        return [self.network, self.embed]

    def predict(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the predicted noise."""
        label = self.embed(y)[:, :, None, None].expand(-1, -1, 28, 28)
        return self.network(torch.cat([x, label], dim=1), t).sample

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds and return how many images were seen."""
        seen = 0
        self.network.train()
        for x0, y in batches_for(seconds, self.images, self.labels, flip=False):
            t, eps = torch.randint(1000, (len(x0),)), torch.randn_like(x0)
            self.optimizer.zero_grad()
            F.mse_loss(self.predict(self.noising.add_noise(x0, eps, t), t, y), eps).backward()
            self.optimizer.step()
            seen += len(x0)
        return seen

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return n images (n, 1, 28, 28) in [-1, 1] and their labels."""
        self.network.eval()
        parts, y = [], torch.arange(n) % 10
        self.ddim.set_timesteps(self.evaluations)
        noise = torch.randn((n, 1, 28, 28), generator=torch.Generator().manual_seed(seed))
        for x, labels in zip(noise.split(250), y.split(250), strict=True):
            for t in self.ddim.timesteps:
                x = self.ddim.step(self.predict(x, t, labels), t, x).prev_sample
            parts.append(x.clamp(-1, 1))
        return torch.cat(parts), y


class LucidUNet:
    """The U-Net of lucidrains' denoising-diffusion-pytorch with its trainer's settings; it takes no labels.

    Width 28, as the Annotated Diffusion Model's, which descends from it. T = 1000 sigmoid betas, the target is v, Adam
    at 1e-4, weights averaged every 10 steps, images flipped; 20 steps of DDIM. The batch is 128 in place of 16.
    """

    evaluations = 20

    def __init__(self, images: Tensor, labels: Tensor, lr: float = 1e-4):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        self.images, self.labels = images, labels
        network = Unet(28, dim_mults=(1, 2, 4), channels=1)
        self.diffusion = GaussianDiffusion(network, image_size=28, sampling_timesteps=self.evaluations)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=lr, betas=(0.9, 0.99))
        self.averaged = EMA(self.diffusion, beta=0.995, update_every=10)

    def networks(self) -> list[nn.Module]:
        """Return what it trains."""
        return [self.diffusion.model]

    def train(self, seconds: float) -> int:
        """Train for so many processor seconds and return how many images were seen."""
        seen = 0
        for x0, _ in batches_for(seconds, self.images, self.labels, flip=True):
            self.diffusion((x0 + 1) / 2).backward()
            torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averaged.update()
            seen += len(x0)
        return seen

    def draw(self, n: int, seed: int) -> tuple[Tensor, None]:
        """Return n images (n, 1, 28, 28) in [-1, 1]."""
        torch.manual_seed(seed)
        sizes = [len(part) for part in torch.arange(n).split(250)]
        return torch.cat([2 * self.averaged.ema_model.sample(size) - 1 for size in sizes]).clamp(-1, 1), None
