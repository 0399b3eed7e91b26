"""transformers' Trainer: a subclass to paste; ``head`` is the dotted name of the model's new layer."""

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import deelbo


class LearnedL2Trainer(Trainer):
    def __init__(self, *args, head=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # else losses that ignore them, as BERT's, are not divided to a mean
        self.head, self.reg = head, None

    def create_optimizer(self, *args, **kwargs):
        has_reg = self.reg is not None and self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if not has_reg:
            self.reg = deelbo.LearnedL2(self.model, len(self.train_dataset), head=self.head)
            optimizer.add_param_group({"params": self.reg.parameters(), "weight_decay": 0.0})
        self.reg.check(optimizer)
        return optimizer

    def training_step(self, *args, **kwargs):
        with self.reg.sample(accumulate=True):
            return super().training_step(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir):  # for each checkpoint
        super()._save_optimizer_and_scheduler(output_dir)
        torch.save(self.reg.state_dict(), Path(output_dir, "learned_l2.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.reg.load_state_dict(torch.load(Path(checkpoint, "learned_l2.pt"), weights_only=True))


if __name__ == "__main__":
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))  # for real use: from_pretrained
    data = [{"input_ids": ids, "labels": ids.sum() % 2} for ids in torch.randint(0, 50, (64, 10))]
    args = TrainingArguments(tempfile.mkdtemp(), gradient_accumulation_steps=2, learning_rate=0.01, report_to="none")
    trainer = LearnedL2Trainer(model, args, train_dataset=data, head="classifier")
    trainer.train()
    print(f"lambda {trainer.reg.lambda_:.3g}, tau {trainer.reg.tau:.3g}, sigma {trainer.reg.sigma:.3g}")
