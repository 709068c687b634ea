"""Exit codes and what is printed with them."""

import subprocess
import sys

import pytest

from jax_rl.cli import main_guard
from jax_rl.errors import UserError


def fail(error: BaseException) -> None:
    raise error


def test_success_and_own_codes() -> None:
    assert main_guard(lambda: None) == 0
    assert main_guard(lambda: 3) == 3


def test_a_users_mistake_is_one_message_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: fail(UserError("rl.lr: wrong"))) == 2
    assert capsys.readouterr().err == "error: rl.lr: wrong\n"


def test_any_other_failure_shows_its_traceback_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: fail(ValueError("boom"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "ValueError: boom" in err


def test_interrupt_and_argparse_keep_their_codes() -> None:
    assert main_guard(lambda: fail(KeyboardInterrupt())) == 130
    with pytest.raises(SystemExit):
        main_guard(lambda: sys.exit(2))


def test_a_reader_that_goes_away_is_no_failure() -> None:
    code = "from jax_rl.cli import main_guard\nraise SystemExit(main_guard(lambda: print(('x' * 99 + '\\n') * 9999)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0
    process.stderr.close()
