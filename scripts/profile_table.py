"""Where the device's time went in a profile: a line for each named scope, largest first (docs/profiles.md).

    python scripts/profile_table.py outputs/run/profile/update-3

An event of the device names its instruction; the profile also holds the compiled programs, whose instructions name the
scopes that they were traced in. Both are read from the `.xplane.pb` files (tsl/profiler/protobuf/xplane.proto).
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from jax.profiler import ProfileData

SCOPES = {
    *("prefill", "decode", "resize", "sample", "reference_logprobs", "logprobs"),
    *("gradients", "accumulate", "loss", "optimizer_step", "attention", "linear_attention", "mlp", "unembed"),
}
Program = tuple[str, int]  # the module's name and its number
Names = dict[str, str]  # instruction -> its path, e.g. jit(decode)/decode/while/body/mlp/mul


def device_seconds(folder: Path) -> Counter[str]:
    """Seconds by scope path, e.g. "decode/attention", of all hosts. An instruction's own: without those it calls."""
    seconds: Counter[str] = Counter()
    for file in sorted(folder.rglob("*.xplane.pb")):
        spent: dict[Program, Counter[str]] = defaultdict(Counter)
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for program, instruction, duration in own_durations(line):
                    spent[program][instruction] += duration / 1e9
        compiled = instruction_names(file.read_bytes())
        for (module, _), instructions in spent.items():
            # CPU programs are numbered anew after they were noted down: what they hold tells which is which
            names = max(compiled.get(module, [{}]), key=lambda names: len(names.keys() & instructions.keys()))
            for instruction, own in instructions.items():
                seconds[scope_path(names.get(instruction, ""))] += own
    return seconds


def own_durations(line) -> Iterator[tuple[Program, str, float]]:
    """(program, instruction, nanoseconds) of each event of one thread or stream; loops enclose what they run."""
    events = []
    for event in line.events:
        stats = dict(event.stats)
        if "hlo_op" in stats:
            program = (stats["hlo_module"], stats.get("program_id", 0))
            events.append((event.start_ns, -event.duration_ns, program, stats["hlo_op"]))
    enclosing: list[list] = []  # [end, program, instruction, own duration]
    for start, negative, program, instruction in sorted(events):
        while enclosing and enclosing[-1][0] <= start:
            yield tuple(enclosing.pop()[1:])
        if enclosing:
            enclosing[-1][3] += negative
        enclosing.append([start - negative, program, instruction, -negative])
    yield from (tuple(event[1:]) for event in enclosing)


def scope_path(name: str) -> str:
    """The scopes in an instruction's path; what a gradient runs backwards and what it computes again is marked."""
    path = re.sub(r"jit\([^)]*\)", "", name.rpartition("/")[0])  # the last part is the operation
    parts = re.split(r"[/()]", path)
    found = list(dict.fromkeys(part for part in parts if part in SCOPES))
    way = " (recomputed)" if "rematted_computation" in parts else " (backward)" if "transpose" in parts else ""
    return "/".join(found) + way if found else "(no scope)"


def instruction_names(profile: bytes) -> dict[str, list[Names]]:
    """Of all programs that a profile holds, by module name."""
    programs = defaultdict(list)
    for module in read(profile, 1, 4, 2, 5, 6, 1):  # planes, event_metadata, value, stats, bytes, hlo_module
        name = next(read(module, 1)).decode()
        names = {}
        for instruction in read(module, 3, 2):  # computations, instructions
            path = next(read(instruction, 7, 2), b"")  # metadata, op_name
            names[next(read(instruction, 1)).decode()] = path.decode()
        programs[name].append(names)
    return programs


def read(message: bytes, *path: int) -> Iterator:
    """Every value at a path of field numbers of a protobuf message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 0:
            value, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, position = _varint(message, position)
            value = message[position : position + size]
            position += size
        if key >> 3 == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from read(value, *path[1:])


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of output_dir/profile")
    seconds = device_seconds(parser.parse_args().folder)
    total = sum(seconds.values())
    print("| scope | seconds | share |\n|---|---|---|")
    for path, own in seconds.most_common():
        print(f"| {path} | {own:.4f} | {own / total:.1%} |")


if __name__ == "__main__":
    main()
