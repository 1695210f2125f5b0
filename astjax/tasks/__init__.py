"""The tasks by name: one paper, one file."""

from astjax.tasks import supervised

TASKS = {"supervised": supervised.make}
