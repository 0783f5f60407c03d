"""Worker of loss.py: Liger's fused linear JSD (liger_kernel 0.8), run in Liger's environment.

Its hard loss gets weight 0, but is computed. torch.compile, its default, is left out on a CPU.
"""

from __future__ import annotations

import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from loss_peer_common import Inputs, main
from torch import Tensor

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def liger(inputs: Inputs, divergence: str) -> Tensor:
    """Liger's loss; it is a mean over positions, as the benchmark's weights ask."""
    student, teacher = (inputs.hidden_TD, inputs.head_VD), (inputs.teacher_hidden_TD, inputs.teacher_head_VD)
    label = torch.zeros(len(inputs.weight_T), dtype=torch.int64, device=inputs.weight_T.device)
    compute = LigerFusedLinearJSDLoss(0.0, 1.0, beta=BETA[divergence], compiled=inputs.hidden_TD.is_cuda)
    loss: Tensor = compute(*student, *teacher, label)
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    main(liger)
