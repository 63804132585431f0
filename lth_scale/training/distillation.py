"""Knowledge distillation from the dense network (Hinton, Vinyals & Dean 2015, arXiv:1503.02531)."""

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 2.0
TEACHER_WEIGHT = 0.5  # of the teacher's term in the loss


def blend(loss: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Return (1 − w) · loss + w · T² · KL(teacher ‖ student), both softened by the temperature T.

    student, teacher: outputs, with the classes in the last dimension. If there is one class (a
    regression), the mean squared error takes the place of the divergence.
    """
    if student.shape[-1] == 1:
        distance = F.mse_loss(student.float(), teacher.float())
    else:
        log_student = (student.float() / TEMPERATURE).log_softmax(-1)
        log_teacher = (teacher.float() / TEMPERATURE).log_softmax(-1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
        rows = max(1, student.numel() // student.shape[-1])
        distance = TEMPERATURE**2 * divergence / rows
    return (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * distance
