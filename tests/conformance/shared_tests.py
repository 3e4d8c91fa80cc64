"""`make conformance`: the library's own shared tests, run on our classes.

transformers ships the mixins that every model of its own is tested with in the source distribution of each release,
and not in the wheel. This fetches the distribution of the release that is installed (once, into an ignored folder),
runs the mixins on the cases of `cases.py` and prints a table: what passed, what was left out for a reason that
`exclusions.py` gives, and what failed. Exit status 1 if anything failed.

    python tests/conformance/shared_tests.py [-k EXPRESSION]
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path

__all__ = ["fetch", "main", "table"]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# What the mixins import from parts of the repository that the distribution leaves out and our classes do not use.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


def fetch(folder: Path) -> Path:
    """
    The tests of the installed release under `folder`, with what they need.

    Raises:
        subprocess.CalledProcessError: where pip reaches no registry.
    """
    name = f"transformers-{version('transformers')}"
    place = folder / name
    if (place / "fetched").is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wanted = [f"transformers=={version('transformers')}", "--no-deps", "--no-binary", ":all:"]
    if not (folder / f"{name}.tar.gz").is_file():
        subprocess.run([*pip, "download", *wanted, "--dest", str(folder)], check=True)
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(f"{name}/tests/")]
        archive.extractall(folder, members, filter="data")
    for file, text in STUBS.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text, encoding="utf-8")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place), "parameterized"], check=True)
    (place / "fetched").touch()
    return place


def table(report: Path) -> tuple[str, int]:
    """Markdown of a JUnit report, a row for each case and what failed below it, and how many tests failed."""
    counts: dict[str, Counter] = {}
    failed = []
    for test in ElementTree.parse(report).iter("testcase"):
        case = test.attrib["classname"].rpartition(".")[2]
        outcome = "passed"
        for kind in ("failure", "error", "skipped"):
            if test.find(kind) is not None:
                outcome = "left out" if kind == "skipped" else "failed"
        if outcome == "failed":
            failed.append(f"- {case}.{test.attrib['name']}")
        counts.setdefault(case, Counter())[outcome] += 1
    outcomes = ("passed", "left out", "failed")
    rows = [
        f"| {case} | " + " | ".join(str(found[name]) for name in outcomes) + " |" for case, found in counts.items()
    ]
    return "\n".join(["| case | passed | left out | failed |", "|---|---|---|---|", *rows, *failed]), len(failed)


def main(arguments: list[str]) -> int:
    """Fetch, run, print."""
    place = fetch(HERE / ".source")
    report = place / "report.xml"
    paths = [place, ROOT / "tests" / "modeling", ROOT / "tests" / "processing", HERE]
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull]
    options += [f"--rootdir={HERE}", f"--junitxml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "cases.py"), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        cwd=place,
    )
    text, failures = table(report)
    print(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
