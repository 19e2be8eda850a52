"""What the quick start says on screen, as README.md shows it between its two markers.

    runner run experiments/quickstart.toml 2> said
    python3 tests/transcript.py said            # exit 1 when README.md shows anything else
    python3 tests/transcript.py said --write    # puts it into README.md

Compared are all words and numbers but those of the machine: its name, its memory, and times.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- made by tests/transcript.py -->\n```text\n"
END = "```\n<!-- end -->"
CUT = "…"

MACHINE = [
    (r"^(device|memory): .*$", r"\1: of the machine"),
    (r"[0-9.]+ ms\b", "T ms"),
    (r"\b\d+ tok/s", "N tok/s"),
    (r"(steps done in) [^;]*; data was .*$", r"\1 T"),
]


def excerpt(said):
    """The beginning to the second step's line, and the end from the last validation on."""
    folder = re.search(r"^folder: (.*)$", said, re.MULTILINE).group(1)
    lines = said.replace(folder, "runs/quickstart").splitlines()
    steps = [at for at, line in enumerate(lines) if line.startswith("step ")]
    last = max(at for at, line in enumerate(lines) if line.startswith("val loss"))
    end = lines[last:]
    sample = next(at for at, line in enumerate(end) if line.startswith("sample at step"))
    after = next(at for at, line in enumerate(end) if re.match(r"\d+ steps done in", line))
    text = end[sample + 1][:40].rsplit(" ", 1)[0]
    shown = lines[: steps[1] + 1] + [CUT] + end[: sample + 1] + [f"{text} {CUT}"] + end[after:]
    return "\n".join(shown) + "\n"


def of_any_machine(text):
    for pattern, instead in MACHINE:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text.splitlines()


def main():
    file, write = sys.argv[1], "--write" in sys.argv[2:]
    now = excerpt(Path(file).read_text())
    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    shown, after = rest.split(END)
    if write:
        README.write_text(before + BEGIN + now + END + after)
        return
    if of_any_machine(shown) == of_any_machine(now):
        return
    for old, new in zip(of_any_machine(shown) + [""], of_any_machine(now) + [""]):
        if old != new:
            sys.exit(
                f"README.md shows:   {old}\nthe quick start says: {new}\n"
                f"hint: `python3 tests/transcript.py {file} --write` puts it there"
            )
    sys.exit("README.md shows another number of lines than the quick start says")


main()
