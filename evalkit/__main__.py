"""``python -m evalkit`` is the command line."""

import os
import sys

if __name__ == "__main__":
    # Python puts the working folder first, where a file hides a package of the same name. A task
    # that is named as a module is found there all the same: evalkit.tasks.loading.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]

    from evalkit.cli import main

    sys.exit(main())
