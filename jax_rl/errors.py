"""The one distinction that entry points make between failures: the user's input, or everything else."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, which value, and what would be right.

    Entry points print it without a traceback and exit with 2 (`jax_rl.cli.main_guard`).
    """
