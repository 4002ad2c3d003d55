"""Training: the student's weights, the optimiser, and one step, without files or clocks."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.healing.batches import Batch, Window
from vits_prune.healing.learnt_grid import LearntGrid, rounded
from vits_prune.healing.losses import (
    DiscriminatorOutput,
    Discriminators,
    Distillation,
    discriminator_loss,
    feature_loss,
    generator_loss,
    weighted_sum,
)
from vits_prune.healing.optimizer import Muon
from vits_prune.healing.plan import HealPlan
from vits_prune.healing.storage import WEIGHTS_PREFIX, Checkpoints, StoredState, Tensors
from vits_prune.healing.student import masks, restored
from vits_prune.voices.voice import PARTS, Voice

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

WARM_UP = 20
"""Steps in which the learning rate rises."""
RATES = {"text_encoder": 2.5, "duration_predictor": 0.1, "flow": 4.0, "decoder": 0.5}
"""Learning rates of the parts, as shares of the plan's, measured on joe at 80% zeros. With a higher
rate the duration predictor learns sentences by heart, and a decoder with zeros first gets worse."""
NARROW_RATE = 2.0
"""The share of a decoder that lost channels, measured at half the width."""
ADVERSARIAL_RATE = 1.0
"""The decoder's highest share once discriminators judge it."""
LOWEST_RATE = 0.02
"""Share of the learning rate at the end."""
MAX_NORM = {"text_encoder": 1.0, "duration_predictor": 1.0, "flow": 1.0, "decoder": 5.0}
"""Gradients of a part are scaled down to this norm."""
BETAS, ADVERSARIAL_BETAS = (0.9, 0.99), (0.8, 0.99)
FEATURE_WEIGHT, ADVERSARIAL_WEIGHT = 0.1, 0.1


def make_accelerator(plan: HealPlan, cpu: bool = False) -> Accelerator:
    """Return where and with what arithmetic a healing runs; `cpu`: even if there is a GPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Accelerate keeps the first choice of a process for good, but an earlier healing may have had
    # another precision.
    alone = PartialState._shared_state.get("num_processes", 1) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(cpu=cpu, mixed_precision=plan.precision)


class NotFiniteError(ArithmeticError):
    """What the message names is not finite. The voice's weights are those before the step."""


class Training:
    """A pruned voice of which the parts in `trained` learn."""

    def __init__(
        self,
        pruned: Voice,
        teacher: Voice,
        trained: Collection[str],
        plan: HealPlan,
        window: Window,
        accelerator: Accelerator,
    ) -> None:
        self._pruned, self._plan, self._accelerator = pruned, plan, accelerator
        self.trained = tuple(part for part in PARTS if part in trained)
        starts, named = tuple(f"{part}." for part in trained), pruned.model.named_parameters()
        copies = {name: one.detach().clone() for name, one in named if name.startswith(starts)}
        self.model = pruned.with_weights(copies).model
        named = self.model.named_parameters()
        self.weights = {name: one.requires_grad_(True) for name, one in named if name in copies}
        zeros = masks(pruned).items()
        self._masked = [(self.weights[name], mask) for name, mask in zeros if name in self.weights]
        grids = ((name, LearntGrid.of(one)) for name, one in self.weights.items())
        self._grids = {name: grid for name, grid in grids if grid}
        self._learnt = self.weights | {
            f"{name}.log_scales": grid.log_scales for name, grid in self._grids.items()
        }
        groups: list[dict[str, Any]] = [
            {"params": [one for name, one in self._learnt.items() if name.startswith(f"{part}.")]}
            | {"part": part}
            for part in self.trained
        ]
        ours, theirs = (
            {name: one.shape for name, one in voice.model.decoder.named_parameters()}
            for voice in (pruned, teacher)
        )
        self._rates = RATES if ours == theirs else RATES | {"decoder": NARROW_RATE}
        fused = accelerator.device.type in ("cpu", "cuda")
        # At 80% zeros orthogonal updates were worse than AdamW's, and in other parts not measured.
        with_zeros = {weight for weight, _ in self._masked}
        chosen = [
            weight
            for name, weight in self.weights.items()
            if name.startswith("decoder.") and weight not in with_zeros and name not in self._grids
        ]
        optimizer = Muon(groups, plan.learning_rate, BETAS, fused, chosen)
        losses = Distillation(self.model, teacher.model, self.trained, window, pruned.sampling_rate)
        self.needs_text = losses.needs_text
        losses = losses.to(accelerator.device).eval()
        self.losses, self._optimizer = accelerator.prepare(losses, optimizer)
        adversarial = plan.adversarial and "decoder" in trained
        self._adversary = _Adversary(plan, accelerator) if adversarial else None

    def step(
        self, batch: Batch, done: float, warm: float = 1.0, learn: bool = True
    ) -> dict[str, float]:
        """Learn from one batch; return the losses, averaged over all processes.

        Args:
            batch: on any device.
            done: share of the training that is over.
            warm: share of the learning rate, while it rises.
            learn: False does the same work for a clock and leaves all weights as they are.

        Raises:
            NotFiniteError: a loss or a gradient is not finite.
        """
        device = self._accelerator.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        rate = self._plan.learning_rate * warm * (LOWEST_RATE + (1 - LOWEST_RATE) * cosine)
        adversary = self._adversary if done >= self._plan.adversarial_from else None
        for group in self._optimizer.param_groups:
            share = self._rates[group["part"]]
            judged = adversary and group["part"] == "decoder"
            group["lr"] = rate * (min(ADVERSARIAL_RATE, share) if judged else share)
        with rounded(self._grids.values()):
            losses, pair = self.losses(batch, joint=done >= 1 - self._plan.joint)
            total = weighted_sum(losses)
            if adversary and pair is not None:
                spoken, wanted = pair
                added = adversary.losses(wanted, spoken, rate, learn)
                total, losses = total + sum(added.values()), {**losses, **added}
            numbers = self._numbers({**losses, "total": total})
            # Averages gradients over the processes: all see alike whether they are finite.
            self._accelerator.backward(total)
        self._apply(learn)
        return numbers

    def _apply(self, learn: bool) -> None:
        """Take the optimiser's step, with masked and clipped gradients."""
        masked = [(weight.grad, mask) for weight, mask in self._masked if weight.grad is not None]
        if masked:
            # A weight of zero without gradient or momentum stays zero to the bit.
            torch._foreach_mul_([gradient for gradient, _ in masked], [mask for _, mask in masked])
        norms = {}
        for group in self._optimizer.param_groups:
            part, parameters = group["part"], group["params"]
            norms[part] = nn.utils.clip_grad_norm_(parameters, MAX_NORM[part], foreach=True)
        finite = torch.stack([norm.float() for norm in norms.values()]).isfinite().tolist()
        if learn and all(finite):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for part, good in zip(norms, finite, strict=True):
            if not good:
                raise NotFiniteError(f"gradient of {part}")

    def _numbers(self, losses: Tensors) -> dict[str, float]:
        """Return losses as numbers, with one transfer for all."""
        stacked = torch.stack([loss.detach().float() for loss in losses.values()])
        if self._accelerator.num_processes > 1:
            stacked = self._accelerator.reduce(stacked, reduction="mean")
        numbers = dict(zip(losses, stacked.tolist(), strict=True))
        for name, value in numbers.items():
            if not math.isfinite(value):
                self._optimizer.zero_grad(set_to_none=True)
                raise NotFiniteError(name)
        return numbers

    def check(self) -> None:
        """Raise NotFiniteError if a weight is not finite."""
        if not _all_finite(tensor.detach() for tensor in self.weights.values()):
            raise NotFiniteError("weights")

    def voice(self) -> Voice:
        """Return the student as it is now: weights of its own, zeros in place to the bit."""
        return self._pruned.with_weights(restored(self._spoken(), self._pruned))

    def _spoken(self) -> dict[str, torch.Tensor]:
        """Return copies of the weights, those with a grid on it."""
        copies = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        return copies | {name: grid.on_grid() for name, grid in self._grids.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that the next steps depend on, as tensors by name."""
        found = {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in self._spoken().items()}
        for name, grid in self._grids.items():
            found |= {f"free.{name}": grid.weight, f"log_scales.{name}": grid.log_scales}
        found |= _optimizer_state(self._optimizer, self._learnt, "optimizer")
        return found | (self._adversary.state() if self._adversary else {})

    def load(self, state: Tensors) -> None:
        """Take over what `state` returned; KeyError: one is missing, ValueError: another shape."""
        _copy_all(self.weights, state, WEIGHTS_PREFIX)
        _copy_all({name: grid.weight for name, grid in self._grids.items()}, state, "free.")
        scales = {name: grid.log_scales for name, grid in self._grids.items()}
        _copy_all(scales, state, "log_scales.")
        _load_optimizer(self._optimizer, self._learnt, "optimizer", state)
        if self._adversary:
            self._adversary.load(state)


class _Adversary:
    """The discriminators and their optimiser."""

    def __init__(self, plan: HealPlan, accelerator: Accelerator) -> None:
        self._bare = Discriminators(plan.adversarial_width, seed=plan.seed).to(accelerator.device)
        optimizer = torch.optim.AdamW(
            self._bare.parameters(), plan.learning_rate, ADVERSARIAL_BETAS, weight_decay=0.0
        )
        self._module, self._optimizer = accelerator.prepare(self._bare, optimizer)
        self._accelerator = accelerator

    def losses(
        self, real: torch.Tensor, spoken: torch.Tensor, rate: float, learn: bool
    ) -> dict[str, torch.Tensor]:
        """Train the discriminators one step, then return the student's weighted losses.

        Waveforms, the teacher's and the student's, are [size, samples].
        """
        real, spoken = real[:, None], spoken[:, None]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._train(real, spoken.detach(), learn)
        self._bare.requires_grad_(False)
        with self._accelerator.autocast():
            with torch.no_grad():
                theirs = self._bare(real)
            ours = self._bare(spoken)
        self._bare.requires_grad_(True)
        return {
            "adversarial": ADVERSARIAL_WEIGHT * generator_loss(ours),
            "features": FEATURE_WEIGHT * feature_loss(theirs, ours),
        }

    def _train(self, real: torch.Tensor, spoken: torch.Tensor, learn: bool) -> None:
        # One pass over both: data-parallel wrappers want one forward before each backward.
        both = self._module(torch.cat([real, spoken]))
        loss = discriminator_loss(_half(both, 0), _half(both, 1))
        # Averaged over the processes: if one ended alone, the others would wait for it.
        mean = self._accelerator.reduce(loss.detach().float(), reduction="mean")
        if not _all_finite([mean]):
            raise NotFiniteError("discriminators")
        self._accelerator.backward(loss)
        finite = _all_finite(one.grad for one in self._bare.parameters() if one.grad is not None)
        if learn and finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if not finite:
            raise NotFiniteError("gradient of the discriminators")

    def state(self) -> dict[str, torch.Tensor]:
        found = {f"adversary.{name}": tensor for name, tensor in self._bare.state_dict().items()}
        named = dict(self._bare.named_parameters())
        return found | _optimizer_state(self._optimizer, named, "adversary_optimizer")

    def load(self, state: Tensors) -> None:
        _copy_all(self._bare.state_dict(), state, "adversary.")
        named = dict(self._bare.named_parameters())
        _load_optimizer(self._optimizer, named, "adversary_optimizer", state)


def _half(outputs: list[DiscriminatorOutput], half: int) -> list[DiscriminatorOutput]:
    """Return the outputs for one half of a batch; periods are folded into the batch."""
    return [
        (score.chunk(2)[half], [one.chunk(2)[half] for one in features])
        for score, features in outputs
    ]


def _all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _optimizer_state(optimizer: Any, named: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Return an optimiser's tensors by name, so that they can be stored without pickle."""
    return {
        f"{prefix}.{kind}.{name}": number
        for name, tensor in named.items()
        for kind, number in optimizer.state.get(tensor, {}).items()
    }


def _load_optimizer(optimizer: Any, named: Tensors, prefix: str, state: Tensors) -> None:
    for name, tensor in named.items():
        kinds = {kind: f"{prefix}.{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq")}
        found = {kind: state[key] for kind, key in kinds.items() if key in state}
        for kind, number in found.items():
            if kind != "step":
                _require_shape(number, tensor, name)
        if found:  # else it has not learnt yet
            copies = {kind: one.to(tensor.device).clone() for kind, one in found.items()}
            optimizer.state[tensor] = copies


@torch.no_grad()
def _copy_all(named: Tensors, state: Tensors, prefix: str) -> None:
    for name, tensor in named.items():
        saved = state[f"{prefix}{name}"]
        _require_shape(saved, tensor, name)
        tensor.copy_(saved)


def _require_shape(saved: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    if saved.shape != wanted.shape:
        raise ValueError(f"{name} is {tuple(saved.shape)}, not {tuple(wanted.shape)}.")


def is_main_process() -> bool:
    """Return whether this is the process, of several, that writes, judges and reports."""
    return os.environ.get("RANK", "0") == "0"


def everywhere(accelerator: Accelerator, value: T) -> list[T]:
    """Return the values of all processes, the first one's first."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def newest_checkpoint(accelerator: Accelerator, checkpoints: Checkpoints) -> StoredState | None:
    """Return the newest checkpoint; InputError unless all processes find the same one, whole."""
    found, damaged = None, None
    try:
        found = checkpoints.newest()
    except DamagedFileError as error:  # raised below, for the other processes wait for this one
        damaged = error
    if len(set(everywhere(accelerator, str(damaged or (found and found[1].get("step")))))) > 1:
        raise InputError(
            f"Not every process finds the same newest checkpoint in {checkpoints.folder}: give a "
            "folder on a disk that all machines share."
        )
    if damaged is not None:
        raise damaged
    return found
