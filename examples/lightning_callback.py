"""Lightning with automatic optimization: a callback to paste, and a module that makes `reg` with its optimizer."""

from contextlib import ExitStack

import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

import deelbo


class LearnedL2Callback(L.Callback):
    def __init__(self):
        self.block, self.state = ExitStack(), None

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):  # before `reg` is made
        self.state = checkpoint["learned_l2"]

    def on_fit_start(self, trainer, pl_module):
        pl_module.reg.check(trainer.optimizers[0])
        if self.state is not None:
            pl_module.reg.load_state_dict(self.state)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.block.enter_context(pl_module.reg.sample(accumulate=True))

    def on_after_backward(self, trainer, pl_module):  # unscaling, clipping and the step follow
        self.block.close()

    def on_exception(self, trainer, pl_module, exception):
        self.block.__exit__(type(exception), exception, exception.__traceback__)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["learned_l2"] = pl_module.reg.state_dict()


class Module(BoringModel):  # Lightning's smallest module with data of its own; for real use: yours
    def configure_optimizers(self):  # here the weights are on their device
        self.reg = deelbo.LearnedL2(self.layer, num_examples=64, head="1")
        return torch.optim.SGD([*self.layer.parameters(), *self.reg.parameters()], lr=0.01)


if __name__ == "__main__":
    module = Module()
    module.layer = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 2))
    trainer = L.Trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[LearnedL2Callback()], barebones=True)
    trainer.fit(module)
    print(f"lambda {module.reg.lambda_:.3g}, tau {module.reg.tau:.3g}, sigma {module.reg.sigma:.3g}")
