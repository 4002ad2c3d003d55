"""What the page asks for, as a value: the Request.

It follows from the page's controls or from an address, and can be said as Python or as a command.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vits_prune.errors import InputError
from vits_prune.healing import HealPlan
from vits_prune.kernels import KERNELS
from vits_prune.pruning import PruneSpec, Shape
from vits_prune.pruning.spec import METHODS, weighs_arithmetic
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.synthesis.speak import Delivery, check_kernels, checked_seed, checked_text
from vits_prune.voices.load import EMBEDDED

MAX_CHARACTERS = 2_000
MAX_STEPS = 8
"""Most steps of gradual pruning that a visitor may ask for: each is kept to be heard."""
MAX_PROTECTED = 100
MAX_TEXTS, MAX_TEXT = 60, 300
"""Most calibration sentences that a visitor may bring, and characters of each."""
PATTERNS = {"2:4": 0.5, "4:8": 0.5}
NOTHING, ALL = "nothing", 0
"""What the controls show for "protect nothing" and "keep all layers"."""
COUNTED = ("branches", "encoder_layers", "flows")
LEVERS = ("decoder_width", "resblock_width", "ffn_width", *COUNTED)
PRUNING = (
    "method", "scope", "amount", "parts", "protect", "floor", "pattern", "steps", "schedule",
    "by_lever", *LEVERS, "importance", "cost", "bits",
)  # fmt: skip
"""The controls that make a PruneSpec."""
_DELIVERY = tuple(one.name for one in dataclasses.fields(Delivery))
SPEAKING = ("voice", "speaker", "text", "seed", "timing", "kernels", *_DELIVERY, *PRUNING)
"""The controls that make a Request."""
_SPEC: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(PruneSpec)}
_SPEC |= {"by_lever": False, **{name: getattr(Shape(), name) for name in LEVERS}}
FIRST: dict[str, Any] = {
    **{"voice": EMBEDDED, "speaker": None, "text": DEFAULT_TEXT, "seed": 0, "timing": "locked"},
    **{"kernels": KERNELS[0], **dict.fromkeys(_DELIVERY)},
    **{name: _SPEC[name] for name in PRUNING},
    **{"protect": [], "parts": list(PruneSpec.parts), **dict.fromkeys(COUNTED, ALL)},
}
"""What the controls hold at first."""
NUMBERS = ("seed", "speaking_rate", "noise_scale", "noise_scale_duration")
"""Controls that hold a number, though some are empty at first."""

MINUTES = (0.5, 30.0)
TEXTS = (2, 20)
"""How long the page heals, and on how many sentences it measures: from, to."""
_FLAGS = {"seed": "prune-seed", "amounts": "steps"}
"""Flags of the command line that are not named after their field."""


@dataclass(frozen=True)
class Request:
    """All that the page asks for.

    `reference` is "joe", a hub id (with "@revision" if wanted), or what `keep_upload` returned.
    """

    reference: str
    text: str
    spec: PruneSpec = field(default_factory=PruneSpec)
    seed: int = 0
    timing: str = "own"
    delivery: Delivery = field(default_factory=Delivery)
    speaker: str | None = None
    healed: Order | None = None
    """In place of the pruned voice, the one that was healed so."""
    kernels: str = KERNELS[0]
    """What both voices speak and are timed with."""

    def checked(self) -> Request:
        """Return itself.

        Raises:
            InputError: something in it cannot be used, as far as can be said without a voice.
        """
        length, spec, here = len(self.text), self.spec, "here: the command line takes more"
        long = len(spec.texts) > MAX_TEXTS or any(len(text) > MAX_TEXT for text in spec.texts)
        said = f"The text has {length:,} characters and the page speaks {MAX_CHARACTERS:,} at most"
        named = f"At most {MAX_PROTECTED} protected layers can be named here"
        heard = f"Calibration takes {MAX_TEXTS} sentences of {MAX_TEXT} characters at most {here}"
        steps = f"Gradual pruning takes {MAX_STEPS} steps at most {here}"
        for refused, words in (
            (length > MAX_CHARACTERS, f"{said}: shorten it"),
            (self.timing not in ("own", "locked"), "Choose a timing: own or locked"),
            (max(spec.steps, len(spec.amounts)) > MAX_STEPS, steps),
            (len(spec.protect or ()) > MAX_PROTECTED, f"{named}: name a beginning that many share"),
            (long, heard),
        ):
            if refused:
                raise InputError(f"{words}.")
        checked_text(self.text)
        checked_seed(self.seed)
        check_kernels(self.kernels)
        return self

    def at(self, spec: PruneSpec) -> Request:
        """Return the same request for another spec."""
        return dataclasses.replace(self, spec=spec)


def request_of(values: Mapping[str, Any], spec: PruneSpec | None = None) -> Request:
    """Return the checked Request for the values of the controls SPEAKING, by name.

    Args:
        values: of the controls. What is missing has the value that it has at first.
        spec: in place of the one that the controls PRUNING make.

    Raises:
        InputError: one of them cannot be used.
    """
    seed = values.get("seed")
    return Request(
        _typed(values, "voice").strip(),
        _typed(values, "text"),
        spec_of(values) if spec is None else spec,
        0 if seed is None else seed,
        values.get("timing", "own"),
        Delivery(*(None if values.get(name) == "" else values.get(name) for name in _DELIVERY)),
        _typed(values, "speaker") or None,
        kernels=values.get("kernels", KERNELS[0]),
    ).checked()


def _typed(values: Mapping[str, Any], name: str) -> str:
    """Return what was typed, "" for nothing; InputError if a client sent something else."""
    value = values.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    raise InputError(f"The {name} is given as text, not as {str(value)[:40]!r}.")


def spec_of(values: Mapping[str, Any]) -> PruneSpec:
    """Return the PruneSpec for the values of the controls PRUNING; ignore what does not apply.

    Raises:
        InputError: one of them cannot be used.
    """
    found = _SPEC | dict(values)
    method = found["method"]
    how = found["scope"], found["amount"], found["parts"] or ()
    plain = PruneSpec(method, *how, bits=_whole(found["bits"]) or 0)
    if METHODS[plain.method].structured:
        levers = {name: found[name] for name in LEVERS}
        levers |= {name: _whole(levers[name]) for name in COUNTED}
        shape = Shape(**levers) if found["by_lever"] else None
        return dataclasses.replace(plain, shape=shape, importance=found["importance"])
    plain = dataclasses.replace(plain, protect=_protected(found["protect"]))
    pattern = found["pattern"]
    if pattern:  # it is the same in every layer: there is nothing to share out
        amount = PATTERNS.get(str(pattern), plain.amount)
        return dataclasses.replace(plain, scope="local", amount=amount, pattern=pattern)
    floor = 0.0 if found["floor"] is None else found["floor"]
    steps = 1 if found["steps"] is None else found["steps"]
    schedule = "cubic" if steps == 1 else found["schedule"]
    cost = found["cost"] if weighs_arithmetic(method, plain.scope) else PruneSpec.cost
    more: dict[str, Any] = {"floor": floor, "steps": steps, "schedule": schedule, "cost": cost}
    return dataclasses.replace(plain, **more)


def values_of(spec: PruneSpec) -> dict[str, Any]:
    """Return what the controls show for a spec."""
    names = [name for name in PRUNING if name in _SPEC and hasattr(spec, name)]
    found = {name: getattr(spec, name) for name in names}
    found["parts"] = list(spec.parts)
    found["protect"] = [] if spec.protect is None else list(spec.protect) or [NOTHING]
    found["by_lever"] = spec.shape is not None
    levers = {name: getattr(spec.shape, name, None) for name in LEVERS}
    return found | {name: value for name, value in levers.items() if value is not None}


def at_amount(spec: PruneSpec, amount: float, parts: tuple[str, ...] | None = None) -> PruneSpec:
    """Return the spec at another amount; a pattern or levers, which fix the amount, give way."""
    return dataclasses.replace(
        spec, amount=amount, shape=None, pattern="", amounts=(), parts=parts or spec.parts
    )


def _whole(count: Any) -> Any:
    """Return a whole number as an int, None for "all"; Shape refuses any other."""
    if count == ALL and not isinstance(count, bool):
        return None
    if isinstance(count, float) and math.isfinite(count) and count == int(count):
        return int(count)
    return count


def _protected(names: Any) -> tuple[str, ...] | None:
    """Return what the visitor protects, None for the method's own list."""
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("What to leave alone is a list of layers' names, or beginnings of them.")
    found = tuple(dict.fromkeys(name.strip() for name in names))
    if NOTHING in found and len(found) > 1:
        raise InputError("Leave alone either nothing or the layers that you name, not both.")
    return () if NOTHING in found else found


# Healing


@dataclass(frozen=True)
class Order:
    """What to heal, and how."""

    request: Request
    plan: HealPlan
    texts: int
    """Sentences that quality is measured on."""
    owner: str
    """Digest of the visitor's token."""

    @property
    def key(self) -> Order:
        """The same for all timings: checkpoints speak with the original's durations."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, timing="own"))

    @property
    def learnt(self) -> Order:
        """The same for all texts too: the visitor's text does not change what is learnt."""
        return dataclasses.replace(self.key, request=dataclasses.replace(self.key.request, text=""))


def order_of(request: Request, owner: str, values: Mapping[str, Any]) -> Order:
    """Return the order of a visitor for the values of the Heal tab's controls.

    Raises:
        InputError: one of them is out of range.
    """
    import torch

    minutes, texts = values["heal_minutes"], values["heal_texts"]
    if not _within(minutes, MINUTES):
        raise InputError(
            f"Give {MINUTES[0]:g} to {MINUTES[1]:g} minutes: the command line heals longer."
        )
    if not _within(texts, TEXTS):
        raise InputError(f"Give {TEXTS[0]} to {TEXTS[1]} sentences to measure on.")
    fast = torch.cuda.is_available()
    plan = HealPlan(
        minutes=float(minutes),
        seed=request.seed,
        adversarial=bool(values["heal_adversarial"]),
        lessons=400 if fast else round(min(400, max(40, 40 * minutes))),
        # Writing a checkpoint takes about a second. Every ten seconds or so is often enough.
        checkpoint_every=round(max(20, 15 * minutes)) * (10 if fast else 1),
    )
    return Order(request, plan, int(texts), owner)


def _within(value: Any, limits: tuple[float, float]) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and limits[0] <= value <= limits[1]


def values_of_query(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the controls' values for the query of a page's address.

    What the query leaves out has its first value.

    Raises:
        InputError: the address asks for what cannot be used. It is checked like any other input.
    """
    found = {**FIRST}
    for name in FIRST:
        if name in query:
            found[name] = _value(name, query[name][:4_000])
    request_of(found)
    return found


def _value(name: str, text: str) -> Any:
    first = FIRST[name]
    if isinstance(first, bool):
        return text == "true"
    if isinstance(first, (list, tuple)):
        return [one for one in text.split(",") if one]
    if isinstance(first, (int, float)) or name in NUMBERS:
        try:
            number = float(text)
            return int(number) if number == int(number) else number
        except (ValueError, OverflowError):
            raise InputError(f"The link is damaged: {name} is not a number.") from None
    return text


def as_python(request: Request) -> str:
    """Return the lines of Python that do what the stage shows."""
    speaker = f", speaker={request.speaker!r}" if request.speaker else ""
    spec, delivery = _call(request.spec), _call(request.delivery)
    how = [f"seed={request.seed}", f"timing={request.timing!r}"]
    if request.delivery != Delivery():
        how.append(f"delivery={delivery}")
    if request.kernels != KERNELS[0]:
        how.append(f"kernels={request.kernels!r}")
    healed = f"heal(pruned, voice, {_call(request.healed.plan)}).voice" if request.healed else ""
    used = f"{spec}{how}{healed} compare( load_voice( prune("
    known = ("Delivery", "HealPlan", "PruneSpec", "Shape", "compare", "heal", "load_voice", "prune")
    return (
        f"from vits_prune import {', '.join(name for name in known if f'{name}(' in used)}\n\n"
        f"voice = load_voice({_own(request.reference)!r}{speaker})\n"
        f"pruned = prune(voice, {spec})\n"
        + f"pruned = {healed}\n" * bool(healed)
        + f"print(compare(voice, pruned, {request.text!r}, {', '.join(how)}))"
    )


def _own(reference: str) -> str:
    """Return what a visitor calls a voice at home: an upload has its key here alone."""
    return "your-voice.onnx" if reference.startswith("upload:") else reference


def _call(value: Any) -> str:
    """Return the call that makes an options object, with what is not at its default."""
    given = []
    for one in dataclasses.fields(value):
        now = getattr(value, one.name)
        if now != one.default:
            given.append(f"{one.name}={_call(now) if dataclasses.is_dataclass(now) else repr(now)}")
    return f"{type(value).__name__}({', '.join(given)})"


def as_command(request: Request) -> str:
    """Return the command that does what the stage shows."""
    plan = request.healed.plan if request.healed else None
    command = "heal" if plan else "compare"
    words = ["python", "-m", "vits_prune", command, "--voice", _own(request.reference)]
    words += ["--speaker", request.speaker] if request.speaker else []
    spec = request.spec
    some: list[Any] = [one for one in (spec, spec.shape, plan or request.delivery) if one]
    for options in some:
        for one in dataclasses.fields(options):
            value = getattr(options, one.name)
            derived = spec.shape and one.name in ("amount", "parts")
            if value == one.default or derived or one.name in ("shape", "texts"):
                continue
            flag = _FLAGS.get(one.name, one.name) if options is spec else one.name
            if flag == "steps" and options is spec and plan:
                flag = "prune-steps"  # the others are of the training
            given = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
            given = [] if value is True else given
            words += [f"--{flag.replace('_', '-')}"]
            words += [",".join(given)] if one.name == "amounts" else given
    if plan:
        return shlex.join([*words, "--out", "healed"])
    words += [f"--text={request.text}", "--seed", str(request.seed), "--timing", request.timing]
    words += ["--kernels", request.kernels] if request.kernels != KERNELS[0] else []
    return shlex.join([*words, "--out", "compared"])
