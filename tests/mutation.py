"""Puts single faults into the code, one at a time, and counts those that the tests notice.

    python tests/mutation.py                          # one fault in 20 of those there are
    python tests/mutation.py sdnet/data --one-in 1    # every fault in a folder or file

A fault is a comparison turned round, a condition negated, a number moved, a name changed, an
argument or a statement left out, ... . Which of them make the sample depends on their text alone:
code that only moves keeps its own. Tests marked slow are left out. Needs `coverage`.

What passes unnoticed, and why, is written in `survivors.txt`; a fault that is listed there as
equivalent (it changes nothing) does not count.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.commands import FORKED  # noqa: E402

QUICK = ["-n", "0", "-m", "not slow", "-q", "-p", "no:cacheprovider"]
REASONS = Path(__file__).with_name("survivors.txt")
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in"}
COMPARISONS |= {"not in": "in", "is": "is not", "is not": "is"}
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*", "|": "&"}
ARITHMETIC |= {"&": "|", "@": "*"}


@dataclass(frozen=True)
class Fault:
    """`new` in place of the bytes start..end of a file; the lines it is in before and after."""

    file: str
    line: int
    start: int
    end: int
    new: bytes
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]


class Finder(ast.NodeVisitor):
    """Collects (start, end, new text) for every fault of a module."""

    def __init__(self, source: bytes):
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[tuple[int, int, bytes]] = []
        self.visit(ast.parse(source))

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> bytes:
        start, end = self.span(node)
        return self.source[start:end]

    def add(self, start: int, end: int, new: str | bytes) -> None:
        self.found.append((start, end, new.encode() if isinstance(new, str) else new))

    def replace(self, node: ast.AST, new: str | bytes) -> None:
        self.add(*self.span(node), new)

    def between(self, left: ast.AST, right: ast.AST, others: dict[str, str]) -> None:
        """Another operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        names = sorted(others, key=len, reverse=True)
        pattern = "|".join(rf"\b{n}\b" if n[0].isalpha() else re.escape(n) for n in names)
        found = re.search(pattern, self.source[start:end].decode())
        if found:
            self.add(start + found.start(), start + found.end(), others[found[0]])

    def negate(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare):  # that has a fault of its own
            self.replace(test, b"not (" + self.text(test) + b")")

    # -- what has faults --------------------------------------------------------------------------

    def visit_Compare(self, node):
        for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
            self.between(left, right, COMPARISONS)
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if not isinstance(node.left, ast.JoinedStr) and not _is_text(node.left):
            self.between(node.left, node.right, ARITHMETIC)
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, {"and": "or", "or": "and"})
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not | ast.USub):
            self.replace(node, self.text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self.replace(node, str(node.value + 1))
        elif isinstance(node.value, float):
            self.replace(node, repr(node.value * 1.1 or 0.1))
        elif _is_text(node) and re.fullmatch(r"[A-Za-z_][\w.]*", node.value):
            self.replace(node, repr(node.value + "x"))

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.negate(node.test)
        self.generic_visit(node)

    visit_IfExp = visit_While = visit_If

    def visit_comprehension(self, node):
        for test in node.ifs:
            self.negate(test)
        self.generic_visit(node)

    def visit_Call(self, node):
        ends = [self.span(node.func)[1] + 1, *(self.span(a)[1] for a in node.args)]
        for keyword in node.keywords:
            start, end = self.span(keyword)
            before = max(e for e in ends if e <= start)
            if self.source[before:start].strip() in (b"", b","):
                new = b"" if self.source[before:start].strip() or len(ends) == 1 else b" "
                if len(ends) == 1:  # the first argument: its comma goes with it
                    end += len(re.match(rb"\s*,?", self.source[end:])[0])
                self.add(before if new == b"" and len(ends) > 1 else start, end, new)
            ends.append(self.span(keyword)[1])
        self.generic_visit(node)

    def visit_Return(self, node):
        if node.value is not None and not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        ):
            self.replace(node.value, "None")
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        if isinstance(node.value, ast.Call):
            self.replace(node, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node):
        self.replace(node, "pass")  # its message is words

    def visit_AugAssign(self, node):
        self.replace(node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node):
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            self.replace(node, "pass")
        names = [t.id for t in node.targets if isinstance(t, ast.Name)]
        if "__all__" not in names:
            self.generic_visit(node)

    def visit_FunctionDef(self, node):
        for decorator in node.decorator_list:
            start, end = self.span(decorator)
            self.add(start - 1, end, "")
        for child in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(child)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node):
        """Words, mostly."""

    visit_Import = visit_ImportFrom = visit_JoinedStr


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def faults_of(path: Path) -> list[Fault]:
    """Every fault that this module can put into a file, in order."""
    source, name = path.read_bytes(), str(path.relative_to(ROOT))
    faults = []
    for start, end, new in sorted(Finder(source).found):
        changed = source[:start] + new + source[end:]
        try:
            compile(changed, name, "exec")
        except (SyntaxError, ValueError):
            continue
        first = source.rfind(b"\n", 0, start) + 1
        last = source.find(b"\n", end)
        shown = [source[first:last], source[first:start] + new + source[end:last]]
        before, after = (" ".join(text.decode().split()) for text in shown)
        if before != after:
            line = source.count(b"\n", 0, start) + 1
            faults.append(Fault(name, line, start, end, new, before, after))
    return faults


def is_drawn(fault: Fault, one_in: int) -> bool:
    text = f"{fault.before}\n{fault.after}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % one_in == 0


# -- running the tests ----------------------------------------------------------------------------


def copy_tree(to: Path) -> Path:
    """What git knows or would know of the project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.check_output(command, cwd=ROOT).decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def _pytest(tree: str, arguments: list[str], log: str) -> None:
    """In a process of its own that has the libraries, but nothing of the project."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(tree)
    # What this process forks in its turn would begin with this module, and with its ROOT.
    sys.modules["__main__"].__file__ = None
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    for name in [n for n in sys.modules if n.partition(".")[0] in ("sdnet", "tests")]:
        del sys.modules[name]
    import pytest

    status = int(pytest.main([*QUICK, "-x", *arguments]))
    sys.stdout.flush()
    os._exit(status)


def run_tests(tree: Path, arguments: list[str], limit: float) -> int:
    """The exit status: 0 where nothing was noticed, -9 where they did not end."""
    with tempfile.TemporaryDirectory() as folder:
        process = FORKED.Process(target=_pytest, args=(str(tree), arguments, f"{folder}/log"))
        process.start()
        process.join(limit)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return process.exitcode


class Reach:
    """Which test files run which lines, and how long they take; kept between calls."""

    def __init__(self, tests: list[str], workers: int):
        known = sorted(f for name in ("sdnet", "tests") for f in (ROOT / name).rglob("*.py"))
        known = [f for f in known if f.name != Path(__file__).name] + [ROOT / "train.py"]
        digest = hashlib.blake2b(b"".join(f.read_bytes() for f in known), digest_size=8)
        cache = Path(tempfile.gettempdir()) / f"sdnet-reach-{digest.hexdigest()}.json"
        if not cache.exists():
            with ThreadPoolExecutor(workers) as pool:
                measured = dict(zip(tests, pool.map(self._measure, tests), strict=True))
            cache.write_text(json.dumps(measured))
        self.measured = json.loads(cache.read_text())

    def _measure(self, test: str) -> tuple[float, dict[str, list[int]]]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            tree = copy_tree(Path(folder) / "tree")
            settings = tree / ".coveragerc"
            settings.write_text(
                f"[run]\nsource = {tree / 'sdnet'}\nparallel = true\nsigterm = true\n"
                f"data_file = {folder}/data\npatch = subprocess, fork, _exit\n"
            )
            start = time.monotonic()
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m"]
            command += ["pytest", *QUICK, test]
            done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
            seconds = time.monotonic() - start
            if done.returncode not in (0, 5):
                sys.exit(
                    f"{test} fails without a fault:\n{done.stdout[-3000:]}{done.stderr[-500:]}"
                )
            call = [sys.executable, "-m", "coverage"]
            rcfile = f"--rcfile={settings}"
            subprocess.run([*call, "combine", rcfile], cwd=tree, capture_output=True)
            report = Path(folder) / "report.json"
            subprocess.run(
                [*call, "json", rcfile, "-i", "-o", str(report)], cwd=tree, capture_output=True
            )
            files = json.loads(report.read_text())["files"] if report.exists() else {}
            print(f"{seconds:6.1f} s  {test}", file=sys.stderr)
            return seconds, {name: found["executed_lines"] for name, found in files.items()}

    def tests_of(self, fault: Fault) -> tuple[list[str], float]:
        """Those that run the line of a fault, the likeliest first, then the quickest; seconds."""
        inside = _inside_functions(fault.file)
        lines = _statement(fault.file, fault.line)
        if not lines & inside:  # it runs on import: whoever uses the file has run it
            lines = inside or lines
        found = sorted(
            (Path(fault.file).stem not in Path(test).stem, seconds, test)
            for test, (seconds, files) in self.measured.items()
            if lines & set(files.get(fault.file, ()))
        )
        return [test for *_, test in found], sum(seconds for _, seconds, _ in found)


@cache
def _inside_functions(file: str) -> set[int]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = [n for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, functions)]
    return {line for n in found for line in range(n.body[0].lineno, n.end_lineno + 1)}


@cache
def _statements(file: str) -> list[tuple[int, int]]:
    """First and last line of each statement; of one that has a body, those of its head."""
    spans = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.stmt):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            body = getattr(node, "body", None)
            spans.append((first, max(first, body[0].lineno - 1 if body else node.end_lineno)))
    return spans


def _statement(file: str, line: int) -> set[int]:
    """The lines of the smallest statement that a line is in."""
    around = [span for span in _statements(file) if span[0] <= line <= span[1]]
    first, last = min(around, key=lambda span: span[1] - span[0], default=(line, line))
    return set(range(first, last + 1))


# -- reasons and the report -----------------------------------------------------------------------


def listed(path: Path) -> dict[tuple[str, str], str]:
    """The faults in `survivors.txt` or in what this module printed: (before, after) -> the reason.

    A reason, or a place, is followed by a line `- before` and a line `+ after` for each fault.
    """
    found, reason = {}, ""
    lines = path.read_text().splitlines() if path.exists() else []
    for line, following in pairwise([*lines, ""]):
        if line.startswith("- ") and following.startswith("+ "):
            found[line[2:], following[2:]] = reason
        elif not line.startswith("+ "):
            reason = line
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="*", default=["sdnet"], help="files or folders")
    parser.add_argument("--one-in", type=int, default=20, metavar="N", help="take one fault in N")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--again", type=Path, metavar="LOG", help="only those that it lists")
    parser.add_argument("--list", action="store_true", help="show the faults, run nothing")
    arguments = parser.parse_args()

    places = [(Path.cwd() / place).resolve() for place in arguments.places]
    files = sorted({f for p in places for f in ([p] if p.is_file() else p.rglob("*.py"))})
    faults = [f for file in files for f in faults_of(file) if is_drawn(f, arguments.one_in)]
    if arguments.again:
        faults = [f for f in faults if (f.before, f.after) in listed(arguments.again)]
    if arguments.list:
        for fault in faults:
            print(f"{fault.file}:{fault.line}\n- {fault.before}\n+ {fault.after}")
        print(f"{len(faults)} faults")
        return 0

    tests = sorted(str(test.relative_to(ROOT)) for test in ROOT.glob("tests/**/test_*.py"))
    reach = Reach(tests, arguments.workers)
    reasons = listed(REASONS)
    trees: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for i in range(arguments.workers):
            trees.put(copy_tree(Path(folder) / str(i)))

        def noticed(fault: Fault) -> bool | None:
            if reasons.get((fault.before, fault.after), "").startswith("equivalent"):
                return None
            tests, seconds = reach.tests_of(fault)
            tree = trees.get()
            try:
                file = tree / fault.file
                source = file.read_bytes()
                file.write_bytes(fault.apply(source))
                passed = not tests or run_tests(tree, tests, 60 + 2 * seconds) == 0
            finally:
                file.write_bytes(source)
                trees.put(tree)
            if passed:
                place = f"{fault.file}:{fault.line}"
                print(f"{place}\n- {fault.before}\n+ {fault.after}\n", flush=True)
            return not passed

        with ThreadPoolExecutor(arguments.workers) as pool:
            results = list(pool.map(noticed, faults))

    table: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for fault, result in zip(faults, results, strict=True):
        room = "/".join(Path(fault.file).parts[:2])
        for row in (room, "all"):
            table[row][0 if result else 2 if result is None else 1] += 1
    print(f"{'':28} noticed  passed  equivalent  noticed of those that matter")
    for room, (killed, passed, equivalent) in sorted(table.items(), key=lambda r: r[0] == "all"):
        share = killed / (killed + passed) if killed + passed else 1.0
        print(f"{room:28} {killed:7} {passed:7} {equivalent:11}  {share:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
