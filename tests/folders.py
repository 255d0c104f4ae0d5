"""Small folders as diffusers saves its pipelines, of every kind that is known, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import autoencoders
import torch

SIDE = 8  # of images; latents have half of it
MILD = {"num_train_timesteps": 1000, "beta_end": 0.002, "clip_sample": False}  # few values leave the range of images
PROMPTS = ("a bee", "a bed", "a dad")


def _wild(network: Any, scale: float) -> Any:
    """With weights that are zero or nearly so at the start (of gates and last layers) as large as others."""
    for value in network.parameters():
        if value.abs().max() < 1e-3:
            torch.nn.init.normal_(value, std=0.1)
        value.data *= scale
    return network


def _saved(folder: Path, name: str, parts: dict[str, Any], seed: int = 0, **told: Any) -> str:
    """The pipeline `name` of these parts, each a function without arguments or None."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {key: part and part() for key, part in parts.items()}
        options = {"requires_safety_checker": False} if "safety_checker" in made else {}
        getattr(diffusers, name)(**made, **options).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | told))
    return str(folder)


def images(folder: Path, name: str = "DDIMPipeline", classes: int | None = None, channels: int = 1, **told: Any) -> str:
    """A U-Net of images: of DDIM, DDPM, or a consistency model; of latents, where the pipeline is LDMPipeline."""
    import diffusers

    latent = name == "LDMPipeline"
    sizes = {"sample_size": SIDE // 2 if latent else SIDE, "in_channels": channels, "out_channels": channels}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    more = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}

    def unet() -> Any:
        return _wild(diffusers.UNet2DModel(**sizes, **blocks, **more, num_class_embeds=classes), 1.5)

    if name == "ConsistencyModelPipeline":
        schedule: Any = diffusers.CMStochasticIterativeScheduler()
    else:
        schedule = getattr(diffusers, "DDPMScheduler" if name == "DDPMPipeline" else "DDIMScheduler")(**(MILD | told))
    parts = {"unet": unet, "scheduler": lambda: schedule}
    return _saved(folder, name, parts | ({"vqvae": lambda: _vae(folder)} if latent else {}))


def dit(folder: Path, classes: int = 5, **told: Any) -> str:
    """A DiT of latents; it predicts a variance too, as the published ones do."""
    import diffusers

    sizes = {"sample_size": SIDE // 2, "in_channels": 2, "out_channels": 4, "patch_size": 2, "num_layers": 2}
    heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_embeds_ada_norm": classes, "norm_num_groups": 1}
    parts = {
        "transformer": lambda: _wild(diffusers.DiTTransformer2DModel(**sizes, **heads), 2.0),
        "vae": lambda: _vae(folder),
        "scheduler": lambda: diffusers.DDIMScheduler(**(MILD | told)),
    }
    return _saved(folder, "DiTPipeline", parts, id2label={str(i): f"thing {i}" for i in range(classes)})


def text(folder: Path, name: str = "StableDiffusionPipeline", scheduler: str = "DDIMScheduler", **told: Any) -> str:
    """A U-Net of latents, a text encoder, and a tokenizer of the letters a to e.

    In a pipeline of latent consistency the U-Net is told its guidance.
    """
    import diffusers

    width = {"cross_attention_dim": 8, "time_cond_proj_dim": 6 if name.startswith("Latent") else None}
    sizes = {"sample_size": SIDE // 2, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, **width}
    down = {"block_out_channels": (8, 8), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    more = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 4, "attention_head_dim": 2}
    parts = {
        "unet": lambda: _wild(diffusers.UNet2DConditionModel(**sizes, **down, **more), 1.5),
        "vae": lambda: _vae(folder),
        "scheduler": lambda: getattr(diffusers, scheduler)(**(told or MILD | {"steps_offset": 1})),
        "text_encoder": _encoder,
        "tokenizer": lambda: _tokenizer(folder),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return _saved(folder, name, parts)


def _vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(
        autoencoders.saved(folder.with_name("autoencoder"), in_channels=3, out_channels=3), low_cpu_mem_usage=False
    )


def _encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": 14, "bos_token_id": 12, "eos_token_id": 13, "pad_token_id": 13}
    return _wild(CLIPTextModel(CLIPTextConfig(**sizes, **ids, max_position_embeddings=8)), 1.5)


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    place = folder.with_name("tokens")
    place.mkdir(exist_ok=True)
    letters = "abcde"
    words = [*letters, *(f"{x}</w>" for x in letters), "be", "ad</w>", "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\nb e\na d</w>\n")
    return CLIPTokenizer.from_pretrained(place, model_max_length=8)
