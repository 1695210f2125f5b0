"""Recipes: `python -m astjax.main --config=configs/<name>.py`."""

import sys

# They import `configs.common`, also where this package has another name.
sys.modules.setdefault("configs", sys.modules[__name__])
