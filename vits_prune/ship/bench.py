"""Measure an exported voice on this machine. Needs Python 3.10, numpy, onnxruntime and the files that the export wrote, nothing else.

    python bench.py voice.onnx --threads 1,2 --json laptop.json    (or the folder that it is in)
    python bench.py --merge laptop.json board.json

Each number of threads gets a process of its own, so that load time and peak memory are its own. There is no phonemiser here: sentences
are read as ids from the `.bench.json` beside the model, else from the model itself; a stock Piper voice is given the symbols of its .json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MAX_THREADS = 256
MAX_RUNS = 1000
MAX_JSON_BYTES = 4 << 20
METADATA = "vits_prune_bench"
"""In the model's own metadata: what `.bench.json` holds."""
MAX_METADATA = 1 << 16
_SYMBOLS = 100
POWERCAP = Path("/sys/class/powercap")
COLUMNS = (
    ("threads", "threads", 1),
    ("load (ms)", "load_seconds", 1e3),
    ("first audio (ms)", "first_audio_seconds", 1e3),
    ("a sentence (ms)", "sentence_seconds", 1e3),
    ("RTF", "real_time_factor", 1),
    ("peak memory (MB)", "peak_memory_bytes", 1e-6),
    ("joules / s of speech", "joules_per_audio_second", 1),
)
"""Column -> its entry of a row, and what that is multiplied by."""


class BenchError(Exception):
    """What was given cannot be benched; the message says what to do."""


class OnnxEngine:
    """An ONNX file in Piper's convention, run by onnxruntime on the processor."""

    def __init__(self, path: str, threads: int, plan: dict[str, Any]) -> None:
        import numpy
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._numpy = numpy
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BenchError(
                f"{Path(path).name} cannot be loaded by onnxruntime ({reason}): export it again."
            ) from error
        self._inputs = {given.name for given in self._session.get_inputs()}
        if not {"input", "input_lengths", "scales"} <= self._inputs:
            raise BenchError(
                f"{Path(path).name} does not take the inputs of a Piper voice: give an .onnx that vits_prune or Piper exported."
            )
        self._scales = numpy.array(plan["scales"], numpy.float32)
        self._speaker = int(plan.get("speaker") or 0)
        self.versions = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}

    def say(self, ids: list[int]) -> int:
        """Speak a sentence; the number of samples."""
        numpy = self._numpy
        feed = {
            "input": numpy.array([ids], numpy.int64),
            "input_lengths": numpy.array([len(ids)], numpy.int64),
            "scales": self._scales,
        }
        if "sid" in self._inputs:
            feed["sid"] = numpy.array([self._speaker], numpy.int64)
        try:
            return int(self._session.run(None, feed)[0].size)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BenchError(
                f"onnxruntime cannot speak with these ids ({reason}): take model and sentences from one export."
            ) from error


def find_model(path: Path) -> Path:
    """What is to be benched: the file, the .onnx in a folder that an export wrote, or the folder of a voice that has none.

    Raises:
        BenchError: there is nothing there, or nothing that could be a voice.
    """
    if not path.exists():
        raise BenchError(f"There is no file or folder {str(path)[:200]!r}: check the path.")
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.onnx"))
    if len(found) > 1:
        raise BenchError(
            f"{path.name} holds several .onnx files: name one of them, such as {found[0].name[:60]}."
        )
    if found:
        return found[0]
    if not any((path / name).is_file() for name in ("vits_prune.json", "config.json")):
        raise BenchError(
            f"{path.resolve().name} holds no exported voice: give the folder that export or save_voice wrote, or its .onnx."
        )
    return path


def check_whole(model: Path, plan: dict[str, Any]) -> None:
    """Compare an .onnx with the checksum that the export wrote with its sentences, where it did.

    Raises:
        BenchError: it is another file or a damaged one.
    """
    wanted = plan.get("sha256")
    if not isinstance(wanted, str):
        return
    digest = hashlib.sha256()
    try:
        with open(model, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise BenchError(
            f"{model.name} cannot be read ({error.strerror}): check the file."
        ) from None
    if digest.hexdigest() != wanted:
        raise BenchError(
            f"{model.name} is damaged, or is not of the export that its sentences are of: copy both files again."
        )


def read_json(path: str | Path) -> Any:
    """The JSON in a file.

    Raises:
        BenchError: it cannot be read, is larger than 4 MiB or is not JSON.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise BenchError(
                f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: give a file that the export or --json wrote."
            )
        return json.loads(content.decode("utf-8"))
    except OSError as error:
        raise BenchError(
            f"{path} cannot be read ({error.strerror}): give a file that the export or --json wrote."
        ) from None
    except (ValueError, RecursionError):
        raise BenchError(
            f"{path} is not JSON: give a file that the export or --json wrote."
        ) from None


def sentences_beside(model: Path) -> Path:
    """Where the export writes what a bench says with this .onnx."""
    return model.with_name(model.name + ".bench.json")


def read_plan(model: Path, sentences: Path | None = None) -> dict[str, Any]:
    """What to say: sentences as ids, scales, speaker and sampling rate.

    Args:
        model: the .onnx.
        sentences: the file that says it, by default `<model>.bench.json`, else `bench.json` beside the model, else the model itself.

    Raises:
        BenchError: there is none, or it does not say that.
    """
    beside = [sentences_beside(model), model.with_name("bench.json")]
    path = sentences or next((file for file in beside if file.is_file()), None)
    plan = read_json(path) if path else _plan_inside(model) or _plan_of_piper(model)
    if plan is None:
        raise BenchError(
            f"There is no {beside[0].name} beside {model.name}: copy it from the export, or name one with --sentences."
        )
    try:
        sound = plan["sentences"] and all(
            sentence["ids"] and all(type(i) is int and i >= 0 for i in sentence["ids"])
            for sentence in plan["sentences"]
        )
        [float(scale) for scale in plan["scales"]]
        sound = sound and len(plan["scales"]) == 3 and int(plan["sampling_rate"]) > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise BenchError(
            f"{path or model.name} does not hold sentences as ids: give the .bench.json that the export wrote."
        )
    return plan


def _plan_inside(model: Path) -> Any:
    """What an export wrote into the model, None where it holds nothing."""
    try:
        import onnxruntime
    except ImportError:
        raise BenchError(
            "onnxruntime is not installed here: pip install onnxruntime numpy."
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        text = session.get_modelmeta().custom_metadata_map.get(METADATA, "")
        return json.loads(text) if 0 < len(text) <= MAX_METADATA else None
    except (ValueError, RecursionError):
        return None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BenchError(
            f"{model.name} cannot be loaded by onnxruntime ({reason}): export it again."
        ) from error


def _plan_of_piper(model: Path) -> Any:
    """For a voice of Piper's own: the symbols that its .json knows, one after the other, twenty to a sentence."""
    path = model.with_name(f"{model.name}.json")
    if not path.is_file():
        return None
    settings = read_json(path)
    try:
        known, given = settings["phoneme_id_map"], settings["inference"]
        begin, blank, end = (known.get(symbol, []) for symbol in "^_$")
        spoken = [
            known[symbol] for symbol in sorted(known) if len(symbol) == 1 and symbol.isalpha()
        ][:_SYMBOLS]
        ids = [
            [*begin, *blank, *(i for one in spoken[at : at + 20] for i in (*one, *blank)), *end]
            for at in range(0, len(spoken), 20)
        ]
        return {
            "sampling_rate": settings["audio"]["sample_rate"],
            "scales": [given["noise_scale"], given["length_scale"], 0.0],
            "sentences": [{"ids": sentence} for sentence in ids],
        }
    except (KeyError, TypeError, AttributeError):
        raise BenchError(
            f"{path.name} is not that of a Piper voice: name a file of sentences with --sentences."
        ) from None


def measure(engine: Any, plan: dict[str, Any], runs: int, started: float) -> dict[str, Any]:
    """One row: `engine` was just made, `started` is when that began (perf_counter)."""
    load = time.perf_counter() - started
    sentences, rate = [sentence["ids"] for sentence in plan["sentences"]], plan["sampling_rate"]
    begin = time.perf_counter()
    engine.say(sentences[0])
    cold = time.perf_counter() - begin
    for ids in sentences:  # each length once uncounted: kernels are prepared by shape
        engine.say(ids)
    meter = Rapl()
    seconds: list[list[float]] = [[] for _ in sentences]
    samples, processor = 0, time.process_time()
    for _ in range(runs):
        for ids, times in zip(sentences, seconds, strict=True):
            begin = time.perf_counter()
            samples += engine.say(ids)
            times.append(time.perf_counter() - begin)
    joules, audio = meter.joules(), samples / rate
    medians = [statistics.median(times) for times in seconds]
    factors = [sum(times[run] for times in seconds) * runs / audio for run in range(runs)]
    return {
        "load_seconds": load,
        "first_audio_seconds": load + cold,
        "sentence_seconds": statistics.median(medians),
        "sentences_seconds": medians,
        "real_time_factor": statistics.median(factors),
        "real_time_factor_range": [min(factors), max(factors)],
        "processor_seconds_per_audio_second": (time.process_time() - processor) / audio,
        "audio_seconds": audio / runs,
        "peak_memory_bytes": peak_memory(),
        "joules_per_audio_second": None if joules is None else joules / audio,
        "runs": runs,
        "versions": engine.versions,
    }


def peak_memory() -> int | None:
    """Largest resident memory of this process in bytes, None where the system does not tell."""
    try:  # Linux counts what started a process into its getrusage, and that may be a large program
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")
        )
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


class Rapl:
    """Joules of the processor packages since it was made, other programs' included; None where no counter can be read."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = [
            path for path in sorted(powercap.glob("intel-rapl:*")) if path.name.count(":") == 1
        ]
        self._before = self._read("energy_uj")

    def joules(self) -> float | None:
        now, limits = self._read("energy_uj"), self._read("max_energy_range_uj")
        if not now or not self._before or not limits:
            return None
        return (
            sum(
                (b - a) % (limit + 1) for a, b, limit in zip(self._before, now, limits, strict=True)
            )
            / 1e6
        )

    def _read(self, name: str) -> list[int] | None:
        try:
            return [int((package / name).read_text()) for package in self._packages]
        except (OSError, ValueError):  # the file is for root only
            return None


def machine() -> dict[str, Any]:
    """A description of this machine."""
    try:
        board = (
            Path("/proc/device-tree/model")
            .read_text(encoding="utf-8", errors="replace")
            .strip("\0\n ")
        )
    except OSError:
        board = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [
        line.split(":", 1)[1].strip()
        for line in lines
        if line.lower().startswith(("model name", "hardware"))
    ]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    return {
        "name": platform.node(),
        "processor": board or (names[0] if names else platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "cores": usable,
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def bench(
    model: str | Path, threads: list[int], runs: int = 5, sentences: str | Path | None = None
) -> dict[str, Any]:
    """Bench a voice, each number of threads in a process of its own.

    Args:
        model: an .onnx, the folder of an export, or the folder of a saved voice (which takes vits_prune and torch).
        threads: numbers of threads, in turn.
        runs: counted runs of every sentence.
        sentences: a .bench.json, by default the one beside the model.

    Raises:
        BenchError: the model or the sentences cannot be used.
    """
    model = find_model(Path(model))
    if (
        not threads
        or any(not 1 <= count <= MAX_THREADS for count in threads)
        or not 1 <= runs <= MAX_RUNS
    ):
        raise BenchError(
            f"Threads are whole numbers from 1 to {MAX_THREADS} and runs from 1 to {MAX_RUNS}: give --threads 1,2 --runs 5."
        )
    plan = None
    if not model.is_dir():  # before a process starts
        plan = read_plan(model, None if sentences is None else Path(sentences))
        if sentences is None:  # those of another export may be said on purpose
            check_whole(model, plan)
    rows = [
        {"threads": count, **_in_a_process(model, count, runs, sentences, plan)}
        for count in threads
    ]
    size = (
        sum(file.stat().st_size for file in model.iterdir() if file.is_file())
        if model.is_dir()
        else model.stat().st_size
    )
    label = "/".join(
        model.resolve().parts[-2 + model.is_dir() :]
    )  # the folder tells exports of one voice apart
    return {
        "vits_prune_bench": 1,
        "model": label,
        "bytes": size,
        "machine": machine(),
        "rows": rows,
    }


def _in_a_process(
    model: Path, threads: int, runs: int, sentences: str | Path | None, plan: dict[str, Any] | None
) -> dict[str, Any]:
    job = {
        "model": str(model.resolve()),
        "threads": threads,
        "runs": runs,
        "sentences": sentences and str(Path(sentences).resolve()),
    }
    job["plan"] = plan
    here = Path(__file__).resolve()
    paths = [
        str(here.parents[2]) if here.parent.name == "bench" else "",
        os.environ.get("PYTHONPATH", ""),
    ]
    number = {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    environment = {**os.environ, **number, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(here), "--child"]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, env=environment, check=False
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
        raise BenchError(f"The process with {threads} threads failed: {reason}") from None
    if "refused" in answer:
        raise BenchError(answer["refused"])
    return answer


def _child(job: dict[str, Any]) -> dict[str, Any]:
    model, threads = Path(job["model"]), job["threads"]
    try:
        if model.is_dir():
            from vits_prune.ship.bench_folder import FolderEngine, folder_plan

            plan = folder_plan(model, job["sentences"])
            started = time.perf_counter()
            engine: Any = FolderEngine(model, threads, plan)
        else:
            plan = job["plan"]
            import onnxruntime  # noqa: F401 - not counted as loading the voice

            started = time.perf_counter()
            engine = OnnxEngine(str(model), threads, plan)
        return measure(engine, plan, job["runs"], started)
    except BenchError as error:
        return {"refused": str(error)}
    except ImportError as error:
        return {"refused": _not_installed(error.name, model)}


def _not_installed(library: str | None, model: Path) -> str:
    if model.is_file():
        return f"{library} is not installed here: pip install onnxruntime numpy."
    return f"{model.name} is a saved voice, which takes vits_prune and torch ({library} is not here): bench an .onnx export instead."


def merge(paths: list[str]) -> list[dict[str, Any]]:
    """The results in several files.

    Raises:
        BenchError: a file was not written by --json.
    """
    found = []
    for path in paths:
        result = read_json(path)
        for one in result if isinstance(result, list) else [result]:
            sound = (
                isinstance(one, dict)
                and one.get("vits_prune_bench") == 1
                and isinstance(one.get("rows"), list)
            )
            if (
                not sound
                or not isinstance(one.get("machine"), dict)
                or not all(isinstance(row, dict) for row in one["rows"])
            ):
                raise BenchError(
                    f"{path} was not written by bench --json of this version: bench again."
                )
            found.append(one)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Results side by side, as text."""
    rows = [["model", "MB", "machine", *(title for title, _, _ in COLUMNS)]]
    for result in results:
        about = result["machine"]
        where = f"{about.get('processor', '?')}, {about.get('cores', '?')} cores"
        for row in result["rows"]:
            cells = [_shown(row.get(key), factor) for _, key, factor in COLUMNS]
            rows.append(
                [str(result.get("model")), _shown(result.get("bytes"), 1e-6), where[:48], *cells]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shown(value: Any, factor: float) -> str:
    """Three significant digits; a dash where nothing could be measured."""
    if not isinstance(value, (int, float)):
        return "-"
    return (
        f"{value * factor:.0f}"
        if value * factor >= 100 or (factor == 1 and isinstance(value, int))
        else f"{value * factor:.3g}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, which `python -m vits_prune bench` has too."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="DIR|FILE.onnx",
        help="an exported .onnx, its folder, or the folder of a saved voice",
    )
    parser.add_argument(
        "--threads", default="1", metavar="N,N", help="numbers of threads (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="counted runs of every sentence (default: %(default)s)"
    )
    parser.add_argument(
        "--sentences",
        metavar="FILE",
        help="the sentences as ids, default: the .bench.json beside the model",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--merge",
        nargs="+",
        metavar="FILE",
        help="lay results that --json wrote side by side instead",
    )


def run(options: argparse.Namespace) -> None:
    """Do what the options say and print the table.

    Raises:
        BenchError: it cannot be done.
    """
    if (options.model is None) == (options.merge is None):
        raise BenchError(
            "Give an .onnx file or a folder to bench, or --merge with files that --json wrote."
        )
    try:
        threads = [int(count) for count in options.threads.split(",")]
    except ValueError:
        raise BenchError(
            f"--threads {options.threads[:40]!r} is not a list of whole numbers: give --threads 1,2."
        ) from None
    results = (
        merge(options.merge)
        if options.merge
        else [bench(options.model, threads, options.runs, options.sentences)]
    )
    print(table(results))
    if not options.merge and all(
        row["joules_per_audio_second"] is None for row in results[0]["rows"]
    ):
        print("\nEnergy: no counter can be read on this machine.")
    if options.json:
        beside = f"{options.json}.part"
        try:
            Path(beside).write_text(
                json.dumps(results if options.merge else results[0], indent=2) + "\n",
                encoding="utf-8",
            )
            os.replace(beside, options.json)
        except OSError as error:
            raise BenchError(f"{options.json} cannot be written: {error.strerror}.") from None


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(json.load(sys.stdin))))
        return 0
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure an exported VITS voice on this machine."
    )
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
