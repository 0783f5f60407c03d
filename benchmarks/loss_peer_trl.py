"""Worker of loss.py: TRL's chunked divergence (trl/kernels/chunked_divergence.py, TRL 1.16), run in TRL's environment.

On a CPU it takes TRL's own fallback without Triton. Its sum over positions is left to autograd, as in its trainer.
"""

from __future__ import annotations

from loss_peer_common import Inputs, main
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def trl(inputs: Inputs, divergence: str) -> Tensor:
    """TRL's per-token divergence, weighted and summed."""
    student, teacher = (inputs.hidden_TD, inputs.head_VD), (inputs.teacher_hidden_TD, inputs.teacher_head_VD)
    each, _ = ChunkedDivergenceFunction.apply(*student, None, *teacher, None, BETA[divergence])
    loss: Tensor = (each * inputs.weight_T).sum()
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    main(trl)
