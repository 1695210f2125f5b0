"""Recipes: `python -m astjax.main --config=configs/<name>.py`."""
