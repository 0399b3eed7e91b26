"""A folder with a random BERT of two layers and 32 units, and a small vocabulary, as Hugging Face's folders are."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "title", "ball", "team", "king", "war", "atom", "cell", *map(str, range(60))]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


def write_bert(folder: Path, vocabulary: Sequence[str] = VOCABULARY, seed: int = 0, pooler: bool = True) -> Path:
    """Write config.json, vocab.txt and model.safetensors, whose names are those of BertModel; no tokenizer.json."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**CONFIG))
    state = {name: weight for name, weight in model.state_dict().items() if pooler or not name.startswith("pooler")}
    save_file(state, folder / "model.safetensors")
    return folder
