"""`python -m lmguide.eval.harness`: lm-eval's own command line, with our models and tasks and without its traps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lmguide.eval.harness.registration import TASKS, register

if TYPE_CHECKING:
    from collections.abc import Sequence


def words_for_lm_eval(words: Sequence[str]) -> list[str]:
    """lm-eval's arguments with our tasks among those it finds.

    Args:
        words: What the user wrote.

    Raises:
        ValueError: A cache of requests beside a chat template, which would hide that a prompt is a chat.
    """
    found = list(words)
    if "--cache_requests" in found and any(word.startswith("--apply_chat_template") for word in found):
        raise ValueError(
            "--cache_requests: beside --apply_chat_template it would hide which prompts are chats. Leave it out."
        )
    if "--include_path" not in found and not {"-h", "--help", "ls", "validate"} & set(found):
        found += ["--include_path", str(TASKS)]
    return found


def main() -> int:
    """Run lm-eval."""
    try:
        sys.argv[1:] = words_for_lm_eval(sys.argv[1:])
    except ValueError as error:
        print(f"lmguide: error: {error}", file=sys.stderr)
        return 2
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
