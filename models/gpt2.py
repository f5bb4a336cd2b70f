"""The first blocks of GPT-2, frozen but for layer norms and positions: a door to transformers beside models.text.

What is frozen is a buffer that no state_dict holds: it gets no gradient and no decay, and 170 MB of it are not written
with every fold's weights. ``fingerprint`` says which numbers they were, so that other ones can be refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from models.checkpoint import folder_of, read_json
from trader.errors import ModelError

RANDOM = "random"


class Blocks(nn.Module):
    """GPT-2 without its words: vectors in, vectors out, each seeing those before it and itself.

    Trained are its layer norms and the positional embeddings of the n positions in use; all else is frozen.
    """

    def __init__(self, weights: str, *, layers: int, width: int, heads: int, n: int, dropout: float, seed: int) -> None:
        """Build or load ``layers`` blocks of ``width`` for n positions; the random stream outside does not move.

        weights: "random", drawn with ``seed`` as GPT-2 draws them at first; or a folder or a hub id of a GPT-2.
        heads: of random blocks; a pretrained model brings its own.   dropout: share of units, in training.
        Raises ModelError where the weights cannot be had, are incomplete, or are not GPT-2's of this width.
        """
        super().__init__()
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            if weights == RANDOM:
                shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": n}
                self.gpt2 = _random({**shape, **drop})
            else:
                self.gpt2 = _pretrained(weights, layers, width, n, drop)
        self.gpt2.wte = nn.Identity()
        self.gpt2.wpe.weight = nn.Parameter(self.gpt2.wpe.weight.detach()[:n].clone())  # (n, H)
        _freeze(self.gpt2)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (B, n, H), oldest first → (B, n, H)."""
        hidden: Tensor = self.gpt2(inputs_embeds=x, use_cache=False).last_hidden_state  # (B, n, H)
        return hidden


def fingerprint(blocks: Blocks) -> NDArray[np.uint8]:
    """Return the sha256 of all that is frozen, (32,)."""
    digest = hashlib.sha256()
    for name, frozen in sorted(blocks.named_buffers()):
        digest.update(f"{name} {tuple(frozen.shape)}".encode())
        digest.update(frozen.cpu().contiguous().numpy().data)
    return np.frombuffer(digest.digest(), np.uint8).copy()


def _freeze(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.Embedding):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


def _random(shape: dict[str, Any]) -> Any:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=1, bos_token_id=0, eos_token_id=0, **shape)
    config._attn_implementation = "eager"  # plain products: a row's bits are its own
    return GPT2Model(config)


def _pretrained(spec: str, layers: int, width: int, n: int, drop: dict[str, Any]) -> Any:
    folder = folder_of(spec)
    facts = read_json(folder / "config.json")
    own = {name: facts.get(name) for name in ("model_type", "n_embd", "n_layer", "n_positions")}
    if own["model_type"] != "gpt2" or own["n_embd"] != width:
        got = f"{own['model_type']} of width {own['n_embd']}"
        do = "set hidden to its width" if own["model_type"] == "gpt2" else "name a GPT-2"
        raise ModelError("not the GPT-2 expected", where=folder, got=got, expected=f"gpt2 of width {width}", do=do)
    if own["n_layer"] < layers or own["n_positions"] < n:
        got = f"{own['n_layer']} blocks, {own['n_positions']} positions"
        raise ModelError("this GPT-2 is too small", where=folder, got=got, expected=f"at least {layers} and {n}")
    return _load(folder, layers, drop)


def _load(folder: Path, layers: int, drop: dict[str, Any]) -> Any:
    """Load the first blocks; raise ModelError unless every weight of theirs is there."""
    from safetensors import SafetensorError
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.GPT2Config.from_pretrained(folder, local_files_only=True, n_layer=layers, **drop)
        model, report = transformers.GPT2Model.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ModelError("the model cannot be loaded", where=folder, got=reason) from error
    # transformers fills missing weights with random ones and prints a line.
    if odd := sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]):
        what = f"{len(odd)} weights are missing or of another shape"
        raise ModelError(what, where=folder, got=", ".join(odd[:3]), do="get the checkpoint again")
    return model
