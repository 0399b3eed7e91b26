"""PEFT: a BERT with LoRA adapters; only the adapters and the new classifier are trained and regularized."""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import deelbo

HEAD = "base_model.model.classifier"  # PEFT trains the copy of it that is in modules_to_save


def make_model():
    """Return a tiny BERT with random weights and LoRA adapters on its attention."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))  # for real use: from_pretrained
    return get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))


def train(model, batches, reg, opt, micro_batches=1):
    """Train on the batches; each is split into so many micro-batches."""
    for ids, labels in batches:
        with reg.sample():
            for some, their_labels in zip(ids.chunk(micro_batches), labels.chunk(micro_batches), strict=True):
                (model(input_ids=some, labels=their_labels).loss * len(some) / len(ids)).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *reg.parameters()], 1.0)
        opt.step()


if __name__ == "__main__":
    model = make_model()
    ids = torch.randint(0, 50, (64, 10))
    batches = list(zip(ids.split(16), (ids.sum(1) % 2).split(16), strict=True))
    reg = deelbo.LearnedL2(model, num_examples=len(ids), head=HEAD)  # after get_peft_model has frozen BERT
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW([*trained, *reg.parameters()], lr=0.01, weight_decay=0.0)  # AdamW's default is 0.01
    reg.check(opt)
    train(model, batches, reg, opt, micro_batches=2)
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    torch.save(reg.state_dict(), folder / "learned_l2.pt")
    print(f"lambda {reg.lambda_:.3g}, tau {reg.tau:.3g}, sigma {reg.sigma:.3g}")
