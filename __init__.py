"""The checkout under the name of its package: `import ditbench` from the folder that holds a clone
called ditbench finds this file first, and loads the package in `bench/`."""

import sys
from importlib import util
from pathlib import Path

if __name__ == "ditbench":  # a clone may have any name, and pytest may import this file
    _spec = util.spec_from_file_location(__name__, Path(__file__).parent / "bench" / "__init__.py")
    assert _spec is not None and _spec.loader is not None
    sys.modules[__name__] = util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
