"""The `quorumq` command; `python -m node` is the same."""

from __future__ import annotations

from node.cli.root import main

if __name__ == "__main__":
    main()
