"""Every predictor over one ladder of damage, how they rank it, and where they disagree.

    python benchmarks/agreement.py [--voice joe] [--texts 20] [--out DIR] [--rungs NAME ...]
        [--healed NAME=DIR ...]

The rungs are L1 global and local and second order by sensitivity at rising amounts, structured
pruning, and healed voices from folders that `heal` wrote. Each is measured against the original on
held-out sentences. Correlations are Spearman's over the rungs; a rung where two predictors disagree
is one whose ranks lie farthest apart. With --out a table (CSV) and pictures of spectrograms beside
the original's: of those rungs, and of each healed voice after the one that it was healed from.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from vits_prune import PruneSpec, Voice, load_voice, prune, speak
from vits_prune.measure.closeness import log_mel
from vits_prune.pruning import Shape
from vits_prune.study.evaluation import Settings, evaluate_against, prepare_reference
from vits_prune.synthesis.texts import load_texts

LADDER = {
    **{
        f"L1 {scope} {amount}": PruneSpec(scope=scope, amount=amount)
        for scope, amounts in (("global", (0.1, 0.2, 0.3, 0.4)), ("local", (0.2, 0.3, 0.4, 0.5)))
        for amount in amounts
    },
    **{
        f"second order {amount}": PruneSpec(
            method="second_order", scope="sensitivity", amount=amount
        )
        for amount in (0.5, 0.65, 0.75, 0.8, 0.85, 0.9)
    },
    **{
        f"decoder width {width}": PruneSpec(method="structured", shape=Shape(decoder_width=width))
        for width in (0.75, 0.5)
    },
}
METRICS = (
    *("cer", "wer", "distillmos", "dnsmos_ovrl", "visqol", "mcd_db", "log_mel_db"),
    *("f0_rmse_cents", "speaker_similarity"),
)
_WORSE = {"distillmos": -1, "dnsmos_ovrl": -1, "visqol": -1, "speaker_similarity": -1}
"""Metrics of which less is worse: their ranks are turned round, so that all rank damage."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--voice", default="joe")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--rungs", nargs="+", default=[*LADDER], choices=LADDER, metavar="NAME")
    parser.add_argument("--healed", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    voice = load_voice(options.voice)
    reference = prepare_reference(voice, load_texts(options.texts), Settings(noise_seeds=2))
    print(f"{voice.name}, {options.texts} held-out sentences\n{reference.signature}\n")
    rungs: dict[str, Voice] = {"original, again": voice}
    rows = []
    for name in (*rungs, *options.rungs, *options.healed):
        spec = LADDER.get(name)
        title, _, folder = name.partition("=")
        pruned = rungs.get(name) or (prune(voice, spec) if spec else load_voice(folder))
        found = evaluate_against(reference, pruned)
        values = {one: getattr(found.figures.get(one), "pruned", None) for one in METRICS}
        row = {one: getattr(value, "value", np.nan) for one, value in values.items()}
        rows.append({"rung": title, **row, "claim": found.claim.verdict})
        print(
            " | ".join(
                f"{value:.3f}" if isinstance(value, float) else str(value)
                for value in rows[-1].values()
            ),
            flush=True,
        )
        rungs[title] = pruned
    table = pd.DataFrame(rows)
    original = {
        name: getattr(figure.original, "value", None) or figure.floor
        for name, figure in found.figures.items()
        if name in METRICS
    }
    print(f"\nOriginal, or its other seeds: {original}\n")
    damage = table.iloc[1:]
    print(correlations(damage).round(2).to_string(), "\n")
    apart = disagreements(damage)
    print(apart.to_string(index=False))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "agreement.csv", index=False)
        names = list(dict.fromkeys(apart["rung"]))[:3]
        draw(voice, {name: rungs[name] for name in names}, options.out / "disagreements.png")
        shown = {}
        for name in (one.partition("=")[0] for one in options.healed):
            specs = map(PruneSpec.from_dict, rungs[name].recipe["pruned"])
            shown[f"{name}, before healing"] = functools.reduce(prune, specs, voice)
            shown[name] = rungs[name]
        if shown:
            draw(voice, shown, options.out / "healed.png")


def ranks(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the ranks of the rungs by metric, the most damaged last."""
    return {
        name: rankdata(_WORSE.get(name, 1) * table[name].to_numpy())
        for name in METRICS
        if table[name].notna().all()
    }


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlations between the metrics' views of the damage."""
    found = ranks(table)
    return pd.DataFrame(
        {one: {two: spearmanr(found[one], found[two]).statistic for two in found} for one in found}
    )


def disagreements(table: pd.DataFrame, count: int = 8) -> pd.DataFrame:
    """Return the rungs that two predictors of quality rank farthest apart."""
    found = {name: one for name, one in ranks(table).items() if name in _WORSE or name == "cer"}
    names, rows = list(found), []
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            for at, rung in enumerate(table["rung"]):
                gap = found[one][at] - found[two][at]
                worse, better = (one, two) if gap > 0 else (two, one)
                rows.append((abs(gap), rung, worse, better))
    rows.sort(key=lambda row: -row[0])
    columns = ["ranks apart", "rung", "ranked worse by", "ranked better by"]
    return pd.DataFrame(rows[:count], columns=columns)


def draw(voice: Voice, rungs: dict[str, Voice], path: Path) -> None:
    """Write the log-mel spectrograms of one sentence: the original's, and of each rung."""
    from matplotlib.figure import Figure

    text = load_texts(1)[0]
    original = speak(voice, text)
    sounds = {"original": original.waveform}
    for name, one in rungs.items():
        sounds[name] = speak(one, text, timing=original).waveform
    figure = Figure(figsize=(9, 2.1 * len(sounds)), layout="constrained")
    axes: Sequence = np.atleast_1d(figure.subplots(len(sounds), sharex=True, sharey=True))
    for axis, (name, sound) in zip(axes, sounds.items(), strict=True):
        levels = 20 / np.log(10) * log_mel(sound, voice.sampling_rate)
        axis.imshow(levels, origin="lower", aspect="auto", vmin=-90, vmax=-20, cmap="magma")
        axis.set_title(name, fontsize=9, loc="left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
