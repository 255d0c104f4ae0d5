"""Small autoencoders that diffusers saved, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def saved(folder: Path, seed: int = 0, scaling_factor: float = 0.5, **options: Any) -> str:
    """Of images of one channel; sides are halved once, and latents have two channels."""
    from diffusers import AutoencoderKL

    given: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "block_out_channels": (8, 8)}
    given |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    given |= {"norm_num_groups": 4, "scaling_factor": scaling_factor, **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderKL(**given).save_pretrained(folder)
    return str(folder)
