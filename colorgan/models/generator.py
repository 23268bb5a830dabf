"""The generator's Python interface: loaded from a folder or from the Hugging Face hub.

    generator = Generator.from_pretrained("runs/pretrain/generator")  # or "user/name" on the hub
    colored = generator.color(photo)                                  # uint8, 3 x H x W
    generator.push_to_hub("user/name")                                # huggingface_hub's

It holds a network of `colorgan/models/unet.py` and the config of its folder; both are read and
written by `colorgan/models/model_folder.py`, so that every command takes the folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from colorgan.errors import ModelFolderError
from colorgan.models.colorizing import color_photo
from colorgan.models.model_config import ModelConfig, check_colors
from colorgan.models.model_folder import load_model, write_model
from colorgan.models.modes import set_inference
from colorgan.models.photo_input import as_photo
from colorgan.models.pretrained import find_model
from shards.extras import install_command


class Generator(
    nn.Module,
    ModelHubMixin,
    library_name="colorgan",
    license="mit",
    tags=["image-colorization", "gan", "pix2pix"],
    pipeline_tag="image-to-image",
):
    """Maps normalised luminance to normalised chroma; see `forward` and `color`."""

    def __init__(self, network: nn.Module, model_config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.model_config = model_config
        set_inference(network, model_config.inference)

    def forward(self, luminance_B1HW: Tensor) -> Tensor:
        """Map L/50 - 1 (B, 1, S, S) to ab over `model_config.ab_scale` (B, 2, S, S), in [-1, 1]."""
        chroma_B2HW: Tensor = self.network(luminance_B1HW)
        return chroma_B2HW

    def color(self, photo: Any, seed: int = 0) -> Tensor:
        """Return a photo in color, as float sRGB in [0, 1], 3HW.

        Args:
            photo: of any size, as `colorgan.models.photo_input.as_photo` takes it (PIL, numpy, or
                a tensor 3HW; uint8, or floats in [0, 1]); its own colors are not used.
            seed: Of the dropout of "paper" inference.

        Raises:
            UsageError: It is no photo, or could be read in two ways.
        """
        config = self.model_config
        _, colored = color_photo(
            self.network,
            as_photo(photo),
            image_size=config.architecture.image_size,
            ab_scale=config.ab_scale,
            seed=seed,
        )
        return colored

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **keywords: Any
    ) -> Generator:
        """Load a generator folder, or download one from the hub; in eval mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder that `launcher/consolidate.py` wrote, or
                `user/name`.
            keywords: huggingface_hub's own: revision, token, cache_dir, force_download,
                local_files_only.

        Raises:
            ModelFolderError: it is no generator of ours; nothing of it was executed.
        """
        # The mixin would read config.json by itself, of any size and content, before we have
        # checked it.
        path = find_model(pretrained_model_name_or_path, **keywords)
        network, config = load_model(path, "generator")
        check_colors(config, path)
        return cls(network, config).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the folder that `from_pretrained` and every command take."""
        write_model(save_directory, self.network, self.model_config)


def require_onnx() -> None:
    """Raise ModelFolderError unless networks can be exported to ONNX and checked."""
    # onnxscript is what torch.onnx needs.
    for name in ("onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ModelFolderError(f"ONNX export needs {name}: {install_command('onnx')}")


def export_onnx(folder: Path, out: Path) -> None:
    """Write a generator folder's network as ONNX.

    `luminance` (B, 1, S, S) to `chroma` (B, 2, S, S), any B.

    Raises:
        ModelFolderError: no generator folder, or the extra `onnx` is not installed.
    """
    require_onnx()
    # Checked like any folder from elsewhere before torch traces it.
    generator = Generator.from_pretrained(folder)
    # The batch's own statistics would make one image change another.
    set_inference(generator.network, "running")
    size = generator.model_config.architecture.image_size
    with warnings.catch_warnings():
        # torch's own, about torch's own code: nothing that whoever exports could change.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            generator.network,
            # Two images: with one, torch would take the batch's size for a constant.
            (torch.zeros(2, 1, size, size),),
            out,
            input_names=["luminance"],
            output_names=["chroma"],
            dynamic_shapes={"luminance_B1HW": {0: torch.export.Dim("batch")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def check_onnx(path: Path, folder: Path, tolerance: float = 1e-3) -> float:
    """Run the ONNX file with onnxruntime on random luminance.

    Return the largest difference from the network.

    Raises:
        ModelFolderError: onnxruntime is not installed, or the outputs differ by more than
            `tolerance` (of order 1).
    """
    require_onnx()
    onnxruntime = importlib.import_module("onnxruntime")  # has no types

    network, config = load_model(folder, "generator")
    size = config.architecture.image_size
    random = torch.Generator().manual_seed(0)
    luminance = torch.rand(3, 1, size, size, generator=random) * 2 - 1

    # On the CPU: another provider's arithmetic would differ for reasons of its own.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(["chroma"], {"luminance": luminance.numpy()})
    with torch.no_grad():
        expected = network(luminance)
    difference = float((torch.from_numpy(output) - expected).abs().max())
    # Written so that NaN is refused, too.
    if not difference <= tolerance:
        raise ModelFolderError(
            f"{path}: onnxruntime's output differs by {difference:.2g} from the network's"
        )
    return difference
