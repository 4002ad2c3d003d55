"""Training: the student's weights, the optimiser's, and one step. It knows nothing of files or clocks."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from vits_prune.healing.batches import Batch, Window
from vits_prune.healing.losses import Exercise, weighted_sum
from vits_prune.healing.plan import HealPlan
from vits_prune.healing.storage import WEIGHTS
from vits_prune.healing.student import masks, restored
from vits_prune.voices.voice import PARTS, Voice

if TYPE_CHECKING:
    from accelerate import Accelerator


WARM_UP = 20

"""Steps in which the learning rate rises."""

RATES = {"text_encoder": 2.5, "duration_predictor": 0.1, "flow": 4.0, "decoder": 2.0}

"""Learning rates of the parts, as shares of the plan's; measured on joe at 80% and 90% zeros and at half the decoder's width. The
predictor's is low: it is seldom pruned, and learns its sentences by heart."""

ADVERSARIAL_RATE = 1.0

"""The decoder's, once discriminators judge it."""

LOWEST_RATE = 0.02

"""Share of the learning rate that is left at the end."""

LARGEST_NORM = {"text_encoder": 1.0, "duration_predictor": 1.0, "flow": 1.0, "decoder": 5.0}

"""Gradients of a part are scaled down to this norm."""

BETAS = (0.9, 0.99)

FEATURE_WEIGHT, ADVERSARIAL_WEIGHT = 0.1, 0.1

ADVERSARIAL_BETAS = (0.8, 0.99)


def make_accelerator(plan: HealPlan, cpu: bool = False) -> Accelerator:
    """Where and with what arithmetic a healing runs.

    Args:
        plan: its precision.
        cpu: stay on the CPU where there is a GPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Accelerate remembers the first choice of a process for good: an earlier healing may have had another precision.
    AcceleratorState._reset_state(
        reset_partial_state=PartialState._shared_state.get("num_processes", 1) == 1
    )
    return Accelerator(cpu=cpu, mixed_precision=plan.precision)


class NotFiniteError(ArithmeticError):
    """What is named is no finite number: the voice's weights are as they were before the step."""


class Training:
    """A pruned voice that learns.

    Args:
        pruned: where it begins.
        trained: parts that learn.
        plan: how.
        window: how much of a sentence a step sees.
        accelerator: where it runs.
    """

    def __init__(
        self,
        pruned: Voice,
        trained: Collection[str],
        plan: HealPlan,
        window: Window,
        accelerator: Accelerator,
    ) -> None:
        self._pruned, self._plan, self._accelerator = pruned, plan, accelerator
        self.trained = tuple(part for part in PARTS if part in trained)
        learning = {
            name: tensor.detach().clone()
            for name, tensor in pruned.model.named_parameters()
            if name.partition(".")[0] in trained
        }
        self.model = pruned.with_weights(learning).model
        self.weights = {
            name: tensor.requires_grad_(True)
            for name, tensor in self.model.named_parameters()
            if name in learning
        }
        held = masks(pruned)
        self._held = [
            (self.weights[name], mask) for name, mask in held.items() if name in self.weights
        ]
        groups = [
            {
                "params": [
                    tensor for name, tensor in self.weights.items() if name.startswith(f"{part}.")
                ],
                "part": part,
            }
            for part in self.trained
        ]
        fused = accelerator.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            groups, lr=plan.learning_rate, betas=BETAS, weight_decay=0.0, fused=fused
        )
        exercise = Exercise(self.model, self.trained, window, pruned.sampling_rate)
        self.needs_text = exercise.needs_text
        self._exercise, self._optimizer = accelerator.prepare(
            exercise.to(accelerator.device).eval(), optimizer
        )
        self._adversary = (
            _Adversary(plan, accelerator) if plan.adversarial and "decoder" in trained else None
        )

    def step(
        self, batch: Batch, done: float, warm: float = 1.0, learn: bool = True
    ) -> dict[str, float]:
        """Learn from one batch.

        Args:
            batch: on the CPU or on the accelerator.
            done: share of the training that is over, which the learning rate and what is practised depend on.
            warm: share of the learning rate, while it rises.
            learn: False to do the same work and leave all weights as they are, for timing it.

        Returns:
            the losses, averaged over all processes.

        Raises:
            NotFiniteError: a loss or a gradient is no finite number; no weight of the voice was changed.
        """
        device = self._accelerator.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        rate = (
            self._plan.learning_rate
            * warm
            * (LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        )
        judged = self._adversary is not None and done >= self._plan.adversarial_from
        for group in self._optimizer.param_groups:
            group["lr"] = rate * (
                ADVERSARIAL_RATE if judged and group["part"] == "decoder" else RATES[group["part"]]
            )
        losses, spoken = self._exercise(batch, own=done >= 1 - self._plan.joint)
        total = weighted_sum(losses)
        if judged and spoken is not None:
            more = self._adversary.judge(batch["waveform"], spoken, rate, learn)
            total = total + sum(more.values())
            losses = {**losses, **more}
        told = self._told(losses, total)
        self._accelerator.backward(
            total
        )  # averages gradients over the processes: all of them judge alike whether they are finite
        self._apply(learn)
        return told

    def _apply(self, learn: bool) -> None:
        """The optimiser's step, with masked and bounded gradients.

        Raises:
            NotFiniteError: a gradient is no finite number.
        """
        held = [(weight.grad, mask) for weight, mask in self._held if weight.grad is not None]
        if held:
            # A weight of zero without gradient or momentum stays zero to the bit.
            torch._foreach_mul_([gradient for gradient, _ in held], [mask for _, mask in held])
        norms = {
            group["part"]: nn.utils.clip_grad_norm_(
                group["params"], LARGEST_NORM[group["part"]], foreach=True
            )
            for group in self._optimizer.param_groups
        }
        if not bool(torch.stack([norm.float() for norm in norms.values()]).isfinite().all()):
            self._optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError(
                next(
                    f"gradient of {part}"
                    for part, norm in norms.items()
                    if not bool(norm.isfinite())
                )
            )
        if learn:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _told(self, losses: Mapping[str, torch.Tensor], total: torch.Tensor) -> dict[str, float]:
        """The losses as numbers, one transfer for all.

        Raises:
            NotFiniteError: one is none, in any process.
        """
        numbers = torch.stack(
            [*(loss.detach().float() for loss in losses.values()), total.detach().float()]
        )
        if self._accelerator.num_processes > 1:
            numbers = self._accelerator.reduce(numbers, reduction="mean")
        told = dict(zip([*losses, "total"], numbers.tolist(), strict=True))
        if not all(math.isfinite(value) for value in told.values()):
            self._optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError(
                next(name for name, value in told.items() if not math.isfinite(value))
            )
        return told

    def check(self) -> None:
        """Look at every weight, before it is kept.

        Raises:
            NotFiniteError: one is no finite number.
        """
        if not bool(
            torch.stack(
                [tensor.detach().isfinite().all() for tensor in self.weights.values()]
            ).all()
        ):
            raise NotFiniteError("weights")

    def voice(self, recipe: Mapping[str, Any]) -> Voice:
        """The student as it is now: weights of its own, zeros in place to the bit."""
        weights = restored(
            {name: tensor.detach().clone() for name, tensor in self.weights.items()}, self._pruned
        )
        return self._pruned.with_weights(weights, recipe=recipe)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next steps depend on, as tensors by name."""
        found = {f"{WEIGHTS}{name}": tensor for name, tensor in self.weights.items()}
        found |= _optimizer_state(
            self._optimizer, list(self.weights), list(self.weights.values()), "optimizer"
        )
        return found | (self._adversary.state() if self._adversary else {})

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            KeyError: a tensor is missing.
            ValueError: one has another shape.
        """
        with torch.no_grad():
            for name, tensor in self.weights.items():
                _copy(tensor, state[f"{WEIGHTS}{name}"])
        _load_optimizer(
            self._optimizer, list(self.weights), list(self.weights.values()), "optimizer", state
        )
        if self._adversary:
            self._adversary.load(state)


class _Adversary:
    """The discriminators and their optimiser."""

    def __init__(self, plan: HealPlan, accelerator: Accelerator) -> None:
        from vits_prune.healing.discriminators import Discriminators

        self.bare = Discriminators(plan.adversarial_width, seed=plan.seed).to(accelerator.device)
        optimizer = torch.optim.AdamW(
            self.bare.parameters(), lr=plan.learning_rate, betas=ADVERSARIAL_BETAS, weight_decay=0.0
        )
        self._module, self._optimizer = accelerator.prepare(self.bare, optimizer)
        self._accelerator = accelerator

    def judge(
        self, real: torch.Tensor, spoken: torch.Tensor, rate: float, learn: bool
    ) -> dict[str, torch.Tensor]:
        """Teach the discriminators one step, then let them judge.

        Args:
            real, spoken: waveforms [size, samples].
            rate: learning rate.
            learn: as in `Training.step`.

        Returns:
            the student's adversarial and feature matching losses, weighted.
        """
        from vits_prune.healing.discriminators import (
            discriminator_loss,
            feature_loss,
            generator_loss,
        )

        real, spoken = real[:, None], spoken[:, None]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # One pass over both: data-parallel wrappers want one forward before each backward.
        both = self._module(torch.cat([real, spoken.detach()]))
        theirs, ours = _halves(both, len(real))
        loss = discriminator_loss(theirs, ours)
        # Of all processes together: one that ended alone would leave the others waiting for it.
        if not bool(
            torch.isfinite(self._accelerator.reduce(loss.detach().float(), reduction="mean"))
        ):
            raise NotFiniteError("discriminators")
        self._accelerator.backward(loss)
        if not bool(
            torch.stack(
                [
                    one.grad.isfinite().all()
                    for one in self.bare.parameters()
                    if one.grad is not None
                ]
            ).all()
        ):
            self._optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError("gradient of the discriminators")
        if learn:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.bare.requires_grad_(False)
        with self._accelerator.autocast():
            with torch.no_grad():
                theirs = self.bare(real)
            ours = self.bare(spoken)
        self.bare.requires_grad_(True)
        return {
            "adversarial": ADVERSARIAL_WEIGHT * generator_loss(ours),
            "features": FEATURE_WEIGHT * feature_loss(theirs, ours),
        }

    def state(self) -> dict[str, torch.Tensor]:
        names, tensors = zip(*self.bare.named_parameters(), strict=True)
        found = {f"adversary.{name}": tensor for name, tensor in self.bare.state_dict().items()}
        return found | _optimizer_state(self._optimizer, names, tensors, "adversary_optimizer")

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.bare.state_dict().items():
                _copy(tensor, state[f"adversary.{name}"])
        names, tensors = zip(*self.bare.named_parameters(), strict=True)
        _load_optimizer(self._optimizer, names, tensors, "adversary_optimizer", state)


def _halves(judgements: list[Any], size: int) -> tuple[list[Any], list[Any]]:
    """Judgements of the first `size` waveforms of a batch of twice as many, and of the rest; periods are folded into the batch."""
    parts: tuple[list[Any], list[Any]] = ([], [])
    for score, features in judgements:
        for index, part in enumerate(parts):
            part.append((score.chunk(2)[index], [one.chunk(2)[index] for one in features]))
    return parts


def _optimizer_state(
    optimizer: Any, names: Any, tensors: Any, prefix: str
) -> dict[str, torch.Tensor]:
    """AdamW's numbers by name: they come back without pickle."""
    return {
        f"{prefix}.{kind}.{name}": number
        for name, tensor in zip(names, tensors, strict=True)
        for kind, number in optimizer.state.get(tensor, {}).items()
    }


def _load_optimizer(
    optimizer: Any, names: Any, tensors: Any, prefix: str, state: Mapping[str, torch.Tensor]
) -> None:
    kinds = ("step", "exp_avg", "exp_avg_sq")
    for name, tensor in zip(names, tensors, strict=True):
        found = {
            kind: state[f"{prefix}.{kind}.{name}"]
            for kind in kinds
            if f"{prefix}.{kind}.{name}" in state
        }
        if not found:
            continue  # it had not learnt yet
        for kind, number in found.items():
            if kind != "step" and number.shape != tensor.shape:
                raise ValueError(
                    f"{prefix}.{kind}.{name} is {tuple(number.shape)}, not {tuple(tensor.shape)}."
                )
        optimizer.state[tensor] = {
            kind: number.to(tensor.device).clone() for kind, number in found.items()
        }


def _copy(tensor: torch.Tensor, saved: torch.Tensor) -> None:
    if tensor.shape != saved.shape:
        raise ValueError(f"A tensor is {tuple(saved.shape)}, not {tuple(tensor.shape)}.")
    tensor.copy_(saved)


Value = TypeVar("Value")


def is_main_process() -> bool:
    """Return whether this process, of several under `accelerate launch`, is the one that writes, measures and speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def agreed(accelerator: Accelerator, value: Value) -> Value:
    """The first process's value."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def everywhere(accelerator: Accelerator, value: Value) -> list[Value]:
    """The values of all processes."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])
