"""What every entry point does with a failure: exit codes 0, 1, 2 and what is printed."""

import os
import sys
import traceback
from collections.abc import Callable

from jax_rl.errors import UserError


def main_guard(run: Callable[[], int | None]) -> int:
    """Call `run` and return the process's exit code; print what went wrong to stderr.

    0 (or what `run` returns) on success; 2 on a `UserError`, its message alone; 130 on Ctrl-C; 1 on any other failure,
    with its traceback. `SystemExit` passes through, so argparse keeps its own codes (0 for --help, 2 for a bad option).
    """
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output went away (`... | head`): not a failure; keep Python's exit-time flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001 - the last line of defence: whatever is nobody's input is a failure while running
        traceback.print_exc()
        return 1
