"""Folders that diffusers saved, as generators: of images, of latents, of latents told a class or a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semisynth import optional
from semisynth.adapter import Shape
from semisynth.errors import UserError, between, sentence
from semisynth.generators import parts
from semisynth.generators.identity import configured, identify
from semisynth.generators.options import Options
from semisynth.generators.sampler import Decoder, Predictor, Sampled, Schedule, consistency, ddim
from semisynth.models.autoencoder import HUB, KIND, Autoencoder

INDEX = "model_index.json"
diffusers = partial(optional.library, "diffusers", "a diffusers folder")
QUANTISED = "VQModel"
CONFIGURED = (
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("unet", "transformer", "vae", "vqvae")),
)


class Told(NamedTuple):
    """Conditions: of each class (classes, ...), of none (1, ...), and of a guidance that is an input (1, width)."""

    table: Tensor | None = None
    none: Tensor | None = None
    scale: Tensor | None = None


class Mixture(nn.Module):
    """An embedding that reads class vectors (n, rows): their mixtures of its rows."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, y: Tensor) -> Tensor:
        """The mixtures (n, width)."""
        return y.to(self.embedding.weight.dtype) @ self.embedding.weight


def holds(path: Path) -> bool:
    """Whether it is a folder that diffusers saved."""
    return (path / INDEX).exists()


def fetched(name: str) -> Path:
    """The folder of what hub:OWNER/NAME names, which diffusers fetches and keeps; `UserError` if it cannot."""
    try:
        # Of pickles it takes none where there are safetensors; the safety checker is no part of a generator.
        return Path(diffusers().DiffusionPipeline.download(name.removeprefix(HUB), safety_checker=None))
    except UserError:
        raise
    except Exception as error:  # the hub fails in many ways
        raise UserError(
            f"generator {name} cannot be fetched: {sentence(error)} Give {HUB}OWNER/NAME and a network, or a folder."
        ) from error


def reads(path: Path) -> tuple[str, ...]:
    """The options that it knows."""
    return READS[_kind(path)]


def load(path: Path, options: Options) -> Sampled:
    """The generator in a folder with model_index.json, differentiable in z and in class vectors.

    A diffusion model makes its images in `sampler_steps` of DDIM, a consistency model always in one step; a text-to-
    image model has a class for each prompt. `UserError` for a pipeline of another kind, files that are missing, damaged
    or do not fit each other, and options that the folder cannot follow.
    """
    between(1, 10_000, sampler_steps=options.sampler_steps)
    between(0, 100, guidance=options.guidance)
    between(0, math.inf, chunk=options.chunk)
    make = _kind(path)
    generator = make(path, options).eval().requires_grad_(False)
    asked = {"kind": make.__name__, "steps": options.sampler_steps, "guidance": options.guidance}
    identify(generator, configured(path, CONFIGURED) | asked)  # prompts are among the buffers, encoded
    return generator


def class_names(path: Path, options: Options) -> tuple[str, ...]:
    """The names of its classes, in order: the prompts, those that model_index.json tells in id2label, or numbers."""
    make, names = _kind(path), parts.told(path / INDEX).get("id2label") or {}
    if not isinstance(names, dict):
        raise UserError(f'id2label in {path / INDEX} is {names!r}: it must be of the form {{"0": "cat"}}.')
    if make is _text:
        return tuple(options.texts())
    part, count = ("transformer", "num_embeds_ada_norm") if make is _classes else ("unet", "num_class_embeds")
    classes = parts.told(path / part / "config.json").get(count) or 0
    return tuple(str(names.get(str(number), number)) for number in range(classes))


def _kind(path: Path) -> Callable[[Path, Options], Sampled]:
    name = str(parts.told(path / INDEX).get("_class_name"))
    if name not in KINDS:
        raise UserError(f"{path / INDEX}: the pipeline {name} is not supported. Give one of {', '.join(KINDS)}.")
    return KINDS[name]


def _images(path: Path, options: Options) -> Sampled:
    """DDPM and DDIM: a U-Net of images, perhaps told a class."""
    return _unet(path, options, _along(path, options, pixels=True))


def _one_step(path: Path, options: Options) -> Sampled:
    """A consistency model: a U-Net of images, perhaps told a class."""
    return _unet(path, options, consistency(_scheduler(path)))


def _latents(path: Path, options: Options) -> Sampled:
    """A U-Net of latents."""
    return _unet(path, options, _along(path, options), "vqvae")


def _unet(path: Path, options: Options, schedule: Schedule, decoder: str = "") -> Sampled:
    network = parts.network(diffusers().UNet2DModel, path, "unet", options.dtype)
    told = Told()
    if network.class_embedding is not None:
        if not isinstance(network.class_embedding, nn.Embedding):
            raise UserError(
                f"{path / 'unet'} embeds its classes by {network.config.class_embed_type}: no mixture does."
            )
        network.class_embedding = Mixture(network.class_embedding)
        told = Told(torch.eye(network.config.num_class_embeds))
    return _sampled(path, options, network, schedule, told, decoder)


def _classes(path: Path, options: Options) -> Sampled:
    """DiT: a transformer of latents, told a class; the row behind those of the classes is that of none."""
    network = parts.network(diffusers().DiTTransformer2DModel, path, "transformer", options.dtype)
    classes = network.config.num_embeds_ada_norm
    for block in network.transformer_blocks:
        embeds = block.norm1.emb
        embeds.class_embedder = Mixture(embeds.class_embedder.embedding_table)
    rows = torch.eye(len(embeds.class_embedder.embedding.weight))
    told = Told(rows[:classes], rows[classes:] if len(rows) > classes else None)
    return _sampled(path, options, network, _along(path, options), told, "vae")


def _text(path: Path, options: Options) -> Sampled:
    """Stable Diffusion: a U-Net of latents, told a text; one that was distilled takes few steps and guidance 1."""
    if not (prompts := options.texts()):
        raise UserError(
            f"{path} makes images of texts: give a file with a prompt for each class, with --generator-options.prompts."
        )
    network = parts.network(diffusers().UNet2DConditionModel, path, "unet", options.dtype)
    if network.config.addition_embed_type or network.config.class_embed_type:
        raise UserError(f"{path / 'unet'} reads more than a text: give a folder of Stable Diffusion 1 or 2.")
    *texts, none = _encoded(path, [*prompts.values(), ""])
    wide, read = len(none[0]), network.config.cross_attention_dim
    if read != wide:
        raise UserError(f"{path / 'unet'} reads texts of width {read}, text_encoder gives {wide}: restore the folder.")
    told = Told(torch.stack(texts), none[None])
    if width := network.config.time_cond_proj_dim:
        embed = diffusers().StableDiffusionPipeline.get_guidance_scale_embedding
        told = Told(told.table, None, embed(None, torch.tensor([options.guidance - 1]), width))
    return _sampled(path, options, network, _along(path, options), told, "vae")


def _encoded(path: Path, texts: list[str]) -> Tensor:
    """What the folder's text encoder makes of the texts, (n, tokens, width)."""
    library = optional.library("transformers", parts.TEXT)
    encoder, tokenizer = (
        parts.network(library.CLIPTextModel, path, "text_encoder").float().eval(),
        parts.tokenizer(path / "tokenizer"),
    )
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for text, tokens in zip(texts, tokenizer(texts).input_ids, strict=True):
        if len(tokens) > longest:
            raise UserError(
                f"the prompt '{text}' has {len(tokens)} tokens, the text encoder reads {longest}: shorten it."
            )
    read = tokenizer(texts, padding="max_length", max_length=longest, return_tensors="pt")
    if (last := int(read.input_ids.max())) >= (words := encoder.config.vocab_size):
        raise UserError(f"{path}: the tokenizer has a token {last}, text_encoder reads {words}: restore the folder.")
    masked = getattr(encoder.config, "use_attention_mask", False)
    with torch.no_grad():
        found: Tensor = encoder(read.input_ids, attention_mask=read.attention_mask if masked else None)[0]
    return found


def _sampled(path: Path, options: Options, network: Any, schedule: Schedule, told: Told, decoder: str) -> Sampled:
    """Of these parts and the autoencoder in the folder `decoder`, unless that is blank."""
    channels, size, weight = network.config.in_channels, network.config.sample_size, options.guidance
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(
            f"{path}: sample_size in the network's config.json is {size!r}: give the side of what it makes."
        )
    if weight != 1 and told.none is None and told.scale is None:
        raise UserError(f"{path} has no condition of no class, which guidance moves away from: leave guidance at 1.")
    shape = (channels, *sides)
    vae = _decoder(path / decoder, shape, options) if decoder else None
    predictor = Predictor(network, options.offload, weight, told.scale)
    none = None if weight == 1 else told.none
    return Sampled(predictor, schedule, Decoder(vae, options.offload), shape, told.table, none, options.chunk)


def _decoder(folder: Path, latent: Shape, options: Options) -> Autoencoder:
    """The autoencoder without its encoder; in float32 where float16 would be too narrow for it."""
    told = parts.told(folder / "config.json")
    if (kind := told.get("_class_name")) != KIND:
        why = ", whose rounded latents have no gradient" if kind == QUANTISED else ""
        raise UserError(f"{folder} is an autoencoder of kind {kind}{why}: give a folder with an {KIND}.")
    wide = options.precision == "float16" and told.get("force_upcast", True)
    dtype = torch.float32 if wide else options.dtype
    network = parts.network(getattr(diffusers(), KIND), folder.parent, folder.name, dtype)
    by = 2 ** (len(network.config.block_out_channels) - 1)
    vae = Autoencoder(network, (network.config.out_channels, latent[1] * by, latent[2] * by), str(folder))
    if vae.latent_shape != latent:
        raise UserError(f"{folder} decodes latents {vae.latent_shape}, the network makes {latent}: restore the folder.")
    network.encoder = network.quant_conv = None
    return vae


def _along(path: Path, options: Options, pixels: bool = False) -> Schedule:
    return ddim(_scheduler(path), options.sampler_steps, pixels)


def _scheduler(path: Path) -> dict[str, Any]:
    return parts.told(path / "scheduler" / "scheduler_config.json")


KINDS: dict[str, Callable[[Path, Options], Sampled]] = {
    "DDIMPipeline": _images,
    "DDPMPipeline": _images,
    "ConsistencyModelPipeline": _one_step,
    "LDMPipeline": _latents,
    "DiTPipeline": _classes,
    "StableDiffusionPipeline": _text,
    "LatentConsistencyModelPipeline": _text,
}
MEMORY = ("precision", "offload", "chunk")
READS: dict[Callable[[Path, Options], Sampled], tuple[str, ...]] = {
    _images: ("sampler_steps", *MEMORY),
    _one_step: MEMORY,
    _latents: ("sampler_steps", *MEMORY),
    _classes: ("sampler_steps", "guidance", *MEMORY),
    _text: ("sampler_steps", "guidance", "prompts", *MEMORY),
}
