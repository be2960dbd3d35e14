"""``python -m quantize_worker``: ``tailor`` for people; ``child``, what the sandbox starts.

Each imports its own modules only: who tailors never loads ONNX Runtime, and the child, which does,
no command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["child"]:
        from quantize_worker import child

        return child.main(arguments[1:])
    from quantize_worker import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
