"""FPT: which parts of GPT-2 learn and which never move, what a window becomes, and where the weights come from."""

from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import pytest
from safetensors.numpy import load_file, save_file
import torch

from models.base import Days
from models.fitting import InMemory
from models.fpt import FROZEN, Fpt, FptConfig, Network, instance_norm, patch_count, patches
from models.gpt2 import Blocks, fingerprint
from tests.tiny_models import tiny_tokenizer
from trader.errors import ConfigError, ModelError

SMALL = {"hidden": 64, "heads": 2, "blocks": 2, "trailing": 3, "lookback": 5, "epochs": 2}
TRAIN, VALIDATION = range(10, 74), range(76, 96)


def config(**changes: object) -> FptConfig:
    return FptConfig(**(SMALL | changes))  # type: ignore[arg-type]


def made_days(S: int = 120, seed: int = 0) -> Days:
    """Return random days with four headlines each; tomorrow rises where most of today's are good."""
    rng = np.random.default_rng(seed)
    good = rng.random((S, 4)) < rng.choice([0.15, 0.85], (S, 1))
    sentiment = np.where(good.reshape(-1, 1), [0.1, 0.3, 0.6], [0.6, 0.3, 0.1])
    return Days(
        market=rng.normal(0, 0.01, (S, 6)).astype(np.float32),
        next_return=np.where(good.mean(axis=1) > 0.5, 0.01, -0.01),
        news_offset=np.arange(S + 1, dtype=np.int64) * 4,
        news_text=np.zeros(4 * S, np.int64),
        news_sentiment=sentiment.astype(np.float32),
        market_text=0,
        texts=InMemory(np.zeros((1, 8), np.float32)),
    )


def blocks(seed: int = 0, n: int = 5, weights: str = "random", layers: int = 2, width: int = 32) -> Blocks:
    return Blocks(weights, layers=layers, width=width, heads=2, n=n, dropout=0.1, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GPT-2 of width 32 with three blocks, as a hub has it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(3)
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "vocab_size": 300}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(path)
    tiny_tokenizer("llama").save_pretrained(path)
    return path


# A window, and what it becomes


def test_each_channel_of_a_window_gets_mean_zero_and_variance_one_and_no_gradient_flows_through_them() -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(3, 2, (2, 5, 3)), requires_grad=True)
    normal = instance_norm(x)
    for b in range(2):
        for c in range(3):
            values = [float(v) for v in x.detach()[b, :, c]]
            mean = sum(values) / 5
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / 5 + 1e-5)
            np.testing.assert_allclose(normal[b, :, c].detach().numpy(), [(v - mean) / std for v in values], rtol=1e-9)
    normal[0, 0, 0].backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert (x.grad != 0).sum() == 1  # through mean and std, the window's other days would get some as well


def test_a_window_of_one_day_keeps_its_numbers() -> None:
    x = torch.randn(4, 1, 3)
    assert torch.equal(instance_norm(x), x)


@pytest.mark.parametrize(("t", "p", "s"), [(1, 4, 2), (3, 4, 2), (5, 4, 2), (10, 4, 2), (20, 4, 2), (20, 16, 8)])
def test_patches_hold_consecutive_days_and_the_last_day_is_repeated_at_the_end(t: int, p: int, s: int) -> None:
    x = torch.arange(2 * t * 3, dtype=torch.float32).reshape(2, t, 3)
    cut = patches(x, p, s)
    slow = []
    for begin in range(0, max(t, p) + s - p + 1, s):
        slow.append(torch.cat([x[:, min(day, t - 1)] for day in range(begin, begin + p)], dim=1))
    assert torch.equal(cut, torch.stack(slow, dim=1))
    assert cut.shape == (2, patch_count(t, p, s), p * 3)
    assert (cut[:, -1] == x[:, -1:, 0]).any(), "the last day is in the last patch"


# What learns, and what never moves


def test_attention_and_feed_forward_get_no_gradient_and_layer_norms_and_positions_do() -> None:
    network = Network(config(dropout=0.0), 22)
    network(torch.randn(8, 5, 22)).square().sum().backward()
    names = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert names == dict(network.named_parameters()).keys()
    tuned = {name for name in names if name.startswith("blocks.")}
    assert {name.rsplit(".", 2)[-2] for name in tuned} == {"ln_1", "ln_2", "ln_f", "wpe"}
    frozen = dict(network.blocks.named_buffers())
    assert {name.split(".")[3] for name in frozen} == {"attn", "mlp"} and len(frozen) == 2 * 8
    assert not any(tensor.requires_grad for tensor in frozen.values())


def test_training_moves_what_is_tuned_and_nothing_that_is_frozen() -> None:
    model = Fpt(config(learning_rate=1e-2, dropout=0.0))
    before = Network(model.config, 22).blocks
    model.fit(made_days(), TRAIN, VALIDATION, seed=1)
    after = model._trained()[1].blocks
    assert isinstance(after, Blocks)
    assert np.array_equal(fingerprint(before), fingerprint(after))
    tuned = dict(after.named_parameters())
    assert all(not torch.equal(tensor, tuned[name]) for name, tensor in before.named_parameters())


def test_the_weights_hold_what_was_trained_and_only_a_fingerprint_of_the_rest() -> None:
    model = Fpt(config())
    model.fit(made_days(), TRAIN, VALIDATION, seed=1)
    weights = model.weights()
    assert not [name for name in weights if ".attn." in name or ".mlp." in name or "wte" in name]
    assert weights[FROZEN].shape == (32,) and weights[FROZEN].dtype == np.uint8
    assert weights["fpt.blocks.gpt2.wpe.weight"].shape == (patch_count(5, 4, 2), 64)


def test_a_vector_sees_those_before_it_and_itself() -> None:
    gpt2, x = blocks().eval(), torch.randn(1, 5, 32)
    changed = x.clone()
    changed[:, 3] = torch.randn(32)
    moved = ((gpt2(x) - gpt2(changed)).abs() > 1e-4).any(dim=2)[0]
    assert moved.tolist() == [False, False, False, True, True]


def test_blocks_equal_gpt2_written_out_by_hand() -> None:
    gpt2 = blocks(layers=1).eval()
    x = torch.randn(3, 5, 32)
    w = {name.removeprefix("gpt2."): tensor for name, tensor in (*gpt2.named_parameters(), *gpt2.named_buffers())}

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        scaled = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(y: torch.Tensor, name: str) -> torch.Tensor:
        return y @ w[f"h.0.{name}.weight"] + w[f"h.0.{name}.bias"]

    h = x + w["wpe.weight"]
    q, k, v = linear(norm(h, "h.0.ln_1"), "attn.c_attn").reshape(3, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
    score = (q @ k.transpose(2, 3) / 4).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    h = h + linear((score.softmax(3) @ v).transpose(1, 2).reshape(3, 5, 32), "attn.c_proj")
    wide = torch.nn.functional.gelu(linear(norm(h, "h.0.ln_2"), "mlp.c_fc"), approximate="tanh")
    torch.testing.assert_close(gpt2(x), norm(h + linear(wide, "mlp.c_proj"), "ln_f"), rtol=1e-4, atol=1e-5)


# Where the weights come from


def test_random_blocks_are_those_of_their_seed_and_leave_the_random_stream_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert np.array_equal(fingerprint(blocks(0)), fingerprint(blocks(0)))
    assert not np.array_equal(fingerprint(blocks(0)), fingerprint(blocks(1)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_trained_on_other_frozen_blocks_are_refused_and_what_was_there_stays() -> None:
    days, model = made_days(), Fpt(config())
    model.fit(days, TRAIN, VALIDATION, seed=1)
    other = Fpt(config(weights_seed=1))
    with pytest.raises(ValueError, match="trained on other frozen blocks"):
        other.load(model.weights())
    with pytest.raises(ModelError, match="not been trained"):
        other.predict(days, [50])
    other.fit(days, TRAIN, VALIDATION, seed=1)
    before = other.predict(days, VALIDATION).p_up
    with pytest.raises(ValueError, match="trained on other frozen blocks"):
        other.load(model.weights())
    assert np.array_equal(other.predict(days, VALIDATION).p_up, before)


def test_a_pretrained_gpt2_gives_its_first_blocks_and_positions(folder: Path) -> None:
    from transformers import GPT2Model

    gpt2 = blocks(weights=str(folder)).eval()
    whole = GPT2Model.from_pretrained(folder)
    held = dict(gpt2.gpt2.named_parameters()) | dict(gpt2.gpt2.named_buffers())
    assert {name.split(".")[1] for name in held if name.startswith("h.")} == {"0", "1"}
    for name, tensor in whole.named_parameters():
        if not name.startswith(("wte", "h.2.")):
            assert torch.equal(held[name], tensor[:5] if name == "wpe.weight" else tensor), name
    days, model = made_days(), Fpt(config(weights=str(folder), hidden=32))
    model.fit(days, TRAIN, VALIDATION, seed=1)
    copy = Fpt(model.config)
    copy.load(model.weights())
    assert np.array_equal(copy.predict(days, VALIDATION).p_up, model.predict(days, VALIDATION).p_up)


def test_a_gpt2_with_a_weight_missing_is_refused_and_never_filled_with_chance(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing.*h\.1\.mlp\.c_fc\.weight"):
        blocks(weights=str(tmp_path))
    assert len(list(blocks(weights=str(tmp_path), layers=1).buffers())) == 8, "of blocks in use, none is missing"
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        blocks(weights=str(tmp_path))


def test_what_is_no_gpt2_of_this_shape_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected gpt2 of width 64.*set hidden to its width"):
        blocks(weights=str(folder), width=64)
    with pytest.raises(ModelError, match=r"too small .*3 blocks, 16 positions, expected at least 6 and 5"):
        blocks(weights=str(folder), layers=6)
    with pytest.raises(ModelError, match="no such model folder"):
        blocks(weights=str(tmp_path / "nothing"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "n_embd": 32}))
    with pytest.raises(ModelError, match=r"bert of width 32.*name a GPT-2"):
        blocks(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"), [({"heads": 3}, "do not divide"), ({"stride": 0}, "stride is too small")]
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)


# As a model


@pytest.mark.parametrize("lookback", [1, 3, 5, 10, 20])
def test_it_reads_the_headlines_at_every_lookback(lookback: int) -> None:
    days = made_days(400)
    model = Fpt(config(lookback=lookback, epochs=10, learning_rate=3e-3, blocks=1))
    model.fit(days, range(30, 230), range(230, 270), seed=1)
    p_up: NDArray[np.float64] = model.predict(days, range(270, 400)).p_up
    assert ((p_up > 0.5) == (days.label[270:] > 0.5)).mean() > 0.7


def test_only_the_shape_of_a_window_counts_not_its_level() -> None:
    days = made_days()
    model = Fpt(config())
    model.fit(days, TRAIN, VALIDATION, seed=1)
    raised = replace(days, market=days.market + np.float32(0.005))
    windows = model._trained()[2]
    inside = np.abs(windows(raised, VALIDATION)).max(axis=(1, 2)) < 5  # what is cut has lost its shape
    assert inside.sum() > 5
    before, after = (model.predict(one, VALIDATION).p_up[inside] for one in (days, raised))
    np.testing.assert_allclose(after, before, atol=1e-4)
