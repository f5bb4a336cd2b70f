"""The commands that show the registry: which models are there, what each was made from, whether its files are whole.

``promote`` and ``rollback`` belong to an account; what they ask of a model is ``trader.training.check_promotable``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trader import cli_paper
from trader.errors import ModelError, NoData
from trader.terminal import settings

if TYPE_CHECKING:
    from trader.registry import Registry


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add ``models list`` and ``models show``; ``shared`` adds the words that every command takes."""
    models = commands.add_parser("models", help="list and check trained models").add_subparsers(
        required=True, metavar="WHAT"
    )
    parser = models.add_parser("list", help="show the trained models of a home")
    shared(parser)
    parser.set_defaults(command=models_list)
    parser = models.add_parser("show", help="say what a model was made from, and check its files")
    shared(parser)
    parser.add_argument("id", metavar="ID", help="its name in `models list`, or the beginning of it")
    parser.set_defaults(command=models_show)
    parser = models.add_parser("promote", help="let an account decide by this model, whatever the rule says")
    shared(parser)
    parser.add_argument("model_id", metavar="ID")
    parser.add_argument("--account", required=True, metavar="NAME")
    parser.set_defaults(command=cli_paper.promote)
    parser = models.add_parser("rollback", help="let an account go back to the model that it used before")
    shared(parser)
    parser.add_argument("--account", required=True, metavar="NAME")
    parser.set_defaults(command=cli_paper.rollback)


def models_list(options: argparse.Namespace) -> None:
    """Print a line for each model of the home, by name."""
    registry = _registry(options)
    ids = registry.ids()
    rows = [("id", "model", "trained on", "last seen", "loss", "KiB", "whole"), *(_row(registry, one) for one in ids)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(ids):,} models in {registry.folder}. Loss: of validation, in nats.")


def _row(registry: Registry, model_id: str) -> tuple[str, ...]:
    size = f"{registry.size(model_id) / 1024:,.0f}"
    try:
        manifest = registry.check(model_id)
    except ModelError as error:
        return model_id, "", "", "", "", size, f"no: {error.what}"
    spans, report = manifest["spans"], manifest["report"]
    trained = f"{spans['train'][0]} to {spans['train'][1]}"
    return model_id, str(manifest.get("model")), trained, spans["last_seen"], _loss(report), size, "yes"


def models_show(options: argparse.Namespace) -> None:
    """Print a model's manifest; raise ModelError where its files are not whole."""
    registry = _registry(options)
    model_id = _named(registry, options.id)
    manifest = registry.check(model_id)
    for label, value in _facts(manifest):
        print(f"{label:<14}{value}")
    print(f"{'files':<14}whole: {registry.size(model_id):,} bytes of weights, sha256 {manifest['weights_sha256']}")


def _facts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    spans, report = manifest["spans"], manifest["report"]
    yield "model", f"{manifest.get('model')}, lookback {manifest.get('lookback')}, seed {manifest.get('seed')}"
    if "market" in manifest:
        yield "learned from", f"{manifest['market']}, news {manifest.get('news')}"
    for name in ("train", "validation"):
        yield name, f"{spans[name][0]} to {spans[name][1]}"
    yield "last seen", spans["last_seen"]
    accuracy = report.get("validation_accuracy")
    yield "loss", f"{_loss(report)} nats on validation" + (f", accuracy {accuracy:.4f}" if accuracy is not None else "")
    yield "epochs", f"{report.get('best_epoch')} kept of {report.get('epochs')}"
    yield "texts", manifest.get("texts")
    yield "code", manifest.get("code")
    yield "versions", ", ".join(f"{name} {version}" for name, version in dict(manifest.get("versions", {})).items())
    yield "settings", ", ".join(f"{name} = {value}" for name, value in dict(manifest.get("settings", {})).items())


def _loss(report: Mapping[str, Any]) -> str:
    loss = report.get("validation_loss")
    return "–" if loss is None else f"{loss:.4f}"


def _named(registry: Registry, beginning: str) -> str:
    """Return the one model whose id begins so; raise NoData where there is none, or several."""
    ids = registry.ids()
    found = [one for one in ids if one == beginning] or [one for one in ids if one.startswith(beginning)]
    if len(found) != 1:
        expected = ", ".join(found[:5]) or "a name in `models list`"
        what = "several models begin so" if found else "no such model"
        raise NoData(what, where=registry.folder, got=beginning, expected=expected)
    return found[0]


def _registry(options: argparse.Namespace) -> Registry:
    from trader.outcome import Home
    from trader.registry import Registry

    return Registry(Home(settings(options)[1]).models)
