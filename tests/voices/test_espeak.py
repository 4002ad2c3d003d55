"""What kills espeak-ng must not kill the page."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.forked import in_fork
from vits_prune.errors import InputError
from vits_prune.voices import espeak, espeak_library

# Each of these has ended a process that read it with espeak-ng 1.52.
DEADLY = [
    ("a." * 1000, "en-us"),
    ("A.B." * 300, "de"),
    ("\u044b." * 400, "pt-br"),
    ("\u044c." * 400, "ru"),
]


def test_after_a_deadly_text_the_next_is_read():
    """At least one of the texts is deadly here; another build of espeak-ng may survive some."""
    refused = []
    for text, voice in DEADLY:
        try:
            espeak.clauses(text, voice)
        except InputError as error:
            refused.append(str(error))
        assert espeak.clauses("Hello there.", "en-us") == espeak_library.clauses(
            "Hello there.", "en-us"
        )
    assert refused
    assert all("espeak-ng cannot read this text" in sentence for sentence in refused)


def test_the_child_says_what_the_library_says():
    for text in (
        "The end. Is it?",
        "",
        "one \x01two \ud800three",
        "Mixed \u65e5\u672c and more: yes; no!",
    ):
        assert espeak.clauses(text, "en-us") == espeak_library.clauses(text, "en-us")
    with pytest.raises(InputError, match="has no voice"):
        espeak.check_voice("../../etc/passwd")
    with pytest.raises(InputError, match="has no voice"):
        espeak.clauses("Hi", "xx")
    espeak.check_voice("de")


def test_a_killed_child_is_replaced():
    espeak.clauses("Hi", "en-us")
    before = espeak.process.pid
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert espeak.clauses("Hi", "en-us")
    assert espeak.process.pid != before


def test_threads_take_turns():
    expected = {voice: espeak_library.clauses("vier oui", voice) for voice in ("de", "fr")}
    wrong = []

    def read(voice):
        wrong.extend(
            voice for _ in range(20) if espeak.clauses("vier oui", voice) != expected[voice]
        )

    threads = [threading.Thread(target=read, args=(voice,)) for voice in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_process_with_many_open_files():
    """`select.select` takes no descriptor above 1023."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1100:
        pytest.skip("no more than 1,023 files may be open here")
    child, opened = espeak.EspeakProcess(), []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE,
            (max(soft, 1100) if soft != resource.RLIM_INFINITY else soft, hard),
        )
        while not opened or opened[-1] < 1024:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        child.ask("check_voice", "de")  # its pipes lie above 1023
    finally:
        for descriptor in opened:
            os.close(descriptor)
        child.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_forked_process_has_a_child_of_its_own():
    """It is forked while another thread asks the child."""
    expected, mine = espeak.clauses("Hi", "en-us"), espeak.process.pid

    def ask():
        found, child = espeak.clauses("Hi", "en-us"), espeak.process.pid
        espeak.process.close()
        return found, child

    with espeak.process.lock:
        found, theirs = in_fork(ask)
    assert found == expected
    assert theirs != mine
    assert espeak.clauses("Hi", "en-us") == expected
    assert espeak.process.pid == mine
