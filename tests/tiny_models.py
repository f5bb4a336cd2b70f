"""Real architectures in miniature, random weights, with a tokenizer trained on the spot: what a hub folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEADLINES = [
    "Stocks rise as inflation cools",
    "Fed holds interest rates",
    "Oil falls 3 pct on glut fears and a stronger dollar, and exporters cut their output for the third month running",
    "Boeing shares jump",
    "Boeing shares plunge after the regulator grounds its newest airliner and suppliers stop deliveries to the plant",
    "S&P 500 closes at a record",
    "",
    "Bank of Japan surprises",
    "U.S. payrolls grow by 162,000, less than economists had expected, and the unemployment rate falls to 7.4 percent",
    "Gold slips",
]


def tiny_tokenizer(kind: str) -> Any:
    """Train 300 words: BERT and RoBERTa with their two special tokens, Llama with a first one and no pad token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bert": ["[PAD]", "[CLS]", "[SEP]"], "roberta": ["<s>", "<pad>", "</s>"], "llama": ["<s>"]}[kind]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[*special, "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(HEADLINES, trainer)
    first, last = {"bert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>"), "llama": ("<s>", "")}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
        special_tokens=[(word, tokenizer.token_to_id(word)) for word in (first, last) if word],
    )
    pad = {"bert": "[PAD]", "roberta": "<pad>", "llama": None}[kind]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=pad)


def tiny_model(folder: Path, kind: str = "bert", labels: list[str] | None = None, seed: int = 0) -> Path:
    """Save a model of width 32 with two layers; with ``labels``, a classifier on top of it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    pad = {"bert": 0, "roberta": 1}.get(kind)
    shape |= {"intermediate_size": 64, "max_position_embeddings": 130, "pad_token_id": pad}
    name = {"bert": "Bert", "roberta": "Roberta", "llama": "Llama"}[kind]
    config = getattr(transformers, f"{name}Config")(**shape)
    if labels is None:
        model = getattr(transformers, f"{name}Model")(config)
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: column for column, label in enumerate(labels)}
        config.num_labels = len(labels)
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    for weight in model.parameters():  # BERT's initial spread of 0.02 would make all texts nearly equal
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder
