"""Cost of a training step of healing over its bare forward and backward.

    python benchmarks/heal.py [--runs 15] [--threads 2]

Joe at 80% zeros, and with half of the decoder's width. Ours: draw the batch, forward, backward,
masks, bounded gradients, AdamW, losses as numbers, through Accelerate. Rival: forward and backward
of the same losses on the same batch, ready made, and gradients set to None. Both run in turn in one
process. Both kinds of a step are measured: on the teacher's latents, and on the student's own.
"""

from __future__ import annotations

import argparse

import torch
from timing import describe, in_turn, milliseconds

from vits_prune import HealPlan, PruneSpec, Shape, Voice, load_voice, prune
from vits_prune.healing.batches import TextOnlySentences, Window, draw_batch
from vits_prune.healing.losses import weighted_sum
from vits_prune.healing.student import parts_to_train
from vits_prune.healing.teacher import TeacherSpeech
from vits_prune.healing.training import Training, make_accelerator
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.synthesis.texts import load_calibration_texts

SENTENCES, BATCHES = 24, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    joe = load_voice("joe")
    speech = TeacherSpeech(
        joe, load_calibration_texts()[:SENTENCES], seed=0, segment=HealPlan().segment
    )
    for name, pruned in {
        "80% zeros": prune(joe, PruneSpec(scope="local", amount=0.8)),
        "decoder width 0.5": cut(joe, choose(joe, Shape(decoder_width=0.5))),
    }.items():
        for own in (False, True):
            compare(name + (", own inputs" if own else ""), joe, pruned, speech, own, options.runs)


def compare(
    name: str, teacher: Voice, pruned: Voice, speech: TeacherSpeech, own: bool, runs: int
) -> None:
    """Time both and print."""
    plan = HealPlan()
    window = Window.of(pruned, plan.segment)
    trained, accelerator = parts_to_train(pruned, teacher), make_accelerator(plan, cpu=True)
    training = Training(pruned, teacher, trained, plan, window, accelerator)
    if own and not training.needs_text:
        return  # nothing before the decoder differs
    done, text_only = (
        1.0 if own else 0.0,
        TextOnlySentences(teacher, speech.sentences, speech.speakers),
    )

    def _draw(run: int) -> dict[str, torch.Tensor]:
        key, scale = (0, run % BATCHES, 0), float(teacher.model.noise_scale)
        batch = draw_batch(
            speech.first(SENTENCES),
            plan.batch,
            key,
            window,
            text=training.needs_text,
            noise_scale=scale,
        )
        return batch | text_only.draw(plan.batch, key) if training.needs_text else batch

    ready = [_draw(run) for run in range(BATCHES)]
    for batch in ready:  # torch prepares its kernels for each shape once
        training.step(batch, done)

    def _bare(run: int) -> None:
        weighted_sum(training.losses(ready[run % BATCHES], joint=own)[0]).backward()
        for tensor in training.weights.values():
            tensor.grad = None

    timed = in_turn(lambda run: training.step(_draw(run), done), _bare, runs)
    ours, rivals = zip(*timed, strict=True)
    print(f"{name}: a step {milliseconds(list(ours))}, "
          f"bare forward and backward {milliseconds(list(rivals))}, "
          f"ratio {describe([mine / theirs for mine, theirs in timed])}")  # fmt: skip


if __name__ == "__main__":
    main()
