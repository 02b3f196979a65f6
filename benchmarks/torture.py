"""Kill, starve and damage trainings of all networks at random for an hour, and compare them with undisturbed ones.

uv run python benchmarks/torture.py [--minutes 60] [--seed 0]    writes benchmarks/torture.json and prints it

Each training is `fmdiff train NAME --profile smoke --batch-size 4` on 200 drawn images. It is disturbed, and started
again by the same command, until it ends; then its weights, card and history must be those of a training that nothing
disturbed, bit for bit. After each fault the folder must hold no weights, or whole ones, and the command may have said
one line, but no traceback. The commands run in copies of this process (fork), which spares them the seconds in which
PyTorch is loaded, so this needs Linux or macOS.
"""

import argparse
import json
import os
import pty
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # every optimizer loads it, which takes seconds
from machine import about, save
from safetensors.torch import load_file

from fmdiff_helpers import endings, recipes, train
from fmdiff_helpers.cards import WeightsError, read_card
from fmdiff_helpers.checkpoints import load_pretrained
from fmdiff_helpers.cli import app
from fmdiff_helpers.recipes import CARDS
from fmdiff_helpers.standin import draw_garments

IMAGES = draw_garments(200)
SIGNALS = [*endings.NAMES, "SIGKILL", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP"]
WEIGHTS = ("weights.safetensors", "weights.json", ".weights.next.json")
LIMIT = 300.0  # seconds; a command that takes longer hangs


def prepare() -> None:
    """Let trainings take seconds: few images, one thread."""
    torch.set_num_threads(1)
    recipes.NUM_VALIDATION = 50
    recipes.load_fashion_mnist = lambda split: IMAGES


def at_nth(number: int, module: object, name: str, action: Callable[[], None]) -> None:
    """Call `action` before the `number`th call of a function."""
    function, left = getattr(module, name), iter(range(number))

    def wrapped(*arguments, **options):
        if next(left, None) is None:
            action()
        return function(*arguments, **options)

    setattr(module, name, wrapped)


def no_space() -> None:
    """Raise the error of a full disk."""
    raise OSError(28, "No space left on device")


def another_time(dice: random.Random) -> None:
    """Let all clocks jump at random."""
    for name in ("time", "monotonic"):
        clock = getattr(time, name)
        setattr(time, name, lambda clock=clock: clock() + dice.choice([-3e8, -100.0, 0.0, 5000.0, 3e8]))


# What a command meets from within: name -> a function that prepares it in the process of the command.
WITHIN: dict[str, Callable[[random.Random], None]] = {
    "killed at a file": lambda dice: at_nth(
        dice.randrange(12), os, dice.choice(["replace", "fsync"]), lambda: os.kill(os.getpid(), signal.SIGKILL)
    ),
    "disk full": lambda dice: at_nth(dice.randrange(12), os, "fsync", no_space),
    "files may not grow": lambda dice: resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (dice.randrange(4_000_000),)),
    "other clocks": another_time,
    "no memory": lambda dice: resource.setrlimit(resource.RLIMIT_AS, 2 * (dice.randrange(10**9, 10**10),)),
    "checkpoints at every point": lambda dice: setattr(train, "CHECKPOINT_EVERY", 0.0),
}


def run_command(arguments: list[str], output: int, within: Callable[[], None]) -> int:
    """Start `fmdiff` in a copy of this process, its words going to the file descriptor `output`; return its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        for each in range(1, signal.NSIG):
            if each not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE) and signal.getsignal(each) is not None:
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))
        within()
        app(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def wait_for(number: int) -> int:
    """Return the exit code of a process, negative for a signal; TimeoutError if it hangs."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise TimeoutError(f"a command took more than {LIMIT:g} s")


def read_state(folder: Path) -> dict:
    """Return what a checkpoint holds."""
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)


class Torture:
    """Disturb the training of one network after the other; `faults`, `codes` and `problems` say what happened."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.dice = folder, random.Random(seed)
        self.faults, self.codes, self.problems = Counter(), Counter(), []
        self.trainings, self.commands = Counter(), Counter()

    def arguments(self, name: str, out: str) -> list[str]:
        """Return the command line of a training."""
        return ["train", name, "--profile", "smoke", "--batch-size", "4", "--out", str(self.folder / out)]

    def undisturbed(self, name: str) -> float:
        """Train a network without any fault; return the seconds it takes."""
        start = time.monotonic()
        with open(self.folder / "words", "w+b") as words:
            code = wait_for(run_command(self.arguments(name, f"whole/{name}"), words.fileno(), lambda: None))
        assert code == 0, (self.folder / "words").read_text()
        return time.monotonic() - start

    def problem(self, name: str, fault: str, what: str) -> None:
        """Keep what should not have happened."""
        self.problems.append(f"{name}, {fault}: {what}")
        print(self.problems[-1], flush=True)

    def check_folder(self, name: str, fault: str) -> None:
        """Keep a problem unless the folder holds whole weights, or none."""
        try:
            load_pretrained(self.folder / "run")
        except WeightsError as error:
            if "no weights" not in str(error) and not self.is_damaged:
                self.problem(name, fault, f"{error} after {self.story}")

    def disturbed(self, name: str, seconds: float) -> None:
        """Start a training with a fault, and look at what it leaves."""
        others = ["terminal closed", "output closed", "two commands", "reader"]
        fault = self.dice.choice([*["signal"] * 8, *WITHIN, *others])
        self.faults[fault] += 1
        self.story.append(fault)
        self.commands[name] += 1
        seed = self.dice.random()
        within = (lambda: WITHIN[fault](random.Random(seed))) if fault in WITHIN else lambda: None
        words = open(self.folder / "words", "w+b")
        reading, writing = pty.openpty() if fault == "terminal closed" else os.pipe()
        through = fault in ("terminal closed", "output closed")
        process = run_command(self.arguments(name, "run"), writing if through else words.fileno(), within)
        os.close(writing)
        second = None
        if fault == "two commands":
            other = self.arguments(self.dice.choice([name, "classifier", "vae"]), "run")
            second = run_command(other, words.fileno(), lambda: None)
        time.sleep(self.dice.random() * seconds)
        os.close(reading)  # a terminal or pipe that is closed
        if fault == "reader":
            self.read_beside(name, process)
        if fault == "signal" or second:
            self.send(process)
        codes = [wait_for(each) for each in (process, second) if each]
        words.seek(0)
        said = words.read().decode()
        words.close()
        self.codes.update(codes)
        if "Traceback" in said and fault != "no memory":
            self.problem(name, fault, said[-1500:])
        if 0 in codes or "Stopped at step" in said:  # it came far enough to mend what was damaged before
            self.is_damaged = False
        self.check_folder(name, fault)

    def send(self, process: int) -> None:
        """Send a signal at random, or two; a stopped process goes on after a moment."""
        for _ in range(self.dice.choice([1, 1, 1, 2])):
            name = self.dice.choice([name for name in SIGNALS if hasattr(signal, name)])
            self.faults[name] += 1
            self.story.append(name)
            try:
                os.kill(process, getattr(signal, name))
                if name == "SIGSTOP":
                    time.sleep(0.1)
                    os.kill(process, signal.SIGCONT)
            except ProcessLookupError:
                return

    def read_beside(self, name: str, process: int) -> None:
        """Read the weights as fast as possible while a training writes them."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            self.check_folder(name, "reader")

    def damage(self, name: str) -> None:
        """Damage a file between two commands, now and then."""
        what = self.dice.choice(["nothing"] * 6 + ["lost", "cut", "changed", "left over", "old clock", "checkpoint"])
        path = self.folder / "run" / self.dice.choice(WEIGHTS)
        checkpoint = self.folder / "run" / "checkpoint.pt"
        if what == "left over":
            (self.folder / "run" / f".checkpoint.pt.{self.dice.randrange(9999)}.part").write_bytes(b"half")
        elif what == "old clock":
            for each in (self.folder / "run").iterdir():
                os.utime(each, 2 * (self.dice.choice([0, 4e9]),))
        elif what == "checkpoint" and checkpoint.exists() and self.dice.random() < 0.3:
            self.damage_checkpoint(name, checkpoint)
        elif what in ("lost", "cut", "changed") and path.exists():
            content = path.read_bytes()
            place = self.dice.randrange(len(content)) if content else 0
            path.write_bytes(content[:place] + (b"" if what == "cut" else b"?" + content[place + 1 :]))
            if what == "lost":
                path.unlink()
            self.is_damaged = True
        else:
            return
        self.faults[f"file {what}"] += 1
        self.story.append(f"{path.name} {what}")

    def damage_checkpoint(self, name: str, path: Path) -> None:
        """Cut a checkpoint: the command must refuse it in one line; then delete it, as the line says."""
        path.write_bytes(path.read_bytes()[: self.dice.randrange(1000)])
        with open(self.folder / "words", "w+b") as words:
            code = wait_for(run_command(self.arguments(name, "run"), words.fileno(), lambda: None))
        said = (self.folder / "words").read_text()
        if code != 2 or "is no checkpoint" not in said or len(said.splitlines()) != 1:
            self.problem(name, "checkpoint cut", said[-500:])
        path.unlink()

    def is_done(self, name: str) -> bool:
        """Tell whether the training has taken its last step."""
        try:
            state = read_state(self.folder / "run")
        except FileNotFoundError:
            return False
        return state["card"]["network"] == CARDS[name]["network"] and state["since"] == state["card"]["recipe"]["steps"]

    def compare(self, name: str) -> None:
        """Start a training that has ended once more, and keep a problem unless all is as in the undisturbed one."""
        with open(self.folder / "words", "w+b") as words:
            wait_for(run_command(self.arguments(name, "run"), words.fileno(), lambda: None))
        found, expected = self.folder / "run", self.folder / "whole" / name
        cards = [read_card(place) | {"seconds": 0} for place in (found, expected)]
        weights = [load_file(place / "weights.safetensors") for place in (found, expected)]
        histories = [read_state(place)["history"] for place in (found, expected)]
        differ = [key for key in cards[1] if cards[0].get(key) != cards[1][key]]
        differ += [key for key in weights[1] if not torch.equal(weights[0][key], weights[1][key])]
        if differ or histories[0] != histories[1]:
            self.problem(name, "end", f"after {self.story} there differ {differ[:5]}, {histories}")
        if left := [path.name for path in found.iterdir() if path.name.endswith(".part")]:
            self.problem(name, "end", f"left behind: {left}")
        self.trainings[name] += 1

    def another_network(self, name: str) -> None:
        """Delete a checkpoint of another network, which a second command may have begun here."""
        path = self.folder / "run" / "checkpoint.pt"
        if path.exists():
            card = read_state(path.parent)["card"]
            if any(card[key] != CARDS[name][key] for key in ("network", "arguments")):
                shutil.rmtree(self.folder / "run")

    def train_through(self, name: str, seconds: float, end: float) -> None:
        """Disturb one training until it ends, or the time is up."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.story, self.is_damaged = [], False
        while time.monotonic() < end:
            self.disturbed(name, seconds)
            self.another_network(name)
            if self.is_done(name):
                self.damage(name)
                self.compare(name)
                return
            if (self.folder / "run").is_dir():
                self.damage(name)


def main() -> None:
    """Torture all networks in turn, and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder), options.seed)
        seconds = {name: torture.undisturbed(name) for name in CARDS}
        end = time.monotonic() + 60 * options.minutes
        names = list(CARDS)
        while time.monotonic() < end:
            name = torture.dice.choice(names)
            torture.train_through(name, seconds[name], end)
    results = about() | {
        "minutes": options.minutes,
        "commands": sum(torture.commands.values()),
        "faults": dict(sorted(torture.faults.items())),
        "exit codes": {str(code): number for code, number in sorted(torture.codes.items())},
        "trainings that ended, all equal to undisturbed ones": dict(torture.trainings),
        "problems": torture.problems,
    }
    print(json.dumps(results, indent=1))
    save(__file__, results)


if __name__ == "__main__":
    main()
