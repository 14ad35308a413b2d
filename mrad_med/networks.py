"""MRAD as one network: frozen encoder + memory bank + head."""

from __future__ import annotations

from torch import Tensor, nn

from mrad_med.clip import CLIP, CLIPImageEncoder
from mrad_med.heads import Head, TrainFreeHead
from mrad_med.maps import GAUSSIAN_SIGMA, upsample_and_blur
from mrad_med.memory import MemoryBank
from mrad_med.types import ImageFeatures

__all__ = ["MRAD", "build_mrad_tf"]


class MRAD(nn.Module):
    """Image in, anomaly map out; every step can be called on its own, so that an image is encoded once.

    Args:
        image_encoder: the frozen encoder.
        head: any module with `patch_probability` and `image_probability`.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.
    """

    def __init__(self, image_encoder: CLIPImageEncoder, head: Head, *, sigma: float = GAUSSIAN_SIGMA) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.head = head
        self.sigma = sigma

    def encode(self, images: Tensor) -> ImageFeatures:
        """Return the features of (B, 3, H, W) normalized images."""
        return self.image_encoder(images)  # type: ignore[no-any-return]

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""
        return self.head.patch_probability(features)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        return self.head.image_probability(features)

    def anomaly_map(self, features: ImageFeatures, image_size: tuple[int, int]) -> Tensor:
        """Return (B, 1, H, W) maps in [0, 1], upsampled to ``image_size`` (H, W) and blurred."""
        probability = self.patch_probability(features)
        patch_maps = probability.reshape(-1, 1, *features.grid_size)
        return upsample_and_blur(patch_maps, image_size, sigma=self.sigma).clamp(0, 1)  # float rounding

    def with_bank(self, bank: MemoryBank) -> MRAD:
        """Return the same network over another memory bank, for example an extended one; the encoder is shared."""
        device = next(self.image_encoder.parameters()).device
        return MRAD(self.image_encoder, self.head.with_bank(bank), sigma=self.sigma).to(device).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 1, H, W) anomaly maps in [0, 1] of (B, 3, H, W) normalized images."""
        return self.anomaly_map(self.encode(images), (images.shape[-2], images.shape[-1]))


def build_mrad_tf(clip: CLIP, bank: MemoryBank, *, temperature: float = 1.0, sigma: float = GAUSSIAN_SIGMA) -> MRAD:
    """Return MRAD-TF, the train-free variant.

    Args:
        clip: the backbone that made the bank.
        bank: the memory.
        temperature: similarities are divided by it. The published code uses 1, the paper writes 0.07.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
    """
    bank.check(clip.card)
    head = TrainFreeHead(bank, temperature=temperature)
    device = next(clip.image_encoder.parameters()).device
    return MRAD(clip.image_encoder, head, sigma=sigma).to(device).eval()
