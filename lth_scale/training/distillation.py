"""Knowledge distillation from the dense network (Hinton, Vinyals & Dean 2015, arXiv:1503.02531)."""

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 2.0
SHARE = 0.5  # of the teacher in the loss


def blend(loss: Tensor, outputs: Tensor, taught: Tensor) -> Tensor:
    """(1 − SHARE) · loss + SHARE · T² · KL(teacher ‖ student), both softened by T; squared error for regression.

    outputs, taught: of student and teacher, fp32, the softmax over the last dimension (of size 1: a regression).
    """
    if outputs.shape[-1] == 1:
        distance = F.mse_loss(outputs.float(), taught.float())
    else:
        student, teacher = (
            (logits.float() / TEMPERATURE).log_softmax(-1) for logits in (outputs, taught)
        )
        rows = max(1, outputs.numel() // outputs.shape[-1])
        distance = (
            TEMPERATURE**2 * F.kl_div(student, teacher, log_target=True, reduction="sum") / rows
        )
    return (1 - SHARE) * loss + SHARE * distance
