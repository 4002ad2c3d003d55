"""Pushing from the page: a voice with its card, in a repository of the visitor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError, LoginError, NotFoundError, UnmeasurableError
from vits_prune.progress import Cancelled, Progress
from vits_prune.ship.licence import licence_of
from vits_prune.studio import heal_jobs, workbench
from vits_prune.studio.descriptions import plain
from vits_prune.studio.evidence import measured_original, measuring_texts
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.jobs import Update, in_background
from vits_prune.studio.request import Request
from vits_prune.studio.ship_jobs import WAITING, AtHand, check_choice, one_at_a_time, work
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.study.evaluation import evaluate_against
from vits_prune.voices.voice import Voice, spoken_language

if TYPE_CHECKING:
    from vits_prune.ship.hub_destination import Destination
    from vits_prune.ship.hub_push import Pushed

_MEASURED, _WRITTEN = 0.25, 0.5
"""Fraction of a push that is done once the voice is measured, and once the files are written."""
_ON_YOUR_OWN = (
    "On your own machine: `hf auth login`, then `python -m vits_prune push --voice DIR --repo"
    " NAME`."
)
_TEXTS = 10
"""Sentences that a voice which was only pruned is measured on."""


@dataclass(frozen=True)
class PushRequest:
    """What a visitor asks to push, and where to."""

    repo: str
    format: str
    precision: str
    private: bool
    read: bool
    """Whether the visitor has read what the licence forbids."""


@dataclass(frozen=True)
class Published:
    """A push that is done."""

    pushed: Pushed
    no_figures: str = ""
    """Why the model card has no measurements; empty if it has them."""

    def words(self, format: str) -> str:
        """Say what was pushed, and how to load it if `load_voice` opens its format."""
        pushed = self.pushed
        words = (
            f"Pushed to [{plain(pushed.repo_id)}]({pushed.url}): {pushed.files} files,"
            f" {pushed.bytes_sent / 1e6:.1f} MB sent."
        )
        if format in ("dense", "sparse"):
            words += f' Load it with `load_voice("{pushed.repo_id}")`.'
        if self.no_figures:
            words += f" Its card has no figures: {plain(self.no_figures, 400)}"
        return words


def login_words(user: str | None) -> str:
    """Say as whom the visitor is logged in, or how to log in."""
    if user:
        name = plain(user)
        return f"**Logged in as {name}**: a push goes to your own account, with your own rights."
    if os.environ.get("OAUTH_CLIENT_ID"):
        return f"**Not logged in**: press *Log in* at the top of the page first. {_ON_YOUR_OWN}"
    return f"**Not logged in**: this page has no log-in. {_ON_YOUR_OWN}"


def push(
    at_hand: AtHand,
    made: tuple[Voice, Voice],
    asked: PushRequest,
    token: str,
    halted: Callable[[], bool],
    progress: Progress,
) -> Published | None:
    """Write all that belongs on the hub and push it in one commit.

    Args:
        at_hand: which voice it is.
        made: the voice and its original.
        asked: where to and how.
        token: the visitor's own; no other is ever used.
        halted: whether to end. What is published by then stays.
        progress: gets the progress.

    Returns:
        What was published; None if it was halted and nothing was.

    Raises:
        InputError: the licence's notice was not read, the visitor may not write there, the voice
            does not fit the format, or the hub refuses.
    """
    check_choice(asked.format, asked.precision)
    if licence_of(made[0]).needs_consent and not asked.read:
        raise InputError(
            "Read what is said about the licence of this voice and tick the box under it, then push"
            " again."
        )

    def run(progress: Progress) -> Published:
        return _push(at_hand, *made, asked, token, Progress(progress.report, halted))

    try:
        with contextlib.closing(in_background(run)) as found:
            for one in found:  # even if it is halted: only the end says whether it is published
                if not isinstance(one, Update):
                    return one
                progress.report("stopping" if halted() else one.message, one.fraction)
    except Cancelled:
        progress.raise_if_cancelled()
    return None


def _push(
    at_hand: AtHand,
    voice: Voice,
    original: Voice,
    asked: PushRequest,
    token: str,
    progress: Progress,
) -> Published:
    from vits_prune.ship.bundle import write_bundle
    from vits_prune.ship.hub_destination import check_destination
    from vits_prune.ship.hub_push import push_folder

    progress.report("asking the hub", 0.0)
    with _for_visitors(asked.repo):
        destination = check_destination(asked.repo, token=token)
    _check_free(destination, voice, asked.private)
    with tempfile.TemporaryDirectory(dir=work.name) as folder:
        evidence, begun, why_not = None, 0.0, ""
        job, request = at_hand.job, at_hand.request
        base: Voice | None = original
        curve = write_course(job, Path(folder) / "course") if job else None
        if original.recipe:
            job, (base, request, why_not) = None, _first(original, request, token)
        if voice.recipe and base is not None:
            begun = _MEASURED
            try:
                evidence = measured(voice, job, request, token, progress.part(0.0, begun))
            except UnmeasurableError as error:
                why_not = str(error)
        with one_at_a_time.turn(progress, WAITING):
            bundle = write_bundle(
                voice,
                Path(folder) / "bundle",
                repo_id=destination.repo_id,
                format=asked.format,
                precision=asked.precision,
                original=base,
                evidence=evidence,
                curve=curve,
                progress=progress.part(begun, _WRITTEN),
            )
        sending = progress.part(_WRITTEN, 1.0)
        sending.report("sending", 0.0)
        with _for_visitors(destination.repo_id):
            repo, private = destination.repo_id, asked.private
            pushed = push_folder(
                bundle.folder, repo, token=token, private=private, progress=sending
            )
    return Published(pushed, why_not)


def _check_free(destination: Destination, voice: Voice, private: bool) -> None:
    """Raise InputError if a push would touch other files, another voice, or be seen by others."""
    why, name = "", destination.repo_id
    if destination.holds == "other":
        why = f"{name} holds other files already: choose another name, so that they are not lost"
    elif destination.holds_another(voice.name):
        why = (
            f"{name} holds another voice already, {destination.voice!r}: choose another name, so"
            " that it is not lost"
        )
    elif private and destination.private is False:
        why = (
            f"{name} is public already: make it private at {destination.url}/settings first, choose"
            " another name, or take the tick from Private"
        )
    if why:
        raise InputError(f"{why}; nothing was published.")


@contextlib.contextmanager
def _for_visitors(repo: str) -> Iterator[None]:
    """Say what visitors can do if the hub refuses their log-in: they have no command line here."""
    try:
        yield
    except LoginError as error:
        raise LoginError(
            f"Hugging Face does not let this page write to {repo[:80]}: log out and in again at the"
            " top of the page, and choose a new name, for it may write only to repositories that it"
            " made; nothing was published."
        ) from error


# What the card shows


def write_course(job: HealJob, folder: Path) -> Path | None:
    """Write curve.csv as `heal` does, with losses and changes from the original.

    Returns:
        The folder, None if there is nothing to write.

    Raises:
        InputError: the disk does not take it.
    """
    curve = job.curve(lambda one: {k: round(v, 5) for k, v in one.changes().items()})
    if not curve.rows:
        return None
    curve.write(folder / "curve.csv")
    return folder


def measured(
    voice: Voice, job: HealJob | None, request: Request, token: str | None, progress: Progress
) -> dict[str, Any]:
    """Return what `evaluate` finds of a voice, of a healed one as the Heal tab's table has it.

    Args:
        voice: pruned or healed.
        job: the healing that it comes from.
        request: of what it was made, and how.
        token: the visitor's.
        progress: gets the progress.

    Raises:
        UnmeasurableError: there are no sentences that the voice can say.
    """
    progress = progress.part(0.0, 1.0, "measuring for the card: ")
    if job:
        return heal_jobs.compare(job, token, progress)[1].to_dict()
    original = workbench.bench.voice(request.reference, request.speaker, token)
    original = original.with_speaker(voice.speaker) if original.speakers else original
    said, _ = measuring_texts(original, request.text, _TEXTS)
    if spoken_language(original) != "en" and request.text == DEFAULT_TEXT:
        from vits_prune.ship.bundle import sample_texts

        said = sample_texts(original, _TEXTS)  # the page's own text is English
    settings = heal_jobs.claim_settings(request)
    reference = measured_original(request, token, original, said, settings, progress.part(0.0, 0.5))
    pruned = voice.to(original.device)
    return evaluate_against(reference, pruned, progress=progress.part(0.5, 1.0)).to_dict()


def _first(voice: Voice, request: Request, token: str) -> tuple[Voice | None, Request, str]:
    """Return the voice that a loaded voice was pruned from and the request for it.

    It is None if it is not to be found; then the third value says why.

    Raises:
        InputError: it is there but cannot be loaded, as when the connection is lost.
    """
    from vits_prune.ship.reproduce import published

    source = published(voice)
    if source is None:
        return None, request, "its original was a file or folder, which this page cannot open"
    request = dataclasses.replace(request, reference="@".join(filter(None, source)))
    try:
        first = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    except NotFoundError as error:
        return None, request, f"its original cannot be loaded. {error}"
    return first, request, ""
