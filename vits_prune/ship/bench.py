"""Measure an exported voice on this machine, with Python 3.10, numpy and onnxruntime alone.

    python bench.py voice.onnx --threads 1,2 --json laptop.json    (or the folder that it is in)
    python bench.py sparse joe voice.onnx    (saved voices too: with torch and vits_prune there)
    python bench.py --merge laptop.json board.json

An export puts a copy of this file next to the model, so it imports nothing of vits_prune. Each
number of threads gets a process of its own, for its load time and peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_THREADS = 256
MAX_RUNS = 1000
MAX_RESULT_BYTES = 4 << 20
EMBEDDED = "joe"
"""The voice that installs with vits_prune, whatever lies in a folder of that name."""
METADATA = "vits_prune_bench"
"""In the model's own metadata: what `.bench.json` holds."""
MAX_METADATA = 1 << 16
NEEDS = "torch and vits_prune (and numba for sparse kernels)"
COLUMNS = (
    ("threads", "threads", 1),
    ("load (ms)", "load_seconds", 1e3),
    ("speech (s)", "audio_seconds", 1),
    ("first audio (ms)", "first_audio_seconds", 1e3),
    ("a sentence (ms)", "sentence_seconds", 1e3),
    ("RTF", "real_time_factor", 1),
    ("peak memory (MB)", "peak_memory_bytes", 1e-6),
    ("joules / s of speech", "joules_per_audio_second", 1),
)
"""Column -> its entry of a row, and what that is multiplied by."""


class BenchError(Exception):
    """The model, the sentences or the options cannot be used; the message says what to do."""


def open_model(path: Path, threads: int = 0) -> Any:
    """Return an onnxruntime session; without threads, one that only reads the metadata."""
    try:
        import onnxruntime
    except ImportError:
        raise BenchError("Install onnxruntime: pip install onnxruntime numpy.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = f"{path.name} cannot be loaded by onnxruntime ({_reason(error)})"
        raise BenchError(f"{what}: export it again.") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


class OnnxEngine:
    """An ONNX file with Piper's inputs, run by onnxruntime on the processor."""

    def __init__(self, path: Path, threads: int, plan: dict[str, Any]) -> None:
        self._session = open_model(path, threads)
        import numpy
        import onnxruntime

        inputs = {given.name for given in self._session.get_inputs()}
        if not {"input", "input_lengths", "scales"} <= inputs:
            raise BenchError(f"{path.name} is no VITS voice: give an .onnx of vits_prune or Piper.")
        self._ints = lambda values: numpy.array(values, numpy.int64)
        self._fixed: dict[str, Any] = {"scales": numpy.array(plan["scales"], numpy.float32)}
        if "sid" in inputs:
            self._fixed["sid"] = self._ints([int(plan.get("speaker") or 0)])
        self.versions = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}
        self.runtime = "onnxruntime"

    def say(self, ids: list[int]) -> int:
        """Speak a sentence and return the number of samples."""
        feed = {"input": self._ints([ids]), "input_lengths": self._ints([len(ids)]), **self._fixed}
        try:
            return int(self._session.run(None, feed)[0].size)
        except Exception as error:
            why = f"onnxruntime cannot speak with these ids ({_reason(error)})"
            raise BenchError(f"{why}: take model and sentences from one export.") from error


def is_onnx(model: str | Path) -> bool:
    """Return whether this is an .onnx file or a folder with one, which onnxruntime runs."""
    path = Path(os.path.expanduser(model))
    return str(model) != EMBEDDED and (path.suffix.lower() == ".onnx" or bool(_models_in(path)))


def _models_in(folder: Path) -> list[Path]:
    """The .onnx files of a folder; macOS keeps facts about them in hidden ones."""
    return sorted(path for path in folder.glob("*.onnx") if not path.name.startswith("."))


def find_model(path: Path) -> Path:
    """Return the file, or the one .onnx of a folder."""
    if not path.exists():
        raise BenchError(f"There is no file or folder {str(path)[:200]!r}: check the path.")
    found = _models_in(path) if path.is_dir() else [path]
    if not found:
        what = f"{path.resolve().name} holds no exported voice"
        raise BenchError(f"{what}: give another folder. A saved voice needs {NEEDS}.")
    if len(found) > 1:
        raise BenchError(f"{path.name} holds several: name one, such as {found[0].name:.60}.")
    return found[0]


def read_result(path: str | Path) -> Any:
    """Return the JSON in a file of at most 4 MiB."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(MAX_RESULT_BYTES + 1)
        if len(content) <= MAX_RESULT_BYTES:
            return json.loads(content)  # with or without a byte order mark
        why = f"is larger than {MAX_RESULT_BYTES >> 20} MiB"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        why = "is not JSON"
    raise BenchError(f"{path} {why}: give a file that the export or --json wrote.")


def sentences_beside(model: Path) -> Path:
    """Return where the export writes the sentences that a bench speaks with this .onnx."""
    return model.with_name(model.name + ".bench.json")


def read_plan(model: Path, sentences: Path | None = None) -> dict[str, Any]:
    """Return what to say: sentences as ids, scales, speaker and sampling rate.

    It is in `sentences`, by default `<model>.bench.json`, else `bench.json`, else the model itself;
    a stock Piper voice says the letters of its .json.

    Raises:
        BenchError: there is none, or it does not say that.
    """
    usual = [sentences_beside(model), model.with_name("bench.json")]
    path = sentences or next((file for file in usual if file.is_file()), None)
    plan = read_result(path) if path else _plan_inside(model) or _plan_of_piper(model)
    if plan is None:
        raise BenchError(f"There is no {usual[0].name} next to {model.name}: copy it there.")
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        spoken = [sentence["ids"] for sentence in plan["sentences"]]
        sound = all(ids and all(type(i) is int and i >= 0 for i in ids) for ids in spoken)
        scales = [float(scale) for scale in plan["scales"]]
        if spoken and sound and len(scales) == 3 and int(plan["sampling_rate"]) > 0:
            return plan
    what = "does not hold sentences as ids"
    raise BenchError(f"{path or model.name} {what}: give an export's .bench.json.")


def _plan_inside(model: Path) -> Any:
    """The plan that an export wrote into the model, None if there is none."""
    text = open_model(model).get_modelmeta().custom_metadata_map.get(METADATA, "")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text) if len(text) <= MAX_METADATA else None


def _plan_of_piper(model: Path) -> Any:
    """For a stock Piper voice: the letters that its .json knows, twenty to a sentence."""
    names = (f"{model.name}.json", f"{model.stem}.json", "config.json")
    path = next(filter(Path.is_file, map(model.with_name, names)), None)
    if path is None:
        return None
    settings = read_result(path)
    try:
        known, given = settings["phoneme_id_map"], settings.get("inference", {})
        begin, blank, end = (known.get(symbol, []) for symbol in "^_$")
        letters = [symbol for symbol in sorted(known) if len(symbol) == 1 and symbol.isalpha()]
        sentences = []
        for at in range(0, min(100, len(letters)), 20):
            ids = [i for letter in letters[at : at + 20] for i in (*known[letter], *blank)]
            sentences.append({"ids": [*begin, *blank, *ids, *end]})
        scales = [given.get("noise_scale", 0.667), given.get("length_scale", 1.0), 0.0]
        rate = settings["audio"]["sample_rate"]
        return {"sampling_rate": rate, "scales": scales, "sentences": sentences}
    except (KeyError, TypeError, AttributeError):
        advice = "give a file with --sentences"
        raise BenchError(f"{path.name} is not that of a Piper voice: {advice}.") from None


def measure(engine: Any, plan: dict[str, Any], runs: int, started: float) -> dict[str, Any]:
    """Return one row; `engine` was just made, and `started` is when that began (perf_counter)."""
    load = time.perf_counter() - started
    sentences = [sentence["ids"] for sentence in plan["sentences"]]
    engine.say(sentences[0])
    first = time.perf_counter() - started
    for ids in sentences:  # each length once uncounted: kernels are prepared by shape
        engine.say(ids)
    counters = energy()
    seconds: list[list[float]] = [[] for _ in sentences]
    samples, processor = 0, time.process_time()
    for _ in range(runs):
        for ids, times in zip(sentences, seconds, strict=True):
            begin = time.perf_counter()
            samples += engine.say(ids)
            times.append(time.perf_counter() - begin)
    used, audio = joules(counters, energy()), samples / plan["sampling_rate"]
    medians = [statistics.median(times) for times in seconds]
    factors = [sum(times[run] for times in seconds) * runs / audio for run in range(runs)]
    return {
        "load_seconds": load,
        "first_audio_seconds": first,
        "sentence_seconds": statistics.median(medians),
        "sentences_seconds": medians,
        "real_time_factor": statistics.median(factors),
        "real_time_factor_range": [min(factors), max(factors)],
        "processor_seconds_per_audio_second": (time.process_time() - processor) / audio,
        "audio_seconds": audio / runs,
        "peak_memory_bytes": peak_memory(),
        "joules_per_audio_second": None if used is None else used / audio,
        "runs": runs,
        "runtime": engine.runtime,
        "versions": engine.versions,
    }


def peak_memory() -> int | None:
    """Return the largest resident memory of this process in bytes, None if it is not known."""
    # Linux counts the program that started a process into its getrusage, which may be a large one.
    if found := re.search(r"^VmHWM:\s*(\d+)", _text("/proc/self/status"), re.MULTILINE):
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _text(path: str) -> str:
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def energy(powercap: Path = Path("/sys/class/powercap")) -> list[tuple[int, int]]:
    """Return the counter of each processor package and its greatest value, in microjoules.

    It counts other programs too; the list is empty if no counter can be read.
    """
    packages = [path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1]
    names = ("energy_uj", "max_energy_range_uj")
    try:
        found = [[int((path / name).read_text()) for name in names] for path in sorted(packages)]
    except (OSError, ValueError):  # the file is for root only
        return []
    return [(now, most) for now, most in found]


def joules(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> float | None:
    """Return the energy between two readings in joules, None if there was no counter."""
    pairs = zip(before, after, strict=False)
    used = [(now - earlier) % (most + 1) for (earlier, _), (now, most) in pairs]
    return sum(used) / 1e6 if used else None


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    names = re.findall(r"(?im)^(?:model name|hardware)\s*:\s*(.*\S)", _text("/proc/cpuinfo"))
    board = _text("/proc/device-tree/model").strip("\0\n ")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    return {
        "name": platform.node(),
        "processor": board or next(iter(names), platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "cores": usable,
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def bench(
    model: str | Path, threads: list[int], runs: int = 5, sentences: str | Path | None = None
) -> dict[str, Any]:
    """Measure an .onnx or the folder of an export, each number of threads in its own process.

    Every sentence of the .bench.json, by default that next to the model, is spoken `runs` times.

    Raises:
        BenchError: the model or the sentences cannot be used, or are not of one export.
    """
    path = find_model(Path(os.path.expanduser(model)))
    plan = read_plan(path, None if sentences is None else Path(os.path.expanduser(sentences)))
    if sentences is None and "sha256" in plan:  # those of another export may be given on purpose
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BenchError(f"{path.name} cannot be read: {error.strerror}.") from None
        if plan["sha256"] != found:
            raise BenchError(f"{path.name} is damaged, or of another export: copy both again.")
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    return measure_in_processes(path, plan, threads, runs, command)


def measure_in_processes(
    model: Path,
    plan: dict[str, Any],
    threads: list[int],
    runs: int,
    command: list[str],
    prepare: Callable[[int], dict[str, Any]] = lambda _threads: {},
) -> dict[str, Any]:
    """Return the result of a bench; `command` starts a process that calls `answer`.

    What `prepare` does for a number of threads is not counted; its result goes into the plan.
    """
    sound = threads and all(1 <= count <= MOST_THREADS for count in threads)
    if not sound or not 1 <= runs <= MAX_RUNS:
        most = f"{MOST_THREADS} --threads and {MAX_RUNS} --runs"
        raise BenchError(f"Give at least one and at most {most}, as in --threads 1,2 --runs 5.")
    rows, there = [], model.exists() and str(model) != EMBEDDED
    for count in threads:
        job = {"model": str(model.resolve() if there else model.as_posix()), "threads": count}
        job |= {"runs": runs, "plan": {**plan, **prepare(count)}}
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        own = {**os.environ, **dict.fromkeys(libraries, str(count))}
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, env=own
        )
        try:
            row = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
            raise BenchError(f"The process with {count} threads failed: {reason}") from None
        if "refused" in row:
            raise BenchError(row["refused"])
        rows.append({"threads": count, **row})
    # The folder tells exports of one voice apart.
    label = "/".join(model.resolve().parts[-1 if model.is_dir() else -2 :])
    files = model.iterdir() if model.is_dir() else [model]
    size = sum(file.stat().st_size for file in files if file.is_file())
    about = {"vits_prune_bench": 1, "model": label if there else model.as_posix()}
    about |= {"bytes": size if there else None, "machine": machine()}
    return {**about, "rows": rows}


def answer(engine: Callable[[Path, int, dict[str, Any]], Any]) -> None:
    """Read a job of `measure_in_processes`, do it with this kind of engine, and print the row."""
    job = json.load(sys.stdin)
    try:
        started = time.perf_counter()
        made = engine(Path(job["model"]), job["threads"], job["plan"])
        row = measure(made, job["plan"], job["runs"], started)
    except BenchError as error:
        row = {"refused": str(error)}
    print(json.dumps(row))


def merge(paths: list[str]) -> list[dict[str, Any]]:
    """Return the results that --json wrote to several files."""
    found = []
    for path in paths:
        result = read_result(path)
        for one in result if isinstance(result, list) else [result]:
            about = one if isinstance(one, dict) else {}
            rows, where = about.get("rows"), about.get("machine")
            sound = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
            if not sound or about.get("vits_prune_bench") != 1 or not isinstance(where, dict):
                raise BenchError(f"{path} was not written by this bench --json: bench again.")
            found.append(about)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Return results side by side, as text."""
    rows = [["model", "MB", "machine", "run by", *(title for title, _, _ in COLUMNS)]]
    for result in results:
        about = result["machine"]
        where = f"{about.get('processor', '?')}, {about.get('cores', '?')} cores"[:48]
        first = [str(result.get("model")), _shown(result.get("bytes"), 1e-6), where]
        for row in result["rows"]:
            cells = (_shown(row.get(key), factor) for _, key, factor in COLUMNS)
            rows.append([*first, str(row.get("runtime", "-"))[:48], *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _shown(value: Any, factor: float) -> str:
    """Three significant digits; a dash for what could not be measured."""
    if not isinstance(value, (int, float)):
        return "-"
    whole = value * factor >= 100 or (factor == 1 and isinstance(value, int))
    return f"{value * factor:.0f}" if whole else f"{value * factor:.3g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, which `python -m vits_prune bench` has too."""
    add = parser.add_argument
    what = "exported .onnx files or their folders, which need onnxruntime and numpy alone; saved "
    what += f"voices (sparse, dense) and joe too, which need {NEEDS}"
    add("models", nargs="*", default=None, metavar="MODEL", help=what)
    add("--threads", default="1", metavar="N,N", help="numbers of threads (default: %(default)s)")
    add("--runs", type=int, default=5, help="counted runs of every sentence (default: %(default)s)")
    what = "the sentences as ids, default: the .bench.json beside the model"
    add("--sentences", metavar="FILE", help=what)
    add("--json", metavar="FILE", help="write the results there too")
    what = "lay results that --json wrote side by side instead"
    add("--merge", nargs="+", metavar="FILE", help=what)


def run(options: argparse.Namespace, bench: Callable[..., dict[str, Any]] = bench) -> None:
    """Do what the options of `add_arguments` say, with `bench`, and print the table."""
    if bool(options.models) == bool(options.merge):
        raise BenchError("Give .onnx files or folders, or --merge with files of --json.")
    try:
        threads = [int(count) for count in options.threads.split(",")]
    except ValueError:
        what = f"--threads {options.threads[:40]!r} is no list of whole numbers"
        raise BenchError(f"{what}: give --threads 1,2.") from None
    target = Path(os.path.expanduser(options.json or ""))
    if options.merge:
        results = merge(options.merge)
    else:
        how = threads, options.runs, options.sentences
        results = [bench(model, *how) for model in options.models]
    print(table(results))
    if all(row.get("joules_per_audio_second") is None for one in results for row in one["rows"]):
        print("\nEnergy: no counter was read.")
    if options.json:
        part = target.with_name(f"{target.name}.part")
        alone = len(results) == 1 and not options.merge
        content = json.dumps(results[0] if alone else results, indent=2) + "\n"
        try:
            part.write_text(content, encoding="utf-8")
            part.replace(target)
        except OSError as error:
            raise BenchError(f"{target} cannot be written: {error.strerror}.") from None


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:2] == ["--child"]:
        with contextlib.suppress(ImportError):  # `open_model` explains it
            import onnxruntime  # noqa: F401 - not counted as loading the voice
        answer(OnnxEngine)
        return 0
    parser = argparse.ArgumentParser("bench", description=__doc__.partition("\n")[0])
    add_arguments(parser)
    options = parser.parse_args()
    try:
        if not all(map(is_onnx, options.models)) and importlib.util.find_spec("vits_prune"):
            return subprocess.call([sys.executable, "-m", "vits_prune", "bench", *sys.argv[1:]])
        run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
