"""The tab Learn: a lesson in eight short pages that drives the stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.pruning import PruneSpec
from vits_prune.studio import lesson_pictures as pictures
from vits_prune.studio import workbench
from vits_prune.studio.request import PRUNING, SPEAKING, Request, request_of, spec_of, values_of
from vits_prune.ui.events import QUIET, Page
from vits_prune.ui.widgets import Made, source


@dataclass(frozen=True)
class Lesson:
    """One page of the lesson."""

    label: str
    """In one or two words, for the list of pages."""
    title: str
    settings: Mapping[str, Any]
    """Values of controls, by name. All other controls of the pruning get their first value."""
    listen: str
    """What to listen for."""
    question: str
    answer: str
    picture: Callable[[Request, str | None], str]
    opens: str = ""
    """The tab that the page's button opens."""

    def controls(self) -> dict[str, Any]:
        """Return the values of all controls that the page's button sets, by name."""
        return {"timing": "locked"} | values_of(spec_of(self.settings)) | dict(self.settings)


LESSONS = (
    Lesson(
        "Original",
        "Hear the original",
        {"amount": 0.0},
        "A voice like this is a long list of numbers, called weights. To speak, the computer"
        " multiplies by them. Nothing is pruned yet, so both players hold the same sound: listen to"
        " the melody, to the hiss of s and sh, and to how long each word takes.",
        "The voice uses noise, so that it sounds alive. How do we know that a difference comes from"
        " pruning and not from the noise?",
        "Both voices get exactly the same noise. It is made from one number, the seed. As long as"
        " no weight changes, not one sample of the sound changes. So whatever you hear on the next"
        " pages, pruning did it.",
        pictures.weights_by_part,
    ),
    Lesson(
        "30% gone",
        "Take 30% of the weights away",
        {"amount": 0.3},
        "The 30% of the weights that lie nearest to zero are now exactly zero. One ranking over the"
        " whole voice decides which (global). Switch between original and pruned while it plays: is"
        " it quieter, do words blur, is there noise in the pauses?",
        "Only the smallest weights went. Why can pruning them be heard at all?",
        "The signal passes through dozens of layers, and each adds its own small error. And size is"
        " not importance: a small weight that meets a strong signal does more than a large one that"
        " meets a weak signal. joe: a speech recogniser gets 7.5 letters in a hundred wrong; with"
        " the original it is 3.3. The sound is 13.6 dB quieter, and the pauses are 5.7 dB louder.",
        pictures.threshold,
    ),
    Lesson(
        "File size",
        "Why the file did not shrink",
        {"amount": 0.3},
        "The sound is the one of page 2. Now look at the table Size: the ordinary file is as large"
        " as before, although almost a third of its numbers are zero.",
        "How could a file be written so that the zeros save space?",
        "An ordinary (dense) file takes four bytes for every number, and zero is a number. A sparse"
        " file first says, with one bit for each weight, where the zeros are, and then lists only"
        " the numbers that stayed. Nothing is lost. But look at the last bar too: half precision,"
        " two bytes for each number instead of four, halves the file without any pruning. Fewer"
        " bits still are under Bits of each weight: joe with 75% zeros, 4 bits for most of the rest"
        " and half precision takes 3.7 MB as a sparse file, and 62.7 MB unpruned.",
        pictures.file_sizes,
    ),
    Lesson(
        "Speed",
        "Why it is not faster, and what makes it so",
        {"amount": 0.9},
        "Now 90% of the weights are zero, and little or nothing is left of the speech (joe's"
        " loudest moment is 78.6 dB quieter). The table Latency says how long computing takes, with"
        " the kernels that are best for each voice, and with dense kernels: which is shorter?",
        "Most multiplications are now by zero. Why do dense kernels not skip them?",
        "A kernel is the program that multiplies. A dense one multiplies whole rows of numbers at"
        " once, without looking at them; to test each number first would cost more than to"
        " multiply. The picture counts: as many are carried out with 90% zeros as with none. A"
        " sparse kernel has a list of the weights that are not zero, and multiplies each by many"
        " neighbouring moments of the sound at once: it never meets a zero. Another way is a"
        " smaller network: see page 7.",
        pictures.multiplications,
    ),
    Lesson(
        "Rhythm",
        "Global against local, and why the rhythm breaks",
        {"amount": 0.4, "scope": "local", "timing": "own"},
        "Local means that every layer loses the same share, here 40%. The pruned voice also decides"
        " for itself how long each sound lasts (its own rhythm). Listen: do sounds drag, do pauses"
        " grow?",
        "Why can local pruning break the rhythm where global pruning keeps it?",
        "One small part, the duration predictor, says how long each sound lasts. It predicts the"
        " logarithm of the length, so a small error multiplies the length. Local takes 40% from it"
        " as from all others. joe: global takes 17.5% of it, but 54% of the flow and 50% of the"
        " decoder. So at 40% local joe takes 1.7 times as long, and a speech recogniser gets 4"
        " letters in a hundred wrong; at 40% global the rhythm stays, and it gets 51 wrong.",
        pictures.global_against_local,
    ),
    Lesson(
        "Better choice",
        "A better choice: 75% of the weights",
        {"amount": 0.75, "method": "second_order", "scope": "sensitivity"},
        "This method listens to the voice first, which takes a while. It removes weights"
        " whose work others can take over, adjusts those others, and takes less where errors do"
        " more to the speech. 75% are gone: compare it with page 2, where 30% went.",
        "Why can this method take so much more than the one of page 2?",
        "Page 2 looks at the size of each weight alone. Second order looks at the signals that meet"
        " in a layer, and so at pairs of weights: where two do similar work, one can go and the"
        " other takes over. joe: a speech recogniser cannot decide whether it is worse than the"
        " original (letters wrong in a hundred: +0.1, somewhere between -3.1 and +3.2)."
        " Distill-MOS, a program that predicts how natural listeners find speech (1 to 5), finds it"
        " worse: 3.99, and 4.35 for the original (6 sentences). Your ears decide.",
        pictures.criteria,
    ),
    Lesson(
        "Channels",
        "Channels instead of weights",
        {"amount": 0.3, "method": "structured", "parts": ["decoder"]},
        "The decoder is the part that makes the sound. Here 30% of its channels go as a whole, and"
        " what stays is fitted to their work; the method listens first, which takes a while. Listen"
        " for a rough or buzzing sound, and then look at Latency: this time there is less to"
        " compute.",
        "Why does removing a channel save time, when zeros do not?",
        "A channel is a row in one table of weights and a column in the next. Without it both"
        " tables are smaller, so any computer has less to multiply, and the ordinary file shrinks"
        " too. The price: a channel takes its important weights with it. joe, with 176 of 256"
        " channels: 0.48 of the decoder's multiplications are left, and a speech recogniser gets"
        " 2.8 letters more in a hundred wrong (somewhere between -0.8 and +6.3). It is understood,"
        " and not natural: Distill-MOS gives it 2.87, and the original 4.09 (6 sentences).",
        pictures.channels,
    ),
    Lesson(
        "Healing",
        "Healing",
        {"amount": 0.5, "method": "structured", "parts": ["decoder"]},
        "Half of the decoder's channels are gone: listen for the damage. The button also"
        " opens the tab Heal: there the pruned voice is trained, and the original is its teacher."
        " Press Heal there, and listen to the checkpoints while it learns.",
        "Training needs examples. Where do they come from, if there are no recordings?",
        "The original speaks sentences, and shows the pruned voice what each of its parts should"
        " put out. So it needs no recordings. What was removed stays removed. joe, with half of the"
        " channels, healed for 15 minutes: a speech recogniser gets 0.8 letters more in a hundred"
        " wrong than with the original (somewhere between -2.2 and +3.6). joe with that many"
        " channels runs 1.75 times as fast, each of the two with its best kernels. Not everything"
        " comes back: measured apart, by Distill-MOS, it gets 3.63, and the original 4.35 (6"
        " sentences).",
        pictures.healing,
        opens="Heal",
    ),
)
_COUNT = len(LESSONS)
_READS = tuple(name for name in SPEAKING if name not in PRUNING)
_SPEAK = "document.querySelector('#speak').click();"
_OPEN_TAB = """
  [...document.querySelectorAll('[role=tab], .overflow-dropdown button')]
    .find(tab => tab.textContent.trim() === '%s')?.click();"""
_GO = """() => {
  setTimeout(() => document.querySelector('#lesson-%d')?.focus(), 100);
  return {__type__: 'update', selected: %d};
}"""
"""Go to a page and put the focus on its title: the button that was pressed is gone."""
_ADDRESS = """() => {
  // Page 1 is also "selected" when the site opens, whatever its address asks for.
  if (%d === 1 && !globalThis.lessonMoved) return;
  globalThis.lessonMoved = true;
  const here = new URL(location);
  here.searchParams.set('tab', 'learn');  // "page" is a parameter of Gradio's own
  here.searchParams.set('lesson', %d);
  history.replaceState(history.state, '', here);
}"""


# Components


def learn_tab() -> Made:
    """Make the lesson's components."""
    made = Made()
    look: dict[str, Any] = {"css_template": source("lesson.css"), "padding": False}
    made["learn_at"] = gr.State(1)
    with gr.Walkthrough(selected=1, elem_id="learn") as made["learn"]:
        for number, lesson in enumerate(LESSONS, start=1):
            name = f"learn_{number}"
            with gr.Step(lesson.label, id=number, elem_id=f"learn-{number}") as made[name]:
                with gr.Row(elem_classes="lesson"):
                    with gr.Column(scale=3, min_width=300):
                        made.add(f"{name}_words", gr.HTML, _words(number, lesson), **look)
                        label = f"Play page {number}"
                        label += f" and open {lesson.opens}" if lesson.opens else ""
                        made.add(f"{name}_play", gr.Button, label, variant="primary")
                        made.add(f"{name}_question", gr.HTML, _question(lesson), **look)
                    with gr.Column(scale=2, min_width=300):
                        empty = "<figure><figcaption>Drawing …</figcaption></figure>"
                        made.add(f"{name}_picture", gr.HTML, empty, **look)
                with gr.Row():
                    first, last = number == 1, number == _COUNT
                    made.add(f"{name}_back", gr.Button, "Back", interactive=not first)
                    made.add(f"{name}_next", gr.Button, "Next", interactive=not last)
    return made


def open_page(number: Any) -> Any:
    """Return the update that opens a page of the lesson; page 1 for what is no page."""
    known = str(number) in {str(page) for page in range(1, _COUNT + 1)}
    return gr.Walkthrough(selected=int(number) if known else 1)


def _words(number: int, lesson: Lesson) -> str:
    title = f'<h2 id="lesson-{number}" tabindex="-1">{number}. {escape(lesson.title)}</h2>'
    return f"{title}<p>{escape(lesson.listen)}</p>"


def _question(lesson: Lesson) -> str:
    asked = f"<summary>{escape(lesson.question)}</summary>"
    return f"<details>{asked}<p>{escape(lesson.answer)}</p></details>"


# Events


def wire_learn(page: Page) -> None:
    """Wire the buttons of each page, its picture, and its number in the address."""
    pictured = [f"learn_{number}_picture" for number in range(1, _COUNT + 1)]
    for number, lesson in enumerate(LESSONS, start=1):
        name = f"learn_{number}"
        for button, to in (("back", number - 1), ("next", number + 1)):
            page[f"{name}_{button}"].click(None, None, page["learn"], js=_GO % (to, to), **QUIET)

        settings = lambda _values, _token, lesson=lesson: lesson.controls()  # noqa: E731
        played = page[f"{name}_play"].click(**page.event(settings, (), ("timing", *PRUNING)))
        opened = _OPEN_TAB % lesson.opens if lesson.opens else ""
        played.success(None, js=f"() => {{ {_SPEAK}{opened} }}", **QUIET)
        page[name].select(None, js=_ADDRESS % (number, number), **QUIET)
        drawn = page.event(
            functools.partial(draw, number=number), _READS, ("learn_at", f"{name}_picture"),
            "look", show_progress="hidden",
        )  # fmt: skip
        page[name].select(**drawn)
    again = page.event(
        draw, ("learn_at", *_READS), ("learn_at", *pictured), "look", show_progress="hidden"
    )
    page["facts"].change(**again)


def draw(values: dict[str, Any], token: str | None, number: int = 0) -> dict[str, Any]:
    """Draw the picture of a page, by default the one that is open, once the voice is loaded."""
    number = number or values["learn_at"]
    found: dict[str, Any] = {"learn_at": number}
    if workbench.bench.is_loaded((values["voice"] or "").strip(), token):
        try:
            drawn = LESSONS[number - 1].picture(request_of(values, PruneSpec()), token)
        except InputError as error:
            drawn = f"<figure><p>{escape(str(error))}</p></figure>"
        found[f"learn_{number}_picture"] = drawn
    return found
