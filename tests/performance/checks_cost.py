"""Cost of the checks of `LearnedL2.sample` as a share of a training step, as JSON.

The checks of one step (block, hooks of the weights' gradients, hooks of the optimizer) are called 2,000 times without
the step around them; whole steps are timed in the same process.
"""

import json
import statistics
import time
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from deelbo import LearnedL2, _loop_checks
from deelbo.pretrained.backbones import build_backbone

CALLS, STEPS, THREADS = 2000, 7, 2
CASES = {
    "resnet18, 64 px, batch 32": (partial(resnet18, num_classes=10), (32, 3, 64, 64)),
    "digits-resnet, 16 px, batch 50": (lambda: build_backbone("digits-resnet", 10)[0], (50, 1, 16, 16)),
}


def measure(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    reg = LearnedL2(model, 1000, head="fc")
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=1e-3, momentum=0.9, nesterov=True)
    x, y = torch.randn(shape), torch.arange(shape[0]) % 10
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with reg.sample():
            F.cross_entropy(model(x), y).backward()
        opt.step()
        seconds.append(time.perf_counter() - start)
    checks = reg._checks
    start = time.perf_counter()
    for _ in range(CALLS):
        checks.enter(False)
        checks.record_draw()
        for weight in reg.weights:
            _loop_checks._on_gradient(checks._reference, weight)
        checks.check_draw()
        checks.leave(True)
        _loop_checks._before_step(opt, (opt,), {})
        _loop_checks._after_step(opt)
    cost = (time.perf_counter() - start) / CALLS
    step = statistics.median(seconds)
    return {"step_ms": 1e3 * step, "checks_ms": 1e3 * cost, "share": cost / step}


def main() -> None:
    torch.set_num_threads(THREADS)
    print(json.dumps({name: measure(make(), shape) for name, (make, shape) in CASES.items()}, indent=1))


if __name__ == "__main__":
    main()
