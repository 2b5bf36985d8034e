"""How this command line was called, so that what it prints can be called the same way."""

import shutil
import sys
from pathlib import Path


def invoked() -> str:
    """Returns the command: `dreamer4` where the shell finds it, else the path it was called by."""
    name = sys.argv[0]
    if Path(name).name != "dreamer4":
        return "python -m dreamer4_cli"
    return "dreamer4" if shutil.which("dreamer4") == name else name
