"""distillation.py: the teacher's part of the loss, by hand, and in a search."""

import math

import pytest
import torch

from lth_scale.training import distillation, loop


def test_the_loss_is_half_the_tasks_and_half_the_softened_divergence():
    student, teacher = torch.tensor([[0.0, 2.0 * math.log(3)]]), torch.tensor([[0.0, 0.0]])
    # softened by T = 2: (1/4, 3/4) and (1/2, 1/2); KL(teacher ‖ student) = ½ ln 2 + ½ ln ⅔
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    blended = distillation.blend(torch.tensor(1.0), student, teacher)
    assert float(blended) == pytest.approx(0.5 * 1.0 + 0.5 * 4 * divergence, rel=1e-5)


def test_a_regression_is_taught_by_squared_error():
    blended = distillation.blend(
        torch.tensor(2.0), torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    )
    assert float(blended) == pytest.approx(0.5 * 2.0 + 0.5 * 2.5)


def test_a_student_equal_to_its_teacher_learns_nothing_from_it():
    logits = torch.randn(3, 5)
    assert float(distillation.blend(torch.tensor(0.0), logits, logits)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("task", ["sst2", "mlm"])
def test_the_teacher_is_the_dense_network_as_trained_from_round_one_on(
    task, search, text_data, sst2_data, monkeypatch
):
    from safetensors.torch import load_file

    taught, loss_of = [], loop.loss_of

    def watch(net, batch):
        weights = (
            {name: w.clone() for name, w in net.teacher.named_parameters()} if net.distills else {}
        )
        taught.append(weights)
        return loss_of(net, batch)

    monkeypatch.setattr(loop, "loss_of", watch)
    out = search(
        task=task,
        dataset_path=text_data if task == "mlm" else sst2_data,
        distill=True,
        target_sparsity=0.2,
    )
    assert not any(taught[:4]) and all(taught[4:]) and len(taught) == 12
    dense = load_file(out / "rounds/00/model/model.safetensors")
    assert all(torch.equal(taught[-1][name], dense[name]) for name in taught[-1])
